"""Pixel models as trainable kinds: grey, bits, RGB, labels, pictures, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from dgm_fast.cli import main

SMALL = {
    "pixelcnn": ["--channels", 6, "--num-layers", 1, "--dropout", 0.1],
    "gated-pixelcnn": ["--channels", 6, "--num-layers", 2, "--dropout", 0.1],
    "pixelcnn-pp": ["--channels", 4, "--num-blocks", 1, "--num-mixtures", 2, "--dropout", 0.1],
    "pixelrnn": ["--channels", 6, "--num-layers", 1, "--recurrence", "diagonal"],
}


def train(kind: str, data: Path | str, out: Path, *more: object) -> Result:
    arguments = ["train", kind, "--data", data, "--out", out, "--batch-size", 20, "--lr", 0.01]
    arguments += [*SMALL[kind], *more]
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def history(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def images(n: int, levels: int, seed: int) -> np.ndarray:
    """Two patterns of 9 levels each, with some of them changed."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(0).integers(0, levels, (2, 9))
    found = patterns[rng.integers(0, 2, n)]
    return np.where(rng.random((n, 9)) < 0.1, rng.integers(0, levels, (n, 9)), found)


def write_rows(path: Path, levels: int) -> Path:
    sizes = {"train": 60, "valid": 30, "test": 20}
    rows = {s: images(n, levels, i).astype(np.uint8) for i, (s, n) in enumerate(sizes.items())}
    np.savez(path, **rows)
    return path


@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("kind", SMALL)
def test_end_to_end(tmp_path: Path, kind: str, levels: int) -> None:
    data = write_rows(tmp_path / "rows.npz", levels)
    out = tmp_path / "out"
    result = train(kind, data, out, "--epochs", 12, "--num-dims", 9, "--lr", 0.03)
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "results.json").read_text())
    assert figures["nll_nats"] < 9 * np.log(levels)
    losses = [record["train_loss"] for record in history(out)]
    assert losses[-1] < losses[0]
    assert (out / "samples.png").exists()
    assert len(list(out.glob("samples-epoch-*.png"))) == 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """RGB images of two classes, red and blue."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 80, (4, 4, 3)).astype(np.uint8)
            pixels[:, :, channel] += 150
            image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("kind", SMALL)
def test_colour_images_and_labels(folder: Path, tmp_path: Path, kind: str) -> None:
    size = ("--image-size", 4, "--epochs", 2)
    refused = train(kind, folder, tmp_path / "real", *size)
    assert refused.exit_code == 1 and "--likelihood categorical" in refused.output
    out = tmp_path / "out"
    more = (*size, "--likelihood", "categorical", "--class-conditional")
    result = train(kind, folder, out, *more)
    assert result.exit_code == 0, result.output
    assert (out / "samples-epoch-00002.png").exists()
    assert json.loads((out / "results.json").read_text())["nll_nats"] > 0


def test_resume_is_exact_with_labels(folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--image-size", 4, "--likelihood", "categorical", "--class-conditional")
    kind = "gated-pixelcnn"
    assert train(kind, folder, whole, *options, "--epochs", 4).exit_code == 0
    assert train(kind, folder, parts, *options, "--epochs", 2).exit_code == 0
    result = train(kind, folder, parts, "--epochs", 4, "--resume")
    assert result.exit_code == 0, result.output
    assert history(parts) == history(whole)


def test_rows_without_labels_or_images_are_refused(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.npz", 4)
    result = train("pixelcnn", data, tmp_path / "a", "--class-conditional", "--num-classes", 4)
    assert result.exit_code == 1 and "has no labels" in result.output
    result = train("pixelcnn", "moons", tmp_path / "b")
    assert result.exit_code == 1 and "are not images" in result.output
