// CPU functions of masked convolutions: layout and allocation around the kernels, or the library's convolution.

#include "cpu/pixel_table.h"
#include "kernels.h"
#include "layout.h"
#include "pixel_library.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

PixelMask make_mask(int64_t mask_type, int64_t data_channels, int64_t channel_order) {
  return {mask_type == 1, data_channels, static_cast<ChannelOrder>(channel_order)};
}

ImageView view(const Tensor& image) {
  return {
      const_cast<void*>(image.const_data_ptr()),
      image.stride(0),
      image.stride(1),
      image.stride(2),
      image.stride(3)};
}

Tensor empty_image(const Tensor& like, int64_t channels) {
  const auto n = like.size(0), h = like.size(2), w = like.size(3);
  if (like.suggest_memory_format() == at::MemoryFormat::ChannelsLast) {
    return empty_output({n, h, w, channels}, like.scalar_type()).permute({0, 3, 1, 2});
  }
  return empty_output({n, channels, h, w}, like.scalar_type());
}

// Whether the kernels here are used; the library multiplies reduced precision in hardware.
bool direct(const Tensor& x) {
  return kernels<PixelKernels>().masked_conv != nullptr &&
      (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble);
}

struct ConvLayout {
  Tensor weight, bias; // keep the memory of converted arguments
  MaskedConvArgs args{};

  ConvLayout(
      const Tensor& x,
      const Tensor& weight_in,
      const OptionalTensor& bias_in,
      const PixelMask& mask,
      int64_t dilation)
      : weight(weight_in.contiguous()) {
    args.batch = x.size(0);
    args.height = x.size(2);
    args.width = x.size(3);
    args.in_channels = weight.size(1);
    args.out_channels = weight.size(0);
    args.kernel_rows = weight.size(2);
    args.kernel_columns = weight.size(3);
    args.dilation = dilation;
    args.mask = mask;
    args.dtype = dtype_code(x.scalar_type());
    args.x = view(x);
    args.weight = weight.const_data_ptr();
    if (bias_in.has_value()) {
      bias = bias_in->contiguous();
      args.bias = bias.const_data_ptr();
    }
  }
};

Tensor masked_conv2d(
    const Tensor& x,
    const Tensor& weight,
    const OptionalTensor& bias,
    int64_t mask_type,
    int64_t data_channels,
    int64_t channel_order,
    int64_t dilation) {
  const auto mask = make_mask(mask_type, data_channels, channel_order);
  Tensor out = empty_image(x, weight.size(0));
  if (out.numel() == 0) {
    return out;
  }
  if (!direct(x)) {
    return library_conv(x, weight, bias, mask, dilation).contiguous(x.suggest_memory_format());
  }
  ConvLayout in(x, weight, bias, mask, dilation);
  in.args.out = view(out);
  kernels<PixelKernels>().masked_conv(in.args);
  return out;
}

// Shares of the batch whose sums are kept apart; their number depends on the sizes alone.
int64_t num_parts(int64_t numbers) {
  constexpr int64_t kNumbers = 1 << 20;
  return std::clamp<int64_t>(kNumbers / std::max<int64_t>(1, numbers), 2, 16);
}

std::tuple<Tensor, Tensor, Tensor> masked_conv2d_backward(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& weight,
    const OptionalTensor& bias,
    int64_t mask_type,
    int64_t data_channels,
    int64_t channel_order,
    int64_t dilation,
    std::array<bool, 3> wanted) {
  const auto mask = make_mask(mask_type, data_channels, channel_order);
  const auto format = x.suggest_memory_format();
  const Tensor none = at::empty({0}, x.options());
  if (grad.numel() == 0) {
    return {
        wanted[0] ? empty_image(x, x.size(1)).zero_() : none,
        wanted[1] ? at::zeros(weight.sizes(), weight.options()) : none,
        wanted[2] ? at::zeros(bias->sizes(), bias->options()) : none};
  }
  if (!direct(x)) {
    // A gradient of stride 0 sends the library down a path many times slower.
    auto [grad_x, grad_weight, grad_bias] =
        library_conv_backward(grad.contiguous(format), x, weight, mask, dilation, wanted);
    return {
        wanted[0] ? grad_x.contiguous(format) : none,
        wanted[1] ? grad_weight : none,
        wanted[2] ? grad_bias : none};
  }
  ConvLayout in(x, weight, std::nullopt, mask, dilation);
  MaskedConvGradArgs args{in.args, view(grad)};
  Tensor grad_x = none, grad_weight = none, grad_bias = none, sums;
  if (wanted[0]) {
    grad_x = empty_image(x, x.size(1));
    args.grad_x = view(grad_x);
  }
  if (wanted[1]) {
    grad_weight = at::empty(weight.sizes(), weight.options());
    args.grad_weight = grad_weight.mutable_data_ptr();
  }
  if (wanted[2]) {
    grad_bias = at::empty(bias->sizes(), bias->options());
    args.grad_bias = grad_bias.mutable_data_ptr();
  }
  if (wanted[1] || wanted[2]) {
    const int64_t numbers = kernels<PixelKernels>().masked_conv_sums(in.args);
    args.parts = num_parts(numbers);
    sums = empty_output({args.parts, numbers}, x.scalar_type());
    args.sums = sums.mutable_data_ptr();
  }
  kernels<PixelKernels>().masked_conv_grad(args);
  return {grad_x, grad_weight, grad_bias};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("masked_conv2d", &dgm_fast::masked_conv2d);
  m.impl("masked_conv2d_backward", &dgm_fast::masked_conv2d_backward);
}
