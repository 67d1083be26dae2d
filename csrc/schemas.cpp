#include "registry.h"

#include <stdexcept>
#include <unordered_map>

#include <torch/library.h>

namespace dgm_fast {

const std::vector<OpSpec>& op_specs() {
  static const std::vector<OpSpec> specs = {
      {"bernoulli_log_prob", "Tensor logits, Tensor x, int event_ndim", "Tensor", {0, 1}, 0},
      {"gaussian_log_prob",
       "Tensor x, Tensor mean, Tensor? log_var, int event_ndim",
       "Tensor",
       {0, 1, 2},
       0},
      {"categorical_log_prob",
       "Tensor logits, Tensor x, int class_dim, int event_ndim",
       "Tensor",
       {0},
       0},
      {"gaussian_kl",
       "Tensor mean, Tensor log_var, Tensor? prior_mean, Tensor? prior_log_var, int event_ndim",
       "Tensor",
       {0, 1, 2, 3},
       0},
      {"reparameterize", "Tensor mean, Tensor log_var, Tensor eps", "Tensor", {0, 1}, 0},
      {"log_mean_exp", "Tensor log_w, int dim", "Tensor", {0}, 1},
      {"elbo",
       "Tensor out, Tensor? out_log_var, Tensor x, Tensor mean, Tensor log_var, int likelihood, "
       "float beta",
       "Tensor",
       {0, 1, 2, 3, 4},
       0},
      {"iwae_bound",
       "Tensor out, Tensor? out_log_var, Tensor x, Tensor z, Tensor mean, Tensor log_var, "
       "Tensor? log_prior, int likelihood, bool stop_score",
       "(Tensor, Tensor)",
       {0, 1, 2, 3, 4, 5, 6},
       2},
      {"discretized_logistic_mixture_log_prob",
       "Tensor params, Tensor x, int num_mixtures, int levels, bool parameter_major",
       "Tensor",
       {0},
       0},
      {"gaussian_mixture_log_prob",
       "Tensor z, Tensor means, Tensor log_vars, Tensor? logits",
       "Tensor",
       {0, 1, 2, 3},
       1},
      {"linear_bernoulli_log_prob",
       "Tensor h, Tensor weight, Tensor? bias, Tensor x",
       "Tensor",
       {0, 1, 2, 3},
       0},
      {"linear_categorical_log_prob",
       "Tensor h, Tensor weight, Tensor? bias, Tensor x, int num_classes, int packing",
       "Tensor",
       {0, 1, 2},
       0},
      {"masked_linear",
       "Tensor x, Tensor weight, Tensor? bias, Tensor? in_degrees, Tensor? out_degrees, "
       "Tensor? kept, bool strict",
       "Tensor",
       {0, 1, 2},
       0},
      {"fvsbn_log_prob",
       "Tensor x, Tensor weight, Tensor bias",
       "(Tensor, Tensor)",
       {0, 1, 2},
       2},
      {"nade_log_prob",
       "Tensor x, Tensor W, Tensor c, Tensor V, Tensor b",
       "(Tensor, Tensor)",
       {1, 2, 3, 4},
       2},
      {"nade_categorical_log_prob",
       "Tensor x, Tensor W, Tensor c, Tensor V, Tensor b",
       "(Tensor, Tensor)",
       {1, 2, 3, 4},
       2},
      {"rnade_log_prob",
       "Tensor x, Tensor W, Tensor c, Tensor? V_logits, Tensor? b_logits, Tensor V_means, "
       "Tensor b_means, Tensor V_log_scales, Tensor b_log_scales, Tensor? activation_scale, "
       "int mixture",
       "(Tensor, Tensor)",
       {0, 1, 2, 3, 4, 5, 6, 7, 8, 9},
       2},
      {"affine_coupling",
       "Tensor x, Tensor log_scale, Tensor shift, Tensor? where, bool inverse, int event_ndim, "
       "int scale, float clamp",
       "(Tensor, Tensor)",
       {0, 1, 2},
       0,
       2},
      {"actnorm", "Tensor x, Tensor log_scale, Tensor bias, bool inverse", "Tensor", {0, 1, 2}, 0},
      {"rational_quadratic_spline",
       "Tensor x, Tensor widths, Tensor heights, Tensor derivatives, Tensor? bound, bool inverse, "
       "int ends, bool tails, float left, float right, float bottom, float top, "
       "float min_bin_width, float min_bin_height, float min_derivative, int parameterization, "
       "bool sum_log_det",
       "(Tensor, Tensor)",
       {0, 1, 2, 3},
       0,
       2},
      {"logistic_mixture_cdf",
       "Tensor x, Tensor logits, Tensor means, Tensor log_scales, bool inverse",
       "(Tensor, Tensor)",
       {0, 1, 2, 3},
       1,
       2},
      {"nade_sample",
       "Tensor W, Tensor c, Tensor V, Tensor b, Tensor noise, Tensor? values, Tensor? given",
       "Tensor",
       {},
       0},
      {"nade_categorical_sample",
       "Tensor W, Tensor c, Tensor V, Tensor b, Tensor noise, Tensor? values, Tensor? given",
       "Tensor",
       {},
       0},
      {"adversarial_loss",
       "Tensor fake, Tensor? real, int fake_term, int real_term, float alpha, float pi",
       "(Tensor, Tensor, Tensor)",
       {0, 1},
       3},
      {"norm_penalty",
       "Tensor gradient, float weight, float center, bool one_sided",
       "(Tensor, Tensor)",
       {0},
       2},
      {"interpolate", "Tensor real, Tensor fake, Tensor eps", "Tensor", {}, 0},
      {"leaky_relu", "Tensor x, float slope", "Tensor", {0}, 1, 1, true},
      {"bias_leaky_relu", "Tensor x, Tensor bias, float slope", "Tensor", {0, 1}, 1, 1, true},
      {"rnade_sample",
       "Tensor W, Tensor c, Tensor? V_logits, Tensor? b_logits, Tensor V_means, Tensor b_means, "
       "Tensor V_log_scales, Tensor b_log_scales, Tensor? activation_scale, Tensor noise, "
       "Tensor? values, Tensor? given, int mixture",
       "Tensor",
       {},
       0},
      {"masked_conv2d",
       "Tensor x, Tensor weight, Tensor? bias, int mask_type, int data_channels, "
       "int channel_order, int dilation",
       "Tensor",
       {0, 1, 2},
       0},
      {"shifted_conv2d",
       "Tensor x, Tensor weight, Tensor? bias, int first_row, int first_column",
       "Tensor",
       {0, 1, 2},
       0},
      {"row_lstm", "Tensor gates, Tensor weight", "(Tensor, Tensor, Tensor)", {0, 1}, 3},
      {"diagonal_lstm", "Tensor gates, Tensor weight", "(Tensor, Tensor, Tensor)", {0, 1}, 3},
      {"gated_activation",
       "Tensor x, Tensor? bias, Tensor? condition, int dim",
       "Tensor",
       {0, 1, 2},
       0,
       1,
       false,
       {0, 2}},
      {"autoregressive_inverse",
       "Tensor z, Tensor[] weights, Tensor[] biases, Tensor[] degrees, Tensor[] gates, Tensor? order, "
       "int activation, float activation_parameter, int transform, int[] modes, float[] options, "
       "bool inverse, Tensor? values, Tensor? given",
       "(Tensor, Tensor)",
       {},
       0},
      {"pixel_sample",
       "Tensor noise, Tensor[] weights, Tensor[] biases, int[] layers, int[] channels, int[] strides, "
       "int[] groups, int output, int draw, int colors, int levels, int num_mixtures, bool one_hot, "
       "float scale, float shift, int ones, Tensor? values, Tensor? given",
       "Tensor",
       {},
       0},
  };
  return specs;
}

const OpSpec& op_spec(const std::string& name) {
  static const auto* index = [] {
    auto* map = new std::unordered_map<std::string, const OpSpec*>();
    for (const auto& spec : op_specs()) {
      map->emplace(spec.name, &spec);
    }
    return map;
  }();
  auto found = index->find(name);
  if (found == index->end()) {
    throw std::out_of_range("dgm_fast: no op named " + name);
  }
  return *found->second;
}

namespace {

std::string backward_schema(const OpSpec& spec) {
  std::string text = std::string(spec.name) + kBackwardSuffix + "(";
  if (spec.differentiable_outputs == 1) {
    text += "Tensor grad, ";
  } else {
    for (int64_t i = 0; i < spec.differentiable_outputs; ++i) {
      text += "Tensor? grad_" + std::to_string(i) + ", ";
    }
  }
  for (int64_t i = 0; i < spec.saved_outputs; ++i) {
    text += "Tensor saved_" + std::to_string(i) + ", ";
  }
  const auto count = spec.differentiable.size();
  text += std::string(spec.arguments) + ", bool[" + std::to_string(count) + "] mask) -> ";
  std::string gradients = "Tensor";
  for (size_t i = 1; i < count; ++i) {
    gradients += ", Tensor";
  }
  return text + (count == 1 ? gradients : "(" + gradients + ")");
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY(dgm_fast, m) {
  for (const auto& spec : dgm_fast::op_specs()) {
    const auto forward = std::string(spec.name) + "(" + spec.arguments + ") -> " + spec.returns;
    m.def(forward.c_str());
    if (!spec.differentiable.empty()) {
      m.def(dgm_fast::backward_schema(spec).c_str());
    }
  }
}
