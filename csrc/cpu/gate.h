// Both factors of a gated activation, from one vector of each half.
#pragma once

#include "vec.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// What tanh(a) and sigmoid(b) share. tanh(a) = -sign(a) m / (2 + m) and 1 - tanh(a)^2 = 4 (1 + m) / (2 + m)^2 with
// m = exp(-2 |a|) - 1, neither of which cancels; sigmoid(b) = 1 / (1 + q) with q = exp(-b). Both denominators have one
// reciprocal.
template <typename A>
struct GateParts {
  ExpPair<A> decay; // 1 + m and m
  Vec<A> q;
  Vec<A> tanh_denominator;
  Vec<A> inverse; // 1 / ((2 + m) (1 + q))
};

// exp(-b) stays so small that the product of both denominators has a normal reciprocal.
template <typename A>
inline constexpr A kLargestExponent = std::is_same_v<A, double> ? A(700) : A(85);

template <typename A>
[[gnu::always_inline]] inline GateParts<A> gate_parts(const Vec<A>& a, const Vec<A>& b) {
  GateParts<A> parts;
  parts.decay = exp_pair_of_decay(a);
  parts.q = exp_short(at_most(at_least(b.neg(), -kLargestExponent<A>), kLargestExponent<A>));
  parts.tanh_denominator = parts.decay.minus_one + Vec<A>(2);
  parts.inverse =
      reciprocal(at::vec::fmadd(parts.tanh_denominator, parts.q, parts.tanh_denominator));
  return parts;
}

// tanh(a) sigmoid(b)
template <typename A>
[[gnu::always_inline]] inline Vec<A> gated_product(const Vec<A>& a, const Vec<A>& b) {
  const auto parts = gate_parts(a, b);
  return with_sign(parts.decay.minus_one * parts.inverse, a);
}

template <typename A>
struct Gate {
  Vec<A> tanh, sigmoid;
  Vec<A> tanh_slope, one_minus_sigmoid;
};

template <bool WithSlopes, typename A>
[[gnu::always_inline]] inline Gate<A> gate(const Vec<A>& a, const Vec<A>& b) {
  const auto parts = gate_parts(a, b);
  const Vec<A> tanh_inverse = at::vec::fmadd(parts.inverse, parts.q, parts.inverse);
  Gate<A> result;
  result.sigmoid = parts.inverse * parts.tanh_denominator;
  result.tanh = with_sign(parts.decay.minus_one * tanh_inverse, a);
  if constexpr (WithSlopes) {
    result.tanh_slope = Vec<A>(4) * parts.decay.exp * (tanh_inverse * tanh_inverse);
    result.one_minus_sigmoid = parts.q * result.sigmoid;
  }
  return result;
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
