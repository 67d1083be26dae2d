// Gated activation unit, y = tanh(a) sigmoid(b), with the additions before it: one pass over x.

#include "dispatch.h"
#include "gate.h"
#include "pixel_table.h"
#include "sums.h"

#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// What is added to a run of entries: a number each for a and b, and a vector each or none.
template <typename T, typename A>
struct Addend {
  A a = 0, b = 0;
  const T* row_a = nullptr;
  const T* row_b = nullptr;
};

template <typename A, typename T, typename V>
[[gnu::always_inline]] inline Vec<A> added(
    const T* x, A number, const V* row, int64_t i, int64_t count) {
  const Vec<A> value = vload(x + i, count) + Vec<A>(number);
  return row == nullptr ? value : value + vload(row + i, count);
}

// visit(i, count, a, b) over a run of entries, with literally full counts but for the last.
template <typename T, typename V, typename F>
[[gnu::always_inline]] inline void each_vector(
    const T* a, const T* b, const Addend<V, acc_t<T>>& add, int64_t size, F&& visit) {
  using A = acc_t<T>;
  constexpr int step = kStep<T>;
  int64_t i = 0;
  for (; i + step <= size; i += step) {
    visit(i, int64_t{step}, added(a, add.a, add.row_a, i, step), added(b, add.b, add.row_b, i, step));
  }
  if (i < size) {
    const int64_t rest = size - i;
    visit(i, rest, added(a, add.a, add.row_a, i, rest), added(b, add.b, add.row_b, i, rest));
  }
}

template <typename T, typename V>
inline void gated_run(
    const T* a, const T* b, const Addend<V, acc_t<T>>& add, int64_t size, T* out, bool stream) {
  using A = acc_t<T>;
  each_vector(a, b, add, size, [&](int64_t i, int64_t count, const Vec<A>& va, const Vec<A>& vb) {
    const auto g = gate<false>(va, vb);
    vwrite(out + i, g.tanh * g.sigmoid, stream, count);
  });
}

// visit(i, count, gradient of a, gradient of b)
template <typename T, typename V, typename F>
[[gnu::always_inline]] inline void gated_run_grad(
    const T* a, const T* b, const Addend<V, acc_t<T>>& add, int64_t size, const T* grad, F&& visit) {
  using A = acc_t<T>;
  each_vector(a, b, add, size, [&](int64_t i, int64_t count, const Vec<A>& va, const Vec<A>& vb) {
    const auto g = gate<true>(va, vb);
    const Vec<A> scaled = vload(grad + i, count) * g.sigmoid;
    visit(i, count, scaled * g.tanh_slope, scaled * g.tanh * g.one_minus_sigmoid);
  });
}

// Planes: runs of `inner` entries of one channel.
template <typename T>
Addend<T, acc_t<T>> plane_addend(const GatedArgs& args, int64_t sample, int64_t channel) {
  Addend<T, acc_t<T>> add;
  if (args.bias != nullptr) {
    const auto* bias = static_cast<const acc_t<T>*>(args.bias);
    add.a = bias[channel];
    add.b = bias[channel + args.channels];
  }
  if (args.condition.present()) {
    const T* condition = row<T>(args.condition, sample);
    if (args.condition_per_position) {
      add.row_a = condition + channel * args.inner;
      add.row_b = condition + (channel + args.channels) * args.inner;
    } else {
      add.a += static_cast<acc_t<T>>(condition[channel]);
      add.b += static_cast<acc_t<T>>(condition[channel + args.channels]);
    }
  }
  return add;
}

// visit(sample, channel, a, b, addend) over the planes of a, in parallel.
template <typename T, typename F>
void each_plane(const GatedArgs& args, F&& visit) {
  const auto* x = static_cast<const T*>(args.x);
  at::parallel_for(
      0, args.outer * args.channels, grain_rows(args.inner), [&](int64_t begin, int64_t end) {
        for (int64_t index = begin; index < end; ++index) {
          const int64_t sample = index / args.channels, channel = index % args.channels;
          const T* a = x + (sample * 2 * args.channels + channel) * args.inner;
          const auto add = plane_addend<T>(args, sample, channel);
          visit(sample, channel, a, a + args.channels * args.inner, add);
        }
        finish_streaming(args.stream);
      });
}

// Rows: runs of all channels of one pixel. bias + condition as one vector, formed anew where the row changes.
template <typename T>
class RowAddend {
 public:
  using A = acc_t<T>;

  explicit RowAddend(const GatedArgs& args) : args_(args) {
    if (args.bias != nullptr || args.condition.present()) {
      sum_.resize(2 * args.channels);
    }
  }

  Addend<A, A> at(int64_t sample, int64_t pixel) {
    Addend<A, A> add;
    if (sum_.empty()) {
      return add;
    }
    const int64_t index = args_.condition_per_position ? sample * args_.inner + pixel
        : args_.condition.present()                    ? sample
                                                       : 0;
    if (index != index_) {
      index_ = index;
      fill(args_.condition.present() ? row<T>(args_.condition, index) : nullptr);
    }
    add.row_a = sum_.data();
    add.row_b = sum_.data() + args_.channels;
    return add;
  }

 private:
  void fill(const T* condition) {
    const auto* bias = static_cast<const A*>(args_.bias);
    for (int64_t i = 0; i < 2 * args_.channels; ++i) {
      const A base = bias == nullptr ? A(0) : bias[i];
      sum_[i] = condition == nullptr ? base : base + static_cast<A>(condition[i]);
    }
  }

  const GatedArgs& args_;
  std::vector<A> sum_;
  int64_t index_ = -1;
};

template <typename T>
void gated_rows(const GatedArgs& args) {
  const auto* x = static_cast<const T*>(args.x);
  auto* out = static_cast<T*>(args.out);
  at::parallel_for(
      0, args.outer * args.inner, grain_rows(args.channels), [&](int64_t begin, int64_t end) {
        RowAddend<T> addend(args);
        for (int64_t index = begin; index < end; ++index) {
          const T* a = x + index * 2 * args.channels;
          const auto add = addend.at(index / args.inner, index % args.inner);
          gated_run(a, a + args.channels, add, args.channels, out + index * args.channels, args.stream);
        }
        finish_streaming(args.stream);
      });
}

void gated(const GatedArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    if (args.channels_innermost) {
      gated_rows<T>(args);
      return;
    }
    auto* out = static_cast<T*>(args.out);
    each_plane<T>(args, [&](int64_t sample, int64_t channel, const T* a, const T* b, const auto& add) {
      T* to = out + (sample * args.channels + channel) * args.inner;
      gated_run(a, b, add, args.inner, to, args.stream);
    });
  });
}

template <typename T>
void gated_rows_grad(const GatedGradArgs& args) {
  using A = acc_t<T>;
  const auto& in = args.in;
  const int64_t width = 2 * in.channels;
  const auto* x = static_cast<const T*>(in.x);
  const auto* grad = static_cast<const T*>(args.grad);
  auto* grad_x = static_cast<T*>(args.grad_x);
  auto* sums = static_cast<A*>(args.sums);
  const int64_t per = (in.inner + args.parts - 1) / args.parts;
  at::parallel_for(0, in.outer * args.parts, grain_rows(per * width), [&](int64_t begin, int64_t end) {
    RowAddend<T> addend(in);
    RowSums<A> total(sums == nullptr ? 0 : width);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t sample = chunk / args.parts;
      const auto range = chunk_range(in.inner, args.parts, chunk % args.parts);
      total.restart();
      for (int64_t pixel = range.begin; pixel < range.end; ++pixel) {
        const int64_t index = sample * in.inner + pixel;
        const T* a = x + index * width;
        T* to = grad_x == nullptr ? nullptr : grad_x + index * width;
        gated_run_grad(
            a,
            a + in.channels,
            addend.at(sample, pixel),
            in.channels,
            grad + index * in.channels,
            [&](int64_t i, int64_t count, const Vec<A>& ga, const Vec<A>& gb) {
              if (to != nullptr) {
                vwrite(to + i, ga, in.stream, count);
                vwrite(to + in.channels + i, gb, in.stream, count);
              }
              if (sums != nullptr) {
                A* p = total.data() + i;
                vstore(p, vload(p, count) + ga, count);
                p += in.channels;
                vstore(p, vload(p, count) + gb, count);
              }
            });
        total.next();
      }
      if (sums != nullptr) {
        const auto& sum = total.finish();
        std::copy(sum.begin(), sum.end(), sums + chunk * width);
      }
    }
    finish_streaming(in.stream);
  });
}

template <typename T>
void gated_planes_grad(const GatedGradArgs& args) {
  using A = acc_t<T>;
  const auto& in = args.in;
  const auto* grad = static_cast<const T*>(args.grad);
  auto* grad_x = static_cast<T*>(args.grad_x);
  auto* sums = static_cast<A*>(args.sums);
  each_plane<T>(in, [&](int64_t sample, int64_t channel, const T* a, const T* b, const auto& add) {
    const int64_t first = sample * 2 * in.channels + channel;
    T* to_a = grad_x == nullptr ? nullptr : grad_x + first * in.inner;
    T* to_b = grad_x == nullptr ? nullptr : to_a + in.channels * in.inner;
    const T* g = grad + (sample * in.channels + channel) * in.inner;
    double sum_a = 0, sum_b = 0;
    // In blocks, so that the rounding of the sums does not grow with their length.
    for (int64_t begin = 0; begin < in.inner; begin += kSumBlock) {
      const int64_t size = std::min(kSumBlock, in.inner - begin);
      auto block = add;
      if (block.row_a != nullptr) {
        block.row_a += begin;
        block.row_b += begin;
      }
      Vec<A> block_a(0), block_b(0);
      gated_run_grad(
          a + begin,
          b + begin,
          block,
          size,
          g + begin,
          [&](int64_t i, int64_t count, const Vec<A>& ga, const Vec<A>& gb) {
            if (grad_x != nullptr) {
              vwrite(to_a + begin + i, ga, in.stream, count);
              vwrite(to_b + begin + i, gb, in.stream, count);
            }
            // Lanes past the end have a gradient of 0, and so do their parts.
            block_a = block_a + ga;
            block_b = block_b + gb;
          });
      sum_a += sum_lanes<A>(block_a);
      sum_b += sum_lanes<A>(block_b);
    }
    if (sums != nullptr) {
      sums[first] = static_cast<A>(sum_a);
      sums[first + in.channels] = static_cast<A>(sum_b);
    }
  });
}

void gated_grad(const GatedGradArgs& args) {
  with_floating(args.in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    if (args.in.channels_innermost) {
      gated_rows_grad<T>(args);
    } else {
      gated_planes_grad<T>(args);
    }
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_gated(PixelKernels& kernels) {
  kernels.gated = gated;
  kernels.gated_grad = gated_grad;
}

} // namespace dgm_fast
