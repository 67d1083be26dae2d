"""MADE: the autoregressive property, densities, samples, masks, contexts, checkpoints."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.distributions import every_vector
from torch import Tensor, nn

from dgm_fast import functional, ops
from dgm_fast.models import MADE
from dgm_fast.nn import MADE as Network
from dgm_fast.nn import AffineMap, autoregressive_inverse

ORDERS = ["natural", "reversed", "random"]
DISCRETE = {"bernoulli": {}, "categorical": {"num_classes": 3}}
REAL = {
    "gaussian": {},
    "mixture": {"num_mixtures": 3},
    "logistic": {"likelihood": "mixture", "num_mixtures": 2, "mixture": "logistic"},
}
LIKELIHOODS = DISCRETE | REAL


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(name: str, num_dims: int, hidden: tuple[int, ...] = (20, 13), **options) -> MADE:
    """A float64 model whose entries depend on each other."""
    options = {"likelihood": name, "activation": nn.Tanh} | LIKELIHOODS[name] | options
    model = MADE(num_dims, hidden, **options).double()
    with torch.no_grad():
        for parameter in model.network.layers.parameters():
            parameter.mul_(2.0)
    return model


def data(name: str, rows: int, num_dims: int) -> Tensor:
    if name in REAL:
        return torch.randn(rows, num_dims, dtype=torch.float64)
    return torch.randint(0, 3 if name == "categorical" else 2, (rows, num_dims))


def noise_of(model: MADE, rows: int) -> Tensor:
    return model.draw.draw_noise((rows, model.num_dims), dtype=torch.float64)


def jacobian(network: Network, mask: int = 0) -> Tensor:
    """|d outputs / d inputs| summed over parameters and a few points, [D, D] in the network's order."""
    total = torch.zeros(network.num_dims, network.num_dims, dtype=torch.float64)
    for _ in range(5):
        x = torch.randn(1, network.num_dims, dtype=torch.float64)
        found = torch.autograd.functional.jacobian(lambda x: network(x, mask=mask)[0], x)
        total += found.abs().sum((1, 2))
    order = network.orders[mask]
    return total[order][:, order]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("hidden", [(), (4,), (30,), (40, 25), (12, 40, 20)], ids=str)
def test_jacobian_is_strictly_triangular_in_the_models_order(hidden, order) -> None:
    network = Network(7, hidden, 2, order=order, num_masks=3, activation=nn.Tanh).double()
    for mask in range(3):
        found = jacobian(network, mask)
        assert found.triu().count_nonzero() == 0
        if not hidden or min(hidden) >= 12:
            # Every dimension hears every one before it.
            assert found.tril(-1).count_nonzero() == 21


def test_degrees() -> None:
    network = Network(5, (8, 3), order=[3, 1, 4, 0, 2])
    assert [d.tolist() for d in network.hidden_degrees] == [[[1, 1, 2, 2, 3, 3, 4, 4]], [[1, 3, 4]]]
    conditional = Network(5, (10,), context_dim=2)
    assert conditional.hidden_degrees[0].tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]]
    assert Network(1, (3,))(torch.zeros(2, 1)).shape == (2, 1, 1)
    several = Network(6, (10,), num_masks=3)
    for mask in range(3):
        assert torch.equal(
            several.hidden_degrees[0][mask].sort().values, several.hidden_degrees[0][0]
        )
    assert not torch.equal(several.hidden_degrees[0][1], several.hidden_degrees[0][2])


@pytest.mark.parametrize("order", [*ORDERS, [5, 0, 3, 1, 2, 4, 6, 9, 8, 7, 11, 10]], ids=str)
def test_binary_probabilities_sum_to_one(order) -> None:
    model = make("bernoulli", 12, order=order)
    assert abs(model.log_prob(every_vector(12, 2)).logsumexp(0).item()) < 1e-12
    several = make("bernoulli", 12, order=order, num_masks=3)
    assert abs(several.log_prob(every_vector(12, 2)).logsumexp(0).item()) < 1e-12


@pytest.mark.parametrize("order", ORDERS)
def test_categorical_probabilities_sum_to_one(order) -> None:
    model = make("categorical", 7, order=order)
    assert abs(model.log_prob(every_vector(7, 3)).logsumexp(0).item()) < 1e-12
    assert abs(model.float().log_prob(every_vector(7, 3)).logsumexp(0).item()) < 1e-5


@pytest.mark.parametrize("name", REAL)
def test_densities_integrate_to_one(name) -> None:
    model = make(name, 2, (6,), order="reversed")
    bias = model.network.output_bias
    bias[:, -1 if name == "gaussian" else slice(-model.num_mixtures, None)] = 0.0
    model.network.set_output_bias(bias)
    wide = 60.0 if name == "logistic" else 30.0
    axis = torch.linspace(-wide, wide, 901, dtype=torch.float64)
    step = (axis[1] - axis[0]).item()
    with torch.no_grad():
        total = model.log_prob(torch.cartesian_prod(axis, axis)).exp().sum().item() * step**2
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_conditionals_give_the_density(name) -> None:
    model = make(name, 5, order="random")
    x = data(name, 6, 5)
    found = model.conditionals(x)
    if name == "bernoulli":
        terms = torch.distributions.Bernoulli(logits=found).log_prob(x.double())
    elif name == "categorical":
        terms = torch.distributions.Categorical(logits=found).log_prob(x)
    elif name == "gaussian":
        terms = torch.distributions.Normal(found[0], found[1].exp()).log_prob(x)
    else:
        logits, means, log_scales = found
        scaled = (x.unsqueeze(-1) - means) / log_scales.exp()
        if name == "mixture":
            kernel = -0.5 * scaled**2 - 0.5 * math.log(2 * math.pi)
        else:
            kernel = nn.functional.logsigmoid(scaled) + nn.functional.logsigmoid(-scaled)
        terms = (torch.log_softmax(logits, -1) + kernel - log_scales).logsumexp(-1)
    torch.testing.assert_close(model.log_prob(x), terms.sum(1))
    torch.testing.assert_close(model.bits_per_dim(x), -terms.sum(1) / (5 * math.log(2)))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("context_dim", [None, 3])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_one_pass_samples_are_those_of_a_pass_a_dimension(name, context_dim, backend) -> None:
    model = make(name, 6, order="random", num_masks=2, context_dim=context_dim)
    context = None if context_dim is None else torch.randn(9, 3, dtype=torch.float64)
    noise = noise_of(model, 9)
    for mask in range(2):
        choice = torch.full((9,), mask / 2, dtype=torch.float64)
        with ops.backend(backend):
            x = model.sample(9, noise=(choice, noise), context=context)
        want = torch.zeros_like(x)
        for d in model.network.orders[mask].tolist():
            params = model.network(want, context=context, mask=mask).detach()
            want[:, d] = model.draw(noise[:, d], params[:, d])[0].to(x.dtype)
        if name in DISCRETE:
            assert torch.equal(x, want)
        else:
            torch.testing.assert_close(x, want)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_given_entries_never_change(name) -> None:
    model = make(name, 6, num_masks=2)
    values = data(name, 20, 6)
    given = torch.rand(20, 6) < 0.5
    noise = (torch.rand(20, dtype=torch.float64), noise_of(model, 20))
    anything = values.double().masked_fill(~given, math.nan)
    x = model.sample(20, conditioned_on=(anything, given), noise=noise)
    assert torch.equal(x[given].double(), values[given].double())
    free = model.sample(20, noise=noise)
    assert not torch.equal(x[~given], free[~given])
    nothing = model.sample(20, conditioned_on=(values, torch.zeros(6).bool()), noise=noise)
    assert torch.equal(nothing, free)


def test_sampled_frequencies_are_the_density() -> None:
    model = make("bernoulli", 4, order="random", num_masks=2)
    generator = torch.Generator().manual_seed(1)
    n = 40000
    x = model.sample(n, generator=generator)
    index = (x.long() * torch.tensor([8, 4, 2, 1])).sum(1)
    observed = torch.bincount(index, minlength=16).double()
    expected = n * model.log_prob(every_vector(4, 2)).exp().detach()
    # 99.99% quantile of chi-squared with 15 degrees of freedom.
    assert ((observed - expected) ** 2 / expected).sum() < 44.3


def test_ensemble_averages_probabilities() -> None:
    model = make("bernoulli", 5, order="random", num_masks=4)
    x = data("bernoulli", 7, 5)
    of_masks = torch.stack([model.log_prob_of_mask(x, mask) for mask in range(4)])
    torch.testing.assert_close(model.log_prob(x), of_masks.exp().mean(0).log())


def test_training_goes_through_the_masks() -> None:
    model = make("bernoulli", 5, order="random", num_masks=3)
    x = data("bernoulli", 7, 5)
    losses = torch.stack([model.loss(x) for _ in range(4)])
    of_masks = torch.stack([-model.log_prob_of_mask(x, mask).mean() for mask in (0, 1, 2, 0)])
    assert torch.equal(losses, of_masks)
    assert model.next_mask == 1
    model.eval()
    torch.testing.assert_close(model.loss(x), -model.log_prob(x).mean())
    assert model.next_mask == 1


def test_masked_weights_have_no_gradient_and_keep_their_values() -> None:
    model = MADE(8, (16,), num_masks=2, order="random")
    before = copy.deepcopy(model.state_dict())
    x = torch.randint(0, 2, (5, 8))
    model.loss(x).backward()
    layer = model.network.layers[0]
    mask = layer.sorted_in_degrees <= layer.sorted_out_degrees.unsqueeze(1)
    assert layer.weight.grad[~mask].count_nonzero() == 0
    assert layer.weight.grad[mask].count_nonzero() > 0
    model.loss(x)
    for name, value in model.state_dict().items():
        if name != "next_mask":
            assert torch.equal(value, before[name]), name


def test_context_reaches_every_dimension() -> None:
    for hidden in ((), (3,), (20, 10)):
        network = Network(6, hidden, 2, context_dim=4, order="random", activation=nn.Tanh)
        x = torch.randn(3, 6)
        context = torch.randn(3, 4)
        change = network(x, context=context) - network(x, context=context + 1)
        assert (change.abs() > 0).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_checkpoint_restores_order_and_masks(name) -> None:
    model = make(name, 6, order="random", num_masks=3, context_dim=2)
    model.next_mask.fill_(2)
    other = make(name, 6, order="natural", num_masks=3, context_dim=2)
    other.load_state_dict(model.state_dict())
    x = data(name, 4, 6)
    context = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(other.log_prob(x, context=context), model.log_prob(x, context=context))
    assert torch.equal(other.loss(x, context=context), model.loss(x, context=context))
    noise = (torch.rand(4, dtype=torch.float64), noise_of(model, 4))
    sampled = [m.sample(4, noise=noise, context=context) for m in (model, other)]
    assert torch.equal(*sampled)


def test_state_dict_is_in_the_users_order() -> None:
    order = torch.tensor([2, 0, 1])
    network = Network(3, (), order=order)
    state = network.state_dict()
    x = torch.randn(4, 3)
    degrees = order.argsort()
    mask = degrees < degrees.unsqueeze(1)
    weight, bias = state["layers.0.weight"], state["layers.0.bias"]
    torch.testing.assert_close(network(x)[..., 0], x @ (weight * mask).t() + bias)


def test_affine_flow_inverts_its_forward() -> None:
    network = Network(9, (30, 20), 2, order="random", activation=nn.ELU).double()
    x = torch.randn(40, 9, dtype=torch.float64)
    # z = (x - shift) / scale, the density's direction.
    z, log_abs_det = AffineMap(inverse=True)(x, network(x).detach())
    back, log_back = autoregressive_inverse(network, AffineMap(), z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_back, -log_abs_det.sum(1))


def test_activation_without_a_kernel() -> None:
    network = Network(5, (12,), 2, activation=nn.Hardswish).double()
    assert callable(network.masked_network().activation)
    z = torch.randn(3, 5, dtype=torch.float64)
    x, _ = autoregressive_inverse(network, AffineMap(), z)
    torch.testing.assert_close(AffineMap(inverse=True)(x, network(x))[0], z)


def test_starts_from_the_marginals() -> None:
    mean = torch.tensor([0.1, 0.5, 0.9])
    model = MADE(3, (8,), order="reversed")
    for parameter in model.network.layers.parameters():
        nn.init.zeros_(parameter)
    model.init_output_bias(mean)
    torch.testing.assert_close(torch.sigmoid(model.conditionals(torch.zeros(1, 3)))[0], mean)
    classes = MADE(3, (8,), likelihood="categorical", num_classes=2, order="random")
    for parameter in classes.network.layers.parameters():
        nn.init.zeros_(parameter)
    classes.init_output_bias(torch.stack([1 - mean, mean]))
    found = torch.softmax(classes.conditionals(torch.zeros(1, 3)), -1)[0, :, 1]
    torch.testing.assert_close(found, mean)
    with pytest.raises(ValueError, match="mixture"):
        MADE(3, (8,), likelihood="mixture").init_output_bias(mean)


def test_learns_what_the_reference_learns() -> None:
    x = torch.randint(0, 2, (64, 10))
    x[:, 5:] = x[:, :5]
    curves = []
    for backend in ("auto", "reference"):
        torch.manual_seed(3)
        model = MADE(10, (40,))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        with ops.backend(backend):
            for _ in range(60):
                loss = model.loss(x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        curves.append(losses)
    torch.testing.assert_close(
        torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-3, atol=1e-3
    )
    # Five independent bits, told again.
    assert curves[0][-1] < 0.75 * curves[0][0]


def test_digits() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits().data
    x = torch.from_numpy(digits >= 8).float()
    train, valid, test = x[:1000], x[1000:1350], x[1350:]
    torch.manual_seed(0)
    model = MADE(64, (500,))
    model.init_output_bias(train.mean(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1)
    best = (math.inf, math.inf)
    for epoch in range(16):
        for batch in train[torch.randperm(1000)].split(50):
            optimizer.zero_grad()
            model.loss(batch).backward()
            optimizer.step()
        if epoch % 4 == 3:
            with torch.no_grad():
                best = min(best, (model.nll(valid).mean().item(), model.nll(test).mean().item()))
    # Independent Bernoulli variables reach 24.9 nats.
    assert best[1] <= 18.6


def test_reduced_precision() -> None:
    model = MADE(9, (16,)).bfloat16()
    x = model.sample(5)
    assert x.dtype == torch.bfloat16
    assert model.log_prob(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, (3,)), {}, ValueError, "num_dims"),
        ((3, (0,)), {}, ValueError, "hidden_sizes"),
        ((3, (4,)), {"order": "sorted"}, ValueError, "order"),
        ((3, (4,)), {"order": [0, 0, 1]}, ValueError, "once"),
        ((3, (4,)), {"order": [0.0, 1.0, 2.0]}, TypeError, "integers"),
        ((3, (4,)), {"order": [0, 1]}, ValueError, "shape"),
        ((3, (4,)), {"num_masks": 0}, ValueError, "num_masks"),
        ((3, (4,)), {"likelihood": "poisson"}, ValueError, "likelihood"),
        ((3, (4,)), {"likelihood": "categorical"}, ValueError, "num_classes"),
        ((3, (4,)), {"num_classes": 4}, ValueError, "num_classes"),
        ((3, (4,)), {"mixture": "cauchy"}, ValueError, "mixture"),
    ],
)
def test_bad_constructor_arguments(arguments, options, error, message) -> None:
    with pytest.raises(error, match=message):
        MADE(*arguments, **options)


def test_bad_calls() -> None:
    network = Network(3, (4,), num_masks=2)
    with pytest.raises(ValueError, match="mask must be"):
        network(torch.zeros(2, 3), mask=2)
    with pytest.raises(ValueError, match="x must have shape"):
        network(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="context is given"):
        network(torch.zeros(2, 3), context=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="context is missing"):
        Network(3, (4,), context_dim=2)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="bias must have shape"):
        network.set_output_bias(torch.zeros(3))
    categorical = MADE(3, (4,), likelihood="categorical", num_classes=3)
    with pytest.raises(ValueError, match="class indices"):
        categorical.log_prob(torch.full((2, 3), 3))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        MADE(3, (4,)).log_prob(torch.full((2, 3), 2.0))
    with pytest.raises(TypeError, match="pair"):
        MADE(3, (4,), num_masks=2).sample(2, noise=torch.rand(2, 3))
    with pytest.raises(ValueError, match="context belongs"):
        functional.autoregressive_inverse(
            network.masked_network(), AffineMap(), torch.zeros(2, 3), context=torch.zeros(2, 1)
        )
