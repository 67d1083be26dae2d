"""Categorical log-likelihood of a linear layer's logits, which exist only tile by tile.

A column of a tile is one class of one entry. Entries with few classes share a tile; many classes are
several tiles, over which the maximum and the sum of exponentials run along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._gemm import (
    Blocks,
    Chunk,
    Inputs,
    head_gradients,
    input_rows,
    logits_tile,
    scaled,
)
from dgm_fast.kernels._layout import (
    Rows,
    launch,
    no_gradients,
    numeric,
    per_program,
    row_view,
)
from dgm_fast.kernels.categorical import load_classes
from torch import Tensor

CLASS, PIXEL = 1, 2
# Up to so many classes are columns of one tile. More are tiles of the second width, and backward finds
# the maximum and the sum of each entry in a pass of its own.
_WHOLE, _PART = 256, 128


@triton.jit
def class_logits(
    p_rows,
    p_w,
    p_b,
    mask_r,
    first_d,
    first_c,
    size,
    classes,
    features,
    s_h1,
    s_w,
    s_wd,
    s_wc,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """Logits [BM BD, BC] of entries first_d... and classes first_c..., -inf beyond the last class."""
    o_n = tl.arange(0, BD * BC)
    o_d = first_d + o_n // BC
    o_c = first_c + o_n % BC
    b_l = logits_tile(
        p_rows,
        p_w,
        p_b,
        o_d.to(IDX) * s_wd + o_c * s_wc,
        mask_r,
        (o_d < size) & (o_c < classes),
        features,
        s_h1,
        s_w,
        ALIGN,
        ROWS,
        PRECISION,
        ACC,
        IDX,
        BM,
        BD * BC,
        BK,
    )
    return tl.reshape(tl.where(o_c[None, :] < classes, b_l, float("-inf")), [BM * BD, BC])


@triton.jit
def more_classes(b_top, b_total, b_l):
    """Maximum and sum of exponentials of each row with the logits [rows, BC] added."""
    b_new = tl.maximum(b_top, tl.max(b_l, 1))
    # Infinities of one sign have no difference: a sum over -inf alone is 0.
    b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_total = b_total * tl.exp(b_top - b_base) + tl.sum(tl.exp(b_l - b_base[:, None]), 1)
    return b_new, b_total


@triton.jit
def linear_categorical_log_prob_fwd_kernel(
    p_h,
    p_w,
    p_b,
    p_x,
    p_out,
    p_top,
    p_total,
    rows,
    inner,
    size,
    classes,
    tiles,
    features,
    positions,
    s_h0,
    s_h1,
    s_w,
    s_wd,
    s_wc,
    s_x0,
    s_x1,
    s_xd,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """The part of some tiles of entries in the log-likelihood of a block of rows.

    With p_top, the maximum and the sum of exponentials of each entry instead.
    """
    first_r = tl.program_id(0).to(IDX) * BM
    o_r = first_r + tl.arange(0, BM)
    mask_r = (o_r < rows)[:, None]
    p_rows = input_rows(p_h, o_r, positions, s_h0, s_h1, ALIGN, ROWS)
    # Entries of rows.
    o_e = first_r + tl.arange(0, BM * BD) // BD
    p_x += (o_e // inner).to(tl.int64) * s_x0 + (o_e % inner).to(tl.int64) * s_x1
    b_sum = tl.zeros([BM * BD], tl.float64)
    first = tl.program_id(1).to(IDX) * tiles * BD
    for start in range(first, tl.minimum(first + tiles * BD, size), BD):
        o_d = start + tl.arange(0, BM * BD) % BD
        mask = (o_e < rows) & (o_d < size)
        if WHOLE:
            # Written out: as one step of the loop below it spilled registers on sm_100.
            b_l = class_logits(
                p_rows,
                p_w,
                p_b,
                mask_r,
                start,
                0,
                size,
                classes,
                features,
                s_h1,
                s_w,
                s_wd,
                s_wc,
                ALIGN,
                ROWS,
                PRECISION,
                ACC,
                IDX,
                BM,
                BD,
                BC,
                BK,
            )
            b_x = load_classes(p_x + o_d * s_xd, mask, classes)
            b_top = tl.max(b_l, 1)
            b_total = tl.sum(tl.exp(b_l - b_top[:, None]), 1)
            b_picked = tl.sum(tl.where(tl.arange(0, BC)[None, :] == b_x[:, None], b_l, 0.0), 1)
        else:
            b_top = tl.full([BM * BD], float("-inf"), ACC)
            b_total = tl.zeros([BM * BD], ACC)
            b_picked = tl.zeros([BM * BD], ACC)
            for first_c in range(0, classes, BC):
                b_l = class_logits(
                    p_rows,
                    p_w,
                    p_b,
                    mask_r,
                    start,
                    first_c,
                    size,
                    classes,
                    features,
                    s_h1,
                    s_w,
                    s_wd,
                    s_wc,
                    ALIGN,
                    ROWS,
                    PRECISION,
                    ACC,
                    IDX,
                    BM,
                    BD,
                    BC,
                    BK,
                )
                b_top, b_total = more_classes(b_top, b_total, b_l)
                if p_top is None:
                    # Loaded again for each tile: few registers stay occupied during a product.
                    b_c = load_classes(p_x + o_d * s_xd, mask, classes)
                    o_c = first_c + tl.arange(0, BC)[None, :]
                    b_picked += tl.sum(tl.where(o_c == b_c[:, None], b_l, 0.0), 1)
            b_x = load_classes(p_x + o_d * s_xd, mask, classes)
        if p_top is None:
            b_log_prob = (b_picked - b_top) - tl.log(b_total)
            b_log_prob = tl.where(b_x >= 0, b_log_prob, float("nan"))
            b_sum += tl.where(mask, b_log_prob, 0.0).to(tl.float64)
        else:
            tl.store(p_top + o_e.to(tl.int64) * size + o_d, b_top, mask)
            tl.store(p_total + o_e.to(tl.int64) * size + o_d, b_total, mask)
    if p_top is None:
        p_out += tl.program_id(1).to(tl.int64) * rows + o_r
        tl.store(p_out, tl.sum(tl.reshape(b_sum, [BM, BD]), 1), o_r < rows)


@triton.jit(do_not_specialize=["first_block"])
def linear_categorical_log_prob_bwd_kernel(
    p_h,
    p_w,
    p_b,
    p_g,
    p_x,
    p_top,
    p_total,
    p_gl,
    p_gb,
    first_row,
    rows,
    first_column,
    columns,
    first_block,
    inner,
    size,
    classes,
    class_tiles,
    features,
    positions,
    s_h0,
    s_h1,
    s_w,
    s_x0,
    s_x1,
    s_xd,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """dl[c] = g ([c = x] - softmax(l)[c]) of a tile of a chunk of logits, and its sum over the rows."""
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    mask_r = (o_m < rows)[:, None]
    o_r = first_row.to(IDX) + o_m
    # Of the chunk's entries, and of all.
    first_n = tl.program_id(1) // class_tiles * BD
    first_d = first_column.to(IDX) // classes
    first_c = tl.program_id(1) % class_tiles * BC
    b_l = class_logits(
        input_rows(p_h, o_r, positions, s_h0, s_h1, ALIGN, ROWS),
        p_w,
        p_b,
        mask_r,
        first_d + first_n,
        first_c,
        first_d + columns // classes,
        classes,
        features,
        s_h1,
        s_w,
        classes,
        1,
        ALIGN,
        ROWS,
        PRECISION,
        ACC,
        IDX,
        BM,
        BD,
        BC,
        BK,
    )
    # Entries of rows.
    o_e = first_row.to(IDX) + tl.program_id(0) * BM + tl.arange(0, BM * BD) // BD
    o_n = first_n + tl.arange(0, BM * BD) % BD
    o_d = first_d + o_n
    mask = (o_e < first_row + rows) & (o_n < columns // classes)
    if p_top is None:
        b_top = tl.max(b_l, 1)
        b_e = tl.exp(b_l - b_top[:, None])
        b_total = tl.sum(b_e, 1)
    else:
        b_top = tl.load(p_top + o_e.to(tl.int64) * size + o_d, mask, other=0.0)
        b_total = tl.load(p_total + o_e.to(tl.int64) * size + o_d, mask, other=1.0)
        b_e = tl.exp(b_l - b_top[:, None])
    o_x = (o_e // inner).to(tl.int64) * s_x0 + (o_e % inner).to(tl.int64) * s_x1 + o_d * s_xd
    b_x = load_classes(p_x + o_x, mask, classes)
    b_g = tl.load(p_g + o_e, mask, other=0.0)
    o_c = first_c + tl.arange(0, BC)[None, :]
    b_gl = tl.where(o_c == b_x[:, None], b_g[:, None], 0.0) - (b_g / b_total)[:, None] * b_e
    # Samples without weight need no data and get plain zeros.
    b_gl = tl.reshape(tl.where((b_g != 0.0)[:, None], b_gl, 0.0), [BM, BD * BC])
    o_b = tl.arange(0, BD * BC)
    o_w = (first_n + o_b // BC) * classes + first_c + o_b % BC
    mask_w = (first_n + o_b // BC < columns // classes) & (first_c + o_b % BC < classes)
    tl.store(p_gl + o_m[:, None] * columns + o_w[None, :], b_gl, mask_r & mask_w[None, :])
    if p_gb is not None:
        p_gb += (first_block + tl.program_id(0)).to(tl.int64) * size * classes + first_column
        tl.store(p_gb + o_w, tl.sum(b_gl, 0), mask_w)


class Head(NamedTuple):
    """A categorical head over flat rows: ``entries`` of ``classes`` columns each.

    Class c of entry d is row d s_wd + c s_wc of the weight.
    """

    inputs: Inputs
    batch: torch.Size
    entries: int
    classes: int
    s_wd: int
    s_wc: int
    x: Tensor
    rows: Rows

    @property
    def empty(self) -> bool:
        return self.inputs.rows == 0 or self.entries == 0

    @property
    def whole(self) -> bool:
        """Whether a tile has all classes of its entries."""
        return self.classes <= _WHOLE

    @property
    def meta(self) -> dict[str, Any]:
        return self.inputs.meta(self.entries * self.rows.strides[0][2])

    def blocks(self) -> tuple[Blocks, int, int]:
        """The blocks, and of how many entries and classes their columns are."""
        bc = triton.next_power_of_2(self.classes) if self.whole else _PART
        bd = max(1, min(64 // bc, triton.next_power_of_2(max(self.entries, 1))))
        bc = max(bc, 16 // bd)
        tiles = triton.cdiv(self.entries, bd)
        return self.inputs.blocks(bd * bc, tiles), bd, bc


def _head(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    classes: int,
    packing: int,
    *,
    by_entry: bool = False,
) -> Head:
    """``by_entry`` has the classes of an entry next to each other, over a copy where they are not."""
    if packing == PIXEL:
        inputs = Inputs(h.transpose(1, 2), weight, bias)
        batch = torch.Size((h.shape[0], h.shape[2]))
        x = x.unsqueeze(-1)
    else:
        batch = torch.broadcast_shapes(h.shape[:-1], x.shape[:-1])
        flat = h.expand(*batch, h.shape[-1]).reshape(1, batch.numel(), h.shape[-1])
        if packing == CLASS and by_entry:
            order = classes, weight.shape[0] // classes
            weight = weight.unflatten(0, order).transpose(0, 1).flatten(0, 1)
            bias = None if bias is None else bias.unflatten(0, order).t().flatten()
        inputs = Inputs(flat, weight, bias)
    entries = weight.shape[0] // classes
    strides = (1, entries) if packing == CLASS and not by_entry else (classes, 1)
    rows, (data,) = row_view(torch.Size((*batch, entries)), 1, (numeric(x),))
    assert data is not None
    return Head(inputs, batch, entries, classes, *strides, data, rows)


def _forward(head: Head, top: Tensor | None = None, total: Tensor | None = None) -> Tensor:
    """Log-likelihoods [parts, rows]; with ``top``, maximum and sum of exponentials of each entry."""
    block, bd, bc = head.blocks()
    inputs = head.inputs
    row_blocks = triton.cdiv(inputs.rows, block.rows)
    tiles = triton.cdiv(head.entries, bd)
    each = min(tiles, per_program(row_blocks * tiles))
    sums = triton.cdiv(tiles, each)
    dtype = inputs.dtype if sums == 1 else torch.float64
    out = inputs.h.new_empty((sums, inputs.rows if top is None else 0), dtype=dtype)
    launch(
        linear_categorical_log_prob_fwd_kernel,
        (row_blocks, sums),
        *inputs.tensors,
        head.x,
        out,
        top,
        total,
        inputs.rows,
        head.rows.inner,
        head.entries,
        head.classes,
        each,
        *inputs.layout,
        head.s_wd,
        head.s_wc,
        *head.rows.strides[0],
        WHOLE=head.whole,
        BD=bd,
        BC=bc,
        **head.meta,
        **block.meta,
    )
    return out


def linear_categorical_log_prob_fwd(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, num_classes: int, packing: int
) -> Tensor:
    head = _head(h, weight, bias, x, num_classes, packing)
    if head.empty:
        shape = head.batch[:1] if packing == PIXEL else head.batch
        return h.new_zeros(shape, dtype=head.inputs.dtype)
    sums = _forward(head)
    out = sums[0] if sums.shape[0] == 1 else sums.sum(0).to(head.inputs.dtype)
    out = out.view(head.batch)
    return out.sum(1, dtype=torch.float64).to(out.dtype) if packing == PIXEL else out


def linear_categorical_log_prob_bwd(
    grad: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    num_classes: int,
    packing: int,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    head = _head(h, weight, bias, x, num_classes, packing, by_entry=True)
    if head.empty or not any(mask):
        return tuple(no_gradients(grad, (h, weight, bias), mask))
    inputs = head.inputs
    grad = grad.to(inputs.dtype)
    if packing == PIXEL:
        grad = grad.unsqueeze(1)
    grad, unscale = scaled(grad.expand(head.batch).contiguous(), h.dtype)
    top = total = None
    if not head.whole:
        top, total = h.new_empty((2, inputs.rows, head.entries), dtype=inputs.dtype)
        _forward(head, top, total)
    block, bd, bc = head.blocks()
    class_tiles = triton.cdiv(num_classes, bc)

    meta = head.meta | block.meta

    def fill(chunk: Chunk, grad_logits: Tensor, grad_bias: Tensor | None) -> None:
        tiles = triton.cdiv(chunk.columns // num_classes, bd) * class_tiles
        launch(
            linear_categorical_log_prob_bwd_kernel,
            (triton.cdiv(chunk.rows, block.rows), tiles),
            *inputs.tensors,
            grad,
            head.x,
            top,
            total,
            grad_logits,
            grad_bias,
            *chunk,
            head.rows.inner,
            head.entries,
            num_classes,
            class_tiles,
            *inputs.layout,
            *head.rows.strides[0],
            BD=bd,
            BC=bc,
            **meta,
        )

    empty = grad.new_empty(0)
    grad_h, to = empty, None
    if mask[0]:
        grad_h = h.new_empty(h.shape if packing == PIXEL else (*head.batch, h.shape[-1]))
        to = grad_h.transpose(1, 2) if packing == PIXEL else grad_h.view(inputs.h.shape)
    grad_weight, grad_bias = head_gradients(
        inputs, num_classes, block.rows, unscale, fill, to, mask[1], mask[2] and bias is not None
    )
    if packing == CLASS:
        grad_weight = None if grad_weight is None else _by_class(grad_weight, num_classes)
        grad_bias = None if grad_bias is None else _by_class(grad_bias, num_classes)
    return (
        grad_h.sum_to_size(h.shape) if mask[0] else empty,
        empty if grad_weight is None else grad_weight,
        empty if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
    )


def _by_class(t: Tensor, classes: int) -> Tensor:
    """Rows d C + c in the order c D + d."""
    return t.unflatten(0, (-1, classes)).transpose(0, 1).flatten(0, 1)
