// Masked and shifted convolutions by the library's convolution.

#include "pixel_library.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace dgm_fast {
namespace {

using at::Tensor;

// `to` [out, in, rows, columns] = from's live entries, and zero elsewhere; `from` may be larger or smaller in its
// last two dimensions, which start with the same taps.
void copy_live(const Tensor& to, const Tensor& from, const LiveTaps& live, const PixelMask& mask) {
  const int64_t out_channels = to.size(0), in_channels = to.size(1);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, to.scalar_type(), "copy_live", [&] {
    auto target = to.accessor<scalar_t, 4>();
    const auto source = from.accessor<const scalar_t, 4>();
    for (int64_t o = 0; o < out_channels; ++o) {
      for (int64_t c = 0; c < in_channels; ++c) {
        for (int64_t r = 0; r < to.size(2); ++r) {
          for (int64_t s = 0; s < to.size(3); ++s) {
            const int64_t tap = r * live.kernel_columns + s;
            const bool on = tap < live.centre ||
                (tap == live.centre && mask.centre(o, out_channels, c, in_channels));
            target[o][c][r][s] = on ? source[o][c][r][s] : scalar_t(0);
          }
        }
      }
    }
  });
}

} // namespace

LiveTaps::LiveTaps(const Tensor& weight, int64_t dilation_in)
    : dilation(dilation_in),
      kernel_columns(weight.size(3)),
      centre(weight.size(2) * weight.size(3) / 2),
      rows(weight.size(2) / 2 + 1),
      columns(rows == 1 ? weight.size(3) / 2 + 1 : weight.size(3)),
      top(dilation_in * (weight.size(2) / 2)),
      left(dilation_in * (weight.size(3) / 2)) {}

namespace {

// x with the zeros that a convolution's symmetric padding cannot give: above, or for kernels of one row at the left.
Tensor padded(const Tensor& x, const LiveTaps& live) {
  if (live.rows > 1) {
    return at::constant_pad_nd(x, {0, 0, live.top, 0});
  }
  return live.left > 0 ? at::constant_pad_nd(x, {live.left, 0}) : x;
}

std::array<int64_t, 2> padding(const LiveTaps& live) {
  return {0, live.rows > 1 ? live.left : 0};
}

Tensor live_weight(const Tensor& weight, const LiveTaps& live, const PixelMask& mask) {
  Tensor result = at::empty({weight.size(0), weight.size(1), live.rows, live.columns}, weight.options());
  copy_live(result, weight, live, mask);
  return result;
}

} // namespace

Tensor library_conv(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    const PixelMask& mask,
    int64_t dilation) {
  const LiveTaps live(weight, dilation);
  return at::convolution(
      padded(x, live),
      live_weight(weight, live, mask),
      bias,
      {1, 1},
      padding(live),
      {dilation, dilation},
      false,
      {0, 0},
      1);
}

std::tuple<Tensor, Tensor, Tensor> library_conv_backward(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& weight,
    const PixelMask& mask,
    int64_t dilation,
    std::array<bool, 3> wanted) {
  const LiveTaps live(weight, dilation);
  auto [grad_x, grad_weight, grad_bias] = at::convolution_backward(
      grad,
      padded(x, live),
      live_weight(weight, live, mask),
      {weight.size(0)},
      {1, 1},
      padding(live),
      {dilation, dilation},
      false,
      {0, 0},
      1,
      wanted);
  if (wanted[0]) {
    grad_x = live.rows > 1 ? grad_x.narrow(2, live.top, x.size(2))
                           : grad_x.narrow(3, live.left, x.size(3));
  }
  if (wanted[1]) {
    Tensor whole = at::zeros(weight.sizes(), weight.options());
    copy_live(whole.narrow(2, 0, live.rows).narrow(3, 0, live.columns), grad_weight, live, mask);
    grad_weight = whole;
  }
  return {grad_x, grad_weight, grad_bias};
}

namespace {

// Zeros left, right, above and below the image for the taps that reach beyond it; less than none are cut off.
std::array<int64_t, 4> shifted_padding(const Tensor& weight, int64_t first_row, int64_t first_column) {
  return {
      -first_column,
      first_column + weight.size(3) - 1,
      -first_row,
      first_row + weight.size(2) - 1};
}

} // namespace

Tensor library_shifted_conv(
    const Tensor& x,
    const Tensor& weight,
    const std::optional<Tensor>& bias,
    int64_t first_row,
    int64_t first_column) {
  const auto padding = shifted_padding(weight, first_row, first_column);
  return at::convolution(
      at::constant_pad_nd(x, padding), weight, bias, {1, 1}, {0, 0}, {1, 1}, false, {0, 0}, 1);
}

std::tuple<Tensor, Tensor, Tensor> library_shifted_conv_backward(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& weight,
    int64_t first_row,
    int64_t first_column,
    std::array<bool, 3> wanted) {
  auto padding = shifted_padding(weight, first_row, first_column);
  auto [grad_x, grad_weight, grad_bias] = at::convolution_backward(
      grad,
      at::constant_pad_nd(x, padding),
      weight,
      {weight.size(0)},
      {1, 1},
      {0, 0},
      {1, 1},
      false,
      {0, 0},
      1,
      wanted);
  if (wanted[0]) {
    for (auto& n : padding) {
      n = -n;
    }
    grad_x = at::constant_pad_nd(grad_x, padding);
  }
  return {grad_x, grad_weight, grad_bias};
}

} // namespace dgm_fast
