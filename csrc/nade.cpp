// CPU functions of the NADE family: layout and allocation around the kernels.

#include "cpu/nade_table.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Rows that the kernels sum on their own before they add the sums.
constexpr int64_t kRowTile = 32;
// Hidden units that give the threads enough to share; with fewer, the rows are split too.
constexpr int64_t kSharedUnits = 256;

int64_t num_parts(int64_t rows, int64_t hidden) {
  const int64_t tiles = (rows + kRowTile - 1) / kRowTile;
  const int64_t wanted = kSharedUnits / std::max<int64_t>(16, hidden);
  return std::max<int64_t>(1, std::min(tiles, wanted));
}

// Arguments in the sum's dtype, kept alive beside the pointers to them.
class Operands {
 public:
  explicit Operands(at::ScalarType sum) : sum_(sum) {}

  const void* keep(const Tensor& t) {
    held_.push_back(t.to(sum_).contiguous());
    return held_.back().const_data_ptr();
  }

 private:
  at::ScalarType sum_;
  std::vector<Tensor> held_;
};

struct NadeLayout {
  at::ScalarType sum;
  Operands operands;
  NadeArgs args{};

  NadeLayout(
      const Tensor& x, const Tensor& W, const Tensor& c, const Tensor& V, const Tensor& b)
      : sum(sum_dtype(W)), operands(sum) {
    args.rows = x.size(0);
    args.size = x.size(1);
    args.hidden = W.size(0);
    args.dtype = dtype_code(sum);
    args.x = operands.keep(x);
    args.weight = operands.keep(W);
    args.bias = operands.keep(c);
    args.output = operands.keep(V);
    args.output_bias = operands.keep(b);
  }
};

std::tuple<Tensor, Tensor> nade_log_prob(
    const Tensor& x,
    const Tensor& W,
    const Tensor& c,
    const Tensor& V,
    const Tensor& b) {
  NadeLayout in(x, W, c, V, b);
  const auto options = W.options().dtype(in.sum);
  Tensor out = at::empty({in.args.rows}, options);
  Tensor logits = at::empty({in.args.rows, in.args.size}, options);
  in.args.out = out.mutable_data_ptr();
  in.args.logits = logits.mutable_data_ptr();
  kernels<NadeKernels>().nade(in.args);
  TORCH_CHECK_VALUE(!in.args.invalid, kUnitIntervalError);
  return {out, logits};
}

// Room for the sums of parts, and the gradient they give.
struct PartialGradient {
  Tensor parts;

  PartialGradient(const Tensor& like, int64_t count, at::ScalarType sum) {
    std::vector<int64_t> sizes{count};
    sizes.insert(sizes.end(), like.sizes().begin(), like.sizes().end());
    parts = empty_output(sizes, sum);
  }

  Tensor finish(bool wanted, const Tensor& like) const {
    if (!wanted) {
      return at::empty({0}, like.options());
    }
    return (parts.size(0) == 1 ? parts.squeeze(0) : parts.sum(0)).to(like.scalar_type());
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> nade_log_prob_backward(
    const Tensor& grad,
    const Tensor& /*log_prob*/,
    const Tensor& logits,
    const Tensor& x,
    const Tensor& W,
    const Tensor& c,
    const Tensor& V,
    const Tensor& b,
    std::array<bool, 4> mask) {
  NadeLayout in(x, W, c, V, b);
  const Tensor kept_logits = logits.contiguous();
  // Only read there.
  in.args.logits = const_cast<void*>(kept_logits.const_data_ptr());
  const Tensor grad_rows = grad.to(in.sum).contiguous();
  const int64_t parts = num_parts(in.args.rows, in.args.hidden);
  const PartialGradient grad_W(W, parts, in.sum);
  const PartialGradient grad_c(c, parts, in.sum);
  const PartialGradient grad_V(V, parts, in.sum);
  const PartialGradient grad_b(b, 1, in.sum);
  kernels<NadeKernels>().nade_grad(
      {in.args,
       parts,
       grad_rows.const_data_ptr(),
       grad_W.parts.mutable_data_ptr(),
       grad_c.parts.mutable_data_ptr(),
       grad_V.parts.mutable_data_ptr(),
       grad_b.parts.mutable_data_ptr()});
  return {
      grad_W.finish(mask[0], W),
      grad_c.finish(mask[1], c),
      grad_V.finish(mask[2], V),
      grad_b.finish(mask[3], b)};
}

// Class indices, all of them valid.
Tensor checked_classes(const Tensor& x, int64_t classes) {
  const Tensor indices = class_indices(x, classes);
  const auto* p = indices.const_data_ptr<int32_t>();
  const bool valid = std::all_of(p, p + indices.numel(), [](int32_t i) { return i >= 0; });
  TORCH_CHECK_VALUE(valid, kClassError, classes - 1);
  return indices;
}

// Hidden units, and one or three layers of outputs on them.
struct OutputsLayout {
  at::ScalarType sum;
  Operands operands;
  Tensor indices; // of classes; keeps their memory
  NadeOutputsArgs args{};

  OutputsLayout(int64_t rows, const Tensor& W, const Tensor& c) : sum(sum_dtype(W)), operands(sum) {
    args.rows = rows;
    args.hidden = W.size(0);
    args.size = W.size(1);
    args.classes = W.dim() == 3 ? W.size(2) : 0;
    args.dtype = dtype_code(sum);
    args.weight = operands.keep(W);
    args.bias = operands.keep(c);
  }

  // V [size, outputs, hidden] or [size, hidden]
  void add_layer(const Tensor& V, const Tensor& b) {
    args.layer_outputs[args.layers] = V.dim() == 3 ? V.size(1) : 1;
    args.layer_weight[args.layers] = operands.keep(V);
    args.layer_bias[args.layers] = operands.keep(b);
    ++args.layers;
  }

  void set_classes(const Tensor& x) {
    indices = checked_classes(x, args.classes);
    args.x = indices.const_data_ptr();
  }

  Tensor compute(const at::TensorOptions& options) {
    Tensor outputs =
        at::empty({args.rows, args.size, args.num_outputs()}, options.dtype(sum));
    args.outputs = outputs.mutable_data_ptr();
    kernels<NadeKernels>().nade_outputs(args);
    return outputs;
  }
};

// Gradients of everything below the outputs, from those of the outputs.
class OutputsGradient {
 public:
  Tensor grad_x; // without what reaches x directly; undefined where not wanted

  OutputsGradient(
      const OutputsLayout& in,
      const Tensor& grad_outputs,
      const Tensor& W,
      const Tensor& c,
      bool with_x,
      const OptionalTensor& scale,
      bool with_scale)
      : in_(in.args), grad_outputs_(grad_outputs) {
    constexpr int64_t kMaxShares = 16;
    // Numbers in the partial sums of a layer, all parts together.
    constexpr int64_t kMaxEntries = 1 << 22;
    const int64_t entries = in_.size * in_.num_outputs() * in_.hidden;
    const int64_t parts = std::min(
        num_parts(in_.rows, in_.hidden),
        std::max<int64_t>(1, kMaxEntries / std::max<int64_t>(1, entries)));
    const int64_t shares =
        std::clamp<int64_t>(in_.hidden / 16, 1, kMaxShares);
    NadeOutputsGradArgs args{};
    args.in = in_;
    args.parts = parts;
    args.shares = shares;
    args.grad = grad_outputs.const_data_ptr();
    weight_.emplace(W, parts, in.sum);
    bias_.emplace(c, parts, in.sum);
    args.grad_weight = weight_->parts.mutable_data_ptr();
    args.grad_bias = bias_->parts.mutable_data_ptr();
    for (int i = 0; i < in_.layers; ++i) {
      layers_.push_back(
          empty_output({parts, in_.size, in_.layer_outputs[i], in_.hidden}, in.sum));
      args.grad_layer_weight[i] = layers_.back().mutable_data_ptr();
    }
    const auto options = grad_outputs.options();
    if (with_x) {
      grad_x = at::zeros({shares, in_.rows, in_.size}, options);
      args.grad_x = grad_x.mutable_data_ptr();
    }
    if (with_scale && scale.has_value()) {
      scale_ = at::zeros({shares * parts, in_.size}, options);
      args.grad_scale = scale_.mutable_data_ptr();
    }
    kernels<NadeKernels>().nade_outputs_grad(args);
    if (with_x) {
      grad_x = grad_x.sum(0);
    }
  }

  Tensor weight(bool wanted, const Tensor& like) const {
    return weight_->finish(wanted, like);
  }

  Tensor bias(bool wanted, const Tensor& like) const {
    return bias_->finish(wanted, like);
  }

  Tensor layer_weight(bool wanted, int i, const Tensor& like) const {
    if (!wanted) {
      return at::empty({0}, like.options());
    }
    const Tensor& all = layers_[i];
    return (all.size(0) == 1 ? all.squeeze(0) : all.sum(0)).to(like.scalar_type());
  }

  Tensor layer_bias(bool wanted, int i, const Tensor& like) const {
    if (!wanted) {
      return at::empty({0}, like.options());
    }
    int64_t first = 0;
    for (int k = 0; k < i; ++k) {
      first += in_.layer_outputs[k];
    }
    return grad_outputs_.narrow(2, first, in_.layer_outputs[i])
        .sum(0)
        .to(like.scalar_type());
  }

  Tensor scale(const Tensor& like) const {
    return (scale_.defined() ? scale_.sum(0) : at::empty({0}, like.options()))
        .to(like.scalar_type());
  }

 private:
  NadeOutputsArgs in_;
  Tensor grad_outputs_;
  std::optional<PartialGradient> weight_, bias_;
  std::vector<Tensor> layers_;
  Tensor scale_;
};

std::tuple<Tensor, Tensor> nade_categorical_log_prob(
    const Tensor& x,
    const Tensor& W,
    const Tensor& c,
    const Tensor& V,
    const Tensor& b) {
  OutputsLayout in(x.size(0), W, c);
  in.add_layer(V, b);
  in.set_classes(x);
  Tensor logits = in.compute(W.options());
  Tensor out = at::empty({in.args.rows}, logits.options());
  kernels<NadeKernels>().nade_categorical(
      {in.args.rows,
       in.args.size,
       in.args.classes,
       in.args.dtype,
       logits.const_data_ptr(),
       in.args.x,
       out.mutable_data_ptr()});
  return {out, logits};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> nade_categorical_log_prob_backward(
    const Tensor& grad,
    const Tensor& /*log_prob*/,
    const Tensor& logits,
    const Tensor& x,
    const Tensor& W,
    const Tensor& c,
    const Tensor& V,
    const Tensor& b,
    std::array<bool, 4> mask) {
  OutputsLayout in(x.size(0), W, c);
  in.add_layer(V, b);
  in.set_classes(x);
  const Tensor kept = logits.contiguous();
  const Tensor grad_rows = grad.to(in.sum).contiguous();
  Tensor grad_logits = at::empty(kept.sizes(), kept.options());
  kernels<NadeKernels>().nade_categorical_grad(
      {{in.args.rows,
        in.args.size,
        in.args.classes,
        in.args.dtype,
        kept.const_data_ptr(),
        in.args.x,
        nullptr},
       grad_rows.const_data_ptr(),
       grad_logits.mutable_data_ptr()});
  const OutputsGradient gradient(in, grad_logits, W, c, false, std::nullopt, false);
  return {
      gradient.weight(mask[0], W),
      gradient.bias(mask[1], c),
      gradient.layer_weight(mask[2], 0, V),
      gradient.layer_bias(mask[3], 0, b)};
}

// The layers of a mixture's outputs: weight logits (or none, for equal weights), means and log-scales.
OutputsLayout mixture_layout(
    int64_t rows,
    const Tensor& W,
    const Tensor& c,
    const OptionalTensor& V_logits,
    const OptionalTensor& b_logits,
    const Tensor& V_means,
    const Tensor& b_means,
    const Tensor& V_log_scales,
    const Tensor& b_log_scales,
    const OptionalTensor& activation_scale) {
  OutputsLayout in(rows, W, c);
  if (V_logits.has_value()) {
    in.add_layer(*V_logits, *b_logits);
  }
  in.add_layer(V_means, b_means);
  in.add_layer(V_log_scales, b_log_scales);
  in.args.scale = activation_scale.has_value() ? in.operands.keep(*activation_scale) : nullptr;
  return in;
}

std::tuple<Tensor, Tensor> rnade_log_prob(
    const Tensor& x,
    const Tensor& W,
    const Tensor& c,
    const OptionalTensor& V_logits,
    const OptionalTensor& b_logits,
    const Tensor& V_means,
    const Tensor& b_means,
    const Tensor& V_log_scales,
    const Tensor& b_log_scales,
    const OptionalTensor& activation_scale,
    int64_t mixture) {
  OutputsLayout in = mixture_layout(
      x.size(0),
      W,
      c,
      V_logits,
      b_logits,
      V_means,
      b_means,
      V_log_scales,
      b_log_scales,
      activation_scale);
  in.args.x = in.operands.keep(x);
  Tensor outputs = in.compute(W.options());
  Tensor out = at::empty({in.args.rows}, outputs.options());
  kernels<NadeKernels>().nade_mixture(
      {in.args.rows,
       in.args.size,
       V_means.size(1),
       V_logits.has_value(),
       static_cast<Mixture>(mixture),
       in.args.dtype,
       outputs.const_data_ptr(),
       in.args.x,
       out.mutable_data_ptr()});
  return {out, outputs};
}

using TenTensors = std::
    tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

TenTensors rnade_log_prob_backward(
    const Tensor& grad,
    const Tensor& /*log_prob*/,
    const Tensor& outputs,
    const Tensor& x,
    const Tensor& W,
    const Tensor& c,
    const OptionalTensor& V_logits,
    const OptionalTensor& b_logits,
    const Tensor& V_means,
    const Tensor& b_means,
    const Tensor& V_log_scales,
    const Tensor& b_log_scales,
    const OptionalTensor& activation_scale,
    int64_t mixture,
    std::array<bool, 10> mask) {
  OutputsLayout in = mixture_layout(
      x.size(0),
      W,
      c,
      V_logits,
      b_logits,
      V_means,
      b_means,
      V_log_scales,
      b_log_scales,
      activation_scale);
  in.args.x = in.operands.keep(x);
  const Tensor kept = outputs.contiguous();
  const Tensor grad_rows = grad.to(in.sum).contiguous();
  Tensor grad_outputs = at::empty(kept.sizes(), kept.options());
  Tensor direct = mask[0] ? at::empty(x.sizes(), kept.options()) : Tensor();
  kernels<NadeKernels>().nade_mixture_grad(
      {{in.args.rows,
        in.args.size,
        V_means.size(1),
        V_logits.has_value(),
        static_cast<Mixture>(mixture),
        in.args.dtype,
        kept.const_data_ptr(),
        in.args.x,
        nullptr},
       grad_rows.const_data_ptr(),
       grad_outputs.mutable_data_ptr(),
       mask[0] ? direct.mutable_data_ptr() : nullptr});
  const OutputsGradient gradient(in, grad_outputs, W, c, mask[0], activation_scale, mask[9]);
  const int first = V_logits.has_value() ? 1 : 0;
  const Tensor none = at::empty({0}, W.options());
  return {
      mask[0] ? direct.add_(gradient.grad_x).to(x.scalar_type()) : at::empty({0}, x.options()),
      gradient.weight(mask[1], W),
      gradient.bias(mask[2], c),
      V_logits.has_value() ? gradient.layer_weight(mask[3], 0, *V_logits) : none,
      b_logits.has_value() ? gradient.layer_bias(mask[4], 0, *b_logits) : none,
      gradient.layer_weight(mask[5], first, V_means),
      gradient.layer_bias(mask[6], first, b_means),
      gradient.layer_weight(mask[7], first + 1, V_log_scales),
      gradient.layer_bias(mask[8], first + 1, b_log_scales),
      activation_scale.has_value() ? gradient.scale(*activation_scale) : none};
}

// Samples, where `values` are kept where `given`. Noise is in the sum's dtype.
Tensor run_sampler(
    OutputsLayout& in,
    NadeDraw draw,
    const Tensor& noise,
    const Tensor& values,
    const OptionalTensor& given,
    Mixture mixture = Mixture::Gaussian,
    bool with_logits = false) {
  NadeSampleArgs args{};
  args.in = in.args;
  args.draw = draw;
  args.mixture = mixture;
  args.with_logits = with_logits;
  args.noise = in.operands.keep(noise);
  Tensor mask;
  if (given.has_value()) {
    mask = given->contiguous();
    args.given = mask.const_data_ptr<bool>();
    args.values = values.const_data_ptr();
  }
  const bool classes = draw == NadeDraw::Categorical;
  Tensor samples = at::empty(
      {in.args.rows, in.args.size}, noise.options().dtype(classes ? at::kInt : in.sum));
  args.samples = samples.mutable_data_ptr();
  kernels<NadeKernels>().nade_sample(args);
  return samples;
}

Tensor nade_sample(
    const Tensor& W,
    const Tensor& c,
    const Tensor& V,
    const Tensor& b,
    const Tensor& noise,
    const OptionalTensor& values,
    const OptionalTensor& given) {
  OutputsLayout in(noise.size(0), W, c);
  in.add_layer(V, b);
  Tensor kept;
  if (given.has_value()) {
    // Entries that are not given may hold anything.
    kept = at::where(*given, values->to(in.sum), at::zeros({}, values->options().dtype(in.sum)))
               .contiguous();
    const bool valid = kept.ge(0).logical_and_(kept.le(1)).all().item<bool>();
    TORCH_CHECK_VALUE(valid, kUnitIntervalError);
  }
  return run_sampler(in, NadeDraw::Bernoulli, noise, kept, given);
}

Tensor nade_categorical_sample(
    const Tensor& W,
    const Tensor& c,
    const Tensor& V,
    const Tensor& b,
    const Tensor& noise,
    const OptionalTensor& values,
    const OptionalTensor& given) {
  OutputsLayout in(noise.size(0), W, c);
  in.add_layer(V, b);
  Tensor kept;
  if (given.has_value()) {
    kept = checked_classes(at::where(*given, *values, at::zeros({}, values->options())), in.args.classes);
  }
  return run_sampler(in, NadeDraw::Categorical, noise, kept, given).to(at::kLong);
}

Tensor rnade_sample(
    const Tensor& W,
    const Tensor& c,
    const OptionalTensor& V_logits,
    const OptionalTensor& b_logits,
    const Tensor& V_means,
    const Tensor& b_means,
    const Tensor& V_log_scales,
    const Tensor& b_log_scales,
    const OptionalTensor& activation_scale,
    const Tensor& noise,
    const OptionalTensor& values,
    const OptionalTensor& given,
    int64_t mixture) {
  OutputsLayout in = mixture_layout(
      noise.size(0),
      W,
      c,
      V_logits,
      b_logits,
      V_means,
      b_means,
      V_log_scales,
      b_log_scales,
      activation_scale);
  const Tensor kept = given.has_value() ? values->to(in.sum).contiguous() : Tensor();
  return run_sampler(
      in,
      NadeDraw::Mixture,
      noise,
      kept,
      given,
      static_cast<Mixture>(mixture),
      V_logits.has_value());
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("nade_log_prob", &dgm_fast::nade_log_prob);
  m.impl("nade_log_prob_backward", &dgm_fast::nade_log_prob_backward);
  m.impl("nade_categorical_log_prob", &dgm_fast::nade_categorical_log_prob);
  m.impl("nade_categorical_log_prob_backward", &dgm_fast::nade_categorical_log_prob_backward);
  m.impl("rnade_log_prob", &dgm_fast::rnade_log_prob);
  m.impl("rnade_log_prob_backward", &dgm_fast::rnade_log_prob_backward);
  m.impl("nade_sample", &dgm_fast::nade_sample);
  m.impl("nade_categorical_sample", &dgm_fast::nade_categorical_sample);
  m.impl("rnade_sample", &dgm_fast::rnade_sample);
}
