"""``dgm-fast demo``: the same training with plain PyTorch and with the fused ops, side by side."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import click
import torch

from dgm_fast import ops
from dgm_fast.data import load_dataset
from dgm_fast.data.extras import MissingExtraError, require
from dgm_fast.train import session as sessions
from dgm_fast.train.comparison import Variant, compare_steps, largest_difference
from dgm_fast.train.config import TrainConfig
from dgm_fast.train.files import write_json
from dgm_fast.train.interrupt import StopSignals
from dgm_fast.train.plots import plot_losses, plot_step_times
from dgm_fast.train.progress import RichProgress, make_console
from dgm_fast.train.run_directory import RunDirectory
from dgm_fast.train.trainer import TrainingDiverged

# Both runs do the same arithmetic in another order. Training is chaotic: the rounding difference
# (1e-8 of the loss in the first epoch) grows about threefold an epoch until the runs are as far apart
# as any two that round differently, near 1e-3 of the loss after 13 epochs. A gradient that points
# elsewhere shows in the first epochs, so these must agree closely and the later ones as such runs do.
EARLY_EPOCHS = 5
EARLY_TOLERANCE = 1e-4
TOLERANCE = 1e-2
LEARNING_RATE = 2e-3
MIB = 2**20


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=12, show_default=True)
@click.option("--num-samples", type=click.IntRange(1), default=50, show_default=True, help="K.")
@click.option("--hidden-size", type=click.IntRange(1), default=200, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True, help="Of timing.")
@click.option("--eval-samples", type=click.IntRange(1), default=500, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--compile/--no-compile", "with_compile", default=True, help="Measure the rival.")
@click.pass_context
def demo(ctx: click.Context, out: Path, **options: Any) -> None:
    """Train an IWAE on the digits twice and compare: reference ops, then fused ops.

    Both runs start from the same seed; the demo fails (exit code 1) when their loss curves do not
    agree. Plots, samples and the figures (summary.json) go to --out; earlier ones are replaced.
    """
    try:
        console = make_console("dgm-fast demo")
    except MissingExtraError as error:
        raise click.ClickException(str(error)) from error
    with StopSignals():
        try:
            require("matplotlib.figure", "dgm-fast demo")
            agreed = _run(console, out, **options)
        except KeyboardInterrupt:
            console.print("\ninterrupted. The demo is short: run it again.", markup=False)
            ctx.exit(130)
        except (MissingExtraError, TrainingDiverged) as error:
            raise click.ClickException(str(error)) from error
    if not agreed:
        ctx.exit(1)


def _run(
    console: Any,
    out: Path,
    epochs: int,
    num_samples: int,
    hidden_size: int,
    rounds: int,
    eval_samples: int,
    seed: int,
    with_compile: bool,
) -> bool:
    fused = ops.active_isa() is not None
    if not fused:
        lacks = "; ".join(ops.missing()) or "the C++ extension is not built"
        console.print(
            f"[bold red]No fused ops here[/]: {lacks}.\nThe second run uses the reference too, so "
            "there is no speed to compare; this only shows that training works.",
            soft_wrap=True,
        )
    dataset = load_dataset("digits")
    common = TrainConfig(
        kind="iwae",
        data={"source": "digits"},
        model={"latent_dim": 32, "hidden_sizes": [hidden_size], "num_samples": num_samples},
        epochs=epochs,
        batch_size=100,
        lr=LEARNING_RATE,
        patience=None,
        seed=seed,
        eval_samples=eval_samples,
    )
    isa = f"{ops.active_isa()} kernels, " if fused else ""
    console.print(
        f"IWAE 64-{hidden_size}-32-{hidden_size}-64x17 on digits, K = {num_samples}, batch 100, "
        f"{epochs} epochs, {isa}{torch.get_num_threads()} threads",
        highlight=False,
        soft_wrap=True,
    )
    runs = {}
    results = {}
    for name, backend in (("reference", "reference"), ("fused", "auto")):
        config = dataclasses.replace(common, backend=backend)
        with sessions.execution(config):
            progress = RichProgress(f"{name:9}", console=console)
            session = sessions.build(config, progress=progress, dataset=dataset)
            run = RunDirectory.create(out / name, sessions.run_record(session), overwrite=True)
            session.trainer.run = run
            session.trainer.fit()
            results[name] = sessions.evaluate_test(session)
            sessions.write_outputs(session, run, results[name])
        runs[name] = session
    histories = {name: session.trainer.history for name, session in runs.items()}
    agreement = _agreement(histories["reference"], histories["fused"])
    _say_agreement(console, agreement)
    plot_losses(out / "loss_curves.png", histories)
    x = runs["fused"].dataset.model_input(dataset.train[:100])
    with console.status("measuring") as status:
        variants = compare_steps(
            runs["fused"].model,
            x,
            lr=LEARNING_RATE,
            rounds=rounds,
            with_compile=with_compile,
            with_fused=fused,
            on_stage=lambda stage: status.update(stage),
        )
    plot_step_times(out / "step_times.png", variants)
    _report(console, variants, results)
    write_json(out / "summary.json", _summary(variants, results, agreement, common))
    console.print(
        f"{out}: loss_curves.png, step_times.png, summary.json, and in reference/ and fused/ "
        "samples.png, reconstructions.png, metrics.jsonl",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return agreement["agree"]


def _agreement(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, Any]:
    """Largest relative differences of two loss curves, early and over all epochs."""
    out: dict[str, Any] = {"agree": True}
    for name, epochs, tolerance in (
        ("early", min(EARLY_EPOCHS, len(first)), EARLY_TOLERANCE),
        ("whole", len(first), TOLERANCE),
    ):
        differences = {
            key: largest_difference(first[:epochs], second[:epochs], key)
            for key in ("train_loss", "valid_nll")
        }
        out[name] = {
            "epochs": epochs,
            "tolerance": tolerance,
            "largest_relative_difference": differences,
        }
        out["agree"] &= max(differences.values()) <= tolerance
    return out


def _say_agreement(console: Any, agreement: dict[str, Any]) -> None:
    verdict = "[green]agree[/]" if agreement["agree"] else "[bold red]DO NOT AGREE[/]"
    console.print(f"loss curves {verdict}; largest relative difference:", highlight=False)
    for name in ("early", "whole"):
        part = agreement[name]
        train, valid = part["largest_relative_difference"].values()
        console.print(
            f"  epochs 1 to {part['epochs']}: {train:.1e} train, {valid:.1e} validation "
            f"(allowed {part['tolerance']:.0e})",
            highlight=False,
        )


def _report(console: Any, variants: list[Variant], results: dict[str, dict[str, Any]]) -> None:
    measured = [variant for variant in variants if variant.times]
    table = require("rich.table", "dgm-fast demo").Table(
        title="one training step; medians of interleaved rounds (quartiles)"
    )
    table.add_column("")
    for variant in measured:
        table.add_column(variant.name, justify="right")
    labels = {
        "step": "step, ms",
        "loss and backward": "  loss and backward, ms",
        "bound": "  the bound alone, forward and backward, ms",
    }
    for quantity, label in labels.items():
        cells = []
        for variant in measured:
            s = variant.times[quantity]
            cells.append(f"{1e3 * s.median:.1f} ({1e3 * s.low:.1f}-{1e3 * s.high:.1f})")
        table.add_row(label, *cells)
    table.add_row("saved for backward, MiB", *(f"{v.saved / MIB:.1f}" for v in measured))
    table.add_row("peak of loss and backward, MiB", *(f"{v.peak / MIB:.1f}" for v in measured))
    nll = {name: f"{r['nll_nats']:.3f}" for name, r in results.items()}
    table.add_row("test NLL, nats", *(nll.get(v.name, "") for v in measured))
    elbo = {name: f"{r['negative_elbo_nats']:.3f}" for name, r in results.items()}
    table.add_row("test -ELBO, nats", *(elbo.get(v.name, "") for v in measured))
    console.print(table)
    for variant in variants:
        if variant.failure:
            console.print(
                f"{variant.name}: not measured ({variant.failure})", markup=False, highlight=False
            )
        if variant.shares:
            parts = ", ".join(
                f"{label} {100 * share:.0f} %"
                for label, share in sorted(variant.shares.items(), key=lambda item: -item[1])
                if share >= 0.005
            )
            console.print(
                f"where a {variant.name} step's CPU time goes: {parts}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    _say_speed_up(console, measured)


def _say_speed_up(console: Any, measured: list[Variant]) -> None:
    fused = next((v for v in measured if v.name == "fused"), None)
    if fused is None:
        return
    for rival in measured:
        if rival is fused:
            continue
        ratios = {q: rival.times[q].median / fused.times[q].median for q in fused.times}
        console.print(
            f"fused against {rival.name}: the bound {ratios['bound']:.2f}x, loss and backward "
            f"{ratios['loss and backward']:.2f}x, the whole step {ratios['step']:.2f}x",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _summary(
    variants: list[Variant],
    results: dict[str, dict[str, Any]],
    agreement: dict[str, Any],
    config: TrainConfig,
) -> dict[str, Any]:
    return {
        "config": config.to_json(),
        "machine": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": platform.machine(),
            "isa": ops.active_isa(),
            "threads": torch.get_num_threads(),
        },
        "loss_curves": agreement,
        "steps": [dataclasses.asdict(variant) for variant in variants],
        "test": results,
    }
