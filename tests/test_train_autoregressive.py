"""Autoregressive models as trainable kinds: every kind end to end, text, resume, comparison."""

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
from dgm_fast.data import DataError, Dataset
from dgm_fast.models import LSTMModel
from dgm_fast.train import TrainConfig, load_checkpoint
from dgm_fast.train import session as sessions
from dgm_fast.train.reference_run import compare_with_reference

LEVELS = 4
SMALL = {
    "fvsbn": [],
    "nade": ["--hidden-size", 8],
    "nade-categorical": ["--hidden-size", 8],
    "made": ["--hidden-sizes", "8", "--num-masks", 2, "--order", "random"],
    "rnade": ["--hidden-size", 8, "--num-mixtures", 2, "--mixture", "logistic"],
    "rnn": ["--hidden-size", 8, "--num-layers", 2, "--dropout", 0.1],
    "lstm": ["--hidden-size", 8, "--clip-norm", 1],
    "gpt": ["--width", 8, "--num-layers", 1, "--num-heads", 2, "--schedule", "cosine"],
}


def rows(n: int, seed: int) -> np.ndarray:
    """Two patterns of 9 levels each, with some of them changed."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(0).integers(0, LEVELS, (2, 9))
    found = patterns[rng.integers(0, 2, n)]
    return np.where(rng.random((n, 9)) < 0.1, rng.integers(0, LEVELS, (n, 9)), found)


@pytest.fixture
def levels(tmp_path: Path) -> Path:
    path = tmp_path / "levels.npz"
    sizes = {"train": 60, "valid": 30, "test": 20}
    arrays = {s: rows(n, i).astype(np.uint8) for i, (s, n) in enumerate(sizes.items())}
    np.savez(path, **arrays)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat.\n" * 40)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def train(kind: str, data: Path, out: Path, *more: object) -> Result:
    base = ("--data", data, "--out", out, "--batch-size", 20, "--eval-samples", 5, "--lr", 0.02)
    return run("train", kind, *base, *SMALL[kind], *more)


def history(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("binary", [False, True])
def test_end_to_end(levels, tmp_path, kind, binary) -> None:
    if (kind != "made" and binary == (kind == "nade-categorical")) or (
        not binary and kind in ("fvsbn", "nade")
    ):
        pytest.skip("not the data of this kind")
    out, highest = tmp_path / "run", LEVELS
    more = ["--num-classes", LEVELS]
    if binary:
        more, highest = [*more, "--binarize"], 2
    result = train(kind, levels, out, "--epochs", 3, *more)
    assert result.exit_code == 0, result.output
    records = history(out)
    assert records[2]["train_loss"] < records[0]["train_loss"]
    results = json.loads((out / "results.json").read_text())
    nats = results["nll_nats"]
    assert nats > 0 and results["nll_bits_per_dim"] == pytest.approx(nats / (9 * math.log(2)))
    # At worst a little above independent uniform levels.
    assert nats < 9 * math.log(highest) + (4 if kind == "rnade" else 1)
    assert ("negative_elbo_nats" in results) == (kind == "rnade")
    assert (out / "samples.png").exists() and not (out / "samples.txt").exists()


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gpt"])
def test_text(text, tmp_path, kind) -> None:
    out = tmp_path / "run"
    result = train(kind, text, out, "--epochs", 2, "--context-length", 12)
    assert result.exit_code == 0, result.output
    assert "960 characters, 12 of them distinct, in windows of 12" in result.output
    assert "bits/character" in result.output and "--- sample 1" in result.output
    samples = (out / "samples.txt").read_text()
    assert samples.startswith("--- sample 1\n") and samples.count("--- sample") == 4
    assert len(samples) == 4 * (400 + len("--- sample 1\n\n"))
    assert set(samples) <= set("the cat sat on the mat.\n--- sample 1234")
    results = json.loads((out / "results.json").read_text())
    assert results["nll_bits_per_dim"] < math.log2(12)
    # The checkpoint alone says what the tokens are.
    state = load_checkpoint(out / "best.pt")["model"]
    assert "".join(map(chr, state["code_points"].tolist())) == "\n .acehmnost"
    if kind == "lstm":
        model = LSTMModel(12, 8, vocabulary="\n .acehmnost"[::-1])
        model.load_state_dict(state)
        assert model.vocabulary == "\n .acehmnost"
    again = run("train", kind, "--out", out, "--resume", "--context-length", 13)
    assert again.exit_code == 1 and "--context-length is 12, not 13" in again.output


def test_several_masks_resume_exactly(levels, tmp_path) -> None:
    more = ("--binarize", "--num-classes", LEVELS)
    for name, epochs in (("whole", 4), ("parts", 1)):
        result = train("made", levels, tmp_path / name, "--epochs", epochs, *more)
        assert result.exit_code == 0, result.output
    # Three batches an epoch and two masks: the second epoch starts with the other mask.
    assert load_checkpoint(tmp_path / "parts/last.pt")["model"]["next_mask"] == 1
    out = tmp_path / "parts"
    assert run("train", "made", "--out", out, "--resume", "--epochs", 4).exit_code == 0
    assert history(out) == history(tmp_path / "whole")
    names = ("samples.png", "results.json")
    assert all((out / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)


def test_text_resumes_exactly_and_on_its_own_data_only(text, tmp_path) -> None:
    for name, epochs in (("whole", 3), ("parts", 1)):
        result = train("rnn", text, tmp_path / name, "--epochs", epochs, "--context-length", 12)
        assert result.exit_code == 0, result.output
    out = tmp_path / "parts"
    result = run("train", "rnn", "--out", out, "--resume", "--epochs", 3)
    assert result.exit_code == 0, result.output
    assert history(out) == history(tmp_path / "whole")
    assert (out / "samples.txt").read_bytes() == (tmp_path / "whole/samples.txt").read_bytes()
    # The same indices of other characters.
    text.write_text(text.read_text().replace("t", "u"))
    result = run("train", "rnn", "--out", out, "--resume", "--epochs", 4)
    assert result.exit_code == 1 and "are not those the run began with" in result.output


@pytest.mark.parametrize("kind", ["nade", "rnade"])
def test_the_reference_gives_the_same_curve(levels, tmp_path, kind) -> None:
    out = tmp_path / "run"
    more = ("--epochs", 3, "--binarize", "--num-classes", LEVELS, "--compare-reference")
    result = train(kind, levels, out, *more)
    assert result.exit_code == 0, result.output
    assert "the same 3 epochs with backend reference" in result.output
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["epochs"] == comparison["early_epochs"] == 3
    for values in comparison["largest_relative_difference"].values():
        assert values["early"] <= values["all"] < 1e-4
    assert set(comparison["largest_relative_difference"]) == {"train_loss", "valid_nll"}
    # The run itself is as without the comparison.
    assert train(kind, levels, tmp_path / "alone", *more[:-1]).exit_code == 0
    assert history(out) == history(tmp_path / "alone")


def test_a_run_that_ended_early_is_compared_over_its_epochs() -> None:
    data = Dataset(
        "levels",
        *(torch.from_numpy(rows(30, seed) > 1).to(torch.uint8) for seed in range(3)),
        likelihood="bernoulli",
    )
    # The schedule depends on the epochs that were asked for.
    config = TrainConfig("fvsbn", {}, epochs=8, lr=0.02, schedule="cosine", batch_size=10)
    session = sessions.build(config, dataset=data)
    session.trainer.max_epochs = 6
    session.trainer.fit()
    comparison = compare_with_reference(session)
    assert (comparison["epochs"], comparison["early_epochs"]) == (6, 5)
    assert comparison["largest_relative_difference"]["train_loss"]["all"] < 1e-4


def test_rnade_on_real_values_is_a_density_in_their_units(tmp_path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)) * [1, 50] + 1000
    x[:, 1] += 80 * np.sign(x[:, 0] - 1000)
    splits = dict(
        zip(("train", "valid", "test"), np.split(x.astype(np.float32), [200, 250]), strict=True)
    )
    np.savez(tmp_path / "a.npz", **splits)
    out = tmp_path / "run"
    more = (
        "--likelihood",
        "gaussian",
        "--epochs",
        20,
        "--hidden-size",
        16,
        "--mixture",
        "gaussian",
    )
    result = train("rnade", tmp_path / "a.npz", out, *more)
    assert result.exit_code == 0, result.output
    assert "importance samples" not in result.output
    results = json.loads((out / "results.json").read_text())
    gaussian = torch.distributions.MultivariateNormal(
        torch.from_numpy(splits["train"].mean(0)),
        torch.from_numpy(np.cov(splits["train"].T)).float(),
    )
    assert results["nll_nats"] < -gaussian.log_prob(torch.from_numpy(splits["test"])).mean()


def test_gradients_are_clipped_over_all_parameters() -> None:
    model = torch.nn.Linear(3, 1)
    step = sessions.LossStep(
        lambda x: 1e3 * model(x).sum(), torch.optim.SGD(model.parameters(), lr=1.0), None, 0.5
    )
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
    step(torch.ones(2, 3))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fvsbn"], 1, "fvsbn needs binary rows, got 17 grey levels"),
        (["nade", "--likelihood", "gaussian"], 1, "nade needs binary rows"),
        (["nade-categorical", "--binarize"], 1, "needs classes or grey levels"),
        (["rnade", "--likelihood", "gaussian"], 1, "dimensions have one value in all training"),
        (["made", "--likelihood", "gaussian"], 1, "dimensions have one value in all training"),
        (["nade", "--order", "random"], 2, "--order does not apply to nade"),
        (["made", "--num-masks", "0"], 2, "--num-masks"),
        (["gpt", "--likelihood", "gaussian"], 1, "gpt models characters, classes"),
        (["gpt", "--num-heads", "3"], 1, "width must be a multiple of num_heads = 3"),
        (["gpt", "--hidden-size", "3"], 2, "--hidden-size does not apply to gpt"),
        (["nade", "--num-layers", "3"], 2, "--num-layers does not apply to nade"),
        (["rnn", "--dropout", "1"], 2, "--dropout"),
        (["lstm", "--clip-norm", "0"], 1, "clip_norm must be positive"),
        (["gmm", "--clip-norm", "1"], 2, "--clip-norm does not apply to --fit em"),
        (["lstm", "--context-length", "9"], 1, "context_length describes a text file"),
        (["lstm", "--data", "none.txt"], 1, "none.txt: no such file"),
    ],
)
def test_bad_arguments(tmp_path, arguments, code, message) -> None:
    result = run("train", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_probabilities_are_no_data_of_discrete_models() -> None:
    data = Dataset("grey", *(torch.full((4, 9), 0.5) for _ in range(3)), likelihood="bernoulli")
    for kind in ("fvsbn", "nade", "rnade", "made", "gpt"):
        with pytest.raises(DataError, match=f"train holds probabilities; {kind} needs binary rows"):
            sessions.build(TrainConfig(kind, {}), dataset=data)
