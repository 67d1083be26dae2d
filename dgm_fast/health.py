"""State of this installation: what is there, which backend each op uses, whether the ops are right.

Needs torch only, so that it also answers where the command line's requirements are missing:
``python -c "from dgm_fast.health import run_doctor; print(run_doctor())"``.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

from dgm_fast import ops
from dgm_fast.ops import _extension
from dgm_fast.ops._registry import OpSpec
from dgm_fast.selfcheck import Check, check_op

ENVIRONMENT = ("DGM_FAST_BACKEND", "DGM_FAST_ISA", "TRITON_INTERPRET")
CHECKED_DTYPES = (torch.float32, torch.float64)
TORCH_FUNC_NOTE = (
    "under torch.func transforms (grad, vmap, jvp, jacrev) every op runs its reference formula"
)


@dataclass(frozen=True)
class Choice:
    """Which implementation a call on tensors of a device reaches. None: the call raises."""

    op: str
    device: str
    implementation: str | None
    reason: str


@dataclass(frozen=True)
class Report:
    """What ``run_doctor`` found.

    ``status`` is "healthy"; "degraded" when something is missing (the ops are right, but slower);
    or "broken" when ``problems`` names something that is there and does not work.
    """

    status: str
    problems: list[str]
    missing: list[str]
    versions: dict[str, str | None]
    devices: dict[str, str]
    isa: dict[str, Any]
    environment: dict[str, str | None]
    backend: str
    choices: list[Choice]
    checks: list[Check]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; a number that is not finite, which JSON lacks, is None."""
        report = asdict(self)
        for check, entry in zip(self.checks, report["checks"], strict=True):
            entry["passed"] = check.passed
            for number in ("error", "limit"):
                if not math.isfinite(entry[number]):
                    entry[number] = None
        return report

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def run_doctor(specs: Mapping[str, OpSpec] | None = None) -> Report:
    """Examine the installation and check every op against its reference.

    The checks run every implementation that this machine can execute (C++, Triton on CUDA,
    Triton's interpreter under TRITON_INTERPRET=1) on a small example: the value and every gradient,
    in float32 and float64. They do not depend on the backend setting and leave the random state
    alone.

    Args:
        specs: the ops to check; None checks all registered ones.
    """
    specs = ops.SPECS if specs is None else specs
    devices = _devices()
    problems: list[str] = []
    if _extension.extension is None and importlib.util.find_spec("dgm_fast._C") is not None:
        problems.append("the C++ extension is installed but does not load (see missing)")

    choices = []
    for device in devices:
        choices += [
            Choice(name, device, *_choice(device, spec.family)) for name, spec in specs.items()
        ]
    if choices and all(choice.implementation is None for choice in choices):
        problems.append(f"no device can be served: {choices[0].reason}")

    checks: list[Check] = []
    for device in devices:
        for spec in specs.values():
            for implementation in _implementations(device, spec.family):
                for dtype in CHECKED_DTYPES:
                    checks += check_op(spec, implementation, torch.device(device), dtype)
    failed = [check for check in checks if not check.passed]
    if failed:
        names = sorted({check.op for check in failed})
        problems.append(f"{len(failed)} self-checks failed: {', '.join(names)}")

    missing = ops.missing()
    return Report(
        status="broken" if problems else "degraded" if missing else "healthy",
        problems=problems,
        missing=missing,
        versions=_versions(),
        devices=devices,
        isa={
            "machine": ops.machine_isa(),
            "built": ops.built_isas(),
            "active": ops.active_isa(),
        },
        environment={name: os.environ.get(name) for name in ENVIRONMENT},
        backend=ops.get_backend(),
        choices=choices,
        checks=checks,
        notes=[TORCH_FUNC_NOTE],
    )


def _choice(device: str, family: str) -> tuple[str | None, str]:
    try:
        return ops.explain(device, family)
    except RuntimeError as error:
        return None, str(error)


def _implementations(device: str, family: str) -> list[str]:
    if _extension.extension is None:
        return ["reference"]
    has_triton = family not in ops.WITHOUT_TRITON
    if device == "cuda":
        return ["triton"] if _extension.triton_available() and has_triton else ["reference"]
    return ["cpp", "triton"] if _extension.triton_interpreted() and has_triton else ["cpp"]


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("dgm_fast", "torch", "triton", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    # The module in use counts: its metadata may be absent (run from a source tree).
    from dgm_fast import __version__

    found["dgm_fast"] = __version__
    found["torch"] = torch.__version__
    return found


def _devices() -> dict[str, str]:
    devices = {"cpu": f"{_processor_name()}, {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        names = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            names.append(
                f"{properties.name} (sm_{properties.major}{properties.minor}, "
                f"{properties.total_memory / 2**30:.0f} GiB)"
            )
        devices["cuda"] = ", ".join(names)
    return devices


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        # Not Linux: the platform module knows the name there.
        return platform.processor() or platform.machine()
    return platform.machine()


def _lines(report: Report) -> list[str]:
    versions = ", ".join(f"{name} {v or 'not installed'}" for name, v in report.versions.items())
    isa = report.isa
    lines = [
        f"dgm_fast is {report.status}",
        *(f"  problem: {problem}" for problem in report.problems),
        *(f"  missing: {what}" for what in report.missing),
        "",
        f"versions      {versions}",
        *(f"device        {name}: {what}" for name, what in report.devices.items()),
        f"instructions  machine {isa['machine']}; built {', '.join(isa['built']) or 'none'}; "
        f"active {isa['active'] or 'none'}",
        f"backend       {report.backend}",
        *(
            f"environment   {name} {'not set' if value is None else f'= {value!r}'}"
            for name, value in report.environment.items()
        ),
        "",
        *_table(
            ("op", "device", "uses", "why"),
            [(c.op, c.device, c.implementation or "raises", c.reason) for c in report.choices],
        ),
        "",
        "self-check: relative L2 error against the reference in float64 (and its limit)",
        *_table(("op", "device", "runs", "dtype", "value", "gradients", ""), _check_rows(report)),
        *(f"  {c.op} {c.quantity}: {c.message}" for c in report.checks if c.message),
        "",
        *(f"note: {note}" for note in report.notes),
    ]
    return lines


def _check_rows(report: Report) -> list[tuple[str, ...]]:
    """One row per op, implementation and dtype, with the check nearest its limit in each column."""
    groups: dict[tuple[str, str, str, str], list[Check]] = {}
    for check in report.checks:
        key = (check.op, check.device, check.implementation, check.dtype)
        groups.setdefault(key, []).append(check)
    rows: list[tuple[str, ...]] = []
    for key, checks in groups.items():
        values = [c for c in checks if not c.is_gradient]
        gradients = [c for c in checks if c.is_gradient]
        verdict = "ok" if all(c.passed for c in checks) else "FAILED"
        rows.append((*key, _worst(values), _worst(gradients), verdict))
    return rows


def _worst(checks: Sequence[Check]) -> str:
    if not checks:
        return "-"
    worst = max(checks, key=lambda c: math.inf if math.isnan(c.error) else c.error / c.limit)
    name = f"{worst.quantity} " if worst.is_gradient else ""
    return f"{name}{worst.error:.1e} ({worst.limit:.1e})"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
