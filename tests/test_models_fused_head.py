"""fused_head=True: the numbers of the plain head, less memory, and clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dgm_fast
from dgm_fast.models import GMVAE, IWAE, VAE, BetaVAE
from dgm_fast.nn import MLP
from dgm_fast.train.measure import peak_bytes, saved_bytes

B, D, L, K, C = 6, 12, 3, 4, 5

LIKELIHOODS: dict[str, dict[str, Any]] = {
    "bernoulli": {},
    "categorical": {"likelihood": "categorical", "num_classes": C},
}
MODELS: dict[str, Callable[..., VAE]] = {
    "vae": VAE,
    "beta-vae": lambda *a, **k: BetaVAE(*a, beta=2.5, **k),
    "iwae": lambda *a, **k: IWAE(*a, num_samples=K, **k),
    "stl": lambda *a, **k: IWAE(*a, num_samples=K, estimator="stl", **k),
    "dreg": lambda *a, **k: IWAE(*a, num_samples=K, estimator="dreg", **k),
    "gmvae": lambda *a, **k: GMVAE(*a, num_components=3, **k),
    "gmvae-dreg": lambda *a, **k: GMVAE(
        *a, num_components=3, num_samples=K, estimator="dreg", learn_weights=True, **k
    ),
}


@pytest.fixture(params=["recomputed", "kept"], autouse=True)
def logits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The op chooses by size whether it keeps logits or computes them again; here both at small sizes."""
    kept = range(0) if request.param == "recomputed" else range(1 << 30)
    monkeypatch.setattr("dgm_fast.functional.linear_head.KEPT_BYTES", kept)
    return request.param


class HiddenAndOutput(nn.Module):
    """A decoder of a user's own, with what the fused head looks for."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.first = nn.Linear(L, 7)
        self.norm = nn.BatchNorm1d(7)
        self.output = nn.Linear(7, out_features, bias=False)

    def hidden(self, z: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.first(z)))

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.hidden(z)).unflatten(1, (-1, 1, 1))


def sequential(out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(L, 8),
        nn.Unflatten(1, (2, 2, 2)),
        nn.ConvTranspose2d(2, 1, 2, stride=2),
        nn.Flatten(),
        nn.Linear(16, out_features),
    )


DECODERS: dict[str, Callable[[int], nn.Module | None]] = {
    "default": lambda out: None,
    "mlp": lambda out: MLP(L, (), out),
    "sequential": sequential,
    "one-layer": lambda out: nn.Sequential(nn.Linear(L, out)),
    "own": HiddenAndOutput,
}


def pair(
    model: str = "iwae", likelihood: str = "bernoulli", decoder: str = "default", **kwargs: Any
) -> tuple[VAE, VAE]:
    """The same model with the plain and with the fused head, in float64."""
    made = []
    for fused in (False, True):
        torch.manual_seed(0)
        options = {"hidden_sizes": (8, 7), **LIKELIHOODS[likelihood], **kwargs}
        out_features = D * (C if likelihood == "categorical" else 1)
        options["decoder"] = DECODERS[decoder](out_features)
        made.append(MODELS[model](D, L, fused_head=fused, **options).double())
    made[1].load_state_dict(made[0].state_dict())
    return made[0], made[1]


def make_data(likelihood: str) -> Tensor:
    high = C if likelihood == "categorical" else 2
    return torch.randint(high, (B, D), generator=torch.Generator().manual_seed(1))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def assert_same(plain: VAE, fused: VAE, call: Callable[[VAE], Tensor]) -> None:
    """Values and all gradients agree."""
    values = [call(model) for model in (plain, fused)]
    torch.testing.assert_close(values[1], values[0])
    for model, value in zip((plain, fused), values, strict=True):
        model.zero_grad()
        value.sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None, name
            continue
        torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name)


@pytest.mark.parametrize("context_dim", [None, 2])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_of_the_plain_head(
    model: str, likelihood: str, context_dim: int | None
) -> None:
    plain, fused = pair(model, likelihood, context_dim=context_dim)
    x = make_data(likelihood)
    context = None if context_dim is None else torch.randn(B, 2).double()
    for call in (
        lambda m: m.loss(x, context=context, generator=seeded()),
        lambda m: m.elbo(x, context=context, generator=seeded()),
        lambda m: m.iwae_bound(x, K, context=context, generator=seeded()),
    ):
        assert_same(plain, fused, call)
    assert plain.encoder.output.weight.grad.abs().sum() > 0
    for call in (
        lambda m: m.log_prob(x, 9, context=context, chunk_size=4, generator=seeded()),
        lambda m: m.log_likelihood(x, torch.ones(B, K, L).double(), context=context),
        lambda m: m.log_likelihood(x, torch.ones(B, L).double(), context=context),
    ):
        torch.testing.assert_close(call(fused), call(plain))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_that_end_in_a_linear_layer(decoder: str, likelihood: str) -> None:
    plain, fused = pair("dreg", likelihood, decoder)
    x = make_data(likelihood)
    assert_same(plain, fused, lambda m: m.loss(x, generator=seeded()))
    # Nothing was registered, and the check at construction left the modes alone.
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert all(module.training for module in fused.modules())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_generation_still_uses_logits(likelihood: str) -> None:
    plain, fused = pair(likelihood=likelihood)
    x, z = make_data(likelihood), torch.randn(B, K, L).double()
    for call in (
        lambda m: m.decode(z),
        lambda m: m.sample(5, generator=seeded()),
        lambda m: m.reconstruct(x),
        lambda m: m.interpolate(x, x.flip(0), 3),
    ):
        assert torch.equal(call(fused), call(plain))
    classes = (C, D) if likelihood == "categorical" else (D,)
    fused.init_output_bias(torch.full(classes, 0.2))


def test_the_switch_may_be_turned_later() -> None:
    model, _ = pair()
    x = make_data("bernoulli")
    before = model.loss(x, generator=seeded())
    model.fused_head = True
    torch.testing.assert_close(model.loss(x, generator=seeded()), before)


def test_gradient_reaches_data() -> None:
    plain, fused = pair()
    gradients = []
    for model in (plain, fused):
        x = torch.rand(B, D, generator=seeded(), dtype=torch.float64).requires_grad_()
        bound = model.iwae_bound(x, K, generator=seeded())
        gradients.append(torch.autograd.grad(bound.sum(), x)[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_parametrized_layers_are_followed() -> None:
    plain, fused = pair()
    for model in (plain, fused):
        nn.utils.parametrizations.weight_norm(model.decoder.output)
    fused.load_state_dict(plain.state_dict())
    x = make_data("bernoulli")
    assert_same(plain, fused, lambda m: m.loss(x, generator=seeded()))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reduced_precision_and_autocast(likelihood: str, dtype: torch.dtype) -> None:
    plain, fused = pair(likelihood=likelihood)
    x = make_data(likelihood)
    exact = plain.loss(x, generator=seeded())
    loss = fused.float().loss(x.double(), generator=seeded())
    assert loss.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = fused.loss(x, generator=seeded())
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), exact, rtol=0.1, atol=0.1)
    converted = fused.to(dtype)
    value = converted.loss(x, generator=seeded())
    assert value.dtype == torch.float32 and value.isfinite()
    value.backward()
    assert all(p.grad.isfinite().all() for p in converted.parameters())


@pytest.mark.parametrize("model", ["vae", "gmvae-dreg"])
def test_loss_compiles_in_one_graph(model: str) -> None:
    _, fused = pair(model, "categorical")
    x, parameters, results = make_data("categorical"), list(fused.parameters()), []
    for loss in (fused.loss, torch.compile(fused.loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(6)
        value = loss(x)
        results.append((value, *torch.autograd.grad(value, parameters)))
    for compiled, eager in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.skipif(dgm_fast.ops.active_isa() is None, reason="needs the C++ kernels")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_large_logits_are_never_stored(likelihood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    torch.manual_seed(0)
    dims, samples, batch = 400, 100, 80
    x = torch.zeros(batch, dims)
    size = 4 * batch * samples * dims * (C if likelihood == "categorical" else 1)
    saved, peaks = [], []
    for fused in (False, True):
        options = {"hidden_sizes": (8,), "num_samples": samples, **LIKELIHOODS[likelihood]}
        model = IWAE(dims, L, fused_head=fused, **options)
        saved.append(saved_bytes(lambda: model.loss(x), model))  # noqa: B023
        model.loss(x).backward()
        model.zero_grad()
        peaks.append(peak_bytes(lambda: model.loss(x).backward()))  # noqa: B023
    assert saved[0] > size > 8 * saved[1]
    assert peaks[0] > 1.9 * size  # logits and their gradient
    assert peaks[1] < size / 2


class WithSigmoid(HiddenAndOutput):
    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(z))


class OwnLinear(nn.Linear):
    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h).clamp(-1, 1)


def hooked() -> nn.Sequential:
    decoder = nn.Sequential(nn.Linear(L, D))
    decoder[-1].register_forward_hook(lambda module, args, out: 2 * out)
    return decoder


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"likelihood": "gaussian"}, ValueError, "no op joins a linear layer with the gaussian"),
        (
            {"decoder": nn.Sequential(nn.Linear(L, D), nn.Tanh())},
            TypeError,
            "decoder that ends in an nn.Linear.* got Sequential",
        ),
        ({"decoder": nn.Sequential()}, TypeError, "got Sequential"),
        ({"decoder": nn.Linear(L, D)}, TypeError, "got Linear"),
        ({"decoder": nn.ConvTranspose1d(L, D, 1)}, TypeError, "got ConvTranspose1d"),
        ({"decoder": nn.Sequential(OwnLinear(L, D))}, TypeError, "a forward of its own, OwnLinear"),
        (
            {"decoder": nn.Sequential(nn.Linear(L, D + 1))},
            ValueError,
            "must have 12 outputs, got 13",
        ),
        ({"decoder": WithSigmoid(D)}, ValueError, r"does not equal output\(hidden\(z\)\)"),
        ({"decoder": hooked()}, ValueError, "its last layer has hooks"),
    ],
)
def test_what_cannot_be_fused_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VAE(D, L, fused_head=True, **options)


def test_hooks_added_later_are_refused_and_not_skipped() -> None:
    _, model = pair()
    model.decoder.register_forward_hook(lambda module, args, out: out)
    with pytest.raises(ValueError, match="the decoder has hooks"):
        model.loss(make_data("bernoulli"))


def test_a_last_layer_over_images_is_refused() -> None:
    decoder = nn.Sequential(nn.Unflatten(1, (1, L)), nn.Linear(L, D))
    model = VAE(D, L, decoder=decoder, fused_head=True)
    with pytest.raises(ValueError, match=r"inputs \[N, H\] of the decoder's last layer"):
        model.loss(make_data("bernoulli"))


def test_bad_values_are_still_found() -> None:
    _, model = pair()
    with pytest.raises(ValueError, match=r"x must hold values in \[0, 1\]"):
        model.loss(make_data("bernoulli") + 1)
