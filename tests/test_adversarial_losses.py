"""GAN losses and f-divergences: formulas, duality, limits, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import dgm_fast
from dgm_fast import functional as F
from dgm_fast.reference import adversarial as formulas

DIVERGENCES = formulas.DIVERGENCES
ALPHAS = (-1.0, 0.5, 1.5, 2.0, 3.0)
# (divergence, alpha, pi): every row, with several orders and weights.
ROWS = [
    *((name, 2.0, 0.5) for name in DIVERGENCES if name != "alpha"),
    ("weighted_jensen_shannon", 2.0, 0.2),
    *(("alpha", alpha, 0.5) for alpha in ALPHAS),
]


def generator_function(name: str, u: Tensor, alpha: float, pi: float) -> Tensor:
    """f(u), table 1 of Nowozin et al. (2016)."""
    return {
        "total_variation": lambda: 0.5 * (u - 1).abs(),
        "kl": lambda: u * u.log(),
        "reverse_kl": lambda: -u.log(),
        "pearson": lambda: (u - 1) ** 2,
        "neyman": lambda: (1 - u) ** 2 / u,
        "squared_hellinger": lambda: (u.sqrt() - 1) ** 2,
        "jeffrey": lambda: (u - 1) * u.log(),
        "jensen_shannon": lambda: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
        "weighted_jensen_shannon": lambda: (
            pi * u * u.log() - (1 - pi + pi * u) * (1 - pi + pi * u).log()
        ),
        "gan": lambda: u * u.log() - (u + 1) * (u + 1).log(),
        "alpha": lambda: (u**alpha - 1 - alpha * (u - 1)) / (alpha * (alpha - 1)),
    }[name]()


@pytest.mark.parametrize(("name", "alpha", "pi"), ROWS)
def test_conjugates_are_suprema(name: str, alpha: float, pi: float) -> None:
    v = torch.linspace(-6.0, 4.0, 21, dtype=torch.float64)
    t = formulas.loss_term(f"{name}.activation", v, alpha, pi)
    conjugate = formulas.loss_term(f"{name}.conjugate", v, alpha, pi)
    log_u = torch.linspace(-40.0, 30.0, 70_001, dtype=torch.float64)
    u = log_u.exp()
    f = generator_function(name, u, alpha, pi)
    supremum = torch.stack([(u * ti - f).nan_to_num(nan=-math.inf).max() for ti in t])
    torch.testing.assert_close(conjugate, supremum, rtol=1e-6, atol=1e-6)
    assert (t.diff() > 0).all()


MEAN_P, VAR_P, MEAN_Q, VAR_Q = 0.3, 0.9, -0.2, 1.2


def gaussian_ratio(x: Tensor) -> tuple[Tensor, Tensor]:
    """Density q(x) and u = p / q of two Gaussians."""
    exponents = [0.5 * (x - m) ** 2 / s for m, s in ((MEAN_P, VAR_P), (MEAN_Q, VAR_Q))]
    q = (-exponents[1]).exp() / math.sqrt(2 * math.pi * VAR_Q)
    return q, (exponents[1] - exponents[0]).exp() * math.sqrt(VAR_Q / VAR_P)


@pytest.mark.parametrize(("name", "alpha", "pi"), ROWS)
def test_bound_is_tight_between_gaussians(name: str, alpha: float, pi: float) -> None:
    """At the optimal discriminator, g(V) = f'(u), u t - f*(t) is f(u) at every point."""
    _, u = gaussian_ratio(torch.linspace(-6.0, 6.0, 501, dtype=torch.float64))
    u = u.requires_grad_()
    f = generator_function(name, u, alpha, pi)
    (slope,) = torch.autograd.grad(f.sum(), u)
    low, high = torch.full_like(u, -1e7), torch.full_like(u, 1e7)
    for _ in range(100):
        middle = 0.5 * (low + high)
        below = formulas.loss_term(f"{name}.activation", middle, alpha, pi) < slope
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    t = formulas.loss_term(f"{name}.activation", high, alpha, pi)
    conjugate = formulas.loss_term(f"{name}.conjugate", high, alpha, pi)
    torch.testing.assert_close(u * t - conjugate, f, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("name", "alpha", "pi"), ROWS)
def test_gaussian_divergences(name: str, alpha: float, pi: float) -> None:
    """Closed forms and quadrature against the integral of the definition."""
    x = torch.linspace(-16.0, 16.0, 8_001, dtype=torch.float64)
    q, u = gaussian_ratio(x)
    want = torch.trapezoid(q * generator_function(name, u, alpha, pi), x)
    gaussians = [
        tuple(torch.tensor([value], dtype=torch.float64) for value in (m, math.log(s)))
        for m, s in ((MEAN_P, VAR_P), (MEAN_Q, VAR_Q))
    ]
    ours = F.f_divergence(*gaussians, name, alpha=alpha, pi=pi)
    # The total variation has a kink, where quadrature is of second order.
    torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("name", "alpha", "pi"), ROWS)
def test_discrete_divergences(name: str, alpha: float, pi: float) -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 5, 7, generator=generator, dtype=torch.float64)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    want = (q * generator_function(name, p / q, alpha, pi)).sum(-1)
    torch.testing.assert_close(F.f_divergence(p, q, name, alpha=alpha, pi=pi), want)
    same = F.f_divergence(p, p, name, alpha=alpha, pi=pi)
    zero = -2 * math.log(2) if name == "gan" else 0.0
    torch.testing.assert_close(same, torch.full_like(same, zero), rtol=0, atol=1e-12)


def test_discrete_divergences_at_disjoint_support() -> None:
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert F.f_divergence(p, q, "kl") == math.inf
    assert F.f_divergence(p, q, "reverse_kl") == math.inf
    assert F.f_divergence(p, q, "pearson") == math.inf
    assert F.f_divergence(p, q, "total_variation") == 1.0
    assert F.f_divergence(p, q, "squared_hellinger") == 2.0
    torch.testing.assert_close(
        F.f_divergence(p, q, "jensen_shannon"), torch.tensor(2 * math.log(2))
    )


def test_gaussian_divergence_that_does_not_exist_is_infinite() -> None:
    wide = (torch.zeros(2), torch.full((2,), math.log(3.0)))
    narrow = (torch.zeros(2), torch.zeros(2))
    assert F.f_divergence(wide, narrow, "pearson") == math.inf
    assert F.f_divergence(narrow, wide, "neyman") == math.inf
    assert math.isfinite(F.f_divergence(narrow, wide, "pearson"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e4, -1e4, 89.0, -89.0, 0.0])
@pytest.mark.parametrize(("name", "alpha", "pi"), ROWS)
def test_extreme_outputs_stay_finite(
    name: str, alpha: float, pi: float, size: float, dtype: torch.dtype
) -> None:
    real = torch.full((300,), size, dtype=dtype, requires_grad=True)
    fake = torch.full((200,), size, dtype=dtype, requires_grad=True)
    loss = F.f_divergence_loss(real, fake, name, alpha=alpha, pi=pi)
    for form in ("theoretical", "practical"):
        loss_g = F.f_divergence_generator_loss(fake, name, form=form, alpha=alpha, pi=pi)
        (grad_g,) = torch.autograd.grad(loss_g, fake)
        assert loss_g.isfinite()
        assert grad_g.isfinite().all()
        assert (grad_g <= 0).all()
    grad_real, grad_fake = torch.autograd.grad(loss, (real, fake))
    assert loss.isfinite()
    assert (grad_real <= 0).all()
    assert (grad_fake >= 0).all()
    assert grad_real.isfinite().all()
    assert grad_fake.isfinite().all()


@pytest.mark.parametrize("kind", formulas.DISCRIMINATOR_TERMS)
def test_losses_by_their_definition(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 40, generator=generator, dtype=torch.float64) * 3
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    logistic = bce(real, ones) + bce(fake, zeros)
    discriminator = {
        "wasserstein": fake.mean() - real.mean(),
        "hinge": (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean(),
        "least_squares": 0.5 * ((real - 1) ** 2).mean() + 0.5 * (fake**2).mean(),
    }.get(kind, logistic)
    generator_value = {
        "minimax": -bce(fake, zeros),
        "non_saturating": bce(fake, ones),
        "kl": bce(fake, ones) - bce(fake, zeros),
        "least_squares": 0.5 * ((fake - 1) ** 2).mean(),
    }.get(kind, -fake.mean())
    torch.testing.assert_close(F.discriminator_loss(real, fake, kind), discriminator)
    torch.testing.assert_close(F.generator_loss(fake, kind), generator_value)


def test_kl_loss_is_the_divergence_from_model_to_data() -> None:
    """With the optimal discriminator log p/q, E_q of the loss is KL(q || p)."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(400_000, generator=generator, dtype=torch.float64) * 0.8 + 0.5  # from q
    log_p = -0.5 * x**2
    log_q = -0.5 * ((x - 0.5) / 0.8) ** 2 - math.log(0.8)
    want = math.log(1 / 0.8) + 0.5 * (0.8**2 + 0.5**2) - 0.5
    assert abs(F.generator_loss(log_p - log_q, "kl").item() - want) < 5e-3


def test_case_study_of_two_narrow_gaussians() -> None:
    """Separate supports: the KL loss grows without bound as they narrow, and so does the gain of an
    unconstrained critic; with the gradient penalty the optimum is finite."""
    losses = []
    for scale in (1.0, 0.1, 0.01):
        x = 1.0 + scale * torch.linspace(-2, 2, 101, dtype=torch.float64)  # model around 1
        optimal = (-0.5 * x**2 + 0.5 * (x - 1.0) ** 2) / scale**2  # log p / q, data around 0
        losses.append(F.generator_loss(optimal, "kl").item())
    assert losses[2] > 50 * losses[1] > 50 * losses[0] > 0
    real, fake = torch.zeros(64, 1), torch.ones(64, 1)
    free, penalised = [], []
    for slope in (1.0, 10.0, 100.0):
        critic = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(critic.weight, -slope)
        free.append(F.critic_loss(critic, real, fake, penalty=None).item())
        penalised.append(F.critic_loss(critic, real, fake, weight=10.0).item())
    assert free == pytest.approx([-1.0, -10.0, -100.0])
    assert penalised == pytest.approx([-1.0, -10.0 + 810.0, -100.0 + 98010.0])


def test_bad_arguments() -> None:
    v = torch.randn(3)
    with pytest.raises(ValueError, match="kind must be one of"):
        F.discriminator_loss(v, v, "wgan")
    with pytest.raises(ValueError, match="divergence must be one of"):
        F.f_divergence_loss(v, v, "chi")
    with pytest.raises(ValueError, match="form must be one of"):
        F.f_divergence_generator_loss(v, "kl", form="tricky")
    for alpha in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="alpha must be"):
            F.f_divergence_loss(v, v, "alpha", alpha=alpha)
    for pi in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="pi must be"):
            F.f_divergence_loss(v, v, "weighted_jensen_shannon", pi=pi)
    with pytest.raises(ValueError, match="fake_logits must have at least one element"):
        F.generator_loss(v[:0], "hinge")
    with pytest.raises(TypeError, match="fake_logits must be floating point"):
        F.generator_loss(v.long(), "hinge")
    with pytest.raises(TypeError, match="both be tensors"):
        F.f_divergence(v, (v, v), "kl")
    with pytest.raises(ValueError, match="one dimension only"):
        F.f_divergence((v, v), (v, v), "gan")


@pytest.mark.parametrize("kernel", [True, False])
def test_no_term_hides_nan(kernel: bool) -> None:
    v = torch.tensor([0.0, math.nan])
    with dgm_fast.backend("auto" if kernel else "reference"):
        for name in DIVERGENCES:
            assert F.f_divergence_loss(v[:1], v, name, alpha=1.5).isnan(), name
            assert F.f_divergence_loss(v, v[:1], name, alpha=1.5).isnan(), name


def test_r1_signals_do_not_share_their_rounding() -> None:
    """Real and fake samples' shares of a bias's gradient cancel; errors that were alike would stay."""
    torch.manual_seed(0)
    critic = torch.nn.Sequential(
        torch.nn.Linear(20, 300),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(300, 300),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(300, 1),
    )
    real, fake = torch.rand(2, 1000, 20)

    def gradient(critic: torch.nn.Module, real: Tensor, fake: Tensor, method: str) -> Tensor:
        loss = F.critic_loss(critic, real, fake, kind="non_saturating", penalty="r1", method=method)
        return torch.autograd.grad(loss, critic[0].bias)[0].double()

    single = [gradient(critic, real, fake, method) for method in ("explicit", "exact")]
    exact = gradient(critic.double(), real.double(), fake.double(), "exact")
    ours, plain = ((g - exact).norm() for g in single)
    assert ours <= 2 * plain
