"""What the distributions hold, and installs on machines that lack something."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dgm_fast

ROOT = Path(__file__).parents[1]
SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".cu", ".toml", ".in", ".md", ".typed", ".txt"}
# An editable install would lend its C++ modules to any other copy of the package.
WITHOUT_EDITABLE_INSTALL = (
    "import sys\n"
    "sys.meta_path[:] = [f for f in sys.meta_path\n"
    "                    if not getattr(f, '__module__', '').startswith('__editable__')]\n"
)
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="needs the source tree, not an installed package"
)


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the distributions are made from, without anything built."""
    tree = tmp_path_factory.mktemp("source") / "dgm_fast"
    tree.mkdir()
    for folder in ("csrc", "dgm_fast", "kernels", "docs", "tests", "benchmarks"):
        shutil.copytree(
            ROOT / folder,
            tree / folder,
            ignore=shutil.ignore_patterns("*.so", "__pycache__", "results"),
        )
    for file in ROOT.iterdir():
        if file.is_file() and (
            file.suffix in SOURCE_SUFFIXES or file.name in ("LICENSE", "Makefile")
        ):
            shutil.copy(file, tree)
    return tree


@pytest.fixture(scope="module")
def pure_wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    result = build_wheel(source_tree, folder, DGM_FAST_NO_EXTENSION="1")
    assert result.returncode == 0, result.stdout[-3000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def pure_install(pure_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    result = command([*PIP, "install", "-q", "--no-deps", "--target", str(target), str(pure_wheel)])
    assert result.returncode == 0, result.stdout
    isolate(target)
    return target


def command(
    arguments: list[str], cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program with its two outputs in one."""
    return subprocess.run(
        arguments,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


def build_wheel(tree: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"DGM_FAST_REQUIRE_EXTENSION": "0", **environment}
    arguments = [*PIP, "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", str(folder), "."]
    return command(arguments, tree, **environment)


def isolate(target: Path) -> None:
    """Processes that have this folder in PYTHONPATH see no editable install."""
    (target / "sitecustomize.py").write_text(WITHOUT_EDITABLE_INSTALL)


def run_installed(target: Path, code: str) -> subprocess.CompletedProcess[str]:
    # Run from the install folder: a source tree in the current folder would be imported instead.
    return command([sys.executable, "-c", code], target, PYTHONPATH=str(target))


def package_files(folder: str) -> set[str]:
    return {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*.py")}


@pytest.mark.slow
def test_sdist_holds_everything_a_build_needs(source_tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("build")
    result = command(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(tmp_path), "."],
        source_tree,
        DGM_FAST_NO_EXTENSION="1",
    )
    assert result.returncode == 0, result.stdout[-3000:]
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert sdist.name == f"dgm_fast-{dgm_fast.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = package_files("kernels") | package_files("dgm_fast")
    expected |= {
        str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h")
    }
    expected |= {"setup.py", "pyproject.toml", "LICENSE", "README.md", "dgm_fast/py.typed"}
    assert expected - names == set()
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]
    assert any(name.endswith(".h") for name in names)


def test_pure_wheel_holds_package_kernels_and_licence(pure_wheel: Path) -> None:
    with zipfile.ZipFile(pure_wheel) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(info).decode()
        entry_points = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
    kernels = {
        name.replace("kernels/", "dgm_fast/kernels/", 1) for name in package_files("kernels")
    }
    assert (package_files("dgm_fast") | kernels | {"dgm_fast/py.typed"}) - names == set()
    assert not [name for name in names if name.endswith(".so")]
    # Nothing may land beside the package: a top-level "kernels" or "tests" clashes with others.
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"dgm_fast"}
    assert "dgm-fast = dgm_fast.cli:main" in entry_points
    assert re.search(r"^License-Expression: Apache-2\.0$", metadata, re.MULTILINE)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_pure_install_warns_once_and_runs_the_reference(pure_install: Path) -> None:
    code = (
        "import torch, dgm_fast; from dgm_fast import functional as F\n"
        "x = torch.zeros(4, 8, requires_grad=True)\n"
        "for _ in range(3): F.bernoulli_log_prob(x, torch.ones(4, 8)).sum().backward()\n"
        "print('file', dgm_fast.__file__); print('grad', x.grad[0, 0].item())"
    )
    result = run_installed(pure_install, code)
    assert result.returncode == 0, result.stdout
    assert f"file {pure_install}" in result.stdout
    assert "grad 1.5" in result.stdout
    assert result.stdout.count("RuntimeWarning") == 1
    assert "the C++ extension is not built" in result.stdout


def test_pure_install_doctor_says_degraded(pure_install: Path) -> None:
    pytest.importorskip("click")
    arguments = [sys.executable, "-W", "ignore", "-m", "dgm_fast.cli", "doctor"]
    environment = {"PYTHONPATH": str(pure_install)}
    text = command(arguments, pure_install, **environment)
    assert text.returncode == 0, text.stdout
    assert text.stdout.startswith("dgm_fast is degraded")
    assert "missing: the C++ extension is not built" in text.stdout
    strict = command([*arguments, "--json", "--strict"], pure_install, **environment)
    assert strict.returncode == 1
    choices = json.loads(strict.stdout)["choices"]
    assert {choice["implementation"] for choice in choices} == {"reference"}


def test_forced_kernel_backend_without_extension_is_an_error(pure_install: Path) -> None:
    code = (
        "import torch, dgm_fast; from dgm_fast import functional as F\n"
        "with dgm_fast.backend('cpp'): F.log_mean_exp(torch.zeros(2, 8))"
    )
    result = run_installed(pure_install, code)
    assert result.returncode != 0
    assert 'backend "cpp" needs the C++ extension' in result.stdout


def test_extension_that_does_not_load_is_broken(pure_install: Path, tmp_path: Path) -> None:
    pytest.importorskip("click")
    shutil.copytree(pure_install / "dgm_fast", tmp_path / "dgm_fast")
    isolate(tmp_path)
    (tmp_path / "dgm_fast" / "_C.abi3.so").write_bytes(b"not a shared library")
    result = command(
        [sys.executable, "-m", "dgm_fast.cli", "doctor"], tmp_path, PYTHONPATH=str(tmp_path)
    )
    assert result.returncode == 1, result.stdout
    assert "dgm_fast is broken" in result.stdout
    assert "does not load" in result.stdout


# What a machine without a compiler looks like to the build, in a fraction of a real one's time.
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}


@pytest.mark.slow
def test_failing_compiler_installs_without_kernels_and_says_so(
    source_tree: Path, tmp_path: Path
) -> None:
    result = build_wheel(source_tree, tmp_path / "wheel", **NO_COMPILER)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "the C++ extension did not build" in result.stdout
    assert "ops run as plain PyTorch" in result.stdout
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert not list(site.rglob("*.so"))
    isolate(site)
    result = run_installed(site, "import dgm_fast; print(dgm_fast.ops.missing())")
    assert result.returncode == 0, result.stdout
    assert "the C++ extension is not built" in result.stdout


@pytest.mark.slow
def test_failing_compiler_is_an_error_where_the_extension_is_required(
    source_tree: Path, tmp_path: Path
) -> None:
    result = build_wheel(source_tree, tmp_path, DGM_FAST_REQUIRE_EXTENSION="1", **NO_COMPILER)
    assert result.returncode != 0
    assert not list(tmp_path.glob("*.whl"))
