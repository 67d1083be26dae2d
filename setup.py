"""Build of the C++ extension: one module that faces PyTorch, one kernel library per x86-64 level.

``dgm_fast._C`` holds schemas, autograd and dispatch and is compiled once without instruction-set flags, so
that it loads anywhere. ``dgm_fast._kernels_<level>`` hold the same kernel sources compiled for one level
each; the package chooses one at import.

Environment: ``DGM_FAST_NO_EXTENSION=1`` builds the pure-Python package. ``DGM_FAST_LEVELS=avx512`` (names
with commas between) builds those levels only, for a quick turn while working on a kernel; such a package
loads only on processors that have one of them.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
X86_LEVELS = {
    "baseline": ["-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"],
    "avx2": ["-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2", "-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-DCPU_CAPABILITY=AVX512",
        "-DCPU_CAPABILITY_AVX512",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mfma",
        "-mf16c",
    ],
}


def warn(message: str) -> None:
    bar = "*" * 78
    print(f"\n{bar}\ndgm_fast: {message}\n{bar}\n", file=sys.stderr, flush=True)


def levels() -> dict[str, list[str]]:
    if platform.machine().lower() in ("x86_64", "amd64"):
        asked = os.environ.get("DGM_FAST_LEVELS")
        return {k: X86_LEVELS[k] for k in asked.split(",")} if asked else X86_LEVELS
    return {"baseline": X86_LEVELS["baseline"]}


def assembles_tiles() -> bool:
    """Whether the assembler knows the matrix units' instructions (binutils 2.35, LLVM 11 and newer)."""
    compiler = os.environ.get("CXX", "c++").split()
    with tempfile.TemporaryDirectory() as folder:
        command = [*compiler, "-x", "c++", "-c", "-o", str(Path(folder) / "tiles.o"), "-"]
        code = 'void release() { asm volatile("tilerelease"); }'
        try:
            return (
                subprocess.run(command, input=code, text=True, capture_output=True).returncode == 0
            )
        except OSError:
            return False


def sources(pattern: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def extensions() -> tuple[list, dict]:
    if os.environ.get("DGM_FAST_NO_EXTENSION") == "1":
        return [], {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        warn(
            "torch is not importable in the build environment, so the fused C++ kernels are NOT built "
            "and ops run as plain PyTorch.\nInstall torch first, then: "
            "pip install --no-build-isolation ."
        )
        return [], {}

    # Names stay out of other libraries' reach: an inline function compiled for AVX-512 here must never
    # be the copy that another library binds to.
    common = ["-O3", "-std=c++20", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    modules = [
        CppExtension(
            "dgm_fast._C",
            sources("csrc/*.cpp"),
            # Without OpenMP at::parallel_for would run on one thread.
            extra_compile_args=[*common, *openmp, "-g0"],
            extra_link_args=openmp,
            include_dirs=[str(ROOT / "csrc")],
        )
    ]
    for level, flags in levels().items():
        if level == "avx512" and assembles_tiles():
            flags = [*flags, "-DDGM_FAST_AMX"]
        modules.append(
            CppExtension(
                f"dgm_fast._kernels_{level}",
                sources("csrc/cpu/*.cpp"),
                extra_compile_args=[
                    *common,
                    *openmp,
                    *flags,
                    f"-DDGM_FAST_MODULE=_kernels_{level}",
                    "-fno-math-errno",
                    "-g0",
                ],
                extra_link_args=openmp,
                include_dirs=[str(ROOT / "csrc")],
            )
        )

    class BuildOrFallBack(BuildExtension):
        """A machine without a compiler still installs: the package then runs its reference path."""

        def build_extension(self, ext) -> None:
            # One object directory a module, since the levels share their sources' names; kept between
            # builds, so that an editable install compiles again only what has changed.
            self.build_temp = os.path.join("build", "objects", ext.name)
            super().build_extension(ext)

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if os.environ.get("DGM_FAST_REQUIRE_EXTENSION") == "1":
                    raise
                self.extensions = []
                warn(
                    f"the C++ extension did not build ({error}).\nThe package installs without it; "
                    "ops run as plain PyTorch and `dgm-fast doctor` says so."
                )

    return modules, {"build_ext": BuildOrFallBack}


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass)
