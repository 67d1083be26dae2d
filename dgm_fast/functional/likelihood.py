"""Log-likelihoods of decoders: drop-in, fused, differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import (
    check_data,
    check_data_shape,
    check_event,
    check_event_ndim,
    check_floating,
    check_parameter_shape,
    check_same_device,
    class_index,
    promoted,
    unit_interval,
)
from dgm_fast.functional._values import check_before_kernel, reference_with_checks
from dgm_fast.reference._common import compute_dtype

# Integers that bfloat16 holds exactly.
_EXACT_IN_ALL = (torch.bool, torch.uint8, torch.int8)

UNIT_INTERVAL = "values in [0, 1] for the Bernoulli likelihood"


def class_range(num_classes: int) -> str:
    return f"class indices between 0 and {num_classes - 1}"


def bernoulli_log_prob(logits: Tensor, x: Tensor, *, event_ndim: int = 1) -> Tensor:
    r"""Log-probability of binary data under independent Bernoulli variables given by logits.

    .. math:: \log p(x) = \sum_d x_d l_d - \log(1 + e^{l_d})

    Args:
        logits: floating point, [..., event]; the last ``event_ndim`` dimensions are the event.
        x: values in [0, 1] (bool, integer or floating point; a value between 0 and 1 gives the
            cross-entropy). Same number of dimensions as ``logits``, where leading dimensions of size 1
            broadcast, or exactly the event dimensions.
        event_ndim: how many trailing dimensions to sum over.

    Returns:
        [...] in nats, float32 (float64 for float64 logits). Differentiable in ``logits`` and ``x``.

    Raises:
        TypeError: if an argument has the wrong type or ``logits`` is not floating point.
        ValueError: if shapes or devices do not match, or (on the CPU, or on CUDA under
            ``check_values(True)``) if x is outside [0, 1]; otherwise such a sample is NaN.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), appendix C.1.
    """
    check_floating(logits=logits)
    x = check_data(x)
    check_event_ndim(event_ndim, logits.ndim, "logits")
    check_data_shape(x, logits.shape, event_ndim, "logits")
    check_same_device("x", x, "logits", logits)
    if ops.use_kernel(logits):
        if not x.is_cpu:
            check_before_kernel(x, lambda: unit_interval(x), UNIT_INTERVAL)
        return ops.bernoulli_log_prob(logits, x, event_ndim)
    return reference_with_checks(
        lambda data: reference.bernoulli_log_prob(logits, data, event_ndim=event_ndim),
        x,
        unit_interval(x),
        UNIT_INTERVAL,
        event_ndim,
    )


def gaussian_log_prob(
    x: Tensor, mean: Tensor, log_var: Tensor | None = None, *, event_ndim: int = 1
) -> Tensor:
    r"""Log-density of independent Gaussian variables.

    .. math:: \log p(x) = -\tfrac12 \sum_d \log 2\pi + \log\sigma_d^2 + (x_d - \mu_d)^2 / \sigma_d^2

    Args:
        x: [..., event], bool, integer or floating point.
        mean: floating point; [], the event dimensions, or as many dimensions as the result of
            broadcasting (size 1 broadcasts).
        log_var: log-variance, shaped by the same rule; None means unit variance.
        event_ndim: how many trailing dimensions to sum over.

    Returns:
        [...] in nats, float32 (float64 if any argument is float64). Differentiable in all arguments.

    Raises:
        TypeError: if an argument has the wrong type or a parameter is not floating point.
        ValueError: if shapes or devices do not match.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), appendix C.2.
    """
    x = check_data(x)
    check_floating(mean=mean, log_var=log_var)
    check_same_device("x", x, "mean", mean)
    # The decoder output is whichever has the most dimensions; x aligns with it by the data rule.
    full = mean
    if log_var is not None and log_var.ndim > full.ndim:
        full = log_var
    if full.ndim > x.ndim:
        check_event_ndim(event_ndim, full.ndim, "mean")
        check_data_shape(x, full.shape, event_ndim, "mean")
    else:
        full = x
        check_event_ndim(event_ndim, full.ndim, "x")
    check_parameter_shape("mean", mean, full.shape, event_ndim, "x")
    if log_var is not None:
        check_parameter_shape("log_var", log_var, full.shape, event_ndim, "x")
        if log_var.dtype != mean.dtype:
            mean, log_var = promoted(mean, log_var)
    check_event(x, event_ndim, mean=mean, log_var=log_var)
    if x.dtype != mean.dtype:
        if x.dtype in _EXACT_IN_ALL:
            x = x.to(mean.dtype)
        elif not x.dtype.is_floating_point:
            # Rounded to the dtype of a bfloat16 mean, 1001 would be 1000.
            x = x.to(compute_dtype(mean))
        # Kernels read float32 data beside parameters of less precision as they are.
        if x.dtype != compute_dtype(mean):
            x, mean, log_var = promoted(x, mean, log_var)
    if ops.use_kernel(mean):
        return ops.gaussian_log_prob(x, mean, log_var, event_ndim)
    return reference.gaussian_log_prob(x, mean, log_var, event_ndim=event_ndim)


def categorical_log_prob(
    logits: Tensor, x: Tensor, *, class_dim: int = 1, event_ndim: int | None = None
) -> Tensor:
    r"""Log-probability of class indices under independent categorical variables given by logits.

    .. math:: \log p(x) = \sum_d l_{x_d, d} - \log \sum_c e^{l_{c, d}}

    Args:
        logits: floating point, with the classes along ``class_dim``, e.g. [B, C, D] or [B, C, H, W].
        x: class indices (integer, bool or whole floating-point numbers) in the shape of ``logits``
            without ``class_dim``, where leading dimensions of size 1 broadcast, or exactly the event
            dimensions.
        class_dim: the dimension of the classes.
        event_ndim: how many trailing dimensions of x to sum over; None sums all dimensions from
            ``class_dim`` on.

    Returns:
        The remaining dimensions, in nats, float32 (float64 for float64 logits). Differentiable in
        ``logits``.

    Raises:
        TypeError: if an argument has the wrong type or ``logits`` is not floating point.
        ValueError: if shapes or devices do not match, if x requires grad, or (on the CPU, or on CUDA
            under ``check_values(True)``) if an index is out of range; otherwise that sample is NaN.

    Source: van den Oord et al., "Pixel Recurrent Neural Networks" (2016), section 2.
    """
    check_floating(logits=logits)
    x = check_data(x)
    if not -logits.ndim <= class_dim < logits.ndim:
        raise ValueError(
            f"class_dim must be a dimension of logits {tuple(logits.shape)}, got {class_dim}"
        )
    class_dim %= logits.ndim
    shape = logits.shape[:class_dim] + logits.shape[class_dim + 1 :]
    num_classes = logits.shape[class_dim]
    if num_classes == 0:
        raise ValueError(f"logits has no classes: shape {tuple(logits.shape)}, dim {class_dim}")
    if event_ndim is None:
        event_ndim = len(shape) - class_dim
    check_event_ndim(event_ndim, len(shape), "x")
    check_data_shape(x, shape, event_ndim, "logits without its class dimension")
    check_same_device("x", x, "logits", logits)
    if x.requires_grad:
        raise ValueError("x holds class indices and must not require grad")
    if ops.use_kernel(logits):
        if not x.is_cpu:
            check_before_kernel(x, lambda: class_index(x, num_classes), class_range(num_classes))
        return ops.categorical_log_prob(logits, x, class_dim, event_ndim)
    return reference_with_checks(
        lambda data: reference.categorical_log_prob(
            logits, data, class_dim=class_dim, event_ndim=event_ndim
        ),
        x,
        class_index(x, num_classes),
        class_range(num_classes),
        event_ndim,
        safe=lambda data: data.clamp(0, num_classes - 1),
    )
