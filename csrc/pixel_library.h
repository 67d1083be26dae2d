// Masked and shifted convolutions by the library's convolution, on the live rows of a masked kernel.
#pragma once

#include "cpu/pixel_mask.h"

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace dgm_fast {

// The live part of a kernel [out, in, kernel_rows, kernel_columns]: its first rows, or if it has only one, its first
// columns; of the last live row the taps up to `centre`, counted in raster order.
struct LiveTaps {
  int64_t dilation, kernel_columns, centre;
  int64_t rows, columns; // cropped
  int64_t top, left; // zeros above and left of (also right of) the image

  LiveTaps(const at::Tensor& weight, int64_t dilation);
};

// x [B, in, H, W] -> [B, out, H, W], in the memory format that the library chooses.
at::Tensor library_conv(
    const at::Tensor& x,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    const PixelMask& mask,
    int64_t dilation);

// Gradients of x, weight and bias, undefined where not wanted.
std::tuple<at::Tensor, at::Tensor, at::Tensor> library_conv_backward(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    const PixelMask& mask,
    int64_t dilation,
    std::array<bool, 3> wanted);

// The same with all taps live, the first of them at an offset from the output pixel.
at::Tensor library_shifted_conv(
    const at::Tensor& x,
    const at::Tensor& weight,
    const std::optional<at::Tensor>& bias,
    int64_t first_row,
    int64_t first_column);

std::tuple<at::Tensor, at::Tensor, at::Tensor> library_shifted_conv_backward(
    const at::Tensor& grad,
    const at::Tensor& x,
    const at::Tensor& weight,
    int64_t first_row,
    int64_t first_column,
    std::array<bool, 3> wanted);

} // namespace dgm_fast
