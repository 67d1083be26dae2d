"""Result files: JSON with schema version, machine fingerprint and checksum, written atomically."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgm_fast.perf import machine
from dgm_fast.perf.files import write_whole

SCHEMA_NAME = "dgm_fast.perf"
SCHEMA_VERSION = 1
RESULTS = Path("benchmarks") / "results"
REQUIRED = ("created", "suite", "machine", "settings", "ceiling", "records")


class ResultError(ValueError):
    """A result file that cannot be used, or two that cannot be compared."""


@dataclass(frozen=True)
class Change:
    """One variant of one case in two results of the same machine."""

    case: str
    mode: str
    variant: str
    before_ms: float
    after_ms: float

    @property
    def ratio(self) -> float:
        """Time after over time before: above 1 is slower."""
        return self.after_ms / self.before_ms


def default_path(result: dict[str, Any], directory: Path = RESULTS) -> Path:
    """``<date>-<machine>-<suite>.json``, numbered where that exists already."""
    stem = f"{result['created'][:10]}-{machine.slug(result['machine'])}-{result['suite']}"
    path = directory / f"{stem}.json"
    number = 2
    while path.exists():
        path = directory / f"{stem}-{number}.json"
        number += 1
    return path


def save(result: dict[str, Any], path: Path) -> Path:
    """Write a result in one step: the file is complete or it is not there.

    Raises:
        ResultError: if the result lacks a part, or a value is not finite.
    """
    for name in ("schema", *REQUIRED):
        if name not in result:
            raise ResultError(f"this result has no {name!r}")
    body = {key: value for key, value in result.items() if key != "checksum"}
    try:
        text = _layout({**body, "checksum": _checksum(body)})
    except ValueError as error:
        raise ResultError(f"this result cannot be written as JSON: {error}") from error
    return write_whole(path, text)


def load(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        FileNotFoundError: if there is no such file.
        ResultError: if the file is not a result of this schema version, is damaged or was edited.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        result = json.loads(text)
    except json.JSONDecodeError as error:
        raise ResultError(f"{path} is not valid JSON, perhaps cut off: {error}") from error
    schema = result.get("schema") if isinstance(result, dict) else None
    if not isinstance(schema, dict) or schema.get("name") != SCHEMA_NAME:
        raise ResultError(f"{path} is not a result file of {SCHEMA_NAME}")
    if schema.get("version") != SCHEMA_VERSION:
        raise ResultError(
            f"{path} has schema version {schema.get('version')}, this release reads "
            f"{SCHEMA_VERSION}: measure again, or read it with the release that wrote it"
        )
    missing = [name for name in (*REQUIRED, "checksum") if name not in result]
    if missing:
        raise ResultError(f"{path} is damaged: it has no {', '.join(missing)}")
    checksum = result.pop("checksum")
    if checksum != _checksum(result):
        raise ResultError(f"{path} is damaged or was edited: its checksum does not match")
    return result


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Every case, mode and variant that both results measured.

    Raises:
        ResultError: if the results come from different machines, threads or software versions.
    """
    differences = machine.differences(before["machine"], after["machine"])
    if differences:
        raise ResultError(
            "results of different machines are not compared (" + "; ".join(differences) + ")"
        )
    earlier = {record["case"]: record for record in before["records"]}
    changes = []
    for record in after["records"]:
        old_modes = earlier.get(record["case"], {}).get("modes", {})
        for mode, by_variant in record.get("modes", {}).items():
            for variant, new in by_variant.items():
                old = old_modes.get(mode, {}).get(variant)
                if old is not None:
                    changes.append(Change(record["case"], mode, variant, old["ms"], new["ms"]))
    return changes


def _checksum(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _layout(result: dict[str, Any]) -> str:
    """JSON with one line per record: short files whose diffs name the cases that changed."""
    lines = []
    for key, value in result.items():
        if key == "records":
            rows = ",\n".join(f"  {json.dumps(r, allow_nan=False)}" for r in value)
            lines.append(f' "records": [\n{rows}\n ]' if rows else ' "records": []')
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
