"""Atomic writes, checkpoint files and run directories."""

from __future__ import annotations

import io
import json
import os
import random

import numpy as np
import pytest
import torch

from dgm_fast.train import (
    CheckpointError,
    RunDirectory,
    RunDirectoryError,
    load_checkpoint,
    save_checkpoint,
)
from dgm_fast.train import files as files_module
from dgm_fast.train.checkpoint import generator_states, restore_generator_states
from dgm_fast.train.files import write_atomically

STATE = {"weights": torch.arange(1000.0), "epoch": 3, "name": "x", "history": [{"a": 0.5}]}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    return path


class Crash(Exception):
    pass


def crash(*arguments, **keywords):
    raise Crash


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_crashes_leaves_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(files_module.os, function, crash)
    with pytest.raises(Crash):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_checkpoint_that_crashes_while_written_leaves_the_old_one(checkpoint, monkeypatch):
    monkeypatch.setattr(files_module.os, "replace", crash)
    with pytest.raises(Crash):
        save_checkpoint(checkpoint, {"epoch": 4})
    assert load_checkpoint(checkpoint)["epoch"] == 3


def test_checkpoint_round_trip(checkpoint):
    state = load_checkpoint(checkpoint)
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {k: v for k, v in STATE.items() if k != "weights"}


def test_plain_torch_load_reads_a_checkpoint(checkpoint):
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 3


def test_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated_checkpoint(checkpoint, keep):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"last\.pt: truncated, corrupt"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("place", [0.01, 0.5, 0.9])
def test_one_altered_byte(checkpoint, place):
    data = bytearray(checkpoint.read_bytes())
    data[int(len(data) * place)] ^= 1
    checkpoint.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="checksum does not match"):
        load_checkpoint(checkpoint)


def test_file_of_plain_torch_save_is_not_a_checkpoint(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="not a dgm_fast checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_another_format_version(checkpoint):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data.replace(b"dgm_fast checkpoint 0001", b"dgm_fast checkpoint 0002"))
    with pytest.raises(CheckpointError, match="checkpoint format '0002'"):
        load_checkpoint(checkpoint)


class Payload:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    save_checkpoint(tmp_path / "a.pt", {"payload": Payload()})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(tmp_path / "a.pt")
    assert capsys.readouterr().out == ""


def test_generator_states_survive_a_checkpoint(tmp_path):
    np.random.standard_normal()  # leaves a cached second value
    save_checkpoint(tmp_path / "a.pt", generator_states())

    def draw():
        return torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.random()

    first = draw()
    restore_generator_states(load_checkpoint(tmp_path / "a.pt"))
    assert draw() == first


def test_a_run_directory_is_not_reused(tmp_path):
    RunDirectory.create(tmp_path / "run", {"lr": 1})
    with pytest.raises(RunDirectoryError, match=r"already holds a run \(config\.json\).*--resume"):
        RunDirectory.create(tmp_path / "run", {"lr": 2})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {"lr": 1}


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    run = RunDirectory.create(tmp_path, {"lr": 1})
    run.save_last(STATE)
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory.create(tmp_path, {"lr": 2}, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "notes.txt"]
    assert run.read_config() == {"lr": 2}


def test_run_directory_under_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot make the run directory"):
        RunDirectory.create(tmp_path / "file" / "run", {})


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RunDirectoryError, match="holds no run to resume"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "JSON object")])
def test_broken_config(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=message):
        RunDirectory.open(tmp_path).read_config()


def test_corrupt_state_points_to_the_intact_one(tmp_path):
    run = RunDirectory.create(tmp_path, {})
    run.save_last(STATE)
    run.save_best({**STATE, "epoch": 2})
    run.last_path.write_bytes(run.last_path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"best\.pt is intact \(epoch 2\): --resume"):
        run.load()
    assert run.load("best")["epoch"] == 2
    run.best_path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.pt: truncated, corrupt") as raised:
        run.load()
    assert "intact" not in str(raised.value)


def test_metrics_are_json_lines(tmp_path):
    run = RunDirectory.create(tmp_path, {})
    run.write_metrics([{"epoch": 1}, {"epoch": 2}])
    lines = io.StringIO(run.metrics_path.read_text()).readlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
