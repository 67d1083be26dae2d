"""Linear layer between units of given degrees: the building block of a MADE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional


class MaskedLinear(nn.Module):
    """Linear layer in which an output of degree m hears the inputs of degree d <= m (d < m if ``strict``).

    The units are kept sorted by degree, so that the mask is a staircase: ``weight`` [out, in] and ``bias``
    [out] hold output ``out_order[r]`` in row r and input ``in_order[c]`` in column c. Inputs, outputs and
    ``state_dict`` are in the caller's order. The degrees are part of the ``state_dict``, and loading one
    takes them over. A layer starts with the weights that ``nn.Linear`` would draw.

    Args:
        in_features, out_features: sizes of the last dimension.
        in_degrees, out_degrees: integers, one an input and one an output, in any order.
        strict: connect only degrees that differ, as into the outputs of a MADE.
        bias: whether there is a bias.

    Attributes:
        in_degrees, out_degrees: in the caller's order.
        in_order, out_order: the inputs (outputs) by ascending degree; equal degrees keep their order.
        sorted_in_degrees, sorted_out_degrees: the degrees of the columns and rows of ``weight``.

    Shape: [..., in_features] -> [..., out_features].

    Raises:
        TypeError: if degrees are no integers.
        ValueError: if a size is below 1, or the number of degrees does not match.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    in_degrees: Tensor
    out_degrees: Tensor
    in_order: Tensor
    out_order: Tensor
    sorted_in_degrees: Tensor
    sorted_out_degrees: Tensor
    _in_rank: Tensor
    _out_rank: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        in_degrees: Tensor | Sequence[int],
        out_degrees: Tensor | Sequence[int],
        *,
        strict: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if min(in_features, out_features) < 1:
            raise ValueError(
                "in_features and out_features must be at least 1, got "
                f"{in_features} and {out_features}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.strict = strict
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.register_buffer("in_degrees", _degrees("in_degrees", in_degrees, in_features))
        self.register_buffer("out_degrees", _degrees("out_degrees", out_degrees, out_features))
        self._sort_units()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of a new ``nn.Linear``."""
        bound = 1.0 / math.sqrt(self.in_features)
        with torch.no_grad():
            # In the caller's order, so that the same seed gives the same layer as nn.Linear.
            self.weight.uniform_(-bound, bound)
            self.weight.copy_(self._by_degree(self.weight))
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)
                self.bias.copy_(self.bias[self.out_order])

    def forward(self, x: Tensor) -> Tensor:
        if self._permutes_inputs:
            x = x.index_select(-1, self.in_order)
        out = functional.masked_linear(
            x,
            self.weight,
            self.bias,
            self.sorted_in_degrees,
            self.sorted_out_degrees,
            strict=self.strict,
        )
        return out.index_select(-1, self._out_rank) if self._permutes_outputs else out

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"strict={self.strict}, bias={self.bias is not None}"
        )

    def _sort_units(self) -> None:
        """Everything that follows from the degrees."""
        in_degrees, in_order = self.in_degrees.sort(stable=True)
        out_degrees, out_order = self.out_degrees.sort(stable=True)
        derived = {
            "in_order": in_order,
            "out_order": out_order,
            "sorted_in_degrees": in_degrees,
            "sorted_out_degrees": out_degrees,
            "_in_rank": in_order.argsort(),
            "_out_rank": out_order.argsort(),
        }
        for name, value in derived.items():
            self.register_buffer(name, value, persistent=False)
        # Looked up here once: a look at values in forward would wait for a GPU.
        self._permutes_inputs = not torch.equal(in_degrees, self.in_degrees)
        self._permutes_outputs = not torch.equal(out_degrees, self.out_degrees)

    def _by_degree(self, weight: Tensor) -> Tensor:
        return weight[self.out_order][:, self.in_order]

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._permutes_inputs or self._permutes_outputs:
            weight = destination[f"{prefix}weight"]
            destination[f"{prefix}weight"] = weight[self._out_rank][:, self._in_rank]
        if self._permutes_outputs and self.bias is not None:
            destination[f"{prefix}bias"] = destination[f"{prefix}bias"][self._out_rank]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Degrees first: they say how the weights of the file are sorted.
        for name in ("in_degrees", "out_degrees"):
            value = state_dict.get(f"{prefix}{name}")
            if isinstance(value, Tensor) and value.shape == getattr(self, name).shape:
                getattr(self, name).copy_(value)
        self._sort_units()
        by_degree = dict(state_dict)
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.shape == self.weight.shape:
            out_order, in_order = (t.to(weight.device) for t in (self.out_order, self.in_order))
            by_degree[f"{prefix}weight"] = weight[out_order][:, in_order]
        bias = state_dict.get(f"{prefix}bias")
        if isinstance(bias, Tensor) and bias.shape == (self.out_features,):
            by_degree[f"{prefix}bias"] = bias[self.out_order.to(bias.device)]
        super()._load_from_state_dict(by_degree, prefix, *args, **kwargs)


def _degrees(name: str, degrees: Tensor | Sequence[int], size: int) -> Tensor:
    values = torch.as_tensor(degrees)
    if values.dtype.is_floating_point or values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {values.dtype}")
    if values.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(values.shape)}")
    return values.to(torch.int64, copy=True)
