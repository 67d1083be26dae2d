"""Whole training steps: what a user sees of the speed-up, and where the other time goes."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dgm_fast import ops
from dgm_fast.perf import memory, timing
from dgm_fast.perf.problem import COMPILE, EAGER, OURS

if TYPE_CHECKING:
    from dgm_fast.models import IWAE
    from dgm_fast.perf.runner import Options, Record

# Loss and gradients of a variant against the eager reference with the same noise; float32 through
# three layers each way.
STEP_LIMIT = 1e-3
PROFILED_STEPS = 5
# Steps before anything is measured: the importance weights of fresh networks are all alike.
TRAINED_STEPS = 30

LINEAR = ("aten::addmm", "aten::mm", "aten::bmm", "aten::linear", "aten::_addmm_activation")
ACTIVATION = ("aten::relu", "aten::clamp_min", "aten::threshold_backward", "aten::tanh")
RANDOM = ("aten::randn", "aten::normal_", "aten::rand")
COMPILED = ("CompiledF", "Torch-Compiled Region", "triton_", "cpp_fused")


@dataclass(frozen=True)
class StepCase:
    """One IWAE training step: zero_grad, loss, backward, Adam."""

    label: str
    num_dims: int
    latent_dim: int
    hidden_sizes: tuple[int, ...]
    num_samples: int
    batch_size: int
    likelihood: str
    num_classes: int | None
    # Environment variable naming an .npz file with packed binary rows ``train``; synthetic data of
    # like density stands in, since the time of a step does not depend on the data.
    data_variable: str = ""
    heavy: bool = False

    @property
    def name(self) -> str:
        return f"iwae_step/{self.label}/float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch_size, self.num_samples, self.num_dims, self.latent_dim)

    def build_model(self) -> IWAE:
        from dgm_fast.models import IWAE

        return IWAE(
            self.num_dims,
            self.latent_dim,
            hidden_sizes=self.hidden_sizes,
            likelihood=self.likelihood,
            num_classes=self.num_classes,
            num_samples=self.num_samples,
        )

    def data(self, generator: torch.Generator) -> tuple[Tensor, str]:
        """One batch [B, D] and where it came from."""
        path = os.environ.get(self.data_variable, "") if self.data_variable else ""
        if path:
            return self._rows(Path(path)), "file"
        shape = (self.batch_size, self.num_dims)
        if self.likelihood == "categorical":
            assert self.num_classes is not None
            x = torch.randint(0, self.num_classes, shape, generator=generator)
            return x * (torch.rand(shape, generator=generator) < 0.5), "synthetic"
        return (torch.rand(shape, generator=generator) < 0.13).float(), "synthetic"

    def compile(self, device: torch.device) -> None:
        """Run the compiled step once in each form that :func:`run_step` needs."""
        generator = torch.Generator().manual_seed(0)
        x, _ = self.data(generator)
        noise = torch.randn(self.batch_size, self.num_samples, self.latent_dim, generator=generator)
        model = self.build_model().to(device)
        step = TrainingStep(model, x.to(device), "reference", compiled=True)
        step.gradients(noise.to(device))
        step()

    def _rows(self, path: Path) -> Tensor:
        import numpy as np

        with np.load(path) as arrays:
            bits = np.unpackbits(arrays["train"][: self.batch_size], axis=1)
        if bits.shape != (self.batch_size, self.num_dims):
            raise ValueError(
                f"{self.data_variable} must hold rows of {self.num_dims} packed bits, "
                f"got {bits.shape[1]} for {len(bits)} rows"
            )
        return torch.from_numpy(bits).float()


STEPS = (
    StepCase("digits", 64, 32, (200,), 50, 100, "categorical", 17),
    StepCase("mnist", 784, 50, (200, 200), 50, 20, "bernoulli", None, "DGM_FAST_MNIST"),
)


class TrainingStep:
    """A model, its optimizer and a batch, run under one backend.

    Each variant has its own copy of the same trained weights.
    """

    def __init__(self, model: IWAE, x: Tensor, backend: str, *, compiled: bool = False) -> None:
        self.model = copy.deepcopy(model)
        self.x = x
        self.backend = backend
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.loss: Callable[..., Tensor] = (
            torch.compile(self.model.loss, dynamic=False) if compiled else self.model.loss
        )

    def __call__(self) -> Tensor:
        with ops.backend(self.backend):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.x)
            loss.backward()
            self.optimizer.step()
            return loss.detach()

    def gradients(self, noise: Tensor) -> dict[str, Tensor]:
        """Loss and gradients for given noise; parameters stay as they are."""
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        with ops.backend(self.backend):
            loss = self.loss(self.x, noise=noise)
            grads = torch.autograd.grad(loss, parameters)
        return {"value": loss.detach(), **dict(zip(names, grads, strict=True))}


def run_step(case: StepCase, options: Options) -> Record:
    """The record of one training step: checked, timed in turns, profiled."""
    from dgm_fast.perf.correctness import relative_error
    from dgm_fast.perf.runner import error_record, summary_record

    record: Record = {
        "case": case.name,
        "op": "iwae_step",
        "variant": case.likelihood,
        "family": "step",
        "size": case.label,
        "shape": list(case.shape),
        "dtype": "float32",
        "status": "failed",
        "failures": [],
        "unavailable": {},
    }
    generator = torch.Generator().manual_seed(options.seed)
    try:
        x, record["data"] = case.data(generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            model = case.build_model().to(options.device)
            x = x.to(options.device)
            warm = TrainingStep(model, x, "reference")
            for _ in range(TRAINED_STEPS):
                warm()
            steps = {EAGER: TrainingStep(warm.model, x, "reference")}
            if options.compiled:
                torch._dynamo.reset()
                steps[COMPILE] = TrainingStep(warm.model, x, "reference", compiled=True)
            steps[OURS] = TrainingStep(warm.model, x, "auto")
            noise = torch.randn(
                case.batch_size, case.num_samples, case.latent_dim, generator=generator
            ).to(options.device)
            truth = steps[EAGER].gradients(noise)
            record["errors"] = {}
            for name in [n for n in steps if n != EAGER]:
                try:
                    found = steps[name].gradients(noise)
                except Exception as error:
                    if name == OURS:
                        raise
                    record["unavailable"][name] = f"{type(error).__name__}"
                    del steps[name]
                    continue
                worst = max(relative_error(found[k], truth[k]) for k in truth)
                record["errors"][name] = {"step": error_record(worst)}
                if not worst <= STEP_LIMIT:
                    record["failures"].append(
                        f"{name}: loss or gradients differ from eager by {worst:.2e}"
                    )
            if record["failures"]:
                return record
            tasks = {
                name: timing.device_task("step", step, options.device)
                for name, step in steps.items()
            }
            summaries = timing.interleave(tasks, options.plan)["step"]
            record["modes"] = {"step": {n: summary_record(s) for n, s in summaries.items()}}
            record["memory"] = {
                name: {"peak_bytes": memory.peak_of(step, options.device)}
                for name, step in steps.items()
            }
            record["profile"] = {
                name: breakdown(step, options.device) for name, step in steps.items()
            }
    except (ImportError, RuntimeError, ValueError, TypeError, OSError) as error:
        record["failures"].append(f"{type(error).__name__}: {error}")
        record.pop("modes", None)
        return record
    record["status"] = "ok"
    return record


def breakdown(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Share of a step's time by kind of work, largest first, from the profiler's self times."""
    activities = [ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    step()
    memory.quiet_profiler()
    with profile(activities=activities) as recording:
        for _ in range(PROFILED_STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    totals: dict[str, float] = {}
    for event in recording.events() or []:
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if spent > 0 and event.device_type.name == "CPU":
            kind = _kind(event)
            totals[kind] = totals.get(kind, 0.0) + spent
    whole = sum(totals.values()) or 1.0
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return {name: round(spent / whole, 3) for name, spent in ordered if spent / whole >= 0.005}


def _kind(event: Any) -> str:
    own = str(event.name)
    if own.startswith("dgm_fast::"):
        return "fused ops"
    ancestor = event
    while ancestor is not None:
        name = str(ancestor.name)
        if name.startswith("Optimizer."):
            return "optimizer"
        if name.startswith("dgm_fast::"):
            return "fused ops"
        ancestor = ancestor.cpu_parent
    if own in LINEAR or own.startswith(("mkl", "onednn")):
        return "linear layers"
    if own in ACTIVATION:
        return "activations"
    if own in RANDOM:
        return "random numbers"
    if any(part in own for part in COMPILED):
        return "compiled code"
    return "other ops"
