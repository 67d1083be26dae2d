"""The files of one training run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dgm_fast.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from dgm_fast.train.files import write_json, write_json_lines


class RunDirectoryError(RuntimeError):
    """A run directory cannot be used as asked; the message says why and what would work."""


class RunDirectory:
    """``config.json``, ``metrics.jsonl``, ``last.pt``, ``best.pt``, ``results.json`` and samples.

    ``last.pt`` is where training goes on, ``best.pt`` the state at the best epoch. Each file is
    replaced in one rename. Make one with :meth:`create` or :meth:`open`.
    """

    FILES = (
        "config.json",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "results.json",
        "samples.png",
        "reconstructions.png",
        "samples.txt",
        "comparison.json",
    )

    # Of kinds that show their samples while they train.
    EPOCH_SAMPLES = "samples-epoch-{}.png"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.json"
        self.metrics_path = path / "metrics.jsonl"
        self.last_path = path / "last.pt"
        self.best_path = path / "best.pt"
        self.results_path = path / "results.json"
        self.samples_path = path / "samples.png"
        self.reconstructions_path = path / "reconstructions.png"
        self.texts_path = path / "samples.txt"
        self.comparison_path = path / "comparison.json"

    @classmethod
    def create(cls, path: Path, config: dict[str, Any], *, overwrite: bool = False) -> RunDirectory:
        """Start a run in ``path``.

        Raises:
            RunDirectoryError: if it holds a run and ``overwrite`` is False, or cannot be made.
        """
        run = cls(path)
        present = [name for name in cls.FILES if (path / name).exists()]
        if present and not overwrite:
            raise RunDirectoryError(
                f"{path} already holds a run ({', '.join(present)}): continue it with --resume, "
                "replace it with --overwrite, or choose another --out"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"{path}: cannot make the run directory ({error})") from error
        for name in present:
            (path / name).unlink()
        for picture in path.glob(cls.EPOCH_SAMPLES.format("*")):
            picture.unlink()
        write_json(run.config_path, config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Take up the run in ``path``.

        Raises:
            RunDirectoryError: if it holds none.
        """
        run = cls(path)
        if not run.config_path.is_file():
            raise RunDirectoryError(f"{path} holds no run to resume (no config.json)")
        return run

    def epoch_samples_path(self, epoch: int) -> Path:
        return self.path / self.EPOCH_SAMPLES.format(f"{epoch:05d}")

    def read_config(self) -> dict[str, Any]:
        try:
            config = json.loads(self.config_path.read_text())
        except ValueError as error:
            raise RunDirectoryError(f"{self.config_path}: not valid JSON ({error})") from error
        if not isinstance(config, dict):
            raise RunDirectoryError(f"{self.config_path}: needs a JSON object")
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        write_json(self.config_path, config)

    def write_metrics(self, history: Sequence[dict[str, Any]]) -> None:
        write_json_lines(self.metrics_path, history)

    def save_last(self, state: dict[str, Any]) -> None:
        save_checkpoint(self.last_path, state)

    def save_best(self, state: dict[str, Any]) -> None:
        save_checkpoint(self.best_path, state)

    def load(self, which: str = "last", device: torch.device | str = "cpu") -> dict[str, Any]:
        """Read ``last.pt`` or ``best.pt``.

        Raises:
            CheckpointError: if it cannot be read; says so when the other one is intact.
        """
        paths = {"last": self.last_path, "best": self.best_path}
        try:
            return load_checkpoint(paths[which], device)
        except CheckpointError as error:
            other = "best" if which == "last" else "last"
            try:
                epoch = load_checkpoint(paths[other])["epoch"]
            except CheckpointError:
                raise error from None
            raise CheckpointError(
                f"{error}. {paths[other].name} is intact (epoch {epoch}): "
                f"--resume --resume-from {other} continues there"
            ) from error
