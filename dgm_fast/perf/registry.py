"""The registry of benchmark cases: one entry per op, size and dtype, shared by every tool.

The same cases feed ``python -m dgm_fast.perf run``, the pytest-benchmark suite in ``benchmarks/``
and the GPU script. Users register their own ops with :func:`case`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SIZES = ("small", "medium", "large", "odd")
BUILTIN_MODULES = (
    "dgm_fast.perf.cases_likelihood",
    "dgm_fast.perf.cases_latent",
    "dgm_fast.perf.cases_mixture",
    "dgm_fast.perf.cases_linear_head",
    "dgm_fast.perf.cases_masked",
    "dgm_fast.perf.cases_nade",
    "dgm_fast.perf.cases_pixel",
    "dgm_fast.perf.cases_pixel_sampling",
    "dgm_fast.perf.cases_coupling",
    "dgm_fast.perf.cases_spline",
    "dgm_fast.perf.cases_autoregressive",
    "dgm_fast.perf.cases_adversarial",
    "dgm_fast.perf.cases_flows",
)

Inputs = dict[str, Tensor]
# What a case returns: one tensor, or several that are differentiated together.
Outputs = Tensor | tuple[Tensor, ...]
Flops = tuple[int, int]
Builder = Callable[[tuple[int, ...], torch.dtype, torch.Generator], Inputs]


@dataclass(frozen=True)
class Cost:
    """The least work an implementation can do, counted once and for all by the case.

    Bytes: every input read once, every output written once; no intermediates. FLOPs: additions,
    multiplications and transcendental functions count one each.
    """

    forward_bytes: int
    backward_bytes: int
    forward_flops: int = 0
    backward_flops: int = 0

    def of(self, mode: str) -> tuple[int, int]:
        """(bytes, FLOPs) of a mode; (0, 0) where the registry does not count (second order)."""
        if mode == "forward":
            return self.forward_bytes, self.forward_flops
        if mode == "backward":
            return self.backward_bytes, self.backward_flops
        if mode == "both":
            return (
                self.forward_bytes + self.backward_bytes,
                self.forward_flops + self.backward_flops,
            )
        return 0, 0


@dataclass(frozen=True)
class Case:
    """One op at one size in one dtype, with what it is compared with."""

    op: str
    variant: str
    family: str
    size: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    build: Builder
    ours: Callable[..., Outputs]
    eager: Callable[..., Outputs]
    grads: tuple[str, ...]
    peers: Mapping[str, Callable[..., Outputs]] = field(default_factory=dict)
    # (forward, backward) operations per element of the first input.
    flops_per_element: Flops = (0, 0)
    # Inputs the backward has to read; None means all of them.
    backward_reads: tuple[str, ...] | None = None
    # Inputs that only rivals need; not counted.
    rival_inputs: tuple[str, ...] = ()
    second_order: bool = False
    # Too large to build several at once.
    heavy: bool = False
    # Whether torch.compile of the eager form competes: it unrolls a long loop for hours.
    compiled: bool = True
    quick: bool = True

    @property
    def name(self) -> str:
        op = f"{self.op}.{self.variant}" if self.variant else self.op
        return f"{op}/{self.size}/{dtype_name(self.dtype)}"

    def inputs(self, device: torch.device | str = "cpu", seed: int = 0) -> Inputs:
        """Fresh inputs, the same numbers on every device; those in ``grads`` require grad."""
        generator = torch.Generator().manual_seed(seed)
        built = self.build(self.shape, self.dtype, generator)
        unknown = set(self.grads) - set(built)
        if unknown:
            raise ValueError(
                f"case {self.name}: grads names {sorted(unknown)}, but inputs are {list(built)}"
            )
        return {
            name: value.detach().to(device).requires_grad_(name in self.grads)
            for name, value in built.items()
        }

    def cost(self, inputs: Inputs, *outputs: Tensor) -> Cost:
        """Byte and FLOP counts for these inputs and outputs."""
        inputs = {name: t for name, t in inputs.items() if name not in self.rival_inputs}
        reads = self.backward_reads if self.backward_reads is not None else tuple(inputs)
        elements = next(iter(inputs.values())).numel()
        out_bytes = sum(out.nbytes for out in outputs)
        return Cost(
            forward_bytes=sum(distinct_bytes(t) for t in inputs.values()) + out_bytes,
            backward_bytes=out_bytes
            + sum(distinct_bytes(inputs[name]) for name in reads)
            + sum(inputs[name].nbytes for name in self.grads),
            forward_flops=self.flops_per_element[0] * elements,
            backward_flops=self.flops_per_element[1] * elements,
        )


def distinct_bytes(t: Tensor) -> int:
    """Bytes that a reader of ``t`` must fetch: a broadcast (stride 0) dimension is fetched once."""
    elements = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        elements *= size if stride or size == 0 else 1
    return elements * t.element_size()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Registry:
    """Cases by name, in the order of registration."""

    def __init__(self) -> None:
        self._cases: dict[str, Case] = {}

    def add(self, case: Case) -> None:
        if case.name in self._cases:
            raise ValueError(f"a benchmark case named {case.name!r} is already registered")
        self._cases[case.name] = case

    def all(self) -> list[Case]:
        return list(self._cases.values())

    def select(self, expression: str = "", *, quick: bool = False) -> list[Case]:
        """Cases whose names match; ``quick`` keeps those meant for quick runs.

        Raises:
            ValueError: if the expression is malformed or nothing matches.
        """
        matches = compile_expression(expression)
        chosen = [c for c in self.all() if matches(c.name) and (c.quick or not quick)]
        if not chosen:
            raise ValueError(f"no benchmark case matches {expression!r}")
        return chosen


REGISTRY = Registry()


def builtin_registry() -> Registry:
    """The registry with the library's own cases in it (and whatever users added)."""
    for module in BUILTIN_MODULES:
        importlib.import_module(module)
    return REGISTRY


def case(
    op: str,
    *,
    ours: Callable[..., Outputs],
    eager: Callable[..., Outputs],
    sizes: Mapping[str, tuple[int, ...]],
    grads: Sequence[str],
    dtypes: Mapping[str, Sequence[torch.dtype]] | Sequence[torch.dtype] = (torch.float32,),
    variant: str = "",
    family: str = "user",
    peers: Mapping[str, Callable[..., Outputs]] | None = None,
    flops_per_element: Flops | Callable[[tuple[int, ...]], Flops] = (0, 0),
    backward_reads: Sequence[str] | None = None,
    rival_inputs: Sequence[str] = (),
    second_order: Sequence[str] = (),
    heavy: Sequence[str] = (),
    compiled: bool = True,
    quick: Sequence[str] | None = None,
    registry: Registry | None = None,
) -> Callable[[Builder], Builder]:
    """Register a benchmark case for every size, by decorating the function that builds inputs.

    The builder gets ``(shape, dtype, generator)`` and returns named CPU tensors; ``ours``,
    ``eager`` and ``peers`` are called with them as keyword arguments and must return the same values:
    one tensor, or a tuple of tensors, all differentiated. ``torch.compile`` of ``eager`` is timed
    without being asked for.

        @perf.case("softplus", ours=my_softplus, eager=F.softplus, sizes={"large": (4096, 784)},
                   grads=["input"])
        def inputs(shape, dtype, generator):
            return {"input": torch.randn(shape, generator=generator).to(dtype)}

    Args:
        op: name of the op.
        ours: the implementation under test.
        eager: the plain form that a good user would write: the rival, and in float64 the truth.
        sizes: size label ("small", "medium", "large", "odd", or one of your own) to shape.
        grads: names of the inputs that get gradients; () for what is not differentiated (samplers), of
            which only the forward is timed.
        dtypes: dtypes of every size, or a mapping from size to its dtypes (float32 where absent).
        variant: tells apart several kinds of case of one op.
        family: groups ops in reports.
        peers: other libraries' implementations, by name.
        flops_per_element: (forward, backward) operations per element of the first input, or a
            function of the shape that gives them.
        backward_reads: inputs that the backward has to read, for the byte count (default: all).
        rival_inputs: inputs that only rivals need, such as a mask; the byte count leaves them out.
        second_order: sizes at which second derivatives are timed too.
        heavy: sizes that fill gigabytes: never built several at a time.
        compiled: whether ``torch.compile`` of ``eager`` is a rival too.
        quick: sizes timed in quick runs (default: all but "large" and "odd").
        registry: where to enter the cases (default: the process-wide one).

    Raises:
        ValueError: if ``sizes`` is empty, or a case of the same name exists.
    """
    if not sizes:
        raise ValueError(f"case {op!r} needs at least one size")

    def register(build: Builder) -> Builder:
        for size, shape in sizes.items():
            of_size = dtypes.get(size, (torch.float32,)) if isinstance(dtypes, Mapping) else dtypes
            for dtype in of_size:
                (REGISTRY if registry is None else registry).add(
                    Case(
                        op=op,
                        variant=variant,
                        family=family,
                        size=size,
                        shape=tuple(shape),
                        dtype=dtype,
                        build=build,
                        ours=ours,
                        eager=eager,
                        grads=tuple(grads),
                        peers=dict(peers or {}),
                        flops_per_element=flops_per_element(tuple(shape))
                        if callable(flops_per_element)
                        else flops_per_element,
                        backward_reads=None if backward_reads is None else tuple(backward_reads),
                        rival_inputs=tuple(rival_inputs),
                        second_order=size in second_order,
                        heavy=size in heavy,
                        compiled=compiled,
                        quick=size not in ("large", "odd") if quick is None else size in quick,
                    )
                )
        return build

    return register


def compile_expression(expression: str) -> Callable[[str], bool]:
    """A predicate from words joined by ``and``, ``or``, ``not`` and parentheses.

    A word matches a name that contains it. An empty expression matches everything.

    Raises:
        ValueError: if the expression is malformed.
    """
    tokens = re.findall(r"[()]|[^\s()]+", expression)
    position = 0

    def peek() -> str | None:
        return tokens[position] if position < len(tokens) else None

    def take() -> str:
        nonlocal position
        token = peek()
        if token is None:
            raise ValueError(f"selection {expression!r} ends too early")
        position += 1
        return token

    def disjunction() -> Callable[[str], bool]:
        left = conjunction()
        while peek() == "or":
            take()
            left = _either(left, conjunction())
        return left

    def conjunction() -> Callable[[str], bool]:
        left = atom()
        while peek() == "and":
            take()
            left = _both(left, atom())
        return left

    def atom() -> Callable[[str], bool]:
        token = take()
        if token == "not":
            inner = atom()
            return lambda name: not inner(name)
        if token == "(":
            inside = disjunction()
            if take() != ")":
                raise ValueError(f"selection {expression!r} lacks a closing parenthesis")
            return inside
        if token in ("and", "or", ")"):
            raise ValueError(f"selection {expression!r} has a misplaced {token!r}")
        return lambda name: token in name

    if not tokens:
        return lambda name: True
    predicate = disjunction()
    if peek() is not None:
        raise ValueError(f"selection {expression!r} has a misplaced {peek()!r}")
    return predicate


def _either(a: Callable[[str], Any], b: Callable[[str], Any]) -> Callable[[str], bool]:
    return lambda name: a(name) or b(name)


def _both(a: Callable[[str], Any], b: Callable[[str], Any]) -> Callable[[str], bool]:
    return lambda name: a(name) and b(name)
