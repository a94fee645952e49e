import numpy as np
import pytest

import oracles
from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.backends.numpy.losses import LOSSES
from networks import make_data, make_engine, make_oracle, make_parameters, make_plan

REGRESSION = ("mse", "mae", "huber", "quantile")
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

SHAPES = [(1, 1), (3, 1), (3, 5, 2), (17, 33, 9, 3)]


def _n_out(loss):
    return 4 if LOSSES[loss].outputs_per_target == 2 else 2


def _assert_close(actual, truth, dtype):
    scale = max(1.0, float(np.max(np.abs(truth))))
    np.testing.assert_allclose(actual, truth, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


def _check_against_oracle(backend, plan, rows, weighted, seed=0):
    engine = make_engine(backend, plan, seed)
    data = make_data(plan, rows, seed + 1)
    weight = data.weight if weighted else None
    network = make_oracle(plan, engine.parameters())
    dW, db, dX = network.gradients(data.X, data.y, weight)

    loss, gradients, input_gradient = engine.loss_and_gradients(data.X, data.y, weight, input_gradient=True)

    _assert_close(loss, network.mean_loss(data.X, data.y, weight), plan.dtype)
    for i, layer in enumerate(plan.layers):
        _assert_close(gradients[f"{layer.name}.W"], dW[i], plan.dtype)
        _assert_close(gradients[f"{layer.name}.b"], db[i], plan.dtype)
    _assert_close(input_gradient, dX, plan.dtype)
    assert {value.dtype.name for value in gradients.values()} == {plan.dtype}
    assert input_gradient.dtype.name == plan.dtype


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_oracle_agrees_with_finite_differences(activation, loss):
    plan = make_plan((3, 4, _n_out(loss)), activation, loss, dtype="float64", l2=0.1)
    data = make_data(plan, 5)
    network = make_oracle(plan, make_parameters(plan))
    dW, db, dX = network.gradients(data.X, data.y, data.weight)
    loss_value = lambda: network.mean_loss(data.X, data.y, data.weight)  # noqa: E731

    for exact, parameter in zip(dW + db + [dX], network.weights + network.biases + [data.X], strict=True):
        numeric = oracles.finite_differences(loss_value, parameter)
        np.testing.assert_allclose(exact, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_agree_with_finite_differences(backend, activation, loss):
    plan = make_plan((3, 4, _n_out(loss)), activation, loss, dtype="float64", l2=0.1)
    engine = make_engine(backend, plan)
    data = make_data(plan, 5)
    _, gradients, dX = engine.loss_and_gradients(data.X, data.y, data.weight, input_gradient=True)

    for name, value in engine.parameters().items():

        def loss_value(name=name, value=value):
            engine.set_parameters({name: value})
            return engine.loss_and_gradients(data.X, data.y, data.weight)[0]

        numeric = oracles.finite_differences(loss_value, value)
        engine.set_parameters({name: value})
        np.testing.assert_allclose(gradients[name], numeric, rtol=1e-6, atol=1e-8)
    numeric = oracles.finite_differences(
        lambda: engine.loss_and_gradients(data.X, data.y, data.weight)[0], data.X
    )
    np.testing.assert_allclose(dX, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_agree_with_the_oracle(backend, activation, loss, dtype):
    plan = make_plan((3, 5, 4, _n_out(loss)), activation, loss, dtype=dtype, l2=0.1)
    _check_against_oracle(backend, plan, rows=13, weighted=True)


@pytest.mark.parametrize("widths", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_gradients_agree_with_the_oracle_for_every_shape(backend, widths, rows, dtype):
    plan = make_plan(widths, "tanh", "mse", dtype=dtype)
    _check_against_oracle(backend, plan, rows, weighted=False)


@pytest.mark.parametrize("loss", REGRESSION)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_pass_through_the_output_activation(backend, activation, loss):
    plan = make_plan((4, 3, 2), "tanh", loss, dtype="float64", output_activation=activation)
    _check_against_oracle(backend, plan, rows=9, weighted=True)


@pytest.mark.parametrize("delta", [0.1, 2.5])
def test_huber_uses_its_delta(backend, delta, dtype):
    plan = make_plan((3, 4, 2), "tanh", "huber", dtype=dtype, loss_options={"delta": delta})
    _check_against_oracle(backend, plan, rows=20, weighted=True)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("cross_entropy", {"label_smoothing": 0.3}),
        ("binary_cross_entropy", {"label_smoothing": 0.3}),
        ("focal", {"gamma": 0.0}),
        ("focal", {"gamma": 0.5}),
        ("binary_focal", {"gamma": 0.0}),
        ("binary_focal", {"gamma": 3.5}),
        ("gaussian_nll", {"floor": 0.5}),
    ],
)
@pytest.mark.parametrize("widths", [(3, 4, 4), (5, 40, 6), (5, 250, 220, 4)], ids=str)
def test_losses_use_their_options(backend, loss, options, widths, dtype):
    plan = make_plan(widths, "tanh", loss, dtype=dtype, loss_options=options)
    _check_against_oracle(backend, plan, rows=20, weighted=True)


@pytest.mark.parametrize(
    ("loss", "options"), [("huber", {"delta": (0.1, 2.5)}), ("quantile", {"quantile": (0.1, 0.9)})]
)
def test_each_output_has_its_own_option(backend, loss, options, dtype):
    plan = make_plan((3, 4, 2), "tanh", loss, dtype=dtype, loss_options=options)
    _check_against_oracle(backend, plan, rows=20, weighted=True)


def test_mae_has_zero_gradient_where_the_residual_is_zero(backend, dtype):
    engine = make_engine(backend, make_plan((2, 1), loss="mae", dtype=dtype))
    X = np.zeros((4, 2), dtype)
    y = np.repeat(engine.parameters()["dense_0.b"], 4)[:, None]
    loss, gradients, _ = engine.loss_and_gradients(X, y, None)
    assert loss == 0
    assert not gradients["dense_0.b"].any()


def test_zero_weights_give_zero_loss_and_only_the_penalty(backend, dtype):
    plan = make_plan((3, 4, 2), loss="mse", dtype=dtype, l2=0.5)
    engine = make_engine(backend, plan)
    data = make_data(plan, 6)
    loss, gradients, dX = engine.loss_and_gradients(data.X, data.y, np.zeros(6, dtype), input_gradient=True)
    parameters = engine.parameters()
    squares = sum(
        float(np.sum(parameters[name].astype(np.float64) ** 2)) for name in parameters if name[-1] == "W"
    )
    assert loss == pytest.approx(0.25 * squares, rel=1e-6)
    assert not dX.any()
    for name, gradient in gradients.items():
        expected = 0.5 * parameters[name] if name.endswith(".W") else np.zeros_like(gradient)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_integer_weights_mean_repetition(backend, dtype):
    plan = make_plan((3, 4, 3), loss="cross_entropy", dtype=dtype)
    engine = make_engine(backend, plan)
    data = make_data(plan, 8)
    counts = np.array([0, 1, 2, 3, 1, 0, 2, 1])
    weighted, gradients, _ = engine.loss_and_gradients(data.X, data.y, counts.astype(dtype))
    repeated, expected, _ = engine.loss_and_gradients(
        data.X.repeat(counts, axis=0), data.y.repeat(counts), None
    )
    _assert_close(weighted, repeated, dtype)
    for name in gradients:
        _assert_close(gradients[name], expected[name], dtype)


def test_input_gradient_is_that_of_the_untransformed_input(backend):
    plan = make_plan((3, 4, 2), "gelu", dtype="float64")
    engine = make_engine(backend, plan)
    engine.set_input_transform(np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0]))
    data = make_data(plan, 5)
    _, _, dX = engine.loss_and_gradients(data.X, data.y, None, input_gradient=True)
    numeric = oracles.finite_differences(lambda: engine.loss_and_gradients(data.X, data.y, None)[0], data.X)
    np.testing.assert_allclose(dX, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_logits_give_finite_losses_and_gradients(backend, dtype):
    for loss, y in [
        ("binary_cross_entropy", np.array([[0.0], [1.0]], dtype)),
        ("cross_entropy", np.array([0, 1], np.int32)),
        ("binary_focal", np.array([[0.0], [1.0]], dtype)),
        ("focal", np.array([0, 1], np.int32)),
    ]:
        plan = make_plan((1, 1 if loss.startswith("binary") else 2), loss=loss, dtype=dtype)
        engine = backend.make_engine(plan)
        engine.set_parameters(
            {"dense_0.W": np.full((1, plan.n_out), 1.0, dtype) * np.arange(1, 1 + plan.n_out)}
        )
        X = np.array([[3e4], [-3e4]], dtype)
        value, gradients, _ = engine.loss_and_gradients(X, y, None)
        assert value == pytest.approx(3e4, rel=1e-6)
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())
