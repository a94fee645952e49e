"""How good predictions are: what `Network.evaluate` returns beside the loss."""

from __future__ import annotations

import numpy as np

from gradstep.backends.base import Array
from gradstep.losses import TargetKind


def metric_names(kind: TargetKind) -> tuple[str, ...]:
    """The keys of `metrics`."""
    if kind == "anything":
        return ()
    return ("rmse", "r2") if kind in ("values", "counts", "positive") else ("accuracy",)


def metrics(kind: TargetKind, predictions: Array, y: Array, weight: Array | None) -> dict[str, float]:
    """Metrics of predictions in the units of y.

    Parameters
    ----------
    kind
        What y holds, `Loss.target_kind`.
    predictions
        (n, n_out): values, probabilities, or decision values; of gaussian_nll the means, then the variances.
    y
        (n,) for labels, else (n, targets).
    weight
        Sample weights, (n,), or None.

    Returns
    -------
    dict
        ``accuracy`` for labels (the largest output), for probabilities (above 0.5) and for signs (above 0),
        all outputs together; nothing for a custom loss; ``rmse``, the root of the mean squared error, and
        ``r2``, the mean over outputs of 1 - sum (p - y)^2 / sum (y - mean y)^2, for values. r2 is NaN where
        y is constant.
    """
    if kind == "anything":
        return {}
    if kind == "labels":
        return {"accuracy": _mean(predictions.argmax(axis=1) == y, weight)}
    if kind == "probabilities":
        return {"accuracy": _mean(((predictions > 0.5) == (y > 0.5)).mean(axis=1), weight)}
    if kind == "signs":
        return {"accuracy": _mean(((predictions > 0) == (y > 0)).mean(axis=1), weight)}
    return _regression(predictions[:, : y.shape[1]].astype(np.float64), y.astype(np.float64), weight)


def _mean(values: Array, weight: Array | None) -> float:
    return float(np.average(values, weights=weight))


def _regression(predictions: Array, y: Array, weight: Array | None) -> dict[str, float]:
    squares = np.average(np.square(predictions - y), axis=0, weights=weight)
    variance = np.average(np.square(y - np.average(y, axis=0, weights=weight)), axis=0, weights=weight)
    constant = variance == 0
    r2 = np.where(constant, np.nan, 1 - squares / np.where(constant, 1, variance))
    return {"rmse": float(np.sqrt(squares.mean())), "r2": float(r2.mean())}
