// Products of activations with the packed weights of a layer, at one position or a row of them.
#pragma once

#include "scratch.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// Rows of activations [rows, depth], `stride` apart: what a tap sees of a buffer.
template <typename A>
struct Source {
  const A* data;
  int64_t stride, depth;
};

// Sums of R rows by V vectors of units stay in registers, beside a vector of weights and a broadcast activation.
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int kProductRows = 8;
#else
inline constexpr int kProductRows = 4;
#endif
inline constexpr int kProductVectors = 3;

// Parts of a whole that differ by at most one.
struct EvenParts {
  int64_t size, larger; // the first ones have size + 1

  EvenParts(int64_t whole, int64_t count)
      : size(count > 0 ? whole / count : 0), larger(count > 0 ? whole % count : 0) {}

  int64_t begin(int64_t part) const {
    return part * size + std::min(part, larger);
  }
};

// Units in panels of at most kProductVectors vectors.
template <typename A>
struct Panels {
  int64_t units, vectors, count;
  EvenParts parts;

  explicit Panels(int64_t units_ = 0)
      : units(units_),
        vectors(divide_up(units_, kLanes<A>)),
        count(divide_up(vectors, kProductVectors)),
        parts(vectors, count) {}

  int64_t first_vector(int64_t panel) const {
    return parts.begin(panel);
  }
  int64_t first_unit(int64_t panel) const {
    return first_vector(panel) * kLanes<A>;
  }
  // Numbers of packed weights, units past the end 0.
  int64_t packed_size(int64_t depth) const {
    return vectors * kLanes<A> * depth;
  }
};

// Where the results of a product go and what they start from.
template <typename A>
struct ProductOutput {
  A* data; // [rows, units], `stride` apart
  int64_t stride;
  // [units], or with bias_stride > 0 [period, units], of which row r takes r % period; null: what is in `data`.
  const A* bias;
  int64_t bias_stride, period;

  const A* start(int64_t row) const {
    if (bias == nullptr) {
      return data + row * stride;
    }
    return bias_stride == 0 ? bias : bias + row % period * bias_stride;
  }
};

// The order of a sum does not depend on R or V, so that a row's result does not depend on the rows beside it.
// Not inlined: where many of these become one function, g++ 12 keeps their sums in memory.
template <typename A, int R, int V>
[[gnu::noinline]] void product_tile(
    const Source<A>* sources,
    int64_t num_sources,
    int64_t first_row,
    const A* weight,
    int64_t first_unit,
    int64_t units,
    const ProductOutput<A>& out) {
  constexpr int lanes = kLanes<A>;
  // Only the last vector may reach past the units.
  const int64_t rest = std::min<int64_t>(lanes, units - first_unit - (V - 1) * lanes);
  // Rows come in pairs where there is one vector: of a loop over single sums the compiler makes one over memory, where
  // the sums then stay.
  constexpr int pair = V == 1 && R % 2 == 0 ? 2 : 1;
  Vec<A> sum[R / pair][pair][V];
#pragma GCC unroll 8
  for (int r = 0; r < R / pair; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < pair; ++p) {
      const A* start = out.start(first_row + r * pair + p) + first_unit;
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        sum[r][p][v] =
            v < V - 1 ? Vec<A>::loadu(start + v * lanes) : vload(start + v * lanes, rest);
      }
    }
  }
  for (int64_t s = 0; s < num_sources; ++s) {
    const Source<A>& source = sources[s];
    const A* row[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      row[r] = source.data + (first_row + r) * source.stride;
    }
    for (int64_t k = 0; k < source.depth; ++k) {
      Vec<A> w[V];
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        w[v] = Vec<A>::loadu(weight + v * lanes);
      }
      weight += V * lanes;
#pragma GCC unroll 8
      for (int r = 0; r < R / pair; ++r) {
#pragma GCC unroll 2
        for (int p = 0; p < pair; ++p) {
          const Vec<A> broadcast(row[r * pair + p][k]);
#pragma GCC unroll 3
          for (int v = 0; v < V; ++v) {
            sum[r][p][v] = at::vec::fmadd(broadcast, w[v], sum[r][p][v]);
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R / pair; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < pair; ++p) {
      A* to = out.data + (first_row + r * pair + p) * out.stride + first_unit;
#pragma GCC unroll 3
      for (int v = 0; v < V; ++v) {
        const Vec<A> value = sum[r][p][v];
        if (v < V - 1) {
          value.store(to + v * lanes);
        } else {
          vstore(to + v * lanes, value, rest);
        }
      }
    }
  }
}

// `rows` of at most R rows; of one vector an even number of rows and a single one.
template <typename A, int R, int V>
inline void product_rows(
    int64_t rows,
    const Source<A>* sources,
    int64_t num_sources,
    int64_t first_row,
    const A* weight,
    int64_t first_unit,
    int64_t units,
    const ProductOutput<A>& out) {
  if constexpr (V == 1 && R % 2 == 1 && R > 1) {
    if (rows == R) {
      product_tile<A, 1, V>(
          sources, num_sources, first_row + R - 1, weight, first_unit, units, out);
    }
    product_rows<A, R - 1, V>(
        std::min<int64_t>(rows, R - 1), sources, num_sources, first_row, weight, first_unit, units, out);
  } else if (rows == R) {
    product_tile<A, R, V>(sources, num_sources, first_row, weight, first_unit, units, out);
  } else if constexpr (R > 1) {
    product_rows<A, R - 1, V>(
        rows, sources, num_sources, first_row, weight, first_unit, units, out);
  }
}

// `rows` rows of all sources times weights packed by panel, [depth of all sources, units of the panel] each.
template <typename A>
void multiply(
    const Source<A>* sources,
    int64_t num_sources,
    int64_t depth,
    int64_t rows,
    const A* packed,
    const Panels<A>& panels,
    const ProductOutput<A>& out) {
  const int64_t blocks = divide_up(rows, kProductRows);
  const EvenParts parts(rows, blocks);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t vectors = panels.first_vector(p + 1) - panels.first_vector(p);
    const int64_t unit = panels.first_unit(p);
    const A* weight = packed + unit * depth;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = parts.begin(b);
      const int64_t count = parts.begin(b + 1) - first;
      const auto run = [&](auto width) {
        product_rows<A, kProductRows, decltype(width)::value>(
            count, sources, num_sources, first, weight, unit, panels.units, out);
      };
      if (vectors == 3) {
        run(std::integral_constant<int, 3>{});
      } else if (vectors == 2) {
        run(std::integral_constant<int, 2>{});
      } else {
        run(std::integral_constant<int, 1>{});
      }
    }
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
