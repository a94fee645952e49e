"""Weights of classes, and the sample weights that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.losses import TargetKind
from gradstep.validation import as_numbers, check_real, check_weight


def class_factors(
    class_weight: Mapping[Any, float] | str,
    kind: TargetKind,
    y: Array,
    n_out: int,
    names: Sequence[str] | None,
) -> Array:
    """The weight of every row's class, float64 (n,).

    Parameters
    ----------
    class_weight
        By number or name of the class, or "balanced".
    kind
        What y holds.
    y
        Validated targets.
    n_out
        Outputs of the network.
    names
        Of the classes, or None.

    Raises
    ------
    TypeError, ValueError
        If the targets are not classes, or the weights not as above.
    """
    labels, count = _labels(kind, y, n_out)
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight must be 'balanced' or a dict, got {class_weight!r}")
        rows = np.bincount(labels, minlength=count)
        balanced: Array = (len(labels) / np.count_nonzero(rows) / np.maximum(rows, 1))[labels]
        return balanced
    if not isinstance(class_weight, Mapping):
        raise TypeError(f"class_weight must be 'balanced' or a dict, got {type(class_weight).__name__}")
    numbers = {**{number: number for number in range(count)}, **_named(names, count)}
    if kind == "signs":
        numbers[-1] = 0
    weights = np.ones(count)
    for key, value in class_weight.items():
        if key not in numbers:
            known = ", ".join(str(name) for name in names or range(count))
            raise ValueError(f"class_weight has the class {key!r}, but the classes are {known}")
        weights[numbers[key]] = check_real(f"class_weight[{key!r}]", value, minimum=0.0)
    return weights[labels]


def _named(names: Sequence[str] | None, count: int) -> dict[Any, int]:
    if names is None or len(names) != count:
        return {}
    return {name: number for number, name in enumerate(names)}


def _labels(kind: TargetKind, y: Array, n_out: int) -> tuple[Array, int]:
    """Numbers of the rows' classes, and of how many."""
    if kind == "labels":
        return y, n_out
    if kind not in ("probabilities", "signs"):
        raise ValueError("class_weight needs a loss for classes: give sample_weight instead")
    if n_out > 1:
        raise ValueError(
            "class_weight needs one class for each row, but the network has several yes-or-no outputs"
        )
    column = y[:, 0]
    if kind == "probabilities" and not ((column == 0) | (column == 1)).all():
        raise ValueError("class_weight needs targets that are 0 or 1: give sample_weight instead")
    return (column > 0).astype(np.int64), 2


def weight_of_classes(factors: Array, sample_weight: Any, dtype: str) -> Array:
    """Sample weights of the rows, times the weights of their classes.

    Raises
    ------
    ValueError
        If all of them are zero, or some too small for the others.
    """
    if sample_weight is not None:
        factors = factors * as_numbers("sample_weight", sample_weight).astype(np.float64)
    weight = check_weight(factors, dtype, len(factors), "sample_weight times class_weight")
    assert weight is not None
    return weight
