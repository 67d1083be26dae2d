"""Flows of images: transforms, architectures, densities, samples."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from dgm_fast.models import FlowPP, Glow, RealNVP
from dgm_fast.models.flow import Flow
from dgm_fast.nn import (
    ActNorm,
    Compose,
    ConvResNet,
    GlowNet,
    ImageCoupling,
    InvertibleConv1x1,
    LogitTransform,
    MultiScale,
    Squeeze,
    Transform,
)


def randomize(module: nn.Module, scale: float = 0.2) -> None:
    """Networks that start at zero would make everything the identity."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += scale * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        ).to(parameter)


def normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


SMALL = {"channels": 4, "num_blocks": 1}
COUPLINGS = ("affine", "additive", "mixture", "spline")
TRANSFORMS: list[tuple[Transform, tuple[int, int, int]]] = [
    (ActNorm(3), (3, 2, 2)),
    (InvertibleConv1x1(3), (3, 2, 2)),
    (Squeeze(), (2, 4, 2)),
    (LogitTransform(0.1), (2, 2, 2)),
    *(
        (
            ImageCoupling(3, mask, flip=flip, coupling=c, num_mixtures=3, num_bins=4, **SMALL),
            (3, 2, 2),
        )
        for c in COUPLINGS
        for mask, flip in (("channel", False), ("channel", True), ("checkerboard", True))
    ),
    (ImageCoupling(1, "checkerboard", scale="sigmoid2", **SMALL), (1, 3, 4)),
    (
        MultiScale(
            [Squeeze(), Compose([ImageCoupling(2, "checkerboard", **SMALL), Squeeze()])],
            (1, 4, 4),
            priors=[ImageCoupling(4, **SMALL)],
        ),
        (1, 4, 4),
    ),
    (MultiScale([Squeeze(), Squeeze(), ActNorm(4)], (1, 4, 8)), (1, 4, 8)),
]


@pytest.mark.parametrize(("transform", "shape"), TRANSFORMS, ids=lambda v: str(v)[:60])
def test_round_trip_and_jacobian(transform: Transform, shape: tuple[int, int, int]) -> None:
    transform = copy.deepcopy(transform).double().eval()
    randomize(transform)
    x = normal(2, *shape)
    if isinstance(transform, LogitTransform):
        x = x.sigmoid()
    z, log_det = transform(x)
    assert tuple(z.shape[1:]) == transform.output_shape(shape)
    back, log_det_back = transform.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(transform(x), (z, log_det))
    jacobian = torch.autograd.functional.jacobian(lambda t: transform(t.unsqueeze(0))[0], x[0])
    size = x[0].numel()
    expected = torch.linalg.slogdet(jacobian.reshape(size, size))[1]
    torch.testing.assert_close(log_det[0], expected, rtol=1e-8, atol=1e-9)


MODELS = {
    "realnvp": lambda **o: RealNVP((1, 4, 4), **SMALL, **o),
    "realnvp, 3 levels": lambda **o: RealNVP((1, 8, 8), num_levels=3, **SMALL, **o),
    "glow": lambda **o: Glow((2, 4, 4), num_steps=2, channels=4, **o),
    "glow, logit": lambda **o: Glow((4, 4), num_steps=1, channels=4, logit_alpha=0.01, **o),
    "flowpp": lambda **o: FlowPP((2, 2, 4), num_mixtures=2, num_couplings=(2, 1, 2), **SMALL, **o),
}


def made(name: str, **options) -> Flow:
    torch.manual_seed(0)
    model = MODELS[name](**options).double()
    context = None if model.context_dim is None else normal(50, model.context_dim)
    model.log_prob(torch.rand(50, *model.image_shape).double(), context=context)  # actnorm
    randomize(model, 0.1)
    return model.eval()


def data(model: Flow, n: int = 3) -> Tensor:
    return torch.rand(
        n, *model.image_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    model = made(name)
    x = data(model)
    log_prob = model.log_prob(x)
    z, log_det = model.encode(x)
    assert z.shape == x.shape
    back, log_det_back = model.decode(z)
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-7, atol=1e-7)
    size = model.num_dims
    jacobian = torch.autograd.functional.jacobian(lambda t: model.encode(t[None])[0], x[0])
    expected = torch.linalg.slogdet(jacobian.reshape(size, size))[1]
    torch.testing.assert_close(log_det[0], expected, rtol=1e-7, atol=1e-7)
    standard = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    torch.testing.assert_close(log_prob, standard + log_det)
    torch.testing.assert_close(model.bits_per_dim(x), -log_prob / (size * math.log(2)))
    torch.testing.assert_close(model.log_prob(x.flatten(1)), log_prob)


@pytest.mark.parametrize("name", MODELS)
def test_reversible_models(name: str) -> None:
    plain, reversible = made(name), made(name, reversible=True)
    reversible.load_state_dict(plain.state_dict())
    losses = [model.loss(data(model)) for model in (plain, reversible)]
    torch.testing.assert_close(losses[1], losses[0])
    grads = [
        torch.autograd.grad(loss, list(model.parameters()))
        for loss, model in zip(losses, (plain, reversible), strict=True)
    ]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["realnvp", "glow", "flowpp"])
def test_samples(name: str) -> None:
    model = made(name)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(4, *model.image_shape, dtype=torch.float64, generator=generator)
    x = model.sample(4, noise=noise)
    torch.testing.assert_close(model.encode(x)[0], noise, rtol=1e-6, atol=1e-7)
    again = model.sample(4, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(again, x)
    cold = model.sample(4, generator=torch.Generator().manual_seed(4), temperature=0.5)
    torch.testing.assert_close(model.encode(cold)[0], 0.5 * noise, rtol=1e-6, atol=1e-7)
    mode = model.sample(2, temperature=0.0)
    assert torch.equal(mode[0], mode[1])
    leaf = noise.clone().requires_grad_()
    out = model.rsample(4, noise=leaf).sum()
    grads = torch.autograd.grad(out, [leaf, *model.parameters()], allow_unused=True)
    assert grads[0].abs().min() > 0 and sum(g is not None for g in grads) > 2
    with pytest.raises(ValueError, match="temperature"):
        model.sample(1, temperature=-1.0)


@pytest.mark.parametrize("name", ["realnvp", "glow", "flowpp"])
def test_context(name: str) -> None:
    model = made(name, context_dim=2)
    x = data(model)
    context = normal(3, 2).requires_grad_()
    log_prob = model.log_prob(x, context=context)
    assert (torch.autograd.grad(log_prob.sum(), context)[0].abs() > 0).all()
    assert not torch.isclose(log_prob, model.log_prob(x, context=context.detach() + 1)).any()
    noise = torch.randn(3, *model.image_shape, dtype=torch.float64)
    drawn = model.sample(3, context=context, noise=noise)
    torch.testing.assert_close(model.encode(drawn, context=context)[0], noise, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="context is missing"):
        model.log_prob(x)


@pytest.mark.parametrize("name", MODELS)
def test_new_models_are_well_scaled(name: str) -> None:
    """Finite and near the data's own scale before any step, in float32."""
    torch.manual_seed(0)
    model = MODELS[name]()
    x = torch.rand(64, *model.image_shape)
    z, _ = model.encode(x)
    assert z.std() < 3 and z.abs().max() < 30
    loss = model.loss(x)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_density_integrates_to_one() -> None:
    model = RealNVP((1, 1, 2), num_levels=1, **SMALL).double()
    randomize(model)
    model.eval()
    # The logit's inverse reaches a little beyond [0, 1].
    low, high = -0.05 / 0.9, 1 + 0.05 / 0.9
    count = 400
    centres = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    grid = torch.cartesian_prod(centres, centres)
    total = model.log_prob(grid).exp().sum() * ((high - low) / count) ** 2
    assert abs(total.item() - 1) < 1e-3


def test_actnorm_starts_from_the_first_batch() -> None:
    layer = ActNorm(3)
    x = torch.randn(50, 3, 4, 4) * torch.tensor([1.0, 5.0, 0.1])[:, None, None] + 2
    layer.eval()
    assert torch.equal(layer(x)[0], x) and not layer.initialized
    layer.train()
    z, log_det = layer(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var((0, 2, 3), correction=0), torch.ones(3))
    torch.testing.assert_close(log_det, (16 * layer.log_scale.sum()).expand(50))
    before = layer.bias.clone()
    layer(x + 1)
    assert torch.equal(layer.bias, before)


def test_actnorm_remembers_in_a_checkpoint() -> None:
    layer = ActNorm(2)
    layer(torch.randn(9, 2) + 4)
    restored = ActNorm(2)
    restored.load_state_dict(layer.state_dict())
    copied = copy.deepcopy(layer)
    for other in (restored, copied):
        other(torch.randn(9, 2))
        assert torch.equal(other.bias, layer.bias)
    fresh = ActNorm(2)
    restored.load_state_dict(fresh.state_dict())
    restored(torch.randn(9, 2) + 4)
    assert restored.bias.abs().min() > 1


def test_actnorm_reads_no_flag_from_the_device(monkeypatch) -> None:
    layer = ActNorm(2)
    layer(torch.randn(9, 2))

    def refuse(self: Tensor) -> bool:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(Tensor, "__bool__", refuse)
    monkeypatch.setattr(Tensor, "item", refuse)
    layer(torch.randn(9, 2))
    layer.inverse(torch.randn(9, 2))


def test_actnorm_of_one_value_and_of_a_constant_channel() -> None:
    layer = ActNorm(2)
    z, log_det = layer(torch.tensor([[3.0, -1.0]]))
    assert torch.equal(z, torch.zeros(1, 2)) and torch.equal(log_det, torch.zeros(1))
    layer = ActNorm(1)
    z, _ = layer(torch.full((5, 1), 2.0))
    assert z.isfinite().all()


def test_actnorm_of_several_processes_takes_all_batches(tmp_path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        z, _ = ActNorm(2)(torch.randn(20, 2) * 3 + 1)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=1e-5, rtol=0)


def test_checkpoint_of_a_model_is_not_initialised_again(tmp_path) -> None:
    model = Glow((4, 4), num_steps=1, channels=4)
    model.loss(torch.rand(9, 16)).backward()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = Glow((4, 4), num_steps=1, channels=4)
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    x = torch.rand(5, 16)
    torch.testing.assert_close(other.log_prob(x), model.log_prob(x))


@pytest.mark.parametrize("network", [ConvResNet, GlowNet])
@pytest.mark.parametrize("scale", ["exp", "softplus", "tanh", "atan", "softsign"])
def test_new_couplings_are_the_identity(network, scale: str) -> None:
    layer = ImageCoupling(2, scale=scale, network=network)
    x = torch.randn(2, 2, 4, 4)
    z, log_det = layer(x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_det, torch.zeros(2), atol=1e-4, rtol=0)


def test_a_checkerboard_moves_every_second_pixel() -> None:
    layer = ImageCoupling(1, "checkerboard", flip=True, coupling="additive", **SMALL)
    randomize(layer)
    x = torch.randn(2, 1, 4, 6)
    moved = (layer(x)[0] - x).abs() > 0
    even = (torch.arange(4)[:, None] + torch.arange(6)) % 2 == 0
    assert torch.equal(moved, even.expand(2, 1, 4, 6))


def test_extreme_values_stay_finite() -> None:
    x = torch.tensor([1e4, -1e4, 1e3, 0.0]).reshape(1, 1, 2, 2).expand(2, 2, 2, 2)
    for coupling in COUPLINGS:
        layer = ImageCoupling(2, coupling=coupling, **SMALL)
        randomize(layer, 0.5)
        z, log_det = layer(x.clone().requires_grad_())
        assert z.isfinite().all() and log_det.isfinite().all(), coupling
        (z.sum() + log_det.sum()).backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters()), coupling


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Glow((1, 6, 6)), "multiples of 4"),
        (lambda: Glow((28, 28), num_levels=3), "cannot be halved 3 times"),
        (lambda: Glow((3, 8)), "multiples of 4"),
        (lambda: Glow((0, 8, 8)), "image_shape must be"),
        (lambda: Glow((8, 8), coupling="spline"), "coupling must be one of"),
        (lambda: Glow((8, 8), scale="cubic"), "scale must be one of"),
        (lambda: FlowPP((7, 8)), "cannot be halved"),
        (lambda: FlowPP((8, 6)), "odd width 3"),
        (lambda: FlowPP((8, 8), num_couplings=(1, 2)), "three counts"),
        (lambda: RealNVP((1, 7, 7)), "cannot be halved"),
        (lambda: RealNVP((28, 28), num_levels=3), "odd width 7"),
        (lambda: RealNVP((1, 4, 4), num_layers=3), "num_layers: for a RealNVP of vectors"),
        (lambda: RealNVP(4, channels=3, reversible=False), "channels, reversible: for .* images"),
        (lambda: ImageCoupling(1), "at least 2 channels"),
        (lambda: ImageCoupling(2, "stripes"), "mask must be one of"),
        (lambda: ImageCoupling(2, coupling="cubic"), "coupling must be one of"),
        (lambda: ConvResNet(1, 1, context_dim=1, context_channels=1), "vector .* or a map"),
        (lambda: LogitTransform(0.5), "alpha must be in"),
        (lambda: ActNorm(0), "num_channels"),
        (lambda: Squeeze(0), "factor"),
        (lambda: Squeeze()(torch.zeros(1, 1, 3, 4)), "multiples of 2"),
        (lambda: ImageCoupling(2, "checkerboard")(torch.zeros(1, 2, 2, 3)), "even width"),
        (lambda: MultiScale([Squeeze(), Squeeze()], (1, 6, 6)), "multiples of 2"),
        (lambda: MultiScale([Squeeze()], (1, 4, 4), priors=[ActNorm(4)]), "priors must hold"),
        (lambda: LogitTransform()(torch.full((1, 4), 1.2)), "values in"),
    ],
)
def test_bad_arguments(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_flows_on_images_have_nothing_to_standardise() -> None:
    with pytest.raises(TypeError, match="actnorm"):
        RealNVP((4, 4), **SMALL).standardize(torch.rand(5, 16))
