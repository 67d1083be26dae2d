// Both factors of a gated activation, from one vector of each half.
#pragma once

#include "vec.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// tanh(a) = -sign(a) m / (2 + m) and 1 - tanh(a)^2 = 4 (1 + m) / (2 + m)^2 with m = exp(-2 |a|) - 1, neither of which
// cancels; sigmoid(b) = 1 / (1 + q) with q = exp(-b). Both denominators share one reciprocal.
template <typename A>
struct Gate {
  Vec<A> tanh, sigmoid;
  Vec<A> tanh_slope, one_minus_sigmoid;
};

// exp(-b) stays so small that the product of both denominators has a normal reciprocal.
template <typename A>
inline constexpr A kLargestExponent = std::is_same_v<A, double> ? A(700) : A(85);

template <bool WithSlopes, typename A>
[[gnu::always_inline]] inline Gate<A> gate(const Vec<A>& a, const Vec<A>& b) {
  const auto pair = exp_pair(a.abs() * Vec<A>(-2));
  const Vec<A> q = exp_short(at_most(at_least(b.neg(), -kLargestExponent<A>), kLargestExponent<A>));
  const Vec<A> tanh_denominator = pair.minus_one + Vec<A>(2);
  const Vec<A> sigmoid_denominator = q + Vec<A>(1);
  const Vec<A> inverse = reciprocal(tanh_denominator * sigmoid_denominator);
  const Vec<A> tanh_inverse = inverse * sigmoid_denominator;
  Gate<A> result;
  result.sigmoid = inverse * tanh_denominator;
  const Vec<A> size = pair.minus_one.neg() * tanh_inverse;
  result.tanh = select(less(a, Vec<A>(0)), size.neg(), size);
  if constexpr (WithSlopes) {
    result.tanh_slope = Vec<A>(4) * pair.exp * tanh_inverse * tanh_inverse;
    result.one_minus_sigmoid = q * result.sigmoid;
  }
  return result;
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
