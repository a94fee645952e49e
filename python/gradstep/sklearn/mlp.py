"""scikit-learn's perceptrons on gradstep's engine: the same parameters and methods, and some more."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import d2_pinball_score, r2_score
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from gradstep.backends.base import Array
from gradstep.losses import Loss, as_loss
from gradstep.names import check_name
from gradstep.sklearn.base import FLOATS, SPARSE, Perceptron, with_partial_fit
from gradstep.sklearn.callbacks import with_callbacks
from gradstep.sklearn.labels import learn_labels, numbers_of
from gradstep.sklearn.objective import Objective, squared_error
from gradstep.sklearn.settings import Settings

LOSSES = ("squared_error", "poisson", "gamma", "mae", "huber", "quantile")
"""Names of the regressor's losses."""


class MLPClassifier(ClassifierMixin, Perceptron):  # type: ignore[misc]
    """Multi-layer perceptron classifier that minimises the log-loss.

    It takes the place of `sklearn.neural_network.MLPClassifier`: parameters have its meaning and defaults,
    and the same ``random_state`` gives the same model. The parameters after ``max_fun`` are additions whose
    defaults change nothing. Inputs in float32 train in float32, about twice as fast; all others become
    float64.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        Widths of the hidden layers; empty for logistic regression.
    activation : str or sequence of str, default "relu"
        identity, logistic, tanh, relu, or any activation of `gradstep.Dense`; a sequence has one for each
        hidden layer.
    solver : {"adam", "sgd", "lbfgs"}, default "adam"
        lbfgs is SciPy's, on all rows at once and in float64.
    alpha : float, default 0.0001
        Strength of the penalty ``alpha / 2 sum(W**2)``, which is divided by the weights of a batch.
    batch_size : int or "auto", default "auto"
        Rows of a batch; "auto" is 200, or all rows if they are fewer.
    learning_rate : {"constant", "invscaling", "adaptive"}, Schedule or callable, default "constant"
        Names are for sgd. A `gradstep.schedules.Schedule`, or a function of the number of updates done, gives
        factors of learning_rate_init for sgd and adam, over max_iter epochs, whose end is no warning then;
        partial_fit counts on.
    learning_rate_init : float, default 0.001
        Learning rate, or where the schedule begins.
    power_t : float, default 0.5
        Exponent of invscaling, ``learning_rate_init / (t_ + 1)**power_t``.
    max_iter : int, default 200
        Epochs of a stochastic solver, iterations of lbfgs, at most.
    shuffle : bool, default True
        Whether every epoch visits the rows in a new order.
    random_state : int, RandomState or None, default None
        Draws initial weights, the validation split and the order of the rows.
    tol : float, default 1e-4
        Least improvement that counts; gradient tolerance of lbfgs.
    verbose : bool, default False
        Print the loss of every epoch.
    warm_start : bool, default False
        Whether fit goes on from the coefficients that are there.
    momentum : float, default 0.9
        Of sgd.
    nesterovs_momentum : bool, default True
        Of sgd.
    early_stopping : bool, default False
        Hold out a part of the rows, stop when its score does not improve, and keep the best epoch's
        coefficients.
    validation_fraction : float, default 0.1
        The part held out.
    beta_1, beta_2, epsilon : float, default 0.9, 0.999 and 1e-8
        Of adam.
    n_iter_no_change : int, default 10
        Epochs without improvement before training stops.
    max_fun : int, default 15000
        Evaluations of the loss by lbfgs, at most.
    class_weight : dict, "balanced" or None, default None
        Weights of the classes, which multiply the sample weights; balanced are ``n / (n_classes * count)``.
    dropout : float or sequence of float, default 0
        Share of the hidden layers' outputs that an update drops, for all of them or for each; predictions
        use all.
    normalization : {"batch", "layer"} or None, default None
        Normalises the outputs of every hidden layer in front of its activation, over the rows of the batch or
        over the units of each row; see `gradstep.BatchNorm` and `gradstep.LayerNorm`. Not for lbfgs.
    n_jobs : int or None, default None
        Threads; -1 for all cores, None for what `gradstep.set_num_threads` or the environment says.
    backend : {"auto", "cpp", "numba", "numpy"}, default "auto"
        Who computes.
    callbacks : callable or sequence of callables, default None
        Functions of the estimator, called after every epoch (iteration of lbfgs); one that returns True ends
        the training.
    time_budget : float or None, default None
        Seconds after which no new epoch (iteration of lbfgs) begins.

    Attributes
    ----------
    classes_ : ndarray, (n_classes,)
        Labels, sorted.
    coefs_, intercepts_ : list of ndarray
        Weights (n_in, n_out) and biases (n_out,) of the layers.
    normalizations_ : list of dict
        With ``normalization`` and hidden layers, the gain and shift of each, and the running mean and
        variance of "batch", (n_out,) each.
    loss_ : float
        Loss of the last epoch.
    best_loss_ : float or None
        Least loss of an epoch; None with early stopping.
    loss_curve_ : list of float
        Losses of the epochs, with a stochastic solver.
    validation_scores_ : list of float or None
        Accuracies of the held-out rows, with early stopping.
    best_validation_score_ : float or None
        The best of them.
    validation_loss_curve_ : list of float
        Losses of ``X_val`` after every epoch (iteration of lbfgs), where fit was given some.
    n_iter_ : int
        Epochs of the last call.
    t_ : int
        Rows seen.
    n_layers_ : int
        Layers, with the input.
    n_outputs_ : int
        Outputs.
    out_activation_ : str
        softmax, or logistic for two classes and for several labels a row.
    n_features_in_, feature_names_in_
        Of X, as everywhere in scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from gradstep.sklearn import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier(max_iter=500, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    """

    classes_: Array
    _target_type: str
    loss = "log_loss"

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: Any = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        class_weight: Any = None,
        dropout: Any = 0.0,
        normalization: str | None = None,
        n_jobs: int | None = None,
        backend: str = "auto",
        callbacks: Any = None,
        time_budget: float | None = None,
    ) -> None:
        self._store(locals())

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> MLPClassifier:
        """Train.

        Parameters
        ----------
        X : array-like or sparse matrix, (n, n_features)
            Finite numbers.
        y : array-like, (n,) or (n, n_labels)
            Classes, or zeros and ones for several labels a row.
        sample_weight : array-like, (n,), optional
            Weights of the rows; whole numbers mean repetition.
        X_val, y_val, sample_weight_val : optional
            Rows whose loss is measured after every epoch; they take the place of the held-out part where
            early_stopping is on.

        Returns
        -------
        MLPClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter is not as above, or training diverged; the estimator keeps what it
            had learnt before.
        """
        fitted: MLPClassifier = self._fit(
            X, y, sample_weight, (X_val, y_val, sample_weight_val), incremental=False
        )
        return fitted

    @with_partial_fit
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> MLPClassifier:
        """Train for one epoch, from where the last call ended.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array-like, (n_classes,), optional
            All classes that calls will bring; needed by the first call.

        Returns
        -------
        MLPClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            As `fit` does, and if classes are missing or others than before.
        """
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight {self.class_weight!r} needs all rows, of which partial_fit sees a part: "
                "give a dict of weights"
            )
        with self._unchanged_on_error():
            self._learn_classes(y, classes)
            fitted: MLPClassifier = self._fit(X, y, sample_weight, incremental=True)
        return fitted

    def _learn_classes(self, y: Any, classes: Any) -> None:
        """The classes that partial_fit is told of."""
        if classes is None:
            if not hasattr(self, "classes_"):
                raise ValueError("classes must be passed on the first call to partial_fit.")
            return
        told = unique_labels(classes)
        if hasattr(self, "classes_"):
            if not np.array_equal(self.classes_, told):
                raise ValueError(
                    f"`classes={classes!r}` is not the same as on last call to partial_fit, "
                    f"was: {self.classes_!r}"
                )
            return
        self.classes_ = told
        is_multilabel = type_of_target(y, input_name="y").startswith("multilabel")
        self._target_type = (
            "multilabel-indicator" if is_multilabel else "multiclass" if len(told) > 2 else "binary"
        )

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, Any]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=SPARSE,
            multi_output=True,
            dtype=FLOATS,
            order="C",
            reset=reset,
        )
        if scipy.sparse.issparse(y):
            y = y.toarray()
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _learn_targets(self, y: Any, settings: Settings, *, first: bool, incremental: bool) -> int:
        kind, classes = learn_labels(y)
        if first and not incremental:
            self._target_type, self.classes_ = kind, classes
        elif settings.warm_start and not incremental and set(classes) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.classes_}, `y` has {classes}"
            )
        elif len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. "
                f"'y' has {classes}."
            )
        if self._target_type == "multilabel-indicator":
            return int(y.shape[1])
        return len(self.classes_) if self._target_type == "multiclass" else 1

    def _objective(self, outputs: int) -> Objective:
        if self._target_type == "multiclass":
            return Objective("cross_entropy", "softmax")
        return Objective("binary_cross_entropy", "logistic")

    def _encoded_targets(self, y: Any, dtype: str) -> Array:
        if self._target_type == "multilabel-indicator":
            return np.ascontiguousarray(y, dtype)
        codes = numbers_of(y, self.classes_)
        if self._target_type == "multiclass":
            return np.asarray(codes, np.int32)
        return np.ascontiguousarray(codes[:, None], dtype)

    def _with_class_weight(self, y: Any, sample_weight: Array | None) -> Array | None:
        if self.class_weight is None:
            return sample_weight
        weight: Array = compute_sample_weight(self.class_weight, y)
        return weight if sample_weight is None else weight * sample_weight

    def _network_loss(self) -> Loss:
        return as_loss(self._objective(self.n_outputs_).loss)

    def _class_names(self) -> list[str] | None:
        if self._target_type == "multilabel-indicator" or len(self.classes_) < 2:
            return None
        return [str(label) for label in self.classes_.tolist()]

    def _strata(self, y: Array) -> Array | None:
        """Two classes are held out in proportion; scikit-learn does not do so with more."""
        return y[:, 0] if self._target_type == "binary" else None

    def _codes(self, outputs: Array) -> Array:
        """Encoded predictions: labels, or whether a probability is above a half."""
        if self._target_type == "multiclass":
            labels: Array = outputs.argmax(axis=1)
            return labels
        above: Array = outputs > 0.5
        return above

    def _score_of(self, outputs: Array, y: Array, sample_weight: Array | None) -> float:
        hits = self._codes(outputs) == y
        return float(np.average(hits if hits.ndim == 1 else hits.all(axis=1), weights=sample_weight))

    def predict(self, X: Any) -> Array:
        """Classes of rows.

        Parameters
        ----------
        X : array-like or sparse matrix, (n, n_features)
            Finite numbers.

        Returns
        -------
        ndarray, (n,) or (n, n_labels)
            Labels, or zeros and ones.
        """
        codes = self._codes(self._outputs(X))
        if self._target_type == "multilabel-indicator":
            return codes.astype(int)
        if self._target_type == "binary":
            codes = np.minimum(codes[:, 0].astype(int), len(self.classes_) - 1)
        predicted: Array = self.classes_[codes]
        return predicted

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes.

        Parameters
        ----------
        X : array-like or sparse matrix, (n, n_features)
            Finite numbers.

        Returns
        -------
        ndarray, (n, n_classes)
            In the order of ``classes_``; for several labels a row, the probability of each.
        """
        p = self._outputs(X)
        return np.hstack([1 - p, p]) if self._target_type == "binary" else p

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba`."""
        p = self.predict_proba(X)
        with np.errstate(divide="ignore"):
            logarithms: Array = np.log(p, out=p)
        return logarithms

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, Perceptron):  # type: ignore[misc]
    """Multi-layer perceptron regressor.

    It takes the place of `sklearn.neural_network.MLPRegressor`: parameters have its meaning and defaults,
    and the same ``random_state`` gives the same model. The parameters after ``max_fun`` are additions whose
    defaults change nothing. Inputs in float32 train in float32, about twice as fast; all others become
    float64.

    Parameters
    ----------
    loss : str or Loss, default "squared_error"
        With d = prediction - y: squared_error is d^2 / 2, mae is abs(d), huber is d^2 / 2 up to 1 and linear
        beyond (`gradstep.Huber` has other limits), quantile is the median's (`gradstep.Quantile` has others;
        several of them for a single target give one output each), poisson is half the deviance of counts
        and gamma that of positive values, whose predictions are exponentials.
    hidden_layer_sizes : int or sequence of int, default (100,)
        Widths of the hidden layers; empty for linear regression.
    activation, solver, alpha, batch_size : optional
        As for `MLPClassifier`, and so are all that follow.
    learning_rate, learning_rate_init, power_t, max_iter, shuffle, random_state : optional
        Schedule, epochs, order.
    tol, verbose, warm_start, momentum, nesterovs_momentum : optional
        Least improvement, output, continuation, momentum of sgd.
    early_stopping, validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change, max_fun : optional
        Early stopping, adam, lbfgs.
    dropout, normalization, n_jobs, backend, callbacks, time_budget : optional
        Not in scikit-learn.

    Attributes
    ----------
    validation_scores_ : list of float or None
        R2 of the held-out rows, with early stopping; mean D2 of the pinball losses for several quantiles.
    out_activation_ : str
        identity, or exp for poisson.
    coefs_, intercepts_, normalizations_ : as for `MLPClassifier`
        Parameters.
    loss_, best_loss_, loss_curve_, best_validation_score_ : as for `MLPClassifier`
        Losses.
    validation_loss_curve_, n_iter_, t_, n_layers_, n_outputs_, n_features_in_ : as for `MLPClassifier`
        Losses of given rows, counts.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from gradstep.sklearn import MLPRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = MLPRegressor(solver="lbfgs", hidden_layer_sizes=8, max_iter=100, random_state=0)
    >>> model.fit(X, y).score(X, y) > 0.4  # doctest: +SKIP
    True
    """

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: Any = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: Any = 0.0,
        normalization: str | None = None,
        n_jobs: int | None = None,
        backend: str = "auto",
        callbacks: Any = None,
        time_budget: float | None = None,
    ) -> None:
        self._store(locals())

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> MLPRegressor:
        """Train.

        Parameters
        ----------
        X : array-like or sparse matrix, (n, n_features)
            Finite numbers.
        y : array-like, (n,) or (n, n_outputs)
            Targets; at least 0 for poisson.
        sample_weight : array-like, (n,), optional
            Weights of the rows; whole numbers mean repetition.
        X_val, y_val, sample_weight_val : optional
            Rows whose loss is measured after every epoch; they take the place of the held-out part where
            early_stopping is on.

        Returns
        -------
        MLPRegressor
            Itself.

        Raises
        ------
        TypeError, ValueError
            If an argument or a parameter is not as above, or training diverged; the estimator keeps what it
            had learnt before.
        """
        fitted: MLPRegressor = self._fit(
            X, y, sample_weight, (X_val, y_val, sample_weight_val), incremental=False
        )
        return fitted

    @with_partial_fit
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train for one epoch, from where the last call ended.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        MLPRegressor
            Itself.

        Raises
        ------
        TypeError, ValueError
            As `fit` does.
        """
        fitted: MLPRegressor = self._fit(X, y, sample_weight, incremental=True)
        return fitted

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, Any]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=SPARSE,
            multi_output=True,
            y_numeric=True,
            dtype=FLOATS,
            order="C",
            reset=reset,
        )
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _engine_loss(self) -> Loss:
        """The loss of the engine; for squared_error, mse."""
        if isinstance(self.loss, Loss):
            return self.loss
        name = check_name("loss", self.loss, LOSSES)
        return as_loss("mse" if name == "squared_error" else name)

    def _network_loss(self) -> Loss:
        return self._engine_loss()

    def _quantiles(self) -> tuple[float, ...]:
        """The quantiles that are predicted, or none."""
        options = self._engine_loss().engine_options
        return tuple(np.atleast_1d(options["quantile"])) if "quantile" in options else ()

    def _learn_targets(self, y: Any, settings: Settings, *, first: bool, incremental: bool) -> int:
        loss = self._engine_loss()
        if loss.name not in (*LOSSES, "mse"):
            raise ValueError(f"loss must be one of the estimator's, such as squared_error, got {loss.name!r}")
        if loss.name == "poisson" and y.min() < 0:
            raise ValueError(f"y must not be negative for the loss 'poisson', got {y.min()}")
        if loss.name == "gamma" and y.min() < np.finfo(y.dtype if y.dtype.kind == "f" else np.float64).tiny:
            raise ValueError(f"y must be positive for the loss 'gamma', got {y.min()}")
        targets = 1 if y.ndim == 1 else int(y.shape[1])
        several = [len(v) for v in loss.engine_options.values() if isinstance(v, tuple)]
        if several and targets not in (1, *several):
            raise ValueError(
                f"loss has {several[0]} values for the outputs, but y has {targets} columns: "
                "give one column, or as many"
            )
        return max([targets, *several])

    def _objective(self, outputs: int) -> Objective:
        loss = self._engine_loss()
        if loss.name == "mse":
            return squared_error(outputs)
        return Objective(loss.name, "exp" if loss.has_link else "identity", loss.engine_options)

    def _encoded_targets(self, y: Any, dtype: str) -> Array:
        columns = y.reshape(len(y), -1)
        outputs = self._learn_targets(y, None, first=False, incremental=False)  # type: ignore[arg-type]
        if columns.shape[1] < outputs:  # one target, several quantiles
            columns = np.repeat(columns, outputs, axis=1)
        return np.ascontiguousarray(columns, dtype)

    def _score_of(self, outputs: Array, y: Array, sample_weight: Array | None) -> float:
        quantiles = self._quantiles()
        if len(quantiles) < 2:
            return float(r2_score(y, outputs, sample_weight=sample_weight))
        scores = [
            d2_pinball_score(y[:, i], outputs[:, i], sample_weight=sample_weight, alpha=quantile)
            for i, quantile in enumerate(quantiles)
        ]
        return float(np.mean(scores))

    def predict(self, X: Any) -> Array:
        """Predictions for rows.

        Parameters
        ----------
        X : array-like or sparse matrix, (n, n_features)
            Finite numbers.

        Returns
        -------
        ndarray, (n,) or (n, n_outputs)
            In the dtype of training.
        """
        outputs = self._outputs(X)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R2 of the predictions; for several quantiles, the mean of their D2 pinball scores.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        float
            At most 1, which is perfect.
        """
        if len(self._quantiles()) < 2:
            return float(super().score(X, y, sample_weight))
        check_is_fitted(self)
        y = self._encoded_targets(column_or_1d(y), "float64")
        return self._score_of(self._outputs(X), y, sample_weight)
