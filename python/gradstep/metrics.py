"""How good predictions are: what `Network.evaluate` returns beside the loss."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.losses import TargetKind
from gradstep.names import check_name
from gradstep.validation import check_integer

Measure = Callable[[Array, Array, Array | None], float]
"""Targets (labels: (n,), others: (n, n_out)), predictions (n, n_out) and sample weights (n,) to a number."""

MetricLike = str | Callable[..., Any] | tuple[str, Callable[..., Any]] | tuple[str, int]
"""A name, a function (y_true, y_pred), such a function with a name for it, or ("top_k", k)."""


@dataclass(frozen=True, eq=False, repr=False)
class Metric:
    """A number that says how good predictions are."""

    name: str
    """As it appears in the history."""
    measure: Measure
    """What computes it."""
    is_given: bool = False
    """Whether it is a function of the user's, which may not be fit for these targets."""

    def __call__(self, y: Array, predictions: Array, weight: Array | None) -> float:
        """Targets in the loss's form and their own units, `Network.predict`'s predictions, and weights."""
        return self.measure(y, predictions, weight)


def check_metrics(
    metrics: object, kind: TargetKind, n_out: int, *, weighted: bool, probabilities: bool = True
) -> tuple[Metric, ...]:
    """Metrics by what the user calls them.

    Parameters
    ----------
    metrics
        An iterable of `MetricLike`, or None for those of the kind.
    kind
        What y holds, `Loss.target_kind`.
    n_out
        Outputs of the network.
    weighted
        Whether there are sample weights, which every metric must take then.
    probabilities
        Whether predictions of classes are probabilities.

    Raises
    ------
    TypeError, ValueError
        If one is unknown, not for such targets, named twice, or no function.
    ImportError
        If one needs scikit-learn, which is not installed.
    """
    if metrics is None:
        metrics = () if kind == "anything" else ("rmse", "r2") if kind in _NUMBERS else ("accuracy",)
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        raise TypeError(f'metrics must be a list such as ["accuracy"], got {metrics!r}')
    made = tuple(_metric(entry, kind, n_out, weighted) for entry in metrics)
    names = ["loss", *(metric.name for metric in made)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"metrics must have names of their own, but two are called {twice[0]!r}")
    if "log_loss" in names and not probabilities:
        raise ValueError("metrics: log_loss needs probabilities, which the network's loss has none of")
    return made


def is_better_when_large(key: str) -> bool:
    """Whether the metric behind a key of the history, such as "val_f1", should become large."""
    name = key.removeprefix("val_")
    return name in _LARGE or name.endswith("_score") or _TOP.fullmatch(name) is not None


def try_metrics(metrics: Iterable[Metric], y: Array, predictions: Array, weight: Array | None) -> None:
    """Call the user's functions once, so that what they refuse is refused before training."""
    for metric in metrics:
        if metric.is_given:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                metric(y, predictions, weight)


def _metric(entry: object, kind: TargetKind, n_out: int, weighted: bool) -> Metric:
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
        name, what = entry
        if name == "top_k" and not callable(what):
            what = check_integer("metrics: the k of top_k", what, minimum=1)
            return _named(f"top_{what}_accuracy", kind, n_out)
        return _given(name, what, kind, weighted)
    if isinstance(entry, str):
        return _named(entry, kind, n_out)
    return _given(_name_of(entry), entry, kind, weighted)


# --------------------------------------------------------------------------------------------------
# Metrics by name.


def _named(name: str, kind: TargetKind, n_out: int) -> Metric:
    if name == "top_k":
        raise ValueError("metrics: top_k needs its k, as \"top_5_accuracy\" or ('top_k', 5)")
    top = _TOP.fullmatch(name)
    if top is None:
        check_name("metric", name, (*_VALUES, *_CLASSES, "top_5_accuracy"))
    is_values = kind in _NUMBERS
    if (name in _VALUES) != is_values or (top is not None and kind != "labels"):
        wanted = "regression" if name in _VALUES else "cross_entropy" if top else "classification"
        raise ValueError(f"metrics: {name} is for {wanted}, which the network's loss is not")
    if top is not None:
        k = int(top[1])
        if not 1 <= k <= n_out:
            raise ValueError(f"metrics: {name} must have a k of 1 to the number of outputs ({n_out})")
        return Metric(name, partial(_top_k, k))
    if name in _LIBRARY:
        _scikit_learn(name)
    measure = (_VALUES if is_values else _CLASSES)[name]
    return Metric(name, partial(_of_signs, measure) if kind == "signs" else measure)


def _of_signs(measure: Measure, y: Array, predictions: Array, weight: Array | None) -> float:
    """Decision values beside targets of -1 and 1, as probabilities in the same order beside 0 and 1."""
    return measure(*_unsigned(y, predictions), weight)


def _unsigned(y: Array, predictions: Array) -> tuple[Array, Array]:
    return (y > 0).astype(predictions.dtype), (1 + np.tanh(predictions / 2)) / 2


def _scikit_learn(name: str) -> ModuleType:
    try:
        import sklearn.metrics
    except ImportError:
        raise ImportError(
            f'the metric {name} needs the package scikit-learn: pip install "gradstep[sklearn]"'
        ) from None
    module: ModuleType = sklearn.metrics
    return module


def _mean(values: Array, weight: Array | None) -> float:
    return float(np.average(values, weights=weight))


def _rmse(y: Array, predictions: Array, weight: Array | None) -> float:
    return float(np.sqrt(_mean(np.square(_difference(y, predictions)).mean(axis=1), weight)))


def _mae(y: Array, predictions: Array, weight: Array | None) -> float:
    return _mean(np.abs(_difference(y, predictions)).mean(axis=1), weight)


def _mape(y: Array, predictions: Array, weight: Array | None) -> float:
    size = np.maximum(np.abs(y.astype(np.float64)), np.finfo(np.float64).eps)
    return _mean((np.abs(_difference(y, predictions)) / size).mean(axis=1), weight)


def _r2(y: Array, predictions: Array, weight: Array | None) -> float:
    squares = np.average(np.square(_difference(y, predictions)), axis=0, weights=weight)
    y = y.astype(np.float64)
    variance = np.average(np.square(y - np.average(y, axis=0, weights=weight)), axis=0, weights=weight)
    constant = variance == 0
    return float(np.where(constant, np.nan, 1 - squares / np.where(constant, 1, variance)).mean())


def _difference(y: Array, predictions: Array) -> Array:
    """Of what stands for y alone: variances, which gaussian_nll predicts too, come last."""
    difference: Array = predictions[:, : y.shape[1]].astype(np.float64) - y.astype(np.float64)
    return difference


def _accuracy(y: Array, predictions: Array, weight: Array | None) -> float:
    if y.ndim == 1:
        return _mean(predictions.argmax(axis=1) == y, weight)
    return _mean(((predictions > 0.5) == (y > 0.5)).mean(axis=1), weight)


def _top_k(k: int, y: Array, predictions: Array, weight: Array | None) -> float:
    own = np.take_along_axis(predictions, y[:, None].astype(np.intp), axis=1)
    return _mean((predictions > own).sum(axis=1) < k, weight)


def _log_loss(y: Array, predictions: Array, weight: Array | None) -> float:
    least = np.finfo(predictions.dtype).eps
    p = np.clip(predictions, least, 1 - least).astype(np.float64)
    if y.ndim == 1:
        return _mean(-np.log(np.take_along_axis(p, y[:, None].astype(np.intp), axis=1))[:, 0], weight)
    return _mean(-(y * np.log(p) + (1 - y) * np.log1p(-p)).sum(axis=1), weight)


def _balanced_accuracy(y: Array, predictions: Array, weight: Array | None) -> float:
    """Mean over the classes that occur of the share of their rows that is recognised."""
    truth, predicted = _columns(_classes(y)), _columns(_decided(y, predictions))
    means = []
    for a, b in zip(truth, predicted, strict=True):
        there = np.bincount(a, weight)
        right = np.bincount(a, (a == b) * (1.0 if weight is None else weight))
        means.append(float((right[there > 0] / there[there > 0]).mean()))
    return float(np.mean(means))


def _columns(labels: Array) -> list[Array]:
    return [labels] if labels.ndim == 1 else list(labels.T)


def _f1(y: Array, predictions: Array, weight: Array | None) -> float:
    several = predictions.shape[1] > (2 if y.ndim == 1 else 1)
    score = _scikit_learn("f1").f1_score
    y, predicted = _classes(y), _decided(y, predictions)
    average = "macro" if several else "binary"
    return float(score(y, predicted, average=average, sample_weight=weight, zero_division=0.0))


def _roc_auc(y: Array, predictions: Array, weight: Array | None) -> float:
    """One class against the rest, mean over classes; NaN where one of them has no rows, or all."""
    several_labels = y.ndim == 1 and predictions.shape[1] > 2
    if several_labels:
        truth: Array = y[:, None] == np.arange(predictions.shape[1])
    else:
        truth, predictions = _classes(y).reshape(len(y), -1), _scores(y, predictions).reshape(len(y), -1)
    rows = slice(None) if weight is None else weight > 0
    shares = truth[rows].mean(axis=0)
    if ((shares == 0) | (shares == 1)).any():
        return float("nan")
    score = _scikit_learn("roc_auc").roc_auc_score
    columns = zip(truth.T, predictions.T, strict=True)
    return float(np.mean([score(a, b, sample_weight=weight) for a, b in columns]))


_TOP = re.compile(r"top_(\d+)_accuracy")

_VALUES: Mapping[str, Measure] = {"rmse": _rmse, "mae": _mae, "mape": _mape, "r2": _r2}

_CLASSES: Mapping[str, Measure] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1": _f1,
    "roc_auc": _roc_auc,
    "log_loss": _log_loss,
}

_LIBRARY = ("f1", "roc_auc")
"""Those that scikit-learn computes."""

_NUMBERS = ("values", "counts", "positive", "anything")
"""Kinds of targets that are no classes."""

_LARGE = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "r2")


# --------------------------------------------------------------------------------------------------
# The user's functions.

_PROBABILITIES = ("y_score", "y_proba", "y_prob", "probas_pred")
"""A function whose second parameter has one of these names takes probabilities, any other one classes."""

_OF_PROBABILITIES = ("log_loss", "d2_log_loss_score")
"""Functions of scikit-learn that take probabilities under another name."""


def _name_of(function: object) -> str:
    inner = function.func if isinstance(function, partial) else function
    name = getattr(inner, "__name__", None)
    if not callable(function):
        raise TypeError(f"metrics must be names or functions (y_true, y_pred), got {function!r}")
    if name is None or name == "<lambda>":
        raise ValueError(f'metrics: a function without a name must be given one, as ("mine", {function!r})')
    return str(name)


def _given(name: str, function: object, kind: TargetKind, weighted: bool) -> Metric:
    if not callable(function):
        raise TypeError(f"metrics must be names or functions (y_true, y_pred), got {function!r} for {name!r}")
    parameters = _parameters(function)
    takes_weight = "sample_weight" in parameters or "**" in parameters
    if weighted and not takes_weight:
        raise TypeError(f"metrics: {name} must have a parameter sample_weight, as the rows have weights")
    if kind in _NUMBERS:
        return Metric(name, _Given(name, function, _as_values, takes_weight), is_given=True)
    if kind == "signs":
        return Metric(name, _Given(name, function, _as_signs, takes_weight), is_given=True)
    if not _takes_probabilities(function, parameters):
        return Metric(name, _Given(name, function, _as_classes, takes_weight), is_given=True)
    bound = function.keywords if isinstance(function, partial) else {}
    takes_labels = "labels" in parameters and "labels" not in bound
    return Metric(name, _Given(name, function, _as_probabilities, takes_weight, takes_labels), is_given=True)


@dataclass(frozen=True, eq=False, repr=False)
class _Given:
    """A function of the user's as a `Measure`."""

    name: str
    function: Callable[..., Any]
    shown: Callable[[Array, Array], tuple[Array, Array]]
    """What the function is given of targets and predictions."""
    takes_weight: bool
    takes_labels: bool = False
    """Whether it can be told the classes, all of which need not occur."""

    def __call__(self, y: Array, predictions: Array, weight: Array | None) -> float:
        options: dict[str, Any] = {}
        if weight is not None and self.takes_weight:
            options["sample_weight"] = weight
        n_classes = _n_classes(y, predictions)
        if self.takes_labels and n_classes is not None:
            options["labels"] = np.arange(n_classes)
        value = self.function(*self.shown(y, predictions), **options)
        scalar = np.asarray(value)
        if scalar.ndim != 0 or scalar.dtype.kind not in "fiub":
            raise TypeError(f"metrics: {self.name} must return a number, got {value!r}")
        return float(scalar)


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters, "**" for keywords of any name; empty where Python cannot tell."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple("**" if p.kind is p.VAR_KEYWORD else p.name for p in found)


def _takes_probabilities(function: Callable[..., Any], parameters: tuple[str, ...]) -> bool:
    inner = function.func if isinstance(function, partial) else function
    from_sklearn = str(getattr(inner, "__module__", "")).startswith("sklearn.")
    if from_sklearn and getattr(inner, "__name__", "") in _OF_PROBABILITIES:
        return True
    return len(parameters) > 1 and parameters[1] in _PROBABILITIES


def _n_classes(y: Array, predictions: Array) -> int | None:
    """Number of classes; None where rows may have several."""
    if y.ndim == 1:
        return int(predictions.shape[1])
    return 2 if y.shape[1] == 1 else None


def _as_signs(y: Array, predictions: Array) -> tuple[Array, Array]:
    return _as_classes(*_unsigned(y, predictions))


def _as_values(y: Array, predictions: Array) -> tuple[Array, Array]:
    predictions = predictions[:, : y.shape[1]]
    return (y[:, 0], predictions[:, 0]) if y.shape[1] == 1 else (y, predictions)


def _as_classes(y: Array, predictions: Array) -> tuple[Array, Array]:
    return _classes(y), _decided(y, predictions)


def _as_probabilities(y: Array, predictions: Array) -> tuple[Array, Array]:
    return _classes(y), _scores(y, predictions)


def _classes(y: Array) -> Array:
    """Labels (n,), of 0 and 1 for one output; or 0 and 1 for each of several outputs."""
    if y.ndim == 1:
        return y
    truth: Array = (y > 0.5).astype(np.int32)
    return truth[:, 0] if y.shape[1] == 1 else truth


def _decided(y: Array, predictions: Array) -> Array:
    """The predicted classes, in the shape of `_classes`."""
    if y.ndim == 1:
        labels: Array = predictions.argmax(axis=1).astype(np.int32)
        return labels
    return _classes(predictions)


def _scores(y: Array, predictions: Array) -> Array:
    """Probabilities of class 1 (n,) for two classes, else of all (n, n_out)."""
    if _n_classes(y, predictions) == 2:
        return predictions[:, -1]
    return predictions
