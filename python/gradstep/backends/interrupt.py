"""Ctrl-C that waits for the end of a batch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InterruptFlag:
    """Remembers that Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.pressed = False


@contextmanager
def deferred_interrupt() -> Iterator[InterruptFlag]:
    """Turn Ctrl-C into a flag while the block runs, so that no batch is left half applied.

    Only Python's own handler, which raises `KeyboardInterrupt`, is replaced, and it is restored when
    the block ends. Outside the main thread, where signals never arrive, and under a handler that the
    program installed itself, nothing changes and the flag stays unset.

    Yields
    ------
    InterruptFlag
        Its ``pressed`` becomes true at Ctrl-C. To be read once more after the block, or a Ctrl-C just before
        its end is lost.
    """
    flag = InterruptFlag()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield flag
        return

    def remember(signum: int, frame: FrameType | None) -> None:
        flag.pressed = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
