"""Inversion of masked autoregressive networks in one pass: a program takes all dimensions of a few rows.

Dimensions come in blocks. What the hidden units and parameters of a block take from before it is a product
of tiles; what they take from within follows dimension by dimension, after each of which the units whose
degree became ready are evaluated. Inputs, units and parameters of a program's rows lie in memory of its
own, small enough for the cache: what one thread stores others load after a barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import accumulator, index_type, launch, numeric
from dgm_fast.kernels._math import exp_accurate, expm1, log1p, tanh
from dgm_fast.kernels._spline_math import spline_constants, spline_value
from dgm_fast.kernels.coupling import scale_of
from dgm_fast.kernels.nade_outputs import sigmoid
from dgm_fast.kernels.nade_sampling import at_index, draw_index
from torch import Tensor

# Codes of the op, as in ops/autoregressive.py.
_BERNOULLI, _CATEGORICAL, _AFFINE, _GAUSSIAN, _LOGISTIC, _ADJOINT, _SPLINE = range(7)
_ELEMENT_MAPS = (_BERNOULLI, _CATEGORICAL, _AFFINE, _GAUSSIAN, _LOGISTIC, _ADJOINT, _SPLINE)
BERNOULLI, CATEGORICAL, AFFINE, GAUSSIAN, LOGISTIC, ADJOINT, SPLINE = (
    tl.constexpr(code) for code in _ELEMENT_MAPS
)

# Rows of a program (32 spilled registers); steps of a block; columns and inner entries of its products.
_ROWS, _STEPS, _TILE = 16, 16, 32
# Products of a step that a program forms together; parameters of a dimension that it keeps in registers.
_PRODUCTS, _PARAMS = 4096, 16


@triton.jit
def activate(b_v, CODE: tl.constexpr, PARAMETER: tl.constexpr):
    """The activation of that code in ops.ACTIVATIONS."""
    if CODE == 0:
        b_h = b_v
    elif CODE == 1:
        b_h = tl.where(b_v < 0.0, 0.0, b_v)
    elif CODE == 2:
        b_h = tl.where(b_v < 0.0, b_v * PARAMETER, b_v)
    elif CODE == 3:
        b_low = tl.minimum(b_v, 0.0)
        b_h = tl.where(b_v < 0.0, expm1(b_low, tl.exp(b_low)) * PARAMETER, b_v)
    elif CODE == 4:
        b_h = tanh(b_v)
    elif CODE == 5:
        b_h, _ = sigmoid(b_v)
    elif CODE == 6:
        b_s, _ = sigmoid(b_v)
        b_h = b_v * b_s
    elif CODE == 7:
        b_h = tl.maximum(b_v, 0.0) + log1p(tl.exp(-tl.abs(b_v)))
    else:
        b_h = 0.5 * b_v * (1.0 + tl.erf(b_v * 0.7071067811865476))
    return b_h


@triton.jit
def add_earlier(
    b_sum, p_in, o_r, p_w, inputs, end, mask_r, o_n, mask_n, IDX: tl.constexpr, BK: tl.constexpr
):
    """The products of a layer's first ``end`` inputs and rows o_n [BN] of its weight, added to [BR, BN].

    Inputs of the rows lie at p_in + o_r [BR].
    """
    o_w = o_n.to(IDX)[None, :] * inputs
    for start in range(0, end, BK):
        o_k = start + tl.arange(0, BK)
        mask_k = o_k < end
        p_k = p_in + (o_r[:, None] + o_k[None, :])
        b_in = tl.load(p_k, mask_r[:, None] & mask_k[None, :], other=0.0)
        b_w = tl.load(p_w + (o_w + o_k[:, None]), mask_n[None, :] & mask_k[:, None], other=0.0)
        b_sum = tl.dot(b_in, b_w, b_sum, input_precision="ieee", out_dtype=b_sum.dtype)
    return b_sum


@triton.jit
def add_recent(
    b_sum,
    p_in,
    o_r,
    p_w,
    inputs,
    begin,
    end,
    mask_r,
    o_n,
    mask_n,
    IDX: tl.constexpr,
    BK: tl.constexpr,
):
    """The same of the inputs from ``begin`` to ``end``, which are few."""
    o_w = o_n.to(IDX)[:, None] * inputs
    for start in range(begin, end, BK):
        o_k = start + tl.arange(0, BK)
        mask_k = o_k < end
        p_k = p_in + (o_r[:, None] + o_k[None, :])
        b_in = tl.load(p_k, mask_r[:, None] & mask_k[None, :], other=0.0)
        b_w = tl.load(p_w + (o_w + o_k[None, :]), mask_n[:, None] & mask_k[None, :], other=0.0)
        b_sum += tl.sum(b_in[:, None, :] * b_w[None, :, :], 2)
    return b_sum


@triton.jit
def known_inputs(p_ready, size, step, LAYER: tl.constexpr, FEATURES: tl.constexpr):
    """How many inputs of a layer are of the first ``step`` dimensions or of units of a lower degree."""
    return step * FEATURES if LAYER == 0 else tl.load(p_ready + (LAYER - 1) * (size + 1) + step)


@triton.jit
def draw_component(b_o, o_p, b_u, COMPONENTS: tl.constexpr, LOGITS: tl.constexpr):
    """Mean and log-scale of a component drawn by its weight, from parameters [BR, BP]."""
    if LOGITS:
        b_at = draw_index(b_o, o_p, COMPONENTS, b_u) + COMPONENTS
    else:
        b_at = tl.minimum((b_u * COMPONENTS).to(tl.int32), COMPONENTS - 1)
    return at_index(b_o, o_p, b_at), at_index(b_o, o_p, b_at + COMPONENTS)


@triton.jit
def autoregressive_inverse_kernel(
    p_z,
    p_w,
    p_scratch,
    p_ready,
    p_order,
    p_values,
    p_given,
    p_x,
    p_log_det,
    rows,
    size,
    s_scratch,
    LAYERS: tl.constexpr,
    INPUTS: tl.constexpr,
    WEIGHT_AT: tl.constexpr,
    UNIT_AT: tl.constexpr,
    GATES: tl.constexpr,
    FEATURES: tl.constexpr,
    OUTPUTS: tl.constexpr,
    NOISES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PARAMETER: tl.constexpr,
    TRANSFORM: tl.constexpr,
    SCALE_MAP: tl.constexpr,
    CLAMP: tl.constexpr,
    LOGITS: tl.constexpr,
    LOGIT_SCALE: tl.constexpr,
    INVERSE: tl.constexpr,
    TAILS: tl.constexpr,
    BINS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    MIN: tl.constexpr,
    LOW_OUT: tl.constexpr,
    HIGH_OUT: tl.constexpr,
    MIN_OUT: tl.constexpr,
    SHARES: tl.constexpr,
    CLIP: tl.constexpr,
    ENDS: tl.constexpr,
    MAP: tl.constexpr,
    OFFSET: tl.constexpr,
    SCALE: tl.constexpr,
    SLOPE_CLIP: tl.constexpr,
    MIN_SLOPE: tl.constexpr,
    END_SLOPE: tl.constexpr,
    TOGETHER: tl.constexpr,
    STEPS: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BU: tl.constexpr,
    BUK: tl.constexpr,
    BP: tl.constexpr,
    BPN: tl.constexpr,
    BPK: tl.constexpr,
    BF: tl.constexpr,
    BB: tl.constexpr,
):
    """x_d = map(z_d; parameters(x before d)) of BR rows, for all d.

    A row of scratch holds the inputs, the units of all layers, which begin with their biases, and with
    GATES factors of the hidden ones. ``ready`` [layers, size + 1] counts the units of a degree below each
    step. The first LAYERS entries of the tables are hidden layers, the last is the output layer; what layer
    l hears lies at UNIT_AT[l] of a row. With TOGETHER the parameters of a dimension stay in registers.
    """
    ACC: tl.constexpr = p_z.dtype.element_ty
    first_row = (tl.program_id(0) * BR).to(tl.int64)
    p_scratch += first_row * s_scratch
    mask_r = first_row + tl.arange(0, BR) < rows
    o_r = tl.arange(0, BR) * s_scratch
    o_p = tl.arange(0, BP)
    o_f = tl.arange(0, BF)
    b_total = tl.zeros([BR], tl.float64)
    for begin in range(0, size, STEPS):
        end = tl.minimum(begin + STEPS, size)
        # What the block takes from units and inputs before it.
        for layer in tl.static_range(LAYERS + 1):
            known = known_inputs(p_ready, size, begin, layer, FEATURES)
            if layer < LAYERS:
                first = known_inputs(p_ready, size, begin, layer + 1, FEATURES)
                last = known_inputs(p_ready, size, end, layer + 1, FEATURES)
            else:
                first = begin * OUTPUTS
                last = end * OUTPUTS
            for start in range(first, last, BN):
                o_n = start + tl.arange(0, BN)
                mask_n = o_n < last
                mask = mask_r[:, None] & mask_n[None, :]
                p_units = p_scratch + UNIT_AT[layer + 1] + (o_r[:, None] + o_n[None, :])
                b_sum = add_earlier(
                    tl.load(p_units, mask, other=0.0),
                    p_scratch + UNIT_AT[layer],
                    o_r,
                    p_w + WEIGHT_AT[layer],
                    INPUTS[layer],
                    known,
                    mask_r,
                    o_n,
                    mask_n,
                    IDX,
                    BK,
                )
                tl.store(p_units, b_sum, mask)
        tl.debug_barrier()
        for step in range(begin, end):
            d = step if p_order is None else tl.load(p_order + step)
            o_d = (first_row + tl.arange(0, BR)) * size + d
            # A hidden layer's units of degree ``step`` hear such units as well, an output does too.
            for layer in tl.static_range(LAYERS):
                now = step if layer == 0 else step + 1
                first = known_inputs(p_ready, size, step, layer + 1, FEATURES)
                last = known_inputs(p_ready, size, step + 1, layer + 1, FEATURES)
                for start in range(first, last, BU):
                    o_n = start + tl.arange(0, BU)
                    mask_n = o_n < last
                    mask = mask_r[:, None] & mask_n[None, :]
                    p_units = p_scratch + UNIT_AT[layer + 1] + (o_r[:, None] + o_n[None, :])
                    b_sum = add_recent(
                        tl.load(p_units, mask, other=0.0),
                        p_scratch + UNIT_AT[layer],
                        o_r,
                        p_w + WEIGHT_AT[layer],
                        INPUTS[layer],
                        known_inputs(p_ready, size, begin, layer, FEATURES),
                        known_inputs(p_ready, size, now, layer, FEATURES),
                        mask_r,
                        o_n,
                        mask_n,
                        IDX,
                        BUK,
                    )
                    if GATES:
                        b_sum *= tl.load(
                            p_units + (UNIT_AT[LAYERS + 2] - UNIT_AT[1]), mask, other=0.0
                        )
                    else:
                        b_sum = activate(b_sum, ACTIVATION, PARAMETER)
                    tl.store(p_units, b_sum, mask)
                tl.debug_barrier()
            before = known_inputs(p_ready, size, begin, LAYERS, FEATURES)
            known = known_inputs(p_ready, size, step if LAYERS == 0 else step + 1, LAYERS, FEATURES)
            p_params = p_scratch + UNIT_AT[LAYERS + 1] + step * OUTPUTS
            p_step = p_w + WEIGHT_AT[LAYERS] + tl.full([1], step * OUTPUTS, IDX) * INPUTS[LAYERS]
            mask_p = mask_r[:, None] & (o_p < OUTPUTS)[None, :]
            if TOGETHER:
                b_o = add_recent(
                    tl.load(p_params + (o_r[:, None] + o_p[None, :]), mask_p, other=0.0),
                    p_scratch + UNIT_AT[LAYERS],
                    o_r,
                    p_step,
                    INPUTS[LAYERS],
                    before,
                    known,
                    mask_r,
                    o_p,
                    o_p < OUTPUTS,
                    IDX,
                    BPK,
                )
            else:
                for start in range(0, OUTPUTS, BPN):
                    o_n = start + tl.arange(0, BPN)
                    mask_n = o_n < OUTPUTS
                    mask = mask_r[:, None] & mask_n[None, :]
                    p_some = p_params + (o_r[:, None] + o_n[None, :])
                    b_sum = add_recent(
                        tl.load(p_some, mask, other=0.0),
                        p_scratch + UNIT_AT[LAYERS],
                        o_r,
                        p_step,
                        INPUTS[LAYERS],
                        before,
                        known,
                        mask_r,
                        o_n,
                        mask_n,
                        IDX,
                        BPK,
                    )
                    if TRANSFORM == SPLINE:
                        b_sum = tl.where((o_n < 2 * BINS)[None, :], b_sum * LOGIT_SCALE, b_sum)
                    tl.store(p_some, b_sum, mask)
                tl.debug_barrier()
                if TRANSFORM != SPLINE:
                    b_o = tl.load(p_params + (o_r[:, None] + o_p[None, :]), mask_p, other=0.0)
            b_z = tl.load(p_z + o_d * NOISES, mask_r, other=0.5)
            b_log = tl.zeros([BR], ACC)
            if TRANSFORM == BERNOULLI:
                b_p, _ = sigmoid(at_index(b_o, o_p[None, :], tl.zeros([BR], tl.int32)))
                b_x = tl.where(b_z < b_p, 1.0, 0.0).to(ACC)
            elif TRANSFORM == CATEGORICAL:
                b_x = draw_index(b_o, o_p[None, :], OUTPUTS, b_z)
            elif TRANSFORM == AFFINE:
                b_shift = at_index(b_o, o_p[None, :], tl.zeros([BR], tl.int32))
                b_u = at_index(b_o, o_p[None, :], tl.full([BR], 1, tl.int32))
                b_log, _ = scale_of(b_u, SCALE_MAP, CLAMP)
                if INVERSE:
                    b_log = -b_log
                    b_x = (b_z - b_shift) * exp_accurate(b_log)
                else:
                    b_x = b_z * exp_accurate(b_log) + b_shift
            elif TRANSFORM == ADJOINT:
                b_o = at_index(b_o, o_p[None, :], tl.zeros([BR], tl.int32))
                b_x = (b_z - b_o) * tl.load(p_z + o_d * NOISES + 1, mask_r, other=0.0)
            elif TRANSFORM == SPLINE:
                p_row = p_params + o_r
                b_x, b_log = spline_value(
                    b_z,
                    p_row + BINS if INVERSE else p_row,
                    p_row if INVERSE else p_row + BINS,
                    p_row + 2 * BINS,
                    1,
                    1,
                    1,
                    mask_r,
                    tl.full([BR], (LOW + HIGH) / 2, ACC),
                    tl.full([BR], HIGH - LOW, ACC),
                    tl.full([BR], (LOW_OUT + HIGH_OUT) / 2, ACC),
                    tl.full([BR], HIGH_OUT - LOW_OUT, ACC),
                    INVERSE,
                    TAILS,
                    BINS,
                    MIN,
                    MIN_OUT,
                    SHARES,
                    CLIP,
                    ENDS,
                    MAP,
                    OFFSET,
                    SCALE,
                    SLOPE_CLIP,
                    MIN_SLOPE,
                    END_SLOPE,
                    ACC,
                    BB,
                )
            else:
                COMPONENTS: tl.constexpr = OUTPUTS // 3 if LOGITS else OUTPUTS // 2
                b_mean, b_scale = draw_component(b_o, o_p[None, :], b_z, COMPONENTS, LOGITS)
                b_s = tl.load(p_z + o_d * NOISES + 1, mask_r, other=0.5)
                if TRANSFORM == LOGISTIC:
                    b_s = tl.log(b_s) - tl.log(1.0 - b_s)
                b_x = b_mean + exp_accurate(b_scale) * b_s
            if p_given is not None:
                given = tl.load(p_given + o_d, mask_r, other=0) != 0
                b_x = tl.where(given, tl.load(p_values + o_d, mask_r & given, other=0), b_x)
                b_log = tl.where(given, 0.0, b_log)
            b_total += b_log.to(tl.float64)
            tl.store(p_x + o_d, b_x, mask_r)
            p_new = p_scratch + step * FEATURES + (o_r[:, None] + o_f[None, :])
            mask = mask_r[:, None] & (o_f < FEATURES)[None, :]
            if TRANSFORM == CATEGORICAL:
                tl.store(p_new, tl.where(b_x[:, None] == o_f[None, :], 1.0, 0.0).to(ACC), mask)
            elif TRANSFORM == ADJOINT:
                p_factor = p_z + (o_d * NOISES + 2)[:, None] + o_f[None, :]
                tl.store(p_new, b_x[:, None] * tl.load(p_factor, mask, other=0.0), mask)
            else:
                tl.store(p_new, b_x[:, None] + tl.zeros([BR, BF], ACC), mask)
            tl.debug_barrier()
    if p_log_det is not None:
        tl.store(p_log_det + first_row + tl.arange(0, BR), b_total, mask_r)


def _ready(degrees: Sequence[Tensor], size: int) -> Tensor:
    """Units of a degree below 0, ..., size of every hidden layer, [layers, size + 1]."""
    steps = torch.arange(size + 1, device=degrees[0].device)
    counts = [torch.searchsorted(d.contiguous(), steps) for d in degrees]
    return torch.stack(counts).to(torch.int32)


def _scratch(
    rows: int, inputs: int, biases: Sequence[Tensor], gates: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """A row holds the inputs, not written yet, the units of all layers, biases yet, and gates."""
    parts = [biases[0].new_empty((rows, inputs), dtype=dtype), *biases, *gates]
    return torch.cat([part.to(dtype).expand(rows, -1) for part in parts], 1)


def _map_constants(
    transform: int, modes: Sequence[int], options: Sequence[float], inverse: bool, outputs: int
) -> dict[str, Any]:
    spline = transform == _SPLINE
    ends, tails, parameterization = modes if spline else (0, 1, 0)
    values = options if spline else (0.0, 1.0, 0.0, 1.0, 1e-3, 1e-3, 1e-3, 1.0)
    names = ("left", "right", "bottom", "top", "min_bin_width", "min_bin_height", "min_derivative")
    shape: dict[str, Any] = dict(zip(names, values, strict=False))
    shape |= {"ends": ends, "parameterization": parameterization, "inverse": inverse}
    affine = transform == _AFFINE
    return {
        "TRANSFORM": transform,
        "SCALE_MAP": modes[0] if affine else 0,
        "CLAMP": options[0] if affine else 1.0,
        "LOGITS": transform in (_GAUSSIAN, _LOGISTIC) and modes[0] == 0,
        "LOGIT_SCALE": values[7],
        "TAILS": tails == 1,
        **spline_constants(shape, (outputs + 1 - ends) // 3 if spline else 1),
    }


def _blocks(
    size: int, units: Sequence[int], outputs: int, features: int, constants: dict[str, Any]
) -> dict[str, Any]:
    together = outputs <= _PARAMS and constants["TRANSFORM"] != _SPLINE
    params = triton.next_power_of_2(outputs)
    # Units that become ready at a time, on average.
    of_step = max((triton.cdiv(n, size) for n in units[:-1]), default=1)
    of_step = min(16, triton.next_power_of_2(of_step))
    of_params = params if together else min(_PARAMS, params)
    return {
        "TOGETHER": together,
        "STEPS": _STEPS,
        "BR": _ROWS,
        "BN": _TILE,
        "BK": _TILE,
        "BU": of_step,
        "BUK": max(16, min(64, _PRODUCTS // (_ROWS * of_step))),
        "BP": params,
        "BPN": of_params,
        "BPK": max(16, min(64, _PRODUCTS // (_ROWS * of_params))),
        "BF": triton.next_power_of_2(features),
        "BB": triton.next_power_of_2(max(2, constants["BINS"])),
    }


def autoregressive_inverse_fwd(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    gates: Sequence[Tensor],
    order: Tensor | None,
    activation: int,
    activation_parameter: float,
    transform: int,
    modes: Sequence[int],
    options: Sequence[float],
    inverse: bool,
    values: Tensor | None,
    given: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = accumulator(z, *weights)
    rows, size = z.shape[:2]
    units, inputs = ([w.shape[i] for w in weights] for i in range(2))
    features, outputs = inputs[0] // size, units[-1] // size
    categorical = transform == _CATEGORICAL
    x = z.new_empty((rows, size), dtype=torch.int64 if categorical else dtype)
    with_log_det = transform in (_AFFINE, _SPLINE)
    log_det = z.new_empty(rows if with_log_det else 0, dtype=dtype)
    if rows == 0:
        return x, log_det
    if values is not None and given is not None:
        if categorical:
            values = values.to(torch.int32).clamp(0, features - 1)
        elif transform == _BERNOULLI:
            values = torch.where((values >= 0) & (values <= 1), values, float("nan"))
        values = values.to(torch.int32 if categorical else dtype).contiguous()
        given = numeric(given.contiguous())
    layers = len(degrees)
    flat = torch.cat([w.to(dtype).reshape(-1) for w in weights])
    scratch = _scratch(rows, inputs[0], biases, gates, dtype)
    constants = _map_constants(transform, modes, options, inverse, outputs)
    blocks = _blocks(size, units, outputs, features, constants)
    launch(
        autoregressive_inverse_kernel,
        (triton.cdiv(rows, blocks["BR"]),),
        z.to(dtype).contiguous(),
        flat,
        scratch,
        _ready(degrees, size) if layers else None,
        None if order is None else order.contiguous(),
        values,
        given,
        x,
        log_det if with_log_det else None,
        rows,
        size,
        scratch.shape[1],
        LAYERS=layers,
        INPUTS=tuple(inputs),
        WEIGHT_AT=(0, *accumulate(w.numel() for w in weights[:-1])),
        UNIT_AT=(0, *accumulate([inputs[0], *units])),
        GATES=len(gates) > 0,
        IDX=index_type(flat.numel()),
        FEATURES=features,
        OUTPUTS=outputs,
        NOISES=z.shape[2] if z.ndim == 3 else 1,
        ACTIVATION=activation,
        PARAMETER=activation_parameter,
        num_warps=4,
        num_stages=2,
        # A program waits for itself: registers in place of others beside it.
        maxnreg=255,
        **constants,
        **blocks,
    )
    return x, log_det
