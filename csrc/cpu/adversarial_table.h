// What a kernel library offers for adversarial training: losses, gradient penalties, activations and the
// pointwise parts of a critic's step.
#pragma once

#include "operand.h"

namespace dgm_fast {

// A term of `size` outputs: its sum, and the derivative of each times `scale` (null where not wanted).
struct LossTermArgs {
  int64_t size;
  Dtype dtype;
  const void* v;
  int term; // index into reference/adversarial.py: TERMS
  double alpha, pi, scale;
  void* grad; // in the sum's dtype
  double sum; // out
};

// out = eps real + (1 - eps) fake, eps [rows] in the sum's dtype.
struct InterpolateArgs {
  int64_t rows, size;
  Dtype dtype;
  const void *real, *fake, *eps;
  void* out;
};

// Gradients [rows, size], each row in one piece; grad_scale [rows] in the sum's dtype, or null, is a factor of each.
struct NormPenaltyArgs {
  int64_t rows, size;
  Dtype dtype;
  const void *grad, *grad_scale;
  double center;
  bool one_sided;
  void* norms; // [rows] in the sum's dtype
  double sum; // out: of (norm - center)^2
};

// direction = grad_scale^2 coefficient(norm) grad (+ row_scale x): `scale` times the derivative of (norm - center)^2 in
// grad, 0 at norm 0, where norm is that of grad_scale grad.
struct PenaltyDirectionArgs {
  int64_t rows, size;
  Dtype dtype;
  const void *grad, *grad_scale;
  const void* norms;
  double scale, center;
  bool one_sided;
  const void *x, *row_scale; // null, or [rows, size] and [rows] in the sum's dtype
  void* direction;
};

// out = activation(x + bias): x times slope where that sum is not positive. Channels of `inner` elements each; bias is
// null or [channels].
struct ActivationArgs {
  int64_t outer, channels, inner;
  Dtype dtype;
  const void *x, *bias;
  double slope;
  void* out;
};

// grad_x = grad, times slope where out is not positive; partial sums of it over channels, [parts, channels] in the sum's
// dtype, where grad_bias is not null. grad_x may be null.
struct ActivationGradArgs {
  int64_t outer, channels, inner, parts;
  Dtype dtype;
  const void *grad, *out;
  double slope;
  void *grad_x, *grad_bias;
};

// The pointwise parts of a critic's step. Tensors are [rows, spatial, channels], contiguous, float or double; biases
// [channels] may be null. The mask of h is 1 where h is positive, else slope.

// h = activation(x + bias).
struct BiasedActivationArgs {
  int64_t rows, spatial, channels;
  Dtype dtype;
  const void *x, *bias;
  double slope;
  void* h;
};

// The first layer on real, fake and mixed samples, from pre-activations of the first two without bias: that of a
// mixture is the mixture. h [3 rows, spatial, channels].
struct MixedActivationArgs {
  int64_t rows, spatial, channels;
  Dtype dtype;
  const void *real, *fake, *eps, *bias;
  double slope;
  void* h;
};

// h = mask(h) (t + row_scale bias), row_scale [rows] or null for none.
struct TangentArgs {
  int64_t rows, spatial, channels;
  Dtype dtype;
  const void *t, *row_scale, *bias;
  double slope;
  void* h;
};

// b = mask(h) b in place (h null: b as it is), or mask(h) seed_i weight_j where seed [rows] and weight [spatial, channels]
// are given. sums [parts, channels]: of row_scale_i b over rows and space, where not null; row_scale null counts 1.
struct SignalArgs {
  int64_t rows, spatial, channels, parts;
  Dtype dtype;
  const void *h, *seed, *weight, *row_scale;
  double slope;
  void *b, *sums;
};

struct AdversarialKernels {
  void (*loss_term)(LossTermArgs&);
  void (*interpolate)(const InterpolateArgs&);
  void (*norm_penalty)(NormPenaltyArgs&);
  void (*penalty_direction)(const PenaltyDirectionArgs&);
  void (*activation)(const ActivationArgs&);
  void (*activation_grad)(const ActivationGradArgs&);
  void (*biased_activation)(const BiasedActivationArgs&);
  void (*mixed_activation)(const MixedActivationArgs&);
  void (*tangent)(const TangentArgs&);
  void (*signal)(const SignalArgs&);
};

// One function a file.
void fill_losses(AdversarialKernels& kernels);
void fill_penalty(AdversarialKernels& kernels);
void fill_activations(AdversarialKernels& kernels);
void fill_critic(AdversarialKernels& kernels);

inline void fill(AdversarialKernels& kernels) {
  fill_losses(kernels);
  fill_penalty(kernels);
  fill_activations(kernels);
  fill_critic(kernels);
}

} // namespace dgm_fast
