"""Sampling of pixel models against the loop that runs the whole network for every pixel.

``python -m dgm_fast.perf.sampling`` times it: the loop is too long for the rounds of ``perf run``.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from dgm_fast import ops
from dgm_fast.perf import machine, pixel_models

Size = tuple[int, int]
# A loop that would take longer is not run whole at the full size.
LONGEST_LOOP = 60.0
# Passes of the network that are timed then.
PASSES = 12


@dataclass(frozen=True)
class SamplingCase:
    """A model, its images, and a size for which the loop is run whole in any case.

    ``masked``: the model has masked kernels, which the loop multiplies by their masks.
    """

    name: str
    model: Callable[[], Any]
    batch: int
    size: Size
    small: Size
    masked: bool = True


def _pixel_cnn() -> Any:
    from dgm_fast.models import PixelCNN

    return PixelCNN(num_levels=2, channels=16, num_layers=15)


def _gated_pixel_cnn() -> Any:
    from dgm_fast.models import GatedPixelCNN

    return GatedPixelCNN(num_levels=2, channels=128, num_layers=10)


def _pixel_cnn_pp() -> Any:
    from dgm_fast.models import PixelCNNPP

    return PixelCNNPP(3, channels=32, num_blocks=2)


def _pixel_rnn(kind: str) -> Any:
    from dgm_fast.models import PixelRNN

    return PixelRNN(num_levels=2, channels=16, num_layers=7, kind=kind)


CASES = (
    SamplingCase("pixel_cnn/15x16/28x28", _pixel_cnn, 16, (28, 28), (14, 14)),
    SamplingCase("gated_pixel_cnn/10x128/28x28", _gated_pixel_cnn, 16, (28, 28), (8, 8)),
    SamplingCase("pixel_cnn_pp/2x32/32x32x3", _pixel_cnn_pp, 16, (32, 32), (8, 8), False),
    *(
        SamplingCase(
            f"pixel_rnn_{kind}/7x16/28x28", partial(_pixel_rnn, kind), 16, (28, 28), (8, 8)
        )
        for kind in ("row", "diagonal")
    ),
)


def measure(case: SamplingCase, rounds: int) -> dict[str, Any]:
    """Seconds of both ways for the same noise, and how many entries of the samples agree."""
    torch.manual_seed(0)
    model = case.model().eval()
    plain = copy.deepcopy(model)
    if case.masked:
        pixel_models.mask(plain)

    def noise(size: Size) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.rand(case.batch, model.likelihood.noise_per_pixel, *size, generator=generator)

    def cached(size: Size) -> Tensor:
        return model.sample(case.batch, noise=noise(size))

    def loop(size: Size) -> Tensor:
        with ops.backend("reference"):
            return plain.sample(case.batch, noise=noise(size), cached=False)

    record: dict[str, Any] = {"case": case.name, "batch": case.batch, "size": case.size}
    small_loop, looped = _timed(lambda: loop(case.small))
    agreement = (cached(case.small) == looped).float().mean().item()
    record |= {"agreement": agreement, "small_size": case.small, "small_loop_seconds": small_loop}
    if agreement < 0.99:
        raise RuntimeError(f"{case.name}: only {agreement:.1%} of the entries agree")
    record["small_seconds"] = _median(lambda: cached(case.small), rounds)
    record["seconds"] = _median(lambda: cached(case.size), rounds)
    passes = math.prod(case.size)
    one = _pass_seconds(plain, case, case.size)
    record["pass_seconds"] = one
    record["small_pass_seconds"] = _pass_seconds(plain, case, case.small)
    if one * passes < LONGEST_LOOP:
        record["loop_seconds"], _ = _timed(lambda: loop(case.size))
        record["loop"] = "run"
    else:
        record["loop_seconds"] = one * passes
        record["loop"] = f"{passes} times the median of {PASSES} passes"
    record["speed_up"] = record["loop_seconds"] / record["seconds"]
    record["small_speed_up"] = small_loop / record["small_seconds"]
    return record


def _pass_seconds(plain: Any, case: SamplingCase, size: Size) -> float:
    """The median of a pass of the plain network over all images."""
    x = torch.zeros(case.batch, plain.in_channels, *size)
    with torch.no_grad(), ops.backend("reference"):
        return _median(lambda: plain.conditionals(x), PASSES)


def _timed(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def _median(call: Callable[[], Tensor], rounds: int) -> float:
    call()
    return statistics.median(_timed(call)[0] for _ in range(rounds))


@click.command()
@click.option("-k", "name", default="", help="Cases whose name holds this.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1))
@click.option("--out", type=click.Path(path_type=Path), help="Result file, JSON.")
def main(name: str, rounds: int, threads: int | None, out: Path | None) -> None:
    """Time sampling of pixel models, cached and by a pass of the network for every pixel.

    The loop is a plain PyTorch model (masked kernels, LSTMs step by step, eager, without gradients). It is
    run whole for a small image, and for the full one where that takes less than a minute; otherwise its
    time is the number of pixels times the median of some passes, all of which do the same work.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    records = []
    for case in CASES:
        if name not in case.name:
            continue
        record = measure(case, rounds)
        records.append(record)
        print(
            f"{case.name}, {case.batch} images: {record['seconds']:.4g} s; loop "
            f"{record['loop_seconds']:.4g} s ({record['loop']}): {record['speed_up']:.0f}x. At "
            f"{case.small[0]}x{case.small[1]}: {record['small_seconds']:.4g} s, loop "
            f"{record['small_loop_seconds']:.4g} s (run): {record['small_speed_up']:.0f}x",
            flush=True,
        )
    if out is not None:
        facts = machine.describe(torch.device("cpu"))
        out.write_text(json.dumps({"machine": facts, "sampling": records}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
