"""Dropout: the mask, its agreement between backends, and where it does nothing."""

import numpy as np
import pytest

import gradstep as gs
from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.backends.numpy.propagation import dropout_masks as masks_of
from gradstep.backends.numpy.propagation import trace
from gradstep.random import dropout_mask
from networks import make_data, make_engine, make_parameters, make_plan, train
from oracles import finite_differences

WIDTHS = [(5, 9, 7, 2), (3, 64, 50, 2), (10, 200, 300, 3)]


def drop_plan(widths, rate=0.4, **options):
    import dataclasses

    plan = make_plan(widths, **options)
    layers = [dataclasses.replace(layer, dropout=rate) for layer in plan.layers[:-1]]
    return dataclasses.replace(plan, layers=(*layers, plan.layers[-1]), seed=(5 << 40) + 11)


def test_the_mask_keeps_the_right_share_and_depends_on_everything():
    mask = dropout_mask(0.3, seed=1, step=2, layer=0, rows=2000, units=50)
    assert mask.shape == (2000, 50)
    assert mask.mean() == pytest.approx(0.7, abs=0.01)
    others = [(0.3, 2, 2, 0), (0.3, 1, 3, 0), (0.3, 1, 2, 1)]
    for rate, seed, step, layer in others:
        other = dropout_mask(rate, seed, step, layer, 2000, 50)
        assert np.mean(other == mask) == pytest.approx(0.58, abs=0.02)
    np.testing.assert_array_equal(dropout_mask(0.3, 1, 2, 0, 1001, 20), mask[:1001, :20])


def test_gradients_of_dropped_networks_agree_with_finite_differences():
    plan = drop_plan((3, 6, 5, 2), activation="tanh", dtype="float64", l2=0.1)
    parameters = make_parameters(plan)
    data = make_data(plan, 7)
    masks = masks_of(plan, 4, 7)
    _, layers = trace(plan, parameters, data.X, data.y, data.weight, masks=masks)
    for layer in layers:
        for name, gradient in ((f"{layer.name}.W", layer.dW), (f"{layer.name}.b", layer.db)):
            numeric = finite_differences(
                lambda: trace(plan, parameters, data.X, data.y, data.weight, masks=masks)[0], parameters[name]
            )
            np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batch_size", [30, 200])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_trajectories_agree_with_the_reference(fast_backend, reference, widths, batch_size):
    plan = drop_plan(widths, optimizer="adam", dtype="float64", l2=0.01)
    data = make_data(plan, 500)
    engines = [make_engine(backend, plan) for backend in (fast_backend, reference)]
    results = [
        train(engine, data, 2, batch_size=batch_size, weight=data.weight, learning_rate=0.01)
        for engine in engines
    ]
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-9)
    for name, value in engines[1].parameters().items():
        np.testing.assert_allclose(engines[0].parameters()[name], value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_steps_agree_for_every_activation(fast_backend, reference, activation, dtype):
    plan = drop_plan((4, 40, 30, 2), activation=activation, optimizer="sgd", dtype=dtype)
    data = make_data(plan, 37)
    engines = [make_engine(backend, plan) for backend in (fast_backend, reference)]
    for _ in range(2):
        losses = [engine.step(data.X, data.y, None, 0.01) for engine in engines]
        assert losses[0] == pytest.approx(losses[1], rel=1e-10 if dtype == "float64" else 1e-4)
    for name, value in engines[1].parameters().items():
        tolerance = 1e-10 if dtype == "float64" else 2e-4
        np.testing.assert_allclose(engines[0].parameters()[name], value, rtol=tolerance, atol=tolerance)


def test_a_large_batch_in_several_passes_agrees(fast_backend, reference):
    plan = drop_plan((3, 180, 190, 1), optimizer="sgd", dtype="float64")
    data = make_data(plan, 4500)
    engines = [make_engine(backend, plan) for backend in (fast_backend, reference)]
    losses = [engine.step(data.X, data.y, None, 0.01) for engine in engines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_threads_do_not_change_the_bits(widths):
    plan = drop_plan(widths, optimizer="adam")
    data = make_data(plan, 600)
    backend = gs.backends.get("cpp") if gs.backends.available()["cpp"] is None else pytest.skip("needs cpp")
    outcomes = []
    for threads in (1, 2):
        gs.set_num_threads(threads)
        engine = make_engine(backend, plan)
        outcomes.append((train(engine, data, 2, batch_size=300).losses, engine.parameters()))
    gs.set_num_threads(None)
    assert outcomes[0][0] == outcomes[1][0]
    for name, value in outcomes[0][1].items():
        np.testing.assert_array_equal(outcomes[1][1][name], value)


def test_predictions_and_evaluations_use_all_units(backend):
    plain, dropped = make_plan((4, 40, 2)), drop_plan((4, 40, 2))
    data = make_data(plain, 50)
    engines = [make_engine(backend, plan) for plan in (plain, dropped)]
    outputs = [np.empty((50, 2), np.float32) for _ in engines]
    for engine, out in zip(engines, outputs, strict=True):
        engine.predict(data.X, out)
    np.testing.assert_array_equal(*outputs)
    assert engines[0].evaluate(data.X, data.y, None) == engines[1].evaluate(data.X, data.y, None)
    assert (
        engines[0].loss_and_gradients(data.X, data.y, None)[0]
        == engines[1].loss_and_gradients(data.X, data.y, None)[0]
    )


def test_a_network_with_dropout_trains_saves_and_resumes(backend, tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4)).astype(np.float32)
    y = np.sin(X[:, 0])
    layers = [gs.Dense(40, "relu"), gs.Dropout(0.2), gs.Dense(1)]
    net = gs.Network(layers, optimizer=gs.Adam(1e-2), backend=backend.name, seed=3)
    net.fit(X, y, epochs=20, verbose=0)
    assert net.evaluate(X, y)["r2"] > 0.7
    net.save(tmp_path / "net.safetensors", optimizer=True)
    twin = gs.load(tmp_path / "net.safetensors", backend=backend.name)
    assert twin.layers[1] == gs.Dropout(0.2)
    for each in (net, twin):
        each.fit(X, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(net.predict(X), twin.predict(X))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [gs.Dropout(0.1), gs.Dense(1)],
            "Dropout must stand behind a layer whose outputs it drops, and before another",
        ),
        (
            [gs.Dense(1), gs.Dropout(0.1)],
            "Dropout must stand behind a layer whose outputs it drops, and before another",
        ),
        (
            [gs.Input(2), gs.Dropout(0.1), gs.Dense(1)],
            "Dropout must stand behind a layer whose outputs it drops, and before another",
        ),
    ],
)
def test_dropout_in_other_places_is_an_error(layers, message):
    with pytest.raises(ValueError, match=message):
        gs.Network(layers)


def test_rates_out_of_range_are_errors():
    with pytest.raises(ValueError, match=r"rate must be less than 1, got 1\.0"):
        gs.Dropout(1.0)
    with pytest.raises(ValueError, match="rate must be at least 0"):
        gs.Dropout(-0.1)
