"""The command ``dgm-fast``: a group that imports a subcommand when it is used."""

from __future__ import annotations

import importlib
import importlib.util
import sys

# name -> (module, attribute, help). A module that an installation lacks is left out of the list.
COMMANDS = {
    "train": ("dgm_fast.train.command", "train", "Train a model and evaluate it."),
    "demo": ("dgm_fast.train.demo", "demo", "Train with plain PyTorch and with fused ops."),
    "perf": ("dgm_fast.perf.command", "perf", "Benchmarks, profiles and measurements."),
    "doctor": ("dgm_fast.doctor", "doctor", "What this installation has, and whether it works."),
}

_NEEDS_CLICK = "the command line needs click, which is not installed: pip install 'dgm_fast[train]'"

try:
    import click
except ImportError:

    def main() -> None:
        """Say what is missing."""
        sys.exit(f"dgm-fast: {_NEEDS_CLICK}")

else:

    class _LazyGroup(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return [name for name, (module, _, _) in COMMANDS.items() if _exists(module)]

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in COMMANDS:
                return None
            module, attribute, _ = COMMANDS[cmd_name]
            if not _exists(module):
                return None
            try:
                return getattr(importlib.import_module(module), attribute)
            except ImportError as error:
                if error.name is None or error.name.partition(".")[0] == "dgm_fast":
                    raise
                raise click.ClickException(
                    f"`dgm-fast {cmd_name}` needs {error.name}, which is not installed: "
                    "pip install 'dgm_fast[train]'"
                ) from error

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            # The table instead of the commands' own help: listing imports none of them.
            with formatter.section("Commands"):
                formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])

    def _exists(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            return False

    def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            from dgm_fast import __version__

            click.echo(f"dgm-fast {__version__}")
            ctx.exit()

    @click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
    @click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Show the version and exit.",
    )
    def main() -> None:
        """Fused kernels for deep generative models."""


if __name__ == "__main__":
    main()
