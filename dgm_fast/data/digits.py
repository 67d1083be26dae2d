"""scikit-learn's handwritten digits: 1797 images of 8x8 pixels with 17 grey levels."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast.data.dataset import DataError, Dataset, binarize
from dgm_fast.data.extras import require

_HIGHEST = 16
_SPLITS = {"train": slice(0, 1000), "valid": slice(1000, 1350), "test": slice(1350, 1797)}


def load_digits(
    *, likelihood: str | None = None, mode: str = "none", threshold: float | None = None
) -> Dataset:
    """The digits in file order: 1000 train, 350 validation and 447 test rows of 64 pixels.

    Args:
        likelihood: None is categorical with 17 classes, or Bernoulli when binarized. "gaussian"
            takes the pixels scaled to [0, 1] as real values.
        mode: "none" or how to binarize (see :func:`dgm_fast.data.binarize`); the default threshold
            is 8.
        threshold: for mode "threshold".

    Raises:
        DataError: if the likelihood does not fit the binarization.
        MissingExtraError: if scikit-learn is not installed.

    Source: split as in Tomczak, "Deep Generative Modeling" (2022), code of chapter 2.
    """
    sklearn_datasets = require("sklearn.datasets", "the digits data set", package="scikit-learn")
    source = sklearn_datasets.load_digits()
    pixels = torch.from_numpy(source.data).to(torch.uint8)  # [1797, 64]
    digits = torch.from_numpy(source.target).long()  # [1797]
    grey = {split: pixels[rows] for split, rows in _SPLITS.items()}
    return grey_dataset(
        "digits",
        grey,
        _HIGHEST,
        image_shape=(8, 8),
        likelihood=likelihood,
        default="categorical",
        mode=mode,
        threshold=threshold,
        labels={split: digits[rows] for split, rows in _SPLITS.items()},
    )


def grey_dataset(
    name: str,
    grey: dict[str, Tensor],
    highest: int,
    *,
    image_shape: tuple[int, ...] | None,
    likelihood: str | None,
    default: str,
    mode: str,
    threshold: float | None,
    labels: dict[str, Tensor] | None = None,
) -> Dataset:
    """A data set of whole grey levels 0..highest under the requested likelihood."""
    binary = mode != "none"
    likelihood = likelihood or ("bernoulli" if binary else default)
    if binary != (likelihood == "bernoulli"):
        raise DataError(
            f"{name}: the {likelihood} likelihood with binarization {mode!r} does not fit; "
            "binary data need --likelihood bernoulli, and grey levels "
            "--likelihood categorical or gaussian, or --binarize"
        )
    rows = grey
    num_classes = None
    if binary:
        rows = binarize(grey, highest, mode, threshold)
        what = f"binarized ({mode})"
    elif likelihood == "categorical":
        num_classes = highest + 1
        what = f"{num_classes} grey levels"
    else:
        rows = {split: values.float() / highest for split, values in grey.items()}
        what = "grey values scaled to [0, 1]"
    return Dataset(
        name,
        rows["train"],
        rows["valid"],
        rows["test"],
        likelihood,
        num_classes,
        image_shape,
        dynamic=mode == "dynamic",
        description=what,
        labels=labels,
    )
