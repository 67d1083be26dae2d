"""``make gpu``: build, GPU tests, benchmarks on CUDA; result files in benchmarks/results/.

Needs a python3 that holds a CUDA build of torch, Triton, setuptools, pytest and a C++ compiler; no
network, no virtual environment, nothing installed. The result files (at most 3) are also copied to
the directory named by the environment variable OUT, if that is set.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build" / "gpu"
RESULTS = ROOT / "benchmarks" / "results"
# Seconds; the whole has to end within eight minutes. The benchmarks get what building and testing
# leave: cases that would begin later are recorded as skipped, and GRACE is for the one that runs
# then.
TOTAL_LIMIT = 465
BUILD_LIMIT = 240
TEST_LIMIT = 110
GRACE = 50
SIZE_ORDER = ("large", "medium", "small", "odd")


def fail(message: str) -> None:
    sys.exit(f"make gpu: {message}")


def require_device() -> str:
    """The GPU in words, or exit."""
    if importlib.util.find_spec("torch") is None:
        fail(f"{sys.executable} has no torch; set PYTHON to the interpreter that has it")
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA support"
        fail(f"no usable CUDA device (torch {torch.__version__}, built with {built})")
    if importlib.util.find_spec("triton") is None:
        fail("Triton is not installed; the GPU kernels need it")
    return (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"Python {sys.version.split()[0]}"
    )


def stage() -> None:
    """A source tree of links in which ``kernels/`` lies where an installation puts it.

    ``pyproject.toml`` stays out: reading it needs a newer setuptools than a machine without
    network may have, and building in place needs nothing from it.
    """
    package = STAGE / "dgm_fast"
    package.mkdir(parents=True, exist_ok=True)
    for link in (*package.iterdir(), *STAGE.iterdir()):
        if link.is_symlink():
            link.unlink()
    for entry in (ROOT / "dgm_fast").iterdir():
        if entry.suffix != ".so" and entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(ROOT / "kernels")
    for name in ("csrc", "setup.py"):
        (STAGE / name).symlink_to(ROOT / name)


def environment() -> dict[str, str]:
    env = dict(os.environ)
    # The interpreter would replace the kernels under test.
    env.pop("TRITON_INTERPRET", None)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(STAGE), env.get("PYTHONPATH", ""))))
    env["DGM_FAST_REQUIRE_EXTENSION"] = "1"
    env.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    env.setdefault("KINETO_LOG_LEVEL", "99")
    return env


def run(command: list[str], limit: float, *, cwd: Path, log: Path | None = None) -> int:
    """Exit code of a command, whose output is shown and, if asked, kept; 124 when out of time."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE if log else None,
        stderr=subprocess.STDOUT if log else None,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            # The session holds compile workers too, which would keep the pipe open.
            os.killpg(process.pid, 9)
            output, _ = process.communicate()
            output = (output or "") + f"\nstopped after {limit:.0f} s\n"
            code = 124
        else:
            code = process.returncode
    if log is not None:
        print(output, end="", flush=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(output)
    return code


def build() -> None:
    if importlib.util.find_spec("setuptools") is None:
        fail("setuptools is not installed; building the extension needs it")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if run(command, BUILD_LIMIT, cwd=STAGE) != 0:
        fail("the C++ extension did not build (its output is above)")
    probe = "import dgm_fast.kernels; from dgm_fast import ops; sys.exit(ops.missing() or 0)"
    if run([sys.executable, "-P", "-W", "ignore", "-c", f"import sys; {probe}"], 60, cwd=STAGE):
        fail("the package was built but does not load completely (see above)")


def run_tests(log: Path) -> int:
    # -P: the working directory must not come before the staged package on sys.path. Importing first
    # settles it whatever pytest puts there.
    start = "import dgm_fast.kernels, pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--durations=10", "tests"]
    return run([sys.executable, "-P", "-c", start, *arguments], TEST_LIMIT, cwd=ROOT, log=log)


def run_benchmarks(directory: Path, stop_after_s: float) -> int:
    """In the process that has the staged package on its path: a result file and its table."""
    import torch

    from dgm_fast.perf import Options, builtin_registry, results, run_suite, table, timing
    from dgm_fast.perf.lines import numbered
    from dgm_fast.perf.step_cases import STEPS

    cases = builtin_registry().all()
    # What matters most first, should time run out.
    cases.sort(key=lambda c: SIZE_ORDER.index(c.size) if c.size in SIZE_ORDER else len(SIZE_ORDER))
    plan = timing.Plan(min_rounds=5, max_rounds=15, budget_s=0.3)
    result = run_suite(
        cases,
        Options(device=torch.device("cuda"), plan=plan),
        steps=STEPS,
        suite="cuda",
        stop_after_s=stop_after_s,
        progress=numbered,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    path = results.save(result, results.default_path(result, directory))
    path.with_suffix(".txt").write_text(table.plain_text(result))
    table.show(result)
    return int(any(record["status"] == "failed" for record in result["records"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks-into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stop-after", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.benchmarks_into:
        return run_benchmarks(options.benchmarks_into, options.stop_after)

    begin = time.monotonic()
    device = require_device()
    print(f"== {device}", flush=True)
    print("== building", flush=True)
    stage()
    build()
    RESULTS.mkdir(parents=True, exist_ok=True)
    earlier = set(RESULTS.iterdir())
    tests_log = RESULTS / f"{time.strftime('%Y-%m-%d-%H%M%S')}-cuda-tests.txt"
    print("== GPU tests", flush=True)
    tests = run_tests(tests_log)
    if tests == 5:
        print("== no GPU tests were found", flush=True)
    print("== benchmarks", flush=True)
    command = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).resolve())]
    left = TOTAL_LIMIT - (time.monotonic() - begin)
    command += ["--benchmarks-into", str(RESULTS), "--stop-after", str(left - GRACE)]
    bench = run(command, left, cwd=ROOT)
    written = sorted(set(RESULTS.iterdir()) - earlier)
    if os.environ.get("OUT"):
        target = Path(os.environ["OUT"])
        target.mkdir(parents=True, exist_ok=True)
        for path in written:
            shutil.copy(path, target / path.name)
    for path in written:
        print(f"== wrote {path.relative_to(ROOT)}")
    print(
        f"== tests: exit code {tests}; benchmarks: exit code {bench}; "
        f"{time.monotonic() - begin:.0f} s"
    )
    return int(tests != 0 or bench != 0)


if __name__ == "__main__":
    sys.exit(main())
