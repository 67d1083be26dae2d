"""Importance-weighted bound: log-weights of all samples in one pass, then a reduction over [B, K]."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from dgm_fast.kernels._layout import accumulator, index_type, launch, numeric, warps
from dgm_fast.kernels._math import LOG_2PI, exp_accurate, wide_sum
from dgm_fast.kernels.decoder import blocks_of, decoder_bwd, decoder_rows
from dgm_fast.kernels.log_mean_exp import log_mean_exp_bwd, log_mean_exp_fwd
from torch import Tensor


@triton.jit
def iwae_bound_fwd_kernel(
    p_out,
    p_olv,
    p_x,
    p_z,
    p_m,
    p_v,
    p_prior,
    p_logw,
    rows,
    samples,
    size,
    classes,
    latents,
    s_o0,
    s_o1,
    s_oc,
    s_od,
    s_olv0,
    s_olv1,
    s_olvd,
    s_x0,
    s_xd,
    s_z0,
    s_z1,
    s_zd,
    s_m0,
    s_md,
    s_v0,
    s_vd,
    s_p0,
    s_p1,
    LIKELIHOOD: tl.constexpr,
    IDX: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    BL: tl.constexpr,
):
    """Log-weights log p(x | z) + log p(z) - log q(z | x) of the samples (b, k); x, m, v are read per b."""
    ACC: tl.constexpr = p_logw.dtype.element_ty
    o_r = tl.program_id(0).to(IDX) * BR + tl.arange(0, BR).to(IDX)
    o_0 = (o_r // samples).to(tl.int64)[:, None]
    o_1 = (o_r % samples).to(tl.int64)[:, None]
    mask_row = (o_r < rows)[:, None]
    b_logw = decoder_rows(
        p_out,
        p_olv,
        p_x,
        o_0 * s_o0 + o_1 * s_o1,
        o_0 * s_olv0 + o_1 * s_olv1,
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
    b_sum = tl.zeros([BR, BL], ACC)
    for start in range(0, latents, BL):
        o_l = (start + tl.arange(0, BL)).to(IDX)[None, :]
        mask = mask_row & (o_l < latents)
        b_z = tl.load(p_z + o_0 * s_z0 + o_1 * s_z1 + o_l * s_zd, mask, other=0.0).to(ACC)
        b_m = tl.load(p_m + o_0 * s_m0 + o_l * s_md, mask, other=0.0).to(ACC)
        b_v = tl.load(p_v + o_0 * s_v0 + o_l * s_vd, mask, other=0.0).to(ACC)
        b_diff = b_z - b_m
        b_sum += b_v + b_diff * b_diff * exp_accurate(-b_v)
        if p_prior is None:
            b_sum -= b_z * b_z
    b_logw += 0.5 * wide_sum(b_sum)
    if p_prior is not None:
        # With the standard normal prior the constants of p(z) and q(z | x) cancel.
        o_p = o_0 * s_p0 + o_1 * s_p1
        b_prior = tl.load(p_prior + o_p, mask_row, other=0.0).to(tl.float64)
        b_logw += tl.sum(b_prior, 1) + 0.5 * latents * tl.full([BR], LOG_2PI, tl.float64)
    tl.store(p_logw + o_r, b_logw, o_r < rows)


@triton.jit
def iwae_bound_bwd_kernel(
    p_c,
    p_z,
    p_m,
    p_v,
    p_gz,
    p_gm,
    p_gv,
    samples,
    latents,
    chunk,
    chunks,
    s_z0,
    s_z1,
    s_zd,
    s_m0,
    s_md,
    s_v0,
    s_vd,
    NORMAL_PRIOR: tl.constexpr,
    BK: tl.constexpr,
    BL: tl.constexpr,
):
    """The latent part of the backward, for c = dbound/dlog_w and t = (z - m) e^-v:

    dz = c (t - [z of a standard normal prior]), dm = -sum_k c t, dv = sum_k c (1 - (z - m) t) / 2.
    """
    ACC: tl.constexpr = p_c.dtype.element_ty
    o_p = tl.program_id(0)
    o_0 = (o_p // chunks).to(tl.int64)
    first = (o_p % chunks) * chunk
    o_l = (tl.program_id(1) * BL + tl.arange(0, BL))[None, :]
    b_m = tl.load(p_m + o_0 * s_m0 + o_l * s_md, o_l < latents, other=0.0).to(ACC)
    b_v = tl.load(p_v + o_0 * s_v0 + o_l * s_vd, o_l < latents, other=0.0).to(ACC)
    b_inverse = exp_accurate(-b_v)
    b_sum_m = tl.zeros([BK, BL], ACC)
    b_sum_v = tl.zeros([BK, BL], ACC)
    for start in range(first, tl.minimum(first + chunk, samples), BK):
        o_k = (start + tl.arange(0, BK)).to(tl.int64)[:, None]
        mask = (o_k < samples) & (o_l < latents)
        b_c = tl.load(p_c + o_0 * samples + o_k, o_k < samples, other=0.0)
        used = mask & (b_c != 0.0)
        b_z = tl.load(p_z + o_0 * s_z0 + o_k * s_z1 + o_l * s_zd, used, other=0.0).to(ACC)
        b_diff = b_z - b_m
        b_t = b_diff * b_inverse
        # A sample without weight adds nothing, whatever its distance from the mean.
        b_ct = tl.where(used, b_c * b_t, 0.0)
        if p_gz is not None:
            b_gz = b_ct
            if NORMAL_PRIOR:
                b_gz -= b_c * b_z
            tl.store(p_gz + (o_0 * samples + o_k) * latents + o_l, b_gz, mask)
        b_sum_m += b_ct
        b_sum_v += tl.where(used, b_c - b_ct * b_diff, 0.0)
    o_sum = o_p.to(tl.int64) * latents + tl.program_id(1) * BL + tl.arange(0, BL)
    mask_sum = tl.program_id(1) * BL + tl.arange(0, BL) < latents
    if p_gm is not None:
        tl.store(p_gm + o_sum, -tl.sum(b_sum_m, 0), mask_sum)
    if p_gv is not None:
        tl.store(p_gv + o_sum, 0.5 * tl.sum(b_sum_v, 0), mask_sum)


def iwae_bound_fwd(
    out: Tensor,
    out_log_var: Tensor | None,
    x: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    log_prior: Tensor | None,
    likelihood: int,
    stop_score: bool,
) -> tuple[Tensor, Tensor]:
    batch, samples, latents = z.shape
    rows = batch * samples
    log_w = z.new_empty((batch, samples), dtype=accumulator(out, z))
    if rows == 0:
        return log_mean_exp_fwd(log_w, 1), log_w
    x = numeric(x)
    blocks, classes, s_oc = blocks_of(likelihood, rows, out, latents)
    olv = (0, 0, 0) if out_log_var is None else out_log_var.expand(out.shape).stride()
    size = out.shape[-1]
    launch(
        iwae_bound_fwd_kernel,
        (triton.cdiv(rows, blocks["BR"]),),
        out,
        out_log_var,
        x,
        z,
        mean,
        log_var,
        log_prior,
        log_w,
        rows,
        samples,
        size,
        classes,
        latents,
        out.stride(0),
        out.stride(1),
        s_oc,
        out.stride(-1),
        *olv,
        *x.stride(),
        *z.stride(),
        *mean.stride(),
        *log_var.stride(),
        *((0, 0) if log_prior is None else log_prior.stride()),
        LIKELIHOOD=likelihood,
        IDX=index_type(rows, size * out.stride(-1), classes * s_oc, size * x.stride(1)),
        **blocks,
    )
    return log_mean_exp_fwd(log_w, 1), log_w


def iwae_bound_bwd(
    grad: Tensor,
    bound: Tensor,
    log_w: Tensor,
    out: Tensor,
    out_log_var: Tensor | None,
    x: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    log_prior: Tensor | None,
    likelihood: int,
    stop_score: bool,
    mask: Sequence[bool],
) -> tuple[Tensor, ...]:
    # dbound/dlog_w, [B, K]: the normalised weights times the incoming gradient.
    weight = log_mean_exp_bwd(grad, bound, log_w, 1, (True,))
    decoder = decoder_bwd(weight, out, out_log_var, x, likelihood, mask[:3])
    need_z, need_mean, need_log_var, need_prior = mask[3:]
    g_prior = weight.new_empty(0)
    if need_prior and log_prior is not None:
        g_prior = weight.to(log_prior.dtype)
    g_z = z.new_empty(z.shape if need_z else 0)
    g_mean, g_log_var = (
        t.new_zeros(t.shape if needed else 0)
        for t, needed in ((mean, need_mean and stop_score), (log_var, need_log_var and stop_score))
    )
    need_mean, need_log_var = need_mean and not stop_score, need_log_var and not stop_score
    if need_z or need_mean or need_log_var:
        partials = _latent_bwd(
            weight, z, mean, log_var, log_prior, g_z if need_z else None, need_mean, need_log_var
        )
        if need_mean:
            g_mean = partials[0]
        if need_log_var:
            g_log_var = partials[1]
    return *decoder, g_z, g_mean, g_log_var, g_prior


def _latent_bwd(
    weight: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    log_prior: Tensor | None,
    g_z: Tensor | None,
    need_mean: bool,
    need_log_var: bool,
) -> list[Tensor]:
    """Fills g_z; returns the gradients of mean and log_var (empty where not needed)."""
    batch, samples, latents = z.shape
    needed = ((mean, need_mean), (log_var, need_log_var))
    if z.numel() == 0:
        return [t.new_zeros(t.shape if n else 0) for t, n in needed]
    bl = min(triton.next_power_of_2(latents), 256)
    bk = min(triton.next_power_of_2(samples), 1024 // bl)
    blocks = triton.cdiv(latents, bl)
    # A batch too small to fill the device splits the samples of a row, each part with its own sums.
    chunks = max(1, min(1024 // (batch * blocks), samples // bk))
    chunk = bk * triton.cdiv(triton.cdiv(samples, chunks), bk)
    chunks = triton.cdiv(samples, chunk)
    sums = [
        weight.new_empty((batch, chunks, latents)) if n and chunks > 1
        else t.new_empty(t.shape) if n
        else None
        for t, n in needed
    ]  # fmt: skip
    launch(
        iwae_bound_bwd_kernel,
        (batch * chunks, blocks),
        weight,
        z,
        mean,
        log_var,
        g_z,
        *sums,
        samples,
        latents,
        chunk,
        chunks,
        *z.stride(),
        *mean.stride(),
        *log_var.stride(),
        NORMAL_PRIOR=log_prior is None,
        BK=bk,
        BL=bl,
        num_warps=warps(bk * bl),
    )
    return [
        t.new_empty(0) if s is None else s.sum(1).to(t.dtype) if s.ndim == 3 else s
        for (t, _), s in zip(needed, sums, strict=True)
    ]
