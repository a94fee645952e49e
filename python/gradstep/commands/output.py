"""What commands print: aligned facts on a terminal and in a file alike, and errors in one sentence."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

EXPECTED_ERRORS = (ValueError, TypeError, OSError, ImportError, ArithmeticError, MemoryError)
"""What bad input, a missing package or a diverging training raises; anything else is a bug."""

NAME_WIDTH = 13
"""Names of facts that take part in one table have at most this length."""


def in_one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command end with one sentence on standard error and exit code 1 instead of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except EXPECTED_ERRORS as error:
            if os.environ.get("GRADSTEP_TRACEBACK"):
                raise
            sentence = " ".join(str(error).split()) or type(error).__name__
            say(f"gradstep: {sentence}", style="red", to_stderr=True)
            raise typer.Exit(1) from None

    return run


def say(text: str = "", style: str = "", to_stderr: bool = False) -> None:
    """Print a line, whatever its length, with a style on terminals only."""
    Console(stderr=to_stderr, highlight=False, soft_wrap=True).print(Text(text, style=style))


def say_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print one ``name  value`` line for each fact, the values aligned."""
    console = Console(highlight=False, soft_wrap=True)
    width = max(NAME_WIDTH, *(len(name) for name, _ in facts))
    for name, value in facts:
        console.print(Text.assemble((name.ljust(width), "bold"), "  ", value))


def say_row(cells: Sequence[str], widths: Sequence[int], style: str = "") -> None:
    """Print a row of a table: the first cell to the left, the others, which hold numbers, to the right."""
    first = cells[0].ljust(widths[0])
    others = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    say("  ".join((first, *others)), style)
