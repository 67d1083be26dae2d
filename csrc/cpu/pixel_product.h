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

// Units in panels of at most kProductVectors vectors, nearly equal ones: panel p has vectors(p) of them.
template <typename A>
struct Panels {
  int64_t units, vectors, count;

  explicit Panels(int64_t units_)
      : units(units_),
        vectors(divide_up(units_, kLanes<A>)),
        count(divide_up(vectors, kProductVectors)) {}

  int64_t first_vector(int64_t panel) const {
    return panel * vectors / count;
  }
  int64_t first_unit(int64_t panel) const {
    return first_vector(panel) * kLanes<A>;
  }
  // Numbers of packed weights, units past the end 0.
  int64_t packed_size(int64_t depth) const {
    return vectors * kLanes<A> * depth;
  }
};

// What a product adds to and where its results go.
template <typename A>
struct ProductOutput {
  A* data; // [rows, units], `stride` apart
  int64_t stride;
  const A* bias; // [units], or [period, units] with bias_stride > 0, for row r that of r % period; or null
  int64_t bias_stride, period;
  bool add; // to what is there
};

// The order of a sum does not depend on R or V, so that a row's result does not depend on the rows beside it.
template <typename A, int R, int V>
inline void product_tile(
    const Source<A>* sources,
    int64_t num_sources,
    int64_t first_row,
    const A* weight,
    int64_t first_unit,
    int64_t units,
    const ProductOutput<A>& out) {
  constexpr int lanes = kLanes<A>;
  Vec<A> sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      sum[r][v] = Vec<A>(0);
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
      for (int r = 0; r < R; ++r) {
        const Vec<A> broadcast(row[r][k]);
#pragma GCC unroll 3
        for (int v = 0; v < V; ++v) {
          sum[r][v] = at::vec::fmadd(broadcast, w[v], sum[r][v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    A* to = out.data + (first_row + r) * out.stride + first_unit;
    const A* bias = nullptr;
    if (out.bias != nullptr) {
      bias = out.bias + (first_row + r) % out.period * out.bias_stride + first_unit;
    }
#pragma GCC unroll 3
    for (int v = 0; v < V; ++v) {
      const int64_t count = std::min<int64_t>(lanes, units - first_unit - v * lanes);
      Vec<A> value = sum[r][v];
      if (out.add) {
        value = value + vload(to + v * lanes, count);
      }
      if (bias != nullptr) {
        value = value + vload(bias + v * lanes, count);
      }
      vstore(to + v * lanes, value, count);
    }
  }
}

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
  if (rows == R) {
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
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t vectors = panels.first_vector(p + 1) - panels.first_vector(p);
    const int64_t unit = panels.first_unit(p);
    const A* weight = packed + unit * depth;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * rows / blocks;
      const int64_t count = (b + 1) * rows / blocks - first;
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
