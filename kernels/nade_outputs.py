"""Outputs of a NADE's conditionals and the gradients below them, by blocks of dimensions side by side.

Hidden pre-activations follow a_{d+1} = a_d + W_d x_d. Those at the start of each block of dimensions come
from a batched matrix product, one batch a block, and a cumulative sum over blocks; a program then walks the
dimensions of one block for a tile of rows and hidden units. With one-hot inputs W has a row a class.

Backward walks each block from its end. The gradients of pre-activations that reach it from later blocks
enter weights and data linearly: what is missing in its own sums is again a batched matrix product, of the
data with the sums over later blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import accumulator, launch, numeric, spread
from dgm_fast.kernels.categorical import load_classes
from torch import Tensor

# Pre-activations of a program, which is one warp: as many as its registers hold beside what the loops need
# (in backward with several outputs: half as many); and hidden units, whole 16-byte vectors of a lane.
_TILE, _BACKWARD_TILE = 1024, 512
_UNITS, _BACKWARD_UNITS = 256, 128
# Dimensions of a block, fewest and most. Fewer make more programs, and more pre-activations to store. In a
# block of n that restarts, backward takes n^2 / 2 steps.
_STEPS, _RESTART_STEPS = (8, 64), 16
# Programs that fill the largest GPUs.
_PROGRAMS = 1024
# Entries of temporary tensors that grow with the rows, where these are more than the given number, and of
# partial sums of weight gradients.
_ROW_ENTRIES, _ROWS, _PART_ENTRIES = 2**24, 64, 2**23


@triton.jit
def load_input(p_x, mask, classes, CLASSES: tl.constexpr, ACC: tl.constexpr):
    """Data of one dimension [BR]: numbers, or class indices, -1 for what is none."""
    if CLASSES:
        return load_classes(p_x, mask, classes)
    else:
        return tl.load(p_x, mask, other=0.0).to(ACC)


@triton.jit
def load_step(p_w, b_x, o_h, mask_h, hidden, CLASSES: tl.constexpr):
    """What the data of a dimension are multiplied by, [1, BH], or their step itself, [BR, BH].

    ``p_w`` points to the weights [classes, hidden] of the dimension.
    """
    if CLASSES:
        o_w = b_x.to(tl.int64)[:, None] * hidden + o_h[None, :]
        b_w = tl.load(p_w + o_w, (b_x >= 0)[:, None] & mask_h[None, :], other=0.0)
    else:
        b_w = tl.load(p_w + o_h, mask_h, other=0.0)[None, :]
    return b_w


@triton.jit
def advanced(b_a, b_x, b_w, sign, CLASSES: tl.constexpr):
    """a + sign W x."""
    if not CLASSES:
        b_w = b_w * b_x[:, None]
    return b_a + sign * b_w


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), and its derivative without cancellation."""
    b_e = tl.exp(-tl.abs(x))
    b_inverse = 1.0 / (1.0 + b_e)
    b_small = b_e * b_inverse
    return tl.where(x < 0.0, b_small, b_inverse), b_small * b_inverse


@triton.jit
def nade_outputs_fwd_kernel(
    p_x,
    p_w,
    p_start,
    p_v,
    p_b,
    p_s,
    p_out,
    rows,
    size,
    hidden,
    classes,
    outputs,
    steps,
    CLASSES: tl.constexpr,
    BR: tl.constexpr,
    BH: tl.constexpr,
):
    """The part of some hidden units in the outputs [rows, size, outputs] of a block of dimensions."""
    ACC: tl.constexpr = p_out.dtype.element_ty
    o_r = (tl.program_id(0) * BR + tl.arange(0, BR)).to(tl.int64)
    o_h = tl.program_id(2) * BH + tl.arange(0, BH)
    mask_r = o_r < rows
    mask_h = o_h < hidden
    o_block = tl.program_id(1)
    p_start += (o_block.to(tl.int64) * rows + o_r[:, None]) * hidden + o_h[None, :]
    b_a = tl.load(p_start, mask_r[:, None] & mask_h[None, :], other=0.0)
    p_out += tl.program_id(2).to(tl.int64) * rows * size * outputs
    first = o_block * steps
    for d in range(first, tl.minimum(first + steps, size)):
        o_d = tl.full([1], d, tl.int64)
        b_scale = tl.full([1], 1.0, ACC) if p_s is None else tl.load(p_s + o_d)
        b_h, _ = sigmoid(b_a * b_scale[None, :])
        o_x = o_r * size + o_d
        for k in range(outputs):
            o_k = o_d * outputs + k
            b_v = tl.load(p_v + o_k * hidden + o_h, mask_h, other=0.0).to(ACC)
            # The bias comes with the first units.
            b_bias = tl.load(p_b + o_k, (o_k >= 0) & (tl.program_id(2) == 0), other=0.0)
            b_o = tl.sum(b_h * b_v[None, :], 1) + b_bias
            tl.store(p_out + o_x * outputs + k, b_o, mask_r)
        b_x = load_input(p_x + o_x, mask_r, classes, CLASSES, ACC)
        b_w = load_step(p_w + o_d * classes * hidden, b_x, o_h, mask_h, hidden, CLASSES)
        b_a = advanced(b_a, b_x, b_w, 1.0, CLASSES)


@triton.jit
def add_to(p, mask, started, b_more):
    """The sums at p plus more; they begin with it unless ``started``."""
    tl.store(p, tl.load(p, mask & started, other=0.0) + b_more, mask)


@triton.jit
def nade_outputs_bwd_kernel(
    p_x,
    p_w,
    p_start,
    p_v,
    p_s,
    p_g,
    p_sums,
    p_gv,
    p_gw,
    p_gx,
    p_gs,
    rows,
    size,
    hidden,
    classes,
    outputs,
    steps,
    tiles,
    CLASSES: tl.constexpr,
    RESTART: tl.constexpr,
    BR: tl.constexpr,
    BH: tl.constexpr,
):
    """Gradients of a block of dimensions from those of its outputs, over some tiles of rows.

    With S_d the sum of the gradients of the pre-activations after d within the block: sums over the rows of
    G_d h_d (p_gv) and of x_d S_d (p_gw), and of each row W_d S_d (p_gx) and, last block first, S before
    the block (p_sums). Pre-activations run to the end of the block and back, or with RESTART from its
    start to each dimension: steps of data of any size could not be undone without a trace.
    """
    ACC: tl.constexpr = p_sums.dtype.element_ty
    o_h = tl.program_id(2) * BH + tl.arange(0, BH)
    mask_h = o_h < hidden
    o_block = tl.program_id(1)
    o_part = tl.program_id(0).to(tl.int64)
    first = o_block * steps
    count = tl.minimum(first + steps, size) - first
    p_gv += o_part * size * outputs * hidden
    if p_gw is not None:
        p_gw += o_part * size * classes * hidden
    if p_gx is not None:
        p_gx += tl.program_id(2).to(tl.int64) * rows * size
    if p_gs is not None:
        p_gs += (o_part * tl.num_programs(2) + tl.program_id(2)) * size
    for tile in range(tiles):
        started = tile > 0
        o_r = (o_part * tiles + tile) * BR + tl.arange(0, BR)
        mask_r = o_r < rows
        mask = mask_r[:, None] & mask_h[None, :]
        o_state = o_r[:, None] * hidden + o_h[None, :]
        p_a = p_start + o_block.to(tl.int64) * rows * hidden + o_state
        b_start = tl.load(p_a, mask, other=0.0)
        b_a = b_start
        if not RESTART:
            for i in range(count):
                o_d = tl.full([1], first + i, tl.int64)
                b_x = load_input(p_x + o_r * size + o_d, mask_r, classes, CLASSES, ACC)
                b_w = load_step(p_w + o_d * classes * hidden, b_x, o_h, mask_h, hidden, CLASSES)
                b_a = advanced(b_a, b_x, b_w, 1.0, CLASSES)
        b_s = tl.zeros([BR, BH], ACC)
        for i in range(count):
            o_d = tl.full([1], first + count - 1 - i, tl.int64)
            o_x = o_r * size + o_d
            b_x = load_input(p_x + o_x, mask_r, classes, CLASSES, ACC)
            b_w = load_step(p_w + o_d * classes * hidden, b_x, o_h, mask_h, hidden, CLASSES)
            if RESTART:
                b_a = b_start
                for j in range(count - 1 - i):
                    o_j = tl.full([1], first + j, tl.int64)
                    b_xj = load_input(p_x + o_r * size + o_j, mask_r, classes, CLASSES, ACC)
                    b_wj = load_step(p_w + o_j * hidden, b_xj, o_h, mask_h, hidden, CLASSES)
                    b_a = advanced(b_a, b_xj, b_wj, 1.0, CLASSES)
            else:
                b_a = advanced(b_a, b_x, b_w, -1.0, CLASSES)
            if not CLASSES:
                if p_gw is not None:
                    b_gw = tl.sum(b_x[:, None] * b_s, 0)
                    add_to(p_gw + o_d * hidden + o_h, mask_h, started, b_gw)
                if p_gx is not None:
                    tl.store(p_gx + o_x, tl.sum(b_w * b_s, 1), mask_r)
            b_scale = tl.full([1], 1.0, ACC) if p_s is None else tl.load(p_s + o_d)
            b_h, b_slope = sigmoid(b_a * b_scale[None, :])
            b_gh = tl.zeros([BR, BH], ACC)
            for k in range(outputs):
                o_k = o_d * outputs + k
                b_v = tl.load(p_v + o_k * hidden + o_h, mask_h, other=0.0).to(ACC)
                b_g = tl.load(p_g + o_x * outputs + k, mask_r, other=0.0)[:, None]
                b_gh += b_g * b_v[None, :]
                add_to(p_gv + o_k * hidden + o_h, mask_h, started, tl.sum(b_g * b_h, 0))
                if CLASSES and p_gw is not None:
                    # Inputs have the classes of outputs.
                    b_gw = tl.sum(tl.where((b_x == k)[:, None], b_s, 0.0), 0)
                    add_to(p_gw + o_k * hidden + o_h, mask_h, started, b_gw)
            b_gh *= b_slope
            if p_gs is not None:
                b_gs = tl.sum(tl.sum(b_gh * b_a, 1), 0)
                add_to(p_gs + o_d, o_d >= 0, started, b_gs)
            b_s += b_gh * b_scale[None, :]
        o_back = (tl.num_programs(1) - 1 - o_block).to(tl.int64)
        tl.store(p_sums + o_back * rows * hidden + o_state, b_s, mask)
        # Sums over rows are read again by the next tile.
        tl.debug_barrier()


class OutputGradients(NamedTuple):
    """Gradients in the accumulator's dtype; None where not wanted."""

    W: Tensor | None
    c: Tensor
    # [D, outputs, H] and [D, outputs], of all layers
    V: Tensor
    b: Tensor
    x: Tensor | None
    scale: Tensor | None


class _Blocks(NamedTuple):
    """Rows and hidden units of a program, dimensions of a block; how many blocks and groups of units."""

    rows: int
    units: int
    steps: int
    blocks: int
    groups: int


class Recurrence:
    """A NADE and its data as the kernels take them: dimensions first, hidden units last.

    ``layers`` are pairs of weights [D, K, H] (or [D, H]) and biases, whose outputs lie side by side. Data
    that are not ``real`` are at most 1.
    """

    def __init__(
        self,
        x: Tensor,
        W: Tensor,
        c: Tensor,
        layers: Sequence[tuple[Tensor, Tensor]],
        scale: Tensor | None = None,
        *,
        real: bool = False,
    ) -> None:
        self.dtype = accumulator(W)
        self.hidden, self.size = W.shape[:2]
        self.one_hot = W.ndim == 3
        self.real = real
        self.classes = W.shape[2] if self.one_hot else 1
        self.rows = x.shape[0]
        self.x = numeric(x).contiguous() if self.one_hot else x.to(self.dtype).contiguous()
        # [D, C, H]
        weight = (W if self.one_hot else W.unsqueeze(2)).permute(1, 2, 0)
        self.weight = weight.to(self.dtype).contiguous()
        self.c = c.to(self.dtype)
        self.V = torch.cat([V.reshape(self.size, -1, self.hidden) for V, _ in layers], 1)
        self.b = torch.cat([b.reshape(self.size, -1) for _, b in layers], 1).to(self.dtype)
        self.outputs = self.V.shape[1]
        self.scale = None if scale is None else scale.to(self.dtype).contiguous()

    def forward(self) -> Tensor:
        """The outputs of all conditionals, [B, D, outputs]."""
        out = self.c.new_empty((self.rows, self.size, self.outputs))
        if self.rows == 0:
            return out
        block = self._blocks(_TILE, _UNITS)
        entries = 2 * block.blocks * self.hidden + self.size * self.outputs * block.groups
        for chunk in self._chunks(entries):
            x = self.x[chunk]
            rows = x.shape[0]
            to = out[chunk]
            parts = to if block.groups == 1 else out.new_empty((block.groups, *to.shape))
            launch(
                nade_outputs_fwd_kernel,
                (triton.cdiv(rows, block.rows), block.blocks, block.groups),
                x,
                self.weight,
                self._starts(x, block),
                self.V,
                self.b,
                self.scale,
                parts,
                rows,
                self.size,
                self.hidden,
                self.classes,
                self.outputs,
                block.steps,
                CLASSES=self.one_hot,
                BR=block.rows,
                BH=block.units,
                num_warps=1,
            )
            if block.groups > 1:
                torch.sum(parts, 0, out=to)
        return out

    def backward(
        self, grad: Tensor, want_W: bool, want_x: bool = False, want_scale: bool = False
    ) -> OutputGradients:
        """Gradients from those of the outputs; that of ``x`` without what reaches it directly."""
        gradients = OutputGradients(
            self.weight.new_zeros(self.weight.shape) if want_W else None,
            self.c.new_zeros(self.c.shape),
            self.c.new_zeros(self.V.shape),
            grad.sum(0),
            self.c.new_zeros(self.x.shape) if want_x else None,
            self.c.new_zeros(self.size) if want_scale and self.scale is not None else None,
        )
        if self.rows == 0:
            return gradients
        most = max(1, _PART_ENTRIES // (self.V.numel() + (self.weight.numel() if want_W else 0)))
        tile = _BACKWARD_TILE if self.outputs == 1 else _BACKWARD_TILE // 2
        block = self._blocks(tile, _BACKWARD_UNITS, most)
        for chunk in self._chunks(4 * block.blocks * self.hidden):
            self._backward(chunk, block, most, grad[chunk], gradients)
        return gradients

    def _backward(
        self, chunk: slice, block: _Blocks, most: int, grad: Tensor, to: OutputGradients
    ) -> None:
        """Adds the gradients of a chunk of rows, with at most so many partial sums over them."""
        x = self.x[chunk]
        rows = x.shape[0]
        row_tiles = triton.cdiv(rows, block.rows)
        wanted = triton.cdiv(_PROGRAMS, block.blocks * block.groups)
        tiles = triton.cdiv(row_tiles, min(row_tiles, most, wanted))
        parts = triton.cdiv(row_tiles, tiles)
        new = self.c.new_empty
        sums = new((block.blocks, rows, self.hidden))
        part_W = None if to.W is None else new((parts, *to.W.shape))
        part_V = new((parts, *to.V.shape))
        part_x = None if to.x is None else new((block.groups, *x.shape))
        part_scale = None if to.scale is None else new((parts * block.groups, self.size))
        launch(
            nade_outputs_bwd_kernel,
            (parts, block.blocks, block.groups),
            x,
            self.weight,
            self._starts(x, block),
            self.V,
            self.scale,
            grad,
            sums,
            part_V,
            part_W,
            part_x,
            part_scale,
            rows,
            self.size,
            self.hidden,
            self.classes,
            self.outputs,
            block.steps,
            tiles,
            CLASSES=self.one_hot,
            RESTART=self.real,
            BR=block.rows,
            BH=block.units,
            num_warps=1,
        )
        to.c.add_(sums.sum((0, 1)))
        to.V.add_(part_V.sum(0))
        # Sums over the blocks after each one, of which the last has none.
        after = sums[:-1].cumsum(0).flip(0)
        if to.scale is not None and part_scale is not None:
            to.scale.add_(part_scale.sum(0))
        if to.W is not None and part_W is not None:
            to.W.add_(part_W.sum(0))
            weights = self._weights(to.W, block)
            inputs = self._inputs(x, block).transpose(1, 2)
            weights.add_(torch.bmm(inputs, after, out=torch.empty_like(weights)))
        if to.x is not None and part_x is not None:
            torch.sum(part_x, 0, out=to.x[chunk])
            weights = self._weights(self.weight, block).transpose(1, 2)
            later = torch.bmm(after, weights, out=new((block.blocks - 1, rows, block.steps)))
            self._inputs(to.x[chunk], block).add_(later)

    def _blocks(self, tile: int, most_units: int, most_parts: int | None = None) -> _Blocks:
        """Blocks of ``tile`` pre-activations, whose rows make ``most_parts`` programs at most."""
        tile = tile // 2 if self.dtype == torch.float64 else tile
        units = min(most_units, max(32, triton.next_power_of_2(self.hidden)))
        groups = triton.cdiv(self.hidden, units)
        rows = min(8, tile // units, triton.next_power_of_2(self.rows))
        parts = triton.cdiv(self.rows, rows)
        programs = groups * (parts if most_parts is None else min(parts, most_parts))
        least, steps = _STEPS
        if self.real and most_parts is not None:
            steps = min(steps, _RESTART_STEPS)
        while steps > least and programs * triton.cdiv(self.size, steps) < _PROGRAMS:
            steps //= 2
        blocks = triton.cdiv(self.size, steps)
        return _Blocks(spread(rows, self.rows * blocks * groups), units, steps, blocks, groups)

    def _chunks(self, entries: int) -> Iterator[slice]:
        """Chunks of rows, each with so many entries of temporaries."""
        chunks = triton.cdiv(self.rows, max(_ROWS, _ROW_ENTRIES // entries))
        count = triton.cdiv(self.rows, chunks)
        for first in range(0, self.rows, count):
            yield slice(first, min(first + count, self.rows))

    def _inputs(self, x: Tensor, block: _Blocks) -> Tensor:
        """Data of all blocks but the last, [blocks - 1, rows, steps classes]; numbers are not copied."""
        count = block.blocks - 1
        x = x[:, : count * block.steps]
        if self.one_hot:
            classes = torch.arange(self.classes, device=x.device)
            x = (x.unsqueeze(-1) == classes).to(self.dtype)
        return x.view(x.shape[0], count, block.steps * self.classes).transpose(0, 1)

    def _weights(self, weight: Tensor, block: _Blocks) -> Tensor:
        """Weights [D, C, H] of all blocks but the last, [blocks - 1, steps classes, H]."""
        count = block.blocks - 1
        return weight[: count * block.steps].view(count, block.steps * self.classes, self.hidden)

    def _starts(self, x: Tensor, block: _Blocks) -> Tensor:
        """Pre-activations before each block, [blocks, rows, H]."""
        starts = self.c.new_empty((block.blocks, x.shape[0], self.hidden))
        starts[0] = self.c
        # Into memory that is there, as all products here: autocast lets those be.
        torch.bmm(self._inputs(x, block), self._weights(self.weight, block), out=starts[1:])
        return starts.cumsum_(0)
