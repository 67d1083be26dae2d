"""One entry for every data set by the name a user types."""

from __future__ import annotations

from pathlib import Path

from dgm_fast.data.dataset import BINARIZE_MODES, LIKELIHOODS, DataError, Dataset
from dgm_fast.data.digits import load_digits
from dgm_fast.data.image_folder import load_image_folder
from dgm_fast.data.mnist import load_mnist
from dgm_fast.data.npz import load_npz
from dgm_fast.data.text import load_text
from dgm_fast.data.toy import TOYS, load_toy

_DEFAULT_ROOT = Path("~/.cache/dgm_fast")


def load_dataset(
    source: str,
    *,
    likelihood: str | None = None,
    binarize: str | None = None,
    threshold: float | None = None,
    num_dims: int | None = None,
    num_classes: int | None = None,
    layout: str = "auto",
    image_size: int | None = None,
    image_channels: int | None = None,
    root: str | Path | None = None,
    context_length: int | None = None,
) -> Dataset:
    """Load "digits", "mnist", a density in the plane, or what a path holds.

    Args:
        source: "digits", "mnist", "eight-gaussians", "moons", "checkerboard", a path that ends in
            ``.npz`` or ``.txt``, or a folder of images.
        likelihood: None chooses what fits the data; see the loaders.
        binarize: None (the loader's default), "none", "threshold", "static" or "dynamic".
        threshold: the level from which a pixel is 1, for "threshold".
        num_dims, num_classes, layout: how to read an ``.npz`` file; see
            :func:`dgm_fast.data.load_npz`.
        image_size, image_channels: how to read a folder; see
            :func:`dgm_fast.data.load_image_folder`.
        root: directory of the MNIST files, ``~/.cache/dgm_fast`` by default.
        context_length: characters a row of a text file; see :func:`dgm_fast.data.load_text`.

    Raises:
        DataError: if the name is unknown, an option does not belong to the source, or the data
            cannot be used.
        MissingExtraError: if a package that the source needs is not installed.
    """
    if likelihood is not None and likelihood not in LIKELIHOODS:
        raise DataError(f"likelihood must be one of {LIKELIHOODS}, got {likelihood!r}")
    if binarize is not None and binarize not in BINARIZE_MODES:
        raise DataError(f"binarize must be one of {BINARIZE_MODES}, got {binarize!r}")
    if threshold is not None:
        if binarize is None:
            binarize = "threshold"
        elif binarize != "threshold":
            raise DataError(f"threshold belongs to binarize 'threshold', got {binarize!r}")
    text = source.endswith(".txt")
    if context_length is not None and not text:
        raise DataError(f"context_length describes a text file and does not apply to {source}")
    if text:
        for name, value in (
            ("binarize", binarize),
            ("num_dims", num_dims),
            ("num_classes", num_classes),
        ):
            if value is not None:
                raise DataError(f"{name} does not apply to the text file {source}")
        if layout != "auto":
            raise DataError(f"layout describes an .npz file and does not apply to {source}")
        return load_text(source, context_length=context_length, likelihood=likelihood)
    if source in ("digits", "mnist", *TOYS):
        for name, value in (("num_dims", num_dims), ("num_classes", num_classes)):
            if value is not None:
                raise DataError(f"{name} describes an .npz file and does not apply to {source}")
        if layout != "auto":
            raise DataError(f"layout describes an .npz file and does not apply to {source}")
    folder = (
        source not in ("digits", "mnist", *TOYS)
        and not source.endswith(".npz")
        and Path(source).expanduser().is_dir()
    )
    for name, value in (("image_size", image_size), ("image_channels", image_channels)):
        if value is not None and not folder:
            raise DataError(f"{name} describes a folder of images and does not apply to {source}")
    if source == "digits":
        return load_digits(likelihood=likelihood, mode=binarize or "none", threshold=threshold)
    if source == "mnist":
        directory = Path(root) if root is not None else _DEFAULT_ROOT.expanduser()
        return load_mnist(directory, likelihood=likelihood, mode=binarize, threshold=threshold)
    if source.endswith(".npz"):
        return load_npz(
            source,
            likelihood=likelihood,
            mode=binarize or "none",
            threshold=threshold,
            num_dims=num_dims,
            num_classes=num_classes,
            layout=layout,
        )
    if source in TOYS:
        if binarize not in (None, "none") or likelihood not in (None, "gaussian"):
            raise DataError(
                f"{source}: points in the plane are real values; use --likelihood gaussian"
            )
        return load_toy(source)
    if folder:
        for name, value in (("num_dims", num_dims), ("num_classes", num_classes)):
            if value is not None:
                raise DataError(f"{name} describes an .npz file and does not apply to {source}")
        return load_image_folder(
            Path(source).expanduser(),
            image_size=image_size or 32,
            channels=image_channels or 3,
            likelihood=likelihood,
            mode=binarize or "none",
            threshold=threshold,
        )
    raise DataError(
        f"unknown data set {source!r}: use digits, mnist, {', '.join(TOYS)}, a path ending in .npz or "
        ".txt, or a folder of images"
    )
