// The terms of adversarial losses: value and derivative, a vector at a time. The formulas and their order are those of
// dgm_fast/reference/adversarial.py.
#pragma once

#include "vec.h"

#include <cmath>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

template <typename A>
struct Term {
  Vec<A> value, slope;
};

template <typename A>
struct LossOptions {
  A alpha, pi;
};

// Exponentials continue along their tangent from here on.
inline constexpr double kExpLimit = 64.0;
// Beyond it softplus(-v) is e^-v.
inline constexpr double kTail = 40.0;

template <typename A>
inline Vec<A> choose(const Vec<A>& condition, const Vec<A>& yes, const Vec<A>& no) {
  return Vec<A>::blendv(no, yes, condition);
}

// softplus(v) and its derivative sigmoid(v).
template <typename A>
inline Term<A> softplus(const Vec<A>& v) {
  const Vec<A> zero(0), one(1);
  const Vec<A> e = v.abs().neg().exp();
  const Vec<A> positive = choose<A>(v > zero, v, zero);
  return {positive + e.log1p(), choose<A>(v > zero, one, e) / (one + e)};
}

template <typename A>
inline Term<A> softplus_negative(const Vec<A>& v) {
  const auto term = softplus<A>(v.neg());
  return {term.value, term.slope.neg()};
}

template <typename A>
inline Term<A> tangent_exp(const Vec<A>& v) {
  const Vec<A> limit(static_cast<A>(kExpLimit));
  const Vec<A> e = choose<A>(v > limit, limit, v).exp();
  return {choose<A>(v > limit, e * (Vec<A>(1) + (v - limit)), e), e};
}

template <typename A>
inline Term<A> tangent_expm1(const Vec<A>& v) {
  const Vec<A> limit(static_cast<A>(kExpLimit));
  const Vec<A> near = choose<A>(v > limit, limit, v);
  const Vec<A> e = near.exp();
  return {choose<A>(v > limit, e * (Vec<A>(1) + (v - limit)), near.expm1()), e};
}

template <typename A>
inline Term<A> scaled(const Term<A>& term, A factor, A offset = A(0)) {
  return {term.value * Vec<A>(factor) + Vec<A>(offset), term.slope * Vec<A>(factor)};
}

template <typename A>
inline Term<A> half_tanh(const Vec<A>& v) {
  const Vec<A> t = v.tanh();
  return {t * Vec<A>(0.5), (Vec<A>(1) - t * t) * Vec<A>(0.5)};
}

// Of u (v) with u = log w: Newton on y = -s for expm1(y) + y + v = 0, from above.
template <typename A>
inline Term<A> jeffrey_conjugate(const Vec<A>& v) {
  constexpr int kSteps = 8;
  const Vec<A> one(1), two(2);
  const Vec<A> a = one - v;
  Vec<A> y = choose<A>(a > one, choose<A>(a > one, a, one).log(), a);
  for (int i = 0; i < kSteps; ++i) {
    const Vec<A> e = y.expm1();
    y = y - (e + y + v) / (e + two);
  }
  const Vec<A> s = y.neg();
  const auto e = tangent_expm1<A>(s);
  return {e.value + s, e.slope};
}

template <typename A>
inline Term<A> weighted_js_conjugate(const Vec<A>& v, A pi) {
  const Vec<A> tail(static_cast<A>(kTail));
  const Vec<A> one(1);
  const auto beyond = v > tail;
  const auto near = softplus<A>(choose<A>(beyond, tail, v).neg());
  const Vec<A> z = near.value / Vec<A>(pi);
  const Vec<A> log_rest = choose<A>(
      beyond, v.neg() - Vec<A>(std::log(pi)), z.neg().expm1().neg().log());
  const Vec<A> slope =
      choose<A>(beyond, one, near.slope / (Vec<A>(pi) * z.expm1()));
  const Vec<A> rest(A(1) - pi);
  return {rest * (Vec<A>(std::log1p(-pi)) - log_rest), rest * slope};
}

template <typename A>
inline Term<A> alpha_conjugate(const Vec<A>& v, A alpha) {
  const A exponent = alpha / (alpha - A(1));
  const Vec<A> one(1), zero(0);
  const A inverse = A(1) / alpha;
  if (alpha < A(1)) {
    const Vec<A> tail(static_cast<A>(kTail));
    const auto beyond = v > tail;
    const auto near = softplus<A>(choose<A>(beyond, tail, v).neg());
    const Vec<A> log_base =
        choose<A>(beyond, v.neg(), near.value.log()) + Vec<A>(std::log1p(-alpha));
    const Vec<A> slope = choose<A>(beyond, one, near.slope / near.value);
    const auto power = tangent_exp<A>(Vec<A>(exponent) * log_base);
    return {
        (power.value - one) * Vec<A>(inverse),
        power.slope * slope * Vec<A>(-exponent * inverse)};
  }
  const Vec<A> base = v * Vec<A>(alpha - A(1)) + one;
  const auto outside = base <= zero; // NaN is not, and stays
  const Vec<A> safe = choose<A>(outside, one, base);
  const Vec<A> log_power = Vec<A>(exponent) * safe.log();
  const Vec<A> limit(static_cast<A>(kExpLimit));
  const auto beyond = log_power > limit;
  const Vec<A> highest(static_cast<A>(std::exp(kExpLimit)));
  const Vec<A> near = choose<A>(beyond, one, safe).pow(Vec<A>(exponent));
  const Vec<A> power = choose<A>(beyond, highest * (one + (log_power - limit)), near);
  const Vec<A> slope = choose<A>(beyond, highest, near) / safe;
  return {
      (choose<A>(outside, zero, power) - one) * Vec<A>(inverse),
      choose<A>(outside, zero, slope) * Vec<A>((alpha - A(1)) * exponent * inverse)};
}

template <typename A>
inline Term<A> pearson_conjugate(const Vec<A>& v) {
  const auto outside = v <= Vec<A>(-2); // NaN is not, and stays
  const Vec<A> half = Vec<A>(0.5) * v;
  return {
      choose<A>(outside, Vec<A>(-1), half * half + v),
      choose<A>(outside, Vec<A>(0), half + Vec<A>(1))};
}

// visit(f) with f(v, options) -> Term for one of TERMS.
template <typename A, typename F>
inline void with_term(int term, F&& visit) {
  using V = const Vec<A>&;
  using O = const LossOptions<A>&;
  constexpr A kLog2 = static_cast<A>(0.69314718055994530942);
  const auto identity = [](V v, O) { return Term<A>{v, Vec<A>(1)}; };
  const auto tanh_term = [](V v, O) { return half_tanh<A>(v); };
  const auto minus_expm1 = [](V v, O) {
    // -(e^-v - 1), whose derivative is e^-v.
    const auto e = tangent_expm1<A>(v.neg());
    return Term<A>{e.value.neg(), e.slope};
  };
  switch (term) {
    case 0: // identity
    case 8: // kl.activation
    case 10: // pearson.activation
    case 13: // jeffrey.activation
      return visit(identity);
    case 1: // softplus
    case 27: // gan.conjugate
      return visit([](V v, O) { return softplus<A>(v); });
    case 2:
      return visit([](V v, O) { return softplus_negative<A>(v); });
    case 3: // hinge_real
      return visit([](V v, O) {
        const auto active = v < Vec<A>(1);
        return Term<A>{
            choose<A>(active, Vec<A>(1) - v, Vec<A>(0)),
            choose<A>(active, Vec<A>(-1), Vec<A>(0))};
      });
    case 4: // hinge_fake
      return visit([](V v, O) {
        const auto active = v > Vec<A>(-1);
        return Term<A>{
            choose<A>(active, Vec<A>(1) + v, Vec<A>(0)),
            choose<A>(active, Vec<A>(1), Vec<A>(0))};
      });
    case 5: // square_to_one
      return visit([](V v, O) {
        const Vec<A> d = v - Vec<A>(1);
        return Term<A>{Vec<A>(0.5) * d * d, d};
      });
    case 6: // square
      return visit([](V v, O) { return Term<A>{Vec<A>(0.5) * v * v, v}; });
    case 7: // total_variation.activation
    case 18: // and its conjugate
      return visit(tanh_term);
    case 9: // reverse_kl.activation
      return visit([](V v, O) {
        const auto e = tangent_exp<A>(v.neg());
        return Term<A>{e.value.neg(), e.slope};
      });
    case 11: // neyman.activation
    case 12: // squared_hellinger.activation
      return visit(minus_expm1);
    case 14: // jensen_shannon.activation
      return visit([](V v, O) { return scaled<A>(softplus_negative<A>(v), A(-1), kLog2); });
    case 15: // weighted_jensen_shannon.activation
      return visit([](V v, O o) {
        return scaled<A>(softplus_negative<A>(v), A(-1), -o.pi * std::log(o.pi));
      });
    case 16: // gan.activation
      return visit([](V v, O) { return scaled<A>(softplus_negative<A>(v), A(-1)); });
    case 17: // alpha.activation
      return visit([](V v, O o) {
        return o.alpha > A(1)
            ? Term<A>{v, Vec<A>(1)}
            : scaled<A>(softplus_negative<A>(v), A(-1), A(1) / (A(1) - o.alpha));
      });
    case 19: // kl.conjugate
      return visit([](V v, O) { return tangent_exp<A>(v - Vec<A>(1)); });
    case 20: // reverse_kl.conjugate
      return visit([](V v, O) { return Term<A>{v - Vec<A>(1), Vec<A>(1)}; });
    case 21: // pearson.conjugate
      return visit([](V v, O) { return pearson_conjugate<A>(v); });
    case 22: // neyman.conjugate
      return visit([](V v, O) {
        const auto e = tangent_expm1<A>(v * Vec<A>(-0.5));
        return Term<A>{e.value * Vec<A>(-2), e.slope};
      });
    case 23: // squared_hellinger.conjugate
      return visit([](V v, O) { return tangent_expm1<A>(v); });
    case 24: // jeffrey.conjugate
      return visit([](V v, O) { return jeffrey_conjugate<A>(v); });
    case 25: // jensen_shannon.conjugate
      return visit([](V v, O) { return scaled<A>(softplus<A>(v), A(1), -kLog2); });
    case 26: // weighted_jensen_shannon.conjugate
      return visit([](V v, O o) { return weighted_js_conjugate<A>(v, o.pi); });
    default: // alpha.conjugate
      return visit([](V v, O o) { return alpha_conjugate<A>(v, o.alpha); });
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
