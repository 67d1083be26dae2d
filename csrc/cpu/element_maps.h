// Maps of one dimension, z_d and parameters to x_d, with a row of the batch in every lane.
#pragma once

#include "affine_scale.h"
#include "autoregressive_table.h"
#include "spline.h"
#include "vec.h"

#include <limits>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// One dimension of the rows in the lanes: parameter k at params[k * stride], entry n of z at z[n * stride].
template <typename A>
struct Element {
  const A* z;
  A* params; // overwritten
  int64_t stride, outputs;
  A* memory; // element_memory() numbers
};

template <typename A>
struct ElementResult {
  Vec<A> x, log_abs_det;
};

template <typename A>
inline Vec<A> bernoulli_draw(const Element<A>& e) {
  const Vec<A> one(1);
  const Vec<A> probability = one / (one + full_exp(Vec<A>::loadu(e.params).neg()));
  return select(less(Vec<A>::loadu(e.z), probability), one, Vec<A>(0));
}

// The first of `count` classes whose cumulative weight passes the noise times the total: the rounding of the sum never
// makes the last one.
template <typename A>
inline Vec<A> class_draw(A* log_weights, int64_t stride, int64_t count, const Vec<A>& noise) {
  Vec<A> highest = Vec<A>::loadu(log_weights);
  for (int64_t k = 1; k < count; ++k) {
    highest = max_ignoring_nan(Vec<A>::loadu(log_weights + k * stride), highest);
  }
  Vec<A> total(0);
  for (int64_t k = 0; k < count; ++k) {
    total = total + full_exp(Vec<A>::loadu(log_weights + k * stride) - highest);
    total.store(log_weights + k * stride);
  }
  const Vec<A> threshold = noise * total;
  Vec<A> index(0);
  for (int64_t k = 0; k + 1 < count; ++k) {
    const auto passed = less_equal(Vec<A>::loadu(log_weights + k * stride), threshold);
    index = index + select(passed, Vec<A>(1), Vec<A>(0));
  }
  return index;
}

// log(1 + exp(v)).
template <typename A>
inline Vec<A> log1p_exp(const Vec<A>& v) {
  return at_least(v, A(0)) + full_exp(v.abs().neg()).log1p();
}

// Parameters (shift, scale parameter).
template <typename A>
inline ElementResult<A> affine(const ElementMapOptions& options, const Element<A>& e) {
  const Vec<A> z = Vec<A>::loadu(e.z);
  const Vec<A> shift = Vec<A>::loadu(e.params);
  const Vec<A> u = Vec<A>::loadu(e.params + e.stride);
  const A clamp = static_cast<A>(options.clamp);
  return with_scale_map(options.scale, [&](auto map) -> ElementResult<A> {
    if (options.inverse) {
      const auto scale = scale_of<decltype(map)::value, true>(u, clamp);
      return {(z - shift) * scale.factor, scale.log.neg()};
    }
    const auto scale = scale_of<decltype(map)::value, false>(u, clamp);
    return {at::vec::fmadd(z, scale.factor, shift), scale.log};
  });
}

// Parameters (widths, heights, slopes).
template <bool Inverse, typename A>
inline ElementResult<A> spline(
    const ElementMapOptions& options, const Spline<A>& shape, const Element<A>& e) {
  constexpr int lanes = kLanes<A>;
  const int64_t bins = shape.bins;
  A* widths = e.memory;
  A* heights = widths + bins * lanes;
  const Vec<A> logit_scale(static_cast<A>(options.logit_scale));
  for (int64_t k = 0; k < 2 * bins; ++k) {
    (Vec<A>::loadu(e.params + k * e.stride) * logit_scale).store(widths + k * lanes);
  }
  const A* slopes = e.params + 2 * bins * e.stride;
  const Vec<A> z = Vec<A>::loadu(e.z);
  const auto value = spline_apply<Inverse>(
      shape,
      SplineDomain<A>(shape),
      z,
      widths,
      heights,
      heights + bins * lanes,
      [&](int k, int lane) { return slopes[k * e.stride + lane]; });
  if (options.spline.tails) {
    return {value.y, value.log_det};
  }
  const Vec<A> nothing(std::numeric_limits<A>::quiet_NaN());
  return {select(value.inside, value.y, nothing), select(value.inside, value.log_det, nothing)};
}

// Numbers that a map needs beside its parameters.
inline int64_t element_memory(const ElementMapOptions& options, int lanes) {
  if (options.map != ElementMap::Spline) {
    return 0;
  }
  const int64_t bins = options.spline.bins;
  return 2 * bins * lanes + spline_memory(bins, lanes);
}

// Parameters (weight logits,) means and log-scales; z holds a uniform for the component, and a standard normal or a
// uniform.
template <typename A>
inline Vec<A> mixture_draw(const ElementMapOptions& options, const Element<A>& e) {
  const int64_t count = e.outputs / (options.with_logits ? 3 : 2);
  A* means = e.params + (options.with_logits ? count * e.stride : 0);
  const A* log_scales = means + count * e.stride;
  const Vec<A> uniform = Vec<A>::loadu(e.z);
  Vec<A> component = options.with_logits
      ? class_draw(e.params, e.stride, count, uniform)
      : at_most((uniform * Vec<A>(static_cast<A>(count))).floor(), static_cast<A>(count - 1));
  Vec<A> mean = Vec<A>::loadu(means);
  Vec<A> log_scale = Vec<A>::loadu(log_scales);
  for (int64_t m = 1; m < count; ++m) {
    const auto chosen = equal(component, Vec<A>(static_cast<A>(m)));
    mean = select(chosen, Vec<A>::loadu(means + m * e.stride), mean);
    log_scale = select(chosen, Vec<A>::loadu(log_scales + m * e.stride), log_scale);
  }
  Vec<A> standard = Vec<A>::loadu(e.z + e.stride);
  if (options.map == ElementMap::LogisticMixture) {
    standard = standard.log() - standard.neg().log1p();
  }
  return at::vec::fmadd(full_exp(log_scale), standard, mean);
}

// One unknown of a triangular system: z holds the right side and the inverse of the diagonal.
template <typename A>
inline Vec<A> adjoint(const Element<A>& e) {
  return (Vec<A>::loadu(e.z) - Vec<A>::loadu(e.params)) * Vec<A>::loadu(e.z + e.stride);
}

template <typename A>
inline ElementResult<A> map_element(
    const ElementMapOptions& options, const Spline<A>& shape, const Element<A>& e) {
  switch (options.map) {
    case ElementMap::Bernoulli:
      return {bernoulli_draw(e), Vec<A>(0)};
    case ElementMap::Categorical:
      return {class_draw(e.params, e.stride, e.outputs, Vec<A>::loadu(e.z)), Vec<A>(0)};
    case ElementMap::Affine:
      return affine(options, e);
    case ElementMap::Adjoint:
      return {adjoint(e), Vec<A>(0)};
    case ElementMap::Spline:
      return options.inverse ? spline<true>(options, shape, e) : spline<false>(options, shape, e);
    default:
      return {mixture_draw(options, e), Vec<A>(0)};
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
