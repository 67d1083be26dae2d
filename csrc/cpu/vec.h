// Loads, stores and elementary functions over at::vec::Vectorized, one element type at a time.
//
// acc_t<T> is the type sums are kept in: float for float, bfloat16 and half; double for double. Loads
// convert to it, stores convert back.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename A>
using Vec = at::vec::Vectorized<A>;

template <typename A>
inline constexpr int kLanes = Vec<A>::size();

// Elements per vector of T: the lanes of its accumulation type.
template <typename T>
inline constexpr int kStep = kLanes<acc_t<T>>;

template <typename T>
inline Vec<acc_t<T>> vload(const T* p) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    return Vec<A>::loadu(p);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      const auto raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
    } else if constexpr (std::is_same_v<T, c10::Half>) {
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    } else if constexpr (std::is_same_v<T, uint8_t>) {
      const auto raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(raw));
    }
#elif defined(CPU_CAPABILITY_AVX2)
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      const auto raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
    } else if constexpr (std::is_same_v<T, c10::Half>) {
      return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    } else if constexpr (std::is_same_v<T, uint8_t>) {
      const auto raw = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
      return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(raw));
    }
#endif
    A buffer[kLanes<A>];
    for (int i = 0; i < kLanes<A>; ++i) {
      buffer[i] = static_cast<A>(p[i]);
    }
    return Vec<A>::loadu(buffer);
  }
}

// The first `count` lanes (all, if there are as many); the others hold `fill`.
template <typename T>
inline Vec<acc_t<T>> vload(const T* p, int64_t count, acc_t<T> fill = 0) {
  using A = acc_t<T>;
  if (count >= kLanes<A>) {
    return vload(p);
  }
#if defined(CPU_CAPABILITY_AVX512)
  const auto mask = static_cast<uint32_t>((1u << count) - 1);
  if constexpr (std::is_same_v<T, float>) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>(mask), p);
  } else if constexpr (std::is_same_v<T, double>) {
    return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>(mask), p);
  }
#endif
  A buffer[kLanes<A>];
  for (int i = 0; i < kLanes<A>; ++i) {
    buffer[i] = i < count ? static_cast<A>(p[i]) : fill;
  }
  return Vec<A>::loadu(buffer);
}

// A uint8 operand beside double data widens to double.
inline Vec<double> load_double(const uint8_t* p) {
  double buffer[kLanes<double>];
  for (int i = 0; i < kLanes<double>; ++i) {
    buffer[i] = p[i];
  }
  return Vec<double>::loadu(buffer);
}

// Load into the accumulation type A of another operand.
template <typename A, typename T>
inline Vec<A> load_as(const T* p) {
  if constexpr (std::is_same_v<A, double> && std::is_same_v<T, uint8_t>) {
    return load_double(p);
  } else {
    return vload(p);
  }
}

template <typename A, typename T>
inline Vec<A> load_as(const T* p, int64_t count, A fill = 0) {
  if constexpr (std::is_same_v<A, acc_t<T>>) {
    return vload(p, count, fill);
  }
  A buffer[kLanes<A>];
  for (int i = 0; i < kLanes<A>; ++i) {
    buffer[i] = i < count ? static_cast<A>(p[i]) : fill;
  }
  return Vec<A>::loadu(buffer);
}

template <typename T>
inline void vstore(T* p, const Vec<acc_t<T>>& v) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    v.store(p);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), at::vec::cvtfp32_bf16(v));
      return;
    } else if constexpr (std::is_same_v<T, c10::Half>) {
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(p),
          _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      return;
    }
#elif defined(CPU_CAPABILITY_AVX2)
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), at::vec::cvtfp32_bf16(v));
      return;
    } else if constexpr (std::is_same_v<T, c10::Half>) {
      _mm_storeu_si128(
          reinterpret_cast<__m128i*>(p),
          _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      return;
    }
#endif
    A buffer[kLanes<A>];
    v.store(buffer);
    for (int i = 0; i < kLanes<A>; ++i) {
      p[i] = static_cast<T>(buffer[i]);
    }
  }
}

template <typename T>
inline void vstore(T* p, const Vec<acc_t<T>>& v, int64_t count) {
  using A = acc_t<T>;
  if (count >= kLanes<A>) {
    vstore(p, v);
    return;
  }
#if defined(CPU_CAPABILITY_AVX512)
  const auto mask = static_cast<uint32_t>((1u << count) - 1);
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), v);
    return;
  } else if constexpr (std::is_same_v<T, double>) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), v);
    return;
  }
#endif
  A buffer[kLanes<A>];
  v.store(buffer);
  for (int64_t i = 0; i < count; ++i) {
    p[i] = static_cast<T>(buffer[i]);
  }
}

// A whole vector of an output that is larger than the caches: past them, which saves reading the line first.
// A thread that used it ends with finish_streaming().
template <typename T>
inline void vwrite(T* p, const Vec<acc_t<T>>& v, bool stream) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    if (stream && reinterpret_cast<uintptr_t>(p) % 64 == 0) {
      _mm512_stream_ps(p, v);
      return;
    }
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, float>) {
    if (stream && reinterpret_cast<uintptr_t>(p) % 32 == 0) {
      _mm256_stream_ps(p, v);
      return;
    }
  }
#endif
  vstore(p, v);
}

template <typename T>
inline void vwrite(T* p, const Vec<acc_t<T>>& v, bool stream, int64_t count) {
  if (count >= kLanes<acc_t<T>>) {
    vwrite(p, v, stream);
  } else {
    vstore(p, v, count);
  }
}

inline void finish_streaming(bool stream) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if (stream) {
    _mm_sfence();
  }
#endif
}

template <typename A>
inline A sum_lanes(const Vec<A>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_reduce_add_ps(v);
  }
#endif
  A buffer[kLanes<A>];
  v.store(buffer);
  for (int width = kLanes<A> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      buffer[i] += buffer[i + width];
    }
  }
  return buffer[0];
}

template <typename A>
inline A max_lanes(const Vec<A>& v) {
  A buffer[kLanes<A>];
  v.store(buffer);
  A highest = buffer[0];
  for (int i = 1; i < kLanes<A>; ++i) {
    highest = std::max(highest, buffer[i]);
  }
  return highest;
}

// max(v, bound) and min(v, bound) that keep NaN in v: the x86 instructions return their second operand
// when either is NaN, which saves the comparison that at::vec::maximum adds.
template <typename A>
inline Vec<A> at_least(const Vec<A>& v, A bound) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_max_ps(_mm512_set1_ps(bound), v);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    return _mm256_max_ps(_mm256_set1_ps(bound), v);
  }
#endif
  return at::vec::maximum(v, Vec<A>(bound));
}

template <typename A>
inline Vec<A> at_most(const Vec<A>& v, A bound) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_min_ps(_mm512_set1_ps(bound), v);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    return _mm256_min_ps(_mm256_set1_ps(bound), v);
  }
#endif
  return at::vec::minimum(v, Vec<A>(bound));
}

// One truth value per lane: a mask register where there are some, else a vector of all-ones lanes.
template <typename A>
struct Mask {
#if defined(CPU_CAPABILITY_AVX512)
  uint32_t bits;

  friend Mask operator|(Mask a, Mask b) {
    return {a.bits | b.bits};
  }
  friend Mask operator&(Mask a, Mask b) {
    return {a.bits & b.bits};
  }
  bool any() const {
    return bits != 0;
  }
  bool all() const {
    return bits == (1u << kLanes<A>)-1;
  }
#else
  Vec<A> lanes;

  friend Mask operator|(const Mask& a, const Mask& b) {
    return {a.lanes | b.lanes};
  }
  friend Mask operator&(const Mask& a, const Mask& b) {
    return {a.lanes & b.lanes};
  }
  // A lane that is set is a NaN, and so not equal to zero.
  bool any() const {
    return lanes.zero_mask() != (1 << kLanes<A>)-1;
  }
  bool all() const {
    return lanes.zero_mask() == 0;
  }
#endif
};

// Comparisons are false on NaN.
template <typename A>
inline Mask<A> less(const Vec<A>& a, const Vec<A>& b) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return {_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ)};
  } else {
    return {_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ)};
  }
#else
  return {a < b};
#endif
}

template <typename A>
inline Mask<A> less_equal(const Vec<A>& a, const Vec<A>& b) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return {_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ)};
  } else {
    return {_mm512_cmp_pd_mask(a, b, _CMP_LE_OQ)};
  }
#else
  return {a <= b};
#endif
}

template <typename A>
inline Mask<A> equal(const Vec<A>& a, const Vec<A>& b) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return {_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)};
  } else {
    return {_mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ)};
  }
#else
  return {a == b};
#endif
}

template <typename A>
inline Vec<A> select(const Mask<A>& mask, const Vec<A>& yes, const Vec<A>& no) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(mask.bits), no, yes);
  } else {
    return _mm512_mask_blend_pd(static_cast<__mmask8>(mask.bits), no, yes);
  }
#else
  return Vec<A>::blendv(no, yes, mask.lanes);
#endif
}

// exp(v) = 2^n (1 + r + r^2 q(r)) with v = n ln 2 + r, |r| <= ln 2 / 2, in pieces, because expm1 and exp - 1 - v need
// them apart where exp(v) - 1 would cancel. (In functions of one result: g++ 12 stores the members of a structure of
// vectors, whether or not anyone reads them.)
//
// n is formed by adding 1.5 2^23, which leaves it in the low bits of the sum: shifted into place, those bits
// are 2^n as an integer addition to the exponent. Two instructions fewer than rounding and scaling.
inline constexpr float kShiftToInteger = 12582912.0f;
inline constexpr float kLog2E = 1.44269504088896341f;

// n + 1.5 2^23
inline Vec<float> exp_shifted(const Vec<float>& v) {
  return at::vec::fmadd(v, Vec<float>(kLog2E), Vec<float>(kShiftToInteger));
}

inline Vec<float> exp_power(const Vec<float>& shifted_n) {
  return shifted_n - Vec<float>(kShiftToInteger);
}

// r. ln 2 in two parts: n times the first is exact.
inline Vec<float> exp_rest(const Vec<float>& v, const Vec<float>& n) {
  const Vec<float> r = at::vec::fmadd(n, Vec<float>(-0.693145751953125f), v);
  return at::vec::fmadd(n, Vec<float>(-1.42860682030941723e-6f), r);
}

// r with ln 2 in one part: n times 2e-9 off.
inline Vec<float> exp_short_rest(const Vec<float>& v, const Vec<float>& n) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  return at::vec::fmadd(n, Vec<float>(-0.693147180559945309f), v);
#else
  // A product that is rounded before the sum would be off by more.
  return exp_rest(v, n);
#endif
}

// v 2^n for a normal result.
inline Vec<float> scale_by_power(const Vec<float>& v, const Vec<float>& shifted_n) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted_n), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), power));
#elif defined(CPU_CAPABILITY_AVX2)
  const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted_n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), power));
#else
  uint32_t values[kLanes<float>];
  uint32_t powers[kLanes<float>];
  v.store(values);
  shifted_n.store(powers);
  for (int i = 0; i < kLanes<float>; ++i) {
    values[i] += powers[i] << 23;
  }
  return Vec<float>::loadu(values);
#endif
}

// r^2 q(r), q by a weighted minimax fit on |r| <= 0.347: error of exp below 5e-9 relative, a tenth of an ulp.
inline Vec<float> exp_tail(const Vec<float>& r) {
  Vec<float> q(0.0013814690755680203f);
  q = at::vec::fmadd(q, r, Vec<float>(0.008368774317204952f));
  q = at::vec::fmadd(q, r, Vec<float>(0.04166838899254799f));
  q = at::vec::fmadd(q, r, Vec<float>(0.1666651964187622f));
  q = at::vec::fmadd(q, r, Vec<float>(0.4999999403953552f));
  return q * r * r;
}

// exp(v) 2^-power for whole powers and a normal result.
inline Vec<float> exp_scaled(const Vec<float>& v, const Vec<float>& power) {
  const Vec<float> shifted = exp_shifted(v);
  const Vec<float> r = exp_rest(v, exp_power(shifted));
  return scale_by_power(r + exp_tail(r) + Vec<float>(1.0f), shifted - power);
}

// exp(v) for v in [-87.3, 88.3] to 1e-7: for sums 1 + exp(v) and normalised weights, where its last bit is
// below the rounding of what follows. Fewer instructions: ln 2 in one part, a degree less.
inline Vec<float> exp_short(const Vec<float>& v) {
  const Vec<float> shifted = exp_shifted(v);
  const Vec<float> r = exp_short_rest(v, exp_power(shifted));
  Vec<float> p(0.008312515914440155f);
  p = at::vec::fmadd(p, r, Vec<float>(0.04189050570130348f));
  p = at::vec::fmadd(p, r, Vec<float>(0.16667115688323975f));
  p = at::vec::fmadd(p, r, Vec<float>(0.4999922811985016f));
  p = at::vec::fmadd(p, r, Vec<float>(1.0f));
  p = at::vec::fmadd(p, r, Vec<float>(1.0f));
  return scale_by_power(p, shifted);
}

inline Vec<double> exp_short(const Vec<double>& v) {
  return v.exp();
}

// exp(v), saturating near 1e-38 and 1e38 instead of reaching denormals and infinity. NaN propagates.
inline Vec<float> fast_exp(const Vec<float>& v) {
  const Vec<float> inside = at_most(at_least(v, -87.3f), 88.3f);
  const Vec<float> shifted = exp_shifted(inside);
  const Vec<float> r = exp_rest(inside, exp_power(shifted));
  return scale_by_power(r + exp_tail(r) + Vec<float>(1.0f), shifted);
}

inline Vec<double> fast_exp(const Vec<double>& v) {
  return v.exp();
}

// exp(v) for v <= 0 to 1e-7, saturating near 1e-38.
inline Vec<float> exp_nonpositive(const Vec<float>& v) {
  return exp_short(at_least(v, -87.3f));
}

inline Vec<double> exp_nonpositive(const Vec<double>& v) {
  return v.exp();
}

// exp(v) for v <= 0 to 1e-7 with its limit 0 at -inf; what would be denormal is 0, since denormals slow
// everything that touches them. NaN propagates.
inline Vec<float> exp_to_zero(const Vec<float>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  // Lanes below the range hold garbage until the mask clears them.
  const auto kept = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
  return _mm512_maskz_mov_ps(kept, exp_short(v));
#else
  return Vec<float>::blendv(exp_nonpositive(v), Vec<float>(0.0f), v < Vec<float>(-87.3f));
#endif
}

inline Vec<double> exp_to_zero(const Vec<double>& v) {
  return v.exp();
}

// max(a, b) for searching a maximum, with NaN left out: the sums that follow meet the NaN again.
template <typename A>
inline Vec<A> max_ignoring_nan(const Vec<A>& value, const Vec<A>& highest) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_max_ps(value, highest);
  } else {
    return _mm512_max_pd(value, highest);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    return _mm256_max_ps(value, highest);
  } else {
    return _mm256_max_pd(value, highest);
  }
#else
  return Vec<A>::blendv(highest, value, value > highest);
#endif
}

// exp(v) with its right limits: 0 at -inf (and for what would be denormal), inf above the range.
inline Vec<float> full_exp(const Vec<float>& v) {
  const Vec<float> value = fast_exp(v);
#if defined(CPU_CAPABILITY_AVX512)
  const auto kept = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
  const auto above = _mm512_cmp_ps_mask(v, _mm512_set1_ps(88.3f), _CMP_GT_OQ);
  return _mm512_mask_mov_ps(
      _mm512_maskz_mov_ps(kept, value),
      above,
      _mm512_set1_ps(std::numeric_limits<float>::infinity()));
#else
  const Vec<float> low = Vec<float>::blendv(value, Vec<float>(0.0f), v < Vec<float>(-87.3f));
  return Vec<float>::blendv(
      low, Vec<float>(std::numeric_limits<float>::infinity()), v > Vec<float>(88.3f));
#endif
}

inline Vec<double> full_exp(const Vec<double>& v) {
  return v.exp();
}

// exp(v) - 1 and exp(v) - 1 - v without cancellation around 0.
template <typename A>
struct ExpMinus {
  Vec<A> one; // exp(v) - 1
  Vec<A> one_and_v; // exp(v) - 1 - v
};

inline ExpMinus<float> exp_minus(const Vec<float>& v) {
  const Vec<float> inside = at_most(at_least(v, -87.3f), 88.3f);
  const Vec<float> shifted = exp_shifted(inside);
  const Vec<float> n = exp_power(shifted);
  const Vec<float> r = exp_rest(inside, n);
  const Vec<float> tail = exp_tail(r);
  const Vec<float> near = r + tail;
  const Vec<float> far = scale_by_power(near + Vec<float>(1.0f), shifted) - Vec<float>(1.0f);
  const auto at_zero = equal(n, Vec<float>(0.0f));
  return {select(at_zero, near, far), select(at_zero, tail, far - v)};
}

inline ExpMinus<double> exp_minus(const Vec<double>& v) {
  const Vec<double> one = v.expm1();
  // exp(v) - 1 - v by its series where the subtraction would lose digits; |v| < 0.25 needs 13 terms.
  Vec<double> series(1.0 / 87178291200.0);
  double factorial = 6227020800.0;
  for (int k = 13; k >= 2; --k) {
    series = at::vec::fmadd(series, v, Vec<double>(1.0 / factorial));
    factorial /= k;
  }
  const auto small = v.abs() < Vec<double>(0.25);
  return {one, Vec<double>::blendv(one - v, series * v * v, small)};
}

// exp(v) and exp(v) - 1, each to its own relative precision.
template <typename A>
struct ExpPair {
  Vec<A> exp, minus_one;
};

[[gnu::always_inline]] inline ExpPair<float> exp_pair(const Vec<float>& v) {
  const Vec<float> inside = at_most(at_least(v, -87.3f), 88.3f);
  const Vec<float> shifted = exp_shifted(inside);
  const Vec<float> n = exp_power(shifted);
  const Vec<float> r = exp_rest(inside, n);
  const Vec<float> near = r + exp_tail(r);
  const Vec<float> value = scale_by_power(near + Vec<float>(1.0f), shifted);
  return {value, select(equal(n, Vec<float>(0.0f)), near, value - Vec<float>(1.0f))};
}

inline ExpPair<double> exp_pair(const Vec<double>& v) {
  return {v.exp(), v.expm1()};
}

// exp(-2 |v|) and exp(-2 |v|) - 1, of which tanh and its slope are made. Fewer instructions than exp_pair: one bound is
// enough, and one part of ln 2, since n is 0 where the difference to 1 needs every digit.
[[gnu::always_inline]] inline ExpPair<float> exp_pair_of_decay(const Vec<float>& v) {
  const Vec<float> minus_size = at_least(v | Vec<float>(-0.0f), -43.6f);
  const Vec<float> exponent = minus_size + minus_size;
  const Vec<float> shifted = exp_shifted(exponent);
  const Vec<float> n = exp_power(shifted);
  const Vec<float> r = exp_short_rest(exponent, n);
  const Vec<float> near = r + exp_tail(r);
  const Vec<float> value = scale_by_power(near + Vec<float>(1.0f), shifted);
  return {value, select(equal(n, Vec<float>(0.0f)), near, value - Vec<float>(1.0f))};
}

inline ExpPair<double> exp_pair_of_decay(const Vec<double>& v) {
  return exp_pair(v.abs() * Vec<double>(-2));
}

// |size| with the sign of `sign`.
template <typename A>
[[gnu::always_inline]] inline Vec<A> with_sign(const Vec<A>& size, const Vec<A>& sign) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    constexpr int kPickByMask = 0xD8; // bits of the second operand where the third has ones
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(size),
        _mm512_castps_si512(sign),
        _mm512_set1_epi32(std::numeric_limits<int32_t>::min()),
        kPickByMask));
  }
#endif
  return size.abs() | (sign & Vec<A>(A(-0.0)));
}

// 1 / v for normal v whose reciprocal is normal too.
inline Vec<float> reciprocal(const Vec<float>& v) {
#if defined(CPU_CAPABILITY_AVX512)
  // An estimate and a Newton step (2^-28 relative) instead of a division, which holds its port for ten cycles.
  const __m512 estimate = _mm512_rcp14_ps(v);
  const __m512 residual = _mm512_fnmadd_ps(v, estimate, _mm512_set1_ps(1.0f));
  return _mm512_fmadd_ps(estimate, residual, estimate);
#else
  return Vec<float>(1.0f) / v;
#endif
}

inline Vec<double> reciprocal(const Vec<double>& v) {
  return Vec<double>(1) / v;
}

// tanh(v) and its derivative: with m = exp(-2 |v|) - 1 neither -m / (2 + m) nor 4 (1 + m) / (2 + m)^2 cancels.
template <typename A>
struct TanhSlope {
  Vec<A> value, slope;
};

template <typename A>
inline TanhSlope<A> tanh_slope(const Vec<A>& v) {
  const auto pair = exp_pair_of_decay(v);
  const Vec<A> inverse = reciprocal(pair.minus_one + Vec<A>(2));
  return {with_sign(pair.minus_one * inverse, v), Vec<A>(4) * pair.exp * inverse * inverse};
}

// sigmoid(v) = 1 / (1 + exp(-v)).
inline Vec<float> sigmoid(const Vec<float>& v) {
  return reciprocal(
      Vec<float>(1.0f) + exp_short(at_most(at_least(v.neg(), -87.3f), 88.3f)));
}

inline Vec<double> sigmoid(const Vec<double>& v) {
  return Vec<double>(1) / (Vec<double>(1) + v.neg().exp());
}

// Factors in [1, 2] may be multiplied kLogRun times before a logarithm is due: 2^96 is far from overflow.
// One logarithm per lane and run replaces a log1p per element, and is no less accurate.
inline constexpr int64_t kLogRun = 96;

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
