// What a kernel library offers for latent variables.
#pragma once

#include "operand.h"

namespace dgm_fast {

struct KlArgs {
  int64_t rows, size;
  Operand mean, log_var, prior_mean, prior_log_var;
  void* out;
};

struct KlGradArgs {
  int64_t rows, size, chunks;
  Operand mean, log_var, prior_mean, prior_log_var;
  const void* grad;
  void *grad_mean, *grad_log_var, *grad_prior_mean, *grad_prior_log_var;
};

// [batch, size] parameters and [batch, samples, size] noise, all contiguous, one dtype.
struct ReparameterizeArgs {
  int64_t batch, samples, size;
  Dtype dtype;
  const void *mean, *log_var, *eps;
  void* z;
};

struct ReparameterizeGradArgs {
  int64_t batch, samples, size;
  Dtype dtype;
  const void *grad, *log_var, *eps;
  void *grad_mean, *grad_log_var;
};

// [outer, count, inner] contiguous.
struct LogMeanExpArgs {
  int64_t outer, count, inner;
  Dtype dtype;
  const void* log_w;
  void* out; // [outer, inner]
};

struct LogMeanExpGradArgs {
  int64_t outer, count, inner;
  Dtype dtype;
  const void *log_w, *out, *grad;
  void* grad_log_w;
};

struct LatentKernels {
  void (*gaussian_kl)(const KlArgs&);
  void (*gaussian_kl_grad)(const KlGradArgs&);
  void (*reparameterize)(const ReparameterizeArgs&);
  void (*reparameterize_grad)(const ReparameterizeGradArgs&);
  void (*log_mean_exp)(const LogMeanExpArgs&);
  void (*log_mean_exp_grad)(const LogMeanExpGradArgs&);
};

void fill(LatentKernels& kernels);

} // namespace dgm_fast
