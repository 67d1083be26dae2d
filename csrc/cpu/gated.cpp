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

// Entries ahead that a run asks for: a new page starts every thousand floats, where the processor's own prefetch does.
template <typename T>
inline constexpr int64_t kAhead = 2048 / sizeof(T);

// visit(i, count, a, b) over a run of entries, with literally full counts but for the last; sum(x, i, count, half) adds
// to x.
template <typename T, typename Sum, typename F>
[[gnu::always_inline]] inline void each_sum(
    const T* a, const T* b, int64_t size, const Sum& sum, const F& visit) {
  constexpr int step = kStep<T>;
  int64_t i = 0;
  for (; i + step <= size; i += step) {
    __builtin_prefetch(a + i + kAhead<T>);
    __builtin_prefetch(b + i + kAhead<T>);
    const auto va = sum(vload(a + i, step), i, int64_t{step}, std::false_type{});
    visit(i, int64_t{step}, va, sum(vload(b + i, step), i, int64_t{step}, std::true_type{}));
  }
  if (i < size) {
    const int64_t rest = size - i;
    const auto va = sum(vload(a + i, rest), i, rest, std::false_type{});
    visit(i, rest, va, sum(vload(b + i, rest), i, rest, std::true_type{}));
  }
}

// The same with an addend, each kind of which has a loop of its own.
template <typename T, typename V, typename F>
[[gnu::always_inline]] inline void each_vector(
    const T* a, const T* b, const Addend<V, acc_t<T>>& add, int64_t size, const F& visit) {
  using A = acc_t<T>;
  if (add.row_a != nullptr) {
    each_sum(a, b, size, [&](const Vec<A>& x, int64_t i, int64_t count, auto second) {
      const V* row = (second ? add.row_b : add.row_a) + i;
      __builtin_prefetch(row + kAhead<V>);
      return x + Vec<A>(second ? add.b : add.a) + vload(row, count);
    }, visit);
  } else if (add.a != 0 || add.b != 0) {
    each_sum(a, b, size, [&](const Vec<A>& x, int64_t, int64_t, auto second) {
      return x + Vec<A>(second ? add.b : add.a);
    }, visit);
  } else {
    each_sum(a, b, size, [](const Vec<A>& x, int64_t, int64_t, auto) { return x; }, visit);
  }
}

template <typename T, typename V>
inline void gated_run(
    const T* a, const T* b, const Addend<V, acc_t<T>>& add, int64_t size, T* out, bool stream) {
  using A = acc_t<T>;
  // Not inlined, its constants would be loaded for every vector.
  const auto visit = [&](int64_t i, int64_t count, const Vec<A>& va, const Vec<A>& vb)
                         __attribute__((always_inline)) {
    vwrite(out + i, gated_product(va, vb), stream, count);
  };
  each_vector(a, b, add, size, visit);
}

// visit(i, count, gradient of a, gradient of b)
template <typename T, typename V, typename F>
[[gnu::always_inline]] inline void gated_run_grad(
    const T* a, const T* b, const Addend<V, acc_t<T>>& add, int64_t size, const T* grad, const F& visit) {
  using A = acc_t<T>;
  const auto visit_sum = [&](int64_t i, int64_t count, const Vec<A>& va, const Vec<A>& vb)
                             __attribute__((always_inline)) {
    __builtin_prefetch(grad + i + kAhead<T>);
    const auto g = gate<true>(va, vb);
    const Vec<A> scaled = vload(grad + i, count) * g.sigmoid;
    visit(i, count, scaled * g.tanh_slope, scaled * g.tanh * g.one_minus_sigmoid);
  };
  each_vector(a, b, add, size, visit_sum);
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

// Rows: runs of all channels of one pixel. bias + condition as one vector, formed anew where the row changes; a
// condition alone where it lies, if it needs no conversion.
template <typename T>
class RowAddend {
 public:
  using A = acc_t<T>;

  explicit RowAddend(const GatedArgs& args) : args_(args) {
    if (args.condition.present() && args.bias == nullptr && std::is_same_v<T, A>) {
      in_place_ = true;
    } else if (args.bias != nullptr || args.condition.present()) {
      sum_.resize(2 * args.channels);
    }
  }

  Addend<A, A> at(int64_t sample, int64_t pixel) {
    Addend<A, A> add;
    if (!in_place_ && sum_.empty()) {
      return add;
    }
    const int64_t index = args_.condition_per_position ? sample * args_.inner + pixel
        : args_.condition.present()                    ? sample
                                                       : 0;
    if (in_place_) {
      add.row_a = row<A>(args_.condition, index);
    } else {
      if (index != index_) {
        index_ = index;
        fill(args_.condition.present() ? row<T>(args_.condition, index) : nullptr);
      }
      add.row_a = sum_.data();
    }
    add.row_b = add.row_a + args_.channels;
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
  bool in_place_ = false;
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
            [&](int64_t i, int64_t count, const Vec<A>& ga, const Vec<A>& gb)
                __attribute__((always_inline)) {
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
          [&](int64_t i, int64_t count, const Vec<A>& ga, const Vec<A>& gb)
              __attribute__((always_inline)) {
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
