"""RealNVP, NSF, MAF and IAF: densities, samples, contexts, gradients, checkpoints."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.flows import plain_log_prob
from torch import Tensor

from dgm_fast import ops
from dgm_fast.models import IAF, MAF, NSF, Flow, RealNVP
from dgm_fast.nn import (
    AdditiveElement,
    AffineElement,
    Compose,
    Elementwise,
    LogisticMixtureElement,
    SplineElement,
    StandardNormal,
    StandardUniform,
)

CONTEXT = 3
MODELS = {
    "realnvp": (RealNVP, {"num_layers": 4, "hidden_sizes": (16,)}),
    "nsf": (NSF, {"num_layers": 3, "hidden_size": 16, "num_bins": 5}),
    "nsf-ar": (
        NSF,
        {"kind": "autoregressive", "num_layers": 2, "hidden_size": 16, "num_bins": 5},
    ),
    "maf": (MAF, {"num_layers": 3, "hidden_sizes": (16, 12)}),
    "iaf": (IAF, {"num_layers": 3, "hidden_sizes": (16, 12), "scale": "tanh"}),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(name: str, num_dims: int, size: float = 0.5, **options) -> Flow:
    """A float64 model far from the identity, of data of mean 3 and deviation 2."""
    build, small = MODELS[name]
    model = build(num_dims, **(small | options)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    model.standardize(data(400, num_dims))
    return model.eval()


def data(rows: int, num_dims: int) -> Tensor:
    return 3 + 2 * torch.randn(rows, num_dims, dtype=torch.float64)


@pytest.mark.parametrize("context_dim", [None, CONTEXT])
@pytest.mark.parametrize("name", MODELS)
def test_log_prob_is_that_of_the_plain_formula(name: str, context_dim: int | None) -> None:
    model, x = make(name, 5, context_dim=context_dim), data(20, 5)
    context = None if context_dim is None else torch.randn(20, CONTEXT).double()
    expected = plain_log_prob(model, x, context)
    for backend in ("auto", "reference"):
        with ops.backend(backend):
            found = model.log_prob(x, context=context)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    single = copy.deepcopy(model).float()
    rounded = single.log_prob(x, context=context)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), expected, rtol=1e-4, atol=1e-3)
    if context is not None:
        assert not torch.equal(model.log_prob(x, context=context.flip(0)), found)
        one = model.log_prob(x, context=context[3])
        torch.testing.assert_close(one[3], expected[3])


@pytest.mark.parametrize("name", MODELS)
def test_log_determinant_of_the_whole_model(name: str) -> None:
    model, x = make(name, 4), data(5, 4)
    _, log_abs_det = model.encode(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: model.encode(x)[0].sum(0), x)
    expected = torch.linalg.slogdet(jacobian.transpose(0, 1)).logabsdet
    torch.testing.assert_close(log_abs_det, expected)


@pytest.mark.parametrize("context_dim", [None, CONTEXT])
@pytest.mark.parametrize("name", MODELS)
def test_samples_are_the_inverse(name: str, context_dim: int | None) -> None:
    model = make(name, 5, context_dim=context_dim)
    noise = torch.randn(30, 5).double()
    context = None if context_dim is None else torch.randn(30, CONTEXT).double()
    x = model.sample(30, context=context, noise=noise)
    assert not x.requires_grad
    z, log_abs_det = model.encode(x, context=context)
    torch.testing.assert_close(z, noise, rtol=1e-7, atol=1e-7)
    back, backwards = model.decode(noise, context=context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(backwards, -log_abs_det, rtol=1e-7, atol=1e-7)
    draw = model.sample(30, context=context, generator=torch.Generator().manual_seed(3))
    again = model.sample(30, context=context, generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw, again) and not torch.equal(draw, x)


@pytest.mark.parametrize("name", ["nsf-ar", "maf", "iaf"])
def test_density_of_one_dimension_integrates_to_one(name: str) -> None:
    model = make(name, 1, 1.0)
    x = torch.linspace(-60, 60, 100_001, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        density = model.log_prob(x).exp()
    assert torch.trapezoid(density, x.squeeze(1)).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("elements", "base", "ends"),
    [
        ([AffineElement("exp"), SplineElement(5), AffineElement()], StandardNormal(1), 20),
        ([LogisticMixtureElement(3), AffineElement("softplus")], StandardNormal(1), 60),
        ([LogisticMixtureElement(4, logit=False)], StandardUniform(1), 60),
        ([AdditiveElement(), SplineElement(3, 2.0)], StandardNormal(1), 20),
    ],
)
def test_monotone_flow_of_one_variable(elements: list, base, ends: float) -> None:
    model = Flow([Elementwise(1, element) for element in elements], base).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    x = torch.linspace(-ends, ends, 200_001, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        density = model.log_prob(x).exp()
        assert torch.trapezoid(density, x.squeeze(1)).item() == pytest.approx(1, abs=1e-4)
        # The cumulative density at samples is uniform.
        draws = model.sample(20_000).squeeze(1)
    cumulative = torch.cumulative_trapezoid(density, x.squeeze(1))
    place = ((draws + ends) / (2 * ends) * 200_000).long().clamp(0, 199_999)
    level = cumulative[place].sort().values
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    assert (level - uniform).abs().max() < 2.0 / math.sqrt(20_000)


@pytest.mark.parametrize("name", MODELS)
def test_density_in_the_plane_integrates_to_one(name: str) -> None:
    model = make(name, 2)
    axis = torch.linspace(-40, 46, 700, dtype=torch.float64)
    with torch.no_grad():
        density = model.log_prob(torch.cartesian_prod(axis, axis)).exp()
    total = density.sum().item() * (axis[1] - axis[0]).item() ** 2
    assert total == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_loss(name: str) -> None:
    model, x = make(name, 4), data(6, 4)
    parameters = list(model.parameters())
    found = torch.autograd.grad(model.loss(x), parameters)
    expected = torch.autograd.grad(-plain_log_prob(model, x).mean(), parameters, allow_unused=True)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if want is None else want)
    single = copy.deepcopy(model).float()
    rounded = torch.autograd.grad(single.loss(x.float()), list(single.parameters()))
    for got, want in zip(rounded, found, strict=True):
        assert (got - want).norm() <= 1e-3 * want.norm() + 1e-6


@pytest.mark.parametrize("context_dim", [None, CONTEXT])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_samples(name: str, context_dim: int | None) -> None:
    model = make(name, 3, 0.3, context_dim=context_dim)
    noise = torch.randn(2, 3).double().requires_grad_()
    context = None if context_dim is None else torch.randn(2, CONTEXT).double()
    parameters = list(model.parameters())

    def samples(noise: Tensor, *_: Tensor) -> Tensor:
        return torch.sin(model.rsample(2, context=context, noise=noise))

    torch.autograd.gradcheck(samples, (noise, *parameters), fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_reduced_precision(name: str) -> None:
    model, x = make(name, 5, 0.2).float(), data(40, 5).float()
    expected = model.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.log_prob(x)
    low = copy.deepcopy(model).bfloat16()
    stored = low.log_prob(x)
    for found in (mixed, stored):
        assert found.dtype == torch.float32
        assert (found - expected).abs().mean() < 0.5
    low.loss(x).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in low.parameters())
    assert low.sample(9).isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_points_far_out(name: str) -> None:
    model = make(name, 3).float()
    x = torch.tensor([0.0, 3.0, -1e3, 1e4]).unsqueeze(1).expand(4, 3).contiguous().requires_grad_()
    log_prob = model.log_prob(x)
    assert log_prob.isfinite().all() and log_prob[2:].max() < log_prob[:2].min()
    log_prob.sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_round_trip(name: str) -> None:
    source, x = make(name, 5), data(7, 5)
    build, small = MODELS[name]
    target = build(5, **small).double()
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.log_prob(x), source.log_prob(x))
    noise = torch.randn(7, 5).double()
    assert torch.equal(target.eval().sample(7, noise=noise), source.sample(7, noise=noise))


def test_densities_are_in_the_units_of_the_data() -> None:
    model = RealNVP(2, num_layers=1)
    x = torch.randn(5000, 2) * torch.tensor([0.1, 50.0]) + torch.tensor([1000.0, -3.0])
    model.standardize(x)
    # Near the identity: a Gaussian of these moments.
    normal = torch.distributions.Normal(x.mean(0), x.std(0))
    expected = normal.log_prob(x).sum(1)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=0.05, atol=0.1)
    bits = model.bits_per_dim(x)
    torch.testing.assert_close(bits, model.nll(x) / (2 * math.log(2)))
    torch.testing.assert_close(model.loss(x), model.nll(x).mean())
    torch.testing.assert_close(model(x), model.loss(x))
    # Images of two pixels, integers, one constant entry.
    assert torch.equal(model.log_prob(x.view(-1, 1, 1, 2)), model.log_prob(x))
    model.standardize(torch.tensor([[1, 5], [3, 5]]))
    assert model.log_prob(torch.tensor([[1, 5]])).isfinite().all()


@pytest.mark.parametrize("name", ["realnvp", "nsf", "nsf-ar", "maf"])
def test_losses_compile(name: str) -> None:
    model = make(name, 5).float()
    x = data(6, 5).float()
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model.loss(x))
    compiled(x).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: RealNVP(1), ValueError, "num_dims must be at least 2"),
        (lambda: RealNVP(4, num_layers=0), ValueError, "num_layers must be at least 1"),
        (lambda: RealNVP(4, scale="log"), ValueError, "scale must be one of"),
        (lambda: NSF(4, kind="affine"), ValueError, "kind must be one of"),
        (lambda: NSF(4, kind="autoregressive", dropout=0.1), ValueError, "dropout is for"),
        (lambda: NSF(1), ValueError, "num_dims must be at least 2"),
        (lambda: NSF(4, hidden_size=0), ValueError, "hidden_size must be at least 1"),
        (lambda: NSF(4, num_bins=1), ValueError, "num_bins must be at least 2"),
        (lambda: MAF(0), ValueError, "num_dims must be at least 1"),
        (lambda: MAF(2.5), TypeError, "num_dims must be an int"),
        (lambda: IAF(3, num_layers=0), ValueError, "num_layers must be at least 1"),
        (lambda: MAF(3, hidden_sizes=(0,)), ValueError, r"hidden_sizes\[0\] must be at least 1"),
        (lambda: MAF(3).standardize(torch.ones(1, 3)), ValueError, "at least two rows"),
        (lambda: MAF(3).log_prob(torch.ones(2, 4)), ValueError, "x must"),
        (lambda: MAF(3).log_prob(torch.ones(2, 3), context=torch.ones(2)), ValueError, "context"),
        (lambda: MAF(3, context_dim=2).sample(2), ValueError, "context"),
        (lambda: MAF(3).sample(2, noise=torch.ones(3, 3)), ValueError, "noise must have shape"),
        (lambda: Compose([]), ValueError, "at least one transform"),
    ],
)
def test_bad_arguments(build, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
