// Ancestral samples and inverses of masked autoregressive networks in one pass.
//
// A hidden unit of degree m sees the first m dimensions: after each new dimension the units that became ready are
// evaluated, once. A row of the batch lies in every lane, so that weights are read where they are, by broadcast, and
// the draws of a dimension are vector operations. Dimensions come in blocks: what the units and parameters of a block
// take from before it is a product of matrices; only the rest follows dimension by dimension.

#include "activations.h"
#include "autoregressive_table.h"
#include "dispatch.h"
#include "element_maps.h"
#include "scratch.h"
#include "sums.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Vectors of rows in a tile, at most, and units whose sums are in registers together.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kMaxVectors = 4;
template <int V>
inline constexpr int kUnits = V == 4 ? 6 : 8;
#else
constexpr int kMaxVectors = 2;
template <int V>
inline constexpr int kUnits = V == 2 ? 4 : 8;
#endif
// Dimensions of a block.
constexpr int64_t kBlock = 16;
// Terms of a sum before it is added to what came before.
constexpr int64_t kDepth = 256;

// U sums of V vectors: out[u] += sum_k weight[u, k] in[k]. Every sum has the same order for every U and V, so that a
// row's result does not depend on the rows beside it.
template <typename A, int U, int V>
inline void add_terms(const A* weight, int64_t weight_stride, const A* in, int64_t depth, A* out) {
  constexpr int lanes = kLanes<A>;
  constexpr int width = V * lanes;
  const A* row[U];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) {
    row[u] = weight + u * weight_stride;
  }
  for (int64_t begin = 0; begin < depth; begin += kDepth) {
    Vec<A> sum[U][V];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        sum[u][v] = Vec<A>(0);
      }
    }
    const int64_t end = std::min(depth, begin + kDepth);
    for (int64_t k = begin; k < end; ++k) {
      Vec<A> input[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        input[v] = Vec<A>::loadu(in + k * width + v * lanes);
      }
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        const Vec<A> broadcast(row[u][k]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          sum[u][v] = at::vec::fmadd(broadcast, input[v], sum[u][v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        A* to = out + u * width + v * lanes;
        (Vec<A>::loadu(to) + sum[u][v]).store(to);
      }
    }
  }
}

// The same for any number of units below U.
template <typename A, int U, int V>
inline void add_rest(
    int64_t units, const A* weight, int64_t weight_stride, const A* in, int64_t depth, A* out) {
  if constexpr (U > 0) {
    if (units == U) {
      add_terms<A, U, V>(weight, weight_stride, in, depth, out);
    } else {
      add_rest<A, U - 1, V>(units, weight, weight_stride, in, depth, out);
    }
  }
}

// out[u] += sum_k weight[u, k] in[k].
template <typename A, int V>
void add_products(
    int64_t units, const A* weight, int64_t weight_stride, const A* in, int64_t depth, A* out) {
  constexpr int width = V * kLanes<A>;
  constexpr int together = kUnits<V>;
  int64_t u = 0;
  for (; u + together <= units; u += together) {
    add_terms<A, together, V>(
        weight + u * weight_stride, weight_stride, in, depth, out + u * width);
  }
  add_rest<A, together - 1, V>(
      units - u, weight + u * weight_stride, weight_stride, in, depth, out + u * width);
}

template <typename A, typename F>
inline void for_vectors(A* data, int64_t count, F&& function) {
  for (int64_t i = 0; i < count; i += kLanes<A>) {
    function(Vec<A>::loadu(data + i)).store(data + i);
  }
}

// In place, `count` a multiple of the lanes.
template <typename A>
void activate(Activation activation, A parameter, A* data, int64_t count) {
  const Vec<A> zero(0), one(1), factor(parameter);
  switch (activation) {
    case Activation::Identity:
      return;
    case Activation::Relu:
      return for_vectors(data, count, [&](const Vec<A>& v) { return at_least(v, A(0)); });
    case Activation::LeakyRelu:
      return for_vectors(
          data, count, [&](const Vec<A>& v) { return select(less(v, zero), factor * v, v); });
    case Activation::Elu:
      return for_vectors(
          data, count, [&](const Vec<A>& v) { return exponential_linear(v, factor); });
    case Activation::Tanh:
      return for_vectors(data, count, [&](const Vec<A>& v) { return tanh_slope(v).value; });
    case Activation::Sigmoid:
      return for_vectors(data, count, [&](const Vec<A>& v) { return logistic(v); });
    case Activation::Silu:
      return for_vectors(data, count, [&](const Vec<A>& v) { return v * logistic(v); });
    case Activation::Softplus:
      return for_vectors(data, count, [&](const Vec<A>& v) { return log1p_exp(v); });
    default:
      return for_vectors(data, count, [&](const Vec<A>& v) {
        const Vec<A> half(A(0.5));
        return half * v * (one + (v * Vec<A>(A(0.70710678118654752440))).erf());
      });
  }
}

// V vectors of rows: element i of a row at [i, row].
template <typename A, int V>
class Tile {
 public:
  static constexpr int64_t kRows = V * kLanes<A>;

  explicit Tile(const AutoregressiveInverseArgs& args)
      : args_(args),
        output_(args.layers[args.hidden_layers]),
        inputs_(args.size * args.features * kRows),
        units_(num_units(args) * kRows),
        gates_(has_gates(args) ? num_units(args) * kRows : 1),
        params_(kBlock * args.outputs * kRows),
        spline_(args.map.spline, args.map.inverse),
        memory_(element_memory(args.map, kLanes<A>)),
        noise_(args.size * args.noises * kRows),
        samples_(args.size * kRows),
        values_(args.given != nullptr ? args.size * kRows : 1),
        given_(args.given != nullptr ? args.size * kRows : 1),
        output_bias_(output_.bias_stride > 0 ? output_.units * kRows : 1),
        log_abs_det_(2 * kRows) {}

  void run(int64_t first, int64_t count) {
    load(first, count);
    for (int64_t begin = 0; begin < args_.size; begin += kBlock) {
      run_block(begin, std::min(args_.size, begin + kBlock));
    }
    store(first, count);
  }

 private:
  static int64_t num_units(const AutoregressiveInverseArgs& args) {
    int64_t count = 0;
    for (int64_t l = 0; l < args.hidden_layers; ++l) {
      count += args.layers[l].units;
    }
    return count;
  }

  static bool has_gates(const AutoregressiveInverseArgs& args) {
    return args.hidden_layers > 0 && args.layers[0].gates != nullptr;
  }

  void load(int64_t first, int64_t count) {
    load_rows(args_.z, first, count, args_.size * args_.noises, noise_.data());
    int64_t at = 0;
    for (int64_t l = 0; l < args_.hidden_layers; ++l) {
      const MaskedLayer& layer = args_.layers[l];
      start(layer, first, count, units_.data() + at);
      if (layer.gates != nullptr) {
        load_rows(layer.gates, first, count, layer.units, gates_.data() + at);
      }
      at += layer.units * kRows;
    }
    if (output_.bias_stride > 0) {
      start(output_, first, count, output_bias_.data());
    }
    if (args_.given != nullptr) {
      load_rows(args_.values, first, count, args_.size, values_.data());
      const bool* given = args_.given + first * args_.size;
      std::fill_n(given_.data(), args_.size * kRows, A(0));
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t d = 0; d < args_.size; ++d) {
          given_.data()[d * kRows + r] = given[r * args_.size + d] ? A(1) : A(0);
        }
      }
    }
    std::fill_n(log_abs_det_.data(), 2 * kRows, A(0));
  }

  // to[i, r] = from[first + r, i], rows past the end 0.
  void load_rows(const void* from, int64_t first, int64_t count, int64_t size, A* to) {
    if (count < kRows) {
      std::fill_n(to, size * kRows, A(0));
    }
    transpose(static_cast<const A*>(from) + first * size, size, count, size, to, kRows);
  }

  // Pre-activations begin with the bias.
  void start(const MaskedLayer& layer, int64_t first, int64_t count, A* units) {
    if (layer.bias_stride > 0) {
      load_rows(layer.bias, first, count, layer.units, units);
      return;
    }
    const auto* bias = static_cast<const A*>(layer.bias);
    for (int64_t u = 0; u < layer.units; ++u) {
      std::fill_n(units + u * kRows, kRows, bias[u]);
    }
  }

  int64_t dimension(int64_t step) const {
    return args_.order != nullptr ? args_.order[step] : step;
  }

  // Of a layer's inputs, those known before dimension `step` is evaluated: units of the layer before that have a
  // degree of at most `degree`, or the first `step` dimensions.
  int64_t known(int64_t layer, int64_t step, int64_t degree) const {
    if (layer == 0) {
      return step * args_.features;
    }
    return degree < 0 ? 0 : args_.layers[layer - 1].ready[degree];
  }

  void run_block(int64_t begin, int64_t end) {
    // What the block takes from units of lower degrees.
    const A* in = inputs_.data();
    A* units = units_.data();
    for (int64_t l = 0; l < args_.hidden_layers; ++l) {
      const MaskedLayer& layer = args_.layers[l];
      const int64_t from = begin > 0 ? layer.ready[begin - 1] : 0;
      add(layer, from, layer.ready[end - 1], in, 0, known(l, begin, begin - 1), units + from * kRows);
      in = units;
      units += layer.units * kRows;
    }
    const int64_t before = known(args_.hidden_layers, begin, begin - 1);
    const int64_t first = begin * args_.outputs;
    const int64_t last = end * args_.outputs;
    start_params(first, last);
    add(output_, first, last, in, 0, before, params_.data());
    for (int64_t i = begin; i < end; ++i) {
      run_step(i, begin, before);
    }
  }

  void start_params(int64_t first, int64_t last) const {
    if (output_.bias_stride > 0) {
      std::copy(
          output_bias_.data() + first * kRows, output_bias_.data() + last * kRows, params_.data());
      return;
    }
    const auto* bias = static_cast<const A*>(output_.bias);
    for (int64_t k = first; k < last; ++k) {
      std::fill_n(params_.data() + (k - first) * kRows, kRows, bias[k]);
    }
  }

  // Units [from, to) of a layer, from its inputs [begin, end).
  void add(
      const MaskedLayer& layer,
      int64_t from,
      int64_t to,
      const A* in,
      int64_t begin,
      int64_t end,
      A* out) const {
    const auto* weight = static_cast<const A*>(layer.weight) + from * layer.inputs + begin;
    add_products<A, V>(to - from, weight, layer.inputs, in + begin * kRows, end - begin, out);
  }

  void run_step(int64_t step, int64_t block, int64_t before) {
    const A* in = inputs_.data();
    A* units = units_.data();
    for (int64_t l = 0; l < args_.hidden_layers; ++l) {
      const MaskedLayer& layer = args_.layers[l];
      const int64_t from = step > 0 ? layer.ready[step - 1] : 0;
      const int64_t to = layer.ready[step];
      A* out = units + from * kRows;
      add(layer, from, to, in, known(l, block, block - 1), known(l, step, step), out);
      evaluate(layer, out, (to - from) * kRows);
      in = units;
      units += layer.units * kRows;
    }
    const int64_t first = step * args_.outputs;
    A* of_step = params_.data() + (step - block) * args_.outputs * kRows;
    const int64_t now = known(args_.hidden_layers, step, step);
    add(output_, first, first + args_.outputs, in, before, now, of_step);
    draw(step, of_step);
  }

  // Units from their pre-activations.
  void evaluate(const MaskedLayer& layer, A* units, int64_t count) {
    if (layer.gates == nullptr) {
      activate(args_.activation, static_cast<A>(args_.activation_parameter), units, count);
      return;
    }
    const A* gates = gates_.data() + (units - units_.data());
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      (Vec<A>::loadu(units + i) * Vec<A>::loadu(gates + i)).store(units + i);
    }
  }

  void draw(int64_t step, A* of_step) {
    constexpr int lanes = kLanes<A>;
    const int64_t d = dimension(step);
    for (int64_t r = 0; r < kRows; r += lanes) {
      const Element<A> element{
          noise_.data() + d * args_.noises * kRows + r,
          of_step + r,
          kRows,
          args_.outputs,
          memory_.data()};
      auto result = map_element(args_.map, spline_, element);
      if (args_.given != nullptr) {
        const auto given = less(Vec<A>(0), Vec<A>::loadu(given_.data() + d * kRows + r));
        result.x = select(given, Vec<A>::loadu(values_.data() + d * kRows + r), result.x);
        result.log_abs_det = select(given, Vec<A>(0), result.log_abs_det);
      }
      result.x.store(samples_.data() + d * kRows + r);
      if (args_.log_abs_det != nullptr) {
        A* sum = log_abs_det_.data() + r;
        auto total = CompensatedSum<A>::load(sum, sum + kRows);
        total.add(result.log_abs_det);
        total.store(sum, sum + kRows);
      }
      A* input = inputs_.data() + step * args_.features * kRows + r;
      if (args_.map.map == ElementMap::Categorical) {
        for (int64_t k = 0; k < args_.features; ++k) {
          const auto hot = equal(result.x, Vec<A>(static_cast<A>(k)));
          select(hot, Vec<A>(1), Vec<A>(0)).store(input + k * kRows);
        }
      } else if (args_.map.map == ElementMap::Adjoint) {
        for (int64_t k = 0; k < args_.features; ++k) {
          const Vec<A> factor = Vec<A>::loadu(element.z + (2 + k) * kRows);
          (result.x * factor).store(input + k * kRows);
        }
      } else {
        result.x.store(input);
      }
    }
  }

  void store(int64_t first, int64_t count) {
    A* x = static_cast<A*>(args_.x) + first * args_.size;
    transpose(samples_.data(), kRows, args_.size, count, x, args_.size);
    if (args_.log_abs_det != nullptr) {
      const A* sum = log_abs_det_.data();
      for (int64_t r = 0; r < count; ++r) {
        static_cast<A*>(args_.log_abs_det)[first + r] = sum[r] + sum[kRows + r];
      }
    }
  }

  const AutoregressiveInverseArgs& args_;
  const MaskedLayer& output_;
  Scratch<A> inputs_; // in the order of the steps, [size, features]
  Scratch<A> units_, gates_; // of all hidden layers
  Scratch<A> params_; // of a block
  Spline<A> spline_;
  Scratch<A> memory_; // of a map
  Scratch<A> noise_, samples_, values_, given_; // as the dimensions are numbered
  Scratch<A> output_bias_; // where it differs from row to row
  Scratch<A> log_abs_det_; // sums, and their rounding errors
};

template <typename A, int V>
void run_tiles(const AutoregressiveInverseArgs& args) {
  constexpr int64_t rows = Tile<A, V>::kRows;
  at::parallel_for(0, divide_up(args.rows, rows), 1, [&](int64_t begin, int64_t end) {
    Tile<A, V> tile(args);
    for (int64_t t = begin; t < end; ++t) {
      tile.run(t * rows, std::min(rows, args.rows - t * rows));
    }
  });
}

void inverse(const AutoregressiveInverseArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    // Several tiles, for threads to share, come before wide ones.
    const int64_t vectors = divide_up(args.rows, kLanes<A>);
    if (vectors >= 2 * kMaxVectors) {
      run_tiles<A, kMaxVectors>(args);
    } else if (vectors >= 4) {
      run_tiles<A, 2>(args);
    } else {
      run_tiles<A, 1>(args);
    }
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill(AutoregressiveKernels& table) {
  table.inverse = inverse;
}

} // namespace dgm_fast
