"""Facts about the machine, and the fingerprint that says which results may be compared."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from dgm_fast import ops

ROOT = Path(__file__).resolve().parents[2]
# What identifies the machine and its software; the commit is recorded too, but comparing commits on
# one machine is what results are for.
FINGERPRINT_FIELDS = (
    "device",
    "cpu",
    "cores",
    "isa",
    "threads",
    "gpu",
    "torch",
    "triton",
    "driver",
)
SOURCES = ("dgm_fast", "kernels", "csrc", "setup.py")


def describe(device: torch.device) -> dict[str, Any]:
    """The facts that a result file carries, for results measured on ``device``."""
    on_gpu = device.type == "cuda"
    implementation, reason = ops.explain(device.type)
    facts: dict[str, Any] = {
        "device": device.type,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "isa": ops.active_isa() or "reference",
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "driver": _driver() if on_gpu else None,
        # Recorded, never changed; not part of the fingerprint, since they move by themselves.
        "clocks": _clocks() if on_gpu else None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "ours": implementation,
        "ours_reason": reason,
        **revision(),
    }
    facts["fingerprint"] = fingerprint(facts)
    return facts


def fingerprint(facts: dict[str, Any]) -> str:
    """Twelve hexadecimal digits over the fields that must agree before results are compared."""
    chosen = {name: facts.get(name) for name in FINGERPRINT_FIELDS}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The fingerprint fields in which two machines differ, in words."""
    return [
        f"{name}: {first.get(name)} against {second.get(name)}"
        for name in FINGERPRINT_FIELDS
        if first.get(name) != second.get(name)
    ]


def slug(facts: dict[str, Any]) -> str:
    """The machine as part of a file name: GPU, or processor and threads."""
    name = facts["gpu"] or f"{facts['cpu']} {facts['threads']}t"
    name = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|\bcorporation\b|@", " ", name, flags=re.I)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "cpu model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def revision() -> dict[str, Any]:
    """Commit and whether the sources differ from it; None where there is no repository.

    ``DGM_FAST_COMMIT`` names the commit where the sources were copied without their history.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": os.environ.get("DGM_FAST_COMMIT"), "dirty": None}
    status = _git("status", "--porcelain", "--", *SOURCES)
    return {"commit": commit.strip(), "dirty": bool(status and status.strip())}


def _git(*arguments: str) -> str | None:
    return _run(["git", "-C", str(ROOT), *arguments])


def _driver() -> str | None:
    out = _run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return out.split()[0] if out and out.split() else None


def _clocks() -> str | None:
    """Current and highest clocks and the power limit, as nvidia-smi prints them."""
    fields = "clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit"
    out = _run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    return out.splitlines()[0] if out else None


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
