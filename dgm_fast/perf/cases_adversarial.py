"""Benchmark cases of the adversarial family: losses, penalties, activations, whole steps of a critic."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgm_fast import accelerate, functional, ops, reference
from dgm_fast.perf.cases_likelihood import normal
from dgm_fast.perf.registry import Inputs, case
from dgm_fast.reference.adversarial import DISCRIMINATOR_TERMS

BOTH = {"medium": (torch.float32, torch.bfloat16)}
# A power of two: see _critic_inputs.
SLOPE = 0.25
IMAGES = {  # B, C, H, W
    "small": (8, 4, 8, 8),
    "medium": (128, 64, 14, 14),
    "large": (64, 64, 64, 64),
    "odd": (7, 5, 13, 11),
}


def _tensors(dtype: torch.dtype, **tensors: Tensor) -> Inputs:
    return {name: t.to(dtype) for name, t in tensors.items()}


@case(
    "adversarial_loss",
    family="adversarial",
    ours=lambda real, fake: functional.discriminator_loss(real, fake, "non_saturating"),
    eager=lambda real, fake: reference.discriminator_loss(real, fake, "non_saturating"),
    # A patch discriminator's map is large.
    sizes={"small": (16,), "medium": (256,), "large": (64, 1, 62, 62), "odd": (33,)},
    grads=("real", "fake"),
    dtypes=BOTH,
    flops_per_element=(10, 2),
)
def loss_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    return _tensors(dtype, real=normal(generator, *shape), fake=normal(generator, *shape))


def _penalty_ours(gradient: Tensor) -> Tensor:
    return ops.norm_penalty(gradient, 10.0, 1.0, False)[0]


def _penalty_eager(gradient: Tensor) -> Tensor:
    return reference.norm_penalty(gradient, 10.0, 1.0, False)[0]


@case(
    "norm_penalty",
    family="adversarial",
    ours=_penalty_ours,
    eager=_penalty_eager,
    sizes={
        "small": (8, 64),
        "medium": (256, 784),
        "large": (64, 3, 64, 64),
        "odd": (33, 199),
    },
    grads=("gradient",),
    dtypes=BOTH,
    flops_per_element=(2, 1),
    second_order=("small",),
)
def penalty_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    return _tensors(dtype, gradient=normal(generator, *shape, scale=0.05))


@case(
    "interpolate",
    family="adversarial",
    ours=lambda real, fake, eps: ops.interpolate(real, fake, eps),
    eager=reference.interpolate,
    sizes={
        "small": (8, 64),
        "medium": (256, 784),
        "large": (64, 3, 64, 64),
        "odd": (33, 199),
    },
    grads=(),
    dtypes=BOTH,
    flops_per_element=(3, 0),
)
def interpolation_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    both = _tensors(dtype, real=normal(generator, *shape), fake=normal(generator, *shape))
    return both | {"eps": torch.rand(shape[0], generator=generator)}


@case(
    "leaky_relu",
    family="adversarial",
    ours=lambda x: functional.leaky_relu(x, SLOPE),
    eager=lambda x: F.leaky_relu(x, SLOPE),
    sizes=IMAGES,
    grads=("x",),
    dtypes=BOTH,
    flops_per_element=(1, 1),
)
def activation_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    return _tensors(dtype, x=normal(generator, *shape))


@case(
    "bias_leaky_relu",
    family="adversarial",
    ours=lambda x, bias: functional.bias_leaky_relu(x, bias, SLOPE),
    eager=lambda x, bias: reference.bias_leaky_relu(x, bias, SLOPE),
    sizes=IMAGES,
    grads=("x", "bias"),
    dtypes=BOTH,
    flops_per_element=(2, 2),
)
def bias_activation_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    return _tensors(dtype, x=normal(generator, *shape), bias=normal(generator, shape[1]))


# Whole steps of a critic with every parameter's gradient: linear layers only, or two convolutions (4x4,
# stride 2) and a linear layer. Parameters are "w0", "b0", ...
CONVOLUTION = [1, 1, 2, 2, 1, 1, 1, 1, 1]
LINEAR = [0, 1, 1, 1, 0, 0, 1, 1, 1]


def _forward(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    count = len(parameters) // 2
    for i in range(count):
        weight, bias = parameters[f"w{i}"], parameters[f"b{i}"]
        conv = weight.ndim == 4
        x = F.conv2d(x, weight, bias, 2, 1) if conv else F.linear(x.flatten(1), weight, bias)
        if i + 1 < count:
            x = F.leaky_relu(x, SLOPE)
    return x


def _double_backward(
    real: Tensor, fake: Tensor, eps: Tensor, penalty: str, **parameters: Tensor
) -> Tensor:
    with torch.enable_grad():
        mixed = reference.interpolate(real, fake, eps)
        x = (mixed if penalty == "gp" else real.detach()).requires_grad_()
        at_x = _forward(x, parameters)
        (gradient,) = torch.autograd.grad(at_x.sum(), x, create_graph=True)
        # R1 is taken at outputs that the loss needs anyway.
        of_real = _forward(real, parameters) if penalty == "gp" else at_x
        kind = "wasserstein" if penalty == "gp" else "non_saturating"
        loss = reference.discriminator_loss(of_real, _forward(fake, parameters), kind)
        center = 1.0 if penalty == "gp" else 0.0
        weight = 10.0 if penalty == "gp" else 5.0
        return loss + reference.norm_penalty(gradient, weight, center, False)[0]


def _explicit(
    real: Tensor, fake: Tensor, eps: Tensor, penalty: str, **parameters: Tensor
) -> Tensor:
    count = len(parameters) // 2
    tensors = [parameters[f"{name}{i}"] for i in range(count) for name in "wb"]
    geometry: list[int] = []
    for tensor in tensors[::2]:
        geometry += CONVOLUTION if tensor.ndim == 4 else LINEAR
    mixed = penalty == "gp"
    real_term, fake_term = DISCRIMINATOR_TERMS["wasserstein" if mixed else "non_saturating"]
    return ops.critic_step(
        real,
        fake,
        eps if mixed else None,
        tensors,
        geometry,
        [SLOPE] * (count - 1) + [1.0],
        real_term,
        fake_term,
        penalty,
        10.0 if mixed else 5.0,
        1.0 if mixed else 0.0,
        False,
        kernel=real.is_cpu,
    )


_built: tuple[tuple[Tensor, ...], nn.Sequential] | None = None


def _critic(parameters: dict[str, Tensor]) -> nn.Sequential:
    """The accelerated critic as a user has it: built once, on tensors that belong to the case."""
    global _built
    tensors = tuple(parameters.values())
    same = _built is not None and len(_built[0]) == len(tensors)
    if _built is None or not same or not all(map(operator.is_, _built[0], tensors)):
        critic = _new_critic(parameters)
        accelerate(critic)
        _built = (tensors, critic)
    return _built[1]


def _new_critic(parameters: dict[str, Tensor]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(parameters) // 2):
        weight, bias = parameters[f"w{i}"], parameters[f"b{i}"]
        layer: nn.Module
        if weight.ndim == 4:
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 4, 2, 1, device="meta")
        else:
            if layers and parameters[f"w{i - 1}"].ndim == 4:
                layers.append(nn.Flatten())
            layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        for name, tensor in (("weight", weight), ("bias", bias)):
            delattr(layer, name)
            setattr(layer, name, tensor)
        layers += [layer, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-1])


def _separate_terms(
    method: str, real: Tensor, fake: Tensor, eps: Tensor, **parameters: Tensor
) -> Tensor:
    """Loss and penalty as two functions of an accelerated critic."""
    critic = _critic(parameters)
    loss = functional.discriminator_loss(critic(real), critic(fake), "wasserstein")
    return loss + functional.gradient_penalty(critic, real, fake, eps=eps, method=method)


# What a user gets (of these critics the explicit penalty), and double backward, which takes any critic.
_terms = functools.partial(_separate_terms, "auto")
_terms_exact = functools.partial(_separate_terms, "exact")


def _whole_step(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return functional.critic_loss(critic, real, fake, eps=eps)


_compiled_step: Callable[..., Tensor] | None = None


def _compiled(real: Tensor, fake: Tensor, eps: Tensor, **parameters: Tensor) -> Tensor:
    """The step inside a user's compiled function, in one graph."""
    global _compiled_step
    if _compiled_step is None:
        _compiled_step = torch.compile(_whole_step, fullgraph=True, dynamic=False)
    return _compiled_step(_critic(parameters), real, fake, eps)


def _step_flops(shape: tuple[int, ...], units: tuple[int, int]) -> tuple[int, int]:
    """Per element of the data. ``units``: products with the first layer and with each other one."""
    if len(shape) == 3:
        _, dims, hidden = shape
        first, second, elements = 2 * dims * hidden, 2 * hidden * hidden, dims
    else:
        _, channels, side, width = shape
        first = 32 * channels * width * (side // 2) ** 2
        second = 64 * width * width * (side // 4) ** 2
        elements = channels * side * side
    return (units[0] * first + units[1] * second) // elements, 1


def _critic_case(
    penalty: str,
    variant: str,
    sizes: Mapping[str, tuple[int, ...]],
    layers: int,
    ours: Callable[..., Tensor] | None = None,
) -> Any:
    return case(
        "critic_step",
        variant=variant,
        family="adversarial",
        ours=ours or (lambda **inputs: _explicit(penalty=penalty, **inputs)),
        eager=lambda **inputs: _double_backward(penalty=penalty, **inputs),
        sizes=sizes,
        grads=tuple(f"{name}{i}" for i in range(layers) for name in "wb"),
        flops_per_element=lambda shape: _step_flops(shape, (7, 10) if penalty == "gp" else (6, 7)),
        # torch.compile does not differentiate twice.
        compiled=False,
    )


MLP_SIZES = {  # B, D, H
    "small": (16, 64, 32),
    "medium": (256, 784, 512),
    "large": (1024, 784, 1024),
    "odd": (33, 45, 29),
}
IMAGE_SIZES = {  # B, C, side, channels of the first layer
    "small": (8, 1, 8, 8),
    "medium": (128, 1, 28, 64),
    "large": (64, 3, 64, 64),
    "odd": (7, 3, 12, 5),
}


# The same step in the other ways it is written.
MEDIUM = {"medium": MLP_SIZES["medium"]}
MEDIUM_IMAGES = {"medium": IMAGE_SIZES["medium"]}


@_critic_case("gp", "mlp_gp_compiled", MEDIUM, 3, _compiled)
@_critic_case("gp", "mlp_gp_terms_exact", MEDIUM, 3, _terms_exact)
@_critic_case("gp", "mlp_gp_terms", MEDIUM, 3, _terms)
@_critic_case("r1", "mlp_r1", MLP_SIZES, 3)
@_critic_case("gp", "mlp_gp", MLP_SIZES, 3)
def mlp_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    batch, dims, hidden = shape
    return _critic_inputs((batch, dims), [(hidden, dims), (hidden, hidden), (1, hidden)], generator)


@_critic_case("gp", "conv_gp_compiled", MEDIUM_IMAGES, 3, _compiled)
@_critic_case("gp", "conv_gp_terms_exact", MEDIUM_IMAGES, 3, _terms_exact)
@_critic_case("gp", "conv_gp_terms", MEDIUM_IMAGES, 3, _terms)
@_critic_case("gp", "conv_gp", IMAGE_SIZES, 3)
def conv_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    batch, channels, side, width = shape
    weights = [
        (width, channels, 4, 4),
        (2 * width, width, 4, 4),
        (1, 2 * width * (side // 4) ** 2),
    ]
    return _critic_inputs((batch, channels, side, side), weights, generator)


def _critic_inputs(
    samples: tuple[int, ...], weights: list[tuple[int, ...]], generator: torch.Generator
) -> Inputs:
    """Numbers on lattices: float32 forms all pre-activations without rounding, and none of them is 0.

    A rounding that moves one of a million over the kink of its leaky ReLU changes gradients by 1e-3, in
    whichever variant it happens; so nothing could be said of anyone's error.
    """
    step = 0.25
    inputs = {
        name: (torch.rand(samples, generator=generator) / step).round() * step
        for name in ("real", "fake")
    }
    inputs["eps"] = (torch.rand(samples[0], generator=generator) / step).round() * step
    # That of mixed samples.
    step *= step
    for i, shape in enumerate(weights):
        scale = torch.Size(shape[1:]).numel() ** -0.5
        fine = 2.0 ** (math.floor(math.log2(scale)) - 2)
        inputs[f"w{i}"] = (normal(generator, *shape, scale=scale) / fine).round() * fine
        step *= 0.5 * fine
        # Odd multiples of half the step of the sums.
        inputs[f"b{i}"] = (
            2 * (normal(generator, shape[0], scale=0.1) / (2 * step)).round() + 1
        ) * step
        step *= SLOPE
    return inputs
