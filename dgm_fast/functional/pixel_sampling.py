"""Cached sampling of causal pixel networks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgm_fast import ops, reference
from dgm_fast.functional._checks import check_floating, class_index, unit_interval
from dgm_fast.functional._conditions import Condition, check_condition
from dgm_fast.functional._values import check_given
from dgm_fast.functional.likelihood import UNIT_INTERVAL, class_range
from dgm_fast.functional.mixture import PIXEL_RANGE
from dgm_fast.functional.pixel_network import PixelNetwork, check_network

# Hears how many rows of how many are done.
Progress = Callable[[int, int], None]


def sample_pixels(
    network: PixelNetwork,
    noise: Tensor,
    *,
    conditioned_on: Condition | None = None,
    progress: bool | Progress = False,
) -> Tensor:
    """Draw images pixel by pixel, in raster order, at the cost of about one pass through the network.

    Every layer keeps its activations: what depends on the rows above alone is computed once a row, the rest
    once a pixel (under colour ordering every unit once, before its colour is drawn). On the CPU one
    compiled call draws the whole batch; on CUDA a captured row is played for all rows.

    Args:
        network: the layers and the draw, from a model's ``pixel_network`` or a
            :class:`PixelNetworkBuilder`.
        noise: uniforms in [0, 1), [B, C, H, W], or [B, 1 + C, H, W] for a logistic mixture (component, then
            colours). The same noise gives the samples of a pass per pixel, but for noise within rounding
            of a probability.
        conditioned_on: (values, given), [C, H, W] or [B, C, H, W] each: values are kept where the boolean
            ``given`` is True, and every other pixel is drawn given all before it. (Later ones do not
            influence it.)
        progress: True shows a bar on stderr; a callable hears (rows done, rows).

    Returns:
        [B, C, H, W] without gradients: 0 and 1 for Bernoulli pixels, values in [-1, 1] for a mixture, both
        float32 (float64 if noise or network is float64), levels as int64 for categorical pixels.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if shapes or devices do not match, the network is not causal, or given values are none
            of the draw's (on CUDA under ``check_values(True)``).

    Source: Ramachandran et al., "Fast Generation for Convolutional Autoregressive Models" (2017).
    """
    if not isinstance(network, PixelNetwork):
        raise TypeError(f"network must be a PixelNetwork, got {type(network).__name__}")
    check_network(network)
    _check_noise(network, noise)
    shape = (noise.shape[0], network.draw.colors, *noise.shape[2:])
    values, given = check_condition(conditioned_on, shape, "noise", noise)
    if values is not None and given is not None:
        _check_values(network, values, given)
    height = noise.shape[2]
    told: Callable[[int], None] | None = None
    if callable(progress):
        tell = progress
        told = lambda done: tell(done, height)  # noqa: E731
    elif progress:
        told = lambda done: show_rows(done, height)  # noqa: E731
    with torch.no_grad():
        if ops.use_kernel(noise, "pixel_sampling"):
            arguments = (noise, *ops.pixel_arguments(network), values, given)
            if told is None:
                return ops.pixel_sample(*arguments)
            with ops.row_progress(told):
                return ops.pixel_sample(*arguments)
        return reference.pixel_sample(network, noise, values, given, told)


def show_rows(done: int, total: int) -> None:
    """A bar on stderr, on the same line each time."""
    width = 40 * done // total
    end = "\n" if done == total else ""
    print(f"\r[{'#' * width:<40}] {done}/{total} rows", end=end, file=sys.stderr, flush=True)


def _check_noise(network: PixelNetwork, noise: Any) -> None:
    tensors = {"noise": noise}
    for i, layer in enumerate(network.layers):
        tensors[f"layers[{i}].weight"] = layer.weight
        tensors[f"layers[{i}].bias"] = layer.bias
    check_floating(**tensors)
    channels = network.draw.noise_channels
    if noise.ndim != 4 or noise.shape[1] != channels:
        raise ValueError(f"noise must have shape [B, {channels}, H, W], got {tuple(noise.shape)}")
    for i, layer in enumerate(network.layers):
        if layer.bias is not None and layer.bias.ndim == 2 and len(layer.bias) != len(noise):
            raise ValueError(
                f"layers[{i}].bias is for {len(layer.bias)} images, but noise is for {len(noise)}"
            )


def _check_values(network: PixelNetwork, values: Tensor, given: Tensor) -> None:
    draw = network.draw
    if draw.kind == "bernoulli":
        check_given(values, given, unit_interval(values), UNIT_INTERVAL)
    elif draw.kind == "categorical":
        classes = draw.levels or 0
        check_given(values, given, class_index(values, classes), class_range(classes))
    else:
        check_given(values, given, (values >= -1) & (values <= 1), PIXEL_RANGE)
