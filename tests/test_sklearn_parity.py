"""The same random_state gives the same model as scikit-learn's own perceptrons."""

import inspect
import warnings

import numpy as np
import pytest
from sklearn import neural_network
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler, scale

from gradstep.sklearn import MLPClassifier, MLPRegressor

SOLVERS = {
    "sgd": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.02},
    "momentum": {"solver": "sgd", "momentum": 0.9, "nesterovs_momentum": False, "learning_rate_init": 0.01},
    "nesterov": {"solver": "sgd", "momentum": 0.9, "learning_rate_init": 0.01},
    "adam": {"solver": "adam"},
}


def digits():
    X, y = load_digits(return_X_y=True)
    return X / 16, y


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(X), scale(y)


PROBLEMS = {
    "classifier": (digits, neural_network.MLPClassifier, MLPClassifier),
    "regressor": (diabetes, neural_network.MLPRegressor, MLPRegressor),
}


def fit_both(problem, **parameters):
    data, theirs, ours = PROBLEMS[problem]
    X, y = data()
    models = []
    for cls in (theirs, ours):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            models.append(cls(**{"random_state": 3, "hidden_layer_sizes": (30, 20), **parameters}).fit(X, y))
    return (*models, X, y)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_first_20_epochs_are_those_of_scikit_learn(problem, solver, shuffle, early_stopping):
    theirs, ours, X, _ = fit_both(
        problem, max_iter=20, shuffle=shuffle, early_stopping=early_stopping, **SOLVERS[solver]
    )
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    assert (ours.n_iter_, ours.t_, ours.n_layers_, ours.n_outputs_) == (
        theirs.n_iter_,
        theirs.t_,
        theirs.n_layers_,
        theirs.n_outputs_,
    )
    assert ours.out_activation_ == theirs.out_activation_
    if early_stopping:
        np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-6)
        assert ours.best_validation_score_ == pytest.approx(theirs.best_validation_score_, rel=1e-6)
        assert ours.best_loss_ is theirs.best_loss_ is None
    else:
        assert ours.best_loss_ == pytest.approx(theirs.best_loss_, rel=1e-6)
        assert ours.validation_scores_ is theirs.validation_scores_ is None
    for mine, other in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-8)
    if problem == "classifier":
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), rtol=1e-4)
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    else:
        np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_activations_are_those_of_scikit_learn(problem, activation):
    theirs, ours, *_ = fit_both(problem, max_iter=5, activation=activation)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["invscaling", "adaptive"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_schedules_are_those_of_scikit_learn(problem, schedule):
    theirs, ours, *_ = fit_both(
        problem,
        solver="sgd",
        max_iter=60,
        learning_rate=schedule,
        learning_rate_init=0.2,
        tol=1e-2,
        n_iter_no_change=2,
    )
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_training_stops_when_scikit_learn_stops(problem):
    theirs, ours, *_ = fit_both(problem, max_iter=200, tol=1e-2, n_iter_no_change=3)
    assert ours.n_iter_ == theirs.n_iter_ < 200
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_lbfgs_goes_where_scikit_learn_goes(problem):
    theirs, ours, X, y = fit_both(problem, solver="lbfgs", max_iter=15, activation="tanh", alpha=0.1)
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-4)
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-2)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_warm_start_and_partial_fit_go_on_as_scikit_learn_does(problem):
    data, theirs, ours = PROBLEMS[problem]
    X, y = data()
    curves = []
    for cls in (theirs, ours):
        model = cls(hidden_layer_sizes=(10,), random_state=0, max_iter=3, warm_start=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X, y).fit(X, y)
        for _ in range(3):
            model.partial_fit(X, y)
        curves.append(model.loss_curve_)
        assert model.n_iter_ == 1
        assert model.t_ == 9 * len(X)
    assert len(curves[0]) == 9
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-6)


def test_poisson_is_that_of_scikit_learn():
    X, _ = diabetes()
    y = np.random.default_rng(0).poisson(np.exp(0.3 * X[:, 0] + 0.2 * X[:, 2])).astype(float)
    models = [
        cls(loss="poisson", random_state=0, max_iter=5, hidden_layer_sizes=(20,))
        for cls in (neural_network.MLPRegressor, MLPRegressor)
    ]
    for model in models:
        with pytest.warns(ConvergenceWarning):
            model.fit(X, y)
    theirs, ours = models
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-6)
    assert ours.out_activation_ == theirs.out_activation_ == "exp"


def test_several_outputs_descend_as_in_scikit_learn():
    X, y = diabetes()
    Y = np.column_stack([y, X[:, 0] - y, X[:, 1] * X[:, 2]])
    for solver in SOLVERS.values():
        models = [
            cls(hidden_layer_sizes=(20,), random_state=0, max_iter=10, alpha=0.0, **solver)
            for cls in (neural_network.MLPRegressor, MLPRegressor)
        ]
        for model in models:
            with pytest.warns(ConvergenceWarning):
                model.fit(X, Y)
        theirs, ours = models
        np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-6)
        np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-5, atol=1e-7)


def test_several_labels_a_row_are_learnt_as_in_scikit_learn():
    X, y = digits()
    Y = np.column_stack([y % 2, y > 4, y % 3 == 0]).astype(int)
    models = [
        cls((20,), random_state=0, max_iter=10) for cls in (neural_network.MLPClassifier, MLPClassifier)
    ]
    for model in models:
        with pytest.warns(ConvergenceWarning):
            model.fit(X, Y)
    theirs, ours = models
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-5, atol=1e-9)
    assert ours.score(X, Y) == theirs.score(X, Y)


@pytest.mark.parametrize("classes", [np.array(["b", "a"]), np.array([7, -2]), np.array([True, False])])
def test_two_classes_share_one_output(classes):
    X, y = digits()
    named = classes[(y > 4).astype(int)]
    models = [
        cls((20,), random_state=0, max_iter=5, early_stopping=True)
        for cls in (neural_network.MLPClassifier, MLPClassifier)
    ]
    for model in models:
        with pytest.warns(ConvergenceWarning):
            model.fit(X, named)
    theirs, ours = models
    np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-6)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-5, atol=1e-9)


def test_weighted_batches_minimise_what_scikit_learn_minimises():
    X, y = diabetes()
    weight = np.random.default_rng(1).uniform(0, 2, len(y))
    models = [
        cls(hidden_layer_sizes=(20,), random_state=0, max_iter=10, batch_size=len(y))
        for cls in (neural_network.MLPRegressor, MLPRegressor)
    ]
    for model in models:
        with pytest.warns(ConvergenceWarning):
            model.fit(X, y, weight)
    np.testing.assert_allclose(models[1].loss_curve_, models[0].loss_curve_, rtol=1e-6)
    np.testing.assert_allclose(models[1].predict(X), models[0].predict(X), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(
    "parameters",
    [{}, {"solver": "sgd"}, {"early_stopping": True}, {"solver": "lbfgs"}, {"warm_start": True}],
    ids=str,
)
def test_what_is_learnt_has_the_names_and_types_of_scikit_learn(problem, parameters):
    theirs, ours, X, _ = fit_both(problem, max_iter=3, **parameters)
    public = {name for name in vars(theirs) if name.endswith("_") and not name.startswith("_")}
    assert public == {name for name in vars(ours) if name.endswith("_") and not name.startswith("_")}
    for name in public:
        assert type(getattr(ours, name)) is type(getattr(theirs, name)) or name in ("loss_", "best_loss_")
    # scikit-learn's regressor shows partial_fit for lbfgs, too, and fails when it is called.
    names = {name for name in dir(theirs) if not name.startswith("_") and name != "partial_fit"}
    assert names <= set(dir(ours))
    assert ours.predict(X).dtype == theirs.predict(X).dtype


def test_parameters_have_the_names_order_and_defaults_of_scikit_learn():
    for theirs, ours in (
        (neural_network.MLPClassifier, MLPClassifier),
        (neural_network.MLPRegressor, MLPRegressor),
    ):
        expected = list(inspect.signature(theirs).parameters.values())
        found = list(inspect.signature(ours).parameters.values())[: len(expected)]
        for mine, other in zip(found, expected, strict=True):
            assert (mine.name, mine.default, mine.kind) == (other.name, other.default, other.kind)
