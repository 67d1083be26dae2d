"""Categorical log-likelihood from logits: online softmax normaliser, one pass forward, two backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import (
    Rows,
    accumulator,
    collapse,
    index_type,
    launch,
    numeric,
    per_sample,
    spread,
    warps,
)
from dgm_fast.kernels._math import wide_sum
from torch import Tensor


@triton.jit
def load_classes(p_x, mask, classes):
    """Class indices as int32, -1 for what is none."""
    b_x = tl.load(p_x, mask, other=0)
    if b_x.dtype.is_floating():
        if b_x.dtype != tl.float64:
            b_x = b_x.to(tl.float32)
        valid = (b_x >= 0) & (b_x < classes) & (b_x == tl.floor(b_x))
    else:
        valid = (b_x >= 0) & (b_x < classes)
    return tl.where(valid, b_x.to(tl.int32), -1)


@triton.jit
def class_sums(
    p_l,
    b_x,
    mask,
    classes,
    s_lc,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    """max_c l, sum_c e^(l - max), and l - max at class x, of the positions [BR, 1, BD] -> [BR, BD].

    Every slot of a [BR, BC, BD] tile keeps its own running maximum and sum, so that threads meet only
    once at the end; a slot costs one exponential per logit.
    """
    b_max = tl.full([BR, BC, BD], float("-inf"), ACC)
    b_sum = tl.zeros([BR, BC, BD], ACC)
    b_picked = tl.zeros([BR, BC, BD], ACC)
    for start in range(0, classes, BC):
        o_c = (start + tl.arange(0, BC))[None, :, None]
        b_l = tl.load(p_l + o_c.to(IDX) * s_lc, mask & (o_c < classes), other=float("-inf")).to(ACC)
        # Equal infinities have no difference; such a slot's sum is cancelled by its maximum below.
        b_step = tl.where(b_l == b_max, 0.0, b_l - b_max)
        b_e = tl.exp(-tl.abs(b_step))
        b_sum = tl.where(b_l > b_max, b_sum * b_e + 1.0, b_sum + b_e)
        b_max = tl.maximum(b_max, b_l)
        b_picked += tl.where(o_c == b_x, b_l, 0.0)
    b_top = tl.max(b_max, 1)
    b_total = tl.sum(b_sum * tl.exp(b_max - b_top[:, None, :]), 1)
    return b_top, b_total, tl.sum(b_picked, 1) - b_top


@triton.jit
def categorical_rows(
    p_l,
    p_x,
    o_d,
    mask_row,
    size,
    classes,
    s_lc,
    s_ld,
    s_xd,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    """sum_d l[x_d, d] - log sum_c e^l[c, d] of the rows [BR, 1] at p_l and p_x -> [BR]."""
    b_sum = tl.zeros([BR, BD], ACC)
    for o in range(0, size, BD):
        mask = mask_row & (o + o_d < size)
        b_x = load_classes(p_x + (o + o_d) * s_xd, mask, classes)
        _, b_total, b_picked = class_sums(
            (p_l + (o + o_d) * s_ld)[:, None, :],
            b_x[:, None, :],
            mask[:, None, :],
            classes,
            s_lc,
            ACC,
            IDX,
            BR,
            BC,
            BD,
        )
        b_log_prob = tl.where(b_x >= 0, b_picked - tl.log(b_total), float("nan"))
        b_sum += tl.where(mask, b_log_prob, 0.0)
    return wide_sum(b_sum)


@triton.jit
def categorical_log_prob_fwd_kernel(
    p_l,
    p_x,
    p_out,
    rows,
    inner,
    size,
    classes,
    s_l0,
    s_l1,
    s_ld,
    s_x0,
    s_x1,
    s_xd,
    s_lc,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    ACC: tl.constexpr = p_out.dtype.element_ty
    o_r = tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX)
    o_0 = (o_r // inner).to(tl.int64)[:, None]
    o_1 = (o_r % inner).to(tl.int64)[:, None]
    b_out = categorical_rows(
        p_l + o_0 * s_l0 + o_1 * s_l1,
        p_x + o_0 * s_x0 + o_1 * s_x1,
        tl.arange(0, BD).to(IDX)[None, :],
        (o_r < rows)[:, None],
        size,
        classes,
        s_lc,
        s_ld,
        s_xd,
        ACC,
        IDX,
        BR,
        BC,
        BD,
    )
    tl.store(p_out + o_r, b_out, o_r < rows)


@triton.jit
def categorical_log_prob_bwd_kernel(
    p_g,
    p_l,
    p_x,
    p_gl,
    rows,
    inner,
    size,
    classes,
    s_g0,
    s_g1,
    s_l0,
    s_l1,
    s_ld,
    s_x0,
    s_x1,
    s_xd,
    s_o0,
    s_o1,
    s_od,
    s_lc,
    s_oc,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    """dl[c] = g ([c = x] - softmax(l)[c])."""
    ACC: tl.constexpr = p_g.dtype.element_ty
    o_r = tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX)
    o_0 = (o_r // inner).to(tl.int64)[:, None]
    o_1 = (o_r % inner).to(tl.int64)[:, None]
    mask_row = (o_r < rows)[:, None]
    o_d = (tl.program_id(1) * BD + tl.arange(0, BD)).to(IDX)[None, :]
    b_g = tl.load(p_g + o_0 * s_g0 + o_1 * s_g1, mask_row, other=0.0)
    mask = (mask_row & (o_d < size))[:, None, :]
    # Samples without weight need no data and get plain zeros.
    used = mask & (b_g != 0.0)[:, None, :]
    o_x = p_x + o_0 * s_x0 + o_1 * s_x1 + o_d * s_xd
    b_x = load_classes(o_x[:, None, :], used, classes)
    o_l = (p_l + o_0 * s_l0 + o_1 * s_l1 + o_d * s_ld)[:, None, :]
    o_out = (p_gl + o_0 * s_o0 + o_1 * s_o1 + o_d * s_od)[:, None, :]
    b_top, b_total, _ = class_sums(o_l, b_x, used, classes, s_lc, ACC, IDX, BR, BC, BD)
    b_scale = (b_g / b_total)[:, None, :]
    for start in range(0, classes, BC):
        o_c = (start + tl.arange(0, BC))[None, :, None]
        b_l = tl.load(o_l + o_c.to(IDX) * s_lc, used & (o_c < classes), other=0.0).to(ACC)
        b_gl = -b_scale * tl.exp(b_l - b_top[:, None, :])
        b_gl = tl.where(used, b_gl + tl.where(o_c == b_x, b_g[:, :, None], 0.0), 0.0)
        tl.store(o_out + o_c.to(IDX) * s_oc, b_gl, mask & (o_c < classes))


def class_tile(
    rows: int, size: int, classes: int, s_ld: int, s_lc: int, *, positions: int = 1024
) -> tuple[int, int, int]:
    """Block sizes over rows, classes and elements, wide along the dimension that is contiguous.

    Where elements are, they fill the block first: with one class at a time no sum crosses threads.
    """
    classes = triton.next_power_of_2(classes)
    block_classes = min(classes, 1024) if s_lc == 1 and s_ld != 1 else 1
    block = min(triton.next_power_of_2(max(size, 1)), positions, 1024 // block_classes)
    block_rows = min(1024 // (block * block_classes), triton.next_power_of_2(rows))
    block_rows = spread(block_rows, rows)
    if block_classes == 1:
        block_classes = min(classes, 1024 // (block_rows * block), 16)
    return block_rows, block_classes, block


def _positions(logits: Tensor, class_dim: int) -> Tensor:
    """The logits of class 0: the strides of all dimensions but the classes'."""
    return logits.select(class_dim, 0)


def _row_view(
    shape: torch.Size,
    event_ndim: int,
    class_dim: int,
    grad: Tensor | None,
    logits: Tensor,
    x: Tensor,
    out: Tensor | None,
) -> tuple[Rows, Tensor, Tensor]:
    def view() -> Rows | None:
        last = None if out is None else _positions(out, class_dim)
        return collapse(shape, event_ndim, (grad, _positions(logits, class_dim), x, last))

    rows = view()
    if rows is None:
        logits, x = logits.contiguous(), x.expand(shape).contiguous()
        rows = view()
    assert rows is not None
    return rows, logits, x


def categorical_log_prob_fwd(logits: Tensor, x: Tensor, class_dim: int, event_ndim: int) -> Tensor:
    class_dim %= logits.ndim
    shape = logits.shape[:class_dim] + logits.shape[class_dim + 1 :]
    lead = len(shape) - event_ndim
    dtype = accumulator(logits)
    if logits.numel() == 0:
        return logits.new_zeros(shape[:lead], dtype=dtype)
    if class_dim > lead:
        # The event lies on both sides of the classes: its outer part is summed afterwards.
        inner = categorical_log_prob_fwd(logits, x, class_dim, len(shape) - class_dim)
        return inner.sum(tuple(range(lead, class_dim)))
    out = logits.new_empty(shape[:lead], dtype=dtype)
    rows, logits, x = _row_view(shape, event_ndim, class_dim, None, logits, numeric(x), None)
    classes, s_lc = logits.shape[class_dim], logits.stride(class_dim)
    br, bc, bd = class_tile(rows.total, rows.size, classes, rows.strides[1][2], s_lc)
    launch(
        categorical_log_prob_fwd_kernel,
        (triton.cdiv(rows.total, br),),
        logits,
        x,
        out,
        rows.total,
        rows.inner,
        rows.size,
        classes,
        *rows.strides[1],
        *rows.strides[2],
        s_lc,
        IDX=index_type(rows.total, classes * s_lc, *(rows.size * s[2] for s in rows.strides)),
        BR=br,
        BC=bc,
        BD=bd,
        num_warps=warps(br * bc * bd),
    )
    return out


def categorical_log_prob_bwd(
    grad: Tensor,
    logits: Tensor,
    x: Tensor,
    class_dim: int,
    event_ndim: int,
    mask: Sequence[bool],
) -> Tensor:
    if not mask[0]:
        return grad.new_empty(0)
    class_dim %= logits.ndim
    shape = logits.shape[:class_dim] + logits.shape[class_dim + 1 :]
    if logits.numel() == 0:
        return logits.new_zeros(logits.shape)
    grad = per_sample(grad, event_ndim, accumulator(logits))
    out = logits.new_empty(logits.shape)
    event_ndim = min(event_ndim, len(shape) - class_dim)
    rows, logits, x = _row_view(shape, event_ndim, class_dim, grad, logits, numeric(x), out)
    classes, s_lc, s_oc = logits.shape[class_dim], logits.stride(class_dim), out.stride(class_dim)
    # A block's logits are read twice: the second time from the cache if they fit there.
    positions = max(32, min(1024, triton.next_power_of_2(16384 // classes)))
    br, bc, bd = class_tile(
        rows.total, rows.size, classes, rows.strides[1][2], s_lc, positions=positions
    )
    offsets = (rows.size * s[2] for s in rows.strides)
    launch(
        categorical_log_prob_bwd_kernel,
        (triton.cdiv(rows.total, br), triton.cdiv(rows.size, bd)),
        grad,
        logits,
        x,
        out,
        rows.total,
        rows.inner,
        rows.size,
        classes,
        *rows.strides[0][:2],
        *rows.strides[1],
        *rows.strides[2],
        *rows.strides[3],
        s_lc,
        s_oc,
        IDX=index_type(rows.total, classes * s_lc, classes * s_oc, *offsets),
        BR=br,
        BC=bc,
        BD=bd,
        num_warps=warps(br * bc * bd),
    )
    return out
