"""Interpolated samples, norms of gradients, and the direction that their penalty pulls in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._dense import samples_dense
from dgm_fast.kernels._layout import accumulator, index_type, launch
from torch import Tensor

_BLOCK = 1024
# Elements of a row that a program sums, unless rows are so many that they fill the device alone.
_PART = 4096
_MANY_ROWS = 1024
_MAX_PARTS = 64


@triton.jit
def interpolate_fwd_kernel(
    p_real,
    p_fake,
    p_eps,
    p_out,
    size,
    IDX: tl.constexpr,
    BE: tl.constexpr,
):
    ACC: tl.constexpr = p_eps.dtype.element_ty
    o_r = tl.program_id(0)
    o_e = tl.program_id(1).to(IDX) * BE + tl.arange(0, BE).to(IDX)
    mask = o_e < size
    row = o_r.to(tl.int64) * size
    b_eps = tl.load(p_eps + o_r)
    b_real = tl.load(p_real + row + o_e, mask, other=0.0).to(ACC)
    b_fake = tl.load(p_fake + row + o_e, mask, other=0.0).to(ACC)
    tl.store(p_out + row + o_e, b_eps * b_real + (1.0 - b_eps) * b_fake, mask)


@triton.jit
def norm_penalty_parts_kernel(p_g, p_parts, size, part, IDX: tl.constexpr, BE: tl.constexpr):
    """Sums of squares of the parts of rows."""
    ACC: tl.constexpr = tl.float64 if p_g.dtype.element_ty == tl.float64 else tl.float32
    o_r = tl.program_id(0)
    o_p = tl.program_id(1)
    row = o_r.to(tl.int64) * size
    first = o_p.to(IDX) * part
    last = tl.minimum(first + part, size)
    b_sum = tl.zeros([BE], ACC)
    for start in range(first, last, BE):
        o_e = start + tl.arange(0, BE).to(IDX)
        b_g = tl.load(p_g + row + o_e, o_e < last, other=0.0).to(ACC)
        b_sum += b_g * b_g
    tl.store(p_parts + o_r.to(tl.int64) * tl.num_programs(1) + o_p, tl.sum(b_sum.to(tl.float64), 0))


@triton.jit
def norm_penalty_fwd_kernel(
    p_parts,
    p_norms,
    p_out,
    rows,
    parts,
    weight: tl.float64,
    CENTER: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    BR: tl.constexpr,
    BP: tl.constexpr,
):
    """Norms from the parts of their squares, and the penalty: one program for all rows."""
    o_p = tl.arange(0, BP)[None, :]
    b_total = tl.zeros([BR], tl.float64)
    for start in range(0, rows, BR):
        o_r = start + tl.arange(0, BR)
        mask = o_r < rows
        o_part = o_r.to(tl.int64)[:, None] * parts + o_p
        b_parts = tl.load(p_parts + o_part, mask[:, None] & (o_p < parts), other=0.0)
        b_square = tl.sum(b_parts, 1)
        b_norm = tl.sqrt(b_square)
        tl.store(p_norms + o_r, b_norm, mask)
        if CENTER == 0.0:
            b_term = b_square
        else:
            b_excess = b_norm - CENTER
            if ONE_SIDED:
                b_excess = tl.where(b_excess < 0.0, 0.0, b_excess)
            b_term = b_excess * b_excess
        b_total += tl.where(mask, b_term, 0.0)
    tl.store(p_out, tl.sum(b_total, 0) * weight / rows)


@triton.jit
def norm_penalty_bwd_kernel(
    p_up,
    p_norms,
    p_g,
    p_out,
    rows,
    size,
    weight: tl.float64,
    CENTER: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
):
    """The gradient times 2 upstream weight / rows (norm - center) / norm, which is 0 at norm 0."""
    ACC: tl.constexpr = p_norms.dtype.element_ty
    o_r = tl.program_id(0)
    o_e = tl.program_id(1).to(IDX) * BE + tl.arange(0, BE).to(IDX)
    mask = o_e < size
    row = o_r.to(tl.int64) * size
    b_scale = tl.load(p_up).to(tl.float64) * (2.0 * weight) / rows
    if CENTER != 0.0:
        b_norm = tl.load(p_norms + o_r).to(tl.float64)
        b_excess = b_norm - CENTER
        # NaN is neither, and stays.
        none = b_norm == 0.0
        if ONE_SIDED:
            none = none | (b_excess <= 0.0)
        b_scale = tl.where(none, 0.0, b_scale * b_excess / tl.where(b_norm == 0.0, 1.0, b_norm))
    b_g = tl.load(p_g + row + o_e, mask, other=0.0).to(ACC)
    tl.store(p_out + row + o_e, b_g * b_scale.to(ACC), mask)


def interpolate_fwd(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    out = real.new_empty(real.shape, dtype=torch.promote_types(real.dtype, fake.dtype))
    if out.numel():
        rows = out.shape[0]
        size = out.numel() // rows
        launch(
            interpolate_fwd_kernel,
            (rows, triton.cdiv(size, _BLOCK)),
            real.contiguous(),
            fake.contiguous(),
            eps.to(accumulator(real, fake)).contiguous(),
            out,
            size,
            IDX=index_type(size),
            BE=_BLOCK,
            num_warps=4,
        )
    return out


def norm_penalty_fwd(
    gradient: Tensor, weight: float, center: float, one_sided: bool
) -> tuple[Tensor, Tensor]:
    g = gradient if samples_dense(gradient) else gradient.contiguous()
    dtype = accumulator(g)
    rows = g.shape[0]
    size = g.numel() // rows
    count = 1 if rows >= _MANY_ROWS else triton.cdiv(size, _PART)
    count = max(1, min(count, _MAX_PARTS))
    parts = g.new_empty((rows, count), dtype=torch.float64)
    norms = g.new_empty(rows, dtype=dtype)
    penalty = g.new_empty((), dtype=dtype)
    launch(
        norm_penalty_parts_kernel,
        (rows, count),
        g,
        parts,
        size,
        triton.cdiv(size, count),
        IDX=index_type(size),
        BE=_BLOCK,
        num_warps=4,
    )
    columns = triton.next_power_of_2(count)
    launch(
        norm_penalty_fwd_kernel,
        (1,),
        parts,
        norms,
        penalty,
        rows,
        count,
        weight,
        CENTER=center,
        ONE_SIDED=one_sided,
        BR=max(1, min(256, 1024 // columns)),
        BP=columns,
        num_warps=4,
    )
    return penalty, norms


def norm_penalty_bwd(
    grad: Tensor,
    penalty: Tensor,
    norms: Tensor,
    gradient: Tensor,
    weight: float,
    center: float,
    one_sided: bool,
    mask: Sequence[bool],
) -> Tensor:
    if not mask[0]:
        return gradient.new_empty(0)
    if samples_dense(gradient):
        g, out = gradient, torch.empty_like(gradient)
    else:
        g, out = gradient.contiguous(), gradient.new_empty(gradient.shape)
    rows = g.shape[0]
    size = g.numel() // rows
    launch(
        norm_penalty_bwd_kernel,
        (rows, triton.cdiv(size, _BLOCK)),
        grad,
        norms,
        g,
        out,
        rows,
        size,
        weight,
        CENTER=center,
        ONE_SIDED=one_sided,
        IDX=index_type(size),
        BE=_BLOCK,
        num_warps=4,
    )
    return out
