"""Progress of long work: a bar on a terminal or in a notebook, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

LINES = 10
"""Plain lines of one call of `fit`, about: one per tenth of the epochs."""

QUIET_SECONDS = 30.0
"""Longest silence between plain lines while epochs end."""


class Progress(ABC):
    """Where `fit` reports to."""

    visible = True

    @abstractmethod
    def update(self, epoch: int, values: Mapping[str, float]) -> None:
        """Say that this many epochs are done, with the newest values."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Say one sentence."""

    @abstractmethod
    def close(self) -> None:
        """End the report."""


class Silent(Progress):
    """Says nothing."""

    visible = False

    def update(self, epoch: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines(Progress):
    """Plain lines on standard error: the first epoch, every tenth of the way, and the last."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._next = 1
        self._start = self._last = time.perf_counter()

    def update(self, epoch: int, values: Mapping[str, float]) -> None:
        """Print a line if one is due."""
        now = time.perf_counter()
        if epoch < min(self._next, self._epochs) and now - self._last < QUIET_SECONDS:
            return
        width = len(str(self._epochs))
        seconds = now - self._start
        print(f"epoch {epoch:{width}d}/{self._epochs}  {formatted(values)}  {seconds:.1f} s", file=sys.stderr)
        self._last = now
        tenths = LINES * epoch // self._epochs + 1
        self._next = max(epoch + 1, -(-tenths * self._epochs // LINES))

    def note(self, text: str) -> None:
        """Print the sentence."""
        print(text, file=sys.stderr)

    def close(self) -> None:
        """Flush what was printed."""
        sys.stderr.flush()


class Bar(Progress):
    """A tqdm bar with the newest losses."""

    def __init__(self, epochs: int, done: int = 0) -> None:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        self._bar: Any = tqdm(total=epochs, initial=done, unit="epoch", dynamic_ncols=True)

    def update(self, epoch: int, values: Mapping[str, float]) -> None:
        """Move the bar."""
        self._bar.set_postfix_str(formatted(values), refresh=False)
        self._bar.update(epoch - self._bar.n)

    def note(self, text: str) -> None:
        """Print the sentence above the bar."""
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def formatted(values: Mapping[str, float]) -> str:
    """``loss 0.1234  val_loss 0.1301``."""
    return "  ".join(f"{name} {value:.5g}" for name, value in values.items())


def is_interactive() -> bool:
    """Whether a moving bar can be shown: standard error is a terminal, or this is a notebook."""
    stream = sys.stderr
    return (stream is not None and stream.isatty()) or _in_notebook()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def start_progress(verbose: int, epochs: int, done: int = 0) -> Progress:
    """The reporter for one call of `fit`, of which some epochs may be done already; `verbose` 0 is silent."""
    if not verbose or sys.stderr is None:
        return Silent()
    return Bar(epochs, done) if is_interactive() else Lines(epochs)
