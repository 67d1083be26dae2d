"""A masked network with its units sorted, and the ways to invert it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional.element_maps import ElementMap
from dgm_fast.functional.masked import masked_linear
from dgm_fast.reference._common import compute_dtype

# (z_d [B] or [B, n], parameters [B, P]) -> (x_d [B], log|dx_d/dz_d| [B] or None)
Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


class MaskedNetwork(NamedTuple):
    """A masked autoregressive network with its units sorted: hidden ones by degree, the others by step.

    A hidden unit of degree m sees the first m dimensions and, in the layer before, units of degree at most
    m. Parameters of the dimension of step i (counted from 0) see hidden units of degree at most i, or
    without hidden layers the first i dimensions. Weights outside of that are not used, whatever they hold.

    Attributes:
        weights: [H1, D F], [H2, H1], ..., [D P, HL], F inputs and P parameters a dimension, those of a
            dimension together.
        biases: of the same layers, [H] or (with a context) [B, H].
        degrees: of the hidden layers, int64 [H], from 0 to D - 1, ascending.
        order: int64 [D], the dimension at each step; None for 0, 1, ..., D - 1.
        activation: between the layers: a name in ``ops.ACTIVATIONS``, or any element-wise function.
        activation_parameter: the slope of "leaky_relu", alpha of "elu".
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    degrees: tuple[Tensor, ...]
    order: Tensor | None = None
    activation: str | Callable[[Tensor], Tensor] = "relu"
    activation_parameter: float = 0.0

    def function(self) -> Callable[[Tensor], Tensor]:
        """The activation."""
        if not isinstance(self.activation, str):
            return self.activation
        named = reference.ACTIVATIONS[self.activation]
        return lambda t: named(t, self.activation_parameter)


def compiled_inverse(
    network: MaskedNetwork,
    transform: ElementMap,
    z: Tensor,
    values: Tensor | None,
    given: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """By the op, without gradients."""
    assert isinstance(network.activation, str)
    x, log_abs_det = ops.autoregressive_inverse(
        z.detach(),
        [t.detach() for t in network.weights],
        [t.detach() for t in network.biases],
        list(network.degrees),
        [],
        network.order,
        ops.ACTIVATIONS[network.activation],
        network.activation_parameter,
        *transform.kernel(),
        values,
        given,
    )
    return x, log_abs_det if transform.bijective else None


def reference_inverse(
    network: MaskedNetwork,
    transform: Map,
    z: Tensor,
    values: Tensor | None,
    given: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """By the Python loop, differentiable to any order."""
    return reference.autoregressive_inverse(
        z,
        network.weights,
        network.biases,
        network.degrees,
        network.order,
        network.function(),
        transform,
        values,
        given,
    )


def implicit_inverse(
    network: MaskedNetwork,
    transform: ElementMap,
    z: Tensor,
    values: Tensor | None,
    given: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """By the op, with implicit gradients."""
    layers = len(network.weights)
    x, log_abs_det = _ImplicitInverse.apply(
        network, transform, values, given, layers, z, *network.weights, *network.biases
    )
    return x, log_abs_det


class _ImplicitInverse(torch.autograd.Function):
    """x with F(x, w) = z, F_d = map^-1(x_d; parameters_d(x before d, w)), and L = -sum_d log|dF_d/dx_d|.

    With J = dF/dx, lower triangular in the network's order, and gradients g of x and l of L,

        J^T v = g + l dL/dx,    gradient of z: v,    gradient of w: l dL/dw - v^T dF/dw.

    The system has the form of an inversion itself, of the network's transpose with the derivatives of its
    activations as gates and its steps reversed: unit m hears what comes after dimension m.
    """

    @staticmethod
    def forward(
        ctx: Any,
        network: MaskedNetwork,
        transform: ElementMap,
        values: Tensor | None,
        given: Tensor | None,
        layers: int,
        z: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        network = network._replace(weights=parameters[:layers], biases=parameters[layers:])
        x, log_abs_det = compiled_inverse(network, transform, z, values, given)
        assert log_abs_det is not None
        ctx.save_for_backward(x, z, values, given, network.order, *network.degrees, *parameters)
        ctx.activation = (network.activation, network.activation_parameter)
        ctx.transform, ctx.layers = transform, layers
        return x, log_abs_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, z, values, given, order, *rest = ctx.saved_tensors
        layers = ctx.layers
        degrees, parameters = rest[: layers - 1], rest[layers - 1 :]
        network = MaskedNetwork(
            tuple(parameters[:layers]),
            tuple(parameters[layers:]),
            tuple(degrees),
            order,
            *ctx.activation,
        )
        wanted = ctx.needs_input_grad[5:]
        if torch.is_grad_enabled():
            found = _explicit_gradients(network, ctx.transform, z, values, given, wanted, grads)
        else:
            found = _implicit_gradients(network, ctx.transform, x, given, wanted, grads)
            if found[0] is not None:
                found[0] = found[0].to(z.dtype)
        return (None, None, None, None, None, *found)


def _explicit_gradients(
    network: MaskedNetwork,
    transform: ElementMap,
    z: Tensor,
    values: Tensor | None,
    given: Tensor | None,
    wanted: tuple[bool, ...],
    grads: tuple[Tensor, ...],
) -> list[Tensor | None]:
    """Through the Python loop, so that they are differentiable again."""
    outputs = reference_inverse(network, transform, z, values, given)
    inputs = (z, *network.weights, *network.biases)
    needed = [t for t, needs in zip(inputs, wanted, strict=True) if needs]
    found = iter(
        torch.autograd.grad(
            [t for t in outputs if t is not None],
            needed,
            list(grads),
            create_graph=True,
            materialize_grads=True,
        )
    )
    return [next(found) if needs else None for needs in wanted]


def _implicit_gradients(
    network: MaskedNetwork,
    transform: ElementMap,
    x: Tensor,
    given: Tensor | None,
    wanted: tuple[bool, ...],
    grads: tuple[Tensor, ...],
) -> list[Tensor | None]:
    dtype = x.dtype
    # Everything by step from here.
    at = slice(None) if network.order is None else network.order
    parameters = [
        t.detach().requires_grad_(needs)
        for t, needs in zip((*network.weights, *network.biases), wanted[1:], strict=True)
    ]
    free = None if given is None else ~given[:, at]
    grad_x, grad_log = grads[0][:, at], grads[1]
    with torch.enable_grad():
        steps = x[:, at].detach().requires_grad_()
        params, units = _run(network, [t.to(dtype) for t in parameters], steps)
        gates = [torch.autograd.grad(unit.sum(), pre, retain_graph=True)[0] for pre, unit in units]
        # Of z_d and its log-derivative to x_d and the parameters as if these were given.
        own = steps.detach().requires_grad_(), params.detach().requires_grad_()
        z, log_abs_det = transform.inverted()(*own)
        assert log_abs_det is not None
        of_log = torch.autograd.grad(
            log_abs_det,
            own,
            -grad_log.unsqueeze(1).expand_as(log_abs_det),
            retain_graph=True,
            materialize_grads=True,
        )
        diagonal, factors = torch.autograd.grad(z, own, torch.ones_like(z))
        if free is not None:
            diagonal = torch.where(free, diagonal, 1.0)
            factors = torch.where(free.unsqueeze(-1), factors, 0.0)
            of_log = (
                torch.where(free, of_log[0], 0.0),
                torch.where(free.unsqueeze(-1), of_log[1], 0.0),
            )
        (from_log,) = torch.autograd.grad(params, steps, of_log[1], retain_graph=True)
        right = grad_x + of_log[0] + from_log
        v = _solve(network, right, diagonal, factors, gates, free)
        needed = [t for t in parameters if t.requires_grad]
        upstream = of_log[1] - v.unsqueeze(-1) * factors
        found = iter(torch.autograd.grad(params, needed, upstream) if needed else ())
        of_parameters = [next(found) if t.requires_grad else None for t in parameters]
    of_z = None
    if wanted[0]:
        of_z = v if network.order is None else torch.empty_like(v).index_copy_(1, network.order, v)
    return [of_z, *of_parameters]


def _run(
    network: MaskedNetwork, parameters: list[Tensor], x: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Parameters [B, D, P] of x [B, D], both by step, and the hidden layers before and after activation."""
    layers, size = len(network.weights), x.shape[1]
    steps = torch.arange(size, device=x.device)
    outputs = network.weights[-1].shape[0] // size
    # A unit of degree m hears the steps before m; the outputs of step i hear units of degree at most i.
    degrees = [steps + 1, *network.degrees, steps.repeat_interleave(outputs)]
    h, units = x, []
    function = network.function()
    for i in range(layers):
        weight, bias = parameters[i], parameters[layers + i]
        pre = masked_linear(h, weight, None, degrees[i], degrees[i + 1]) + bias
        if i < layers - 1:
            h = function(pre)
            units.append((pre, h))
    return pre.unflatten(1, (size, outputs)), units


def _solve(
    network: MaskedNetwork,
    right: Tensor,
    diagonal: Tensor,
    factors: Tensor,
    gates: list[Tensor],
    free: Tensor | None,
) -> Tensor:
    """v with J^T v = right for the free dimensions, 0 for the others, all by step."""
    size = right.shape[1]
    dtype = compute_dtype(right)
    weights = [w.detach().to(dtype).t().flip(0, 1) for w in reversed(network.weights)]
    # Flipped, the parameters of a step come in reverse too.
    z = torch.cat([torch.stack([right, 1.0 / diagonal], -1), factors.flip(-1)], -1).flip(1)
    given = None if free is None else ~free.flip(1)
    v, _ = ops.autoregressive_inverse(
        z,
        weights,
        [w.new_zeros(len(w)) for w in weights],
        [size - d.flip(0) for d in reversed(network.degrees)],
        [gate.flip(1) for gate in reversed(gates)],
        None,
        ops.ACTIVATIONS["identity"],
        0.0,
        ops.ELEMENT_MAPS["adjoint"],
        [],
        [],
        False,
        None if given is None else torch.zeros_like(right),
        given,
    )
    return v.flip(1)
