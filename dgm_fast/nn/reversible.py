"""Reversible backpropagation: a stack of transforms that keeps its output instead of its activations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast.nn._outside_graphs import outside_graphs
from dgm_fast.nn.transform import Compose, Transform


class ReversibleCompose(Compose):
    """A :class:`Compose` whose memory for backpropagation does not grow with its depth.

    Only the result of the whole stack is kept. Backward goes through the transforms from the last to the
    first, computes the input of each from its output, runs it once more and differentiates it. A coupling
    runs its network once for both, which makes a training step about a third longer; other transforms
    run their inverse and their forward. Values are those of Compose, gradients too up to the rounding of
    the inverses.

    Gradients of parameters, of x and of the context go through ``backward`` and ``torch.autograd.grad``,
    under autocast and in data-parallel training; random numbers that a transform draws (dropout) are
    drawn again. Both directions are reversible. Not supported, each with an error of its own: second
    derivatives, and parameters exchanged between forward and backward (``torch.func.functional_call``).
    Tensors that a transform uses and that are neither parameters nor x nor the context get no gradient.
    Under transforms of ``torch.func`` and where nothing requires grad it is a Compose. ``torch.compile``
    breaks its graph around it.

    Args:
        transforms: at least one; the parts of a Compose among them count one by one.

    Raises:
        TypeError, ValueError: if something is no :class:`Transform`, or there are none, or one holds a
            batch normalisation, whose running statistics a second forward would change.

    Source: Gomez et al., "The Reversible Residual Network: Backpropagation Without Storing Activations"
    (2017).
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__(transforms)
        for name, module in self.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                raise ValueError(
                    f"{name} is a {type(module).__name__}: reversible backpropagation runs it twice a "
                    "step, which changes its running statistics twice; use another normalisation"
                )

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self._reverses(x, context):
            return self._apply_stack(x, context, False)
        return super().forward(x, context=context)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self._reverses(z, context):
            return self._apply_stack(z, context, True)
        return super().inverse(z, context=context)

    def _reverses(self, x: Tensor, context: Tensor | None) -> bool:
        if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return False
        with_context = context is not None and context.requires_grad
        return x.requires_grad or with_context or any(p.requires_grad for p in self.parameters())

    @outside_graphs
    def _apply_stack(
        self, x: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        return _Stack.apply(self, inverse, x, context, *trained(self))

    def _parts(self) -> list[Transform]:
        return list(_flat(super()._parts()))


def _flat(parts: Iterable[Transform]) -> Iterator[Transform]:
    for part in parts:
        if isinstance(part, Compose):
            yield from _flat(Compose._parts(part))
        else:
            yield part


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that require grad, each once."""
    return [p for p in module.parameters() if p.requires_grad]


class _Stack(torch.autograd.Function):
    """Runs the parts of a ReversibleCompose; parameters are arguments, so that autograd sees them."""

    @staticmethod
    def forward(
        ctx: Any,
        stack: ReversibleCompose,
        inverse: bool,
        x: Tensor,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        parts = stack._parts()
        ctx.parts = parts[::-1] if inverse else parts
        ctx.stack, ctx.inverse = stack, inverse
        ctx.autocast = _autocast_settings(x.device.type)
        ctx.set_materialize_grads(False)
        ctx.rewinds = []
        total: Tensor | None = None
        with _autocast(ctx.autocast):
            for part in ctx.parts:
                before = _Generators(x.device)
                apply = part.inverse if inverse else part.forward
                x, log_det = apply(x, context=context)
                total = log_det if total is None else total + log_det
                # Most transforms draw nothing, and need nothing kept.
                ctx.rewinds.append(None if before.unchanged() else before)
        assert total is not None
        # Parameters too: autograd then sees whether they changed before backward.
        ctx.save_for_backward(x, context, *parameters)
        return x, total

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_z: Tensor | None, grad_log_det: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        z, context, *parameters = ctx.saved_tensors
        if [id(p) for p in parameters] != [id(p) for p in trained(ctx.stack)]:
            raise RuntimeError(
                "ReversibleCompose: the parameters (or which of them require grad) are not those of "
                "forward, and backward has to run its transforms again"
            )
        totals: dict[int, Tensor | None] = {id(p): None for p in parameters}
        needs_context = context is not None and ctx.needs_input_grad[3]
        grad_context: Tensor | None = None
        x, grad_x = z.detach(), grad_z
        drawing = [g for g in ctx.rewinds if g is not None]
        with torch.no_grad(), _autocast(ctx.autocast), _replay(drawing):
            for part, generators in zip(reversed(ctx.parts), reversed(ctx.rewinds), strict=True):
                own: list[Tensor] = list(trained(part))
                heard = context
                wanted = own
                if context is not None:
                    heard = context.detach().requires_grad_(needs_context)
                    wanted = [*own, heard] if needs_context else own
                x, grad_x, found = part.backward_from_output(
                    x,
                    grad_x,
                    grad_log_det,
                    wanted,
                    context=heard,
                    inverse=ctx.inverse,
                    **({} if generators is None else {"rewind": generators.restore}),
                )
                for parameter, grad in zip(own, found, strict=False):
                    totals[id(parameter)] = _added(totals[id(parameter)], grad)
                if needs_context:
                    grad_context = _added(grad_context, found[-1])
        grads = [
            grad_x if ctx.needs_input_grad[2] else None,
            grad_context,
            *(totals[id(p)] for p in parameters),
        ]
        if torch.is_grad_enabled():  # create_graph=True
            grads = _once(z, grads)
        return (None, None, *grads)


class _Generators:
    """State of the random generators that a transform on a device may use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.states = self._read()

    def _read(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def unchanged(self) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.states, self._read(), strict=True))

    def restore(self) -> None:
        torch.set_rng_state(self.states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.states[1], self.device)


@contextlib.contextmanager
def _replay(drawing: list[_Generators]) -> Iterator[None]:
    """Leave the random generators as they are now, whatever is drawn again meanwhile."""
    if not drawing:
        yield
        return
    now = _Generators(drawing[0].device)
    try:
        yield
    finally:
        now.restore()


_Autocast = list[tuple[str, bool, torch.dtype]]


def _autocast_settings(device_type: str) -> _Autocast:
    kinds = ("cpu",) if device_type == "cpu" else (device_type, "cpu")
    return [(k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds]


@contextlib.contextmanager
def _autocast(settings: _Autocast) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kind, enabled, dtype in settings:
            # Without the cache: what it holds from a pass without gradients would have none later.
            stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
        yield


def _added(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    if total is None or grad is None:
        return grad if total is None else total
    return total + grad


def _once(z: Tensor, grads: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients as results of something that cannot be differentiated."""
    given = [g for g in grads if g is not None]
    marked = iter(_FirstDerivative.apply(z, *given))
    return [None if g is None else next(marked) for g in grads]


class _FirstDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(g.view_as(g) for g in grads)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(
            "ReversibleCompose is differentiable once: use Compose where second derivatives are needed"
        )
