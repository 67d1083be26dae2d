"""What this machine can do at best: copy bandwidth and multiply-add rate, the roof."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch

# Bytes moved (read and written) by one copy. A case is held against the copy of its own size: small
# working sets live in caches.
CPU_COPY_BYTES = tuple(1 << p for p in range(16, 30, 2))
GPU_COPY_BYTES = (1 << 24, 1 << 27, 1 << 30)


def measure(device: torch.device, *, quick: bool = False) -> dict[str, Any]:
    """The ceiling of ``device``.

    Returns:
        ``{"copy": {threads: {bytes: GB/s}}, "gemm": {threads: {dtype: TFLOP/s}}}``; on a GPU the
        only key for threads is "gpu". The best of several repetitions: a ceiling is not an
        average.
    """
    if device.type == "cuda":
        sizes = {str(size): _copy_rate(size, device, 5) for size in GPU_COPY_BYTES}
        dtypes = (torch.float32, torch.bfloat16)
        rates = {str(d).removeprefix("torch."): _gemm_rate(4096, d, device, 5) for d in dtypes}
        rates["tf32"] = _tf32_rate(device)
        return {"copy": {"gpu": sizes}, "gemm": {"gpu": rates}}
    threads = torch.get_num_threads()
    result: dict[str, Any] = {"copy": {}, "gemm": {}}
    try:
        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            sizes = {str(s): _copy_rate(s, device, 3 if quick else 7) for s in CPU_COPY_BYTES}
            result["copy"][str(count)] = sizes
            rate = _gemm_rate(1024, torch.float32, device, 3 if quick else 7)
            result["gemm"][str(count)] = {"float32": rate}
    finally:
        torch.set_num_threads(threads)
    return result


def copy_rate(ceiling: dict[str, Any], threads: str, num_bytes: int) -> float:
    """GB/s of a copy that moves ``num_bytes``, interpolated over the measured sizes (log scale)."""
    table = sorted((int(size), rate) for size, rate in ceiling["copy"][threads].items())
    if num_bytes <= table[0][0]:
        return table[0][1]
    for (low, low_rate), (high, high_rate) in itertools.pairwise(table):
        if num_bytes <= high:
            at = math.log(num_bytes / low) / math.log(high / low)
            return low_rate + at * (high_rate - low_rate)
    return table[-1][1]


def share(
    ceiling: dict[str, Any], threads: str, num_bytes: int, flops: int, seconds: float
) -> float:
    """Least possible time over measured time: 1 is the roof.

    The least time is the larger of moving the bytes at the copy rate and doing the arithmetic at
    the float32 GEMM rate. A kernel that mostly reads can pass 1, since half of a copy is writing.
    """
    moving = num_bytes / (copy_rate(ceiling, threads, num_bytes) * 1e9)
    computing = flops / (ceiling["gemm"][threads]["float32"] * 1e12)
    return max(moving, computing) / seconds


def _copy_rate(num_bytes: int, device: torch.device, repeats: int) -> float:
    source = torch.ones(num_bytes // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device, repeats)
    return round(num_bytes / seconds / 1e9, 2)


def _gemm_rate(n: int, dtype: torch.dtype, device: torch.device, repeats: int) -> float:
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    out = torch.empty_like(a)
    seconds = _best(lambda: torch.mm(a, b, out=out), device, repeats)
    return round(2 * n**3 / seconds / 1e12, 4)


def _tf32_rate(device: torch.device) -> float:
    """float32 GEMM with the precision that users may allow; the setting is put back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return _gemm_rate(4096, torch.float32, device, 5)
    finally:
        torch.set_float32_matmul_precision(before)


def _best(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    best = math.inf
    inner = 1
    for attempt in range(repeats + 1):
        _synchronize(device)
        begin = time.perf_counter()
        for _ in range(inner):
            call()
        _synchronize(device)
        elapsed = (time.perf_counter() - begin) / inner
        if attempt:  # the first attempt touches the pages and sets the inner count
            best = min(best, elapsed)
        else:
            inner = max(1, min(1000, int(5e-3 / max(elapsed, 1e-7))))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
