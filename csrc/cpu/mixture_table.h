// What a kernel library offers for mixture densities.
#pragma once

#include "operand.h"

namespace dgm_fast {

// params [batch, 3 M (one channel) or 10 M, pixels] contiguous; x [batch or 1, channels, pixels] in the
// sum's dtype. Parameter p (0 mean, 1 log-scale, 2 coefficient) of mixture k and channel c is in row
// mixtures + p * parameter_stride + k * mixture_stride + c * channel_stride.
struct LogisticMixtureArgs {
  int64_t batch, channels, mixtures, pixels;
  int64_t parameter_stride, mixture_stride, channel_stride;
  double levels;
  double edge; // beyond it lie the outermost bins
  Dtype dtype; // of params
  const void* params;
  const void* x;
  int64_t x_stride; // over the batch
  void* out; // [batch]
  bool invalid; // set when x has a value outside [-1, 1]
};

struct LogisticMixtureGradArgs {
  LogisticMixtureArgs in;
  const void* grad; // [batch]
  void* grad_params;
};

// z [rows, size], means and log_vars [components, size], logits [components] or null: contiguous, float or
// double.
struct GaussianMixtureArgs {
  int64_t rows, components, size;
  Dtype dtype;
  const void *z, *means, *log_vars, *logits;
  void* out; // [rows]
};

struct GaussianMixtureGradArgs {
  GaussianMixtureArgs in; // out: the result of the forward
  int64_t chunks;
  const void* grad; // [rows]
  void *grad_z, *grad_means, *grad_log_vars, *grad_logits; // null where not wanted
};

struct MixtureKernels {
  void (*logistic_mixture)(LogisticMixtureArgs&);
  void (*logistic_mixture_grad)(const LogisticMixtureGradArgs&);
  void (*gaussian_mixture)(const GaussianMixtureArgs&);
  void (*gaussian_mixture_grad)(const GaussianMixtureGradArgs&);
};

// One function a file.
void fill_logistic(MixtureKernels& kernels);
void fill_gaussian(MixtureKernels& kernels);

inline void fill(MixtureKernels& kernels) {
  fill_logistic(kernels);
  fill_gaussian(kernels);
}

} // namespace dgm_fast
