// log(1 + exp(v)).
#pragma once

#include "vec.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// log(1 + e) for e in [0, 1], to relative precision.
inline Vec<float> log1p_unit(const Vec<float>& e) {
  // 2 atanh(s), s = e / (2 + e) <= 1/3, by a minimax polynomial in s^2 (8e-9 relative).
  const Vec<float> s = e * reciprocal(e + Vec<float>(2.0f));
  const Vec<float> z = s * s;
  Vec<float> p(0.14087328f);
  p = at::vec::fmadd(p, z, Vec<float>(0.13980709f));
  p = at::vec::fmadd(p, z, Vec<float>(0.20012426f));
  p = at::vec::fmadd(p, z, Vec<float>(0.33333158f));
  p = at::vec::fmadd(p, z, Vec<float>(1.0f));
  return Vec<float>(2.0f) * s * p;
}

inline Vec<double> log1p_unit(const Vec<double>& e) {
  return e.log1p();
}

template <typename A>
inline Vec<A> softplus(const Vec<A>& v) {
  return at_least(v, A(0)) + log1p_unit(fast_exp(v.abs().neg()));
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
