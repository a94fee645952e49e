"""From a data set to arrays that a network trains on: task, classes, parts, encoder, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstep.data import DataSet, Task, choose_rows, infer_task
from gradstep.names import check_name
from gradstep.tables import TableEncoder
from gradstep.validation import check_integer, numeric_array

Array = NDArray[Any]
Part = tuple[Array, Array]

MAX_CLASSES = 1000
"""More distinct values than this are not taken for classes, whatever the option says."""


@dataclass(frozen=True)
class Problem:
    """What to learn, from which rows."""

    task: Task
    reason: str
    """Why this task."""
    classes: list[str] | None
    """Names of the labels 0, 1, ... for classification."""
    encoder: TableEncoder | None
    preprocessing: str
    train: Part
    validation: Part | None
    test: Part | None

    @property
    def n_out(self) -> int:
        """Outputs of the network."""
        if self.classes is not None:
            return len(self.classes)
        y = self.train[1]
        return y.shape[1] if y.ndim == 2 else 1


@dataclass(frozen=True)
class Choices:
    """What the user may decide about the data."""

    task: str = "auto"
    preprocessing: str = "auto"
    max_categories: int = 255
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0

    def check(self) -> None:
        """Raise a ValueError for choices that fit no data at all."""
        check_name("--task", self.task, ("auto", "classification", "regression"))
        check_name("--preprocessing", self.preprocessing, ("auto", "standardize", "minmax", "none"))
        check_integer("--max-categories", self.max_categories, minimum=1)
        fractions = {"validation": self.validation_fraction, "test": self.test_fraction}
        for name, fraction in fractions.items():
            if not 0 <= fraction < 1:
                raise ValueError(f"--{name}-fraction must be at least 0 and less than 1, got {fraction:g}")
        if sum(fractions.values()) >= 1:
            raise ValueError(
                "--validation-fraction and --test-fraction must add up to less than 1, got "
                f"{self.validation_fraction:g} and {self.test_fraction:g}"
            )


def make_problem(data: DataSet, choices: Choices, dtype: str = "float32") -> Problem:
    """Decide the task, split the rows and encode them.

    Rows are split at random by the seed, classes in equal shares. What the encoder knows it learnt
    from the training rows alone.

    Parameters
    ----------
    data : DataSet
        All rows.
    choices : Choices
        Checked choices.
    dtype : {"float32", "float64"}
        What the network will compute in.

    Returns
    -------
    Problem
        With validation and test rows where their share of the rows is at least one row.

    Raises
    ------
    ValueError
        If the target does not suit the task, or a number is too large for dtype.
    """
    task, reason = _task(data, choices.task)
    _check_fits(data, task, dtype)
    classes, y, y_test = _targets(data, task)
    groups = y if task == "classification" else np.zeros(len(y))
    parts = _split(groups, choices, has_test=data.test is not None)
    encoder = None
    if data.is_table:
        encoder = TableEncoder(max_categories=choices.max_categories).fit(_rows(data, parts["train"]))
    made: dict[str, Part | None] = {
        name: (_encoded(data, rows, encoder), y[rows]) if rows.any() else None for name, rows in parts.items()
    }
    if data.test is not None and y_test is not None:
        made["test"] = data.test[0], y_test
    train = made["train"]
    if train is None:
        raise ValueError(f"{data.name} has too few rows to split: {len(data)}")
    return Problem(
        task=task,
        reason=reason,
        classes=classes,
        encoder=encoder,
        preprocessing=_preprocessing(data, choices.preprocessing),
        train=train,
        validation=made["validation"],
        test=made["test"],
    )


def _task(data: DataSet, wanted: str) -> tuple[Task, str]:
    if wanted == "classification":
        return "classification", "as asked for"
    if wanted == "regression":
        if data.target.dtype.kind not in "iuf":
            raise ValueError(f"regression needs a target of numbers, but that of {data.name} holds others")
        return "regression", "as asked for"
    return infer_task(data.target)


def _check_fits(data: DataSet, task: Task, dtype: str) -> None:
    """Refuse numbers too large for dtype now: once rows are shuffled, their numbers say nothing."""
    arrays: dict[str, Any] = {} if data.is_table else {"X": data.features}
    target = data.target_name or "y"
    if task == "regression":
        arrays[target] = data.target
    if data.test is not None:
        arrays["X_test"] = data.test[0]
        if task == "regression":
            arrays["y_test"] = data.test[1]
    for name, values in arrays.items():
        try:
            numeric_array(name, values, dtype)
        except ValueError as error:
            raise ValueError(f"{data.name} cannot be used: {error}") from None


def _targets(data: DataSet, task: Task) -> tuple[list[str] | None, Array, Array | None]:
    """Names of the classes, and the targets as labels or numbers: of all rows, and of the set's test part."""
    y_test = None if data.test is None else data.test[1]
    if task == "regression":
        return None, data.target, y_test
    if data.target.ndim == 2:
        raise ValueError(f"classification needs one target column, but {data.name} has several")
    values, labels = np.unique(data.target, return_inverse=True)
    if len(values) < 2:
        raise ValueError(f"the target of {data.name} has only the value {str(values[0])!r}: nothing to learn")
    if len(values) > min(MAX_CLASSES, max(2, len(data) // 2)):
        raise ValueError(
            f"the target of {data.name} has {len(values)} distinct values in {len(data)} rows, too many for "
            "classes: choose another target, or --task regression for numbers"
        )
    if y_test is not None:
        unknown = np.setdiff1d(y_test, values)
        if len(unknown):
            raise ValueError(f"y_test of {data.name} has the class {str(unknown[0])!r}, but y_train has not")
        y_test = np.searchsorted(values, y_test)
    return [str(value) for value in values], labels, y_test


def _split(groups: Array, choices: Choices, has_test: bool) -> dict[str, NDArray[np.bool_]]:
    """Which rows belong to training, validation and test; fractions are of all rows."""
    test_fraction = 0.0 if has_test else choices.test_fraction
    test = choose_rows(groups, test_fraction, choices.seed)
    validation = np.zeros(len(groups), dtype=bool)
    fraction = choices.validation_fraction / (1 - test_fraction)
    validation[~test] = choose_rows(groups[~test], fraction, choices.seed + 1)
    return {"train": ~(test | validation), "validation": validation, "test": test}


def _rows(data: DataSet, rows: NDArray[np.bool_]) -> Any:
    return data.features[rows] if isinstance(data.features, np.ndarray) else data.features.filter(rows)


def _encoded(data: DataSet, rows: NDArray[np.bool_], encoder: TableEncoder | None) -> Array:
    selected = _rows(data, rows)
    if encoder is None:
        return np.ascontiguousarray(selected)
    try:
        return encoder.transform(selected)
    except ValueError:
        # All rows fail, too, and name the one of the file.
        encoder.transform(data.features)
        raise


def _preprocessing(data: DataSet, wanted: str) -> str:
    """By default minmax for whole numbers such as pixels, whose zeros mean nothing; else standardize."""
    if data.is_table:
        return "none"
    if wanted != "auto":
        return wanted
    X = np.asarray(data.features)
    is_whole = X.dtype.kind in "biu" or np.array_equal(X, np.floor(X))
    return "minmax" if is_whole else "standardize"
