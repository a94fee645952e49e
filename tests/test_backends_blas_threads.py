import sys

import pytest

from conftest import BACKENDS
from gradstep.backends import blas_threads
from networks import make_plan


@pytest.fixture
def controlled(monkeypatch):
    """Threads as they were, restored afterwards."""
    pytest.importorskip("threadpoolctl")
    monkeypatch.delenv(blas_threads.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(blas_threads, "_decided", False)
    before = blas_threads.get_num_threads()
    yield before
    monkeypatch.delenv(blas_threads.ENVIRONMENT_VARIABLE, raising=False)
    blas_threads.set_num_threads(0)


def test_thread_count_is_set_and_restored(controlled):
    blas_threads.set_num_threads(1)
    assert blas_threads.get_num_threads() == 1
    blas_threads.set_num_threads(0)
    assert blas_threads.get_num_threads() == controlled


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "cpp"])
def test_a_new_network_follows_the_environment(controlled, monkeypatch, name):
    blas_threads.set_num_threads(2)
    monkeypatch.setattr(blas_threads, "_decided", False)
    monkeypatch.setenv(blas_threads.ENVIRONMENT_VARIABLE, "1")
    BACKENDS[name].make_engine(make_plan((2, 1)))
    assert BACKENDS[name].get_num_threads() == 1


def test_the_environment_does_not_undo_an_explicit_choice(controlled, monkeypatch):
    blas_threads.set_num_threads(1)
    monkeypatch.setenv(blas_threads.ENVIRONMENT_VARIABLE, "2")
    BACKENDS["numpy"].make_engine(make_plan((2, 1)))
    assert blas_threads.get_num_threads() == 1


def test_without_threadpoolctl_a_limit_warns(monkeypatch):
    monkeypatch.setattr(blas_threads, "_decided", False)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.warns(UserWarning, match="needs threadpoolctl"):
        blas_threads.set_num_threads(1)
    assert blas_threads.get_num_threads() >= 1
    assert blas_threads.describe() == "unknown"
