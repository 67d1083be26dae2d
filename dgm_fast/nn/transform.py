"""Invertible transforms with their log-determinants: what flows are made of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


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
