"""Base of the sequence models: tokens, likelihood, sampling with a state, text."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from dgm_fast import functional
from dgm_fast.functional._checks import class_index
from dgm_fast.functional.likelihood import class_range
from dgm_fast.models._autoregressive import AutoregressiveModel, Condition, check_values
from dgm_fast.models._inputs import check_condition, check_count
from dgm_fast.models._mixture import compute_dtype, draw_component

# x[:, :t] of growing t -> logits [n, V] of x[:, t]; keeps what it has computed of the entries before.
Stream = Callable[[Tensor], Tensor]


class SequenceModel(AutoregressiveModel):
    """p(x) of sequences of tokens, each given all before it; the first is given a learned start token.

    Data x are integer, bool or whole floating-point numbers from 0 to V - 1, [B, T] or [B, *shape] (pixels
    in raster order), of any length T. All results are per sequence and in nats unless the method says
    otherwise; their likelihood is that of :func:`dgm_fast.functional.linear_categorical_log_prob`, which
    need not store large logits. A model implements :meth:`_hidden` and :meth:`_stream`.

    Args:
        vocab_size: V.
        length: T of the sequences that :meth:`sample` draws unless told otherwise.
        vocabulary: V distinct characters, for :meth:`encode` and :meth:`decode`; they are kept in the
            state_dict.
    """

    code_points: Tensor | None

    def __init__(self, vocab_size: int, length: int | None, vocabulary: str | None) -> None:
        super().__init__()
        check_count("vocab_size", vocab_size, at_least=2)
        if length is not None:
            check_count("length", length)
        self.vocab_size = vocab_size
        self.length = length
        if vocabulary is None:
            self.register_buffer("code_points", None)
            return
        if len(set(vocabulary)) != len(vocabulary) or len(vocabulary) != vocab_size:
            raise ValueError(
                f"vocabulary must hold vocab_size = {vocab_size} distinct characters, got "
                f"{len(vocabulary)}, {len(set(vocabulary))} of them distinct"
            )
        self.register_buffer("code_points", torch.tensor([ord(c) for c in vocabulary]))

    @property
    def vocabulary(self) -> str | None:
        """The character of each token, or None."""
        if self.code_points is None:
            return None
        return "".join(map(chr, self.code_points.tolist()))

    def encode(self, text: str) -> Tensor:
        """The tokens of a text, int64 [T].

        Raises:
            ValueError: if the model has no vocabulary or a character is not in it.
        """
        index = {character: i for i, character in enumerate(self._characters())}
        if unknown := sorted(set(text) - set(index)):
            raise ValueError(f"text has characters outside the vocabulary: {unknown}")
        return torch.tensor([index[c] for c in text], dtype=torch.int64, device=self._anchor.device)

    def decode(self, tokens: Tensor) -> str | list[str]:
        """The text of tokens [T], or the texts of [B, T].

        Raises:
            ValueError: if the model has no vocabulary, or the shape is another.
        """
        characters = self._characters()
        if tokens.ndim not in (1, 2):
            raise ValueError(f"tokens must have shape [T] or [B, T], got {tuple(tokens.shape)}")
        if tokens.ndim == 1:
            return "".join(characters[i] for i in tokens.tolist())
        return ["".join(characters[i] for i in row) for row in tokens.tolist()]

    def conditionals(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Logits of all conditionals, [B, T, V]."""
        x = self._data(x)
        h = self._hidden(self._tokens(x), self._context(context, len(x)))
        weight, bias = self._head()
        return torch_functional.linear(h, weight, bias)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        length: int | None = None,
        conditioned_on: Condition | None = None,
        context: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """n draws, int64 [n, T], without gradients and without dropout.

        The model's state is carried from entry to entry, so that each costs one step of the network.
        Entries given at the start of all rows (a prompt) are read in one go.

        Args:
            n: how many.
            length: T. None takes it from ``conditioned_on`` or ``noise``, else from the model.
            conditioned_on: the pair (values, given), each [T] or [n, T], ``given`` boolean: values are kept
                where it is True, and every other entry is drawn given all entries before it.
            context: [n, context_dim] or [context_dim], for conditional models.
            noise: uniforms in [0, 1), [n, T], in place of the generator's: a token is the first whose
                cumulative probability exceeds its noise.
            generator: source of the noise.

        Raises:
            TypeError, ValueError: if an argument does not fit; the message names it.
        """
        check_count("n", n)
        length = self._sample_length(length, conditioned_on, noise)
        condition = None
        if conditioned_on is not None:
            condition = check_condition(conditioned_on, (n, length), self._anchor)
        uniforms = self._uniforms((n, length), noise, generator)
        context = self._context(context, n)
        was_training = self.training
        self.eval()
        try:
            return self._sample(n, condition, context, uniforms, None)
        finally:
            self.train(was_training)

    def _sample(
        self,
        n: int,
        condition: Condition | None,
        context: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        assert noise is not None
        x = torch.zeros(noise.shape, dtype=torch.int64, device=noise.device)
        values = given = None
        prompt = 0
        if condition is not None:
            values, given = condition
            check_values(
                values, class_index(values, self.vocab_size) | ~given, class_range(self.vocab_size)
            )
            values = self._tokens(values)
            prompt = int(given.all(0).long().cumprod(0).sum())
            x[:, :prompt] = values[:, :prompt]
        stream = self._stream(n, context)
        for t in range(prompt, x.shape[1]):
            logits = stream(x[:, :t])
            drawn = draw_component(logits.to(compute_dtype(logits)), noise[:, t])
            if values is not None and given is not None:
                drawn = torch.where(given[:, t], values[:, t], drawn)
            x[:, t] = drawn
        return x

    def _sample_length(
        self, length: int | None, conditioned_on: Condition | None, noise: Tensor | None
    ) -> int:
        if length is not None:
            check_count("length", length)
            return length
        if isinstance(conditioned_on, tuple | list) and len(conditioned_on) == 2:
            for part in conditioned_on:
                if isinstance(part, Tensor) and part.ndim in (1, 2) and part.shape[-1] > 0:
                    return part.shape[-1]
        if isinstance(noise, Tensor) and noise.ndim == 2 and noise.shape[-1] > 0:
            return noise.shape[-1]
        if self.length is None:
            raise ValueError("length is missing: neither the model nor another argument has one")
        return self.length

    def _data(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        if x.device != self._anchor.device:
            raise ValueError(f"x is on {x.device}, but the model is on {self._anchor.device}")
        if x.ndim < 2 or 0 in x.shape[1:]:
            raise ValueError(f"x must have shape [B, T] or [B, *shape], got {tuple(x.shape)}")
        if x.is_complex():
            raise TypeError(f"x must be bool, integer or floating point, got {x.dtype}")
        return x.flatten(1)

    def _tokens(self, x: Tensor) -> Tensor:
        """x as indices; a bad one, which the likelihood reports, must not index past the embeddings."""
        return x.long().clamp(0, self.vocab_size - 1)

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        if x.requires_grad:
            raise ValueError("x holds class indices and must not require grad")
        h = self._hidden(self._tokens(x), context)
        weight, bias = self._head()
        terms = functional.linear_categorical_log_prob(
            h.flatten(0, 1), weight, bias, x.reshape(-1, 1), num_classes=self.vocab_size
        )
        return terms.unflatten(0, x.shape).sum(1)

    def _characters(self) -> str:
        characters = self.vocabulary
        if characters is None:
            raise ValueError("the model was built without a vocabulary")
        return characters

    def _head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, H] and bias [V] of the layer that gives the logits."""
        raise NotImplementedError

    def _hidden(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """What the head takes, [B, T, H]; entry t depends on the tokens before t."""
        raise NotImplementedError

    def _stream(self, n: int, context: Tensor | None) -> Stream:
        raise NotImplementedError


def check_dropout(dropout: float) -> None:
    if not isinstance(dropout, int | float) or isinstance(dropout, bool):
        raise TypeError(f"dropout must be a number, got {type(dropout).__name__}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
