"""Maps of single elements with a row of parameters each: offsets, strides, and how programs share them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from dgm_fast.kernels._layout import collapse, index_type
from torch import Tensor

ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}
# Elements times parameters of a program.
_BLOCK = 512


@triton.jit
def element_offsets(inner, IDX: tl.constexpr, BE: tl.constexpr):
    """Numbers of a program's elements, and their outer and inner coordinates, [BE]."""
    o_e = tl.program_id(0).to(IDX) * BE + tl.arange(0, BE).to(IDX)
    return o_e, (o_e // inner).to(tl.int64), (o_e % inner).to(tl.int64)


class ElementPlan:
    """Elements as [outer, inner] with two strides a tensor, over copies where strides do not allow it."""

    def __init__(
        self, x: Tensor, parameters: Sequence[Tensor], others: Sequence[Tensor | None]
    ) -> None:
        self.shape = x.shape
        # A column stands for its row; an empty one for nothing that is read.
        columns = [p[..., :1] if p.shape[-1] else parameters[0][..., :1] for p in parameters]
        aligned = [
            x.unsqueeze(-1),
            *columns,
            *(None if t is None else t.unsqueeze(-1) for t in others),
        ]
        full = (*x.shape, 1)
        rows = collapse(torch.Size(full), 1, aligned)
        self.tensors = [x, *parameters, *others]
        if rows is None:
            self.tensors = [
                None
                if t is None
                else t.expand(*x.shape, t.shape[-1]).contiguous()
                if 0 < i <= len(parameters)
                else t.expand(x.shape).contiguous()
                for i, t in enumerate(self.tensors)
            ]
            # A parameter without columns has no stride to tell.
            stand_in = self.tensors[1]
            assert stand_in is not None
            copies = [
                None
                if t is None
                else t.unsqueeze(-1)
                if not 0 < i <= len(parameters)
                else (t if t.shape[-1] else stand_in)[..., :1]
                for i, t in enumerate(self.tensors)
            ]
            rows = collapse(torch.Size(full), 1, copies)
            assert rows is not None
        self.inner = rows.inner
        self.strides = [s for two in rows.strides for s in two[:2]]
        self.parameter_strides = [
            t.stride(-1) for t in self.tensors[1 : 1 + len(parameters)] if t is not None
        ]
        widest = max(p.shape[-1] for p in parameters)
        self.columns = triton.next_power_of_2(max(widest, 2))
        self.block = max(_BLOCK // self.columns, 1)
        self.elements = x.numel()
        self.index = index_type(self.elements * widest)

    @property
    def grid(self) -> tuple[int]:
        return (triton.cdiv(self.elements, self.block),)
