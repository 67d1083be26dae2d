// Register tiles of masked convolutions over images in blocks of channels, [block][row][column][kBlock].
//
// A broadcast entry of one operand times vectors of the other, as in product.cpp; the fixed distance kBlock between
// neighbouring pixels lets one pointer address a whole tile.
#pragma once

#include "dispatch.h"

#include <algorithm>
#include <array>
#include <utility>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// Channels of a block: the two vectors of a tile.
template <typename A>
inline constexpr int kBlock = 2 * kLanes<A>;

// Pixels (or input channels) of a tile: accumulators, both vectors and a broadcast fill the registers.
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int kTile = 14;
#else
inline constexpr int kTile = 6;
#endif

inline int64_t num_blocks(int64_t channels, int64_t block) {
  return (channels + block - 1) / block;
}

// A range cut into the fewest pieces of at most kTile, nearly equal.
class Pieces {
 public:
  explicit Pieces(int64_t size)
      : count_(num_blocks(size, kTile)),
        base_(count_ > 0 ? size / count_ : 0),
        larger_(count_ > 0 ? size % count_ : 0) {}

  // visit(begin, length)
  template <typename F>
  void each(F&& visit) const {
    int64_t begin = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t length = base_ + (i < larger_ ? 1 : 0);
      visit(begin, length);
      begin += length;
    }
  }

 private:
  int64_t count_, base_, larger_;
};

// A run of channels that a tile sums over: of one tap, in one block.
struct Run {
  int64_t offset; // from the tile's first pixel
  int64_t count;
  // After it the sums so far are put aside, so that rounding does not grow with the number of terms.
  bool last_of_block;
};

// P pixels by NV vectors of output channels, summed over runs of channels: weights [channel][kBlock] of all runs from
// `weight` on, sums from `bias` on, written to `out` with out_stride between pixels.
template <typename A, int P, int NV>
void conv_tile(
    const A* in,
    const Run* runs,
    int64_t num_runs,
    const A* weight,
    const A* bias,
    A* out,
    int64_t out_stride,
    int64_t columns) {
  constexpr int lanes = kLanes<A>;
  constexpr int64_t block = kBlock<A>;
  alignas(64) A total[P * NV * lanes];
  Vec<A> sum[P][NV];
  for (int p = 0; p < P; ++p) {
    std::copy_n(bias, NV * lanes, total + p * NV * lanes);
  }
#pragma GCC unroll 14
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      sum[p][v] = Vec<A>(0);
    }
  }
  for (const Run* run = runs; run != runs + num_runs; ++run) {
    const A* pixel = in + run->offset;
    for (const A* end = pixel + run->count; pixel != end; ++pixel, weight += block) {
      Vec<A> w[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        w[v] = Vec<A>::loadu(weight + v * lanes);
      }
#pragma GCC unroll 14
      for (int p = 0; p < P; ++p) {
        const Vec<A> x(pixel[p * block]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          sum[p][v] = at::vec::fmadd(x, w[v], sum[p][v]);
        }
      }
    }
    if (run->last_of_block) {
#pragma GCC unroll 14
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          A* to = total + (p * NV + v) * lanes;
          (Vec<A>::loadu(to) + sum[p][v]).store(to);
          sum[p][v] = Vec<A>(0);
        }
      }
    }
  }
#pragma GCC unroll 14
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      const Vec<A> result = Vec<A>::loadu(total + (p * NV + v) * lanes) + sum[p][v];
      vstore(out + p * out_stride + v * lanes, result, columns - v * lanes);
    }
  }
}

// P input channels by one block of output channels, summed over rows of pixels: sums [P][kBlock] += x^T g.
template <typename A, int P, int NV>
void weight_tile(
    const A* x,
    int64_t x_row,
    const A* g,
    int64_t g_row,
    int64_t rows,
    int64_t width,
    A* sums) {
  constexpr int lanes = kLanes<A>;
  constexpr int64_t block = kBlock<A>;
  Vec<A> sum[P][NV];
#pragma GCC unroll 14
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      sum[p][v] = Vec<A>(0);
    }
  }
  for (int64_t row = 0; row < rows; ++row, x += x_row, g += g_row) {
    for (int64_t column = 0; column < width; ++column) {
      Vec<A> vector[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        vector[v] = Vec<A>::loadu(g + column * block + v * lanes);
      }
#pragma GCC unroll 14
      for (int p = 0; p < P; ++p) {
        const Vec<A> entry(x[column * block + p]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          sum[p][v] = at::vec::fmadd(entry, vector[v], sum[p][v]);
        }
      }
    }
  }
#pragma GCC unroll 14
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      A* to = sums + p * block + v * lanes;
      (Vec<A>::loadu(to) + sum[p][v]).store(to);
    }
  }
}

template <typename A>
using ConvTile =
    void (*)(const A*, const Run*, int64_t, const A*, const A*, A*, int64_t, int64_t);
template <typename A>
using WeightTile = void (*)(const A*, int64_t, const A*, int64_t, int64_t, int64_t, A*);

namespace tile_detail {

template <typename A, int NV, int... I>
constexpr std::array<ConvTile<A>, sizeof...(I)> conv_tiles(std::integer_sequence<int, I...>) {
  return {conv_tile<A, I + 1, NV>...};
}

template <typename A, int NV, int... I>
constexpr std::array<WeightTile<A>, sizeof...(I)> weight_tiles(std::integer_sequence<int, I...>) {
  return {weight_tile<A, I + 1, NV>...};
}

} // namespace tile_detail

// The tile of `length` pixels (1 to kTile) and as many vectors as `columns` output channels fill.
template <typename A>
inline ConvTile<A> find_conv_tile(int64_t length, int64_t columns) {
  using Sequence = std::make_integer_sequence<int, kTile>;
  static constexpr auto narrow = tile_detail::conv_tiles<A, 1>(Sequence{});
  static constexpr auto wide = tile_detail::conv_tiles<A, 2>(Sequence{});
  return (columns <= kLanes<A> ? narrow : wide)[length - 1];
}

template <typename A>
inline WeightTile<A> find_weight_tile(int64_t length, int64_t columns) {
  using Sequence = std::make_integer_sequence<int, kTile>;
  static constexpr auto narrow = tile_detail::weight_tiles<A, 1>(Sequence{});
  static constexpr auto wide = tile_detail::weight_tiles<A, 2>(Sequence{});
  return (columns <= kLanes<A> ? narrow : wide)[length - 1];
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
