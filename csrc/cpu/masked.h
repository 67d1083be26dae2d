// Masks of leaky ReLUs, from the sign of their results.
#pragma once

#include "vec.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// v where `sign` is positive, else slope v.
template <typename A>
inline Vec<A> masked(const Vec<A>& sign, const Vec<A>& v, const Vec<A>& slope) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    const auto positive = _mm512_cmp_ps_mask(sign, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_blend_ps(positive, v * slope, v);
  } else {
    const auto positive = _mm512_cmp_pd_mask(sign, _mm512_setzero_pd(), _CMP_GT_OQ);
    return _mm512_mask_blend_pd(positive, v * slope, v);
  }
#else
  return Vec<A>::blendv(v * slope, v, sign > Vec<A>(0));
#endif
}

// visit(first, count) over the vectors of [0, size), A being the type that elements are loaded to.
template <typename A, typename F>
inline void each_vector(int64_t size, F&& visit) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    visit(i, lanes);
  }
  if (i < size) {
    visit(i, size - i);
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
