// Autograd of every op, once: a boxed function that works from the table in schemas.cpp.
//
// Python's register_autograd costs about 13 us a call more than this, which decides at small sizes.

#include "reference_bridge.h"
#include "registry.h"

#include <algorithm>

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

struct AutogradEntry {
  const OpSpec* spec;
  c10::OperatorHandle backward;
};

const AutogradEntry& entry(const c10::OperatorHandle& op) {
  // Operators live as long as the library: the handle's schema address identifies them.
  static thread_local std::unordered_map<const c10::FunctionSchema*, AutogradEntry> cache;
  const auto* key = &op.schema();
  auto found = cache.find(key);
  if (found == cache.end()) {
    const auto& name = op.schema().name();
    const auto& spec = op_spec(name.substr(name.find("::") + 2));
    auto backward = c10::Dispatcher::singleton().findSchemaOrThrow(
        (name + kBackwardSuffix).c_str(), "");
    found = cache.emplace(key, AutogradEntry{&spec, backward}).first;
  }
  return found->second;
}

bool requires_grad(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined() && value.toTensor().requires_grad();
}

variable_list pop_tensors(Stack& stack) {
  variable_list tensors;
  for (const auto& value : stack) {
    tensors.push_back(value.isTensor() ? value.toTensor() : Tensor());
  }
  return tensors;
}

// The argument that backward does without, or -1.
int64_t dropped_argument(const OpSpec& spec) {
  return spec.constant_derivative ? spec.differentiable[0] : -1;
}

// Whether the two terms of the op's sum are both wanted and have one gradient.
bool shared_gradient(const OpSpec& spec, const variable_list& saved, const c10::List<bool>& mask) {
  if (spec.terms.empty() || !mask.get(spec.terms[0]) || !mask.get(spec.terms[1])) {
    return false;
  }
  const auto& first = saved[spec.differentiable[spec.terms[0]]];
  const auto& second = saved[spec.differentiable[spec.terms[1]]];
  return first.sizes() == second.sizes();
}

struct FusedOp : torch::autograd::Function<FusedOp> {
  static variable_list forward(
      AutogradContext* ctx,
      at::TensorList differentiable,
      const c10::OperatorHandle* op,
      Stack* stack) {
    const auto& [spec, backward] = entry(*op);
    // Tensors go through save_for_backward (version checks, saved-tensor hooks, freeing); the rest of
    // the arguments stays as values, with None in the tensors' places.
    variable_list saved;
    std::vector<c10::IValue> values;
    const auto dropped = dropped_argument(*spec);
    for (const auto& argument : *stack) {
      const bool is_tensor = argument.isTensor();
      const bool kept = is_tensor && static_cast<int64_t>(saved.size()) != dropped;
      saved.push_back(kept ? argument.toTensor() : Tensor());
      values.push_back(is_tensor ? c10::IValue() : argument);
    }
    variable_list outputs;
    {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      op->callBoxed(stack);
      outputs = pop_tensors(*stack);
      stack->clear();
    }
    for (int64_t i = 0; i < spec->saved_outputs; ++i) {
      saved.push_back(outputs[i]);
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["op"] = std::string(op->schema().name());
    ctx->saved_data["values"] = c10::ivalue::Tuple::create(std::move(values));
    ctx->set_materialize_grads(false);
    const auto first_plain = outputs.begin() + spec->differentiable_outputs;
    if (first_plain != outputs.end()) {
      ctx->mark_non_differentiable(variable_list(first_plain, outputs.end()));
    }
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto name = ctx->saved_data["op"].toStringRef();
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
    const auto& [spec, backward_op] = entry(op);
    const auto count = spec->differentiable.size();
    auto saved = ctx->get_saved_variables();
    const auto values = ctx->saved_data["values"].toTuple();
    const auto num_arguments = values->elements().size();
    if (const auto dropped = dropped_argument(*spec); dropped >= 0) {
      saved[dropped] = saved[num_arguments];
    }
    // The tensor list of forward holds the arguments that are present, and so do its gradients.
    std::vector<int64_t> slot(count, -1);
    int64_t present = 0;
    for (size_t i = 0; i < count; ++i) {
      if (saved[spec->differentiable[i]].defined()) {
        slot[i] = present++;
      }
    }
    // Two more for forward's arguments that are no tensors.
    variable_list result(present + 2);
    const auto wanted_end = grads.begin() + spec->differentiable_outputs;
    if (std::none_of(grads.begin(), wanted_end, [](const Tensor& t) { return t.defined(); })) {
      return result;
    }
    Stack stack;
    for (auto grad = grads.begin(); grad != wanted_end; ++grad) {
      stack.emplace_back(grad->defined() ? c10::IValue(*grad) : c10::IValue());
    }
    for (size_t i = num_arguments; i < saved.size(); ++i) {
      stack.emplace_back(saved[i]);
    }
    for (size_t i = 0; i < num_arguments; ++i) {
      if (saved[i].defined()) {
        stack.emplace_back(saved[i]);
      } else {
        stack.emplace_back(values->elements()[i]);
      }
    }
    c10::List<bool> mask;
    for (size_t i = 0; i < count; ++i) {
      mask.push_back(slot[i] >= 0 && ctx->needs_input_grad(slot[i]));
    }
    const bool shared = shared_gradient(*spec, saved, mask);
    if (shared) {
      mask.set(spec->terms[1], false);
    }
    stack.emplace_back(mask);
    backward_op.callBoxed(stack);
    for (size_t i = 0; i < count; ++i) {
      if (mask[i]) {
        result[slot[i]] = stack[i].toTensor();
      }
    }
    if (shared) {
      result[slot[spec->terms[1]]] = result[slot[spec->terms[0]]];
    }
    return result;
  }
};

// A backward op with a constant derivative, as a function of the incoming gradient: the same factors, transposed.
//
// Its arguments are (grad, output, arguments, mask). A second gradient, that of a bias along dimension 1, is the sum
// of the first over all other dimensions; transposed, it is spread over them.
struct ConstantBackward : torch::autograd::Function<ConstantBackward> {
  static variable_list forward(
      AutogradContext* ctx,
      const Tensor& grad,
      const c10::OperatorHandle* op,
      Stack* stack) {
    variable_list saved;
    std::vector<c10::IValue> values;
    for (size_t i = 1; i < stack->size(); ++i) {
      const auto& argument = (*stack)[i];
      saved.push_back(argument.isTensor() ? argument.toTensor().detach() : Tensor());
      values.push_back(argument.isTensor() ? c10::IValue() : argument);
    }
    variable_list outputs;
    {
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      op->callBoxed(stack);
      outputs = pop_tensors(*stack);
      stack->clear();
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["op"] = std::string(op->schema().name());
    ctx->saved_data["values"] = c10::ivalue::Tuple::create(std::move(values));
    ctx->set_materialize_grads(false);
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(
        ctx->saved_data["op"].toStringRef().c_str(), "");
    const auto saved = ctx->get_saved_variables();
    const auto& values = ctx->saved_data["values"].toTuple()->elements();
    const auto mask = values.back().toBoolList();
    const Tensor& out = saved[0];
    Tensor total = mask[0] ? grads[0] : Tensor();
    if (mask.size() > 1 && mask[1] && grads[1].defined()) {
      c10::SmallVector<int64_t, 8> shape(out.dim(), 1);
      shape[1] = -1;
      const Tensor spread = grads[1].to(out.scalar_type()).reshape(shape);
      total = total.defined() ? at::add(total, spread) : spread.expand(out.sizes());
    }
    if (!total.defined()) {
      return {Tensor(), Tensor(), Tensor()};
    }
    Stack stack;
    stack.emplace_back(total);
    for (size_t i = 0; i + 1 < values.size(); ++i) {
      stack.emplace_back(saved[i].defined() ? c10::IValue(saved[i]) : values[i]);
    }
    c10::List<bool> first;
    for (size_t i = 0; i < mask.size(); ++i) {
      first.push_back(i == 0);
    }
    stack.emplace_back(first);
    op.callBoxed(stack);
    return {stack[0].toTensor(), Tensor(), Tensor()};
  }
};

void forward_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const auto& spec = *entry(op).spec;
  const auto num_arguments = op.schema().arguments().size();
  const auto first = stack->size() - num_arguments;
  bool needed = false;
  for (auto i : spec.differentiable) {
    needed = needed || requires_grad((*stack)[first + i]);
  }
  if (!needed || !at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    op.callBoxed(stack);
    return;
  }
  Stack arguments(
      std::make_move_iterator(stack->begin() + static_cast<int64_t>(first)),
      std::make_move_iterator(stack->end()));
  stack->resize(first);
  variable_list differentiable;
  for (auto i : spec.differentiable) {
    if (arguments[i].isTensor()) {
      differentiable.push_back(arguments[i].toTensor());
    }
  }
  for (auto& output : FusedOp::apply(at::TensorList(differentiable), &op, &arguments)) {
    stack->emplace_back(std::move(output));
  }
}

// A raw op called with grad mode on would drop second derivatives with no more than a warning.
void backward_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const auto num_arguments = op.schema().arguments().size();
  const auto first = stack->size() - num_arguments;
  bool needed = false;
  for (auto i = first; i < stack->size(); ++i) {
    needed = needed || requires_grad((*stack)[i]);
  }
  if (!needed || !at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    op.callBoxed(stack);
    return;
  }
  auto name = op.schema().name();
  name = name.substr(name.find("::") + 2);
  name.resize(name.size() - std::char_traits<char>::length(kBackwardSuffix));
  const auto& spec = op_spec(name);
  if (spec.constant_derivative) {
    const auto grad = (*stack)[first].toTensor();
    Stack arguments(
        std::make_move_iterator(stack->begin() + static_cast<int64_t>(first)),
        std::make_move_iterator(stack->end()));
    stack->resize(first);
    for (auto& output : ConstantBackward::apply(grad, &op, &arguments)) {
      stack->emplace_back(std::move(output));
    }
    return;
  }
  const auto grads_begin = stack->begin() + static_cast<int64_t>(first);
  const auto grads_end = grads_begin + spec.differentiable_outputs;
  const std::vector<c10::IValue> grads(grads_begin, grads_end);
  auto gradients = reference_vjp(
      name,
      grads,
      std::vector<c10::IValue>(grads_end + spec.saved_outputs, stack->end() - 1),
      stack->back());
  const auto like = std::find_if(
      grads.begin(), grads.end(), [](const c10::IValue& grad) { return grad.isTensor(); });
  TORCH_CHECK(like != grads.end(), name, kBackwardSuffix, " needs a gradient of some output");
  const Tensor missing = at::empty({0}, like->toTensor().options());
  stack->resize(first);
  for (auto& gradient : gradients) {
    stack->emplace_back(gradient.defined() ? gradient : missing);
  }
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, Autograd, m) {
  for (const auto& spec : dgm_fast::op_specs()) {
    if (spec.differentiable.empty()) {
      continue;
    }
    m.impl(
        spec.name, torch::CppFunction::makeFromBoxedFunction<&dgm_fast::forward_autograd>());
    m.impl(
        (std::string(spec.name) + dgm_fast::kBackwardSuffix).c_str(),
        torch::CppFunction::makeFromBoxedFunction<&dgm_fast::backward_autograd>());
  }
}
