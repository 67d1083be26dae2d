"""A/B of revisions: worktrees, which cases a diff touches, turns, verdicts, the table."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")
pytest.importorskip("click")

from click.testing import CliRunner

from dgm_fast import ops
from dgm_fast.perf import ab, builtin_registry, changed, pairs, stats, timing, worktrees
from dgm_fast.perf.command import perf
from dgm_fast.perf.stats import FASTER, SAME, SLOWER, Look, Rule
from dgm_fast.perf.step_cases import STEPS

ROOT = Path(__file__).parents[1]
CASES = builtin_registry().all()
SETUP = pairs.Setup(threads=1)
QUIET = Look(tuple(1e-3 + 1e-6 * i for i in range(12)), tuple(1e-3 + 1e-6 * i for i in range(12)))
SLOW = Look(QUIET.base, tuple(1.3 * s for s in QUIET.head))


def fake(*sessions: dict[tuple[str, str], Look], failed: Any = None) -> Callable[..., tuple]:
    """A measurement that returns given sessions in turn and keeps what it was asked for."""
    asked: list[Sequence[str]] = []

    def look_at_all(base: Any, head: Any, cases: Sequence[str], *rest: Any) -> tuple:
        asked.append(list(cases))
        return dict(sessions[len(asked) - 1]), dict(failed or {}), {}

    look_at_all.asked = asked  # type: ignore[attr-defined]
    return look_at_all


def compare(look: Callable[..., tuple], cases: Sequence[str] = ("a", "b")) -> ab.Comparison:
    return ab.compare(pairs.Side("old"), pairs.Side("new"), cases, SETUP, Rule(), look=look)


def test_quiet_cases_are_looked_at_once() -> None:
    look = fake({("a", "both"): QUIET, ("b", "both"): QUIET})
    result = compare(look)
    assert look.asked == [["a", "b"]]  # type: ignore[attr-defined]
    assert result.ok and result.of(SAME) == [("a", "both"), ("b", "both")]


def test_a_regression_is_seen_twice_and_named() -> None:
    look = fake({("a", "both"): SLOW, ("b", "both"): QUIET}, *2 * [{("a", "both"): SLOW}])
    result = compare(look)
    assert look.asked == [["a", "b"], ["a"], ["a"]]  # type: ignore[attr-defined]
    assert not result.ok and result.of(SLOWER) == [("a", "both")]
    text = ab.markdown(result)
    assert "**1 slower**: `a` fwd+bwd" in text
    assert "| a | fwd+bwd | 1.005 (" in text and "1.300" in text and "slower, 3 looks" in text
    # What did not change is folded below what did.
    assert text.index("| a |") < text.index("<details>") < text.index("| b |")


def test_a_suspicion_that_does_not_return_is_none() -> None:
    result = compare(fake({("a", "both"): SLOW}, *2 * [{("a", "both"): QUIET}]))
    assert result.ok and result.looked_again == [("a", "both")]


def test_what_is_faster_is_told_and_is_no_failure() -> None:
    fast = Look(QUIET.base, tuple(0.7 * s for s in QUIET.head))
    result = compare(fake(*3 * [{("a", "both"): fast}]))
    assert result.ok and result.of(FASTER) == [("a", "both")]
    assert "No regression in 1 measurements. 1 faster." in ab.markdown(result)


def test_a_wrong_result_fails_and_has_no_time() -> None:
    result = compare(fake({("b", "both"): QUIET}, failed={"a": ["new: ours: value is off"]}))
    assert not result.ok and ("a", "both") not in result.decisions
    text = ab.markdown(result)
    assert "1 cases compute something else" in text
    assert "a: wrong result, not timed**: new: ours: value is off" in text


class FakeWorker:
    """Answers like a side; counts its calls in a list that both share."""

    def __init__(self, name: str, inner: int, calls: list[str], cases: Sequence[str] = ()) -> None:
        self.side = pairs.Side(name)
        self.facts = {"cases": list(cases)}
        self.inner = inner
        self.calls = calls
        self.failures: list[str] = []

    def ask(self, **request: Any) -> dict[str, Any]:
        if request["do"] == "prepare":
            return {"failures": self.failures, "inner": {"forward": self.inner}}
        self.calls.append(self.side.name)
        assert request["inner"] == 7, "both sides make the same number of calls"
        return {"seconds": {"forward": 1e-3}}


def test_rounds_alternate_abba() -> None:
    calls: list[str] = []
    pair = (FakeWorker("A", 3, calls), FakeWorker("B", 7, calls))
    plan = timing.Plan(min_rounds=4, max_rounds=4)
    looks, failures = pairs.look_at(pair, "case", plan)  # type: ignore[arg-type]
    assert failures == [] and "".join(calls) == "ABBABAAB"
    assert len(looks["forward"].base) == len(looks["forward"].head) == 4


def test_both_sides_of_a_round_share_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Any]] = []

    class Pinned(FakeWorker):
        def ask(self, **request: Any) -> dict[str, Any]:
            if request["do"] == "round":
                seen.append((self.side.name, request["cpu"]))
            return super().ask(**request)

    monkeypatch.setattr(pairs.os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    pair = (Pinned("A", 7, []), Pinned("B", 7, []))
    for threads, expected in ((1, [3, 3, 5, 5]), (2, [None] * 4)):
        seen.clear()
        for worker in pair:
            worker.facts["threads"] = threads
        pairs.look_at(pair, "case", timing.Plan(min_rounds=2, max_rounds=2))  # type: ignore[arg-type]
        assert [cpu for _, cpu in seen] == expected
        assert [name for name, _ in seen] == ["A", "B", "B", "A"]


def test_no_rounds_for_a_wrong_side() -> None:
    calls: list[str] = []
    pair = (FakeWorker("A", 7, calls), FakeWorker("B", 7, calls))
    pair[1].failures = ["ours: value is off"]
    looks, failures = pairs.look_at(pair, "case", pairs.PLAN)  # type: ignore[arg-type]
    assert looks == {} and failures == ["B: ours: value is off"] and calls == []


def test_cases_that_a_side_lacks_are_left_out_with_the_reason() -> None:
    pair = (FakeWorker("old", 1, [], ["a"]), FakeWorker("new", 1, [], ["a", "b"]))
    common, left_out = pairs.common_cases(pair, ["a", "b"])  # type: ignore[arg-type]
    assert common == ["a"] and left_out == {"b": "not in old"}


def test_two_real_processes_take_turns() -> None:
    if ops.missing():
        pytest.skip("the kernels are not built: a side would time the reference")
    case, plan = "gaussian_kl/small/float32", timing.Plan(1e-4, min_rounds=3, max_rounds=3)
    # Slowed down by the injection, so that the two can be told apart on any machine.
    sides = pairs.Side("A"), pairs.Side("B", slow={case: 40.0})
    with pairs.session(*sides, pairs.Setup(threads=1)) as pair:
        assert [worker.facts["threads"] for worker in pair] == [1, 1]
        assert all(worker.facts["isa"] == ops.active_isa() for worker in pair)
        assert pairs.common_cases(pair, [case, "no/such"])[1] == {"no/such": "not in A and B"}
        looks, failed = pairs.look_at(pair, case, plan)
        assert failed == [] and set(looks) == {"forward", "backward", "both"}
        assert all(look.ratio > 2 for look in looks.values())
        with pytest.raises(pairs.WorkerError, match="A: KeyError: 'no/such'"):
            pair[0].ask(do="prepare", case="no/such", min_round_s=1e-3)


def test_a_side_that_does_not_start_says_why(tmp_path: Path) -> None:
    package = tmp_path / "dgm_fast"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('broken revision')\n")
    worker = pairs.Worker(pairs.Side("old", tmp_path), SETUP)
    try:
        with pytest.raises(pairs.WorkerError, match=r"(?s)old: its process ended.*broken revision"):
            worker.greet()
    finally:
        worker.close()


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A user's project with two commits."""
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "op.py").write_text("x = 1\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    git(root, "tag", "v1")
    (root / "op.py").write_text("x = 2\n")
    git(root, "commit", "-qam", "two")
    return root


def test_worktrees_hold_the_revisions_and_go_away(repository: Path) -> None:
    project = worktrees.Project(repository)
    with worktrees.sides(project, "v1", "HEAD") as (base, head):
        assert base.path and head.path
        assert (base.path / "op.py").read_text() == "x = 1\n"
        assert (head.path / "op.py").read_text() == "x = 2\n"
        kept = base.path
    assert not kept.exists()
    assert git(repository, "worktree", "list").count("\n") == 1
    assert (repository / "op.py").read_text() == "x = 2\n"


def test_worktrees_go_away_after_an_error(repository: Path) -> None:
    project = worktrees.Project(repository, build="python3 -c 'raise SystemExit(3)'")
    with pytest.raises(worktrees.RevisionError, match="did not build"):  # noqa: SIM117
        with worktrees.sides(project, "v1", "HEAD"):
            pass
    assert git(repository, "worktree", "list").count("\n") == 1


def test_unknown_revision(repository: Path) -> None:
    with pytest.raises(worktrees.RevisionError, match="'no-such' is not a commit"):
        worktrees.resolve(repository, "no-such")
    done = CliRunner().invoke(
        perf, ["ab", "no-such", "--repo", str(repository), "-k", "elbo/small"]
    )
    assert done.exit_code == 1 and "'no-such' is not a commit" in done.output


def test_changed_files_are_those_since_the_branch_began(repository: Path) -> None:
    git(repository, "checkout", "-qb", "topic", "v1")
    (repository / "other.py").write_text("")
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "three")
    assert worktrees.changed_files(repository, "main", "topic") == ["other.py"]
    assert not worktrees.is_dirty(repository)
    (repository / "op.py").write_text("x = 3\n")
    assert worktrees.is_dirty(repository)


def test_stage_takes_the_package_of_the_revision_and_this_harness(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("dgm_fast/ops", "dgm_fast/perf", "kernels"):
        (tree / name).mkdir(parents=True)
    (tree / "dgm_fast" / "__init__.py").write_text("")
    path = worktrees.stage(tree, tmp_path / "stage")
    assert (path / "dgm_fast" / "ops").resolve() == tree / "dgm_fast" / "ops"
    assert (path / "dgm_fast" / "kernels").resolve() == tree / "kernels"
    assert (path / "dgm_fast" / "perf").resolve() == Path(pairs.__file__).resolve().parent


def test_a_build_is_kept_by_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "library"
    (root / "csrc").mkdir(parents=True)
    (root / "dgm_fast").mkdir()
    git(root.parent, "init", "-q", "-b", "main", str(root))
    (root / "setup.py").write_text(
        "from pathlib import Path\nPath('dgm_fast/_C.so').write_text('built')\n"
        "with open(Path(__file__).resolve().parents[1] / 'builds', 'a') as f: f.write('x')\n"
    )
    for message, name, text in (
        ("one", "csrc/a.cpp", "1"),
        ("two", "x.py", ""),
        ("three", "csrc/a.cpp", "3"),
    ):
        (root / name).write_text(text)
        git(root, "add", ".")
        git(root, "commit", "-qm", message)
    commits = git(root, "rev-list", "--reverse", "HEAD").split()
    for number, commit in enumerate(commits):
        tree = tmp_path / f"trees{number}" / "tree"
        git(root, "worktree", "add", "-q", "--detach", str(tree), commit)
        (tree / "dgm_fast").mkdir(exist_ok=True)
        worktrees.build_library(root, commit, tree)
        assert (tree / "dgm_fast" / "_C.so").read_text() == "built"
    # The second commit changed Python only.
    assert worktrees.build_key(root, commits[0]) == worktrees.build_key(root, commits[1])
    assert not (tmp_path / "trees1" / "builds").exists()
    assert len(list(tmp_path.rglob("builds"))) == 2


FAMILIES = {
    "csrc/nade.cpp": {"nade"},
    "csrc/cpu/nade_sample.cpp": {"nade"},
    "csrc/cpu/bounds.cpp": {"latent"},
    "csrc/cpu/product.cpp": {"linear_head", "pixel"},
    "csrc/cpu/mixture_table.h": {"mixture"},
    "dgm_fast/functional/nade.py": {"nade"},
    "dgm_fast/reference/mixture.py": {"mixture"},
    "kernels/mixture.py": {"mixture"},
    "dgm_fast/perf/cases_nade.py": {"nade"},
}


# Cases of whole models: samples of a flow.
MODELS = [c.name for c in CASES if c.op not in ops.SPECS and c.op not in ops.STANDALONE]


@pytest.mark.parametrize("file", FAMILIES)
def test_a_change_touches_its_family(file: str) -> None:
    assert (ROOT / file).exists(), "the table above names a file that is gone"
    names = changed.touched([file], CASES, STEPS, ROOT)
    # Cases of whole models are in, whatever the op.
    families = {case.family for case in CASES if case.name in names and case.op in ops.SPECS}
    assert families == FAMILIES[file]


def test_an_op_beside_the_table_is_found() -> None:
    names = changed.touched(["csrc/critic_step.cpp"], CASES, [], ROOT)
    critics = [case.name for case in CASES if case.op == "critic_step"]
    assert [name for name in names if name not in MODELS] == critics != []


@pytest.mark.parametrize(
    "file",
    [
        "setup.py",
        "csrc/cpu/vec.h",
        "csrc/registry.h",
        "csrc/schemas.cpp",
        "dgm_fast/ops/_registry.py",
        "csrc/gone.cpp",
    ],
)
def test_shared_code_touches_everything(file: str) -> None:
    assert len(changed.touched([file], CASES, STEPS, ROOT)) == len(CASES) + len(STEPS)


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "docs/numerics.md",
        "tests/test_nade.py",
        "dgm_fast/perf/table.py",
        "examples/x.py",
    ],
)
def test_documents_tests_and_the_harness_touch_nothing(file: str) -> None:
    assert changed.touched([file], CASES, STEPS, ROOT) == []


def test_models_touch_the_training_steps_and_samples() -> None:
    names = changed.touched(["dgm_fast/models/iwae.py"], CASES, STEPS, ROOT)
    assert names == [*MODELS, *(step.name for step in STEPS)]
    assert "nsf_sample/small/float32" in MODELS


def test_command_takes_what_changed_and_fails_on_a_regression(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from contextlib import nullcontext

    asked: list[Sequence[str]] = []

    def compare(base: Any, head: Any, cases: Sequence[str], *rest: Any, **options: Any) -> Any:
        asked.append(cases)
        result = ab.Comparison("old", "new", Rule(), 1)
        result.decisions[cases[0], "both"] = stats.decide([SLOW, SLOW], Rule())
        return result

    sides = (pairs.Side("old"), pairs.Side("new"))
    monkeypatch.setattr(worktrees, "sides", lambda *a: nullcontext(sides))
    monkeypatch.setattr(worktrees, "changed_files", lambda *a: ["csrc/nade.cpp"])
    monkeypatch.setattr(worktrees, "is_dirty", lambda root: False)
    monkeypatch.setattr(ab, "compare", compare)
    out = tmp_path / "table.md"
    done = CliRunner().invoke(
        perf, ["ab", "v1", "--changed", "-k", "not step", "--markdown", str(out)]
    )
    assert done.exit_code == 1 and "**1 slower**" in out.read_text() and "1 slower" in done.output
    nade = [case.name for case in CASES if case.family == "nade"]
    assert [set(cases) for cases in asked] == [{*nade, *MODELS}]
    monkeypatch.setattr(worktrees, "changed_files", lambda *a: ["README.md"])
    done = CliRunner().invoke(perf, ["ab", "v1", "--changed"])
    assert done.exit_code == 0 and "No case is touched by the 1 changed files" in done.output
