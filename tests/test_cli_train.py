"""The command line: training end to end, refusals, interruption and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from dgm_fast.cli import COMMANDS, main
from dgm_fast.train import ModelKind, command, get_kind, kind_names, load_checkpoint, session
from dgm_fast.train.options import Option, declare, declared

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--latent-dim", "3", "--hidden-sizes", "8", "--batch-size", "20", "--eval-samples", "5"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    shapes = rng.random((2, 16)) < 0.5
    bits = {}
    for split, n in (("train", 60), ("valid", 30), ("test", 20)):
        flips = rng.random((n, 16)) < 0.05
        bits[split] = shapes[rng.integers(0, 2, n)] ^ flips
    path = tmp_path / "small.npz"
    np.savez(path, **{s: np.packbits(b, axis=1) for s, b in bits.items()})
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def train(data: Path, out: Path, *more: object, kind: str = "iwae") -> Result:
    return run("train", kind, "--data", data, "--out", out, *SMALL, *more)


def history(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("vae", ["--schedule", "cosine", "--threads", "1"]),
        ("beta-vae", ["--beta", "2"]),
        ("iwae", ["--num-samples", "3", "--estimator", "dreg", "--seed", "4"]),
        ("iwae", ["--fused-head", "--num-samples", "2"]),
        ("gmvae", ["--num-components", "4", "--num-samples", "5", "--learn-weights"]),
        ("gmvae", ["--num-components", "4", "--num-samples", "3", "--fused-head"]),
    ],
)
def test_end_to_end(data, tmp_path, kind, more):
    out = tmp_path / "run"
    result = train(data, out, "--epochs", 2, "--lr", 0.02, *more, kind=kind)
    assert result.exit_code == 0, result.output
    assert "packed rows, 2 bytes -> 16 bits; 60/30/20" in result.output
    assert "importance samples" in result.output and "bits/dim" in result.output
    records = history(out)
    assert [r["epoch"] for r in records] == [1, 2]
    assert records[1]["train_loss"] < records[0]["train_loss"]
    results = json.loads((out / "results.json").read_text())
    assert 0 < results["nll_nats"] < 20 and results["rows"] == 20
    bits = results["nll_nats"] / (16 * np.log(2))
    assert results["nll_bits_per_dim"] == pytest.approx(bits)
    assert results["nll_standard_error_nats"] > 0
    config = json.loads((out / "config.json").read_text())
    assert config["kind"] == kind and config["data"]["source"] == str(data)
    # 8 columns of 4x4 images enlarged 7 times, with gaps of 2.
    assert png_size(out / "samples.png") == (8 * 30 + 2, 8 * 30 + 2)
    assert png_size(out / "reconstructions.png")[0] == 8 * 30 + 2
    assert load_checkpoint(out / "best.pt")["epoch"] in (1, 2)


def train_gmm(data: Path, out: Path, *more: object) -> Result:
    arguments = ("--data", data, "--out", out, "--num-components", 2, "--eval-samples", 50)
    return run("train", "gmm", *arguments, *more)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--covariance", "full"],
        ["--fit", "gradient", "--lr", "0.02", "--batch-size", "20"],
        ["--fit", "gradient", "--covariance", "full", "--lr", "0.02", "--schedule", "cosine"],
    ],
)
def test_mixtures_end_to_end(data, tmp_path, more):
    out = tmp_path / "run"
    result = train_gmm(data, out, "--epochs", 5, *more)
    assert result.exit_code == 0, result.output
    assert "50 importance samples" in result.output and "-ELBO" in result.output
    records = history(out)
    assert [r["epoch"] for r in records] == [1, 2, 3, 4, 5]
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert [r["step"] for r in records] == [n * (3 if "20" in more else 1) for n in range(1, 6)]
    results = json.loads((out / "results.json").read_text())
    # Below 16 independent fair bits, and bounded by the bound.
    assert 0 < results["nll_nats"] < results["negative_elbo_nats"] < 16 * np.log(2)
    assert results["nll_bits_per_dim"] == pytest.approx(results["nll_nats"] / (16 * np.log(2)))
    assert png_size(out / "samples.png") == (8 * 30 + 2, 8 * 30 + 2)
    assert not (out / "reconstructions.png").exists()


def test_mixtures_of_real_values_have_a_density(tmp_path):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(300, 3)) * [1, 2, 3] + 5).astype(np.float32)
    np.savez(tmp_path / "a.npz", train=rows[:200], valid=rows[200:250], test=rows[250:])
    out = tmp_path / "run"
    result = train_gmm(tmp_path / "a.npz", out, "--likelihood", "gaussian", "--num-components", 1)
    assert result.exit_code == 0, result.output
    assert "importance samples" not in result.output
    results = json.loads((out / "results.json").read_text())
    fitted = rows[:200]
    variance = fitted.var(0)
    terms = np.log(2 * np.pi * variance) + (rows[250:] - fitted.mean(0)) ** 2 / variance
    assert results["nll_nats"] == pytest.approx(0.5 * terms.sum(1).mean(), rel=1e-4)
    assert "negative_elbo_nats" not in results


@pytest.mark.parametrize("fit", ["em", "gradient"])
def test_mixtures_resume_exactly(data, tmp_path, fit):
    assert train_gmm(data, tmp_path / "whole", "--epochs", 6, "--fit", fit).exit_code == 0
    out = tmp_path / "parts"
    assert train_gmm(data, out, "--epochs", 2, "--fit", fit).exit_code == 0
    result = run("train", "gmm", "--out", out, "--resume", "--epochs", 6)
    assert result.exit_code == 0, result.output
    assert "resumed from epoch 2, step 0" in result.output
    assert history(out) == history(tmp_path / "whole")
    parts, whole = (json.loads((d / "results.json").read_text()) for d in (out, tmp_path / "whole"))
    assert parts == whole
    other = run("train", "gmm", "--out", out, "--resume", "--covariance", "full")
    assert other.exit_code == 1 and "--covariance is diagonal, not full" in other.output


def test_mixtures_stop_early_and_keep_the_best_epoch(data, tmp_path):
    out = tmp_path / "run"
    options = ("--num-components", 30, "--patience", 3, "--covariance", "full")
    result = train_gmm(data, out, *options)
    assert result.exit_code == 0, result.output
    figures = [r["valid_nll"] for r in history(out)]
    best = figures.index(min(figures)) + 1
    assert len(figures) == best + 3
    assert f"trained {len(figures)} epochs" in result.output
    assert load_checkpoint(out / "best.pt")["epoch"] == best


def test_a_fused_head_trains_to_the_same_figures(data, tmp_path):
    for name, more in (("plain", []), ("fused", ["--fused-head"])):
        assert train(data, tmp_path / name, "--epochs", 3, *more).exit_code == 0
    plain, fused = (history(tmp_path / name) for name in ("plain", "fused"))
    for a, b in zip(plain, fused, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["valid_nll"] == pytest.approx(a["valid_nll"], rel=1e-5)
    config = json.loads((tmp_path / "fused" / "config.json").read_text())
    assert config["model"]["fused_head"] is True
    result = run("train", "iwae", "--out", tmp_path / "plain", "--resume", "--fused-head")
    assert result.exit_code == 1 and "--fused-head is False, not True" in result.output


def test_runs_from_before_an_option_existed_go_on(data, tmp_path):
    out = tmp_path / "run"
    assert train(data, out, "--epochs", 1).exit_code == 0
    config = json.loads((out / "config.json").read_text())
    del config["model"]["fused_head"]
    (out / "config.json").write_text(json.dumps(config))
    result = run("train", "iwae", "--out", out, "--resume", "--epochs", 2)
    assert result.exit_code == 0, result.output


def test_digits_are_the_default_and_training_helps(tmp_path):
    out = tmp_path / "run"
    pytest.importorskip("sklearn")
    result = run(
        *("train", "vae", "--out", out, "--epochs", 2, "--hidden-sizes", "32", "--lr", "0.01"),
        *("--latent-dim", 4, "--eval-samples", 5),
    )
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    assert results["nll_nats"] < 110  # uniform: 181.3
    assert history(out)[1]["valid_nll"] < history(out)[0]["valid_nll"]


def test_binarize_alone_means_threshold(tmp_path):
    pytest.importorskip("sklearn")
    out = tmp_path / "run"
    result = run("train", "vae", "--binarize", "--out", out, "--epochs", 1, *SMALL)
    assert result.exit_code == 0, result.output
    assert "binarized (threshold)" in result.output and "bernoulli likelihood" in result.output


def test_rows_that_are_no_images_get_no_grids(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 5)).astype(np.float32)
    np.savez(tmp_path / "a.npz", train=rows, valid=rows, test=rows)
    out = tmp_path / "run"
    result = train(tmp_path / "a.npz", out, "--likelihood", "gaussian", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert (out / "results.json").exists() and not (out / "samples.png").exists()
    config = json.loads((out / "config.json").read_text())
    assert config["model"]["decoder_variance"] is None


def test_a_used_directory_is_refused_and_kept(data, tmp_path):
    out = tmp_path / "run"
    assert train(data, out, "--epochs", 1).exit_code == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    result = train(data, out, "--epochs", 1, "--seed", 1)
    assert result.exit_code == 1
    assert "already holds a run" in result.output and "--overwrite" in result.output
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert train(data, out, "--epochs", 1, "--seed", 1, "--overwrite").exit_code == 0
    assert json.loads((out / "config.json").read_text())["seed"] == 1


def test_a_longer_run_by_resume_equals_one_in_a_piece(data, tmp_path):
    assert train(data, tmp_path / "whole", "--epochs", 4).exit_code == 0
    assert train(data, tmp_path / "parts", "--epochs", 2).exit_code == 0
    out = tmp_path / "parts"
    result = run("train", "iwae", "--out", out, "--resume", "--epochs", 4)
    assert result.exit_code == 0, result.output
    assert "resumed from epoch 2, step 0" in result.output
    assert history(out) == history(tmp_path / "whole")
    parts, whole = (json.loads((d / "results.json").read_text()) for d in (out, tmp_path / "whole"))
    assert parts == whole


def test_resume_of_a_finished_run_evaluates_again(data, tmp_path):
    out = tmp_path / "run"
    train(data, out, "--epochs", 1)
    (out / "results.json").unlink()
    assert run("train", "iwae", "--out", out, "--resume").exit_code == 0
    assert (out / "results.json").exists()


def test_resume_refuses_options_that_make_it_another_run(data, tmp_path):
    out = tmp_path / "run"
    train(data, out, "--epochs", 1, "--schedule", "cosine")
    refusals = {
        ("--latent-dim", "9"): "--latent-dim is 3, not 9",
        ("--lr", "0.5"): "--lr is 0.001, not 0.5",
        ("--likelihood", "gaussian"): "--likelihood is None, not gaussian",
        ("--epochs", "7"): "--epochs is 1 and decides the cosine schedule",
    }
    for option, message in refusals.items():
        result = run("train", "iwae", "--out", out, "--resume", *option)
        assert result.exit_code == 1 and message in result.output
    result = run("train", "vae", "--out", out, "--resume")
    assert result.exit_code == 1 and "kind is iwae, not vae" in result.output
    # Repeating the options of the run is no conflict.
    assert train(data, out, "--epochs", 1, "--schedule", "cosine", "--resume").exit_code == 0


def test_resume_where_there_is_no_run(tmp_path):
    result = run("train", "iwae", "--out", tmp_path, "--resume")
    assert result.exit_code == 1 and "holds no run to resume" in result.output


def test_resume_with_changed_data(data, tmp_path):
    out = tmp_path / "run"
    train(data, out, "--epochs", 1)
    arrays = {name: 255 - a for name, a in np.load(data).items()}
    np.savez(data, **arrays)
    result = run("train", "iwae", "--out", out, "--resume")
    assert result.exit_code == 1 and "are not those the run began with" in result.output


def test_corrupt_checkpoint(data, tmp_path):
    out = tmp_path / "run"
    train(data, out, "--epochs", 2)
    content = (out / "last.pt").read_bytes()
    (out / "last.pt").write_bytes(content[: len(content) // 2])
    result = run("train", "iwae", "--out", out, "--resume", "--epochs", 3)
    assert result.exit_code == 1
    assert "truncated" in result.output and "--resume-from best" in result.output
    assert (out / "last.pt").read_bytes() == content[: len(content) // 2]
    more = ("--resume", "--resume-from", "best", "--epochs", 3)
    assert run("train", "iwae", "--out", out, *more).exit_code == 0
    assert [r["epoch"] for r in history(out)] == [1, 2, 3]


def test_corrupt_config(data, tmp_path):
    out = tmp_path / "run"
    train(data, out, "--epochs", 1)
    config = json.loads((out / "config.json").read_text())
    for change, message in (
        ({"format": 99}, "format 99; this version reads 1"),
        ({"speed": 1}, "unknown field speed"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ):
        (out / "config.json").write_text(json.dumps({**config, **change}))
        result = run("train", "iwae", "--out", out, "--resume")
        assert result.exit_code == 1 and message in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["iwae", "--beta", "2"], 2, "--beta does not apply to iwae"),
        (["vae", "--num-samples", "2"], 2, "--num-samples does not apply to vae"),
        (["iwae", "--num-samples", "0"], 2, "--num-samples"),
        (["iwae", "--estimator", "reinforce"], 2, "--estimator"),
        (["iwae", "--hidden-sizes", "20,x"], 2, "is not a list of positive whole numbers"),
        (["iwae", "--hidden-sizes", "0"], 2, "is not a list of positive whole numbers"),
        (["flow"], 2, "'flow' is not one of"),
        (["iwae", "--resume", "--overwrite"], 2, "exclude each other"),
        (["iwae", "--resume-from", "best"], 2, "--resume-from goes with --resume"),
        (["iwae", "--lr", "0"], 1, "lr must be positive"),
        (["iwae", "--data", "cifar"], 1, "unknown data set 'cifar'"),
        (["iwae", "--data", "none.npz"], 1, "none.npz: no such file"),
        (["iwae", "--device", "abacus"], 1, "device 'abacus' cannot be used here"),
        (["vae", "--likelihood", "bernoulli"], 1, "bernoulli likelihood with binarization"),
        (["gmm", "--fused-head"], 2, "--fused-head does not apply to gmm"),
        (["gmm", "--hidden-sizes", "9"], 2, "--hidden-sizes does not apply to gmm"),
        (["gmvae", "--fit", "em"], 2, "--fit does not apply to gmvae"),
        (["vae", "--num-components", "3"], 2, "--num-components does not apply to vae"),
        (["iwae", "--learn-weights"], 2, "--learn-weights does not apply to iwae"),
        (["gmm", "--covariance", "tied"], 2, "--covariance"),
        (["gmm", "--num-components", "0"], 2, "--num-components"),
        (["gmm", "--lr", "0.1"], 2, "--lr does not apply to --fit em"),
        (["gmm", "--fit", "em", "--batch-size", "9"], 2, "--batch-size does not apply to --fit em"),
        (["gmm", "--num-components", "1001"], 1, "1001 components (--num-components) need as many"),
        (["gmm", "--likelihood", "gaussian"], 1, "64 dimensions have one value in all training"),
        (
            ["vae", "--fused-head", "--likelihood", "gaussian"],
            1,
            "vae: fused_head=True is for the Bernoulli and the categorical likelihood",
        ),
        (["vae", "--decoder-variance", "full"], 1, "vae: decoder_variance='full' is for the"),
    ],
)
def test_bad_arguments(tmp_path, arguments, code, message):
    result = run("train", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_a_truncated_data_file_is_named(data, tmp_path):
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    result = train(data, tmp_path / "run")
    assert result.exit_code == 1
    assert f"{data}: corrupt or truncated" in result.output


def test_divergence_is_an_error(data, tmp_path):
    result = train(data, tmp_path / "run", "--epochs", 3, "--lr", "1e30")
    assert result.exit_code == 1 and "lower learning rate" in " ".join(result.output.split())


def test_keyboard_interrupt_saves_and_says_how_to_resume(data, tmp_path, monkeypatch):
    out = tmp_path / "a run"  # the space must be quoted in the command
    assert train(data, tmp_path / "whole", "--epochs", 3).exit_code == 0
    inner = session.Trainer.__init__

    def interrupting(self, *arguments, **options):
        def hook(trainer):
            if trainer.global_step == 4:
                raise KeyboardInterrupt

        inner(self, *arguments, **{**options, "on_step": hook})

    monkeypatch.setattr(session.Trainer, "__init__", interrupting)
    result = train(data, out, "--epochs", 3)
    assert result.exit_code == 130
    assert "interrupted at epoch 2, step 1 of 3; saved." in result.output
    assert f"dgm-fast train iwae --out '{out}' --resume" in result.output
    monkeypatch.undo()
    assert run("train", "iwae", "--out", out, "--resume").exit_code == 0
    assert history(out) == history(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_saves_and_the_printed_command_resumes(data, tmp_path, number):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "ignore", "-m", "dgm_fast.cli", "train", "vae"),
            *("--data", data, "--out", out, *SMALL, "--epochs", "100000", "--patience", "0"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        limit = time.monotonic() + 60
        while not (out / "last.pt").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < limit, "no checkpoint appeared"
            time.sleep(0.02)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 130, output
    assert f"dgm-fast train vae --out {out} --resume" in output
    state = load_checkpoint(out / "last.pt")
    epochs = state["epoch"]
    result = run("train", "vae", "--out", out, "--resume", "--epochs", epochs + 1)
    assert result.exit_code == 0, result.output
    assert [r["epoch"] for r in history(out)] == list(range(1, epochs + 2))


def test_backend_of_the_environment_is_the_default(data, tmp_path, monkeypatch):
    from dgm_fast import backend, get_backend

    with backend("reference"):
        train(data, tmp_path / "run", "--epochs", 1)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["backend"] == "reference"
    train(data, tmp_path / "other", "--epochs", 1, "--backend", "reference")
    assert get_backend() == os.environ.get("DGM_FAST_BACKEND", "auto")


def test_threads_are_restored(data, tmp_path):
    before = torch.get_num_threads()
    train(data, tmp_path / "run", "--epochs", 1, "--threads", 2)
    assert torch.get_num_threads() == before


def _example(option: Option) -> object:
    """A value that the option takes."""
    if option.type is str:
        return option.choices[-1]
    if option.type is list:
        return [7, 5]
    return {bool: True, int: 3, float: 0.25}[option.type]


def test_every_option_of_a_kind_reaches_its_configuration(monkeypatch):
    configurations = []
    monkeypatch.setattr(command, "_run", lambda config, *_: configurations.append(config))
    options = {option.name: option for option in declared()}
    for kind in kind_names():
        wanted = {name: _example(options[name]) for name in get_kind(kind).options}
        arguments = []
        for name, value in wanted.items():
            arguments.append(options[name].flag)
            if value is not True:
                arguments.append(",".join(map(str, value)) if isinstance(value, list) else value)
        # EM refuses what gradients take, but not the options of the kind.
        result = run("train", kind, *arguments)
        assert result.exit_code == 0, result.output
        assert configurations[-1].model == wanted


def test_the_help_names_the_kinds_of_an_option_and_their_defaults():
    text = " ".join(run("train", "--help").output.split())
    assert "Posterior samples K. [iwae 5; gmvae 1]" in text
    assert "Bound of the weights. [wgan 0.01]" in text
    assert "realnvp 100,100" in text
    assert "[1000; glow, flowpp 20]" in text


def test_options_are_declared_once():
    with pytest.raises(ValueError, match="'beta' is declared already"):
        declare(Option("beta", "Another.", float))
    figures = get_kind("vae").validate
    with pytest.raises(ValueError, match="undeclared options: gamma"):
        ModelKind("x", "", {"gamma": 1.0}, get_kind("vae").build, figures, figures)


def test_help_lists_commands_without_importing_them():
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from dgm_fast.cli import main\n"
        "result = CliRunner().invoke(main, ['--help'])\n"
        "print(result.output)\n"
        "loaded = ('dgm_fast.train.command', 'dgm_fast.train.demo', 'rich', 'matplotlib')\n"
        "assert not [m for m in loaded if m in sys.modules]\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout and COMMANDS["train"][2] in done.stdout


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("click", [], "needs click, which is not installed: pip install 'dgm_fast[train]'"),
        ("rich", ["train", "vae"], "needs rich, which is not installed"),
        ("sklearn", ["train", "vae"], "needs scikit-learn, which is not installed"),
        ("matplotlib", ["demo"], "needs matplotlib, which is not installed"),
    ],
)
def test_a_missing_package_is_named(tmp_path, missing, arguments, message):
    out = ["--out", str(tmp_path / "run")] if arguments else []
    code = (
        f"import sys\nsys.modules[{missing!r}] = None\n"
        f"sys.argv = ['dgm-fast', *{arguments + out!r}]\n"
        "from dgm_fast.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


def test_version_and_unknown_command():
    from dgm_fast import __version__

    assert run("--version").output.strip() == f"dgm-fast {__version__}"
    assert run("fly").exit_code == 2
