"""Sequence models: RNNModel, LSTMModel and GPT."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.distributions import cell_index, chi_square, every_vector
from torch import Tensor

import dgm_fast
from dgm_fast.models import GPT, LSTMModel, RNNModel
from dgm_fast.models._mixture import draw_component
from dgm_fast.models._sequence import SequenceModel

V, L = 3, 6


def strong(model: SequenceModel, factor: float) -> SequenceModel:
    """With weights under which the entries depend on each other."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data = factor * torch.randn(parameter.shape, generator=generator)
    return model


def rnn(**options) -> RNNModel:
    return strong(RNNModel(V, 8, 2, **options), 0.7)


def lstm(**options) -> LSTMModel:
    return strong(LSTMModel(V, 8, 2, **options), 1.0)


def gpt(context_length: int = L, **options) -> GPT:
    return strong(GPT(V, context_length, 8, 2, 2, **options), 0.7)


ALL = [rnn, lstm, gpt]
# Lengths below, at and past the context of the GPT; the last does not end with a window.
LENGTHS = [1, 4, L, L + 1, 2 * L + 2]


def some(n: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(V, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("make", ALL)
def test_probabilities_sum_to_one(make, backend) -> None:
    with dgm_fast.backend(backend):
        for length in (1, 3, 7):
            log_prob = make().double().log_prob(every_vector(length, V))
            assert abs(log_prob.logsumexp(0).item()) < 1e-12
    # Past the context of the GPT, too.
    short = gpt(3).double()
    assert abs(short.log_prob(every_vector(7, V)).logsumexp(0).item()) < 1e-12


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("make", ALL)
def test_likelihood_is_that_of_the_conditionals(make, length) -> None:
    model, x = make(), some(5, length)
    logits = model.conditionals(x)
    assert logits.shape == (5, length, V)
    expected = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), x, reduction="none")
    torch.testing.assert_close(model.log_prob(x), expected.sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.nll(x), -expected.sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        model.bits_per_dim(x), -expected.mean(1) / math.log(2), rtol=1e-5, atol=1e-5
    )
    assert model.loss(x).ndim == 0


@pytest.mark.parametrize("length", [L, 2 * L + 2])
@pytest.mark.parametrize("make", ALL)
def test_nothing_is_seen_ahead(make, length) -> None:
    model, x = make().double(), some(2, length)
    logits = model.conditionals(x)
    for t in range(length):
        other = x.clone()
        other[:, t] = (other[:, t] + 1) % V
        change = (model.conditionals(other) - logits).abs().amax((0, 2))
        assert (change[: t + 1] < 1e-12).all()
        if t + 1 < length:
            # The next entry always sees it: no window is shorter than two entries.
            assert change[t + 1] > 1e-4


def dense_sample(model: SequenceModel, noise: Tensor, context: Tensor | None = None) -> Tensor:
    """All logits computed anew for every entry."""
    x = torch.zeros(noise.shape, dtype=torch.int64)
    with torch.no_grad():
        for t in range(noise.shape[1]):
            logits = model.conditionals(x[:, : t + 1], context=context)[:, t]
            x[:, t] = draw_component(logits, noise[:, t])
    return x


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("make", ALL)
def test_samples_with_a_state_equal_those_without(make, length) -> None:
    model = make()
    noise = torch.rand(16, length, generator=torch.Generator().manual_seed(2))
    assert torch.equal(model.sample(16, noise=noise), dense_sample(model, noise))


@pytest.mark.parametrize("make", ALL)
def test_samples_have_the_probabilities_of_the_density(make) -> None:
    model = make()
    for parameter in model.parameters():
        parameter.data *= 0.4
    log_prob = model.log_prob(every_vector(4, V)).detach().double()
    x = model.sample(20_000, length=4, generator=torch.Generator().manual_seed(3))
    assert x.dtype == torch.int64
    assert abs(chi_square(cell_index(x, V), log_prob)) < 4


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("make", ALL)
def test_given_entries_never_change(make, length) -> None:
    model, n = make(), 20
    generator = torch.Generator().manual_seed(4)
    x = some(n, length)
    given = torch.rand(n, length, generator=generator) < 0.5
    noise = torch.rand(n, length, generator=generator)
    drawn = model.sample(n, conditioned_on=(torch.where(given, x, -9), given), noise=noise)
    assert torch.equal(drawn[given], x[given])
    before = given.long().cumsum(1) == 0
    assert torch.equal(drawn[before], model.sample(n, noise=noise)[before])
    # What is drawn follows the given entries before it.
    logits = model.conditionals(drawn).detach()
    again = draw_component(logits.flatten(0, 1), noise.flatten()).reshape(n, length)
    assert torch.equal(torch.where(given, x, again), drawn)


@pytest.mark.parametrize("prompt", [1, 3, L, L + 1, 2 * L])
@pytest.mark.parametrize("make", ALL)
def test_a_prompt_is_continued(make, prompt) -> None:
    """Read in one go, it gives what reading it entry by entry does."""
    model, n, length = make(), 10, 2 * L + 2
    noise = torch.rand(n, length, generator=torch.Generator().manual_seed(5))
    free = model.sample(n, noise=noise)
    given = torch.arange(length) < prompt
    assert torch.equal(model.sample(n, conditioned_on=(free, given), noise=noise), free)
    whole = model.sample(n, conditioned_on=(free, torch.ones(length, dtype=torch.bool)))
    assert torch.equal(whole, free)


@pytest.mark.parametrize("length", [4, 2 * L + 2])
def test_context_decides_what_a_gpt_expects(length) -> None:
    model = gpt(context_dim=2)
    x, context = some(5, length), torch.randn(5, 2, generator=torch.Generator().manual_seed(6))
    log_prob = model.log_prob(x, context=context)
    shared = model.log_prob(x, context=context[0])
    assert torch.allclose(shared[0], log_prob[0], atol=1e-5)
    assert (shared[1:] - log_prob[1:]).abs().min() > 1e-3
    noise = torch.rand(5, length, generator=torch.Generator().manual_seed(7))
    drawn = model.sample(5, noise=noise, context=context)
    assert torch.equal(drawn, dense_sample(model, noise, context))
    with pytest.raises(ValueError, match="context is missing"):
        model.log_prob(x)
    with pytest.raises(ValueError, match="context is missing"):
        model.sample(2)


@pytest.mark.parametrize("make", ALL)
def test_state_round_trip_and_vocabulary(make) -> None:
    model, x = make(vocabulary="ab\n"), some(4, L)
    other = make(vocabulary="xyz")
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), model.log_prob(x))
    assert other.vocabulary == "ab\n" and make().vocabulary is None
    tokens = other.encode("abba\n")
    assert tokens.tolist() == [0, 1, 1, 0, 2] and tokens.dtype == torch.int64
    assert other.decode(tokens) == "abba\n"
    assert other.decode(torch.tensor([[0, 1], [2, 2]])) == ["ab", "\n\n"]
    assert other.encode("").shape == (0,)
    model.bfloat16()
    assert model.vocabulary == "ab\n" and model.log_prob(x).dtype == torch.float32
    assert model.sample(2, length=3).dtype == torch.int64
    with pytest.raises(ValueError, match=r"outside the vocabulary: \['c'\]"):
        model.encode("abc")
    with pytest.raises(ValueError, match="without a vocabulary"):
        make().decode(tokens)
    with pytest.raises(ValueError, match=r"tokens must have shape \[T\] or \[B, T\]"):
        model.decode(torch.zeros(1, 1, 1, dtype=torch.int64))


@pytest.mark.parametrize("make", ALL)
def test_pixels_are_a_sequence_in_raster_order(make) -> None:
    model, images = make(length=4), some(5, 4).reshape(5, 2, 2)
    flat = images.flatten(1)
    assert torch.equal(model.log_prob(images), model.log_prob(flat))
    # Bits, levels and whole floating-point numbers alike.
    bits = flat.clamp(max=1)
    for dtype in (torch.bool, torch.uint8, torch.float32, torch.float64):
        assert torch.equal(model.log_prob(bits.to(dtype)), model.log_prob(bits))
    assert model.sample(3).shape == (3, 4)


@pytest.mark.parametrize("make", ALL)
def test_dropout_is_for_training_only(make) -> None:
    model, x = make(dropout=0.5), some(6, L)
    assert not torch.equal(model.log_prob(x), model.log_prob(x))
    noise = torch.rand(6, L, generator=torch.Generator().manual_seed(8))
    drawn = model.sample(6, noise=noise)
    assert model.training
    model.eval()
    assert torch.equal(model.log_prob(x), model.log_prob(x))
    assert torch.equal(drawn, dense_sample(model, noise))
    plain = make().eval()
    assert torch.equal(model.log_prob(x), plain.log_prob(x))


@pytest.mark.parametrize("make", ALL)
def test_training_lowers_the_loss_through_every_parameter(make) -> None:
    torch.manual_seed(9)
    fresh = {rnn: lambda: RNNModel(V, 16), lstm: lambda: LSTMModel(V, 16)}
    model = fresh.get(make, lambda: GPT(V, 9, 16, 1, 2))()
    # Each token is the one before it plus one: after the first, nothing is left to learn.
    x = (torch.arange(9) + torch.arange(3).unsqueeze(1)) % V
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.loss(x).item() < math.log(3) + 0.5


def test_initial_values() -> None:
    torch.manual_seed(10)
    model = GPT(50, 32, 64, 8, 4)
    assert model.tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    block = model.blocks[3]
    assert block.queries_keys_values.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.network_output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.attention_output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert all((p == 0).all() for name, p in model.named_parameters() if name.endswith("bias"))
    uniform = 8 * math.log(50)
    assert model.loss(torch.randint(50, (20, 8))).item() == pytest.approx(uniform, rel=0.02)
    lstm = LSTMModel(5, 7, 2)
    for layer in range(2):
        total = getattr(lstm.layers, f"bias_ih_l{layer}") + getattr(
            lstm.layers, f"bias_hh_l{layer}"
        )
        assert (total[7:14] == 1).all()


@pytest.mark.parametrize("make", ALL)
def test_the_loss_compiles(make) -> None:
    model, x = make(), some(3, L)
    # Dynamo leaves recurrent layers to themselves.
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=make is gpt)
    torch.testing.assert_close(compiled(x), model.loss(x), rtol=1e-5, atol=1e-5)


X = torch.zeros(2, 4, dtype=torch.int64)
GIVEN = torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RNNModel(1, 4), ValueError, "vocab_size must be at least 2"),
        (lambda: RNNModel(4, 0), ValueError, "hidden_size must be at least 1"),
        (lambda: LSTMModel(4, 4, 0), ValueError, "num_layers must be at least 1"),
        (
            lambda: LSTMModel(4, 4, dropout=1.0),
            ValueError,
            "dropout must be at least 0 and below 1",
        ),
        (lambda: LSTMModel(4, 4, dropout="x"), TypeError, "dropout must be a number"),
        (lambda: LSTMModel(4, 4, length=0), ValueError, "length must be at least 1"),
        (lambda: RNNModel(3, 4, vocabulary="ab"), ValueError, "3 distinct characters, got 2, 2"),
        (lambda: RNNModel(3, 4, vocabulary="aab"), ValueError, "got 3, 2 of them distinct"),
        (lambda: GPT(4, 0), ValueError, "context_length must be at least 1"),
        (lambda: GPT(4, 8, 30, 1, 4), ValueError, "width must be a multiple of num_heads = 4"),
        (lambda: GPT(4, 8, context_dim=0), ValueError, "context_dim must be at least 1"),
        (lambda: rnn().log_prob(X[0]), ValueError, r"x must have shape \[B, T\]"),
        (lambda: rnn().log_prob(X[:, :0]), ValueError, r"x must have shape \[B, T\]"),
        (lambda: rnn().log_prob([1]), TypeError, "x must be a torch.Tensor"),
        (lambda: rnn().log_prob(X + 0j), TypeError, "bool, integer or floating point"),
        (lambda: rnn().log_prob(X + V), ValueError, "class indices between 0 and 2"),
        (lambda: gpt().log_prob(X - 1), ValueError, "class indices between 0 and 2"),
        (lambda: gpt().log_prob(X + 0.5), ValueError, "class indices between 0 and 2"),
        (lambda: gpt().log_prob(X.float().requires_grad_()), ValueError, "must not require grad"),
        (lambda: lstm().log_prob(X, context=X), ValueError, "built without context_dim"),
        (lambda: rnn().sample(2), ValueError, "length is missing"),
        (lambda: rnn().sample(2, length=0), ValueError, "length must be at least 1"),
        (lambda: rnn().sample(0, length=3), ValueError, "n must be at least 1"),
        (lambda: gpt().sample(2, noise=torch.rand(3, 4)), ValueError, "noise must have shape"),
        (
            lambda: gpt().sample(2, length=5, conditioned_on=(X, GIVEN)),
            ValueError,
            "values must have",
        ),
        (lambda: gpt().sample(2, conditioned_on=X), TypeError, "must be a pair"),
        (lambda: gpt().sample(2, conditioned_on=(X, X)), TypeError, "given must be bool"),
        (lambda: gpt().sample(2, conditioned_on=(X + V, GIVEN)), ValueError, "class indices"),
    ],
)
def test_bad_arguments_are_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
