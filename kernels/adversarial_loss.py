"""Sums of loss terms over a discriminator's outputs, with their gradients in the same pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import accumulator, index_type, launch, per_program
from dgm_fast.kernels._loss_terms import loss_term
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _mean_part(
    p_v,
    p_g,
    size,
    chunk,
    CODE: tl.constexpr,
    ALPHA: tl.constexpr,
    PI: tl.constexpr,
    LOG_BASE: tl.constexpr,
    LOG_PI: tl.constexpr,
    LOG_REST: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
):
    """What this program's outputs add to the mean of a term; the gradient of that is stored."""
    ACC: tl.constexpr = p_g.dtype.element_ty
    SIGN: tl.constexpr = 1.0 if CODE > 0 else -1.0
    TERM: tl.constexpr = (CODE if CODE > 0 else -CODE) - 1
    first = tl.program_id(0).to(IDX) * chunk
    last = tl.minimum(first + chunk, size)
    scale = tl.full([], SIGN, tl.float64) / size
    b_sum = tl.zeros([BE], tl.float64)
    for start in range(first, last, BE):
        o_e = start + tl.arange(0, BE).to(IDX)
        mask = o_e < last
        b_v = tl.load(p_v + o_e, mask, other=0.0).to(ACC)
        b_value, b_slope = loss_term(b_v, TERM, ALPHA, PI, LOG_BASE, LOG_PI, LOG_REST)
        b_sum += tl.where(mask, b_value, 0.0)
        tl.store(p_g + o_e, b_slope * scale.to(ACC), mask)
    return tl.sum(b_sum, 0) * scale


@triton.jit
def adversarial_loss_fwd_kernel(
    p_fake,
    p_real,
    p_out,
    p_gf,
    p_gr,
    size_fake,
    size_real,
    chunk_fake,
    chunk_real,
    FAKE: tl.constexpr,
    REAL: tl.constexpr,
    ALPHA: tl.constexpr,
    PI: tl.constexpr,
    LOG_BASE: tl.constexpr,
    LOG_PI: tl.constexpr,
    LOG_REST: tl.constexpr,
    IDX: tl.constexpr,
    BE: tl.constexpr,
):
    part = _mean_part(
        p_fake,
        p_gf,
        size_fake,
        chunk_fake,
        FAKE,
        ALPHA,
        PI,
        LOG_BASE,
        LOG_PI,
        LOG_REST,
        IDX,
        BE,
    )
    if p_real is not None:
        part += _mean_part(
            p_real,
            p_gr,
            size_real,
            chunk_real,
            REAL,
            ALPHA,
            PI,
            LOG_BASE,
            LOG_PI,
            LOG_REST,
            IDX,
            BE,
        )
    tl.store(p_out + tl.program_id(0), part)


@triton.jit
def adversarial_loss_bwd_kernel(
    p_g, p_saved, p_grad, elements, ACC: tl.constexpr, IDX: tl.constexpr, BE: tl.constexpr
):
    o_e = tl.program_id(0).to(IDX) * BE + tl.arange(0, BE).to(IDX)
    mask = o_e < elements
    b_g = tl.load(p_g).to(ACC)
    tl.store(p_grad + o_e, tl.load(p_saved + o_e, mask, other=0.0).to(ACC) * b_g, mask)


def adversarial_loss_fwd(
    fake: Tensor, real: Tensor | None, fake_term: int, real_term: int, alpha: float, pi: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulator(fake, real)
    grad_fake = fake.new_empty(fake.shape, dtype=accumulator(fake))
    grad_real = grad_fake.new_empty(0)
    if real is not None:
        grad_real = real.new_empty(real.shape, dtype=accumulator(real))
    sizes = fake.numel(), 0 if real is None else real.numel()
    blocks = [triton.cdiv(size, _BLOCK) for size in sizes]
    together = per_program(max(blocks))
    programs = triton.cdiv(max(blocks), together)
    chunks = [triton.cdiv(count, programs) * _BLOCK for count in blocks]
    # A single program, which most batches are, stores the loss itself.
    out = fake.new_empty(programs, dtype=dtype if programs == 1 else torch.float64)
    launch(
        adversarial_loss_fwd_kernel,
        (programs,),
        fake.contiguous(),
        None if real is None else real.contiguous(),
        out,
        grad_fake,
        None if real is None else grad_real,
        *sizes,
        *chunks,
        FAKE=fake_term,
        REAL=real_term,
        ALPHA=alpha,
        PI=pi,
        LOG_BASE=math.log(1.0 - alpha) if alpha < 1.0 else 0.0,
        LOG_PI=math.log(pi),
        LOG_REST=math.log1p(-pi),
        IDX=index_type(*sizes),
        BE=_BLOCK,
        num_warps=4,
    )
    return out.sum().to(dtype) if programs > 1 else out.view(()), grad_fake, grad_real


def adversarial_loss_bwd(
    grad: Tensor,
    loss: Tensor,
    grad_fake: Tensor,
    grad_real: Tensor,
    fake: Tensor,
    real: Tensor | None,
    fake_term: int,
    real_term: int,
    alpha: float,
    pi: float,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    return (
        _scaled(grad, grad_fake, fake if mask[0] else None),
        _scaled(grad, grad_real, real if mask[1] else None),
    )


def _scaled(grad: Tensor, saved: Tensor, like: Tensor | None) -> Tensor:
    if like is None:
        return saved.new_empty(0)
    out = like.new_empty(like.shape)
    launch(
        adversarial_loss_bwd_kernel,
        (triton.cdiv(out.numel(), _BLOCK),),
        grad,
        saved,
        out,
        out.numel(),
        ACC=tl.float64 if saved.element_size() == 8 else tl.float32,
        IDX=index_type(out.numel()),
        BE=_BLOCK,
        num_warps=4,
    )
    return out
