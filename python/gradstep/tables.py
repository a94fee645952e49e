"""Turn a table of numbers and categories into the float32 matrix that a network trains on."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradstep.validation import check_flag, check_integer, check_real

if TYPE_CHECKING:
    import narwhals as nw

    Frame: TypeAlias = "nw.DataFrame[Any] | _ArrayTable"
    Series: TypeAlias = Any  # nw.Series, or a column of a matrix

BLOCK_ROWS = 65_536
"""Rows of a text column that are Python strings at the same time."""

MAX_CATEGORIES = 255
"""Default limit of one-hot features for one column."""

Kind = Literal["number", "boolean", "text", "empty"]

_BOOLEAN_TEXTS = {"False": ("0", "false"), "True": ("1", "true")}
"""What else may stand for the categories of a column of booleans."""
_FAMILIES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "boolean": (bool, np.bool_),
    "number": (int, float, np.integer, np.floating, Decimal),
}


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers: standardised, with missing values at the median."""

    name: str
    mean: float
    scale: float
    median: float
    indicator: bool
    """A second feature is 1 where the value is missing."""

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the column becomes."""
        return (self.name, f"{self.name} is missing") if self.indicator else (self.name,)

    def encode(self, series: Series, out: NDArray[Any]) -> None:
        """Write ``(x - mean) / scale`` (and the indicator) into out (n, n_features)."""
        values = _numbers(self.name, series)
        missing = np.isnan(values)
        with np.errstate(over="ignore", invalid="ignore"):
            out[:, 0] = (np.where(missing, self.median, values) - self.mean) / self.scale
        _check_finite(self.name, values, out[:, 0])
        if self.indicator:
            out[:, 1] = missing

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "kind": "number",
            "mean": self.mean,
            "scale": self.scale,
            "median": self.median,
            "indicator": self.indicator,
        }


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories: one feature for each known one, all 0 for unknown and missing values."""

    name: str
    categories: tuple[str, ...]
    boolean: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the column becomes."""
        return tuple(f"{self.name}={category}" for category in self.categories)

    def codes(self) -> dict[str, int]:
        """The number of the feature for every text that stands for a category."""
        index = {category: j for j, category in enumerate(self.categories)}
        if self.boolean:
            for category, spellings in _BOOLEAN_TEXTS.items():
                index.update({text: index[category] for text in spellings if category in index})
        else:
            # Readers take a column of true and false alone for booleans, whose text is True and False.
            for text in _BOOLEAN_TEXTS:
                for spelling in (text.lower(), text.upper()):
                    if spelling in index:
                        index.setdefault(text, index[spelling])
        return index

    def encode(self, series: Series, out: NDArray[Any]) -> None:
        """Write the one-hot rows into out (n, n_categories)."""
        out[:] = 0
        index = self.codes()
        for rows, texts in _text_blocks(self.name, series):
            codes = np.fromiter((index.get(text, -1) for text in texts), dtype=np.intp, count=len(texts))
            known = codes >= 0
            out[rows[known], codes[known]] = 1

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        kind = "boolean" if self.boolean else "category"
        return {"name": self.name, "kind": kind, "categories": list(self.categories)}


@dataclass(frozen=True)
class EmptyColumn:
    """A column without any value in training: it becomes no feature."""

    name: str

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the column becomes."""
        return ()

    def encode(self, series: Series, out: NDArray[Any]) -> None:
        """Write nothing."""

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "kind": "empty"}


Column = NumberColumn | CategoryColumn | EmptyColumn


class _ArrayTable:
    """A matrix of numbers as a table whose columns are x0, x1, ..."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.shape = array.shape
        self.columns = [f"x{index}" for index in range(array.shape[1])]

    def __getitem__(self, name: str) -> NDArray[Any]:
        column: NDArray[Any] = self.array[:, int(name[1:])]
        return column


class TableEncoder:
    """Turn pandas, polars or pyarrow tables, or matrices of numbers, into float32 matrices.

    What a column becomes is learnt from the training rows in `fit`:

    - Numbers are standardised, ``(x - mean) / standard deviation`` over the values that are present;
      a constant column is only centred. Missing values (null or NaN) take the column's median.
      A column that had missing values in training gets a second feature, 1 where the value was
      missing. Missing values that appear only later take the median too, and have no such feature.
    - Text, categorical, enum and boolean columns become one feature for each category of the
      training rows, in the order of their text: 1 for the row's category, else 0. Categories that
      training did not see and missing values are all zeros.
    - A column with more than `max_categories` categories keeps the most frequent ones (ties go to
      the first in text order); the others count as unknown.
    - A column that was entirely missing in training becomes no feature.
    - Of features that would have the same name, the later ones get a number: ``x is missing (2)``.

    The tables given to `transform` need the same columns, in any order: columns are matched by name. The
    columns of a matrix are named x0, x1, ...

    Parameters
    ----------
    max_categories : int, default 255
        Most features that one column of categories may become, at least 1.

    Raises
    ------
    TypeError, ValueError
        If max_categories is no such number.
    """

    def __init__(self, *, max_categories: int = MAX_CATEGORIES) -> None:
        self.max_categories = check_integer("max_categories", max_categories, minimum=1)
        self._columns: tuple[Column, ...] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the table's columns, in the order of training."""
        return tuple(column.name for column in self._fitted())

    @property
    def encodings(self) -> tuple[Column, ...]:
        """What every column becomes, in the order of training."""
        return self._fitted()

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Names of the columns whose categories are text, for readers of files that guess types."""
        return tuple(
            column.name
            for column in self._fitted()
            if isinstance(column, CategoryColumn) and not column.boolean
        )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features, one for each column of what `transform` returns, all different."""
        names: dict[str, None] = {}
        for wanted in (name for column in self._fitted() for name in column.features):
            name, number = wanted, 1
            while name in names:
                number += 1
                name = f"{wanted} ({number})"
            names[name] = None
        return tuple(names)

    @property
    def n_features(self) -> int:
        """Number of columns of what `transform` returns."""
        return sum(len(column.features) for column in self._fitted())

    def fit(self, frame: Any, sample_weight: NDArray[Any] | None = None) -> TableEncoder:
        """Learn what every column becomes.

        Parameters
        ----------
        frame : pandas, polars or pyarrow table, or ndarray of numbers, (n, n_columns)
            Training rows, without the target column.
        sample_weight : ndarray, (n,), optional
            Weights of the rows in means, deviations, medians and counts of categories; positive.

        Returns
        -------
        TableEncoder
            The encoder itself.

        Raises
        ------
        TypeError
            If frame is not such a table, or a column holds neither numbers nor categories.
        ValueError
            If the table is empty, holds an infinite number, or has no column with a value.
        """
        table = _as_table(frame)
        if table.shape[0] == 0 or table.shape[1] == 0:
            raise ValueError(f"frame must have rows and columns, got a table of shape {table.shape}")
        columns = tuple(
            _fit_column(name, table[name], self.max_categories, sample_weight) for name in table.columns
        )
        if not any(column.features for column in columns):
            raise ValueError("frame has no value in any column")
        self._columns = columns
        return self

    def transform(self, frame: Any, *, dtype: Any = np.float32) -> NDArray[Any]:
        """Encode a table.

        Parameters
        ----------
        frame : pandas, polars or pyarrow table, or ndarray of numbers, (n, n_columns)
            Any number of rows, with the columns of training in any order.
        dtype : dtype, default float32
            float32 or float64.

        Returns
        -------
        ndarray, (n_rows, n_features), C-contiguous
            One row for each row of frame.

        Raises
        ------
        TypeError
            If a column of numbers holds something else.
        ValueError
            If columns are missing or unknown, or a number is infinite.
        """
        columns = self._fitted()
        table = _as_table(frame)
        _check_columns([column.name for column in columns], table.columns)
        out = np.empty((table.shape[0], self.n_features), dtype=dtype)
        start = 0
        for column in columns:
            stop = start + len(column.features)
            column.encode(table[column.name], out[:, start:stop])
            start = stop
        return out

    def fit_transform(self, frame: Any) -> NDArray[Any]:
        """Learn from a table and encode it: ``fit(frame).transform(frame)``."""
        return self.fit(frame).transform(frame)

    def to_config(self) -> dict[str, Any]:
        """Everything the encoder learnt, as plain JSON values."""
        return {
            "max_categories": self.max_categories,
            "columns": [column.to_config() for column in self._fitted()],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TableEncoder:
        """Rebuild an encoder from what `to_config` returned."""
        try:
            encoder = cls(max_categories=config["max_categories"])
            encoder._columns = tuple(_column_from_config(item) for item in config["columns"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"config does not describe a TableEncoder: {error!r}") from None
        if len(set(encoder.columns)) < len(encoder.columns):
            raise ValueError("config does not describe a TableEncoder: it has several columns of one name")
        return encoder

    def __repr__(self) -> str:
        if self._columns is None:
            return f"TableEncoder(max_categories={self.max_categories})"
        return f"TableEncoder({len(self._columns)} columns -> {self.n_features} features)"

    def _fitted(self) -> tuple[Column, ...]:
        if self._columns is None:
            raise ValueError("this TableEncoder has learnt nothing yet: call fit(frame) first")
        return self._columns


def _as_table(frame: Any) -> Frame:
    if isinstance(frame, np.ndarray) and frame.ndim == 2 and frame.dtype.kind in "fiub":
        return _ArrayTable(frame)
    try:
        import narwhals
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'TableEncoder needs the package narwhals: pip install "gradstep[tables]"'
        ) from None
    try:
        table: Frame = narwhals.from_native(frame, eager_only=True)
    except TypeError:
        hint = ": call its collect() first" if hasattr(frame, "collect") else ""
        raise TypeError(
            "frame must be a pandas, polars or pyarrow table, or a matrix of numbers, got "
            f"{type(frame).__name__}{hint}"
        ) from None
    except narwhals.exceptions.DuplicateError:
        raise ValueError("frame has several columns of the same name") from None
    for position, name in enumerate(table.columns):
        if not isinstance(name, str):
            raise TypeError(f"names of columns must be text, but column {position} is named {name!r}")
    return table


def _check_columns(expected: Sequence[str], given: Sequence[str]) -> None:
    missing = [name for name in expected if name not in set(given)]
    extra = [name for name in given if name not in set(expected)]
    if missing:
        near = difflib.get_close_matches(missing[0], extra, n=1, cutoff=0.6)
        hint = f" (is {near[0]!r} meant to be {missing[0]!r}?)" if near else ""
        raise ValueError(f"the table lacks {_named(missing)} that the encoder was fitted with{hint}")
    if extra:
        raise ValueError(f"the table has {_named(extra)} that the encoder was not fitted with")


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the column{'s' if len(names) > 1 else ''} {shown}{more}"


def _fit_column(name: str, series: Series, max_categories: int, weight: NDArray[Any] | None) -> Column:
    kind = _kind(name, series)
    if kind == "empty":
        return EmptyColumn(name)
    if kind == "number":
        return _fit_numbers(name, series, weight)
    counts: Counter[str] = Counter()
    for rows, texts in _text_blocks(name, series):
        if weight is None:
            counts.update(texts)
        else:
            for row, text in zip(rows, texts, strict=True):
                counts[text] += weight[row]
    frequent = sorted(counts, key=lambda text: (-counts[text], text))[:max_categories]
    return CategoryColumn(name, tuple(sorted(frequent)), boolean=kind == "boolean")


def _fit_numbers(name: str, series: Series, weight: NDArray[Any] | None) -> NumberColumn:
    values = _numbers(name, series)
    missing = np.isnan(values)
    present = values[~missing]
    weights = None if weight is None else weight[~missing].astype(np.float64)
    _check_finite(name, values, np.where(missing, 0.0, values))
    low, high = float(present.min()), float(present.max())
    # A power of two keeps the sums below finite without rounding anything.
    exponent = int(np.frexp(max(abs(low), abs(high)))[1])
    unit = np.ldexp(present, -exponent)
    center = np.average(unit, weights=weights)
    deviation = np.sqrt(np.average(np.square(unit - center), weights=weights))
    mean = low if low == high else float(np.ldexp(center, exponent))
    scale = 0.0 if low == high else float(np.ldexp(deviation, exponent))
    return NumberColumn(
        name=name,
        mean=mean,
        scale=scale or 1.0,
        median=float(np.ldexp(_median(unit, weights), exponent)),
        indicator=bool(missing.any()),
    )


def _median(values: NDArray[Any], weights: NDArray[Any] | None) -> float:
    """Median; whole weights count like repetitions."""
    if weights is None:
        return float(np.median(values))
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    half = cumulative[-1] / 2
    below, above = (
        np.searchsorted(cumulative, half, side="left"),
        np.searchsorted(cumulative, half, side="right"),
    )
    return float(values[order[below]] + values[order[min(above, len(order) - 1)]]) / 2


def _kind(name: str, series: Series) -> Kind:
    """What a column holds, or a TypeError that names the row or type which does not belong."""
    if isinstance(series, np.ndarray):
        return "empty" if series.dtype.kind == "f" and np.isnan(series).all() else "number"
    import narwhals as nw

    dtype = series.dtype
    if series.null_count() == len(series):
        return "empty"
    # Older versions of narwhals do not know float16.
    is_float = dtype.is_float() or (dtype == nw.Unknown and series.to_numpy().dtype.kind == "f")
    if dtype.is_numeric() or is_float:
        is_nan = is_float and bool(np.isnan(_as_float64(series)).all())
        return "empty" if is_nan else "number"
    if dtype == nw.Boolean:
        return "boolean"
    if dtype in (nw.Categorical, nw.Enum):
        return "text"
    if dtype in (nw.String, nw.Object):
        return _kind_of_objects(series)
    raise TypeError(
        f"column {name!r} must hold numbers, text, categories or booleans, got {dtype}: "
        "turn it into numbers or text first"
    )


def _kind_of_objects(series: Series) -> Kind:
    """The one kind of all Python objects in a column; pandas' object columns may hold anything."""
    first: Kind = "empty"
    missing = series.is_null().to_numpy()
    for start in range(0, len(series), BLOCK_ROWS):
        for row, value in enumerate(series[start : start + BLOCK_ROWS].to_list(), start):
            if missing[row]:
                continue
            kind = _kind_of_object(series.name, row, value)
            if first == "empty":
                first = kind
            elif kind != first:
                raise TypeError(
                    f"column {series.name!r} must hold values of one type, got {value!r} ({kind}) in row "
                    f"{row} after {first}"
                )
    return first


def _kind_of_object(name: str, row: int, value: Any) -> Kind:
    if isinstance(value, _FAMILIES["boolean"]):
        return "boolean"
    if isinstance(value, _FAMILIES["text"]):
        return "text"
    if isinstance(value, _FAMILIES["number"]):
        return "number"
    raise TypeError(
        f"column {name!r} must hold numbers, text, categories or booleans, got a {type(value).__name__} "
        f"in row {row}"
    )


def _numbers(name: str, series: Series) -> NDArray[np.float64]:
    """The column as float64 with NaN for missing values."""
    if not isinstance(series, np.ndarray) and _kind(name, series) == "text":
        texts = series.drop_nulls()
        raise TypeError(f"column {name!r} held numbers in training, but holds text now, such as {texts[0]!r}")
    return _as_float64(series)


def _as_float64(series: Series) -> NDArray[np.float64]:
    if isinstance(series, np.ndarray):
        return series.astype(np.float64)
    import narwhals as nw

    if series.dtype == nw.Object:
        missing = series.is_null().to_list()
        values = [np.nan if gone else float(v) for gone, v in zip(missing, series.to_list(), strict=True)]
        return np.array(values, dtype=np.float64)
    if series.null_count() == len(series):
        return np.full(len(series), np.nan)
    return np.asarray(series.cast(nw.Float64).to_numpy(), dtype=np.float64)


def _check_finite(name: str, values: NDArray[np.float64], encoded: NDArray[Any]) -> None:
    bad = np.flatnonzero(~np.isfinite(encoded))
    if len(bad):
        value = float(values[bad[0]])
        what = "is not finite" if np.isinf(value) else "is too large for float32 after standardising"
        raise ValueError(f"column {name!r} holds {value!r} in row {bad[0]}, which {what}")


def _text_blocks(name: str, series: Series) -> Iterator[tuple[NDArray[np.intp], list[str]]]:
    """Yield (rows, categories as text) of the values that are present, block by block."""
    for start in range(0, len(series), BLOCK_ROWS):
        block = series[start : start + BLOCK_ROWS]
        if isinstance(block, np.ndarray):
            rows, values = start + np.arange(len(block)), block.tolist()
        else:
            rows = start + np.flatnonzero(~block.is_null().to_numpy())
            values = block.drop_nulls().to_list()
        texts = [_category(name, value) for value in values]
        present = np.array([text is not None for text in texts], dtype=bool)
        yield rows[present], [text for text in texts if text is not None]


def _category(name: str, value: Any) -> str | None:
    """The text of a category; whole numbers lose their decimal point, as in 3.0, and NaN is missing."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, np.bool_, np.integer)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return None if np.isnan(number) else str(int(number) if number.is_integer() else number)
    raise TypeError(f"column {name!r} must hold categories, got {value!r} ({type(value).__name__})")


def _column_from_config(config: Mapping[str, Any]) -> Column:
    kind = config["kind"]
    if kind == "number":
        return NumberColumn(
            name=str(config["name"]),
            mean=check_real("mean", config["mean"]),
            scale=check_real("scale", config["scale"], above=0.0),
            median=check_real("median", config["median"]),
            indicator=check_flag("indicator", config["indicator"]),
        )
    if kind in ("category", "boolean"):
        categories = config["categories"]
        if not isinstance(categories, list) or not all(isinstance(text, str) for text in categories):
            raise TypeError(f"categories must be a list of text, got {categories!r}")
        return CategoryColumn(str(config["name"]), tuple(categories), boolean=kind == "boolean")
    if kind == "empty":
        return EmptyColumn(str(config["name"]))
    raise ValueError(f"config has a column of the unknown kind {kind!r}")
