"""Text files as sequences of characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgm_fast.data.dataset import DataError, Dataset

DEFAULT_CONTEXT_LENGTH = 128
# Shares of the text, in its order: train, then valid; test is the rest.
_TRAIN, _VALID = 0.9, 0.05


def load_text(
    path: str | Path, *, context_length: int | None = None, likelihood: str | None = None
) -> Dataset:
    """Windows of a UTF-8 text file, each a row of character indices.

    The first 90% of the characters are for training, the next 5% for validation, the rest for the test.
    Training windows start ``context_length`` // 2 characters apart, so that most characters are seen with
    much and with little before them. The others follow each other. A remainder too short for a window is
    left out. A character is its index among all that the file holds, in the order of their code points
    (``Dataset.vocabulary``).

    Args:
        path: of the file.
        context_length: characters a window; 128 if None.
        likelihood: None or "categorical".

    Raises:
        DataError: if the file cannot be read, is no UTF-8 text, or is too short.
    """
    length = DEFAULT_CONTEXT_LENGTH if context_length is None else context_length
    if length < 1:
        raise DataError(f"context_length must be at least 1, got {length}")
    if likelihood not in (None, "categorical"):
        raise DataError(f"{path}: characters need --likelihood categorical, got {likelihood!r}")
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    points, index = np.unique(
        np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), return_inverse=True
    )
    if len(points) < 2:
        raise DataError(f"{path}: needs at least two distinct characters, got {len(points)}")
    tokens = torch.from_numpy(index.astype(np.uint8 if len(points) <= 256 else np.int32))
    ends = int(_TRAIN * len(tokens)), int((_TRAIN + _VALID) * len(tokens))
    return Dataset(
        str(path),
        _windows(path, "train", tokens[: ends[0]], length, max(1, length // 2)),
        _windows(path, "valid", tokens[ends[0] : ends[1]], length, length),
        _windows(path, "test", tokens[ends[1] :], length, length),
        "categorical",
        len(points),
        vocabulary="".join(map(chr, points.tolist())),
        description=(
            f"{len(tokens):,} characters, {len(points)} of them distinct, in windows of {length}"
        ),
    )


def _windows(path: str | Path, split: str, tokens: Tensor, length: int, stride: int) -> Tensor:
    if len(tokens) < length:
        raise DataError(
            f"{path}: {split} is {len(tokens)} characters of the text, fewer than a window of {length} "
            "(--context-length)"
        )
    return tokens.unfold(0, length, stride).contiguous()
