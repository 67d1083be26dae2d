// The recurrence of NADE for a tile of rows, dimension by dimension: hidden units, outputs, and on with a new value.
#pragma once

#include "nade_state.h"
#include "nade_table.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// W as rows of hidden units, padded with zeros: [size * max(1, classes), stride].
template <typename A>
struct InputRows {
  int64_t stride;
  Scratch<A> weight;
  Scratch<A> bias;

  // Whole slices of this many vectors may be read.
  static constexpr int64_t kSlice = 4;

  explicit InputRows(const NadeOutputsArgs& args)
      // One vector more: rows at multiples of a large power of two would compete for few places of the first-level
      // cache.
      : stride((divide_up(args.hidden, kSlice * kLanes<A>) * kSlice + 1) * kLanes<A>),
        weight(args.size * std::max<int64_t>(1, args.classes) * stride),
        bias(stride) {
    const int64_t columns = args.size * std::max<int64_t>(1, args.classes);
    const auto* from = static_cast<const A*>(args.weight);
    const auto* from_bias = static_cast<const A*>(args.bias);
    at::parallel_for(0, columns, grain_rows(stride), [&](int64_t begin, int64_t end) {
      A* to = weight.data() + begin * stride;
      transpose(from + begin, columns, args.hidden, end - begin, to, stride);
      for (int64_t c = begin; c < end; ++c) {
        std::fill(weight.data() + c * stride + args.hidden, weight.data() + (c + 1) * stride, A(0));
      }
    });
    for (int64_t h = 0; h < stride; ++h) {
      bias.data()[h] = h < args.hidden ? finite_bias(from_bias[h]) : A(0);
    }
  }

  // The row that class x (or the only one) of dimension d adds.
  const A* row(int64_t d, int64_t classes, int64_t x) const {
    return weight.data() + (classes > 0 ? d * classes + x : d) * stride;
  }
};

template <typename A>
class Recurrence {
 public:
  static constexpr int lanes = kLanes<A>;
  // Rows of a tile: a vector of them, for what is computed across rows.
  static constexpr int64_t kTile = lanes;

  Recurrence(const NadeOutputsArgs& args, const InputRows<A>& inputs)
      : args_(args),
        inputs_(inputs),
        vectors_(divide_up(args.hidden, lanes)),
        sum_(kTile * inputs.stride),
        error_(kTile * inputs.stride),
        unit_(kTile * inputs.stride) {}

  // `count` rows before their first dimension.
  void start(int64_t count) {
    count_ = count;
    const int64_t stride = inputs_.stride;
    for (int64_t r = 0; r < count; ++r) {
      std::copy_n(inputs_.bias.data(), stride, sum_.data() + r * stride);
      std::fill_n(error_.data() + r * stride, stride, A(0));
      update_units(0, r);
    }
  }

  // The outputs of dimension d: out[r * stride + k].
  void outputs(int64_t d, A* out, int64_t stride) const {
    int64_t first = 0;
    for (int i = 0; i < args_.layers; ++i) {
      const int64_t count = args_.layer_outputs[i];
      const auto* weight = static_cast<const A*>(args_.layer_weight[i]) + d * count * args_.hidden;
      const auto* bias = static_cast<const A*>(args_.layer_bias[i]) + d * count;
      int64_t k = 0;
      for (; k + kOutputs <= count; k += kOutputs) {
        column<kOutputs>(weight + k * args_.hidden, bias + k, out + first + k, stride);
      }
      for (; k < count; ++k) {
        column<1>(weight + k * args_.hidden, bias + k, out + first + k, stride);
      }
      first += count;
    }
  }

  // On from dimension d, where row r has the value x.
  void advance(int64_t d, int64_t r, A x) {
    if (x == A(0)) {
      if (args_.scale != nullptr) {
        update_units(d + 1, r);
      }
      return;
    }
    move(d, r, inputs_.row(d, 0, 0), x);
  }

  void advance(int64_t d, int64_t r, int32_t x) {
    move(d, r, inputs_.row(d, args_.classes, x), A(1));
  }

 private:
  static constexpr int kOutputs = kLanes<float> == 16 ? 4 : 2;

  Vec<A> activation_scale(int64_t d) const {
    return Vec<A>(static_cast<const A*>(args_.scale)[d]);
  }

  void update_units(int64_t d, int64_t r) {
    const int64_t at = r * inputs_.stride;
    const Vec<A> scale = args_.scale != nullptr ? activation_scale(d) : Vec<A>(1);
    for (int64_t h = at; h < at + vectors_ * lanes; h += lanes) {
      const auto a = CompensatedSum<A>::load(sum_.data() + h, error_.data() + h);
      hidden_unit(scale * a.value()).store(unit_.data() + h);
    }
  }

  void move(int64_t d, int64_t r, const A* weight, A x) {
    const Vec<A> value(x);
    const Vec<A> scale = args_.scale != nullptr ? activation_scale(d + 1) : Vec<A>(1);
    const int64_t at = r * inputs_.stride;
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t h = at + v * lanes;
      auto a = CompensatedSum<A>::load(sum_.data() + h, error_.data() + h);
      a.add_product(value, Vec<A>::loadu(weight + v * lanes));
      a.store(sum_.data() + h, error_.data() + h);
      hidden_unit(scale * a.value()).store(unit_.data() + h);
    }
  }

  // K outputs of all rows.
  template <int K>
  void column(const A* weight, const A* bias, A* out, int64_t stride) const {
    int64_t r = 0;
    for (; r + 4 <= count_; r += 4) {
      dots<4, K>(r, weight, bias, out + r * stride, stride);
    }
    for (; r < count_; ++r) {
      dots<1, K>(r, weight, bias, out + r * stride, stride);
    }
  }

  // Of R rows. A row's sums have the same order for every R.
  template <int R, int K>
  void dots(int64_t r, const A* weight, const A* bias, A* out, int64_t stride) const {
    // A single output has two sums, for shorter chains.
    constexpr int kSums = K == 1 ? 2 : 1;
    Vec<A> sum[kSums][R][K];
#pragma GCC unroll 2
    for (int s = 0; s < kSums; ++s) {
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          sum[s][i][k] = Vec<A>(0);
        }
      }
    }
    const A* unit = unit_.data() + r * inputs_.stride;
    const auto add = [&](int64_t h, Vec<A> (&to)[R][K], auto&& load) {
      Vec<A> u[R];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        u[i] = Vec<A>::loadu(unit + i * inputs_.stride + h);
      }
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        const Vec<A> w = load(weight + k * args_.hidden + h);
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) {
          to[i][k] = at::vec::fmadd(u[i], w, to[i][k]);
        }
      }
    };
    const auto whole = [](const A* p) { return Vec<A>::loadu(p); };
    const int64_t full = args_.hidden / lanes * lanes;
    int64_t h = 0;
    for (; h + kSums * lanes <= full; h += kSums * lanes) {
#pragma GCC unroll 2
      for (int s = 0; s < kSums; ++s) {
        add(h + s * lanes, sum[s], whole);
      }
    }
    for (; h < full; h += lanes) {
      add(h, sum[0], whole);
    }
    if (h < args_.hidden) {
      add(h, sum[0], [&](const A* p) { return vload(p, args_.hidden - full); });
    }
    A buffer[R * K * lanes];
    A total[R * K];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        const Vec<A> all = kSums == 1 ? sum[0][i][k] : sum[0][i][k] + sum[kSums - 1][i][k];
        all.store(buffer + (i * K + k) * lanes);
      }
    }
    sum_lanes_of(buffer, R * K, total);
    for (int i = 0; i < R; ++i) {
      for (int k = 0; k < K; ++k) {
        out[i * stride + k] = total[i * K + k] + bias[k];
      }
    }
  }

  const NadeOutputsArgs& args_;
  const InputRows<A>& inputs_;
  int64_t vectors_;
  int64_t count_ = 0;
  Scratch<A> sum_, error_, unit_; // [rows, stride]
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
