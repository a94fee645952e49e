"""The backends: which ones are available, which one is taken, and how many threads they use."""

from __future__ import annotations

import os
from importlib import import_module

from gradstep.backends import blas_threads
from gradstep.backends.base import Backend
from gradstep.names import check_name
from gradstep.validation import check_integer

NAMES = ("cpp", "numba", "numpy")
"""All backends, the preferred ones first."""

CHOICES = (*NAMES, "auto")

ENVIRONMENT_VARIABLE = "GRADSTEP_BACKEND"

_loaded: dict[str, Backend] = {}
_chosen: str | None = None
_num_threads = 0


def available() -> dict[str, str | None]:
    """Every backend by name, with None, or the reason why it cannot be had.

    Returns
    -------
    dict
        Preferred backends first.
    """
    reasons: dict[str, str | None] = {}
    for name in NAMES:
        try:
            _load(name)
            reasons[name] = None
        except ImportError as error:
            reasons[name] = _reason(name, error)
    return reasons


def get(name: str | None = None) -> Backend:
    """The backend of a name.

    Parameters
    ----------
    name : str, optional
        cpp, numba or numpy; None or "auto" takes what `set_backend` said, else the environment variable
        GRADSTEP_BACKEND, else the first available one of cpp, numba and numpy.

    Returns
    -------
    Backend
        Loaded at its first use.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    ImportError
        If the one asked for cannot be had; the message says why, and which ones can.
    """
    if name is not None:
        check_name("backend", name, CHOICES)
    if name is None or name == "auto":
        name = _chosen or _from_environment()
    return _first_available() if name == "auto" else _require(name)


def first_use_note(backend: Backend, dtype: str) -> str | None:
    """What to tell a user who is about to wait for the backend's first call, or None."""
    if backend.name != "numba":
        return None
    from gradstep.backends.numba import needs_compilation

    if not needs_compilation(dtype):
        return None
    return f"numba compiles its {dtype} code now, once for this machine; that takes some seconds"


def set_backend(name: str | None) -> None:
    """Choose the backend of networks made from now on with ``backend="auto"``.

    Parameters
    ----------
    name : str or None
        cpp, numba or numpy; None or "auto" goes back to the automatic choice.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    ImportError
        If it cannot be had.
    """
    global _chosen
    if name is None or name == "auto":
        _chosen = None
    else:
        _chosen = _require(check_name("backend", name, CHOICES)).name


def set_num_threads(count: int | None) -> None:
    """Limit the threads of one step, in every backend.

    Results of the compiled backend do not depend on it.

    Parameters
    ----------
    count : int or None
        1 to 1024; None or 0 goes back to the default: the usable cores, or GRADSTEP_NUM_THREADS or
        OMP_NUM_THREADS where they are set.

    Raises
    ------
    TypeError, ValueError
        If count is no such number.
    """
    global _num_threads
    number = (
        0 if count is None else check_integer("count", count, minimum=0, maximum=blas_threads.MOST_THREADS)
    )
    get()
    for backend in _loaded.values():
        backend.set_num_threads(number)
    _num_threads = number


def chosen_num_threads() -> int:
    """What `set_num_threads` was told last; 0 for the default."""
    return _num_threads


def get_num_threads() -> int:
    """Threads that one step of the automatic backend may use."""
    return get().get_num_threads()


def _from_environment() -> str:
    name = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    return check_name(f"backend in the environment variable {ENVIRONMENT_VARIABLE}", name, CHOICES)


def _load(name: str) -> Backend:
    if name not in _loaded:
        blas_threads.from_environment()  # a slip there is said at once, whatever the backend
        backend: Backend = import_module(f"{__name__}.{name}").BACKEND
        if _num_threads:
            backend.set_num_threads(_num_threads)
        _loaded[name] = backend
    return _loaded[name]


def _require(name: str) -> Backend:
    try:
        return _load(name)
    except ImportError as error:
        usable = ", ".join(other for other, reason in available().items() if reason is None)
        raise ImportError(
            f"backend {name!r} is not available: {_reason(name, error)}; available: {usable}"
        ) from error


def _first_available() -> Backend:
    for name in NAMES[:-1]:
        try:
            return _load(name)
        except ImportError:
            continue
    return _load(NAMES[-1])


def _reason(name: str, error: ImportError) -> str:
    """Why a backend cannot be imported, in a few words."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("numba", "scipy"):
        return f'{error.name} is not installed (pip install "gradstep[{name}]")'
    if isinstance(error, ModuleNotFoundError) and error.name == f"{__name__}.{name}":
        return "this installation does not contain it"
    return str(error)
