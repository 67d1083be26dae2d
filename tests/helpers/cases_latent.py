"""Cases of the latent family."""

from __future__ import annotations

import torch
from helpers.cases_likelihood import _generator, _randn, gaussian_inputs
from helpers.op_checks import OpCase
from torch import Tensor

from dgm_fast import functional, reference


def _kl(id: str, *shapes: tuple[int, ...], prior: str = "", **options) -> OpCase:
    def arguments(args: tuple[Tensor, ...]) -> dict[str, Tensor]:
        names = ["mean", "log_var"]
        names += ["prior_mean"] if "m" in prior else []
        names += ["prior_log_var"] if "v" in prior else []
        return dict(zip(names, args, strict=True))

    return OpCase(
        f"kl-{id}",
        "gaussian_kl",
        lambda *args: functional.gaussian_kl(**arguments(args), **options),
        lambda *args: reference.gaussian_kl(**arguments(args), **options),
        gaussian_inputs(*shapes),
        tuple(range(len(shapes))),
    )


def _reparameterize(id: str, shape: tuple[int, ...], samples: int | None) -> OpCase:
    noise = list(shape)
    if samples is not None:
        noise.insert(-1, samples)
    return OpCase(
        f"reparameterize-{id}",
        "reparameterize",
        lambda mean, log_var, eps: functional.reparameterize(mean, log_var, samples, noise=eps),
        reference.reparameterize,
        gaussian_inputs(shape, shape, tuple(noise)),
        (0, 1),
    )


def _log_mean_exp(id: str, shape: tuple[int, ...], dim: int, shift: float = 0.0) -> OpCase:
    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (_randn(shape, dtype, 4.0, _generator()) + shift,)

    return OpCase(
        f"log_mean_exp-{id}",
        "log_mean_exp",
        lambda t: functional.log_mean_exp(t, dim),
        lambda t: reference.log_mean_exp(t, dim),
        build,
        (0,),
    )


def decoder_inputs(
    likelihood: str,
    batch: int,
    samples: int | None,
    size: int,
    latent: int,
    classes: int = 0,
    log_var_shape: tuple[int, ...] | None = None,
    prior: tuple[tuple[int, ...], ...] = (),
    x_dtype: torch.dtype | None = None,
):
    """(x, decoder output, [its log-variance], [z], mean, log_var, [prior ...])."""

    def build(dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = _generator()
        rows = (batch,) if samples is None else (batch, samples)
        # Scaled down with the size: log-weights within a few nats of each other, as in training.
        if likelihood == "categorical":
            out = _randn((*rows, classes, size), dtype, 0.5, generator)
            x = torch.randint(0, classes, (batch, size), generator=generator)
            x = x.to(x_dtype or torch.int64)
        else:
            out = _randn((*rows, size), dtype, 0.5, generator)
            x = torch.rand((batch, size), generator=generator, dtype=torch.float64)
            x = (x < 0.5).to(x_dtype or dtype)
        tensors = [x, out]
        if log_var_shape is not None:
            tensors.append(_randn(log_var_shape, dtype, 0.5, generator))
        if samples is not None:
            tensors.append(_randn((*rows, latent), dtype, 1.0, generator))
        tensors += [_randn((batch, latent), dtype, 0.5, generator) for _ in range(2)]
        tensors += [_randn(shape, dtype, 0.5, generator) for shape in prior]
        return tuple(tensors)

    return build


def _bound(id: str, module_function: str, likelihood: str, build, grads, **options) -> OpCase:
    """``options``: gaussian log_var given, number of prior tensors, and keyword arguments."""
    own_variance = options.pop("own_variance", False)
    num_prior = options.pop("num_prior", 0)
    latents = 3 if module_function == "iwae_bound" else 2

    def caller(module):
        def call(*args: Tensor) -> Tensor:
            rest = list(args)
            x, out = rest.pop(0), rest.pop(0)
            decoder_out = (out, rest.pop(0)) if own_variance else out
            keywords = dict(options)
            if num_prior:
                prior = tuple(rest[latents:])
                keywords["prior"] = prior if num_prior == 2 else prior[0]
            function = getattr(module, module_function)
            return function(x, decoder_out, *rest[:latents], likelihood=likelihood, **keywords)

        return call

    name = "iwae" if module_function == "iwae_bound" else module_function
    return OpCase(
        f"{name}-{id}", module_function, caller(functional), caller(reference), build, grads
    )


def _elbo(id: str, likelihood: str, grads, own_variance: bool = False, **shape) -> OpCase:
    build = decoder_inputs(likelihood, samples=None, **shape)
    return _bound(id, "elbo", likelihood, build, grads, own_variance=own_variance, beta=0.7)


def _iwae(id: str, likelihood: str, grads, shape: dict, **options) -> OpCase:
    return _bound(
        id, "iwae_bound", likelihood, decoder_inputs(likelihood, **shape), grads, **options
    )


SMALL = {"batch": 3, "samples": 4, "size": 5, "latent": 2}
CLASSES = {**SMALL, "classes": 3}


def _gaussian_bound(id: str, log_var_shape: tuple[int, ...]) -> OpCase:
    shape = {**SMALL, "log_var_shape": log_var_shape}
    return _iwae(f"gaussian-{id}", "gaussian", range(6), shape, own_variance=True)


CASES = [
    _kl("standard", (3, 5), (3, 5)),
    _kl("wide", (2, 37), (2, 37)),
    _kl("prior", (3, 7), (3, 7), (7,), (7,), prior="mv"),
    _kl("prior-mean", (3, 7), (3, 7), (), prior="m"),
    _kl("prior-variance", (3, 7), (3, 7), (3, 7), prior="v"),
    _kl("conditional-prior", (3, 4, 6), (3, 4, 6), (3, 1, 6), (3, 1, 6), prior="mv"),
    _kl("image", (2, 3, 4), (2, 3, 4), event_ndim=2),
    _kl("elementwise", (4, 3), (4, 3), event_ndim=0),
    _reparameterize("single", (3, 5), None),
    _reparameterize("samples", (3, 18), 4),
    _reparameterize("nested", (2, 3, 5), 2),
    _reparameterize("one", (1, 1), 1),
    _log_mean_exp("rows", (4, 7), -1),
    _log_mean_exp("long", (3, 50), 1),
    _log_mean_exp("columns", (3, 6, 21), 1),
    _log_mean_exp("first", (5, 3), 0),
    _log_mean_exp("one", (3, 1), -1),
    _log_mean_exp("vector", (9,), 0),
    _log_mean_exp("far", (4, 11), -1, shift=-512.0),
    _elbo("bernoulli", "bernoulli", range(4), batch=3, size=5, latent=2),
    _elbo("bernoulli-wide", "bernoulli", range(4), batch=2, size=37, latent=18),
    _elbo("gaussian", "gaussian", range(4), batch=3, size=5, latent=2),
    _elbo(
        "gaussian-own", "gaussian", range(5), True, batch=3, size=5, latent=2, log_var_shape=(3, 5)
    ),
    _elbo(
        "gaussian-shared", "gaussian", range(5), True, batch=3, size=5, latent=2, log_var_shape=(5,)
    ),
    _elbo("categorical", "categorical", (1, 2, 3), batch=3, size=5, latent=2, classes=4),
    _iwae("bernoulli", "bernoulli", range(5), SMALL),
    _iwae("bernoulli-uint8", "bernoulli", range(1, 5), {**SMALL, "x_dtype": torch.uint8}),
    _iwae("single-sample", "bernoulli", range(5), {**SMALL, "samples": 1}),
    _iwae("square", "bernoulli", range(5), {**SMALL, "batch": 4}),
    _iwae("one", "bernoulli", range(5), {"batch": 1, "samples": 1, "size": 3, "latent": 1}),
    _iwae("gaussian-unit", "gaussian", range(5), SMALL),
    _gaussian_bound("scalar", ()),
    _gaussian_bound("shared", (5,)),
    _gaussian_bound("per-row", (3, 1, 5)),
    _gaussian_bound("per-sample", (3, 4, 1)),
    _gaussian_bound("own", (3, 4, 5)),
    _iwae("categorical", "categorical", range(1, 5), CLASSES),
    _iwae("prior-pair", "bernoulli", range(7), {**SMALL, "prior": ((2,), (1, 4, 2))}, num_prior=2),
    _iwae("prior-tensor", "bernoulli", range(6), {**SMALL, "prior": ((3, 4),)}, num_prior=1),
]

LARGE = [
    _kl("large", (70, 785), (70, 785), (785,), (785,), prior="mv"),
    _reparameterize("large", (40, 50), 20),
    _log_mean_exp("large", (300, 70), -1),
    _log_mean_exp("large-columns", (7, 70, 90), 1),
    _elbo("large", "bernoulli", range(4), batch=64, size=785, latent=50),
    _iwae("large", "bernoulli", range(5), {"batch": 9, "samples": 20, "size": 785, "latent": 50}),
    _iwae(
        "large-gaussian",
        "gaussian",
        range(6),
        {"batch": 9, "samples": 20, "size": 301, "latent": 33, "log_var_shape": (301,)},
        own_variance=True,
    ),
    _iwae(
        "large-categorical",
        "categorical",
        range(1, 5),
        {"batch": 5, "samples": 8, "size": 64, "latent": 20, "classes": 17},
    ),
]
