"""The options of model kinds, each declared once: what it means and which values it takes.

Options of one family are declared beside its kinds, those of several here. A kind names its options with
their defaults (``ModelKind.options``); the command line makes its own from both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dgm_fast.models._gan_networks import ARCHITECTURES


@dataclass(frozen=True)
class Option:
    """One option of model kinds.

    Attributes:
        name: as the kinds' ``build`` takes it; ``--name`` with dashes on the command line.
        help: what it is, without kinds and defaults, which are known.
        type: int, float, bool (a flag), list (positive whole numbers) or str (one of ``choices``).
        choices: of a str.
        minimum: of a number; ``above`` if the bound itself is out.
        below: a number stays below it.
    """

    name: str
    help: str
    type: type
    choices: Sequence[str] = ()
    minimum: float | None = None
    above: bool = False
    below: float | None = None

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return f"--{self.name.replace('_', '-')}"


_OPTIONS: dict[str, Option] = {}


def declare(*options: Option) -> None:
    """Make options known.

    Raises:
        ValueError: if the name of one is taken.
    """
    for option in options:
        if option.name in _OPTIONS:
            raise ValueError(f"the option {option.name!r} is declared already")
        _OPTIONS[option.name] = option


def declared() -> tuple[Option, ...]:
    """All options, in the order of their declarations."""
    return tuple(_OPTIONS.values())


def is_declared(name: str) -> bool:
    return name in _OPTIONS


declare(
    Option("latent_dim", "Size of z.", int, minimum=1),
    Option("hidden_sizes", "Widths of the networks.", list),
    Option("hidden_size", "Units of a hidden layer.", int, minimum=1),
    Option("num_components", "Of the mixture.", int, minimum=1),
    Option("num_mixtures", "Components a dimension or pixel.", int, minimum=1),
    Option("num_layers", "Layers; of a flow its transforms.", int, minimum=1),
    Option("num_blocks", "Residual blocks; of pixelcnn-pp at a resolution.", int, minimum=1),
    Option("channels", "Feature maps, of GANs in the first convolution.", int, minimum=1),
    Option(
        "architecture",
        "GANs: mlp or dcgan; realnvp: mlp or conv.",
        str,
        choices=(*ARCHITECTURES, "conv"),
    ),
    Option("dropout", "Probability.", float, minimum=0, below=1),
)
