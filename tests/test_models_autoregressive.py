"""Autoregressive models on vectors: what holds for every one of them."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.distributions import cell_index, chi_square, every_vector
from torch import Tensor

import dgm_fast
from dgm_fast.models import FVSBN, NADE, RNADE, CategoricalNADE
from dgm_fast.models._autoregressive import AutoregressiveModel

D, C = 5, 3


def strong(model: AutoregressiveModel) -> AutoregressiveModel:
    """With weights under which the entries depend on each other, in float64."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model.double()


def fvsbn(size: int = D) -> FVSBN:
    return strong(FVSBN(size))


def nade(size: int = D) -> NADE:
    return strong(NADE(size, 7))


def categorical(size: int = D) -> CategoricalNADE:
    return strong(CategoricalNADE(size, 7, C))


def rnade(size: int = D, mixture: str = "gaussian", **options) -> RNADE:
    model = strong(RNADE(size, 6, 3, mixture, **options))
    model.V_log_scales.data *= 0.2
    model.standardize(torch.randn(50, size, generator=torch.Generator().manual_seed(1)) * 2 + 3)
    return model


DISCRETE = [(fvsbn, 2), (nade, 2), (categorical, C)]
ALL = [fvsbn, nade, categorical, rnade]


def some(model: AutoregressiveModel, n: int, seed: int = 2) -> Tensor:
    """Data [n, D] that the model takes."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, RNADE):
        return torch.randn(n, model.num_dims, dtype=torch.float64, generator=generator)
    return torch.randint(getattr(model, "num_classes", 2), (n, model.num_dims), generator=generator)


def noise(model: AutoregressiveModel, n: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(n, model.num_dims, dtype=torch.float64, generator=generator)
    if not isinstance(model, RNADE):
        return uniforms
    standard = torch.randn(n, model.num_dims, dtype=torch.float64, generator=generator)
    return torch.stack([uniforms, standard], -1)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("make", "size", "classes"), [(fvsbn, 12, 2), (nade, 12, 2), (categorical, 7, 3)]
)
def test_probabilities_sum_to_one(make, size, classes, backend) -> None:
    with dgm_fast.backend(backend):
        log_prob = make(size).log_prob(every_vector(size, classes))
        assert abs(log_prob.logsumexp(0).item()) < 1e-12
        in_float32 = make(size).float().log_prob(every_vector(size, classes))
        assert in_float32.dtype == torch.float32
        assert abs(in_float32.double().logsumexp(0).item()) < 1e-5


@pytest.mark.parametrize("mixture", ["gaussian", "logistic"])
@pytest.mark.parametrize("uniform", [False, True])
def test_densities_integrate_to_one(mixture: str, uniform: bool) -> None:
    # The data lie around 3 with a deviation of 2: the grid is in their units.
    wide = 50.0 if mixture == "gaussian" else 120.0
    for size, points in ((1, 2001), (2, 501)):
        model = rnade(size, mixture, uniform_weights=uniform)
        model.V_log_scales.data.zero_()
        model.b_log_scales.data.fill_(0.3)
        axis = torch.linspace(3 - wide, 3 + wide, points, dtype=torch.float64)
        step = (axis[1] - axis[0]).item()
        total = 0.0
        with torch.no_grad():
            for first in axis.split(200) if size == 2 else [axis]:
                grid = torch.cartesian_prod(first, axis) if size == 2 else first.unsqueeze(1)
                total += model.log_prob(grid).exp().sum().item() * step**size
        assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("make", ALL)
def test_conditionals_are_those_of_the_density_and_strictly_triangular(make) -> None:
    model = make()
    x = some(model, 4)
    found = model.conditionals(x)
    if isinstance(model, RNADE):
        logits, means, log_scales = found
        normal = torch.distributions.Normal(means, log_scales.exp())
        terms = torch.log_softmax(logits, -1) + normal.log_prob(x.unsqueeze(-1))
        expected = terms.logsumexp(-1).sum(-1)
        stacked = torch.cat(found, -1)
    elif isinstance(model, CategoricalNADE):
        expected = torch.log_softmax(found, -1).gather(-1, x.unsqueeze(-1)).sum((-1, -2))
        stacked = found
    else:
        expected = -torch.nn.functional.softplus((1 - 2 * x) * found).sum(-1)
        stacked = found.unsqueeze(-1)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-10, atol=1e-10)
    for d in range(D):
        other = x.clone()
        other[:, d] = (x[:, d] + 1) % C if isinstance(model, CategoricalNADE) else 1 - x[:, d]
        changed = model.conditionals(other)
        changed = torch.cat(changed, -1) if isinstance(changed, tuple) else changed
        difference = (changed.reshape(stacked.shape) - stacked).abs().amax((0, 2))
        assert (difference[: d + 1] == 0).all() and (difference[d + 1 :] > 1e-3).all()
    if not isinstance(model, CategoricalNADE):
        row = some(model, 1).double()

        def flat(row: Tensor) -> Tensor:
            out = model.conditionals(row)
            return (torch.cat(out, -1) if isinstance(out, tuple) else out).reshape(D, -1).sum(-1)

        jacobian = torch.autograd.functional.jacobian(flat, row)[:, 0]
        assert (jacobian.triu() == 0).all()
        assert (jacobian[torch.ones(D, D).tril(-1).bool()] != 0).all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("make", "classes"), DISCRETE)
def test_samples_have_the_probabilities_of_the_density(make, classes, backend) -> None:
    with dgm_fast.backend(backend):
        model = make(4).float()
        for parameter in model.parameters():
            parameter.data *= 0.5
        log_prob = model.log_prob(every_vector(4, classes)).double()
        x = model.sample(20_000, generator=torch.Generator().manual_seed(4))
        assert abs(chi_square(cell_index(x, classes), log_prob)) < 4


@pytest.mark.parametrize("make", ALL)
def test_samples_draw_from_the_conditionals(make) -> None:
    """Entry by entry from :meth:`conditionals`, with the same noise."""
    model, n = make(), 40
    drawn_from = noise(model, n)
    x = torch.zeros(n, D, dtype=torch.float64)
    if isinstance(model, CategoricalNADE):
        x = x.long()
    for d in range(D):
        found = model.conditionals(x)
        if isinstance(model, RNADE):
            logits, means, log_scales = (part[:, d] for part in found)
            cdf = torch.softmax(logits, -1).cumsum(-1)
            index = (cdf <= drawn_from[:, d, :1]).sum(-1, keepdim=True)
            mean, log_scale = means.gather(1, index), log_scales.gather(1, index)
            x[:, d] = (mean + log_scale.exp() * drawn_from[:, d, 1:]).squeeze(1)
        elif isinstance(model, CategoricalNADE):
            cdf = torch.softmax(found[:, d], -1).cumsum(-1)
            x[:, d] = (cdf <= drawn_from[:, d, None]).sum(-1)
        else:
            x[:, d] = drawn_from[:, d] < torch.sigmoid(found[:, d])
    torch.testing.assert_close(model.sample(n, noise=drawn_from), x, rtol=1e-10, atol=1e-10)
    with dgm_fast.backend("reference"):
        plain = model.sample(n, noise=drawn_from)
    torch.testing.assert_close(plain, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", ALL)
def test_given_entries_never_change(make) -> None:
    model, n = make(), 30
    x = some(model, n)
    given = torch.rand(n, D, generator=torch.Generator().manual_seed(5)) < 0.5
    # Values that are not given may be anything.
    hidden = torch.where(given, x, -7) if not isinstance(model, RNADE) else x.clone()
    if isinstance(model, RNADE):
        hidden[~given] = math.nan
    drawn_from = noise(model, n)
    drawn = model.sample(n, conditioned_on=(hidden, given), noise=drawn_from)
    assert torch.equal(drawn[given], x[given].to(drawn.dtype))
    assert torch.isfinite(drawn).all()
    free = model.sample(n, noise=drawn_from)
    # What comes before the first given entry is drawn as without it.
    before = given.long().cumsum(1) == 0
    assert torch.equal(drawn[before], free[before])
    one = model.sample(n, conditioned_on=(x[0], given[0]), noise=drawn_from)
    assert torch.equal(one[:, given[0]], x[0, given[0]].to(one.dtype).expand(n, -1))
    if isinstance(model, RNADE):
        # Not a rounding: float32 values that no standardising gives back.
        model = model.float()
        drawn = model.sample(n, conditioned_on=(x, given))
        assert torch.equal(drawn[given], x.float()[given])


@pytest.mark.parametrize(("make", "classes"), DISCRETE)
def test_imputed_entries_follow_what_was_given_before_them(make, classes) -> None:
    model = make(4).float()
    for parameter in model.parameters():
        parameter.data *= 0.5
    cells = every_vector(4, classes)
    values, given = torch.tensor([1, 0, 9, 9]), torch.tensor([True, True, False, False])
    matching = (cells[:, :2] == values[:2]).all(1)
    log_prob = model.log_prob(cells[matching]).double()
    x = model.sample(
        10_000, conditioned_on=(values, given), generator=torch.Generator().manual_seed(6)
    )
    assert (x[:, :2] == values[:2]).all()
    assert abs(chi_square(cell_index(x[:, 2:], classes), log_prob - log_prob.logsumexp(0))) < 4


@pytest.mark.parametrize("make", ALL)
def test_figures_state_and_shapes(make) -> None:
    model = make(4).float()
    x = some(model, 6)
    log_prob = model.log_prob(x)
    assert log_prob.shape == (6,) and log_prob.dtype == torch.float32
    torch.testing.assert_close(model.nll(x), -log_prob)
    torch.testing.assert_close(model.bits_per_dim(x), -log_prob / (4 * math.log(2)))
    torch.testing.assert_close(model.loss(x), -log_prob.mean())
    torch.testing.assert_close(model(x), model.loss(x))
    images = x.reshape(6, 2, 2)
    assert torch.equal(model.log_prob(images), log_prob)
    torch.testing.assert_close(model.bits_per_dim(images), model.bits_per_dim(x))
    other = make(4).float()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.log_prob(x), log_prob)
    assert torch.equal(*(m.sample(3, noise=noise(m, 3)) for m in (model, other)))
    samples = model.sample(3)
    assert samples.shape == (3, 4) and not samples.requires_grad
    assert samples.dtype == (torch.int64 if make is categorical else torch.float32)
    assert (model.bfloat16() and model.sample(2)).dtype == (
        torch.int64 if make is categorical else torch.bfloat16
    )
    assert model.log_prob(x).dtype == torch.float32


@pytest.mark.parametrize("make", ALL)
def test_every_parameter_gets_a_gradient_and_training_lowers_the_loss(make) -> None:
    model = make(4).float()
    x = some(model, 20).repeat(5, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(x)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_fresh_models_start_at_the_marginals() -> None:
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(8)
    bits = (torch.rand(300, 40, generator=generator) < torch.rand(40, generator=generator)).float()
    mean = bits.mean(0)
    entropy = torch.distributions.Bernoulli(mean.clamp(1e-3, 1 - 1e-3)).entropy().sum()
    # A NADE's random weights add a little to it.
    for model, excess in ((FVSBN(40), 1e-3), (NADE(40, 100), 3)):
        model.init_output_bias(mean)
        assert abs(model.loss(bits).item() - entropy.item()) < excess
    torch.testing.assert_close(FVSBN(40).loss(bits).item(), 40 * math.log(2))
    levels = torch.randint(C, (300, 40), generator=generator)
    frequency = torch.stack([(levels == level).float().mean(0) for level in range(C)])
    model = CategoricalNADE(40, 100, C)
    model.init_output_bias(frequency)
    entropy = torch.distributions.Categorical(frequency.t()).entropy().sum()
    assert abs(model.loss(levels).item() - entropy.item()) < 8
    with pytest.raises(ValueError, match="data_mean must have 40 entries"):
        FVSBN(40).init_output_bias(mean[:3])


def test_standardising_changes_units_and_nothing_else() -> None:
    model = RNADE(3, 8, 2).double()
    x = torch.randn(100, 3, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 1e3]) + 50
    z = (x - x.mean(0)) / x.std(0)
    expected = model.log_prob(z) - x.std(0).log().sum()
    model.standardize(x)
    torch.testing.assert_close(model.log_prob(x), expected)
    assert set(model.state_dict()) >= {"location", "scale"}
    constant = torch.tensor([[1.0, 5.0, 2.0], [2.0, 5.0, 3.0]])
    model.standardize(constant)
    assert model.scale[1] == 1 and torch.isfinite(model.log_prob(constant)).all()
    for bad in (x[:1], x / 0):
        with pytest.raises(ValueError, match="at least two rows"):
            model.standardize(bad)


def test_a_density_is_differentiable_in_its_data() -> None:
    model = rnade(3)
    x = some(model, 4).requires_grad_()
    torch.autograd.gradcheck(model.log_prob, (x,))


X, GIVEN = torch.zeros(2, D), torch.ones(2, D, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FVSBN(0), ValueError, "num_dims must be at least 1"),
        (lambda: NADE(4, 2.5), TypeError, "hidden_size must be an int"),
        (lambda: CategoricalNADE(4, 3, 1), ValueError, "num_classes must be at least 2"),
        (lambda: RNADE(4, 3, 0), ValueError, "num_mixtures must be at least 1"),
        (lambda: RNADE(4, 3, mixture="laplace"), ValueError, "mixture must be one of"),
        (lambda: nade().log_prob(torch.zeros(2, 4)), ValueError, r"x must have shape \[B, 5\]"),
        (lambda: nade().log_prob([1]), TypeError, "x must be a torch.Tensor"),
        (lambda: nade().log_prob(X + 2), ValueError, r"values in \[0, 1\]"),
        (lambda: fvsbn().log_prob(X + 2), ValueError, r"values in \[0, 1\]"),
        (lambda: categorical().log_prob(X + 3), ValueError, "class indices between 0 and 2"),
        (lambda: fvsbn().log_prob(X, context=X), ValueError, "built without context_dim"),
        (lambda: fvsbn().conditionals(X, context=X), ValueError, "built without context_dim"),
        (lambda: nade().sample(0), ValueError, "n must be at least 1"),
        (lambda: nade().sample(2, noise=X[:1]), ValueError, "noise must have shape"),
        (lambda: fvsbn().sample(2, noise=X[:1]), ValueError, "noise must have shape"),
        (lambda: rnade().sample(2, noise=X), ValueError, "noise must have shape"),
        (lambda: fvsbn().sample(2, noise=X.long()), TypeError, "noise must be a floating"),
        (lambda: nade().sample(2, conditioned_on=X), TypeError, "must be a pair"),
        (lambda: nade().sample(2, conditioned_on=(X, X)), TypeError, "given must be bool"),
        (lambda: nade().sample(3, conditioned_on=(X, GIVEN)), ValueError, "values must have shape"),
        (lambda: fvsbn().sample(2, conditioned_on=(X + 2, GIVEN)), ValueError, r"in \[0, 1\]"),
        (lambda: nade().sample(2, conditioned_on=(X + 2, GIVEN)), ValueError, r"in \[0, 1\]"),
        (lambda: rnade().sample(2, conditioned_on=(X / 0, GIVEN)), ValueError, "must be finite"),
    ],
)
def test_bad_arguments_are_named(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("make", ALL)
def test_the_loss_compiles_in_one_graph(make) -> None:
    model = make(4).float()
    x = some(model, 6)
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    loss = compiled(x)
    torch.testing.assert_close(loss, model.loss(x))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = torch.autograd.grad(model.loss(x), list(model.parameters()))
    torch.testing.assert_close(gradients, expected)
