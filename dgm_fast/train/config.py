"""The configuration of a training run, as ``config.json`` holds it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

SCHEDULES = ("constant", "cosine")
FORMAT_VERSION = 1


class ConfigError(ValueError):
    """A configuration has a field or value that does not fit; the message names it."""


@dataclass(frozen=True)
class TrainConfig:
    """What determines a run.

    ``data`` holds the arguments of ``load_dataset``, ``model`` the options of the model kind.
    """

    kind: str
    data: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    epochs: int = 100
    batch_size: int = 100
    lr: float = 1e-3
    schedule: str = "constant"
    patience: int | None = 20
    seed: int = 0
    device: str = "cpu"
    backend: str = "auto"
    compile: bool = False
    threads: int | None = None
    eval_samples: int = 1000
    clip_norm: float | None = None

    # Changing these on resume keeps the run the same run (device, backend, compile and threads may
    # change rounding; epochs with a cosine schedule is refused elsewhere).
    CHANGEABLE = ("epochs", "patience", "device", "backend", "compile", "threads", "eval_samples")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "eval_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("patience", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"lr must be positive and finite, got {self.lr}")
        if self.clip_norm is not None and not 0 < self.clip_norm < float("inf"):
            raise ConfigError(f"clip_norm must be positive and finite, got {self.clip_norm}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule must be one of {SCHEDULES}, got {self.schedule!r}")

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any], source: str) -> TrainConfig:
        """Read what :meth:`to_json` wrote; keys that start with "_" are notes and are skipped.

        Raises:
            ConfigError: naming ``source``, if fields are missing, unknown, or of another format.
        """
        value = {key: entry for key, entry in value.items() if not key.startswith("_")}
        version = value.pop("format", None)
        if version != FORMAT_VERSION:
            raise ConfigError(f"{source}: format {version!r}; this version reads {FORMAT_VERSION}")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(value) - known):
            raise ConfigError(f"{source}: unknown field {', '.join(unknown)}")
        try:
            return cls(**value)
        except TypeError as error:
            raise ConfigError(f"{source}: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
