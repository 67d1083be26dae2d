"""The sequence models as trainable kinds: characters of a text, or pixels in raster order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dgm_fast.data import DataError, Dataset
from dgm_fast.models import GPT, LSTMModel, RNNModel
from dgm_fast.train.autoregressive_kinds import exact_figures
from dgm_fast.train.dequantize import check_binary
from dgm_fast.train.options import Option, declare
from dgm_fast.train.registry import ModelKind, register

declare(
    Option("width", "Of the embeddings.", int, minimum=1),
    Option("num_heads", "Attention heads.", int, minimum=1),
)


def _vocab_size(dataset: Dataset, kind: str) -> int:
    if dataset.likelihood == "gaussian":
        raise DataError(
            f"{dataset.name}: {kind} models characters, classes, grey levels or bits, no real values"
        )
    if dataset.likelihood == "bernoulli":
        check_binary(dataset, kind)
        return 2
    assert dataset.num_classes is not None
    return dataset.num_classes


def _recurrent(
    name: str, model_class: type[RNNModel] | type[LSTMModel]
) -> Callable[[Dataset, Mapping[str, Any]], nn.Module]:
    def build(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
        return model_class(
            _vocab_size(dataset, name),
            options["hidden_size"],
            options["num_layers"],
            dropout=options["dropout"],
            length=dataset.num_dims,
            vocabulary=dataset.vocabulary,
        )

    return build


def _build_gpt(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
    return GPT(
        _vocab_size(dataset, "gpt"),
        dataset.num_dims,
        options["width"],
        options["num_layers"],
        options["num_heads"],
        dropout=options["dropout"],
        vocabulary=dataset.vocabulary,
    )


_RECURRENT_OPTIONS: dict[str, Any] = {"hidden_size": 256, "num_layers": 1, "dropout": 0.0}

register(
    ModelKind(
        "rnn",
        "recurrent network over characters or pixels",
        _RECURRENT_OPTIONS,
        _recurrent("rnn", RNNModel),
        exact_figures,
        exact_figures,
        exact=True,
    )
)
register(
    ModelKind(
        "lstm",
        "LSTM over characters or pixels",
        _RECURRENT_OPTIONS,
        _recurrent("lstm", LSTMModel),
        exact_figures,
        exact_figures,
        exact=True,
    )
)
register(
    ModelKind(
        "gpt",
        "transformer over characters or pixels",
        {"width": 128, "num_layers": 4, "num_heads": 4, "dropout": 0.0},
        _build_gpt,
        exact_figures,
        exact_figures,
        exact=True,
    )
)
