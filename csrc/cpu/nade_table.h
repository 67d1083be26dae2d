// What a kernel library offers for NADE.
#pragma once

#include "operand.h"

namespace dgm_fast {

// NADE of binary data: x [rows, size] in [0, 1], weight [hidden, size], bias [hidden], output [size, hidden],
// output_bias [size]: contiguous, float or double.
struct NadeArgs {
  int64_t rows, size, hidden;
  Dtype dtype;
  const void *x, *weight, *bias, *output, *output_bias;
  void* out; // [rows]
  void* logits; // [rows, size]
  bool invalid; // set when x has a value outside [0, 1]; its rows are not written
};

// The sums over rows are split into `parts`; gradients [parts, shape of the parameter], except output_bias.
struct NadeGradArgs {
  NadeArgs in; // logits: the result of the forward
  int64_t parts;
  const void* grad; // [rows]
  void *grad_weight, *grad_bias, *grad_output, *grad_output_bias;
};

// NADE with several outputs a dimension: the hidden units' recurrence and the linear layers on them. Contiguous, in
// `dtype` (float or double) but for class indices.
struct NadeOutputsArgs {
  static constexpr int kMaxLayers = 3;
  int64_t rows, size, hidden;
  int64_t classes; // of one-hot inputs; 0 for real ones
  Dtype dtype;
  const void* x; // [rows, size], int32 where there are classes
  const void* weight; // [hidden, size, (classes)]
  const void* bias; // [hidden]
  const void* scale; // of the pre-activations, [size], or null
  int layers;
  int64_t layer_outputs[kMaxLayers];
  const void* layer_weight[kMaxLayers]; // [size, layer_outputs, hidden]
  const void* layer_bias[kMaxLayers]; // [size, layer_outputs]
  void* outputs; // [rows, size, sum of layer_outputs]

  int64_t num_outputs() const {
    int64_t sum = 0;
    for (int i = 0; i < layers; ++i) {
      sum += layer_outputs[i];
    }
    return sum;
  }
};

// Sums over rows are split into `parts`, sums over hidden units (of grad_x and grad_scale) into at most `shares`. These
// two are added to, and null where not wanted.
struct NadeOutputsGradArgs {
  NadeOutputsArgs in; // outputs is not read
  int64_t parts, shares;
  const void* grad; // of the outputs
  void *grad_weight, *grad_bias; // [parts, ...]
  void* grad_layer_weight[NadeOutputsArgs::kMaxLayers]; // [parts, ...]
  void* grad_x; // [shares, rows, size]
  void* grad_scale; // [shares, parts, size]
};

// Log-probabilities of x given outputs [rows, size, classes], and gradients of the outputs.
struct NadeCategoricalArgs {
  int64_t rows, size, classes;
  Dtype dtype;
  const void* outputs;
  const void* x; // int32, -1 for what is no class
  void* out; // [rows]
};

struct NadeCategoricalGradArgs {
  NadeCategoricalArgs in;
  const void* grad; // [rows]
  void* grad_outputs;
};

enum class Mixture : int32_t { Gaussian = 0, Logistic = 1 };

// Log-densities of x given outputs [rows, size, (logits,) means, log-scales] of `mixtures` each.
struct NadeMixtureArgs {
  int64_t rows, size, mixtures;
  bool with_logits;
  Mixture mixture;
  Dtype dtype;
  const void *outputs, *x;
  void* out; // [rows]
};

struct NadeMixtureGradArgs {
  NadeMixtureArgs in;
  const void* grad; // [rows]
  void* grad_outputs;
  void* grad_x; // without what passes through the hidden units; null where not wanted
};

enum class NadeDraw : int32_t { Bernoulli, Categorical, Mixture };

// Ancestral samples: x of `in` is null, and `samples` is written in its place.
struct NadeSampleArgs {
  NadeOutputsArgs in; // outputs null
  NadeDraw draw;
  Mixture mixture;
  bool with_logits;
  const void* noise; // [rows, size], or [rows, size, 2] for mixtures
  const void* values; // [rows, size] like samples; null without given entries
  const bool* given; // [rows, size]
  void* samples; // [rows, size]: int32 classes, else in the sum's dtype
};

struct NadeKernels {
  void (*nade)(NadeArgs&);
  void (*nade_grad)(const NadeGradArgs&);
  void (*nade_outputs)(const NadeOutputsArgs&);
  void (*nade_outputs_grad)(const NadeOutputsGradArgs&);
  void (*nade_categorical)(const NadeCategoricalArgs&);
  void (*nade_categorical_grad)(const NadeCategoricalGradArgs&);
  void (*nade_mixture)(const NadeMixtureArgs&);
  void (*nade_mixture_grad)(const NadeMixtureGradArgs&);
  void (*nade_sample)(const NadeSampleArgs&);
};

// One function a file.
void fill_binary(NadeKernels& kernels);
void fill_outputs(NadeKernels& kernels);
void fill_likelihood(NadeKernels& kernels);
void fill_sample(NadeKernels& kernels);

inline void fill(NadeKernels& kernels) {
  fill_binary(kernels);
  fill_outputs(kernels);
  fill_likelihood(kernels);
  fill_sample(kernels);
}

} // namespace dgm_fast
