// CPU functions of the masked family: a linear layer under a mask, and one under a Bernoulli likelihood.

#include "block_product.h"
#include "cpu/likelihood_table.h"
#include "kernels.h"
#include "layout.h"
#include "staircase.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor column_sums(const Tensor& matrix, at::ScalarType to) {
  return matrix.sum({0}, false, sum_dtype(matrix)).to(to);
}

// Weights, and multiplications by them, up to which the library multiplies a copy without the masked entries faster
// than blocks are skipped.
constexpr int64_t kFewWeights = 1 << 15;
constexpr int64_t kFewProducts = 1 << 20;

// A linear layer and its mask, a staircase or any other. Where there is no block product for the dtype the layer
// is computed in the sum's.
struct MaskedLayer {
  at::ScalarType dtype, type; // of the arguments, and of the products
  Tensor x, weight; // [batch, in], [out, in]
  OptionalTensor kept;
  Staircase stairs;
  bool whole; // multiplied as a whole, once masked

  MaskedLayer(
      const Tensor& x_in,
      const Tensor& weight_in,
      const OptionalTensor& in_degrees,
      const OptionalTensor& out_degrees,
      const OptionalTensor& kept_in,
      bool strict)
      : dtype(weight_in.scalar_type()),
        type(block_type(dtype)),
        weight(weight_in.to(type).contiguous()),
        kept(kept_in) {
    // No number of rows can be inferred where there are no columns.
    const int64_t in = x_in.size(-1);
    const int64_t batch = c10::multiply_integers(x_in.sizes().slice(0, x_in.dim() - 1));
    x = x_in.reshape({batch, in}).to(type).contiguous();
    if (!kept.has_value()) {
      stairs = Staircase::of_degrees(*in_degrees, *out_degrees, strict);
    }
    whole = kept.has_value() ||
        (weight.numel() <= kFewWeights && batch * weight.numel() <= kFewProducts);
  }

  // The kept entries of a matrix like the weight, zero elsewhere.
  Tensor masked(const Tensor& matrix) const {
    return kept.has_value() ? at::where(*kept, matrix, at::zeros({}, matrix.options()))
                            : stairs.masked(matrix);
  }

  // The same of a matrix that nobody else holds.
  Tensor masked_in_place(Tensor matrix) const {
    if (kept.has_value()) {
      return masked(matrix);
    }
    stairs.clear(matrix);
    return matrix;
  }

  // The type that results are computed in before they take their argument's.
  at::ScalarType result() const {
    return dtype == type ? type : at::kFloat;
  }
};

Tensor masked_linear(
    const Tensor& x,
    const Tensor& weight,
    const OptionalTensor& bias,
    const OptionalTensor& in_degrees,
    const OptionalTensor& out_degrees,
    const OptionalTensor& kept,
    bool strict) {
  const MaskedLayer layer(x, weight, in_degrees, out_degrees, kept, strict);
  Tensor out;
  if (layer.whole) {
    const OptionalTensor offset = bias.has_value() ? bias->to(layer.type) : bias;
    out = at::linear(layer.x, layer.masked(layer.weight), offset);
  } else {
    const Tensor offset =
        bias.has_value() ? bias->to(sum_dtype(layer.x)).contiguous() : Tensor();
    out = staircase_product(layer.stairs, layer.x, layer.weight, offset, layer.result());
  }
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  return out.to(layer.dtype).view(sizes);
}

std::tuple<Tensor, Tensor, Tensor> masked_linear_backward(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& weight,
    const OptionalTensor& bias,
    const OptionalTensor& in_degrees,
    const OptionalTensor& out_degrees,
    const OptionalTensor& kept,
    bool strict,
    std::array<bool, 3> wanted) {
  const MaskedLayer layer(x, weight, in_degrees, out_degrees, kept, strict);
  const Tensor upstream =
      grad.reshape({layer.x.size(0), weight.size(0)}).to(layer.type).contiguous();
  Tensor grad_x = at::empty({0}, x.options());
  Tensor grad_weight = at::empty({0}, weight.options());
  Tensor grad_bias = at::empty({0}, weight.options());
  if (wanted[0]) {
    grad_x = layer.whole
        ? upstream.mm(layer.masked(layer.weight))
        : staircase_input_gradient(layer.stairs, upstream, layer.weight, layer.result());
    grad_x = grad_x.to(x.scalar_type()).view(x.sizes());
  }
  if (wanted[1]) {
    grad_weight = layer.whole
        ? layer.masked_in_place(upstream.t().mm(layer.x))
        : staircase_weight_gradient(layer.stairs, upstream, layer.x, layer.result());
    grad_weight = grad_weight.to(layer.dtype);
  }
  if (wanted[2] && bias.has_value()) {
    grad_bias = column_sums(upstream, bias->scalar_type());
  }
  return {grad_x, grad_weight, grad_bias};
}

// The network as one layer: every variable hears those before it.
struct BeliefNetwork {
  at::ScalarType sum, type; // of the likelihood, and of the products
  Staircase stairs;
  Tensor x, weight;
  Rows data;

  BeliefNetwork(const Tensor& x_in, const Tensor& weight_in)
      : sum(sum_dtype(weight_in)), stairs(Staircase::strictly_lower(weight_in.size(0))) {
    // Data enters products of reduced precision only where it is exact there, as 0 and 1 are.
    type = block_type(weight_in.scalar_type());
    x = x_in.to(type).contiguous();
    if (type == at::kBFloat16 && at::isFloatingType(x_in.scalar_type()) &&
        x_in.scalar_type() != type && !x.to(x_in.scalar_type()).equal(x_in)) {
      type = sum;
      x = x_in.to(type).contiguous();
    }
    weight = weight_in.to(type).contiguous();
    data = make_rows(bernoulli_data(x_in, sum), {x_in.size(0)}, {x_in.size(1)});
  }

  static Operand rows_of(const Tensor& logits) {
    Operand operand;
    operand.data = logits.const_data_ptr();
    operand.dtype = dtype_code(logits.scalar_type());
    operand.rows.ndim = 1;
    operand.rows.size[0] = logits.size(0);
    operand.rows.stride[0] = logits.size(1);
    return operand;
  }
};

std::tuple<Tensor, Tensor> fvsbn_log_prob(
    const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const BeliefNetwork net(x, weight);
  Tensor logits = staircase_product(
      net.stairs, net.x, net.weight, bias.to(net.sum).contiguous(), net.sum);
  Tensor out = at::empty({x.size(0)}, weight.options().dtype(net.sum));
  BernoulliArgs args{
      x.size(0),
      x.size(1),
      BeliefNetwork::rows_of(logits),
      net.data.operand,
      out.mutable_data_ptr(),
      false};
  kernels<LikelihoodKernels>().bernoulli(args);
  TORCH_CHECK_VALUE(!args.invalid, kUnitIntervalError);
  return {out, logits};
}

std::tuple<Tensor, Tensor, Tensor> fvsbn_log_prob_backward(
    const Tensor& grad,
    const Tensor& /*log_prob*/,
    const Tensor& logits_in,
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    std::array<bool, 3> wanted) {
  const BeliefNetwork net(x, weight);
  const Tensor logits = logits_in.contiguous();
  const Tensor upstream = grad.to(net.sum).contiguous();
  Tensor grad_x = wanted[0] ? at::empty(x.sizes(), logits.options()) : at::empty({0}, x.options());
  Tensor grad_logits = at::empty(logits.sizes(), logits.options());
  kernels<LikelihoodKernels>().bernoulli_grad(
      {x.size(0),
       x.size(1),
       BeliefNetwork::rows_of(logits),
       net.data.operand,
       upstream.const_data_ptr(),
       grad_logits.mutable_data_ptr(),
       wanted[0] ? grad_x.mutable_data_ptr() : nullptr,
       false});
  const Tensor factor = grad_logits.to(net.type);
  if (wanted[0]) {
    // x is data, and an input of the logits of all that follow.
    grad_x.add_(staircase_input_gradient(net.stairs, factor, net.weight, net.sum));
    grad_x = grad_x.to(x.scalar_type());
  }
  Tensor grad_weight = at::empty({0}, weight.options());
  if (wanted[1]) {
    const bool own = net.type == weight.scalar_type();
    grad_weight = staircase_weight_gradient(net.stairs, factor, net.x, own ? net.type : net.sum)
                      .to(weight.scalar_type());
  }
  Tensor grad_bias = wanted[2] ? column_sums(grad_logits, bias.scalar_type())
                               : at::empty({0}, bias.options());
  return {grad_x, grad_weight, grad_bias};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("masked_linear", &dgm_fast::masked_linear);
  m.impl("masked_linear_backward", &dgm_fast::masked_linear_backward);
  m.impl("fvsbn_log_prob", &dgm_fast::fvsbn_log_prob);
  m.impl("fvsbn_log_prob_backward", &dgm_fast::fvsbn_log_prob_backward);
}
