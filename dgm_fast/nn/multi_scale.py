"""Multi-scale flows: half of the channels leave after each level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dgm_fast.nn.transform import Compose, Transform


class MultiScale(Transform):
    """Levels of transforms, between which half of the channels leave for the noise.

    x runs through the first level; the second half of the channels of its result is noise already, the
    first half goes on to the next level, and so on. z holds the parts in the order in which they left,
    each flattened, in the shape of x.

    Args:
        levels: transforms of images, the first one nearest to the data.
        shape: (channels, height, width) of x.
        priors: a transform of the whole result of each level but the last, run before it is split: a
            coupling that moves the second half by the first makes the noise that leaves a conditional
            Gaussian of what stays (Glow). None: none.

    Raises:
        ValueError: if the shapes of the levels do not fit, or the number of priors.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), section 3.6.
    """

    def __init__(
        self,
        levels: Iterable[Transform],
        shape: Sequence[int],
        *,
        priors: Iterable[Transform] | None = None,
    ) -> None:
        super().__init__()
        parts = list(levels)
        Compose(parts)  # checks the types
        self.levels = nn.ModuleList(parts)
        self.shape = tuple(shape)
        self.priors = None if priors is None else nn.ModuleList(priors)
        if self.priors is not None and len(self.priors) != len(parts) - 1:
            raise ValueError(
                f"priors must hold one transform for each level but the last, {len(parts) - 1}, "
                f"got {len(self.priors)}"
            )
        # What each level gives, before half of it leaves.
        self._shapes: list[tuple[int, ...]] = []
        now = self.shape
        for i, level in enumerate(parts):
            now = level.output_shape(now)
            self._shapes.append(now)
            if i + 1 < len(parts):
                if now[0] < 2:
                    raise ValueError(f"level {i} must give at least 2 channels to split, got {now}")
                now = (now[0] - now[0] // 2, *now[1:])

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shape = x.shape
        left: list[Tensor] = []
        total: Tensor | None = None
        for i, level in enumerate(self.levels):
            x, log_det = level(x, context=context)
            total = log_det if total is None else total + log_det
            if i + 1 < len(self.levels):
                if self.priors is not None:
                    x, log_det = self.priors[i](x, context=context)
                    total = total + log_det
                x, gone = x.split(self._split(i), 1)
                left.append(gone.flatten(1))
        assert total is not None
        return torch.cat([*left, x.flatten(1)], 1).reshape(shape), total

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat = z.flatten(1)
        sizes = [self._split(i)[1] * self._positions(i) for i in range(len(self.levels) - 1)]
        *left, rest = flat.split([*sizes, flat.shape[1] - sum(sizes)], 1)
        x = rest.unflatten(1, self._shapes[-1])
        total: Tensor | None = None
        for i in range(len(self.levels) - 1, -1, -1):
            if i + 1 < len(self.levels):
                x = torch.cat([x, left[i].unflatten(1, (-1, *self._shapes[i][1:]))], 1)
                if self.priors is not None:
                    x, log_det = self._part(self.priors, i).inverse(x, context=context)
                    total = log_det if total is None else total + log_det
            x, log_det = self._part(self.levels, i).inverse(x, context=context)
            total = log_det if total is None else total + log_det
        assert total is not None
        return x, total

    def _split(self, i: int) -> list[int]:
        """Channels of level i that go on, and that leave."""
        channels = self._shapes[i][0]
        return [channels - channels // 2, channels // 2]

    def _positions(self, i: int) -> int:
        return self._shapes[i][1] * self._shapes[i][2]

    @staticmethod
    def _part(parts: nn.ModuleList, i: int) -> Transform:
        return parts[i]  # type: ignore[return-value]
