// A critic's whole step in one op: loss, gradient penalty and the gradients of every parameter, for a chain of linear
// and convolutional layers with leaky ReLUs between them.
//
// Masks are constant almost everywhere, so that the penalty's gradient has a closed form. With h_l the activations, b_l
// the signals behind layer l of a unit seed at the output, M_l the masks, g = W_1^T b_1 the gradient in the input, and
// u = d penalty / d g, the tangents t_0 = u, t_l = M_l W_l t_(l-1) give d penalty / d W_l = sum_i b_(l,i) t_(l-1,i)^T.
// One product per layer forms that beside the loss's own gradient, since both are sums of signals times something of
// the layer's input: the tangents take the mixed samples' place in h.
//
// Where the penalty is taken at samples of the loss (R1, R2), their signals are those of the loss but for the factor
// l'_i: d (loss + penalty) / d W_l = sum_i b_(l,i) (l'_i h_(l-1,i) + t_(l-1,i))^T. The bracket is propagated as one. With
// l'_i = m_i 2^e_i the signals propagated are m_i b_(l,i), and the bracket is 2^e_i h_(l-1,i) + t_(l-1,i) / m_i: signals of
// a common seed would be rounded alike in all samples, and sums over samples of both signs would be left with those
// errors where the signals themselves cancel.

#include "cpu/adversarial_table.h"
#include "few_channels.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

namespace dgm_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Where the penalty is taken; alone: at the real samples, without a loss.
enum Penalty : int64_t { kNone, kMixed, kAtReal, kAtFake, kAlone };

const AdversarialKernels& table() {
  return kernels<AdversarialKernels>();
}

// Integers of a layer in the op's `geometry`: whether it is a convolution, whether it has a bias, stride, padding,
// dilation (two each), groups.
constexpr size_t kGeometry = 9;
// Bytes of the largest activation of a micro-batch of a convolutional critic: with its companions it stays in the cache.
constexpr int64_t kMicroBatchBytes = 2 << 20;

// A tensor's memory in the order of channels last, also where a channel count of one leaves that open.
Tensor channels_last(const Tensor& t) {
  if (t.dim() != 4) {
    return t.contiguous();
  }
  const Tensor dense = t.contiguous(at::MemoryFormat::ChannelsLast);
  const auto c = t.size(1);
  const auto h = t.size(2);
  const auto w = t.size(3);
  return dense.as_strided(t.sizes(), {c * h * w, 1, w * c, c});
}

// An output in that order.
Tensor empty_channels_last(at::IntArrayRef sizes, at::ScalarType dtype) {
  if (sizes.size() != 4) {
    return empty_output(sizes, dtype);
  }
  return empty_output({sizes[0], sizes[2], sizes[3], sizes[1]}, dtype).permute({0, 3, 1, 2});
}

struct Layer {
  bool conv;
  Tensor weight, bias; // bias may be undefined
  double slope;
  c10::SmallVector<int64_t, 2> stride, padding, dilation;
  int64_t groups;
  // Of a linear layer behind a convolution: the sizes [C, H, W] of its input, in whose order of memory, channels
  // last, `weight` has been put.
  c10::SmallVector<int64_t, 3> flattened;
  Tensor grad_weight, grad_bias;

  Tensor apply(const Tensor& x) const {
    if (!conv) {
      return at::mm(as_rows(x), weight.t());
    }
    const Tensor out =
        at::convolution(x, weight, {}, stride, padding, dilation, false, {0, 0}, groups);
    return channels_last(out);
  }

  // The signal in front of this layer; `x` has the sizes of its input.
  Tensor transpose(const Tensor& signal, const Tensor& x) const {
    if (!conv) {
      return at::mm(signal, weight);
    }
    if (has_few_channels(weight, groups)) {
      return channels_last(input_gradient_by_columns(
          signal, weight, x.sizes().slice(2), stride, padding, dilation));
    }
    return channels_last(std::get<0>(backward(signal, x, {true, false, false})));
  }

  void add_weight_gradient(const Tensor& signal, const Tensor& x) {
    const Tensor part = conv ? std::get<1>(backward(signal, x, {false, true, false}))
                             : at::mm(signal.t(), as_rows(x));
    if (grad_weight.defined()) {
      grad_weight.add_(part);
    } else {
      grad_weight = part;
    }
  }

  void add_bias_gradient(const Tensor& sums) {
    if (!grad_bias.defined()) {
      grad_bias = sums;
    } else {
      grad_bias.add_(sums);
    }
  }

  std::tuple<Tensor, Tensor, Tensor> backward(
      const Tensor& signal, const Tensor& x, std::array<bool, 3> mask) const {
    return at::convolution_backward(
        signal, x, weight, std::nullopt, stride, padding, dilation, false, {0, 0}, groups, mask);
  }

  // Rows of the memory as it lies: [rows, spatial and channels].
  static Tensor as_rows(const Tensor& x) {
    return x.dim() == 4 ? x.permute({0, 2, 3, 1}).reshape({x.size(0), -1}) : x;
  }
};

// [rows, spatial, channels] of a tensor in that order of memory.
struct Shape {
  int64_t rows, spatial, channels;

  explicit Shape(const Tensor& t)
      : rows(t.size(0)),
        spatial(t.dim() == 4 ? t.size(2) * t.size(3) : 1),
        channels(t.size(1)) {}
};

const void* data_or_null(const Tensor& t) {
  return t.defined() ? t.const_data_ptr() : nullptr;
}

Dtype code(const Tensor& t) {
  return dtype_code(t.scalar_type());
}

class CriticStep {
 public:
  CriticStep(
      at::TensorList parameters,
      at::IntArrayRef geometry,
      at::ArrayRef<double> slopes,
      int64_t real_term,
      int64_t fake_term,
      int64_t penalty,
      double weight,
      double center,
      bool one_sided,
      bool with_gradients)
      : real_term_(real_term),
        fake_term_(fake_term),
        penalty_(penalty),
        weight_(weight),
        center_(center),
        one_sided_(one_sided),
        with_gradients_(with_gradients) {
    size_t next = 0;
    for (size_t l = 0; l < slopes.size(); ++l) {
      const auto at = geometry.slice(l * kGeometry, kGeometry);
      Layer layer;
      layer.conv = at[0] != 0;
      layer.slope = slopes[l];
      layer.weight = layer.conv ? channels_last(parameters[next]) : parameters[next].contiguous();
      ++next;
      if (at[1] != 0) {
        layer.bias = parameters[next++].contiguous();
      }
      layer.stride = {at[2], at[3]};
      layer.padding = {at[4], at[5]};
      layer.dilation = {at[6], at[7]};
      layer.groups = at[8];
      layers_.push_back(std::move(layer));
    }
  }

  std::tuple<Tensor, std::vector<Tensor>> run(
      const Tensor& real, const Tensor& fake, const std::optional<Tensor>& eps) {
    count_ = real.size(0);
    dtype_ = layers_[0].weight.scalar_type();
    const int64_t size = micro_batch(real);
    for (int64_t begin = 0; begin < count_; begin += size) {
      const int64_t n = std::min(size, count_ - begin);
      part(
          real.narrow(0, begin, n),
          fake.narrow(0, begin, n),
          eps.has_value() ? eps->narrow(0, begin, n) : Tensor());
    }
    Tensor loss = at::empty({}, real.options().dtype(dtype_));
    loss.fill_(loss_ + penalty_sum_ * penalty_scale());
    std::vector<Tensor> gradients;
    if (with_gradients_) {
      for (auto& layer : layers_) {
        gradients.push_back(finished(layer));
        if (layer.bias.defined()) {
          gradients.push_back(
              layer.grad_bias.defined() ? layer.grad_bias.view_as(layer.bias)
                                        : at::zeros_like(layer.bias));
        }
      }
    }
    return {loss, gradients};
  }

 private:
  double penalty_scale() const {
    return weight_ / static_cast<double>(count_);
  }

  // Samples at a time: all of an MLP's, whose products want many rows; few images, so that what one layer writes
  // the next finds in the cache.
  int64_t micro_batch(const Tensor& real) const {
    if (!layers_[0].conv) {
      return count_;
    }
    int64_t largest = real.numel() / count_;
    int64_t h = real.size(2);
    int64_t w = real.size(3);
    for (const auto& layer : layers_) {
      if (!layer.conv) {
        break;
      }
      const auto extent = [&](int64_t in, int d) {
        const int64_t kernel = layer.dilation[d] * (layer.weight.size(2 + d) - 1) + 1;
        return (in + 2 * layer.padding[d] - kernel) / layer.stride[d] + 1;
      };
      h = extent(h, 0);
      w = extent(w, 1);
      largest = std::max(largest, layer.weight.size(0) * h * w);
    }
    const int64_t bytes = 3 * largest * static_cast<int64_t>(c10::elementSize(dtype_));
    const int64_t fitting = std::max<int64_t>(8, kMicroBatchBytes / std::max<int64_t>(1, bytes));
    // Equal parts.
    const int64_t parts = (count_ + fitting - 1) / fitting;
    return (count_ + parts - 1) / parts;
  }

  // The gradient of a weight in the order of its parameter.
  static Tensor finished(const Layer& layer) {
    if (layer.flattened.empty()) {
      return layer.grad_weight.contiguous();
    }
    const auto& f = layer.flattened;
    return layer.grad_weight.view({-1, f[1], f[2], f[0]})
        .permute({0, 3, 1, 2})
        .reshape(layer.grad_weight.sizes());
  }

  // A linear layer's weight in the order in which its input lies in memory.
  void match_input(Layer& layer, const Tensor& x) {
    if (layer.conv || x.dim() != 4 || !layer.flattened.empty()) {
      return;
    }
    layer.flattened = {x.size(1), x.size(2), x.size(3)};
    layer.weight = layer.weight.view({-1, x.size(1), x.size(2), x.size(3)})
                       .permute({0, 2, 3, 1})
                       .reshape(layer.weight.sizes());
  }

  void part(const Tensor& real, const Tensor& fake, const Tensor& eps) {
    const int64_t n = real.size(0);
    const bool mixed = penalty_ == kMixed;
    const bool at_sample = penalty_ == kAtReal || penalty_ == kAtFake;
    const bool alone = penalty_ == kAlone;
    const int64_t slots = mixed ? 3 : alone ? 1 : 2;
    // Rows whose signals are those of the loss, and count in the gradients of biases.
    const int64_t counted = alone ? 0 : 2 * n;
    const size_t last = layers_.size() - 1;

    // Inputs stacked: real, fake, and room for the direction of the penalty.
    auto sizes = real.sizes().vec();
    sizes[0] = slots * n;
    std::vector<Tensor> h; // h[l]: the input of layer l
    h.push_back(empty_channels_last(sizes, dtype_));
    h[0].narrow(0, 0, n).copy_(real);
    if (!alone) {
      h[0].narrow(0, n, n).copy_(fake);
    }

    // Forward. The last layer's outputs are wanted of the loss's samples only.
    Tensor out;
    for (size_t l = 0; l <= last; ++l) {
      match_input(layers_[l], h[l]);
      const bool narrow = mixed && (l == 0 || l == last);
      const Tensor a = layers_[l].apply(narrow ? h[l].narrow(0, 0, 2 * n) : h[l]);
      if (l == last) {
        out = activated(layers_[l], a);
      } else if (l == 0 && mixed) {
        h.push_back(mixed_activated(layers_[l], a, eps));
      } else {
        h.push_back(activated(layers_[l], a));
      }
    }

    // Loss and its derivative in the outputs.
    Tensor seeds = at::empty_like(out);
    if (alone) {
      seeds.fill_(1);
    } else {
      const double total =
          static_cast<double>(count_) * static_cast<double>(out.numel() / (2 * n));
      loss_ += term(out.narrow(0, 0, n), real_term_, total, seeds.narrow(0, 0, n));
      loss_ += term(out.narrow(0, n, n), fake_term_, total, seeds.narrow(0, n, n));
    }
    if (!with_gradients_ && penalty_ == kNone) {
      return;
    }

    // Seeds of the signals: the loss's, but for a factor where the penalty's gradient is wanted.
    const int64_t first = penalty_ == kAtFake ? n : penalty_ == kMixed ? 2 * n : 0;
    Tensor row_scale, unit_scale;
    Tensor all_seeds = seeds;
    if (mixed) {
      all_seeds = with_mixed(seeds, at::ones({1}, seeds.options()));
    } else if (at_sample) {
      all_seeds = seeds.clone();
      row_scale = at::ones({2 * n}, seeds.options());
      unit_scale = at::empty({n}, seeds.options());
      split_seeds(all_seeds.narrow(0, first, n), row_scale.narrow(0, first, n), unit_scale);
    }
    if (layers_[last].slope != 1.0) {
      // A final activation belongs to the signal; that of mixed samples needs their outputs too.
      const Tensor outputs = mixed
          ? with_mixed(
                out, activated(layers_[last], layers_[last].apply(h[last].narrow(0, 2 * n, n))))
          : out;
      mask_signal(layers_[last], all_seeds, outputs);
    }

    // Signals, from the last layer to the first.
    std::vector<Tensor> signals(layers_.size());
    signals[last] = all_seeds;
    bias_sums(layers_[last], all_seeds, counted, row_scale);
    for (size_t l = last; l > 0; --l) {
      Layer& layer = layers_[l];
      Layer& below = layers_[l - 1];
      const bool outer = !layer.conv && layer.weight.size(0) == 1;
      signals[l - 1] = outer ? empty_channels_last(h[l].sizes(), dtype_) : as_input(layer.transpose(signals[l], h[l]), h[l]);
      run_signal(below, signals[l - 1], h[l], outer ? signals[l] : Tensor(), outer ? layer.weight : Tensor(), counted, row_scale);
    }

    if (penalty_ != kNone) {
      const Tensor gradient = as_input(
          layers_[0].transpose(signals[0].narrow(0, first, n), h[0].narrow(0, first, n)),
          h[0].narrow(0, first, n));
      const Tensor scale = at_sample ? row_scale.narrow(0, first, n) : Tensor();
      penalise(gradient, h[0].narrow(0, first, n), scale, unit_scale);
      if (!with_gradients_) {
        return;
      }
      // Tangents take the samples' place in the inputs of the layers.
      for (size_t l = 0; l < last; ++l) {
        const Tensor t = layers_[l].apply(h[l].narrow(0, first, n));
        const Tensor to = h[l + 1].narrow(0, first, n);
        const Shape shape(to);
        table().tangent(
            {shape.rows,
             shape.spatial,
             shape.channels,
             code(to),
             t.const_data_ptr(),
             data_or_null(scale),
             data_or_null(layers_[l].bias),
             layers_[l].slope,
             to.mutable_data_ptr()});
      }
    }
    for (size_t l = 0; l <= last; ++l) {
      layers_[l].add_weight_gradient(signals[l], h[l]);
    }
  }

  // Leaves mantissas in `seeds` (1 for 0), powers of two in `powers`, and inverses of the mantissas.
  static void split_seeds(const Tensor& seeds, const Tensor& powers, const Tensor& inverses) {
    const auto split = [&](auto zero) {
      using A = decltype(zero);
      auto* seed = seeds.mutable_data_ptr<A>();
      auto* power = powers.mutable_data_ptr<A>();
      auto* inverse = inverses.mutable_data_ptr<A>();
      for (int64_t i = 0; i < seeds.numel(); ++i) {
        int exponent = 0;
        const A mantissa = std::frexp(seed[i], &exponent);
        power[i] = mantissa == 0 ? A(0) : std::ldexp(A(1), exponent);
        seed[i] = mantissa == 0 ? A(1) : mantissa;
        inverse[i] = A(1) / seed[i];
      }
    };
    if (seeds.scalar_type() == at::kDouble) {
      split(0.0);
    } else {
      split(0.0F);
    }
  }

  // What belongs to the loss's samples with what belongs to the mixed ones below it.
  Tensor with_mixed(const Tensor& of_loss, const Tensor& of_mixed) const {
    auto sizes = of_loss.sizes().vec();
    const int64_t n = sizes[0] / 2;
    sizes[0] = 3 * n;
    Tensor both = empty_channels_last(sizes, dtype_);
    both.narrow(0, 0, 2 * n).copy_(of_loss);
    both.narrow(0, 2 * n, n).copy_(of_mixed);
    return both;
  }

  // A signal in the sizes of the layer's input: an image again where the layer flattened one.
  static Tensor as_input(const Tensor& signal, const Tensor& x) {
    if (signal.dim() == x.dim()) {
      return signal;
    }
    return signal.view({x.size(0), x.size(2), x.size(3), x.size(1)}).permute({0, 3, 1, 2});
  }

  // In place where the result may take the pre-activation's memory.
  static Tensor activated(const Layer& layer, const Tensor& a) {
    if (layer.slope == 1.0 && !layer.bias.defined()) {
      return a;
    }
    const Shape shape(a);
    table().biased_activation(
        {shape.rows,
         shape.spatial,
         shape.channels,
         code(a),
         a.const_data_ptr(),
         data_or_null(layer.bias),
         layer.slope,
         a.mutable_data_ptr()});
    return a;
  }

  Tensor mixed_activated(const Layer& layer, const Tensor& a, const Tensor& eps) const {
    const int64_t n = a.size(0) / 2;
    auto sizes = a.sizes().vec();
    sizes[0] = 3 * n;
    Tensor h = empty_channels_last(sizes, dtype_);
    const Shape shape(a);
    table().mixed_activation(
        {n,
         shape.spatial,
         shape.channels,
         code(a),
         a.narrow(0, 0, n).const_data_ptr(),
         a.narrow(0, n, n).const_data_ptr(),
         eps.const_data_ptr(),
         data_or_null(layer.bias),
         layer.slope,
         h.mutable_data_ptr()});
    return h;
  }

  // The mean over the whole batch of this part's terms; their derivative into `grad`, which may be a dense view.
  static double term(const Tensor& v, int64_t signed_code, double total, const Tensor& grad) {
    const double scale = (signed_code < 0 ? -1.0 : 1.0) / total;
    LossTermArgs args{
        v.numel(),
        code(v),
        v.const_data_ptr(),
        static_cast<int>(std::abs(signed_code) - 1),
        2.0,
        0.5,
        scale,
        grad.mutable_data_ptr(),
        0};
    table().loss_term(args);
    return args.sum * scale;
  }

  static void mask_signal(const Layer& layer, const Tensor& signal, const Tensor& h) {
    const Shape shape(signal);
    table().signal(
        {shape.rows,
         shape.spatial,
         shape.channels,
         1,
         code(signal),
         h.const_data_ptr(),
         nullptr,
         nullptr,
         nullptr,
         layer.slope,
         signal.mutable_data_ptr(),
         nullptr});
  }

  // Masks the signal behind `layer`, or forms it from seeds and the next layer's single row of weights, and adds its
  // sums to the bias's gradient: of the first `counted` rows, whose seeds are the loss's.
  void run_signal(
      Layer& layer,
      const Tensor& signal,
      const Tensor& h,
      const Tensor& seed,
      const Tensor& weight,
      int64_t counted,
      const Tensor& row_scale) {
    const int64_t rows = signal.size(0);
    const int64_t split = counted;
    const bool mask = layer.slope != 1.0;
    const bool sums = with_gradients_ && layer.bias.defined();
    const auto run = [&](int64_t begin, int64_t n, bool with_sums) {
      if (n == 0 || (!mask && !weight.defined() && !with_sums)) {
        return;
      }
      const Tensor to = signal.narrow(0, begin, n);
      const Shape shape(to);
      const int64_t parts = num_chunks(n, shape.spatial * shape.channels);
      Tensor partial;
      if (with_sums) {
        partial = at::empty({parts, shape.channels}, to.options());
      }
      table().signal(
          {n,
           shape.spatial,
           shape.channels,
           parts,
           code(to),
           mask ? h.narrow(0, begin, n).const_data_ptr() : nullptr,
           seed.defined() ? seed.narrow(0, begin, n).const_data_ptr() : nullptr,
           data_or_null(weight),
           row_scale.defined() ? row_scale.narrow(0, begin, n).const_data_ptr() : nullptr,
           layer.slope,
           to.mutable_data_ptr(),
           with_sums ? partial.mutable_data_ptr() : nullptr});
      if (with_sums) {
        layer.add_bias_gradient(partial.sum(0));
      }
    };
    run(0, split, sums);
    run(split, rows - split, false);
  }

  // The last layer's bias: sums of the seeds.
  void bias_sums(Layer& layer, const Tensor& seeds, int64_t counted, const Tensor& row_scale) {
    if (!with_gradients_ || !layer.bias.defined()) {
      return;
    }
    Tensor rows = seeds.narrow(0, 0, counted);
    if (row_scale.defined()) {
      rows = at::mul(rows, row_scale.reshape({-1, 1}));
    }
    layer.add_bias_gradient(rows.dim() == 4 ? rows.sum(at::IntArrayRef{0, 2, 3}) : rows.sum(0));
  }

  // The penalty's value, and its direction (plus scale x) in x's place. unit_scale, where defined, makes the gradient that
  // of the outputs.
  void penalise(
      const Tensor& gradient, const Tensor& x, const Tensor& scale, const Tensor& unit_scale) {
    const int64_t n = gradient.size(0);
    const Tensor norms = at::empty({n}, gradient.options());
    NormPenaltyArgs args{
        n,
        gradient.numel() / n,
        code(gradient),
        gradient.const_data_ptr(),
        data_or_null(unit_scale),
        center_,
        one_sided_,
        norms.mutable_data_ptr(),
        0};
    table().norm_penalty(args);
    penalty_sum_ += args.sum;
    table().penalty_direction(
        {n,
         gradient.numel() / n,
         code(gradient),
         gradient.const_data_ptr(),
         data_or_null(unit_scale),
         norms.const_data_ptr(),
         penalty_scale(),
         center_,
         one_sided_,
         scale.defined() ? x.const_data_ptr() : nullptr,
         data_or_null(scale),
         x.mutable_data_ptr()});
  }

  std::vector<Layer> layers_;
  int64_t real_term_, fake_term_, penalty_;
  double weight_, center_;
  bool one_sided_, with_gradients_;
  int64_t count_ = 0;
  at::ScalarType dtype_ = at::kFloat;
  double loss_ = 0, penalty_sum_ = 0;
};

std::tuple<Tensor, std::vector<Tensor>> critic_step(
    const Tensor& real,
    const Tensor& fake,
    const std::optional<Tensor>& eps,
    at::TensorList parameters,
    at::IntArrayRef geometry,
    at::ArrayRef<double> slopes,
    int64_t real_term,
    int64_t fake_term,
    int64_t penalty,
    double weight,
    double center,
    bool one_sided,
    bool with_gradients) {
  CriticStep step(
      parameters,
      geometry,
      slopes,
      real_term,
      fake_term,
      penalty,
      weight,
      center,
      one_sided,
      with_gradients);
  return step.run(real, fake, eps);
}

struct CriticStepFunction : torch::autograd::Function<CriticStepFunction> {
  static Tensor forward(
      AutogradContext* ctx,
      at::TensorList parameters,
      const c10::OperatorHandle* op,
      torch::jit::Stack* stack,
      std::vector<Tensor>* gradients) {
    {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      op->callBoxed(stack);
    }
    *gradients = (*stack)[1].toTensorVector();
    ctx->save_for_backward(*gradients);
    return (*stack)[0].toTensor();
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    TORCH_CHECK(
        !at::GradMode::is_enabled(),
        "the explicit critic step is differentiable once; use method=\"exact\"");
    const auto saved = ctx->get_saved_variables();
    const Tensor& grad = grads[0];
    // The usual gradient of a loss is 1: on the CPU a look at it saves a pass over all parameters.
    const bool plain = grad.is_cpu() && !at::isTensorSubclassLike(grad) && saved.size() > 0 &&
        !at::isTensorSubclassLike(saved[0]);
    variable_list result = plain && grad.item<double>() == 1.0
        ? variable_list(saved.begin(), saved.end())
        : variable_list(at::_foreach_mul(saved, grad));
    // Forward's arguments that are no tensors.
    result.resize(result.size() + 3);
    return result;
  }
};

void critic_step_autograd(
    const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  constexpr size_t kParameters = 3;
  const auto first = stack->size() - op.schema().arguments().size();
  const auto parameters = (*stack)[first + kParameters].toTensorVector();
  const bool needed = at::GradMode::is_enabled() &&
      std::any_of(parameters.begin(), parameters.end(), [](const Tensor& t) {
                        return t.requires_grad();
                      });
  if (!needed) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    op.callBoxed(stack);
    return;
  }
  torch::jit::Stack arguments(
      std::make_move_iterator(stack->begin() + static_cast<int64_t>(first)),
      std::make_move_iterator(stack->end()));
  stack->resize(first);
  std::vector<Tensor> gradients;
  stack->emplace_back(
      CriticStepFunction::apply(at::TensorList(parameters), &op, &arguments, &gradients));
  stack->emplace_back(std::move(gradients));
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_FRAGMENT(dgm_fast, m) {
  m.def(
      "critic_step(Tensor real, Tensor fake, Tensor? eps, Tensor[] parameters, int[] geometry, float[] slopes, "
      "int real_term, int fake_term, int penalty, float weight, float center, bool one_sided, bool with_gradients) "
      "-> (Tensor, Tensor[])");
}

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("critic_step", &dgm_fast::critic_step);
}

TORCH_LIBRARY_IMPL(dgm_fast, Autograd, m) {
  m.impl("critic_step", torch::CppFunction::makeFromBoxedFunction<&dgm_fast::critic_step_autograd>());
}
