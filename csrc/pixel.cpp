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

// With few channels the library's kernels waste less of their vectors.
bool direct_shifted(const Tensor& x, const Tensor& weight) {
  constexpr int64_t kFewest = 16;
  return direct(x) && std::min(weight.size(0), weight.size(1)) >= kFewest;
}

bool no_output(const Tensor& x, const Tensor& weight) {
  return x.size(0) * x.size(2) * x.size(3) * weight.size(0) == 0;
}

// The arguments of the kernels, but for what says which taps are live.
struct ConvLayout {
  Tensor weight, bias; // keep the memory of converted arguments
  MaskedConvArgs args{};

  ConvLayout(const Tensor& x, const Tensor& weight_in, const OptionalTensor& bias_in)
      : weight(weight_in.contiguous()) {
    args.batch = x.size(0);
    args.height = x.size(2);
    args.width = x.size(3);
    args.in_channels = weight.size(1);
    args.out_channels = weight.size(0);
    args.kernel_rows = weight.size(2);
    args.kernel_columns = weight.size(3);
    args.dtype = dtype_code(x.scalar_type());
    args.x = view(x);
    args.weight = weight.const_data_ptr();
    if (bias_in.has_value()) {
      bias = bias_in->contiguous();
      args.bias = bias.const_data_ptr();
    }
  }

  ConvLayout& masked(const PixelMask& mask, int64_t dilation) {
    args.dilation = dilation;
    args.first_row = -dilation * (args.kernel_rows / 2);
    args.first_column = -dilation * (args.kernel_columns / 2);
    args.masked = true;
    args.mask = mask;
    return *this;
  }

  ConvLayout& shifted(int64_t first_row, int64_t first_column) {
    args.dilation = 1;
    args.first_row = first_row;
    args.first_column = first_column;
    return *this;
  }
};

Tensor run_forward(const Tensor& x, ConvLayout in) {
  Tensor out = empty_image(x, in.args.out_channels);
  in.args.out = view(out);
  kernels<PixelKernels>().masked_conv(in.args);
  return out;
}

Tensor masked_conv2d(
    const Tensor& x,
    const Tensor& weight,
    const OptionalTensor& bias,
    int64_t mask_type,
    int64_t data_channels,
    int64_t channel_order,
    int64_t dilation) {
  const auto mask = make_mask(mask_type, data_channels, channel_order);
  if (no_output(x, weight)) {
    return empty_image(x, weight.size(0));
  }
  if (!direct(x)) {
    return library_conv(x, weight, bias, mask, dilation).contiguous(x.suggest_memory_format());
  }
  return run_forward(x, ConvLayout(x, weight, bias).masked(mask, dilation));
}

// Shares of the batch whose sums are kept apart; their number depends on the sizes alone.
int64_t num_parts(int64_t numbers) {
  constexpr int64_t kNumbers = 1 << 20;
  return std::clamp<int64_t>(kNumbers / std::max<int64_t>(1, numbers), 2, 16);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// What the library gave, in x's memory format.
Gradients ordered(Gradients gradients, const Tensor& x, std::array<bool, 3> wanted) {
  const Tensor none = at::empty({0}, x.options());
  auto& [grad_x, grad_weight, grad_bias] = gradients;
  return {
      wanted[0] ? grad_x.contiguous(x.suggest_memory_format()) : none,
      wanted[1] ? grad_weight : none,
      wanted[2] ? grad_bias : none};
}

Gradients run_backward(
    const Tensor& grad, const Tensor& x, const OptionalTensor& bias, const ConvLayout& in, std::array<bool, 3> wanted) {
  const Tensor none = at::empty({0}, x.options());
  MaskedConvGradArgs args{in.args, view(grad)};
  Tensor grad_x = none, grad_weight = none, grad_bias = none, sums;
  if (wanted[0]) {
    grad_x = empty_image(x, x.size(1));
    args.grad_x = view(grad_x);
  }
  if (wanted[1]) {
    grad_weight = at::empty(in.weight.sizes(), in.weight.options());
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

// The gradients of a convolution without outputs.
Gradients zero_gradients(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, std::array<bool, 3> wanted) {
  const Tensor none = at::empty({0}, x.options());
  return {
      wanted[0] ? empty_image(x, x.size(1)).zero_() : none,
      wanted[1] ? at::zeros(weight.sizes(), weight.options()) : none,
      wanted[2] ? at::zeros(bias->sizes(), bias->options()) : none};
}

Gradients masked_conv2d_backward(
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
  if (grad.numel() == 0) {
    return zero_gradients(x, weight, bias, wanted);
  }
  if (direct(x)) {
    return run_backward(
        grad, x, bias, ConvLayout(x, weight, std::nullopt).masked(mask, dilation), wanted);
  }
  // A gradient of stride 0 sends the library down a path many times slower.
  const auto format = x.suggest_memory_format();
  return ordered(
      library_conv_backward(grad.contiguous(format), x, weight, mask, dilation, wanted), x, wanted);
}

Tensor shifted_conv2d(
    const Tensor& x,
    const Tensor& weight,
    const OptionalTensor& bias,
    int64_t first_row,
    int64_t first_column) {
  if (no_output(x, weight)) {
    return empty_image(x, weight.size(0));
  }
  if (!direct_shifted(x, weight)) {
    return library_shifted_conv(x, weight, bias, first_row, first_column)
        .contiguous(x.suggest_memory_format());
  }
  return run_forward(x, ConvLayout(x, weight, bias).shifted(first_row, first_column));
}

Gradients shifted_conv2d_backward(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& weight,
    const OptionalTensor& bias,
    int64_t first_row,
    int64_t first_column,
    std::array<bool, 3> wanted) {
  if (grad.numel() == 0) {
    return zero_gradients(x, weight, bias, wanted);
  }
  if (direct_shifted(x, weight)) {
    return run_backward(
        grad, x, bias, ConvLayout(x, weight, std::nullopt).shifted(first_row, first_column), wanted);
  }
  const auto format = x.suggest_memory_format();
  return ordered(
      library_shifted_conv_backward(
          grad.contiguous(format), x, weight, first_row, first_column, wanted),
      x,
      wanted);
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("masked_conv2d", &dgm_fast::masked_conv2d);
  m.impl("masked_conv2d_backward", &dgm_fast::masked_conv2d_backward);
  m.impl("shifted_conv2d", &dgm_fast::shifted_conv2d);
  m.impl("shifted_conv2d_backward", &dgm_fast::shifted_conv2d_backward);
}
