// What a kernel library offers for variational bounds.
#pragma once

#include "operand.h"

namespace dgm_fast {

enum class Likelihood : int32_t { Bernoulli = 0, Gaussian = 1, Categorical = 2 };

// Decoder outputs [batch, samples, (classes,) size] contiguous in `dtype`. The log-variance of a Gaussian
// has strides (in elements) over batch, samples and size, any of them 0. Everything else is contiguous
// and in the sum's dtype: x [batch, size] (categorical: int32), latents [batch, (samples,) latent].
struct BoundArgs {
  Likelihood likelihood;
  Dtype dtype;
  int64_t batch, samples, classes, size, latent;
  const void* out;
  const void* out_log_var;
  int64_t log_var_stride[3];
  const void* x;
  const void *z, *mean, *log_var;
  const void* log_prior; // [batch, samples], null for a standard normal prior
};

struct ElboArgs {
  BoundArgs in; // samples = 1, no z
  double beta;
  void* elbo; // [batch]
  bool invalid;
};

struct ElboGradArgs {
  BoundArgs in;
  double beta;
  const void* grad; // [batch]
  void *grad_out, *grad_out_log_var, *grad_x, *grad_mean, *grad_log_var;
  bool stream; // grad_out
};

struct IwaeArgs {
  BoundArgs in;
  void* bound; // [batch]
  void* log_w; // [batch, samples]
  bool invalid;
};

// grad_out_log_var is dense [batch, samples, size] when log_var_stride[1] != 0, else [batch, size] or,
// with log_var_stride[2] == 0, [batch]; in the sum's dtype unless dense.
struct IwaeGradArgs {
  BoundArgs in;
  bool stop_score;
  const void *grad, *bound, *log_w;
  void *grad_out, *grad_out_log_var, *grad_x, *grad_z, *grad_mean, *grad_log_var, *grad_log_prior;
  bool stream; // grad_out
};

struct BoundsKernels {
  void (*elbo)(ElboArgs&);
  void (*elbo_grad)(const ElboGradArgs&);
  void (*iwae_bound)(IwaeArgs&);
  void (*iwae_bound_grad)(const IwaeGradArgs&);
};

void fill(BoundsKernels& kernels);

} // namespace dgm_fast
