"""Neural autoregressive density estimators (NADE): log-probabilities, and ancestral samples in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import (
    check_floating,
    check_same_device,
    check_tensor,
    class_index,
    promoted,
    unit_interval,
)
from dgm_fast.functional._conditions import Condition, check_condition
from dgm_fast.functional._values import check_before_kernel, check_given, reference_with_checks
from dgm_fast.functional.likelihood import UNIT_INTERVAL, class_range
from dgm_fast.reference._common import compute_dtype


def nade_log_prob(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    r"""Log-probability of binary data under a NADE.

    .. math:: \log p(x) = \sum_d \log \mathrm{Bernoulli}(x_d;\ \sigma(V_d h_d + b_d)), \qquad
        h_d = \sigma(a_d), \quad a_1 = c, \quad a_{d+1} = a_d + W_{:,d}\, x_d

    O(D H) operations a sample; nothing of size [B, D, H] is stored, forward or backward: backward keeps the
    logits [B, D].

    Args:
        x: values in [0, 1] (bool, integer or floating point), [..., D]. A value between 0 and 1 enters the
            recurrence as it is and gives the cross-entropy: only binary x have probabilities.
        W: input weights, floating point, [H, D].
        c: hidden biases, [H].
        V: output weights, [D, H].
        b: output biases, [D].

    Returns:
        [...] in nats, float32 (float64 if a parameter is float64). Differentiable in the parameters.

    Raises:
        TypeError: if an argument is not a tensor or a parameter is not floating point.
        ValueError: if shapes or devices do not match, if x requires grad, or (on the CPU, or on CUDA under
            ``check_values(True)``) if x is outside [0, 1]; otherwise such a sample is NaN.

    Source: Larochelle and Murray, "The Neural Autoregressive Distribution Estimator" (2011), equations 8-9.
    """
    _check_binary(W, c, V, b)
    _check_data(x, W)
    if x.requires_grad:
        raise ValueError("x holds binary data and must not require grad")
    W, c, V, b = promoted(W, c, V, b)
    lead, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
    if ops.use_kernel(W, "nade"):
        if not x.is_cpu:
            check_before_kernel(x, lambda: unit_interval(x), UNIT_INTERVAL)
        return ops.nade_log_prob(x, W, c, V, b)[0].reshape(lead)
    return reference_with_checks(
        lambda data: reference.nade_log_prob(data, W, c, V, b),
        x,
        unit_interval(x),
        UNIT_INTERVAL,
        1,
    ).reshape(lead)


def nade_categorical_log_prob(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    r"""Log-probability of class indices under a NADE with one-hot inputs and a softmax a dimension.

    .. math:: \log p(x) = \sum_d \log \mathrm{softmax}(V_d h_d + b_d)_{x_d}, \qquad
        h_d = \sigma(a_d), \quad a_1 = c, \quad a_{d+1} = a_d + W_{:,d,x_d}

    Nothing of size [B, D, H] is stored; backward keeps the logits [B, D, C].

    Args:
        x: class indices (integer, bool or whole floating-point numbers), [..., D].
        W: input weights, floating point, [H, D, C].
        c: hidden biases, [H].
        V: output weights, [D, C, H].
        b: output biases, [D, C].

    Returns:
        [...] in nats, float32 (float64 if a parameter is float64). Differentiable in the parameters.

    Raises:
        TypeError: if an argument is not a tensor or a parameter is not floating point.
        ValueError: if shapes or devices do not match, if x requires grad, or (on the CPU, or on CUDA under
            ``check_values(True)``) if an index is out of range; otherwise that sample is NaN.

    Source: Larochelle and Murray (2011), section 3, with multinomial conditionals.
    """
    num_classes = _check_categorical(W, c, V, b)
    _check_data(x, W)
    if x.requires_grad:
        raise ValueError("x holds class indices and must not require grad")
    W, c, V, b = promoted(W, c, V, b)
    lead, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
    if ops.use_kernel(W, "nade"):
        if not x.is_cpu:
            check_before_kernel(x, lambda: class_index(x, num_classes), class_range(num_classes))
        return ops.nade_categorical_log_prob(x, W, c, V, b)[0].reshape(lead)
    return reference_with_checks(
        lambda data: reference.nade_categorical_log_prob(data, W, c, V, b),
        x,
        class_index(x, num_classes),
        class_range(num_classes),
        1,
        safe=lambda data: data.clamp(0, num_classes - 1),
    ).reshape(lead)


def rnade_log_prob(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    *,
    activation_scale: Tensor | None = None,
    mixture: str = "gaussian",
    uniform_weights: bool = False,
) -> Tensor:
    r"""Log-density of real data under a NADE whose conditionals are mixtures (RNADE).

    .. math:: \log p(x) = \sum_d \log \sum_m \frac{w_{dm}}{s_{dm}}\,
        k\!\left(\frac{x_d - \mu_{dm}}{s_{dm}}\right),
        \qquad h_d = \sigma(\rho_d\, a_d), \quad a_1 = c, \quad a_{d+1} = a_d + W_{:,d}\, x_d

    with w the softmax of the weight logits, s the exponentials of the log-scales, and k the standard normal
    or logistic density. Each of the three parameters is V_d h_d + b_d with its own V and b. Nothing of size
    [B, D, H] is stored; backward keeps the parameters [B, D, 3 M].

    Args:
        x: bool, integer or floating point, [..., D].
        W: input weights, floating point, [H, D].
        c: hidden biases, [H].
        V_logits, b_logits: [D, M, H] and [D, M]; None with ``uniform_weights``.
        V_means, b_means: [D, M, H] and [D, M].
        V_log_scales, b_log_scales: [D, M, H] and [D, M]. Of a log-scale below -43 (float64: -350) the
            distance to the mean is measured in the scale at that bound.
        activation_scale: the factors rho of the pre-activations, [D]; None means 1.
        mixture: "gaussian" or "logistic".
        uniform_weights: all components weigh 1 / M.

    Returns:
        [...] in nats, float32 (float64 if any floating-point argument is float64). Differentiable in x and
        all parameters.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes, devices or options do not match.

    Source: Uria, Murray and Larochelle, "RNADE: The real-valued neural autoregressive density-estimator"
    (2013), equations 3-9.
    """
    heads = (V_logits, b_logits, V_means, b_means, V_log_scales, b_log_scales)
    _check_mixture(W, c, heads, activation_scale, mixture, uniform_weights)
    _check_data(x, W)
    parameters: list[Any] = [W, c, *heads, activation_scale]
    if x.dtype.is_floating_point:
        x, *parameters = promoted(x, *parameters)
    else:
        parameters = promoted(*parameters)
        x = x.to(parameters[0].dtype)
    lead, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
    if ops.use_kernel(x, "nade"):
        return ops.rnade_log_prob(x, *parameters, ops.MIXTURES[mixture])[0].reshape(lead)
    return reference.rnade_log_prob(
        x, *parameters[:-1], activation_scale=parameters[-1], mixture=mixture
    ).reshape(lead)


def nade_sample(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    num_samples: int,
    *,
    conditioned_on: Condition | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Draw binary data from the NADE of :func:`nade_log_prob`, all dimensions in one pass.

    x_d is 1 where the noise is below its probability given the dimensions before it.

    Args:
        W: [H, D].
        c: [H].
        V: [D, H].
        b: [D].
        num_samples: n.
        conditioned_on: (values, given), [n, D] or [D] each: entries where the boolean ``given`` is True are
            kept, the others drawn given all entries before them.
        generator: source of the noise.
        noise: uniforms in [0, 1), [n, D], in place of draws.

    Returns:
        [n, D] of zeros and ones (and given values), float32 (float64 if a parameter is float64), without
        gradients. The same noise gives the same samples on every backend, but for rare noise within
        rounding of a probability.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, or (on the CPU, or on CUDA under
            ``check_values(True)``) if a given value is outside [0, 1].

    Source: Larochelle and Murray (2011), section 3.
    """
    _check_binary(W, c, V, b)
    W, c, V, b = promoted(W, c, V, b)
    noise = _noise(num_samples, W, (), generator, noise)
    values, given = check_condition(conditioned_on, (num_samples, W.shape[1]), "W", W)
    if ops.use_kernel(W, "nade"):
        if values is not None and given is not None and not W.is_cpu:
            check_given(values, given, unit_interval(values), UNIT_INTERVAL)
        return ops.nade_sample(W, c, V, b, noise, values, given)
    if values is not None and given is not None:
        check_given(values, given, unit_interval(values), UNIT_INTERVAL)
    return reference.nade_sample(W, c, V, b, noise, values, given)


def nade_categorical_sample(
    W: Tensor,
    c: Tensor,
    V: Tensor,
    b: Tensor,
    num_samples: int,
    *,
    conditioned_on: Condition | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Draw class indices from the NADE of :func:`nade_categorical_log_prob`, in one pass.

    x_d is the first class whose cumulative probability given the dimensions before exceeds the noise.

    Args:
        W: [H, D, C].
        c: [H].
        V: [D, C, H].
        b: [D, C].
        num_samples: n.
        conditioned_on: (values, given), [n, D] or [D] each: entries where the boolean ``given`` is True are
            kept, the others drawn given all entries before them.
        generator: source of the noise.
        noise: uniforms in [0, 1), [n, D], in place of draws.

    Returns:
        [n, D], int64. The same noise gives the same samples on every backend, but for rare noise within
        rounding of a cumulative probability.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, or (on the CPU, or on CUDA under
            ``check_values(True)``) if a given value is no class index.

    Source: Larochelle and Murray (2011), section 3, with multinomial conditionals.
    """
    num_classes = _check_categorical(W, c, V, b)
    W, c, V, b = promoted(W, c, V, b)
    noise = _noise(num_samples, W, (), generator, noise)
    values, given = check_condition(conditioned_on, (num_samples, W.shape[1]), "W", W)
    kernel = ops.use_kernel(W, "nade")
    if values is not None and given is not None and not (kernel and W.is_cpu):
        check_given(values, given, class_index(values, num_classes), class_range(num_classes))
        # What is not given may be anything, and what is given and wrong must not index past the weights.
        values = values.clamp(0, num_classes - 1)
    if kernel:
        return ops.nade_categorical_sample(W, c, V, b, noise, values, given)
    return reference.nade_categorical_sample(W, c, V, b, noise, values, given)


def rnade_sample(
    W: Tensor,
    c: Tensor,
    V_logits: Tensor | None,
    b_logits: Tensor | None,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    num_samples: int,
    *,
    activation_scale: Tensor | None = None,
    mixture: str = "gaussian",
    uniform_weights: bool = False,
    conditioned_on: Condition | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Draw real data from the density of :func:`rnade_log_prob`, all dimensions in one pass.

    A component is drawn by inverting the cumulative weights; x_d is its mean plus its scale times standard
    normal or logistic noise.

    Args:
        W, c, V_logits, b_logits, V_means, b_means, V_log_scales, b_log_scales, activation_scale, mixture,
            uniform_weights: as for the density.
        num_samples: n.
        conditioned_on: (values, given), [n, D] or [D] each: entries where the boolean ``given`` is True are
            kept, the others drawn given all entries before them.
        generator: source of the noise.
        noise: [n, D, 2] in place of draws: a uniform in [0, 1) for the component, and a standard normal
            (Gaussians) or a uniform in (0, 1) (logistics) for the value.

    Returns:
        [n, D], float32 (float64 if a parameter is float64), without gradients.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes, devices or options do not match.

    Source: Uria, Murray and Larochelle (2013).
    """
    heads = (V_logits, b_logits, V_means, b_means, V_log_scales, b_log_scales)
    _check_mixture(W, c, heads, activation_scale, mixture, uniform_weights)
    W, c, *rest = promoted(W, c, *heads, activation_scale)
    heads, activation_scale = tuple(rest[:-1]), rest[-1]
    if noise is None and mixture == "gaussian":
        component = _noise(num_samples, W, (), generator, None)
        standard = torch.randn(
            component.shape, dtype=component.dtype, device=W.device, generator=generator
        )
        noise = torch.stack([component, standard], -1)
    elif noise is None:
        noise = _noise(num_samples, W, (2,), generator, None)
        # A uniform of exactly 0 would be a sample at minus infinity.
        noise[..., 1].clamp_(min=0.5 * torch.finfo(noise.dtype).eps)
    else:
        noise = _noise(num_samples, W, (2,), generator, noise)
    values, given = check_condition(conditioned_on, (num_samples, W.shape[1]), "W", W)
    if ops.use_kernel(W, "nade"):
        return ops.rnade_sample(
            W, c, *heads, activation_scale, noise, values, given, ops.MIXTURES[mixture]
        )
    return reference.rnade_sample(
        W,
        c,
        *heads,
        noise,
        values,
        given,
        activation_scale=activation_scale,
        mixture=mixture,
    )


def _check_binary(W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> None:
    check_floating(W=W, c=c, V=V, b=b)
    hidden, size = _check_hidden(W, c, 2, "[H, D]")
    _check_shape("V", V, (size, hidden), W)
    _check_shape("b", b, (size,), W)


def _check_categorical(W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> int:
    """The number of classes."""
    check_floating(W=W, c=c, V=V, b=b)
    hidden, size = _check_hidden(W, c, 3, "[H, D, C]")
    num_classes = W.shape[2]
    _check_shape("V", V, (size, num_classes, hidden), W)
    _check_shape("b", b, (size, num_classes), W)
    return num_classes


def _check_mixture(
    W: Tensor,
    c: Tensor,
    heads: tuple[Tensor | None, ...],
    activation_scale: Tensor | None,
    mixture: str,
    uniform_weights: bool,
) -> None:
    V_logits, b_logits, V_means, b_means, V_log_scales, b_log_scales = heads
    check_floating(
        W=W,
        c=c,
        V_logits=V_logits,
        b_logits=b_logits,
        activation_scale=activation_scale,
    )
    for name, value in (
        ("V_means", V_means),
        ("b_means", b_means),
        ("V_log_scales", V_log_scales),
        ("b_log_scales", b_log_scales),
    ):
        check_tensor(name, value)
        check_floating(**{"W": W, name: value})
    assert V_means is not None and b_means is not None
    assert V_log_scales is not None and b_log_scales is not None
    if mixture not in ops.MIXTURES:
        raise ValueError(f"mixture must be one of {tuple(ops.MIXTURES)}, got {mixture!r}")
    if uniform_weights != (V_logits is None) or uniform_weights != (b_logits is None):
        raise ValueError(
            "V_logits and b_logits must be None with uniform_weights=True and tensors without, got "
            f"uniform_weights={uniform_weights}, V_logits {_kind(V_logits)}, b_logits {_kind(b_logits)}"
        )
    hidden, size = _check_hidden(W, c, 2, "[H, D]")
    if V_means.ndim != 3 or V_means.shape[1] == 0:
        raise ValueError(
            f"V_means must have shape [D, M, H] with M of at least 1, got {tuple(V_means.shape)}"
        )
    num_mixtures = V_means.shape[1]
    for name, weight in (
        ("V_logits", V_logits),
        ("V_means", V_means),
        ("V_log_scales", V_log_scales),
    ):
        if weight is not None:
            _check_shape(name, weight, (size, num_mixtures, hidden), W)
    for name, bias in (
        ("b_logits", b_logits),
        ("b_means", b_means),
        ("b_log_scales", b_log_scales),
    ):
        if bias is not None:
            _check_shape(name, bias, (size, num_mixtures), W)
    if activation_scale is not None:
        _check_shape("activation_scale", activation_scale, (size,), W)


def _kind(value: Tensor | None) -> str:
    return "None" if value is None else "a tensor"


def _check_hidden(W: Tensor, c: Tensor, ndim: int, shape: str) -> tuple[int, int]:
    """(H, D)."""
    if W.ndim != ndim or 0 in W.shape:
        raise ValueError(f"W must have shape {shape}, none of them 0, got {tuple(W.shape)}")
    _check_shape("c", c, (W.shape[0],), W)
    return W.shape[0], W.shape[1]


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...], W: Tensor) -> None:
    if value.shape != shape:
        raise ValueError(
            f"{name} must have shape {shape} for W {tuple(W.shape)}, got {tuple(value.shape)}"
        )


def _check_data(x: Tensor, W: Tensor) -> None:
    check_tensor("x", x)
    if x.ndim < 1 or x.shape[-1] != W.shape[1]:
        raise ValueError(
            f"x must have shape [..., {W.shape[1]}] for W {tuple(W.shape)}, got {tuple(x.shape)}"
        )
    check_same_device("x", x, "W", W)


def _noise(
    num_samples: int,
    W: Tensor,
    event: tuple[int, ...],
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> Tensor:
    """The given noise [n, D, event], or uniforms."""
    if isinstance(num_samples, bool) or not isinstance(num_samples, int):
        raise TypeError(f"num_samples must be an int, got {type(num_samples).__name__}")
    if num_samples < 0:
        raise ValueError(f"num_samples must not be negative, got {num_samples}")
    shape = (num_samples, W.shape[1], *event)
    dtype = compute_dtype(W)
    if noise is None:
        return torch.rand(shape, dtype=dtype, device=W.device, generator=generator)
    check_floating(W=W, noise=noise)
    if noise.shape != shape:
        raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}")
    return noise.to(dtype)
