"""Time and memory of training steps, with the variants interleaved."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

Seconds = dict[str, float]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a set of timings, in seconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def timed_step(
    model_loss: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor
) -> Seconds:
    """One training step on the CPU: seconds of the whole and of its loss and backward part."""
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    model_loss(x).backward()
    middle = time.perf_counter()
    optimizer.step()
    end = time.perf_counter()
    return {"loss and backward": middle - start, "step": end - start}


def interleaved(
    variants: Mapping[str, Callable[[], Seconds]], rounds: int, warm_up: int = 2
) -> dict[str, dict[str, Spread]]:
    """Run every variant once a round and gather the medians: name -> quantity -> spread.

    The order turns by one each round, so that no variant always follows the same other one; what
    else the machine does then weighs on all of them alike.
    """
    if rounds < 2:
        raise ValueError(f"rounds must be at least 2, got {rounds}")
    names = list(variants)
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for turn in range(warm_up + rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = variants[name]()
            if turn >= warm_up:
                for quantity, value in seconds.items():
                    samples[name].setdefault(quantity, []).append(value)
    return {
        name: {quantity: Spread.of(values) for quantity, values in quantities.items()}
        for name, quantities in samples.items()
    }


def _profiler(profile_memory: bool = False) -> profile:
    # Some builds of the profiler's library print a line per start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return profile(activities=[ProfilerActivity.CPU], profile_memory=profile_memory)


def saved_bytes(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that the graph of ``loss()`` holds for backward, parameters left out.

    Each storage counts once, however many nodes save it.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
            # Alive until the end: a freed address could come back as another tensor's.
            kept.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(storages.values())


def peak_bytes(step: Callable[[], object]) -> int:
    """Highest number of bytes allocated on the CPU during ``step()``, above what was there before.

    The step should free nothing that was allocated before it (clear gradients first).
    """
    with _profiler(profile_memory=True) as recorded:
        step()
    current = highest = 0
    results = recorded.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        highest = max(highest, current)
    return highest


def time_shares(step: Callable[[], object], groups: Mapping[str, tuple[str, ...]]) -> Seconds:
    """CPU time of ``step()`` by groups of op-name prefixes, as shares of the whole.

    Args:
        step: what to profile.
        groups: label -> prefixes; the first group that matches an op gets its own (self) time. The
            rest is under "everything else".
    """
    with _profiler() as recorded:
        step()
    shares = dict.fromkeys([*groups, "everything else"], 0.0)
    for event in recorded.key_averages():
        matches = (label for label, names in groups.items() if event.key.startswith(names))
        shares[next(matches, "everything else")] += event.self_cpu_time_total
    whole = sum(shares.values()) or 1.0
    return {label: value / whole for label, value in shares.items()}
