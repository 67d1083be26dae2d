"""Compile Triton kernels for NVIDIA targets without a GPU, and read registers and spills.

A launcher is called on meta tensors while ``record`` stands in for the launch, so that what is compiled
is what a GPU would be given: argument types, alignment, block sizes and warps. One line per kernel:

    builds = offline_gpu.build(lambda: gaussian_kl_fwd(mean, log_var, None, None, 1))

Needs a process without TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = (80, 90, 100)

# What tests built in this run, by the name of the case.
BUILDS = pytest.StashKey[list[tuple[str, list["Build"]]]]()

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
_OPTIONS = ("num_warps", "num_stages", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """One recorded kernel launch."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]

    def source(self) -> ASTSource:
        signature: dict[str, str] = {}
        constants: dict[Any, Any] = {}
        attributes: dict[Any, Any] = {}
        for param in self.kernel.params:
            value = self.arguments[param.name]
            kind = _specialised(param, value)
            signature[param.name] = kind
            if kind == "constexpr":
                constants[(param.num,)] = value
            elif isinstance(value, torch.Tensor) or (
                isinstance(value, int) and value % 16 == 0 and not param.do_not_specialize
            ):
                attributes[(param.num,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)


@dataclass(frozen=True)
class Build:
    """What the compiler made of a launch for compute capability ``target / 10``.

    ``stack`` counts bytes of local memory per thread: spilled registers and indexed arrays.
    """

    kernel: str
    target: int
    warps: int
    registers: int
    stack: int
    shared: int


def _specialised(param: Any, value: Any) -> str:
    """The type Triton's launcher derives from an argument."""
    if param.is_constexpr or value is None:
        return "constexpr"
    if param.annotation_type:
        return param.annotation_type
    if isinstance(value, torch.Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        if value == 1 and not param.do_not_specialize:
            return "constexpr"
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    if isinstance(value, float):
        return "fp32"
    raise TypeError(f"{param.name}: no Triton type for {type(value).__name__}")


def record(call: Callable[[], Any]) -> list[Launch]:
    """The kernel launches of ``call``, none of which is executed."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("offline builds need a process without TRITON_INTERPRET=1")
    launches: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        names = [param.name for param in self.params]
        arguments = dict(zip(names, args, strict=False)) | kwargs
        launches.append(Launch(self, arguments, options))

    with mock.patch.object(JITFunction, "run", run):
        call()
    return launches


def compile_launch(launch: Launch, target: int) -> Build:
    compiled = triton.compile(
        launch.source(), target=GPUTarget("cuda", target, 32), options=launch.options
    )
    usage = _resource_usage(compiled.asm["cubin"])
    return Build(
        kernel=launch.kernel.fn.__name__,
        target=target,
        warps=compiled.metadata.num_warps,
        registers=usage["REG"],
        # Local arrays and the stack frame of spills are reported apart.
        stack=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
    )


def build(call: Callable[[], Any], targets: Sequence[int] = TARGETS) -> list[Build]:
    """Every kernel that ``call`` launches, compiled for every target."""
    return [compile_launch(launch, target) for launch in record(call) for target in targets]


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", listing)}
    if "REG" not in usage:
        raise RuntimeError(f"no resource usage in the output of cuobjdump: {listing!r}")
    return usage


def kernels_of(package: str) -> set[str]:
    """Names of the launched kernels (``*_kernel``) that the modules of a package define."""
    root = importlib.import_module(package)
    names = set()
    for info in pkgutil.iter_modules(root.__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, JITFunction) and value.fn.__name__.endswith("_kernel"):
                names.add(value.fn.__name__)
    return names


def table(builds: Sequence[tuple[str, Sequence[Build]]]) -> str:
    """One line per case and kernel: warps, then registers and bytes of stack for each target."""
    rows: dict[tuple[str, str], dict[int, Build]] = {}
    for case, group in builds:
        for b in group:
            rows.setdefault((b.kernel, case.replace("torch.", "")), {})[b.target] = b
    targets = sorted({target for row in rows.values() for target in row})
    heads = "".join(f"{'sm_' + str(t):>9}" for t in targets)
    width = max(len(kernel) for kernel, _ in rows) + 1
    lines = [f"{'registers+stack':<{width}}{'case':<36}{'warps':>5}{heads}"]
    for (kernel, case), row in sorted(rows.items()):
        cells = [f"{row[t].registers}+{row[t].stack}" if t in row else "" for t in targets]
        warps = next(iter(row.values())).warps
        lines.append(f"{kernel:<{width}}{case:<36}{warps:>5}" + "".join(f"{c:>9}" for c in cells))
    return "\n".join(lines)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Hook for the ``conftest.py`` of offline builds: the table of what was built in this run."""
    if config.stash.get(BUILDS, None):
        terminalreporter.section("offline GPU builds")
        terminalreporter.write_line(table(config.stash[BUILDS]))
