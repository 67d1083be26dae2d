"""Which half of an image a coupling keeps, and which it moves."""

from __future__ import annotations

import torch
from torch import Tensor

MASKS = ("channel", "checkerboard")


class Partition:
    """Splits images [B, C, H, W] into the half that stays and the half that moves, and joins them.

    Args:
        num_channels: C.
        flip: exchange the halves.
    """

    kept_channels: int
    moved_channels: int

    def __init__(self, num_channels: int, flip: bool) -> None:
        self.num_channels = num_channels
        self.flip = flip

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(kept, moved)."""
        first, second = self._halves(x)
        return (second, first) if self.flip else (first, second)

    def join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return self._whole(moved, kept) if self.flip else self._whole(kept, moved)

    def context(self, context: Tensor) -> Tensor:
        """A context map [B, K, H, W] over the positions of one half."""
        raise NotImplementedError

    def context_channels(self, num_channels: int) -> int:
        raise NotImplementedError

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _whole(self, first: Tensor, second: Tensor) -> Tensor:
        raise NotImplementedError


class ChannelHalves(Partition):
    """The first half of the channels and the others: [B, C / 2, H, W] each."""

    def __init__(self, num_channels: int, flip: bool) -> None:
        super().__init__(num_channels, flip)
        if num_channels < 2:
            raise ValueError(
                f"the channel mask needs at least 2 channels, got {num_channels}: squeeze the image first"
            )
        sizes = num_channels // 2, num_channels - num_channels // 2
        self._first = sizes[0]
        self.kept_channels, self.moved_channels = sizes[::-1] if flip else sizes

    def context(self, context: Tensor) -> Tensor:
        return context

    def context_channels(self, num_channels: int) -> int:
        return num_channels

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, : self._first], x[:, self._first :]

    def _whole(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second], 1)


class Checkerboard(Partition):
    """The two colours of a checkerboard, each pushed together along its lines: [B, C, H, W / 2] each.

    Networks and maps then run on half of the positions, where a mask over the whole image would have them
    compute what it hides.
    """

    def __init__(self, num_channels: int, flip: bool) -> None:
        super().__init__(num_channels, flip)
        self.kept_channels = self.moved_channels = num_channels

    def context(self, context: Tensor) -> Tensor:
        return torch.cat(self._halves(context), 1)

    def context_channels(self, num_channels: int) -> int:
        return 2 * num_channels

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        if width % 2:
            raise ValueError(
                f"a checkerboard needs images of even width, got height {height} and width {width}"
            )
        even, odd = x.unflatten(-1, (width // 2, 2)).unbind(-1)  # columns
        line = _even_lines(x)
        return torch.where(line, even, odd), torch.where(line, odd, even)

    def _whole(self, first: Tensor, second: Tensor) -> Tensor:
        line = _even_lines(first).unsqueeze(-1)  # [H, 1, 1]
        column = torch.arange(2, device=first.device) == 0  # [2]
        board = line == column  # [H, 1, 2]
        return torch.where(board, first.unsqueeze(-1), second.unsqueeze(-1)).flatten(-2)


def _even_lines(x: Tensor) -> Tensor:
    """[H, 1]."""
    return (torch.arange(x.shape[-2], device=x.device) % 2 == 0).unsqueeze(-1)


def partition(mask: str, num_channels: int, flip: bool) -> Partition:
    if mask not in MASKS:
        raise ValueError(f"mask must be one of {MASKS}, got {mask!r}")
    return (Checkerboard if mask == "checkerboard" else ChannelHalves)(num_channels, flip)
