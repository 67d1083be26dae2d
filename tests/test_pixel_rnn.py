"""PixelRNN and its LSTM layers: what sees what, probabilities, samples, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.distributions import every_vector
from helpers.pixel_models import allowed, seen, some, strong
from torch import Tensor

import dgm_fast
from dgm_fast import functional, reference
from dgm_fast.models import PixelRNN
from dgm_fast.models._pixel import PixelModel
from dgm_fast.nn import DiagonalBiLSTM, RowLSTM

KINDS = ["row", "diagonal"]
SIZES = [(4, 5), (1, 1), (1, 4), (5, 1)]


def pixel_rnn(kind: str, colours: int = 1, levels: int = 3, **options) -> PixelModel:
    options = {"channels": 6, "num_layers": 2, "first_kernel_size": 3, **options}
    return strong(PixelRNN(colours, num_levels=levels, kind=kind, **options))


def test_row_lstm_is_a_convolutional_lstm() -> None:
    """Against one written out pixel by pixel."""
    gates, weight = torch.randn(1, 8, 3, 4).double(), torch.randn(8, 2, 3).double()
    out = functional.row_lstm(gates, weight)
    hidden = torch.zeros(3, 6, 2, dtype=torch.float64)  # a row above, a column to both sides
    hidden = F.pad(hidden, (0, 0, 0, 0, 1, 0))
    cell = torch.zeros_like(hidden)
    for y in range(3):
        for x in range(4):
            z = gates[0, :, y, x].clone()
            for tap in range(3):
                z += weight[:, :, tap] @ hidden[y, x + tap]
            i, f, g, o = z.chunk(4)
            cell[y + 1, x + 1] = f.sigmoid() * cell[y, x + 1] + i.sigmoid() * g.tanh()
            hidden[y + 1, x + 1] = o.sigmoid() * cell[y + 1, x + 1].tanh()
    torch.testing.assert_close(out[0].permute(1, 2, 0), hidden[1:, 1:5])


@pytest.mark.parametrize("size", [(3, 4), (5, 2), (1, 3)])
def test_diagonal_lstm_takes_states_above_and_to_the_left(size) -> None:
    gates, weight = torch.randn(1, 8, *size).double(), torch.randn(8, 2, 2).double()
    out = functional.diagonal_lstm(gates, weight)
    hidden = torch.zeros(size[0] + 1, size[1] + 1, 2, dtype=torch.float64)
    cell = torch.zeros_like(hidden)
    for y in range(size[0]):
        for x in range(size[1]):
            z = gates[0, :, y, x] + weight[:, :, 0] @ hidden[y, x + 1]
            i, f, g, o = (z + weight[:, :, 1] @ hidden[y + 1, x]).chunk(4)
            cell[y + 1, x + 1] = f.sigmoid() * cell[y + 1, x] + i.sigmoid() * g.tanh()
            hidden[y + 1, x + 1] = o.sigmoid() * cell[y + 1, x + 1].tanh()
    torch.testing.assert_close(out[0].permute(1, 2, 0), hidden[1:, 1:])


def table(size: tuple[int, int], near) -> Tensor:
    """Relation [D, D] of pixels (i, j) and (k, m)."""
    cells = [(i, j) for i in range(size[0]) for j in range(size[1])]
    return torch.tensor([[bool(near(*p, *q)) for q in cells] for p in cells])


def closure(direct: Tensor) -> Tensor:
    total = direct.long() + torch.eye(len(direct), dtype=torch.long)
    for _ in range(len(direct).bit_length()):
        total = (total @ total).clamp(max=1)
    return total


def reached(kind: str, size: tuple[int, int], layers: int, own: bool = False) -> Tensor:
    """Pixels whose data reaches a pixel's output, [D, D]; ``own``: of a colour that its features know."""
    first = table(size, lambda i, j, k, m: abs(i - k) <= 1 and abs(j - m) <= 1 and (k, m) < (i, j))
    if kind == "row":
        states = closure(table(size, lambda i, j, k, m: k == i - 1 and abs(m - j) <= 1))
        layer = states @ table(size, lambda i, j, k, m: k == i and m in (j - 1, j)).long()
    else:
        layer = table(
            size, lambda i, j, k, m: (k <= i and m <= j) or (k <= i - 1 and m >= j)
        ).long()
    eye = torch.eye(len(first), dtype=torch.bool)
    total = (first | eye if own else first).long()
    for _ in range(layers):
        total = (layer @ total).clamp(max=1) | total
    return total.bool() & ~eye


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_what_the_layers_let_through_is_seen(kind, channels, size) -> None:
    model = pixel_rnn(kind, channels, channels=12, head_channels=24)
    # The features of a pixel hold all of its colours but the last.
    found = seen(model, size)
    for colour in range(channels):
        before = reached(kind, size, 2, own=colour < channels - 1)
        expected = allowed(channels, channels, before)
        assert torch.equal(found[:, :, colour], expected[:, :, colour])


def test_diagonal_layers_miss_the_end_of_the_row_above_at_most() -> None:
    everything = table((4, 5), lambda i, j, k, m: (k, m) < (i, j))
    missed = everything & ~reached("diagonal", (4, 5), 1)
    expected = table((4, 5), lambda i, j, k, m: k == i - 1 and m == 4 and j < 3)
    assert torch.equal(missed, expected)


@pytest.mark.parametrize("layer", [RowLSTM, DiagonalBiLSTM])
def test_layers_see_no_later_pixel(layer) -> None:
    module = layer(4, 6, data_channels=2)
    x = torch.randn(2, 4, 5, 6)
    out = module(x)
    for i, j in [(0, 0), (2, 3), (4, 5)]:
        other = x.clone()
        other[:, :, i, j] += 1
        change = (module(other) - out).abs().amax((0, 1)).flatten()
        assert (change[: i * 6 + j] == 0).all() and (change[i * 6 + j :] > 0).any()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("channels", "size"), [(1, (2, 2)), (3, (1, 2))])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_of_bits_sum_to_one(kind, channels, size, backend) -> None:
    x = every_vector(channels * size[0] * size[1], 2).view(-1, channels, *size)
    with dgm_fast.backend(backend):
        log_prob = pixel_rnn(kind, channels, 2).double().log_prob(x)
    assert log_prob.exp().max() < 0.99
    assert abs(log_prob.logsumexp(0).item()) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_probabilities_of_the_density(kind) -> None:
    model = pixel_rnn(kind, 1, 2)
    x = model.sample(4000, image_shape=(2, 2), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(
        (x.flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long(), minlength=16
    )
    expected = 4000 * model.log_prob(every_vector(4, 2).view(-1, 1, 2, 2)).exp()
    assert (
        (counts - expected).square() / expected.clamp(min=1.0)
    ).sum() < 45  # 15 degrees of freedom


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_and_given_pixels(kind) -> None:
    model = pixel_rnn(kind, num_classes=3)
    x = some(4, (1, 3, 4), 3)
    by_label = torch.stack([model.log_prob(x, context=torch.tensor(c)) for c in range(3)])
    assert (by_label.std(0) > 0).all()
    given = torch.zeros(1, 3, 4, dtype=torch.bool)
    given[:, :2] = True
    drawn = model.sample(4, conditioned_on=(x, given), context=torch.tensor(1))
    assert torch.equal(drawn[:, :, :2], x[:, :, :2])


def uniforms(n: int, channels: int, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand((n, channels, *size), dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(
    ("levels", "size", "n"),
    [*((5, size, 3) for size in SIZES), (2, (7, 6), 1), (3, (6, 6), 21)],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_samples_equal_dense_ones(kind, channels, levels, size, n) -> None:
    model = pixel_rnn(kind, channels, levels).double()
    noise = uniforms(n, channels, size)
    dense = model.sample(n, noise=noise, cached=False)
    assert torch.equal(model.sample(n, noise=noise), dense)
    with dgm_fast.backend("reference"):
        assert torch.equal(model.sample(n, noise=noise), dense)
    # Of float32 models, but where noise lies within rounding of a probability.
    drawn = model.float().sample(n, noise=noise)
    assert (drawn != dense).sum() <= 0.02 * dense.numel() + 1


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_samples_with_classes_and_given_entries(kind, channels, backend) -> None:
    """Labels enter what the LSTMs see inside of the image alone: borders show what does more."""
    model, size = pixel_rnn(kind, channels, 5, num_classes=3, num_layers=3).double(), (4, 5)
    options = {"noise": uniforms(4, channels, size), "context": torch.tensor([0, 2, 1, 1])}
    values = some(4, (channels, *size), 5)
    given = torch.rand(values.shape, generator=torch.Generator().manual_seed(4)) < 0.4
    with dgm_fast.backend(backend):
        for condition in (None, (values, given)):
            cached = model.sample(4, conditioned_on=condition, **options)
            dense = model.sample(4, conditioned_on=condition, cached=False, **options)
            assert torch.equal(cached, dense)
    assert torch.equal(cached[given], values[given])


@pytest.mark.parametrize("kind", KINDS)
def test_progress_and_seeds(kind) -> None:
    model, rows = pixel_rnn(kind), []
    draws = [
        model.sample(
            2,
            image_shape=(3, 4),
            generator=torch.Generator().manual_seed(5),
            progress=lambda done, total: rows.append((done, total)),
            cached=cached,
        )
        for cached in (True, False)
    ]
    assert torch.equal(*draws)
    assert rows == [(1, 3), (2, 3), (3, 3)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_trains(kind) -> None:
    torch.manual_seed(0)
    model = PixelRNN(num_levels=2, channels=8, num_layers=2, kind=kind, first_kernel_size=3)
    # Lines: rows that alternate from their first pixel.
    start = torch.randint(2, (64, 1, 6, 1))
    x = (start + torch.arange(6)) % 2
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # 6 bits are free, 36 to begin with.
    assert losses[0] > 20 and losses[-1] < 0.4 * losses[0]


def test_gradients_of_a_whole_model_are_the_references() -> None:
    for kind in KINDS:
        model = pixel_rnn(kind, 3).double()
        x = some(2, (3, 4, 5), 3)
        found = []
        for backend in ("auto", "reference"):
            with dgm_fast.backend(backend):
                found.append(torch.autograd.grad(model.loss(x), list(model.parameters())))
        for ours, plain in zip(*found, strict=True):
            torch.testing.assert_close(ours, plain)


def test_autocast_rounds_arguments_as_linear_layers_do() -> None:
    gates, weight = torch.randn(2, 8, 3, 4), torch.randn(8, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = functional.row_lstm(gates, weight)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, reference.row_lstm(gates.bfloat16(), weight.bfloat16()))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "gates", lambda: functional.row_lstm(None, torch.zeros(8, 2, 3))),
        (
            TypeError,
            "weight",
            lambda: functional.row_lstm(torch.zeros(1, 8, 2, 2), torch.zeros(8, 2, 3).long()),
        ),
        (
            ValueError,
            "weight must have shape",
            lambda: functional.row_lstm(torch.zeros(1, 8, 2, 2), torch.zeros(8, 3, 3)),
        ),
        (
            ValueError,
            "odd",
            lambda: functional.row_lstm(torch.zeros(1, 8, 2, 2), torch.zeros(8, 2, 2)),
        ),
        (
            ValueError,
            "two taps",
            lambda: functional.diagonal_lstm(torch.zeros(1, 8, 2, 2), torch.zeros(8, 2, 3)),
        ),
        (
            ValueError,
            "gates must have",
            lambda: functional.diagonal_lstm(torch.zeros(1, 7, 2, 2), torch.zeros(8, 2, 2)),
        ),
        (
            ValueError,
            "gates must have",
            lambda: functional.diagonal_lstm(torch.zeros(1, 8, 0, 2), torch.zeros(8, 2, 2)),
        ),
        (ValueError, "hidden_channels", lambda: RowLSTM(6, 4, data_channels=3)),
        (ValueError, "kind", lambda: PixelRNN(kind="column")),
        (ValueError, "multiple of in_channels", lambda: PixelRNN(3, channels=4)),
    ],
)
def test_bad_arguments(error, match, call) -> None:
    with pytest.raises(error, match=match):
        call()


def test_no_images() -> None:
    gates, weight = torch.zeros(0, 8, 2, 3), torch.zeros(8, 2, 3, requires_grad=True)
    out = functional.row_lstm(gates, weight)
    assert out.shape == (0, 2, 2, 3)
    assert (torch.autograd.grad(out.sum(), weight)[0] == 0).all()
