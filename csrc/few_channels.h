// The gradient of a convolution's input where that has few channels, as an image has in front of a critic.
#pragma once

#include <ATen/core/Tensor.h>

namespace dgm_fast {

// Whether input_gradient_by_columns beats the library's kernel, which works on whole vectors of input channels.
bool has_few_channels(const at::Tensor& weight, int64_t groups);

// A product with the weight for every place of the output, and its entries added up where they belong: d loss / d x,
// of the spatial `extent` [H, W], from `signal` [B, out, h, w]. Contiguous.
at::Tensor input_gradient_by_columns(
    const at::Tensor& signal,
    const at::Tensor& weight,
    at::IntArrayRef extent,
    at::IntArrayRef stride,
    at::IntArrayRef padding,
    at::IntArrayRef dilation);

} // namespace dgm_fast
