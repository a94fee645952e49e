"""Estimators in files, and as networks."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError

import gradstep as gs
from gradstep.sklearn import MLPClassifier, MLPRegressor, TabularClassifier, TabularRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def iris(names=None):
    X, y = load_iris(return_X_y=True)
    return X, y if names is None else np.array(names)[y]


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return pd.DataFrame(X, columns=[f"c{i}" for i in range(10)]).assign(
        sex=lambda f: np.where(f.c1 > 0, "f", "m")
    ), y


CASES = {
    "labels": lambda: (MLPClassifier((8,), max_iter=20, random_state=0), *iris()),
    "names": lambda: (MLPClassifier((8,), max_iter=20, early_stopping=True), *iris(["a", "b", "c"])),
    "two": lambda: (MLPClassifier((8,), max_iter=20), iris()[0], iris()[1] > 0),
    "float32": lambda: (
        MLPRegressor(gs.Huber(2.0), (8,), max_iter=5),
        iris()[0].astype(np.float32),
        iris()[1],
    ),
    "lbfgs": lambda: (MLPRegressor(hidden_layer_sizes=8, solver="lbfgs", max_iter=5), *iris()),
    "tabular classifier": lambda: (
        TabularClassifier((8,), max_iter=20, n_iter_no_change=3),
        *iris(["a", "b", "c"]),
    ),
    "tabular regressor": lambda: (TabularRegressor(hidden_layer_sizes=[8], max_iter=5), *diabetes()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_keeps_the_estimator(case, tmp_path):
    model, X, y = CASES[case]()
    model.fit(X, y).save(tmp_path / "model.safetensors")
    copy = type(model).load(tmp_path / "model.safetensors")
    assert type(copy) is type(model)
    assert copy.get_params() == model.get_params()
    np.testing.assert_array_equal(copy.predict(X), model.predict(X))
    assert vars(copy).keys() == vars(model).keys()
    if hasattr(model, "predict_proba"):
        np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
        assert copy.classes_.tolist() == model.classes_.tolist()


def test_training_goes_on_from_a_file(tmp_path):
    X, y = iris()
    model = MLPClassifier((8,), random_state=0).partial_fit(X, y, classes=[0, 1, 2])
    model.save(tmp_path / "model.safetensors")
    copy = MLPClassifier.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(copy.partial_fit(X, y).coefs_[0], model.partial_fit(X, y).coefs_[0])


@pytest.mark.parametrize("name", gs.schedules.SCHEDULE_CLASSES)
def test_a_schedule_is_kept_in_the_file(tmp_path, name):
    inner = gs.schedules.SCHEDULE_CLASSES[name]
    schedule = gs.LinearWarmup(10, inner(7) if name != "LinearWarmup" else gs.Cosine(final=0.1))
    MLPClassifier(learning_rate=schedule).save(tmp_path / "model.safetensors")
    assert MLPClassifier.load(tmp_path / "model.safetensors").learning_rate == schedule


@pytest.mark.parametrize("case", CASES)
def test_networks_predict_as_their_estimators(case, tmp_path):
    model, X, y = CASES[case]()
    model.fit(X, y).export(tmp_path / "net.safetensors")
    net = gs.load(tmp_path / "net.safetensors")
    outputs = net.predict(model.encoder_.transform(X) if case == "tabular classifier" else X)
    if hasattr(model, "predict_proba"):
        p = model.predict_proba(X)
        np.testing.assert_allclose(outputs, p[:, 1:] if p.shape[1] == 2 else p, rtol=1e-5, atol=1e-7)
        assert net.classes == [str(label) for label in model.classes_.tolist()]
    else:
        np.testing.assert_allclose(outputs.ravel(), model.predict(X), rtol=1e-5)


def test_files_that_hold_something_else_are_errors(tmp_path):
    X, y = iris()
    path = tmp_path / "model.safetensors"
    model = MLPClassifier((4,), max_iter=2).fit(X, y)
    model.save(path)
    with pytest.raises(ValueError, match="holds a MLPClassifier, not a MLPRegressor"):
        MLPRegressor.load(path)
    with pytest.raises(ValueError, match="lacks 'network' in its metadata: an estimator is in it"):
        gs.load(path)
    model.export(path)
    with pytest.raises(ValueError, match="holds a network, not an estimator"):
        MLPClassifier.load(path)
    with pytest.raises(ValueError, match=r"path must end in .safetensors"):
        model.export(tmp_path / "model.h5")
    with pytest.raises(TypeError, match="the parameter callbacks cannot be saved"):
        MLPClassifier(callbacks=print).save(path)
    with pytest.raises(NotFittedError):
        MLPClassifier().export(path)
