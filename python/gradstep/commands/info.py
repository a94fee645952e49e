"""``gradstep info``: this installation, or a model file."""

from __future__ import annotations

from typing import Annotated

import typer

from gradstep.commands.output import say
from gradstep.info import info as installation


def info(
    model: Annotated[
        str | None, typer.Argument(help="A model file to describe instead of the installation.")
    ] = None,
) -> None:
    """Show backend, instruction set, threads and versions, or what a model file holds."""
    if model is None:
        say(repr(installation()))
        return
    from gradstep import io

    network = io.load(model)
    say(repr(network))
    if network.encoder is not None:
        say(f"encoder: {network.encoder!r} of {', '.join(network.encoder.columns)}")
    if network.classes is not None:
        say(f"classes: {', '.join(network.classes)}")
    for name, value in io.read_description(model).items():
        say(f"{name}: {value}")
