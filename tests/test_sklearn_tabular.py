"""The estimators for tables."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from gradstep.sklearn import TabularClassifier, TabularRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 400


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    size = rng.normal(3, 2, N)
    data = {
        "size": np.where(rng.uniform(size=N) < 0.1, np.nan, size),
        "color": rng.choice(["red", "green", "blue"], N),
        "used": rng.uniform(size=N) < 0.5,
    }
    bonus = np.array([{"red": 4.0, "green": 0.0, "blue": -4.0}[color] for color in data["color"]])
    price = 1000 + 50 * (np.nan_to_num(size) + bonus + 3 * data["used"])
    return pd.DataFrame(data), price


LIBRARIES = {
    "pandas": lambda frame: frame.astype({"color": "category"}),
    "polars": pl.from_pandas,
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_frames_of_every_library_give_the_same_model(table, library):
    frame, price = table
    expected = TabularRegressor(max_iter=40, random_state=0).fit(frame, price)
    native = LIBRARIES[library](frame)
    model = TabularRegressor(max_iter=40, random_state=0).fit(native, price)
    assert list(model.feature_names_in_) == ["size", "color", "used"]
    assert model.n_features_in_ == 3
    np.testing.assert_allclose(model.predict(native), expected.predict(frame))
    assert model.score(native, price) > 0.8


def test_predictions_are_in_the_targets_own_units(table):
    frame, price = table
    model = TabularRegressor(max_iter=60, random_state=0).fit(frame, price)
    assert model.predict(frame).mean() == pytest.approx(price.mean(), rel=0.05)
    assert model.predict(frame).dtype == np.float64
    assert model.target_scale_ > 50


def test_labels_come_back_as_they_were(table):
    frame, price = table
    names = pd.Series(np.where(price > 1150, "dear", "cheap"))
    model = TabularClassifier(random_state=0).fit(frame, names)
    assert list(model.classes_) == ["cheap", "dear"]
    assert set(model.predict(frame)) == {"cheap", "dear"}
    assert model.score(frame, names) > 0.9
    np.testing.assert_allclose(model.predict_proba(frame).sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(frame)), model.predict_proba(frame), rtol=1e-6)


def test_training_stops_early_and_keeps_the_best_epoch(table):
    frame, _ = table
    noise = np.random.default_rng(1).normal(size=N)
    model = TabularRegressor(random_state=0, learning_rate_init=0.01).fit(frame, noise)
    inner = model.model_
    assert model.n_iter_ < 100
    assert inner.best_validation_score_ == max(inner.validation_scores_)
    best = -min(inner.validation_loss_curve_)
    assert 2 * best == pytest.approx(inner.best_validation_score_)


def test_few_rows_are_all_trained_on(table):
    frame, price = table
    model = TabularRegressor(max_iter=5, random_state=0).fit(frame[:50], price[:50])
    assert model.model_.validation_scores_ is None


def test_columns_that_do_not_match_are_named(table):
    frame, price = table
    model = TabularRegressor(max_iter=2).fit(frame, price)
    with pytest.raises(ValueError, match=r"(?s)now missing.*color"):
        model.predict(frame.drop(columns="color"))
    with pytest.raises(ValueError, match=r"(?s)unseen at fit time.*extra"):
        model.predict(frame.assign(extra=1))
    with pytest.raises(ValueError, match="same order"):
        model.predict(frame[["color", "size", "used"]])


def test_missing_values_and_new_categories_are_predicted(table):
    frame, price = table
    model = TabularRegressor(max_iter=20, random_state=0).fit(frame, price)
    odd = pd.DataFrame({"size": [np.nan, 2.0], "color": ["violet", None], "used": [True, False]})
    assert np.isfinite(model.predict(odd)).all()


def test_a_matrix_of_numbers_may_miss_some():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    y = X[:, 0] > 0
    X[::7, 1] = np.nan
    model = TabularClassifier(random_state=0, max_iter=50).fit(X, y)
    assert model.score(X, y) > 0.9
    assert not hasattr(model, "feature_names_in_")


def test_whole_weights_are_repetitions(table):
    frame, price = (part[:60] for part in table)
    weight = np.random.default_rng(0).integers(0, 3, 60)
    repeated = np.repeat(np.arange(60), weight)
    weighted = TabularRegressor(max_iter=20, random_state=0, batch_size=10**6)
    plain = TabularRegressor(max_iter=20, random_state=0, batch_size=10**6)
    with pytest.warns(UserWarning, match="batch_size"):
        weighted.fit(frame, price, sample_weight=weight)
    with pytest.warns(UserWarning, match="batch_size"):
        plain.fit(frame.iloc[repeated], price[repeated])
    np.testing.assert_allclose(weighted.predict(frame), plain.predict(frame), rtol=1e-4)


def test_a_failed_fit_keeps_the_model(table):
    frame, price = table
    model = TabularRegressor(max_iter=3, random_state=0).fit(frame, price)
    before = model.predict(frame)
    with pytest.raises(ValueError, match="y"):
        model.fit(frame[["size"]], np.full(N, np.nan))
    np.testing.assert_array_equal(model.predict(frame), before)
    with pytest.raises(ValueError, match="validation_fraction must be less than 1"):
        model.set_params(validation_fraction=1.5).fit(frame, price)
