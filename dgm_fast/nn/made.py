"""MADE: a multi-layer perceptron whose masks make its outputs autoregressive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.functional import MaskedNetwork
from dgm_fast.nn.masked_linear import MaskedLinear

ORDERS = ("natural", "reversed", "random")


class MADE(nn.Module):
    r"""Masked autoencoder for distribution estimation: parameters of x_d from the dimensions before d.

    Inputs have the degrees 1 to D in the network's order, hidden units degrees from 1 to D - 1 (from 0 with
    a context), outputs those of their dimensions. Units of degree m hear those of degree at most m in the
    layer before, outputs only those of lower degree: the outputs of dimension d depend on the dimensions
    before d alone. Masked weights have no influence and no gradient.

    Hidden degrees are spread evenly and ascend with the unit's index, so that masks are staircases. With
    ``num_masks`` above 1 the other masks assign the same degrees to units at random, and with
    ``order="random"`` each has an order of its own: order-agnostic training goes through the masks.

    Args:
        num_dims: D.
        hidden_sizes: widths of the hidden layers; () connects inputs to outputs.
        outputs_per_dim: P.
        order: "natural", "reversed", "random", or the dimensions in their order: integers [D], or
            [num_masks, D].
        num_masks: how many masks the weights share.
        activation: makes the activation module, applied to every hidden layer; element-wise. The inversion
            is compiled for nn.ReLU, LeakyReLU, ELU, Tanh, Sigmoid, SiLU, Softplus, GELU and Identity.
        context_dim: size of a context on which all outputs depend, by an unmasked linear layer into every
            hidden layer (into the outputs where there are none).
        num_classes: inputs are class indices, seen as one-hot vectors of this length.
        generator: source of random orders and degrees; weights come from the global one.

    Attributes:
        orders: buffer, int64 [num_masks, D]: the dimension at each step.
        hidden_degrees: of each hidden layer, int64 [num_masks, H]; buffers too, so that a checkpoint brings
            its masks with it. Weights in a ``state_dict`` are in the user's order of dimensions.

    Shape: x [B, D] (and context [B, context_dim]) -> [B, D, P], in the user's order of dimensions.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Germain, Gregor, Murray and Larochelle, "MADE: Masked Autoencoder for Distribution Estimation"
    (2015).
    """

    orders: Tensor

    def __init__(
        self,
        num_dims: int,
        hidden_sizes: Sequence[int],
        outputs_per_dim: int = 1,
        *,
        order: str | Tensor | Sequence[int] = "natural",
        num_masks: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        context_dim: int | None = None,
        num_classes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        hidden_sizes = tuple(hidden_sizes)
        sizes = {"num_dims": num_dims, "outputs_per_dim": outputs_per_dim, "num_masks": num_masks}
        sizes |= {f"hidden_sizes[{i}]": size for i, size in enumerate(hidden_sizes)}
        if context_dim is not None:
            sizes["context_dim"] = context_dim
        if num_classes is not None:
            sizes["num_classes"] = num_classes
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name} must be an int, got {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.num_dims = num_dims
        self.hidden_sizes = hidden_sizes
        self.outputs_per_dim = outputs_per_dim
        self.num_masks = num_masks
        self.context_dim = context_dim
        self.num_classes = num_classes
        self.activation = activation()
        self._kernel_activation = _kernel_activation(self.activation)
        self.register_buffer("orders", _orders(order, num_masks, num_dims, generator))
        lowest = 1 if context_dim is None else 0
        for i, size in enumerate(hidden_sizes):
            degrees = _spread(size, lowest, max(lowest, num_dims - 1))
            others = [
                degrees[torch.randperm(size, generator=generator)] for _ in range(num_masks - 1)
            ]
            self.register_buffer(f"hidden_degrees_{i}", torch.stack([degrees, *others]))
        features = num_classes or 1
        widths = (num_dims * features, *hidden_sizes, num_dims * outputs_per_dim)
        degrees_of = self._degrees(0)
        self.layers = nn.ModuleList(
            MaskedLinear(
                width_in,
                width_out,
                degrees_of[i],
                degrees_of[i + 1],
                strict=i == len(hidden_sizes),
            )
            for i, (width_in, width_out) in enumerate(pairwise(widths))
        )
        self.context_layers = nn.ModuleList()
        if context_dim is not None:
            for size in hidden_sizes or widths[-1:]:
                self.context_layers.append(nn.Linear(context_dim, size, bias=False))

    @property
    def hidden_degrees(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"hidden_degrees_{i}") for i in range(len(self.hidden_sizes)))

    def forward(self, x: Tensor, *, context: Tensor | None = None, mask: int = 0) -> Tensor:
        """Parameters of every dimension, [B, D, P].

        Args:
            x: [B, D], floating point, or class indices with ``num_classes``.
            context: [B, context_dim], for conditional networks.
            mask: which of the ``num_masks`` masks.
        """
        h = self._inputs(x)
        added = self._context_terms(context, len(x))
        self._check_mask(mask)
        last = len(self.layers) - 1
        stored = self._stored_degrees(mask) if mask != 0 else []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, MaskedLinear)
            h = _under_mask(layer, h, *stored[i]) if stored else layer(h)
            if i < len(added):
                h = h + added[i]
            if i < last:
                h = self.activation(h)
        return h.unflatten(-1, (self.num_dims, self.outputs_per_dim))

    def masked_network(self, context: Tensor | None = None, *, mask: int = 0) -> MaskedNetwork:
        """The layers as :func:`functional.autoregressive_inverse` takes them, differentiable.

        Args:
            context: [B, context_dim], for conditional networks.
            mask: which of the masks.
        """
        self._check_mask(mask)
        added = self._context_terms(context, None if context is None else len(context))
        stored = self._stored_degrees(mask) if mask != 0 else []
        weights, biases = [], []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, MaskedLinear)
            assert layer.bias is not None
            weight: Tensor = layer.weight
            bias: Tensor = layer.bias
            term = added[i] if i < len(added) else None
            if i == len(self.layers) - 1 and term is not None:
                # Outputs are stored by step.
                term = term[:, layer.out_order]
            if stored:
                rows, columns = (degrees.argsort(stable=True) for degrees in stored[i])
                weight, bias = weight[rows][:, columns], bias[rows]
                term = None if term is None else term[:, rows]
            weights.append(weight)
            biases.append(bias if term is None else bias + term)
        degrees = [d[mask] for d in self.hidden_degrees]
        if mask != 0:
            degrees = [d.sort(stable=True).values for d in degrees]
        activation, parameter = self._kernel_activation or (self.activation, 0.0)
        return MaskedNetwork(
            tuple(weights),
            tuple(biases),
            tuple(degrees),
            None if self._is_natural(mask) else self.orders[mask],
            activation,
            parameter,
        )

    @property
    def output_bias(self) -> Tensor:
        """Biases of the outputs, [D, P]: a copy."""
        layer = self.layers[-1]
        assert isinstance(layer, MaskedLinear)
        assert layer.bias is not None
        bias = layer.bias.detach()[layer.out_order.argsort()]
        return bias.view(self.num_dims, self.outputs_per_dim)

    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Replace the biases of the outputs by ``bias`` [D, P]."""
        if bias.shape != (self.num_dims, self.outputs_per_dim):
            raise ValueError(
                f"bias must have shape {(self.num_dims, self.outputs_per_dim)}, "
                f"got {tuple(bias.shape)}"
            )
        layer = self.layers[-1]
        assert isinstance(layer, MaskedLinear)
        assert layer.bias is not None
        layer.bias.copy_(bias.flatten()[layer.out_order])

    def extra_repr(self) -> str:
        return (
            f"num_dims={self.num_dims}, outputs_per_dim={self.outputs_per_dim}, "
            f"num_masks={self.num_masks}"
        )

    def _inputs(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if x.ndim != 2 or x.shape[1] != self.num_dims:
            raise ValueError(f"x must have shape [B, {self.num_dims}], got {tuple(x.shape)}")
        dtype = self.layers[0].weight.dtype
        assert isinstance(dtype, torch.dtype)
        if self.num_classes is None:
            return x.to(dtype)
        return nn.functional.one_hot(x.long(), self.num_classes).flatten(1).to(dtype)

    def _context_terms(self, context: Tensor | None, batch: int | None) -> list[Tensor]:
        """What the context adds to each hidden layer (or to the outputs)."""
        if (context is None) != (self.context_dim is None):
            raise ValueError(
                f"context is {'missing' if context is None else 'given'}, but the network was built "
                f"with context_dim={self.context_dim}"
            )
        if context is None:
            return []
        if context.shape != (batch, self.context_dim):
            raise ValueError(
                f"context must have shape {(batch, self.context_dim)}, got {tuple(context.shape)}"
            )
        return [layer(context) for layer in self.context_layers]

    def _check_mask(self, mask: int) -> None:
        if not 0 <= mask < self.num_masks:
            raise ValueError(f"mask must be between 0 and {self.num_masks - 1}, got {mask}")

    def _degrees(self, mask: int) -> list[Tensor]:
        """Degrees of the inputs, of every hidden layer and of the outputs, in the user's order."""
        of_dims = self.orders[mask].argsort() + 1
        return [
            of_dims.repeat_interleave(self.num_classes or 1),
            *(degrees[mask] for degrees in self.hidden_degrees),
            of_dims.repeat_interleave(self.outputs_per_dim),
        ]

    def _stored_degrees(self, mask: int) -> list[tuple[Tensor, Tensor]]:
        """For each layer the degrees of its stored rows and columns, which mask 0 has sorted."""
        degrees = self._degrees(mask)
        stored = []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, MaskedLinear)
            stored.append((degrees[i + 1][layer.out_order], degrees[i][layer.in_order]))
        return stored

    def _is_natural(self, mask: int) -> bool:
        order = self.orders[mask]
        return bool((order[1:] > order[:-1]).all())


def _under_mask(layer: MaskedLinear, h: Tensor, out_degrees: Tensor, in_degrees: Tensor) -> Tensor:
    """The layer under other degrees, of its stored rows and columns, than those that sorted them."""
    h = functional.masked_linear(
        h.index_select(-1, layer.in_order),
        layer.weight,
        layer.bias,
        in_degrees,
        out_degrees,
        strict=layer.strict,
    )
    return h.index_select(-1, layer.out_order.argsort())


def _spread(size: int, lowest: int, highest: int) -> Tensor:
    """Degrees of the units of a hidden layer: ascending, each as often as the others, or as many as fit."""
    count = highest - lowest + 1
    units = torch.arange(size)
    if size >= count:
        return lowest + units * count // size
    # Both ends, and the rest evenly between them.
    return lowest + torch.round(units * (count - 1) / max(1, size - 1)).long()


def _orders(
    order: str | Tensor | Sequence[int],
    num_masks: int,
    num_dims: int,
    generator: torch.Generator | None,
) -> Tensor:
    """The dimension at each step, [num_masks, D]."""
    if isinstance(order, str):
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS} or a permutation, got {order!r}")
        if order == "random":
            return torch.stack(
                [torch.randperm(num_dims, generator=generator) for _ in range(num_masks)]
            )
        natural = torch.arange(num_dims)
        return (natural if order == "natural" else natural.flip(0)).repeat(num_masks, 1)
    orders = torch.as_tensor(order)
    if orders.dtype.is_floating_point or orders.dtype.is_complex or orders.dtype == torch.bool:
        raise TypeError(f"order must hold integers, got {orders.dtype}")
    if orders.shape not in ((num_dims,), (num_masks, num_dims)):
        raise ValueError(
            f"order must have shape {(num_dims,)} or {(num_masks, num_dims)}, "
            f"got {tuple(orders.shape)}"
        )
    orders = orders.to(torch.int64).expand(num_masks, num_dims).clone()
    if not torch.equal(orders.sort(1).values, torch.arange(num_dims).expand_as(orders)):
        raise ValueError(f"order must hold every dimension from 0 to {num_dims - 1} once")
    return orders


def _kernel_activation(module: nn.Module) -> tuple[str, float] | None:
    """Name and parameter of an activation that the compiled inversion has; None for others."""
    plain = {
        nn.ReLU: "relu",
        nn.Tanh: "tanh",
        nn.Sigmoid: "sigmoid",
        nn.SiLU: "silu",
        nn.Identity: "identity",
    }
    kind = type(module)
    if kind in plain:
        return plain[kind], 0.0
    if isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU:
        return "leaky_relu", module.negative_slope
    if isinstance(module, nn.ELU) and kind is nn.ELU:
        return "elu", module.alpha
    if isinstance(module, nn.GELU) and kind is nn.GELU and module.approximate == "none":
        return "gelu", 0.0
    if isinstance(module, nn.Softplus) and kind is nn.Softplus:
        return ("softplus", 0.0) if (module.beta, module.threshold) == (1, 20) else None
    return None
