// CPU functions of the likelihood ops: layout and allocation around the kernels.

#include "cpu/likelihood_table.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor bernoulli_log_prob(const Tensor& logits, const Tensor& x_in, int64_t event_ndim) {
  const auto split = split_shape(at::infer_size(logits.sizes(), x_in.sizes()), event_ndim);
  const Tensor x = bernoulli_data(x_in, logits.scalar_type());
  const Rows logits_rows = make_rows(logits, split.batch, split.event);
  const Rows x_rows = make_rows(x, split.batch, split.event);
  Tensor out = at::empty(split.batch, logits.options().dtype(sum_dtype(logits)));
  BernoulliArgs args{
      split.rows,
      split.size,
      logits_rows.operand,
      x_rows.operand,
      out.mutable_data_ptr(),
      false};
  kernels<LikelihoodKernels>().bernoulli(args);
  TORCH_CHECK_VALUE(!args.invalid, kUnitIntervalError);
  return out;
}

std::tuple<Tensor, Tensor> bernoulli_log_prob_backward(
    const Tensor& grad,
    const Tensor& logits,
    const Tensor& x_in,
    int64_t event_ndim,
    std::array<bool, 2> mask) {
  const auto split = split_shape(at::infer_size(logits.sizes(), x_in.sizes()), event_ndim);
  const Tensor x = bernoulli_data(x_in, logits.scalar_type());
  const Rows logits_rows = make_rows(logits, split.batch, split.event);
  const Rows x_rows = make_rows(x, split.batch, split.event);
  const auto sum = sum_dtype(logits);
  const Tensor grad_rows = grad.to(sum).contiguous();
  c10::SmallVector<int64_t, 8> full(split.batch.begin(), split.batch.end());
  full.append(split.event.begin(), split.event.end());
  Tensor grad_logits = mask[0] ? empty_output(full, logits.scalar_type()) : Tensor();
  Tensor grad_x = mask[1] ? empty_output(full, sum) : Tensor();
  kernels<LikelihoodKernels>().bernoulli_grad(
      {split.rows,
       split.size,
       logits_rows.operand,
       x_rows.operand,
       grad_rows.const_data_ptr(),
       mask[0] ? grad_logits.mutable_data_ptr() : nullptr,
       mask[1] ? grad_x.mutable_data_ptr() : nullptr,
       worth_streaming(grad_logits)});
  const auto finish = [&](const Tensor& gradient, const Tensor& argument) {
    if (!gradient.defined()) {
      return at::empty({0}, argument.options());
    }
    return at::sum_to(gradient, argument.sizes()).to(argument.scalar_type()).contiguous();
  };
  return {finish(grad_logits, logits), finish(grad_x, x_in)};
}

std::vector<int64_t> broadcast(std::initializer_list<const Tensor*> tensors) {
  std::vector<int64_t> shape;
  for (const Tensor* t : tensors) {
    if (t != nullptr) {
      shape = at::infer_size(shape, t->sizes());
    }
  }
  return shape;
}

struct GaussianLayout {
  Split split;
  Rows x, mean, log_var;

  GaussianLayout(
      const Tensor& x_in,
      const Tensor& mean_in,
      const OptionalTensor& log_var_in,
      int64_t event_ndim)
      : split(split_shape(
            broadcast({&x_in, &mean_in, log_var_in.has_value() ? &*log_var_in : nullptr}),
            event_ndim)),
        x(make_rows(x_in, split.batch, split.event)),
        mean(make_rows(mean_in, split.batch, split.event)),
        log_var(make_rows(log_var_in, split.batch, split.event)) {}
};

Tensor gaussian_log_prob(
    const Tensor& x,
    const Tensor& mean,
    const OptionalTensor& log_var,
    int64_t event_ndim) {
  const GaussianLayout in(x, mean, log_var, event_ndim);
  Tensor out = at::empty(in.split.batch, mean.options().dtype(sum_dtype(mean)));
  kernels<LikelihoodKernels>().gaussian(
      {in.split.rows,
       in.split.size,
       in.x.operand,
       in.mean.operand,
       in.log_var.operand,
       out.mutable_data_ptr()});
  return out;
}

std::tuple<Tensor, Tensor, Tensor> gaussian_log_prob_backward(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& mean,
    const OptionalTensor& log_var,
    int64_t event_ndim,
    std::array<bool, 3> mask) {
  const GaussianLayout in(x, mean, log_var, event_ndim);
  const auto& [batch, event, rows, size] = in.split;
  const int64_t chunks = num_chunks(rows, size);
  const GradBuffer grad_x(mask[0], x, in.x, batch, event, chunks);
  const GradBuffer grad_mean(mask[1], mean, in.mean, batch, event, chunks);
  const GradBuffer grad_log_var(mask[2], log_var, in.log_var, batch, event, chunks);
  const Tensor grad_rows = grad.to(sum_dtype(mean)).contiguous();
  kernels<LikelihoodKernels>().gaussian_grad(
      {rows,
       size,
       chunks,
       in.x.operand,
       in.mean.operand,
       in.log_var.operand,
       grad_rows.const_data_ptr(),
       grad_x.data(),
       grad_mean.data(),
       grad_log_var.data(),
       grad_x.streams() || grad_mean.streams() || grad_log_var.streams()});
  return {grad_x.finish(x), grad_mean.finish(mean), grad_log_var.finish(mean)};
}

// logits as [outer, classes, inner] blocks and x as rows of inner indices.
struct CategoricalLayout {
  c10::SmallVector<int64_t, 8> outer_shape, inner_shape;
  int64_t outer = 1, classes = 0, inner = 1, event = 1;
  // Event dimensions that lie before the class dimension: summed after the kernel.
  int64_t leading_event = 0;
  Rows logits, x;

  CategoricalLayout(
      const Tensor& logits_in,
      const Tensor& x_in,
      int64_t class_dim,
      int64_t event_ndim) {
    const auto shape = logits_in.sizes();
    classes = shape[class_dim];
    for (int64_t d = 0; d < logits_in.dim(); ++d) {
      if (d < class_dim) {
        outer_shape.push_back(shape[d]);
        outer *= shape[d];
      } else if (d > class_dim) {
        inner_shape.push_back(shape[d]);
        inner *= shape[d];
      }
    }
    const int64_t inner_ndim = static_cast<int64_t>(inner_shape.size());
    leading_event = std::max<int64_t>(0, event_ndim - inner_ndim);
    for (int64_t d = inner_ndim - (event_ndim - leading_event); d < inner_ndim; ++d) {
      event *= inner_shape[d];
    }
    logits = make_rows(logits_in, outer_shape, shape.slice(class_dim));
    x = make_rows(class_indices(x_in, classes), outer_shape, inner_shape);
  }
};

// The shape of the op's result before leading event dimensions are summed.
std::vector<int64_t> categorical_sums(const Tensor& logits, int64_t class_dim, int64_t event_ndim) {
  auto shape = logits.sizes().vec();
  shape.erase(shape.begin() + class_dim);
  const int64_t inner_ndim = logits.dim() - 1 - class_dim;
  shape.resize(shape.size() - std::min(event_ndim, inner_ndim));
  return shape;
}

Tensor categorical_log_prob(
    const Tensor& logits,
    const Tensor& x,
    int64_t class_dim,
    int64_t event_ndim) {
  const CategoricalLayout in(logits, x, class_dim, event_ndim);
  Tensor out = at::empty(
      categorical_sums(logits, class_dim, event_ndim),
      logits.options().dtype(sum_dtype(logits)));
  if (logits.numel() == 0) {
    out.zero_();
  } else {
    CategoricalArgs args{
        in.outer,
        in.classes,
        in.inner,
        in.event,
        in.logits.operand,
        in.x.operand,
        out.mutable_data_ptr(),
        false};
    kernels<LikelihoodKernels>().categorical(args);
    TORCH_CHECK_VALUE(!args.invalid, kClassError, in.classes - 1);
  }
  for (int64_t i = 0; i < in.leading_event; ++i) {
    out = out.sum(-1);
  }
  return out;
}

Tensor categorical_log_prob_backward(
    const Tensor& grad,
    const Tensor& logits,
    const Tensor& x,
    int64_t class_dim,
    int64_t event_ndim,
    std::array<bool, 1> mask) {
  if (!mask[0]) {
    return at::empty({0}, logits.options());
  }
  const CategoricalLayout in(logits, x, class_dim, event_ndim);
  Tensor grad_sums = grad.to(sum_dtype(logits));
  for (int64_t i = 0; i < in.leading_event; ++i) {
    grad_sums = grad_sums.unsqueeze(-1);
  }
  grad_sums = grad_sums.expand(categorical_sums(logits, class_dim, event_ndim)).contiguous();
  Tensor grad_logits = empty_output(logits.sizes(), logits.scalar_type());
  if (logits.numel() > 0) {
    kernels<LikelihoodKernels>().categorical_grad(
        {in.outer,
         in.classes,
         in.inner,
         in.event,
         in.logits.operand,
         in.x.operand,
         grad_sums.const_data_ptr(),
         grad_logits.mutable_data_ptr(),
         worth_streaming(grad_logits)});
  }
  return grad_logits;
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("bernoulli_log_prob", &dgm_fast::bernoulli_log_prob);
  m.impl("bernoulli_log_prob_backward", &dgm_fast::bernoulli_log_prob_backward);
  m.impl("gaussian_log_prob", &dgm_fast::gaussian_log_prob);
  m.impl("gaussian_log_prob_backward", &dgm_fast::gaussian_log_prob_backward);
  m.impl("categorical_log_prob", &dgm_fast::categorical_log_prob);
  m.impl("categorical_log_prob_backward", &dgm_fast::categorical_log_prob_backward);
}
