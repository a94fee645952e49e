"""Losses that are Python functions."""

import pickle

import numpy as np
import pytest

import gradstep as gs
from conftest import BACKENDS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 4)).astype(np.float32)
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2], X[:, 3]], axis=1).astype(np.float32)
WEIGHT = RNG.integers(0, 4, 70) / 2

WIDTHS = {"tiny": [5], "small": [40, 24], "medium": [130, 100], "large": [330, 330]}


def squares(y, outputs, weight):
    """mse."""
    d = outputs - y
    return weight @ np.mean(d * d, axis=1), weight[:, None] * 2 * d / d.shape[1]


def make(backend, loss=squares, hidden=(5,), activation="tanh", **settings):
    layers = [
        *(gs.Dense(width, activation) for width in hidden),
        gs.Dense(3, settings.pop("last", "identity")),
    ]
    return gs.Network(layers, loss=loss, backend=getattr(backend, "name", backend), **settings)


def assert_close(mine, other, tolerance):
    assert mine.keys() == other.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], other[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("hidden", WIDTHS.values(), ids=WIDTHS)
def test_a_function_trains_as_the_loss_that_it_is(backend, hidden, weight):
    nets = [make(backend, loss, hidden, dtype="float64", l2=0.01) for loss in (squares, "mse")]
    options = {"epochs": 3, "batch_size": 16, "sample_weight": weight, "verbose": 0}
    custom, plain = (net.fit(X, Y, **options) for net in nets)
    np.testing.assert_allclose(custom.loss, plain.loss, rtol=1e-10)
    assert_close(nets[0].parameters(), nets[1].parameters(), 1e-9)
    np.testing.assert_allclose(nets[0].predict(X), nets[1].predict(X), rtol=1e-7, atol=1e-9)
    assert nets[0].evaluate(X, Y, weight) == {"loss": pytest.approx(nets[1].evaluate(X, Y, weight)["loss"])}
    gradients = [net.loss_and_gradients(X, Y, weight, input_gradient=True)[1] for net in nets]
    assert_close(*gradients, 1e-9)
    assert nets[0].step(X, Y) == pytest.approx(nets[1].step(X, Y))
    assert nets[0].trace(X, Y).loss == pytest.approx(nets[1].trace(X, Y).loss)


def test_the_gradient_goes_back_through_the_last_activation_and_dropout(backend):
    for last in ("softplus", "relu"):
        net = make(backend, last=last)
        net.prepare(X)
        assert gs.check_gradients(net, X[:9], Y[:9])
    layers = [gs.Dense(20, "relu"), gs.Dropout(0.3), gs.Dense(3)]
    nets = [gs.Network(layers, loss=loss, backend=backend.name) for loss in (squares, "mse")]
    losses = [net.fit(X, Y, epochs=3, batch_size=16, verbose=0).loss for net in nets]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_backends_agree(backend):
    nets = [make(name, hidden=(17, 9), dtype="float64") for name in (backend, "numpy")]
    losses = [net.fit(X, Y, epochs=3, batch_size=16, verbose=0).loss for net in nets]
    np.testing.assert_allclose(*losses, rtol=1e-10)
    assert_close(nets[0].parameters(), nets[1].parameters(), 1e-10)


def test_the_function_sees_whole_batches_with_their_shares(backend):
    seen = []

    def loss(y, outputs, weight):
        seen.append((y.shape, outputs.shape, weight))
        assert y.dtype == outputs.dtype == weight.dtype == np.float32
        assert not y.flags.writeable
        return squares(y, outputs, weight)

    net = make(backend, loss)
    rows = np.repeat(X, 100, axis=0), np.repeat(Y, 100, axis=0), np.repeat(WEIGHT, 100)
    net.fit(*rows[:2], epochs=1, batch_size=6000, sample_weight=rows[2], verbose=0)
    net.evaluate(*rows)
    assert [shapes[:2] for shapes in seen] == [((n, 3), (n, 3)) for n in (6000, 1000, 7000)]
    for *_, weight in seen:
        assert weight.sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(seen[-1][2], rows[2] / rows[2].sum(), rtol=1e-5)


def test_targets_may_have_any_width(backend):
    """Survival: times and whether they were seen to end, for one rate an individual."""
    times = np.stack([RNG.exponential(size=70), RNG.integers(0, 2, 70)], axis=1)

    def exponential(y, outputs, weight):
        time, ended = y[:, :1], y[:, 1:]
        rate = np.exp(outputs)
        return weight @ (rate * time - ended * outputs)[:, 0], weight[:, None] * (rate * time - ended)

    net = gs.Network([gs.Dense(1)], loss=exponential, backend=backend.name)
    losses = net.fit(X, times, epochs=20, verbose=0, validation_data=(X, times)).loss
    assert losses[-1] < losses[0]
    assert list(net.history) == ["loss", "val_loss"]
    assert gs.check_gradients(net, X[:5], times[:5])


def test_targets_may_be_standardized(backend):
    nets = [make(backend, loss, target_preprocessing="standardize") for loss in (squares, "mse")]
    for net in nets:
        net.fit(X, 100 * Y + 7, epochs=2, verbose=0)
    np.testing.assert_allclose(nets[0].predict(X), nets[1].predict(X), rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"y must have shape \(70, 3\)"):
        nets[0].evaluate(X, Y[:, :2])


@pytest.mark.skipif("cpp" not in BACKENDS, reason="promised by the compiled backend only")
@pytest.mark.parametrize("hidden", WIDTHS.values(), ids=WIDTHS)
def test_the_bits_are_the_same_for_every_number_of_threads(hidden):
    results = []
    for threads in (1, 2, 4):
        BACKENDS["cpp"].set_num_threads(threads)
        try:
            net = make("cpp", hidden=hidden)
            losses = net.fit(X, Y, epochs=2, batch_size=33, verbose=0).loss
        finally:
            BACKENDS["cpp"].set_num_threads(0)
        results.append((losses, net.parameters()))
    for losses, parameters in results[1:]:
        assert losses == results[0][0]
        for name, value in parameters.items():
            np.testing.assert_array_equal(value, results[0][1][name])


def test_training_goes_on_bit_for_bit_from_a_file(backend, tmp_path):
    straight, first = make(backend), make(backend)
    losses = straight.fit(X, Y, epochs=5, verbose=0).loss
    part = first.fit(X, Y, epochs=2, verbose=0).loss
    first.save(tmp_path / "model.safetensors", optimizer=True)
    second = gs.load(tmp_path / "model.safetensors", backend=backend.name, loss=squares)
    part += second.fit(X, Y, epochs=3, verbose=0).loss
    assert part == losses
    copy = pickle.loads(pickle.dumps(second))
    assert copy.fit(X, Y, epochs=1, verbose=0).loss == second.fit(X, Y, epochs=1, verbose=0).loss


def test_a_file_without_its_function_predicts(tmp_path):
    net = make("numpy")
    net.fit(X, Y, epochs=1, verbose=0)
    path = tmp_path / "model.safetensors"
    net.save(path)
    again = gs.load(path, backend="numpy")
    np.testing.assert_array_equal(again.predict(X), net.predict(X))
    for use in (lambda: again.fit(X, Y, epochs=1, verbose=0), lambda: again.evaluate(X, Y)):
        with pytest.raises(ValueError, match="was a Python function, which its file does not hold"):
            use()
    plain = make("numpy", "mse")
    plain.prepare(X)
    plain.save(path)
    with pytest.raises(ValueError, match=r"loss must not be given: the loss of .* is no Python function"):
        gs.load(path, loss=squares)


# --------------------------------------------------------------------------------------------------
# Functions that fail


def test_an_exception_ends_training_as_it_is_and_keeps_the_last_update(backend):
    calls = []

    def failing(y, outputs, weight):
        calls.append(None)
        if len(calls) == 8:
            raise LookupError("nothing there")
        return squares(y, outputs, weight)

    net, expected = make(backend, failing), make(backend)
    with pytest.raises(LookupError, match="nothing there"):
        net.fit(X, Y, epochs=3, batch_size=14, shuffle=False, verbose=0)  # in the third batch of the second
    expected.fit(X, Y, epochs=1, batch_size=14, shuffle=False, verbose=0)
    for start in (0, 14):
        expected.step(X[start : start + 14], Y[start : start + 14])
    assert net.epochs_trained == 1
    assert net.history.stopped == "failed"
    assert net.history.loss == expected.history.loss
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, expected.parameters()[name])
    assert np.isfinite(net.fit(X, Y, epochs=1, verbose=0).loss).all()  # the network can be used again


def test_an_exception_of_a_step_changes_nothing(backend):
    def failing(y, outputs, weight):
        raise LookupError("nothing there")

    net = make(backend, failing)
    net.prepare(X)
    before = net.parameters()
    for use in (net.step, net.loss_and_gradients, net.evaluate):
        with pytest.raises(LookupError, match="nothing there"):
            use(X, Y)
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, before[name])


def test_ctrl_c_in_the_function_stops_training(backend):
    calls = []

    def interrupted(y, outputs, weight):
        calls.append(None)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return squares(y, outputs, weight)

    history = make(backend, interrupted).fit(X, Y, epochs=3, batch_size=14, verbose=0)
    assert history.interrupted


def test_a_loss_that_turns_infinite_is_divergence(backend):
    calls = []

    def infinite(y, outputs, weight):
        calls.append(None)
        value, gradient = squares(y, outputs, weight)
        return (np.inf if len(calls) > 8 else value), gradient

    with pytest.raises(gs.DivergenceError):
        make(backend, infinite).fit(X, Y, epochs=3, batch_size=14, verbose=0)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (1.0, TypeError, r"must return \(value, gradient\), got float"),
        (("one", np.zeros((70, 3))), TypeError, "must return a number as its value, got str"),
        ((1.0, None), (TypeError, ValueError), "gradient"),
        ((1.0, np.zeros(3)), ValueError, r"in the shape of the outputs, \(70, 3\), got \(3,\)"),
        ((np.nan, np.zeros((70, 3))), ValueError, "must return a finite value, got nan"),
        ((1.0, np.full((70, 3), np.inf)), ValueError, "must return a finite gradient"),
    ],
)
def test_results_that_are_no_loss_are_one_sentence(backend, result, error, message):
    net = make(backend, lambda y, outputs, weight: result)
    net.prepare(X)
    before = net.parameters()
    with pytest.raises(error, match=message):
        net.fit(X, Y, epochs=1, batch_size=70, verbose=0)
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_loss_must_be_a_function():
    with pytest.raises(TypeError, match="function must be a function"):
        gs.CustomLoss("mse")
    with pytest.raises(TypeError, match="loss must be a name"):
        gs.Network([gs.Dense(1)], loss=3)
    assert gs.CustomLoss(squares) == gs.CustomLoss(squares)
    assert repr(gs.CustomLoss(squares)) == "CustomLoss(squares)"
