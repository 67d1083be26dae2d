// What a kernel library offers: one table per instruction-set level, filled by the family files.
#pragma once

#include "operand.h"

namespace dgm_fast {

// Rows of events: values in, one number per row out, or gradients of the operands.
// Gradient pointers are null where not wanted; they are dense [rows, size] in the operand's dtype,
// except `partial` gradients of an operand shared by all rows: [chunks, size] in the sum's dtype.
// `stream` asks to write dense gradients past the caches.
struct BernoulliArgs {
  int64_t rows, size;
  Operand logits, x;
  void* out; // [rows]
  bool invalid; // set when x has a value outside [0, 1]
};

struct BernoulliGradArgs {
  int64_t rows, size;
  Operand logits, x;
  const void* grad; // [rows]
  void* grad_logits;
  void* grad_x; // in the sum's dtype
  bool stream;
};

struct GaussianArgs {
  int64_t rows, size;
  Operand x, mean, log_var;
  void* out;
};

struct GaussianGradArgs {
  int64_t rows, size, chunks;
  Operand x, mean, log_var;
  const void* grad;
  void *grad_x, *grad_mean, *grad_log_var; // dense, or partial where the operand is shared
  bool stream;
};

// logits [outer, classes, inner]; the last `event` of inner are summed.
struct CategoricalArgs {
  int64_t outer, classes, inner, event;
  Operand logits, x;
  void* out; // [outer, inner / event]
  bool invalid;
};

struct CategoricalGradArgs {
  int64_t outer, classes, inner, event;
  Operand logits, x;
  const void* grad; // [outer, inner / event]
  void* grad_logits;
  bool stream;
};

struct KlArgs {
  int64_t rows, size;
  Operand mean, log_var, prior_mean, prior_log_var;
  void* out;
};

struct KlGradArgs {
  int64_t rows, size, chunks;
  Operand mean, log_var, prior_mean, prior_log_var;
  const void* grad;
  void *grad_mean, *grad_log_var, *grad_prior_mean, *grad_prior_log_var;
};

// [batch, size] parameters and [batch, samples, size] noise, all contiguous, one dtype.
struct ReparameterizeArgs {
  int64_t batch, samples, size;
  Dtype dtype;
  const void *mean, *log_var, *eps;
  void* z;
};

struct ReparameterizeGradArgs {
  int64_t batch, samples, size;
  Dtype dtype;
  const void *grad, *log_var, *eps;
  void *grad_mean, *grad_log_var;
};

// [outer, count, inner] contiguous.
struct LogMeanExpArgs {
  int64_t outer, count, inner;
  Dtype dtype;
  const void* log_w;
  void* out; // [outer, inner]
};

struct LogMeanExpGradArgs {
  int64_t outer, count, inner;
  Dtype dtype;
  const void *log_w, *out, *grad;
  void* grad_log_w;
};

enum class Likelihood : int32_t { Bernoulli = 0, Gaussian = 1, Categorical = 2 };

// Decoder outputs [batch, samples, (classes,) size] contiguous in `dtype`. The log-variance of a Gaussian
// has strides (in elements) over batch, samples and size, any of them 0. Everything else is contiguous
// and in the sum's dtype: x [batch, size] (categorical: int32), latents [batch, (samples,) latent].
struct BoundArgs {
  Likelihood likelihood;
  Dtype dtype;
  int64_t batch, samples, classes, size, latent;
  const void* out;
  const void* out_log_var;
  int64_t log_var_stride[3];
  const void* x;
  const void *z, *mean, *log_var;
  const void* log_prior; // [batch, samples], null for a standard normal prior
};

struct ElboArgs {
  BoundArgs in; // samples = 1, no z
  double beta;
  void* elbo; // [batch]
  bool invalid;
};

struct ElboGradArgs {
  BoundArgs in;
  double beta;
  const void* grad; // [batch]
  void *grad_out, *grad_out_log_var, *grad_x, *grad_mean, *grad_log_var;
  bool stream; // grad_out
};

struct IwaeArgs {
  BoundArgs in;
  void* bound; // [batch]
  void* log_w; // [batch, samples]
  bool invalid;
};

// grad_out_log_var is dense [batch, samples, size] when log_var_stride[1] != 0, else [batch, size] or,
// with log_var_stride[2] == 0, [batch]; in the sum's dtype unless dense.
struct IwaeGradArgs {
  BoundArgs in;
  bool stop_score;
  const void *grad, *bound, *log_w;
  void *grad_out, *grad_out_log_var, *grad_x, *grad_z, *grad_mean, *grad_log_var, *grad_log_prior;
  bool stream; // grad_out
};

// params [batch, 3 M (one channel) or 10 M, pixels] contiguous; x [batch or 1, channels, pixels] in the
// sum's dtype. Parameter p (0 mean, 1 log-scale, 2 coefficient) of mixture k and channel c is in row
// mixtures + p * parameter_stride + k * mixture_stride + c * channel_stride.
struct LogisticMixtureArgs {
  int64_t batch, channels, mixtures, pixels;
  int64_t parameter_stride, mixture_stride, channel_stride;
  double levels;
  double edge; // beyond it lie the outermost bins
  Dtype dtype; // of params
  const void* params;
  const void* x;
  int64_t x_stride; // over the batch
  void* out; // [batch]
  bool invalid; // set when x has a value outside [-1, 1]
};

struct LogisticMixtureGradArgs {
  LogisticMixtureArgs in;
  const void* grad; // [batch]
  void* grad_params;
};

// z [rows, size], means and log_vars [components, size], logits [components] or null: contiguous, float or
// double.
struct GaussianMixtureArgs {
  int64_t rows, components, size;
  Dtype dtype;
  const void *z, *means, *log_vars, *logits;
  void* out; // [rows]
};

struct GaussianMixtureGradArgs {
  GaussianMixtureArgs in; // out: the result of the forward
  int64_t chunks;
  const void* grad; // [rows]
  void *grad_z, *grad_means, *grad_log_vars, *grad_logits; // null where not wanted
};

// B [depth, columns] of any strides, into the panels that `product` reads.
struct ProductPackArgs {
  Dtype dtype; // float or double
  int64_t depth, columns;
  const void* b;
  int64_t row_stride, column_stride;
  void* packed;
};

// c [rows, columns], rows contiguous, = a [rows, depth] times packed B, plus a bias by row or by column, or += it.
struct ProductArgs {
  Dtype dtype;
  int64_t rows, depth, columns;
  const void* a;
  int64_t a_row_stride, a_column_stride;
  const void* packed;
  void* c;
  int64_t c_stride;
  bool add;
  const void *row_bias, *column_bias; // null where there is none
};

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

struct KernelTable {
  void (*bernoulli)(BernoulliArgs&);
  void (*bernoulli_grad)(const BernoulliGradArgs&);
  void (*gaussian)(const GaussianArgs&);
  void (*gaussian_grad)(const GaussianGradArgs&);
  void (*categorical)(CategoricalArgs&);
  void (*categorical_grad)(const CategoricalGradArgs&);
  void (*gaussian_kl)(const KlArgs&);
  void (*gaussian_kl_grad)(const KlGradArgs&);
  void (*reparameterize)(const ReparameterizeArgs&);
  void (*reparameterize_grad)(const ReparameterizeGradArgs&);
  void (*log_mean_exp)(const LogMeanExpArgs&);
  void (*log_mean_exp_grad)(const LogMeanExpGradArgs&);
  void (*elbo)(ElboArgs&);
  void (*elbo_grad)(const ElboGradArgs&);
  void (*iwae_bound)(IwaeArgs&);
  void (*iwae_bound_grad)(const IwaeGradArgs&);
  void (*logistic_mixture)(LogisticMixtureArgs&);
  void (*logistic_mixture_grad)(const LogisticMixtureGradArgs&);
  void (*gaussian_mixture)(const GaussianMixtureArgs&);
  void (*gaussian_mixture_grad)(const GaussianMixtureGradArgs&);
  // Null at levels where the library's product is the better one.
  int64_t (*product_packed_size)(Dtype dtype, int64_t depth, int64_t columns);
  void (*product_pack)(const ProductPackArgs&);
  void (*product)(const ProductArgs&);
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

// Each family file fills its own entries.
void fill_likelihood(KernelTable& table);
void fill_latent(KernelTable& table);
void fill_bounds(KernelTable& table);
void fill_logistic_mixture(KernelTable& table);
void fill_gaussian_mixture(KernelTable& table);
void fill_product(KernelTable& table);
void fill_nade(KernelTable& table);
void fill_nade_outputs(KernelTable& table);
void fill_nade_likelihood(KernelTable& table);
void fill_nade_sample(KernelTable& table);

} // namespace dgm_fast
