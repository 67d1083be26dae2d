// What a kernel library offers for coupling layers.
#pragma once

#include "operand.h"
#include "scale_map.h"

namespace dgm_fast {

// Elements [runs, inner], contiguous within a run; log-determinants are sums over `event` elements that follow each
// other. event divides inner, or inner divides event.
struct AffineArgs {
  int64_t runs, inner, event;
  Dtype dtype; // of x, log_scale, shift and y
  bool inverse; // y = (x - shift) exp(-l) in place of x exp(l) + shift
  ScaleMap map;
  double clamp;
  Operand x, log_scale, shift;
  Operand mask; // bytes: where zero, y = x; absent for everywhere
};

struct AffineForwardArgs {
  AffineArgs in;
  void* y; // dense
  void* log_det; // [runs * inner / event], in the sum's dtype
};

struct AffineGradArgs {
  AffineArgs in;
  Operand grad_y; // as x; null for zero
  const void* grad_log_det; // in the sum's dtype; null for zero
  void *grad_x, *grad_log_scale, *grad_shift; // dense; null where not wanted
};

// One factor and shift a channel: x [samples, channels, inner], contiguous.
struct ActnormArgs {
  int64_t samples, channels, inner;
  Dtype dtype;
  bool inverse;
  const void* x;
  const void *log_scale, *bias; // [channels], in the sum's dtype
  void* y;
};

struct ActnormGradArgs {
  ActnormArgs in; // y is not read
  int64_t parts;
  const void* grad_y; // in dtype
  void* grad_x; // null where not wanted
  void *grad_scale, *grad_shift; // [parts, channels], in the sum's dtype: of sums over samples; null together
};

struct CouplingKernels {
  void (*affine)(const AffineForwardArgs& args);
  void (*affine_grad)(const AffineGradArgs& args);
  void (*actnorm)(const ActnormArgs& args);
  void (*actnorm_grad)(const ActnormGradArgs& args);
};

void fill(CouplingKernels& kernels);

} // namespace dgm_fast
