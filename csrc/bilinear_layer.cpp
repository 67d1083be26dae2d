// Linear and convolutional layers as bilinear maps of input and weight: three ops, each the derivative of the other two,
// so that a derivative of any order forms what is asked for and nothing else.
//
// The library's second derivative of a convolution forms the gradients of all three arguments whichever are wanted, that
// of the weight as a convolution of the batch with itself, at half the rate of its own kernel for it. Its linear layers
// form a weight's gradient as a transposed view in fresh memory, which autograd cannot add to in place.

#include "few_channels.h"
#include "layout.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

// `geometry` of a convolution: stride, padding, dilation (two each), groups. A linear layer has none.
constexpr size_t kGeometry = 7;

struct Geometry {
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;

  explicit Geometry(at::IntArrayRef numbers)
      : stride(numbers.slice(0, 2)),
        padding(numbers.slice(2, 2)),
        dilation(numbers.slice(4, 2)),
        groups(numbers[6]) {}
};

// Bytes of what a call on a part of the batch reads and writes: malloc has blocks of that size at hand. It gives larger ones
// back to the system, and the page faults of fresh memory then take up to a quarter of a critic's step.
constexpr int64_t kPartBytes = 2 << 20;
constexpr int64_t kFewestSamples = 8;

// visit(begin, count) for equal parts of the batch of a convolution between x and an output of `out_bytes`.
template <typename F>
void each_part(const Tensor& x, int64_t out_bytes, F&& visit) {
  const int64_t batch = x.size(0);
  const int64_t bytes = static_cast<int64_t>(x.nbytes()) + out_bytes;
  const int64_t sample = std::max<int64_t>(1, bytes / std::max<int64_t>(1, batch));
  const int64_t fitting = std::max(kFewestSamples, kPartBytes / sample);
  const int64_t parts = std::max<int64_t>(1, (batch + fitting - 1) / fitting);
  const int64_t size = std::max<int64_t>(1, (batch + parts - 1) / parts);
  int64_t begin = 0;
  do {
    visit(begin, std::min(size, batch - begin));
    begin += size;
  } while (begin < batch);
}

// Writes a part into the result of the whole batch, in the memory format of the first.
void put_part(Tensor& whole, const Tensor& part, int64_t begin, int64_t batch) {
  if (part.size(0) == batch) {
    whole = part;
    return;
  }
  if (!whole.defined()) {
    const auto s = part.sizes();
    const bool last = !part.is_contiguous() && part.is_contiguous(at::MemoryFormat::ChannelsLast);
    whole = last
        ? empty_output({batch, s[2], s[3], s[1]}, part.scalar_type()).permute({0, 3, 1, 2})
        : empty_output({batch, s[1], s[2], s[3]}, part.scalar_type());
  }
  whole.narrow(0, begin, part.size(0)).copy_(part);
}

void add_part(Tensor& sum, const Tensor& part) {
  if (sum.defined()) {
    sum.add_(part);
  } else {
    sum = part;
  }
}

std::tuple<Tensor, Tensor, Tensor> convolution_gradient(
    const Tensor& signal,
    const Tensor& x,
    const Tensor& weight,
    at::IntArrayRef geometry,
    std::array<bool, 3> wanted) {
  const Geometry g(geometry);
  const auto bias_sizes =
      wanted[2] ? at::OptionalIntArrayRef(weight.sizes().slice(0, 1)) : std::nullopt;
  Tensor of_x, of_weight, of_bias;
  each_part(x, static_cast<int64_t>(signal.nbytes()), [&](int64_t begin, int64_t count) {
    const auto [part_x, part_weight, part_bias] = at::convolution_backward(
        signal.narrow(0, begin, count),
        x.narrow(0, begin, count),
        weight,
        bias_sizes,
        g.stride,
        g.padding,
        g.dilation,
        false,
        {0, 0},
        g.groups,
        wanted);
    if (wanted[0]) {
      put_part(of_x, part_x, begin, x.size(0));
    }
    if (wanted[1]) {
      add_part(of_weight, part_weight);
    }
    if (wanted[2]) {
      add_part(of_bias, part_bias);
    }
  });
  return {of_x, of_weight, of_bias};
}

Tensor layer(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, at::IntArrayRef geometry) {
  if (geometry.empty()) {
    return bias.has_value() ? at::addmm(*bias, x, weight.t()) : at::mm(x, weight.t());
  }
  TORCH_CHECK(geometry.size() == kGeometry, "geometry has ", geometry.size(), " numbers");
  const Geometry g(geometry);
  Tensor out;
  // The output is about as large.
  each_part(x, static_cast<int64_t>(x.nbytes()), [&](int64_t begin, int64_t count) {
    const Tensor part = at::convolution(
        x.narrow(0, begin, count),
        weight,
        bias,
        g.stride,
        g.padding,
        g.dilation,
        false,
        {0, 0},
        g.groups);
    put_part(out, part, begin, x.size(0));
  });
  return out;
}

Tensor layer_input_gradient(
    const Tensor& signal, const Tensor& weight, const Tensor& x, at::IntArrayRef geometry) {
  if (geometry.empty()) {
    return at::mm(signal, weight);
  }
  const Geometry g(geometry);
  if (has_few_channels(weight, g.groups)) {
    return input_gradient_by_columns(
        signal, weight, x.sizes().slice(2), g.stride, g.padding, g.dilation);
  }
  return std::get<0>(convolution_gradient(signal, x, weight, geometry, {true, false, false}));
}

Tensor layer_weight_gradient(
    const Tensor& signal, const Tensor& x, const Tensor& weight, at::IntArrayRef geometry) {
  if (geometry.empty()) {
    Tensor out = empty_output(weight.sizes(), signal.scalar_type());
    at::mm_out(out, signal.t(), x);
    return out;
  }
  return std::get<1>(convolution_gradient(signal, x, weight, geometry, {false, true, false}));
}

// Calls of the ops through the dispatcher: differentiable where the caller is. Of an argument that gives its shape alone
// they take a detached view: an edge to it would carry zeros through what made it.
Tensor call_layer(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, at::IntArrayRef geometry) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dgm_fast::layer", "")
                             .typed<decltype(layer)>();
  return op.call(x, weight, bias, geometry);
}

Tensor call_input_gradient(
    const Tensor& signal, const Tensor& weight, const Tensor& x, at::IntArrayRef geometry) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dgm_fast::layer_input_gradient", "")
                             .typed<decltype(layer_input_gradient)>();
  return op.call(signal, weight, x, geometry);
}

Tensor call_weight_gradient(
    const Tensor& signal, const Tensor& x, const Tensor& weight, at::IntArrayRef geometry) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dgm_fast::layer_weight_gradient", "")
                             .typed<decltype(layer_weight_gradient)>();
  return op.call(signal, x, weight, geometry);
}

std::vector<int64_t> saved_geometry(AutogradContext* ctx) {
  return ctx->saved_data["geometry"].toIntVector();
}

struct LayerFunction : torch::autograd::Function<LayerFunction> {
  static Tensor forward(
      AutogradContext* ctx,
      const Tensor& x,
      const Tensor& weight,
      const OptionalTensor& bias,
      at::IntArrayRef geometry) {
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({x, weight});
    ctx->saved_data["geometry"] = geometry.vec();
    ctx->saved_data["has_bias"] = bias.has_value();
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return call_layer(x, weight, bias, geometry);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto geometry = saved_geometry(ctx);
    const Tensor& grad = grads[0];
    variable_list result(4);
    if (!grad.defined()) {
      return result;
    }
    // An absent bias has no edge to ask about.
    const bool of_bias = ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2);
    const bool of_input = ctx->needs_input_grad(0);
    // What traces this has tensors without memory: the ops below are for it.
    const bool traced = at::isTensorSubclassLike(grad);
    if (!geometry.empty() && !at::GradMode::is_enabled() && !traced &&
        !(of_input && has_few_channels(saved[1], Geometry(geometry).groups))) {
      // All in one call of the library's.
      std::tie(result[0], result[1], result[2]) = convolution_gradient(
          grad,
          saved[0],
          saved[1],
          geometry,
          {of_input, ctx->needs_input_grad(1), of_bias});
      return result;
    }
    if (of_input) {
      result[0] = call_input_gradient(grad, saved[1], saved[0].detach(), geometry);
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = call_weight_gradient(grad, saved[0], saved[1].detach(), geometry);
    }
    if (of_bias) {
      result[2] = grad.dim() == 4 ? grad.sum(at::IntArrayRef{0, 2, 3}) : grad.sum(0);
    }
    return result;
  }
};

struct InputGradientFunction : torch::autograd::Function<InputGradientFunction> {
  static Tensor forward(
      AutogradContext* ctx,
      const Tensor& signal,
      const Tensor& weight,
      const Tensor& x,
      at::IntArrayRef geometry) {
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({signal, weight});
    ctx->saved_data["geometry"] = geometry.vec();
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return call_input_gradient(signal, weight, x, geometry);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto geometry = saved_geometry(ctx);
    const Tensor& grad = grads[0];
    variable_list result(4);
    if (!grad.defined()) {
      return result;
    }
    if (ctx->needs_input_grad(0)) {
      result[0] = call_layer(grad, saved[1], std::nullopt, geometry);
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = call_weight_gradient(saved[0], grad, saved[1].detach(), geometry);
    }
    return result;
  }
};

struct WeightGradientFunction : torch::autograd::Function<WeightGradientFunction> {
  static Tensor forward(
      AutogradContext* ctx,
      const Tensor& signal,
      const Tensor& x,
      const Tensor& weight,
      at::IntArrayRef geometry) {
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({signal, x});
    ctx->saved_data["geometry"] = geometry.vec();
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    return call_weight_gradient(signal, x, weight, geometry);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto geometry = saved_geometry(ctx);
    const Tensor& grad = grads[0];
    variable_list result(4);
    if (!grad.defined()) {
      return result;
    }
    if (ctx->needs_input_grad(0)) {
      result[0] = call_layer(saved[1], grad, std::nullopt, geometry);
    }
    if (ctx->needs_input_grad(1)) {
      result[1] = call_input_gradient(saved[0], grad, saved[1].detach(), geometry);
    }
    return result;
  }
};

template <typename Function, typename... Args>
Tensor with_autograd(Args... args) {
  return Function::apply(std::forward<Args>(args)...);
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_FRAGMENT(dgm_fast, m) {
  m.def("layer(Tensor x, Tensor weight, Tensor? bias, int[] geometry) -> Tensor");
  m.def(
      "layer_input_gradient(Tensor signal, Tensor weight, Tensor x, int[] geometry) -> Tensor");
  m.def(
      "layer_weight_gradient(Tensor signal, Tensor x, Tensor weight, int[] geometry) -> Tensor");
}

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("layer", &dgm_fast::layer);
  m.impl("layer_input_gradient", &dgm_fast::layer_input_gradient);
  m.impl("layer_weight_gradient", &dgm_fast::layer_weight_gradient);
}

TORCH_LIBRARY_IMPL(dgm_fast, Autograd, m) {
  using dgm_fast::OptionalTensor;
  m.impl(
      "layer",
      &dgm_fast::with_autograd<
          dgm_fast::LayerFunction,
          const at::Tensor&,
          const at::Tensor&,
          const OptionalTensor&,
          at::IntArrayRef>);
  m.impl(
      "layer_input_gradient",
      &dgm_fast::with_autograd<
          dgm_fast::InputGradientFunction,
          const at::Tensor&,
          const at::Tensor&,
          const at::Tensor&,
          at::IntArrayRef>);
  m.impl(
      "layer_weight_gradient",
      &dgm_fast::with_autograd<
          dgm_fast::WeightGradientFunction,
          const at::Tensor&,
          const at::Tensor&,
          const at::Tensor&,
          at::IntArrayRef>);
}
