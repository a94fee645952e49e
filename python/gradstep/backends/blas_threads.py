"""Thread count of the linear algebra library that numpy and scipy call, for the numba and numpy backends."""

from __future__ import annotations

import os
import warnings
from typing import Any

ENVIRONMENT_VARIABLE = "GRADSTEP_NUM_THREADS"

_defaults: dict[str, int] = {}
_decided = False


MOST_THREADS = 1024
"""More than this is a slip: every thread has a workspace of its own."""


def from_environment() -> int:
    """The environment's wish, or 0. OMP_NUM_THREADS is read by the BLAS libraries themselves.

    Raises
    ------
    ValueError
        If GRADSTEP_NUM_THREADS is no number of threads.
    """
    text = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 9 or int(text) > MOST_THREADS:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be an integer from 0 to {MOST_THREADS}, got {text!r}")
    return int(text)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _libraries() -> list[Any]:
    """Controllers of the loaded BLAS libraries; empty without threadpoolctl."""
    try:
        import threadpoolctl  # type: ignore[import-untyped]
    except ImportError:
        return []
    return list(threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers)


def set_num_threads(count: int) -> None:
    """Limit matrix products to a number of threads.

    Parameters
    ----------
    count
        Number of threads; 0 takes GRADSTEP_NUM_THREADS if that is set, else what each library had
        before the first call.

    Warns
    -----
    UserWarning
        If there is nothing to control, because threadpoolctl is not installed or does not know the
        BLAS library. Then only an environment variable such as OPENBLAS_NUM_THREADS sets the count.
    """
    global _decided
    _decided = True
    wanted = count or from_environment()
    libraries = _libraries()
    if wanted and not libraries:
        warnings.warn(
            "the thread count of the BLAS library is left as it is: limiting it needs threadpoolctl "
            "(pip install threadpoolctl), or OPENBLAS_NUM_THREADS set before Python starts",
            stacklevel=2,
        )
    for library in libraries:
        default = _defaults.setdefault(library.filepath, library.get_num_threads())
        library.set_num_threads(wanted or default)


def follow_environment() -> None:
    """Apply GRADSTEP_NUM_THREADS, unless `set_num_threads` has decided already."""
    if not _decided and from_environment():
        set_num_threads(0)


def get_num_threads() -> int:
    """Largest thread count of the loaded BLAS libraries; the usable cores if it cannot be asked."""
    counts = [library.get_num_threads() for library in _libraries()]
    return max(counts, default=_usable_cores())


def describe() -> str:
    """Name and version of the BLAS libraries, for `gradstep info`."""
    names = {f"{library.internal_api} {library.version}" for library in _libraries()}
    return ", ".join(sorted(names)) or "unknown"
