import numpy as np
import pytest

import gradstep as gs
from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.backends.numpy.losses import LOSSES

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4))
TARGETS = {
    "values": RNG.normal(size=(6, 3)),
    "probabilities": RNG.random((6, 3)),
    "counts": RNG.poisson(2.0, (6, 3)),
    "positive": RNG.gamma(2.0, size=(6, 3)),
    "signs": RNG.choice([-1, 1], (6, 3)),
    "labels": RNG.integers(0, 3, 6),
}


def make(activation="tanh", loss="mse", **settings):
    layers = [gs.Dense(5, activation), gs.Dense(6 if loss == "gaussian_nll" else 3)]
    return gs.Network(layers, loss=loss, **{"backend": "numpy", **settings})


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_right_gradients_agree(activation, loss):
    net = make(activation, loss, l2=0.01)
    assert gs.check_gradients(net, X, TARGETS[net.loss.target_kind])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_networks_of_both_dtypes_on_all_backends_agree(backend, dtype):
    net = make(
        dtype=dtype, backend=backend.name, preprocessing="standardize", target_preprocessing="standardize"
    )
    net.fit(X, TARGETS["values"], epochs=2, verbose=0)
    report = gs.check_gradients(net, X, TARGETS["values"], np.arange(6.0))
    assert report
    assert report.largest_error < 1e-6


def test_wrong_gradients_do_not(monkeypatch):
    right = gs.Network.loss_and_gradients

    def wrong(self, *arguments, **options):
        loss, gradients = right(self, *arguments, **options)
        gradients["dense_1.b"][2] *= 1.001
        return loss, gradients

    monkeypatch.setattr(gs.Network, "loss_and_gradients", wrong)
    report = gs.check_gradients(make(), X, TARGETS["values"])
    assert not report
    assert report.errors["dense_1.b"] == pytest.approx(1e-3, rel=0.01)
    assert report.errors["dense_0.W"] < 1e-6
    assert "DISAGREE" in repr(report)
    assert repr(report).splitlines()[-1].endswith("<-- too large")
    assert gs.check_gradients(make(), X, TARGETS["values"], tolerance=0.01)


def test_the_network_stays_as_it_was():
    net = make()
    net.fit(X, TARGETS["values"], epochs=2, verbose=0)
    before = net.parameters()
    gs.check_gradients(net, X, TARGETS["values"])
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, before[name])
    assert net.epochs_trained == 2


def test_entries_limits_what_is_compared():
    report = gs.check_gradients(make(), X, TARGETS["values"], entries=4)
    assert report.checked == {"dense_0.W": 4, "dense_0.b": 4, "dense_1.W": 4, "dense_1.b": 3}
    assert "in 4 entries" in repr(report)


def test_a_kink_within_one_step_is_no_disagreement():
    near = gs.Dense(1, "relu", initializer=[[1e-6]])
    net = gs.Network([near], dtype="float64", backend="numpy")
    assert gs.check_gradients(net, [[1.0]], [[1.0]])


def test_flat_losses_agree():
    """All differences are noise where every gradient is zero."""
    net = gs.Network([gs.Dense(1)], backend="numpy")
    net.prepare(X)
    assert gs.check_gradients(net, X, net.predict(X).astype(np.float64))


def test_bad_arguments_are_one_sentence():
    with pytest.raises(ValueError, match="tolerance must be greater than 0"):
        gs.check_gradients(make(), X, TARGETS["values"], tolerance=0)
    with pytest.raises(ValueError, match="entries must be at least 1"):
        gs.check_gradients(make(), X, TARGETS["values"], entries=0)
    with pytest.raises(ValueError, match="y must have as many rows"):
        gs.check_gradients(make(), X, TARGETS["values"][:2])


def test_a_gradient_that_is_nan_is_a_disagreement(monkeypatch):
    net = gs.Network([gs.Dense(3, "tanh"), gs.Dense(1)], backend="numpy")
    X, y = np.ones((4, 2)), np.ones((4, 1))
    net.prepare(X, y)
    right = gs.Network.loss_and_gradients

    def wrong(self, *arguments, **options):
        loss, gradients = right(self, *arguments, **options)
        gradients["dense_0.W"][1, 2] = np.nan
        return loss, gradients

    monkeypatch.setattr(gs.Network, "loss_and_gradients", wrong)
    report = gs.check_gradients(net, X, y)
    assert not report
    assert np.isnan(report.errors["dense_0.W"])
    assert "DISAGREE" in repr(report)


def test_a_network_trained_to_its_end_is_no_disagreement():
    X, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    net = gs.Network(
        [gs.Dense(32, "tanh"), gs.Dense(10)],
        loss="cross_entropy",
        preprocessing="minmax",
        optimizer=gs.Adam(0.01),
        backend="numpy",
    )
    net.fit(X[:100], y[:100], epochs=3000, batch_size=100, verbose=0)
    assert net.history.loss[-1] < 1e-4
    assert gs.check_gradients(net, X[:20], y[:20])
