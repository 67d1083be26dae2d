"""Cached sampling of causal pixel networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast import functional
from dgm_fast.functional import PixelDraw, PixelLayer, PixelNetwork, PixelNetworkBuilder
from dgm_fast.reference._common import draw_class


def dense_convolution(
    layer: PixelLayer, network: PixelNetwork, x: Tensor, size: list[int]
) -> Tensor:
    """The layer at all positions by the library's convolutions over a kernel with zeros at dead taps."""
    reach = max(abs(d) for tap in layer.taps for d in tap)
    weight = layer.weight.to(x)
    kernel = weight.new_zeros(*weight.shape[:2], 2 * reach + 1, 2 * reach + 1)
    up = network.strides[layer.inputs[0]] > network.strides[layer.output]
    for t, (dy, dx) in enumerate(layer.taps):
        at = (reach - dy, reach - dx) if up else (reach + dy, reach + dx)
        kernel[:, :, at[0], at[1]] += weight[:, :, t]
    if up:
        out = F.conv_transpose2d(
            x, kernel.transpose(0, 1), stride=2, padding=reach, output_padding=1
        )
    else:
        stride = network.strides[layer.output] // network.strides[layer.inputs[0]]
        out = F.conv2d(x, kernel, stride=stride, padding=reach)
    if layer.bias is not None:
        bias = layer.bias.to(x)
        out = out + bias.reshape(*bias.shape, 1, 1)
    return out[..., : size[0], : size[1]]


def dense_parameters(network: PixelNetwork, image: Tensor) -> Tensor:
    """One pass over a whole image [B, C, H, W] as the network sees it."""
    maps: dict[int, Tensor] = {0: image}
    for layer in network.layers:
        seen = [maps[b] for b in layer.inputs]
        stride = network.strides[layer.output]
        size = [-(-n // stride) for n in image.shape[2:]]
        if layer.kind == "convolution":
            out = dense_convolution(layer, network, torch.cat(seen, 1), size)
        elif layer.kind == "concat_elu":
            out = F.elu(torch.cat([seen[0], -seen[0]], 1))
        elif layer.kind == "tanh_gate":
            a, b = seen[0].chunk(2, 1)
            out = torch.tanh(a) * torch.sigmoid(b)
        elif layer.kind == "linear_gate":
            a, b = seen[0].chunk(2, 1)
            out = a * torch.sigmoid(b)
        elif layer.kind == "add":
            out = torch.stack(seen).sum(0)
        elif layer.kind == "concatenate":
            out = torch.cat(seen, 1)
        else:
            out = {"relu": F.relu, "elu": F.elu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[
                layer.kind
            ](seen[0])
        maps[layer.output] = out
    return maps[network.output]


def encode(draw: PixelDraw, x: Tensor, dtype: torch.dtype) -> Tensor:
    if draw.one_hot:
        hot = F.one_hot(x.long(), draw.levels).to(dtype)  # [B, C, H, W, L]
        image = hot.permute(0, 4, 1, 2, 3).flatten(1, 2)
    else:
        image = draw.scale * x.to(dtype) + draw.shift
    return torch.cat([image, image.new_ones(len(x), draw.ones, *x.shape[2:])], 1)


def redraw(network: PixelNetwork, noise: Tensor, x: Tensor) -> Tensor:
    """What the noise makes of the parameters at the image x: x itself, if every pixel was drawn so."""
    draw = network.draw
    params = dense_parameters(network, encode(draw, x, noise.dtype))
    if draw.kind == "bernoulli":
        return (noise < torch.sigmoid(params)).to(params.dtype)
    if draw.kind == "categorical":
        logits = params.unflatten(1, (draw.levels, draw.colors)).movedim(1, -1)
        return draw_class(logits, noise)
    return functional.sample_discretized_logistic_mixture(
        params, num_mixtures=draw.num_mixtures, levels=draw.levels, noise=noise
    )


def rand_conv(
    out: int, inputs: int, taps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    weight = torch.randn(out, inputs, taps, generator=generator) / (inputs * taps) ** 0.5
    return weight, 0.3 * torch.randn(out, generator=generator)


def pixelcnn(draw: PixelDraw, seed: int = 0, width: int = 6) -> PixelNetwork:
    generator = torch.Generator().manual_seed(seed)
    build = PixelNetworkBuilder(draw)
    colors = draw.colors

    def conv(x: int, out: int, inputs: int, kernel: int, mask_type: str, dilation: int = 1) -> int:
        weight = torch.randn(out, inputs, kernel, kernel, generator=generator)
        weight *= 2 * (inputs * kernel * kernel) ** -0.5
        bias = 0.3 * torch.randn(out, generator=generator)
        return build.masked_convolution(
            x, weight, bias, mask_type=mask_type, data_channels=colors, dilation=dilation
        )

    h = conv(0, width, draw.input_channels, 7, "A")
    for dilation in (1, 2):
        r = build.elementwise("relu", h)
        r = conv(r, width, width, 3, "B", dilation)
        h = build.elementwise("add", h, build.elementwise("elu", r))
    return build.build(conv(h, draw.parameters, width, 1, "B"))


def test_draft() -> None:
    for draw in (
        PixelDraw(),
        PixelDraw("categorical", 1, 5, scale=0.5, shift=-1.0),
        PixelDraw("categorical", 3, 4, one_hot=True),
        PixelDraw("bernoulli", 3),
        PixelDraw("logistic_mixture", 1, 256, 3),
    ):
        network = pixelcnn(draw)
        noise = torch.rand(5, draw.noise_channels, 7, 9, dtype=torch.float64)
        x = functional.sample_pixels(network, noise, progress=True)
        torch.testing.assert_close(redraw(network, noise, x).to(x), x, rtol=1e-9, atol=1e-9)
