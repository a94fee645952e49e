"""Turn what users pass into what engines trust, or say in one sentence what is wrong.

Nothing here changes its arguments. Arrays that already have the right dtype and layout are returned
as they are; everything else is copied once.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WEIGHT_RATIO = 1e-30
"""Smallest sample weight beside the largest: float32 holds both and their sums."""

PART_WEIGHTS = (1e-15, 1e15)
"""Sample weights of rows that come in parts: float32 holds the sums of any of them."""

BLOCK_ELEMENTS = 8192
"""Numbers checked at a time: they stay in the cache, and no BLAS uses threads for so few."""

READY_ELEMENTS = 8192
"""Most numbers of an array that engines check themselves; the compiled one has the same in ready_arrays.h."""


def check_integer(argument: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """An integer of any integer type within bounds.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is out of bounds.
    """
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument} must be an integer, got {value!r}")
    number = operator.index(value)
    if number < minimum:
        raise ValueError(f"{argument} must be at least {minimum}, got {number}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{argument} must be at most {maximum}, got {number}")
    return number


def check_real(
    argument: str,
    value: object,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
) -> float:
    """A finite number within bounds, of which `above` and `below` are themselves excluded.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is not finite or out of bounds.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{argument} must fit float64, got an integer of {len(str(value))} digits") from None
    bounds = [
        (above, "greater than", operator.gt),
        (minimum, "at least", operator.ge),
        (below, "less than", operator.lt),
    ]
    for bound, words, holds in bounds:
        if bound is not None and not holds(number, bound):
            raise ValueError(f"{argument} must be {words} {bound:g}, got {number!r}")
    if not math.isfinite(number):
        raise ValueError(f"{argument} must be finite, got {number!r}")
    return number


def check_flag(argument: str, value: object) -> bool:
    """True or False, or a TypeError."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    return bool(value)


def numeric_array(argument: str, values: Any, dtype: str | None = None) -> Array:
    """Anything numpy can view as an array of real, finite numbers.

    Parameters
    ----------
    argument
        Name of the argument, for errors.
    values
        Array, memory map, list, or frame of numbers; any numeric dtype, layout or number of dimensions.
    dtype
        "float32" or "float64" to convert to; None keeps the dtype.

    Returns
    -------
    numpy.ndarray
        With a dtype: C-contiguous and aligned, the argument's own memory where possible.

    Raises
    ------
    TypeError
        If the values are not numbers.
    ValueError
        If they are ragged, empty, masked, NaN or infinite.
    """
    array = as_numbers(argument, values)
    if array.size == 0:
        raise ValueError(f"{argument} is empty: its shape is {array.shape}")
    if dtype is None:
        if array.dtype.kind == "f":
            check_finite(argument, array)
        return array
    converted = array
    if not (array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned):
        with np.errstate(over="ignore"):
            converted = np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])
    check_finite(argument, converted, source=array)
    return converted


def as_numbers(argument: str, values: Any) -> Array:
    """Anything numpy can view as an array of real numbers, in the precision in which it was given."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{argument} has masked values, which training cannot skip")
    try:
        array: Array = np.asarray(values)
    except ValueError:
        raise ValueError(f"{argument} must be a regular array, but its rows differ in length") from None
    if array.dtype.kind == "O":
        return _from_objects(argument, array)
    if array.dtype.kind in "US":
        raise TypeError(f"{argument} must hold numbers, but {_cell(argument, array, 0)} is a string")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{argument} must hold real numbers, got dtype {array.dtype}")
    return array


def _from_objects(argument: str, array: Array) -> Array:
    """Objects as float64, if every one is a number."""
    if array.ndim == 0:
        raise TypeError(f"{argument} must be an array of numbers, got {type(array.item()).__name__}")
    for position, value in enumerate(array.flat):
        if not isinstance(value, numbers.Real | np.bool_) and not _is_decimal(value):
            what = "a string" if isinstance(value, str) else f"of type {type(value).__name__}"
            raise TypeError(f"{argument} must hold numbers, but {_cell(argument, array, position)} is {what}")
    try:
        return array.astype(np.float64)
    except OverflowError:
        position = next(i for i, value in enumerate(array.flat) if abs(value) > sys.float_info.max)
        index = ", ".join(str(int(i)) for i in np.unravel_index(position, array.shape))
        raise ValueError(f"{argument} must fit float64, but {argument}[{index}] is too large") from None


def _is_decimal(value: object) -> bool:
    return type(value).__name__ == "Decimal"


def _cell(argument: str, array: Array, position: int) -> str:
    """``X[3, 1] = value``, for the element at a flat position."""
    index = ", ".join(str(int(i)) for i in np.unravel_index(position, array.shape))
    value = array.flat[position]
    shown = repr(value.item() if isinstance(value, np.generic) else value)
    return f"{argument}[{index}] = {shown}" if index else f"{argument} = {shown}"


def all_finite(flat: Array) -> bool:
    """Whether no element of a contiguous array of any shape is NaN or infinite.

    The dot product with itself is finite only if every element is, and costs less than looking at
    each; where it overflows, they are looked at.
    """
    square = float(np.vdot(flat, flat))
    return square - square == 0 or bool(np.isfinite(flat).all())


def check_finite(argument: str, array: Array, source: Array | None = None) -> None:
    """Raise a ValueError that names the first row and column with NaN or infinity.

    Parameters
    ----------
    argument
        Name of the argument.
    array
        Floating point values, checked block by block.
    source
        The values before their conversion, to tell what was given; the same shape.
    """
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK_ELEMENTS):
        block = flat[start : start + BLOCK_ELEMENTS]
        if not all_finite(block):
            position = start + int(np.argmin(np.isfinite(block)))
            given = array if source is None else source
            raise ValueError(_not_finite(argument, given, position, array.dtype))


def _not_finite(argument: str, source: Array, position: int, dtype: np.dtype[Any]) -> str:
    cell = _cell(argument, source, position)
    where = ""
    if source.ndim == 2:
        row, column = divmod(position, source.shape[1])
        where = f" (row {row}, column {column}, counted from 0)"
    if np.isfinite(source.flat[position]):
        return f"{argument} must fit {dtype}, but {cell}{where} is too large"
    return f"{argument} must be finite, but {cell}{where}"


def check_inputs(X: Any, dtype: str, n_in: int | None, argument: str = "X") -> Array:
    """Inputs as (n, n_in) in the dtype, C-contiguous; in place if they are so already.

    Raises
    ------
    TypeError
        If X does not hold numbers.
    ValueError
        If X is not finite, has no rows, is not two-dimensional or has another width than n_in.
    """
    if type(X) is not np.ndarray or X.dtype != dtype:
        X = as_numbers(argument, X)
    if X.ndim != 2:
        shapes = f"{argument}.reshape(-1, 1) if it is one column, {argument}.reshape(1, -1) if it is one row"
        hint = f"; use {shapes}" if X.ndim == 1 else ""
        raise ValueError(f"{argument} must have two dimensions (rows, columns), got shape {X.shape}{hint}")
    if X.shape[0] == 0 or X.shape[1] == 0:
        raise ValueError(f"{argument} must have at least one row and one column, got shape {X.shape}")
    if n_in is not None and X.shape[1] != n_in:
        raise ValueError(
            f"{argument} must have {n_in} column(s), the network's input width, got {X.shape[1]}"
        )
    return numeric_array(argument, X, dtype)


def check_categories(argument: str, X: Array, column: int, categories: int) -> None:
    """Raise a ValueError unless a column of X holds numbers of categories."""
    if column >= X.shape[1]:
        raise ValueError(
            f"{argument} must have a column {column}, which is embedded, got {X.shape[1]} column(s)"
        )
    values = X[:, column]
    wrong = np.flatnonzero((values < 0) | (values >= categories) | (values != np.floor(values)))
    if wrong.size:
        raise ValueError(
            f"column {column} of {argument} must hold categories 0 to {categories - 1}, "
            f"got {values[wrong[0]]:g} in row {wrong[0]}"
        )


def check_values(y: Any, dtype: str, n: int, n_out: int, argument: str = "y") -> Array:
    """Targets as (n, n_out) in the dtype; a vector is one column.

    Raises
    ------
    TypeError
        If y does not hold numbers.
    ValueError
        If y is not finite, or its length or width does not match.
    """
    array = as_numbers(argument, y)
    _check_length(argument, array, n)
    if array.ndim == 1 and n_out == 1:
        array = array.reshape(n, 1)
    if array.ndim != 2 or array.shape[1] != n_out:
        raise ValueError(
            f"{argument} must have shape ({n}, {n_out}), as the network has {n_out} output(s), "
            f"got {array.shape}"
        )
    return numeric_array(argument, array, dtype)


def check_counts(y: Any, dtype: str, n: int, n_out: int, argument: str = "y") -> Array:
    """Targets as `check_values`, none of them negative."""
    array = check_values(y, dtype, n, n_out, argument)
    if array.min() < 0:
        position = int(np.argmax(array < 0))
        raise ValueError(
            f"{argument} must not be negative for poisson, but {_cell(argument, array, position)}"
        )
    return array


def check_positive(y: Any, dtype: str, n: int, n_out: int, argument: str = "y") -> Array:
    """Targets as `check_values`, all of them positive in the dtype's normal range."""
    array = check_values(y, dtype, n, n_out, argument)
    least = np.finfo(array.dtype).tiny
    if array.min() < least:
        cell = _cell(argument, array, int(np.argmax(array < least)))
        raise ValueError(f"{argument} must be positive for gamma (at least {least:.2g}), but {cell}")
    return array


def check_signs(y: Any, dtype: str, n: int, n_out: int, argument: str = "y") -> Array:
    """Targets as `check_values`, which are -1 and 1, or 0 and 1; as -1 and 1.

    Raises
    ------
    ValueError
        If there are others.
    """
    array = check_values(y, dtype, n, n_out, argument)
    no = -1 if array.min() < 0 else 0
    if (bad := (array != no) & (array != 1)).any():
        cell = _cell(argument, array, int(np.argmax(bad)))
        raise ValueError(f"{argument} must hold -1 and 1, or 0 and 1, for binary_hinge, but {cell}")
    return array if no else 2 * array - 1


def check_anything(y: Any, dtype: str, n: int, n_out: int, argument: str = "y") -> Array:
    """Targets as (n, columns) in the dtype, any number of columns; a vector is one column."""
    array = as_numbers(argument, y)
    _check_length(argument, array, n)
    if array.ndim == 1:
        array = array.reshape(n, 1)
    if array.ndim != 2:
        raise ValueError(f"{argument} must have one or two dimensions, got shape {array.shape}")
    return numeric_array(argument, array, dtype)


def check_probabilities(y: Any, dtype: str, n: int, n_out: int, argument: str = "y") -> Array:
    """Targets as `check_values`, all of them in [0, 1]."""
    array = check_values(y, dtype, n, n_out, argument)
    if array.min() < 0 or array.max() > 1:
        position = int(np.argmax((array < 0) | (array > 1)))
        raise ValueError(
            f"{argument} must be between 0 and 1 for binary_cross_entropy and binary_focal, "
            f"but {_cell(argument, array, position)}"
        )
    return array


def check_labels(y: Any, dtype: str, n: int, n_out: int, argument: str = "y") -> Array:
    """Targets as int32 labels (n,), from integers in [0, n_out) or exact one-hot rows (n, n_out).

    Raises
    ------
    TypeError
        If y does not hold numbers.
    ValueError
        If a label is no integer or out of range, a row is not one-hot, or the length does not match.
    """
    try:
        array = as_numbers(argument, y)
    except TypeError as error:
        hint = "number the classes with names, y = np.unique(y, return_inverse=True)"
        raise TypeError(f"{error}: {hint}") from None
    _check_length(argument, array, n)
    if array.ndim == 2 and array.shape[1] == n_out:
        return _labels_of_one_hot(argument, array)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array.reshape(n)
    if array.ndim != 1:
        raise ValueError(
            f"{argument} must hold one label per row or one-hot rows of width {n_out}, "
            f"got shape {array.shape}"
        )
    if array.dtype.kind == "f":
        check_finite(argument, array)
        if (fractional := array != np.floor(array)).any():
            cell = _cell(argument, array, int(np.argmax(fractional)))
            raise ValueError(f"{argument} must hold integer labels, but {cell}")
    if array.min() < 0 or array.max() >= n_out:
        cell = _cell(argument, array, int(np.argmax((array < 0) | (array >= n_out))))
        raise ValueError(
            f"labels in {argument} must be 0 to {n_out - 1}, as the network has {n_out} outputs, but {cell}"
        )
    labels: Array = np.ascontiguousarray(array, dtype=np.int32)
    return labels


def _labels_of_one_hot(argument: str, array: Array) -> Array:
    ones = array == 1
    bad = ((array != 0) & ~ones).any(axis=1) | (ones.sum(axis=1) != 1)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{argument} with {array.shape[1]} columns must be one-hot (a single 1, else 0), "
            f"but row {row} is {_short(array[row])}"
        )
    labels: Array = ones.argmax(axis=1).astype(np.int32)
    return labels


def _short(row: Array) -> str:
    shown = ", ".join(f"{value:g}" for value in row[:6].astype(np.float64))
    return f"[{shown}{', ...' if len(row) > 6 else ''}]"


TARGET_CHECKS: dict[str, Callable[[Any, str, int, int, str], Array]] = {
    "values": check_values,
    "counts": check_counts,
    "positive": check_positive,
    "probabilities": check_probabilities,
    "signs": check_signs,
    "labels": check_labels,
    "anything": check_anything,
}
"""By `Loss.target_kind`: arguments y, dtype, n, columns of y that are not labels, and the argument's name."""


def check_weight(weight: Any, dtype: str, n: int, argument: str = "sample_weight") -> Array | None:
    """Sample weights as (n,) in the dtype, or None for None.

    Raises
    ------
    TypeError
        If they are not numbers.
    ValueError
        If they are negative, not finite, all zero, or do not match the rows.
    """
    if weight is None:
        return None
    array = _weights(argument, weight, n)
    if not array.any():
        raise ValueError(f"{argument} must not be all zero")
    if array[array > 0].min() < WEIGHT_RATIO * array.max():
        cell = _cell(argument, array, int(np.argmin(np.where(array > 0, array, np.inf))))
        raise ValueError(
            f"{argument} must be 0 or at least {WEIGHT_RATIO:g} times its largest value, but {cell}"
        )
    return numeric_array(argument, _scaled_to_sum(array), dtype)


def check_weight_part(weight: Any, dtype: str, n: int, argument: str = "sample_weight") -> Array | None:
    """Sample weights of a part of the rows: as `check_weight`, but maybe all zero, and never rescaled.

    Raises
    ------
    TypeError
        If they are not numbers.
    ValueError
        If they are negative, not finite, do not match the rows, or are not 0 or between `PART_WEIGHTS`.
    """
    if weight is None:
        return None
    array = _weights(argument, weight, n)
    low, high = PART_WEIGHTS
    if (bad := (array != 0) & ~((array >= low) & (array <= high))).any():
        cell = _cell(argument, array, int(np.argmax(bad)))
        raise ValueError(f"{argument} of a batch must be 0 or between {low:g} and {high:g}, but {cell}")
    return numeric_array(argument, array, dtype)


def _weights(argument: str, weight: Any, n: int) -> Array:
    array = as_numbers(argument, weight)
    if array.ndim != 1:
        raise ValueError(f"{argument} must have shape ({n},), got {array.shape}")
    _check_length(argument, array, n)
    array = numeric_array(argument, array)
    if array.min() < 0:
        cell = _cell(argument, array, int(np.argmax(array < 0)))
        raise ValueError(f"{argument} must not be negative, but {cell}")
    return array


def _scaled_to_sum(weight: Array) -> Array:
    """Weights times a power of two, where float32 could not hold them or their sum: only ratios matter."""
    largest = float(weight.max())
    if largest > 1e-20 and largest * len(weight) < 1e30:
        return weight
    scaled: Array = np.ldexp(weight.astype(np.float64), -math.frexp(largest)[1])
    return scaled


def _check_length(argument: str, array: Array, n: int) -> None:
    if array.ndim == 0:
        raise ValueError(f"{argument} must have one entry per row of X ({n}), got the single value {array}")
    if len(array) != n:
        raise ValueError(f"{argument} must have as many rows as X ({n}), got {len(array)}")


def check_batch_size(batch_size: object, n: int, default: int) -> int:
    """Rows of a batch, 1 to n; None gives the default."""
    if batch_size is None:
        return default
    size = check_integer("batch_size", batch_size, minimum=1)
    if size > n:
        raise ValueError(f"batch_size must be at most the number of rows ({n}), got {size}")
    return size
