"""Estimators for tables as they come: categories, missing values, targets in their own units."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from gradstep.backends.base import Array, Engine
from gradstep.network import Network
from gradstep.sklearn.base import FLOATS, check_sample_weight
from gradstep.sklearn.mlp import MLPClassifier, MLPRegressor
from gradstep.sklearn.persistence import Persistent
from gradstep.sklearn.rows import Rows
from gradstep.tables import MAX_CATEGORIES, TableEncoder
from gradstep.validation import check_integer, check_real

FEWEST_ROWS = 100
"""Rows below which none are held out: a tenth of them would say little."""


class _StopsByLoss:
    """Early stopping by the validation loss, which moves where the accuracy rests."""

    def _score_rows(self, engine: Engine, rows: Rows) -> float:
        return -rows.evaluate(engine)


class _Classifier(_StopsByLoss, MLPClassifier):
    """The network inside `TabularClassifier`."""


class _Regressor(_StopsByLoss, MLPRegressor):
    """The network inside `TabularRegressor`."""


class Tabular(Persistent, BaseEstimator):  # type: ignore[misc]
    """A table encoder in front of a network with early stopping; base of the two estimators."""

    hidden_layer_sizes: Any
    random_state: Any
    validation_fraction: float
    max_categories: int
    encoder_: TableEncoder
    model_: Any

    def _store(self, parameters: dict[str, Any]) -> None:
        """Keep the arguments of a constructor, its ``locals()``, as they are."""
        self.__dict__.update({k: v for k, v in parameters.items() if k not in ("self", "__class__")})

    @abstractmethod
    def _checked_targets(self, y: Any) -> Array:
        """Targets as (n,)."""

    @abstractmethod
    def _network(self, random_state: int, early_stopping: bool) -> Any:
        """The network, untrained."""

    @abstractmethod
    def _network_targets(self, y: Array, weight: Array | None) -> Array:
        """Targets in the network's units, whose statistics are learnt."""

    def _strata(self, y: Array) -> Array | None:
        """What the held-out part is stratified by."""
        return None

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> Any:
        fraction = check_real("validation_fraction", self.validation_fraction, minimum=0.0, below=1.0)
        categories = check_integer("max_categories", self.max_categories, minimum=1)
        before = dict(vars(self))
        try:
            self._fit_checked(X, y, sample_weight, fraction, categories)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self

    def _fit_checked(self, X: Any, y: Any, sample_weight: Any, fraction: float, categories: int) -> None:
        X = self._table(X, reset=True)
        y = self._checked_targets(y)
        if len(y) != X.shape[0]:
            raise ValueError(
                f"Found input variables with inconsistent numbers of samples: {[X.shape[0], len(y)]}"
            )
        weight = check_sample_weight(sample_weight, X.shape[0])
        if weight is not None and not weight.all():  # a row that does not count is a row that is not there
            counted = np.flatnonzero(weight)
            X, y, weight = _safe_indexing(X, counted), y[counted], weight[counted]
        random_state = check_random_state(self.random_state)
        train, held = self._hold_out(y, fraction, random_state)
        parts = [X if train is None else _safe_indexing(X, train)]
        train_weight = weight if weight is None or train is None else weight[train]
        self.encoder_ = TableEncoder(max_categories=categories).fit(parts[0], train_weight)
        targets = self._network_targets(y if train is None else y[train], train_weight)
        model = self._network(int(random_state.randint(2**31)), held is not None)
        validation = {}
        if held is not None:
            validation = {
                "X_val": self._features(_safe_indexing(X, held)),
                "y_val": self._in_network_units(y[held]),
                "sample_weight_val": None if weight is None else weight[held],
            }
        self.model_ = model.fit(self._features(parts[0]), targets, train_weight, **validation)
        self.n_iter_ = self.model_.n_iter_

    @abstractmethod
    def _in_network_units(self, y: Array) -> Array:
        """Targets in the network's units."""

    def _hold_out(
        self, y: Array, fraction: float, random_state: np.random.RandomState
    ) -> tuple[Array | None, Array | None]:
        """Rows that train and rows that tell when to stop; None and None for few rows."""
        if len(y) < FEWEST_ROWS or fraction == 0:
            return None, None
        train, held = train_test_split(
            np.arange(len(y)), test_size=fraction, random_state=random_state, stratify=self._strata(y)
        )
        return np.sort(train), np.sort(held)

    def _table(self, X: Any, *, reset: bool) -> Any:
        """A frame as it is, or a matrix of numbers; names and numbers of columns are checked."""
        if _is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if reset and X.shape[0] == 0:
                raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
            return X
        return validate_data(self, X, reset=reset, dtype=FLOATS, ensure_all_finite="allow-nan")

    def to_network(self) -> Network:
        """The trained network with its encoder, as `gradstep.Network`.

        It takes tables as this estimator does; matrices must be encoded first, by
        ``encoder_.transform``.
        """
        check_is_fitted(self)
        network: Network = self._in_target_units(self.model_.to_network())
        network.encoder = self.encoder_
        return network

    def _in_target_units(self, network: Network) -> Network:
        return network

    def _encoded(self, X: Any) -> Array:
        check_is_fitted(self)
        return self._features(self._table(X, reset=False))

    def _features(self, table: Any) -> Array:
        """What the network sees: float32, but for matrices of float64."""
        dtype = np.float64 if getattr(table, "dtype", None) == np.float64 else np.float32
        return self.encoder_.transform(table, dtype=dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags


def _is_frame(X: Any) -> bool:
    """Whether X is a table whose columns have names; scikit-learn takes others for matrices, too."""
    names = getattr(X, "column_names", getattr(X, "columns", None))
    return names is not None and len(names) > 0 and all(isinstance(name, str) for name in names)


class TabularClassifier(ClassifierMixin, Tabular):  # type: ignore[misc]
    """Classifier for tables: pandas, polars or pyarrow, or a matrix of numbers.

    Columns of text, categories and booleans become one-hot features, numbers are standardised, missing values
    are marked (see `gradstep.TableEncoder`). A part of the rows is held out, stratified by class where each
    has two rows; training stops when its loss does not fall any more, and the best epoch is kept. Below 100
    rows none are held out, and training stops by its own loss. Tables train in float32, matrices in their own
    dtype; columns need names that are text.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (128, 64)
        Widths of the hidden layers.
    activation : str or sequence of str, default "relu"
        As for `MLPClassifier`.
    alpha : float, default 0.0001
        Strength of the penalty.
    batch_size : int or "auto", default "auto"
        Rows of a batch.
    learning_rate_init : float, default 0.001
        Learning rate of Adam.
    max_iter : int, default 200
        Epochs, at most.
    n_iter_no_change : int, default 10
        Epochs without improvement before training stops.
    validation_fraction : float, default 0.1
        The part held out; 0 holds out nothing.
    max_categories : int, default 255
        Most features that a column of categories may become.
    class_weight : dict, "balanced" or None, default None
        Weights of the classes.
    random_state : int, RandomState or None, default None
        Draws the held-out part, initial weights and the order of the rows.
    n_jobs : int or None, default None
        Threads.
    backend : {"auto", "cpp", "numba", "numpy"}, default "auto"
        Who computes.
    verbose : bool, default False
        Print the loss of every epoch.

    Attributes
    ----------
    classes_ : ndarray, (n_classes,)
        Labels, sorted.
    encoder_ : TableEncoder
        What the columns became.
    model_ : MLPClassifier
        The network, with its loss_curve_, validation_loss_curve_ and coefs_.
    n_iter_ : int
        Epochs.
    n_features_in_, feature_names_in_
        Columns of X.
    """

    classes_: Array

    def __init__(
        self,
        hidden_layer_sizes: Any = (128, 64),
        *,
        activation: Any = "relu",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate_init: float = 0.001,
        max_iter: int = 200,
        n_iter_no_change: int = 10,
        validation_fraction: float = 0.1,
        max_categories: int = MAX_CATEGORIES,
        class_weight: Any = None,
        random_state: Any = None,
        n_jobs: int | None = None,
        backend: str = "auto",
        verbose: Any = False,
    ) -> None:
        self._store(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TabularClassifier:
        """Learn columns, classes and the network.

        Parameters
        ----------
        X : pandas, polars or pyarrow table, or array-like of numbers, (n, n_columns)
            Rows.
        y : array-like, (n,)
            Classes.
        sample_weight : array-like, (n,), optional
            Weights of the rows.

        Returns
        -------
        TabularClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter is not as above; what was learnt before is kept.
        """
        fitted: TabularClassifier = self._fit(X, y, sample_weight)
        return fitted

    def _checked_targets(self, y: Any) -> Array:
        y = column_or_1d(_target(y), warn=True)
        _check_present(y)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        return np.asarray(y)

    def _network(self, random_state: int, early_stopping: bool) -> Any:
        parameters = {name: getattr(self, name) for name in _SHARED}
        return _Classifier(
            **parameters,
            class_weight=self.class_weight,
            random_state=random_state,
            early_stopping=early_stopping,
        )

    def _network_targets(self, y: Array, weight: Array | None) -> Array:
        return y

    def _in_network_units(self, y: Array) -> Array:
        return y

    def _strata(self, y: Array) -> Array | None:
        counts = np.unique(y, return_counts=True)[1]
        return y if counts.min() >= 2 and len(counts) * 10 <= len(y) else None

    def predict(self, X: Any) -> Array:
        """Labels of rows, (n,)."""
        encoded = self._encoded(X)
        predicted: Array = self.model_.predict(encoded)
        return predicted

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes, (n, n_classes), in the order of ``classes_``."""
        encoded = self._encoded(X)
        p: Array = self.model_.predict_proba(encoded)
        return p

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba`."""
        encoded = self._encoded(X)
        p: Array = self.model_.predict_log_proba(encoded)
        return p


class TabularRegressor(RegressorMixin, Tabular):  # type: ignore[misc]
    """Regressor for tables: pandas, polars or pyarrow, or a matrix of numbers.

    As `TabularClassifier`; the target is standardised for training, and predictions are in its own units.

    Parameters
    ----------
    loss : str or Loss, default "squared_error"
        As for `MLPRegressor`, in units of the target's standard deviation; the targets of poisson and gamma
        stay as they are.
    hidden_layer_sizes, activation, alpha, batch_size, learning_rate_init, max_iter : optional
        As for `TabularClassifier`, and so are all that follow.
    n_iter_no_change, validation_fraction, max_categories, random_state, n_jobs, backend, verbose : optional
        Early stopping, encoding, randomness, threads, output.

    Attributes
    ----------
    target_mean_, target_scale_ : float
        What was taken from the target, and what it was divided by.
    encoder_, model_, n_iter_, n_features_in_, feature_names_in_
        As for `TabularClassifier`.
    """

    target_mean_: float
    target_scale_: float

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (128, 64),
        *,
        activation: Any = "relu",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate_init: float = 0.001,
        max_iter: int = 200,
        n_iter_no_change: int = 10,
        validation_fraction: float = 0.1,
        max_categories: int = MAX_CATEGORIES,
        random_state: Any = None,
        n_jobs: int | None = None,
        backend: str = "auto",
        verbose: Any = False,
    ) -> None:
        self._store(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TabularRegressor:
        """Learn columns, the target's scale and the network.

        Parameters
        ----------
        X : pandas, polars or pyarrow table, or array-like of numbers, (n, n_columns)
            Rows.
        y : array-like, (n,)
            Targets.
        sample_weight : array-like, (n,), optional
            Weights of the rows.

        Returns
        -------
        TabularRegressor
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter is not as above; what was learnt before is kept.
        """
        fitted: TabularRegressor = self._fit(X, y, sample_weight)
        return fitted

    def _checked_targets(self, y: Any) -> Array:
        y = column_or_1d(_target(y), warn=True)
        _check_present(y)
        return np.asarray(y, np.float64)

    def _network(self, random_state: int, early_stopping: bool) -> Any:
        parameters = {name: getattr(self, name) for name in _SHARED}
        return _Regressor(self.loss, **parameters, random_state=random_state, early_stopping=early_stopping)

    def _network_targets(self, y: Array, weight: Array | None) -> Array:
        self.target_mean_, self.target_scale_ = 0.0, 1.0
        if not MLPRegressor(self.loss)._engine_loss().has_link:
            self.target_mean_ = float(np.average(y, weights=weight))
            deviation = float(np.sqrt(np.average(np.square(y - self.target_mean_), weights=weight)))
            self.target_scale_ = deviation if deviation > 0 else 1.0
        return self._in_network_units(y)

    def _in_network_units(self, y: Array) -> Array:
        return (y - self.target_mean_) / self.target_scale_

    def _in_target_units(self, network: Network) -> Network:
        if network.loss.has_link:  # targets are as they were
            return network
        statistics = {
            "mode": "standardize",
            "shift": [self.target_mean_] * network.n_out,
            "scale": [1 / self.target_scale_] * network.n_out,
        }
        scaled = Network.from_config(
            {**network.config, "target_preprocessing": statistics}, backend=self.backend
        )
        scaled.set_parameters(network.parameters())
        return scaled

    def predict(self, X: Any) -> Array:
        """Predictions in the target's units, float64 (n,), or (n, quantiles) for several of them."""
        encoded = self._encoded(X)
        predicted: Array = self.model_.predict(encoded).astype(np.float64)
        return predicted * self.target_scale_ + self.target_mean_


_SHARED = (
    "hidden_layer_sizes",
    "activation",
    "alpha",
    "batch_size",
    "learning_rate_init",
    "max_iter",
    "n_iter_no_change",
    "n_jobs",
    "backend",
    "verbose",
)
"""Parameters that the network takes as they are."""


def _target(y: Any) -> Any:
    """A column of any library as an array."""
    if y is None:
        raise ValueError("This estimator requires y to be passed, but the target y is None")
    return y.to_numpy() if hasattr(y, "to_numpy") else y


def _check_present(y: Array) -> None:
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ValueError("Input y contains NaN or infinity.")
    if y.dtype.kind == "c":
        raise ValueError("Complex data not supported")
    if y.dtype.kind == "O" and any(value is None for value in y):
        raise ValueError("Input y contains missing values.")
