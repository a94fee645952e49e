import copy
import json
import pickle

import numpy as np
import pytest

import gradstep as gs
from gradstep.backends.numpy.losses import LOSSES

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3)).astype(np.float32)
TARGETS = {
    "values": X[:, :2] * 2 + 1,
    "probabilities": (X[:, :2] > 0).astype(np.float32),
    "counts": np.floor(np.abs(X[:, :2]) * 3),
    "positive": np.exp(X[:, :2]),
    "signs": np.sign(X[:, :2]),
    "labels": (X[:, 0] > 0).astype(np.int32),
}


def make(backend, loss="mse", **settings):
    layers = [gs.Input(3), gs.Dense(5, "tanh"), gs.Dense(2)]
    return gs.Network(layers, loss=loss, backend=backend.name, **settings)


def targets(net):
    y = TARGETS[net.loss.target_kind]
    return y[:, : 2 // net.loss.outputs_per_target] if y.ndim == 2 else y


def assert_same_arrays(mine, other):
    assert mine.keys() == other.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


# --------------------------------------------------------------------------------------------------
# Construction


def test_repr_is_a_table_of_layers_shapes_and_parameter_counts():
    net = gs.Network([gs.Dense(1000, "relu"), gs.Dense(3)], loss="cross_entropy", backend="numpy")
    assert "? -> 1000" in repr(net)
    assert repr(net).splitlines()[3].split()[-1] == "3,003"
    net.fit(np.zeros((4, 20)), [0, 1, 2, 0], epochs=1, verbose=0)
    lines = repr(net).splitlines()
    assert "loss cross_entropy" in lines[0]
    assert "Adam(learning_rate=0.001" in lines[0]
    assert "backend numpy" in lines[0]
    assert lines[1].split() == ["layer", "activation", "shape", "parameters"]
    assert lines[2].split() == ["dense_0", "relu", "20", "->", "1000", "21,000"]
    assert lines[-1].split() == ["total", "24,003"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_input_width_is_inferred_or_given(backend):
    net = gs.Network([gs.Dense(2)], backend=backend.name)
    assert net.n_in is None
    with pytest.raises(ValueError, match=r"call fit first, or begin layers with Input\(n\)"):
        net.parameters()
    with pytest.raises(ValueError, match=r"call fit first, or begin layers with Input\(n\)"):
        net.predict(X)
    net.step(X, TARGETS["values"])
    assert net.n_in == 3
    assert make(backend).parameters()["dense_0.W"].shape == (3, 5)


def test_dtype_may_be_a_numpy_type():
    for dtype in ("float64", np.float64, np.dtype("float64")):
        net = gs.Network([gs.Input(1), gs.Dense(1)], dtype=dtype, backend="numpy")
        assert net.dtype == "float64"
        assert net.predict([[1.0]]).dtype == np.float64


def test_the_same_seed_gives_the_same_parameters_on_every_backend(backend, reference):
    assert_same_arrays(make(backend, seed=5).parameters(), make(reference, seed=5).parameters())
    assert not np.array_equal(
        make(backend, seed=5).parameters()["dense_0.W"], make(backend, seed=6).parameters()["dense_0.W"]
    )


def test_float32_and_float64_start_at_the_same_point(backend):
    single, double = make(backend).parameters(), make(backend, dtype="float64").parameters()
    assert_same_arrays(single, {name: value.astype(np.float32) for name, value in double.items()})


# --------------------------------------------------------------------------------------------------
# Use


@pytest.mark.parametrize("loss", LOSSES)
def test_predictions_are_values_or_probabilities(backend, loss):
    net = make(backend, loss)
    net.fit(X, targets(net), epochs=2, verbose=0)
    predictions = net.predict(X)
    assert predictions.shape == (50, 2)
    assert predictions.dtype == np.float32
    if net.loss.is_classification and net.loss.has_link:
        assert ((predictions >= 0) & (predictions <= 1)).all()
    if loss in ("cross_entropy", "focal"):
        np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-5)


def test_one_row_is_predicted_as_among_many(backend):
    net = make(backend)
    together = net.predict(X)
    for i in range(5):
        np.testing.assert_allclose(net.predict(X[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-6)


def test_evaluate_of_labels_has_loss_and_accuracy(backend):
    net = make(backend, "cross_entropy")
    y, weight = TARGETS["labels"], np.arange(50.0)
    correct = net.predict(X).argmax(axis=1) == y
    result = net.evaluate(X, y)
    assert result.keys() == {"loss", "accuracy"}
    assert result["loss"] == pytest.approx(-np.log(net.predict(X)[np.arange(50), y]).mean(), rel=1e-5)
    assert result["accuracy"] == correct.mean()
    assert net.evaluate(X, y, weight)["accuracy"] == pytest.approx((correct * weight).sum() / weight.sum())


def test_evaluate_of_probabilities_counts_every_output(backend):
    net = make(backend, "binary_cross_entropy")
    y = TARGETS["probabilities"]
    assert net.evaluate(X, y)["accuracy"] == pytest.approx(((net.predict(X) > 0.5) == (y > 0.5)).mean())


def test_evaluate_of_values_has_rmse_and_r2(backend):
    net = make(backend, "mse", l2=1.0)
    y = TARGETS["values"]
    error = net.predict(X) - y
    result = net.evaluate(X, y)
    assert result["loss"] == pytest.approx(np.mean(error**2), rel=1e-5)  # without the l2 penalty
    assert result["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)
    r2 = 1 - np.mean(error**2, axis=0) / y.var(axis=0)
    assert result["r2"] == pytest.approx(r2.mean(), rel=1e-4)


def test_r2_of_a_constant_target_is_undefined(backend):
    net = make(backend)
    assert np.isnan(net.evaluate(X, np.ones((50, 2)))["r2"])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_step_descends_along_the_gradient(backend, loss, weighted):
    net = make(backend, loss, optimizer=gs.GradientDescent(0.5), l2=0.1, dtype="float64")
    y, weight = targets(net), np.linspace(0, 2, 50) if weighted else None
    before = net.parameters()
    expected, gradients = net.loss_and_gradients(X, y, weight)
    assert net.step(X, y, weight) == pytest.approx(expected, rel=1e-12)
    after = net.parameters()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(after[name], before[name] - 0.5 * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_short_way_of_step_is_the_long_one(backend, loss):
    """Arrays that need no conversion skip most of the checks."""
    short, long = make(backend, loss), make(backend, loss)
    y = targets(short)
    for _ in range(3):
        converted = y.tolist() if y.ndim == 1 else np.asfortranarray(y.astype(np.float64))
        assert short.step(X, y) == long.step(X.astype(np.float64), converted)
    assert_same_arrays(short.parameters(), long.parameters())


def test_step_uses_the_present_learning_rate(backend):
    net = make(backend, optimizer=gs.GradientDescent(0.1))
    net.learning_rate = 0.25
    assert net.optimizer == gs.GradientDescent(0.25)
    before = net.parameters()["dense_1.b"]
    _, gradients = net.loss_and_gradients(X, TARGETS["values"])
    net.step(X, TARGETS["values"])
    np.testing.assert_allclose(
        net.parameters()["dense_1.b"], before - 0.25 * gradients["dense_1.b"], rtol=1e-5
    )
    with pytest.raises(ValueError, match="learning_rate must be greater than 0, got -1"):
        net.learning_rate = -1


def test_step_says_when_the_loss_is_not_finite(backend):
    net = make(backend, optimizer=gs.GradientDescent(1e30))
    with pytest.raises(gs.DivergenceError, match=r"try a learning rate smaller than 1e\+30"):
        for _ in range(5):
            net.step(X, TARGETS["values"])


def test_gradients_have_the_names_and_shapes_of_the_parameters(backend):
    net = make(backend)
    _, gradients = net.loss_and_gradients(X, TARGETS["values"])
    assert {name: g.shape for name, g in gradients.items()} == net.plan.parameter_shapes()


@pytest.mark.parametrize("preprocessing", ["none", "standardize"])
def test_input_gradient_is_that_of_the_rows_given(backend, preprocessing):
    net = make(backend, preprocessing=preprocessing, dtype="float64")
    x, y = X.astype(np.float64), TARGETS["values"]
    net.prepare(x * 3)
    _, gradients = net.loss_and_gradients(x, y, input_gradient=True)
    assert gradients["X"].shape == x.shape
    h = 1e-6
    moved = [x.copy(), x.copy()]
    moved[0][4, 1] += h
    moved[1][4, 1] -= h
    up, down = (net.loss_and_gradients(rows, y)[0] for rows in moved)
    assert gradients["X"][4, 1] == pytest.approx((up - down) / (2 * h), rel=1e-6)


def test_trace_is_the_chain_rule_of_the_gradients(backend):
    net = make(backend, "cross_entropy", preprocessing="minmax", l2=0.1, dtype="float64")
    net.prepare(X)
    weight = np.linspace(1, 2, 50)
    trace = net.trace(X, TARGETS["labels"], weight)
    loss, gradients = net.loss_and_gradients(X, TARGETS["labels"], weight)
    assert trace.loss == pytest.approx(loss, rel=1e-9)
    assert [layer.name for layer in trace] == ["dense_0", "dense_1"]
    for layer in trace:
        np.testing.assert_allclose(layer.dW, gradients[f"{layer.name}.W"], rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(layer.db, gradients[f"{layer.name}.b"], rtol=1e-7, atol=1e-10)
    np.testing.assert_array_equal(trace["dense_1"].x, trace[0].a)
    assert len(trace) == 2
    assert "dense_1" in repr(trace)
    with pytest.raises(ValueError, match="unknown layer 'dense_2'"):
        trace["dense_2"]


# --------------------------------------------------------------------------------------------------
# Parameters


def test_parameters_come_back_as_set(backend):
    net = make(backend)
    values = {name: RNG.normal(size=shape) for name, shape in net.plan.parameter_shapes().items()}
    net.set_parameters(values)
    assert_same_arrays(net.parameters(), {name: v.astype(np.float32) for name, v in values.items()})


def test_parameters_can_be_set_one_by_one(backend):
    net = make(backend)
    before = net.parameters()
    net.set_parameters({"dense_1.b": [1, 2]})
    assert_same_arrays(net.parameters(), {**before, "dense_1.b": np.array([1, 2], np.float32)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dense_0.w": [1]}, "unknown parameter 'dense_0.w', did you mean 'dense_0.W'"),
        ({"dense_0.b": [1, 2]}, r"dense_0.b must have shape \(5,\), got \(2,\)"),
        ({"dense_0.b": [1, 2, 3, 4, np.inf]}, r"dense_0.b must be finite, but dense_0.b\[4\] = inf"),
    ],
)
def test_wrong_parameters_change_nothing(backend, values, message):
    net = make(backend)
    before = net.parameters()
    with pytest.raises(ValueError, match=message):
        net.set_parameters({"dense_1.b": [1, 2], **values})
    assert_same_arrays(net.parameters(), before)


@pytest.mark.parametrize("optimizer", ["gradient_descent", gs.SGD(0.1, 0.9), "adam", "adamw"])
def test_optimizer_state_resumes_exactly(backend, optimizer):
    net, other = make(backend, optimizer=optimizer), make(backend, optimizer=optimizer)
    y = TARGETS["values"]
    net.fit(X, y, epochs=3, verbose=0)
    other.set_parameters(net.parameters())
    other.set_optimizer_state(net.optimizer_state())
    assert net.step(X, y) == other.step(X, y)
    assert_same_arrays(net.parameters(), other.parameters())


def test_wrong_optimizer_states_change_nothing(backend):
    net = make(backend)
    state = net.optimizer_state()
    with pytest.raises(ValueError, match=r"the optimizer state lacks 'dense_0.W.m'"):
        net.set_optimizer_state({"step": 3})
    with pytest.raises(ValueError, match=r"dense_1.b.v must have shape \(2,\)"):
        net.set_optimizer_state({**state, "step": 3, "dense_1.b.v": [1.0]})
    with pytest.raises(ValueError, match=r"unknown optimizer state 'dense_0.W.n'"):
        net.set_optimizer_state({**state, "dense_0.W.n": [1.0]})
    assert_same_arrays(net.optimizer_state(), state)


# --------------------------------------------------------------------------------------------------
# Description and copies


@pytest.fixture
def trained(backend):
    net = make(
        backend,
        gs.Huber(0.7),
        optimizer=gs.AdamW(0.01, weight_decay=0.1),
        l2=0.01,
        preprocessing="standardize",
        target_preprocessing="standardize",
        seed=2**63,
    )
    net.fit(X, TARGETS["values"], epochs=3, verbose=0)
    net.classes = ["no", "yes"]
    return net


def test_config_is_plain_json_and_rebuilds_the_network(trained):
    config = json.loads(json.dumps(trained.config, allow_nan=False))
    again = gs.Network.from_config(config, backend=trained.backend)
    assert again.config == trained.config
    again.set_parameters(trained.parameters())
    again.set_optimizer_state(trained.optimizer_state())
    np.testing.assert_array_equal(again.predict(X), trained.predict(X))
    assert again.epochs_trained == 3
    assert again.classes == ["no", "yes"]
    y = TARGETS["values"]
    assert again.fit(X, y, epochs=2, verbose=0).loss == trained.fit(X, y, epochs=2, verbose=0).loss
    assert_same_arrays(again.parameters(), trained.parameters())


def test_config_of_a_network_that_saw_no_data_rebuilds_it():
    net = gs.Network([gs.Dense(2)], preprocessing="minmax", backend="numpy")
    again = gs.Network.from_config(net.config)
    assert again.n_in is None
    assert again.config == net.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [{"type": "conv"}]}, "unknown layer type 'conv'"),
        ({"layers": [{"type": "dense"}]}, "config does not describe a network"),
        ({"n_in": 4}, "statistics of the preprocessing must have 4 entries each"),
        ({"loss": None}, "config does not describe a network"),
    ],
)
def test_a_config_of_something_else_is_an_error(change, message):
    net = gs.Network([gs.Dense(2)], preprocessing="minmax", backend="numpy")
    net.prepare(X)
    with pytest.raises(ValueError, match=message):
        gs.Network.from_config({**net.config, **change})
    with pytest.raises(ValueError, match="config does not describe a network: KeyError"):
        gs.Network.from_config({})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_go_on_alone(trained, duplicate):
    twin = duplicate(trained)
    before = trained.parameters()
    assert_same_arrays(twin.parameters(), before)
    assert twin.history.loss == trained.history.loss
    np.testing.assert_array_equal(twin.predict(X), trained.predict(X))
    y = TARGETS["values"]
    losses = twin.fit(X, y, epochs=2, verbose=0).loss
    assert_same_arrays(trained.parameters(), before)
    assert trained.fit(X, y, epochs=2, verbose=0).loss == losses


def test_a_network_without_parameters_can_be_copied(backend):
    net = gs.Network([gs.Dense(1)], backend=backend.name)
    assert pickle.loads(pickle.dumps(net)).n_in is None


class _Encoder:
    """Takes frames, here dictionaries, as a TableEncoder does."""

    def transform(self, frame):
        return np.array([frame[name] for name in "abc"], np.float32).T


def test_an_encoder_lets_every_method_take_frames(backend):
    frame = dict(zip("abc", X.T, strict=True))
    y = TARGETS["values"]
    net, plain = make(backend), make(backend)
    net.encoder = _Encoder()
    assert net.fit(frame, y, epochs=2, verbose=0, validation_data=(frame, y)).loss == (
        plain.fit(X, y, epochs=2, verbose=0).loss
    )
    np.testing.assert_array_equal(net.predict(frame), plain.predict(X))
    assert net.evaluate(frame, y) == plain.evaluate(X, y)
    assert net.step(frame, y) == plain.step(X, y)
    np.testing.assert_array_equal(net.predict(X), plain.predict(X))


def test_statistics_are_those_of_the_encoder_s_features_not_of_the_frame(backend):
    class Scaling:
        def transform(self, frame):
            return (np.asarray(frame) - 1000).astype(np.float32)

    class Frame:
        """Numbers, but no ndarray."""

        def __array__(self, dtype=None, copy=None):
            return np.asarray(X + 1000, dtype)

    net = make(backend, preprocessing="standardize")
    net.encoder = Scaling()
    net.fit(Frame(), TARGETS["values"], epochs=1, verbose=0)
    plain = make(backend, preprocessing="standardize")
    plain.fit(np.asarray(X + 1000) - np.float32(1000), TARGETS["values"], epochs=1, verbose=0)
    np.testing.assert_allclose(net.predict(Frame()), plain.predict(Scaling().transform(Frame())), rtol=1e-6)


@pytest.mark.parametrize("container", [np.asarray, list, lambda rows: rows.astype(object)])
def test_columns_that_float32_cannot_resolve_are_refused_in_any_container(container):
    rows = 1e9 + 0.01 * np.arange(50.0)[:, None]
    net = gs.Network([gs.Dense(1)], preprocessing="standardize", backend="numpy")
    with pytest.raises(ValueError, match="cannot tell apart"):
        net.fit(container(rows), np.zeros(50), epochs=1, verbose=0)
    assert net.n_in is None


def test_a_callback_that_refuses_leaves_the_network_as_it_was_and_ends_those_before_it(backend):
    events = []

    class Log(gs.Callback):
        def on_fit_begin(self, state):
            events.append("begin")

        def on_fit_end(self, state):
            events.append("end")

    net = gs.Network([gs.Dense(2)], preprocessing="standardize", backend=backend.name)
    with pytest.raises(ValueError, match="monitor"):
        net.fit(
            X,
            TARGETS["values"],
            epochs=1,
            verbose=0,
            callbacks=[Log(), gs.EarlyStopping(monitor="val_los")],
        )
    assert events == ["begin", "end"]
    assert net.n_in is None
    net.fit(X[:, :2], TARGETS["values"], epochs=1, verbose=0)


def test_targets_too_large_for_the_network_s_units_are_refused(backend):
    net = make(backend, target_preprocessing="standardize")
    huge = np.full((50, 2), 1e300)
    with pytest.raises(ValueError, match=r"validation_data\[1\] must fit float32"):
        net.fit(X, TARGETS["values"], epochs=1, verbose=0, validation_data=(X, huge))
    net.fit(X, TARGETS["values"], epochs=1, verbose=0)
    with pytest.raises(ValueError, match="y must fit float32"):
        net.fit(X, huge, epochs=1, verbose=0)


def test_an_epsilon_below_the_dtype_s_range_trains_weights_without_gradients(backend):
    rows = X.copy()
    rows[:, 1] = 0
    net = make(backend, optimizer=gs.Adam(epsilon=1e-50))
    assert np.isfinite(net.fit(rows, TARGETS["values"], epochs=3, verbose=0).loss).all()


@pytest.mark.parametrize("given", [["a", "b", "c"], ("a", "b", "c"), np.array(["a", "b", "c"])])
def test_classes_may_be_any_sequence(given):
    net = gs.Network([gs.Input(2), gs.Dense(3)], loss="cross_entropy", backend="numpy")
    net.classes = given
    assert net.classes == ["a", "b", "c"]
    net.classes = [np.int64(1), 2, 3.5]
    assert net.classes == ["1", "2", "3.5"]


@pytest.mark.parametrize(("given", "error"), [("abc", TypeError), (["a", "b"], ValueError), ([], ValueError)])
def test_classes_that_do_not_name_the_outputs_are_refused(given, error):
    net = gs.Network([gs.Input(2), gs.Dense(3)], loss="cross_entropy", backend="numpy")
    net.classes = ["a", "b", "c"]
    with pytest.raises(error, match="classes must be"):
        net.classes = given
    assert net.classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    "change",
    [
        {"shift": [float("nan"), 0.0]},
        {"scale": [0.0, 1.0]},
        {"scale": [1.0, float("inf")]},
        {"mode": "none"},
        {"shift": [10**400, 0.0]},
    ],
)
def test_statistics_that_no_training_rows_have_are_refused(change):
    net = gs.Network([gs.Dense(1)], preprocessing="standardize", backend="numpy")
    net.prepare(np.array([[0.0, 1.0], [2.0, 5.0]]))
    config = net.config
    with pytest.raises(ValueError, match="statistics"):
        gs.Network.from_config({**config, "preprocessing": {**config["preprocessing"], **change}})


def test_losses_compare_and_hash_by_value():
    assert gs.Huber(2.0) == gs.Loss("huber", {"delta": 2.0})
    assert hash(gs.Huber(2.0)) == hash(gs.Loss("huber", {"delta": 2.0}))
    assert gs.Huber(2.0) != gs.Huber(1.0)
    assert repr(gs.Huber(2.0)) == "Huber(delta=2.0)"
    net = gs.Network([gs.Dense(1)], loss=gs.Huber(2.0), backend="numpy")
    assert repr(gs.Network.from_config(net.config).loss) == "Huber(delta=2.0)"
