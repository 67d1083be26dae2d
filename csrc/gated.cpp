// CPU functions of the gated activation: layout and allocation around the kernels.

#include "cpu/pixel_table.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Room for `sizes`, with dimension `dim` innermost in memory or not.
Tensor empty_rows(std::vector<int64_t> sizes, int64_t dim, bool innermost, at::ScalarType dtype) {
  if (!innermost) {
    return empty_output(sizes, dtype);
  }
  const int64_t channels = sizes[dim];
  sizes.erase(sizes.begin() + dim);
  sizes.push_back(channels);
  return empty_output(sizes, dtype).movedim(-1, dim);
}

// x and what is added to it, as the kernels take them.
struct GatedLayout {
  Tensor x, bias, condition; // keep the memory of converted arguments
  Rows condition_rows;
  int64_t dim;
  // Channels innermost in memory, which results keep.
  bool innermost;
  GatedArgs args{};

  GatedLayout(
      const Tensor& x_in,
      const OptionalTensor& bias_in,
      const OptionalTensor& condition_in,
      int64_t dim_in)
      : dim(dim_in) {
    innermost = !x_in.is_contiguous() && x_in.movedim(dim, -1).is_contiguous();
    x = innermost ? x_in : x_in.contiguous();
    const auto shape = x.sizes();
    args.outer = c10::multiply_integers(shape.slice(0, dim));
    args.channels = shape[dim] / 2;
    args.inner = c10::multiply_integers(shape.slice(dim + 1));
    // Planes of one entry are rows.
    args.channels_innermost = innermost || args.inner == 1;
    args.dtype = dtype_code(x.scalar_type());
    args.x = x.const_data_ptr();
    if (bias_in.has_value()) {
      bias = bias_in->to(sum_dtype(x)).contiguous();
      args.bias = bias.const_data_ptr();
    }
    if (condition_in.has_value()) {
      set_condition(*condition_in);
    }
  }

  std::vector<int64_t> half_sizes() const {
    auto sizes = x.sizes().vec();
    sizes[dim] /= 2;
    return sizes;
  }

 private:
  void set_condition(const Tensor& condition_in) {
    const auto shape = x.sizes();
    const auto own = condition_in.sizes();
    args.condition_per_position = c10::multiply_integers(own.slice(dim + 1)) > 1;
    const auto batch = shape.slice(0, dim);
    std::vector<int64_t> event{shape[dim]};
    condition = condition_in;
    if (!args.condition_per_position) {
      condition = condition.flatten(dim);
      condition_rows = make_rows(condition, batch, event);
    } else if (args.channels_innermost) {
      // One row of channels a pixel.
      condition = condition.movedim(dim, -1);
      std::vector<int64_t> pixels(batch.begin(), batch.end());
      pixels.insert(pixels.end(), shape.begin() + dim + 1, shape.end());
      condition_rows = make_rows(condition, pixels, event);
    } else {
      event.insert(event.end(), shape.begin() + dim + 1, shape.end());
      condition_rows = make_rows(condition, batch, event);
    }
    args.condition = condition_rows.operand;
  }
};

Tensor gated_activation(
    const Tensor& x, const OptionalTensor& bias, const OptionalTensor& condition, int64_t dim) {
  GatedLayout in(x, bias, condition, dim);
  Tensor out = empty_rows(in.half_sizes(), dim, in.innermost, x.scalar_type());
  in.args.out = out.mutable_data_ptr();
  in.args.stream = worth_streaming(out);
  kernels<PixelKernels>().gated(in.args);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gated_activation_backward(
    const Tensor& grad,
    const Tensor& x,
    const OptionalTensor& bias,
    const OptionalTensor& condition,
    int64_t dim,
    std::array<bool, 3> wanted) {
  GatedLayout in(x, bias, condition, dim);
  const auto dtype = x.scalar_type();
  const Tensor none = at::empty({0}, x.options());
  const bool with_bias = wanted[1] && bias.has_value();
  const bool with_condition = wanted[2] && condition.has_value();
  // The gradient of a condition with a value for every position is that of x, or its sum over samples.
  const bool by_position = with_condition && in.args.condition_per_position;
  const bool with_sums = with_bias || (with_condition && !by_position);

  const Tensor grad_out = in.innermost ? grad.movedim(dim, -1).contiguous() : grad.contiguous();
  GatedGradArgs args{in.args, 1, grad_out.const_data_ptr(), nullptr, nullptr};
  Tensor grad_x, sums;
  if (wanted[0] || by_position) {
    grad_x = empty_rows(x.sizes().vec(), dim, in.innermost, dtype);
    args.grad_x = grad_x.mutable_data_ptr();
    args.in.stream = worth_streaming(grad_x);
  }
  if (with_sums) {
    // Planes are summed one by one; rows of a sample in parts that depend on their number alone.
    constexpr int64_t kPixels = 256;
    if (in.args.channels_innermost) {
      args.parts = std::clamp<int64_t>(in.args.inner / kPixels, 1, 16);
    }
    sums = at::empty(
        {in.args.outer, args.parts, 2 * in.args.channels}, x.options().dtype(sum_dtype(x)));
    args.sums = sums.mutable_data_ptr();
  }
  kernels<PixelKernels>().gated_grad(args);

  Tensor grad_bias = none, grad_condition = none;
  if (with_bias) {
    grad_bias = sums.sum({0, 1}).to(dtype);
  }
  if (by_position) {
    const bool whole = condition->sizes() == x.sizes();
    grad_condition = whole && !wanted[0] ? grad_x
        : whole                          ? grad_x.clone()
                                         : at::sum_to(grad_x, condition->sizes()).contiguous();
  } else if (with_condition) {
    // [batch, 2 channels], then the batch dimensions of size 1.
    auto shape = x.sizes().slice(0, dim + 1).vec();
    Tensor by_sample = sums.sum(1).reshape(shape);
    const auto own = condition->sizes();
    by_sample = at::sum_to(by_sample, own.slice(0, dim + 1));
    grad_condition = by_sample.to(dtype).reshape(own).contiguous();
  }
  return {wanted[0] ? grad_x : none, grad_bias, grad_condition};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("gated_activation", &dgm_fast::gated_activation);
  m.impl("gated_activation_backward", &dgm_fast::gated_activation_backward);
}
