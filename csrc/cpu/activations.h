// Activations of one vector, with their right limits.
#pragma once

#include "vec.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

template <typename A>
inline Vec<A> logistic(const Vec<A>& v) {
  return Vec<A>(1) / (Vec<A>(1) + full_exp(v.neg()));
}

template <typename A>
inline Vec<A> exponential_linear(const Vec<A>& v, const Vec<A>& alpha) {
  return select(less(v, Vec<A>(0)), alpha * exp_minus(v).one, v);
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
