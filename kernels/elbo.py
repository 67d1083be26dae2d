"""Evidence lower bound: decoder likelihood and analytic divergence of a sample in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from dgm_fast.kernels._layout import accumulator, index_type, launch, numeric
from dgm_fast.kernels.decoder import blocks_of, decoder_bwd, decoder_rows
from dgm_fast.kernels.divergence import gaussian_kl_bwd, gaussian_kl_rows
from torch import Tensor


@triton.jit
def elbo_fwd_kernel(
    p_out,
    p_olv,
    p_x,
    p_m,
    p_v,
    p_bound,
    rows,
    size,
    classes,
    latents,
    s_o0,
    s_oc,
    s_od,
    s_olv0,
    s_olvd,
    s_x0,
    s_xd,
    s_m0,
    s_md,
    s_v0,
    s_vd,
    beta: tl.float64,
    LIKELIHOOD: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    BL: tl.constexpr,
):
    ACC: tl.constexpr = p_bound.dtype.element_ty
    o_r = tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX)
    o_0 = o_r.to(tl.int64)[:, None]
    mask_row = o_0 < rows
    b_bound = decoder_rows(
        p_out,
        p_olv,
        p_x,
        o_0 * s_o0,
        o_0 * s_olv0,
        o_0 * s_x0,
        mask_row,
        size,
        classes,
        s_oc,
        s_od,
        s_olvd,
        s_xd,
        LIKELIHOOD,
        ACC,
        IDX,
        BR,
        BC,
        BD,
    )
    b_kl = gaussian_kl_rows(
        p_m,
        p_v,
        None,
        None,
        o_0 * s_m0,
        o_0 * s_v0,
        0,
        0,
        tl.arange(0, BL).to(IDX)[None, :],
        mask_row,
        latents,
        s_md,
        s_vd,
        0,
        0,
        ACC,
        BR,
        BL,
    )
    b_bound -= tl.full([BR], beta, tl.float64) * b_kl
    tl.store(p_bound + o_r, b_bound, o_r < rows)


def elbo_fwd(
    out: Tensor,
    out_log_var: Tensor | None,
    x: Tensor,
    mean: Tensor,
    log_var: Tensor,
    likelihood: int,
    beta: float,
) -> Tensor:
    rows, latents = mean.shape
    bound = out.new_empty(rows, dtype=accumulator(out, mean))
    if rows == 0:
        return bound
    x = numeric(x)
    blocks, classes, s_oc = blocks_of(likelihood, rows, out, latents)
    olv = (0, 0) if out_log_var is None else out_log_var.expand(out.shape).stride()
    size = out.shape[-1]
    launch(
        elbo_fwd_kernel,
        (triton.cdiv(rows, blocks["BR"]),),
        out,
        out_log_var,
        x,
        mean,
        log_var,
        bound,
        rows,
        size,
        classes,
        latents,
        out.stride(0),
        s_oc,
        out.stride(-1),
        *olv,
        *x.stride(),
        *mean.stride(),
        *log_var.stride(),
        beta,
        LIKELIHOOD=likelihood,
        IDX=index_type(rows, size * out.stride(-1), classes * s_oc, size * x.stride(1)),
        **blocks,
    )
    return bound


def elbo_bwd(
    grad: Tensor,
    out: Tensor,
    out_log_var: Tensor | None,
    x: Tensor,
    mean: Tensor,
    log_var: Tensor,
    likelihood: int,
    beta: float,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    decoder = decoder_bwd(grad, out, out_log_var, x, likelihood, mask[:3])
    if not any(mask[3:]):
        return *decoder, grad.new_empty(0), grad.new_empty(0)
    latent = gaussian_kl_bwd(
        grad, mean, log_var, None, None, 1, (mask[3], mask[4], False, False), scale=-beta
    )
    return *decoder, *latent[:2]
