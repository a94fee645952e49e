"""Outputs in the compiled engine: losses on panels, errors in place of outputs, one output in one pass."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import gradstep as gs
from conftest import BACKENDS
from gradstep.backends.numpy.losses import LOSSES
from networks import make_data, make_engine, make_plan, train

pytestmark = pytest.mark.skipif("cpp" not in BACKENDS, reason="the compiled core is not installed")

# Chunks of rows, and layer by layer; the last panels are partly filled.
MANY = {"rows": (40, 130, 150, 38), "layers": (30, 60, 2054)}
# One output of a tiny network: its last layer and the loss are one pass, but for those of five inputs.
ONE = {"line": (1, 1), "plane": (4, 1), "five": (5, 1), "one layer below": (3, 2, 1), "two": (2, 9, 3, 1)}
SINGLE = [name for name, of in LOSSES.items() if of.targets != "labels" and of.outputs_per_target == 1]
ROWS = 301  # no multiple of anything, and more than a tile


def engines_of(plan):
    return [make_engine(BACKENDS[name], plan) for name in ("cpp", "numpy")]


def assert_close(mine, reference, tolerance=1e-8):
    assert mine.keys() == reference.keys()
    for name, value in reference.items():
        np.testing.assert_allclose(mine[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


def assert_same_steps(plan, data, **options):
    engines = engines_of(plan)
    options = {"weight": data.weight, "learning_rate": 1e-3, **options}
    mine, reference = (train(engine, data, 2, **options) for engine in engines)
    np.testing.assert_allclose(mine.losses, reference.losses, rtol=1e-11)
    assert_close(*(engine.parameters() for engine in engines))


@pytest.mark.parametrize(("output_activation", "shuffle"), [("identity", True), ("silu", False)])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("widths", MANY.values(), ids=MANY)
def test_every_loss_takes_the_references_steps(widths, loss, output_activation, shuffle):
    plan = make_plan(widths, "tanh", loss, "adam", "float64", output_activation=output_activation)
    assert_same_steps(plan, make_data(plan, ROWS), batch_size=221, shuffle=shuffle)


@pytest.mark.parametrize("loss", SINGLE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("widths", ONE.values(), ids=ONE)
def test_rows_of_no_weight_add_nothing_to_a_single_output_whatever_they_are(widths, dtype, loss):
    plan = make_plan(widths, "tanh", loss, dtype=dtype)
    X, y, weight = make_data(plan, ROWS)
    weight[:70] = 0  # whole vectors
    used = weight > 0
    X[~used] *= 1e30 if dtype == "float32" else 1e200
    engine = make_engine(BACKENDS["cpp"], plan)
    loss_of_all, of_all, _ = engine.loss_and_gradients(X, y, weight)
    loss_of_used, of_used, _ = engine.loss_and_gradients(X[used], y[used], weight[used])
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    assert loss_of_all == pytest.approx(loss_of_used, rel=tolerance)
    assert_close(of_all, of_used, tolerance)


@pytest.mark.parametrize("loss", SINGLE)
@pytest.mark.parametrize("widths", ONE.values(), ids=ONE)
def test_a_single_output_takes_the_references_steps(widths, loss):
    plan = make_plan(widths, "tanh", loss, "adam", "float64", l2=1e-3)
    assert_same_steps(plan, make_data(plan, ROWS), batch_size=290)


@pytest.mark.parametrize("widths", MANY.values(), ids=MANY)
def test_every_output_has_its_own_option(widths):
    quantiles = tuple(np.linspace(0.05, 0.95, widths[-1]))
    plan = make_plan(widths, "tanh", "quantile", "adam", "float64", loss_options={"quantile": quantiles})
    assert_same_steps(plan, make_data(plan, ROWS), batch_size=100)


def test_a_batch_of_more_rows_than_a_pass_takes_the_references_steps():
    plan = make_plan((20, 300, 300, 20), "silu", "mse", "sgd", "float64")
    assert_same_steps(plan, make_data(plan, 4500), batch_size=4500)


@pytest.mark.parametrize(
    "widths", [*MANY.values(), (50, 2000), *ONE.values()], ids=[*MANY, "one layer", *ONE]
)
def test_gradients_are_the_references_also_of_the_inputs(widths):
    plan = make_plan(widths, "tanh", "huber", dtype="float64")
    X, y, weight = make_data(plan, ROWS)
    mine, reference = (
        engine.loss_and_gradients(X, y, weight, input_gradient=True) for engine in engines_of(plan)
    )
    assert mine[0] == pytest.approx(reference[0], rel=1e-11)
    assert_close(mine[1], reference[1])
    np.testing.assert_allclose(mine[2], reference[2], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("widths", [(3, 12, 6), (20, 60, 38), *MANY.values()], ids=["lanes", "chunks", *MANY])
def test_predictions_are_the_references(widths, loss):
    plan = make_plan(widths, "tanh", loss, dtype="float64")
    X = make_data(plan, ROWS).X
    mine, reference = (np.empty((ROWS, widths[-1])) for _ in range(2))
    for engine, out in zip(engines_of(plan), (mine, reference), strict=True):
        engine.predict(X, out)
    np.testing.assert_allclose(mine, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("output", [0, 17, 37])
def test_a_nan_output_makes_the_loss_nan(output):
    plan = make_plan(MANY["rows"])
    engine = make_engine(BACKENDS["cpp"], plan)
    biases = engine.parameters()["dense_2.b"]
    biases[output] = np.nan
    engine.set_parameters({"dense_2.b": biases})
    data = make_data(plan, 40)
    assert np.isnan(engine.loss_and_gradients(data.X, data.y, None)[0])


@pytest.mark.parametrize(
    "layers",
    [
        [gs.Dense(150, "tanh"), gs.BatchNorm(), gs.Dense(40)],
        [gs.Dense(150, "tanh"), gs.Dense(40), gs.LayerNorm()],
        [gs.Dense(40, "tanh"), gs.Residual([gs.Dense(90, "relu"), gs.Dense(40)])],
    ],
    ids=["dense", "normalisation", "residual"],
)
def test_outputs_of_networks_that_are_no_chain_have_the_references_errors(layers):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 30)), rng.normal(size=(300, 40))
    nets = [gs.Network(layers, dtype="float64", seed=1, backend=name) for name in ("cpp", "numpy")]
    losses = [[net.step(X, y) for _ in range(3)] for net in nets]
    np.testing.assert_allclose(*losses, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("hidden", [(), (60,)], ids=["one layer", "two layers"])
def test_sparse_rows_take_the_steps_of_dense_ones(hidden):
    from gradstep.sklearn import MLPRegressor

    rng = np.random.default_rng(0)
    X = scipy.sparse.random_array((300, 3000), density=0.01, format="csr", rng=rng)
    y = rng.normal(size=(300, 40))
    models = [
        MLPRegressor(hidden_layer_sizes=hidden, max_iter=3, batch_size=70, random_state=0, backend="cpp")
        for _ in range(2)
    ]
    for model, rows in zip(models, (X, X.toarray()), strict=True):
        model.fit(rows, y)
    np.testing.assert_allclose(models[0].loss_curve_, models[1].loss_curve_, rtol=1e-9)
    for sparse, dense in zip(models[0].coefs_, models[1].coefs_, strict=True):
        np.testing.assert_allclose(sparse, dense, rtol=1e-6, atol=1e-9)
