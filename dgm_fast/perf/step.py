"""Whole training steps: what a user sees of the speed-up, and where the other time goes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dgm_fast import ops
from dgm_fast.perf import memory, timing
from dgm_fast.perf.problem import COMPILE, EAGER, OURS

if TYPE_CHECKING:
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
    """One training step of a model, zero_grad, loss, backward, Adam, in the model's two forms.

    ``model`` builds it (seeded by the caller), ``data`` gives one batch and where it came from.
    ``noise_shape`` is that of the ``noise`` its loss takes, None where it draws none. ``plain`` turns a
    model into the one that a good user would write without this library, where the reference formula
    is not that. ``peers`` build another library's model with the same weights and a ``loss(x)``, by
    name: its loss is compared, not its gradients, whose parameters are others.
    """

    label: str
    op: str
    variant: str
    shape: tuple[int, ...]
    model: Callable[[], nn.Module]
    data: Callable[[torch.Generator], tuple[Tensor, str]]
    noise_shape: tuple[int, ...] | None = None
    plain: Callable[[nn.Module], None] | None = None
    peers: Mapping[str, Callable[[nn.Module], nn.Module]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.op}/{self.label}/float32"

    def noise(self, generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
        """Keyword arguments that make the loss repeatable."""
        if self.noise_shape is None:
            return {}
        return {"noise": torch.randn(self.noise_shape, generator=generator).to(device)}

    def compile(self, device: torch.device) -> None:
        """Run the compiled step once in each form that :func:`run_step` needs."""
        generator = torch.Generator().manual_seed(0)
        x, _ = self.data(generator)
        step = TrainingStep(self, self.model().to(device), x.to(device), COMPILE)
        step.gradients(self.noise(generator, device))
        step()


class TrainingStep:
    """One variant: a copy of the same trained weights, its optimizer and a batch."""

    def __init__(self, case: StepCase, model: nn.Module, x: Tensor, variant: str) -> None:
        self.model = copy.deepcopy(model)
        self.x = x
        self.backend = "auto" if variant == OURS else "reference"
        if variant in case.peers:
            self.model = case.peers[variant](self.model)
        elif variant != OURS and case.plain is not None:
            case.plain(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)
        loss = cast(Callable[..., Tensor], self.model.loss)
        self.loss = torch.compile(loss, dynamic=False) if variant == COMPILE else loss

    def __call__(self) -> Tensor:
        with ops.backend(self.backend):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.x)
            loss.backward()
            self.optimizer.step()
            return loss.detach()

    def gradients(self, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and gradients for given noise; parameters stay as they are."""
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        with ops.backend(self.backend):
            loss = self.loss(self.x, **noise)
            grads = torch.autograd.grad(loss, parameters)
        return {"value": loss.detach(), **dict(zip(names, grads, strict=True))}


def run_step(case: StepCase, options: Options) -> Record:
    """The record of one training step: checked, timed in turns, profiled."""
    from dgm_fast.perf.runner import summary_record

    record: Record = {
        "case": case.name,
        "op": case.op,
        "variant": case.variant,
        "family": "step",
        "size": case.label,
        "shape": list(case.shape),
        "dtype": "float32",
        "status": "failed",
        "failures": [],
        "unavailable": {},
        "wrong": {},
    }
    try:
        with torch.random.fork_rng(devices=[]):
            torch._dynamo.reset()
            names = [EAGER, COMPILE, OURS] if options.compiled else [EAGER, OURS]
            names += case.peers
            steps = checked_steps(case, options, names, record)
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


def checked_steps(
    case: StepCase, options: Options, names: list[str], record: Record
) -> dict[str, TrainingStep]:
    """The variants of a step after a short training, compared with eager on the same noise.

    Writes "data", "errors", "unavailable", "wrong" and "failures" into ``record`` and leaves out what does
    not run, and rivals that compute something else. Seeds the global generator.
    """
    from dgm_fast.perf.correctness import relative_error
    from dgm_fast.perf.runner import error_record

    generator = torch.Generator().manual_seed(options.seed)
    x, record["data"] = case.data(generator)
    torch.manual_seed(options.seed)
    model = case.model().to(options.device)
    x = x.to(options.device)
    warm = TrainingStep(case, model, x, OURS)
    for _ in range(TRAINED_STEPS):
        warm()
    steps = {name: TrainingStep(case, warm.model, x, name) for name in names}
    noise = case.noise(generator, options.device)
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
        compared = ["value"] if name in case.peers else truth
        worst = max(relative_error(found[k], truth[k]) for k in compared)
        record["errors"][name] = {"step": error_record(worst)}
        if worst <= STEP_LIMIT:
            continue
        complaint = f"loss or gradients differ from eager by {worst:.2e}"
        if name == OURS:
            record["failures"].append(f"{name}: {complaint}")
        else:
            record["wrong"][name] = complaint
            del steps[name]
    return steps


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
