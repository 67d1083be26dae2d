// What a kernel library offers for the inversion of masked autoregressive networks.
#pragma once

#include "operand.h"
#include "scale_map.h"
#include "spline_table.h"

namespace dgm_fast {

enum class Activation : int32_t {
  Identity,
  Relu,
  LeakyRelu,
  Elu,
  Tanh,
  Sigmoid,
  Silu,
  Softplus,
  Gelu
};

// Maps z_d, parameters -> x_d of one dimension.
enum class ElementMap : int32_t {
  Bernoulli,
  Categorical,
  Affine,
  GaussianMixture,
  LogisticMixture,
  Adjoint, // x_d = (z_0 - parameter) z_1, and the network's inputs are x_d times the rest of z
  Spline // parameters: widths, heights, slopes
};

struct ElementMapOptions {
  ElementMap map;
  bool inverse; // Affine: x = (z - shift) / scale; Spline: from the image to the domain
  ScaleMap scale; // of Affine
  double clamp; // of its bounded scale maps
  bool with_logits; // mixtures: weights are parameters too
  SplineShape spline;
  double logit_scale; // Spline: factor of the parameters of widths and heights

  // Whether it has a log-derivative.
  bool bijective() const {
    return map == ElementMap::Affine || map == ElementMap::Spline;
  }
};

// A layer of the network, its units in the order of their degrees.
struct MaskedLayer {
  int64_t units, inputs;
  const void* weight; // [units, inputs]
  const void* bias; // [units], or [rows, units]
  int64_t bias_stride; // from row to row: 0 or units
  // Hidden layers: how many units have a degree of at most i, for i = 0 .. size - 1.
  const int64_t* ready;
  const void* gates; // factors in place of an activation, [rows, units], or null
};

// The dimensions of x one after the other, in the order of the network: x_d = map(z_d; parameters(x before d)). Float
// or double, contiguous. The network is in the order of the steps, the data as the dimensions are numbered.
struct AutoregressiveInverseArgs {
  int64_t rows, size;
  int64_t features; // inputs of a dimension: its classes as one-hot vectors, those of Adjoint, or 1
  int64_t outputs; // parameters of a dimension
  int64_t noises; // entries of z of a dimension
  Dtype dtype;
  int64_t hidden_layers;
  const MaskedLayer* layers; // the hidden ones and the output layer
  const int64_t* order; // dimension at each step, or null: as they are numbered
  Activation activation;
  double activation_parameter; // slope of LeakyRelu, alpha of Elu
  ElementMapOptions map;
  const void* z; // [rows, size, noises]
  const void* values; // [rows, size]; null without given entries
  const bool* given; // [rows, size]
  void* x; // [rows, size]; class indices as numbers
  void* log_abs_det; // [rows], or null
};

struct AutoregressiveKernels {
  void (*inverse)(const AutoregressiveInverseArgs&);
};

void fill(AutoregressiveKernels&);

} // namespace dgm_fast
