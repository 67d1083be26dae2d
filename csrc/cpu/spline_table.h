// What a kernel library offers for splines.
#pragma once

#include "operand.h"

namespace dgm_fast {

// How a slope comes from its parameter u.
enum class SlopeMap : int32_t {
  Softplus, // (softplus(u + offset) + min) scale
  Exponential, // exp(u / (1 + clip |u|))
  Given, // u + min
};

// Which slopes have parameters, from K - 1 for the inner knots to K + 1 for all.
enum class SplineEnds : int32_t { Fixed, Periodic, Free };

// A rational-quadratic spline of `bins` bins before it meets data: see spline.h.
struct SplineShape {
  int64_t bins;
  bool given; // widths and heights are fractions of the domain already; else a softmax makes them so
  double clip; // softmax of u / (1 + clip |u|)
  double min_width, min_height;
  SlopeMap slope_map;
  double slope_offset, slope_scale, slope_clip, min_slope;
  double end_slope; // of fixed ends
  SplineEnds ends;
  bool tails; // the identity outside the domain; without them that is an error
  double left, right, bottom, top;

  int64_t slopes() const {
    return bins + (ends == SplineEnds::Fixed ? -1 : ends == SplineEnds::Periodic ? 0 : 1);
  }
};

// The parameters of every element: where its first one lies, and how far apart they are.
struct ParameterRows {
  const void* data;
  RowMap rows;
  int64_t stride;
};

struct SplineArgs {
  SplineShape shape;
  bool inverse;
  int64_t count; // elements
  int64_t event; // elements of a sum of log-determinants, 0 where they are not summed
  Dtype dtype; // of x, parameters and y
  const void* x; // [count]
  ParameterRows widths, heights, slopes;
  ParameterRows bound; // the domain is [-bound, bound], in the sum's dtype; null where it is that of the shape
  void* y; // [count]
  void* log_det; // [count], or [count / event], in the sum's dtype
  bool invalid; // set when an element lies outside a domain without tails
};

struct SplineGradArgs {
  SplineArgs in; // y and log_det are not read
  const void *grad_y, *grad_log_det; // in the sum's dtype, null for zero
  void* grad_x; // [count]
  void *grad_widths, *grad_heights, *grad_slopes; // [count, parameters], all or none; null where not wanted
};

// The CDF of a mixture of logistics, element by element, or with `inverse` its quantile.
struct LogisticCdfArgs {
  int64_t count, components;
  Dtype dtype; // of x, parameters and y
  bool inverse;
  const void* x; // [count]
  ParameterRows logits, means, log_scales;
  void* y; // [count]
  void* log_det; // [count], in the sum's dtype
  bool invalid; // set when an argument of the inverse lies outside [0, 1]
};

struct LogisticCdfGradArgs {
  LogisticCdfArgs in; // y: the result of the forward
  const void *grad_y, *grad_log_det; // in the sum's dtype, null for zero
  void* grad_x; // [count]
  void *grad_logits, *grad_means, *grad_log_scales; // [count, components]; null where not wanted
};

struct SplineKernels {
  void (*spline)(SplineArgs& args);
  void (*spline_grad)(const SplineGradArgs& args);
  void (*logistic_cdf)(LogisticCdfArgs& args);
  void (*logistic_cdf_grad)(const LogisticCdfGradArgs& args);
};

void fill_rational_quadratic(SplineKernels& kernels);
void fill_logistic_cdf(SplineKernels& kernels);

inline void fill(SplineKernels& kernels) {
  fill_rational_quadratic(kernels);
  fill_logistic_cdf(kernels);
}

} // namespace dgm_fast
