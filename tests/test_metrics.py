"""Metrics by name and by function, against scikit-learn's, with and without weights."""

from functools import partial

import numpy as np
import pytest

import gradstep as gs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
WEIGHT = RNG.integers(0, 4, 60).astype(float)
LABELS = RNG.integers(0, 4, 60)
SEVERAL = (RNG.normal(size=(60, 3)) > 0.3).astype(float)
VALUES = RNG.normal(size=(60, 2)) * 3 + 1

WEIGHTS = pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])


@pytest.fixture
def sk():
    return pytest.importorskip("sklearn.metrics")


def network(kind):
    loss, units = {
        "labels": ("cross_entropy", 4),
        "two": ("cross_entropy", 2),
        "binary": ("binary_cross_entropy", 1),
        "several": ("binary_cross_entropy", 3),
        "values": ("mse", 2),
        "value": ("mse", 1),
    }[kind]
    standardize = {"target_preprocessing": "standardize"} if loss == "mse" else {}
    net = gs.Network([gs.Dense(9, "tanh"), gs.Dense(units)], loss=loss, backend="numpy", **standardize)
    y = {
        "labels": LABELS,
        "two": LABELS % 2,
        "binary": LABELS % 2,
        "several": SEVERAL,
        "values": VALUES,
        "value": VALUES[:, 0],
    }[kind]
    net.fit(X, y, epochs=5, verbose=0)
    return net, y


@WEIGHTS
def test_regression_is_as_in_scikit_learn(sk, weight):
    net, y = network("values")
    found = net.evaluate(X, y, weight, metrics=["rmse", "mae", "mape", "r2"])
    p = net.predict(X)
    assert list(found) == ["loss", "rmse", "mae", "mape", "r2"]
    assert found["rmse"] == pytest.approx(np.sqrt(sk.mean_squared_error(y, p, sample_weight=weight)))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, p, sample_weight=weight))
    assert found["mape"] == pytest.approx(sk.mean_absolute_percentage_error(y, p, sample_weight=weight))
    assert found["r2"] == pytest.approx(sk.r2_score(y, p, sample_weight=weight))


@WEIGHTS
@pytest.mark.parametrize("kind", ["labels", "two", "binary"])
def test_classification_is_as_in_scikit_learn(sk, kind, weight):
    net, y = network(kind)
    names = ["accuracy", "balanced_accuracy", "f1", "roc_auc", "log_loss"]
    found = net.evaluate(X, y, weight, metrics=names)
    p = net.predict(X)
    classes = (p[:, 0] > 0.5).astype(int) if kind == "binary" else p.argmax(axis=1)
    options = {"sample_weight": weight}
    assert list(found) == ["loss", *names]
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, classes, **options))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, classes, **options))
    average = "macro" if kind == "labels" else "binary"
    expected = sk.f1_score(y, classes, average=average, zero_division=0, **options)
    assert found["f1"] == pytest.approx(expected)
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p, **options))
    assert found["log_loss"] == pytest.approx(found["loss"], rel=1e-5)
    if kind == "labels":
        truth = np.eye(4)[y]
        expected = np.mean([sk.roc_auc_score(truth[:, k], p[:, k], **options) for k in range(4)])
    else:
        expected = sk.roc_auc_score(y, p[:, -1], **options)
    assert found["roc_auc"] == pytest.approx(expected)


@WEIGHTS
def test_several_outputs_count_one_by_one(sk, weight):
    net, y = network("several")
    found = net.evaluate(X, y, weight, metrics=["accuracy", "balanced_accuracy", "f1", "roc_auc", "log_loss"])
    p = net.predict(X)
    options = {"sample_weight": weight}
    columns = [(y[:, k], p[:, k]) for k in range(3)]

    def mean(function):
        return pytest.approx(np.mean([function(a, b, **options) for a, b in columns]))

    assert found["accuracy"] == mean(lambda a, b, **o: sk.accuracy_score(a, b > 0.5, **o))
    assert found["balanced_accuracy"] == mean(lambda a, b, **o: sk.balanced_accuracy_score(a, b > 0.5, **o))
    assert found["f1"] == mean(lambda a, b, **o: sk.f1_score(a, b > 0.5, zero_division=0, **o))
    assert found["roc_auc"] == mean(sk.roc_auc_score)
    assert found["log_loss"] == pytest.approx(found["loss"], rel=1e-5)


@WEIGHTS
def test_top_k(sk, weight):
    net, y = network("labels")
    found = net.evaluate(X, y, weight, metrics=["top_2_accuracy", ("top_k", 3), "top_4_accuracy"])
    p = net.predict(X)
    for k in (2, 3):
        expected = sk.top_k_accuracy_score(y, p, k=k, sample_weight=weight)
        assert found[f"top_{k}_accuracy"] == pytest.approx(expected)
    assert found["top_4_accuracy"] == 1


def test_what_cannot_be_said_is_nan():
    pytest.importorskip("sklearn")
    net, y = network("labels")
    few = y < 2
    found = net.evaluate(X[few], y[few], metrics=["roc_auc", "balanced_accuracy", "f1", "log_loss"])
    assert np.isnan(found["roc_auc"])
    assert np.isfinite([found["balanced_accuracy"], found["f1"], found["log_loss"]]).all()
    net, y = network("value")
    assert np.isnan(net.evaluate(X, np.ones(60), metrics=["r2"])["r2"])


# --------------------------------------------------------------------------------------------------
# Functions.


@WEIGHTS
@pytest.mark.parametrize("kind", ["labels", "two", "binary", "several", "values", "value"])
def test_scikit_learns_functions_work_as_they_are(sk, kind, weight):
    net, y = network(kind)
    p = net.predict(X)
    if kind.startswith("value"):
        functions = [
            sk.mean_absolute_error,
            sk.r2_score,
            sk.median_absolute_error,
            sk.explained_variance_score,
        ]
        classes = scores = p
    else:
        functions = [sk.accuracy_score, sk.log_loss]
        classes = (p > 0.5).astype(int) if kind in ("binary", "several") else p.argmax(axis=1)
        scores = p[:, -1] if kind in ("two", "binary") else p
        if kind in ("two", "binary"):
            functions += [sk.f1_score, sk.matthews_corrcoef, sk.roc_auc_score, sk.brier_score_loss]
        elif kind == "labels":
            functions += [sk.matthews_corrcoef, partial(sk.f1_score, average="macro", zero_division=0)]
            functions += [partial(sk.roc_auc_score, multi_class="ovr"), sk.top_k_accuracy_score]
        else:
            functions = [sk.accuracy_score, sk.average_precision_score, sk.roc_auc_score, sk.hamming_loss]
    found = net.evaluate(X, y, weight, metrics=functions)
    takers = (
        "log_loss",
        "roc_auc_score",
        "brier_score_loss",
        "average_precision_score",
        "top_k_accuracy_score",
    )
    for function in functions:
        name = getattr(function, "func", function).__name__
        given = scores if name in takers else classes
        assert found[name] == pytest.approx(function(y, given, sample_weight=weight)), name


def test_rows_need_not_have_all_classes(sk):
    net, y = network("labels")
    few = y < 3
    functions = [sk.log_loss, partial(sk.roc_auc_score, multi_class="ovo"), sk.top_k_accuracy_score]
    found = net.evaluate(X[few], y[few], metrics=functions[:1] + functions[2:])
    assert found["log_loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert 0 < found["top_k_accuracy_score"] <= 1


def test_a_function_is_given_one_dimension_for_one_output_and_units_of_y():
    net, y = network("value")

    def worst(y_true, y_pred, sample_weight=None):
        assert y_true.shape == y_pred.shape == (60,)
        np.testing.assert_array_equal(y_true, y)
        return np.abs(y_true - y_pred).max() if sample_weight is None else sample_weight.sum()

    expected = np.abs(y - net.predict(X)[:, 0]).max()
    assert net.evaluate(X, y, metrics=[worst])["worst"] == expected
    assert net.evaluate(X, y, WEIGHT, metrics=[("sum", worst)])["sum"] == WEIGHT.sum()


def test_the_name_of_the_second_parameter_says_what_it_is():
    net, y = network("labels")
    assert net.evaluate(X, y, metrics=[("a", lambda y, y_pred: y_pred.ndim)])["a"] == 1
    assert net.evaluate(X, y, metrics=[("a", lambda y, y_proba: y_proba.shape[1])])["a"] == 4
    net, y = network("binary")
    assert net.evaluate(X, y, metrics=[("a", lambda y, y_score: y_score.ndim)])["a"] == 1


# --------------------------------------------------------------------------------------------------
# In training.


def test_they_appear_in_the_history_for_training_and_validation_rows(backend):
    net = gs.Network([gs.Dense(4)], loss="cross_entropy", backend=backend.name)
    names = []

    class Names(gs.Callback):
        def on_fit_begin(self, state):
            names.append(state.metrics)

    mine = ("mine", lambda y, p, sample_weight=None: (y == p).mean())
    history = net.fit(
        X,
        LABELS,
        epochs=3,
        sample_weight=WEIGHT,
        validation_data=(X[:20], LABELS[:20]),
        metrics=["accuracy", "top_2_accuracy", mine],
        callbacks=[Names()],
        verbose=0,
    )
    keys = ("accuracy", "top_2_accuracy", "mine")
    assert tuple(history) == ("loss", *keys, "val_loss", *(f"val_{key}" for key in keys)) == names[0]
    assert {len(history[name]) for name in history} == {3}
    own = net.evaluate(X, LABELS, WEIGHT, metrics=["accuracy", mine])
    assert history["accuracy"][-1] == own["accuracy"]
    assert history["mine"][-1] == own["mine"]
    validation = net.evaluate(X[:20], LABELS[:20], metrics=["accuracy"])
    assert history["val_accuracy"][-1] == validation["accuracy"]


def test_without_validation_rows_the_training_rows_have_them_and_no_metrics_cost_nothing():
    net, y = network("value")
    assert tuple(net.fit(X, y, epochs=2, metrics=["r2"], verbose=0)) == ("loss", "r2")
    assert tuple(net.fit(X, y, epochs=2, metrics=[], verbose=0)) == ("loss",)
    assert tuple(net.fit(X, y, epochs=2, metrics=[], validation_data=(X, y), verbose=0)) == (
        "loss",
        "val_loss",
    )


def test_watching_metrics_does_not_change_the_training():
    layers = [gs.Dense(5, "tanh"), gs.Dropout(0.5), gs.Dense(4)]
    nets = [gs.Network(layers, loss="cross_entropy", backend="numpy") for _ in "ab"]
    a = nets[0].fit(X, LABELS, epochs=4, metrics=["accuracy"], verbose=0)
    b = nets[1].fit(X, LABELS, epochs=4, verbose=0)
    assert a.loss == b.loss


@pytest.mark.parametrize(
    ("key", "large"),
    [
        ("loss", False),
        ("val_loss", False),
        ("val_accuracy", True),
        ("top_5_accuracy", True),
        ("val_f1", True),
        ("val_roc_auc", True),
        ("r2", True),
        ("val_log_loss", False),
        ("val_mape", False),
        ("val_explained_variance_score", True),
        ("mine", False),
    ],
)
def test_early_stopping_knows_which_way_is_better(key, large):
    class Script(gs.Callback):
        def on_fit_begin(self, state):
            self.values = [1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]

        def on_epoch_end(self, state):
            state.history[name][-1] = self.values[state.epoch - 1]

    net, y = network("value")
    measure = ("mine" if key == "mine" else key.removeprefix("val_"), lambda a, b: 0.0)
    name, metrics = key, [] if key.endswith("loss") and "log" not in key else [measure]
    stopping = gs.EarlyStopping(2, monitor=key)
    options = {"validation_data": (X, y), "metrics": metrics, "verbose": 0}
    net.fit(X, y, epochs=8, callbacks=[Script(), stopping], **options)
    assert (stopping.best, stopping.best_epoch) == ((3.0, 3) if large else (1.0, 1))
    other = gs.EarlyStopping(2, monitor=key, mode="min" if large else "max")
    net.fit(X, y, epochs=8, callbacks=[Script(), other], **options)
    assert (other.best, other.best_epoch) == ((1.0, 1) if large else (3.0, 3))


# --------------------------------------------------------------------------------------------------
# Bad input.


@pytest.mark.parametrize(
    ("kind", "metrics", "error", "words"),
    [
        ("labels", ["acuracy"], ValueError, "unknown metric 'acuracy', did you mean 'accuracy'"),
        ("labels", "accuracy", TypeError, r'metrics must be a list such as \["accuracy"\], got'),
        ("labels", 3, TypeError, "metrics must be a list"),
        ("labels", [3], TypeError, r"metrics must be names or functions \(y_true, y_pred\), got 3"),
        ("labels", [("f", 3)], TypeError, "got 3 for 'f'"),
        ("labels", ["rmse"], ValueError, "metrics: rmse is for regression"),
        ("value", ["f1"], ValueError, "metrics: f1 is for classification"),
        ("binary", ["top_1_accuracy"], ValueError, "metrics: top_1_accuracy is for cross_entropy"),
        ("labels", [("top_k", 2.5)], TypeError, "metrics: the k of top_k must be an integer, got 2.5"),
        ("labels", ["top_k"], ValueError, "metrics: top_k needs its k"),
        ("labels", ["top_5_accuracy"], ValueError, r"a k of 1 to the number of outputs \(4\)"),
        ("labels", ["accuracy", "accuracy"], ValueError, "two are called 'accuracy'"),
        ("labels", [("loss", max)], ValueError, "two are called 'loss'"),
        ("value", [lambda a, b: 1], ValueError, "a function without a name must be given one"),
        ("value", [("f", lambda a, b: a)], TypeError, r"metrics: f must return a number, got array"),
        ("value", [("f", lambda a, b: "x")], TypeError, r"metrics: f must return a number, got 'x'"),
    ],
)
def test_bad_metrics_are_refused_before_anything_changes(kind, metrics, error, words):
    trained, y = network(kind)
    with pytest.raises(error, match=words):
        trained.evaluate(X, y, metrics=metrics)
    net = gs.Network([gs.Dense(trained.n_out)], loss=trained.loss, backend="numpy")
    with pytest.raises(error, match=words):
        net.fit(X, y, epochs=1, metrics=metrics, verbose=0)
    assert net.n_in is None
    assert net.history is None


def test_a_function_that_ignores_weights_is_refused_with_weights():
    net, y = network("value")
    with pytest.raises(TypeError, match="f must have a parameter sample_weight, as the rows have weights"):
        net.evaluate(X, y, WEIGHT, metrics=[("f", lambda a, b: 1.0)])
    with pytest.raises(TypeError, match="metrics: f must have a parameter sample_weight"):
        net.fit(X, y, validation_data=(X, y, WEIGHT), metrics=[("f", lambda a, b: 1.0)], verbose=0)


def test_what_a_function_refuses_is_refused_before_training(sk):
    net, y = network("labels")
    trained = net.epochs_trained
    with pytest.raises(ValueError, match="multiclass"):
        net.fit(X, y, metrics=[sk.f1_score], verbose=0)
    assert net.epochs_trained == trained


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    import sys

    net, y = network("labels")
    for name in [*sys.modules]:
        if name.split(".")[0] == "sklearn":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'metric f1 needs .*: pip install "gradstep\[sklearn\]"'):
        net.evaluate(X, y, metrics=["f1"])
    assert net.evaluate(X, y, metrics=["balanced_accuracy", "log_loss"])["balanced_accuracy"] > 0
