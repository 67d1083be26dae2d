"""The demo and its measurements, at a size that runs in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from click.testing import CliRunner, Result

from dgm_fast import ops
from dgm_fast.cli import main
from dgm_fast.models import IWAE
from dgm_fast.train import comparison
from dgm_fast.train import demo as demo_module
from dgm_fast.train.measure import interleaved, peak_bytes, saved_bytes, time_shares

FUSED = ops.active_isa() is not None
SMALL = ["--epochs", "2", "--num-samples", "4", "--hidden-size", "16", "--rounds", "3"]


def demo(out: Path, *more: str) -> Result:
    arguments = ["demo", "--out", str(out), *SMALL, "--eval-samples", "5", *more]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_the_demo_agrees_and_writes_everything(tmp_path):
    result = demo(tmp_path, "--no-compile")
    assert result.exit_code == 0, result.output
    assert "loss curves agree" in result.output
    if not FUSED:
        assert "No fused ops here" in result.output
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {"loss_curves.png", "step_times.png", "summary.json"} <= names
    for run in ("reference", "fused"):
        assert {f"{run}/{name}" for name in ("samples.png", "metrics.jsonl", "best.pt")} <= names
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["loss_curves"]["agree"]
    assert [step["name"] for step in summary["steps"]] == ["reference", "fused"][: 1 + FUSED]
    for step in summary["steps"]:
        times = {name: spread["median"] for name, spread in step["times"].items()}
        assert times["bound"] > 0 and 0 < times["loss and backward"] < times["step"]
        assert step["saved"] > 0 and step["peak"] > 0
        assert sum(step["shares"].values()) == pytest.approx(1)
    nll = [summary["test"][run]["nll_nats"] for run in ("reference", "fused")]
    assert nll[0] == pytest.approx(nll[1], rel=1e-4)
    assert demo(tmp_path, "--no-compile").exit_code == 0  # replaces its own output


def test_the_demo_fails_when_the_curves_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "largest_difference", lambda *arguments: 0.5)
    result = demo(tmp_path, "--no-compile")
    assert result.exit_code == 1
    assert "DO NOT AGREE" in result.output and "5.0e-01" in result.output


def test_the_demo_without_the_extension_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module.ops, "active_isa", lambda: None)
    monkeypatch.setattr(demo_module.ops, "missing", lambda: ["the C++ extension is not built"])
    result = demo(tmp_path, "--no-compile")
    assert result.exit_code == 0
    assert "No fused ops here: the C++ extension is not built" in result.output
    assert "fused against" not in result.output


def test_the_demo_without_a_compiler_goes_on(tmp_path, monkeypatch):
    def fail(function):
        def call(*arguments, **options):
            raise RuntimeError("No working C++ compiler found\nlong explanation")

        return call

    monkeypatch.setattr(comparison.torch, "compile", fail)
    result = demo(tmp_path)
    assert result.exit_code == 0, result.output
    assert "not measured (No working C++ compiler found)" in " ".join(result.output.split())


def test_the_demo_can_be_interrupted(tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "compare_steps", interrupted)
    assert demo(tmp_path).exit_code == 130


@pytest.mark.parametrize(
    ("epoch", "drift", "agree"),
    [(2, 5e-5, True), (2, 2e-4, False), (8, 5e-3, True), (8, 2e-2, False)],
)
def test_early_epochs_must_agree_more_closely_than_later_ones(epoch, drift, agree):
    first = [{"train_loss": 100.0, "valid_nll": 100.0} for _ in range(10)]
    second = [dict(record) for record in first]
    second[epoch]["valid_nll"] *= 1 + drift
    assert demo_module._agreement(first, second)["agree"] is agree


def test_largest_difference_is_relative():
    first = [{"a": 100.0}, {"a": 50.0}]
    second = [{"a": 101.0}, {"a": 50.0}]
    assert comparison.largest_difference(first, second, "a") == pytest.approx(1 / 101)
    with pytest.raises(ValueError, match="shorter"):
        comparison.largest_difference(first, second[:1], "a")


def test_variants_take_turns_to_go_first():
    calls: list[str] = []

    def variant(name: str):
        def run() -> dict[str, float]:
            calls.append(name)
            return {"step": float(len(calls))}

        return run

    spreads = interleaved({n: variant(n) for n in "abc"}, rounds=3, warm_up=1)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert spreads["a"]["step"].median == 8.0  # calls 6, 8 and 10
    assert spreads["a"]["step"].low == 7.0 and spreads["a"]["step"].high == 9.0
    with pytest.raises(ValueError, match="rounds must be at least 2"):
        interleaved({"a": variant("a")}, rounds=1)


def test_saved_bytes_count_each_storage_once():
    layer = torch.nn.Linear(3, 5)
    x = torch.randn(7, 3)

    def loss() -> torch.Tensor:
        h = layer(x)  # saves x (7 x 3) and the weight, a parameter
        return (h.tanh() + h.sigmoid()).sum()  # saves both results (7 x 5)

    assert saved_bytes(loss, layer) == 4 * (7 * 3 + 2 * 7 * 5)


def test_peak_bytes_count_what_lives_at_once():
    def step() -> None:
        a = torch.empty(1 << 18)
        del a
        b = torch.empty(1 << 18)
        c = torch.empty(1 << 17)
        del b, c

    assert peak_bytes(step) == 4 * ((1 << 18) + (1 << 17))


def test_time_shares_sum_to_one():
    a = torch.randn(200, 200)
    shares = time_shares(lambda: torch.mm(a, a).exp(), {"products": ("aten::mm",)})
    assert set(shares) == {"products", "everything else"}
    assert sum(shares.values()) == pytest.approx(1) and shares["products"] > 0


def test_the_comparison_leaves_the_model_alone():
    torch.manual_seed(0)
    model = IWAE(12, 3, hidden_sizes=(8,), likelihood="categorical", num_classes=5, num_samples=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randint(0, 5, (6, 12))
    variants = comparison.compare_steps(
        model, x, lr=0.1, rounds=2, with_compile=False, with_fused=FUSED
    )
    assert all(variant.times for variant in variants)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
