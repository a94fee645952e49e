"""Statistics of the training rows: the affine maps that stand before the first layer and after the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstep.names import check_name
from gradstep.validation import as_numbers

Array = NDArray[Any]

BLOCK_ELEMENTS = 1 << 14
"""Numbers converted to float64 at a time: a file larger than memory is read block by block."""


@dataclass(frozen=True, eq=False, repr=False)
class ColumnStatistics:
    """Mean, standard deviation, minimum and maximum of every column, float64 (n_columns,)."""

    mean: Array
    deviation: Array
    minimum: Array
    maximum: Array


class RunningStatistics:
    """Statistics of all columns in one pass over rows that come in pieces.

    Blocks are merged as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979. How the rows are cut into pieces does not change a bit.

    Parameters
    ----------
    width
        Number of columns.
    """

    def __init__(self, width: int) -> None:
        self._rows = max(1, BLOCK_ELEMENTS // width)
        self._rest = np.empty((0, width))
        self._count = 0
        self._mean, self._squares = np.zeros(width), np.zeros(width)
        self._minimum, self._maximum = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, X: Array) -> None:
        """Take in rows, (n, width), any real dtype, finite."""
        filling = min(len(X), -len(self._rest) % self._rows)
        if filling:
            self._rest = np.concatenate([self._rest, X[:filling]], dtype=np.float64)
        if len(self._rest) == self._rows:
            self._merge(self._rest)
            self._rest = self._rest[:0]
        stop = filling + (len(X) - filling) // self._rows * self._rows
        for start in range(filling, stop, self._rows):
            self._merge(X[start : start + self._rows].astype(np.float64))
        if stop < len(X):
            self._rest = X[stop:].astype(np.float64)

    def _merge(self, block: Array) -> None:
        count, total = self._count, self._count + len(block)
        block_mean = block.mean(axis=0)
        delta = block_mean - self._mean
        self._squares += np.square(block - block_mean).sum(axis=0) + delta**2 * (count * len(block) / total)
        self._mean += delta * (len(block) / total)
        self._minimum = np.minimum(self._minimum, block.min(axis=0))
        self._maximum = np.maximum(self._maximum, block.max(axis=0))
        self._count = total

    def result(self) -> ColumnStatistics:
        """Of all rows so far, at least one; no more can be added."""
        if len(self._rest):
            self._merge(self._rest)
            self._rest = self._rest[:0]
        constant = self._minimum == self._maximum
        deviation = np.where(constant, 0.0, np.sqrt(self._squares / self._count))
        mean = np.where(constant, self._minimum, self._mean)
        return ColumnStatistics(mean, deviation, self._minimum, self._maximum)


def column_statistics(X: Array) -> ColumnStatistics:
    """Statistics of all columns in one pass over the rows.

    The deviation divides by n.

    Parameters
    ----------
    X
        (n, n_columns), any floating dtype, finite.

    Returns
    -------
    ColumnStatistics
        A constant column has exactly its value as mean, and a deviation of 0.
    """
    running = RunningStatistics(X.shape[1])
    running.add(X)
    return running.result()


@dataclass(frozen=True, eq=False, repr=False)
class Transform:
    """``(x - shift) * scale`` per column, float64 (n_columns,) each."""

    shift: Array
    scale: Array

    def apply(self, values: Array, dtype: str) -> Array:
        """Transformed values, computed in float64, in the dtype."""
        transformed: Array = ((values - self.shift) * self.scale).astype(dtype)
        return transformed

    def invert(self, values: Array) -> Array:
        """Values in their own units again, float64: float32 may not resolve them."""
        own: Array = values / self.scale + self.shift
        return own

    def without(self, columns: Sequence[int]) -> Transform:
        """The same, but for columns that stay as they are."""
        shift, scale = self.shift.copy(), self.scale.copy()
        shift[list(columns)], scale[list(columns)] = 0.0, 1.0
        return Transform(shift, scale)

    def to_config(self) -> dict[str, list[float]]:
        """Plain JSON values, exact."""
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Transform:
        """Rebuild a transform from its `to_config`."""
        return cls(np.array(config["shift"], np.float64), np.array(config["scale"], np.float64))


def _standardize(statistics: ColumnStatistics) -> Transform:
    return Transform(statistics.mean, _inverse(statistics.deviation))


def _minmax(statistics: ColumnStatistics) -> Transform:
    return Transform(statistics.minimum, _inverse(statistics.maximum - statistics.minimum))


def _inverse(spread: Array) -> Array:
    """1 / spread, and 1 for a constant column; spreads whose inverse float32 cannot hold count as 0."""
    return 1 / np.where(spread >= np.finfo(np.float32).tiny, spread, 1.0)


PREPROCESSING: dict[str, Callable[[ColumnStatistics], Transform] | None] = {
    "none": None,
    "standardize": _standardize,
    "minmax": _minmax,
}
"""standardize: mean 0 and deviation 1; minmax: from 0 to 1. Constant columns become 0."""

TARGET_PREPROCESSING = ("none", "standardize")


def check_preprocessing(mode: object) -> str:
    """The name of an input preprocessing; "min-max" is accepted for "minmax"."""
    return check_name("preprocessing", "minmax" if mode == "min-max" else mode, PREPROCESSING)


def fit_transform(mode: str, rows: Array, dtype: str, argument: str) -> Transform | None:
    """The transform of a mode for training rows; None for "none".

    Parameters
    ----------
    mode
        A key of `PREPROCESSING`.
    rows
        (n, n_columns), finite, in the precision in which they were given.
    dtype
        In which the network will see the columns.
    argument
        Name of the argument, for errors.

    Raises
    ------
    ValueError
        If the dtype cannot hold the range of a column, or not tell its values apart.
    """
    if PREPROCESSING[mode] is None:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        statistics = column_statistics(rows)
    return transform_of(mode, statistics, rows.dtype, dtype, argument)


def transform_of(
    mode: str, statistics: ColumnStatistics, given: np.dtype[Any], dtype: str, argument: str
) -> Transform | None:
    """The transform of a mode for the statistics of rows given in a dtype; else as `fit_transform`."""
    make = PREPROCESSING[mode]
    if make is None:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        transform = make(statistics)
        span = statistics.maximum - statistics.minimum
    limits = np.finfo(dtype)
    fits = np.isfinite(transform.shift) & np.isfinite(transform.scale) & (transform.scale > 0)
    too_wide = ~(fits & (span < limits.max / 4))
    if too_wide.any():
        column = int(np.argmax(too_wide))
        raise ValueError(
            f"preprocessing {mode!r} cannot span the values of column {column} of {argument}: "
            f"their range must be below {limits.max / 4:.2g} for {dtype}"
        )
    if np.finfo(given if given.kind == "f" else np.float64).eps < limits.eps:
        _check_resolution(statistics, dtype, argument)
    return transform


def _check_resolution(statistics: ColumnStatistics, dtype: str, argument: str) -> None:
    """Refuse columns whose values would fall together when they are rounded to the dtype."""
    magnitude = np.maximum(np.abs(statistics.minimum), np.abs(statistics.maximum))
    lost = (statistics.deviation > 0) & (statistics.deviation < 4 * np.finfo(dtype).eps * magnitude)
    if lost.any():
        column = int(np.argmax(lost))
        raise ValueError(
            f"column {column} of {argument} varies by {statistics.deviation[column]:.3g} around "
            f"{statistics.mean[column]:.9g}, which {dtype} cannot tell apart: subtract an offset, "
            "or make the network with dtype='float64'"
        )


class PieceStatistics:
    """Statistics of rows that come in pieces, as a preprocessing needs them."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._running: RunningStatistics | None = None
        self._dtype = np.dtype(np.float16)

    def add(self, values: Any) -> None:
        """Take in the rows of a piece, as exact as they were given."""
        if PREPROCESSING[self._mode] is None:
            return
        array = as_numbers("X", values)
        self._running = self._running or RunningStatistics(array.shape[1])
        self._dtype = np.result_type(self._dtype, array.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            self._running.add(array)

    def transform(self, dtype: str, argument: str) -> Transform | None:
        """The transform for all rows."""
        if self._running is None:
            return None
        return transform_of(self._mode, self._running.result(), self._dtype, dtype, argument)


def transform_config(mode: str, transform: Transform | None) -> dict[str, Any]:
    """Plain JSON values of a preprocessing and of what it found."""
    statistics = {"shift": None, "scale": None} if transform is None else transform.to_config()
    return {"mode": mode, **statistics}


def transform_from_config(config: Mapping[str, Any], width: int | None) -> Transform | None:
    """What `transform_config` wrote, for so many columns; ValueError says what is wrong with it."""
    if config["shift"] is None:
        return None
    try:
        transform = Transform.from_config(config)
    except OverflowError:
        raise ValueError("statistics of the preprocessing must fit float64") from None
    if config["mode"] == "none":
        raise ValueError("preprocessing 'none' has no statistics")
    if transform.shift.shape != (width,) or transform.scale.shape != (width,):
        raise ValueError(f"statistics of the preprocessing must have {width} entries each")
    if not (
        np.isfinite(transform.shift).all()
        and np.isfinite(transform.scale).all()
        and (transform.scale > 0).all()
    ):
        raise ValueError("statistics of the preprocessing must be finite, and scales positive")
    return transform
