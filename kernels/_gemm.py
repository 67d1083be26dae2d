"""What the linear heads share: tiles of logits inside a kernel, and the gradients that follow from theirs.

Logits are recomputed in backward. Their gradient is the one thing stored, for a chunk of rows (and, of wide
layers, of columns) at a time; the products with it are plain matrix products, where the library's are best.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import accumulator, index_type, spread
from torch import Tensor

# The interpreter multiplies bfloat16 as the integers it keeps them in.
_WIDEN = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
# Bytes of a chunk of logit gradients, about: as many as keep a matrix product of a large GPU busy; a
# sixteenth of all where that is more, so that launches stay few; at most the upper bound.
_CHUNK_BYTES = (2**22, 2**26)
_CHUNKS = 16
# Rows that a chunk of a wide layer has: fewer would read the weight once more for little work each.
_CHUNK_ROWS = 1024
# Multiples of the blocks: chunks are whole tiles, and start where loads are aligned.
_ROW_STEP, _COLUMN_STEP = 128, 64


@triton.jit
def input_rows(p_h, o_r, positions, s_h0, s_h1, ALIGN: tl.constexpr, ROWS: tl.constexpr):
    """Pointers [BM, 1] to the rows of h: position o_r % positions of image o_r // positions.

    Strides come in units of ALIGN elements: what Triton knows to be aligned it loads 16 bytes at a time.
    """
    o_0 = (o_r // positions).to(tl.int64)[:, None]
    o_1 = (o_r % positions)[:, None]
    if ROWS:
        p_rows = p_h + o_0 * s_h0 * ALIGN + o_1.to(tl.int64) * s_h1 * ALIGN
    else:
        p_rows = p_h + o_0 * s_h0 * ALIGN + o_1
    return p_rows


@triton.jit
def multiply_add(b_a, b_b, b_sum, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """a b + sum of tiles."""
    if _WIDEN:
        b_a, b_b = b_a.to(ACC), b_b.to(ACC)
    return tl.dot(b_a, b_b, b_sum, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def logits_tile(
    p_h,
    p_w,
    p_b,
    o_w,
    mask_h,
    mask_w,
    features,
    s_h1,
    s_w,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """h weight^T + bias of the rows [BM, 1] at p_h and the rows o_w [BN] of weight -> [BM, BN]."""
    b_l = tl.zeros([BM, BN], ACC)
    o_w = o_w.to(tl.int64)
    p_rows = p_w + o_w[None, :] * s_w * ALIGN
    for start in range(0, features * ALIGN, BK):
        o_k = start + tl.arange(0, BK)
        mask_k = o_k < features * ALIGN
        o_hk = o_k if ROWS else o_k.to(IDX) * s_h1 * ALIGN
        b_h = tl.load(p_h + o_hk[None, :], mask_h & mask_k[None, :], other=0.0)
        b_w = tl.load(p_rows + o_k[:, None], mask_w[None, :] & mask_k[:, None], other=0.0)
        b_l = multiply_add(b_h, b_w, b_l, PRECISION, ACC)
    if p_b is not None:
        # One-dimensional, so that the sums keep the layout of the product.
        b_l += tl.load(p_b + o_w, mask_w, other=0.0).to(ACC)[None, :]
    return b_l


class Blocks(NamedTuple):
    """Rows, columns and inner entries of a tile of logits; warps, and buffers of inner entries."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    @property
    def meta(self) -> dict[str, int]:
        return {
            "BM": self.rows,
            "BK": self.inner,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


class Inputs:
    """A linear layer and its inputs as [images, positions, features], as kernels take them."""

    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        # Features or positions lie next to each other; anything else is copied.
        self.by_rows = h.stride(2) == 1 or h.stride(1) != 1
        self.h = h if h.stride(1) == 1 or h.stride(2) == 1 else h.contiguous()
        self.weight = weight if weight.stride(1) == 1 else weight.contiguous()
        self.bias = bias if bias is None else bias.contiguous()
        self.tensors = self.h, self.weight, self.bias
        self.dtype = accumulator(h, weight, bias)
        self.rows = h.shape[0] * h.shape[1]
        features = h.shape[2]
        strides = self.h.stride(0), self.h.stride(1 if self.by_rows else 2), self.weight.stride(0)
        # The power of two, at most 16, that divides strides and number of features.
        self.align = math.gcd(16, features, *strides)
        # features, positions, strides of h and of weight
        s_h0, s_h1, s_w = (s // self.align for s in strides)
        self.layout = features // self.align, h.shape[1], s_h0, s_h1, s_w

    def meta(self, *extents: int) -> dict[str, Any]:
        """Compile-time arguments; offsets reach the given extents beside those of the layer."""
        own = self.rows, self.weight.shape[0], self.h.shape[2] * self.h.stride(2)
        return {
            "ALIGN": self.align,
            "ROWS": self.by_rows,
            "PRECISION": precision(self.h),
            "ACC": tl.float64 if self.dtype == torch.float64 else tl.float32,
            "IDX": index_type(*own, *extents),
        }

    def blocks(self, columns: int, tiles: int) -> Blocks:
        """Blocks of ``columns`` columns, of which there are ``tiles``; low ones where rows are few."""
        itemsize = self.h.element_size()
        tensor_cores = itemsize == 2 or precision(self.h) == "tf32"
        # 32 sums a thread, of float64 8. Without tensor cores a step of 64 x 64 float32 sums on four
        # warps is 85% multiplications.
        entries = 1024 if itemsize == 8 else 4096 if columns <= 64 and not tensor_cores else 8192
        height = max(16, spread(min(128, entries // columns), self.rows * tiles))
        inner = (128 if tensor_cores else 64) // itemsize if itemsize < 8 else 16
        steps = triton.cdiv(self.weight.shape[1], inner)
        num_warps = 8 if height * columns * max(4, itemsize) >= 32768 else 4
        return Blocks(height, columns, inner, num_warps, max(2, min(3, steps)))


def precision(t: Tensor) -> str:
    """How float32 is multiplied: PyTorch's own setting, as F.linear follows it."""
    tf32 = t.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


class Chunk(NamedTuple):
    """Flat rows first_row... and columns first_column... whose logit gradients exist at a time."""

    first_row: int
    rows: int
    first_column: int
    columns: int
    # The place of its first block of rows among all.
    first_block: int


def head_gradients(
    inputs: Inputs,
    group: int,
    block_rows: int,
    unscale: Tensor | None,
    fill: Callable[[Chunk, Tensor, Tensor | None], None],
    grad_h: Tensor | None,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a linear layer from those of its logits; ``grad_h`` is filled, the others returned.

    ``fill(chunk, grad_logits, grad_bias)`` writes the gradient [rows, columns] of a chunk's logits in the
    dtype of h and, unless ``grad_bias`` is None, its sum over each block of ``block_rows`` rows into a row
    of it. Chunks do not divide a group of columns. ``unscale`` undoes :func:`scaled`. Sums over chunks
    are formed in the accumulator's dtype, one chunk after the other.
    """
    h, weight = inputs.h, inputs.weight
    positions, features = h.shape[1:]
    width = weight.shape[0]
    most_rows, most_columns = chunk_shape(inputs.rows, width, group, h.element_size())
    columns = [(i, min(i + most_columns, width)) for i in range(0, width, most_columns)]
    parts = list(_row_slices(h.shape[0], positions, most_rows))
    counts = [(i.stop - i.start) * (p.stop - p.start) for i, p in parts]
    buffer = h.new_empty(max(counts) * most_columns)
    grad_bias = None
    if want_bias:
        blocks = sum(triton.cdiv(count, block_rows) for count in counts)
        grad_bias = h.new_empty((blocks, width), dtype=inputs.dtype)
    sums: list[Tensor | None] = [None] * len(columns)
    first_block = 0
    for part, count in zip(parts, counts, strict=True):
        first_row = part[0].start * positions + part[1].start
        rows = h[part].reshape(count, features) if want_weight else None
        to = None if grad_h is None else grad_h[part]
        direct = len(columns) == 1 and unscale is None and to is not None and to.is_contiguous()
        h_sum = None
        for j, (begin, end) in enumerate(columns):
            grad_logits = buffer[: count * (end - begin)].view(count, end - begin)
            fill(Chunk(first_row, count, begin, end - begin, first_block), grad_logits, grad_bias)
            if rows is not None:
                sums[j] = add_product(sums[j], grad_logits.t(), rows)
            if direct and to is not None:
                torch.mm(grad_logits, weight, out=to.view(count, features))
            elif to is not None:
                h_sum = add_product(h_sum, grad_logits, weight[begin:end])
        if to is not None and h_sum is not None:
            to.copy_(unscaled(h_sum, unscale).view(to.shape))
        first_block += triton.cdiv(count, block_rows)
    grad_weight = None
    if want_weight:
        whole = torch.cat([s for s in sums if s is not None])
        grad_weight = unscaled(whole, unscale).to(weight.dtype)
    if grad_bias is not None:
        grad_bias = unscaled(grad_bias.sum(0), unscale)
    return grad_weight, grad_bias


def scaled(grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """``grad`` and None, or for float16 ``grad`` with a largest entry near 1 and the factor that undoes it.

    Gradients of logits below 6e-5, which a mean over samples makes the rule, lose digits in float16.
    """
    if dtype != torch.float16 or grad.numel() == 0:
        return grad, None
    largest = grad.abs().amax()
    exponent = torch.frexp(largest).exponent.clamp(-100, 100).to(grad.dtype)
    exponent = torch.where(largest.isfinite(), exponent, 0.0)
    return grad * torch.exp2(-exponent), torch.exp2(exponent)


def unscaled(t: Tensor, unscale: Tensor | None) -> Tensor:
    return t if unscale is None else t * unscale


def chunk_shape(rows: int, width: int, group: int, itemsize: int) -> tuple[int, int]:
    """Rows and columns of a chunk: whole rows while these are many enough, else part of the columns."""
    least, most = (size // itemsize for size in _CHUNK_BYTES)
    entries = min(max(rows * width // _CHUNKS, least), most)
    count = max(entries // width, min(_CHUNK_ROWS, entries // group), _ROW_STEP)
    # As even as it goes; what that adds is no reason to divide the columns.
    count = triton.cdiv(rows, triton.cdiv(rows, count))
    count = triton.cdiv(count, _ROW_STEP) * _ROW_STEP
    groups = max(1, entries * 5 // (min(count, rows) * group * 4))
    groups = triton.cdiv(width // group, triton.cdiv(width // group, groups))
    step = max(1, _COLUMN_STEP // group)
    return count, min(width, triton.cdiv(groups, step) * step * group)


def _row_slices(images: int, positions: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Chunks of at most ``rows`` positions: several whole images, or part of one."""
    step = max(1, rows // positions)
    for i in range(0, images, step):
        for p in range(0, positions, rows):
            yield slice(i, min(i + step, images)), slice(p, min(p + rows, positions))


def add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a b, with the product of reduced-precision tensors in float32."""
    if a.element_size() >= 4:
        return torch.mm(a, b) if total is None else total.addmm_(a, b)
    # PyTorch has the second form on CUDA only; the first is for the interpreter.
    if a.is_cpu:
        a, b = a.float(), b.float()
    product = torch.mm(a, b) if a.is_cpu else torch.mm(a, b, out_dtype=torch.float32)
    return product if total is None else total.add_(product)
