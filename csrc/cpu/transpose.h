// Transposes of small matrices.
#pragma once

#include "vec.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
// At most 16 by 16. Written out, so that the matrix stays in registers.
inline void transpose_tile(
    const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows, int64_t columns) {
  const auto lanes = [](int64_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1);
  };
  const __mmask16 in = lanes(columns), out = lanes(rows);
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    a[i] = i < rows ? _mm512_maskz_loadu_ps(in, from + i * from_stride) : _mm512_setzero_ps();
  }
  // Pairs, then quadruples of rows within 128-bit lanes.
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
    a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
    a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
    a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
  }
  // a[4 q + j] holds columns j, 4 + j, 8 + j, 12 + j of rows 4 q to 4 q + 3; whole lanes are exchanged.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    b[j] = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
    b[4 + j] = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
    b[8 + j] = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
    b[12 + j] = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    a[j] = _mm512_shuffle_f32x4(b[j], b[8 + j], 0x88);
    a[8 + j] = _mm512_shuffle_f32x4(b[j], b[8 + j], 0xdd);
    a[4 + j] = _mm512_shuffle_f32x4(b[4 + j], b[12 + j], 0x88);
    a[12 + j] = _mm512_shuffle_f32x4(b[4 + j], b[12 + j], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i < columns) {
      _mm512_mask_storeu_ps(to + i * to_stride, out, a[i]);
    }
  }
}
#endif

// to [columns][rows] = from [rows][columns] transposed.
template <typename A>
inline void transpose(
    const A* from, int64_t from_stride, A* to, int64_t to_stride, int64_t rows, int64_t columns) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    for (int64_t c = 0; c < columns; c += 16) {
      for (int64_t r = 0; r < rows; r += 16) {
        transpose_tile(
            from + r * from_stride + c,
            from_stride,
            to + c * to_stride + r,
            to_stride,
            std::min<int64_t>(16, rows - r),
            std::min<int64_t>(16, columns - c));
      }
    }
    return;
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    const int64_t whole = columns / 8 * 8;
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8) {
      for (int64_t c = 0; c < whole; c += 8) {
        at::vec::transpose_mxn<float, 8, 8>(
            from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
      }
    }
    for (; r < rows; ++r) {
      for (int64_t c = 0; c < whole; ++c) {
        to[c * to_stride + r] = from[r * from_stride + c];
      }
    }
    from += whole;
    to += whole * to_stride;
    columns -= whole;
  }
#endif
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      to[c * to_stride + r] = from[r * from_stride + c];
    }
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
