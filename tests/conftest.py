"""Fixtures shared by all tests: the backends that this installation has."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from gradstep.backends.base import Backend

# Programs that a script starts in the background ignore Ctrl-C, which tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

try:
    from hypothesis import settings
except ImportError:
    pass
else:
    # Compilation and a shared machine make single examples slow; a failure must be repeatable.
    settings.register_profile("gradstep", deadline=None, derandomize=True, max_examples=30)
    settings.load_profile("gradstep")


def _load_backends() -> tuple[dict[str, Backend], dict[str, str]]:
    """Backends by name, and the reason for each one that is missing."""
    loaded, missing = {}, {}
    for name in ("cpp", "numba", "numpy"):
        try:
            loaded[name] = importlib.import_module(f"gradstep.backends.{name}").BACKEND
        except ImportError as error:
            missing[name] = str(error)
    return loaded, missing


BACKENDS, MISSING_BACKENDS = _load_backends()


def pytest_report_header() -> str:
    missing = "".join(f"; no {name}: {reason}" for name, reason in MISSING_BACKENDS.items())
    return f"gradstep backends: {', '.join(BACKENDS)}{missing}"


def pytest_configure() -> None:
    """GRADSTEP_TEST_BACKENDS lists the backends without which a run proves nothing."""
    required = os.environ.get("GRADSTEP_TEST_BACKENDS", "numpy").split(",")
    for name in required:
        if name in MISSING_BACKENDS:
            raise pytest.UsageError(f"backend {name} is required but missing: {MISSING_BACKENDS[name]}")


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every available backend in turn."""
    return BACKENDS[request.param]


@pytest.fixture(params=[name for name in BACKENDS if name != "numpy"])
def fast_backend(request: pytest.FixtureRequest) -> Backend:
    """Every available backend except the reference."""
    return BACKENDS[request.param]


@pytest.fixture(scope="session")
def reference() -> Backend:
    """The numpy backend."""
    return BACKENDS["numpy"]


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    """Both precisions in turn."""
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads of the compiled backend, and put it back afterwards."""
    yield BACKENDS["cpp"].set_num_threads
    BACKENDS["cpp"].set_num_threads(0)
