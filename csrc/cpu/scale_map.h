// How a scale comes from an unconstrained parameter: the names of the maps.
#pragma once

#include <cstdint>

namespace dgm_fast {

// The log-scale l of a factor exp(l), from its parameter u. In the order of ops.SCALES.
enum class ScaleMap : int32_t {
  Exp, // l = u
  Sigmoid, // exp(l) = sigmoid(u + 2) + 1e-3
  Softplus, // exp(l) = softplus(u) + 1e-3
  Tanh, // l = clamp tanh(u / clamp)
  Atan, // l = 2 clamp / pi atan(u)
  Softsign, // l = u / (1 + |u| / clamp)
};

} // namespace dgm_fast
