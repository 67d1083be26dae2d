"""Transforms of vectors: Jacobians, inverses, gradients, contexts, checkpoints, bad arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dgm_fast.nn import (
    MLP,
    AdditiveElement,
    AffineElement,
    Compose,
    Elementwise,
    FeatureCoupling,
    GeneralLinear,
    Inverse,
    LogisticMixtureElement,
    LULinear,
    MaskedAutoregressive,
    Permutation,
    ResidualMLP,
    SplineElement,
    Standardize,
    Transform,
)

D, CONTEXT = 5, 3
SCALES = ("exp", "sigmoid2", "softplus", "tanh", "atan", "softsign")
ELEMENTS = {
    "additive": AdditiveElement(),
    **{scale: AffineElement(scale) for scale in SCALES},
    "spline": SplineElement(4, 1.5),
    "mixture": LogisticMixtureElement(3),
}
GIVEN = torch.tensor([True, False, False, True, True])
NETWORK = partial(ResidualMLP, hidden_size=12)


def mlp(inputs: int, outputs: int, context_dim: int | None = None) -> MLP:
    return MLP(inputs, (12, 9), outputs, activation=nn.Tanh, context_dim=context_dim)


def standardize() -> Standardize:
    transform = Standardize(D)
    transform.fit(torch.randn(50, D) * torch.tensor([1.0, 2, 3, 4, 0]) + 7)
    assert transform.scale[4] == 1
    return transform


TRANSFORMS: dict[str, Callable[[], Transform]] = {
    **{f"coupling {n}": partial(FeatureCoupling, D, e, NETWORK) for n, e in ELEMENTS.items()},
    "coupling flipped": lambda: FeatureCoupling(D, AffineElement(), NETWORK, flip=True),
    "coupling alternating": lambda: FeatureCoupling(D, SplineElement(), mlp, mask="alternating"),
    "coupling any mask": lambda: FeatureCoupling(D, AffineElement(), mlp, mask=GIVEN, flip=True),
    **{f"masked {n}": partial(MaskedAutoregressive, D, e, (14, 9)) for n, e in ELEMENTS.items()},
    "masked reversed": lambda: MaskedAutoregressive(D, SplineElement(), (9,), order="reversed"),
    "masked random": lambda: MaskedAutoregressive(
        D, AffineElement("softplus"), (9,), order="random", activation=nn.Tanh
    ),
    "masked no hidden": lambda: MaskedAutoregressive(D, AffineElement("exp"), ()),
    **{f"elementwise {n}": partial(Elementwise, D, e) for n, e in ELEMENTS.items()},
    "elementwise cdf": lambda: Elementwise(D, LogisticMixtureElement(3, logit=False)),
    "permutation": lambda: Permutation([2, 0, 4, 3, 1]),
    "lu": lambda: LULinear(D, permutation=torch.tensor([2, 0, 4, 3, 1])),
    "lu orthogonal": lambda: LULinear(D, initial="orthogonal", bias=False),
    "general": lambda: GeneralLinear(D),
    "general identity": lambda: GeneralLinear(D, initial="identity", bias=False),
    "standardize": standardize,
    "inverse": lambda: Inverse(MaskedAutoregressive(D, SplineElement(), (9,))),
    "compose": lambda: Compose(
        [LULinear(D), FeatureCoupling(D, SplineElement(), NETWORK), GeneralLinear(D)]
    ),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def shaken(transform: Transform, size: float = 0.5) -> Transform:
    """In float64, away from the identity, where every part does something."""
    transform = transform.double()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(size * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return transform


def check(transform: Transform, x: Tensor, context: Tensor | None = None) -> None:
    """Inverse, log-determinants both ways, and slogdet of the Jacobian of each sample."""
    z, log_abs_det = transform(x, context=context)
    assert z.shape == x.shape and log_abs_det.shape == (len(x),)
    back, backwards = transform.inverse(z, context=context)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(backwards, -log_abs_det, rtol=1e-8, atol=1e-8)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: transform(x, context=context)[0].sum(0), x
    )
    expected = torch.linalg.slogdet(jacobian.transpose(0, 1)).logabsdet
    torch.testing.assert_close(log_abs_det, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inverse_and_log_determinant(name: str) -> None:
    transform = shaken(TRANSFORMS[name]())
    for mode in (True, False):
        check(transform.train(mode), torch.randn(6, D).double())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_both_ways(name: str) -> None:
    transform = shaken(TRANSFORMS[name](), 0.3)
    parameters = list(transform.parameters())
    x = torch.randn(3, D).double()
    weight = torch.randn(D).double()

    def scalar(direction: Callable, x: Tensor, *_: Tensor) -> Tensor:
        z, log_abs_det = direction(x)
        return (torch.tanh(z) * weight).sum(1) + log_abs_det

    at = x.clone().requires_grad_()
    torch.autograd.gradcheck(
        partial(scalar, transform.forward), (at, *parameters), fast_mode=True, atol=1e-6
    )
    z = transform(x)[0].detach().requires_grad_()
    torch.autograd.gradcheck(
        partial(scalar, transform.inverse), (z, *parameters), fast_mode=True, atol=1e-6
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_state_dict_brings_everything(name: str) -> None:
    source = shaken(TRANSFORMS[name]())
    target = TRANSFORMS[name]().double()
    target.load_state_dict(source.state_dict())
    x = torch.randn(4, D).double()
    for got, want in zip(target(x), source(x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FeatureCoupling(D, SplineElement(4), partial(NETWORK, context_dim=CONTEXT)),
        lambda: FeatureCoupling(D, AffineElement(), partial(mlp, context_dim=CONTEXT)),
        lambda: MaskedAutoregressive(D, AffineElement(), (12,), context_dim=CONTEXT),
        lambda: MaskedAutoregressive(D, SplineElement(4), (12,), context_dim=CONTEXT),
        lambda: Elementwise(D, SplineElement(4), context_dim=CONTEXT),
    ],
)
def test_context(make: Callable[[], Transform]) -> None:
    transform = shaken(make())
    x, context = torch.randn(6, D).double(), torch.randn(6, CONTEXT).double()
    check(transform, x, context)
    # Every entry that is mapped hears it, and no sample that of another.
    changed = context.clone()
    changed[0] += 1
    before, after = transform(x, context=context)[0], transform(x, context=changed)[0]
    mapped = getattr(transform, "transform_features", torch.arange(D))
    assert (before != after)[0, mapped].all() and torch.equal(before[1:], after[1:])
    with pytest.raises(ValueError, match="context is missing"):
        transform(x)
    # In a composition those that need none ignore it.
    check(Compose([LULinear(D), transform, GeneralLinear(D)]).double(), x, context)


@pytest.mark.parametrize(
    "name", [n for n in TRANSFORMS if n.startswith("masked") or n == "coupling any mask"]
)
def test_jacobian_has_the_shape_of_the_mask(name: str) -> None:
    transform = shaken(TRANSFORMS[name]())
    x = torch.randn(1, D).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: transform(x)[0][0], x)[:, 0]
    if isinstance(transform, FeatureCoupling):
        kept = transform.identity_features
        assert torch.equal(transform(x)[0][:, kept], x[:, kept])
        assert torch.equal(transform.transform_features, (~GIVEN).nonzero().squeeze(1))
    else:
        order = transform.network.orders[0]
        lower = jacobian[order][:, order]
        assert lower.triu(1).count_nonzero() == 0 and lower.tril(-1).count_nonzero() > 3


@pytest.mark.parametrize("element", ELEMENTS)
def test_layers_start_near_the_identity(element: str) -> None:
    x = torch.randn(50, D)
    layers = [
        FeatureCoupling(D, ELEMENTS[element], NETWORK),
        MaskedAutoregressive(D, ELEMENTS[element], (32,)),
        Elementwise(D, ELEMENTS[element]),
    ]
    for layer in layers:
        z, _ = layer(x)
        far = {"sigmoid2": 0.6, "mixture": 2.0}.get(element, 0.05)
        assert (z - x).abs().max() < far
        assert layer(x)[0].requires_grad


def test_logit_of_a_mixture_keeps_its_tails() -> None:
    exact = Elementwise(1, LogisticMixtureElement(2)).double()
    rounded = copy.deepcopy(exact).float()
    x = torch.tensor([-60.0, -20.0, -1.0, 0.0, 3.0, 20.0, 60.0]).unsqueeze(1)
    for direction in ("forward", "inverse"):
        got, want = getattr(rounded, direction)(x), getattr(exact, direction)(x.double())
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: LULinear(D), lambda: GeneralLinear(D)])
def test_kept_factors_follow_the_parameters(make: Callable) -> None:
    layer = shaken(make()).eval()
    x = torch.randn(4, D).double()

    def both() -> list[Tensor]:
        return [*layer(x), *layer.inverse(x)]

    with torch.no_grad():
        kept = both()
        assert layer._kept
        first = {name: value for name, (_, value) in layer._kept.items()}
        assert all(torch.equal(a, b) for a, b in zip(both(), kept, strict=True))
        # Nothing was formed again.
        assert all(layer._kept[name][1] is value for name, value in first.items())
        other = shaken(make())
        layer.load_state_dict(other.state_dict())
        for got, want in zip(both(), [*other(x), *other.inverse(x)], strict=True):
            torch.testing.assert_close(got, want)
        next(iter(layer.parameters())).mul_(1.5)
        fresh = copy.deepcopy(layer).train()
        for got, want in zip(both(), [*fresh(x), *fresh.inverse(x)], strict=True):
            torch.testing.assert_close(got, want)
        single, rounded = x.float(), copy.deepcopy(layer)
        rounded.float()
        torch.testing.assert_close(rounded(single)[0], layer(x)[0].float())
    # With gradients nothing stale is used.
    layer(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_linear_layers_take_images() -> None:
    layer = shaken(LULinear(3, initial="orthogonal"))
    x = torch.randn(2, 3, 4, 5).double()
    z, log_abs_det = layer(x)
    rows, of_rows = layer(x.permute(0, 2, 3, 1).reshape(-1, 3))
    torch.testing.assert_close(z, rows.view(2, 4, 5, 3).permute(0, 3, 1, 2))
    torch.testing.assert_close(log_abs_det, of_rows.view(2, -1).sum(1))
    torch.testing.assert_close(layer.inverse(z)[0], x)


def test_an_orthogonal_start_is_a_rotation() -> None:
    layer = LULinear(7, initial="orthogonal").double()
    x = torch.randn(4, 7).double()
    z, log_abs_det = layer(x)
    torch.testing.assert_close(z.norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=1e-5)
    assert log_abs_det.abs().max() < 1e-5


def test_residual_mlp_is_nflows_formula() -> None:
    network = ResidualMLP(3, 4, 6, context_dim=2).double()
    x, context = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    weights = network.state_dict()

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ weights[f"{name}.weight"].t() + weights[f"{name}.bias"]

    h = linear("initial_layer", torch.cat([x, context], 1))
    for i in range(2):
        inner = linear(f"blocks.{i}.linear_layers.0", torch.relu(h))
        inner = linear(f"blocks.{i}.linear_layers.1", torch.relu(inner))
        h = h + inner * torch.sigmoid(linear(f"blocks.{i}.context_layer", context))
    torch.testing.assert_close(network(x, context=context), linear("final_layer", h))


def test_dropout_is_for_training() -> None:
    network = ResidualMLP(3, 4, 50, dropout=0.5)
    for block in network.blocks:
        nn.init.normal_(block.linear_layers[1].weight)
    x = torch.randn(5, 3)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: FeatureCoupling(1, AffineElement(), mlp),
            ValueError,
            "num_dims must be at least 2",
        ),
        (lambda: FeatureCoupling(2.0, AffineElement(), mlp), TypeError, "num_dims must be an int"),
        (
            lambda: FeatureCoupling(4, AffineElement(), mlp, mask="odd"),
            ValueError,
            "mask must be one",
        ),
        (
            lambda: FeatureCoupling(3, AffineElement(), mlp, mask=torch.ones(3)),
            TypeError,
            "mask must be bool",
        ),
        (
            lambda: FeatureCoupling(3, AffineElement(), mlp, mask=torch.ones(4).bool()),
            ValueError,
            r"mask must have shape \(3,\)",
        ),
        (
            lambda: FeatureCoupling(3, AffineElement(), mlp, mask=torch.ones(3).bool()),
            ValueError,
            "mask must leave some",
        ),
        (lambda: AffineElement("log"), ValueError, "scale must be one of"),
        (lambda: AffineElement(clamp=0), ValueError, "clamp must be positive"),
        (lambda: SplineElement(1), ValueError, "num_bins must be at least 2"),
        (lambda: SplineElement(2.0), TypeError, "num_bins must be an int"),
        (lambda: SplineElement(tail_bound=-1), ValueError, "tail_bound must be positive"),
        (lambda: LogisticMixtureElement(0), ValueError, "num_mixtures must be at least 1"),
        (lambda: Permutation([0, 2]), ValueError, "permutation must hold every index"),
        (lambda: Permutation([0.0, 1.0]), TypeError, "permutation must hold integers"),
        (lambda: LULinear(0), ValueError, "num_dims must be at least 1"),
        (lambda: LULinear(2, initial="zero"), ValueError, "initial must be one of"),
        (lambda: LULinear(2, permutation=torch.tensor([1, 1])), ValueError, "permutation must"),
        (lambda: GeneralLinear(2, initial="lu"), ValueError, "initial must be one of"),
        (lambda: ResidualMLP(3, 0), ValueError, "out_features must be at least 1"),
        (lambda: ResidualMLP(3, 2, dropout=1.0), ValueError, "dropout must be in"),
        (lambda: MLP(3, (), 2, context_dim=0), ValueError, "context_dim must be at least 1"),
        (lambda: mlp(3, 2)(torch.ones(1, 3), context=torch.ones(1, 1)), ValueError, "is given"),
        (lambda: Standardize(2).fit(torch.ones(1, 2)), ValueError, "at least two rows"),
        (lambda: Standardize(2).fit(torch.ones(3, 3)), ValueError, r"shape \[N, 2\]"),
        (lambda: Elementwise(2, AffineElement())(torch.ones(3, 3)), ValueError, r"\[B, 2\]"),
        (
            lambda: FeatureCoupling(2, AffineElement(), mlp)(torch.ones(3, 3)),
            ValueError,
            r"x must have shape \[B, 2\]",
        ),
    ],
)
def test_bad_arguments(make: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
