"""The command ``dgm-fast doctor``."""

from __future__ import annotations

import json
import sys

import click

from dgm_fast.health import Report, run_doctor

__all__ = ["Report", "doctor", "run_doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("--strict", is_flag=True, help="Exit with 1 on a degraded installation, too.")
def doctor(as_json: bool, strict: bool) -> None:
    """Say what this installation has, which backend every op uses, and whether the ops are right.

    Every op runs on a small example and is compared with its reference formula in float64: the
    value and each gradient.

    \b
    Exit status:
      0  healthy, or degraded: something is missing (the C++ extension is not built,
         or Triton is not installed beside a GPU), so that ops run as plain PyTorch:
         right, but slower
      1  broken: a self-check failed, the extension is there but does not load, or
         the chosen backend serves no device; with --strict also when degraded
    """
    report = run_doctor()
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))
    sys.exit(1 if report.status == "broken" or (strict and report.status == "degraded") else 0)
