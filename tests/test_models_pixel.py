"""PixelCNN, GatedPixelCNN and PixelCNNPP: what sees what, probabilities, samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.distributions import cell_index, chi_square, every_vector
from helpers.pixel_models import allowed, seen, some, strong
from torch import Tensor

import dgm_fast
from dgm_fast.models import GatedPixelCNN, PixelCNN, PixelCNNPP
from dgm_fast.models._pixel import PixelModel
from dgm_fast.models._pixel_likelihood import LogisticMixturePixels


def pixel_cnn(colours: int = 1, levels: int = 3, **options) -> PixelModel:
    options = {"channels": 8, "num_layers": 2, "first_kernel_size": 5, **options}
    return strong(PixelCNN(colours, num_levels=levels, **options))


def gated(colours: int = 1, levels: int = 3, **options) -> PixelModel:
    options = {"channels": 5, "num_layers": 3, "first_kernel_size": 3, **options}
    return strong(GatedPixelCNN(colours, num_levels=levels, **options))


def plus_plus(colours: int = 1, levels: int = 3, **options) -> PixelModel:
    options = {"channels": 4, "num_blocks": 2, "num_mixtures": 2, "num_resolutions": 3, **options}
    return strong(PixelCNNPP(colours, num_levels=levels, **options), 1.0)


ALL = [pixel_cnn, gated, plus_plus]
Make = Callable[..., PixelModel]
# Odd sizes, a single pixel, lines.
SIZES = [(4, 5), (1, 1), (1, 4), (5, 1)]


def uniforms(model: PixelModel, n: int, size: tuple[int, int], seed: int = 2) -> Tensor:
    shape = (n, model.likelihood.noise_per_pixel, *size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def surprise(index: Tensor, log_prob: Tensor) -> float:
    """Chi-square of drawn cells; cells that are hardly ever drawn count as one."""
    likely = log_prob.exp() * len(index) > 6
    cells = torch.where(likely, likely.cumsum(0) - 1, likely.sum())
    rest = log_prob[~likely].logsumexp(0, keepdim=True)
    if rest.exp() * len(index) < 6:
        keep = likely[index]
        index, log_prob = index[keep], log_prob - log_prob[likely].logsumexp(0)
        return chi_square(cells[index], log_prob[likely])
    return chi_square(cells[index], torch.cat([log_prob[likely], rest]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [gated, plus_plus])
def test_exactly_what_comes_before_is_seen(make, channels, size) -> None:
    # Layers enough to reach every pixel: no blind spot, and no leak.
    options = {"num_layers": 5, "channels": 16, "head_channels": 24} if make is gated else {}
    model = make(channels, **options)
    pixels = size[0] * size[1]
    before = torch.ones(pixels, pixels, dtype=torch.bool).tril(-1)
    outputs = 1 if model.likelihood.joint else channels
    assert torch.equal(seen(model, size), allowed(outputs, channels, before))


def reached(size: tuple[int, int], first: int, later: int, layers: int) -> Tensor:
    """Pixels that reach a pixel through a mask of type A and ``layers`` of type B, [D, D]."""
    height, width = size
    cells = [(i, j) for i in range(height) for j in range(width)]

    def step(reach: int) -> Tensor:
        table = torch.zeros(len(cells), len(cells), dtype=torch.bool)
        for p, (i, j) in enumerate(cells):
            for q, (k, m) in enumerate(cells):
                near = max(abs(i - k), abs(j - m)) <= reach
                table[p, q] = near and (k, m) < (i, j)
        return table

    table = step(later // 2) | torch.eye(len(cells), dtype=torch.bool)
    total = step(first // 2).long()
    for _ in range(layers):
        total = (table.long() @ total).clamp(max=1)
    return total.bool()


@pytest.mark.parametrize("size", [*SIZES, (6, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_cnn_sees_what_its_masks_let_through(channels, size) -> None:
    model = pixel_cnn(channels, first_kernel_size=3, channels=48)
    before = reached(size, 3, 3, 2)
    if size == (6, 6):
        # The blind spot of the masks.
        everything = torch.ones(36, 36, dtype=torch.bool).tril(-1)
        assert (before < everything).any()
    assert torch.equal(seen(model, size), allowed(channels, channels, before))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", ALL)
def test_a_changed_pixel_changes_nothing_before_it(make, channels) -> None:
    model, x = make(channels, 4), some(2, (channels, 5, 6), 4)
    out = model.conditionals(x)
    for c, i, j in [(0, 0, 0), (channels - 1, 2, 3), (0, 4, 5)]:
        other = x.clone()
        other[:, c, i, j] = (other[:, c, i, j] + 1) % 4
        change = (model.conditionals(other) - out).abs()
        change = change.amax((0, 1)) if change.ndim == 5 else change.amax((0, 1))[None]
        assert (change.flatten(1)[:, : i * 6 + j] == 0).all()
        assert (change[: c + 1, i, j] == 0).all()
        assert (i, j) == (4, 5) or (change.flatten(1)[:, i * 6 + j + 1 :] > 0).any()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("make", ALL)
def test_probabilities_of_three_levels_sum_to_one(make, backend) -> None:
    with dgm_fast.backend(backend):
        x = every_vector(4, 3).view(-1, 1, 2, 2)
        assert len(x) == 81
        total = make().double().log_prob(x).logsumexp(0).item()
    # Bins of almost no probability are given that of the density (their formula).
    assert abs(total) < (1e-3 if make is plus_plus else 1e-12)


@pytest.mark.parametrize(("channels", "size"), [(1, (2, 2)), (3, (1, 2))])
@pytest.mark.parametrize("make", ALL)
def test_probabilities_of_bits_sum_to_one(make, channels, size) -> None:
    x = every_vector(channels * size[0] * size[1], 2).view(-1, channels, *size)
    log_prob = make(channels, 2).double().log_prob(x)
    assert log_prob.exp().max() < 0.99
    assert abs(log_prob.logsumexp(0).item()) < 1e-12


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", ALL)
def test_likelihood_is_that_of_the_conditionals(make, channels, levels, size) -> None:
    model, x = make(channels, levels), some(3, (channels, *size), levels)
    out = model.conditionals(x)
    if isinstance(model.likelihood, LogisticMixturePixels):
        expected = dgm_fast.functional.discretized_logistic_mixture_log_prob(
            out, x * (2 / (levels - 1)) - 1, num_mixtures=2, levels=levels
        )
    elif levels == 2:
        assert out.shape == x.shape
        expected = -F.binary_cross_entropy_with_logits(out, x.float(), reduction="none")
        expected = expected.sum((1, 2, 3))
    else:
        assert out.shape == (3, levels, channels, *size)
        expected = -F.cross_entropy(out, x, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.nll(x), -expected, rtol=1e-5, atol=1e-5)
    bits = -expected / (channels * size[0] * size[1] * math.log(2))
    torch.testing.assert_close(model.bits_per_dim(x), bits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), -expected.mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.log_prob(x[:1]), expected[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", ALL)
def test_forms_of_data(make, channels) -> None:
    model = make(channels, 3, image_shape=(channels, 3, 4))
    x = some(2, (channels, 3, 4), 3)
    expected = model.log_prob(x)
    forms = [x.flatten(1), x.to(torch.uint8), x.float()]
    forms += [x.squeeze(1)] if channels == 1 else []
    for form in forms:
        torch.testing.assert_close(model.log_prob(form), expected)
    for bad in (x[0, 0, 0], x[:, :, :, :3].flatten(1), torch.cat([x, x], 1)):
        with pytest.raises(ValueError, match="x must have shape"):
            model.log_prob(bad)
    with pytest.raises(ValueError, match=r"levels|class|0, 2"):
        model.log_prob(x + 1)
    with pytest.raises(ValueError, match="require grad"):
        model.log_prob(x.float().requires_grad_())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", ALL)
def test_samples_follow_the_conditionals(make, channels) -> None:
    """Every entry of a sample is the draw of its conditional, given the sample itself, by its noise."""
    model, size = make(channels, 4), (3, 4)
    noise = uniforms(model, 6, size)
    x = model.sample(6, noise=noise)
    assert x.shape == (6, channels, *size)
    assert x.dtype == torch.int64
    out = model.conditionals(x)
    if model.likelihood.joint:
        drawn = dgm_fast.functional.sample_discretized_logistic_mixture(
            out, num_mixtures=2, levels=4, noise=noise
        )
        expected = ((drawn + 1) * 1.5).round().long()
    else:
        cdf = out.softmax(1).cumsum(1)
        expected = (cdf <= noise.unsqueeze(1) * cdf[:, -1:]).sum(1)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize(("channels", "size"), [(1, (2, 2)), (3, (1, 2))])
@pytest.mark.parametrize("make", ALL)
def test_samples_have_the_probabilities_of_the_density(make, channels, size, levels) -> None:
    if channels == 3 and levels == 3:
        size = (1, 1)
    model = make(channels, levels)
    for parameter in model.parameters():
        parameter.data *= 0.6
    dims = channels * size[0] * size[1]
    log_prob = model.log_prob(every_vector(dims, levels).view(-1, channels, *size)).double()
    generator = torch.Generator().manual_seed(3)
    x = model.sample(20_000, image_shape=size, generator=generator)
    assert abs(surprise(cell_index(x.flatten(1).long(), levels), log_prob.detach())) < 4


@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", ALL)
def test_given_entries_are_kept(make, channels, levels) -> None:
    model, size = make(channels, levels), (3, 4)
    noise = uniforms(model, 5, size)
    free = model.sample(5, noise=noise)
    values = some(5, (channels, *size), levels).float()
    given = torch.rand(values.shape, generator=torch.Generator().manual_seed(4)) < 0.4
    values[~given] = math.nan
    x = model.sample(5, conditioned_on=(values, given), noise=noise)
    assert torch.equal(x[given].float(), values[given])
    assert not torch.equal(x, free)
    # Given what is drawn anyway, nothing changes; what comes later has no influence.
    later = given.clone()
    later.flatten(2)[:, :, :6] = False
    x = model.sample(5, conditioned_on=(values, later), noise=noise)
    assert torch.equal(x.flatten(2)[:, :, :6], free.flatten(2)[:, :, :6])
    everything = torch.ones_like(given)
    assert torch.equal(model.sample(5, conditioned_on=(free, everything)), free)
    one = torch.zeros(channels, *size), everything[0]
    assert (model.sample(5, conditioned_on=one) == 0).all()


@pytest.mark.parametrize("given", [(True, False, False), (False, True, False)])
def test_a_given_colour_changes_the_component(given) -> None:
    """Of one pixel: draws with a colour given have the density's conditional probabilities."""
    model, kept = plus_plus(3, 3), torch.tensor(given)
    x = every_vector(3, 3)
    log_prob = model.log_prob(x.view(-1, 3, 1, 1)).double().detach()
    values = torch.tensor([2, 0, 1])
    n = 20_000
    condition = values.view(3, 1, 1), kept.view(3, 1, 1)
    generator = torch.Generator().manual_seed(5)
    drawn = model.sample(n, conditioned_on=condition, generator=generator).flatten(1)
    if given[0]:
        log_prob[x[:, 0] != values[0]] = -math.inf
        log_prob -= log_prob.logsumexp(0)
    else:
        # Red has its marginal probability, blue its probability given both.
        joint = log_prob.view(3, 3, 3)
        red = joint.logsumexp((1, 2))
        blue = joint - joint.logsumexp(2, keepdim=True)
        log_prob = (red[:, None, None] + blue).flatten()
        log_prob[x[:, 1] != values[1]] = -math.inf
    possible = log_prob > -math.inf
    cells = torch.full((27,), -1)
    cells[possible] = torch.arange(int(possible.sum()))
    index = cells[cell_index(drawn, 3)]
    assert (index >= 0).all()
    assert abs(surprise(index, log_prob[possible])) < 4


def pairs_of_samples(model: PixelModel, n: int, **options) -> tuple[Tensor, Tensor]:
    return model.sample(n, **options), model.sample(n, cached=False, **options)


@pytest.mark.parametrize(
    ("levels", "size"), [(5, size) for size in (*SIZES, (7, 6), (8, 8))] + [(2, (4, 5))]
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", ALL)
def test_cached_samples_equal_dense_ones(make, channels, levels, size) -> None:
    model = make(channels, levels, image_shape=size).double()
    noise = uniforms(model, 5, size).double()
    cached, dense = pairs_of_samples(model, 5, noise=noise)
    assert torch.equal(cached, dense)
    assert cached.dtype == dense.dtype
    # Of float32 models, but where noise lies within rounding of a probability.
    cached = model.float().sample(5, noise=noise)
    assert (cached != dense).sum() <= 0.02 * dense.numel() + 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", ALL)
def test_cached_samples_keep_given_entries(make, channels) -> None:
    model, size = make(channels, 5, num_classes=3).double(), (6, 5)
    values = some(4, (channels, *size), 5)
    given = torch.rand(values.shape, generator=torch.Generator().manual_seed(4)) < 0.4
    cached, dense = pairs_of_samples(
        model,
        4,
        conditioned_on=(values, given),
        context=torch.tensor([0, 2, 1, 1]),
        noise=uniforms(model, 4, size).double(),
    )
    assert torch.equal(cached[given], values[given])
    assert torch.equal(cached, dense)


@pytest.mark.parametrize("make", ALL)
def test_class_conditional(make) -> None:
    model, size = make(1, 3, num_classes=4, image_shape=(3, 3)), (3, 3)
    x, labels = some(4, (1, *size), 3), torch.arange(4)
    log_prob = model.log_prob(x, context=labels)
    for k in range(4):
        one = model.log_prob(x[k : k + 1], context=torch.tensor(k))
        torch.testing.assert_close(log_prob[k : k + 1], one, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(log_prob, model.log_prob(x, context=labels.flip(0)))
    sums = model.double().log_prob(every_vector(4, 3).view(-1, 1, 2, 2), context=torch.tensor(2))
    assert abs(sums.logsumexp(0).item()) < (1e-3 if make is plus_plus else 1e-12)
    noise = uniforms(model, 16, size)
    samples = [model.sample(16, context=torch.tensor(k), noise=noise) for k in range(4)]
    assert any(not torch.equal(samples[0], other) for other in samples[1:])
    assert model.sample(4).shape == (4, 1, 3, 3)
    with pytest.raises(ValueError, match="context is missing"):
        model.log_prob(x)
    with pytest.raises(TypeError, match="class labels"):
        model.log_prob(x, context=labels.float())


@pytest.mark.parametrize("make", ALL)
def test_context(make) -> None:
    model = make(1, 3, context_dim=2)
    x, context = (
        some(3, (1, 3, 3), 3),
        torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
    )
    assert not torch.allclose(
        model.log_prob(x, context=context), model.log_prob(x, context=context * 2)
    )
    model.loss(x, context=context).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.sample(3, image_shape=(2, 2), context=context[0]).shape == (3, 1, 2, 2)
    with pytest.raises(ValueError, match="exclude"):
        make(1, 3, context_dim=2, num_classes=2)


@pytest.mark.parametrize("make", ALL)
def test_state_dict(make) -> None:
    model, other = make(3, 4), make(3, 4)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(model.state_dict())
    x = some(2, (3, 3, 3), 4)
    assert torch.equal(model.log_prob(x), other.log_prob(x))


@pytest.mark.parametrize("make", ALL)
def test_sampling_leaves_the_model_as_it_was(make) -> None:
    model = make(1, 3, dropout=0.5, image_shape=(3, 3)).train()
    noise = uniforms(model, 4, (3, 3))
    rows: list[tuple[int, int]] = []
    for cached in (True, False):
        rows.clear()
        x = model.sample(4, noise=noise, progress=lambda *done: rows.append(done), cached=cached)
        assert rows == [(1, 3), (2, 3), (3, 3)]
    assert model.training
    assert torch.equal(x, model.eval().sample(4, noise=noise))


def test_progress_bar(capsys) -> None:
    for cached in (True, False):
        pixel_cnn().sample(1, image_shape=(2, 2), progress=True, cached=cached)
        assert capsys.readouterr().err.endswith("2/2 rows\n")


def test_weights_are_normalised_once_a_sample(monkeypatch) -> None:
    model = plus_plus(image_shape=(3, 3))
    count = 0
    parametrization = type(model.head.parametrizations.weight[0])
    original = parametrization.forward

    def forward(self, *args):
        nonlocal count
        count += 1
        return original(self, *args)

    monkeypatch.setattr(parametrization, "forward", forward)
    for cached in (True, False):
        count = 0
        model.sample(2, cached=cached)
        assert count == sum(hasattr(m, "parametrizations") for m in model.modules())


def test_initialization_by_data() -> None:
    model = PixelCNNPP(3, channels=8, num_blocks=1, num_mixtures=2, dropout=0.0)
    x = some(4, (3, 8, 8), 256)
    model.initialize(x)
    params = model.conditionals(x)
    torch.testing.assert_close(params.mean((0, 2, 3)), torch.zeros(20), rtol=0, atol=1e-4)
    torch.testing.assert_close(params.std((0, 2, 3)), torch.ones(20), rtol=0, atol=1e-3)
    assert torch.isfinite(model.loss(x))


@pytest.mark.parametrize("make", ALL)
def test_training_lowers_the_loss(make) -> None:
    torch.manual_seed(0)
    model = make(1, 3)
    x = some(1, (1, 4, 4), 3).expand(4, -1, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("make", [gated, plus_plus])
def test_losses_compile(make) -> None:
    options = {"num_blocks": 1, "num_resolutions": 2} if make is plus_plus else {}
    model, x = make(3, 4, **options), some(2, (3, 4, 4), 4)
    torch._dynamo.reset()
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model.loss(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", ALL)
def test_bad_arguments(make) -> None:
    for options, message in [
        ({"image_shape": (3,)}, "image_shape must be"),
        ({"image_shape": (2, 3, 3)}, "image_shape must have"),
        ({"channels": 0}, "channels must be"),
        ({"dropout": 1.0}, "dropout must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(1, 3, **options)
    with pytest.raises(ValueError, match="num_levels must be"):
        make(1, 1)
    model = make(1, 3)
    with pytest.raises(ValueError, match="image_shape is missing"):
        model.sample(1)
    with pytest.raises(ValueError, match="noise must have shape"):
        model.sample(1, image_shape=(2, 2), noise=torch.rand(1, 9, 2, 2))
    with pytest.raises(TypeError, match="conditioned_on must be a pair"):
        model.sample(1, image_shape=(2, 2), conditioned_on=torch.zeros(1))
    bad = torch.full((1, 2, 2), 7), torch.ones(1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="7"):
        model.sample(1, conditioned_on=bad)
