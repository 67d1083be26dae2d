"""What a data set is to a training run, and the ways of making grey values binary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BINARIZE_MODES = ("none", "threshold", "static", "dynamic")
LIKELIHOODS = ("bernoulli", "gaussian", "categorical")

# The fixed draws of "static" binarization (and of valid and test under "dynamic") belong to the
# data set, not to a run: every seed of a comparison is scored on the same bits.
_BINARIZE_SEED = 20160505


class DataError(ValueError):
    """A data set cannot be used; the message names the source, what is wrong and what is needed."""


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test rows with what a decoder needs to know about them.

    Attributes:
        name: how the data set was asked for, for messages and the run's configuration.
        train, valid, test: [N, D] in their storage type: uint8 for binary and class data
            (int32 past 256 classes), float32 for probabilities and real values.
        likelihood: "bernoulli", "gaussian" or "categorical".
        num_classes: number of categories per dimension, None unless categorical.
        image_shape: (height, width), or (channels, height, width), when the rows are images in raster
            order, channel after channel; else None.
        dynamic: train rows hold probabilities, and each :meth:`batch` of them is a new binary draw.
        description: one line on how the source was read.
        vocabulary: the character of each class, where rows are text; None otherwise.
        labels: split name -> class labels int64 [N], where the source has them.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    likelihood: str
    num_classes: int | None = None
    image_shape: tuple[int, ...] | None = None
    dynamic: bool = False
    description: str = ""
    vocabulary: str | None = None
    labels: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for split, rows in self.splits().items():
            if rows.ndim != 2 or 0 in rows.shape:
                raise DataError(
                    f"{self.name}: {split} must be a non-empty [N, D] array, "
                    f"got {tuple(rows.shape)}"
                )
            if rows.shape[1] != self.num_dims:
                raise DataError(
                    f"{self.name}: {split} has {rows.shape[1]} dimensions, but train has "
                    f"{self.num_dims}"
                )
        if self.likelihood not in LIKELIHOODS:
            raise DataError(
                f"{self.name}: likelihood must be one of {LIKELIHOODS}, got {self.likelihood!r}"
            )
        if (self.likelihood == "categorical") != (self.num_classes is not None):
            raise DataError(
                f"{self.name}: num_classes goes with the categorical likelihood, got "
                f"{self.num_classes} with {self.likelihood!r}"
            )
        if self.image_shape is not None and math.prod(self.image_shape) != self.num_dims:
            raise DataError(
                f"{self.name}: image shape {self.image_shape} does not hold {self.num_dims} pixels"
            )
        for split, rows in self.splits().items():
            if self.labels is None:
                break
            labels = self.labels.get(split)
            if labels is None or labels.shape != rows.shape[:1] or labels.dtype != torch.long:
                raise DataError(
                    f"{self.name}: {split} needs int64 labels [{len(rows)}], got "
                    f"{None if labels is None else (labels.dtype, tuple(labels.shape))}"
                )

    @property
    def num_dims(self) -> int:
        return self.train.shape[1]

    def splits(self) -> dict[str, Tensor]:
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with its rows on a device."""
        return dataclasses.replace(
            self,
            train=self.train.to(device),
            valid=self.valid.to(device),
            test=self.test.to(device),
            labels=self.labels and {split: t.to(device) for split, t in self.labels.items()},
        )

    @property
    def num_labels(self) -> int | None:
        """Number of classes that the labels count, None without labels."""
        if self.labels is None:
            return None
        return 1 + max(int(t.max()) for t in self.labels.values())

    def model_input(self, rows: Tensor) -> Tensor:
        """Stored rows as a model takes them: int64 class indices, float32 otherwise."""
        return rows.long() if self.likelihood == "categorical" else rows.float()

    def labelled_batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Training rows as :meth:`batch` gives them, and their labels [B]."""
        if self.labels is None:
            raise DataError(f"{self.name}: has no labels")
        return self.batch(index), self.labels["train"][index]

    def batch(self, index: Tensor) -> Tensor:
        """Training rows [B, D] as a model takes them; a dynamic set draws them anew."""
        rows = self.train[index]
        if self.dynamic:
            return torch.bernoulli(rows.float())
        return self.model_input(rows)


def square_image(num_dims: int) -> tuple[int, int] | None:
    """(side, side) if ``num_dims`` is a square number, else None."""
    side = math.isqrt(num_dims)
    return (side, side) if side * side == num_dims else None


def binarize(
    grey: dict[str, Tensor], highest: float, mode: str, threshold: float | None = None
) -> dict[str, Tensor]:
    """Rows of grey values in [0, highest] as binary rows (or, for dynamic training, probabilities).

    * "threshold": 1 where the value is at least ``threshold`` (default: the middle, rounded up for
      whole levels: 8 of 16, 128 of 255).
    * "static": one draw with p = value / highest, from a fixed seed that belongs to the data set.
    * "dynamic": the train split becomes float32 probabilities, drawn anew for each batch (Burda et
      al. 2016, section 5.1); validation and test are the static draw, so scores are comparable.

    Args:
        grey: split name -> [N, D].
        highest: the largest grey value.
        mode: one of "threshold", "static", "dynamic".

    Returns:
        split name -> uint8 [N, D] of 0 and 1, or float32 probabilities for train under "dynamic".
    """
    if mode == "threshold":
        if threshold is None:
            threshold = 0.5 if highest == 1 else math.ceil(highest / 2)
        return {split: (rows >= threshold).to(torch.uint8) for split, rows in grey.items()}
    if mode not in BINARIZE_MODES or mode == "none":
        raise ValueError(f"binarize mode must be one of {BINARIZE_MODES[1:]}, got {mode!r}")
    generator = torch.Generator().manual_seed(_BINARIZE_SEED)
    out = {}
    for split, rows in grey.items():
        probability = rows.float() / highest
        draw = torch.bernoulli(probability, generator=generator).to(torch.uint8)
        out[split] = probability if mode == "dynamic" and split == "train" else draw
    return out
