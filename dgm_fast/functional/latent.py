"""Divergences, reparameterised samples and variational bounds: drop-in, fused, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import (
    check_data,
    check_event_ndim,
    check_floating,
    check_likelihood,
    check_parameter_shape,
    check_same_device,
    class_index,
    promoted,
    unit_interval,
)
from dgm_fast.functional._values import check_before_kernel, reference_with_checks
from dgm_fast.functional.likelihood import UNIT_INTERVAL, class_range, gaussian_log_prob

ESTIMATORS = ("iwae", "stl", "dreg")

# Set on a z whose gradient a "dreg" bound weights.
_WEIGHTED = "_dgm_fast_weighted"

TensorOrPair = Tensor | tuple[Tensor, Tensor]


def gaussian_kl(
    mean: Tensor,
    log_var: Tensor,
    prior_mean: Tensor | None = None,
    prior_log_var: Tensor | None = None,
    *,
    event_ndim: int = 1,
) -> Tensor:
    r"""Kullback-Leibler divergence between diagonal Gaussians, KL(q || p).

    .. math:: \tfrac12 \sum_d \frac{\sigma_d^2 + (\mu_d - m_d)^2}{s_d^2} - 1
        - \log \frac{\sigma_d^2}{s_d^2}

    Args:
        mean: mean of q, floating point, [..., event].
        log_var: log-variance of q, in the shape of ``mean``.
        prior_mean: mean of p; broadcasts from [], the event dimensions or all dimensions. None is 0.
        prior_log_var: log-variance of p, by the same rule. None is 0 (unit variance).
        event_ndim: how many trailing dimensions to sum over.

    Returns:
        [...] in nats, float32 (float64 if any argument is float64). Differentiable in all arguments.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if shapes or devices do not match.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), appendix B.
    """
    check_floating(mean=mean, log_var=log_var, prior_mean=prior_mean, prior_log_var=prior_log_var)
    _check_posterior(mean, log_var)
    check_event_ndim(event_ndim, mean.ndim, "mean")
    if prior_mean is not None:
        check_parameter_shape("prior_mean", prior_mean, mean.shape, event_ndim, "mean")
    if prior_log_var is not None:
        check_parameter_shape("prior_log_var", prior_log_var, mean.shape, event_ndim, "mean")
    mean, log_var, prior_mean, prior_log_var = promoted(mean, log_var, prior_mean, prior_log_var)
    if ops.use_kernel(mean):
        return ops.gaussian_kl(mean, log_var, prior_mean, prior_log_var, event_ndim)
    return reference.gaussian_kl(mean, log_var, prior_mean, prior_log_var, event_ndim=event_ndim)


def reparameterize(
    mean: Tensor,
    log_var: Tensor,
    num_samples: int | None = None,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    r"""Differentiable samples of a diagonal Gaussian, :math:`z = \mu + e^{\log\sigma^2 / 2} \epsilon`.

    Args:
        mean: floating point, [..., L].
        log_var: log-variance, in the shape of ``mean``.
        num_samples: K draws per row, or None for one draw without the extra dimension.
        generator: source of the standard normals, drawn by ``torch.randn`` outside the kernel.
        noise: the standard normals themselves, in the shape of the result.

    Returns:
        [..., L], or [..., K, L] with ``num_samples``, in the common dtype of the arguments.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, ``num_samples`` is below 1, or both ``noise`` and
            ``generator`` are given.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), section 2.4.
    """
    check_floating(mean=mean, log_var=log_var)
    _check_posterior(mean, log_var)
    if mean.ndim == 0:
        raise ValueError("mean must have at least one dimension, [..., L], got shape ()")
    shape = list(mean.shape)
    if num_samples is not None:
        if not isinstance(num_samples, int):
            raise TypeError(f"num_samples must be an int or None, got {type(num_samples).__name__}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        shape.insert(-1, num_samples)
    mean, log_var = promoted(mean, log_var)
    if noise is None:
        noise = torch.randn(shape, dtype=mean.dtype, device=mean.device, generator=generator)
    else:
        check_floating(mean=mean, noise=noise)
        if generator is not None:
            raise ValueError("noise and generator exclude each other")
        if list(noise.shape) != shape:
            raise ValueError(f"noise must have shape {tuple(shape)}, got {tuple(noise.shape)}")
        if noise.requires_grad:
            raise ValueError("noise must not require grad")
    if ops.use_kernel(mean):
        return ops.reparameterize(mean, log_var, noise)
    return reference.reparameterize(mean, log_var, noise)


def log_mean_exp(log_w: Tensor, dim: int = -1) -> Tensor:
    r"""Logarithm of the mean of exponentials, :math:`\log \frac1K \sum_k e^{\log w_k}`.

    Rows of -inf give -inf with zero gradient; an entry of +inf gives +inf with a one-hot gradient
    (shared evenly among several). ``torch.logsumexp`` has NaN gradients there.

    Args:
        log_w: floating point, any shape.
        dim: the dimension to reduce.

    Returns:
        ``log_w`` without ``dim``, in nats, float32 (float64 for float64).

    Raises:
        TypeError: if ``log_w`` is not a floating-point tensor.
        ValueError: if ``dim`` is not one of its dimensions, or is empty.

    Source: Burda et al., "Importance Weighted Autoencoders" (2016), equation 8.
    """
    check_floating(log_w=log_w)
    if not -log_w.ndim <= dim < log_w.ndim:
        raise ValueError(f"dim must be a dimension of log_w {tuple(log_w.shape)}, got {dim}")
    dim %= log_w.ndim
    if log_w.shape[dim] == 0:
        raise ValueError(f"log_w has no entries along dim {dim}: shape {tuple(log_w.shape)}")
    if ops.use_kernel(log_w):
        return ops.log_mean_exp(log_w, dim)
    return reference.log_mean_exp(log_w, dim)


def elbo(
    x: Tensor,
    decoder_out: TensorOrPair,
    mean: Tensor,
    log_var: Tensor,
    *,
    likelihood: str = "bernoulli",
    beta: float = 1.0,
) -> Tensor:
    r"""Evidence lower bound with the analytic divergence to a standard normal prior.

    .. math:: \log p(x \mid z) - \beta \, \mathrm{KL}(q(z \mid x) \,\|\, N(0, I))

    Args:
        x: data [B, D], or [D] shared by the batch; values as the likelihood allows.
        decoder_out: "bernoulli": logits [B, D]. "gaussian": mean [B, D] (unit variance) or the pair
            (mean, log_var), log_var broadcasting from [], [D] or [B, D]. "categorical": logits
            [B, C, D].
        mean: posterior mean [B, L].
        log_var: posterior log-variance [B, L].
        likelihood: "bernoulli", "gaussian" or "categorical".
        beta: weight of the divergence.

    Returns:
        [B] in nats, float32 (float64 if any argument is float64). Differentiable in decoder outputs,
        mean and log_var, and in x for Bernoulli and Gaussian likelihoods.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes, devices or data values do not match, or the likelihood is unknown.

    Source: Kingma and Welling (2014), equation 3; Higgins et al., "beta-VAE" (2017), equation 4.
    """
    if not isinstance(beta, int | float):
        raise TypeError(f"beta must be a number, got {type(beta).__name__}")
    x = check_data(x)
    out, out_log_var = _check_decoder(x, decoder_out, likelihood, 2)
    check_floating(decoder_out=out, mean=mean, log_var=log_var)
    _check_posterior(mean, log_var)
    if mean.ndim != 2 or mean.shape[0] != out.shape[0]:
        raise ValueError(
            f"mean must have shape [B, L] with B = {out.shape[0]} as decoder_out, "
            f"got {tuple(mean.shape)}"
        )
    x = _align_data(x, out, likelihood)
    out, out_log_var, mean, log_var = _promote_groups((out, out_log_var), (mean, log_var))
    if ops.use_kernel(out):
        _check_data_before_kernel(x, out, likelihood)
        code = ops.LIKELIHOODS[likelihood]
        return ops.elbo(out, out_log_var, x, mean, log_var, code, beta)
    pair = out if out_log_var is None else (out, out_log_var)
    return _reference_bound(
        lambda data: reference.elbo(data, pair, mean, log_var, likelihood=likelihood, beta=beta),
        x,
        out,
        likelihood,
    )


def iwae_bound(
    x: Tensor,
    decoder_out: TensorOrPair,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    *,
    likelihood: str = "bernoulli",
    prior: TensorOrPair | None = None,
    estimator: str = "iwae",
) -> Tensor:
    r"""Importance-weighted bound on log p(x) from K posterior samples.

    .. math:: \log \frac1K \sum_k \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}

    With K = 1 it is the single-sample Monte-Carlo ELBO. One pass reads the decoder outputs; backward
    keeps only the inputs and the log-weights [B, K].

    Args:
        x: data [B, D] (or [B, 1, D], or [D] shared by the batch); values as the likelihood allows.
        decoder_out: "bernoulli": logits [B, K, D]. "gaussian": mean [B, K, D] (unit variance) or the
            pair (mean, log_var), log_var broadcasting from [], [D] or [B, K, D]. "categorical": logits
            [B, K, C, D].
        z: posterior samples [B, K, L].
        mean: posterior mean [B, L].
        log_var: posterior log-variance [B, L].
        likelihood: "bernoulli", "gaussian" or "categorical".
        prior: None for N(0, I); a pair (mean, log_var) that broadcasts to [B, K, L] from [], [L] or
            three dimensions; or log p(z) as a tensor [B, K] (mixture priors). All are differentiable.
        estimator: how gradients are formed; the value is the same.
            "iwae": the gradient of the bound.
            "stl": without the score of q ("sticking the landing").
            "dreg": doubly reparameterised. A hook on ``z`` multiplies everything that flows back into
            z by the normalised weight once more, so ``z`` must be the very tensor that the decoder
            consumed: with a reshaped copy of the decoder's input the decoder's path is left unweighted.
            For the same reason a draw z serves one such bound.

    Returns:
        [B] in nats, float32 (float64 if any argument is float64). Differentiable in all floating
        arguments but categorical x.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes, devices or data values do not match, K is 0, the likelihood or the
            estimator is unknown, or z serves a "dreg" bound already.

    Source: Burda et al., "Importance Weighted Autoencoders" (2016), equation 8; Roeder et al.,
    "Sticking the Landing" (2017); Tucker et al., "Doubly Reparameterized Gradient Estimators" (2018).
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, got {estimator!r}")
    x = check_data(x)
    out, out_log_var = _check_decoder(x, decoder_out, likelihood, 3)
    check_floating(decoder_out=out, z=z, mean=mean, log_var=log_var)
    _check_posterior(mean, log_var)
    batch, samples = out.shape[:2]
    if samples == 0:
        raise ValueError(f"decoder_out has K = 0 samples: shape {tuple(out.shape)}")
    if z.ndim != 3 or z.shape[:2] != out.shape[:2]:
        raise ValueError(
            f"z must have shape [B, K, L] with B = {batch}, K = {samples} as decoder_out, "
            f"got {tuple(z.shape)}"
        )
    if mean.shape != (batch, z.shape[2]):
        raise ValueError(
            f"mean must have shape [B, L] = {(batch, z.shape[2])} as z, got {tuple(mean.shape)}"
        )
    x = _align_data(x, out, likelihood)
    log_prior = _log_prior(prior, z)
    out, out_log_var, z_in, mean, log_var, log_prior = _promote_groups(
        (out, out_log_var), (z, mean, log_var, log_prior)
    )
    if ops.use_kernel(out):
        _check_data_before_kernel(x, out, likelihood)
        code = ops.LIKELIHOODS[likelihood]
        bound, log_w = ops.iwae_bound(
            out, out_log_var, x, z_in, mean, log_var, log_prior, code, estimator != "iwae"
        )
    else:
        pair = out if out_log_var is None else (out, out_log_var)
        log_w = _reference_bound(
            lambda data: reference.iwae_log_weights(
                data,
                pair,
                z_in,
                mean,
                log_var,
                likelihood=likelihood,
                prior=log_prior,
                estimator=estimator,
            ),
            x,
            out,
            likelihood,
        )
        bound = reference.log_mean_exp(log_w, -1)
    if estimator == "dreg" and z.requires_grad and torch.is_grad_enabled():
        _weight_path_gradient(z, log_w.detach())
    return bound


def joint_bound(
    log_joint: Tensor, z: Tensor, mean: Tensor, log_var: Tensor, *, estimator: str = "iwae"
) -> Tensor:
    """:func:`iwae_bound` where log p(x, z_k), a tensor [B, K], was computed elsewhere.

    The event is empty and the whole joint stands in the prior's place, so that weights, estimators
    and the hook of "dreg" are the one implementation above.
    """
    batch, samples = z.shape[:2]
    return iwae_bound(
        z.new_empty(batch, 0),
        z.new_empty(batch, samples, 0),
        z,
        mean,
        log_var,
        prior=log_joint,
        estimator=estimator,
    )


def _weight_path_gradient(z: Tensor, log_w: Tensor) -> None:
    """Multiply what flows back into z by the normalised importance weights, once."""
    if not torch.compiler.is_compiling():
        if getattr(z, _WEIGHTED, False):
            raise ValueError(
                'z serves a bound with estimator="dreg" already, and its gradient would be weighted '
                "twice: draw z again"
            )
        setattr(z, _WEIGHTED, True)

    def weighted(grad: Tensor) -> Tensor:
        # From the log-weights, which backward keeps anyway.
        highest = log_w.amax(1, keepdim=True)
        weights = torch.softmax(torch.where(highest.isfinite(), log_w, 0.0), 1)
        return grad * weights.to(grad.dtype).unsqueeze(-1)  # [B, K, 1]

    if not z.is_leaf:
        z.register_hook(weighted)
        return

    # A leaf outlives this graph: its hook must not act on the next bound's gradient.
    def once(grad: Tensor) -> Tensor:
        handle.remove()
        setattr(z, _WEIGHTED, False)
        return weighted(grad)

    handle = z.register_hook(once)


def _check_posterior(mean: Tensor, log_var: Tensor) -> None:
    if mean.shape != log_var.shape:
        raise ValueError(
            f"log_var must have the shape of mean, {tuple(mean.shape)}, got {tuple(log_var.shape)}"
        )


def _check_decoder(
    x: Tensor, decoder_out: TensorOrPair, likelihood: str, ndim: int
) -> tuple[Tensor, Tensor | None]:
    """Split decoder outputs and check them; ``ndim`` counts [B, D] or [B, K, D]."""
    check_likelihood(likelihood)
    out: Tensor
    log_var: Tensor | None = None
    if isinstance(decoder_out, tuple | list):
        if likelihood != "gaussian" or len(decoder_out) != 2:
            raise TypeError(
                f"decoder_out must be a tensor for the {likelihood} likelihood "
                "(a pair (mean, log_var) is for the Gaussian one)"
            )
        out, log_var = decoder_out
        check_floating(decoder_out_mean=out, decoder_out_log_var=log_var)
    else:
        out = decoder_out
        check_floating(decoder_out=out)
    layout = "[B, K, D]" if ndim == 3 else "[B, D]"
    if likelihood == "categorical":
        ndim, layout = ndim + 1, layout.replace("D", "C, D")
    if out.ndim != ndim:
        raise ValueError(f"decoder_out must have shape {layout}, got {tuple(out.shape)}")
    if log_var is not None:
        check_parameter_shape("decoder_out log_var", log_var, out.shape, 1, "decoder_out mean")
        if torch.broadcast_shapes(log_var.shape, out.shape) != out.shape:
            raise ValueError(
                f"decoder_out log_var {tuple(log_var.shape)} is larger than its mean "
                f"{tuple(out.shape)}"
            )
    if likelihood == "categorical":
        if out.shape[-2] == 0:
            raise ValueError(f"decoder_out has no classes: shape {tuple(out.shape)}")
        if x.requires_grad:
            raise ValueError("x holds class indices and must not require grad")
    check_same_device("x", x, "decoder_out", out)
    return out, log_var


def _align_data(x: Tensor, out: Tensor, likelihood: str) -> Tensor:
    """x as [B, D]."""
    batch, dims = out.shape[0], out.shape[-1]
    samples_ndim = out.ndim - (likelihood == "categorical")
    if x.shape == (batch, dims):
        return x
    if x.shape == (dims,):
        return x.expand(batch, dims)
    if samples_ndim == 3 and x.shape == (batch, 1, dims):
        return x.squeeze(1)
    raise ValueError(
        f"x must have shape [B, D] = {(batch, dims)} or [D] = {(dims,)} to match decoder_out "
        f"{tuple(out.shape)}, got {tuple(x.shape)}"
    )


def _log_prior(prior: TensorOrPair | None, z: Tensor) -> Tensor | None:
    if prior is None:
        return None
    if isinstance(prior, tuple | list):
        if len(prior) != 2:
            raise TypeError(f"prior must be a pair (mean, log_var), got {len(prior)} entries")
        check_floating(z=z, prior_mean=prior[0], prior_log_var=prior[1])
        for name, value in zip(("prior mean", "prior log_var"), prior, strict=True):
            check_parameter_shape(name, value, z.shape, 1, "z")
            if torch.broadcast_shapes(value.shape, z.shape) != z.shape:
                raise ValueError(f"{name} {tuple(value.shape)} is larger than z {tuple(z.shape)}")
        return gaussian_log_prob(z, prior[0], prior[1])
    check_floating(z=z, prior=prior)
    if prior.shape != z.shape[:2]:
        raise ValueError(
            f"prior as a tensor holds log p(z) of shape [B, K] = {tuple(z.shape[:2])}, "
            f"got {tuple(prior.shape)}"
        )
    return prior


def _promote_groups(
    decoder: tuple[Tensor | None, ...], latent: tuple[Tensor | None, ...]
) -> list[Tensor]:
    """Decoder outputs in their common dtype; everything in float64 if anything is.

    Latents keep their dtypes: kernels read each as it is, and backward keeps no copy of it.
    """
    dtypes = {t.dtype for t in decoder + latent if t is not None}
    if len(dtypes) > 1:
        if torch.float64 in dtypes:
            return [None if t is None else t.double() for t in decoder + latent]  # type: ignore
        return promoted(*decoder) + list(latent)
    return list(decoder + latent)  # type: ignore[arg-type]


def _check_data_before_kernel(x: Tensor, out: Tensor, likelihood: str) -> None:
    if x.is_cpu or likelihood == "gaussian":
        return
    if likelihood == "bernoulli":
        check_before_kernel(x, lambda: unit_interval(x), UNIT_INTERVAL)
    else:
        classes = out.shape[-2]
        check_before_kernel(x, lambda: class_index(x, classes), class_range(classes))


def _reference_bound(call, x: Tensor, out: Tensor, likelihood: str) -> Tensor:  # type: ignore
    """``call(x)`` [B] or [B, K] under the value rules of the likelihood."""
    if likelihood == "gaussian":
        return call(x)
    if likelihood == "bernoulli":
        valid, needs, safe = unit_interval(x), UNIT_INTERVAL, None
    else:
        classes = out.shape[-2]
        valid, needs = class_index(x, classes), class_range(classes)

        def safe(data: Tensor) -> Tensor:
            return data.clamp(0, classes - 1)

    return reference_with_checks(call, x, valid, needs, 1, safe)
