"""``dgm-fast train``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from dgm_fast.data import BINARIZE_MODES, DataError
from dgm_fast.data.dataset import LIKELIHOODS
from dgm_fast.data.extras import MissingExtraError, require
from dgm_fast.data.npz import LAYOUTS
from dgm_fast.ops import BACKENDS, get_backend
from dgm_fast.train import session as sessions
from dgm_fast.train.checkpoint import CheckpointError
from dgm_fast.train.command_options import model_options, run_default
from dgm_fast.train.config import SCHEDULES, ConfigError, TrainConfig
from dgm_fast.train.files import write_json
from dgm_fast.train.gan_kinds import DISTANCES
from dgm_fast.train.interrupt import StopSignals, TrainingInterrupted
from dgm_fast.train.options import declared
from dgm_fast.train.progress import RichProgress, make_console
from dgm_fast.train.reference_run import compare_with_reference
from dgm_fast.train.registry import get_kind, kind_names
from dgm_fast.train.run_directory import RunDirectory, RunDirectoryError
from dgm_fast.train.trainer import TrainingDiverged

EXIT_INTERRUPTED = 130

# Which options are arguments of load_dataset and of the model, under their names there.
_DATA_OPTIONS = {
    "data": "source",
    "likelihood": "likelihood",
    "binarize": "binarize",
    "threshold": "threshold",
    "num_dims": "num_dims",
    "num_classes": "num_classes",
    "layout": "layout",
    "image_size": "image_size",
    "image_channels": "image_channels",
    "data_root": "root",
    "context_length": "context_length",
}
_MODEL_OPTIONS = tuple(option.name for option in declared())
# What a fit by EM, on all training rows at once, has no use for; and what alternating steps have none for.
_GRADIENT_OPTIONS = ("batch_size", "lr", "schedule", "clip_norm", "compile")
_LOSS_OPTIONS = ("schedule", "clip_norm", "compile", "eval_samples")
_RUN_OPTIONS = (
    "epochs",
    "batch_size",
    "lr",
    "schedule",
    "clip_norm",
    "patience",
    "seed",
    "device",
    "backend",
    "compile",
    "threads",
    "eval_samples",
)

_EXPECTED_ERRORS = (
    DataError,
    MissingExtraError,
    ConfigError,
    RunDirectoryError,
    CheckpointError,
    TrainingDiverged,
)


@click.command()
@click.argument("kind", type=click.Choice(kind_names()))
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="digits, mnist, eight-gaussians, moons, checkerboard, PATH.npz, PATH.txt or a folder of images.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run directory. [out/KIND-DATA]")
@click.option("--resume", is_flag=True, help="Continue the run in --out, with its configuration.")
@click.option(
    "--resume-from",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Which saved state --resume takes up.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option(
    "--epochs", type=click.IntRange(1), default=100, help=f"[{run_default('epochs', '100')}]"
)
@click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True)
@click.option(
    "--lr",
    type=float,
    default=1e-3,
    help=f"Learning rate. [{run_default('lr', '0.001')}]",
)
@click.option("--schedule", type=click.Choice(SCHEDULES), default="constant", show_default=True)
@click.option(
    "--clip-norm",
    type=float,
    help=f"Scale gradients of a larger norm down to it. [{run_default('clip_norm', 'no')}]",
)
@click.option(
    "--patience",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Stop after so many epochs without a new best validation figure; 0 never does.",
)
@model_options
@click.option("--likelihood", type=click.Choice(LIKELIHOODS), help="Default: what fits the data.")
@click.option(
    "--binarize",
    is_flag=False,
    flag_value="threshold",
    type=click.Choice(BINARIZE_MODES),
    help="Make grey levels binary; alone it means threshold.",
)
@click.option("--threshold", type=float, help="Level from which a pixel is 1. [the middle]")
@click.option("--num-dims", type=click.IntRange(1), help=".npz: dimensions D of a row.")
@click.option("--num-classes", type=click.IntRange(2), help=".npz: number of grey levels.")
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default="auto",
    show_default=True,
    help=".npz: rows packed by numpy.packbits, or plain.",
)
@click.option("--context-length", type=click.IntRange(1), help=".txt: characters a window. [128]")
@click.option("--image-size", type=click.IntRange(1), help="Folder of images: side in pixels. [32]")
@click.option(
    "--image-channels", type=click.Choice(["1", "3"]), help="Folder of images: grey or RGB. [3]"
)
@click.option("--data-root", help="mnist: directory of its files. [~/.cache/dgm_fast]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--backend", type=click.Choice(BACKENDS), help="[auto, or $DGM_FAST_BACKEND]")
@click.option("--compile", is_flag=True, help="Run the loss through torch.compile.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [torch's default]")
@click.option(
    "--eval-samples",
    type=click.IntRange(1),
    default=1000,
    help=f"Importance samples for the test NLL. [{run_default('eval_samples', '1000')}]",
)
@click.option(
    "--compare-reference",
    is_flag=True,
    help="Train again with the plain formulas and compare the loss curves.",
)
@click.pass_context
def train(ctx: click.Context, kind: str, out: Path | None, **options: Any) -> None:
    """Train a model, keep its best epoch, and report its test NLL.

    gmm takes grey levels and bits dequantised by uniform noise, so that its NLL is that of the levels,
    in the units of the other models; of real values (--likelihood gaussian) it is the density's. So do
    rnade and the flows (realnvp, nsf, maf, iaf; of images glow, flowpp). fvsbn and nade take bits;
    nade-categorical levels; made bits, levels or real values; rnn, lstm and gpt bits, levels or the
    characters of a text file; pixelcnn, gated-pixelcnn, pixelcnn-pp and pixelrnn bits or levels of
    grey or RGB images (of a folder with --likelihood categorical).

    The run directory holds config.json, metrics.jsonl, last.pt, best.pt, results.json and, for
    images, samples.png and reconstructions.png, for text samples.txt. Ctrl-C saves; --resume goes on
    with the same losses as if nothing had happened.
    """
    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if out is None:
        out = Path("out") / f"{kind}-{Path(options['data']).stem}"
    try:
        console = make_console("dgm-fast train")
    except MissingExtraError as error:
        raise click.ClickException(str(error)) from error
    with StopSignals() as signals:
        try:
            config = _configuration(ctx, kind, out, options)
            with sessions.execution(config):
                _run(config, out, options, console, signals)
        except TrainingInterrupted as interruption:
            console.print()
            console.print(f"{interruption}.", markup=False, highlight=False)
            _say_how_to_resume(console, kind, out)
            ctx.exit(EXIT_INTERRUPTED)
        except KeyboardInterrupt:
            console.print("\ninterrupted.", markup=False)
            if (out / "last.pt").exists():
                _say_how_to_resume(console, kind, out)
            ctx.exit(EXIT_INTERRUPTED)
        except _EXPECTED_ERRORS as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{out}: {error}") from error


def _say_how_to_resume(console: Any, kind: str, out: Path) -> None:
    command = shlex.join(["dgm-fast", "train", kind, "--out", str(out), "--resume"])
    console.print("Resume with:", markup=False)
    console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def _given(ctx: click.Context, name: str) -> bool:
    """Whether the user typed the option."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _configuration(
    ctx: click.Context, kind: str, out: Path, options: dict[str, Any]
) -> TrainConfig:
    requested = _requested(ctx, kind, options)
    if not options["resume"]:
        if _given(ctx, "resume_from"):
            raise click.UsageError("--resume-from goes with --resume")
        for name in _GRADIENT_OPTIONS:
            if requested.model.get("fit") == "em" and _given(ctx, name):
                raise click.UsageError(
                    f"--{name.replace('_', '-')} does not apply to --fit em, which takes all training "
                    "rows at once; use --fit gradient"
                )
        for name in _LOSS_OPTIONS:
            if get_kind(kind).compare is not None and _given(ctx, name):
                raise click.UsageError(f"--{name.replace('_', '-')} does not apply to {kind}")
        return requested
    run = RunDirectory.open(out)
    stored = TrainConfig.from_json(run.read_config(), str(run.config_path))
    changes: dict[str, Any] = {}
    conflicts = []
    if stored.kind != kind:
        conflicts.append(f"kind is {stored.kind}, not {kind}")
    for option in (*_DATA_OPTIONS, *_MODEL_OPTIONS, *_RUN_OPTIONS):
        if not _given(ctx, option):
            continue
        if option in _RUN_OPTIONS:
            before, now = getattr(stored, option), getattr(requested, option)
        elif option in _DATA_OPTIONS:
            key = _DATA_OPTIONS[option]
            before, now = stored.data.get(key), requested.data.get(key)
        else:
            before, now = stored.model.get(option), requested.model.get(option)
        if before == now:
            continue
        if option not in TrainConfig.CHANGEABLE:
            conflicts.append(f"--{option.replace('_', '-')} is {before}, not {now}")
        elif option == "epochs" and stored.schedule != "constant":
            conflicts.append(
                f"--epochs is {before} and decides the {stored.schedule} schedule, not {now}"
            )
        else:
            changes[option] = now
    if conflicts:
        raise RunDirectoryError(
            f"the run in {out} was started otherwise: {'; '.join(conflicts)}. Leave these options "
            "out to resume it, or start another run"
        )
    return TrainConfig(**{**stored.__dict__, **changes})


def _requested(ctx: click.Context, kind: str, options: dict[str, Any]) -> TrainConfig:
    model_kind = get_kind(kind)
    defaults = {k: v for k, v in model_kind.defaults.items() if not _given(ctx, k)}
    model = dict(model_kind.options)
    for name in _MODEL_OPTIONS:
        if options[name] is None:
            continue
        if name not in model_kind.options:
            raise click.UsageError(f"--{name.replace('_', '-')} does not apply to {kind}")
        model[name] = options[name]
    if model.get("hidden_sizes") is not None:
        model["hidden_sizes"] = list(model["hidden_sizes"])
    data = {key: options[name] for name, key in _DATA_OPTIONS.items()}
    path = Path(data["source"]).expanduser()
    if path.suffix in (".npz", ".txt") or path.is_dir():
        data["source"] = str(Path(data["source"]).expanduser().absolute())
    if data["image_channels"] is not None:
        data["image_channels"] = int(data["image_channels"])
    run = {name: options[name] for name in _RUN_OPTIONS} | defaults
    run["patience"] = run["patience"] or None
    run["backend"] = run["backend"] or get_backend()
    try:
        run["device"] = str(sessions.resolve_device(run["device"]))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return TrainConfig(kind, data, model, **run)


def _run(
    config: TrainConfig, out: Path, options: dict[str, Any], console: Any, signals: StopSignals
) -> None:
    shown: dict[str, Any] = {"figure": "NLL"} if get_kind(config.kind).exact else {}
    if config.kind == "beta-vae":
        shown = {"monitor": "valid_loss", "figure": "loss"}
    if get_kind(config.kind).compare is not None:
        shown = {
            "monitor": "valid_sliced_wasserstein",
            "figure": "discriminator loss and distance:",
            "digits": ".4g",
        }
    progress = RichProgress(config.kind, console=console, **shown)
    session = sessions.build(config, progress=progress, signals=signals)
    if options["resume"]:
        run = RunDirectory.open(out)
        resumed = sessions.resume(session, run, options["resume_from"])
        run.write_config(sessions.run_record(session))
        where = (
            f"resumed from epoch {session.trainer.epoch}, step {session.trainer.order.position}"
            if resumed
            else "nothing was saved yet; starting from the beginning"
        )
        console.print(f"{out}: {where}", markup=False, highlight=False, soft_wrap=True)
    else:
        run = RunDirectory.create(out, sessions.run_record(session), overwrite=options["overwrite"])
        session.trainer.run = run
    _describe(console, session)
    fit = session.trainer.fit()
    why = f"no better validation figure for {config.patience} epochs" if fit.stopped_early else ""
    console.print(
        f"trained {fit.epochs} epochs{f' ({why})' if why else ''}; "
        f"best validation figure {fit.best:.4g} at epoch {fit.best_epoch}",
        markup=False,
        highlight=False,
    )
    with console.status("evaluating on the test split") as status:
        results = sessions.evaluate_test(
            session,
            lambda done, total: status.update(f"evaluating on the test split: {done} of {total}"),
        )
    with signals.deferred():
        files = sessions.write_outputs(session, run, results)
    _report(console, results, out, files, session)
    if options["compare_reference"]:
        progress = RichProgress("reference", console=console, **shown)
        comparison = compare_with_reference(session, progress=progress, signals=signals)
        write_json(run.comparison_path, comparison)
        _report_comparison(console, comparison, config.backend)


def _describe(console: Any, session: sessions.Session) -> None:
    dataset = session.dataset
    rows = "/".join(str(len(split)) for split in dataset.splits().values())
    parameters = sum(p.numel() for p in session.model.parameters())
    console.print(
        f"{dataset.name}: {dataset.description}; {rows} train/valid/test rows of "
        f"{dataset.num_dims} dimensions, {dataset.likelihood} likelihood; "
        f"{session.config.kind} with {parameters:,} parameters on {session.config.device}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _likelihood_rows(table: Any, results: dict[str, Any], text: bool) -> None:
    table.add_column("nats", justify="right")
    table.add_column("bits/character" if text else "bits/dim", justify="right")
    error = results.get("nll_standard_error_nats")
    spread = f" ± {error:.2f}" if error is not None else ""
    sampled = "negative_elbo_nats" in results
    names = {
        "nll": f"NLL, {results['eval_samples']} importance samples" if sampled else "NLL",
        "negative_elbo": "-ELBO",
    }
    for key, label in names.items():
        if f"{key}_nats" not in results:
            continue
        table.add_row(
            label,
            f"{results[f'{key}_nats']:.2f}{spread if key == 'nll' else ''}",
            f"{results[f'{key}_bits_per_dim']:.4f}",
        )


def _report(
    console: Any, results: dict[str, Any], out: Path, files: list[str], session: sessions.Session
) -> None:
    rich_table = require("rich.table", "dgm-fast train")
    table = rich_table.Table(title=f"test split, {results['rows']} rows")
    table.add_column("")
    if "nll_nats" in results:
        _likelihood_rows(table, results, session.dataset.vocabulary is not None)
    else:
        table.add_column("", justify="right")
        for key in DISTANCES:
            if key in results:
                table.add_row(key.replace("_", " "), f"{results[key]:.4f}")
    console.print(table)
    console.print(f"{out}: {', '.join(files)}", markup=False, highlight=False, soft_wrap=True)
    if "samples.txt" in files:
        lines = (out / "samples.txt").read_text(encoding="utf-8").split("--- sample 2")[0]
        console.print(lines.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)


def _report_comparison(console: Any, comparison: dict[str, Any], backend: str) -> None:
    seconds = comparison["seconds_per_epoch"]
    console.print(
        f"the same {comparison['epochs']} epochs with backend reference: {seconds['reference']:.3g} s an "
        f"epoch against {seconds['run']:.3g} s with backend {backend}; largest relative difference",
        *(
            f"  of {name}: {values['early']:.1e} in the first {comparison['early_epochs']}, "
            f"{values['all']:.1e} in all"
            for name, values in comparison["largest_relative_difference"].items()
        ),
        sep="\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
