"""A small result, as the runner makes them, for tests of what reads results."""

from __future__ import annotations

from typing import Any

from dgm_fast.perf import machine, results


def variant(ms: float, *, spread: float = 0.1) -> dict[str, Any]:
    return {
        "ms": ms,
        "q1": ms - spread,
        "q3": ms + spread,
        "inner": 3,
        "rounds": [ms - spread, ms, ms + spread],
    }


def make_result(**facts: Any) -> dict[str, Any]:
    described = {
        "device": "cpu",
        "cpu": "Example(R) CPU @ 2.00GHz",
        "cores": 2,
        "isa": "avx2",
        "threads": 2,
        "gpu": None,
        "torch": "2.13.0",
        "triton": None,
        "driver": None,
        "commit": "0123456789abcdef",
        "dirty": False,
        "ours": "cpp",
        "ours_reason": "CPU tensors",
        **facts,
    }
    described["fingerprint"] = machine.fingerprint(described)
    record = {
        "case": "elbo/medium/float32",
        "op": "elbo",
        "variant": "",
        "family": "latent",
        "size": "medium",
        "shape": [128, 784, 50],
        "dtype": "float32",
        "status": "ok",
        "failures": [],
        "unavailable": {},
        "wrong": {},
        "bytes": {"forward": 10**6, "backward": 10**6, "both": 2 * 10**6},
        "flops": {"forward": 0, "backward": 0, "both": 0},
        "memory": {
            "eager": {"saved_bytes": 3_000_000, "peak_bytes": 9_000_000},
            "ours": {"saved_bytes": 512, "peak_bytes": 1_000_000},
        },
        "modes": {
            "forward": {"eager": variant(0.5), "compile": variant(0.3), "ours": variant(0.6)},
            "both": {
                "eager": variant(4.0),
                "compile": variant(2.0),
                "peer": variant(3.0),
                "ours": variant(1.0),
            },
        },
    }
    return {
        "schema": {"name": results.SCHEMA_NAME, "version": results.SCHEMA_VERSION},
        "created": "2026-01-31T10:00:00+00:00",
        "suite": "cpu",
        "machine": described,
        "settings": {},
        "ceiling": {"copy": {"2": {"1000": 4.0}}, "gemm": {"2": {"float32": 0.1}}},
        "records": [record],
    }
