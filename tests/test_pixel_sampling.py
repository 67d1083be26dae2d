"""Cached sampling of causal pixel networks."""

from __future__ import annotations

import pytest
import torch
from helpers.pixel_networks import (
    dense_parameters,
    gated,
    pixelcnn,
    pixelcnn_pp,
    pixelrnn,
    random_condition,
    redrawn,
)
from torch import Tensor

from dgm_fast import functional, ops
from dgm_fast.functional import PixelDraw, PixelNetwork, PixelNetworkBuilder

DRAWS = {
    "binary": PixelDraw(scale=2.0, shift=-1.0),
    "binary-colors": PixelDraw("bernoulli", 3),
    "levels": PixelDraw("categorical", 1, 5, scale=0.5, shift=-1.0),
    "one-hot": PixelDraw("categorical", 1, 3, one_hot=True, ones=1),
    "colors": PixelDraw("categorical", 3, 17, scale=0.1, ones=2),
    "colors-one-hot": PixelDraw("categorical", 3, 4, one_hot=True, ones=1),
    "mixture": PixelDraw("logistic_mixture", 1, 256, 3),
    "mixture-colors": PixelDraw("logistic_mixture", 3, 256, 4, ones=1),
    "mixture-unrounded": PixelDraw("logistic_mixture", 3, None, 2),
}
NETWORKS = {
    "pixelcnn": pixelcnn,
    "gated": gated,
    "pixelcnn++": pixelcnn_pp,
    "row-lstm": lambda draw, **options: pixelrnn(draw, kind="row", **options),
    "diagonal-lstm": lambda draw, **options: pixelrnn(draw, kind="diagonal", **options),
}
# PixelCNN++ and PixelRNN here have no order of colours.
COLORED = ("pixelcnn", "gated")
CASES = [
    (network, draw)
    for network in NETWORKS
    for draw in DRAWS
    if network in COLORED or DRAWS[draw].steps == 1
]

needs_extension = pytest.mark.skipif(
    ops.active_isa() is None, reason="the C++ extension is not built"
)
each_case = pytest.mark.parametrize("network,draw", CASES)


def noise_of(
    network: PixelNetwork, batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, network.draw.noise_channels, *size)
    return torch.rand(shape, dtype=torch.float64, generator=generator).to(dtype)


def assert_same(value: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-9)


@each_case
def test_samples_are_those_of_dense_passes(network: str, draw: str) -> None:
    # At x itself every pixel's parameters are those it was drawn from: one pass checks all pixels.
    described = NETWORKS[network](DRAWS[draw], batch=5)
    for size in ((7, 9), (8, 4)):
        noise = noise_of(described, 5, size)
        x = functional.sample_pixels(described, noise)
        assert len(x.unique()) > 1
        assert_same(redrawn(described, noise, x), x)


@needs_extension
@each_case
def test_kernel_is_the_reference(network: str, draw: str) -> None:
    for batch, size in ((17, (5, 6)), (1, (7, 4)), (2, (1, 1)), (3, (1, 5)), (2, (6, 1))):
        described = NETWORKS[network](DRAWS[draw], batch=batch)
        noise = noise_of(described, batch, size)
        x = functional.sample_pixels(described, noise)
        with ops.backend("reference"):
            assert_same(x, functional.sample_pixels(described, noise))


@each_case
def test_in_painting(network: str, draw: str) -> None:
    described = NETWORKS[network](DRAWS[draw], batch=4)
    noise = noise_of(described, 4, (6, 7))
    values, given = random_condition(described.draw, 4, (6, 7))
    x = functional.sample_pixels(described, noise, conditioned_on=(values, given))
    assert_same(x[given].double(), values[given].double())
    drawn = redrawn(described, noise, x, given)
    assert_same(x[~given], drawn[~given])
    with ops.backend("reference"):
        again = functional.sample_pixels(described, noise, conditioned_on=(values, given))
    assert_same(x, again)


def test_masked_convolutions_are_those_of_the_function() -> None:
    weight, bias = torch.randn(12, 6, 3, 5), torch.randn(12)
    for mask_type, colors, order in (
        ("A", 3, "interleaved"),
        ("B", 3, "contiguous"),
        ("B", 1, "interleaved"),
    ):
        options = {
            "mask_type": mask_type,
            "data_channels": colors,
            "channel_order": order,
            "dilation": 2,
        }
        build = PixelNetworkBuilder(PixelDraw("categorical", 3, 4, ones=3))
        out = build.masked_convolution(build.image, weight, bias, **options)
        network = PixelNetwork(tuple(build.layers), (6, 12), (1, 1), out, PixelDraw())
        x = torch.randn(2, 6, 5, 7)
        torch.testing.assert_close(
            dense_parameters(network, x), functional.masked_conv2d(x, weight, bias, **options)
        )


@pytest.mark.parametrize("threads", [1, 3])
def test_float32_and_threads(threads: int) -> None:
    network = gated(DRAWS["colors"])
    noise = noise_of(network, 37, (5, 6), torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        x = functional.sample_pixels(network, noise)
    finally:
        torch.set_num_threads(before)
    assert x.dtype == torch.int64
    # Some draw may fall within rounding of a probability.
    assert (redrawn(network, noise, x) == x).double().mean() > 0.999
    # A sample does not depend on those beside it.
    assert torch.equal(functional.sample_pixels(network, noise[:5]), x[:5])


def test_empty_and_strided_arguments() -> None:
    network = pixelcnn(DRAWS["binary"])
    noise = noise_of(network, 3, (4, 5))
    strided = noise.transpose(2, 3).contiguous().transpose(2, 3)
    x = functional.sample_pixels(network, noise)
    assert torch.equal(functional.sample_pixels(network, strided), x)
    assert functional.sample_pixels(network, noise[:0]).shape == (0, 1, 4, 5)
    assert functional.sample_pixels(network, noise[:, :, :0]).shape == (3, 1, 0, 5)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_progress(backend: str) -> None:
    network = pixelcnn(DRAWS["binary"])
    noise = noise_of(network, 3, (4, 5))
    heard = []
    with ops.backend(backend):
        x = functional.sample_pixels(network, noise, progress=lambda *at: heard.append(at))
        assert torch.equal(functional.sample_pixels(network, noise), x)
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done: int, total: int) -> None:
        heard.append((done, total))
        raise KeyboardInterrupt

    with ops.backend(backend), pytest.raises(KeyboardInterrupt):
        functional.sample_pixels(network, noise, progress=stop)
    assert heard[4:] == [(1, 4)]
    # The interrupted call leaves nothing behind.
    assert torch.equal(functional.sample_pixels(network, noise), x)


def test_bar(capsys: pytest.CaptureFixture[str]) -> None:
    network = pixelcnn(DRAWS["binary"])
    functional.sample_pixels(network, noise_of(network, 1, (2, 2)), progress=True)
    assert capsys.readouterr().err.endswith("2/2 rows\n")


@needs_extension
@pytest.mark.parametrize("level", ops.runnable_isas())
def test_every_isa_level(level: str) -> None:
    active = ops.active_isa()
    assert active is not None
    try:
        ops.use_isa(level)
        for draw in ("colors-one-hot", "mixture-colors"):
            network = (gated if DRAWS[draw].steps > 1 else pixelcnn_pp)(DRAWS[draw], width=22)
            noise = noise_of(network, 9, (5, 6))
            x = functional.sample_pixels(network, noise)
            assert_same(redrawn(network, noise, x), x)
    finally:
        ops.use_isa(active)


def _one(
    taps: list, *, moment: str = "pixel", draw: PixelDraw = DRAWS["binary"], **change: object
) -> None:
    """A network of one convolution."""
    build = PixelNetworkBuilder(draw)
    weight = torch.ones(draw.parameters, draw.input_channels, len(taps))
    out = build.convolution(build.image, weight, taps=taps, moment=moment, **change)
    build.build(out)


def test_a_pixel_sees_neither_itself_nor_later_ones() -> None:
    _one([(-1, 0), (-1, 3), (0, -1)])
    _one([(-1, 0), (-1, 3)], moment="row")
    for tap in ((0, 0), (0, 1), (1, -1)):
        with pytest.raises(ValueError, match=r"layers\[0\] \(convolution\): tap .* is not causal"):
            _one([tap])
    with pytest.raises(
        ValueError, match=r"tap \(0, -1\) of buffer 0 is not causal: at moment 'row'"
    ):
        _one([(0, -1)], moment="row")
    with pytest.raises(ValueError, match="sees a colour that is drawn after it"):
        _one([(0, 0)], draw=DRAWS["binary-colors"], groups=[0, 1, 2])
    with pytest.raises(ValueError, match="belong to a later one"):
        _one([(0, -1)], draw=DRAWS["binary-colors"], groups=[0, 2, 2])


def test_states_run_before_they_are_read() -> None:
    build = PixelNetworkBuilder(DRAWS["binary"])
    state = build.buffer(1)
    ahead = build.convolution(state, torch.ones(1, 1, 1), taps=[(0, 0)])
    build.convolution(ahead, torch.ones(1, 1, 1), taps=[(0, 0)], output=state)
    with pytest.raises(ValueError, match=r"layers\[0\].*tap \(0, 0\) of buffer 1 is not causal"):
        build.build(ahead)
    build = PixelNetworkBuilder(DRAWS["binary"])
    with pytest.raises(ValueError, match="no layer writes buffer 1"):
        build.build(build.convolution(build.buffer(1), torch.ones(1, 1, 1), taps=[(0, -1)]))


def test_bad_descriptions() -> None:
    network = pixelcnn(DRAWS["binary"])
    noise = noise_of(network, 2, (3, 3))

    def changed(at: int, **fields: object) -> PixelNetwork:
        layers = list(network.layers)
        layers[at] = layers[at]._replace(**fields)
        return network._replace(layers=tuple(layers))

    for bad, message in (
        (changed(1, kind="softmax"), "kind must be one of"),
        (changed(1, moment="column"), "moment must be one of"),
        (changed(1, inputs=(99,)), "must be buffers 0 to"),
        (changed(0, taps=((0, -1),)), r"weight must be \[out, in, taps\]"),
        (changed(0, bias=torch.ones(3)), "bias must be"),
        (changed(0, groups=(1,) * 7), "groups must hold the colour"),
        (changed(1, output=1), "has its values already"),
        (changed(1, kind="concat_elu"), "channels do not make"),
        (changed(0, bias=torch.ones(3, 7)), "bias is for 3 images"),
        (network._replace(output=2), "takes 1 parameters a pixel"),
        (network._replace(channels=(2, *network.channels[1:])), "buffer 0 must have"),
        (network._replace(strides=(1, 3, *network.strides[2:])), "power of two"),
        (network._replace(strides=(1, 2, *network.strides[2:])), "element-wise"),
        (network._replace(draw=PixelDraw("gaussian")), "draw.kind must be one of"),
        (network._replace(draw=PixelDraw("logistic_mixture", 2)), "1 or 3 colors"),
    ):
        with pytest.raises(ValueError, match=message):
            functional.sample_pixels(bad, noise)
    with pytest.raises(TypeError, match="must be floating point"):
        functional.sample_pixels(changed(0, bias=torch.ones(7, dtype=torch.int64)), noise)
    with pytest.raises(TypeError, match="network must be a PixelNetwork"):
        functional.sample_pixels(torch.nn.Conv2d(1, 1, 3), noise)
    with pytest.raises(ValueError, match=r"noise must have shape \[B, 1, H, W\]"):
        functional.sample_pixels(network, noise[0])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_given_values(backend: str) -> None:
    given = torch.tensor([[[True, False]]])
    for draw, bad in (("binary", 2.0), ("levels", 5.0), ("levels", 0.5), ("mixture", 1.5)):
        network = pixelcnn(DRAWS[draw])
        noise = noise_of(network, 2, (1, 2))
        good = torch.tensor([[[0.0, bad]]])
        with ops.backend(backend):
            # Only what is given has to be a value.
            functional.sample_pixels(network, noise, conditioned_on=(good, given))
            with pytest.raises(ValueError, match="x must hold"):
                functional.sample_pixels(network, noise, conditioned_on=(good.flip(2), given))
    with pytest.raises(ValueError, match="conditioned_on given must have shape"):
        functional.sample_pixels(network, noise, conditioned_on=(good, given[0]))
