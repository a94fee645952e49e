"""Networks from scikit-learn's perceptrons have their predictions."""

import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

import gradstep as gs

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, size=(80, 4))


def fitted(estimator, y, rows=X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(rows, y)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_predict_is_that_of_the_regressor(activation, outputs):
    y = X[:, :outputs].squeeze() * 3
    regressor = fitted(
        MLPRegressor(hidden_layer_sizes=(7, 5), activation=activation, max_iter=5, random_state=0), y
    )
    net = gs.from_sklearn(regressor)
    np.testing.assert_allclose(net.predict(X).squeeze(), regressor.predict(X), rtol=1e-12, atol=1e-12)


def test_predict_is_that_of_the_regressor_of_counts():
    try:
        regressor = MLPRegressor(hidden_layer_sizes=(5,), loss="poisson", max_iter=5, random_state=0)
    except TypeError:
        pytest.skip("scikit-learn knows it since version 1.7")
    fitted(regressor, RNG.poisson(3, 80))
    net = gs.from_sklearn(regressor)
    assert net.loss.name == "poisson"
    np.testing.assert_allclose(net.predict(X).squeeze(), regressor.predict(X), rtol=1e-12)


@pytest.mark.parametrize(
    "y",
    [
        np.array(["no", "yes"])[RNG.integers(0, 2, 80)],
        np.array(["a", "b", "c"])[RNG.integers(0, 3, 80)],
        RNG.integers(0, 2, (80, 3)),
    ],
    ids=["two classes", "three classes", "several labels"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predict_is_predict_proba_of_the_classifier(y, dtype):
    rows = X.astype(dtype)
    classifier = fitted(MLPClassifier(hidden_layer_sizes=(6,), max_iter=5, random_state=0), y, rows)
    net = gs.from_sklearn(classifier)
    expected = classifier.predict_proba(rows)
    assert net.dtype == dtype
    assert net.classes == [str(name) for name in classifier.classes_]
    assert net.predict(rows).shape == expected.shape
    np.testing.assert_allclose(net.predict(rows), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "scalers",
    [
        [StandardScaler()],
        [MinMaxScaler((-1, 1))],
        [StandardScaler(with_mean=False), MinMaxScaler(), "passthrough"],
        [StandardScaler(with_std=False)],
    ],
)
def test_scalers_in_front_become_the_preprocessing(scalers):
    pipeline = make_pipeline(*scalers, MLPRegressor(hidden_layer_sizes=(5,), max_iter=5, random_state=0))
    fitted(pipeline, X[:, 0])
    net = gs.from_sklearn(pipeline)
    np.testing.assert_allclose(net.predict(X).squeeze(), pipeline.predict(X), rtol=1e-10)


def test_estimators_fitted_with_names_of_columns_need_no_names():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcd"))
    regressor = fitted(MLPRegressor(hidden_layer_sizes=(5,), max_iter=2, random_state=0), X[:, 0], frame)
    np.testing.assert_allclose(gs.from_sklearn(regressor).predict(X)[:, 0], regressor.predict(frame))


def test_training_goes_on_with_the_optimizer_given():
    regressor = fitted(MLPRegressor(hidden_layer_sizes=(5,), max_iter=2, random_state=0), X[:, 0])
    net = gs.from_sklearn(regressor, optimizer=gs.SGD(0.01), seed=4, backend="numpy")
    assert (net.optimizer, net.seed, net.backend) == (gs.SGD(0.01), 4, "numpy")
    history = net.fit(X, X[:, 0], epochs=20, verbose=0)
    assert history.loss[-1] < history.loss[0]


def test_a_network_that_computes_something_else_is_an_error():
    regressor = fitted(MLPRegressor(hidden_layer_sizes=(5,), max_iter=2, random_state=0), X[:, 0])
    regressor.activation = "tanh"
    good = gs.from_sklearn(regressor)
    regressor.predict = lambda rows: good.predict(rows) + 0.01
    with pytest.raises(ArithmeticError, match="the estimator does not agree with predict: output 0 of"):
        gs.from_sklearn(regressor)


def test_what_is_no_fitted_perceptron_is_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match="estimator must be fitted, but this MLPRegressor is not"):
        gs.from_sklearn(MLPRegressor())
    with pytest.raises(TypeError, match="must be an MLPClassifier or MLPRegressor of scikit-learn, or a Pip"):
        gs.from_sklearn(LinearRegression())
    with pytest.raises(TypeError, match=r"the Pipeline has the step RobustScaler\(\), but only"):
        gs.from_sklearn(
            fitted(make_pipeline(RobustScaler(), MLPRegressor(hidden_layer_sizes=(2,), max_iter=2)), X[:, 0])
        )
    with pytest.raises(TypeError, match=r"the Pipeline has the step MinMaxScaler\(clip=True\), but only"):
        gs.from_sklearn(
            fitted(
                make_pipeline(MinMaxScaler(clip=True), MLPRegressor(hidden_layer_sizes=(2,), max_iter=2)),
                X[:, 0],
            )
        )
    from gradstep.sklearn import MLPRegressor as Own

    with pytest.raises(TypeError, match=r"got MLPRegressor; its to_network\(\) makes a network"):
        gs.from_sklearn(Own())
    with pytest.raises(TypeError, match="makes a network, without the steps before it"):
        gs.from_sklearn(make_pipeline(MinMaxScaler(), Own()))
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    with pytest.raises(ModuleNotFoundError, match=r'scikit-learn: pip install "gradstep\[sklearn\]"'):
        gs.from_sklearn(None)
