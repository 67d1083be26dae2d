"""Finding and loading what was built: the C++ extension with its instruction-set levels, and Triton."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import platform
import warnings
from types import ModuleType

import torch

# "amx" is the library of "avx512" with some kernels on the processor's matrix units. It is never chosen
# unasked: on shared machines the units run at a third of their rate for minutes, and its kernels are then
# the slower ones.
ISA_LEVELS = ("baseline", "avx2", "avx512", "amx")
_LIBRARIES = {"amx": "avx512"}
_CAPABILITY_LEVEL = {"AVX2": 1, "AVX512": 2}

_missing: list[str] = []
# In use; here and not asked of the extension, so that compiled graphs can read it.
_level: str | None = None


def _report_missing(what: str) -> None:
    _missing.append(what)
    warnings.warn(f"dgm_fast: {what}", RuntimeWarning, stacklevel=3)


def missing() -> list[str]:
    """What this installation lacks, one sentence each (empty when complete)."""
    return list(_missing)


def machine_isa() -> str:
    """The highest vector instruction set this processor runs, as PyTorch sees it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "baseline"
    return ISA_LEVELS[_CAPABILITY_LEVEL.get(torch.backends.cpu.get_cpu_capability(), 0)]


def _library(level: str) -> str:
    return f"dgm_fast._kernels_{_LIBRARIES.get(level, level)}"


def built_isas() -> list[str]:
    """The levels whose kernel library is installed, lowest first."""
    return [i for i in ISA_LEVELS if importlib.util.find_spec(_library(i))]


def runnable_isas() -> list[str]:
    """The built levels that this processor can execute, lowest first."""
    highest = ISA_LEVELS.index(machine_isa())
    levels = [i for i in built_isas() if ISA_LEVELS.index(i) <= highest]
    if "avx512" in levels and hasattr(importlib.import_module(_library("amx")), "amx_table"):
        levels.append("amx")
    return levels


def use_isa(level: str) -> None:
    """Route every C++ op to the kernels of one level: "baseline", "avx2", "avx512" or "amx".

    "amx" is "avx512" with the products of float32 convolutions, linear heads and LSTMs on the matrix units,
    as three bfloat16 parts each (docs/numerics.md). It has to be asked for, here or by DGM_FAST_ISA=amx:
    alone on its cores it is up to 1.8 times as fast, beside others that use the units slower than "avx512".

    Raises:
        ValueError: if the level is unknown, not built, or not supported by this processor.
    """
    if extension is None:
        raise ValueError("use_isa needs the C++ extension, which is not built")
    if level not in runnable_isas():
        raise ValueError(
            f"instruction-set level must be one of {runnable_isas()} on this machine, got {level!r}"
        )
    kernels = importlib.import_module(_library(level))
    table = kernels.amx_table if level == "amx" else kernels.table
    extension.use_kernels(table, kernels.table_size, level)
    global _level
    _level = level


def default_isa() -> str:
    """The level that is used unless another is asked for."""
    return [level for level in runnable_isas() if level not in _LIBRARIES][-1]


def active_isa() -> str | None:
    """The level in use, or None without the extension."""
    return _level


def active_library() -> str:
    """The level whose library holds the kernels in use, "" without the extension."""
    level = active_isa() or ""
    return _LIBRARIES.get(level, level)


def empty_cache() -> None:
    """Return memory that the C++ ops keep for their next outputs to the system.

    Outputs of a megabyte and more are allocated from a pool, since the page faults of fresh memory
    cost more than most kernels; of what no tensor uses it keeps at most a sixteenth of the machine's
    memory and 1 GiB. Tensors on other devices are not concerned.
    """
    if extension is not None:
        extension.empty_output_pool()


def _load_extension() -> ModuleType | None:
    try:
        return importlib.import_module("dgm_fast._C")
    except ImportError as error:
        if importlib.util.find_spec("dgm_fast._C") is None:
            reason = "the C++ extension is not built"
        else:
            # A present but unloadable library is nearly always one built against another torch.
            reason = f"the C++ extension does not load ({error}); rebuild it against this torch"
        _report_missing(
            f"{reason}; ops run as plain PyTorch. Install with a C++ compiler and "
            "`pip install --no-build-isolation .` for the fused kernels"
        )
        return None


@functools.cache
def triton_available() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def triton_interpreted() -> bool:
    """Whether Triton kernels run in its CPU interpreter in this process (TRITON_INTERPRET=1)."""
    return triton_available() and os.environ.get("TRITON_INTERPRET", "0") == "1"


extension = _load_extension()
if extension is not None:
    _asked = os.environ.get("DGM_FAST_ISA", "")
    try:
        use_isa(_asked or default_isa())
    except ValueError as error:
        raise ValueError(f"DGM_FAST_ISA={_asked}: {error}") from None
if torch.cuda.is_available() and not triton_available():
    _report_missing("Triton is not installed; on CUDA tensors ops run as plain PyTorch")
