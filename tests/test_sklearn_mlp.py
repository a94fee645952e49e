"""What the perceptrons do by themselves: errors, weights, sparse rows, additions to scikit-learn's."""

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline

import gradstep as gs
from gradstep.backends import available
from gradstep.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:500] / 16, y[:500]


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X / X.std(axis=0), (y - y.mean()) / y.std()


def test_importing_gradstep_does_not_import_scikit_learn():
    code = "import sys, gradstep; sys.exit('sklearn' in sys.modules or 'scipy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": -1}, "alpha must be at least 0, got -1"),
        ({"hidden_layer_sizes": (10, 0)}, "hidden_layer_sizes must be at least 1, got 0"),
        ({"solver": "adagrad"}, "unknown solver 'adagrad'"),
        ({"activation": "rleu"}, "unknown activation 'rleu', did you mean 'relu'"),
        ({"activation": ["relu", "tanh"]}, r"one for each of the 1 hidden layer\(s\), got 2"),
        ({"learning_rate": "cosine"}, "unknown learning_rate 'cosine'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"momentum": 1.5}, "momentum must be at most 1"),
        ({"validation_fraction": 1.0}, "validation_fraction must be less than 1"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be at least 1"),
        ({"tol": -1e-3}, "tol must be at least 0"),
        ({"time_budget": 0}, "time_budget must be greater than 0"),
        ({"n_jobs": 0}, "n_jobs must be at least 1"),
        ({"backend": "gpu"}, "unknown backend 'gpu'"),
        ({"learning_rate": lambda update: -1.0}, "learning_rate must return positive numbers, got -1.0"),
        (
            {"learning_rate": gs.schedules.Cosine(), "solver": "lbfgs"},
            "learning_rate is a schedule, which needs",
        ),
    ],
)
def test_bad_parameters_are_one_sentence_and_change_nothing(digits, parameters, message):
    model = MLPClassifier((10,), max_iter=2, random_state=0).fit(*digits)
    before = pickle.dumps(vars(model))
    model.set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        model.fit(*digits)
    model.set_params(**clone(MLPClassifier((10,), max_iter=2, random_state=0)).get_params())
    assert pickle.dumps(vars(model)) == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": "much"}, "alpha must be a number, got 'much'"),
        ({"shuffle": 1}, "shuffle must be True or False"),
        ({"callbacks": [3]}, "callbacks must be functions of the estimator, got 3"),
    ],
)
def test_parameters_of_other_types_are_errors(digits, parameters, message):
    with pytest.raises(TypeError, match=message):
        MLPClassifier(**parameters).fit(*digits)


def test_predicting_before_fitting_is_an_error(digits):
    with pytest.raises(NotFittedError):
        MLPClassifier().predict(digits[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_floats_keep_their_dtype(diabetes, dtype, solver):
    X, y = diabetes
    model = MLPRegressor(hidden_layer_sizes=(5,), solver=solver, max_iter=2).fit(X.astype(dtype), y)
    assert {values.dtype.type for values in model.coefs_ + model.intercepts_} == {dtype}
    assert model.predict(X.astype(dtype)).dtype == dtype
    assert (
        MLPRegressor(hidden_layer_sizes=(5,), max_iter=2).fit((10 * X).astype(int), y).coefs_[0].dtype
        == np.float64
    )


def test_changed_coefficients_change_the_predictions(diabetes):
    X, y = diabetes
    model = MLPRegressor(hidden_layer_sizes=(5,), max_iter=2, random_state=0).fit(X, y)
    first = model.predict(X)
    model.intercepts_[-1] += 1.0
    np.testing.assert_allclose(model.predict(X), first + 1.0)
    model.coefs_[-1] = np.zeros_like(model.coefs_[-1])
    np.testing.assert_allclose(model.predict(X), np.full(len(X), model.intercepts_[-1][0]))


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_whole_weights_are_repetitions(diabetes, solver):
    X, y = (part[:120] for part in diabetes)
    weight = np.random.default_rng(0).integers(0, 4, len(y))
    parameters = {"solver": solver, "max_iter": 30, "random_state": 0, "batch_size": 10**6, "tol": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        weighted = MLPRegressor(hidden_layer_sizes=(8,), **parameters).fit(X, y, sample_weight=weight)
        repeated = MLPRegressor(hidden_layer_sizes=(8,), **parameters).fit(
            np.repeat(X, weight, axis=0), np.repeat(y, weight)
        )
    rtol = 1e-3 if solver == "lbfgs" else 1e-7
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=rtol, atol=rtol)


def test_balanced_classes_equal_the_weights_they_stand_for(digits):
    X, y = digits
    y = (y == 3).astype(int)
    weight = len(y) / (2 * np.bincount(y))[y]
    balanced = MLPClassifier((8,), max_iter=5, random_state=0, class_weight="balanced").fit(X, y)
    weighted = MLPClassifier((8,), max_iter=5, random_state=0).fit(X, y, sample_weight=weight)
    named = MLPClassifier(
        (8,), max_iter=5, random_state=0, class_weight=dict(enumerate(len(y) / (2 * np.bincount(y))))
    )
    np.testing.assert_array_equal(balanced.predict_proba(X), weighted.predict_proba(X))
    np.testing.assert_array_equal(balanced.predict_proba(X), named.fit(X, y).predict_proba(X))
    plain = MLPClassifier((8,), max_iter=5, random_state=0).fit(X, y)
    assert balanced.predict_proba(X)[:, 1].mean() > 1.5 * plain.predict_proba(X)[:, 1].mean()


@pytest.mark.parametrize("weight", [0.0, np.zeros(500), -np.ones(500), np.ones(499), np.ones((500, 1))])
def test_bad_weights_are_errors(digits, weight):
    with pytest.raises(ValueError, match="sample_weight"):
        MLPClassifier(max_iter=1).fit(*digits, sample_weight=weight)


@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csc_array, scipy.sparse.csr_array])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_sparse_rows_train_as_dense_ones(digits, kind, solver, monkeypatch):
    monkeypatch.setattr("gradstep.sklearn.rows.BLOCK_BYTES", 64 * 8 * 230)  # blocks of 230 rows
    X, y = digits
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    dense = MLPClassifier((20,), solver=solver, max_iter=5, random_state=0).fit(X, y, weight)
    sparse = MLPClassifier((20,), solver=solver, max_iter=5, random_state=0).fit(kind(X), y, weight)
    assert sparse.loss_ == pytest.approx(dense.loss_, rel=1e-6)
    np.testing.assert_allclose(sparse.predict_proba(kind(X)), dense.predict_proba(X), rtol=1e-5, atol=1e-8)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.skipif(available()["cpp"] is not None, reason="needs the compiled backend")
def test_a_wide_sparse_matrix_is_never_dense_whole():
    code = """
import re, warnings
import numpy as np, scipy.sparse
from gradstep.sklearn import MLPClassifier
warnings.simplefilter("ignore")
X = scipy.sparse.random_array((20_000, 50_000), density=0.001, format="csr", rng=np.random.default_rng(0))
y = np.arange(20_000) % 2
MLPClassifier(max_iter=1, random_state=0).fit(X, y).predict(X[:2000])
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 500


@pytest.mark.parametrize("batch_size", [40, 300])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_wide_sparse_rows_train_as_dense_ones(solver, batch_size):
    rng = np.random.default_rng(0)
    X = scipy.sparse.random_array((300, 3000), density=0.01, format="csr", rng=rng)
    y = (X.sum(axis=1) > 15).astype(int)
    parameters = {"hidden_layer_sizes": (60, 20), "solver": solver, "max_iter": 4, "random_state": 0}
    if solver == "adam":
        parameters |= {"dropout": 0.2, "batch_size": batch_size}
    models = [MLPClassifier(**parameters).fit(rows, y, rng.uniform(1, 1, 300)) for rows in (X, X.toarray())]
    assert models[0].loss_ == pytest.approx(models[1].loss_, rel=1e-9)
    for sparse, dense in zip(models[0].coefs_, models[1].coefs_, strict=True):
        np.testing.assert_allclose(sparse, dense, rtol=1e-6, atol=1e-9)
    one = MLPClassifier(**parameters, n_jobs=1).fit(X, y)
    if solver == "adam":
        # Elsewhere a BLAS multiplies, whose sums depend on its number of threads.
        tolerance = 0 if available()["cpp"] is None else 1e-9
        np.testing.assert_allclose(one.coefs_[0], models[0].coefs_[0], rtol=tolerance, atol=tolerance)


def test_early_stopping_keeps_the_best_epoch(digits):
    X, y = digits
    model = MLPClassifier(
        (30,), max_iter=200, early_stopping=True, learning_rate_init=0.02, random_state=1, n_iter_no_change=5
    ).fit(X, y)
    assert model.n_iter_ < 200
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert len(model.validation_scores_) == model.n_iter_


def test_rows_to_validate_on_have_their_own_curve(digits):
    X, y = digits
    weight = np.linspace(0.5, 2, 100)
    model = MLPClassifier((20,), max_iter=6, random_state=0)
    model.fit(X[:400], y[:400], X_val=X[400:], y_val=y[400:], sample_weight_val=weight)
    p = model.predict_proba(X[400:])
    last = -np.average(np.log(p[np.arange(100), y[400:]]), weights=weight)
    assert model.validation_loss_curve_[-1] == pytest.approx(last)
    assert len(model.validation_loss_curve_) == 6
    plain = MLPClassifier((20,), max_iter=6, random_state=0).fit(X[:400], y[:400])
    np.testing.assert_array_equal(plain.loss_curve_, model.loss_curve_)
    stopped = MLPClassifier((20,), random_state=0, early_stopping=True)
    stopped.fit(X[:400], y[:400], X_val=X[400:], y_val=y[400:])
    assert stopped.best_validation_score_ == stopped.score(X[400:], y[400:])
    with pytest.raises(ValueError, match="X_val and y_val must both be given"):
        model.fit(X, y, X_val=X)


@pytest.mark.parametrize("loss", ["mae", "huber", "quantile", gs.Huber(0.5), gs.Quantile(0.9)])
def test_other_losses_lower_themselves(diabetes, loss):
    X, y = diabetes
    model = MLPRegressor(loss, (20,), max_iter=60, random_state=0).fit(X, y)
    assert model.loss_ < 0.8 * model.loss_curve_[0]
    if isinstance(loss, gs.Quantile):
        assert 0.8 < np.mean(y < model.predict(X)) < 0.97


def test_several_quantiles_of_one_target(diabetes):
    X, y = diabetes
    model = MLPRegressor(gs.Quantile([0.1, 0.5, 0.9]), (30,), max_iter=200, random_state=0).fit(X, y)
    low, middle, high = model.predict(X).T
    assert np.mean(y < low) == pytest.approx(0.1, abs=0.07)
    assert np.mean(y < middle) == pytest.approx(0.5, abs=0.12)
    assert np.mean(y < high) == pytest.approx(0.9, abs=0.07)
    assert 0 < model.score(X, y) < 1
    with pytest.raises(ValueError, match="loss has 3 values for the outputs, but y has 2 columns"):
        model.fit(X, np.column_stack([y, y]))


def test_poisson_needs_counts(diabetes):
    with pytest.raises(ValueError, match="y must not be negative for the loss 'poisson'"):
        MLPRegressor("poisson").fit(*diabetes)


def test_each_layer_may_have_its_own_activation(diabetes):
    X, y = diabetes
    model = MLPRegressor(hidden_layer_sizes=(8, 6), activation=["gelu", "tanh"], max_iter=3).fit(X, y)
    hidden = X @ model.coefs_[0] + model.intercepts_[0]
    from scipy.special import ndtr

    hidden = np.tanh((hidden * ndtr(hidden)) @ model.coefs_[1] + model.intercepts_[1])
    expected = hidden @ model.coefs_[2] + model.intercepts_[2]
    np.testing.assert_allclose(model.predict(X), expected.ravel(), rtol=1e-9, atol=1e-12)


def test_dropout_regularises_and_spares_predictions(digits):
    X, y = digits
    parameters = {"hidden_layer_sizes": (60,), "max_iter": 30, "random_state": 0, "learning_rate_init": 0.01}
    plain, none = (MLPClassifier(**parameters, dropout=rate).fit(X, y) for rate in (0.0, [0.0]))
    np.testing.assert_array_equal(plain.loss_curve_, none.loss_curve_)
    dropped = MLPClassifier(**parameters, dropout=0.5).fit(X, y)
    assert dropped.loss_ > 1.1 * plain.loss_
    np.testing.assert_array_equal(dropped.predict_proba(X), dropped.predict_proba(X))
    assert dropped.score(X, y) > 0.9
    again = MLPClassifier(**parameters, dropout=[0.5]).fit(X, y)
    np.testing.assert_array_equal(again.loss_curve_, dropped.loss_curve_)
    with pytest.raises(ValueError, match="dropout must be less than 1"):
        MLPClassifier(dropout=1.0).fit(X, y)
    with pytest.raises(ValueError, match="dropout needs the solver adam or sgd"):
        MLPClassifier(dropout=0.5, solver="lbfgs").fit(X, y)


def test_functions_are_called_after_every_epoch_and_may_stop(digits):
    seen = []

    def watch(model):
        seen.append((model.n_iter_, model.score(*digits)))
        return model.n_iter_ == 3

    model = MLPClassifier((10,), random_state=0, callbacks=[watch]).fit(*digits)
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert seen[-1][1] == model.score(*digits)
    assert model.n_iter_ == 3


def test_a_schedule_gives_factors_of_the_learning_rate(digits):
    parameters = {"hidden_layer_sizes": (10,), "max_iter": 6, "random_state": 0}
    for solver in ("sgd", "adam"):
        constant = MLPClassifier(**parameters, solver=solver, learning_rate_init=0.05).fit(*digits)
        doubled = MLPClassifier(
            **parameters, solver=solver, learning_rate=lambda update: 2.0, learning_rate_init=0.025
        ).fit(*digits)
        np.testing.assert_array_equal(doubled.loss_curve_, constant.loss_curve_)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_a_schedule_does_to_every_update_what_it_does_in_a_network(diabetes, solver):
    X, y = diabetes
    schedule = gs.schedules.LinearWarmup(5, gs.schedules.Cosine())
    model = MLPRegressor(
        "mae", (10,), solver=solver, momentum=0.0, alpha=0.0, batch_size=50, shuffle=False, max_iter=4,
        learning_rate=schedule, learning_rate_init=0.02, random_state=0, epsilon=1e-12,
    )  # fmt: skip
    start = MLPRegressor("mae", (10,), max_iter=1, random_state=0, learning_rate_init=1e-300).fit(X, y)
    optimizer = gs.SGD(0.02) if solver == "sgd" else gs.Adam(0.02, epsilon=1e-12)
    net = gs.Network([gs.Dense(10, "relu"), gs.Dense(1)], loss="mae", optimizer=optimizer, dtype="float64")
    net.fit(X, y, epochs=1, schedule=lambda step: 1e-300, verbose=0)  # learns the shapes
    for i, (W, b) in enumerate(zip(start.coefs_, start.intercepts_, strict=True)):
        net.set_parameters({f"dense_{i}.W": W, f"dense_{i}.b": b})
    net.set_optimizer_state({name: np.zeros_like(v) for name, v in net.optimizer_state().items()})
    history = net.fit(X, y, epochs=4, batch_size=50, shuffle=False, schedule=schedule, verbose=0)
    np.testing.assert_allclose(model.fit(X, y).loss_curve_, history.loss, rtol=1e-6)


def test_partial_fit_goes_on_with_the_schedule(digits):
    X, y = digits
    seen = []

    def schedule(update):
        seen.append(update)
        return 1.0

    model = MLPClassifier((10,), batch_size=250, learning_rate=schedule)
    for _ in range(3):
        model.partial_fit(X, y, classes=np.arange(10))
    assert seen == [0, 1, 2, 3, 4, 5]


def test_sparse_blocks_have_the_rates_of_their_updates(digits, monkeypatch):
    monkeypatch.setattr("gradstep.sklearn.rows.BLOCK_BYTES", 64 * 8 * 100)
    X, y = digits
    models = [
        MLPClassifier(
            (10,), batch_size=30, max_iter=3, random_state=0, learning_rate=gs.schedules.Cosine(),
            backend="numpy",
        ).fit(rows, y)
        for rows in (X, scipy.sparse.csr_array(X))
    ]  # fmt: skip
    np.testing.assert_allclose(models[1].loss_curve_, models[0].loss_curve_, rtol=1e-9)


def test_lbfgs_tells_and_asks_after_every_iteration(digits):
    X, y = digits
    seen = []

    def watch(model):
        seen.append((model.n_iter_, model.loss_, model.score(X, y)))
        return model.n_iter_ == 4

    model = MLPClassifier((10,), solver="lbfgs", random_state=0, callbacks=watch)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # to be stopped is no failure to converge
        model.fit(X, y, X_val=X[:100], y_val=y[:100])
    assert [iteration for iteration, *_ in seen] == [1, 2, 3, 4]
    assert seen[-1][1:] == (model.loss_, model.score(X, y))
    p = model.predict_proba(X[:100])
    assert len(model.validation_loss_curve_) == model.n_iter_ == 4
    assert model.validation_loss_curve_[-1] == pytest.approx(-np.log(p[np.arange(100), y[:100]]).mean())
    late = MLPClassifier((10,), solver="lbfgs", random_state=0, time_budget=1e-9).fit(X, y)
    assert late.n_iter_ == 1
    assert not hasattr(model.fit(X, y), "validation_loss_curve_")


@pytest.mark.parametrize("kind", ["object", "text", "int", "float", "bool"])
def test_labels_of_any_type_come_back(digits, kind):
    X, y = digits[0], digits[1] % (2 if kind == "bool" else 3)
    convert = {
        "object": lambda y: y.astype(str).astype(object),
        "text": lambda y: y.astype("U5"),
        "int": lambda y: 10 * y - 7,
        "float": lambda y: y.astype(float),
        "bool": lambda y: y.astype(bool),
    }[kind]
    plain = MLPClassifier((10,), max_iter=3, random_state=0).fit(X, y)
    named = MLPClassifier((10,), max_iter=3, random_state=0).fit(X, convert(y))
    assert named.classes_.dtype == convert(y).dtype
    np.testing.assert_array_equal(named.predict(X), convert(plain.predict(X)))
    some = y < y.max()
    with pytest.raises(ValueError, match="y holds classes that training did not"):
        named.fit(X[some], convert(y[some]), X_val=X, y_val=convert(y))


def test_a_time_budget_ends_training(digits):
    model = MLPClassifier((10,), max_iter=10**6, time_budget=0.05, tol=0.0, n_iter_no_change=10**6).fit(
        *digits
    )
    assert 1 <= model.n_iter_ < 10**6


def test_a_diverging_fit_leaves_what_was_there(diabetes):
    X, y = diabetes
    model = MLPRegressor(hidden_layer_sizes=(10,), max_iter=3, random_state=0).fit(X, y)
    before = model.predict(X)
    model.set_params(solver="sgd", learning_rate_init=1e6)
    with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
        model.fit(X, y)
    np.testing.assert_array_equal(model.predict(X), before)


def test_threads_are_set_for_the_fit_alone(digits):
    before = gs.get_num_threads()
    seen = []
    MLPClassifier((10,), max_iter=2, n_jobs=1, callbacks=lambda model: seen.append(gs.get_num_threads())).fit(
        *digits
    )
    assert seen == [1, 1]
    assert gs.get_num_threads() == before


def test_verbose_prints_what_scikit_learn_prints(digits, capsys):
    MLPClassifier((10,), max_iter=2, random_state=0, verbose=True, early_stopping=True).fit(*digits)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Iteration 1, loss = ")
    assert lines[1].startswith("Validation score: ")


def test_not_converging_is_a_warning(digits):
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        MLPClassifier((10,), max_iter=2).fit(*digits)
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge"):
        MLPClassifier((10,), max_iter=2, solver="lbfgs").fit(*digits)


def test_partial_fit_needs_the_classes_and_a_stochastic_solver(digits):
    X, y = digits
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        MLPClassifier().partial_fit(X, y)
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")
    model = MLPClassifier((10,)).partial_fit(X, y, classes=np.arange(11))
    assert model.predict_proba(X).shape == (500, 11)
    with pytest.raises(ValueError, match="not the same as on last call"):
        model.partial_fit(X, y, classes=np.arange(3))
    with pytest.raises(ValueError, match="class_weight 'balanced' needs all rows"):
        MLPClassifier(class_weight="balanced").partial_fit(X, y, classes=np.arange(10))
    with pytest.raises(ValueError, match="early_stopping"):
        MLPClassifier(early_stopping=True).partial_fit(X, y, classes=np.arange(10))


def test_a_pickle_goes_on_training_as_the_original(digits):
    X, y = digits
    model = MLPClassifier((10,), random_state=0).partial_fit(X, y, classes=np.arange(10))
    twin = pickle.loads(pickle.dumps(model))
    for _ in range(3):
        model.partial_fit(X, y)
        twin.partial_fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), twin.predict_proba(X))


def test_no_hidden_layer_is_logistic_regression():
    X, y = make_classification(200, 5, random_state=0)
    model = MLPClassifier((), max_iter=100, learning_rate_init=0.02, random_state=0).fit(X, y)
    assert [W.shape for W in model.coefs_] == [(5, 1)]
    assert model.score(X, y) > 0.8


def test_the_same_bits_for_any_number_of_threads(digits):
    curves = [
        MLPClassifier((64, 64), max_iter=3, random_state=0, n_jobs=n_jobs).fit(*digits).loss_curve_
        for n_jobs in (1, 2)
    ]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("solver", "method", "wrap", "count"),
    [
        ("adam", "fit", None, 2),
        ("adam", "fit", make_pipeline, 2),
        ("adam", "partial_fit", None, 1),
        ("lbfgs", "fit", None, 1),
    ],
)
def test_warnings_point_at_the_line_that_called(diabetes, solver, method, wrap, count):
    model = MLPRegressor(hidden_layer_sizes=(5,), solver=solver, max_iter=2, batch_size=10**6)
    model = model if wrap is None else wrap(model)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        getattr(model, method)(*diabetes)
    assert [warning.filename for warning in found] == [__file__] * count


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_normalization_trains_predicts_and_is_kept(digits, kind, tmp_path):
    X, y = digits
    model = MLPClassifier((40, 30), max_iter=15, normalization=kind, learning_rate_init=0.02, random_state=0)
    model.fit(X, y)
    assert model.score(X, y) > 0.95
    names = {"gain", "shift", *(("mean", "variance") if kind == "batch" else ())}
    assert [own.keys() for own in model.normalizations_] == [names, names]
    assert [own["gain"].shape for own in model.normalizations_] == [(40,), (30,)]
    network = model.to_network()
    np.testing.assert_allclose(network.predict(X), model.predict_proba(X), rtol=1e-9)
    model.save(tmp_path / "model.safetensors")
    loaded = MLPClassifier.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))


def test_normalization_goes_on_where_it_was_and_only_there(digits):
    X, y = digits
    parameters = {"hidden_layer_sizes": (20,), "normalization": "batch", "random_state": 0, "shuffle": False}
    whole = MLPClassifier(max_iter=4, **parameters).fit(X, y)
    part = MLPClassifier(max_iter=1, **parameters)
    for _ in range(4):
        part.partial_fit(X, y, classes=np.unique(y))
    np.testing.assert_allclose(part.predict_proba(X), whole.predict_proba(X), rtol=1e-9)
    with pytest.raises(ValueError, match="go on with the normalization of before"):
        part.set_params(normalization="layer").partial_fit(X, y)


def test_normalization_takes_sparse_rows_and_early_stopping(digits):
    X, y = digits
    parameters = {"normalization": "batch", "early_stopping": True, "max_iter": 8, "random_state": 0}
    parameters |= {"batch_size": 32, "learning_rate_init": 0.01}
    dense = MLPClassifier((20,), **parameters).fit(X, y)
    sparse = MLPClassifier((20,), **parameters).fit(scipy.sparse.csr_array(X), y)
    np.testing.assert_allclose(sparse.predict_proba(X), dense.predict_proba(X), rtol=1e-7)
    assert dense.best_validation_score_ > 0.6


def test_unknown_normalization_and_lbfgs_are_errors(digits):
    X, y = digits
    with pytest.raises(ValueError, match="unknown normalization"):
        MLPClassifier(normalization="group").fit(X, y)
    with pytest.raises(ValueError, match="normalization='batch' needs batches of at least 2 rows"):
        MLPClassifier(normalization="batch", batch_size=1).fit(X, y)
    with pytest.raises(ValueError, match="normalization='batch' needs batches of at least 2 rows"):
        MLPClassifier(normalization="batch").partial_fit(X[:1], y[:1], classes=np.unique(y))
    with pytest.raises(ValueError, match="normalization needs the solver adam or sgd"):
        MLPClassifier(normalization="layer", solver="lbfgs").fit(X, y)


def test_a_normalized_regressor_learns(diabetes):
    X, y = diabetes
    model = MLPRegressor(hidden_layer_sizes=(30,), normalization="layer", max_iter=60, random_state=0).fit(
        X, y
    )
    assert model.score(X, y) > 0.5
    np.testing.assert_allclose(model.to_network().predict(X)[:, 0], model.predict(X), rtol=1e-8)
