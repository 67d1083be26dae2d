"""A slow-down put into one kernel on purpose, to see that it is caught."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from dgm_fast.perf.registry import Outputs


def slowed(function: Callable[..., Outputs], share: float) -> Callable[..., Outputs]:
    """``function`` that keeps the processor busy for ``share`` of its own time after every call.

    Backward is slowed too, from the moment it enters the result's node to the end of the graph. CPU
    only: the clock is the host's. A share of 0 costs what the wrapper costs and nothing else, so
    that two sides may differ by the slow-down alone.
    """

    def call(**inputs: Any) -> Outputs:
        begin = time.perf_counter()
        out = function(**inputs)
        _stretch(begin, share)
        # Several outputs of an op have one node.
        node = (out[0] if isinstance(out, tuple) else out).grad_fn
        if node is not None:
            node.register_prehook(lambda grads: _stretch_backward(share))
        return out

    return call


def _stretch_backward(share: float) -> None:
    begin = time.perf_counter()
    engine: Any = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
    engine.queue_callback(lambda: _stretch(begin, share))


def _stretch(begin: float, share: float) -> None:
    end = time.perf_counter()
    until = end + share * (end - begin)
    while end < until:
        end = time.perf_counter()
