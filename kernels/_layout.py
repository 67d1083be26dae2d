"""How launchers see their arguments: every tensor as rows [outer, inner] of ``size`` elements.

An op broadcasts its arguments to one shape, whose leading dimensions index samples and whose trailing
dimensions are summed. Most such sets of tensors, broadcast and strided ones included, collapse to three
dimensions with one stride each, so that no argument is copied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# What a backward kernel does about one gradient.
SKIP, STORE, ACCUMULATE = 0, 1, 2

_INT32_MAX = 2**31 - 1
# Programs that fill the largest GPUs several times over, and hardly once; fixed, so that sums do
# not depend on the device they run on.
_PROGRAMS = 1024
_FEW_PROGRAMS = 512


class Rows(NamedTuple):
    """Collapsed dimensions; per tensor its three strides and the dimensions it broadcasts over."""

    outer: int
    inner: int
    size: int
    strides: tuple[tuple[int, int, int], ...]
    shared: tuple[tuple[bool, bool, bool], ...]

    @property
    def total(self) -> int:
        return self.outer * self.inner

    @property
    def index(self) -> Any:
        """The integer type of row numbers and of offsets within a row."""
        return index_type(self.total, self.size, *(self.size * s[2] for s in self.strides))


def accumulator(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        return torch.float64
    return torch.float32


def broadcast(*tensors: Tensor | None) -> torch.Size:
    shapes = {t.shape for t in tensors if t is not None}
    return next(iter(shapes)) if len(shapes) == 1 else torch.broadcast_shapes(*shapes)


def numeric(t: Tensor) -> Tensor:
    """Booleans as bytes, in place: kernels load numbers."""
    return t.view(torch.uint8) if t.dtype == torch.bool else t


def collapse(shape: torch.Size, event_ndim: int, tensors: Sequence[Tensor | None]) -> Rows | None:
    """The row view of tensors that broadcast to ``shape``, or None where strides do not allow one."""
    layouts = tuple(None if t is None else (t.shape, t.stride()) for t in tensors)
    return _collapse(shape, event_ndim, layouts)


def per_sample(grad: Tensor, event_ndim: int, dtype: torch.dtype) -> Tensor:
    """The gradient of a result with one number per sample, aligned with the op's arguments."""
    grad = grad if grad.dtype == dtype else grad.to(dtype)
    return grad[(..., *(None,) * event_ndim)] if event_ndim else grad


def row_view(
    shape: torch.Size, event_ndim: int, tensors: Sequence[Tensor | None]
) -> tuple[Rows, list[Tensor | None]]:
    """The row view, over copies where the strides of the tensors allow none."""
    rows = collapse(shape, event_ndim, tensors)
    if rows is not None:
        return rows, list(tensors)
    copies = [None if t is None else t.expand(shape).contiguous() for t in tensors]
    rows = collapse(shape, event_ndim, copies)
    assert rows is not None
    return rows, copies


@functools.lru_cache(maxsize=4096)
def _collapse(shape: torch.Size, event_ndim: int, layouts: tuple[Any, ...]) -> Rows | None:
    aligned = [_align(shape, layout) for layout in layouts]
    lead = len(shape) - event_ndim
    rows, event = (_merge(shape, dims, aligned) for dims in (range(lead), range(lead, len(shape))))
    if len(rows) > 2 or len(event) > 1:
        return None
    # A single sample dimension is the inner one: backward kernels loop over it, and sum there.
    nothing = (1, (0,) * len(layouts), (False,) * len(layouts))
    outer, inner = ([nothing] * (2 - len(rows))) + rows
    (size,) = event or [nothing]
    return Rows(
        outer[0],
        inner[0],
        size[0],
        tuple(zip(outer[1], inner[1], size[1], strict=True)),
        tuple(zip(outer[2], inner[2], size[2], strict=True)),
    )


def _align(shape: torch.Size, layout: Any) -> tuple[list[int], list[bool]]:
    """Strides of one tensor in the dimensions of ``shape``, and which of them it broadcasts over."""
    if layout is None:
        return [0] * len(shape), [False] * len(shape)
    own, strides = layout
    missing = len(shape) - len(own)
    own = (1,) * missing + tuple(own)
    strides = (0,) * missing + tuple(strides)
    shared = [o == 1 and n != 1 for o, n in zip(own, shape, strict=True)]
    return [0 if s else stride for s, stride in zip(shared, strides, strict=True)], shared


def _merge(shape: torch.Size, dims: range, aligned: list[tuple[list[int], list[bool]]]) -> list:
    merged: list[tuple[int, tuple[int, ...], tuple[bool, ...]]] = []
    for d in dims:
        size = shape[d]
        if size == 1:
            continue
        strides = tuple(a[0][d] for a in aligned)
        shared = tuple(a[1][d] for a in aligned)
        if merged:
            last, last_strides, last_shared = merged[-1]
            steps = zip(last_strides, strides, strict=True)
            if last_shared == shared and all(a == b * size for a, b in steps):
                merged[-1] = (last * size, strides, shared)
                continue
        merged.append((size, strides, shared))
    return merged


class Tile(NamedTuple):
    """Block sizes of a program: rows times elements of a row, and its warps."""

    rows: int
    size: int
    warps: int


def tile(rows: int, size: int, *, group: int | None = None, widest: int | None = None) -> Tile:
    """Rows (at most ``group`` of them) share a program, unless that would leave the device idle.

    2048 elements on four warps are two (float32) or one (bfloat16) 16-byte access in flight per
    thread and operand. With many rows a warp keeps to few of them, 128 elements at a time: little
    masked excess, and sums that stay within the warp. With few rows, wide blocks make up for it.
    """
    if widest is None:
        widest = 128 if rows >= 2048 else 512
    block = min(triton.next_power_of_2(max(size, 1)), widest)
    together = rows if group is None else group
    block_rows = min(max(2048 // block, 1), triton.next_power_of_2(max(together, 1)))
    block_rows = spread(block_rows, rows)
    return Tile(block_rows, block, warps(block_rows * block))


def spread(block_rows: int, rows: int) -> int:
    """Fewer rows per program where there would be too few programs otherwise."""
    while block_rows > 1 and rows < block_rows * _FEW_PROGRAMS:
        block_rows //= 2
    return block_rows


def per_program(tasks: int) -> int:
    """How many of equal tasks a program takes, so that large problems need few partial sums."""
    return max(1, tasks // _PROGRAMS)


def chunk_rows(rows: int, block_rows: int, columns: int, most: int | None = None) -> int:
    """Rows that one program sums up, in whole blocks, where ``columns`` programs share each row.

    ``most`` bounds the number of chunks where the memory of their sums counts.
    """
    chunks = min(_PROGRAMS // columns, rows // block_rows)
    chunks = max(1, chunks if most is None else min(chunks, most))
    return block_rows * triton.cdiv(triton.cdiv(rows, chunks), block_rows)


def warps(elements: int) -> int:
    return max(1, min(4, elements // 256))


def index_type(*extents: int) -> Any:
    """The integer type that holds every offset below the given extents."""
    # A margin for the block that runs over the end.
    return tl.int64 if max(extents) > _INT32_MAX - 65536 else tl.int32


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """``kernel[grid](...)`` on the device of its first argument."""
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **meta)
    else:
        kernel[grid](*args, **meta)


class Gradients:
    """The gradients of broadcast arguments, computed by one kernel over chunks of inner rows.

    An argument in full shape gets its gradient stored directly. One that is shared by the inner rows
    gets one partial sum per chunk, which ``finish`` adds up in a fixed order; other broadcasts are
    stored in full and then summed.
    """

    def __init__(
        self,
        shape: torch.Size,
        event_ndim: int,
        grad: Tensor,
        args: Sequence[Tensor | None],
        mask: Sequence[bool],
        dtype: torch.dtype,
    ) -> None:
        """``grad`` broadcasts to ``shape``; sums are formed in ``dtype``."""
        self.args = args
        self.shape = shape
        self.rows, tensors = row_view(shape, event_ndim, (grad, *args))
        self.tensors: list[Any] = tensors
        rows = self.rows
        self.tile = tile(rows.total, rows.size, group=rows.inner)
        shared = rows.shared[1:]
        self.modes = [
            SKIP if not wanted or a is None else ACCUMULATE if s[1] else STORE
            for a, wanted, s in zip(args, mask, shared, strict=True)
        ]
        self.chunk = self.tile.rows
        if ACCUMULATE in self.modes:
            columns = rows.outer * triton.cdiv(rows.size, self.tile.size)
            self.chunk = chunk_rows(rows.inner, self.tile.rows, columns)
        self.chunks = triton.cdiv(rows.inner, self.chunk)
        self.buffers = [self._buffer(i, dtype) for i in range(len(args))]

    def _buffer(self, i: int, dtype: torch.dtype) -> Tensor | None:
        arg, mode, rows = self.args[i], self.modes[i], self.rows
        if arg is None or mode == SKIP:
            return None
        if mode == ACCUMULATE:
            return arg.new_empty((rows.outer, self.chunks, rows.size), dtype=dtype)
        if arg.numel() == math.prod(self.shape):
            return arg.new_empty(arg.shape)
        return arg.new_empty(self.shape, dtype=dtype)

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows.outer * self.chunks, triton.cdiv(self.rows.size, self.tile.size)

    def finish(self) -> list[Tensor]:
        like = self.tensors[0]
        return [
            like.new_empty(0) if b is None else self._finish(i, b)
            for i, b in enumerate(self.buffers)
        ]

    def _finish(self, i: int, buffer: Tensor) -> Tensor:
        arg = self.args[i]
        assert arg is not None
        if self.modes[i] == ACCUMULATE:
            shared = self.rows.shared[i + 1]
            dims = [d for d in range(3) if shared[d] and buffer.shape[d] > 1]
            buffer = buffer.sum(dims) if dims else buffer
            return buffer.to(arg.dtype).reshape(arg.shape)
        if buffer.shape == arg.shape:
            return buffer
        return buffer.sum_to_size(arg.shape).to(arg.dtype)


def no_gradients(grad: Tensor, args: Sequence[Tensor | None], mask: Sequence[bool]) -> list[Tensor]:
    """The gradients of an op without elements: zeros, which only broadcast arguments hold any of."""
    return [
        a.new_zeros(a.shape) if wanted and a is not None else grad.new_empty(0)
        for a, wanted in zip(args, mask, strict=True)
    ]
