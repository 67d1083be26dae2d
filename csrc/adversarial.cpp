// CPU functions of the adversarial ops: layout and allocation around the kernels.

#include "cpu/adversarial_table.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

const AdversarialKernels& table() {
  return kernels<AdversarialKernels>();
}

// The mean of a term times its sign; the gradient of that is written into `grad`.
double term_mean(const Tensor& v, int64_t code, double alpha, double pi, const Tensor& grad) {
  const Tensor in = v.contiguous();
  const double sign = code < 0 ? -1 : 1;
  const double scale = sign / static_cast<double>(in.numel());
  LossTermArgs args{
      in.numel(),
      dtype_code(in.scalar_type()),
      in.const_data_ptr(),
      static_cast<int>(std::abs(code) - 1),
      alpha,
      pi,
      scale,
      grad.mutable_data_ptr(),
      0};
  table().loss_term(args);
  return args.sum * scale;
}

std::tuple<Tensor, Tensor, Tensor> adversarial_loss(
    const Tensor& fake,
    const OptionalTensor& real,
    int64_t fake_term,
    int64_t real_term,
    double alpha,
    double pi) {
  const bool is_double =
      sum_dtype(fake) == at::kDouble || (real.has_value() && sum_dtype(*real) == at::kDouble);
  const auto dtype = is_double ? at::kDouble : at::kFloat;
  // The gradient of each in its own sum's dtype.
  Tensor grad_fake = empty_output(fake.sizes(), sum_dtype(fake));
  Tensor grad_real = real.has_value() ? empty_output(real->sizes(), sum_dtype(*real))
                                      : at::empty({0}, grad_fake.options());
  double loss = term_mean(fake, fake_term, alpha, pi, grad_fake);
  if (real.has_value()) {
    loss += term_mean(*real, real_term, alpha, pi, grad_real);
  }
  Tensor out = at::empty({}, fake.options().dtype(dtype));
  out.fill_(loss);
  return {out, grad_fake, grad_real};
}

std::tuple<Tensor, Tensor> adversarial_loss_backward(
    const Tensor& grad,
    const Tensor&,
    const Tensor& grad_fake,
    const Tensor& grad_real,
    const Tensor& fake,
    const OptionalTensor& real,
    int64_t,
    int64_t,
    double,
    double,
    std::array<bool, 2> mask) {
  const auto scaled = [&](bool wanted, const Tensor& saved, const Tensor& like) {
    return wanted ? at::mul(saved, grad).to(like.scalar_type())
                  : at::empty({0}, like.options());
  };
  return {
      scaled(mask[0], grad_fake, fake),
      scaled(mask[1], grad_real, real.has_value() ? *real : fake)};
}

Tensor interpolate(const Tensor& real, const Tensor& fake, const Tensor& eps) {
  const auto type = c10::promoteTypes(real.scalar_type(), fake.scalar_type());
  const Tensor r = real.to(type).contiguous();
  const Tensor f = fake.to(type).contiguous();
  const Tensor e = eps.to(sum_dtype(r)).contiguous();
  Tensor out = empty_output(r.sizes(), type);
  const int64_t rows = r.size(0);
  table().interpolate(
      {rows,
       rows == 0 ? 0 : r.numel() / rows,
       dtype_code(type),
       r.const_data_ptr(),
       f.const_data_ptr(),
       e.const_data_ptr(),
       out.mutable_data_ptr()});
  return out;
}

// Each sample in one piece of memory, whatever the order of its entries.
bool samples_dense(const Tensor& t) {
  return t.is_non_overlapping_and_dense() &&
      (t.size(0) <= 1 || t.stride(0) * t.size(0) == t.numel());
}

// An output in the layout of `t`, which is dense.
Tensor output_like(const Tensor& t) {
  return t.is_contiguous() ? empty_output(t.sizes(), t.scalar_type()) : at::empty_like(t);
}

// `t` in the strides of `like`, which is dense.
Tensor in_layout_of(const Tensor& t, const Tensor& like) {
  if (t.strides() == like.strides()) {
    return t;
  }
  Tensor copy = at::empty_like(like, t.options());
  copy.copy_(t);
  return copy;
}

std::tuple<Tensor, Tensor> norm_penalty(
    const Tensor& gradient, double weight, double center, bool one_sided) {
  const Tensor g = samples_dense(gradient) ? gradient : gradient.contiguous();
  const int64_t rows = g.size(0);
  Tensor norms = at::empty({rows}, g.options().dtype(sum_dtype(g)));
  NormPenaltyArgs args{
      rows,
      rows == 0 ? 0 : g.numel() / rows,
      dtype_code(g.scalar_type()),
      g.const_data_ptr(),
      nullptr,
      center,
      one_sided,
      norms.mutable_data_ptr(),
      0};
  table().norm_penalty(args);
  Tensor penalty = at::empty({}, norms.options());
  penalty.fill_(weight * args.sum / static_cast<double>(rows));
  return {penalty, norms};
}

Tensor norm_penalty_backward(
    const Tensor& grad,
    const Tensor&,
    const Tensor& norms,
    const Tensor& gradient,
    double weight,
    double center,
    bool one_sided,
    std::array<bool, 1> mask) {
  if (!mask[0]) {
    return at::empty({0}, gradient.options());
  }
  const Tensor g = samples_dense(gradient) ? gradient : gradient.contiguous();
  const int64_t rows = g.size(0);
  Tensor direction = output_like(g);
  const double upstream = grad.to(at::kDouble).item<double>();
  table().penalty_direction(
      {rows,
       rows == 0 ? 0 : g.numel() / rows,
       dtype_code(g.scalar_type()),
       g.const_data_ptr(),
       nullptr,
       norms.const_data_ptr(),
       upstream * weight / static_cast<double>(rows),
       center,
       one_sided,
       nullptr,
       nullptr,
       direction.mutable_data_ptr()});
  return direction;
}

// Where the channels (dimension 1) of a dense tensor lie.
struct Channels {
  int64_t outer, channels, inner;

  explicit Channels(const Tensor& t) : channels(t.size(1)) {
    const int64_t rest = channels == 0 ? 0 : t.numel() / channels;
    const bool last = t.dim() == 2 || !t.is_contiguous();
    inner = last || t.size(0) == 0 ? 1 : rest / t.size(0);
    outer = inner == 0 ? 0 : rest / inner;
  }
};

// Contiguous, or with channels last: layouts in which a channel is one stride away from the next.
bool channels_dense(const Tensor& t) {
  return t.is_contiguous() || t.is_contiguous(at::MemoryFormat::ChannelsLast) ||
      (t.dim() == 5 && t.is_contiguous(at::MemoryFormat::ChannelsLast3d));
}

Tensor leaky_relu(const Tensor& x, double slope) {
  const Tensor in = x.is_non_overlapping_and_dense() ? x : x.contiguous();
  Tensor out = output_like(in);
  table().activation(
      {1,
       1,
       in.numel(),
       dtype_code(in.scalar_type()),
       in.const_data_ptr(),
       nullptr,
       slope,
       out.mutable_data_ptr()});
  return out;
}

Tensor leaky_relu_backward(
    const Tensor& grad,
    const Tensor& out,
    const Tensor&,
    double slope,
    std::array<bool, 1> mask) {
  if (!mask[0]) {
    return at::empty({0}, out.options());
  }
  const Tensor g = in_layout_of(grad, out);
  Tensor grad_x = output_like(out);
  table().activation_grad(
      {1,
       1,
       out.numel(),
       1,
       dtype_code(out.scalar_type()),
       g.const_data_ptr(),
       out.const_data_ptr(),
       slope,
       grad_x.mutable_data_ptr(),
       nullptr});
  return grad_x;
}

Tensor bias_leaky_relu(const Tensor& x, const Tensor& bias, double slope) {
  const Tensor in = channels_dense(x) ? x : x.contiguous();
  const Tensor b = bias.to(sum_dtype(x)).contiguous();
  Tensor out = output_like(in);
  const Channels layout(in);
  table().activation(
      {layout.outer,
       layout.channels,
       layout.inner,
       dtype_code(in.scalar_type()),
       in.const_data_ptr(),
       b.const_data_ptr(),
       slope,
       out.mutable_data_ptr()});
  return out;
}

std::tuple<Tensor, Tensor> bias_leaky_relu_backward(
    const Tensor& grad,
    const Tensor& out,
    const Tensor&,
    const Tensor& bias,
    double slope,
    std::array<bool, 2> mask) {
  const Tensor g = in_layout_of(grad, out);
  const Channels layout(out);
  const int64_t parts = num_chunks(layout.outer, layout.channels * layout.inner);
  Tensor grad_x = mask[0] ? output_like(out) : at::empty({0}, out.options());
  Tensor partial;
  if (mask[1]) {
    partial = at::empty({parts, layout.channels}, out.options().dtype(sum_dtype(out)));
  }
  if (mask[0] || mask[1]) {
    table().activation_grad(
        {layout.outer,
         layout.channels,
         layout.inner,
         parts,
         dtype_code(out.scalar_type()),
         g.const_data_ptr(),
         out.const_data_ptr(),
         slope,
         mask[0] ? grad_x.mutable_data_ptr() : nullptr,
         mask[1] ? partial.mutable_data_ptr() : nullptr});
  }
  Tensor grad_bias = mask[1] ? partial.sum(0).to(bias.scalar_type())
                             : at::empty({0}, bias.options());
  return {grad_x, grad_bias};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("adversarial_loss", &dgm_fast::adversarial_loss);
  m.impl("adversarial_loss_backward", &dgm_fast::adversarial_loss_backward);
  m.impl("interpolate", &dgm_fast::interpolate);
  m.impl("norm_penalty", &dgm_fast::norm_penalty);
  m.impl("norm_penalty_backward", &dgm_fast::norm_penalty_backward);
  m.impl("leaky_relu", &dgm_fast::leaky_relu);
  m.impl("leaky_relu_backward", &dgm_fast::leaky_relu_backward);
  m.impl("bias_leaky_relu", &dgm_fast::bias_leaky_relu);
  m.impl("bias_leaky_relu_backward", &dgm_fast::bias_leaky_relu_backward);
}
