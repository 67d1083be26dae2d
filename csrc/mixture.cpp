// CPU functions of the mixture densities: layout and allocation around the kernels.

#include "cpu/mixture_table.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// params [B, P, H, W] and x [(B,) C, H, W] as the kernels read them; holds what had to be converted.
class LogisticLayout {
 public:
  LogisticMixtureArgs args{};

  LogisticLayout(
      const Tensor& params,
      const Tensor& x,
      int64_t mixtures,
      int64_t levels,
      bool parameter_major) {
    const int64_t x_batch = x.dim() == 4 ? x.size(0) : 1;
    args.batch = params.size(0) == 1 ? x_batch : params.size(0);
    args.channels = x.size(-3);
    args.mixtures = mixtures;
    args.pixels = params.size(2) * params.size(3);
    const bool major = parameter_major || args.channels == 1;
    args.parameter_stride = major ? args.channels * mixtures : mixtures;
    args.mixture_stride = major ? args.channels : 1;
    args.channel_stride = major ? 1 : 3 * mixtures;
    args.levels = static_cast<double>(levels);
    args.edge = 1.0 - std::min(1e-3, 0.5 / (args.levels - 1));
    args.dtype = dtype_code(params.scalar_type());
    params_ = params.expand({args.batch, -1, -1, -1}).contiguous();
    x_ = x.to(sum_dtype(params)).contiguous();
    args.params = params_.const_data_ptr();
    args.x = x_.const_data_ptr();
    args.x_stride = x_batch == 1 ? 0 : args.channels * args.pixels;
  }

  const Tensor& params() const {
    return params_;
  }

 private:
  Tensor params_, x_;
};

Tensor discretized_logistic_mixture_log_prob(
    const Tensor& params,
    const Tensor& x,
    int64_t mixtures,
    int64_t levels,
    bool parameter_major) {
  LogisticLayout in(params, x, mixtures, levels, parameter_major);
  Tensor out = at::empty({in.args.batch}, params.options().dtype(sum_dtype(params)));
  in.args.out = out.mutable_data_ptr();
  kernels<MixtureKernels>().logistic_mixture(in.args);
  TORCH_CHECK_VALUE(
      !in.args.invalid, "x must hold values in [-1, 1] for the logistic mixture likelihood");
  return out;
}

Tensor discretized_logistic_mixture_log_prob_backward(
    const Tensor& grad,
    const Tensor& params,
    const Tensor& x,
    int64_t mixtures,
    int64_t levels,
    bool parameter_major,
    std::array<bool, 1> mask) {
  if (!mask[0]) {
    return at::empty({0}, params.options());
  }
  const LogisticLayout in(params, x, mixtures, levels, parameter_major);
  const Tensor grad_rows = grad.to(sum_dtype(params)).contiguous();
  Tensor gradient = empty_output(in.params().sizes(), params.scalar_type());
  kernels<MixtureKernels>().logistic_mixture_grad(
      {in.args, grad_rows.const_data_ptr(), gradient.mutable_data_ptr()});
  return at::sum_to(gradient, params.sizes());
}

// Operands of a Gaussian mixture in the sum's dtype.
class GaussianMixtureLayout {
 public:
  GaussianMixtureArgs args{};

  GaussianMixtureLayout(
      const Tensor& z,
      const Tensor& means,
      const Tensor& log_vars,
      const OptionalTensor& logits) {
    const auto sum = sum_dtype(z);
    const auto keep = [&](const Tensor& t) {
      held_.push_back(t.to(sum).contiguous());
      return held_.back().const_data_ptr();
    };
    args.components = means.size(0);
    args.size = means.size(1);
    args.rows = 1;
    for (int64_t d = 0; d + 1 < z.dim(); ++d) {
      args.rows *= z.size(d);
    }
    args.dtype = dtype_code(sum);
    args.z = keep(z);
    args.means = keep(means);
    args.log_vars = keep(log_vars);
    args.logits = logits.has_value() ? keep(*logits) : nullptr;
  }

 private:
  c10::SmallVector<Tensor, 4> held_;
};

Tensor gaussian_mixture_log_prob(
    const Tensor& z,
    const Tensor& means,
    const Tensor& log_vars,
    const OptionalTensor& logits) {
  GaussianMixtureLayout in(z, means, log_vars, logits);
  Tensor out = at::empty(z.sizes().slice(0, z.dim() - 1), z.options().dtype(sum_dtype(z)));
  in.args.out = out.mutable_data_ptr();
  kernels<MixtureKernels>().gaussian_mixture(in.args);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_mixture_log_prob_backward(
    const Tensor& grad,
    const Tensor& log_prob,
    const Tensor& z,
    const Tensor& means,
    const Tensor& log_vars,
    const OptionalTensor& logits,
    std::array<bool, 4> mask) {
  // Entries of the sums over rows that all chunks may keep together: 8 MiB of float.
  constexpr int64_t kMaxEntries = 1 << 20;
  GaussianMixtureLayout in(z, means, log_vars, logits);
  const auto sum = sum_dtype(z);
  const Tensor grad_rows = grad.to(sum).contiguous();
  Tensor result = log_prob.contiguous();
  in.args.out = result.mutable_data_ptr();
  const int64_t entries = std::max<int64_t>(1, means.numel());
  const int64_t chunks = std::min(
      num_chunks(in.args.rows, entries), std::max<int64_t>(4, kMaxEntries / entries));
  const auto room = [&](bool wanted, const Tensor& like) {
    return wanted ? empty_output(like.sizes(), sum) : at::empty({0}, like.options());
  };
  const bool with_logits = mask[3] && logits.has_value();
  Tensor grad_z = room(mask[0], z);
  Tensor grad_means = room(mask[1], means);
  Tensor grad_log_vars = room(mask[2], log_vars);
  Tensor grad_logits = room(with_logits, with_logits ? *logits : means);
  const auto data = [](bool wanted, const Tensor& t) {
    return wanted ? t.mutable_data_ptr() : nullptr;
  };
  kernels<MixtureKernels>().gaussian_mixture_grad(
      {in.args,
       chunks,
       grad_rows.const_data_ptr(),
       data(mask[0], grad_z),
       data(mask[1], grad_means),
       data(mask[2], grad_log_vars),
       data(with_logits, grad_logits)});
  return {
      grad_z.to(z.scalar_type()),
      grad_means.to(means.scalar_type()),
      grad_log_vars.to(log_vars.scalar_type()),
      grad_logits.to(z.scalar_type())};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl(
      "discretized_logistic_mixture_log_prob", &dgm_fast::discretized_logistic_mixture_log_prob);
  m.impl(
      "discretized_logistic_mixture_log_prob_backward",
      &dgm_fast::discretized_logistic_mixture_log_prob_backward);
  m.impl("gaussian_mixture_log_prob", &dgm_fast::gaussian_mixture_log_prob);
  m.impl("gaussian_mixture_log_prob_backward", &dgm_fast::gaussian_mixture_log_prob_backward);
}
