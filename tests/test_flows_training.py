"""Flows in training: a known entropy is approached; as trainable kinds on points, levels, bits, arrays."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from dgm_fast.cli import main
from dgm_fast.data import SineChain
from dgm_fast.models import NSF
from dgm_fast.train import load_checkpoint

LEVELS = 4
SMALL = {
    "realnvp": ["--num-layers", 4, "--hidden-sizes", "16"],
    "nsf": ["--num-layers", 2, "--hidden-size", 16, "--num-blocks", 1, "--num-bins", 4],
    "maf": ["--num-layers", 2, "--hidden-sizes", "16,16"],
    "iaf": ["--num-layers", 2, "--hidden-sizes", "16,16"],
}


def test_known_entropy_is_that_of_the_density() -> None:
    density = SineChain(2)
    axis = torch.linspace(-7, 7, 1001, dtype=torch.float64)
    log_prob = density.log_prob(torch.cartesian_prod(axis, axis))
    cell = (axis[1] - axis[0]) ** 2
    assert (log_prob.exp().sum() * cell).item() == pytest.approx(1, abs=1e-6)
    entropy = -(log_prob.exp() * log_prob).sum() * cell
    assert entropy.item() == pytest.approx(density.entropy, abs=1e-5)
    wide = SineChain(21)
    x = wide.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert -wide.log_prob(x).mean().item() == pytest.approx(wide.entropy, abs=0.1)
    assert sorted(wide.order.tolist()) == list(range(21)) != wide.order.tolist()


def test_training_approaches_a_known_entropy() -> None:
    torch.manual_seed(0)
    density = SineChain(6)
    test = density.sample(4000)
    model = NSF(6, num_layers=4, hidden_size=64)
    model.standardize(density.sample(4000))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    with torch.no_grad():
        before = model.nll(test).mean().item()
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(density.sample(256)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        gap = (model.nll(test) + density.log_prob(test)).double()
    divergence, error = gap.mean().item(), gap.std().item() / math.sqrt(len(gap))
    # Independent Gaussians start 3.7 nats above; no density is below but by chance.
    assert before - density.entropy > 3
    assert -3 * error < divergence < 0.25


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def train(kind: str, data: object, out: Path, *more: object) -> Result:
    base = ("--data", data, "--out", out, "--eval-samples", 5, "--lr", 0.01)
    return run("train", kind, *base, *SMALL[kind], *more)


def history(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def levels(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, LEVELS, (2, 9))
    rows = {
        s: patterns[rng.integers(0, 2, n)] for s, n in (("train", 60), ("valid", 30), ("test", 20))
    }
    noisy = {
        s: np.where(rng.random(x.shape) < 0.1, rng.integers(0, LEVELS, x.shape), x)
        for s, x in rows.items()
    }
    return save(tmp_path / "levels.npz", {s: x.astype(np.uint8) for s, x in noisy.items()})


@pytest.fixture
def crescent(tmp_path: Path) -> Path:
    """Points on a noisy parabola, in units far from 1."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 1))
    rows = np.concatenate([100 * x + 7, 1e-3 * (x**2 + 0.2 * rng.normal(size=x.shape))], 1)
    parts = np.split(rows.astype(np.float32), [600, 750])
    return save(
        tmp_path / "crescent.npz", dict(zip(("train", "valid", "test"), parts, strict=True))
    )


@pytest.mark.parametrize("kind", SMALL)
def test_real_values_beat_a_gaussian_and_are_plotted(crescent, tmp_path, kind) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    more = ("--likelihood", "gaussian", "--epochs", 8, "--batch-size", 50)
    result = train(kind, crescent, out, *more)
    assert result.exit_code == 0, result.output
    assert "importance samples" not in result.output
    results = json.loads((out / "results.json").read_text())
    arrays = np.load(crescent)
    gaussian = torch.distributions.MultivariateNormal(
        torch.from_numpy(arrays["train"].mean(0)).double(),
        torch.from_numpy(np.cov(arrays["train"].T)),
    )
    line = -gaussian.log_prob(torch.from_numpy(arrays["test"]).double()).mean().item()
    assert results["nll_nats"] < line - 0.3
    assert (out / "samples.png").stat().st_size > 10_000
    # The units of the data travel with the weights.
    state = load_checkpoint(out / "best.pt")["model"]
    location = next(v for k, v in state.items() if k.endswith("location"))
    np.testing.assert_allclose(location, arrays["train"].mean(0), rtol=1e-4)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("binary", [False, True])
def test_levels_are_dequantised(levels, tmp_path, kind, binary) -> None:
    out = tmp_path / "run"
    more = ["--epochs", 3, "--batch-size", 20, "--num-classes", LEVELS]
    more += ["--binarize"] if binary else []
    result = train(kind, levels, out, *more)
    assert result.exit_code == 0, result.output
    records = history(out)
    assert records[2]["train_loss"] < records[0]["train_loss"]
    results = json.loads((out / "results.json").read_text())
    assert results["nll_nats"] <= results["negative_elbo_nats"]
    assert results["nll_nats"] < 9 * math.log(2 if binary else LEVELS) + 4
    assert (out / "samples.png").exists()


def test_autoregressive_splines(crescent, tmp_path) -> None:
    out = tmp_path / "run"
    more = ("--likelihood", "gaussian", "--epochs", 2, "--flow-kind", "autoregressive")
    result = train("nsf", crescent, out, *more, "--tail-bound", 4)
    assert result.exit_code == 0, result.output
    config = json.loads((out / "config.json").read_text())
    # What a flow trains with unless told otherwise.
    assert (config["lr"], config["clip_norm"]) == (0.01, 5.0)
    assert config["model"]["flow_kind"] == "autoregressive" and config["model"]["tail_bound"] == 4
    records = history(out)
    assert records[1]["train_loss"] < records[0]["train_loss"]
    again = run("train", "nsf", "--out", out, "--resume", "--num-bins", 5)
    assert again.exit_code == 1 and "--num-bins is 4, not 5" in again.output


@pytest.mark.parametrize("kind", ["realnvp", "nsf"])
def test_the_reference_gives_the_same_curve(crescent, tmp_path, kind) -> None:
    out = tmp_path / "run"
    more = ("--likelihood", "gaussian", "--epochs", 2, "--compare-reference")
    result = train(kind, crescent, out, *more)
    assert result.exit_code == 0, result.output
    comparison = json.loads((out / "comparison.json").read_text())
    for values in comparison["largest_relative_difference"].values():
        assert values["all"] < 1e-3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nsf", "--likelihood", "gaussian"], 1, "dimensions have one value in all training"),
        (["maf", "--num-bins", "4"], 2, "--num-bins does not apply to maf"),
        (["nsf", "--hidden-sizes", "4"], 2, "--hidden-sizes does not apply to nsf"),
        (["nsf", "--flow-kind", "affine"], 2, "--flow-kind"),
        (["nsf", "--tail-bound", "0"], 2, "--tail-bound"),
        (
            ["nsf", "--flow-kind", "autoregressive", "--dropout", "0.1"],
            1,
            "dropout is for the coupling kind",
        ),
    ],
)
def test_bad_arguments(tmp_path, arguments, code, message) -> None:
    result = run("train", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()
