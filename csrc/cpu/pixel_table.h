// Kernels of the pixel family.
#pragma once

#include "operand.h"
#include "pixel_mask.h"

namespace dgm_fast {

// x = (a, b) along its channels, as planes [outer, 2 channels, inner] or, with channels innermost, as rows
// [outer, inner, 2 channels].
struct GatedArgs {
  int64_t outer, channels, inner;
  bool channels_innermost;
  Dtype dtype;
  const void* x;
  const void* bias; // [2 channels] in the sum's dtype, or null
  // [2 channels] a sample, or [2 channels, inner] (rows: [2 channels] a pixel), in x's dtype; or none.
  Operand condition;
  bool condition_per_position;
  void* out; // like x with half the channels
  bool stream;
};

struct GatedGradArgs {
  GatedArgs in;
  int64_t parts; // of `inner`, for the sums of rows
  const void* grad; // like in.out
  void* grad_x; // or null
  void* sums; // of grad_x over each part of inner, [outer, parts, 2 channels] in the sum's dtype; or null
};

// An image [batch, channels, height, width] in any memory format; strides in elements, 0 where repeated.
struct ImageView {
  void* data;
  int64_t batch_stride, channel_stride, row_stride, column_stride;
};

// Convolution of stride 1 that keeps the image's size, masked or with all taps of a rectangle; float or double.
struct MaskedConvArgs {
  int64_t batch, height, width, in_channels, out_channels;
  int64_t kernel_rows, kernel_columns, dilation;
  int64_t first_row, first_column; // of the first tap from the output pixel
  bool masked;
  PixelMask mask; // where masked; the centre of the kernel is then the output pixel
  Dtype dtype;
  ImageView x; // only read
  const void* weight; // [out, in, kernel_rows, kernel_columns]
  const void* bias; // [out], or null
  ImageView out; // columns or channels one after the other
};

struct MaskedConvGradArgs {
  MaskedConvArgs in;
  ImageView grad; // of in.out; only read
  ImageView grad_x; // data null where not wanted
  // Room for partial sums over `parts` shares of the batch's rows, each of masked_conv_sums() numbers; null where
  // neither weight's nor bias's gradient is wanted.
  int64_t parts;
  void* sums;
  void* grad_weight; // like weight, or null
  void* grad_bias; // or null
};

struct PixelKernels {
  // Null at levels whose vectors do not beat the library.
  void (*masked_conv)(const MaskedConvArgs&);
  void (*masked_conv_grad)(const MaskedConvGradArgs&);
  int64_t (*masked_conv_sums)(const MaskedConvArgs&);
  void (*gated)(const GatedArgs&);
  void (*gated_grad)(const GatedGradArgs&);
};

// One function a file.
void fill_gated(PixelKernels& kernels);
void fill_masked_conv(PixelKernels& kernels);
#if defined(DGM_FAST_AMX)
void fill_amx(PixelKernels& kernels);
#endif

inline void fill(PixelKernels& kernels) {
  fill_gated(kernels);
  fill_masked_conv(kernels);
}

} // namespace dgm_fast
