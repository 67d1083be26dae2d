"""The pixel models as trainable kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from dgm_fast.data import DataError, Dataset
from dgm_fast.models import GatedPixelCNN, PixelCNN, PixelCNNPP, PixelRNN
from dgm_fast.models._pixel import PixelModel
from dgm_fast.models.pixel_rnn import KINDS
from dgm_fast.train.dequantize import check_binary
from dgm_fast.train.options import Option, declare
from dgm_fast.train.registry import Figures, ModelKind, register

declare(
    Option("class_conditional", "Of images given their labels.", bool),
    Option("recurrence", "Along rows or along diagonals.", str, choices=KINDS),
)


def pixel_figures(model: PixelModel, x: Tensor | tuple[Tensor, Tensor], *_: Any) -> Figures:
    """The NLL of rows, or of rows given their labels."""
    rows, labels = x if isinstance(x, tuple) else (x, None)
    return {"nll": model.nll(rows, context=labels)}


def _build(
    name: str, model_class: type[PixelModel], renamed: Mapping[str, str]
) -> Callable[[Dataset, Mapping[str, Any]], nn.Module]:
    def build(dataset: Dataset, options: Mapping[str, Any]) -> nn.Module:
        if dataset.image_shape is None:
            raise DataError(f"{dataset.name}: rows are not images, which {name} needs")
        if dataset.likelihood == "gaussian":
            raise DataError(
                f"{dataset.name}: {name} models levels, no real values; --likelihood categorical "
                "takes the levels of images as they are"
            )
        if dataset.likelihood == "bernoulli":
            check_binary(dataset, name)
        chosen = {renamed.get(k, k): v for k, v in options.items() if k != "class_conditional"}
        if options["class_conditional"]:
            if dataset.num_labels is None:
                raise DataError(
                    f"{dataset.name}: has no labels; --class-conditional needs digits, mnist, or a "
                    "folder of images with a subfolder for each class"
                )
            chosen["num_classes"] = dataset.num_labels
        channels = dataset.image_shape[0] if len(dataset.image_shape) == 3 else 1
        levels = 2 if dataset.num_classes is None else dataset.num_classes
        model: nn.Module = model_class(  # type: ignore[call-arg]
            channels, num_levels=levels, image_shape=dataset.image_shape, **chosen
        )
        return model

    return build


# ``renamed``: options that have another name as the model's argument.
def _register(
    name: str,
    summary: str,
    model_class: type[PixelModel],
    options: Mapping[str, Any],
    renamed: Mapping[str, str] | None = None,
) -> None:
    register(
        ModelKind(
            name,
            summary,
            {**options, "class_conditional": False},
            _build(name, model_class, renamed or {}),
            pixel_figures,
            pixel_figures,
            exact=True,
            pictures=True,
        )
    )


_register(
    "pixelcnn",
    "PixelCNN: masked convolutions over an image's pixels",
    PixelCNN,
    {"channels": 64, "num_layers": 8, "dropout": 0.0},
)
_register(
    "gated-pixelcnn",
    "Gated PixelCNN: vertical and horizontal stacks, no blind spot",
    GatedPixelCNN,
    {"channels": 64, "num_layers": 8, "dropout": 0.0},
)
_register(
    "pixelcnn-pp",
    "PixelCNN++: three resolutions and a mixture of logistics",
    PixelCNNPP,
    {"channels": 32, "num_blocks": 2, "num_mixtures": 10, "dropout": 0.5},
)
_register(
    "pixelrnn",
    "PixelRNN: Row LSTMs or Diagonal BiLSTMs over an image",
    PixelRNN,
    {"channels": 32, "num_layers": 4, "recurrence": "row"},
    {"recurrence": "kind"},
)
