"""Mixture of diagonal Gaussians: rows times components in registers, dimensions streamed.

A first kernel lays the components out as the others read them, in a table [2 L + 3, K] with K padded by
components of no weight: mean and inverse variance of each dimension, log-weight with all constants, weight
and what its rounding leaves.
Programs are single warps whose lanes hold components, so that no sum crosses warps.

Differences z - mean are formed as such. Expanded, the quadratic would be a matrix product, but it cancels
where the data lie far from the origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import (
    accumulator,
    chunk_rows,
    index_type,
    launch,
    no_gradients,
    per_sample,
    row_view,
    spread,
)
from dgm_fast.kernels._math import LOG_2PI, LOWEST, exp_accurate, wide_sum
from dgm_fast.kernels.log_mean_exp import row_max, row_sum, shifted
from torch import Tensor

# Terms that are added up one after the other before their sum joins the others.
_RUN = tl.constexpr(32)
# Entries that the partial sums over rows may have, if z itself has fewer.
_MAX_ENTRIES = 2**22
# Gradients to z that a program keeps in registers.
_MAX_GRADIENTS = 1024


@triton.jit
def gaussian_mixture_components_kernel(
    p_m,
    p_v,
    p_logits,
    p_table,
    components,
    size,
    padded,
    s_mk,
    s_ml,
    s_vk,
    s_vl,
    s_logit,
    IDX: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
    BW: tl.constexpr,
):
    """The table of components. A weight of -1 marks logits that get no gradient."""
    ACC: tl.constexpr = p_table.dtype.element_ty
    # Its exponential, an inverse variance, is finite.
    MAX_EXPONENT: tl.constexpr = 700.0 if tl.float64 == ACC else 86.0
    o_k = (tl.program_id(0) * BK + tl.arange(0, BK)).to(IDX)[:, None]
    mask_k = o_k < components
    b_sum = tl.zeros([BK, BL], ACC)
    for start in range(0, size, BL):
        o_l = (start + tl.arange(0, BL)).to(IDX)[None, :]
        mask = mask_k & (o_l < size)
        b_m = tl.load(p_m + o_k * s_mk + o_l * s_ml, mask, other=0.0).to(ACC)
        b_v = tl.load(p_v + o_k * s_vk + o_l * s_vl, mask, other=0.0).to(ACC)
        b_sum += b_v
        b_inverse = tl.where(mask, exp_accurate(tl.minimum(-b_v, MAX_EXPONENT)), 0.0)
        p_row = p_table + 2 * o_l * padded + o_k
        tl.store(p_row, b_m, o_l < size)
        tl.store(p_row + padded, b_inverse, o_l < size)
    b_constant = wide_sum(b_sum)[:, None] + size * tl.full([BK, 1], LOG_2PI, tl.float64)
    if p_logits is None:
        b_count = components * tl.full([BK, 1], 1.0, tl.float64)
        b_log_weight = -tl.log(b_count)
        b_weight = 1.0 / b_count
    else:
        o_w = tl.arange(0, BW).to(IDX)[None, :]
        every = o_w >= 0
        # The gradient to the logits is a difference of nearly equal sums: of weights, of responsibilities.
        b_highest = row_max(p_logits, o_w, every, components, s_logit, tl.float64, 1, BW)
        b_total = row_sum(p_logits, o_w, every, components, s_logit, b_highest, tl.float64, 1, BW)
        b_shifted = shifted(p_logits, o_k, mask_k, components, s_logit, b_highest, tl.float64)
        b_log_weight = b_shifted - tl.log(b_total)
        b_log_weight = tl.where(b_total == 0.0, float("-inf"), b_log_weight)
        b_weight = tl.where(b_total == 0.0, 0.0, tl.exp(b_shifted) / b_total)
        b_weight = tl.where(b_highest == float("inf"), -1.0, b_weight)
    b_constant = tl.where(mask_k, b_log_weight - 0.5 * b_constant, float("-inf"))
    p_row = p_table + tl.full([1, 1], size, IDX) * 2 * padded + o_k
    tl.store(p_row, b_constant)
    tl.store(p_row + padded, b_weight)
    tl.store(p_row + 2 * padded, b_weight - b_weight.to(ACC).to(tl.float64))


@triton.jit
def load_difference(p_z, p_k, mask, o_l, padded, s_zl, ACC: tl.constexpr, IDX: tl.constexpr):
    """z - mean, and the inverse variance, of dimension o_l: [BR, BK] and [1, BK].

    Rows are vectors [BR], components [1, BK]. The layout of a block comes from its components, and a
    thread would load a column [BR, 1] once for each of those that it holds.
    """
    b_z = tl.load(p_z + tl.full([1], o_l, IDX) * s_zl, mask, other=0.0).to(ACC)
    p_l = p_k + tl.full([1, 1], o_l, IDX) * 2 * padded
    return b_z[:, None] - tl.load(p_l), tl.load(p_l + padded)


@triton.jit
def joint_log_probs(
    p_z,
    p_k,
    mask,
    size,
    padded,
    s_zl,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """log w_k N(z; k) of the rows [BR] at p_z and the components [1, BK] at p_k of the table."""
    b_sum = tl.zeros([BR, BK], ACC)
    for start in range(0, size, _RUN):
        b_part = tl.zeros([BR, BK], ACC)
        for o_l in range(start, tl.minimum(start + _RUN, size)):
            b_diff, b_inverse = load_difference(p_z, p_k, mask, o_l, padded, s_zl, ACC, IDX)
            b_part += b_diff * b_inverse * b_diff
        b_sum += b_part
    return tl.load(p_k + tl.full([1, 1], size, IDX) * 2 * padded) - 0.5 * b_sum


@triton.jit
def gaussian_mixture_log_prob_fwd_kernel(
    p_z,
    p_table,
    p_out,
    rows,
    inner,
    size,
    padded,
    s_z0,
    s_z1,
    s_zl,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    ACC: tl.constexpr = p_out.dtype.element_ty
    o_r = tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX)
    mask = o_r < rows
    p_row = p_z + (o_r // inner).to(tl.int64) * s_z0 + (o_r % inner).to(tl.int64) * s_z1
    # One exponential each: of the new exponent relative to the highest so far, or the other way round.
    b_top = tl.full([BR, BK], LOWEST, ACC)
    b_sum = tl.zeros([BR, BK], ACC)
    for start in range(0, padded, BK):
        p_k = p_table + start + tl.arange(0, BK)[None, :]
        b_joint = joint_log_probs(p_row, p_k, mask, size, padded, s_zl, ACC, IDX, BR, BK)
        b_step = b_joint - b_top
        b_e = tl.exp(-tl.abs(b_step))
        b_sum = tl.where(b_step > 0.0, b_sum * b_e + 1.0, b_sum + b_e)
        b_top = tl.maximum(b_top, b_joint)
    b_highest = tl.max(b_top, 1)
    b_total = tl.sum(b_sum * tl.exp(b_top - b_highest[:, None]), 1)
    tl.store(p_out + o_r, b_highest + tl.log(b_total), mask)


@triton.jit
def gaussian_mixture_log_prob_bwd_rows_kernel(
    p_z,
    p_table,
    p_g,
    p_out,
    p_scale,
    p_gz,
    rows,
    inner,
    size,
    padded,
    s_g0,
    s_g1,
    s_z0,
    s_z1,
    s_zl,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
):
    """dz = -g sum_k r_k (z - mean_k) / var_k, responsibilities r_k = e_k / sum e, e_k = e^(joint - out).

    ``out`` is rounded to its size, which would show in every e_k: their sum makes good for it. p_scale gets
    g / sum e, and after it the g of the rows that have any component.
    """
    ACC: tl.constexpr = p_scale.dtype.element_ty
    o_r = tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX)
    o_0 = (o_r // inner).to(tl.int64)
    o_1 = (o_r % inner).to(tl.int64)
    mask = o_r < rows
    b_g = tl.load(p_g + o_0 * s_g0 + o_1 * s_g1, mask, other=0.0)
    b_out = tl.load(p_out + o_r, mask, other=0.0)
    # Rows without weight, and without any component, need no data and get plain zeros.
    used = (b_g != 0.0) & (b_out != float("-inf"))
    b_shift = tl.where(used, b_out, 0.0)[:, None]
    p_row = p_z + o_0 * s_z0 + o_1 * s_z1
    first = tl.program_id(1) * BL
    o_column = (first + tl.arange(0, BL))[None, :]
    b_gz = tl.zeros([BR, BL], ACC)
    b_sum = tl.zeros([BR], ACC)
    for start in range(0, padded, BK):
        p_k = p_table + start + tl.arange(0, BK)[None, :]
        b_e = joint_log_probs(p_row, p_k, used, size, padded, s_zl, ACC, IDX, BR, BK)
        b_e = tl.exp(b_e - b_shift)
        b_sum += tl.sum(b_e, 1)
        if p_gz is not None:
            for o_l in range(first, tl.minimum(first + BL, size)):
                b_diff, b_inverse = load_difference(p_row, p_k, used, o_l, padded, s_zl, ACC, IDX)
                b_term = tl.sum(b_e * b_diff * b_inverse, 1)
                b_gz += tl.where(o_column == o_l, b_term[:, None], 0.0)
    b_scale = tl.where(used & (b_sum != 0.0), b_g / b_sum, 0.0)
    if p_gz is not None:
        b_factor = -b_scale[:, None]
        b_gz = tl.where(b_factor == 0.0, 0.0, b_factor * b_gz)
        p_grad = p_gz + o_r.to(tl.int64)[:, None] * size + o_column
        tl.store(p_grad, b_gz, mask[:, None] & (o_column < size))
    mask = mask & (first == 0)
    tl.store(p_scale + o_r, b_scale, mask)
    tl.store(p_scale + rows + o_r, tl.where(used, b_g, 0.0), mask)


@triton.jit
def gaussian_mixture_log_prob_bwd_components_kernel(
    p_z,
    p_table,
    p_out,
    p_scale,
    p_sums,
    p_weights,
    p_total,
    rows,
    inner,
    size,
    padded,
    chunk,
    s_z0,
    s_z1,
    s_zl,
    MOMENTS: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BK: tl.constexpr,
):
    """Sums over a chunk of rows, as [2 L, K]: for each dimension those of w (z - mean) / var and of
    w (z - mean)^2 / var, with w = g r. p_weights [K] gets the sums of w, and p_total that of g.
    """
    ACC: tl.constexpr = p_scale.dtype.element_ty
    o_c = tl.program_id(1)
    o_k = (tl.program_id(0) * BK + tl.arange(0, BK)).to(IDX)[None, :]
    p_k = p_table + o_k
    p_sum = p_sums + o_c.to(tl.int64) * 2 * size * padded + o_k
    first = o_c.to(IDX) * chunk
    b_weight = tl.zeros([1, BK], tl.float64)
    b_total = tl.zeros([BR], tl.float64)
    for start in range(first, tl.minimum(first + chunk, rows), BR):
        o_r = (start + tl.arange(0, BR)).to(IDX)
        mask = o_r < rows
        b_scale = tl.load(p_scale + o_r, mask, other=0.0)
        b_total += tl.load(p_scale + rows + o_r, mask, other=0.0).to(tl.float64)
        used = b_scale != 0.0
        b_shift = tl.load(p_out + o_r, used, other=0.0)
        p_row = p_z + (o_r // inner).to(tl.int64) * s_z0 + (o_r % inner).to(tl.int64) * s_z1
        b_w = joint_log_probs(p_row, p_k, used, size, padded, s_zl, ACC, IDX, BR, BK)
        b_w = tl.exp(b_w - b_shift[:, None])
        b_w = tl.where(used[:, None], b_scale[:, None] * b_w, 0.0)
        b_weight += tl.sum(b_w, 0)[None, :].to(tl.float64)
        if MOMENTS:
            # The sums stay in memory, where a cache holds them: registers would not.
            started = (o_k >= 0) & (start > first)
            for o_l in range(0, size):
                p_l = p_sum + tl.full([1, 1], o_l, IDX) * 2 * padded
                b_first = tl.load(p_l, started, other=0.0)
                b_second = tl.load(p_l + padded, started, other=0.0)
                b_diff, b_inverse = load_difference(p_row, p_k, used, o_l, padded, s_zl, ACC, IDX)
                b_term = b_w * b_diff * b_inverse
                tl.store(p_l, b_first + tl.sum(b_term, 0)[None, :])
                tl.store(p_l + padded, b_second + tl.sum(b_term * b_diff, 0)[None, :])
            tl.debug_barrier()
    tl.store(p_weights + o_c.to(tl.int64) * padded + o_k, b_weight)
    tl.store(p_total + o_c, tl.sum(b_total), tl.program_id(0) == 0)


@triton.jit
def chunk_sums(p, chunks, s_c, ACC: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr):
    """Sum of the entries [1, BK] at p over chunks."""
    b_sum = tl.zeros([BC, BK], ACC)
    for start in range(0, chunks, BC):
        o_c = (start + tl.arange(0, BC)).to(tl.int64)[:, None]
        b_sum += tl.load(p + o_c * s_c, o_c < chunks, other=0.0)
    return tl.sum(b_sum, 0)[None, :]


@triton.jit
def gaussian_mixture_log_prob_bwd_finish_kernel(
    p_sums,
    p_weights,
    p_total,
    p_table,
    p_v,
    p_gm,
    p_gv,
    p_gl,
    components,
    size,
    padded,
    chunks,
    s_c,
    s_vk,
    s_vl,
    IDX: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """dmean = sum w (z - mean) / var, dlog_var = (sum w (z - mean)^2 / var - sum w) / 2,
    dlogit = sum w - weight sum g; for one dimension o_l, and the logits with the first.
    """
    ACC: tl.constexpr = p_table.dtype.element_ty
    CAP: tl.constexpr = 700.0 if tl.float64 == ACC else 86.0
    o_k = (tl.program_id(0) * BK + tl.arange(0, BK)).to(IDX)[None, :]
    o_l = tl.program_id(1).to(IDX)
    mask = (o_k < components) & (o_l < size)
    p_l = p_sums + 2 * o_l * padded + o_k
    o_out = o_k.to(tl.int64) * size + o_l
    b_weight = chunk_sums(p_weights + o_k, chunks, padded, tl.float64, BC, BK)
    if p_gm is not None:
        tl.store(p_gm + o_out, chunk_sums(p_l, chunks, s_c, ACC, BC, BK), mask)
    if p_gv is not None:
        b_second = chunk_sums(p_l + padded, chunks, s_c, ACC, BC, BK)
        b_v = tl.load(p_v + o_k * s_vk + o_l * s_vl, mask, other=0.0).to(ACC)
        # A capped inverse variance does not depend on the log-variance.
        b_second = tl.where(-b_v > CAP, 0.0, b_second)
        tl.store(p_gv + o_out, (0.5 * (b_second - b_weight)).to(ACC), mask)
    if p_gl is not None:
        b_total = chunk_sums(p_total + tl.zeros([1, 1], tl.int32), chunks, 1, tl.float64, BC, 1)
        p_share = p_table + (tl.full([1, 1], size, IDX) * 2 + 1) * padded + o_k
        b_share = tl.load(p_share).to(tl.float64) + tl.load(p_share + padded).to(tl.float64)
        b_gl = tl.where(b_share < 0.0, 0.0, b_weight - b_share * b_total)
        tl.store(p_gl + o_k, b_gl.to(ACC), (o_k < components) & (o_l == 0))


class _Mixture:
    """What every kernel of a mixture needs: its rows and its table."""

    def __init__(
        self,
        z: Tensor,
        means: Tensor,
        log_vars: Tensor,
        logits: Tensor | None,
        grad: Tensor | None = None,
    ) -> None:
        """``grad`` has one number per row, aligned with z."""
        self.dtype = accumulator(z, means, log_vars, logits)
        self.rows, (grad_rows, z_rows) = row_view(z.shape, 1, (grad, z))
        self.grad: Any = grad_rows
        self.z: Any = z_rows
        rows = self.rows
        self.components, self.size = means.shape
        self.block = min(128, triton.next_power_of_2(self.components))
        self.padded = self.block * triton.cdiv(self.components, self.block)
        self.index = index_type(
            rows.total, self.size * rows.strides[1][2], (2 * self.size + 3) * self.padded
        )
        self.table = z.new_empty((2 * self.size + 3, self.padded), dtype=self.dtype)
        block = min(8, self.padded)
        if logits is not None:
            # The interpreter converts bfloat16 to and from float32 alone.
            logits = logits.to(self.dtype)
        launch(
            gaussian_mixture_components_kernel,
            (self.padded // block,),
            means,
            log_vars,
            logits,
            self.table,
            self.components,
            self.size,
            self.padded,
            *means.stride(),
            *log_vars.stride(),
            0 if logits is None else logits.stride(0),
            IDX=self.index,
            BK=block,
            BL=min(32, triton.next_power_of_2(max(self.size, 1))),
            BW=min(1024, triton.next_power_of_2(self.components)),
        )

    def block_rows(self, rows: int) -> int:
        """Rows per program, of ``rows`` that fit beside float32 sums."""
        return spread(rows // 2 if self.dtype == torch.float64 else rows, self.rows.total)

    def launch(
        self, kernel: Any, grid: tuple[int, ...], *tensors: Tensor | None, **meta: Any
    ) -> None:
        """A kernel whose arguments begin with z, the table, ``tensors`` and the sizes of a mixture."""
        rows = self.rows
        sizes = dict(rows=rows.total, inner=rows.inner, size=self.size, padded=self.padded)
        strides = dict(zip(("s_z0", "s_z1", "s_zl"), rows.strides[1], strict=True))
        # What such blocks need: without a bound the compiler takes more, or spills to have fewer.
        registers = 255 if self.dtype == torch.float64 else 128
        meta |= dict(IDX=self.index, num_warps=1, maxnreg=registers)
        launch(kernel, grid, self.z, self.table, *tensors, **sizes, **strides, **meta)


def gaussian_mixture_log_prob_fwd(
    z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor | None
) -> Tensor:
    out = z.new_empty(z.shape[:-1], dtype=accumulator(z, means, log_vars, logits))
    if out.numel() == 0:
        return out
    mixture = _Mixture(z, means, log_vars, logits)
    br = mixture.block_rows(8)
    mixture.launch(
        gaussian_mixture_log_prob_fwd_kernel,
        (triton.cdiv(mixture.rows.total, br),),
        out,
        BR=br,
        BK=min(64, mixture.block),
    )
    return out


def _rows_backward(mixture: _Mixture, log_prob: Tensor, grad_z: Tensor | None) -> Tensor:
    """g / sum e of the rows, and the g that count, [2, N]; fills ``grad_z``."""
    rows = mixture.rows
    # At least a dimension per lane: sums over components are in every lane, and stay where they are.
    bl = min(_MAX_GRADIENTS, max(32, triton.next_power_of_2(mixture.size)))
    br = min(mixture.block_rows(4), _MAX_GRADIENTS // bl)
    columns = 1 if grad_z is None else max(1, triton.cdiv(mixture.size, bl))
    scale = log_prob.new_empty((2, rows.total))
    mixture.launch(
        gaussian_mixture_log_prob_bwd_rows_kernel,
        (triton.cdiv(rows.total, br), columns),
        mixture.grad,
        log_prob,
        scale,
        grad_z,
        s_g0=rows.strides[0][0],
        s_g1=rows.strides[0][1],
        BR=br,
        BK=mixture.block,
        BL=bl,
    )
    return scale


def _components_backward(
    mixture: _Mixture,
    log_prob: Tensor,
    scale: Tensor,
    log_vars: Tensor,
    gradients: Sequence[Tensor | None],
) -> None:
    """Fills the gradients to means, log-variances and logits."""
    rows, size, padded = mixture.rows, mixture.size, mixture.padded
    br, bk = mixture.block_rows(8), min(64, mixture.block)
    columns = padded // bk
    room = max(_MAX_ENTRIES, rows.total * size) // max(1, size * padded)
    chunk = chunk_rows(rows.total, br, columns, room)
    chunks = triton.cdiv(rows.total, chunk)
    sums = scale.new_empty((chunks, 2 * size, padded))
    weights = scale.new_empty((chunks, padded), dtype=torch.float64)
    total = scale.new_empty(chunks, dtype=torch.float64)
    mixture.launch(
        gaussian_mixture_log_prob_bwd_components_kernel,
        (columns, chunks),
        log_prob,
        scale,
        sums,
        weights,
        total,
        chunk=chunk,
        MOMENTS=gradients[0] is not None or gradients[1] is not None,
        BR=br,
        BK=bk,
    )
    launch(
        gaussian_mixture_log_prob_bwd_finish_kernel,
        (columns, max(1, size)),
        sums,
        weights,
        total,
        mixture.table,
        log_vars,
        # Without dimensions these have no entry, and no sums.
        *(g if g is None or g.numel() else None for g in gradients),
        mixture.components,
        size,
        padded,
        chunks,
        sums.stride(0),
        *log_vars.stride(),
        IDX=mixture.index,
        BC=16,
        BK=bk,
        num_warps=1,
    )


def gaussian_mixture_log_prob_bwd(
    grad: Tensor,
    log_prob: Tensor,
    z: Tensor,
    means: Tensor,
    log_vars: Tensor,
    logits: Tensor | None,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    args = (z, means, log_vars, logits)
    if log_prob.numel() == 0:
        return tuple(no_gradients(grad, args, mask))
    mixture = _Mixture(*args, per_sample(grad, 1, accumulator(*args)))
    gradients = [
        a.new_empty(a.shape) if wanted and a is not None else None
        for a, wanted in zip(args, mask, strict=True)
    ]
    log_prob = log_prob.contiguous()
    if any(g is not None for g in gradients):
        scale = _rows_backward(mixture, log_prob, gradients[0])
        if any(g is not None for g in gradients[1:]):
            _components_backward(mixture, log_prob, scale, log_vars, gradients[1:])
    return tuple(grad.new_empty(0) if g is None else g for g in gradients)
