// CPU functions of the coupling family: layout and allocation around the kernels.

#include "cpu/coupling_table.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// How many trailing dimensions lie without gaps in each of these tensors of one shape.
int64_t contiguous_dims(at::ArrayRef<const Tensor*> tensors) {
  const Tensor& first = *tensors.front();
  int64_t dims = 0;
  int64_t expected = 1;
  for (int64_t d = first.dim() - 1; d >= 0; --d, ++dims) {
    const int64_t size = first.size(d);
    for (const Tensor* t : tensors) {
      if (size != 1 && t->stride(d) != expected) {
        return dims;
      }
    }
    expected *= size;
  }
  return dims;
}

// Operands of one shape as runs; holds what had to be converted.
class AffineLayout {
 public:
  AffineArgs args{};
  Operand grad_y{};

  AffineLayout(
      const Tensor& x,
      const Tensor& log_scale,
      const Tensor& shift,
      const OptionalTensor& mask,
      const OptionalTensor& grad,
      bool inverse,
      int64_t event_ndim,
      int64_t map,
      double clamp) {
    // Runs shorter than this are not worth their bookkeeping: a copy in one piece is.
    constexpr int64_t kShortest = 16;
    held_[0] = x;
    held_[1] = log_scale.expand(x.sizes());
    held_[2] = shift.expand(x.sizes());
    used_ = {&held_[0], &held_[1], &held_[2]};
    if (mask.has_value()) {
      held_[3] = mask->expand(x.sizes());
      used_.push_back(&held_[3]);
    }
    if (grad.has_value()) {
      held_[4] = grad->to(x.scalar_type());
      used_.push_back(&held_[4]);
    }
    int64_t dims = contiguous_dims(used_);
    args.inner = inner_size(x, dims);
    if (args.inner < kShortest && dims < x.dim()) {
      for (auto& t : held_) {
        t = t.defined() ? t.contiguous() : t;
      }
      dims = x.dim();
      args.inner = x.numel();
    }
    args.runs = args.inner == 0 ? 0 : x.numel() / args.inner;
    args.event = 1;
    for (int64_t d = x.dim() - event_ndim; d < x.dim(); ++d) {
      args.event *= x.size(d);
    }
    args.dtype = dtype_code(x.scalar_type());
    args.inverse = inverse;
    args.map = static_cast<ScaleMap>(map);
    args.clamp = clamp;
    const auto batch = x.sizes().slice(0, x.dim() - dims);
    const auto operand = [&](const Tensor& t) {
      Operand result;
      if (t.defined()) {
        result.data = t.const_data_ptr();
        result.dtype = dtype_code(t.scalar_type());
        result.rows = row_map(t, batch, dims);
      }
      return result;
    };
    args.x = operand(held_[0]);
    args.log_scale = operand(held_[1]);
    args.shift = operand(held_[2]);
    args.mask = operand(held_[3]);
    grad_y = operand(held_[4]);
  }

 private:
  static int64_t inner_size(const Tensor& x, int64_t dims) {
    int64_t size = 1;
    for (int64_t d = x.dim() - dims; d < x.dim(); ++d) {
      size *= x.size(d);
    }
    return size;
  }

  std::array<Tensor, 5> held_;
  c10::SmallVector<const Tensor*, 5> used_;
};

std::tuple<Tensor, Tensor> affine_coupling(
    const Tensor& x,
    const Tensor& log_scale,
    const Tensor& shift,
    const OptionalTensor& mask,
    bool inverse,
    int64_t event_ndim,
    int64_t map,
    double clamp) {
  Tensor y = empty_output(x.sizes(), x.scalar_type());
  Tensor log_det =
      at::empty(x.sizes().slice(0, x.dim() - event_ndim), x.options().dtype(sum_dtype(x)));
  if (x.numel() == 0) {
    return {y, log_det.zero_()};
  }
  const AffineLayout in(x, log_scale, shift, mask, std::nullopt, inverse, event_ndim, map, clamp);
  kernels<CouplingKernels>().affine(
      {in.args, y.mutable_data_ptr(), log_det.mutable_data_ptr()});
  return {y, log_det};
}

std::tuple<Tensor, Tensor, Tensor> affine_coupling_backward(
    const OptionalTensor& grad_y,
    const OptionalTensor& grad_log_det,
    const Tensor& x,
    const Tensor& log_scale,
    const Tensor& shift,
    const OptionalTensor& mask,
    bool inverse,
    int64_t event_ndim,
    int64_t map,
    double clamp,
    std::array<bool, 3> mask_of_grads) {
  const auto room = [&](bool wanted) {
    return wanted ? empty_output(x.sizes(), x.scalar_type()) : at::empty({0}, x.options());
  };
  std::array<Tensor, 3> grads;
  for (size_t i = 0; i < 3; ++i) {
    grads[i] = room(mask_of_grads[i]);
  }
  if (x.numel() > 0) {
    const AffineLayout in(x, log_scale, shift, mask, grad_y, inverse, event_ndim, map, clamp);
    const Tensor of_log_det =
        grad_log_det.has_value() ? grad_log_det->to(sum_dtype(x)).contiguous() : Tensor();
    const auto target = [&](size_t i) {
      return mask_of_grads[i] ? grads[i].mutable_data_ptr() : nullptr;
    };
    kernels<CouplingKernels>().affine_grad(
        {in.args,
         in.grad_y,
         of_log_det.defined() ? of_log_det.const_data_ptr() : nullptr,
         target(0),
         target(1),
         target(2)});
  }
  const auto finish = [&](size_t i, const Tensor& argument) {
    return mask_of_grads[i] ? at::sum_to(grads[i], argument.sizes()).contiguous() : grads[i];
  };
  return {grads[0], finish(1, log_scale), finish(2, shift)};
}

// x [samples, channels, inner]; holds what had to be converted.
struct ActnormLayout {
  ActnormArgs args{};
  Tensor x, log_scale, bias;

  ActnormLayout(const Tensor& x_in, const Tensor& log_scale_in, const Tensor& bias_in, bool inverse)
      : x(x_in.contiguous()),
        log_scale(log_scale_in.to(sum_dtype(x_in)).contiguous()),
        bias(bias_in.to(sum_dtype(x_in)).contiguous()) {
    args.samples = x.size(0);
    args.channels = x.size(1);
    args.inner = 1;
    for (int64_t d = 2; d < x.dim(); ++d) {
      args.inner *= x.size(d);
    }
    args.dtype = dtype_code(x.scalar_type());
    args.inverse = inverse;
    args.x = x.const_data_ptr();
    args.log_scale = log_scale.const_data_ptr();
    args.bias = bias.const_data_ptr();
  }
};

Tensor actnorm(const Tensor& x, const Tensor& log_scale, const Tensor& bias, bool inverse) {
  ActnormLayout in(x, log_scale, bias, inverse);
  Tensor y = empty_output(x.sizes(), x.scalar_type());
  in.args.y = y.mutable_data_ptr();
  if (x.numel() > 0) {
    kernels<CouplingKernels>().actnorm(in.args);
  }
  return y;
}

std::tuple<Tensor, Tensor, Tensor> actnorm_backward(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& log_scale,
    const Tensor& bias,
    bool inverse,
    std::array<bool, 3> mask) {
  const ActnormLayout in(x, log_scale, bias, inverse);
  const auto sum = sum_dtype(x);
  const Tensor of_y = grad.to(x.scalar_type()).contiguous();
  const bool sums = mask[1] || mask[2];
  const int64_t parts = num_chunks(in.args.samples, in.args.channels * in.args.inner);
  Tensor grad_x =
      mask[0] ? empty_output(x.sizes(), x.scalar_type()) : at::empty({0}, x.options());
  Tensor grad_scale = at::empty({sums ? parts : 0, in.args.channels}, x.options().dtype(sum));
  Tensor grad_shift = at::empty_like(grad_scale);
  if (x.numel() > 0) {
    kernels<CouplingKernels>().actnorm_grad(
        {in.args,
         parts,
         of_y.const_data_ptr(),
         mask[0] ? grad_x.mutable_data_ptr() : nullptr,
         sums ? grad_scale.mutable_data_ptr() : nullptr,
         sums ? grad_shift.mutable_data_ptr() : nullptr});
  } else {
    grad_scale.zero_();
    grad_shift.zero_();
  }
  const auto finish = [&](bool wanted, const Tensor& partial, const Tensor& argument) {
    if (!wanted) {
      return at::empty({0}, argument.options());
    }
    const Tensor total = partial.sum(0);
    return (inverse ? total.neg() : total).to(argument.scalar_type());
  };
  return {grad_x, finish(mask[1], grad_scale, log_scale), finish(mask[2], grad_shift, bias)};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("affine_coupling", &dgm_fast::affine_coupling);
  m.impl("affine_coupling_backward", &dgm_fast::affine_coupling_backward);
  m.impl("actnorm", &dgm_fast::actnorm);
  m.impl("actnorm_backward", &dgm_fast::actnorm_backward);
}
