"""Transformer decoder over token sequences."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

from dgm_fast.models._inputs import check_count
from dgm_fast.models._sequence import SequenceModel, Stream, check_dropout

_STANDARD_DEVIATION = 0.02


class _Cache:
    """Keys and values of one layer, [n, heads, L, head width] each, up to a position."""

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)

    def append(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values up to the new ones, which start at ``position``."""
        end = position + keys.shape[2]
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class _Block(nn.Module):
    """Attention and a two-layer network, each on normalised inputs and added to them."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width)
        self.network_hidden = nn.Linear(width, 4 * width)
        self.network_output = nn.Linear(4 * width, width)

    def forward(self, h: Tensor, cache: _Cache | None = None, position: int = 0) -> Tensor:
        """[B, T, width] -> [B, T, width], causal. With a cache, h are the entries from ``position`` on:
        all up to there (position 0), or a single one."""
        parts = self.queries_keys_values(self.attention_norm(h))
        parts = parts.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)  # [B, heads, T, head width]
        if cache is not None:
            keys, values = cache.append(position, keys, values)
        mixed = torch_functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=position == 0,
        )
        h = h + self._dropped(self.attention_output(mixed.transpose(1, 2).flatten(2)))
        hidden = torch_functional.gelu(
            self.network_hidden(self.network_norm(h)), approximate="tanh"
        )
        return h + self._dropped(self.network_output(hidden))

    def _dropped(self, h: Tensor) -> Tensor:
        return torch_functional.dropout(h, self.dropout, self.training) if self.dropout else h


class GPT(SequenceModel):
    r"""Transformer decoder over tokens: characters of a text, or the pixels of an image in raster order.

    .. math:: p(x_t = v \mid x_1 \dots x_{t-1}) = \mathrm{softmax}(E\, h_t)_v

    where h_t comes from the embeddings E of the tokens before t and of a start token, through blocks
    of causal attention (``F.scaled_dot_product_attention``) and a two-layer network, normalised before
    each, and a last normalisation. E also gives the logits.

    A sequence longer than L = ``context_length`` is scored in windows that start L // 2 entries apart, each
    with the start token: an entry past the first L is given at least the L - L // 2 entries before it, at
    most L - 1. Samples of such a length are drawn from the same conditionals. While drawing, keys and
    values are kept, so that an entry costs one pass over itself.

    Args:
        vocab_size: V.
        context_length: L, entries that the network sees at once, the one to predict included.
        width: of embeddings and blocks.
        num_layers: blocks.
        num_heads: attention heads; they divide the width.
        context_dim: size of the context c of a conditional model p(x | c): a linear function of it is
            added to the start token.
        dropout: of embeddings, attention weights, and what each part of a block adds.
        length: T of the sequences that :meth:`sample` draws unless told otherwise; None:
            ``context_length``.
        vocabulary: V distinct characters, for :meth:`encode` and :meth:`decode`; kept in the state_dict.

    Weights and embeddings start normal with standard deviation 0.02, divided by sqrt(2 num_layers) in the
    layers that add to the residual stream, and biases at zero.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.3; for
    pixels Chen et al., "Generative Pretraining from Pixels" (2020).
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        width: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        context_dim: int | None = None,
        *,
        dropout: float = 0.0,
        length: int | None = None,
        vocabulary: str | None = None,
    ) -> None:
        check_count("context_length", context_length)
        super().__init__(vocab_size, context_length if length is None else length, vocabulary)
        check_count("width", width)
        check_count("num_layers", num_layers)
        check_count("num_heads", num_heads)
        if width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads = {num_heads}, got {width}")
        if context_dim is not None:
            check_count("context_dim", context_dim)
        check_dropout(dropout)
        self.context_length = context_length
        self.context_dim = context_dim
        self.width = width
        self.num_heads = num_heads
        self.dropout = float(dropout)
        self.tokens = nn.Embedding(vocab_size, width)
        self.start = nn.Parameter(torch.empty(width))
        self.positions = nn.Embedding(context_length, width)
        self.context_layer = None if context_dim is None else nn.Linear(context_dim, width)
        self.blocks = nn.ModuleList(
            _Block(width, num_heads, self.dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        nn.init.normal_(self.start, std=_STANDARD_DEVIATION)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith(("attention_output", "network_output"))
                scale = math.sqrt(2 * len(self.blocks)) if residual else 1.0
                nn.init.normal_(module.weight, std=_STANDARD_DEVIATION / scale)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @property
    def _stride(self) -> int:
        """Entries between the starts of two windows."""
        return max(1, self.context_length // 2)

    def _window_start(self, t: int) -> int:
        """The first entry that the network sees where it predicts entry t."""
        return -(-max(0, t + 1 - self.context_length) // self._stride) * self._stride

    def _head(self) -> tuple[Tensor, Tensor | None]:
        return self.tokens.weight, None

    def _hidden(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        size, stride = self.context_length, self._stride
        parts = [self._window(tokens[:, :size], context)]
        for end in range(size + stride, tokens.shape[1] + stride, stride):
            h = self._window(tokens[:, end - size : end], context)
            parts.append(h[:, size - stride :])
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def _window(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """Outputs [B, T, width] that predict the tokens [B, T] of one window."""
        return self._run(self._inputs(tokens[:, :-1], context))

    def _inputs(self, tokens: Tensor, context: Tensor | None) -> Tensor:
        """Embeddings of the start token and of the tokens after it, [B, 1 + T, width]."""
        start = self.start.expand(len(tokens), 1, -1)
        if self.context_layer is not None:
            assert context is not None
            start = start + self.context_layer(context).unsqueeze(1)
        h = torch.cat([start, self.tokens(tokens)], 1)
        return h + self.positions.weight[: h.shape[1]]

    def _run(self, h: Tensor, caches: list[_Cache] | None = None, position: int = 0) -> Tensor:
        if self.dropout:
            h = torch_functional.dropout(h, self.dropout, self.training)
        for i, block in enumerate(self.blocks):
            h = block(h, None if caches is None else caches[i], position)
        return self.norm(h)

    def _stream(self, n: int, context: Tensor | None) -> Stream:
        shape = (n, self.num_heads, self.context_length, self.width // self.num_heads)
        caches = [_Cache(shape, self.tokens.weight) for _ in self.blocks]
        first = -1  # of the window in the caches

        def logits(x: Tensor) -> Tensor:
            nonlocal first
            t = x.shape[1]
            if first == self._window_start(t):
                position = t - first
                h = self.tokens(x[:, -1:]) + self.positions.weight[position]
                h = self._run(h, caches, position)
            else:
                first = self._window_start(t)
                h = self._run(self._inputs(x[:, first:], context), caches)
            return torch_functional.linear(h[:, -1], *self._head())

        return logits
