// CPU functions of the spline family: layout and allocation around the kernels.

#include "cpu/spline_table.h"
#include "kernels.h"
#include "layout.h"
#include "spline_shape.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Parameters [..., K] of the elements of x, read where they lie.
ParameterRows parameter_rows(const Tensor& t, const Tensor& x) {
  return {t.const_data_ptr(), row_map(t, x.sizes(), 1), t.size(-1) > 1 ? t.stride(-1) : 1};
}

Tensor upstream(const OptionalTensor& grad, at::ScalarType dtype) {
  return grad.has_value() ? grad->to(dtype).contiguous() : Tensor();
}

const void* data_of(const Tensor& t) {
  return t.defined() ? t.const_data_ptr() : nullptr;
}

// The gradient of x, or one row an element of its parameters: dense. Those that elements share are summed afterwards.
class ElementGrad {
 public:
  ElementGrad(bool wanted, const Tensor& x, const Tensor& argument, bool row)
      : wanted_(wanted), shape_(argument.sizes()) {
    if (!wanted) {
      gradient_ = at::empty({0}, x.options());
      return;
    }
    c10::SmallVector<int64_t, 8> shape(x.sizes().begin(), x.sizes().end());
    if (row) {
      shape.push_back(argument.size(-1));
    }
    gradient_ = empty_output(shape, x.scalar_type());
  }

  void* data() const {
    return wanted_ ? gradient_.mutable_data_ptr() : nullptr;
  }

  Tensor finish() const {
    return wanted_ ? at::sum_to(gradient_, shape_).contiguous() : gradient_;
  }

 private:
  bool wanted_;
  at::IntArrayRef shape_;
  Tensor gradient_;
};

// The operands as the kernels read them; holds what had to be converted.
class SplineLayout {
 public:
  SplineArgs args{};

  SplineLayout(
      const Tensor& x,
      const Tensor& widths,
      const Tensor& heights,
      const Tensor& slopes,
      const OptionalTensor& bound,
      bool inverse,
      const SplineOptions& options,
      bool sum_log_det)
      : x_(x.contiguous()) {
    args.shape = make_spline_shape(widths.size(-1), options);
    args.inverse = inverse;
    args.count = x.numel();
    if (sum_log_det) {
      args.event = 1;
      for (int64_t d = 1; d < x.dim(); ++d) {
        args.event *= x.size(d);
      }
    }
    args.dtype = dtype_code(x.scalar_type());
    args.x = x_.const_data_ptr();
    args.widths = parameter_rows(widths, x);
    args.heights = parameter_rows(heights, x);
    args.slopes = parameter_rows(slopes, x);
    if (bound.has_value()) {
      bound_ = bound->to(sum_dtype(x));
      args.bound = {bound_.const_data_ptr(), row_map(bound_, x.sizes(), 0), 0};
    }
  }

 private:
  Tensor x_, bound_;
};

std::tuple<Tensor, Tensor> rational_quadratic_spline(
    const Tensor& x,
    const Tensor& widths,
    const Tensor& heights,
    const Tensor& derivatives,
    const OptionalTensor& bound,
    bool inverse,
    int64_t ends,
    bool tails,
    double left,
    double right,
    double bottom,
    double top,
    double min_bin_width,
    double min_bin_height,
    double min_derivative,
    int64_t parameterization,
    bool sum_log_det) {
  SplineLayout in(
      x,
      widths,
      heights,
      derivatives,
      bound,
      inverse,
      {ends,
       tails,
       left,
       right,
       bottom,
       top,
       min_bin_width,
       min_bin_height,
       min_derivative,
       parameterization},
      sum_log_det);
  Tensor y = empty_output(x.sizes(), x.scalar_type());
  Tensor log_det = empty_output(sum_log_det ? x.sizes().slice(0, 1) : x.sizes(), sum_dtype(x));
  if (x.numel() == 0) {
    return {y, log_det.zero_()};
  }
  in.args.y = y.mutable_data_ptr();
  in.args.log_det = log_det.mutable_data_ptr();
  kernels<SplineKernels>().spline(in.args);
  TORCH_CHECK_VALUE(
      !in.args.invalid,
      "x must lie in the spline's domain [",
      inverse ? bottom : left,
      ", ",
      inverse ? top : right,
      "] where there are no tails");
  return {y, log_det};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rational_quadratic_spline_backward(
    const OptionalTensor& grad_y,
    const OptionalTensor& grad_log_det,
    const Tensor& x,
    const Tensor& widths,
    const Tensor& heights,
    const Tensor& derivatives,
    const OptionalTensor& bound,
    bool inverse,
    int64_t ends,
    bool tails,
    double left,
    double right,
    double bottom,
    double top,
    double min_bin_width,
    double min_bin_height,
    double min_derivative,
    int64_t parameterization,
    bool sum_log_det,
    std::array<bool, 4> mask) {
  const SplineLayout in(
      x,
      widths,
      heights,
      derivatives,
      bound,
      inverse,
      {ends,
       tails,
       left,
       right,
       bottom,
       top,
       min_bin_width,
       min_bin_height,
       min_derivative,
       parameterization},
      sum_log_det);
  const auto sum = sum_dtype(x);
  const Tensor of_y = upstream(grad_y, sum);
  const Tensor of_log_det = upstream(grad_log_det, sum);
  const ElementGrad to_x(mask[0], x, x, false);
  const ElementGrad to_widths(mask[1], x, widths, true);
  const ElementGrad to_heights(mask[2], x, heights, true);
  const ElementGrad to_slopes(mask[3], x, derivatives, true);
  if (x.numel() > 0) {
    kernels<SplineKernels>().spline_grad(
        {in.args,
         data_of(of_y),
         data_of(of_log_det),
         to_x.data(),
         to_widths.data(),
         to_heights.data(),
         to_slopes.data()});
  }
  return {to_x.finish(), to_widths.finish(), to_heights.finish(), to_slopes.finish()};
}

// The operands of a mixture's CDF; holds what had to be converted.
struct CdfLayout {
  LogisticCdfArgs args{};
  Tensor x;

  CdfLayout(
      const Tensor& x_in,
      const Tensor& logits,
      const Tensor& means,
      const Tensor& log_scales,
      bool inverse)
      : x(x_in.contiguous()) {
    args.count = x.numel();
    args.components = logits.size(-1);
    args.dtype = dtype_code(x.scalar_type());
    args.inverse = inverse;
    args.x = x.const_data_ptr();
    args.logits = parameter_rows(logits, x);
    args.means = parameter_rows(means, x);
    args.log_scales = parameter_rows(log_scales, x);
  }
};

std::tuple<Tensor, Tensor> logistic_mixture_cdf(
    const Tensor& x,
    const Tensor& logits,
    const Tensor& means,
    const Tensor& log_scales,
    bool inverse) {
  CdfLayout in(x, logits, means, log_scales, inverse);
  Tensor y = empty_output(x.sizes(), x.scalar_type());
  Tensor log_det = empty_output(x.sizes(), sum_dtype(x));
  in.args.y = y.mutable_data_ptr();
  in.args.log_det = log_det.mutable_data_ptr();
  if (x.numel() > 0) {
    kernels<SplineKernels>().logistic_cdf(in.args);
    TORCH_CHECK_VALUE(!in.args.invalid, "x must hold values in [0, 1] for the inverse of a CDF");
  }
  return {y, log_det};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> logistic_mixture_cdf_backward(
    const OptionalTensor& grad_y,
    const OptionalTensor& grad_log_det,
    const Tensor& y,
    const Tensor& x,
    const Tensor& logits,
    const Tensor& means,
    const Tensor& log_scales,
    bool inverse,
    std::array<bool, 4> mask) {
  CdfLayout in(x, logits, means, log_scales, inverse);
  const auto sum = sum_dtype(x);
  const Tensor of_y = upstream(grad_y, sum);
  const Tensor of_log_det = upstream(grad_log_det, sum);
  Tensor result = y.contiguous();
  in.args.y = result.mutable_data_ptr();
  const ElementGrad to_x(mask[0], x, x, false);
  const ElementGrad to_logits(mask[1], x, logits, true);
  const ElementGrad to_means(mask[2], x, means, true);
  const ElementGrad to_log_scales(mask[3], x, log_scales, true);
  if (x.numel() > 0) {
    kernels<SplineKernels>().logistic_cdf_grad(
        {in.args,
         data_of(of_y),
         data_of(of_log_det),
         to_x.data(),
         to_logits.data(),
         to_means.data(),
         to_log_scales.data()});
  }
  return {to_x.finish(), to_logits.finish(), to_means.finish(), to_log_scales.finish()};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("rational_quadratic_spline", &dgm_fast::rational_quadratic_spline);
  m.impl("rational_quadratic_spline_backward", &dgm_fast::rational_quadratic_spline_backward);
  m.impl("logistic_mixture_cdf", &dgm_fast::logistic_mixture_cdf);
  m.impl("logistic_mixture_cdf_backward", &dgm_fast::logistic_mixture_cdf_backward);
}
