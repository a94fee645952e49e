"""``gradstep info``: this installation, or a model file."""

from __future__ import annotations

from typing import Annotated

import typer

from gradstep.commands.output import say, say_facts
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
    facts = []
    if network.encoder is not None:
        facts.append(("columns", ", ".join(network.encoder.columns)))
    if network.classes is not None:
        facts.append(("classes", ", ".join(network.classes)))
    facts.append(("epochs", str(network.epochs_trained)))
    for name, value in io.read_description(model).items():
        if isinstance(value, dict):
            facts += [(f"{name} {key}", f"{number:.6g}") for key, number in value.items()]
        elif isinstance(value, list):
            facts.append((name, ", ".join(map(str, value))))
        elif value is not None:
            facts.append((name, str(value)))
    say_facts(facts)
