import functools
import multiprocessing
import os
import signal
import threading
from fractions import Fraction

import joblib
import numpy as np
import pytest

import gradstep as gs
from conftest import BACKENDS
from gradstep.random import permutation

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 4)).astype(np.float32)
Y = (X[:, :2] ** 2 + X[:, 2:]).astype(np.float32)


def make(backend, **settings):
    name = backend if isinstance(backend, str) else backend.name
    return gs.Network([gs.Dense(8, "tanh"), gs.Dense(2)], **{"backend": name, **settings})


def assert_same_parameters(a, b):
    mine, other = a.parameters(), b.parameters()
    for name in mine:
        np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


# --------------------------------------------------------------------------------------------------
# What an epoch is


def test_training_lowers_the_loss(backend):
    history = make(backend, optimizer=gs.Adam(0.02)).fit(X, Y, epochs=60, verbose=0)
    assert history.loss[-1] < 0.3 * history.loss[0]


@pytest.mark.parametrize("batch_size", [1, 32, 69, 70])
def test_an_epoch_is_steps_over_the_batches_the_last_one_smaller(backend, batch_size):
    net, stepped = (make(backend, optimizer=gs.SGD(0.01), dtype="float64", seed=3) for _ in range(2))
    history = net.fit(X, Y, epochs=2, batch_size=batch_size, verbose=0)
    for epoch in range(2):
        order = permutation(70, 3, epoch) if batch_size < 70 else np.arange(70)
        total = 0.0
        for start in range(0, 70, batch_size):
            rows = order[start : start + batch_size]
            total += len(rows) * stepped.step(X[rows], Y[rows])
        assert history.loss[epoch] == pytest.approx(total / 70, rel=1e-9)
    for name, value in net.parameters().items():
        np.testing.assert_allclose(value, stepped.parameters()[name], rtol=1e-8, atol=1e-10)


def test_gradient_descent_takes_all_rows_and_the_others_32(backend):
    full, mini = gs.GradientDescent(0.01), gs.SGD(0.01)
    for optimizer, batch_size in ((full, 70), (mini, 32)):
        by_default, by_number = make(backend, optimizer=optimizer), make(backend, optimizer=optimizer)
        by_default.fit(X, Y, epochs=2, verbose=0)
        by_number.fit(X, Y, epochs=2, batch_size=batch_size, verbose=0)
        assert_same_parameters(by_default, by_number)
    assert make(backend, optimizer=full).fit(X[:5], Y[:5], epochs=1, verbose=0).loss


def test_without_shuffling_rows_keep_their_order(backend):
    net, stepped = make(backend, optimizer=gs.SGD(0.01)), make(backend, optimizer=gs.SGD(0.01))
    net.fit(X, Y, epochs=1, batch_size=40, shuffle=False, verbose=0)
    stepped.step(X[:40], Y[:40])
    stepped.step(X[40:], Y[40:])
    for name, value in net.parameters().items():
        np.testing.assert_allclose(value, stepped.parameters()[name], rtol=1e-5, atol=1e-7)


def test_integer_weights_mean_repetition(backend):
    weight = RNG.integers(0, 3, 70)
    weighted = make(backend, optimizer=gs.GradientDescent(0.1), dtype="float64")
    repeated = make(backend, optimizer=gs.GradientDescent(0.1), dtype="float64")
    a = weighted.fit(X, Y, epochs=3, sample_weight=weight, verbose=0)
    b = repeated.fit(X.repeat(weight, axis=0), Y.repeat(weight, axis=0), epochs=3, verbose=0)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-10)


def test_a_batch_without_weight_does_no_harm(backend):
    weight = np.zeros(70)
    weight[0] = 1
    history = make(backend).fit(X, Y, epochs=3, batch_size=1, sample_weight=weight, verbose=0)
    assert np.isfinite(history.loss).all()
    assert history.loss[2] < history.loss[0]


def test_a_vector_is_one_output(backend):
    net, column = (gs.Network([gs.Dense(1)], backend=backend.name) for _ in range(2))
    assert net.fit(X, Y[:, 0], epochs=2, verbose=0).loss == column.fit(X, Y[:, :1], epochs=2, verbose=0).loss


def test_labels_and_one_hot_rows_train_alike(backend):
    labels = (X[:, 0] > 0).astype(int)
    losses = [
        make(backend, loss="cross_entropy").fit(X, y, epochs=3, verbose=0).loss
        for y in (labels, labels.tolist(), np.eye(2)[labels])
    ]
    assert losses[0] == losses[1] == losses[2]


def test_fit_changes_none_of_its_arguments(backend):
    arrays = [X.copy(), Y.copy(), np.ones(70, np.float32)]
    for array in arrays:
        array.flags.writeable = False
    net = make(backend, preprocessing="standardize", target_preprocessing="standardize")
    net.fit(*arrays[:2], epochs=2, sample_weight=arrays[2], validation_data=arrays, verbose=0)
    np.testing.assert_array_equal(arrays[0], X)
    np.testing.assert_array_equal(arrays[1], Y)


# --------------------------------------------------------------------------------------------------
# Going on


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fitting_again_goes_on(backend, optimizer):
    once, twice = make(backend, optimizer=optimizer), make(backend, optimizer=optimizer)
    history = once.fit(X, Y, epochs=5, verbose=0)
    first = twice.fit(X, Y, epochs=2, verbose=0)
    second = twice.fit(X, Y, epochs=3, verbose=0)
    assert first.loss + second.loss == history.loss
    assert first.epochs + second.epochs == history.epochs == [1, 2, 3, 4, 5]
    assert twice.epochs_trained == 5
    assert twice.history is second
    assert_same_parameters(once, twice)


def test_watching_changes_nothing(backend, capsys):
    """Validation, callbacks and progress split the epochs into more calls of the engine."""
    plain, watched = make(backend), make(backend)
    losses = plain.fit(X, Y, epochs=6, verbose=0).loss
    assert losses == make(backend).fit(X, Y, epochs=6).loss
    options = {"validation_data": (X[:10], Y[:10]), "callbacks": [gs.Callback()]}
    assert losses == watched.fit(X, Y, epochs=6, **options).loss
    assert_same_parameters(plain, watched)


def test_history_has_one_entry_per_epoch(backend):
    net = make(backend)
    weight = np.arange(10.0)
    history = net.fit(X, Y, epochs=4, verbose=0, validation_data=(X[:10], Y[:10], weight))
    assert set(history) == {"loss", "val_loss", "val_rmse", "val_r2"}
    assert {len(history[name]) for name in history} == {len(history)} == {4}
    assert history.val_loss[-1] == net.evaluate(X[:10], Y[:10], weight)["loss"]
    assert history.loss == history["loss"]
    assert history.stopped == "finished"
    assert not history.interrupted
    assert history.samples == 4 * 70
    assert history.samples_per_second == pytest.approx(280 / history.seconds)
    assert "4 epoch(s), finished: loss" in repr(history)


def test_history_without_validation_has_the_loss_alone(backend):
    history = make(backend).fit(X, Y, epochs=2, verbose=0)
    assert list(history) == ["loss"]
    assert history.val_loss == []
    with pytest.raises(KeyError):
        history["val_loss"]


# --------------------------------------------------------------------------------------------------
# Accidents


@pytest.mark.parametrize("verbose", [0, 1])
def test_divergence_restores_the_last_good_epoch(backend, verbose):
    net = make(backend, optimizer=gs.SGD(0.01))
    net.fit(X, Y, epochs=2, verbose=0)
    before = net.parameters()
    net.learning_rate = 1e20
    with pytest.raises(gs.DivergenceError, match=r"diverged in epoch 3 .* such as 1e\+19 instead of 1e\+20"):
        net.fit(X, Y, epochs=5, verbose=verbose)
    assert net.history.stopped == "diverged"
    assert net.history.loss == []
    assert net.epochs_trained == 2
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, before[name])
    net.learning_rate = 0.01
    assert np.isfinite(net.fit(X, Y, epochs=1, verbose=0).loss).all()


def test_divergence_keeps_the_history_of_the_good_epochs(backend):
    net = make(backend, optimizer=gs.SGD(0.01))

    class Spoil(gs.Callback):
        def on_epoch_end(self, state):
            if state.epoch == 3:
                state.network.learning_rate = 1e20

    with pytest.raises(gs.DivergenceError, match="epoch 4"):
        net.fit(X, Y, epochs=9, callbacks=[Spoil()], verbose=0)
    assert net.history.epochs == [1, 2, 3]
    assert len(net.history.loss) == 3


@pytest.mark.parametrize("watched", [False, True])
def test_ctrl_c_stops_training_and_keeps_the_network(backend, watched):
    net = make(backend)
    net.fit(X, Y, epochs=1, verbose=0)
    options = {"validation_data": (X, Y)} if watched else {}
    timer = threading.Timer(0.15, signal.raise_signal, [signal.SIGINT])
    timer.start()
    history = net.fit(X, Y, epochs=10_000_000, verbose=0, **options)
    timer.join()
    assert history.interrupted
    assert history.seconds < 5
    assert 0 < len(history) < 10_000_000
    assert net.epochs_trained == 1 + len(history)
    assert {len(history[name]) for name in history} == {len(history)}
    assert np.isfinite(net.predict(X)).all()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert net.fit(X, Y, epochs=2, verbose=0).epochs[0] == len(history) + 2


def test_ctrl_c_in_a_callback_stops_training_too(backend, capsys):
    class Impatient(gs.Callback):
        def on_epoch_end(self, state):
            if state.epoch == 2:
                raise KeyboardInterrupt

    history = make(backend).fit(X, Y, epochs=5, callbacks=[Impatient()])
    assert history.interrupted
    assert len(history) == 2
    assert "interrupted after 2 of 5 epochs: the network keeps what it learnt" in capsys.readouterr().err


def test_ctrl_c_during_validation_leaves_a_whole_history(backend, monkeypatch):
    net = make(backend)

    results = iter([{"loss": 5.0}])

    def evaluate(*arguments):
        try:
            return next(results)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(net, "_evaluate", evaluate)
    history = net.fit(X, Y, epochs=3, validation_data=(X, Y), verbose=0)
    assert history.interrupted
    assert len(history) == len(history.loss) == net.epochs_trained == 2
    np.testing.assert_array_equal(history.val_loss, [5.0, np.nan])


# --------------------------------------------------------------------------------------------------
# Threads and processes


@functools.cache
def _expected(backend, seed):
    net = make(backend, seed=seed)
    return tuple(net.fit(X, Y, epochs=20, verbose=0).loss)


def _train(backend, seed):
    return tuple(make(backend, seed=seed).fit(X, Y, epochs=20, verbose=0).loss)


def test_two_threads_train_two_networks(backend):
    losses = {}

    def work(seed):
        losses[seed] = _train(backend.name, seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert losses == {seed: _expected(backend.name, seed) for seed in (1, 2)}


def _in_child(backend, seed, connection):
    connection.send(_train(backend, seed))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_training_works_after_fork(backend):
    expected = _expected(backend.name, 1)  # the parent has used the engine, and its threads
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(backend.name, 1, sender))
    child.start()
    try:
        assert receiver.poll(30), "the child does not answer"
        assert receiver.recv() == expected
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("name", BACKENDS)
def test_training_works_in_joblib_workers(name):
    tasks = [joblib.delayed(_train)(name, seed) for seed in (1, 2)]
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert joblib.Parallel()(tasks) == [_expected(name, seed) for seed in (1, 2)]


@pytest.mark.parametrize("rate", [1, np.float32(0.5), np.int64(1), Fraction(1, 2)])
def test_a_learning_rate_may_be_any_type_of_number(backend, rate, tmp_path):
    net = gs.Network([gs.Dense(1)], optimizer=gs.GradientDescent(rate), backend=backend.name, dtype="float64")
    X = np.linspace(-0.5, 0.5, 20).reshape(-1, 1)
    net.fit(X, X, epochs=3, verbose=0)
    net.learning_rate = rate
    assert net.learning_rate == float(rate)
    assert type(net.learning_rate) is float
    net.fit(X, X, epochs=3, verbose=0)
    net.save(tmp_path / "net.safetensors", optimizer=True)


def test_a_step_whose_loss_is_not_finite_changes_nothing(backend):
    net = gs.Network([gs.Dense(3, "tanh"), gs.Dense(1)], optimizer="adam", backend=backend.name)
    X = np.ones((4, 2), np.float32)
    net.prepare(X)
    net.step(X, np.ones((4, 1)))
    before = {**net.parameters(), **net.optimizer_state()}
    with pytest.raises(gs.DivergenceError):
        net.step(X, np.full((4, 1), 3e38))
    for name, value in {**net.parameters(), **net.optimizer_state()}.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the compiled core is not installed")
def test_a_step_whose_gradient_overflows_changes_nothing_and_counts_for_nothing():
    X, y = np.full((1, 1), 1e19, np.float32), np.full((1, 1), 1e3, np.float32)
    net = gs.Network([gs.Input(1), gs.Dense(1, initializer="zeros")], optimizer="adam", backend="cpp")
    with pytest.raises(gs.DivergenceError, match="or its gradient"):  # Adam squares 2e22
        net.step(X, y)
    state = {**net.parameters(), **net.optimizer_state()}
    assert not any(np.any(value) for value in state.values()), state
    plain = gs.Network([gs.Input(1), gs.Dense(1, initializer="zeros")], optimizer="gradient_descent")
    assert plain.step(X, y) == 1e6


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the compiled core is not installed")
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="sends itself a signal")
def test_what_a_signal_handler_raises_ends_training_and_keeps_its_epochs():
    def handler(signum, frame):
        raise LookupError("enough")

    net = make(BACKENDS["cpp"])
    previous = signal.signal(signal.SIGUSR1, handler)
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGUSR1])
    timer.start()
    try:
        with pytest.raises(LookupError, match="enough"):
            net.fit(X, Y, epochs=10_000_000, verbose=0)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, previous)
    assert net.history.stopped == "failed"
    assert net.epochs_trained == len(net.history) > 0


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the compiled core is not installed")
def test_a_large_network_that_diverges_keeps_finite_parameters_and_says_so():
    net = gs.Network(
        [gs.Dense(2400, "relu"), gs.Dense(2400, "relu"), gs.Dense(1)], optimizer=gs.Adam(1e3), backend="cpp"
    )
    rng = np.random.default_rng(0)
    with pytest.raises(gs.DivergenceError, match="the network keeps its last finite parameters"):
        net.fit(rng.random((64, 20)), rng.random(64), epochs=50, verbose=0)
    assert all(np.isfinite(value).all() for value in net.parameters().values())
