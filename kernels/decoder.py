"""The decoder's part of the variational bounds: the likelihood of a sample, chosen at compile time.

The backward is the likelihood's own backward kernel with the samples' weights as its incoming gradient:
it reads each input once and writes each gradient once.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from dgm_fast.kernels._layout import tile, warps
from dgm_fast.kernels.bernoulli import bernoulli_log_prob_bwd, bernoulli_rows
from dgm_fast.kernels.categorical import categorical_log_prob_bwd, categorical_rows, class_tile
from dgm_fast.kernels.gaussian import gaussian_log_prob_bwd, gaussian_rows
from torch import Tensor

BERNOULLI, GAUSSIAN, CATEGORICAL = 0, 1, 2
_BERNOULLI = tl.constexpr(BERNOULLI)
_GAUSSIAN = tl.constexpr(GAUSSIAN)


@triton.jit
def decoder_rows(
    p_out,
    p_olv,
    p_x,
    o_out,
    o_olv,
    o_x,
    mask_row,
    size,
    classes,
    s_oc,
    s_od,
    s_olvd,
    s_xd,
    LIKELIHOOD: tl.constexpr,
    ACC: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    """log p(x | z) of the rows [BR, 1] at offsets o_* -> [BR]."""
    o_d = tl.arange(0, BD).to(IDX)[None, :]
    if LIKELIHOOD == _BERNOULLI:
        b_log_prob = bernoulli_rows(
            p_out + o_out, p_x + o_x, o_d, mask_row, size, s_od, s_xd, ACC, BR, BD
        )
    elif LIKELIHOOD == _GAUSSIAN:
        b_log_prob = gaussian_rows(
            p_x,
            p_out,
            p_olv,
            o_x,
            o_out,
            o_olv,
            o_d,
            mask_row,
            size,
            s_xd,
            s_od,
            s_olvd,
            ACC,
            BR,
            BD,
        )
    else:
        b_log_prob = categorical_rows(
            p_out + o_out,
            p_x + o_x,
            o_d,
            mask_row,
            size,
            classes,
            s_oc,
            s_od,
            s_xd,
            ACC,
            IDX,
            BR,
            BC,
            BD,
        )
    return b_log_prob


def blocks_of(
    likelihood: int, rows: int, out: Tensor, latents: int
) -> tuple[dict[str, int], int, int]:
    """Block sizes and warps of a forward kernel; number and stride of classes."""
    size, classes, s_oc = out.shape[-1], 1, 0
    if likelihood == CATEGORICAL:
        classes, s_oc = out.shape[-2], out.stride(-2)
        br, bc, bd = class_tile(rows, size, classes, out.stride(-1), s_oc)
        num_warps = warps(br * bc * bd)
    else:
        br, bd, num_warps = tile(rows, size)
        bc = 1
    bl = min(triton.next_power_of_2(max(latents, 1)), max(2048 // br, 1), 512)
    return {"BR": br, "BC": bc, "BD": bd, "BL": bl, "num_warps": num_warps}, classes, s_oc


def decoder_bwd(
    weight: Tensor,
    out: Tensor,
    out_log_var: Tensor | None,
    x: Tensor,
    likelihood: int,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (out, out_log_var, x) from those of the log-likelihoods [B] or [B, K]."""
    need_out, need_log_var, need_x = mask
    empty = weight.new_empty(0)
    if not any(mask):
        return empty, empty, empty
    data = x if weight.ndim == 1 else x.unsqueeze(1)
    g_log_var = g_x = empty
    if likelihood == BERNOULLI:
        g_out, g_x = bernoulli_log_prob_bwd(weight, out, data, 1, (need_out, need_x))
    elif likelihood == GAUSSIAN:
        g_x, g_out, g_log_var = gaussian_log_prob_bwd(
            weight, data, out, out_log_var, 1, (need_x, need_out, need_log_var)
        )
    else:
        g_out = categorical_log_prob_bwd(weight, out, data, out.ndim - 2, 1, (need_out,))
    return g_out, g_log_var, g_x.reshape(x.shape) if need_x else g_x
