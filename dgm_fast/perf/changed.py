"""Which benchmark cases a diff can touch: by family in Python, by includes in C++."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from dgm_fast import ops
from dgm_fast.perf.registry import Case
from dgm_fast.perf.step import StepCase

# Hand the whole table over and so include every family: no path from one family to another.
HUBS = ("csrc/cpu/kernel_table.h", "csrc/kernels.h")
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
_WHOLE_MODELS = ("models", "nn", "train", "integrations")
_BY_FAMILY = ("reference", "ops", "functional", "kernels")


def touched(
    files: Iterable[str], cases: Sequence[Case], steps: Sequence[StepCase], root: Path
) -> list[str]:
    """Names of the cases and training steps that a change of these files can slow down.

    When in doubt a case is in. Tests, documents, examples and the harness itself touch none: both
    sides are measured by the same harness.
    """
    names: set[str] = set()
    for file in files:
        names |= _of_file(PurePosixPath(file), cases, steps, root)
    ordered = [*(case.name for case in cases), *(step.name for step in steps)]
    return [name for name in ordered if name in names]


def _of_file(
    file: PurePosixPath, cases: Sequence[Case], steps: Sequence[StepCase], root: Path
) -> set[str]:
    # Cases of no op time a whole model (its samples, say), as training steps do.
    every_step = {step.name for step in steps} | {c.name for c in cases if not _of_an_op(c)}
    everything = {case.name for case in cases} | every_step
    parts = file.parts
    if parts[0] == "csrc":
        found = affected_ops(file.as_posix(), root)
        return everything if found is None else _with_ops(found, cases) | every_step
    if file.as_posix() == "setup.py":
        return everything
    if parts[0] == "kernels":
        parts = ("dgm_fast", *parts)
    if parts[0] != "dgm_fast" or file.suffix != ".py":
        return set()
    if len(parts) == 2:
        return everything if parts[1] != "cli.py" else set()
    if parts[1] in _WHOLE_MODELS:
        return every_step
    if parts[1] == "perf":
        return _of_harness(file.stem, cases, every_step)
    if parts[1] not in _BY_FAMILY:
        return set()
    of_family = {spec.name for spec in ops.SPECS.values() if spec.family == file.stem}
    return _with_ops(of_family, cases) | every_step if of_family else everything


def _of_harness(stem: str, cases: Sequence[Case], every_step: set[str]) -> set[str]:
    """New and changed cases are worth a look; the rest of the harness is the same on both sides."""
    if stem == "step_cases":
        return every_step
    module = f"dgm_fast.perf.{stem}"
    return {case.name for case in cases if case.build.__module__ == module}


def _of_an_op(case: Case) -> bool:
    return case.op in ops.SPECS or case.op in ops.STANDALONE


def _with_ops(names: set[str], cases: Sequence[Case]) -> set[str]:
    return {case.name for case in cases if case.op in names}


def affected_ops(changed: str, root: Path) -> set[str] | None:
    """Ops whose code includes ``changed``, directly or not, or links with what does; None is all.

    A kernel file implements the ``*_table.h`` it includes, ``x.cpp`` implements ``x.h``: users of the
    header are affected by either. A file that registers ops ends the search there.
    """
    includes = {p: _includes(p, root) for p in _sources(root)}
    found: set[str] = set()
    waiting, seen = [changed], {changed}
    while waiting:
        current = waiting.pop()
        own = _ops_of(root / current)
        if own is not None and own >= set(ops.SPECS):
            return None
        if own is None and current.endswith(".cpp"):
            return None
        if own:
            found |= own
            continue
        following = {p for p, included in includes.items() if current in included}
        following |= _implemented(current, includes)
        if current.endswith(".cpp") and not following:
            return None
        for p in following - seen:
            seen.add(p)
            if p not in HUBS and Path(p).name != "module.cpp":
                waiting.append(p)
    return found or None


def _implemented(source: str, includes: dict[str, set[str]]) -> set[str]:
    """Headers whose functions ``source`` defines; a table may be included by way of another header."""
    if not source.endswith(".cpp"):
        return set()
    reached, waiting = set(includes.get(source, set())), list(includes.get(source, set()))
    while waiting:
        new = includes.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return {
        header
        for header in reached
        if header.endswith("_table.h") or Path(header).stem == Path(source).stem
    }


def _ops_of(path: Path) -> set[str] | None:
    """Ops that a host file registers; empty for kernels and headers; None if the file is gone."""
    if not path.exists():
        return None
    if path.parent.name == "cpu" or path.suffix != ".cpp":
        return set()
    text = path.read_text(errors="replace")
    names = (*ops.SPECS, *ops.STANDALONE)
    return {name for name in names if f'"{name}"' in text or f'"{name}(' in text}


def _sources(root: Path) -> list[str]:
    found = (p for suffix in ("cpp", "h", "cu") for p in (root / "csrc").rglob(f"*.{suffix}"))
    return sorted(p.relative_to(root).as_posix() for p in found)


def _includes(source: str, root: Path) -> set[str]:
    """Files of ``csrc`` that a file includes, as paths from the root."""
    path = root / source
    found = set()
    for name in _INCLUDE.findall(path.read_text(errors="replace")):
        for folder in (path.parent, root / "csrc"):
            if (folder / name).exists():
                found.add((folder / name).resolve().relative_to(root.resolve()).as_posix())
                break
    return found
