// Scales of affine maps from their parameters, a vector of elements at a time.
#pragma once

#include "scale_map.h"
#include "softplus.h"

#include <type_traits>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// exp(l), or with Inverse exp(-l); l; and its derivative in the parameter.
template <typename A>
struct Scale {
  Vec<A> factor, log, derivative;
};

template <ScaleMap M, bool Inverse, typename A>
inline Scale<A> scale_of(const Vec<A>& u, A clamp) {
  const Vec<A> one(1);
  if constexpr (M == ScaleMap::Sigmoid || M == ScaleMap::Softplus) {
    const Vec<A> s = sigmoid(M == ScaleMap::Sigmoid ? u + Vec<A>(2) : u);
    const Vec<A> value = (M == ScaleMap::Sigmoid ? s : softplus(u)) + Vec<A>(A(1e-3));
    const Vec<A> rise = M == ScaleMap::Sigmoid ? s * (one - s) : s;
    return {Inverse ? one / value : value, value.log(), rise / value};
  } else {
    Vec<A> log = u;
    Vec<A> derivative = one;
    if constexpr (M == ScaleMap::Tanh) {
      const auto bounded = tanh_slope(u / Vec<A>(clamp));
      log = Vec<A>(clamp) * bounded.value;
      derivative = bounded.slope;
    } else if constexpr (M == ScaleMap::Atan) {
      const Vec<A> amplitude(A(0.63661977236758134308) * clamp);
      log = amplitude * u.atan();
      derivative = amplitude / at::vec::fmadd(u, u, one);
    } else if constexpr (M == ScaleMap::Softsign) {
      const Vec<A> shrink = one / (one + u.abs() / Vec<A>(clamp));
      log = u * shrink;
      derivative = shrink * shrink;
    }
    return {full_exp(Inverse ? log.neg() : log), log, derivative};
  }
}

// visit(map) as a constant.
template <typename F>
auto with_scale_map(ScaleMap map, F&& visit) {
  switch (map) {
    case ScaleMap::Exp:
      return visit(std::integral_constant<ScaleMap, ScaleMap::Exp>{});
    case ScaleMap::Sigmoid:
      return visit(std::integral_constant<ScaleMap, ScaleMap::Sigmoid>{});
    case ScaleMap::Softplus:
      return visit(std::integral_constant<ScaleMap, ScaleMap::Softplus>{});
    case ScaleMap::Tanh:
      return visit(std::integral_constant<ScaleMap, ScaleMap::Tanh>{});
    case ScaleMap::Atan:
      return visit(std::integral_constant<ScaleMap, ScaleMap::Atan>{});
    default:
      return visit(std::integral_constant<ScaleMap, ScaleMap::Softsign>{});
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
