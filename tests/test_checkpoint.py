"""Checkpoints: a training that stops anywhere goes on exactly, and damaged files are noticed."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from gradstep import checkpoint, io

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 3)).astype(np.float32)
Y = np.sin(X[:, 0])
VALIDATION = (X[:9], 1 - Y[:9])


def make(backend="numpy", **settings):
    options = {"optimizer": gs.NAdam(0.02), "preprocessing": "standardize"} | settings
    layers = options.pop("layers", [gs.Dense(6, "tanh"), gs.Dropout(0.2), gs.Dense(1)])
    return gs.Network(layers, backend=backend, **options)


def fit(net, folder, epochs, callbacks=(), **options):
    given = {"every": 1} | {
        k: v for k, v in options.items() if k in ("every", "keep", "best", "resume", "monitor")
    }
    point = gs.Checkpoint(folder, **given)
    rest = {"batch_size": 16, "validation_data": VALIDATION, "verbose": 0}
    rest |= {k: v for k, v in options.items() if k not in given}
    history = net.fit(X, Y, epochs=epochs, callbacks=[point, *callbacks], **rest)
    return point, history


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def assert_same(a, b):
    for state in ("parameters", "optimizer_state"):
        first, second = getattr(a, state)(), getattr(b, state)()
        for name, value in first.items():
            np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert (a.learning_rate, a.epochs_trained) == (b.learning_rate, b.epochs_trained)


class Killed(BaseException):
    pass


class Kill(gs.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, state):
        if state.epoch == self.epoch:
            raise Killed


def fit_until(net, folder, epoch, epochs, callbacks=(), **options):
    """Training that dies in an epoch, before its checkpoint."""
    with pytest.raises(Killed):
        fit(net, folder, epochs, [*callbacks, Kill(epoch)], **options)


def damage(path, at=0.6):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


# --------------------------------------------------------------------------------------------------
# Going on.


@pytest.mark.parametrize(("kind", "kills"), [("random", 50), ("files", 24)])
def test_training_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path, kind, kills):
    pytest.importorskip("gradstep._core")
    environment = {**os.environ, "GRADSTEP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(gs.__file__).parent.parent)
    command = [sys.executable, "-W", "error", Path(__file__).parent / "kills.py", tmp_path, kind, str(kills)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == str(kills)


@pytest.mark.parametrize("every", [1, 3])
def test_a_restarted_program_goes_on_exactly(tmp_path, backend, every):
    def callbacks():
        return [gs.ReduceOnPlateau(1, min_delta=0.2), gs.EarlyStopping(7)]

    options = {"schedule": gs.LinearWarmup(5, gs.Cosine()), "metrics": ["mae"], "every": every}
    whole, again = make(backend.name), make(backend.name)
    _, expected = fit(whole, tmp_path / "a", 12, callbacks(), **options)
    fit_until(make(backend.name), tmp_path / "b", 8, 12, callbacks(), **options)
    point, history = fit(again, tmp_path / "b", 12, callbacks(), **options)
    assert point.resumed == (7 if every == 1 else 6)
    assert history.metrics == expected.metrics
    assert history.samples == expected.samples
    assert history.stopped == expected.stopped
    assert again.learning_rate < 0.02
    assert_same(again, whole)


@pytest.mark.parametrize("rows", ["source", "batches", "balanced"])
def test_rows_that_are_not_one_array_go_on_exactly(tmp_path, backend, rows):
    labels = (X[:, 0] > 0.5).astype(int)

    def train(folder, epochs):
        loss = "cross_entropy" if rows == "balanced" else "mse"
        layers = [gs.Dense(6, "tanh"), gs.Dense(2 if rows == "balanced" else 1)]
        net = gs.Network(layers, loss=loss, averaging=gs.EMA(0.9), backend=backend.name, seed=5)
        data = {
            "source": (gs.ArraySource(X, Y, window_bytes=400),),
            "batches": ([(X[:20], Y[:20]), (X[20:], Y[20:])],),
            "balanced": (X, labels),
        }[rows]
        sampling = "balanced" if rows == "balanced" else "all"
        options = {"sampling": sampling, "schedule": gs.ExponentialDecay(7), "verbose": 0}
        options |= {} if rows == "batches" else {"batch_size": 7}
        net.fit(*data, epochs=epochs, callbacks=[gs.Checkpoint(folder)], **options)
        return net

    whole = train(tmp_path / "a", 6)
    train(tmp_path / "b", 4)
    assert_same(train(tmp_path / "b", 6), whole)


def test_lbfgs_makes_the_iterations_that_are_left(tmp_path):
    pytest.importorskip("scipy")

    def train(epochs):
        net = make(layers=[gs.Dense(6, "tanh"), gs.Dense(1)], optimizer="lbfgs", dtype="float64")
        return net.fit(X, Y, epochs=epochs, callbacks=[gs.Checkpoint(tmp_path)], verbose=0)

    first = train(3)
    assert len(train(3)) == 3
    longer = train(5)
    assert len(longer) == 5
    assert longer.loss[:3] == first.loss
    assert longer.loss[4] < first.loss[2]


def test_a_finished_training_returns_at_once_and_may_be_lengthened(tmp_path):
    whole = make()
    _, expected = fit(whole, tmp_path / "a", 9)
    fit(make(), tmp_path / "b", 5)
    again = make()
    point, history = fit(again, tmp_path / "b", 5)
    assert point.resumed == len(history) == again.epochs_trained == 5
    longer = make()
    _, history = fit(longer, tmp_path / "b", 9)
    assert history.metrics == expected.metrics
    assert_same(longer, whole)


def test_early_stopping_that_has_stopped_stays_so_until_it_has_more_patience(tmp_path):
    rising = make(optimizer=gs.Adam(0.1))
    _, first = fit(rising, tmp_path, 30, [gs.EarlyStopping(3)])
    assert first.stopped == "callback"
    again, stopping = make(optimizer=gs.Adam(0.1)), gs.EarlyStopping(3)
    _, second = fit(again, tmp_path, 30, [stopping])
    assert second.metrics == first.metrics
    assert second.stopped == "callback"
    np.testing.assert_array_equal(again.predict(X), rising.predict(X))
    assert stopping.best == min(first.val_loss)
    _, third = fit(make(optimizer=gs.Adam(0.1)), tmp_path, 30, [gs.EarlyStopping(5)])
    assert len(third) > len(first)


def test_a_time_budget_that_was_used_up_is_new_in_the_next_process(tmp_path):
    _, first = fit(make(), tmp_path, 3, [gs.TimeBudget(1e-9)])
    _, second = fit(make(), tmp_path, 3, [gs.TimeBudget(1e-9)])
    assert (len(first), len(second), second.stopped) == (1, 2, "callback")


def test_a_users_callback_keeps_what_it_remembers(tmp_path):
    class Count(gs.Callback):
        def __init__(self):
            self.sum, self.trail = float("inf"), np.zeros(0, np.int8)

        def on_epoch_end(self, state):
            self.sum = min(self.sum, state.epoch)
            self.trail = np.append(self.trail, np.int8(state.epoch))

        def get_state(self):
            return {"sum": self.sum, "limit": np.float32("inf"), "trail": self.trail}

        def set_state(self, state):
            self.sum, self.limit, self.trail = state["sum"], state["limit"], state["trail"]

    fit_until(make(), tmp_path, 4, 6, [Count(), Count()])
    first, second = Count(), Count()
    fit(make(), tmp_path, 6, [gs.EarlyStopping(99), first, second])
    assert first.sum == second.sum == 1
    assert first.limit == float("inf")
    assert second.trail.tolist() == [1, 2, 3, 4, 5, 6]
    assert second.trail.dtype == np.int8


@pytest.mark.parametrize("odd", [{"x": object()}, {"x": np.array(["a", None])}, {3: 4}])
def test_a_state_that_no_file_can_hold_is_said(tmp_path, odd):
    class Odd(gs.Callback):
        def get_state(self):
            return odd

    with pytest.raises(TypeError, match=r"Odd\.get_state must return numbers, texts"):
        fit(make(), tmp_path, 1, [Odd()])


def test_two_checkpoints_go_on_from_the_later_one(tmp_path):
    def both():
        return [gs.Checkpoint(tmp_path / "often", keep=1), gs.Checkpoint(tmp_path / "seldom", every=4)]

    options = {"epochs": 8, "batch_size": 16, "verbose": 0}
    whole, again = make(), make()
    expected = whole.fit(X, Y, **options)
    with pytest.raises(Killed):
        make().fit(X, Y, callbacks=[*both(), Kill(7)], **options)
    callbacks = both()
    history = again.fit(X, Y, callbacks=callbacks, **options)
    assert [point.resumed for point in callbacks] == [6, 6]
    assert history.loss == expected.loss
    assert_same(again, whole)
    assert names(tmp_path / "seldom")[1:] == ["epoch-00004.safetensors", "epoch-00008.safetensors"]


def test_the_user_is_told_where_training_goes_on(tmp_path, capsys):
    fit(make(), tmp_path, 2)
    fit(make(), tmp_path, 3, verbose=1)
    assert (
        f"going on after epoch 2 of 3, from {tmp_path / 'epoch-00002.safetensors'}" in capsys.readouterr().err
    )


def test_a_later_call_of_fit_has_a_directory_of_its_own(tmp_path):
    net = make()
    fit(net, tmp_path / "first", 3)
    fit_until(net, tmp_path / "second", 3, 4)
    again = make()
    fit(again, tmp_path / "first", 3)
    point, history = fit(again, tmp_path / "second", 4)
    assert (point.resumed, history.epochs) == (2, [4, 5, 6, 7])
    with pytest.raises(ValueError, match=r"another training \(epochs_trained was 3, now it is 7"):
        fit(again, tmp_path / "second", 4)


# --------------------------------------------------------------------------------------------------
# What is kept.


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    class Script(gs.Callback):
        def on_epoch_end(self, state):
            state.history["val_loss"][-1] = [5.0, 2.0, 4.0, 3.0, 2.5, 2.0][state.epoch - 1]
            if state.epoch == 2:
                self.best = state.network.parameters()

    script = Script()
    fit(make(), tmp_path, 6, [script], keep=2)
    assert names(tmp_path) == ["best.safetensors", "epoch-00005.safetensors", "epoch-00006.safetensors"]
    for name, value in gs.load_checkpoint(tmp_path, best=True, backend="numpy").parameters().items():
        np.testing.assert_array_equal(value, script.best[name])
    fit(make(), tmp_path / "none", 2, best=False)
    assert names(tmp_path / "none") == ["epoch-00001.safetensors", "epoch-00002.safetensors"]


def test_the_best_is_the_largest_of_what_should_be_large(tmp_path):
    _, history = fit(make(optimizer=gs.Adam(0.1)), tmp_path, 8, metrics=["r2", "mae"], monitor="val_r2")
    best = int(np.argmax(history["val_r2"])) + 1
    assert gs.load_checkpoint(tmp_path, best=True).epochs_trained == best


def test_the_last_epoch_is_written_whatever_every_says(tmp_path):
    fit(make(), tmp_path, 5, every=3, best=False)
    assert names(tmp_path) == ["epoch-00003.safetensors", "epoch-00005.safetensors"]


def test_a_checkpoint_is_a_model_file(tmp_path):
    net = make()
    fit(net, tmp_path, 2, [gs.EarlyStopping(5, restore_best=False)])
    loaded = gs.load(tmp_path / "epoch-00002.safetensors", backend="numpy")
    assert_same(loaded, net)
    assert_same(gs.load_checkpoint(tmp_path, backend="numpy"), net)


def test_file_systems_without_links_get_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    fit(make(), tmp_path, 2)
    assert gs.load_checkpoint(tmp_path, best=True).epochs_trained in (1, 2)
    assert len(names(tmp_path)) == 3


def test_leftovers_of_a_killed_process_are_removed_and_other_files_stay(tmp_path):
    (tmp_path / ".epoch-00001.safetensors.0a1b.tmp").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".epoch-1.tmp").touch()
    fit(make(), tmp_path, 1, best=False)
    assert names(tmp_path) == [".epoch-1.tmp", "epoch-00001.safetensors", "notes.txt"]


def test_starting_anew_removes_old_ones_once_a_new_one_is_there(tmp_path):
    fit(make(), tmp_path, 5)
    before = names(tmp_path)
    net = make()
    with pytest.raises(Killed):
        fit(net, tmp_path, 5, [Kill(1)], resume=False)
    assert names(tmp_path) == before
    point, _ = fit(make(), tmp_path, 5, [], resume=False, every=4)
    assert point.resumed == 0
    assert names(tmp_path) == ["best.safetensors", "epoch-00004.safetensors", "epoch-00005.safetensors"]


# --------------------------------------------------------------------------------------------------
# Damage.


@pytest.mark.parametrize("at", [0.01, 0.3, 0.6, 0.99, "half", "empty"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_used(tmp_path, at):
    whole, again = make(), make()
    _, expected = fit(whole, tmp_path / "a", 7)
    fit(make(), tmp_path / "b", 5)
    newest = tmp_path / "b" / "epoch-00005.safetensors"
    if isinstance(at, str):
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2 if at == "half" else 0])
    else:
        damage(newest, at)
    with pytest.warns(
        UserWarning, match=r"epoch-00005\.safetensors .*; the one before it is used: epoch-00004"
    ) as w:
        point, history = fit(again, tmp_path / "b", 7)
    assert w[0].filename == __file__
    assert point.resumed == 4
    assert history.metrics == expected.metrics
    assert_same(again, whole)


def test_every_altered_byte_is_noticed(tmp_path):
    fit(make(), tmp_path, 1, best=False)
    path = tmp_path / "epoch-00001.safetensors"
    whole = path.read_bytes()
    expected = io.read_model(path)
    step = 29
    for position in range(0, len(whole), step):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            config, tensors = io.read_model(path)
        except (ValueError, MemoryError):
            continue
        # Blanks around the JSON may change without changing what it says.
        assert config == expected[0]
        assert all(np.array_equal(tensors[name], value) for name, value in expected[1].items())


def test_without_a_whole_checkpoint_nothing_happens(tmp_path):
    fit(make(), tmp_path, 2)
    for path in tmp_path.glob("epoch-*"):
        damage(path, 0.95)
    net = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"holds no whole checkpoint .*its checksum.*resume=False"):
            fit(net, tmp_path, 3)
        with pytest.raises(ValueError, match=r"is damaged: its contents do not match its checksum"):
            gs.load_checkpoint(tmp_path)
    assert net.epochs_trained == 0
    assert net.n_in is None


def test_loading_passes_over_damaged_ones(tmp_path):
    fit(make(), tmp_path, 3)
    damage(tmp_path / "epoch-00003.safetensors")
    with pytest.warns(UserWarning, match="the one before it is used: epoch-00002"):
        assert gs.load_checkpoint(tmp_path).epochs_trained == 2
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in directory .*absent"):
        gs.load_checkpoint(tmp_path / "absent")


def test_damaged_checkpoints_do_not_take_the_place_of_whole_ones(tmp_path):
    fit(make(), tmp_path, 5)
    damage(tmp_path / "epoch-00005.safetensors")
    with pytest.warns(UserWarning, match="epoch-00004"):
        fit(make(), tmp_path, 7, every=3, best=False)
    assert names(tmp_path)[1:] == [f"epoch-0000{number}.safetensors" for number in (4, 6, 7)]


# --------------------------------------------------------------------------------------------------
# Another training, and other bad input.


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ({"seed": 1}, {}, "seed was 0, now it is 1"),
        ({"l2": 0.5}, {}, "l2 was 0.0, now it is 0.5"),
        ({"optimizer": gs.NAdam(0.03)}, {}, "optimizer.learning_rate was 0.02, now it is 0.03"),
        ({"preprocessing": "minmax"}, {}, 'preprocessing.mode was "standardize", now it is "minmax"'),
        ({"layers": [gs.Dense(7), gs.Dropout(0.2), gs.Dense(1)]}, {}, r"layers\[0\]\."),
        ({}, {"batch_size": 8}, "batch_size was 16, now it is 8"),
        ({}, {"shuffle": False}, "shuffle was true, now it is false"),
        ({}, {"sample_weight": np.full(len(X), 0.5)}, 'weights was null, now it is "'),
        ({}, {"schedule": gs.Cosine()}, 'schedule was "None", now it is "Cosine'),
        ({}, {"metrics": ["mae"]}, "metrics was"),
    ],
)
def test_checkpoints_of_another_training_are_refused(tmp_path, network, options, words):
    fit(make(), tmp_path, 2)
    net = make(**network)
    with pytest.raises(ValueError, match=f"directory .* holds checkpoints of another training .{words}"):
        fit(net, tmp_path, 3, **options)
    assert net.epochs_trained == 0
    assert net.history is None


@pytest.mark.parametrize(
    ("given", "batch_size", "words"),
    [
        (gs.ArraySource(X, Y, window_bytes=400), 4, "accumulate was 1, now it is 3"),
        ([(X[:20], Y[:20]), (X[20:], Y[20:])], None, "accumulate was 1, now it is 3"),
    ],
)
def test_another_accumulation_of_a_source_is_another_training(tmp_path, given, batch_size, words):
    for accumulate in (1, 3):
        net = make(preprocessing="none")
        point = gs.Checkpoint(tmp_path, every=1)
        fitting = {"batch_size": batch_size, "accumulate": accumulate, "callbacks": [point], "verbose": 0}
        if accumulate == 1:
            net.fit(given, epochs=1, **fitting)
        else:
            with pytest.raises(ValueError, match=words):
                net.fit(given, epochs=2, **fitting)


LABELS = np.arange(len(X)) % 2


@pytest.mark.parametrize(
    ("given", "differs"),
    [((X, LABELS), "weights"), ((gs.ArraySource(X, LABELS, window_bytes=400),), "class_weights")],
    ids=["rows", "source"],
)
def test_class_weights_that_change_places_are_another_training(tmp_path, given, differs):
    for class_weight in ({0: 1, 1: 3}, {0: 3, 1: 1}):
        net = gs.Network([gs.Dense(2)], loss="cross_entropy", seed=0)
        fitting = {"batch_size": 4, "class_weight": class_weight, "callbacks": [gs.Checkpoint(tmp_path)]}
        if class_weight[0] == 1:
            net.fit(*given, epochs=2, verbose=0, **fitting)
        else:
            with pytest.raises(ValueError, match=rf"another training \({differs}"):
                net.fit(*given, epochs=3, verbose=0, **fitting)


def test_files_that_are_older_than_what_is_compared_are_taken(tmp_path, monkeypatch):
    now = checkpoint._beginning

    def before(state):
        return {name: value for name, value in now(state).items() if name != "weights"}

    with monkeypatch.context() as older:
        older.setattr(checkpoint, "_beginning", before)
        fit(make(), tmp_path, 2)
    assert fit(make(), tmp_path, 3, sample_weight=np.ones(len(X)))[0].resumed == 2


def test_other_weights_of_drawn_rows_are_another_training(tmp_path):
    for size in (1.0, 2.0):
        net = gs.Network([gs.Dense(2)], loss="cross_entropy", seed=0)
        weight = np.linspace(0, size, len(X))
        fitting = {"sample_weight": weight, "sampling": "balanced", "callbacks": [gs.Checkpoint(tmp_path)]}
        if size == 1:
            net.fit(X, LABELS, epochs=2, verbose=0, **fitting)
        else:
            with pytest.raises(ValueError, match=r"another training \(weights"):
                net.fit(X, LABELS, epochs=3, verbose=0, **fitting)


def test_other_windows_of_a_source_are_another_training(tmp_path):
    for window_bytes, epochs in ((400, 1), (400, 2), (800, 3)):
        net, point = make(preprocessing="none"), gs.Checkpoint(tmp_path, every=1)
        source = gs.ArraySource(X, Y, window_bytes=window_bytes)
        if window_bytes == 400:
            net.fit(source, epochs=epochs, batch_size=4, callbacks=[point], verbose=0)
        else:
            with pytest.raises(ValueError, match="window_bytes was 400, now it is 800"):
                net.fit(source, epochs=epochs, batch_size=4, callbacks=[point], verbose=0)


def test_other_rows_are_refused_and_a_function_as_schedule_is_known_again(tmp_path):
    def schedule(step):
        return 1 / (1 + step)

    fit(make(), tmp_path, 2, schedule=schedule)
    assert fit(make(), tmp_path, 3, schedule=schedule)[0].resumed == 2
    point = gs.Checkpoint(tmp_path)
    options = {"batch_size": 16, "validation_data": VALIDATION, "schedule": schedule, "verbose": 0}
    with pytest.raises(ValueError, match=r"preprocessing\.shift\[0\] was"):
        make().fit(X + 1, Y, epochs=4, callbacks=[point], **options)
    with pytest.raises(ValueError, match=r"rows was 48, now it is 47|preprocessing\.shift"):
        make().fit(X[1:], Y[1:], epochs=4, callbacks=[point], **options)


def test_fewer_epochs_than_are_done_are_refused(tmp_path):
    fit(make(), tmp_path, 4)
    with pytest.raises(ValueError, match=r"epochs must be at least 4, as so many are done .*, got 3"):
        fit(make(), tmp_path, 3)


def test_a_callback_that_refuses_keeps_the_network_as_it_was(tmp_path):
    class Refuse(gs.Callback):
        def set_state(self, state):
            raise RuntimeError("no")

        def get_state(self):
            return {"a": 1}

    fit(make(), tmp_path, 2, [Refuse()])
    net = make()
    net.prepare(X, Y)
    before = net.parameters()
    with pytest.raises(RuntimeError, match="no"):
        fit(net, tmp_path, 3, [gs.EarlyStopping(3), Refuse()])
    assert net.epochs_trained == 0
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, before[name])


def test_arguments_are_checked(tmp_path):
    with pytest.raises(TypeError, match="directory must be the path of a folder, got 3"):
        gs.Checkpoint(3)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        gs.Checkpoint(tmp_path, every=0)
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        gs.Checkpoint(tmp_path, keep=0)
    with pytest.raises(TypeError, match="best must be True or False"):
        gs.Checkpoint(tmp_path, best="loss")
    with pytest.raises(ValueError, match="unknown mode 'maximum', did you mean 'max'"):
        gs.Checkpoint(tmp_path, mode="maximum")
    with pytest.raises(ValueError, match="unknown monitor 'val_los'"):
        fit(make(), tmp_path / "new", 1, monitor="val_los")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"directory must be a folder, but .*file is a file"):
        fit(make(), tmp_path / "file", 1)
