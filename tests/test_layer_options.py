"""Layers that are not dense beside rates, averages, clipping, L-BFGS, other losses and exports."""

import dataclasses
from functools import cache

import numpy as np
import pytest

import gradstep as gs
from conftest import BACKENDS
from gradstep.interchange.forward import forward_of

RNG = np.random.default_rng(11)
ROWS = np.column_stack([RNG.normal(size=(70, 4)), RNG.integers(0, 3, 70)])
Y = np.stack([np.sin(ROWS[:, 0]) + ROWS[:, 4], ROWS[:, 2] * ROWS[:, 3]], axis=1)


def layers(width, factor=1.0):
    """One of each kind, whose rates are `factor` for all but the dense ones; 0 freezes."""
    rate = {"trainable": False} if factor == 0 else {"learning_rate_factor": factor}
    block = [gs.Dense(width), gs.LayerNorm(**rate), gs.Activation("gelu"), gs.Dense(width + 1)]
    return [
        gs.Embedding(4, 3, 2, **rate),
        gs.Scale(**rate),
        gs.Dense(width, "tanh"),
        gs.BatchNorm(**rate),
        gs.Activation("elu"),
        gs.Residual(block, **rate),
        gs.Dense(2),
    ]


def make(backend, layers, **settings):
    settings = {"optimizer": gs.AdamW(0.01), "dtype": "float64", **settings}
    return gs.Network([gs.Input(5), *layers], backend=getattr(backend, "name", backend), **settings)


def state(network):
    return {**network.parameters(), **network.optimizer_state()}


def log_cosh(y, outputs, weight):
    d = outputs - y
    return weight @ np.log(np.cosh(d)).sum(axis=1), weight[:, None] * np.tanh(d)


SETTINGS = {
    "penalties": {"l1": 0.01, "l2": 0.1},
    "clipping": {"optimizer": gs.NAdam(0.01, clip_value=0.05, clip_norm=0.1), "l1": 0.01, "l2": 0.1},
    "ema": {"averaging": gs.EMA(0.9)},
    "swa": {"averaging": gs.SWA(2)},
    "custom loss": {"loss": log_cosh},
    "gaussian": {"loss": "gaussian_nll"},
}


@cache
def trained(name, setting, width, factor):
    """All that a backend has learnt, and what it predicts."""
    targets = Y[:, :1] if setting == "gaussian" else Y
    net = make(BACKENDS[name], layers(width, factor), **SETTINGS[setting])
    net.fit(ROWS, targets, sample_weight=np.linspace(0.5, 2, 70), epochs=3, batch_size=16, verbose=0)
    return {**state(net), "predicted": net.predict(ROWS)}


@pytest.mark.parametrize(("width", "factor"), [(6, 1), (6, 0), (200, 1), (200, 0.1)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_options_train_as_the_reference_does(fast_backend, setting, width, factor):
    found, expected = (trained(name, setting, width, factor) for name in (fast_backend.name, "numpy"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("width", [6, 200])
def test_frozen_layers_of_every_kind_stay_but_for_their_statistics(backend, width):
    net = make(backend, layers(width, 0), l1=0.1, l2=0.1)
    before = state(net)
    net.fit(ROWS, Y, epochs=2, verbose=0)
    frozen = ("embedding_0", "scale_0", "batch_norm_0", "layer_norm_0", "projection_0")
    for name, value in state(net).items():
        stays = name.startswith(frozen) and not name.endswith((".mean", ".variance"))
        assert np.array_equal(value, before[name]) == stays, name


def test_a_factor_scales_the_first_update_of_a_layer(backend):
    moved = []
    for factor in (1, 0.5):
        net = make(backend, layers(6, factor), optimizer=gs.GradientDescent(0.1))
        before = net.parameters()
        net.step(ROWS, Y)
        moved.append({name: value - before[name] for name, value in net.parameters().items()})
    for name in (
        "embedding_0.W",
        "scale_0.gain",
        "batch_norm_0.shift",
        "layer_norm_0.gain",
        "projection_0.b",
    ):
        np.testing.assert_allclose(moved[1][name], 0.5 * moved[0][name], rtol=1e-6, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(moved[1]["dense_0.W"], moved[0]["dense_0.W"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("averaging", [None, gs.EMA(0.9), gs.SWA(2)])
def test_training_goes_on_exactly_from_a_checkpoint(backend, tmp_path, averaging):
    settings = {"averaging": averaging, "optimizer": gs.Adam(0.01, clip_norm=1.0)}
    whole = make(backend, layers(6), **settings)
    whole.fit(ROWS, Y, epochs=4, batch_size=16, verbose=0)
    part = make(backend, layers(6), **settings)
    part.fit(ROWS, Y, epochs=2, batch_size=16, verbose=0, callbacks=[gs.Checkpoint(tmp_path)])
    again = gs.load_checkpoint(tmp_path, backend=backend.name)
    again.fit(ROWS, Y, epochs=2, batch_size=16, verbose=0)
    expected = state(whole)
    for name, value in state(again).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_statistics_are_averaged_with_the_parameters(backend):
    """After one update the mean is what training moves; after two it is between both."""
    decay, momentum = 0.75, 0.1
    net = gs.Network(
        [gs.Input(5), gs.BatchNorm(momentum=momentum), gs.Dense(2)],
        optimizer=gs.GradientDescent(0.01),
        averaging=gs.EMA(decay),
        dtype="float64",
        backend=backend.name,
    )
    moved = np.zeros(5)
    for rows in (ROWS[:20], ROWS[20:]):
        net.step(rows, Y[: len(rows)])
        before, moved = moved, moved + momentum * (rows.mean(axis=0) - moved)
    found = state(net)
    np.testing.assert_allclose(found["batch_norm_0.mean.trained"], moved, rtol=1e-12)
    np.testing.assert_allclose(found["batch_norm_0.mean"], decay * before + (1 - decay) * moved, rtol=1e-12)


def test_predictions_use_the_averaged_statistics(backend):
    net = make(backend, layers(6), averaging=gs.EMA(0.9))
    net.fit(ROWS, Y, epochs=3, batch_size=16, verbose=0)
    net.predict(ROWS)  # cpp has folded them by now
    net.fit(ROWS, Y, epochs=3, batch_size=16, verbose=0)
    plain = make(backend, layers(6))
    plain.set_parameters(net.parameters())
    np.testing.assert_array_equal(net.predict(ROWS), plain.predict(ROWS))


def test_parameters_that_are_set_are_also_what_training_moves(backend):
    net = make(backend, layers(6), averaging=gs.SWA(1))
    net.fit(ROWS, Y, epochs=2, batch_size=16, verbose=0)
    net.set_parameters(net.parameters())
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(net.optimizer_state()[f"{name}.trained"], value, err_msg=name)


def test_a_loss_that_raises_leaves_the_average_where_the_user_sees_it(backend):
    calls = []

    def failing(y, outputs, weight):
        calls.append(0)
        if len(calls) % 4 == 0:
            raise RuntimeError("no more")
        return log_cosh(y, outputs, weight)

    net = make(backend, layers(6), averaging=gs.EMA(0.9), loss=failing)
    net.fit(ROWS, Y, epochs=1, batch_size=35, verbose=0)
    for call in (lambda: net.step(ROWS, Y), lambda: net.fit(ROWS, Y, epochs=9, batch_size=35, verbose=0)):
        while len(calls) % 4 != 3:
            net.step(ROWS, Y)
        before = state(net)
        with pytest.raises(RuntimeError, match="no more"):
            call()
        for name, value in state(net).items():
            np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_divergence_goes_back_with_both_sets_of_statistics(backend):
    net = make(backend, layers(6), averaging=gs.EMA(0.5), optimizer=gs.SGD(0.01))
    net.fit(ROWS, Y, epochs=2, batch_size=35, verbose=0)
    before = state(net)
    net.learning_rate = 1e300
    with pytest.raises(gs.DivergenceError):
        net.fit(ROWS, Y, epochs=5, batch_size=35, verbose=0)
    for name, value in state(net).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_variance_that_training_goes_on_from_must_not_be_negative(backend):
    net = make(backend, layers(6), averaging=gs.EMA(0.9))
    wrong = {**net.optimizer_state(), "batch_norm_0.variance.trained": np.full(6, -5.0)}
    with pytest.raises(ValueError, match=r"batch_norm_0.variance.trained must not be negative, got -5"):
        net.set_optimizer_state(wrong)


def test_lbfgs_trains_all_but_batch_normalisation(backend):
    pytest.importorskip("scipy")
    without = [layer for layer in layers(6) if not isinstance(layer, gs.BatchNorm | gs.Activation)]
    net = make(backend, without, optimizer=gs.LBFGS(), l2=0.01)
    net.fit(ROWS, Y, epochs=15, verbose=0)
    assert net.history["loss"][-1] < 0.3 * net.history["loss"][0]
    with pytest.raises(ValueError, match="LBFGS cannot be combined with BatchNorm"):
        make(backend, layers(6), optimizer=gs.LBFGS())
    inside = [gs.Residual([gs.Dense(3), gs.Dropout(0.1), gs.Dense(5)]), gs.Dense(2)]
    with pytest.raises(ValueError, match="LBFGS cannot be combined with Dropout"):
        make(backend, inside, optimizer=gs.LBFGS())


FOLDED = {
    "behind products": [gs.Dense(4), gs.BatchNorm(), gs.Activation("tanh"), gs.Dropout(0.1), gs.Dense(2)],
    "behind an activation": [gs.Dense(4, "tanh"), gs.BatchNorm(), gs.Scale(), gs.Dense(2)],
    "between activations": [gs.Dense(4, "tanh"), gs.BatchNorm(), gs.Activation("relu"), gs.Dense(2)],
    "in front": [gs.BatchNorm(), gs.Scale(), gs.Dense(2)],
    "at the end": [gs.Dense(4, "relu"), gs.Dense(2), gs.BatchNorm(), gs.Scale()],
    "at the end, behind an activation": [gs.Dense(2, "tanh"), gs.Scale()],
}


@pytest.mark.parametrize("place", FOLDED)
def test_exports_take_gains_and_shifts_into_products(place):
    net = make("numpy", FOLDED[place])
    net.fit(ROWS, Y, epochs=3, verbose=0)
    x = ROWS
    for layer in forward_of(net).layers:
        z = x @ layer.W + layer.b
        x = {"identity": z, "tanh": np.tanh(z), "relu": np.maximum(z, 0)}[layer.activation]
    np.testing.assert_allclose(x, net.predict(ROWS), rtol=1e-10, atol=1e-12)


def test_diagrams_and_tables_name_what_is_special():
    net = make("numpy", layers(6, 0.5))
    text = repr(net)
    for expected in ("identity, + projection_0", "elu, learning rate x 0.5"):
        assert expected in text
    assert "frozen" in repr(make("numpy", layers(6, 0)))
    picture = str(gs.plot.network(net))
    assert ">+ projection_0<" in picture
    assert "batch_norm_0" in picture


def test_layers_keep_their_rates_in_their_description():
    for layer in layers(6, 0.5):
        assert gs.layers.layer_from_config(layer.to_config()) == layer
    with pytest.raises(ValueError, match="learning_rate_factor must be greater than 0"):
        dataclasses.replace(gs.Scale(), learning_rate_factor=0.0)


@pytest.mark.parametrize("kind", ["array", "source", "batches"])
def test_categories_are_exempt_from_preprocessing_however_the_rows_come(backend, kind):
    net = make(backend, [gs.Embedding(4, 3, 2), gs.Dense(1)], preprocessing="standardize")
    y = np.array([3.0, -1.0, 2.0])[ROWS[:, 4].astype(int)][:, None]
    fed = {
        "array": (ROWS, y),
        "source": (gs.ArraySource(ROWS, y),),
        "batches": (lambda: ((ROWS[i : i + 16], y[i : i + 16]) for i in range(0, 70, 16)),),
    }
    net.fit(*fed[kind], epochs=1, **({"batch_size": 16} if kind != "batches" else {}), verbose=0)
    statistics = net.config["preprocessing"]
    assert (statistics["shift"][4], statistics["scale"][4]) == (0, 1)
    assert statistics["scale"][0] != 1


def test_the_range_test_sees_batch_normalisation_as_training_does(backend):
    X = 3 + 5 * RNG.normal(size=(400, 5))
    net = make(backend, [gs.BatchNorm(), gs.Dense(8), gs.BatchNorm(), gs.Activation("relu"), gs.Dense(2)])
    found = gs.find_learning_rate(net, X, X[:, :2] / 5, batch_size=16, steps=60)
    assert len(found.losses) > 30
    assert found.smoothed.min() > 0


@pytest.mark.parametrize("width", [6, 1100])
def test_statistics_that_overflow_are_divergence(backend, width):
    """Where no checkpoint is kept, too; a step changes nothing then."""
    net = make(backend, [gs.Dense(width), gs.BatchNorm(), gs.Dense(width), gs.Dense(2)], dtype="float32")
    huge = (ROWS * 1e25).astype(np.float32)
    net.step(ROWS, Y)
    before = state(net)
    with pytest.raises(gs.DivergenceError):
        net.step(huge, Y)
    for name, value in state(net).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    with pytest.raises(gs.DivergenceError):
        net.fit(huge, Y, epochs=2, verbose=0)
    assert np.isfinite(net.evaluate(ROWS, Y)["loss"])


@pytest.mark.parametrize("optimizer", ["adam", "lion"])
def test_biases_in_front_of_batch_normalisation_stay_where_they_are(backend, optimizer):
    normalised = [gs.Dense(8), gs.BatchNorm(), gs.Activation("tanh"), gs.Dense(2)]
    net = make(backend, normalised, optimizer=optimizer)
    net.fit(ROWS, Y, epochs=3, batch_size=16, verbose=0)
    assert not net.parameters()["dense_0.b"].any()
    assert net.parameters()["dense_1.b"].any()
    assert not net.loss_and_gradients(ROWS, Y)[1]["dense_0.b"].any()


def test_a_mean_of_large_numbers_keeps_its_digits(backend):
    net = gs.Network([gs.Input(3), gs.LayerNorm(), gs.Dense(3)], backend=backend.name)
    net.set_parameters({"dense_0.W": np.eye(3, dtype=np.float32)})
    predicted = net.predict([[1e6, 1e6 + 1, 1e6 + 3]])
    np.testing.assert_allclose(predicted[0], [-1.069045, -0.267261, 1.336306], rtol=1e-4)


@pytest.mark.parametrize("norm", [gs.LayerNorm, gs.BatchNorm])
def test_an_epsilon_that_the_dtype_cannot_hold_still_divides(backend, norm):
    net = gs.Network([gs.Input(3), norm(epsilon=1e-50), gs.Dense(1)], backend=backend.name)
    assert np.isfinite(net.loss_and_gradients(np.ones((4, 3)), np.zeros(4))[0])
    assert np.isfinite(net.predict(np.ones((4, 3)))).all()


def test_what_cannot_be_said_is_refused():
    with pytest.raises(TypeError, match="positional"):
        gs.LayerNorm(64)
    with pytest.raises(ValueError, match="column of every Embedding must be another one"):
        gs.Network([gs.Embedding(4, 6, 3), gs.Embedding(4, 6, 3), gs.Dense(1)])
    with pytest.raises(ValueError, match="categories of an Embedding must be at most 16777216"):
        gs.Network([gs.Embedding(0, 2**24 + 8, 1), gs.Dense(1)])
    assert repr(gs.Embedding(7, 3, 2)) == "Embedding(column=7, categories=3, size=2)"
    assert repr(gs.Scale(trainable=False)) == "Scale(trainable=False)"


def test_plots_of_gradients_leave_out_layers_without_parameters():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = gs.plot.gradients(make("numpy", layers(6)), ROWS, Y, figure.add_subplot())
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert "layer_norm_0" in labels
    assert "sum_0" not in labels


def test_batches_of_one_row_are_refused_where_they_are_normalised(backend):
    net = make(backend, layers(6))
    with pytest.raises(ValueError, match="batch_size must be at least 2 with BatchNorm, got 1"):
        net.fit(ROWS, Y, batch_size=1, verbose=0)
    net.fit(ROWS, Y, batch_size=1, accumulate=4, epochs=1, verbose=0)
    with pytest.raises(ValueError, match="batch_size must be at least 2 with BatchNorm, got 1"):
        make(backend, layers(6)).fit(gs.ArraySource(ROWS, Y), batch_size=1, verbose=0)


def test_a_row_of_one_column_cannot_be_normalised():
    with pytest.raises(ValueError, match="LayerNorm needs at least 2 columns"):
        gs.Network([gs.Dense(1), gs.LayerNorm()])


def test_an_embedding_is_drawn_with_what_passes_it_by():
    wired = str(gs.plot.network(gs.Network([gs.Input(3), gs.Embedding(1, 4, 2), gs.Dense(1)])))
    first = next(line for line in wired.splitlines() if line.startswith("<path"))
    assert first.count("M") == 2 + 2  # two columns pass by, one becomes two units
