"""Ancestral samples of a NADE: one program draws all dimensions of a few rows, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import accumulator, launch, numeric, spread
from dgm_fast.kernels._math import LOWEST
from dgm_fast.kernels.nade_outputs import sigmoid
from torch import Tensor

# How a value is drawn from its outputs: mixtures, in the order of the ops' ``mixture``, by two numbers of
# noise, the others by one.
GAUSSIAN, LOGISTIC, BERNOULLI, CATEGORICAL = 0, 1, 2, 3
_LOGISTIC, _BERNOULLI, _CATEGORICAL = (
    tl.constexpr(LOGISTIC),
    tl.constexpr(BERNOULLI),
    tl.constexpr(CATEGORICAL),
)
# Hidden units that a program keeps in registers (of more, all states are in memory), and weights of outputs
# that it multiplies at a time.
_UNITS, _TILE = 4096, 8192


@triton.jit
def load_outputs(p_v, first, outputs, hidden, o_h, mask_h, BK: tl.constexpr):
    """Rows first... of V [outputs, hidden] and the columns o_h, [BK, BH]."""
    o_v = first + tl.arange(0, BK)
    mask = (o_v < outputs)[:, None] & mask_h[None, :]
    return tl.load(p_v + o_v.to(tl.int64)[:, None] * hidden + o_h[None, :], mask, other=0.0)


@triton.jit
def products(b_h, b_v):
    """h V^T of hidden units [BR, BH] and V [BK, BH] -> [BR, BK]."""
    b_v = b_v.to(b_h.dtype)
    if b_v.shape[0] == 1:
        return tl.sum(b_h * b_v, 1)[:, None]
    else:
        return tl.sum(b_h[:, None, :] * b_v[None, :, :], 2)


@triton.jit
def outputs_of(
    b_h,
    p_v,
    outputs,
    hidden,
    o_h,
    mask_h,
    BR: tl.constexpr,
    NK: tl.constexpr,
    BK: tl.constexpr,
):
    """h V^T of hidden units [BR, BH] and V [outputs, hidden] at p_v -> [BR, NK BK]."""
    b_all = tl.zeros([BR, NK, BK], b_h.dtype)
    for i in range(NK):
        b_o = products(b_h, load_outputs(p_v, i * BK, outputs, hidden, o_h, mask_h, BK))
        b_all = tl.where(tl.arange(0, NK)[None, :, None] == i, b_o[:, None, :], b_all)
    return tl.reshape(b_all, [BR, NK * BK])


@triton.jit
def draw_index(b_o, o_k, count, b_u):
    """The first of ``count`` columns whose cumulative softmax exceeds u [BR]."""
    b_top = tl.maximum(tl.max(tl.where(o_k < count, b_o, float("-inf")), 1), LOWEST)
    b_e = tl.where(o_k < count, tl.exp(b_o - b_top[:, None]), 0.0)
    b_cdf = tl.cumsum(b_e, 1)
    # Compared with the rounded total, so that the last one is never drawn for its rounding error.
    b_total = tl.max(b_cdf, 1)
    passed = (b_cdf <= (b_u * b_total)[:, None]) & (o_k < count)
    return tl.minimum(tl.sum(passed.to(tl.int32), 1), count - 1)


@triton.jit
def at_index(b_o, o_k, b_index):
    """The column [BR] of each row."""
    return tl.sum(tl.where(o_k == b_index[:, None], b_o, 0.0), 1)


@triton.jit
def class_steps(p_w, b_x, o_h, mask_h, classes, hidden):
    """Rows x [BR] of the weights [classes, hidden] at p_w -> [BR, BH]; zeros for what is no class."""
    valid = (b_x >= 0) & (b_x < classes)
    o_w = b_x.to(tl.int64)[:, None] * hidden + o_h[None, :]
    return tl.load(p_w + o_w, valid[:, None] & mask_h[None, :], other=0.0)


@triton.jit
def nade_sample_kernel(
    p_noise,
    p_w,
    p_c,
    p_v,
    p_b,
    p_s,
    p_values,
    p_given,
    p_state,
    p_out,
    rows,
    size,
    hidden,
    classes,
    outputs,
    mixtures,
    MODE: tl.constexpr,
    LOGITS: tl.constexpr,
    BR: tl.constexpr,
    NK: tl.constexpr,
    BK: tl.constexpr,
    BH: tl.constexpr,
):
    """Draws x_d from the outputs of the hidden units and moves these on, for all d.

    Pre-activations are in registers, or where there are more than BH of them in p_state.
    """
    ACC: tl.constexpr = p_noise.dtype.element_ty
    # The weights of a dimension's outputs are loaded during the one before.
    AHEAD: tl.constexpr = NK == 1 and p_state is None
    o_r = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    mask_r = o_r < rows
    o_h = tl.arange(0, BH)
    mask_h = o_h < hidden
    o_k = tl.arange(0, NK * BK)[None, :]
    o_state = o_r[:, None] * hidden + o_h[None, :]
    b_a = tl.zeros([BR, BH], ACC)
    for start in range(0, hidden, BH):
        mask = start + o_h < hidden
        b_a = tl.zeros([BR, BH], ACC) + tl.load(p_c + start + o_h, mask, other=0.0)[None, :]
        if p_state is not None:
            tl.store(p_state + o_state + start, b_a, mask_r[:, None] & mask[None, :])
    if AHEAD:
        b_v = load_outputs(p_v, 0, outputs, hidden, o_h, mask_h, BK)
    for d in range(size):
        o_d = tl.full([1], d, tl.int64)
        o_x = o_r * size + o_d
        p_step = p_w + o_d * classes * hidden
        # All that does not depend on earlier draws is loaded before the sum that threads wait for.
        b_scale = tl.full([1], 1.0, ACC) if p_s is None else tl.load(p_s + o_d)
        b_bias = tl.load(p_b + o_d[:, None] * outputs + o_k, o_k < outputs, other=0.0)
        if MODE >= _BERNOULLI:
            b_u = tl.load(p_noise + o_x, mask_r, other=0.0)
        else:
            b_u = tl.load(p_noise + 2 * o_x, mask_r, other=0.5)
            b_z = tl.load(p_noise + 2 * o_x + 1, mask_r, other=0.5)
        if p_given is not None:
            given = tl.load(p_given + o_x, mask_r, other=0) != 0
            b_value = tl.load(p_values + o_x, mask_r & given, other=0)
        if p_state is None:
            if MODE != _CATEGORICAL:
                b_w = tl.load(p_step + o_h, mask_h, other=0.0)[None, :]
            b_h, _ = sigmoid(b_a * b_scale[None, :])
            if AHEAD:
                b_o = products(b_h, b_v)
                p_next = p_v + tl.minimum(o_d + 1, size - 1)[:, None] * outputs * hidden
                b_v = load_outputs(p_next, 0, outputs, hidden, o_h, mask_h, BK)
            else:
                p_d = p_v + o_d[:, None] * outputs * hidden
                b_o = outputs_of(b_h, p_d, outputs, hidden, o_h, mask_h, BR, NK, BK)
        else:
            b_o = tl.zeros([BR, NK * BK], ACC)
            for start in range(0, hidden, BH):
                mask = start + o_h < hidden
                b_part = tl.load(
                    p_state + o_state + start, mask_r[:, None] & mask[None, :], other=0.0
                )
                b_h, _ = sigmoid(b_part * b_scale[None, :])
                p_d = p_v + o_d[:, None] * outputs * hidden + start
                b_o += outputs_of(b_h, p_d, outputs, hidden, o_h, mask, BR, NK, BK)
        b_o += b_bias
        if MODE == _BERNOULLI:
            b_logit = tl.sum(b_o, 1)
            b_p, _ = sigmoid(b_logit)
            b_x = tl.where(b_u < b_p, 1.0, 0.0)
            b_x = tl.where(b_logit == b_logit, b_x, float("nan")).to(ACC)
        elif MODE == _CATEGORICAL:
            b_x = draw_index(b_o, o_k, outputs, b_u)
        else:
            if LOGITS:
                b_mean_at = draw_index(b_o, o_k, mixtures, b_u) + mixtures
            else:
                b_mean_at = tl.minimum((b_u * mixtures).to(tl.int32), mixtures - 1)
            b_mean = at_index(b_o, o_k, b_mean_at)
            b_log_scale = at_index(b_o, o_k, b_mean_at + mixtures)
            if MODE == _LOGISTIC:
                b_z = tl.log(b_z) - tl.log(1.0 - b_z)
            b_x = b_mean + tl.exp(b_log_scale) * b_z
        if p_given is not None:
            b_x = tl.where(given, b_value, b_x)
        tl.store(p_out + o_x, b_x, mask_r)
        if p_state is None and MODE != _CATEGORICAL:
            b_a += b_x[:, None] * b_w
        elif p_state is None:
            b_a += class_steps(p_step, b_x, o_h, mask_h, classes, hidden)
        else:
            for start in range(0, hidden, BH):
                mask = start + o_h < hidden
                if MODE == _CATEGORICAL:
                    b_step = class_steps(p_step + start, b_x, o_h, mask, classes, hidden)
                else:
                    b_row = tl.load(p_step + start + o_h, mask, other=0.0)
                    b_step = b_x[:, None] * b_row[None, :]
                mask_a = mask_r[:, None] & mask[None, :]
                p_a = p_state + o_state + start
                tl.store(p_a, tl.load(p_a, mask_a, other=0.0) + b_step, mask_a)
            tl.debug_barrier()


def _sample(
    W: Tensor,
    c: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    scale: Tensor | None,
    noise: Tensor,
    values: Tensor | None,
    given: Tensor | None,
    mode: int,
    mixtures: int = 0,
) -> Tensor:
    dtype = accumulator(W)
    rows, (hidden, size) = noise.shape[0], W.shape[:2]
    out_dtype = torch.int32 if mode == CATEGORICAL else dtype
    out = noise.new_empty((rows, size), dtype=out_dtype)
    if rows == 0:
        return out
    classes = W.shape[2] if W.ndim == 3 else 1
    # [D, C, H], [D, K, H] and [D, K]
    weight = W.reshape(hidden, size, classes).permute(1, 2, 0).to(dtype).contiguous()
    V = torch.cat([V.reshape(size, -1, hidden) for V, _ in layers], 1)
    b = torch.cat([b.reshape(size, -1) for _, b in layers], 1).to(dtype)
    outputs = V.shape[1]
    units = min(_UNITS, max(32, triton.next_power_of_2(hidden)))
    width = triton.next_power_of_2(outputs)
    tile = _TILE // 2 if dtype == torch.float64 else _TILE
    together = min(width, max(1, tile // units))
    br = spread(max(1, min(4, tile // (units * together), triton.next_power_of_2(rows))), rows)
    state = None if units >= hidden else noise.new_empty((rows, hidden), dtype=dtype)
    if given is not None and values is not None:
        values, given = values.to(out_dtype).contiguous(), numeric(given.contiguous())
    launch(
        nade_sample_kernel,
        (triton.cdiv(rows, br),),
        noise.to(dtype).contiguous(),
        weight,
        c.to(dtype).contiguous(),
        V,
        b,
        None if scale is None else scale.to(dtype).contiguous(),
        values,
        given,
        state,
        out,
        rows,
        size,
        hidden,
        classes,
        outputs,
        mixtures,
        MODE=mode,
        LOGITS=mixtures > 0 and outputs == 3 * mixtures,
        BR=br,
        NK=width // together,
        BK=together,
        BH=units,
        num_warps=max(1, min(8, br * together * units // 128)),
    )
    return out


def nade_sample_fwd(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    noise: Tensor,
    values: Tensor | None,
    given: Tensor | None,
) -> Tensor:
    if values is not None:
        values = values.to(accumulator(W))
        values = torch.where((values >= 0) & (values <= 1), values, float("nan"))
    return _sample(W, c, [(V, b)], None, noise, values, given, BERNOULLI)


def nade_categorical_sample_fwd(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    noise: Tensor,
    values: Tensor | None,
    given: Tensor | None,
) -> Tensor:
    return _sample(W, c, [(V, b)], None, noise, values, given, CATEGORICAL).long()


def rnade_sample_fwd(
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    activation_scale: Tensor | None,
    noise: Tensor,
    values: Tensor | None,
    given: Tensor | None,
    mixture: int,
) -> Tensor:
    layers = [(V_means, b_means), (V_log_scales, b_log_scales)]
    if V_logits is not None and b_logits is not None:
        layers.insert(0, (V_logits, b_logits))
    mixtures = V_means.shape[1]
    return _sample(W, c, layers, activation_scale, noise, values, given, mixture, mixtures)
