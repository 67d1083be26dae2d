"""The model kinds that can be trained by name, and what training needs to know about each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dgm_fast.data import Dataset
from dgm_fast.train.config import TrainConfig
from dgm_fast.train.options import is_declared
from dgm_fast.train.step import TrainStep

Figures = dict[str, Tensor]


@dataclass(frozen=True)
class ModelKind:
    """One trainable kind.

    Attributes:
        name: as the user types it.
        summary: one line for the help.
        options: option name -> default, what ``build`` takes; names are declared in
            :mod:`dgm_fast.train.options` or beside the kind.
        build: (data set, options) -> model with ``loss(x)``.
        validate: (model, x [B, D]) -> figures [B] in nats, lower is better; the first decides
            early stopping.
        test: (model, x [B, D], samples) -> figures [B] for the final evaluation, with ``nll``; if the
            samples estimate it, also with ``negative_elbo``.
        full_batch_step: (model, options) -> a step that takes all training rows at once, one an
            epoch, in place of gradient descent; None where the options ask for that one.
        exact: the loss is the NLL and no bound of it.
        compare: (model, x [N, D]) -> figures of the model against a whole split, for a model without a
            likelihood; takes the place of ``validate`` and ``test``. Lower is better for the first.
        make_step: (model, configuration) -> the step on a batch, in place of gradient descent on
            ``loss``.
        labelled: whether batches are (rows, labels); otherwise the option ``class_conditional`` says so,
            and ``validate`` and ``test`` take such pairs, and ``loss`` the labels as ``context``.
        pictures: whether samples are written as pictures while the model trains.
        defaults: of the run's configuration (``lr``, ``epochs``, ``patience``), where the kind has its own.
        stands_for: what a default of None in ``options`` comes to, for the help.
    """

    name: str
    summary: str
    options: Mapping[str, Any]
    build: Callable[[Dataset, Mapping[str, Any]], nn.Module]
    validate: Callable[[Any, Tensor], Figures] | None = None
    test: Callable[[Any, Tensor, int], Figures] | None = None
    full_batch_step: Callable[[Any, Mapping[str, Any]], TrainStep | None] = lambda *_: None
    exact: bool = False
    compare: Callable[[Any, Tensor], Mapping[str, float]] | None = None
    make_step: Callable[[Any, TrainConfig], TrainStep] | None = None
    labelled: bool = False
    pictures: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stands_for: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.compare is None and (self.validate is None or self.test is None):
            raise ValueError(f"kind {self.name!r} needs validate and test, or compare")
        if unknown := [name for name in self.options if not is_declared(name)]:
            raise ValueError(f"kind {self.name!r} has undeclared options: {', '.join(unknown)}")


_KINDS: dict[str, ModelKind] = {}


def register(kind: ModelKind) -> None:
    if kind.name in _KINDS:
        raise ValueError(f"model kind {kind.name!r} is registered already")
    _KINDS[kind.name] = kind


def get_kind(name: str) -> ModelKind:
    if name not in _KINDS:
        raise ValueError(f"model kind must be one of {kind_names()}, got {name!r}")
    return _KINDS[name]


def kinds() -> tuple[ModelKind, ...]:
    """All of them, in the order of their registration."""
    return tuple(_KINDS.values())


def kind_names() -> list[str]:
    return sorted(_KINDS)
