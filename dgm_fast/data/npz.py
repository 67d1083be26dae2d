"""``.npz`` files with arrays ``train``, ``valid`` and ``test``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgm_fast.data.dataset import DataError, Dataset, binarize, square_image

LAYOUTS = ("auto", "packed", "plain")
_SPLITS = ("train", "valid", "test")
_NEEDS = "an .npz file with 2-D arrays train, valid and test"

Arrays = dict[str, np.ndarray]


def load_npz(
    path: str | Path,
    *,
    likelihood: str | None = None,
    mode: str = "none",
    threshold: float | None = None,
    num_dims: int | None = None,
    num_classes: int | None = None,
    layout: str = "auto",
) -> Dataset:
    """Read a data set from one file.

    Two layouts:

    * packed: uint8 [N, ceil(D / 8)], rows of D bits as written by ``numpy.packbits(axis=1)``.
    * plain: [N, D] of bool, integers or floats.

    "auto" takes uint8 arrays as packed, unless their values are all 0 or 1, ``num_dims`` equals
    their columns, or an option that only fits grey levels is given (a categorical or Gaussian
    likelihood, ``num_classes``, a binarization). Everything else is plain.

    Args:
        path: the file.
        likelihood: None is Bernoulli for packed rows, integers 0 and 1 and floats in [0, 1], and
            categorical for other integers. Other floats need "gaussian".
        mode: "none" or how to binarize grey levels (see :func:`dgm_fast.data.binarize`).
        threshold: for mode "threshold".
        num_dims: D; for packed rows None is 8 x columns.
        num_classes: None is the largest training value + 1 (for binarization: 256).
        layout: "auto", "packed" or "plain".

    Raises:
        DataError: naming the file, what is wrong and what is needed.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise DataError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    arrays = _read(path)
    _check_arrays(path, arrays)
    if layout == "auto":
        layout = _guess_layout(arrays, likelihood, mode, num_dims, num_classes)
    if layout == "packed":
        if likelihood not in (None, "bernoulli") or mode != "none" or num_classes is not None:
            raise DataError(
                f"{path}: packed rows are binary: they take the Bernoulli likelihood and neither "
                "binarization nor num_classes"
            )
        rows = _unpack(path, arrays, num_dims)
        columns = arrays["train"].shape[1]
        what = f"packed rows, {columns} bytes -> {rows['train'].shape[1]} bits"
        return _dataset(path, rows, "bernoulli", None, False, what)
    columns = arrays["train"].shape[1]
    if num_dims not in (None, columns):
        raise DataError(
            f"{path}: num_dims is {num_dims}, but the arrays have {columns} columns: that is "
            f"neither plain rows ({num_dims} columns) nor packed ones "
            f"({_packed_columns(num_dims)} bytes)"
        )
    if mode != "none":
        return _binarized(path, arrays, likelihood, mode, threshold, num_classes)
    return _plain(path, arrays, likelihood, num_classes)


def _read(path: Path) -> Arrays:
    if not path.is_file():
        raise DataError(f"{path}: no such file; --data needs digits, mnist or {_NEEDS}")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: not an .npz archive; needs {_NEEDS}")
        with archive:
            missing = [split for split in _SPLITS if split not in archive.files]
            if missing:
                raise DataError(
                    f"{path}: array {', '.join(missing)} is missing (it holds "
                    f"{', '.join(archive.files) or 'nothing'}); needs {_NEEDS}"
                )
            return {split: archive[split] for split in _SPLITS}
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: corrupt or truncated, or not an .npz file ({error}); needs {_NEEDS}"
        ) from error


def _check_arrays(path: Path, arrays: Arrays) -> None:
    train = arrays["train"]
    for split, array in arrays.items():
        if array.dtype.kind not in "buif":
            raise DataError(
                f"{path}: {split} has dtype {array.dtype}; needs bool, integers or floats"
            )
        if array.ndim != 2:
            raise DataError(
                f"{path}: {split} has shape {array.shape}; needs 2-D [N, D] "
                "(for images: array.reshape(len(array), -1))"
            )
        if 0 in array.shape:
            raise DataError(f"{path}: {split} is empty, shape {array.shape}")
        if array.shape[1] != train.shape[1]:
            raise DataError(
                f"{path}: {split} has {array.shape[1]} columns, but train has {train.shape[1]}"
            )
        if array.dtype != train.dtype:
            raise DataError(f"{path}: {split} has dtype {array.dtype}, but train has {train.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{path}: {split} holds NaN or infinite values")


def _packed_columns(num_dims: int | None) -> int:
    return -(-(num_dims or 0) // 8)


def _guess_layout(
    arrays: Arrays,
    likelihood: str | None,
    mode: str,
    num_dims: int | None,
    num_classes: int | None,
) -> str:
    train = arrays["train"]
    if train.dtype != np.uint8:
        return "plain"
    if num_dims is not None:
        columns = train.shape[1]
        return "packed" if columns == _packed_columns(num_dims) != num_dims else "plain"
    if likelihood in ("categorical", "gaussian") or mode != "none" or num_classes is not None:
        return "plain"
    return "plain" if max(int(a.max()) for a in arrays.values()) <= 1 else "packed"


def _unpack(path: Path, arrays: Arrays, num_dims: int | None) -> dict[str, Tensor]:
    train = arrays["train"]
    if train.dtype != np.uint8:
        raise DataError(f"{path}: packed rows need dtype uint8, got {train.dtype}")
    columns = train.shape[1]
    num_dims = columns * 8 if num_dims is None else num_dims
    if _packed_columns(num_dims) != columns:
        raise DataError(
            f"{path}: num_dims {num_dims} needs {_packed_columns(num_dims)} packed bytes a row, "
            f"but the arrays have {columns}"
        )
    rows = {}
    for split, array in arrays.items():
        bits = np.unpackbits(array, axis=1)
        if bits[:, num_dims:].any():
            raise DataError(
                f"{path}: {split} has bits set past the first {num_dims} of a row; "
                "num_dims is wrong or the rows are not packed with numpy.packbits(axis=1)"
            )
        rows[split] = torch.from_numpy(np.ascontiguousarray(bits[:, :num_dims]))
    return rows


def _check_range(path: Path, arrays: Arrays, low: float, high: float, hint: str) -> None:
    for split, array in arrays.items():
        for value in (array.min(), array.max()):
            if not low <= value <= high:
                raise DataError(
                    f"{path}: {split} holds {value.item()}, outside [{low:g}, {high:g}]: {hint}"
                )


def _tensors(arrays: Arrays, dtype: type) -> dict[str, Tensor]:
    return {split: torch.from_numpy(array.astype(dtype)) for split, array in arrays.items()}


def _binarized(
    path: Path,
    arrays: Arrays,
    likelihood: str | None,
    mode: str,
    threshold: float | None,
    num_classes: int | None,
) -> Dataset:
    if likelihood not in (None, "bernoulli"):
        raise DataError(f"{path}: binarized data take the Bernoulli likelihood, got {likelihood}")
    floats = arrays["train"].dtype.kind == "f"
    highest = 1 if floats else (num_classes or 256) - 1
    _check_range(path, arrays, 0, highest, "binarization needs floats in [0, 1] or grey levels")
    grey = _tensors(arrays, np.float32 if floats else np.int32)
    rows = binarize(grey, highest, mode, threshold)
    return _dataset(path, rows, "bernoulli", None, mode == "dynamic", f"binarized ({mode})")


def _plain(path: Path, arrays: Arrays, likelihood: str | None, num_classes: int | None) -> Dataset:
    train = arrays["train"]
    floats = train.dtype.kind == "f"
    if likelihood is None:
        if num_classes is not None:
            likelihood = "categorical"
        elif floats or max(int(a.max()) for a in arrays.values()) <= 1:
            likelihood = "bernoulli"
        else:
            likelihood = "categorical"
    if likelihood != "categorical" and num_classes is not None:
        raise DataError(f"{path}: num_classes goes with the categorical likelihood")
    if likelihood == "bernoulli":
        hint = (
            "the Bernoulli likelihood needs values in [0, 1]; scale them, or pass "
            "--likelihood gaussian" + ("" if floats else " or categorical, or --binarize")
        )
        _check_range(path, arrays, 0, 1, hint)
        rows = _tensors(arrays, np.float32 if floats else np.uint8)
        what = "values in [0, 1]" if floats else "binary values"
        return _dataset(path, rows, likelihood, None, False, what)
    if likelihood == "gaussian":
        rows = _tensors(arrays, np.float32)
        return _dataset(path, rows, likelihood, None, False, "real values")
    if floats and any((a != np.floor(a)).any() for a in arrays.values()):
        raise DataError(f"{path}: the categorical likelihood needs whole numbers, got fractions")
    classes = int(train.max()) + 1 if num_classes is None else num_classes
    hint = f"class indices of {classes} classes" + (
        " (counted from train; pass --num-classes)" if num_classes is None else ""
    )
    _check_range(path, arrays, 0, classes - 1, hint)
    rows = _tensors(arrays, np.uint8 if classes <= 256 else np.int32)
    return _dataset(path, rows, likelihood, classes, False, f"{classes} classes")


def _dataset(
    path: Path,
    rows: dict[str, Tensor],
    likelihood: str,
    num_classes: int | None,
    dynamic: bool,
    what: str,
) -> Dataset:
    train = rows["train"]
    return Dataset(
        str(path),
        train,
        rows["valid"],
        rows["test"],
        likelihood,
        num_classes,
        square_image(train.shape[1]),
        dynamic,
        what,
    )
