"""Invertible transforms with their log-determinants: what flows are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from dgm_fast.reference._common import compute_dtype

# Sets random generators back to where they stood when a transform ran first.
Rewind = Callable[[], None]


class Transform(nn.Module):
    r"""An invertible map of data x to noise z.

    ``forward(x)`` gives z and :math:`\log|\det \partial z / \partial x|` of each sample, [B] in nats;
    ``inverse(z)`` gives x and its own log-determinant, the negative of that. Log-determinants are float32
    (float64 for float64 data). A conditional transform reads ``context`` [B, context_dim]; the others
    accept and ignore it, so that a :class:`Compose` may mix both.

    A transform may keep state that its first batch of data sets (actnorm); it does so in
    ``forward`` in training mode.
    """

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of z of one sample, from that of x."""
        return shape

    def backward_from_output(
        self,
        z: Tensor,
        grad_z: Tensor | None,
        grad_log_det: Tensor | None,
        wanted: Sequence[Tensor],
        *,
        context: Tensor | None = None,
        inverse: bool = False,
        rewind: Rewind = lambda: None,
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """One step of reversible backpropagation: the input and its gradient, from the output and its own.

        A transform whose two directions share work overrides this: it runs the inverse and the forward.

        Args:
            z: what ``forward`` gave, without a graph.
            grad_z, grad_log_det: gradients of both results; None for zero.
            wanted: tensors that require grad (parameters, the context) whose gradients are asked for.
            context: as ``forward`` had it.
            inverse: ``inverse`` ran in place of ``forward``.
            rewind: to be called before anything that may draw random numbers.

        Returns:
            x, its gradient, and those of ``wanted``; None for zero.
        """
        there, back = (self.inverse, self.forward) if inverse else (self.forward, self.inverse)
        with torch.no_grad():
            rewind()
            x, _ = back(z, context=context)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            rewind()
            out, log_det = there(leaf, context=context)
        grad_x, *found = gradients([(out, grad_z), (log_det, grad_log_det)], [leaf, *wanted])
        return x, grad_x, found


def zero_log_det(x: Tensor) -> Tensor:
    """The log-determinant [B] of a transform that only moves entries."""
    return x.new_zeros(x.shape[:1], dtype=compute_dtype(x))


def gradients(
    results: Iterable[tuple[Tensor, Tensor | None]], wanted: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of ``wanted`` from those of results, (result, its gradient or None for zero) each."""
    used = [(out, grad) for out, grad in results if grad is not None and out.requires_grad]
    if not used:
        return [None] * len(wanted)
    outputs, grads = zip(*used, strict=True)
    return list(torch.autograd.grad(outputs, wanted, grads, allow_unused=True))


class Compose(Transform):
    """Transforms one after the other: ``forward`` applies the first one first.

    Args:
        transforms: at least one.

    Raises:
        TypeError, ValueError: if something is no :class:`Transform`, or there are none.
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        parts = list(transforms)
        if not parts:
            raise ValueError("transforms must hold at least one transform, got none")
        for i, part in enumerate(parts):
            if not isinstance(part, Transform):
                raise TypeError(f"transforms[{i}] must be a Transform, got {type(part).__name__}")
        self.transforms = nn.ModuleList(parts)

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run([part.forward for part in self._parts()], x, context)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run([part.inverse for part in reversed(self._parts())], z, context)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in self._parts():
            shape = part.output_shape(shape)
        return shape

    def _parts(self) -> list[Transform]:
        return list(self.transforms)  # type: ignore[arg-type]

    @staticmethod
    def _run(maps: list, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        first, *rest = maps
        x, total = first(x, context=context)
        for apply in rest:
            x, log_abs_det = apply(x, context=context)
            total = total + log_abs_det
        return x, total


class Inverse(Transform):
    """A transform the other way round: an IAF is the inverse of a MAF.

    Args:
        transform: whose ``inverse`` is this one's ``forward``.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context=context)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.forward(z, context=context)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.transform.output_shape(shape) != shape:
            raise ValueError(
                f"the shape that the inverse of {type(self.transform).__name__} gives is not known"
            )
        return shape

    def backward_from_output(
        self,
        z: Tensor,
        grad_z: Tensor | None,
        grad_log_det: Tensor | None,
        wanted: Sequence[Tensor],
        *,
        context: Tensor | None = None,
        inverse: bool = False,
        rewind: Rewind = lambda: None,
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        return self.transform.backward_from_output(
            z,
            grad_z,
            grad_log_det,
            wanted,
            context=context,
            inverse=not inverse,
            rewind=rewind,
        )
