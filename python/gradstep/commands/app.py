"""The command `gradstep` and its commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from gradstep.commands.bench import bench
from gradstep.commands.export import export
from gradstep.commands.info import info
from gradstep.commands.output import in_one_sentence
from gradstep.commands.predict import predict
from gradstep.commands.train import train
from gradstep.version import __version__

app = typer.Typer(
    name="gradstep",
    help="Train dense networks on CPUs, fast, and predict with them.",
    epilog="With GRADSTEP_TRACEBACK=1 in the environment, errors show where they came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (train, predict, export, info, bench):
    app.command()(in_one_sentence(command))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gradstep {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train dense networks on CPUs, fast, and predict with them."""
