"""Reversible backpropagation: the gradients of a Compose, without its memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dgm_fast.nn import (
    ActNorm,
    Compose,
    ConvResNet,
    ImageCoupling,
    Inverse,
    InvertibleConv1x1,
    LogitTransform,
    ReversibleCompose,
    Squeeze,
    Transform,
)
from dgm_fast.perf.memory import peak_of


def randomize(module: nn.Module, scale: float = 0.1, seed: int = 0) -> None:
    """Networks that start at zero would hide most gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += scale * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        ).to(parameter)


def parts(context_dim: int | None = None, depth: int = 2, **options) -> list[Transform]:
    torch.manual_seed(0)  # rotations
    found: list[Transform] = [Squeeze()]
    for i in range(depth):
        found += [
            ActNorm(4),
            InvertibleConv1x1(4),
            ImageCoupling(
                4,
                "checkerboard" if i % 2 else "channel",
                flip=i % 4 > 1,
                channels=5,
                num_blocks=1,
                context_dim=context_dim,
                **options,
            ),
        ]
    return found


def pair(transforms: list[Transform]) -> tuple[Compose, ReversibleCompose]:
    plain = Compose(transforms)
    randomize(plain)
    return plain, ReversibleCompose(copy.deepcopy(list(plain.transforms)))


def images(n: int = 3, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 4, 8, generator=generator, dtype=torch.float64).to(dtype)


def value(stack: Compose, x: Tensor, inverse: bool = False, **context) -> Tensor:
    z, log_det = (stack.inverse if inverse else stack.forward)(x, **context)
    weight = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape)
    return (weight * z.sin()).sum() + (log_det * torch.arange(1.0, 1 + len(x))).sum()


def gradients(stack: Compose, *inputs: Tensor, **options) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    context = {"context": leaves[1]} if len(leaves) > 1 else {}
    out = value(stack, leaves[0], **context, **options)
    return list(torch.autograd.grad(out, [*leaves, *stack.parameters()]))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("coupling", ["affine", "additive", "mixture", "spline"])
def test_gradients_are_those_of_compose(coupling: str, inverse: bool) -> None:
    plain, reversible = pair(parts(coupling=coupling, num_mixtures=3, num_bins=4, context_dim=2))
    plain.double(), reversible.double()
    x = images()
    if inverse:
        x = nn.functional.pixel_unshuffle(x, 2)
    context = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for transform in (plain, reversible):
        transform.eval()
    expected = gradients(plain, x, context, inverse=inverse)
    found = gradients(reversible, x, context, inverse=inverse)
    assert all(g.abs().max() > 0 for g in expected)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(
            value(plain, x, inverse, context=context),
            value(reversible, x, inverse, context=context),
        )


@pytest.mark.parametrize("results", ["z", "log_det"])
def test_one_result_alone(results: str) -> None:
    plain, reversible = pair(parts())
    plain.double(), reversible.double()
    grads = []
    for stack in (plain, reversible):
        x = images().requires_grad_()
        z, log_det = stack(x)
        out = z.square().sum() if results == "z" else log_det.sum()
        grads.append(torch.autograd.grad(out, [x, *stack.parameters()], allow_unused=True))
    for a, b in zip(*grads, strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        torch.testing.assert_close(b.expand(a.shape) if b.ndim == 0 else b, a)


def test_backward_accumulates_and_data_need_no_gradient() -> None:
    plain, reversible = pair(parts())
    for stack in (plain, reversible):
        stack.double()
        value(stack, images()).backward()
        value(stack, images(seed=4)).backward()
    for a, b in zip(plain.parameters(), reversible.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)


def test_a_shared_transform_and_nested_stacks() -> None:
    shared = ImageCoupling(4, channels=5, num_blocks=1)
    inner = Compose([shared, ActNorm(4), ReversibleCompose([shared])])
    plain, reversible = pair([Squeeze(), inner, Inverse(copy.deepcopy(shared)), shared])
    assert len(reversible._parts()) == 6
    plain.double().eval(), reversible.double().eval()
    torch.testing.assert_close(gradients(reversible, images()), gradients(plain, images()))


def test_frozen_parameters_and_frozen_data() -> None:
    plain, reversible = pair(parts())
    for stack in (plain, reversible):
        stack.double().eval()
        for parameter in stack.parameters():
            parameter.requires_grad_(False)
    grads = [
        torch.autograd.grad(value(s, x := images().requires_grad_()), x)[0]
        for s in (plain, reversible)
    ]
    torch.testing.assert_close(grads[1], grads[0])
    z, _ = reversible(images())
    assert not z.requires_grad


def saved(stack: Compose) -> int:
    """Bytes of distinct tensors kept for backward, parameters apart."""
    own = {p.data_ptr() for p in stack.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = stack(images(8, torch.float32))
    del out
    return sum(kept.values())


def test_memory_does_not_grow_with_depth() -> None:
    shallow, deep = (ReversibleCompose(parts(depth=d)) for d in (2, 12))
    for stack in (shallow, deep):
        stack(images(8, torch.float32))
    assert saved(shallow) == saved(deep) > 0
    plain = [saved(Compose(parts(depth=d))) for d in (2, 12)]
    assert plain[1] > 4 * plain[0] > 4 * saved(deep)


def test_peak_memory_of_32_layers() -> None:
    def layers() -> list[Transform]:
        return [
            ImageCoupling(3, "checkerboard", flip=i % 2 == 1, channels=8, num_blocks=1)
            for i in range(32)
        ]

    x = torch.randn(2, 3, 32, 32)
    peaks = []
    for build in (Compose, ReversibleCompose):
        stack = build(layers())

        def step(stack: Compose = stack) -> None:
            z, log_det = stack(x)
            (0.5 * z.square().sum() - log_det.sum()).backward()
            stack.zero_grad()

        step()
        peaks.append(peak_of(step, torch.device("cpu")))
    assert peaks[1] < peaks[0] / 5


class Dropping(ConvResNet):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5), context)


def test_dropout_is_drawn_again() -> None:
    def network(a: int, b: int) -> nn.Module:
        return Dropping(a, b, channels=5, num_blocks=1)

    plain, reversible = pair(
        [
            Squeeze(),
            *(ImageCoupling(4, flip=f, network=network) for f in (False, True)),
            Inverse(ImageCoupling(4, network=network)),
            _Plain(ImageCoupling(4, network=network)),
        ]
    )
    found = []
    for stack in (plain, reversible):
        stack.double().train()
        torch.manual_seed(5)
        found.append(gradients(stack, images()))
        # The generator stands where one forward leaves it.
        found[-1].append(torch.rand(3, dtype=torch.float64))
    torch.testing.assert_close(found[1], found[0])


class _Plain(Transform):
    """Without a step of its own for reversible backpropagation."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform(x, context=context)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(z, context=context)


def test_autocast() -> None:
    plain, reversible = pair(parts())
    x = images(dtype=torch.float32)
    found = []
    for stack in (plain, reversible):
        stack.eval()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = value(stack, leaf)
        # Outside of autocast, as usual.
        found.append(torch.autograd.grad(out, [leaf, *stack.parameters()]))
    exact = gradients(plain, x)
    for truth, theirs, ours in zip(exact, *found, strict=True):
        error = (theirs - truth).norm()
        # The rule of docs/numerics.md.
        limit = max(3 * error, 4 * torch.finfo(torch.bfloat16).eps * truth.norm())
        assert (ours - truth).norm() <= limit
    # Both networks ran in bfloat16.
    errors = [(a - e).norm() / e.norm() for e, a in zip(exact, found[1], strict=True)]
    assert max(errors) > 2e-3


def test_autocast_leaves_the_cache_of_casts_usable() -> None:
    stack = ReversibleCompose([Squeeze(), ImageCoupling(4, channels=5, num_blocks=1)])
    randomize(stack)
    with torch.autocast("cpu", torch.bfloat16):
        stack(images(dtype=torch.float32))
        z, log_det = Compose.forward(stack, images(dtype=torch.float32))
        (z.sum() + log_det.sum()).backward()
    assert all(p.grad is not None for p in stack.parameters())


def test_data_parallel(tmp_path) -> None:
    plain, reversible = pair(parts())
    plain.double(), reversible.double()
    value(plain, images()).backward()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(reversible)
        z, log_det = wrapped(images())
        weight = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape)
        ((weight * z.sin()).sum() + (log_det * torch.arange(1.0, 4.0)).sum()).backward()
    finally:
        torch.distributed.destroy_process_group()
    for a, b in zip(plain.parameters(), reversible.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)


def test_second_backward() -> None:
    stack = ReversibleCompose(parts()).double().eval()
    randomize(stack)
    out = value(stack, images())
    first = torch.autograd.grad(out, list(stack.parameters()), retain_graph=True)
    again = torch.autograd.grad(out, list(stack.parameters()))
    torch.testing.assert_close(again, first)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward()


def test_second_derivatives_raise_by_name() -> None:
    stack = ReversibleCompose(parts()).double().eval()
    randomize(stack)
    x = images().requires_grad_()
    (grad,) = torch.autograd.grad(value(stack, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="ReversibleCompose is differentiable once"):
        grad.square().sum().backward()


def test_parameters_that_changed_are_found() -> None:
    stack = ReversibleCompose(parts()).double().eval()
    out = value(stack, images())
    with torch.no_grad():
        next(stack.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_exchanged_parameters_are_found() -> None:
    stack = ReversibleCompose(parts()).double().eval()
    other = {n: p.detach().clone().requires_grad_() for n, p in stack.named_parameters()}
    z, _ = torch.func.functional_call(stack, other, (images(),))
    with pytest.raises(RuntimeError, match="not those of forward"):
        z.sum().backward()


def test_under_torch_func() -> None:
    plain, reversible = pair(parts())
    plain.double().eval(), reversible.double().eval()
    grads = [torch.func.grad(lambda x, s=s: value(s, x))(images()) for s in (plain, reversible)]
    torch.testing.assert_close(grads[1], grads[0])


def test_compile_breaks_the_graph_and_is_right() -> None:
    plain, reversible = pair(parts(depth=1))
    plain.double().eval(), reversible.double().eval()
    compiled = torch.compile(lambda x: value(reversible, x), backend="eager")
    x = images().requires_grad_()
    expected = torch.autograd.grad(value(plain, x), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), expected)


def test_batch_normalisation_is_refused() -> None:
    def network(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(a), nn.Conv2d(a, b, 1))

    with pytest.raises(ValueError, match="BatchNorm2d"):
        ReversibleCompose([ImageCoupling(4, network=network)])


def test_the_first_batch_initialises() -> None:
    stack = ReversibleCompose([LogitTransform(), Squeeze(), ActNorm(4)]).double()
    x = torch.rand(16, 1, 4, 4, dtype=torch.float64)
    z, _ = stack(x)
    z.sum().backward()
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64))
    assert stack.transforms[2].bias.grad is not None
