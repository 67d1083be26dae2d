"""The gated activation: one pass over x each way, whose additions are part of it.

x is samples of channels and positions. Either channels or positions lie next to each other in memory, and a
program takes a tile of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from dgm_fast.kernels._elements import ACCUMULATORS
from dgm_fast.kernels._layout import accumulator, launch
from dgm_fast.kernels._math import tanh
from dgm_fast.kernels.nade_outputs import sigmoid
from torch import Tensor

# Entries of a half in a program's tile, and tiles that a program sums up.
_BLOCK, _TILES = 512, 8


@triton.jit
def halves(p, o_c, o_p, s_c, s_p, half, mask, ACC: tl.constexpr):
    """Entries of both halves of the channels, [BC, BP]."""
    p = p + o_c[:, None] * s_c + o_p[None, :] * s_p
    b_a = tl.load(p, mask, other=0.0).to(ACC)
    return b_a, tl.load(p + half, mask, other=0.0).to(ACC)


@triton.jit
def arguments(
    p_x,
    p_bias,
    p_condition,
    sample,
    o_c,
    o_p,
    s_c,
    s_p,
    channels,
    positions,
    mask,
    BY_POSITION: tl.constexpr,
    ACC: tl.constexpr,
):
    """x + bias + condition of both halves, [BC, BP]."""
    half = channels * s_c
    at = sample * (2 * channels * positions)
    b_a, b_b = halves(p_x + at, o_c, o_p, s_c, s_p, half, mask, ACC)
    mask_c = o_c < channels
    if p_bias is not None:
        b_a += tl.load(p_bias + o_c, mask_c, other=0.0).to(ACC)[:, None]
        b_b += tl.load(p_bias + channels + o_c, mask_c, other=0.0).to(ACC)[:, None]
    if p_condition is not None:
        if BY_POSITION:
            b_more_a, b_more_b = halves(p_condition + at, o_c, o_p, s_c, s_p, half, mask, ACC)
            b_a += b_more_a
            b_b += b_more_b
        else:
            p_row = p_condition + sample * (2 * channels) + o_c
            b_a += tl.load(p_row, mask_c, other=0.0).to(ACC)[:, None]
            b_b += tl.load(p_row + channels, mask_c, other=0.0).to(ACC)[:, None]
    return b_a, b_b


@triton.jit
def gated_activation_fwd_kernel(
    p_x,
    p_bias,
    p_condition,
    p_out,
    channels,
    positions,
    tiles,
    s_xc,
    s_xp,
    s_oc,
    s_op,
    BY_POSITION: tl.constexpr,
    ACC: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    o_p = (tl.program_id(0) % tiles).to(tl.int64) * BP + tl.arange(0, BP)
    o_c = (tl.program_id(1) * BC + tl.arange(0, BC)).to(tl.int64)
    mask = (o_c < channels)[:, None] & (o_p < positions)[None, :]
    b_a, b_b = arguments(
        p_x,
        p_bias,
        p_condition,
        sample,
        o_c,
        o_p,
        s_xc,
        s_xp,
        channels,
        positions,
        mask,
        BY_POSITION,
        ACC,
    )
    b_gate, _ = sigmoid(b_b)
    p_out += sample * (channels * positions) + o_c[:, None] * s_oc + o_p[None, :] * s_op
    tl.store(p_out, tanh(b_a) * b_gate, mask)


@triton.jit
def gated_activation_bwd_kernel(
    p_g,
    p_x,
    p_bias,
    p_condition,
    p_gx,
    p_sums,
    channels,
    positions,
    chunks,
    s_xc,
    s_xp,
    s_oc,
    s_op,
    BY_POSITION: tl.constexpr,
    ACC: tl.constexpr,
    TILES: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """The gradient of x, and its sums over a chunk of positions, [samples, chunks, 2 channels]."""
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks).to(tl.int64) * (TILES * BP)
    o_c = (tl.program_id(1) * BC + tl.arange(0, BC)).to(tl.int64)
    mask_c = o_c < channels
    b_sum_a = tl.zeros([BC, BP], ACC)
    b_sum_b = tl.zeros([BC, BP], ACC)
    for start in range(first, tl.minimum(first + TILES * BP, positions), BP):
        o_p = start + tl.arange(0, BP)
        mask = mask_c[:, None] & (o_p < positions)[None, :]
        b_a, b_b = arguments(
            p_x,
            p_bias,
            p_condition,
            sample,
            o_c,
            o_p,
            s_xc,
            s_xp,
            channels,
            positions,
            mask,
            BY_POSITION,
            ACC,
        )
        o_out = sample * (channels * positions) + o_c[:, None] * s_oc + o_p[None, :] * s_op
        b_g = tl.load(p_g + o_out, mask, other=0.0).to(ACC)
        b_gate, b_gate_slope = sigmoid(b_b)
        b_e = tl.exp(-2.0 * tl.abs(b_a))
        b_inverse = 1.0 / (1.0 + b_e)
        b_ga = b_g * b_gate * (4.0 * b_e * b_inverse * b_inverse)
        b_gb = b_g * tanh(b_a) * b_gate_slope
        if p_gx is not None:
            o_x = sample * (2 * channels * positions) + o_c[:, None] * s_xc + o_p[None, :] * s_xp
            tl.store(p_gx + o_x, b_ga, mask)
            tl.store(p_gx + o_x + channels * s_xc, b_gb, mask)
        b_sum_a += b_ga
        b_sum_b += b_gb
    if p_sums is not None:
        p_sums += tl.program_id(0).to(tl.int64) * (2 * channels) + o_c
        tl.store(p_sums, tl.sum(b_sum_a, 1), mask_c)
        tl.store(p_sums + channels, tl.sum(b_sum_b, 1), mask_c)


def _empty(like: Tensor, shape: Sequence[int], dim: int, innermost: bool) -> Tensor:
    """Room for ``shape``, with dimension ``dim`` innermost in memory or not."""
    if not innermost:
        return like.new_empty(shape)
    return like.new_empty([*shape[:dim], *shape[dim + 1 :], shape[dim]]).movedim(-1, dim)


class _Plan:
    """x, bias and condition as samples, channels and positions."""

    def __init__(self, x: Tensor, bias: Tensor | None, condition: Tensor | None, dim: int) -> None:
        self.dim = dim
        self.innermost = not x.is_contiguous() and x.movedim(dim, -1).is_contiguous()
        self.x = self.arranged(x)
        self.shape = x.shape
        self.channels = x.shape[dim] // 2
        self.samples = math.prod(x.shape[:dim])
        self.positions = math.prod(x.shape[dim + 1 :])
        self.bias = None if bias is None else bias.contiguous()
        self.by_position = False
        self.condition = condition
        if condition is not None:
            own = condition.shape[dim + 1 :]
            self.by_position = math.prod(own) > 1 or self.positions == 1
            if self.by_position:
                self.condition = self.arranged(condition.expand(x.shape))
            else:
                self.condition = condition.expand(*x.shape[: dim + 1], *own).contiguous()
        self.rows = self.innermost or self.positions == 1
        if self.rows and (condition is None or self.by_position):
            # Samples are positions like others.
            self.samples, self.positions = 1, self.samples * self.positions
        self.accumulator = accumulator(x)
        widest = min(64, triton.next_power_of_2(max(1, self.channels)))
        block = min(_BLOCK, triton.next_power_of_2(max(1, self.positions)))
        # The longer side is the one that lies together in memory.
        self.block_channels = widest if self.rows else max(1, min(widest, _BLOCK // block))
        self.block_positions = min(block, _BLOCK // self.block_channels)
        self.meta: dict[str, Any] = {
            "BY_POSITION": self.by_position,
            "ACC": ACCUMULATORS[self.accumulator],
            "BC": self.block_channels,
            "BP": self.block_positions,
            "num_warps": max(1, min(4, self.block_channels * self.block_positions // 128)),
        }

    def arranged(self, t: Tensor) -> Tensor:
        return t.movedim(self.dim, -1).contiguous() if self.innermost else t.contiguous()

    def empty(self, channels: int) -> Tensor:
        shape = [*self.shape[: self.dim], channels, *self.shape[self.dim + 1 :]]
        return _empty(self.x, shape, self.dim, self.innermost)

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Of channels and positions, of x and of the result."""
        if self.rows:
            return 1, 2 * self.channels, 1, self.channels
        return self.positions, 1, self.positions, 1

    def grid(self, tiles: int) -> tuple[int, int]:
        return self.samples * self.chunks(tiles), triton.cdiv(self.channels, self.block_channels)

    def chunks(self, tiles: int) -> int:
        return triton.cdiv(self.positions, tiles * self.block_positions)


def gated_activation_fwd(
    x: Tensor, bias: Tensor | None, condition: Tensor | None, dim: int
) -> Tensor:
    plan = _Plan(x, bias, condition, dim)
    out = plan.empty(plan.channels)
    if out.numel():
        launch(
            gated_activation_fwd_kernel,
            plan.grid(1),
            plan.x,
            plan.bias,
            plan.condition,
            out,
            plan.channels,
            plan.positions,
            plan.chunks(1),
            *plan.strides,
            **plan.meta,
        )
    return out


def gated_activation_bwd(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    condition: Tensor | None,
    dim: int,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    plan = _Plan(x, bias, condition, dim)
    with_bias, with_condition = (
        wanted and t is not None for wanted, t in zip(mask[1:], (bias, condition), strict=True)
    )
    by_position = with_condition and plan.by_position
    nothing = x.new_empty(0)
    grad_x = plan.empty(2 * plan.channels) if mask[0] or by_position else None
    sums = None
    if with_bias or (with_condition and not by_position):
        shape = (plan.samples, plan.chunks(_TILES), 2 * plan.channels)
        sums = x.new_empty(shape, dtype=plan.accumulator)
    if grad.numel() and (grad_x is not None or sums is not None):
        launch(
            gated_activation_bwd_kernel,
            plan.grid(_TILES),
            plan.arranged(grad),
            plan.x,
            plan.bias,
            plan.condition,
            grad_x,
            sums,
            plan.channels,
            plan.positions,
            plan.chunks(_TILES),
            *plan.strides,
            TILES=_TILES,
            **plan.meta,
        )
    grad_bias = grad_condition = nothing
    if with_bias:
        assert sums is not None
        grad_bias = sums.sum((0, 1)).to(x.dtype)
    if by_position:
        assert condition is not None and grad_x is not None
        grad_condition = grad_x
        if condition.shape != x.shape:
            grad_condition = grad_x.sum_to_size(condition.shape).contiguous()
        elif mask[0]:
            grad_condition = grad_x.clone()
    elif with_condition:
        assert condition is not None and sums is not None
        by_sample = sums.sum(1).view(x.shape[: dim + 1])
        by_sample = by_sample.sum_to_size(condition.shape[: dim + 1]).to(x.dtype)
        grad_condition = by_sample.reshape(condition.shape).contiguous()
    return (
        grad_x if mask[0] and grad_x is not None else nothing,
        grad_bias,
        grad_condition,
    )
