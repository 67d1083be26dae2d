"""MNIST through torchvision."""

from __future__ import annotations

from pathlib import Path

import torch

from dgm_fast.data.dataset import DataError, Dataset
from dgm_fast.data.digits import grey_dataset
from dgm_fast.data.extras import require

_HIGHEST = 255


def load_mnist(
    root: str | Path,
    *,
    likelihood: str | None = None,
    mode: str | None = None,
    threshold: float | None = None,
    download: bool = True,
) -> Dataset:
    """MNIST, 50000 train (the first of the training file), 10000 validation, 10000 test rows.

    Args:
        root: where torchvision finds or puts the files.
        likelihood: None is Bernoulli on binarized pixels; "categorical" has 256 classes, "gaussian"
            takes pixels scaled to [0, 1].
        mode: how to binarize; None is "dynamic" for the Bernoulli likelihood: a new draw for every
            training batch, a fixed one for validation and test. "static" fixes the training draw
            too. Neither equals the binarization of the tables in the literature, which is a file
            (train on that with ``load_npz``).
        threshold: for mode "threshold", on the scale 0..255 (default 128).
        download: whether torchvision may fetch missing files.

    Raises:
        MissingExtraError: if torchvision is not installed.
        DataError: if the files cannot be read or fetched.
    """
    torchvision_datasets = require("torchvision.datasets", "MNIST", package="torchvision")
    if mode is None:
        mode = "dynamic" if likelihood in (None, "bernoulli") else "none"
    try:
        parts = [
            torchvision_datasets.MNIST(str(root), train=train, download=download)
            for train in (True, False)
        ]
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"mnist: cannot read or download the files under {root}: {error}. Put torchvision's "
            "MNIST files there (--data-root), or use --data PATH.npz"
        ) from error
    full, test = (part.data.reshape(len(part.data), -1) for part in parts)
    grey = {"train": full[:50000], "valid": full[50000:], "test": test}
    digits, test_digits = (torch.as_tensor(part.targets).long() for part in parts)
    return grey_dataset(
        "mnist",
        grey,
        _HIGHEST,
        image_shape=(28, 28),
        likelihood=likelihood,
        default="bernoulli",
        mode=mode,
        threshold=threshold,
        labels={"train": digits[:50000], "valid": digits[50000:], "test": test_digits},
    )
