"""How a gradient penalty is computed: the methods, the choice between them, and its reasons."""

from __future__ import annotations

import itertools
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nn_functional
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dgm_fast import ops, reference
from dgm_fast.functional import _critic_chain as chain
from dgm_fast.functional._checks import check_floating
from dgm_fast.functional.activation import leaky_relu
from dgm_fast.functional.layer import conv2d, linear
from dgm_fast.reference.adversarial import Term

Critic = Callable[..., Tensor]
METHODS = ("auto", "exact", "compiled", "explicit", "finite_difference")
FAMILY = "adversarial"
# The step of finite differences in units of the root mean square norm of the batch's inputs: between
# rounding and curvature in float32 (errors of 1e-4 for smooth critics).
RELATIVE_STEP = 4e-3


@dataclass(frozen=True)
class Penalty:
    """weight mean (norm - center)^2 of a critic's gradients, and what calling the critic takes."""

    weight: float
    center: float
    one_sided: bool
    labels: Tensor | None = None
    scaler: Any = None

    def of(self, gradient: Tensor) -> Tensor:
        options = (self.weight, self.center, self.one_sided)
        if ops.use_kernel(gradient, FAMILY):
            return ops.norm_penalty(gradient, *options)[0]
        return reference.norm_penalty(gradient, *options)[0]


def choose(critic: Critic, x: Tensor, labels: Tensor | None, method: str) -> tuple[str, str]:
    """The method for a critic on inputs like ``x``, and the reason.

    Raises:
        ValueError: if the method asked for cannot serve this critic.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    compiling = torch.compiler.is_compiling()
    if method == "auto":
        obstacle = _no_explicit(critic, x, labels)
        if obstacle is None:
            return "explicit", "a chain of linear or convolutional layers with leaky ReLUs"
        if compiling:
            return "compiled", f"inside torch.compile; not explicit: {obstacle}"
        if _compiled_module(critic):
            return (
                "compiled",
                f"a compiled critic is not differentiable twice; not explicit: {obstacle}",
            )
        return "exact", f"double backward; not explicit: {obstacle}"
    if method == "explicit":
        obstacle = _no_explicit(critic, x, labels)
    elif method == "exact":
        obstacle = (
            "torch.compile does not differentiate twice; use compiled"
            if compiling or _compiled_module(critic)
            else None
        )
    elif method == "compiled":
        obstacle = None if compiling else _no_compiled(critic)
    else:
        obstacle = _no_differences(x)
    if obstacle is not None:
        raise ValueError(f"method {method!r} cannot take this critic: {obstacle}")
    return method, "asked for"


def _no_explicit(critic: Critic, x: Tensor, labels: Tensor | None) -> str | None:
    """What keeps the explicit method from a critic, or None."""
    if labels is not None:
        return "it takes labels"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    if torch._C._are_functorch_transforms_active():
        return "inside a torch.func transform"
    try:
        chain.parse(critic, x)
    except chain.NotAChain as reason:
        return str(reason)
    return None


def _no_compiled(critic: Critic) -> str | None:
    if not isinstance(critic, nn.Module):
        return "it is no module, whose parameters could be passed to a compiled function"
    return None


def _no_differences(x: Tensor) -> str | None:
    if x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(x.device.type):
        return "differences of outputs in reduced precision are rounding errors"
    return None


def _compiled_module(critic: Critic) -> bool:
    return hasattr(critic, "_orig_mod")


def penalty_at(critic: Critic, x: Tensor, penalty: Penalty, method: str) -> Tensor:
    """The penalty of the gradients at ``x``, a tensor that nobody else uses."""
    method, _ = choose(critic, x, penalty.labels, method)
    if method == "explicit":
        return explicit(critic, x, x, None, None, "alone", penalty)
    if method == "compiled":
        return _compiled(critic, x, penalty)
    if method == "finite_difference":
        return _finite_difference(critic, x, penalty)
    gradient, _ = exact_gradient(critic, x, penalty)
    return penalty.of(gradient)


def exact_gradient(critic: Critic, x: Tensor, penalty: Penalty) -> tuple[Tensor, Tensor]:
    """The gradients at ``x``, differentiable in the parameters, and the critic's outputs there."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), lean_derivatives():
        x = x.detach().requires_grad_()
        out = call_critic(critic, x, penalty.labels)
        # Samples do not mix: the gradient of the sum holds each sample's own.
        total = out.sum()
        if penalty.scaler is None:
            (gradient,) = torch.autograd.grad(total, x, create_graph=differentiable)
        else:
            # Small gradients of float16 layers vanish unless they are scaled on their way.
            scaled = penalty.scaler.scale(total)
            (gradient,) = torch.autograd.grad(scaled, x, create_graph=differentiable)
            gradient = gradient / penalty.scaler.scale(torch.ones((), device=x.device))
    return gradient, out


class _Lean(TorchFunctionMode):
    """Calls of leaky ReLU and ReLU go to the ones without a second derivative (in-place calls stay), linear
    layers and convolutions to those whose second derivatives form only what is wanted."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is nn_functional.leaky_relu and len(args) <= 2 and not kwargs.get("inplace"):
            slope = kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01)
            if args and isinstance(slope, float) and 0.0 <= slope <= 1.0:
                return leaky_relu(args[0], slope)
        elif (
            function in (nn_functional.relu, torch.relu, Tensor.relu)
            and len(args) == 1
            and not kwargs.get("inplace")
        ):
            return leaky_relu(args[0], 0.0)
        elif args and function in _LAYERS:
            return _LAYERS[function](*args, **kwargs)
        return function(*args, **kwargs)


_LAYERS: dict[Any, Callable[..., Tensor]] = {
    nn_functional.linear: linear,
    nn_functional.conv2d: conv2d,
}


@contextmanager
def lean_derivatives() -> Iterator[None]:
    """Double backward of what is called inside does no zero work and forms no unwanted gradient."""
    if torch.compiler.is_compiling():
        yield
        return
    with _Lean():
        yield


def _functional_penalty(
    critic: nn.Module,
    x: Tensor,
    labels: Tensor | None,
    weight: float,
    center: float,
    one_sided: bool,
) -> Tensor:
    """The penalty with its inner gradient by torch.func.grad, which torch.compile takes in one graph."""
    state = {**dict(critic.named_parameters()), **dict(critic.named_buffers())}

    def total(x: Tensor) -> Tensor:
        arguments = (x,) if labels is None else (x, labels)
        out: Tensor = torch.func.functional_call(critic, state, arguments)
        return out.sum()

    gradient = torch.func.grad(total)(x)
    return reference.norm_penalty(gradient, weight, center, one_sided)[0]


_compiled_penalties: weakref.WeakKeyDictionary[nn.Module, Callable[..., Tensor]] = (
    weakref.WeakKeyDictionary()
)
_numbers = itertools.count()


def _compiled(critic: Any, x: Tensor, penalty: Penalty) -> Tensor:
    critic = getattr(critic, "_orig_mod", critic)
    options = (penalty.labels, penalty.weight, penalty.center, penalty.one_sided)
    if torch.compiler.is_compiling():
        if not isinstance(critic, nn.Module):
            gradient = torch.func.grad(lambda x: call_critic(critic, x, penalty.labels).sum())(x)
            return reference.norm_penalty(gradient, *options[1:])[0]
        return _functional_penalty(critic, x, *options)
    function = _compiled_penalties.get(critic)
    if function is None:
        _refuse_custom_functions(critic, x, penalty.labels)
        # A code object each: Dynamo counts recompilations by code, and a ninth critic would be refused.
        code = _functional_penalty.__code__.replace(co_name=f"gradient_penalty_{next(_numbers)}")
        own = types.FunctionType(code, _functional_penalty.__globals__)
        function = torch.compile(own, fullgraph=True)
        _compiled_penalties[critic] = function
    return function(critic, x, *options)


def _refuse_custom_functions(critic: nn.Module, x: Tensor, labels: Tensor | None) -> None:
    """A Python autograd.Function under a compiled torch.func.grad: wrong gradients without a word."""
    with torch.enable_grad():
        node = call_critic(
            critic, x[:2].detach().requires_grad_(), labels[:2] if labels is not None else None
        ).grad_fn
    seen, stack = set(), [node]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            raise ValueError(
                f"method 'compiled' cannot take this critic: it contains the autograd.Function "
                f"{type(node).__name__}, whose backward torch.compile takes for a constant when the inner "
                "gradient is differentiated; the penalty's gradient would be wrong"
            )
        stack += [child for child, _ in node.next_functions]


def _finite_difference(critic: Critic, x: Tensor, penalty: Penalty) -> Tensor:
    """The penalty's exact value; its gradient by a central difference along the penalty's direction.

    d penalty / d theta = d/d theta <u, grad D> with u = d penalty / d grad held constant, and <u, grad D>
    is a derivative of D along u.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(call_critic(critic, leaf, penalty.labels).sum(), leaf)
        gradient = gradient.detach().requires_grad_()
        value = penalty.of(gradient)
        (direction,) = torch.autograd.grad(value, gradient)
    value = value.detach()
    if not differentiable:
        return value
    rows = direction.flatten(1)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = torch.where(length > 0, rows / length, 0.0)
    norm = x.flatten(1).square().sum(1).mean().sqrt()
    step = RELATIVE_STEP * torch.where(norm > 0, norm, 1.0)
    offset = (step * unit).view_as(x)
    labels = None if penalty.labels is None else torch.cat([penalty.labels, penalty.labels])
    out = (
        call_critic(critic, torch.cat([x + offset, x - offset]), labels)
        .reshape(2 * len(x), -1)
        .sum(1)
    )
    ahead, behind = out.chunk(2)
    surrogate = (length.squeeze(1) * (ahead - behind)).sum() / (2.0 * step)
    return value + (surrogate - surrogate.detach())


def explicit(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    eps: Tensor | None,
    terms: tuple[Term, Term] | None,
    where: str | None,
    penalty: Penalty,
) -> Tensor:
    """Loss and penalty of a chain in one op. ``where``: "gp", "r1", "r2", None, or "alone" at ``real``."""
    layers = chain.parse(critic, real)
    if layers[0].flatten:
        real, fake = real.flatten(1), fake.flatten(1)
    real_term, fake_term = terms or ((1, "identity"), (1, "identity"))
    return ops.critic_step(
        real.contiguous(),
        fake.contiguous(),
        None if eps is None else eps.to(real.dtype),
        chain.parameters(layers),
        chain.geometry(layers),
        [layer.slope for layer in layers],
        real_term,
        fake_term,
        where,
        penalty.weight,
        penalty.center,
        penalty.one_sided,
        kernel=real.device.type == "cpu" and ops.use_kernel(real, FAMILY),
    )


def call_critic(critic: Critic, x: Tensor, labels: Tensor | None) -> Tensor:
    out = critic(x) if labels is None else critic(x, labels)
    if not isinstance(out, Tensor):
        raise TypeError(f"critic must return a tensor, got {type(out).__name__}")
    if out.ndim == 0 or out.shape[0] != x.shape[0]:
        raise ValueError(
            f"critic must return one output (or map) per sample, [{x.shape[0]}, ...], "
            f"got shape {tuple(out.shape)}"
        )
    return out


def interpolated(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    real, fake = real.detach(), fake.detach()
    if ops.use_kernel(real, FAMILY) and ops.use_kernel(fake, FAMILY):
        return ops.interpolate(real, fake, eps)
    return reference.interpolate(real, fake, eps)


def interpolation_weights(
    real: Tensor, eps: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """One weight per sample, [B], in the dtype sums are formed in."""
    count = real.shape[0]
    if eps is None:
        dtype = torch.float64 if real.dtype == torch.float64 else torch.float32
        return torch.rand(count, dtype=dtype, device=real.device, generator=generator)
    check_floating(real=real, eps=eps)
    if generator is not None:
        raise ValueError("eps and generator exclude each other")
    if eps.shape not in ((count,), (count, *(1,) * (real.ndim - 1))):
        raise ValueError(
            f"eps must hold one number per sample, [{count}] or [{count}, 1, ...], "
            f"got shape {tuple(eps.shape)}"
        )
    return eps.detach().reshape(count)


def check_samples(name: str, value: Any) -> None:
    check_floating(**{name: value})
    if value.ndim == 0 or value.numel() == 0:
        raise ValueError(f"{name} must hold samples, [B, ...], got shape {tuple(value.shape)}")


def check_pair(real: Tensor, fake: Tensor, name: str = "fake") -> None:
    check_samples("real", real)
    check_floating(real=real, **{name: fake})
    if fake.shape != real.shape:
        raise ValueError(
            f"{name} has shape {tuple(fake.shape)}, but real has shape {tuple(real.shape)}"
        )


def check_batch_norm(critic: Critic, allowed: bool) -> None:
    """Batch normalisation couples samples: the gradient of the summed outputs is no sample's own."""
    if allowed or not isinstance(critic, nn.Module):
        return
    for name, module in critic.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"critic has batch normalisation ({name or type(module).__name__}), which makes every "
                "output depend on the whole batch: its gradient penalty is not that of the samples. Use "
                "LayerNorm or InstanceNorm, or pass allow_batch_norm=True"
            )
