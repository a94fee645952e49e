"""``gradstep export``: a saved model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradstep import io
from gradstep.commands.output import say
from gradstep.interchange.c import export_c
from gradstep.interchange.onnx import export_onnx
from gradstep.names import check_name

FORMATS = {"onnx": ".onnx", "c": ".h"}
"""Names of the formats, and the endings of files that stand for them."""


def export(
    model: Annotated[str, typer.Argument(help="A model file that gradstep train wrote.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    to: Annotated[
        str | None,
        typer.Option(help="The format: onnx, or c for one C99 header.", show_default="by the ending of OUT"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="For c: what the names in it begin with.", show_default="OUT without its ending"),
    ] = None,
) -> None:
    """Write a model for other programs: as an ONNX file or a C header.

    Preprocessing, and for onnx the encoding of tables, are part of it. The file is compared with the model's
    predictions before it takes its place.
    """
    to = _format_of(out) if to is None else check_name("format", to, FORMATS)
    if name is not None and to != "c":
        raise ValueError(f"--name is for the format c, got {to!r}")
    network = io.load(model)
    if to == "onnx":
        export_onnx(network, out)
    else:
        export_c(network, out, name=name)
    say(f"{out} agrees with {model}")


def _format_of(out: Path) -> str:
    for name, ending in FORMATS.items():
        if out.name.lower().endswith(ending):
            return name
    raise ValueError(
        f"OUT must end in one of {', '.join(FORMATS.values())}, or --to name its format, got {out}"
    )
