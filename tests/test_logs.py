"""Logs of training: tables, lines of JSON, TensorBoard's event files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 3)).astype(np.float32)
Y = X[:, 0]


def make():
    return gs.Network([gs.Dense(1)], optimizer=gs.SGD(0.05), backend="numpy")


def fit(net, callbacks, epochs=3, validated=True, **options):
    data = (X[:9], Y[:9]) if validated else None
    return net.fit(X, Y, epochs=epochs, validation_data=data, callbacks=callbacks, verbose=0, **options)


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


LOGS = [(gs.CSVLog, table), (gs.JSONLinesLog, lines)]


@pytest.mark.parametrize(("log", "read"), LOGS)
def test_every_epoch_is_one_record_with_the_history(tmp_path, log, read):
    history = fit(make(), [log(tmp_path / "log")])
    records = read(tmp_path / "log")
    assert [int(record["epoch"]) for record in records] == [1, 2, 3]
    assert list(records[0]) == ["epoch", *history, "learning_rate", "seconds"]
    for name in history:
        assert [float(record[name]) for record in records] == history[name]
    assert {float(record["learning_rate"]) for record in records} == {0.05}
    assert sorted(float(record["seconds"]) for record in records)[0] > 0


@pytest.mark.parametrize(("log", "read"), LOGS)
def test_a_record_is_in_the_file_when_its_epoch_has_ended(tmp_path, log, read):
    class Look(gs.Callback):
        seen = ()

        def on_epoch_end(self, state):
            self.seen = (*self.seen, len(read(tmp_path / "log")))

    look = Look()
    fit(make(), [log(tmp_path / "log"), look])
    assert look.seen == (1, 2, 3)


@pytest.mark.parametrize(("log", "read"), LOGS)
def test_fitting_again_appends_and_a_new_network_begins_anew(tmp_path, log, read):
    net, path = make(), tmp_path / "log"
    fit(net, [log(path)], epochs=2)
    fit(net, [log(path)], epochs=1, validated=False, metrics=["mae"])
    records = read(path)
    assert [int(record["epoch"]) for record in records] == [1, 2, 3]
    assert records[0]["val_loss"]
    assert not records[2].get("val_loss")
    assert float(records[2]["mae"]) == net.history["mae"][0]
    fit(make(), [log(path)], epochs=1)
    assert [int(record["epoch"]) for record in read(path)] == [1]


@pytest.mark.parametrize(("log", "read"), LOGS)
def test_a_resumed_training_replaces_what_was_logged_after_its_checkpoint(tmp_path, log, read):
    path = tmp_path / "log"

    def callbacks():
        return [gs.Checkpoint(tmp_path / "run", every=2), log(path)]

    class Die(gs.Callback):
        def on_epoch_end(self, state):
            if state.epoch == 4:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(make(), [*callbacks(), Die()], epochs=6)
    with open(path, "a") as file:
        file.write(read(path)[-1].__repr__()[:7])  # a line that was not finished
    history = fit(make(), callbacks(), epochs=6)
    assert [int(record["epoch"]) for record in read(path)] == [1, 2, 3, 4, 5, 6]
    assert [float(record["loss"]) for record in read(path)] == history.loss


def test_json_has_null_for_what_is_not_finite(tmp_path):
    class Break(gs.Callback):
        def on_epoch_end(self, state):
            state.history["val_r2"][-1] = float("nan")

    fit(make(), [Break(), gs.JSONLinesLog(tmp_path / "log")], epochs=1)
    assert lines(tmp_path / "log")[0]["val_r2"] is None


@pytest.mark.parametrize("log", [gs.CSVLog, gs.JSONLinesLog])
def test_files_that_cannot_be_written_are_refused_before_training(tmp_path, log):
    with pytest.raises(TypeError, match="path must be the path of a file, got 3"):
        log(3)
    net = make()
    with pytest.raises(FileNotFoundError, match="cannot be written: there is no folder"):
        fit(net, [log(tmp_path / "absent" / "log")])
    with pytest.raises(IsADirectoryError, match="is a folder"):
        fit(net, [log(tmp_path)])
    assert net.epochs_trained == 0


@pytest.mark.parametrize("log", [gs.CSVLog, gs.JSONLinesLog])
def test_a_training_that_fails_before_its_first_epoch_leaves_the_file_alone(tmp_path, log):
    class Refuse(gs.Callback):
        def on_fit_begin(self, state):
            raise RuntimeError

    path = tmp_path / "log"
    path.write_text("mine\n")
    with pytest.raises(RuntimeError):
        fit(make(), [log(path), Refuse()])
    assert path.read_text() == "mine\n"


# --------------------------------------------------------------------------------------------------
# TensorBoard.


def curves(folder):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = loader.EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_reads_the_curves(tmp_path):
    pytest.importorskip("tensorboard")
    history = fit(make(), [gs.TensorBoard(tmp_path / "board")])
    read = curves(tmp_path / "board")
    assert set(read) == {"loss/train", "loss/validation", "rmse/validation", "r2/validation", "learning_rate"}
    for tag, name in (("loss/train", "loss"), ("r2/validation", "val_r2")):
        assert read[tag] == [(n + 1, np.float32(value)) for n, value in enumerate(history[name])]


def test_a_resumed_training_takes_the_place_of_what_tensorboard_had(tmp_path):
    pytest.importorskip("tensorboard")

    class Die(gs.Callback):
        def on_epoch_end(self, state):
            if state.epoch == 4:
                raise RuntimeError

    def callbacks():
        return [gs.Checkpoint(tmp_path / "run", every=2), gs.TensorBoard(tmp_path / "board")]

    with pytest.raises(RuntimeError):
        fit(make(), [*callbacks(), Die()], epochs=5)
    for file in (
        tmp_path / "board"
    ).iterdir():  # files are read in the order of their names, which have seconds
        file.rename(file.with_name(file.name.replace("tfevents.", "tfevents.0")))
    history = fit(make(), callbacks(), epochs=5)
    assert curves(tmp_path / "board")["loss/train"] == [
        (n + 1, np.float32(value)) for n, value in enumerate(history.loss)
    ]


def test_tensorboard_needs_neither_tensorflow_nor_torch(tmp_path):
    pytest.importorskip("tensorboard")
    code = (
        "import sys, numpy as np, gradstep as gs\n"
        "board = gs.TensorBoard(sys.argv[1])\n"
        "net = gs.Network([gs.Dense(1)], backend='numpy')\n"
        "net.fit(np.ones((4, 2)), np.ones(4), epochs=1, verbose=0, callbacks=[board])\n"
        "print(*sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(gs.__file__).parent.parent)}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"tensorflow", "torch"} & set(result.stdout.split())
    assert len(list(tmp_path.iterdir())) == 1


def test_without_tensorboard_the_extra_is_named(monkeypatch, tmp_path):
    for name in [*sys.modules]:
        if name.split(".")[0] == "tensorboard":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r'package tensorboard: pip install "gradstep\[tensorboard\]"'):
        gs.TensorBoard(tmp_path)


def test_tensorboards_directory_is_checked(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(TypeError, match="directory must be the path of a folder, got 3"):
        gs.TensorBoard(3)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"directory must be a folder, but .* is a file"):
        fit(make(), [gs.TensorBoard(tmp_path / "file")])
