"""Flows of images as trainable kinds: end to end, resume, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from dgm_fast.cli import main
from dgm_fast.train import load_checkpoint

LEVELS = 5
SMALL: dict[str, list[object]] = {
    "glow": ["--num-levels", 1, "--num-steps", 2, "--channels", 8],
    "flowpp": ["--num-mixtures", 2, "--channels", 4, "--num-blocks", 1, "--reversible"],
    "realnvp": ["--num-levels", 2, "--channels", 4, "--num-blocks", 1, "--reversible"],
}
FORMS: dict[str, list[str]] = {
    "levels": [],
    "bits": ["--binarize"],
    "values": ["--likelihood", "gaussian"],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two patterns of 4 by 4 levels, with some of them changed."""
    path = tmp_path / "images.npz"
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, LEVELS, (2, 16))
    arrays = {}
    for split, n in {"train": 60, "valid": 30, "test": 20}.items():
        found = patterns[rng.integers(0, 2, n)]
        changed = rng.integers(0, LEVELS, (n, 16))
        arrays[split] = np.where(rng.random((n, 16)) < 0.2, changed, found)
    np.savez(path, **arrays)
    return path


def train(kind: str, data: Path, out: Path, *more: object) -> Result:
    base = ["train", kind, "--data", data, "--out", out, "--eval-samples", 2, "--batch-size", 20]
    arguments = [str(a) for a in (*base, "--lr", 0.005, *SMALL[kind], *more)]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def history(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("form", FORMS)
def test_end_to_end(images: Path, tmp_path: Path, kind: str, form: str) -> None:
    out = tmp_path / "run"
    result = train(kind, images, out, "--epochs", 4, *FORMS[form])
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "results.json").read_text())
    losses = [record["train_loss"] for record in history(out)]
    # Of bits, the noise of dequantisation is most of a few epochs' losses.
    assert losses[-1] < losses[0] or form == "bits"
    assert (out / "samples.png").stat().st_size > 100
    assert ("negative_elbo_nats" in figures) == (form != "values")
    if form != "values":
        most = math.log2(2 if form == "bits" else LEVELS)
        assert 0 < figures["nll_bits_per_dim"] < 1.2 * most
        assert figures["nll_nats"] <= figures["negative_elbo_nats"]


def test_resume_is_exact(images: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--dequantization", "variational")
    assert train("glow", images, whole, "--epochs", 3, *more).exit_code == 0
    assert train("glow", images, parts, "--epochs", 1, *more).exit_code == 0
    result = train("glow", images, parts, "--epochs", 3, "--resume")
    assert result.exit_code == 0, result.output
    assert history(parts) == history(whole)
    one, other = (load_checkpoint(path / "last.pt")["model"] for path in (whole, parts))
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("glow", ["--data", "moons"], "rows are not images"),
        ("glow", ["--num-levels", "3"], "cannot be halved 3 times"),
        ("realnvp", ["--architecture", "dcgan"], "conv or mlp"),
        ("realnvp", ["--architecture", "conv", "--num-layers", "3"], "architecture mlp"),
        ("realnvp", ["--num-layers", "3", "--hidden-sizes", "8"], "a RealNVP of images only"),
    ],
)
def test_what_does_not_fit_is_refused(
    images: Path, tmp_path: Path, kind: str, more: list[str], message: str
) -> None:
    result = train(kind, images, tmp_path / "run", "--epochs", 1, *more)
    assert result.exit_code == 1 and message in " ".join(result.output.split()), result.output
