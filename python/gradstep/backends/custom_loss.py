"""A user's loss function, called the same way by every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gradstep.backends.base import Array

LossFunction = Callable[[Array, Array, Array], tuple[float, Any]]
"""``function(y, outputs, weight) -> (value, gradient)``; `gradstep.losses.CustomLoss` says what they are."""


class CustomLoss:
    """Calls the function with read-only arrays, and checks what it returns.

    Parameters
    ----------
    function
        The user's.
    """

    def __init__(self, function: LossFunction) -> None:
        self.function = function
        self._was_finite = False

    def __call__(self, y: Array, outputs: Array, weight: Array | None) -> tuple[float, Array]:
        """Mean loss of a batch and its gradient with respect to the outputs.

        Parameters
        ----------
        y
            (B, columns).
        outputs
            (B, n_out).
        weight
            Sample weights, (B,), or None.

        Raises
        ------
        TypeError, ValueError
            If the function returns something else, or the first time something that is not finite: later,
            training that diverges ends as with any other loss.
        """
        shares = shares_of(weight, len(outputs)).astype(outputs.dtype)
        result = self.function(_read_only(y), _read_only(outputs), shares)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise TypeError(f"the loss function must return (value, gradient), got {type(result).__name__}")
        value, gradient = _as_float(result[0]), _as_array(result[1], outputs)
        if not self._was_finite:
            if not math.isfinite(value):
                raise ValueError(f"the loss function must return a finite value, got {value}")
            if not np.isfinite(gradient).all():
                raise ValueError(
                    "the loss function must return a finite gradient, but it has NaN or infinity"
                )
            self._was_finite = True
        return value, gradient


def shares_of(weight: Array | None, n: int) -> Array:
    """What each row contributes to the mean, float64; nothing if all weights are zero."""
    if weight is None:
        return np.full(n, 1 / n)
    weight = weight.astype(np.float64)
    total = np.sum(weight)
    return weight / total if total > 0 else np.zeros(n)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"the loss function must return a number as its value, got {type(value).__name__}"
        ) from None


def _as_array(gradient: Any, outputs: Array) -> Array:
    try:
        array: Array = np.ascontiguousarray(gradient, dtype=outputs.dtype)
    except (TypeError, ValueError):
        raise TypeError(
            f"the loss function must return an array as its gradient, got {type(gradient).__name__}"
        ) from None
    if array.shape != outputs.shape:
        raise ValueError(
            f"the loss function must return a gradient in the shape of the outputs, {outputs.shape}, "
            f"got {np.shape(gradient)}"
        )
    return array


def _read_only(array: Array) -> Array:
    view: Array = array.view()
    view.flags.writeable = False
    return view
