"""Checkpoint files: ordinary ``torch.save`` archives that know whether they are whole.

``torch.save`` writes a zip archive, and a zip archive ends in a comment. The comment of a
checkpoint holds the format version and the SHA-256 of everything before it, so one file, replaced
in one rename, carries its own checksum, and ``torch.load(path, weights_only=True)`` still reads it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgm_fast.train.files import write_atomically

FORMAT_VERSION = 1
_MARK = b"dgm_fast checkpoint "
_COMMENT_LENGTH = len(_MARK) + 4 + 1 + 64  # mark, version, space, hexadecimal digest
_END_OF_ARCHIVE = b"PK\x05\x06"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names the file and the reason."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) atomically, with its checksum."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    archive = buffer.getvalue()
    # The last two bytes of an archive without comment are the comment's length, zero.
    if archive[-22:-18] != _END_OF_ARCHIVE or archive[-2:] != b"\0\0":
        raise CheckpointError(f"{path}: torch.save did not write the expected zip archive")
    body = archive[:-2] + _COMMENT_LENGTH.to_bytes(2, "little")
    write_atomically(path, body + _comment(body, FORMAT_VERSION))


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint after verifying its checksum; no code in the file is executed.

    Raises:
        CheckpointError: if the file is missing, truncated, altered, of another format version, or
            not a checkpoint.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    body, comment = data[:-_COMMENT_LENGTH], data[-_COMMENT_LENGTH:]
    if not comment.startswith(_MARK):
        raise CheckpointError(
            f"{path}: truncated, corrupt, or not a dgm_fast checkpoint ({len(data)} bytes)"
        )
    version = comment[len(_MARK) : len(_MARK) + 4]
    if not version.isdigit() or int(version) != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version.decode('ascii', 'replace')!r}; this version of "
            f"dgm_fast reads format {FORMAT_VERSION}"
        )
    if comment != _comment(body, FORMAT_VERSION):
        raise CheckpointError(f"{path}: corrupt (its checksum does not match its content)")
    try:
        return torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be loaded ({error})") from error


def _comment(body: bytes, version: int) -> bytes:
    return _MARK + f"{version:04d} {hashlib.sha256(body).hexdigest()}".encode()


def generator_states() -> dict[str, Any]:
    """The state of every global random generator a training step may draw from."""
    numpy_state: Any = np.random.get_state(legacy=False)
    keys = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": {
            "keys": keys,
            "position": numpy_state["state"]["pos"],
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        },
        "python": random.getstate(),
    }


def restore_generator_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    saved = states["numpy"]
    keys = saved["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, saved["position"], saved["has_gauss"], saved["gauss"]))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
