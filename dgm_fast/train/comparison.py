"""The measurements of the demo: one training step in several variants, interleaved on one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.ops import backend
from dgm_fast.train.measure import (
    Seconds,
    Spread,
    interleaved,
    peak_bytes,
    saved_bytes,
    time_shares,
    timed_step,
)

GROUPS = {
    "matrix products": ("aten::addmm", "aten::mm", "aten::linear", "aten::matmul"),
    "fused dgm_fast ops": ("dgm_fast::",),
    "log-softmax and class likelihood": (
        "aten::_log_softmax",
        "aten::log_softmax",
        "aten::nll_loss",
        "aten::cross_entropy",
    ),
    "copies": ("aten::copy_", "aten::clone", "aten::contiguous"),
    "activations": ("aten::relu", "aten::clamp_min", "aten::threshold_backward"),
    "random numbers": ("aten::normal_", "aten::randn"),
    "optimizer": ("Optimizer", "aten::_foreach", "aten::_fused_adam"),
}


@dataclass
class Variant:
    """One way of running the same training step.

    ``times`` holds "step", "loss and backward" (without the optimizer) and "bound" (forward and
    backward of the bound alone, on fixed decoder outputs).
    """

    name: str
    backend: str
    compiled: bool
    times: dict[str, Spread] = field(default_factory=dict)
    saved: int = 0
    peak: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    failure: str | None = None


def compare_steps(
    model: Any,
    x: Tensor,
    *,
    lr: float,
    rounds: int,
    with_compile: bool,
    with_fused: bool,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> list[Variant]:
    """Measure the training step of an IWAE: reference, its compiled form, and fused ops.

    Args:
        model: an :class:`dgm_fast.models.IWAE`; copied, not changed.
        x: one batch [B, D] as the model takes it.
        lr: for Adam.
        rounds: of the interleaved timing.
        with_compile: whether to measure ``torch.compile`` of the reference too.
        with_fused: whether the fused ops exist here.
        on_stage: told what happens now.
    """
    variants = [Variant("reference", "reference", False)]
    if with_compile:
        variants.append(Variant("torch.compile of the reference", "reference", True))
    if with_fused:
        variants.append(Variant("fused", "auto", False))
    runs: dict[str, Callable[[], Seconds]] = {}
    for variant in variants:
        on_stage(f"preparing: {variant.name}")
        try:
            runs[variant.name] = _prepare(variant, model, x, lr)
        except (RuntimeError, OSError, ImportError) as error:
            if not variant.compiled:
                raise
            # No compiler, or one that fails, leaves the demo without this rival, no more.
            variant.failure = str(error).strip().partition("\n")[0][:200]
    on_stage(f"timing {len(runs)} variants, {rounds} interleaved rounds")
    for name, times in interleaved(runs, rounds).items():
        next(v for v in variants if v.name == name).times = times
    return variants


def _prepare(variant: Variant, model: nn.Module, x: Tensor, lr: float) -> Callable[[], Seconds]:
    """Measure the memory of a variant and return its timed round."""
    own: Any = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(own.parameters(), lr=lr, fused=True)
    loss: Any = own.loss
    bound: Any = functional.iwae_bound
    if variant.compiled:
        loss, bound = torch.compile(loss), torch.compile(bound)
    bound_round = _bound_round(own, bound, x)

    def one_round() -> Seconds:
        with backend(variant.backend):
            return {**timed_step(loss, optimizer, x), "bound": bound_round()}

    one_round()  # compiles, and allocates the optimizer's state
    with backend(variant.backend):
        optimizer.zero_grad(set_to_none=True)
        variant.saved = saved_bytes(lambda: loss(x), own)
        variant.peak = peak_bytes(lambda: loss(x).backward())
        if not variant.compiled:
            variant.shares = time_shares(lambda: timed_step(loss, optimizer, x), GROUPS)
    return one_round


def _bound_round(model: Any, bound: Any, x: Tensor) -> Callable[[], float]:
    """Seconds of the bound alone, forward and backward, on the model's own decoder outputs."""
    with torch.no_grad():
        mean, log_var = model.encode(x)
        eps = torch.randn(len(x), model.num_samples, model.latent_dim)
        z = mean.unsqueeze(1) + torch.exp(0.5 * log_var).unsqueeze(1) * eps  # [B, K, L]
        out = model.decode(z)
    leaves = [t.detach().requires_grad_() for t in (out, z, mean, log_var)]

    def loss(x: Tensor) -> Tensor:
        out, z, mean, log_var = leaves
        return -bound(x, out, z, mean, log_var, likelihood=model.likelihood).mean()

    nothing = torch.optim.SGD(leaves, lr=0.0)
    return lambda: timed_step(loss, nothing, x)["loss and backward"]


def largest_difference(
    first: list[dict[str, Any]], second: list[dict[str, Any]], name: str
) -> float:
    """Largest relative difference of a figure over the epochs of two histories."""
    pairs = [(a[name], b[name]) for a, b in zip(first, second, strict=True)]
    return max(abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in pairs)
