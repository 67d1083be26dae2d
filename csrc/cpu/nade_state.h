// The hidden pre-activations a_1 = c, a_{d+1} = a_d + W_d x_d, and what all kernels of NADE need around them.
#pragma once

#include "dispatch.h"
#include "scratch.h"
#include "sums.h"

#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// Infinite biases act as very large ones: a sum that has been infinite could not be compensated.
template <typename A>
inline A finite_bias(A value) {
  const A kLargest = A(1e30);
  return std::min(std::max(value, -kLargest), kLargest);
}

// sigmoid(v) with an exponential to the last bit (what passes through many units should not show theirs), and 0 where it
// would be denormal.
inline Vec<float> hidden_unit(const Vec<float>& v) {
  const Vec<float> power = fast_exp(v.neg());
  return select(
      less(v, Vec<float>(-86.0f)), Vec<float>(0), reciprocal(Vec<float>(1) + power));
}

inline Vec<double> hidden_unit(const Vec<double>& v) {
  return Vec<double>(1) / (Vec<double>(1) + v.neg().exp());
}

// Sums over the rows of from [rows, size], in blocks of rows: shorter sums round less.
template <typename A>
inline void sum_rows(const A* from, int64_t rows, int64_t size, A* to) {
  constexpr int64_t kRows = 32;
  at::parallel_for(0, size, grain_rows(rows), [&](int64_t begin, int64_t end) {
    std::vector<A> part(end - begin);
    std::fill(to + begin, to + end, A(0));
    for (int64_t first = 0; first < rows; first += kRows) {
      std::fill(part.begin(), part.end(), A(0));
      for (int64_t r = first; r < std::min(rows, first + kRows); ++r) {
        for (int64_t d = begin; d < end; ++d) {
          part[d - begin] += from[r * size + d];
        }
      }
      for (int64_t d = begin; d < end; ++d) {
        to[d] += part[d - begin];
      }
    }
  });
}

// Sums over the lanes of `count` vectors that lie one after the other.
template <typename A>
inline void sum_lanes_of(const A* vectors, int64_t count, A* out) {
  int64_t i = 0;
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    // Sixteen at a time: pairs are interleaved and added, four times over.
    for (; i + 16 <= count; i += 16) {
      const float* from = vectors + i * 16;
      __m512 a[16];
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        a[j] = _mm512_loadu_ps(from + j * 16);
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        a[j] = _mm512_add_ps(
            _mm512_shuffle_f32x4(a[j], a[j + 8], 0x44), _mm512_shuffle_f32x4(a[j], a[j + 8], 0xee));
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        a[j] = _mm512_add_ps(
            _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88), _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd));
      }
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        a[j] = _mm512_add_ps(_mm512_unpacklo_ps(a[j], a[j + 2]), _mm512_unpackhi_ps(a[j], a[j + 2]));
      }
      a[0] = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
      // Its quarters hold the sums of vectors 0-3, 8-11, 4-7 and 12-15.
      _mm512_storeu_ps(out + i, _mm512_shuffle_f32x4(a[0], a[0], 0xd8));
    }
  }
#endif
  for (; i < count; ++i) {
    out[i] = sum_lanes<A>(Vec<A>::loadu(vectors + i * kLanes<A>));
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
