// NADE with several outputs a dimension: the outputs of all dimensions, and the gradients of what they come from.

#include "nade_recurrence.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Dimensions whose units are computed together, and rows whose gradients are summed on their own.
constexpr int64_t kBlock = 16;
constexpr int64_t kRowTile = 32;
// Vectors of hidden units that are in registers beside some rows or outputs.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kSlice = 4;
constexpr int kShared = 4;
#else
constexpr int kSlice = 2;
constexpr int kShared = 4;
#endif

void nade_outputs(const NadeOutputsArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    const InputRows<A> inputs(args);
    const int64_t size = args.size;
    const int64_t width = args.num_outputs();
    auto* outputs = static_cast<A*>(args.outputs);
    const int64_t grain = grain_rows(size * inputs.stride);
    at::parallel_for(0, args.rows, grain, [&](int64_t begin, int64_t end) {
      Recurrence<A> tile(args, inputs);
      for (int64_t first = begin; first < end; first += tile.kTile) {
        const int64_t count = std::min(tile.kTile, end - first);
        tile.start(count);
        for (int64_t d = 0; d < size; ++d) {
          tile.outputs(d, outputs + (first * size + d) * width, size * width);
          for (int64_t r = 0; r < count && d + 1 < size; ++r) {
            const int64_t at = (first + r) * size + d;
            if (args.classes > 0) {
              tile.advance(d, r, static_cast<const int32_t*>(args.x)[at]);
            } else {
              tile.advance(d, r, static_cast<const A*>(args.x)[at]);
            }
          }
        }
      }
    });
  });
}

// Gradients with respect to one slice of hidden units, from those of the outputs: nothing but the gradients of x and
// of the scale crosses slices. A tile's pre-activations at the start of every block of dimensions are kept; going back
// over the blocks, a block's units are computed forwards once more.
template <typename A>
class OutputsGradient {
 public:
  static constexpr int G = kSlice;
  static constexpr int lanes = kLanes<A>;
  static constexpr int64_t kWidth = G * lanes;

  OutputsGradient(const NadeOutputsGradArgs& args, const InputRows<A>& inputs)
      : args_(args),
        in_(args.in),
        inputs_(inputs),
        columns_(in_.size * std::max<int64_t>(1, in_.classes)),
        num_outputs_(in_.num_outputs()),
        grad_weight_(columns_ * kWidth),
        start_(divide_up(in_.size, kBlock) * kRowTile * 2 * kWidth),
        unit_(kBlock * kRowTile * kWidth),
        pre_(in_.scale != nullptr ? kBlock * kRowTile * kWidth : 0),
        grad_a_(kRowTile * kWidth),
        layer_(num_outputs_ * kWidth),
        reach_(kRowTile * lanes) {}

  // Hidden units from h on, rows [first, last): part `part` of the sums over rows, added to share `share` of those over
  // units.
  void run(int64_t h, int64_t first, int64_t last, int64_t part, int64_t share) {
    h_ = h;
    units_ = std::min(kWidth, in_.hidden - h);
    part_ = part;
    share_ = share;
    std::fill_n(grad_weight_.data(), columns_ * kWidth, A(0));
    std::fill_n(grad_bias_, kWidth, A(0));
    for (int64_t r = first; r < last; r += kRowTile) {
      run_tile(r, std::min(kRowTile, last - r), r == first);
    }
    auto* to_weight = static_cast<A*>(args_.grad_weight) + (part * in_.hidden + h) * columns_;
    transpose(grad_weight_.data(), kWidth, columns_, units_, to_weight, columns_);
    std::copy_n(grad_bias_, units_, static_cast<A*>(args_.grad_bias) + part * in_.hidden + h);
    if (first == last) {
      clear_layers();
    }
  }

 private:
  using Sums = CompensatedSum<A>;

  // What no tile writes.
  void clear_layers() {
    for (int64_t d = 0; d < in_.size; ++d) {
      for (int i = 0; i < in_.layers; ++i) {
        for (int64_t k = 0; k < in_.layer_outputs[i]; ++k) {
          std::fill_n(layer_grad(i, d, k), units_, A(0));
        }
      }
    }
  }

  A* layer_grad(int i, int64_t d, int64_t k) const {
    const int64_t count = in_.layer_outputs[i];
    auto* to = static_cast<A*>(args_.grad_layer_weight[i]);
    return to + ((part_ * in_.size + d) * count + k) * in_.hidden + h_;
  }

  A* scale_grad(int64_t d) const {
    auto* to = static_cast<A*>(args_.grad_scale);
    return to + (share_ * args_.parts + part_) * in_.size + d;
  }

  A* start(int64_t block, int64_t r) const {
    return start_.data() + (block * kRowTile + r) * 2 * kWidth;
  }

  Vec<A> scale(int64_t d) const {
    return Vec<A>(static_cast<const A*>(in_.scale)[d]);
  }

  const A* input_row(int64_t r, int64_t d) const {
    const int64_t x = in_.classes > 0 ? static_cast<const int32_t*>(in_.x)[r * in_.size + d] : 0;
    return inputs_.row(d, in_.classes, x) + h_;
  }

  Vec<A> input_value(int64_t r, int64_t d) const {
    return Vec<A>(in_.classes > 0 ? A(1) : static_cast<const A*>(in_.x)[r * in_.size + d]);
  }

  void run_tile(int64_t row, int64_t count, bool first_tile) {
    for (int64_t r = 0; r < count; ++r) {
      mark_starts(row + r, r);
    }
    std::fill_n(grad_a_.data(), kRowTile * kWidth, A(0));
    for (int64_t block = divide_up(in_.size, kBlock) - 1; block >= 0; --block) {
      const int64_t first = block * kBlock;
      const int64_t last = std::min(in_.size, first + kBlock);
      for (int64_t r = 0; r < count; ++r) {
        compute_units(block, row + r, r, first, last);
      }
      for (int64_t d = last - 1; d >= first; --d) {
        go_back(d, d - first, row, count, first_tile);
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < kWidth; ++i) {
        grad_bias_[i] += grad_a_.data()[r * kWidth + i];
      }
    }
  }

  void mark_starts(int64_t row, int64_t r) {
    Sums a[G];
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) {
      a[k] = {Vec<A>::loadu(inputs_.bias.data() + h_ + k * lanes), Vec<A>(0)};
    }
    for (int64_t d = 0; d < in_.size; ++d) {
      if (d % kBlock == 0) {
        A* to = start(d / kBlock, r);
#pragma GCC unroll 4
        for (int k = 0; k < G; ++k) {
          a[k].store(to + k * lanes, to + kWidth + k * lanes);
        }
      }
      step(a, row, d);
    }
  }

  void step(Sums* a, int64_t row, int64_t d) const {
    const A* weight = input_row(row, d);
    const Vec<A> x = input_value(row, d);
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) {
      a[k].add_product(x, Vec<A>::loadu(weight + k * lanes));
    }
  }

  void compute_units(int64_t block, int64_t row, int64_t r, int64_t first, int64_t last) {
    Sums a[G];
    const A* from = start(block, r);
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) {
      a[k] = Sums::load(from + k * lanes, from + kWidth + k * lanes);
    }
    for (int64_t d = first; d < last; ++d) {
      const int64_t at = ((d - first) * kRowTile + r) * kWidth;
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        Vec<A> value = a[k].value();
        if (in_.scale != nullptr) {
          value.store(pre_.data() + at + k * lanes);
          value = value * scale(d);
        }
        hidden_unit(value).store(unit_.data() + at + k * lanes);
      }
      step(a, row, d);
    }
  }

  void go_back(int64_t d, int64_t in_block, int64_t row, int64_t count, bool first_tile) {
    const auto* grad = static_cast<const A*>(args_.grad) + (row * in_.size + d) * num_outputs_;
    const int64_t stride = in_.size * num_outputs_;
    const A* unit = unit_.data() + in_block * kRowTile * kWidth;
    const A* pre = pre_.data() + in_block * kRowTile * kWidth;
    load_layers(d);
    add_input_gradients(d, row, count);
    Vec<A> to_scale(0);
    int64_t r = 0;
    for (; r + kShared <= count; r += kShared) {
      add_pre_gradients<kShared>(
          d, grad + r * stride, stride, unit + r * kWidth, pre + r * kWidth, r, to_scale);
    }
    for (; r < count; ++r) {
      add_pre_gradients<1>(
          d, grad + r * stride, stride, unit + r * kWidth, pre + r * kWidth, r, to_scale);
    }
    if (args_.grad_scale != nullptr) {
      *scale_grad(d) += sum_lanes<A>(to_scale);
    }
    int64_t first = 0;
    for (int i = 0; i < in_.layers; ++i) {
      const int64_t outputs = in_.layer_outputs[i];
      int64_t k = 0;
      for (; k + kShared <= outputs; k += kShared) {
        add_layer_gradients<kShared>(
            i, d, k, grad + first + k, stride, unit, count, first_tile);
      }
      for (; k < outputs; ++k) {
        add_layer_gradients<1>(i, d, k, grad + first + k, stride, unit, count, first_tile);
      }
      first += outputs;
    }
  }

  // The slice of dimension d's layers, [outputs, kWidth], padded with zeros.
  void load_layers(int64_t d) {
    A* to = layer_.data();
    for (int i = 0; i < in_.layers; ++i) {
      const int64_t count = in_.layer_outputs[i];
      const auto* from =
          static_cast<const A*>(in_.layer_weight[i]) + d * count * in_.hidden + h_;
      for (int64_t k = 0; k < count; ++k, to += kWidth) {
        std::copy_n(from + k * in_.hidden, units_, to);
        std::fill(to + units_, to + kWidth, A(0));
      }
    }
  }

  // What the pre-activations after dimension d give to its weights, and to x.
  void add_input_gradients(int64_t d, int64_t row, int64_t count) {
    const bool classes = in_.classes > 0;
    Vec<A> sum[G];
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) {
      sum[k] = Vec<A>(0);
    }
    for (int64_t r = 0; r < count; ++r) {
      const A* from = grad_a_.data() + r * kWidth;
      if (classes) {
        const int64_t x = static_cast<const int32_t*>(in_.x)[(row + r) * in_.size + d];
        A* to = grad_weight_.data() + (d * in_.classes + x) * kWidth;
#pragma GCC unroll 4
        for (int k = 0; k < G; ++k) {
          (Vec<A>::loadu(to + k * lanes) + Vec<A>::loadu(from + k * lanes)).store(to + k * lanes);
        }
        continue;
      }
      const Vec<A> x = input_value(row + r, d);
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        sum[k] = at::vec::fmadd(x, Vec<A>::loadu(from + k * lanes), sum[k]);
      }
    }
    if (classes) {
      return;
    }
    A* to = grad_weight_.data() + d * kWidth;
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) {
      (Vec<A>::loadu(to + k * lanes) + sum[k]).store(to + k * lanes);
    }
    if (args_.grad_x == nullptr) {
      return;
    }
    const A* weight = inputs_.row(d, 0, 0) + h_;
    for (int64_t r = 0; r < count; ++r) {
      Vec<A> product(0);
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        product = at::vec::fmadd(
            Vec<A>::loadu(weight + k * lanes),
            Vec<A>::loadu(grad_a_.data() + r * kWidth + k * lanes),
            product);
      }
      product.store(reach_.data() + r * lanes);
    }
    A total[kRowTile];
    sum_lanes_of(reach_.data(), count, total);
    auto* to_x = static_cast<A*>(args_.grad_x) + (share_ * in_.rows + row) * in_.size + d;
    for (int64_t r = 0; r < count; ++r) {
      to_x[r * in_.size] += total[r];
    }
  }

  // What R rows' outputs give to the pre-activations of dimension d.
  template <int R>
  void add_pre_gradients(
      int64_t d,
      const A* grad,
      int64_t stride,
      const A* unit,
      const A* pre,
      int64_t r,
      Vec<A>& to_scale) {
    Vec<A> sum[R][G];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        sum[i][k] = Vec<A>(0);
      }
    }
    for (int64_t o = 0; o < num_outputs_; ++o) {
      Vec<A> w[G];
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        w[k] = Vec<A>::loadu(layer_.data() + o * kWidth + k * lanes);
      }
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const Vec<A> g(grad[i * stride + o]);
#pragma GCC unroll 4
        for (int k = 0; k < G; ++k) {
          sum[i][k] = at::vec::fmadd(g, w[k], sum[i][k]);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        const int64_t at = i * kWidth + k * lanes;
        const Vec<A> h = Vec<A>::loadu(unit + at);
        Vec<A> g = sum[i][k] * (h - h * h);
        if (in_.scale != nullptr) {
          to_scale = at::vec::fmadd(g, Vec<A>::loadu(pre + at), to_scale);
          g = g * scale(d);
        }
        A* to = grad_a_.data() + r * kWidth + at;
        (Vec<A>::loadu(to) + g).store(to);
      }
    }
  }

  // Gradients of K rows of a layer.
  template <int K>
  void add_layer_gradients(
      int i,
      int64_t d,
      int64_t output,
      const A* grad,
      int64_t stride,
      const A* unit,
      int64_t count,
      bool first_tile) const {
    Vec<A> sum[K][G];
#pragma GCC unroll 4
    for (int o = 0; o < K; ++o) {
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        sum[o][k] = Vec<A>(0);
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      Vec<A> h[G];
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        h[k] = Vec<A>::loadu(unit + r * kWidth + k * lanes);
      }
#pragma GCC unroll 4
      for (int o = 0; o < K; ++o) {
        const Vec<A> g(grad[r * stride + o]);
#pragma GCC unroll 4
        for (int k = 0; k < G; ++k) {
          sum[o][k] = at::vec::fmadd(g, h[k], sum[o][k]);
        }
      }
    }
#pragma GCC unroll 4
    for (int o = 0; o < K; ++o) {
      A* to = layer_grad(i, d, output + o);
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        const int64_t left = units_ - k * lanes;
        if (left <= 0) {
          break;
        }
        A* at = to + k * lanes;
        const Vec<A> before = first_tile ? Vec<A>(0) : vload(at, left);
        vstore(at, before + sum[o][k], left);
      }
    }
  }

  const NadeOutputsGradArgs& args_;
  const NadeOutputsArgs& in_;
  const InputRows<A>& inputs_;
  int64_t columns_, num_outputs_;
  int64_t h_ = 0, units_ = 0, part_ = 0, share_ = 0;
  A grad_bias_[kWidth];
  Scratch<A> grad_weight_; // [columns, kWidth]
  Scratch<A> start_; // [blocks, rows, 2, kWidth]: sum and error
  Scratch<A> unit_, pre_; // [kBlock, rows, kWidth]
  Scratch<A> grad_a_; // [rows, kWidth]
  Scratch<A> layer_; // [outputs, kWidth]
  Scratch<A> reach_; // [rows, lanes]
};

void nade_outputs_grad(const NadeOutputsGradArgs& args) {
  with_sum_type(args.in.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    using Slice = OutputsGradient<A>;
    const InputRows<A> inputs(args.in);
    const int64_t slices = divide_up(args.in.hidden, Slice::kWidth);
    // No empty shares: threads get equal numbers of them.
    const int64_t shares = std::min(args.shares, slices);
    at::parallel_for(0, shares * args.parts, 1, [&](int64_t begin, int64_t end) {
      Slice slice(args, inputs);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t share = task / args.parts;
        const int64_t part = task % args.parts;
        const auto tiles =
            chunk_range(divide_up(args.in.rows, kRowTile), args.parts, part);
        const int64_t first = std::min(args.in.rows, tiles.begin * kRowTile);
        const int64_t last = std::min(args.in.rows, tiles.end * kRowTile);
        for (int64_t s = slices * share / shares; s < slices * (share + 1) / shares; ++s) {
          slice.run(s * Slice::kWidth, first, last, part, share);
        }
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_outputs(NadeKernels& kernels) {
  kernels.nade_outputs = nade_outputs;
  kernels.nade_outputs_grad = nade_outputs_grad;
}

} // namespace dgm_fast
