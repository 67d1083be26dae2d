// What a kernel library offers for cached sampling of causal pixel networks.
#pragma once

#include "operand.h"

namespace dgm_fast {

// In the order of the Python names (reference/pixel_network.py).
enum class PixelKind : int32_t {
  Convolution,
  Identity,
  Relu,
  Elu,
  Tanh,
  Sigmoid,
  ConcatElu,
  TanhGate,
  LinearGate,
  Add,
  Concatenate,
  Lstm
};

enum class PixelMoment : int32_t { Pixel, Row, ReversedRow };

enum class PixelDrawKind : int32_t { Bernoulli, Categorical, LogisticMixture };

// A map [batch, channels, ceil(height / stride), ceil(width / stride)].
struct PixelBuffer {
  int64_t channels, stride;
  // The colour of every channel, -1 for what is known before all; null: colour 0.
  const int64_t* groups;
};

struct PixelTap {
  int64_t row, column;
};

// One layer. Where it reads at a tap depends on the strides of its buffers: see PixelLayer in Python.
struct PixelLayer {
  PixelKind kind;
  PixelMoment moment;
  int64_t num_inputs;
  const int64_t* inputs; // buffers
  int64_t output; // buffer
  int64_t num_taps;
  const PixelTap* taps;
  const void* weight; // [out, in, taps]
  const void* bias; // [out], or [batch, out], or null
  int64_t bias_stride; // from image to image: 0 or out
};

struct PixelDraw {
  PixelDrawKind kind;
  int64_t colors, levels; // levels 0: a mixture's colours stay unrounded
  int64_t num_mixtures;
  bool one_hot;
  double scale, shift;
  int64_t ones;

  // Draws of a pixel, one after the other.
  int64_t steps() const {
    return kind == PixelDrawKind::LogisticMixture ? 1 : colors;
  }
  int64_t noises() const {
    return colors + (kind == PixelDrawKind::LogisticMixture ? 1 : 0);
  }
};

// Images drawn pixel by pixel. Float or double, contiguous.
struct PixelSampleArgs {
  int64_t batch, height, width;
  Dtype dtype;
  int64_t num_buffers, num_layers;
  const PixelBuffer* buffers; // the first one is the image
  const PixelLayer* layers;
  int64_t output; // buffer of the parameters
  PixelDraw draw;
  const void* noise; // [batch, noises, height, width]
  const void* values; // [batch, colors, height, width]; null without given pixels
  const bool* given; // like values
  void* x; // like values; levels as numbers
  // Called from the calling thread with the rows done of `height`; false ends the call early.
  bool (*row_done)(int64_t rows);
};

struct PixelSamplingKernels {
  void (*sample)(const PixelSampleArgs&);
};

void fill(PixelSamplingKernels& kernels);

} // namespace dgm_fast
