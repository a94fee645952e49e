import contextlib
import time

import numpy as np
import pytest

import gradstep as gs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [2.0], [3.0]], np.float32)


def make(backend="numpy", **settings):
    return gs.Network([gs.Dense(1)], backend=backend, **{"optimizer": gs.SGD(0.05), **settings})


class Recorder(gs.Callback):
    def __init__(self):
        self.calls = []

    def on_fit_begin(self, state):
        self.calls.append(("begin", state.epoch))

    def on_epoch_end(self, state):
        self.calls.append(("epoch", state.epoch))
        self.state = state

    def on_fit_end(self, state):
        self.calls.append(("end", state.epoch))


class Script(gs.Callback):
    """Replaces a metric by given values, ahead of the callbacks behind it."""

    def __init__(self, values, name="val_loss"):
        self.values, self.name = values, name
        self.parameters = []

    def on_epoch_end(self, state):
        state.history[self.name][-1] = self.values[state.epoch - 1]
        self.parameters.append(state.network.parameters())


def test_hooks_are_called_around_every_epoch(backend):
    recorder = Recorder()
    net = make(backend.name)
    history = net.fit(X, Y, epochs=3, callbacks=[recorder], verbose=0)
    assert recorder.calls == [("begin", 0), ("epoch", 1), ("epoch", 2), ("epoch", 3), ("end", 3)]
    assert recorder.state.network is net
    assert recorder.state.history is history
    assert recorder.state.epochs == 3


def test_returning_true_stops_but_every_callback_sees_the_epoch():
    class Stop(gs.Callback):
        def on_epoch_end(self, state):
            return state.epoch == 2

    recorder = Recorder()
    history = make().fit(X, Y, epochs=9, callbacks=[Stop(), recorder], verbose=0)
    assert len(history) == 2
    assert history.stopped == "callback"
    assert recorder.calls[-2:] == [("epoch", 2), ("end", 2)]


def test_the_end_is_told_after_an_error_in_a_callback():
    class Broken(gs.Callback):
        def on_epoch_end(self, state):
            raise RuntimeError("broken")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="broken"):
        make().fit(X, Y, epochs=9, callbacks=[Broken(), recorder], verbose=0)
    assert recorder.calls[-1] == ("end", 1)


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "stopped_after", "best"),
    [
        ([5, 4, 3, 3, 3, 3, 3, 3], 2, 0.0, 5, 3),
        ([5, 4, 6, 3, 6, 6, 6, 6], 3, 0.0, 7, 4),
        ([5, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4, 4.3], 2, 0.15, 8, 7),
        ([5, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4, 4.3], 2, 1.0, 3, 1),
        ([8, 7, 6, 5, 4, 3, 2, 1], 1, 0.0, 8, 8),
        ([np.nan, np.nan, 6, 7, 7, 7, 7, 7], 3, 0.0, 6, 3),
        ([np.nan] * 8, 3, 0.0, 3, 0),
    ],
)
def test_early_stopping_waits_and_restores_the_best_epoch(values, patience, min_delta, stopped_after, best):
    script, stopping = Script(values), gs.EarlyStopping(patience, min_delta)
    net = make()
    history = net.fit(X, Y, epochs=8, callbacks=[script, stopping], validation_data=(X, Y), verbose=0)
    assert len(history) == stopped_after
    assert stopping.best_epoch == best
    if best:
        assert stopping.best == values[best - 1]
    expected = script.parameters[(best or stopped_after) - 1]
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, expected[name])


def test_early_stopping_may_keep_the_last_parameters():
    script = Script([1, 2, 3, 4])
    stopping = gs.EarlyStopping(2, restore_best=False)
    net = make()
    net.fit(X, Y, epochs=8, callbacks=[script, stopping], validation_data=(X, Y), verbose=0)
    np.testing.assert_array_equal(net.parameters()["dense_0.W"], script.parameters[-1]["dense_0.W"])


def test_early_stopping_watches_the_training_loss_without_validation_data():
    script = Script([1, 2, 3, 4], name="loss")
    history = make().fit(X, Y, epochs=8, callbacks=[script, gs.EarlyStopping(3)], verbose=0)
    assert len(history) == 4


def test_early_stopping_restores_after_ctrl_c_and_divergence():
    for end in (KeyboardInterrupt, RuntimeError):
        script = Script([1, 2, 3])

        class End(gs.Callback):
            def on_epoch_end(self, state, end=end):
                if state.epoch == 3:
                    raise end

        net = make()
        callbacks = [script, gs.EarlyStopping(), End()]
        with contextlib.suppress(RuntimeError):
            net.fit(X, Y, epochs=8, callbacks=callbacks, validation_data=(X, Y), verbose=0)
        np.testing.assert_array_equal(net.parameters()["dense_0.W"], script.parameters[0]["dense_0.W"])


def test_early_stopping_starts_anew_with_every_fit():
    stopping = gs.EarlyStopping(2)
    net = make()
    options = {"epochs": 8, "validation_data": (X, Y), "verbose": 0}
    net.fit(X, Y, callbacks=[Script([1, 2, 3]), stopping], **options)
    history = net.fit(X, Y, callbacks=[Script([9, 8, 7, 6, 5, 4, 3, 2]), stopping], **options)
    assert len(history) == 8
    assert stopping.best == 2


def test_early_stopping_really_helps(backend):
    """Validation loss of the restored network is the smallest one seen."""
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(20, 1)).astype(np.float32)
    net = gs.Network([gs.Dense(30, "tanh"), gs.Dense(1)], optimizer=gs.Adam(0.05), backend=backend.name)
    history = net.fit(
        X[:20],
        noise,
        epochs=100,
        validation_data=(X[20:], -noise),
        callbacks=[gs.EarlyStopping(5)],
        verbose=0,
    )
    assert history.stopped == "callback"
    assert net.evaluate(X[20:], -noise)["loss"] == min(history.val_loss) < history.val_loss[-1]


def test_early_stopping_checks_its_arguments():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        gs.EarlyStopping(0)
    with pytest.raises(ValueError, match="min_delta must be at least 0"):
        gs.EarlyStopping(min_delta=-1.0)
    with pytest.raises(TypeError, match="monitor must be a key of the history"):
        gs.EarlyStopping(monitor=3)
    with pytest.raises(TypeError, match="restore_best must be True or False"):
        gs.EarlyStopping(restore_best="yes")


def test_an_unknown_metric_is_answered_with_the_nearest():
    net = make()
    first = net.fit(X, Y, epochs=1, verbose=0)
    before = net.parameters()
    with pytest.raises(ValueError, match="unknown monitor 'val_los', did you mean 'val_loss'"):
        net.fit(X, Y, callbacks=[gs.EarlyStopping(monitor="val_los")], validation_data=(X, Y), verbose=0)
    with pytest.raises(ValueError, match="monitor 'val_loss' needs validation_data"):
        net.fit(X, Y, callbacks=[gs.EarlyStopping(monitor="val_loss")], verbose=0)
    assert net.history is first
    assert net.epochs_trained == 1
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy", "cross_entropy"])
def test_callbacks_are_told_the_names_of_the_history(loss, validated):
    class Remember(gs.Callback):
        def on_fit_begin(self, state):
            self.names = state.metrics

    net = gs.Network([gs.Dense(2)], loss=loss, backend="numpy")
    data = X, (np.arange(len(X)) % 2 if loss == "cross_entropy" else np.zeros((len(X), 2)))
    remember = Remember()
    history = net.fit(
        *data, epochs=1, callbacks=[remember], validation_data=data if validated else None, verbose=0
    )
    assert remember.names == tuple(history)


def test_any_true_value_stops_the_training():
    class Stop(gs.Callback):
        def on_epoch_end(self, state):
            return np.float32(1) > 0

    assert make().fit(X, Y, epochs=10, callbacks=[Stop()], verbose=0).stopped == "callback"


def test_every_callback_ends_whatever_another_raises():
    class Boom(gs.Callback):
        def on_epoch_end(self, state):
            if state.epoch == 3:
                raise RuntimeError("in an epoch")

        def on_fit_end(self, state):
            raise RuntimeError("at the end")

    class End(gs.Callback):
        ended = False

        def on_fit_end(self, state):
            self.ended = True

    net, end = make(), End()
    with pytest.raises(RuntimeError, match="at the end"):
        net.fit(X, Y, epochs=10, callbacks=[Boom(), end], verbose=0)
    assert end.ended
    assert net.history.stopped == "failed"
    assert len(net.history) == net.epochs_trained == 3


def test_no_callbacks_may_be_none():
    assert len(make().fit(X, Y, epochs=2, callbacks=None, verbose=0)) == 2
    with pytest.raises(TypeError, match="callbacks must be a list of callbacks, got 3"):
        make().fit(X, Y, epochs=2, callbacks=3, verbose=0)


def test_a_time_budget_stops_after_the_epoch_that_uses_it_up():
    class Slow(gs.Callback):
        def on_epoch_end(self, state):
            time.sleep(0.02)

    budget = gs.TimeBudget(0.05)
    for _ in range(2):  # the clock starts with every fit
        history = make().fit(X, Y, epochs=1000, callbacks=[Slow(), budget], verbose=0)
        assert 1 < len(history) <= 3
        assert history.stopped == "callback"
    assert len(make().fit(X, Y, epochs=3, callbacks=[gs.TimeBudget(60)], verbose=0)) == 3
    with pytest.raises(ValueError, match="seconds must be greater than 0, got 0"):
        gs.TimeBudget(0)


def test_callbacks_that_come_last_are_called_last_and_know_the_others():
    order = []

    class Note(gs.Callback):
        def __init__(self, name):
            self.name = name

        def on_epoch_end(self, state):
            order.append(self.name)
            self.seen = [callback.name for callback in state.callbacks]

    class Last(Note):
        last = True

    callbacks = [Last("z"), Note("a"), Note("b")]
    make().fit(X, Y, epochs=1, callbacks=callbacks, verbose=0)
    assert order == callbacks[0].seen == ["a", "b", "z"]


def test_callbacks_are_told_the_arguments_and_may_say_something(capsys):
    class Say(gs.Callback):
        def on_fit_begin(self, state):
            self.arguments = state.arguments
            state.note("before")

        def on_epoch_end(self, state):
            state.note(f"after {state.number}")

    net, say = make(), Say()
    net.fit(X, Y, epochs=1, verbose=0)
    assert capsys.readouterr().err == ""
    net.fit(X, Y, epochs=1, batch_size=9, shuffle=False, callbacks=[say])
    expected = {"rows": 40, "accumulate": 1, "batch_size": 9, "shuffle": False, "schedule": None}
    assert say.arguments == expected
    assert [line for line in capsys.readouterr().err.splitlines() if "loss" not in line] == [
        "before",
        "after 2",
    ]
