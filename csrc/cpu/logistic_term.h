// The probability that a logistic puts on a bin of a discretized value (PixelCNN++).
//
// With m = |x - mean| / s, u = (half a bin) / s, E = exp(-m), q = exp(-u), everything that the piecewise
// definition needs is rational in E and q, without cancellation:
//
//   CDF difference               E (1 - q^2) / ((1 + E q)(q + E))
//   outermost bin, mean inside   1 / (1 + E q)
//   outermost bin, mean outside  exp(-m) / (q + E)
//   density times width          exp(-m - log s) / (1 + E)^2 * 2 / (levels - 1)
//
// Each is exp(linear) numerator / denominator.
#pragma once

#include "vec.h"

#include <cmath>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

inline constexpr double kMinLogScale = -7.0;
inline constexpr double kMinDifference = 1e-5;
// exp(-2 kMaxExponent) is not visible beside 1, and cubes of exp(-kMaxExponent) kMinDifference are normal.
template <typename A>
inline constexpr A kMaxExponent = std::is_same_v<A, double> ? A(20) : A(10);

template <typename A>
struct LogisticBins {
  A half_bin, edge, log_bins;

  // `outermost`: values beyond it, either way, lie in an outermost bin.
  LogisticBins(double levels, double outermost)
      : half_bin(A(1.0 / (levels - 1))),
        edge(A(outermost)),
        log_bins(A(std::log((levels - 1) / 2))) {}
};

// One channel of a vector of pixels.
template <typename A>
struct BinnedValue {
  Vec<A> x;
  Mask<A> left, edge; // in the leftmost bin, in either of the outermost
  bool any_edge;

  BinnedValue() = default;
  BinnedValue(const Vec<A>& value, const LogisticBins<A>& constants)
      : x(value),
        left(less(value, Vec<A>(-constants.edge))),
        edge(left | less(Vec<A>(constants.edge), value)),
        any_edge(edge.any()) {}
};

template <typename A>
struct LogisticTerm {
  Vec<A> linear, numerator, denominator;
  Vec<A> d_mean, d_log_scale; // of the log-probability
};

// Inlined by force: as a call it would pass its vectors through memory.
template <bool Grad, typename A>
[[gnu::always_inline]] inline LogisticTerm<A> logistic_term(
    const BinnedValue<A>& pixel,
    const Vec<A>& mean,
    const Vec<A>& raw_log_scale,
    const LogisticBins<A>& constants) {
  const Vec<A> zero(0);
  const Vec<A> one(1);
  const Vec<A> log_scale = at_least(raw_log_scale, A(kMinLogScale));
  const Vec<A> inverse = exp_short(at_least(log_scale.neg(), A(-87)));
  const Vec<A> centre = (pixel.x - mean) * inverse;
  const Vec<A> m = centre.abs();
  const Vec<A> u = Vec<A>(constants.half_bin) * inverse;
  // Coarse levels: E and q may both underflow where their ratio decides. A common factor is taken out of
  // them, which changes nothing else that is visible.
  const Vec<A> shift = at_least(at::vec::minimum(m, u) - Vec<A>(kMaxExponent<A>), A(0));
  const Vec<A> e = exp_to_zero(shift - m);
  const auto [q, minus] = exp_pair(shift - u);
  const Vec<A> width = minus.neg() * (one + q); // 1 - q^2
  const Vec<A> far = at::vec::fmadd(e, q, one);
  const Vec<A> near = q + e;
  const Vec<A> product = far * near;
  const Vec<A> whole = e * width;
  const Vec<A> one_e = one + e;
  const auto difference = less(Vec<A>(A(kMinDifference)) * product, whole);
  LogisticTerm<A> term;
  term.numerator = select(difference, whole, one);
  term.denominator = select(difference, product, one_e * one_e);
  term.linear =
      select(difference, zero, m.neg() - log_scale - Vec<A>(constants.log_bins));
  const auto negative = less(centre, zero);
  Vec<A> by_centre, by_u, divisor; // numerators of the derivatives and their common denominator
  if constexpr (Grad) {
    const Vec<A> slope = select(difference, q * (one - e * e) * width, one - e);
    by_centre = select(negative, slope, slope.neg());
    by_u = select(difference, q * at::vec::fmadd(near, near, far * far), zero);
    divisor = select(difference, product * width, one_e);
  }
  auto direct = difference; // whether the log-scale does not appear by itself
  if (pixel.any_edge) {
    // The leftmost bin holds the mean where x >= mean, the rightmost where x <= mean.
    const auto inside = (pixel.left & less_equal(zero, centre)) |
        (less(zero, pixel.x) & less_equal(centre, zero));
    const Vec<A> denominator = select(inside, far, near);
    term.numerator = select(pixel.edge, one, term.numerator);
    term.denominator = select(pixel.edge, denominator, term.denominator);
    term.linear = select(pixel.edge, select(inside, zero, shift - m), term.linear);
    if constexpr (Grad) {
      const Vec<A> slope = select(inside, q * e, q);
      by_centre = select(pixel.edge, select(pixel.left, slope, slope.neg()), by_centre);
      by_u = select(pixel.edge, slope, by_u);
      divisor = select(pixel.edge, denominator, divisor);
      direct = direct | pixel.edge;
    }
  }
  if constexpr (Grad) {
    const Vec<A> inverse_divisor = reciprocal(divisor);
    const Vec<A> d_centre = by_centre * inverse_divisor;
    const Vec<A> d_scale = at::vec::fmadd(centre, d_centre, u * by_u * inverse_divisor);
    term.d_mean = (inverse * d_centre).neg();
    const Vec<A> d_log_scale = select(direct, d_scale.neg(), d_scale.neg() - one);
    const auto clamped = less(raw_log_scale, Vec<A>(A(kMinLogScale)));
    term.d_log_scale = select(clamped, zero, d_log_scale);
  }
  return term;
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
