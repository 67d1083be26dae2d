"""Recurrent models of token sequences."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from dgm_fast.models._inputs import check_count
from dgm_fast.models._sequence import SequenceModel, Stream, check_dropout


class _RecurrentModel(SequenceModel):
    """Embedding, recurrent layers (PyTorch's own), one linear layer to the logits."""

    layers: nn.RNNBase

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        dropout: float = 0.0,
        length: int | None = None,
        vocabulary: str | None = None,
    ) -> None:
        super().__init__(vocab_size, length, vocabulary)
        check_count("hidden_size", hidden_size)
        check_count("num_layers", num_layers)
        check_dropout(dropout)
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = float(dropout)
        # The last row is the start token's.
        self.embedding = nn.Embedding(vocab_size + 1, hidden_size)
        self.layers = self._make_layers(
            hidden_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=self.dropout if num_layers > 1 else 0.0,
        )
        self.output = nn.Linear(hidden_size, vocab_size)

    def _make_layers(self, *sizes: int, **options: Any) -> nn.RNNBase:
        raise NotImplementedError

    def _head(self) -> tuple[Tensor, Tensor | None]:
        return self.output.weight, self.output.bias

    def _dropped(self, h: Tensor) -> Tensor:
        return torch_functional.dropout(h, self.dropout, self.training) if self.dropout else h

    def _hidden(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        before = torch_functional.pad(tokens[:, :-1], (1, 0), value=self.vocab_size)
        h, _ = self.layers(self._dropped(self.embedding(before)))
        return self._dropped(h)

    def _stream(self, n: int, context: Tensor | None) -> Stream:
        state: Any = None
        fed = 0

        def logits(x: Tensor) -> Tensor:
            nonlocal state, fed
            new = x[:, fed:]
            if state is None:
                new = torch_functional.pad(new, (1, 0), value=self.vocab_size)
            h, state = self.layers(self.embedding(new), state)
            fed = x.shape[1]
            return self.output(h[:, -1])

        return logits


class RNNModel(_RecurrentModel):
    r"""Recurrent network over tokens: characters of a text, or the pixels of an image in raster order.

    .. math:: p(x_t = v \mid x_1 \dots x_{t-1}) = \mathrm{softmax}(W h_t + b)_v, \qquad
        h_t = \tanh(A\, e_{x_{t-1}} + R\, h_{t-1} + c)

    with embeddings e, those of a start token at t = 1, and h_0 = 0. The layers are ``torch.nn.RNN``. A
    sequence may have any length.

    Args:
        vocab_size: V.
        hidden_size: H, of the embeddings too.
        num_layers: recurrent layers on top of each other.
        dropout: of embeddings, between the layers, and of what the logits are made from.
        length: T of the sequences that :meth:`sample` draws unless told otherwise.
        vocabulary: V distinct characters, for :meth:`encode` and :meth:`decode`; kept in the state_dict.

    Parameters start as PyTorch's modules do: embeddings standard normal, the others uniform within
    1 / sqrt(H).

    Source: Mikolov et al., "Recurrent neural network based language model" (2010).
    """

    def _make_layers(self, *sizes: int, **options: Any) -> nn.RNNBase:
        return nn.RNN(*sizes, **options)


class LSTMModel(_RecurrentModel):
    """As :class:`RNNModel`, with the layers of ``torch.nn.LSTM``.

    Parameters start as there, but for the biases of the forget gates: they start at 1, so that states are
    kept at first.

    Source: Graves, "Generating Sequences With Recurrent Neural Networks" (2013), section 2; forget gates as
    in Jozefowicz, Zaremba and Sutskever, "An Empirical Exploration of Recurrent Network Architectures"
    (2015).
    """

    def _make_layers(self, *sizes: int, **options: Any) -> nn.RNNBase:
        layers = nn.LSTM(*sizes, **options)
        with torch.no_grad():
            for name, bias in layers.named_parameters():
                if name.startswith("bias_"):
                    # Gates in order: input, forget, cell, output; the two biases of a gate add up.
                    forget = bias.chunk(4)[1]
                    forget.fill_(1.0 if name.startswith("bias_ih") else 0.0)
        return layers
