"""Mixture densities: discretized logistic mixtures of pixels, and Gaussian mixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import (
    check_data,
    check_data_shape,
    check_floating,
    check_same_device,
    promoted,
)
from dgm_fast.functional._conditions import check_condition
from dgm_fast.functional._values import check_before_kernel, reference_with_checks
from dgm_fast.reference._common import compute_dtype
from dgm_fast.reference.mixture import logistic_mixture_draw

PACKINGS = ("channel", "parameter")
PIXEL_RANGE = "values in [-1, 1] for the logistic mixture likelihood"


def discretized_logistic_mixture_log_prob(
    params: Tensor,
    x: Tensor,
    *,
    num_mixtures: int = 10,
    levels: int = 256,
    packing: str = "channel",
) -> Tensor:
    r"""Log-probability of discrete pixels under PixelCNN++'s mixture of logistics.

    .. math:: \log p(x) = \sum_{h,w} \log \sum_k \pi_k \prod_c
        \left[\sigma\!\left(\tfrac{x_c + \delta - \mu_{kc}}{s_{kc}}\right)
        - \sigma\!\left(\tfrac{x_c - \delta - \mu_{kc}}{s_{kc}}\right)\right],
        \qquad \delta = \frac{1}{\text{levels} - 1}

    The bin of x < -0.999 reaches to minus, that of x > 0.999 to plus infinity (with more than 501
    levels those edges move to half a half-bin from -1 and 1). A difference of at most 1e-5 is replaced
    by the density at x times the bin's width; gradients are those of this piecewise definition.
    Log-scales below -7 act as -7 and get no gradient. With three channels the means of green and blue
    depend on the true colours before them:

    .. math:: \mu_G \leftarrow \mu_G + \tanh(c_0)\, x_R, \qquad
        \mu_B \leftarrow \mu_B + \tanh(c_1)\, x_R + \tanh(c_2)\, x_G

    Args:
        params: floating point, [B, 10 M, H, W] for three channels or [B, 3 M, H, W] for one. The first
            M channels are the mixture logits.
        x: [B, C, H, W] (B may be 1), or [C, H, W], values in [-1, 1], level i of L at 2 i / (L - 1) - 1.
        num_mixtures: M.
        levels: number of values a channel takes.
        packing: order of the other channels of ``params``. "channel" (openai/pixel-cnn, pixel-cnn-pp,
            lmconv): for each colour M means, M log-scales, M coefficients. "parameter": means, log-scales
            and coefficients one after the other, each with the colour as its fastest index. They agree
            for one channel.

    Returns:
        [B] in nats, float32 (float64 for float64 parameters). Differentiable in ``params``.

    Raises:
        TypeError: if an argument has the wrong type or ``params`` is not floating point.
        ValueError: if shapes, devices or options do not match, if x requires grad, or (on the CPU, or on
            CUDA under ``check_values(True)``) if x is outside [-1, 1]; otherwise such a sample is NaN.

    Source: Salimans et al., "PixelCNN++" (2017), section 2.1 and released code.
    """
    check_floating(params=params)
    x = check_data(x)
    num_channels = _check_logistic_params(params, num_mixtures, levels, packing)
    check_data_shape(x, (params.shape[0], num_channels, *params.shape[2:]), 3, "params")
    check_same_device("x", x, "params", params)
    if x.requires_grad:
        raise ValueError("x holds discrete pixels and must not require grad")
    if ops.use_kernel(params):
        if not x.is_cpu:
            check_before_kernel(x, lambda: _pixel(x), PIXEL_RANGE)
        return ops.discretized_logistic_mixture_log_prob(
            params, x, num_mixtures, levels, packing == "parameter"
        )
    return reference_with_checks(
        lambda data: reference.discretized_logistic_mixture_log_prob(
            params,
            data,
            num_mixtures=num_mixtures,
            levels=levels,
            packing=packing,
        ),
        x,
        _pixel(x),
        PIXEL_RANGE,
        3,
    )


def sample_discretized_logistic_mixture(
    params: Tensor,
    *,
    num_mixtures: int = 10,
    levels: int | None = 256,
    packing: str = "channel",
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    conditioned_on: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Draw pixels from the distribution of :func:`discretized_logistic_mixture_log_prob`.

    A component is drawn by inverting the cumulative weights, a colour by inverting the logistic CDF and
    rounding to the nearest level; red is drawn before green and green before blue.

    Args:
        params: as for the density, [B, 10 M, H, W] or [B, 3 M, H, W].
        num_mixtures: M.
        levels: number of values a channel takes; None leaves the colours unrounded, as the released code
            of PixelCNN++ does.
        packing: as for the density.
        generator: source of the noise.
        noise: uniforms in [0, 1), [B, 1 + C, H, W] (component, then colours), in place of draws.
        conditioned_on: the pair (values, given), [B, C, H, W] or [C, H, W] each, ``given`` boolean: colours
            are kept where it is True. After a given colour the component is drawn anew, given all colours
            up to it, by the noise that the given colour has no use for.

    Returns:
        [B, C, H, W] in [-1, 1], float32 (float64 for float64 parameters), without gradients.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or options do not match.

    Source: Salimans et al., "PixelCNN++" (2017).
    """
    check_floating(params=params)
    num_channels = _check_logistic_params(
        params, num_mixtures, 256 if levels is None else levels, packing
    )
    batch, _, height, width = params.shape
    dtype = compute_dtype(params)
    shape = (batch, 1 + num_channels, height, width)
    if noise is None:
        noise = torch.rand(shape, dtype=dtype, device=params.device, generator=generator)
    else:
        check_floating(params=params, noise=noise)
        if noise.shape != shape:
            raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}")
        noise = noise.to(dtype)
    image = (batch, num_channels, height, width)
    values, given = check_condition(conditioned_on, image, "params", params)
    with torch.no_grad():
        return logistic_mixture_draw(
            params.to(dtype),
            noise,
            num_mixtures=num_mixtures,
            levels=levels,
            packing=packing,
            values=values,
            given=given,
        )


def gaussian_mixture_log_prob(
    z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor | None = None
) -> Tensor:
    r"""Log-density of a mixture of diagonal Gaussians.

    .. math:: \log p(z) = \log \sum_k w_k\, N(z; \mu_k, \mathrm{diag}\, e^{\lambda_k}), \qquad
        w = \mathrm{softmax}(\text{logits})

    The sum over components is streamed: nothing of size [..., K, L] is formed, and only the result is
    kept for backward.

    Args:
        z: floating point, [..., L].
        means: [K, L].
        log_vars: log-variances [K, L]. Below -86 (float64: -700) the quadratic term keeps the value
            there, since the inverse variance would leave the range of the dtype.
        logits: [K], of any normalisation; None means equal weights. Components of -inf are absent.

    Returns:
        [...] in nats, float32 (float64 if any argument is float64). Differentiable in all arguments.

    Raises:
        TypeError: if an argument is not a floating-point tensor.
        ValueError: if shapes or devices do not match, or there is no component.

    Source: Stanford CS236, homework 2 (GMVAE prior); Bishop, "Pattern Recognition and Machine Learning"
    (2006), equation 9.14.
    """
    check_floating(z=z, means=means, log_vars=log_vars, logits=logits)
    if means.ndim != 2 or log_vars.shape != means.shape:
        raise ValueError(
            "means and log_vars must both have shape [K, L], "
            f"got {tuple(means.shape)} and {tuple(log_vars.shape)}"
        )
    num_components, size = means.shape
    if num_components == 0:
        raise ValueError("means has no components: a mixture needs at least one")
    if z.ndim < 1 or z.shape[-1] != size:
        raise ValueError(
            f"z must have shape [..., {size}] for means {tuple(means.shape)}, got {tuple(z.shape)}"
        )
    if logits is not None and logits.shape != (num_components,):
        raise ValueError(
            f"logits must have shape ({num_components},) for means {tuple(means.shape)}, "
            f"got {tuple(logits.shape)}"
        )
    z, means, log_vars, logits = promoted(z, means, log_vars, logits)
    if ops.use_kernel(z):
        return ops.gaussian_mixture_log_prob(z, means, log_vars, logits)
    return reference.gaussian_mixture_log_prob(z, means, log_vars, logits)


def _pixel(x: Tensor) -> Tensor:
    return (x >= -1) & (x <= 1)


def _check_logistic_params(params: Tensor, num_mixtures: int, levels: int, packing: str) -> int:
    """The number of channels, from the shape of ``params``."""
    for name, value in (("num_mixtures", num_mixtures), ("levels", levels)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if num_mixtures < 1:
        raise ValueError(f"num_mixtures must be at least 1, got {num_mixtures}")
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if packing not in PACKINGS:
        raise ValueError(f"packing must be one of {PACKINGS}, got {packing!r}")
    if params.ndim != 4 or params.shape[1] not in (3 * num_mixtures, 10 * num_mixtures):
        raise ValueError(
            f"params must have shape [B, {10 * num_mixtures}, H, W] (three channels) or "
            f"[B, {3 * num_mixtures}, H, W] (one channel) for num_mixtures={num_mixtures}, "
            f"got {tuple(params.shape)}"
        )
    return 3 if params.shape[1] == 10 * num_mixtures else 1
