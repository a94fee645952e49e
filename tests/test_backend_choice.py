import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from conftest import BACKENDS
from gradstep import backends

PREFERRED = next(iter(BACKENDS))
OTHERS = [name for name in BACKENDS if name != PREFERRED]


@pytest.fixture(autouse=True)
def _automatic(monkeypatch):
    monkeypatch.delenv("GRADSTEP_BACKEND", raising=False)
    yield
    monkeypatch.undo()
    gs.set_backend(None)
    gs.set_num_threads(None)


def _network_backend(choice="auto"):
    return gs.Network([gs.Dense(1)], backend=choice).backend


def test_auto_takes_the_first_available_of_cpp_numba_numpy():
    assert backends.NAMES == ("cpp", "numba", "numpy")
    assert _network_backend() == backends.get().name == PREFERRED


def test_a_network_may_choose(backend):
    assert _network_backend(backend.name) == backend.name


def test_set_backend_chooses_for_networks_to_come(backend):
    before = gs.Network([gs.Dense(1)])
    gs.set_backend(backend.name)
    assert _network_backend() == backend.name
    assert before.backend == PREFERRED
    for automatic in ("auto", None):
        gs.set_backend(automatic)
        assert _network_backend() == PREFERRED


def test_the_environment_chooses_where_nothing_else_does(monkeypatch):
    monkeypatch.setenv("GRADSTEP_BACKEND", "numpy")
    assert _network_backend() == "numpy"
    assert _network_backend(PREFERRED) == PREFERRED
    gs.set_backend(PREFERRED)
    assert _network_backend() == PREFERRED


@pytest.mark.parametrize("automatic", ["", "auto"])
def test_an_empty_environment_is_none(monkeypatch, automatic):
    monkeypatch.setenv("GRADSTEP_BACKEND", automatic)
    assert _network_backend() == PREFERRED


def test_unknown_backends_are_errors_that_list_the_known(monkeypatch):
    with pytest.raises(
        ValueError, match=r"unknown backend 'cp', did you mean 'cpp'.*cpp, numba, numpy, auto"
    ):
        _network_backend("cp")
    with pytest.raises(ValueError, match="unknown backend 'torch'"):
        gs.set_backend("torch")
    monkeypatch.setenv("GRADSTEP_BACKEND", "nmupy")
    with pytest.raises(
        ValueError, match="environment variable GRADSTEP_BACKEND 'nmupy', did you mean 'numpy'"
    ):
        _network_backend()


@pytest.fixture
def without_cpp(monkeypatch):
    """As if the compiled core were not installed."""
    monkeypatch.setattr(backends, "_loaded", {})
    load = backends.import_module

    def refuse(name):
        if name == "gradstep.backends.cpp":
            raise ImportError("the compiled core is not installed")
        return load(name)

    monkeypatch.setattr(backends, "import_module", refuse)


def test_an_unavailable_backend_is_an_error_that_says_why_and_what_else(without_cpp):
    message = "backend 'cpp' is not available: the compiled core is not installed; available: .*numpy"
    with pytest.raises(ImportError, match=message):
        _network_backend("cpp")
    with pytest.raises(ImportError, match=message):
        gs.set_backend("cpp")


def test_auto_falls_back_and_info_says_why(without_cpp):
    assert _network_backend() != "cpp"
    facts = gs.info()
    assert facts.backend == _network_backend()
    assert facts.unavailable["cpp"] == "the compiled core is not installed"
    assert "not cpp" in repr(facts)
    assert "the compiled core is not installed" in repr(facts)


def test_a_missing_extra_is_named(monkeypatch):
    error = ModuleNotFoundError("No module named 'numba'", name="numba")
    assert backends._reason("numba", error) == 'numba is not installed (pip install "gradstep[numba]")'


def test_available_lists_all_backends():
    assert list(backends.available()) == ["cpp", "numba", "numpy"]
    assert {name for name, reason in backends.available().items() if reason is None} == set(BACKENDS)


def test_info_prints_what_runs_here():
    facts = gs.info()
    assert facts.backend == PREFERRED
    assert facts.version == gs.__version__
    assert facts.threads == gs.get_num_threads() >= 1
    assert set(facts.available) == set(BACKENDS)
    text = repr(facts)
    for key, value in {"gradstep": gs.__version__, "backend": PREFERRED, "numpy": np.__version__}.items():
        assert any(line.split(None, 1) == [key, value] for line in text.splitlines()), key
    for key in facts.details:
        assert key in text


def test_threads_can_be_set_and_reset():
    default = gs.get_num_threads()
    gs.set_num_threads(1)
    assert gs.get_num_threads() == 1
    for automatic in (None, 0):
        gs.set_num_threads(automatic)
        assert gs.get_num_threads() == default


def test_the_number_of_threads_holds_for_backends_loaded_later(monkeypatch):
    monkeypatch.setattr(backends, "_loaded", {})
    gs.set_num_threads(1)
    assert all(backends.get(name).get_num_threads() == 1 for name in BACKENDS)


def test_the_number_of_threads_is_checked():
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        gs.set_num_threads(-1)
    with pytest.raises(TypeError, match=r"count must be an integer, got 1.5"):
        gs.set_num_threads(1.5)


def test_the_environment_is_read_in_a_new_process():
    environment = {**os.environ, "GRADSTEP_BACKEND": "numpy", "PYTHONPATH": str(Path(gs.__file__).parents[1])}
    code = "import gradstep as gs; print(gs.info().backend)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "numpy"


@pytest.mark.parametrize("text", ["abc", "-1", "99999999999999999999", "4,2", "2000", "1.5"])
def test_a_slip_in_the_number_of_threads_is_an_error(monkeypatch, text):
    monkeypatch.setenv("GRADSTEP_NUM_THREADS", text)
    monkeypatch.setattr(backends, "_loaded", {})
    with pytest.raises(ValueError, match="GRADSTEP_NUM_THREADS must be an integer from 0 to 1024"):
        gs.Network([gs.Dense(1)], backend="numpy")


def test_too_many_threads_are_an_error():
    with pytest.raises(ValueError, match="count must be at most 1024, got 1025"):
        gs.set_num_threads(1025)
