"""The ways to compute a gradient penalty: each against float64, their choice, compile, autocast, lazy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.critics import CRITICS, Residual, conv, make, mlp, samples
from test_gradient_penalty import (
    LIMITS,
    PENALTIES,
    assert_matches,
    gradients,
    plain_loss,
    plain_penalty,
)
from torch import Tensor, nn

import dgm_fast
from dgm_fast import functional as F
from dgm_fast import ops

CHAINS = ("mlp", "relu", "conv")
KINDS = ("wasserstein", "non_saturating", "hinge", "least_squares")


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("penalty", [*PENALTIES, None])
@pytest.mark.parametrize("name", CHAINS)
def test_explicit_step(name: str, penalty: str | None, dtype: torch.dtype, backend: str) -> None:
    """C++ and plain PyTorch: one closed form for loss and penalty, every parameter's gradient."""
    inputs, double = samples(name, dtype), make(name, torch.float64)
    for kind in KINDS:
        want = plain_loss(double, samples(name, torch.float64), kind, penalty)
        critic = make(name, dtype)
        with ops.backend(backend):
            value = F.critic_loss(critic, **inputs, kind=kind, penalty=penalty, method="explicit")
            grads = gradients(critic, value)
            with torch.no_grad():
                alone = F.critic_loss(
                    critic, **inputs, kind=kind, penalty=penalty, method="explicit"
                )
        assert_matches(value, grads, want, gradients(double, want), LIMITS[dtype])
        torch.testing.assert_close(alone, value.detach())


def strided_chain() -> nn.Sequential:
    """Groups, dilation, no biases, a final activation, several outputs a sample."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2, bias=False),
        nn.LeakyReLU(0.1),
        nn.Sequential(nn.Conv2d(4, 6, 3, dilation=2), nn.ReLU()),
        nn.Identity(),
        nn.Conv2d(6, 3, (2, 1), stride=(1, 2)),
        nn.LeakyReLU(0.3),
    )


def wide_linear() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(128, 9), nn.ReLU(), nn.Linear(9, 4, bias=False), nn.Linear(4, 2)
    )


def flattened_wide() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.ReLU(),
        nn.Linear(5, 1),
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("build", [strided_chain, wide_linear, flattened_wide])
def test_explicit_step_of_other_chains(
    build: Callable[[], nn.Module], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    critic = build().double()
    inputs = samples("conv", torch.float64, batch=20)  # several micro-batches of the C++ step
    for penalty, kind in (("gp", "wasserstein"), ("gp", "hinge"), (None, "non_saturating")):
        want = plain_loss(critic, inputs, kind, penalty)
        with ops.backend(backend):
            value = F.critic_loss(critic, **inputs, kind=kind, penalty=penalty, method="explicit")
            assert_matches(value, gradients(critic, value), want, gradients(critic, want), 1e-12)


@pytest.mark.parametrize("center", [0.0, 0.7])
@pytest.mark.parametrize("name", CHAINS)
def test_explicit_penalty_alone(name: str, center: float) -> None:
    inputs, critic = samples(name, torch.float64), make(name, torch.float64)
    options = {"center": center, "one_sided": center > 0, "weight": 4.0}
    want = plain_penalty(critic, inputs, "gp", **options)
    value = F.gradient_penalty(critic, **inputs, method="explicit", **options)
    assert_matches(value, gradients(critic, value), want, gradients(critic, want), 1e-12)


def test_explicit_step_scales_with_the_incoming_gradient_and_repeats() -> None:
    inputs, critic = samples("mlp"), make("mlp")
    loss = F.critic_loss(critic, **inputs)
    once = torch.autograd.grad(loss, list(critic.parameters()), retain_graph=True)
    scaled = torch.autograd.grad(3.0 * loss, list(critic.parameters()), retain_graph=True)
    for a, b in zip(once, scaled, strict=True):
        torch.testing.assert_close(3.0 * a, b)
    loss.backward(retain_graph=True)
    loss.backward()
    for p, g in zip(critic.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2.0 * g)


def test_explicit_step_refuses_second_derivatives() -> None:
    inputs, critic = samples("mlp"), make("mlp")
    loss = F.critic_loss(critic, **inputs, method="explicit")
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, list(critic.parameters()), create_graph=True)


def test_frozen_and_parametrized_weights() -> None:
    inputs, critic = samples("mlp", torch.float64), make("mlp", torch.float64)
    critic[0].weight.requires_grad_(False)
    nn.utils.parametrizations.weight_norm(critic[2])
    trained = [p for p in critic.parameters() if p.requires_grad]
    want = torch.autograd.grad(plain_loss(critic, inputs, "hinge", "gp"), trained)
    value = F.critic_loss(critic, **inputs, kind="hinge", method="explicit")
    for ours, wanted in zip(torch.autograd.grad(value, trained), want, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("name", CRITICS)
def test_what_auto_chooses_and_why(name: str) -> None:
    inputs, critic = samples(name), make(name)
    method, reason = F.explain_gradient_penalty(critic, inputs["real"], labels=inputs.get("labels"))
    if name in CHAINS:
        assert method == "explicit"
    else:
        assert method == "exact"
        expected = {
            "silu": "1 is a SiLU",
            "residual": "Residual",
            "conditional": "it takes labels",
            "attention": "Attention",
        }
        assert expected[name] in reason
    assert reason


def test_reasons_against_the_explicit_method() -> None:
    real = samples("mlp")["real"]
    hooked = mlp()
    hooked[0].register_forward_hook(lambda *_: None)
    obstacles = {
        "has hooks": (hooked, real),
        "inputs are torch.bfloat16": (mlp().bfloat16(), real.bfloat16()),
        "parameters are torch.float64": (mlp().double(), real),
        "does not follow": (nn.Sequential(nn.ReLU(), nn.Linear(12, 1)), real),
        "no module": (lambda x: x.sum(1), real),
        "pads by 'reflect'": (
            nn.Sequential(nn.Conv2d(2, 1, 3, padding=1, padding_mode="reflect")),
            samples("conv")["real"],
        ),
    }
    for text, (critic, x) in obstacles.items():
        method, reason = F.explain_gradient_penalty(critic, x)
        assert method == "exact"
        assert text in reason
        with pytest.raises(ValueError, match="method 'explicit' cannot take this critic"):
            F.r1_penalty(critic, x, method="explicit")
    maps = nn.Sequential(nn.Conv2d(2, 1, 3))
    images = samples("conv")
    with pytest.raises(ValueError, match="one output"):
        F.critic_loss(maps, **images, penalty="r1", method="explicit")
    want = plain_loss(maps, images, "hinge", "r1")
    torch.testing.assert_close(F.critic_loss(maps, **images, kind="hinge", penalty="r1"), want)


def test_exact_double_backward_skips_zero_work() -> None:
    """Plain leaky ReLUs push a gradient of zeros through the network; ours have none to push."""

    def products(call: Callable[[], Tensor]) -> int:
        with torch.profiler.profile() as recording:
            call().backward()
        return sum(e.name in ("aten::mm", "aten::addmm") for e in recording.events() or [])

    inputs, critic = samples("mlp"), make("mlp")
    plain = products(lambda: plain_penalty(critic, inputs, "gp"))
    ours = products(lambda: F.gradient_penalty(critic, **inputs, method="exact"))
    assert ours < plain

    functional = Functional()
    plain = products(lambda: plain_penalty(functional, inputs, "gp"))
    ours = products(lambda: F.gradient_penalty(functional, **inputs))
    assert ours < plain


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 9), nn.Linear(9, 7), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.a(x), 0.2)
        return self.c(torch.relu(self.b(x)))


@pytest.mark.parametrize("name", ["mlp", "silu", "conditional"])
def test_finite_differences(name: str) -> None:
    """The value is exact; the gradient too for smooth critics, and near it with kinks."""
    inputs, critic = samples(name, torch.float64), make(name, torch.float64)
    want = plain_penalty(critic, inputs, "gp")
    want_grads = gradients(critic, want)
    if name != "conditional":
        # The last bias has no gradient; here it is what is left of two roundings over the step.
        del want_grads["4.bias"]
    value = F.gradient_penalty(critic, **inputs, method="finite_difference")
    torch.testing.assert_close(value, want)
    single = make(name)
    of_single = F.gradient_penalty(single, **samples(name), method="finite_difference")
    grads = gradients(single, of_single)
    if name == "silu":
        assert_matches(value, gradients(critic, value), want, want_grads, 2e-3)
        assert_matches(of_single, grads, want, want_grads, 2e-3)
    assert all(g.isfinite().all() for g in grads.values())


def test_finite_differences_refuse_reduced_precision_and_take_flash_attention() -> None:
    critic = make("mlp").bfloat16()
    real = samples("mlp")["real"].bfloat16()
    with pytest.raises(ValueError, match="reduced precision"):
        F.r1_penalty(critic, real, method="finite_difference")

    class Once(torch.autograd.Function):
        """Stands for a kernel that cannot be differentiated twice."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad * (1 - x.tanh() ** 2)

    torch.manual_seed(0)
    first, second = nn.Linear(12, 8).double(), nn.Linear(8, 1).double()
    inputs = samples("mlp", torch.float64)
    value = F.gradient_penalty(
        lambda x: second(Once.apply(first(x))), **inputs, method="finite_difference"
    )
    want = plain_penalty(lambda x: second(first(x).tanh()), inputs, "gp")
    torch.testing.assert_close(value, want)
    ours = torch.autograd.grad(value, first.weight)[0]
    wanted = torch.autograd.grad(want, first.weight)[0]
    assert (ours - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.parametrize("name", ["mlp", "silu", "conv", "residual", "conditional", "accelerated"])
def test_compiled_penalty(name: str) -> None:
    """torch.compile's inner gradient: the gradient of *every* parameter, not only the value."""
    torch._dynamo.reset()
    base = "residual" if name == "accelerated" else name
    inputs, critic = samples(base), make(base)
    double = make(base, torch.float64)
    if name == "accelerated":
        assert dgm_fast.accelerate(critic).replaced
    want = plain_penalty(double, samples(base, torch.float64), "gp")
    labels = inputs.pop("labels", None)

    # Inside a user's compiled step.
    def step(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
        return F.gradient_penalty(critic, real, fake, eps=eps, labels=labels, method="compiled")

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    value = compiled(**inputs)
    assert_matches(value, gradients(critic, value), want, gradients(double, want), 3e-6)


@pytest.mark.slow
def test_compiled_penalty_with_inductor() -> None:
    torch._dynamo.reset()
    for name in ("silu", "residual"):
        inputs, critic, double = samples(name), make(name), make(name, torch.float64)
        want = plain_penalty(double, samples(name, torch.float64), "gp")
        want_grads = gradients(double, want)
        value = F.gradient_penalty(critic, **inputs, method="compiled")
        assert_matches(value, gradients(critic, value), want, want_grads, 3e-6)
        whole = torch.compile(critic)
        assert F.explain_gradient_penalty(whole, inputs["real"])[0] == "compiled"
        value = F.gradient_penalty(whole, **inputs)
        assert_matches(value, gradients(critic, value), want, want_grads, 3e-6)
        with pytest.raises(ValueError, match="does not differentiate twice"):
            F.gradient_penalty(whole, **inputs, method="exact")


@pytest.mark.parametrize("penalty", ["gp", "r1"])
def test_compiled_step_with_the_explicit_method(penalty: str) -> None:
    torch._dynamo.reset()
    inputs, critic, double = samples("mlp"), make("mlp"), make("mlp", torch.float64)
    want = plain_loss(double, samples("mlp", torch.float64), "non_saturating", penalty)

    def step(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
        return F.critic_loss(critic, real, fake, eps=eps, kind="non_saturating", penalty=penalty)

    value = torch.compile(step, backend="aot_eager", fullgraph=True)(**inputs)
    assert_matches(value, gradients(critic, value), want, gradients(double, want), 3e-6)


def test_compiled_refuses_python_functions_that_would_be_wrong() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(Double.apply(x))

    inputs = samples("mlp")
    with pytest.raises(ValueError, match=r"autograd\.Function"):
        F.gradient_penalty(Critic(), **inputs, method="compiled")


@pytest.mark.parametrize("name", ["mlp", "conv", "silu"])
def test_autocast(name: str) -> None:
    inputs, critic = samples(name), make(name)
    double = make(name, torch.float64)
    want = plain_penalty(double, samples(name, torch.float64), "gp")
    with torch.autocast("cpu", torch.bfloat16):
        assert F.explain_gradient_penalty(critic, inputs["real"])[0] == "exact"
        value = F.gradient_penalty(critic, **inputs)
        loss = F.critic_loss(critic, **inputs)
    assert value.dtype == loss.dtype == torch.float32
    # Eight bits of mantissa through three layers.
    assert_matches(value, gradients(critic, value), want, gradients(double, want), 5e-2)
    assert all(g.isfinite().all() for g in gradients(critic, loss).values())


def test_grad_scaler() -> None:
    inputs, critic = samples("silu"), make("silu")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    plain = F.gradient_penalty(critic, **inputs, method="exact")
    value = F.gradient_penalty(critic, **inputs, method="exact", scaler=scaler)
    torch.testing.assert_close(value, plain)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    scaler.scale(F.critic_loss(critic, **inputs, scaler=scaler)).backward()
    want = gradients(critic, F.critic_loss(critic, **inputs))
    scaler.unscale_(optimizer)
    for name, p in critic.named_parameters():
        torch.testing.assert_close(p.grad, want[name])


def test_accelerate_swaps_activations_in_place() -> None:
    critic = nn.Sequential(
        nn.Linear(12, 8),
        nn.LeakyReLU(0.2, inplace=True),
        nn.ModuleList([nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(-0.1), nn.SiLU()]),
    )
    kept = critic[2][0]
    report = dgm_fast.accelerate(critic)
    assert [(r.name, r.after) for r in report.replaced] == [
        ("1", "dgm_fast.nn.LeakyReLU"),
        ("2.0", "dgm_fast.nn.ReLU"),
    ]
    assert {k.name for k in report.kept} == {"2.1", "2.2"}
    assert critic[2][0] is kept
    assert "2 modules replaced, 2 kept" in str(report)
    assert dgm_fast.accelerate(critic).replaced == []
    x = torch.randn(3, 4)
    assert torch.equal(critic[1](x), nn.functional.leaky_relu(x, 0.2))
    with pytest.raises(TypeError, match=r"nn\.Module"):
        dgm_fast.accelerate(lambda x: x)  # type: ignore[arg-type]
    plain, fast = Residual(), None
    fast = copy.deepcopy(plain)
    dgm_fast.accelerate(fast)
    inputs = samples("residual")
    ours = gradients(fast, plain_penalty(fast, inputs, "gp"))
    for key, want in gradients(plain, plain_penalty(plain, inputs, "gp")).items():
        torch.testing.assert_close(ours[key], want)


def test_accelerate_swaps_convolutions_in_place() -> None:
    plain = make("conv", torch.float64)
    fast = copy.deepcopy(plain)
    replaced = {r.name: r.after for r in dgm_fast.accelerate(fast).replaced}
    convolutions = {n for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)}
    assert {n for n, after in replaced.items() if after == "dgm_fast.nn.Conv2d"} == convolutions
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert all(type(fast.get_submodule(n)).forward is nn.Conv2d.forward for n in convolutions)
    inputs = samples("conv", torch.float64)
    assert F.explain_gradient_penalty(fast, inputs["real"])[0] == "explicit"
    assert torch.equal(fast(inputs["real"]), plain(inputs["real"]))
    # Someone's own penalty, by plain double backward.
    ours = gradients(fast, plain_penalty(fast, inputs, "gp"))
    for key, want in gradients(plain, plain_penalty(plain, inputs, "gp")).items():
        torch.testing.assert_close(ours[key], want, rtol=1e-10, atol=1e-10)
    called = []
    fast.get_submodule(min(convolutions)).register_forward_hook(lambda *_: called.append(1))
    fast(inputs["real"])
    assert called
    report = dgm_fast.accelerate(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    assert report.kept[0].reason == "it pads by 'reflect'"


def test_accelerate_swaps_large_linear_layers_in_place() -> None:
    critic = nn.Sequential(nn.Linear(600, 512), nn.LeakyReLU(0.2), nn.Linear(512, 1)).double()
    plain = copy.deepcopy(critic)
    report = dgm_fast.accelerate(critic)
    assert [(r.name, r.after) for r in report.replaced] == [
        ("0", "dgm_fast.nn.Linear"),
        ("1", "dgm_fast.nn.LeakyReLU"),
    ]
    assert critic.state_dict().keys() == plain.state_dict().keys()
    inputs = {n: torch.rand(5, 600, dtype=torch.float64) for n in ("real", "fake")}
    inputs["eps"] = torch.rand(5, dtype=torch.float64)
    assert F.explain_gradient_penalty(critic, inputs["real"])[0] == "explicit"
    want = gradients(plain, plain_loss(plain, inputs, "wasserstein", "gp"))
    for method in ("explicit", "exact"):
        outputs = critic(inputs["fake"]).mean() - critic(inputs["real"]).mean()
        loss = outputs + F.gradient_penalty(critic, **inputs, method=method)
        for key, got in gradients(critic, loss).items():
            torch.testing.assert_close(got, want[key], rtol=1e-10, atol=1e-10)


def test_lazy_penalty() -> None:
    inputs, critic = samples("mlp"), make("mlp")
    lazy = dgm_fast.nn.LazyPenalty(3, F.r1_penalty)
    values = [lazy(critic, inputs["real"]) for _ in range(7)]
    once = F.r1_penalty(critic, inputs["real"])
    assert [v != 0.0 for v in values] == [True, False, False, True, False, False, True]
    torch.testing.assert_close(values[3], 3 * once)
    other = dgm_fast.nn.LazyPenalty(3)
    other.load_state_dict(lazy.state_dict())
    assert not other.due
    options = lazy.adam_options(lr=2e-3, betas=(0.0, 0.99))
    assert options["lr"] == pytest.approx(1.5e-3)
    assert options["betas"] == pytest.approx((0.0, 0.99**0.75))
    adam = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.99))
    lazy.correct(adam)
    assert adam.param_groups[0]["betas"] == options["betas"]
    with pytest.raises(ValueError, match="interval must be at least 1"):
        dgm_fast.nn.LazyPenalty(0)
    with pytest.raises(ValueError, match="with betas"):
        lazy.correct(torch.optim.SGD(critic.parameters(), lr=0.1))


def test_own_mlp_is_a_chain() -> None:
    critic = dgm_fast.nn.MLP(12, (8, 8), 1)
    assert F.explain_gradient_penalty(critic, samples("mlp")["real"])[0] == "explicit"
    assert conv() is not None
