"""Samples as files: image grids (PNG) and texts."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from dgm_fast.data import Dataset
from dgm_fast.train.evaluate import EVALUATION_SEED
from dgm_fast.train.files import write_atomically

_GAP = 2
_SMALLEST_SIDE = 28
_TEXT_LENGTH = 400


def to_grey(rows: Tensor, dataset: Dataset) -> Tensor:
    """Data rows, samples or reconstructions [N, D] or [N, *image_shape] as brightness uint8 [N, D]."""
    highest = 1 if dataset.num_classes is None else dataset.num_classes - 1
    values = rows.detach().flatten(1).cpu().float() / max(highest, 1)
    if dataset.likelihood == "gaussian":
        low, high = dataset.train.float().min().item(), dataset.train.float().max().item()
        values = (values - low) / max(high - low, 1e-12)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def image_grid(grey: Tensor, image_shape: tuple[int, ...], columns: int) -> Tensor:
    """Images [N, D] uint8 in a grid with gaps, enlarged where they are tiny: [Y, X] or [Y, X, 3] uint8."""
    planes, height, width = image_shape if len(image_shape) == 3 else (1, *image_shape)
    if planes not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, got {planes}")
    scale = max(1, -(-_SMALLEST_SIDE // min(height, width)))
    images = grey.reshape(-1, planes, height, width)
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    height, width = images.shape[2:]
    lines = math.ceil(len(images) / columns)
    size = (lines * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP)
    grid = torch.full((planes, *size), 64, dtype=torch.uint8)
    for i, image in enumerate(images):
        top = _GAP + (i // columns) * (height + _GAP)
        left = _GAP + (i % columns) * (width + _GAP)
        grid[:, top : top + height, left : left + width] = image
    return grid[0] if planes == 1 else grid.permute(1, 2, 0).contiguous()


def write_png(path: Path, image: Tensor) -> None:
    """Write an 8-bit image, grey [Y, X] or RGB [Y, X, 3]; PNG specification (third edition), section 11."""
    height, width = image.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if image.ndim == 2 else 2, 0, 0, 0)
    # Each line starts with its filter type, 0 for none.
    zeros = torch.zeros(height, 1, dtype=torch.uint8)
    lines = torch.cat([zeros, image.reshape(height, -1).cpu()], 1)
    chunks = [
        (b"IHDR", header),
        (b"IDAT", zlib.compress(lines.numpy().tobytes(), 9)),
        (b"IEND", b""),
    ]
    out = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        checksum = zlib.crc32(kind + body)
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    write_atomically(path, out)


@torch.no_grad()
def write_samples(path: Path, model: nn.Module, dataset: Dataset, count: int = 64) -> None:
    """A square grid of samples from a model with ``sample(n, generator=)``, from a fixed seed."""
    if dataset.image_shape is None:
        raise ValueError(f"{dataset.name}: rows are not images")
    generator = torch.Generator(dataset.train.device).manual_seed(EVALUATION_SEED)
    rows = model.sample(count, generator=generator)  # type: ignore[operator]
    grey = to_grey(rows, dataset)
    write_png(path, image_grid(grey, dataset.image_shape, math.isqrt(count)))


@torch.no_grad()
def write_reconstructions(path: Path, model: nn.Module, dataset: Dataset, count: int = 32) -> None:
    """Test images in odd lines, each above its reconstruction."""
    if dataset.image_shape is None:
        raise ValueError(f"{dataset.name}: rows are not images")
    columns = 8
    x = dataset.model_input(dataset.test[:count])
    originals = to_grey(x, dataset)
    reconstructions = to_grey(model.reconstruct(x), dataset)  # type: ignore[operator]
    blocks = zip(originals.split(columns), reconstructions.split(columns), strict=True)
    lines = []
    for pair in blocks:
        for line in pair:
            blank = torch.full((columns - len(line), line.shape[1]), 64, dtype=torch.uint8)
            lines.append(torch.cat([line, blank]))
    write_png(path, image_grid(torch.cat(lines), dataset.image_shape, columns))


@torch.no_grad()
def write_texts(path: Path, model: nn.Module, dataset: Dataset, count: int = 4) -> None:
    """Sampled texts, each under a line with its number, from a fixed seed."""
    generator = torch.Generator(dataset.train.device).manual_seed(EVALUATION_SEED)
    length = max(_TEXT_LENGTH, dataset.num_dims)
    tokens = model.sample(count, length=length, generator=generator)  # type: ignore[operator]
    texts: list[str] = model.decode(tokens)  # type: ignore[operator]
    lines = [f"--- sample {i + 1}\n{text}\n" for i, text in enumerate(texts)]
    write_atomically(path, "".join(lines).encode("utf-8", "replace"))
