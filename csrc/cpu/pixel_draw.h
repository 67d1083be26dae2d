// Draws of pixels, an image of the batch in every lane.
#pragma once

#include "activations.h"
#include "element_maps.h"
#include "pixel_sampling_table.h"

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

// All colours at once: parameter k at params[k * stride] (overwritten), uniforms and results likewise.
template <typename A>
void pixel_mixture(const PixelDraw& draw, A* params, const A* uniforms, int64_t stride, A* x) {
  constexpr A kMinLogScale = -7;
  const int64_t count = draw.num_mixtures;
  const Vec<A> component = class_draw(params, stride, count, Vec<A>::loadu(uniforms));
  for (int64_t c = 0; c < draw.colors; ++c) {
    const bool grey = draw.colors == 1;
    // Means, log-scales and (of three colours) coefficients of a colour follow each other.
    const A* of_color = params + (1 + (grey ? 2 : 3) * c) * count * stride;
    const auto parameter = [&](const A* values) {
      return chosen(values, stride, count, component);
    };
    const Vec<A> log_scale = at_least(parameter(of_color + count * stride), kMinLogScale);
    const Vec<A> u = Vec<A>::loadu(uniforms + (1 + c) * stride);
    const Vec<A> standard = u.log() - u.neg().log1p();
    Vec<A> value = at::vec::fmadd(full_exp(log_scale), standard, parameter(of_color));
    // Coefficient 0 weighs red in green, 1 red in blue, 2 green in blue.
    for (int64_t before = 0; before < c; ++before) {
      const int64_t k = c == 1 ? 0 : 1 + before;
      const A* raw = params + (1 + 3 * k + 2) * count * stride;
      value = at::vec::fmadd(
          tanh_slope(parameter(raw)).value, Vec<A>::loadu(x + before * stride), value);
    }
    pixel_level(value, draw.levels).store(x + c * stride);
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
