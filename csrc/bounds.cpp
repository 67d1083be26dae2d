// CPU functions of the fused bounds: layout and allocation around the kernels.

#include "cpu/bounds_table.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Decoder outputs and latents as the kernels read them; holds what had to be converted.
class BoundLayout {
 public:
  BoundArgs args{};

  BoundLayout(
      const Tensor& out,
      const OptionalTensor& out_log_var,
      const Tensor& x,
      const OptionalTensor& z,
      const Tensor& mean,
      const Tensor& log_var,
      const OptionalTensor& log_prior,
      int64_t likelihood) {
    args.likelihood = static_cast<Likelihood>(likelihood);
    const bool categorical = args.likelihood == Likelihood::Categorical;
    sum_ = sum_dtype(out);
    out_ = out.contiguous();
    args.dtype = dtype_code(out.scalar_type());
    args.batch = out.size(0);
    args.samples = z.has_value() ? out.size(1) : 1;
    args.classes = categorical ? out.size(-2) : 0;
    args.size = out.size(-1);
    args.latent = mean.size(-1);
    args.out = out_.const_data_ptr();
    x_ = categorical ? class_indices(x, args.classes) : x.to(sum_).contiguous();
    args.x = x_.const_data_ptr();
    mean_ = latent(mean);
    log_var_ = latent(log_var);
    args.mean = mean_.const_data_ptr();
    args.log_var = log_var_.const_data_ptr();
    if (z.has_value()) {
      z_ = latent(*z);
      args.z = z_.const_data_ptr();
    }
    if (log_prior.has_value()) {
      log_prior_ = latent(*log_prior);
      args.log_prior = log_prior_.const_data_ptr();
    }
    if (out_log_var.has_value()) {
      set_log_var(*out_log_var);
    }
  }

  at::ScalarType sum_type() const {
    return sum_;
  }

  std::string value_error() const {
    return args.likelihood == Likelihood::Bernoulli
        ? std::string(kUnitIntervalError)
        : kClassError + std::to_string(args.classes - 1);
  }

  // Room for the gradient of the decoder's log-variance, as the kernel writes it.
  Tensor log_var_grad() const {
    if (own_log_var_) {
      return empty_output(out_.sizes(), out_.scalar_type());
    }
    const int64_t size = args.log_var_stride[2] != 0 ? args.size : 1;
    return empty_output({args.batch, size}, sum_);
  }

  // Its way back to the argument's shape and dtype.
  Tensor finish_log_var_grad(Tensor gradient, const Tensor& argument) const {
    if (!own_log_var_ && out_.dim() == 3) {
      gradient = gradient.unsqueeze(1);
    }
    while (gradient.dim() > argument.dim() && gradient.size(0) == 1) {
      gradient = gradient.squeeze(0);
    }
    return at::sum_to(gradient, argument.sizes()).to(argument.scalar_type()).contiguous();
  }

 private:
  Tensor latent(const Tensor& t) const {
    return t.to(sum_).contiguous();
  }

  void set_log_var(const Tensor& log_var) {
    const Tensor full = log_var.expand(out_.sizes());
    const bool samples_dim = out_.dim() == 3;
    const bool shared = samples_dim ? (full.stride(1) == 0 || args.samples == 1) : true;
    const int64_t inner = full.stride(-1);
    const bool same_shape = log_var.sizes() == out_.sizes();
    if (!same_shape && shared && (inner == 0 || inner == 1)) {
      out_log_var_ = log_var;
      args.out_log_var = full.const_data_ptr();
      args.log_var_stride[0] = full.stride(0);
      args.log_var_stride[1] = 0;
      args.log_var_stride[2] = inner;
      return;
    }
    own_log_var_ = true;
    out_log_var_ = full.contiguous();
    args.out_log_var = out_log_var_.const_data_ptr();
    args.log_var_stride[0] = args.samples * args.size;
    args.log_var_stride[1] = std::max<int64_t>(1, args.size);
    args.log_var_stride[2] = 1;
  }

  at::ScalarType sum_ = at::kFloat;
  Tensor out_, out_log_var_, x_, z_, mean_, log_var_, log_prior_;
  bool own_log_var_ = false;
};

// A gradient that a kernel fills, in the dtype it writes, and its conversion at the end.
class Gradient {
 public:
  Gradient(bool wanted, const Tensor& argument, at::ScalarType dtype) : argument_(argument) {
    if (wanted) {
      buffer_ = empty_output(argument.sizes(), dtype);
    }
  }

  void* data() const {
    return buffer_.defined() ? buffer_.mutable_data_ptr() : nullptr;
  }

  bool streams() const {
    return worth_streaming(buffer_);
  }

  Tensor finish() const {
    return buffer_.defined() ? buffer_.to(argument_.scalar_type())
                             : at::empty({0}, argument_.options());
  }

 private:
  const Tensor& argument_;
  Tensor buffer_;
};

Tensor elbo(
    const Tensor& out,
    const OptionalTensor& out_log_var,
    const Tensor& x,
    const Tensor& mean,
    const Tensor& log_var,
    int64_t likelihood,
    double beta) {
  const BoundLayout in(
      out, out_log_var, x, std::nullopt, mean, log_var, std::nullopt, likelihood);
  Tensor result = at::empty({in.args.batch}, out.options().dtype(in.sum_type()));
  ElboArgs args{in.args, beta, result.mutable_data_ptr(), false};
  kernels<BoundsKernels>().elbo(args);
  TORCH_CHECK_VALUE(!args.invalid, in.value_error());
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> elbo_backward(
    const Tensor& grad,
    const Tensor& out,
    const OptionalTensor& out_log_var,
    const Tensor& x,
    const Tensor& mean,
    const Tensor& log_var,
    int64_t likelihood,
    double beta,
    std::array<bool, 5> mask) {
  const BoundLayout in(
      out, out_log_var, x, std::nullopt, mean, log_var, std::nullopt, likelihood);
  const auto sum = in.sum_type();
  const Tensor grad_rows = grad.to(sum).contiguous();
  const bool with_log_var = mask[1] && out_log_var.has_value();
  Tensor grad_log_var_out = with_log_var ? in.log_var_grad() : Tensor();
  const Gradient to_out(mask[0], out, out.scalar_type());
  const Gradient to_x(mask[2], x, sum);
  const Gradient to_mean(mask[3], mean, sum);
  const Gradient to_log_var(mask[4], log_var, sum);
  kernels<BoundsKernels>().elbo_grad(
      {in.args,
       beta,
       grad_rows.const_data_ptr(),
       to_out.data(),
       with_log_var ? grad_log_var_out.mutable_data_ptr() : nullptr,
       to_x.data(),
       to_mean.data(),
       to_log_var.data(),
       to_out.streams()});
  return {
      to_out.finish(),
      with_log_var ? in.finish_log_var_grad(grad_log_var_out, *out_log_var)
                   : at::empty({0}, out.options()),
      to_x.finish(),
      to_mean.finish(),
      to_log_var.finish()};
}

std::tuple<Tensor, Tensor> iwae_bound(
    const Tensor& out,
    const OptionalTensor& out_log_var,
    const Tensor& x,
    const Tensor& z,
    const Tensor& mean,
    const Tensor& log_var,
    const OptionalTensor& log_prior,
    int64_t likelihood,
    bool stop_score) {
  const BoundLayout in(out, out_log_var, x, z, mean, log_var, log_prior, likelihood);
  const auto options = out.options().dtype(in.sum_type());
  Tensor bound = at::empty({in.args.batch}, options);
  Tensor log_w = at::empty({in.args.batch, in.args.samples}, options);
  IwaeArgs args{in.args, bound.mutable_data_ptr(), log_w.mutable_data_ptr(), false};
  kernels<BoundsKernels>().iwae_bound(args);
  TORCH_CHECK_VALUE(!args.invalid, in.value_error());
  return {bound, log_w};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> iwae_bound_backward(
    const Tensor& grad,
    const Tensor& bound,
    const Tensor& log_w,
    const Tensor& out,
    const OptionalTensor& out_log_var,
    const Tensor& x,
    const Tensor& z,
    const Tensor& mean,
    const Tensor& log_var,
    const OptionalTensor& log_prior,
    int64_t likelihood,
    bool stop_score,
    std::array<bool, 7> mask) {
  const BoundLayout in(out, out_log_var, x, z, mean, log_var, log_prior, likelihood);
  const auto sum = in.sum_type();
  const Tensor grad_rows = grad.to(sum).contiguous();
  const Tensor bound_rows = bound.contiguous();
  const Tensor log_w_rows = log_w.contiguous();
  const bool with_log_var = mask[1] && out_log_var.has_value();
  const bool with_prior = mask[6] && log_prior.has_value();
  Tensor grad_log_var_out = with_log_var ? in.log_var_grad() : Tensor();
  const Gradient to_out(mask[0], out, out.scalar_type());
  const Gradient to_x(mask[2], x, sum);
  const Gradient to_z(mask[3], z, sum);
  const Gradient to_mean(mask[4], mean, sum);
  const Gradient to_log_var(mask[5], log_var, sum);
  const Gradient to_prior(with_prior, with_prior ? *log_prior : out, sum);
  kernels<BoundsKernels>().iwae_bound_grad(
      {in.args,
       stop_score,
       grad_rows.const_data_ptr(),
       bound_rows.const_data_ptr(),
       log_w_rows.const_data_ptr(),
       to_out.data(),
       with_log_var ? grad_log_var_out.mutable_data_ptr() : nullptr,
       to_x.data(),
       to_z.data(),
       to_mean.data(),
       to_log_var.data(),
       to_prior.data(),
       to_out.streams()});
  return {
      to_out.finish(),
      with_log_var ? in.finish_log_var_grad(grad_log_var_out, *out_log_var)
                   : at::empty({0}, out.options()),
      to_x.finish(),
      to_z.finish(),
      to_mean.finish(),
      to_log_var.finish(),
      to_prior.finish()};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("elbo", &dgm_fast::elbo);
  m.impl("elbo_backward", &dgm_fast::elbo_backward);
  m.impl("iwae_bound", &dgm_fast::iwae_bound);
  m.impl("iwae_bound_backward", &dgm_fast::iwae_bound_backward);
}
