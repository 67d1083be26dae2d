"""Images in a folder, read with Pillow; subfolders are classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgm_fast.data.dataset import DataError, Dataset
from dgm_fast.data.digits import grey_dataset
from dgm_fast.data.extras import require

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_SPLITS = ("train", "valid", "test")
# Of a folder without the subfolders train, valid and test: every tenth image to each of the others.
_EVERY = 10


def load_image_folder(
    path: str | Path,
    *,
    image_size: int = 32,
    channels: int = 3,
    likelihood: str | None = None,
    mode: str = "none",
    threshold: float | None = None,
) -> Dataset:
    """All images under a folder as rows of levels 0..255, [N, channels * image_size^2].

    Each image is scaled so that its shorter side fits, and cut to the square in its middle. Folders
    ``train``, ``valid`` and ``test`` are taken as the splits if all are there; otherwise, of all images in
    the order of their names, every tenth is for validation and every tenth for the test. A first level
    of subfolders gives class labels in the order of their names, as torchvision's ``ImageFolder`` does.

    Args:
        path: the folder.
        image_size: side in pixels.
        channels: 3, or 1 for grey.
        likelihood: None is real values in [0, 1] ("gaussian"); "categorical" has 256 levels, "bernoulli"
            needs a binarization.
        mode, threshold: how to binarize.

    Raises:
        DataError: if there are too few images, one cannot be read, or the options do not fit.
        MissingExtraError: if Pillow is not installed.
    """
    path = Path(path)
    pillow = require("PIL.Image", "a folder of images", package="pillow")
    if channels not in (1, 3):
        raise DataError(f"{path}: channels must be 1 or 3, got {channels}")
    if image_size < 1:
        raise DataError(f"{path}: image_size must be at least 1, got {image_size}")
    files = _splits(path)
    names = sorted({name for entries in files.values() for _, name in entries if name is not None})
    labelled = bool(names) and all(n is not None for es in files.values() for _, n in es)
    rows = {
        split: torch.stack([_read(pillow, file, image_size, channels) for file, _ in entries])
        for split, entries in files.items()
    }
    labels = {
        split: torch.tensor([names.index(name) for _, name in entries if name is not None])
        for split, entries in files.items()
    }
    return grey_dataset(
        str(path),
        rows,
        255,
        image_shape=(channels, image_size, image_size)
        if channels > 1
        else (image_size, image_size),
        likelihood=likelihood,
        default="gaussian",
        mode=mode,
        threshold=threshold,
        labels=labels if labelled else None,
    )


def _splits(path: Path) -> dict[str, list[tuple[Path, str | None]]]:
    """Files and the names of their classes, by split."""
    if all((path / split).is_dir() for split in _SPLITS):
        files = {split: _images(path / split) for split in _SPLITS}
    else:
        everything = _images(path)
        files = {"train": [], "valid": [], "test": []}
        for i, entry in enumerate(everything):
            place = {_EVERY - 2: "valid", _EVERY - 1: "test"}.get(i % _EVERY, "train")
            files[place].append(entry)
    for split, entries in files.items():
        if not entries:
            raise DataError(
                f"{path}: {split} has no images ({', '.join(SUFFIXES)}); a folder without subfolders "
                f"train, valid and test needs at least {_EVERY}"
            )
    return files


def _images(folder: Path) -> list[tuple[Path, str | None]]:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    parts = [f.relative_to(folder).parts for f in files]
    return [(f, p[0] if len(p) > 1 else None) for f, p in zip(files, parts, strict=True)]


def _read(pillow: Any, file: Path, size: int, channels: int) -> Tensor:
    """One image as uint8 [channels * size * size]."""
    try:
        with pillow.open(file) as image:
            image = image.convert("RGB" if channels == 3 else "L")
            scale = size / min(image.size)
            width, height = (max(size, round(side * scale)) for side in image.size)
            image = image.resize((width, height), pillow.Resampling.LANCZOS)
            left, top = (width - size) // 2, (height - size) // 2
            image = image.crop((left, top, left + size, top + size))
            data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as an image ({error})") from error
    return data.reshape(size, size, channels).permute(2, 0, 1).reshape(-1)
