"""Backend choice: which implementation an op call reaches."""

from __future__ import annotations

import os
from types import TracebackType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dgm_fast.ops import _extension

BACKENDS = ("auto", "reference", "cpp", "triton")
# Families whose ops have C++ kernels only; filled by registration.
WITHOUT_TRITON: set[str] = set()
# Ops that have no Triton kernel on purpose, and why.
LIBRARY_OPS: dict[str, str] = {}

# One process-wide setting rather than a context variable: backward runs on autograd's own threads,
# and Dynamo guards on module globals, so that compiled code follows a change.
_backend = "auto"
_check_values = False
_CPU = torch.device("cpu")


def _validated(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {name!r}")
    return name


class backend:
    """Choose the implementation of every op: as a statement or as a context manager.

    * "auto": C++ for CPU tensors, Triton for CUDA tensors, the reference where neither is there.
    * "reference": plain PyTorch everywhere.
    * "cpp": the C++ kernels; CPU tensors only.
    * "triton": the Triton kernels; CUDA tensors, or CPU tensors under ``TRITON_INTERPRET=1``.

    The setting holds for the whole process. The environment variable ``DGM_FAST_BACKEND`` gives its
    initial value.

    Raises:
        ValueError: if the name is none of these.
    """

    def __init__(self, name: str) -> None:
        global _backend
        self._previous = _backend
        _backend = _validated(name)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _backend
        _backend = self._previous


def get_backend() -> str:
    """The name set by :class:`backend` or ``DGM_FAST_BACKEND``."""
    return _backend


def check_values(enabled: bool) -> None:
    """Whether ops on CUDA tensors check data values (class indices, x in [0, 1]) and raise.

    Off by default, since the check synchronises with the host; a bad value then gives NaN for its
    sample. On the CPU values are always checked.
    """
    global _check_values
    _check_values = bool(enabled)


def values_checked() -> bool:
    return _check_values


def explain(device_type: str, family: str | None = None) -> tuple[str, str]:
    """(implementation, reason) for tensors of a device under the current setting.

    Args:
        device_type: "cpu", "cuda", ...
        family: of the op that is asked about, or the name of one that stands beside the families
            ("critic_step"); None for any that has every kernel.

    Raises:
        RuntimeError: if the chosen backend cannot serve that device.
    """
    implementation, reason = _explain(device_type)
    if implementation == "triton" and family in LIBRARY_OPS:
        return "reference", LIBRARY_OPS[family]
    if implementation != "triton" or family not in WITHOUT_TRITON:
        return implementation, reason
    if _backend == "triton":
        raise RuntimeError(f'backend "triton": the family {family!r} has no Triton kernels yet')
    return "reference", f"the family {family!r} has no Triton kernels yet"


def _explain(device_type: str) -> tuple[str, str]:
    if _backend == "reference":
        return "reference", 'backend is "reference"'
    if _extension.extension is None:
        if _backend != "auto":
            raise RuntimeError(
                f'backend "{_backend}" needs the C++ extension (it holds the autograd formulas), '
                "which is not built"
            )
        return "reference", "the C++ extension is not built"
    if device_type == "cuda":
        if _backend == "cpp":
            raise RuntimeError('backend "cpp" serves CPU tensors, got a CUDA tensor')
        if _extension.triton_available():
            return "triton", "CUDA tensors"
        if _backend == "triton":
            raise RuntimeError('backend "triton" needs the package triton, which is not installed')
        return "reference", "Triton is not installed"
    if device_type == "cpu":
        if _backend == "triton":
            if not _extension.triton_interpreted():
                raise RuntimeError(
                    'backend "triton" serves CUDA tensors; CPU tensors need TRITON_INTERPRET=1'
                )
            return "triton", "Triton's interpreter (TRITON_INTERPRET=1)"
        return "cpp", f"CPU tensors, {_extension.active_isa()} kernels"
    if device_type == "meta":
        return "cpp", "shape inference only"
    return "reference", f"no kernels for device type {device_type!r}"


def use_kernel(t: Tensor, family: str | None = None) -> bool:
    """Whether a call on tensors like ``t`` goes to a registered op (else to the reference)."""
    # Under torch.func transforms and in forward mode C++ autograd functions raise, or lose the tangent
    # without a word; the reference is right there.
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    # Not t.is_cpu, which Dynamo of PyTorch 2.11 leaves in the graph, after hooks out of order.
    if _backend == "auto" and t.device == _CPU:
        return _extension.extension is not None
    return explain(t.device.type, family)[0] != "reference"


try:
    _backend = _validated(os.environ.get("DGM_FAST_BACKEND", "") or "auto")
except ValueError as error:
    raise ValueError(f"DGM_FAST_BACKEND: {error}") from None
