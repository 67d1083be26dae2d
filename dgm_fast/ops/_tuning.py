"""Which of several implementations a call takes: a static rule, or what was measured under ``tune()``."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from dgm_fast.ops import _backend, _extension

Strategy = Callable[..., Tensor]

_SCHEMA = 1
# Calls and the strategy that was fastest for them; no entries unless tune() ran or a file was loaded.
_measured: dict[str, str] = {}
_active: Tuning | None = None


@dataclass(frozen=True)
class Choice:
    """What was measured for one kind of call.

    Attributes:
        call: op, device, dtypes, shapes, memory format and options.
        strategy: the fastest.
        milliseconds: median time of every strategy, forward and, where gradients are wanted, backward.
    """

    call: str
    strategy: str
    milliseconds: dict[str, float]


@dataclass
class Tuning:
    """Measures the implementations of every kind of call made in its ``with`` block that has several.

    A call is measured where it is made, with its own arguments, once; it and all later calls of its kind
    take the fastest, also after the block::

        with dgm_fast.tune() as tuning:
            model.loss(x).backward()
        print(tuning)
        tuning.save("choices.json")  # later: dgm_fast.load_tuning("choices.json")

    Results of different implementations differ by rounding, so two runs agree bit for bit only if both have
    the same choices.

    Args:
        rounds: timed runs of every implementation, in turns, after one that is not timed.

    Raises:
        ValueError: if rounds is below 1.
    """

    rounds: int = 7
    choices: list[Choice] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")

    def __enter__(self) -> Tuning:
        global _active
        if _active is not None:
            raise RuntimeError("tune() is active already")
        _active = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _active
        _active = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the choices as JSON for :func:`load_tuning`."""
        content = {"schema": _SCHEMA, "choices": [asdict(choice) for choice in self.choices]}
        Path(path).write_text(json.dumps(content, indent=1) + "\n")

    def __str__(self) -> str:
        lines = [
            f"{choice.call}: {choice.strategy} ("
            + ", ".join(f"{name} {ms:.3g} ms" for name, ms in choice.milliseconds.items())
            + ")"
            for choice in self.choices
        ]
        return "\n".join(lines) or "no call with several implementations"


def load_tuning(path: str | os.PathLike[str]) -> None:
    """Take choices that :meth:`Tuning.save` wrote, beside those that are there.

    Entries name their device and number of threads: those of another machine change nothing.

    Raises:
        ValueError: if the file is not one of choices.
    """
    content = json.loads(Path(path).read_text())
    if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
        raise ValueError(f"{os.fspath(path)} is no file of choices of schema {_SCHEMA}")
    _measured.update({entry["call"]: entry["strategy"] for entry in content["choices"]})


def clear_tuning() -> None:
    """Forget all choices: static rules decide again."""
    _measured.clear()


def strategy(
    op: str,
    strategies: Mapping[str, Strategy],
    default: str,
    tensors: Sequence[Tensor | None],
    options: Sequence[object] = (),
) -> Strategy:
    """The implementation that a call takes.

    Args:
        op: its name.
        strategies: functions of ``tensors`` by name, the op's own first, which is what a backend asked for
            by name takes.
        default: what the static rule chooses.
        tensors, options: the call's arguments.
    """
    tracing = torch.compiler.is_compiling()
    if _backend.get_backend() != "auto":
        return next(iter(strategies.values()))
    # Without entries no shape is looked at, so that compiled graphs stay symbolic.
    if not (_measured or (_active and not tracing)):
        return strategies[default]
    call = _describe(op, tensors, options)
    if _active is not None and not tracing and call not in _measured:
        times = _measure(strategies, tensors, _active.rounds)
        _measured[call] = min(times, key=times.__getitem__)
        _active.choices.append(Choice(call, _measured[call], times))
    return strategies.get(_measured.get(call, default), strategies[default])


def _describe(op: str, tensors: Sequence[Tensor | None], options: Sequence[object]) -> str:
    first = tensors[0]
    assert first is not None
    parts = [op, _device(first.device)]
    for t in tensors:
        if t is None:
            parts.append("none")
            continue
        last = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last)
        parts.append(
            f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
            + (" channels last" if last and not t.is_contiguous() else "")
            + (" grad" if t.requires_grad and torch.is_grad_enabled() else "")
        )
    return "; ".join([*parts, *map(str, options)])


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {_extension.active_isa()} {torch.get_num_threads()} threads"


# As ``torch.compiler.assume_constant_result``, which imports all of the compiler, and Triton.
_device._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _measure(
    strategies: Mapping[str, Strategy], tensors: Sequence[Tensor | None], rounds: int
) -> dict[str, float]:
    """Median milliseconds of forward and backward."""
    backward = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    leaves = [None if t is None else t.detach().requires_grad_(t.requires_grad) for t in tensors]
    wanted = [t for t in leaves if t is not None and t.requires_grad]

    def run(function: Strategy) -> None:
        out = function(*leaves)
        if backward:
            # Dense: some libraries are slow on an expanded number.
            torch.autograd.grad(out, wanted, torch.ones_like(out))

    seconds: dict[str, list[float]] = {name: [] for name in strategies}
    cuda = any(t is not None and t.is_cuda for t in tensors)
    for round_ in range(rounds + 1):
        for name, function in strategies.items():
            if cuda:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            run(function)
            if cuda:
                torch.cuda.synchronize()
            if round_ > 0:
                seconds[name].append(time.perf_counter() - begin)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
