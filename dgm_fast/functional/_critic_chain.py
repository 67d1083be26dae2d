"""Critics that are chains of linear and convolutional layers with leaky ReLUs, taken apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class NotAChain(Exception):
    """Why a critic cannot be taken apart."""


@dataclass(frozen=True)
class Layer:
    """One linear or convolutional layer, with the slope of the leaky ReLU behind it (1.0: none)."""

    module: nn.Linear | nn.Conv2d
    slope: float
    # Whether its input is flattened first.
    flatten: bool


def parse(critic: Any, x: Tensor) -> list[Layer]:
    """The layers of a critic on inputs like ``x``.

    A critic is an ``nn.Sequential`` (of these, in turn) or a module whose method ``sequential_layers()``
    lists the modules that its ``forward`` applies in order.

    Raises:
        NotAChain: with the reason.
    """
    if not isinstance(critic, nn.Module):
        raise NotAChain(f"{type(critic).__name__} is no module")
    layers: list[Layer] = []
    flatten = False
    ndim = x.ndim
    for name, module in _steps(critic):
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            flatten, ndim = ndim > 2, 2
        elif (slope := _slope(module)) is not None:
            if not layers or layers[-1].slope != 1.0 or flatten:
                raise NotAChain(f"{name} does not follow a linear or convolutional layer")
            layers[-1] = Layer(layers[-1].module, slope, layers[-1].flatten)
        elif isinstance(module, nn.Linear) and ndim == 2:
            layers.append(Layer(module, 1.0, flatten))
            flatten = False
        elif isinstance(module, nn.Conv2d) and ndim == 4:
            _check_convolution(name, module)
            layers.append(Layer(module, 1.0, False))
        else:
            raise NotAChain(f"{name} is a {type(module).__name__} on {ndim}-dimensional inputs")
    if not layers:
        raise NotAChain("it has no layers")
    _check_tensors(layers, x)
    return layers


def _steps(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Leaf modules in the order in which they are applied."""
    label = name or type(module).__name__
    _check_hooks(module, label)
    listed: Iterable[tuple[str, nn.Module]] | None = None
    own: Any = getattr(module, "sequential_layers", None)
    if own is not None:
        listed = ((str(i), m) for i, m in enumerate(own()))
    elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        listed = module.named_children()
    if listed is not None:
        for child, submodule in listed:
            yield from _steps(submodule, f"{name}.{child}" if name else child)
    elif isinstance(module, nn.Identity) or (
        isinstance(module, nn.Dropout) and not module.training
    ):
        return
    elif (
        isinstance(module, nn.Linear | nn.Conv2d)
        and type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward)
        and not getattr(type(module), "plain_forward", False)
    ):
        raise NotAChain(f"{label} has a forward of its own")
    else:
        yield label, module


def _check_hooks(module: nn.Module, label: str) -> None:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    if any(hooks):
        raise NotAChain(f"{label} has hooks")


def _slope(module: nn.Module) -> float | None:
    if isinstance(module, nn.ReLU):
        return 0.0
    if isinstance(module, nn.LeakyReLU) and 0.0 <= module.negative_slope < 1.0:
        return float(module.negative_slope)
    return None


def _check_convolution(name: str, module: nn.Conv2d) -> None:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise NotAChain(f"{name} pads by {module.padding_mode!r}, {module.padding!r}")


def _check_tensors(layers: list[Layer], x: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise NotAChain(f"inputs are {x.dtype}, the step is float32 or float64")
    for layer in layers:
        for tensor in parameters([layer]):
            if tensor.dtype != x.dtype or tensor.device != x.device:
                raise NotAChain(
                    f"parameters are {tensor.dtype} on {tensor.device}, inputs {x.dtype} on {x.device}"
                )


def parameters(layers: list[Layer]) -> list[Tensor]:
    """Weights and biases in order; a parametrized weight is the finished tensor."""
    found = []
    for layer in layers:
        found += [t for t in (layer.module.weight, layer.module.bias) if t is not None]
    return found


def geometry(layers: list[Layer]) -> list[int]:
    """Nine integers a layer: convolution?, bias?, stride, padding, dilation (two each), groups."""
    numbers: list[int] = []
    for layer in layers:
        module = layer.module
        numbers += [int(isinstance(module, nn.Conv2d)), int(module.bias is not None)]
        if isinstance(module, nn.Conv2d):
            assert not isinstance(module.padding, str)
            numbers += [*module.stride, *module.padding, *module.dilation, module.groups]
        else:
            numbers += [1, 1, 0, 0, 1, 1, 1]
    return numbers


def outputs_per_sample(critic: Any, x: Tensor) -> int:
    """Numbers that the chain gives for one sample."""
    layers = parse(critic, x)
    sizes = list(x.shape[2:])
    channels = 1
    for layer in layers:
        module = layer.module
        if isinstance(module, nn.Linear):
            sizes, channels = [], module.out_features
            continue
        channels = module.out_channels
        for d in range(2):
            padding, dilation = module.padding[d], module.dilation[d]
            assert isinstance(padding, int)
            extent = dilation * (module.kernel_size[d] - 1) + 1
            sizes[d] = (sizes[d] + 2 * padding - extent) // module.stride[d] + 1
    return channels * math.prod(sizes)
