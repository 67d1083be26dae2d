// What a kernel library offers for likelihoods.
#pragma once

#include "operand.h"

namespace dgm_fast {

// Rows of events: values in, one number per row out, or gradients of the operands.
// Gradient pointers are null where not wanted; they are dense [rows, size] in the operand's dtype,
// except `partial` gradients of an operand shared by all rows: [chunks, size] in the sum's dtype.
// `stream` asks to write dense gradients past the caches.
struct BernoulliArgs {
  int64_t rows, size;
  Operand logits, x;
  void* out; // [rows]
  bool invalid; // set when x has a value outside [0, 1]
};

struct BernoulliGradArgs {
  int64_t rows, size;
  Operand logits, x;
  const void* grad; // [rows]
  void* grad_logits;
  void* grad_x; // in the sum's dtype
  bool stream;
};

struct GaussianArgs {
  int64_t rows, size;
  Operand x, mean, log_var;
  void* out;
};

struct GaussianGradArgs {
  int64_t rows, size, chunks;
  Operand x, mean, log_var;
  const void* grad;
  void *grad_x, *grad_mean, *grad_log_var; // dense, or partial where the operand is shared
  bool stream;
};

// logits [outer, classes, inner]; the last `event` of inner are summed.
struct CategoricalArgs {
  int64_t outer, classes, inner, event;
  Operand logits, x;
  void* out; // [outer, inner / event]
  bool invalid;
};

struct CategoricalGradArgs {
  int64_t outer, classes, inner, event;
  Operand logits, x;
  const void* grad; // [outer, inner / event]
  void* grad_logits;
  bool stream;
};

struct LikelihoodKernels {
  void (*bernoulli)(BernoulliArgs&);
  void (*bernoulli_grad)(const BernoulliGradArgs&);
  void (*gaussian)(const GaussianArgs&);
  void (*gaussian_grad)(const GaussianGradArgs&);
  void (*categorical)(CategoricalArgs&);
  void (*categorical_grad)(const CategoricalGradArgs&);
};

void fill(LikelihoodKernels& kernels);

} // namespace dgm_fast
