// Draws of pixels, an image of the batch in every lane.
#pragma once

#include "activations.h"
#include "element_maps.h"
#include "logistic_term.h"
#include "pixel_sampling_table.h"

#include <algorithm>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// [u < sigmoid(logit)]
template <typename A>
inline Vec<A> pixel_bernoulli(const A* logits, const Vec<A>& uniform) {
  return select(less(uniform, logistic(Vec<A>::loadu(logits))), Vec<A>(1), Vec<A>(0));
}

// Component m of `count`, chosen in every lane.
template <typename A>
inline Vec<A> chosen(const A* values, int64_t stride, int64_t count, const Vec<A>& component) {
  Vec<A> value = Vec<A>::loadu(values);
  for (int64_t m = 1; m < count; ++m) {
    const auto here = equal(component, Vec<A>(static_cast<A>(m)));
    value = select(here, Vec<A>::loadu(values + m * stride), value);
  }
  return value;
}

// A value in [-1, 1], at the nearest of the levels (where there are any).
template <typename A>
inline Vec<A> pixel_level(const Vec<A>& value, int64_t levels) {
  const Vec<A> one(1);
  const Vec<A> kept = at_most(at_least(value, A(-1)), A(1));
  if (levels == 0) {
    return kept;
  }
  const Vec<A> half(A(levels - 1) / A(2));
  return ((kept + one) * half).round() / half - one;
}

// Colours of a pixel that are given: ones (given) and zeros, and their values; colour c at [c * stride].
template <typename A>
struct GivenColors {
  const A* given;
  const A* values;
};

// All colours at once: parameter k at params[k * stride] (overwritten), uniforms and results likewise. After a given
// colour the component is drawn anew, from its distribution under all colours so far, by the noise that the colour has
// no use for. `known` is null where nothing is given.
template <typename A>
class PixelMixture {
 public:
  explicit PixelMixture(const PixelDraw& draw)
      : draw_(draw),
        bins_(num_levels(draw), outermost(draw)),
        joint_(draw.num_mixtures * kLanes<A>),
        weights_(draw.num_mixtures * kLanes<A>) {}

  void run(A* params, const A* uniforms, int64_t stride, const GivenColors<A>* known, A* x) {
    params_ = params;
    stride_ = stride;
    const int64_t count = draw_.num_mixtures;
    if (known != nullptr) {
      for (int64_t m = 0; m < count; ++m) {
        Vec<A>::loadu(params + m * stride).store(joint_.data() + m * kLanes<A>);
      }
    }
    Vec<A> component = class_draw(params, stride, count, Vec<A>::loadu(uniforms));
    for (int64_t c = 0; c < draw_.colors; ++c) {
      const Vec<A> u = Vec<A>::loadu(uniforms + (1 + c) * stride);
      const Vec<A> standard = u.log() - u.neg().log1p();
      const Vec<A> log_scale =
          at_least(chosen(log_scales(c), stride, count, component), A(kMinLogScale));
      Vec<A> value = chosen(means(c), stride, count, component);
      for (int64_t before = 0; before < c; ++before) {
        const Vec<A> raw = chosen(coefficients(c, before), stride, count, component);
        value = at::vec::fmadd(tanh_slope(raw).value, Vec<A>::loadu(x + before * stride), value);
      }
      value = pixel_level(at::vec::fmadd(full_exp(log_scale), standard, value), draw_.levels);
      if (known != nullptr) {
        const auto given = less(Vec<A>(0), Vec<A>::loadu(known->given + c * stride));
        value = select(given, Vec<A>::loadu(known->values + c * stride), value);
        add_evidence(c, value, x);
        std::copy(joint_.begin(), joint_.end(), weights_.begin());
        const Vec<A> again = class_draw(weights_.data(), kLanes<A>, count, u);
        component = select(given, again, component);
      }
      value.store(x + c * stride);
    }
  }

 private:
  static double num_levels(const PixelDraw& draw) {
    return draw.levels == 0 ? 256.0 : static_cast<double>(draw.levels);
  }

  // As the density has it: within a thousandth of the ends, or half a level.
  static double outermost(const PixelDraw& draw) {
    return 1.0 - std::min(1e-3, 0.5 / (num_levels(draw) - 1.0));
  }

  // Means, log-scales and (of three colours) coefficients of a colour follow each other.
  A* means(int64_t c) const {
    const int64_t blocks = draw_.colors == 1 ? 2 : 3;
    return params_ + (1 + blocks * c) * draw_.num_mixtures * stride_;
  }
  A* log_scales(int64_t c) const {
    return means(c) + draw_.num_mixtures * stride_;
  }
  // Coefficient 0 weighs red in green, 1 red in blue, 2 green in blue.
  A* coefficients(int64_t c, int64_t before) const {
    const int64_t k = c == 1 ? 0 : 1 + before;
    return params_ + (1 + 3 * k + 2) * draw_.num_mixtures * stride_;
  }

  // The log-probability of colour c under every component, into the joint one.
  void add_evidence(int64_t c, const Vec<A>& value, const A* x) {
    const BinnedValue<A> binned(value, bins_);
    for (int64_t m = 0; m < draw_.num_mixtures; ++m) {
      Vec<A> mean = Vec<A>::loadu(means(c) + m * stride_);
      for (int64_t before = 0; before < c; ++before) {
        const Vec<A> raw = Vec<A>::loadu(coefficients(c, before) + m * stride_);
        mean = at::vec::fmadd(tanh_slope(raw).value, Vec<A>::loadu(x + before * stride_), mean);
      }
      const auto term =
          logistic_term<false>(binned, mean, Vec<A>::loadu(log_scales(c) + m * stride_), bins_);
      A* joint = joint_.data() + m * kLanes<A>;
      (Vec<A>::loadu(joint) + term.linear + (term.numerator / term.denominator).log()).store(joint);
    }
  }

  const PixelDraw& draw_;
  LogisticBins<A> bins_;
  std::vector<A> joint_, weights_; // log-weights under the colours so far, and room to draw by them
  A* params_ = nullptr;
  int64_t stride_ = 0;
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
