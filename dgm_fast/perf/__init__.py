"""Benchmarks: a registry of cases, a runner that checks before it times, and result files.

Register an op of your own::

    from dgm_fast import perf

    @perf.case("my_op", ours=my_op, eager=my_plain_op, sizes={"large": (4096, 784)}, grads=["x"])
    def inputs(shape, dtype, generator):
        return {"x": torch.randn(shape, generator=generator).to(dtype)}

    result = perf.run_suite(perf.REGISTRY.select("my_op"), perf.Options())
    print(perf.plain_text(result))
"""

from dgm_fast.perf.registry import REGISTRY, SIZES, Case, Cost, Registry, builtin_registry, case
from dgm_fast.perf.results import ResultError, compare, load, save
from dgm_fast.perf.runner import Options, run_case, run_suite
from dgm_fast.perf.table import plain_text

__all__ = [
    "REGISTRY",
    "SIZES",
    "Case",
    "Cost",
    "Options",
    "Registry",
    "ResultError",
    "builtin_registry",
    "case",
    "compare",
    "load",
    "plain_text",
    "run_case",
    "run_suite",
    "save",
]
