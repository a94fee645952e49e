"""The estimators inside scikit-learn's tools."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import BaggingRegressor, StackingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import gradstep as gs
from gradstep.sklearn import MLPClassifier, MLPRegressor, TabularClassifier, TabularRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    return X[order], y[order]


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X / X.std(axis=0), y


def classifier(**parameters):
    defaults = {"hidden_layer_sizes": (20,), "random_state": 0, "max_iter": 80, "learning_rate_init": 0.01}
    return MLPClassifier(**{**defaults, **parameters})


def regressor(**parameters):
    return MLPRegressor(
        **{
            "hidden_layer_sizes": (20,),
            "random_state": 0,
            "max_iter": 80,
            "learning_rate_init": 0.01,
            **parameters,
        }
    )


def test_pipeline(iris):
    model = make_pipeline(StandardScaler(), classifier())
    assert model.fit(*iris).score(*iris) > 0.9


@pytest.mark.parametrize("search", [GridSearchCV, HalvingGridSearchCV])
def test_searches_in_two_processes(iris, search):
    grid = {"hidden_layer_sizes": [(5,), (20,)], "alpha": [1e-4, 1e-2]}
    options = {"random_state": 0} if search is HalvingGridSearchCV else {}
    found = search(classifier(max_iter=30), grid, cv=3, n_jobs=2, **options).fit(*iris)
    alone = search(classifier(max_iter=30), grid, cv=3, n_jobs=1, **options).fit(*iris)
    np.testing.assert_array_equal(found.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    assert found.best_params_ == alone.best_params_


def test_processes_share_the_cores():
    alone = gs.get_num_threads()
    here = Parallel(n_jobs=2)(delayed(_threads)() for _ in range(2))
    assert all(1 <= count <= max(1, alone // 2) for count in here)


def _threads():
    return gs.get_num_threads()


def test_cross_validation(iris):
    assert cross_val_score(classifier(), *iris, cv=3).mean() > 0.8


def test_calibration(iris):
    X, y = iris
    model = CalibratedClassifierCV(classifier(), cv=3).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)
    assert model.score(X, y) > 0.8


def test_stacking(iris):
    model = StackingClassifier(
        [("a", classifier()), ("b", classifier(activation="tanh"))], LogisticRegression()
    )
    assert model.fit(*iris).score(*iris) > 0.8


def test_bagging(diabetes):
    X, y = diabetes
    y = (y - y.mean()) / y.std()
    assert BaggingRegressor(regressor(), n_estimators=3, random_state=0).fit(X, y).score(X, y) > 0.4


def test_transformed_target(diabetes):
    model = TransformedTargetRegressor(regressor(), transformer=StandardScaler())
    assert model.fit(*diabetes).score(*diabetes) > 0.4


def test_permutation_importance(iris):
    X, y = iris
    result = permutation_importance(classifier().fit(X, y), X, y, n_repeats=3, random_state=0)
    assert result.importances_mean[2:].sum() > result.importances_mean[:2].sum()


def test_column_transformer_with_pandas_output():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=200), "color": rng.choice(["red", "blue"], 200)})
    y = (frame["size"] + (frame["color"] == "red") > 0.5).to_numpy()
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), ["size"]), ("colors", OneHotEncoder(sparse_output=False), ["color"])]
    ).set_output(transform="pandas")
    model = make_pipeline(columns, classifier()).fit(frame, y)
    assert model.score(frame, y) > 0.9
    assert list(model[-1].feature_names_in_) == ["numbers__size", "colors__color_blue", "colors__color_red"]
    sparse = ColumnTransformer([("colors", OneHotEncoder(), ["color"])], sparse_threshold=1.0)
    assert make_pipeline(sparse, classifier()).fit(frame, y).score(frame, y) > 0.6


def test_weights_are_routed(iris):
    X, y = iris
    weight = np.where(y == 0, 1.0, 1e-3)
    with sklearn.config_context(enable_metadata_routing=True):
        model = classifier().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"alpha": [1e-4]}, cv=3).fit(X, y, sample_weight=weight)
    assert np.mean(search.predict(X) == 0) > np.mean(classifier().fit(X, y).predict(X) == 0)


def test_rows_to_validate_on_are_routed(iris):
    X, y = iris
    with sklearn.config_context(enable_metadata_routing=True):
        model = classifier(max_iter=5).set_fit_request(X_val=True, y_val=True)
        pipeline = make_pipeline(StandardScaler(), model)
        pipeline.set_params(transform_input=["X_val"]).fit(X[:100], y[:100], X_val=X[100:], y_val=y[100:])
    alone = classifier(max_iter=5)
    scaler = StandardScaler().fit(X[:100])
    train, held = scaler.transform(X[:100]), scaler.transform(X[100:])
    alone.fit(train, y[:100], X_val=held, y_val=y[100:])
    assert pipeline[-1].validation_loss_curve_ == alone.validation_loss_curve_


def test_clones_fit_alike(iris):
    model = classifier()
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    np.testing.assert_array_equal(
        model.fit(*iris).predict_proba(iris[0]), twin.fit(*iris).predict_proba(iris[0])
    )


@pytest.mark.parametrize("estimator", [MLPClassifier, TabularClassifier])
def test_pickle_joblib_and_skops_keep_the_model(iris, estimator, tmp_path):
    X, y = iris
    model = estimator((10,), random_state=0, max_iter=20).fit(X, y)
    copies = [pickle.loads(pickle.dumps(model))]
    joblib.dump(model, tmp_path / "model.joblib")
    copies.append(joblib.load(tmp_path / "model.joblib"))
    skops = pytest.importorskip("skops.io")
    skops.dump(model, tmp_path / "model.skops")
    trusted = skops.get_untrusted_types(file=tmp_path / "model.skops")
    assert all(name.startswith("gradstep.") for name in trusted)
    copies.append(skops.load(tmp_path / "model.skops", trusted=trusted))
    for copy in copies:
        np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))


def test_state_is_plain(iris):
    state = vars(classifier().fit(*iris))
    plain = (np.ndarray, int, float, str, bool, tuple, type(None))
    flat = [
        item
        for value in state.values()
        for item in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        )
    ]
    assert all(isinstance(item, plain) for item in flat)


class Recorder:
    """A callback of scikit-learn 1.9."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.events = []
        self.scores = []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.events.append(f"end {context.task_name}")
        self.scores.append(fitted_estimator.score(X, y))
        return context.task_name == "epoch" and context.task_id + 1 == self.stop_at


needs_callbacks = pytest.mark.skipif(
    not hasattr(classifier(), "set_callbacks"), reason="this scikit-learn has no callbacks"
)


@needs_callbacks
def test_callbacks_of_scikit_learn_see_every_epoch_and_may_stop(iris):
    recorder = Recorder(stop_at=3)
    model = classifier().set_callbacks(recorder).fit(*iris)
    assert model.n_iter_ == 3
    epochs = ["begin epoch", "end epoch"] * 3
    assert recorder.events == ["setup", "begin fit", *epochs, "end fit", "teardown"]
    assert recorder.scores[-1] == recorder.scores[-2] == model.score(*iris)
    assert not [name for name in vars(model) if name.startswith("_callback")]


@needs_callbacks
def test_callbacks_of_scikit_learn_see_every_iteration_of_lbfgs(iris):
    recorder = Recorder(stop_at=3)
    model = classifier(solver="lbfgs").set_callbacks(recorder).fit(*iris)
    assert model.n_iter_ == 3
    assert recorder.events == ["setup", "begin fit", *["begin epoch", "end epoch"] * 3, "end fit", "teardown"]
    assert recorder.scores[-1] == recorder.scores[-2] == model.score(*iris)


@needs_callbacks
def test_callbacks_are_taken_down_after_a_failure(iris):
    recorder = Recorder()
    model = classifier(solver="sgd", learning_rate_init=1e30, momentum=0.0).set_callbacks(recorder)
    with pytest.raises(ValueError, match="non-finite"):
        model.fit(1e30 * iris[0], iris[1])
    assert recorder.events[-1] == "teardown"


@needs_callbacks
def test_the_progress_bar_of_scikit_learn_works(iris, capsys):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    classifier(max_iter=3).set_callbacks(ProgressBar()).fit(*iris)
    assert "MLPClassifier" in capsys.readouterr().out


def test_tabular_estimators_in_searches(diabetes):
    X, y = diabetes
    grid = {"hidden_layer_sizes": [(8,), (32,)]}
    found = GridSearchCV(TabularRegressor(max_iter=20, random_state=0), grid, cv=3, n_jobs=2).fit(X, y)
    assert found.best_score_ > 0.2
