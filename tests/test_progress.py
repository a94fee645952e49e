import re
import sys

import numpy as np
import pytest

import gradstep as gs
from gradstep import progress

X = np.zeros((10, 2), np.float32)
Y = np.ones((10, 1), np.float32)


def fit(**options):
    return gs.Network([gs.Dense(1)], backend="numpy").fit(X, Y, **{"epochs": 100, **options})


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, "is_interactive", lambda: True)


def test_off_a_terminal_there_are_about_ten_plain_lines(capsys):
    fit()
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    epochs = [int(re.match(r"epoch +(\d+)/100  loss \S+  \d+\.\d s$", line)[1]) for line in lines]
    assert epochs[0] == 1
    assert epochs[-1] == 100
    assert 2 <= len(epochs) <= 11
    assert "\r" not in printed.err


def test_every_tenth_gets_its_line_when_epochs_come_one_by_one(capsys):
    fit(validation_data=(X, Y))
    lines = capsys.readouterr().err.splitlines()
    assert [int(line[6:].split("/")[0]) for line in lines] == [1, *range(10, 101, 10)]
    assert "val_loss" in lines[0]
    assert "val_rmse" in lines[0]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 11, 99])
def test_first_and_last_epochs_have_a_line_each(capsys, epochs):
    fit(validation_data=(X, Y), epochs=epochs)
    shown = [int(line[6:].split("/")[0]) for line in capsys.readouterr().err.splitlines()]
    assert shown[0] == 1
    assert shown[-1] == epochs
    assert len(shown) == len(set(shown)) <= 11


def test_slow_epochs_do_not_stay_silent(capsys, monkeypatch):
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(now)))
    lines = progress.Lines(1000)
    for epoch in range(1, 11):
        lines.update(epoch, {"loss": 1.0})
    shown = [int(line[6:].split("/")[0]) for line in capsys.readouterr().err.splitlines()]
    assert shown == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("verbose", [0, False])
def test_verbose_0_is_silent(capsys, verbose):
    fit(verbose=verbose, validation_data=(X, Y))
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_a_terminal_gets_a_bar_with_the_loss(capsys, terminal):
    history = fit(epochs=30)
    printed = capsys.readouterr().err
    assert "30/30" in printed
    assert f"loss {history.loss[-1]:.5g}" in printed
    assert "epoch" in printed


def test_notes_go_above_the_bar(capsys, terminal):
    class Impatient(gs.Callback):
        def on_epoch_end(self, state):
            raise KeyboardInterrupt

    fit(callbacks=[Impatient()])
    assert "interrupted after 1 of 100 epochs" in capsys.readouterr().err


def test_the_bar_is_closed_when_training_diverges(capsys, terminal):
    net = gs.Network([gs.Dense(1)], backend="numpy", optimizer=gs.SGD(1e30))
    with pytest.raises(gs.DivergenceError):
        net.fit(X + 1, Y, epochs=30)
    assert "0/30" in capsys.readouterr().err


def test_interactive_means_a_terminal_or_a_notebook(monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    class ZMQInteractiveShell:
        pass

    class IPython:
        get_ipython = staticmethod(ZMQInteractiveShell)

    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress.is_interactive()
    monkeypatch.setitem(sys.modules, "IPython", IPython)
    assert progress.is_interactive()
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress.is_interactive()


def test_a_program_without_standard_error_trains_silently(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert len(fit(epochs=2)) == 2


def test_a_backend_that_compiles_says_so_first(capsys, monkeypatch):
    monkeypatch.setattr("gradstep.backends.first_use_note", lambda backend, dtype: f"compiling {dtype}")
    fit(epochs=1)
    assert capsys.readouterr().err.startswith("compiling float32\nepoch 1/1")
    fit(epochs=1, verbose=0)
    assert capsys.readouterr().err == ""


def test_a_bar_begins_where_the_training_goes_on(terminal):
    bar = progress.start_progress(1, 10, done=4)
    assert (bar._bar.n, bar._bar.total) == (4, 10)
    bar.update(5, {"loss": 1.0})
    assert bar._bar.n == 5
    bar.close()
