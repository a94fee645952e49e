"""The learning-rate range test: it suggests rates that train, and touches nothing."""

import itertools

import numpy as np
import pytest

import gradstep as gs
from gradstep.backends.numpy.losses import LOSSES
from gradstep.backends.numpy.optimizers import OPTIMIZERS
from gradstep.losses import loss_from_config
from gradstep.optimizers import optimizer_from_config

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 4))
SIGNAL = np.sin(X[:, 0]) + X[:, 1]


def targets(kind):
    if kind == "labels":
        return np.digitize(SIGNAL, [-0.7, 0.7])
    if kind in ("probabilities", "signs"):
        return np.stack([SIGNAL > 0, SIGNAL > 0.5, SIGNAL > 1], axis=1).astype(float)
    if kind == "positive":
        return RNG.gamma(5.0, np.exp(np.stack([SIGNAL] * 3, axis=1)))
    if kind == "counts":
        return RNG.poisson(np.exp(np.stack([SIGNAL] * 3, axis=1)))
    return np.stack([SIGNAL, -SIGNAL, 2 * SIGNAL], axis=1)


def network(loss="mse", optimizer="adam", **options):
    layers = [gs.Dense(32, "relu"), gs.Dense(3 * LOSSES[loss].outputs_per_target)]
    return gs.Network(layers, loss=loss, optimizer=optimizer, preprocessing="standardize", **options)


def snapshot(net):
    return [{**net.parameters()}, {**net.optimizer_state()}, {"config": np.array(repr(net.config))}]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_suggestion_trains_with_every_optimizer(optimizer):
    net = network(optimizer=optimizer_from_config({"name": optimizer}))
    y = targets("values")
    found = gs.find_learning_rate(net, X, y)
    net.learning_rate = found.suggestion
    assert net.fit(X, y, epochs=20, batch_size=32, verbose=0).loss[-1] < 0.4 * found.smoothed[0]


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"custom"}))
def test_the_suggestion_trains_with_every_loss(loss):
    net = network(loss)
    y = targets(loss_from_config({"name": loss}).target_kind)
    found = gs.find_learning_rate(net, X, y)
    net.learning_rate = found.suggestion
    assert net.fit(X, y, epochs=20, verbose=0).loss[-1] < 0.8 * found.smoothed[0]


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_penalties_are_no_fall_of_the_loss(penalty):
    found = gs.find_learning_rate(network(**{penalty: 0.5}), X, targets("values"))
    assert np.mean(found.losses[:30]) == pytest.approx(found.smoothed[0], rel=0.1)
    noise = found.losses[:30] - found.smoothed[:30]
    assert abs(noise.mean()) < np.std(noise)


def test_a_network_without_a_rate_is_refused():
    with pytest.raises(ValueError, match="net must learn at a rate, but the optimizer LBFGS"):
        gs.find_learning_rate(network(optimizer="lbfgs"), X, targets("values"))


@pytest.mark.parametrize("trained", [False, True])
def test_the_network_stays_as_it_was(trained, backend):
    net = network(backend=backend.name, optimizer=gs.SGD(0.01, momentum=0.9))
    y = targets("values")
    net.fit(X, y, epochs=1, verbose=0) if trained else net.prepare(X, y)
    before, history = snapshot(net), net.history
    first = gs.find_learning_rate(net, X, y, batch_size=50)
    for kept, now in zip(before, snapshot(net), strict=True):
        assert kept.keys() == now.keys()
        for name, values in kept.items():
            np.testing.assert_array_equal(values, now[name], err_msg=name)
    assert net.history is history
    again = gs.find_learning_rate(net, X, y, batch_size=50)
    np.testing.assert_array_equal(first.losses, again.losses)
    assert first.suggestion == again.suggestion


def test_a_network_that_has_seen_nothing_stays_so():
    net = network()
    gs.find_learning_rate(net, X, targets("values"))
    assert net.n_in is None
    with pytest.raises(ValueError, match="the input width is not known yet"):
        net.parameters()


def test_backends_agree(fast_backend):
    y = targets("values")
    found, reference = (
        gs.find_learning_rate(network(backend=name, dtype="float64"), X, y, stop=0.1, steps=50)
        for name in (fast_backend.name, "numpy")
    )
    np.testing.assert_allclose(found.losses, reference.losses, rtol=1e-6)


def test_the_updates_are_those_of_fit():
    """With the rates of the test as a schedule, an epoch has its losses on average."""
    net, y = network(optimizer=gs.SGD(1.0)), targets("values")
    found = gs.find_learning_rate(net, X, y, start=1e-4, stop=1e-2, steps=10, batch_size=40)
    assert len(found.losses) == 10
    np.testing.assert_allclose(found.learning_rates, np.geomspace(1e-4, 1e-2, 10))
    history = net.fit(X, y, epochs=1, batch_size=40, schedule=lambda i: found.learning_rates[i], verbose=0)
    assert history.loss[0] == pytest.approx(found.losses.mean(), rel=1e-5)


def test_the_test_ends_where_the_loss_leaves():
    found = gs.find_learning_rate(network(optimizer="sgd"), X, targets("values"), stop=1e4)
    assert found.diverged
    assert found.learning_rates[-1] < 1e4
    assert np.isfinite(found.losses).all()
    assert len(found.learning_rates) == len(found.losses) == len(found.smoothed)
    assert found.suggestion < found.learning_rates[-1]
    assert "where the loss left: suggestion" in repr(found)


def test_the_noise_of_the_batches_is_no_fall():
    """Rates too small to train with leave the ratio to the losses before at 1."""
    y = targets("values") + 10 * RNG.normal(size=(400, 3))
    found = gs.find_learning_rate(network(), X, y, start=1e-9, stop=1e-7, batch_size=4)
    assert found.losses.std() > 0.2 * found.losses.mean()
    np.testing.assert_allclose(found.smoothed, found.smoothed[0], rtol=1e-3)
    assert found.suggestion is None
    assert "no suggestion" in repr(found)


def test_single_rows_give_a_suggestion():
    found = gs.find_learning_rate(network(), X, targets("values"), batch_size=1)
    assert 1e-5 < found.suggestion < 0.1


def test_a_perfect_network_has_no_suggestion():
    net = gs.Network([gs.Input(4), gs.Dense(1)])
    net.set_parameters({"dense_0.W": np.zeros((4, 1))})
    found = gs.find_learning_rate(net, X, np.zeros(400))
    assert found.suggestion is None
    assert not found.losses.any()


def test_the_penalty_counts_as_loss():
    y = targets("values")
    found = gs.find_learning_rate(network(l2=10.0), X, y, start=1e-12, stop=1e-11)
    np.testing.assert_allclose(found.smoothed, found.smoothed[0], rtol=1e-5)
    assert found.smoothed[0] == pytest.approx(found.losses.mean(), rel=0.1)


def test_rows_without_weight_do_not_matter():
    y, weight = targets("values"), np.ones(400)
    wrong = y.copy()
    weight[200:], wrong[200:] = 0.0, 1e6
    first, second = (
        gs.find_learning_rate(network(), X, values, sample_weight=weight, batch_size=8)
        for values in (y, wrong)
    )
    np.testing.assert_array_equal(first.losses, second.losses)


def test_targets_are_those_of_the_network():
    net = network(target_preprocessing="standardize")
    found = gs.find_learning_rate(net, X, 1e6 + 1e3 * targets("values"))
    assert found.smoothed[0] < 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": 0.0}, ValueError, "start must be greater than 0"),
        ({"start": "low"}, TypeError, "start must be a number"),
        ({"start": 1.0, "stop": 0.1}, ValueError, r"stop must be greater than start \(1\), got 0.1"),
        ({"steps": 9}, ValueError, "steps must be at least 10"),
        ({"batch_size": 401}, ValueError, "batch_size must be at most the number of rows"),
        ({"sample_weight": [1.0]}, ValueError, "sample_weight must have as many rows as X"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        gs.find_learning_rate(network(), X, targets("values"), **options)


def test_losses_that_are_never_finite_are_an_error():
    net = gs.Network([gs.Input(4), gs.Dense(1)])
    net.set_parameters({"dense_0.b": np.full(1, 3e38)})
    with pytest.raises(gs.DivergenceError, match="not finite from the beginning"):
        gs.find_learning_rate(net, X, np.zeros(400))


def test_batches_visit_every_row_of_an_epoch():
    from gradstep.learning_rate import _batches
    from gradstep.training import Rows

    rows = Rows(np.arange(10), np.arange(10), None)
    batches = [b.X.tolist() for b in itertools.islice(_batches(network(), rows, 4), 6)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    for epoch in (batches[:3], batches[3:]):
        assert sorted(itertools.chain(*epoch)) == list(range(10))
    assert batches[:3] != batches[3:]
