import numpy as np
import pytest

import gradstep as gs
from gradstep import preprocessing
from gradstep.preprocessing import Transform, check_preprocessing, column_statistics, fit_transform


@pytest.fixture
def X():  # noqa: N802
    return np.random.default_rng(0).normal(5.0, 3.0, (1000, 4))


def test_statistics_are_those_of_numpy(X, monkeypatch):
    monkeypatch.setattr(preprocessing, "BLOCK_ELEMENTS", 4 * 96)  # several blocks and a partial one
    statistics = column_statistics(X)
    np.testing.assert_allclose(statistics.mean, X.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(statistics.deviation, X.std(axis=0), rtol=1e-13)
    np.testing.assert_array_equal(statistics.minimum, X.min(axis=0))
    np.testing.assert_array_equal(statistics.maximum, X.max(axis=0))


def test_statistics_keep_their_digits_far_from_zero(X):
    far = X + 1e9
    expected = (far - 1e9).std(axis=0)
    np.testing.assert_allclose(column_statistics(far).deviation, expected, rtol=1e-6)


def test_float32_rows_have_float64_statistics(X):
    rows = X.astype(np.float32)
    statistics = column_statistics(rows)
    np.testing.assert_allclose(statistics.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-13)


def test_standardize_gives_mean_0_and_deviation_1(X):
    standardized = fit_transform("standardize", X, X.dtype.name, "X").apply(X, X.dtype.name)
    np.testing.assert_allclose(standardized.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(standardized.std(axis=0), 1, rtol=1e-12)


def test_minmax_gives_0_to_1(X):
    scaled = fit_transform("minmax", X, X.dtype.name, "X").apply(X, X.dtype.name)
    np.testing.assert_allclose(scaled.min(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose(scaled.max(axis=0), 1, rtol=1e-14)


@pytest.mark.parametrize("mode", ["standardize", "minmax"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e9, -1e-30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_columns_become_zero(mode, value, dtype):
    X = np.full((777, 1), value, dtype)
    transform = fit_transform(mode, X, X.dtype.name, "X")
    assert transform.scale == 1
    assert not transform.apply(X, X.dtype.name).any()


@pytest.mark.parametrize("mode", ["standardize", "minmax"])
def test_a_spread_below_the_smallest_float32_counts_as_constant(mode):
    assert fit_transform(mode, np.array([[0.0], [1e-40]]), "float64", "X").scale == 1


def test_columns_too_wide_for_float64_are_an_error():
    with pytest.raises(ValueError, match="'standardize' cannot span the values of column 1"):
        fit_transform("standardize", np.array([[0.0, -1e308], [1.0, 1e308]]), "float64", "X")


def test_inverse_undoes_the_transform(X):
    transform = fit_transform("standardize", X, X.dtype.name, "X")
    np.testing.assert_allclose(transform.invert(transform.apply(X, X.dtype.name)), X, rtol=1e-12)


def test_transforms_survive_their_description_exactly(X):
    transform = fit_transform("standardize", X, X.dtype.name, "X")
    again = Transform.from_config(transform.to_config())
    np.testing.assert_array_equal(again.shift, transform.shift)
    np.testing.assert_array_equal(again.scale, transform.scale)


def test_none_is_no_transform(X):
    assert fit_transform("none", X, X.dtype.name, "X") is None


def test_min_max_may_have_its_hyphen():
    assert check_preprocessing("min-max") == "minmax"
    with pytest.raises(ValueError, match="did you mean 'standardize'"):
        check_preprocessing("standardise")


@pytest.mark.parametrize("mode", ["standardize", "minmax"])
def test_a_network_trains_on_transformed_rows_as_on_rows_transformed_before(backend, mode, X):
    """Folding the statistics into the network changes nothing."""
    y = X.sum(axis=1)
    layers = [gs.Dense(5, "tanh"), gs.Dense(1)]
    settings = {"backend": backend.name, "dtype": "float64", "optimizer": gs.SGD(0.05)}
    inside = gs.Network(layers, preprocessing=mode, **settings)
    before = gs.Network(layers, **settings)
    transformed = fit_transform(mode, X, X.dtype.name, "X").apply(X, X.dtype.name)
    losses = inside.fit(X, y, epochs=2, verbose=0).loss
    np.testing.assert_allclose(losses, before.fit(transformed, y, epochs=2, verbose=0).loss, rtol=1e-9)
    np.testing.assert_allclose(inside.predict(X), before.predict(transformed), rtol=1e-9)


def test_statistics_come_from_the_first_training_rows_alone(X):
    net = gs.Network([gs.Dense(1)], preprocessing="standardize", dtype="float64")
    net.fit(X, X[:, 0], epochs=1, verbose=0, validation_data=(X * 100, X[:, 0]))
    shift = net.config["preprocessing"]["shift"]
    np.testing.assert_allclose(shift, X.mean(axis=0), rtol=1e-12)
    net.fit(X + 50, X[:, 0], epochs=1, verbose=0)
    assert net.config["preprocessing"]["shift"] == shift


def test_standardized_targets_are_predicted_in_their_own_units(backend, X):
    y = 1000 + 500 * X[:, :2]
    net = gs.Network(
        [gs.Dense(2)],
        preprocessing="standardize",
        target_preprocessing="standardize",
        optimizer=gs.SGD(0.05),
        backend=backend.name,
    )
    history = net.fit(X, y, epochs=10, verbose=0)
    assert history.loss[0] < 10  # that of targets with deviation 1
    np.testing.assert_allclose(net.predict(X), y, rtol=1e-2)
    rmse = np.sqrt(np.mean((net.predict(X) - y) ** 2))
    assert net.evaluate(X, y)["rmse"] == pytest.approx(rmse, rel=0.05)


def test_standardized_targets_need_a_regression_loss():
    with pytest.raises(ValueError, match="target_preprocessing must be 'none' for the loss 'cross_entropy'"):
        gs.Network([gs.Dense(2)], loss="cross_entropy", target_preprocessing="standardize")
    with pytest.raises(ValueError, match="unknown target_preprocessing 'minmax'"):
        gs.Network([gs.Dense(2)], target_preprocessing="minmax")


def test_networks_without_statistics_say_so(X):
    net = gs.Network([gs.Input(4), gs.Dense(1)], preprocessing="standardize")
    for use in (lambda: net.predict(X), lambda: net.step(X, X[:, 0]), lambda: net.trace(X, X[:, 0])):
        with pytest.raises(ValueError, match="no statistics yet: call fit, or prepare"):
            use()


def test_prepare_learns_statistics_for_training_by_step(X):
    net = gs.Network([gs.Dense(1)], preprocessing="standardize", target_preprocessing="standardize")
    with pytest.raises(ValueError, match="y is needed to standardize targets"):
        net.prepare(X)
    net.prepare(X, X[:, 0])
    assert net.n_in == 4
    first = net.step(X, X[:, 0])
    assert net.step(X, X[:, 0]) < first


def test_targets_far_from_zero_are_learnt_exactly():
    rng = np.random.default_rng(0)
    X = rng.random((200, 2))
    y = 1.6e9 + 20 * (X[:, 0] - X[:, 1])
    net = gs.Network(
        [gs.Dense(1)], target_preprocessing="standardize", optimizer=gs.GradientDescent(0.3), backend="numpy"
    )
    net.fit(X, y, epochs=300, verbose=0)
    result = net.evaluate(X, y)
    assert result["rmse"] < 0.1
    assert result["r2"] > 0.999
    assert net.predict(X).dtype == np.float64
    np.testing.assert_allclose(net.predict(X)[:, 0], y, atol=0.5)


def test_a_column_that_float32_cannot_resolve_is_refused():
    X = np.random.default_rng(0).random((50, 2))
    X[:, 1] += 1.6e9
    y = X[:, 0]
    with pytest.raises(ValueError, match=r"column 1 of X varies by 0\.\d+ around 1.6e\+09, which float32"):
        gs.Network([gs.Dense(1)], preprocessing="standardize", backend="numpy").fit(X, y, verbose=0)
    gs.Network([gs.Dense(1)], preprocessing="standardize", backend="numpy", dtype="float64").fit(
        X, y, verbose=0
    )
    gs.Network([gs.Dense(1)], preprocessing="standardize", backend="numpy").fit(
        X.astype(np.float32), y, epochs=1, verbose=0
    )  # what was lost before is not asked for


@pytest.mark.parametrize("mode", ["standardize", "minmax"])
def test_a_range_that_float32_cannot_hold_is_refused(mode):
    X = np.array([[0.0, -3e38], [1.0, 3e38]], np.float32)
    with pytest.raises(ValueError, match=f"{mode!r} cannot span the values of column 1 of X"):
        gs.Network([gs.Dense(1)], preprocessing=mode, backend="numpy").fit(X, [0, 1], verbose=0)
