"""Worker processes from the side of the process that starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from cases import Case
from contenders.base import Contender

HERE = Path(__file__).parent


class WorkerError(RuntimeError):
    """A contender could not do what it was asked to do."""


class WorkerProcess:
    """One contender with one thread count, in a process of its own."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.contender, self.threads = contender, threads
        environment = {**os.environ, **contender.environment(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "worker.py"), contender.name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=HERE,
        )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.process.kill()
        self.process.communicate()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for the reply."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the exit status says more
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"ended with status {self.process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply


def memory_estimate(case: Case) -> int:
    """Bytes that a worker may need: copies of the parameters and of the data, and its libraries."""
    item = 8 if case.dtype == "float64" else 4
    activations = case.batch * sum(case.widths)
    data = case.rows * (case.widths[0] + case.widths[-1])
    return item * (7 * case.parameter_count + 4 * data + 6 * activations) + (500 << 20)


def available_memory() -> int:
    """Bytes that processes may still take."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
