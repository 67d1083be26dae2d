// CPU functions of the latent ops that are no bounds: layout and allocation around the kernels.

#include "cpu/latent_table.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct KlLayout {
  Split split;
  Rows mean, log_var, prior_mean, prior_log_var;

  KlLayout(
      const Tensor& mean_in,
      const Tensor& log_var_in,
      const OptionalTensor& prior_mean_in,
      const OptionalTensor& prior_log_var_in,
      int64_t event_ndim) {
    auto shape = at::infer_size(mean_in.sizes(), log_var_in.sizes());
    for (const auto* prior : {&prior_mean_in, &prior_log_var_in}) {
      if (prior->has_value()) {
        shape = at::infer_size(shape, (*prior)->sizes());
      }
    }
    split = split_shape(shape, event_ndim);
    mean = make_rows(mean_in, split.batch, split.event);
    log_var = make_rows(log_var_in, split.batch, split.event);
    prior_mean = make_rows(prior_mean_in, split.batch, split.event);
    prior_log_var = make_rows(prior_log_var_in, split.batch, split.event);
  }
};

Tensor gaussian_kl(
    const Tensor& mean,
    const Tensor& log_var,
    const OptionalTensor& prior_mean,
    const OptionalTensor& prior_log_var,
    int64_t event_ndim) {
  const KlLayout in(mean, log_var, prior_mean, prior_log_var, event_ndim);
  Tensor out = at::empty(in.split.batch, mean.options().dtype(sum_dtype(mean)));
  kernels<LatentKernels>().gaussian_kl(
      {in.split.rows,
       in.split.size,
       in.mean.operand,
       in.log_var.operand,
       in.prior_mean.operand,
       in.prior_log_var.operand,
       out.mutable_data_ptr()});
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_backward(
    const Tensor& grad,
    const Tensor& mean,
    const Tensor& log_var,
    const OptionalTensor& prior_mean,
    const OptionalTensor& prior_log_var,
    int64_t event_ndim,
    std::array<bool, 4> mask) {
  const KlLayout in(mean, log_var, prior_mean, prior_log_var, event_ndim);
  const auto& [batch, event, rows, size] = in.split;
  const int64_t chunks = num_chunks(rows, size);
  const GradBuffer to_mean(mask[0], mean, in.mean, batch, event, chunks);
  const GradBuffer to_log_var(mask[1], log_var, in.log_var, batch, event, chunks);
  const GradBuffer to_prior_mean(mask[2], prior_mean, in.prior_mean, batch, event, chunks);
  const GradBuffer to_prior_log_var(
      mask[3], prior_log_var, in.prior_log_var, batch, event, chunks);
  const Tensor grad_rows = grad.to(sum_dtype(mean)).contiguous();
  kernels<LatentKernels>().gaussian_kl_grad(
      {rows,
       size,
       chunks,
       in.mean.operand,
       in.log_var.operand,
       in.prior_mean.operand,
       in.prior_log_var.operand,
       grad_rows.const_data_ptr(),
       to_mean.data(),
       to_log_var.data(),
       to_prior_mean.data(),
       to_prior_log_var.data()});
  return {
      to_mean.finish(mean),
      to_log_var.finish(mean),
      to_prior_mean.finish(mean),
      to_prior_log_var.finish(mean)};
}

// [..., L] parameters and [..., (K,) L] noise as [batch, L] and [batch, samples, L].
struct SampleLayout {
  int64_t batch = 0, samples = 1, size = 0;

  SampleLayout(const Tensor& mean, const Tensor& eps) {
    size = mean.size(-1);
    batch = size == 0 ? 0 : mean.numel() / size;
    samples = eps.dim() == mean.dim() ? 1 : eps.size(-2);
  }
};

Tensor reparameterize(const Tensor& mean, const Tensor& log_var, const Tensor& eps) {
  const SampleLayout layout(mean, eps);
  const auto type = at::promote_types(mean.scalar_type(), log_var.scalar_type());
  const Tensor m = mean.to(type).contiguous();
  const Tensor lv = log_var.to(type).contiguous();
  const Tensor e = eps.to(type).contiguous();
  Tensor z = empty_output(eps.sizes(), type);
  kernels<LatentKernels>().reparameterize(
      {layout.batch,
       layout.samples,
       layout.size,
       dtype_code(type),
       m.const_data_ptr(),
       lv.const_data_ptr(),
       e.const_data_ptr(),
       z.mutable_data_ptr()});
  return z;
}

std::tuple<Tensor, Tensor> reparameterize_backward(
    const Tensor& grad,
    const Tensor& mean,
    const Tensor& log_var,
    const Tensor& eps,
    std::array<bool, 2> mask) {
  const SampleLayout layout(mean, eps);
  const auto type = at::promote_types(mean.scalar_type(), log_var.scalar_type());
  const Tensor g = grad.to(type).contiguous();
  const Tensor lv = log_var.to(type).contiguous();
  const Tensor e = eps.to(type).contiguous();
  Tensor grad_mean = at::empty(mask[0] ? mean.sizes() : at::IntArrayRef{0}, g.options());
  Tensor grad_log_var = at::empty(mask[1] ? log_var.sizes() : at::IntArrayRef{0}, g.options());
  kernels<LatentKernels>().reparameterize_grad(
      {layout.batch,
       layout.samples,
       layout.size,
       dtype_code(type),
       g.const_data_ptr(),
       lv.const_data_ptr(),
       e.const_data_ptr(),
       mask[0] ? grad_mean.mutable_data_ptr() : nullptr,
       mask[1] ? grad_log_var.mutable_data_ptr() : nullptr});
  return {grad_mean.to(mean.scalar_type()), grad_log_var.to(log_var.scalar_type())};
}

struct ReduceLayout {
  int64_t outer = 1, count = 1, inner = 1;
  std::vector<int64_t> kept;

  ReduceLayout(const Tensor& t, int64_t dim) : count(t.size(dim)) {
    for (int64_t d = 0; d < t.dim(); ++d) {
      if (d != dim) {
        (d < dim ? outer : inner) *= t.size(d);
        kept.push_back(t.size(d));
      }
    }
  }
};

Tensor log_mean_exp(const Tensor& log_w, int64_t dim) {
  const ReduceLayout layout(log_w, dim);
  const Tensor in = log_w.contiguous();
  Tensor out = at::empty(layout.kept, log_w.options().dtype(sum_dtype(log_w)));
  kernels<LatentKernels>().log_mean_exp(
      {layout.outer,
       layout.count,
       layout.inner,
       dtype_code(in.scalar_type()),
       in.const_data_ptr(),
       out.mutable_data_ptr()});
  return out;
}

Tensor log_mean_exp_backward(
    const Tensor& grad,
    const Tensor& out,
    const Tensor& log_w,
    int64_t dim,
    std::array<bool, 1> mask) {
  if (!mask[0]) {
    return at::empty({0}, log_w.options());
  }
  const ReduceLayout layout(log_w, dim);
  const Tensor in = log_w.contiguous();
  const Tensor g = grad.to(sum_dtype(log_w)).contiguous();
  const Tensor value = out.contiguous();
  Tensor grad_log_w = empty_output(log_w.sizes(), log_w.scalar_type());
  kernels<LatentKernels>().log_mean_exp_grad(
      {layout.outer,
       layout.count,
       layout.inner,
       dtype_code(in.scalar_type()),
       in.const_data_ptr(),
       value.const_data_ptr(),
       g.const_data_ptr(),
       grad_log_w.mutable_data_ptr()});
  return grad_log_w;
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("gaussian_kl", &dgm_fast::gaussian_kl);
  m.impl("gaussian_kl_backward", &dgm_fast::gaussian_kl_backward);
  m.impl("reparameterize", &dgm_fast::reparameterize);
  m.impl("reparameterize_backward", &dgm_fast::reparameterize_backward);
  m.impl("log_mean_exp", &dgm_fast::log_mean_exp);
  m.impl("log_mean_exp_backward", &dgm_fast::log_mean_exp_backward);
}
