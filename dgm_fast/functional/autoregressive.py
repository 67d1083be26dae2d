"""Inversion of masked autoregressive networks in one pass: samples of a MADE, inverses of its flows."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dgm_fast import ops
from dgm_fast.functional._checks import (
    check_floating,
    class_index,
    raise_unless_valid,
    unit_interval,
    values_visible,
)
from dgm_fast.functional._conditions import Condition, check_condition
from dgm_fast.functional._masked_network import (
    Map,
    MaskedNetwork,
    compiled_inverse,
    implicit_inverse,
    reference_inverse,
)
from dgm_fast.functional._values import check_given
from dgm_fast.functional.element_maps import (
    BernoulliDraw,
    CategoricalDraw,
    ElementMap,
)
from dgm_fast.functional.likelihood import UNIT_INTERVAL, class_range


class Conditioner(Protocol):
    """A module that says what it is made of, such as ``nn.MADE``."""

    def masked_network(self, context: Tensor | None = None) -> MaskedNetwork: ...


def autoregressive_inverse(
    conditioner: Conditioner | MaskedNetwork,
    transform: Map,
    z: Tensor,
    *,
    context: Tensor | None = None,
    conditioned_on: Condition | None = None,
) -> tuple[Tensor, Tensor | None]:
    r"""Solve x_d = map(z_d; parameters_d(x before d)) for x, all dimensions in one pass.

    The one routine behind samples of a MADE (z is noise, the map a draw) and inverses of masked
    autoregressive flows (z is the flow's output). After each new dimension only the hidden units whose
    degree became ready are evaluated: all dimensions together cost the operations of about one pass through
    the network, where the textbook takes D passes. On the CPU an :class:`ElementMap` runs in one compiled
    call for the whole batch, any other callable in a Python loop over dimensions, of as few operations.

    Args:
        conditioner: a ``nn.MADE`` or any object with its method ``masked_network``, or the
            :class:`MaskedNetwork` itself.
        transform: an :class:`ElementMap` such as ``AffineMap()``, or a callable (z_d [B] or [B, n],
            parameters [B, P]) -> (x_d [B], log|dx_d/dz_d| [B] or None).
        z: floating point, [B, D], or [B, D, n] for maps with n entries a dimension.
        context: [B, context_dim] for a conditional MADE.
        conditioned_on: (values, given), [B, D] or [D] each: entries where the boolean ``given`` is True are
            kept, the others follow from z and all entries before them. Given entries add nothing to the
            log-determinant.

    Returns:
        x [B, D], in float32 (float64 if z or the network is float64; int64 for class indices), and
        sum_d log|dx_d/dz_d| [B] in nats, None for maps that have none. Both are differentiable in z and the
        network's parameters where the map is, to any order. Of an :class:`AffineMap` or a
        :class:`SplineMap` the first derivatives are implicit: one pass through the network at x, and a
        triangular system that the compiled routine solves. Others, and second derivatives, go through the
        Python loop.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes, devices or the number of parameters do not match, or (on the CPU, or on CUDA
            under ``check_values(True)``) if z or a given value lies outside the domain of its map.

    Source: Germain et al., "MADE" (2015); Papamakarios et al., "Masked Autoregressive Flow for Density
    Estimation" (2017).
    """
    check_floating(z=z)
    if isinstance(conditioner, MaskedNetwork):
        if context is not None:
            raise ValueError("context belongs to the biases of a MaskedNetwork, got both")
        network = conditioner
    else:
        network = conditioner.masked_network(context)
    size = _check_network(network, z)
    _check_map(network, transform, z, size)
    values, given = check_condition(conditioned_on, (z.shape[0], size), "z", z)
    kernel = transform if isinstance(transform, ElementMap) else None
    if kernel is not None and kernel.domain() is not None:
        z = _within_domain(kernel, z, values, given)
    tensors = (z, *network.weights, *network.biases)
    wants_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if kernel is not None and not kernel.differentiable:
        wants_grad = False
    compiled = (
        kernel is not None
        and isinstance(network.activation, str)
        and ops.use_kernel(z, "autoregressive")
    )
    if values is not None and given is not None and not (compiled and z.is_cpu):
        _check_given_values(transform, values, given)
    if compiled and wants_grad and kernel is not None and kernel.bijective and values_visible():
        return implicit_inverse(network, kernel, z, values, given)
    if compiled and not wants_grad:
        assert kernel is not None
        return compiled_inverse(network, kernel, z, values, given)
    with torch.set_grad_enabled(wants_grad):
        return reference_inverse(network, transform, z, values, given)


def _check_network(network: MaskedNetwork, z: Tensor) -> int:
    """The number of dimensions, after checks of the network's shapes."""
    weights, biases, degrees = network.weights, network.biases, network.degrees
    if z.ndim not in (2, 3) or z.shape[1] == 0:
        raise ValueError(f"z must have shape [B, D] or [B, D, n], got {tuple(z.shape)}")
    size = z.shape[1]
    if not weights or len(biases) != len(weights) or len(degrees) != len(weights) - 1:
        raise ValueError(
            "the network needs a bias for every layer and degrees for every hidden one, got "
            f"{len(weights)} weights, {len(biases)} biases and {len(degrees)} degrees"
        )
    if weights[0].shape[1] % size or weights[-1].shape[0] % size:
        raise ValueError(
            f"z has {size} dimensions, but the network has {weights[0].shape[1]} inputs and "
            f"{weights[-1].shape[0]} outputs"
        )
    check_floating(
        z=z,
        **{f"weights[{i}]": t for i, t in enumerate(weights)},
        **{f"biases[{i}]": t for i, t in enumerate(biases)},
    )
    width = weights[0].shape[1]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.ndim != 2 or weight.shape[1] != width:
            raise ValueError(f"weights[{i}] must be [units, {width}], got {tuple(weight.shape)}")
        width = weight.shape[0]
        if bias.shape not in ((width,), (z.shape[0], width)):
            raise ValueError(
                f"biases[{i}] must have shape {(width,)} or {(z.shape[0], width)}, "
                f"got {tuple(bias.shape)}"
            )
        if i < len(degrees) and degrees[i].shape != (width,):
            raise ValueError(
                f"degrees[{i}] must have shape {(width,)}, got {tuple(degrees[i].shape)}"
            )
    if network.order is not None and network.order.shape != (size,):
        raise ValueError(f"order must have shape {(size,)}, got {tuple(network.order.shape)}")
    if isinstance(network.activation, str) and network.activation not in ops.ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {tuple(ops.ACTIVATIONS)} or a function, "
            f"got {network.activation!r}"
        )
    return size


def _check_map(network: MaskedNetwork, transform: Any, z: Tensor, size: int) -> None:
    if not callable(transform):
        raise TypeError(f"transform must be callable, got {type(transform).__name__}")
    if not isinstance(transform, ElementMap):
        return
    outputs = network.weights[-1].shape[0] // size
    if outputs != transform.params_per_dim:
        raise ValueError(
            f"transform takes {transform.params_per_dim} parameters a dimension, "
            f"but the network gives {outputs}"
        )
    inputs = network.weights[0].shape[1] // size
    wanted = transform.num_classes if isinstance(transform, CategoricalDraw) else 1
    if inputs != wanted:
        raise ValueError(
            f"transform gives {wanted} inputs a dimension, but the network takes {inputs}"
        )
    shape = z.shape[:2] if transform.noise_per_dim == 1 else (*z.shape[:2], transform.noise_per_dim)
    if z.shape != shape:
        raise ValueError(f"z must have shape {tuple(shape)}, got {tuple(z.shape)}")


def _within_domain(
    transform: ElementMap, z: Tensor, values: Tensor | None, given: Tensor | None
) -> Tensor:
    """z, with a point of the domain where it is not read."""
    domain, image = transform.domain(), transform.inverted().domain()
    assert domain is not None and image is not None
    if given is not None:
        z = torch.where(given, domain[0], z)
    if (z.is_cpu or ops.values_checked()) and values_visible():
        _check_within("z", z, domain)
        if values is not None and given is not None:
            _check_within("given values", torch.where(given, values, image[0]), image)
    return z


def _check_within(name: str, values: Tensor, interval: tuple[float, float]) -> None:
    low, high = interval
    valid = (values >= low) & (values <= high)
    raise_unless_valid(values, valid, f"values in [{low}, {high}]", name=name)


def _check_given_values(transform: Any, values: Tensor, given: Tensor) -> None:
    if isinstance(transform, BernoulliDraw):
        check_given(values, given, unit_interval(values), UNIT_INTERVAL)
    elif isinstance(transform, CategoricalDraw):
        classes = transform.num_classes
        check_given(values, given, class_index(values, classes), class_range(classes))
