"""Which backend runs here, on what, and why the others do not."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import numpy as np

from gradstep import backends
from gradstep.version import __version__


@dataclass(frozen=True)
class Info:
    """Facts about this installation; prints as a table."""

    version: str
    """Of gradstep."""
    backend: str
    """The one that "auto" takes."""
    threads: int
    """That one step may use."""
    details: dict[str, str]
    """What the backend says of itself, such as its instruction set."""
    unavailable: dict[str, str]
    """Reasons by backend."""
    available: tuple[str, ...]
    """Backends that can be chosen."""

    def __repr__(self) -> str:
        rows = [
            ("gradstep", self.version),
            ("backend", self.backend),
            *self.details.items(),
            ("threads", str(self.threads)),
            ("available backends", ", ".join(self.available)),
            *((f"not {name}", reason) for name, reason in self.unavailable.items()),
            ("python", platform.python_version()),
            *([] if "numpy" in self.details else [("numpy", np.__version__)]),
            ("machine", f"{platform.system()} {platform.machine()}"),
        ]
        width = max(len(key) for key, _ in rows)
        return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)


def info() -> Info:
    """Facts about this installation: backend, instruction set, threads, versions.

    Returns
    -------
    Info
        Print it, or read its attributes.

    Raises
    ------
    ValueError, ImportError
        If GRADSTEP_BACKEND names a backend that does not exist or cannot be had.
    """
    reasons = backends.available()
    chosen = backends.get()
    return Info(
        version=__version__,
        backend=chosen.name,
        threads=chosen.get_num_threads(),
        details=chosen.describe(),
        unavailable={name: reason for name, reason in reasons.items() if reason is not None},
        available=tuple(name for name, reason in reasons.items() if reason is None),
    )
