"""``dgm_fast.accelerate``: swap the fused ops into an existing model, in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

# Looks at a module and the one before it in their nn.Sequential, if any: None if it is no business of the
# rule; (new type, "") after it changed the module in place; ("", reason) where it has to stay as it is.
Rule = Callable[[nn.Module, nn.Module | None], tuple[str, str] | None]

_RULES: list[Rule] = []


@dataclass(frozen=True)
class Replacement:
    """One module that was changed: its name in the model, and its types before and after."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Kept:
    """One module that a rule knows and left as it is."""

    name: str
    type: str
    reason: str


@dataclass
class AccelerationReport:
    """What :func:`accelerate` did."""

    replaced: list[Replacement] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} modules replaced, {len(self.kept)} kept"]
        lines += [f"  {r.name or '(root)'}: {r.before} -> {r.after}" for r in self.replaced]
        lines += [f"  {k.name or '(root)'}: {k.type} kept, {k.reason}" for k in self.kept]
        return "\n".join(lines)


def rule(function: Rule) -> Rule:
    """Enter a rule; the first that knows a module decides."""
    _RULES.append(function)
    return function


def accelerate(module: nn.Module) -> AccelerationReport:
    """Give a model built with other parts the fused ops of this library, in place.

    Every submodule that a rule knows is changed; parameters, hooks, names and results stay the same.
    Functions called inside a ``forward`` (``F.leaky_relu``) cannot be seen. Of plain PyTorch it knows
    LeakyReLU and ReLU, which get no second derivative to push through the network, Conv2d, whose second
    derivative forms only the gradients that are wanted, and Linear with a weight of a megabyte or more,
    whose gradient has memory that is used again.

    Args:
        module: the model. Modified.

    Returns:
        What was replaced and what was kept, with the reason.

    Raises:
        TypeError: if ``module`` is not an ``nn.Module``.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    report = AccelerationReport()
    previous = _predecessors(module)
    for name, submodule in module.named_modules():
        before = _type_name(submodule)
        for apply in _RULES:
            outcome = apply(submodule, previous.get(submodule))
            if outcome is None:
                continue
            after, reason = outcome
            if after:
                report.replaced.append(Replacement(name, before, after))
            else:
                report.kept.append(Kept(name, before, reason))
            break
    return report


def _predecessors(module: nn.Module) -> dict[nn.Module, nn.Module]:
    """What comes before each module of an ``nn.Sequential``."""
    found: dict[nn.Module, nn.Module] = {}
    for container in module.modules():
        if isinstance(container, nn.Sequential):
            found.update((after, before) for before, after in pairwise(container))
    return found


def _type_name(module: nn.Module) -> str:
    cls = type(module)
    return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"
