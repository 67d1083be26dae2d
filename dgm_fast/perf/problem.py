"""One case made concrete on a device: inputs, output gradients, and the variants that compete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgm_fast.perf.registry import Case, Cost, Inputs, Outputs

OURS, EAGER, COMPILE = "ours", "eager", "compile"
# Every variant but ours: a peer keeps the name the case gave it.
MODES = ("forward", "backward", "both", "second")

Function = Callable[..., Outputs]


def as_tuple(out: Outputs) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


@dataclass
class Problem:
    """Inputs (several equal copies when caches must be cold) and what is fed into backward."""

    case: Case
    device: torch.device
    copies: list[Inputs]
    # Dense, of both signs: an expanded or constant gradient lets kernels skip work that training
    # needs.
    grad_out: tuple[Tensor, ...]
    second_grads: dict[str, Tensor]
    cost: Cost

    @property
    def inputs(self) -> Inputs:
        return self.copies[0]

    def wanted(self, copy: int = 0) -> list[Tensor]:
        inputs = self.copies[copy]
        return [inputs[name] for name in self.case.grads]


def make_problem(
    case: Case, device: torch.device, *, seed: int = 0, cold_bytes: int = 0
) -> Problem:
    """Inputs of ``case`` on ``device``; copies rotate until they fill ``cold_bytes``."""
    inputs = case.inputs(device, seed)
    with torch.no_grad():
        outputs = as_tuple(case.eager(**inputs))
    generator = torch.Generator().manual_seed(seed + 1)
    # Dense, and in the output's memory format, as what follows it in a network would give it.
    grad_out = tuple(
        torch.empty_like(out).copy_(
            torch.randn(out.shape, generator=generator, dtype=torch.float32)
        )
        for out in outputs
    )
    second = {
        name: torch.randn(inputs[name].shape, generator=generator, dtype=torch.float32).to(
            device, inputs[name].dtype
        )
        for name in (case.grads if case.second_order else ())
    }
    size = sum(t.nbytes for t in inputs.values())
    num_copies = min(64, 1 + cold_bytes // max(size, 1)) if cold_bytes else 1
    copies = [inputs] + [
        {k: v.detach().clone().requires_grad_(v.requires_grad) for k, v in inputs.items()}
        for _ in range(num_copies - 1)
    ]
    return Problem(case, device, copies, grad_out, second, case.cost(inputs, *outputs))


def variants(case: Case, *, compiled: bool = True) -> dict[str, Function]:
    """The functions to time, by name. ``torch.compile`` is fresh: Dynamo forgets earlier cases.

    Dynamo gives up on a function after a few recompilations, so without the reset later cases
    would be timed as eager code under the name of the compiler.
    """
    chosen: dict[str, Function] = {EAGER: case.eager}
    if compiled and case.compiled:
        torch._dynamo.reset()
        chosen[COMPILE] = torch.compile(case.eager, dynamic=False)
    chosen.update(case.peers)
    chosen[OURS] = case.ours
    return chosen


def first_order(
    function: Function, inputs: Inputs, wanted: Sequence[Tensor], grad_out: tuple[Tensor, ...]
) -> tuple[Outputs, tuple[Tensor, ...]]:
    """Value and gradients. Gradients are returned, never accumulated into ``.grad``."""
    out = function(**inputs)
    return out, torch.autograd.grad(as_tuple(out), wanted, grad_out) if wanted else ()


def second_order(
    function: Function,
    inputs: Inputs,
    wanted: Sequence[Tensor],
    grad_out: tuple[Tensor, ...],
    second_grads: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Gradients of (gradients . second_grads): a Hessian-vector product."""
    out = as_tuple(function(**inputs))
    grads = torch.autograd.grad(out, wanted, grad_out, create_graph=True)
    pairs = [(g, v) for g, v in zip(grads, second_grads, strict=True) if g.requires_grad]
    return torch.autograd.grad(
        [g for g, _ in pairs], wanted, [v for _, v in pairs], materialize_grads=True
    )
