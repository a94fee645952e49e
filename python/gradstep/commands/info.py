"""``gradstep info``: this installation, or a model file."""

from __future__ import annotations

from typing import Annotated, Any

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
        parts = (
            {f"{name} {key}": part for key, part in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        facts += [(label, _shown(part)) for label, part in parts.items() if part not in (None, [])]
    say_facts(facts)


def _shown(value: Any) -> str:
    """A JSON value in a line."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
