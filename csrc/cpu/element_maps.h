// Maps of one dimension, z_d and parameters to x_d, with a row of the batch in every lane.
#pragma once

#include "autoregressive_table.h"
#include "vec.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// One dimension of the rows in the lanes: parameter k at params[k * stride], entry n of z at z[n * stride].
template <typename A>
struct Element {
  const A* z;
  A* params; // overwritten
  int64_t stride, outputs;
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

// Scale and log-scale of an affine map.
template <typename A>
struct Scale {
  Vec<A> value, log;
};

template <typename A>
inline Scale<A> affine_scale(const ElementMapOptions& options, const Vec<A>& u) {
  constexpr A kMinScale = A(1e-3);
  const Vec<A> clamp(static_cast<A>(options.clamp));
  switch (options.scale) {
    case AffineScale::Exp:
      return {full_exp(u), u};
    case AffineScale::Sigmoid2: {
      const Vec<A> one(1);
      const Vec<A> scale = one / (one + full_exp((u + Vec<A>(2)).neg())) + Vec<A>(kMinScale);
      return {scale, scale.log()};
    }
    case AffineScale::Softplus: {
      const Vec<A> scale = log1p_exp(u) + Vec<A>(kMinScale);
      return {scale, scale.log()};
    }
    case AffineScale::Tanh: {
      const Vec<A> log_scale = clamp * (u / clamp).tanh();
      return {full_exp(log_scale), log_scale};
    }
    default: {
      const Vec<A> log_scale = clamp * Vec<A>(A(0.63661977236758134308)) * u.atan();
      return {full_exp(log_scale), log_scale};
    }
  }
}

// Parameters (shift, scale parameter).
template <typename A>
inline ElementResult<A> affine(const ElementMapOptions& options, const Element<A>& e) {
  const Vec<A> z = Vec<A>::loadu(e.z);
  const Vec<A> shift = Vec<A>::loadu(e.params);
  const auto scale = affine_scale<A>(options, Vec<A>::loadu(e.params + e.stride));
  if (options.inverse) {
    return {(z - shift) / scale.value, scale.log.neg()};
  }
  return {at::vec::fmadd(z, scale.value, shift), scale.log};
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
inline ElementResult<A> map_element(const ElementMapOptions& options, const Element<A>& e) {
  switch (options.map) {
    case ElementMap::Bernoulli:
      return {bernoulli_draw(e), Vec<A>(0)};
    case ElementMap::Categorical:
      return {class_draw(e.params, e.stride, e.outputs, Vec<A>::loadu(e.z)), Vec<A>(0)};
    case ElementMap::Affine:
      return affine(options, e);
    case ElementMap::Adjoint:
      return {adjoint(e), Vec<A>(0)};
    default:
      return {mixture_draw(options, e), Vec<A>(0)};
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
