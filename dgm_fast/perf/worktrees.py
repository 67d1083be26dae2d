"""Revisions of a repository made importable: throw-away git worktrees, built and staged."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from dgm_fast import ops
from dgm_fast.perf import machine
from dgm_fast.perf.pairs import Side

HARNESS = Path(__file__).resolve().parent
# What the compiled modules depend on.
BUILD_SOURCES = ("csrc", "setup.py")


class RevisionError(RuntimeError):
    """A revision that does not exist or does not build."""


@dataclass(frozen=True)
class Project:
    """A repository whose revisions are compared: this library's own, or a user's."""

    root: Path = machine.ROOT
    # Run in a user's worktree before it is measured; the library builds itself.
    build: str | None = None

    @property
    def is_library(self) -> bool:
        return (self.root / "dgm_fast" / "ops").is_dir() and (self.root / "csrc").is_dir()


def resolve(root: Path, revision: str) -> str:
    """The full commit of a revision.

    Raises:
        RevisionError: if the repository has none of that name.
    """
    done = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if done.returncode != 0:
        raise RevisionError(f"{revision!r} is not a commit of {root}")
    return done.stdout.strip()


def is_dirty(root: Path) -> bool:
    """Whether the work tree has changes that no commit holds (and that A/B does not see)."""
    return bool(_git(root, "status", "--porcelain", "--untracked-files=no").stdout.strip())


def changed_files(root: Path, base: str, head: str) -> list[str]:
    """Files that differ between the merge base and head, as a pull request shows them."""
    done = _git(root, "diff", "--name-only", f"{base}...{head}")
    if done.returncode != 0:
        raise RevisionError(f"no diff of {base} and {head}: {done.stderr.strip()}")
    return done.stdout.split("\n")[:-1]


@contextmanager
def sides(
    project: Project, base: str, head: str, report: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[Side, Side]]:
    """Both revisions, built, each with a folder for sys.path; gone afterwards, whatever happens."""
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dgm-fast-ab-")))
        ready = []
        for label, revision in (("base", base), ("head", head)):
            commit = resolve(project.root, revision)
            tree = stack.enter_context(_worktree(project.root, commit, temporary / label))
            name = revision if commit.startswith(revision) else f"{revision} ({commit[:10]})"
            if project.is_library:
                build_library(project.root, commit, tree, report)
                path = stage(tree, temporary / f"{label}-package")
            else:
                path = _build_other(project, tree, name, report)
            ready.append(Side(name, path))
        yield ready[0], ready[1]


@contextmanager
def _worktree(root: Path, commit: str, target: Path) -> Iterator[Path]:
    done = _git(root, "worktree", "add", "--detach", "--quiet", str(target), commit)
    if done.returncode != 0:
        raise RevisionError(f"git worktree add {commit}: {done.stderr.strip()}")
    try:
        yield target
    finally:
        _git(root, "worktree", "remove", "--force", str(target))
        _git(root, "worktree", "prune")


def build_key(root: Path, commit: str) -> str:
    """What a build is kept under: the sources as git knows them, and what compiles them."""
    tree = _git(root, "ls-tree", "-r", commit, "--", *BUILD_SOURCES).stdout
    facts = (tree, torch.__version__, platform.python_version(), ops.active_library())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def build_library(
    root: Path, commit: str, tree: Path, report: Callable[[str], None] = lambda line: None
) -> None:
    """The compiled modules of a worktree, of this machine's instruction-set level only.

    A build is kept in ``build/ab/`` under its sources' hash: revisions that differ in Python alone
    share one.

    Raises:
        RevisionError: if the build fails.
    """
    kept = root / "build" / "ab" / build_key(root, commit)
    if not kept.is_dir():
        report(f"building the kernels of {commit[:10]} (minutes)")
        env = dict(os.environ, DGM_FAST_REQUIRE_EXTENSION="1")
        env["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), env.get("PATH", "")))
        if ops.active_library():
            env["DGM_FAST_LEVELS"] = ops.active_library()
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        _run(command, tree, env, f"the kernels of {commit[:10]} did not build")
        unfinished = Path(tempfile.mkdtemp(dir=_made(kept.parent), prefix=".unfinished-"))
        for module in (tree / "dgm_fast").glob("*.so"):
            shutil.copy2(module, unfinished / module.name)
        unfinished.rename(kept)
        return
    for module in kept.iterdir():
        shutil.copy2(module, tree / "dgm_fast" / module.name)


def stage(tree: Path, target: Path, harness: Path = HARNESS) -> Path:
    """A folder for sys.path with the package of ``tree`` and the benchmarks of this harness.

    Both sides run the same cases and the same clock, also where the benchmarks themselves changed.
    """
    package = _made(target / "dgm_fast")
    for entry in (tree / "dgm_fast").iterdir():
        if entry.name not in ("perf", "__pycache__"):
            (package / entry.name).symlink_to(entry)
    (package / "perf").symlink_to(harness)
    (package / "kernels").symlink_to(tree / "kernels")
    return target


def _build_other(project: Project, tree: Path, name: str, report: Callable[[str], None]) -> Path:
    if project.build:
        report(f"building {name}: {project.build}")
        _run(shlex.split(project.build), tree, dict(os.environ), f"{name} did not build")
    return tree / "src" if (tree / "src").is_dir() else tree


def _run(command: list[str], cwd: Path, env: dict[str, str], complaint: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise RevisionError(f"{complaint}:\n{done.stdout[-3000:]}")


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
