"""Benchmark cases of the latent family."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dgm_fast import functional, ops
from dgm_fast.perf import plain
from dgm_fast.perf.cases_likelihood import (
    FLAT_SIZES,
    WITH_BFLOAT16,
    draw_bits,
    draw_classes,
    normal,
    trained_logits,
)
from dgm_fast.perf.registry import Inputs, case

# Standard deviation over k of log p(x | z_k) and of log p(z_k) - log q(z_k | x), in nats. Together
# the log-weights vary by about 1 nat and the effective sample size of K = 50 is in the tens, as in
# a trained model. Independent random tensors would give one dominant weight and denormal others:
# arithmetic on those slows rivals down and would flatter us.
DECODER_SPREAD = 0.7
LATENT_SPREAD = 0.7


def _kl_peer(mean: Tensor, log_var: Tensor) -> Tensor:
    posterior = torch.distributions.Normal(
        mean.float(), torch.exp(0.5 * log_var.float()), validate_args=False
    )
    prior = torch.distributions.Normal(mean.new_zeros(()), mean.new_ones(()), validate_args=False)
    return torch.distributions.kl_divergence(posterior, prior).sum(-1)


@case(
    "gaussian_kl",
    family="latent",
    ours=functional.gaussian_kl,
    eager=plain.gaussian_kl,
    peers={"torch.distributions": _kl_peer},
    sizes=FLAT_SIZES,
    dtypes=WITH_BFLOAT16,
    grads=("mean", "log_var"),
    flops_per_element=(6, 3),
    second_order=("medium",),
)
def kl_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    mean, log_var = normal(generator, *shape), normal(generator, *shape, scale=0.5) - 1.0
    return {"mean": mean.to(dtype), "log_var": log_var.to(dtype)}


def _reparameterize_ours(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    # The public function draws eps with torch.randn, which every variant would pay alike and which
    # would drown the rest; the op below it takes eps.
    return ops.reparameterize(mean, log_var, eps)


@case(
    "reparameterize",
    family="latent",
    ours=_reparameterize_ours,
    eager=plain.reparameterize,
    sizes={
        "small": (8, 5, 16),
        "medium": (128, 50, 50),
        "large": (6400, 50, 50),
        "odd": (33, 7, 13),
    },
    dtypes=WITH_BFLOAT16,
    grads=("mean", "log_var"),
    backward_reads=("eps", "log_var"),
    flops_per_element=(4, 3),
)
def reparameterize_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, samples, latent = shape
    return {
        "eps": normal(generator, batch, samples, latent).to(dtype),
        "mean": normal(generator, batch, latent).to(dtype),
        "log_var": (normal(generator, batch, latent, scale=0.5) - 1.0).to(dtype),
    }


@case(
    "log_mean_exp",
    family="latent",
    ours=functional.log_mean_exp,
    eager=plain.log_mean_exp,
    sizes={"small": (8, 5), "medium": (128, 50), "large": (10000, 500), "odd": (33, 199)},
    dtypes=WITH_BFLOAT16,
    grads=("log_w",),
    flops_per_element=(3, 3),
    second_order=("medium",),
)
def log_mean_exp_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    return {"log_w": (normal(generator, *shape) - 90.0).to(dtype)}


def _elbo_ours(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return functional.elbo(x, logits, mean, log_var)


@case(
    "elbo",
    family="latent",
    ours=_elbo_ours,
    eager=plain.elbo,
    sizes={
        "small": (8, 64, 16),
        "medium": (128, 784, 50),
        "large": (6400, 784, 50),
        "odd": (33, 199, 13),
    },
    dtypes=WITH_BFLOAT16,
    grads=("logits", "mean", "log_var"),
    flops_per_element=(5, 3),
    second_order=("medium",),
)
def elbo_inputs(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    batch, dims, latent = shape
    logits = trained_logits(generator, batch, dims)
    return {
        "logits": logits.to(dtype),
        "x": draw_bits(logits, generator),
        "mean": normal(generator, batch, latent).to(dtype),
        "log_var": (normal(generator, batch, latent, scale=0.5) - 1.0).to(dtype),
    }


def posterior(
    batch: int, samples: int, latent: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, log_var, z) whose log p(z_k) - log q(z_k | x) has standard deviation LATENT_SPREAD."""
    mean, log_var = normal(generator, batch, latent), normal(generator, batch, latent)
    # Var over eps of (eps^2 - z^2)/2 with z = mean + s eps is mean^2 s^2 + (1 - s^2)^2 / 2 per
    # dimension; for small log_var, s^2 is near 1 and 1 - s^2 near -log_var.
    variance = (mean.square() + 0.5 * log_var.square()).sum(-1, keepdim=True)
    scale = LATENT_SPREAD / variance.sqrt()
    mean, log_var = mean * scale, log_var * scale
    eps = normal(generator, batch, samples, latent)
    return mean, log_var, mean.unsqueeze(1) + torch.exp(0.5 * log_var).unsqueeze(1) * eps


def spread_samples(
    base: Tensor,
    samples: int,
    log_prob: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> Tensor:
    """Decoder outputs [B, K, ...] around ``base`` [B, ...] with DECODER_SPREAD between samples.

    ``log_prob`` maps outputs [b, K, ...] of the first rows to their log-likelihoods [b, K].
    """
    batch, *event = base.shape
    noise = normal(generator, batch, samples, *event)
    if samples == 1:
        return base.unsqueeze(1) + noise
    rows = min(batch, 16)
    # The log-likelihood is nearly linear in a change this small, so its spread scales with it.
    trial = 0.01
    moved = log_prob(base[:rows].unsqueeze(1) + trial * noise[:rows])
    spread = moved.double().std(1).mean().item()
    return noise.mul_(trial * DECODER_SPREAD / spread).add_(base.unsqueeze(1))


def _with_posterior(
    inputs: Inputs,
    batch: int,
    samples: int,
    latent: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Inputs:
    mean, log_var, z = posterior(batch, samples, latent, generator)
    latents = {"z": z.to(dtype), "mean": mean.to(dtype), "log_var": log_var.to(dtype)}
    return inputs | latents


def _iwae_bernoulli_ours(
    x: Tensor, logits: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> Tensor:
    return functional.iwae_bound(x, logits, z, mean, log_var)


@case(
    "iwae_bound",
    variant="bernoulli",
    family="latent",
    ours=_iwae_bernoulli_ours,
    eager=plain.iwae_bernoulli,
    sizes={  # B, K, D, L
        "small": (8, 5, 64, 16),
        "medium": (20, 50, 784, 50),
        "large": (128, 50, 784, 50),
        "odd": (33, 7, 199, 13),
    },
    dtypes={"large": (torch.float32, torch.bfloat16)},
    grads=("logits", "z", "mean", "log_var"),
    quick=("small", "medium", "large"),
    flops_per_element=(5, 4),
    second_order=("medium",),
)
def iwae_bernoulli_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, samples, dims, latent = shape
    base = trained_logits(generator, batch, dims)
    x = draw_bits(base, generator)
    logits = spread_samples(
        base,
        samples,
        lambda out: plain.bernoulli_log_prob(out, x[: len(out)].unsqueeze(1).expand(out.shape)),
        generator,
    )
    inputs = {"logits": logits.to(dtype), "x": x}
    return _with_posterior(inputs, batch, samples, latent, dtype, generator)


def _iwae_gaussian_ours(
    x: Tensor, out_mean: Tensor, out_log_var: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> Tensor:
    return functional.iwae_bound(
        x, (out_mean, out_log_var), z, mean, log_var, likelihood="gaussian"
    )


@case(
    "iwae_bound",
    variant="gaussian",
    family="latent",
    ours=_iwae_gaussian_ours,
    eager=plain.iwae_gaussian,
    sizes={"small": (8, 5, 64, 16), "large": (128, 50, 784, 50), "odd": (33, 7, 199, 13)},
    grads=("out_mean", "out_log_var", "z", "mean", "log_var"),
    flops_per_element=(6, 6),
)
def iwae_gaussian_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, samples, dims, latent = shape
    base, base_log_var = normal(generator, batch, dims), normal(generator, batch, dims, scale=0.3)
    x = base + torch.exp(0.5 * base_log_var) * normal(generator, batch, dims)
    out_log_var = base_log_var.unsqueeze(1).expand(batch, samples, dims).contiguous()
    out_mean = spread_samples(
        base,
        samples,
        lambda out: plain.gaussian_log_prob(
            x[: len(out)].unsqueeze(1), out, out_log_var[: len(out)]
        ),
        generator,
    )
    inputs = {"out_mean": out_mean.to(dtype), "out_log_var": out_log_var.to(dtype), "x": x}
    return _with_posterior(inputs, batch, samples, latent, dtype, generator)


def _iwae_unit_gaussian_ours(
    x: Tensor, out_mean: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> Tensor:
    return functional.iwae_bound(x, out_mean, z, mean, log_var, likelihood="gaussian")


@case(
    "iwae_bound",
    variant="gaussian_unit",
    family="latent",
    ours=_iwae_unit_gaussian_ours,
    eager=plain.iwae_unit_gaussian,
    sizes={"large": (128, 50, 784, 50)},
    grads=("out_mean", "z", "mean", "log_var"),
    flops_per_element=(3, 2),
)
def iwae_unit_gaussian_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, samples, dims, latent = shape
    base = normal(generator, batch, dims)
    x = base + normal(generator, batch, dims)
    out_mean = spread_samples(
        base,
        samples,
        lambda out: plain.unit_gaussian_log_prob(x[: len(out)].unsqueeze(1), out),
        generator,
    )
    inputs = {"out_mean": out_mean.to(dtype), "x": x}
    return _with_posterior(inputs, batch, samples, latent, dtype, generator)


def _iwae_categorical_ours(
    x: Tensor, logits: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> Tensor:
    return functional.iwae_bound(x, logits, z, mean, log_var, likelihood="categorical")


@case(
    "iwae_bound",
    variant="categorical",
    family="latent",
    ours=_iwae_categorical_ours,
    eager=plain.iwae_categorical,
    sizes={  # B, K, C, D, L; medium is scikit-learn's digits
        "small": (8, 5, 17, 64, 16),
        "medium": (100, 50, 17, 64, 50),
        "odd": (33, 7, 19, 45, 13),
    },
    grads=("logits", "z", "mean", "log_var"),
    flops_per_element=(3, 3),
)
def iwae_categorical_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    batch, samples, classes, dims, latent = shape
    base = normal(generator, batch, classes, dims, scale=2.0)
    x = draw_classes(base, generator)

    def log_prob(out: Tensor) -> Tensor:
        rows = len(out)
        target = x[:rows].unsqueeze(1).expand(rows, samples, dims).flatten(0, 1)
        return plain.categorical_log_prob(out.flatten(0, 1), target).view(rows, samples)

    logits = spread_samples(base, samples, log_prob, generator)
    inputs = {"logits": logits.to(dtype), "x": x}
    return _with_posterior(inputs, batch, samples, latent, dtype, generator)
