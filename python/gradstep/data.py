"""Data sets for the command line: read files and bundled sets, infer the task, split the rows."""

from __future__ import annotations

import csv
import difflib
import gzip
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

    Features: TypeAlias = pl.DataFrame | NDArray[Any]

Task = Literal["classification", "regression"]

BUNDLED = ("digits", "iris", "wine", "breast_cancer", "diabetes")
"""Names of the sets that scikit-learn carries."""

MISSING = ("", " ", "?", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""What counts as a missing value in a CSV file."""

MAX_CLASSES = 20
"""A target of whole numbers with at most this many distinct values is taken for classes."""

CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
SUFFIXES = (*CSV_SUFFIXES, ".parquet", ".npz")

_UNREADABLE = (csv.Error, UnicodeDecodeError, EOFError, OSError, zlib.error)
_KINDS = {"b": "booleans", "U": "text"}


@dataclass(frozen=True)
class DataSet:
    """A data set in memory: a table or an array of features, and what to predict from them."""

    name: str
    features: Features
    target: NDArray[Any]
    """(n,) numbers, text or booleans; (n, k) numbers for several outputs."""
    target_name: str | None = None
    """The column that `target` was, for a table."""
    test: tuple[NDArray[Any], NDArray[Any]] | None = None
    """Features and target of the set's own test part, where it has one."""

    def __len__(self) -> int:
        return len(self.target)

    @property
    def is_table(self) -> bool:
        """Whether the features are a table, not an array."""
        return not isinstance(self.features, np.ndarray)


def read_data(source: str, target: str | None = None, drop: Collection[str] = ()) -> DataSet:
    """Read a data set with its target.

    Parameters
    ----------
    source : str
        Path of a CSV (also .gz), TSV, Parquet or npz file, or one of `BUNDLED`. An npz file holds the
        arrays X and y, or X_train, y_train and, for its own test part, X_test, y_test.
    target : str, optional
        The column to predict: needed for tables, and for them alone.
    drop : collection of str, optional
        Columns of a table to learn nothing from, such as row numbers.

    Returns
    -------
    DataSet
        The rows in the order of the file.

    Raises
    ------
    FileNotFoundError
        If source is neither a file nor the name of a bundled set.
    ValueError
        If the file cannot be read as what its name says, is empty, lacks the target or a column to drop, or
        holds an infinite number.
    """
    if source in BUNDLED or _suffix(source) == ".npz":
        if target is not None:
            raise ValueError(f"{source} has a target of its own: --target is for CSV and Parquet files")
        if drop:
            raise ValueError(f"{source} has no columns with names: --drop is for CSV and Parquet files")
        return _bundled(source) if source in BUNDLED else _read_npz(source)
    table = _read_table(source)
    if target is None:
        raise ValueError(f"--target must name the column of {source} to predict: {_listed(table.columns)}")
    if target not in table.columns:
        raise ValueError(
            f"{source} has no column {target!r} to predict{_nearest(target, table.columns)}: "
            f"{_listed(table.columns)}"
        )
    table = _without(source, table, drop, target)
    if len(table.columns) == 1:
        beside = " beside those to drop" if drop else ""
        raise ValueError(
            f"{source} has only the column {target!r}{beside}: at least one more is needed to predict it"
        )
    _check_not_infinite(source, table)
    features = _drop(table, [target])
    return DataSet(source, features, _target_column(source, table[target]), target)


def _without(source: str, table: pl.DataFrame, drop: Collection[str], target: str) -> pl.DataFrame:
    """The table without the columns to drop, each of which it must have."""
    for name in drop:
        if name == target:
            raise ValueError(f"--drop and --target name the same column {name!r}")
        if name not in table.columns:
            parts = [part.strip() for part in name.split(",")]
            hint = _nearest(name, table.columns)
            if len(parts) > 1 and all(part in table.columns for part in parts):
                hint = f" (give --drop once for each of {', '.join(parts)})"
            raise ValueError(f"{source} has no column {name!r} to drop{hint}: {_listed(table.columns)}")
    return _drop(table, drop)


def _drop(table: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
    """The table without these columns if it has them; polars' own takes "*" and "^a.*$" for patterns."""
    from polars import selectors

    return table.drop(selectors.by_name(*names, require_all=False)) if names else table


def read_features(
    source: str, leave_out: Collection[str] = (), text_columns: Collection[str] = ()
) -> Features:
    """Read the features of rows to predict.

    Parameters
    ----------
    source : str
        As for `read_data`; an npz file needs no y here.
    leave_out : collection of str, optional
        Columns that the file may hold, but the model does not look at: its target, and what was dropped.
    text_columns : collection of str, optional
        Columns that a CSV file holds as text, even where all of it looks like numbers or booleans.

    Returns
    -------
    polars.DataFrame or ndarray, (n, n_features)
        The rows in the order of the file.
    """
    if source in BUNDLED:
        return _bundled(source).features
    if _suffix(source) == ".npz":
        return _npz_features(source, _load_npz(source))
    table = _read_table(source, text_columns)
    return _drop(table, leave_out)


def infer_task(target: NDArray[Any]) -> tuple[Task, str]:
    """Tell classification from regression by the values of the target.

    Parameters
    ----------
    target : ndarray, (n,) or (n, k)
        Values to predict.

    Returns
    -------
    tuple of str
        The task, and the reason in a few words.
    """
    if target.ndim == 2:
        return "regression", f"the target has {target.shape[1]} columns"
    if target.dtype.kind == "b":
        return "classification", "the target is true or false"
    if target.dtype.kind not in "iuf":
        return "classification", "the target is text"
    if not np.array_equal(target, np.floor(target)):
        return "regression", "the target has fractions"
    count = len(np.unique(target))
    if count <= MAX_CLASSES:
        return "classification", f"the target has {count} distinct whole numbers"
    return "regression", f"the target has {count} distinct numbers"


def choose_rows(groups: NDArray[Any], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose a random share of the rows that has the same share of every group.

    Parameters
    ----------
    groups : ndarray, (n,)
        The group (class) of every row; all equal for a plain random choice.
    fraction : float
        Share of the rows to choose, from 0 up to less than 1.
    seed : int
        The same seed chooses the same rows.

    Returns
    -------
    ndarray of bool, (n,)
        True for ``floor(fraction * n)`` rows; every group has its share to within one row.
    """
    n = len(groups)
    order = np.lexsort((np.random.default_rng(seed).random(n), groups))
    steps = np.floor(np.arange(n + 1) * fraction + 1e-9)
    chosen = np.zeros(n, dtype=bool)
    chosen[order] = np.diff(steps) > 0
    return chosen


def _bundled(name: str) -> DataSet:
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f'the data set {name} comes with scikit-learn: pip install "gradstep[cli]"'
        ) from None
    loaders: dict[str, Callable[[], Any]] = {known: getattr(datasets, f"load_{known}") for known in BUNDLED}
    bunch = loaders[name]()
    target = np.asarray(bunch.target)
    names = np.asarray(bunch.get("target_names", ()))
    if names.dtype.kind == "U":
        target = names[target]
    return DataSet(name, np.ascontiguousarray(bunch.data), target)


def _suffix(source: str) -> str:
    return next((suffix for suffix in SUFFIXES if source.lower().endswith(suffix)), "")


def _check_source(source: str) -> None:
    path = Path(source)
    if path.is_dir():
        raise IsADirectoryError(f"{source} is a folder: name a file in it")
    if not path.exists():
        if path.suffix or path.name != source:
            raise FileNotFoundError(f"there is no file {source}")
        raise FileNotFoundError(
            f"{source!r} is neither a file nor one of the bundled data sets{_nearest(source, BUNDLED)}: "
            f"{', '.join(BUNDLED)}"
        )
    if not _suffix(source):
        raise ValueError(f"the name of {source} must end in one of {', '.join(SUFFIXES)}")


def _read_table(source: str, text_columns: Collection[str] = ()) -> pl.DataFrame:
    _check_source(source)
    try:
        import polars as pl
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'reading CSV and Parquet files needs the package polars: pip install "gradstep[cli]"'
        ) from None
    try:
        if _suffix(source) == ".parquet":
            table = pl.read_parquet(source)
        else:
            table = _read_csv(source, text_columns)
    except (pl.exceptions.PolarsError, *_UNREADABLE) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise ValueError(f"{source} cannot be read: {reason}") from None
    if table.height == 0:
        raise ValueError(f"{source} has no rows")
    return table


def _read_csv(source: str, text_columns: Collection[str]) -> pl.DataFrame:
    import polars as pl

    separator = _separator(source)
    _check_header(source, separator)
    # polars before 2.0 takes the rows that a truncated gzip file still has for all of them.
    content = gzip.decompress(Path(source).read_bytes()) if source.lower().endswith(".gz") else source
    names = pl.read_csv(content, separator=separator, n_rows=0, infer_schema=False).columns
    table = pl.read_csv(
        content,
        separator=separator,
        null_values=list(MISSING),
        infer_schema_length=None,
        schema_overrides={name: pl.String for name in names if name.strip() in text_columns},
    )
    # Files with a space after every comma: without it, names match and numbers are numbers.
    table = table.rename(str.strip)
    padded = [
        name
        for name, dtype in table.schema.items()
        if dtype == pl.String and (table[name] != table[name].str.strip_chars()).any()
    ]
    return table.with_columns(_strip(table[name], as_text=name in text_columns) for name in padded)


def _open_text(source: str) -> IO[str]:
    opener: Callable[..., IO[str]] = gzip.open if source.lower().endswith(".gz") else open
    return opener(source, "rt", encoding="utf-8-sig", newline="")


def _separator(source: str) -> str:
    """The most frequent of comma, semicolon and tab in the first line."""
    with _open_text(source) as file:
        first = file.readline()
    return max(",;\t", key=first.count)


def _check_header(source: str, separator: str) -> None:
    """Refuse columns of the same name: polars would rename all but the first."""
    with _open_text(source) as file:
        header = next(filter(None, csv.reader(file, delimiter=separator)), [])
    name, count = Counter(name.strip() for name in header).most_common(1)[0] if header else ("", 1)
    if count > 1:
        raise ValueError(f"{source} has {count} columns named {name!r}: give each a name of its own")


def _strip(column: pl.Series, as_text: bool) -> pl.Series:
    import polars as pl

    text: pl.Series = column.str.strip_chars()
    text = text.set(text.is_in(list(MISSING)), None)
    for dtype in () if as_text else (pl.Int64, pl.Float64):
        numbers: pl.Series = text.cast(dtype, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
    return text


def _check_not_infinite(source: str, table: pl.DataFrame) -> None:
    """Name the first row of the file, before rows are shuffled."""
    rows = {
        column.name: column.is_infinite().arg_max() or 0
        for column in table
        if column.dtype.is_float() and column.is_infinite().any()
    }
    if rows:
        name = min(rows, key=rows.__getitem__)
        raise ValueError(
            f"column {name!r} of {source} holds {table[name][rows[name]]} in row {rows[name]}, "
            "which is not finite"
        )


def _target_column(source: str, column: pl.Series) -> NDArray[Any]:
    import polars as pl

    if column.dtype.is_float():
        column = column.fill_nan(None)
    missing = column.null_count()
    if missing:
        row = column.is_null().arg_max()
        raise ValueError(
            f"the target column {column.name!r} of {source} lacks {missing} of {len(column)} values, the "
            f"first in row {row}: remove these rows first"
        )
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype.is_decimal():
        column = column.cast(pl.Float64)
    if column.dtype == pl.String:
        return column.to_numpy().astype(str)
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise ValueError(
            f"the target column {column.name!r} of {source} must hold numbers, text or booleans, got "
            f"{column.dtype}"
        )
    return column.to_numpy()


def _load_npz(source: str) -> dict[str, NDArray[Any]]:
    _check_source(source)
    try:
        with np.load(source, allow_pickle=False) as file:
            wanted = ("X", "y", "X_train", "y_train", "X_test", "y_test")
            return {name: file[name] for name in wanted if name in file.files}
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source} cannot be read as a npz file of plain arrays: {error}") from None


def _read_npz(source: str) -> DataSet:
    arrays = _load_npz(source)
    part = "_train" if "X_train" in arrays else ""
    if f"y{part}" not in arrays:
        raise ValueError(f"{source} must hold the arrays X and y, or X_train and y_train")
    features = _npz_features(source, arrays)
    target = _npz_target(source, f"y{part}", arrays, len(features))
    test = None
    if part and {"X_test", "y_test"} <= arrays.keys():
        test_features = _flat(source, "X_test", arrays["X_test"])
        if test_features.shape[1] != features.shape[1]:
            raise ValueError(
                f"{source} has {features.shape[1]} columns in X_train, but {test_features.shape[1]} in X_test"
            )
        test = test_features, _npz_target(source, "y_test", arrays, len(test_features))
        _check_same_kind(source, target, test[1])
    return DataSet(source, features, target, test=test)


def _npz_features(source: str, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    name = "X_train" if "X_train" in arrays else "X"
    if name not in arrays:
        raise ValueError(f"{source} must hold the array X or X_train")
    return _flat(source, name, arrays[name])


def _flat(source: str, name: str, X: NDArray[Any]) -> NDArray[Any]:
    """One row of numbers for each sample; an image becomes a row."""
    if X.dtype.kind not in "biuf" or X.ndim < 2 or X.size == 0:
        raise ValueError(
            f"{name} of {source} must hold numbers in at least one row and column, got shape {X.shape} and "
            f"dtype {X.dtype}"
        )
    flat = X.reshape(len(X), -1)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        row, column = np.argwhere(~np.isfinite(flat))[0]
        raise ValueError(
            f"{name} of {source} holds {flat[row, column]} in row {row}, column {column}, which is not finite"
        )
    return flat


def _npz_target(source: str, name: str, arrays: dict[str, NDArray[Any]], rows: int) -> NDArray[Any]:
    target = arrays[name]
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim not in (1, 2) or len(target) != rows:
        raise ValueError(f"{name} of {source} must have {rows} rows as X, got shape {target.shape}")
    if target.dtype.kind == "S":
        target = target.astype(str)
    if target.dtype.kind not in "biufU" or (target.ndim == 2 and target.dtype.kind not in "iuf"):
        raise ValueError(f"{name} of {source} must hold numbers, text or booleans, got dtype {target.dtype}")
    bad = ~np.isfinite(target) if target.dtype.kind == "f" else np.zeros(1, dtype=bool)
    if bad.any():
        raise ValueError(f"{name} of {source} is not finite in row {np.argwhere(bad)[0][0]}")
    return target


def _check_same_kind(source: str, y_train: NDArray[Any], y_test: NDArray[Any]) -> None:
    train, test = (_KINDS.get(y.dtype.kind, "numbers") for y in (y_train, y_test))
    if train != test:
        raise ValueError(f"y_train of {source} holds {train}, but y_test holds {test}")
    if y_train.shape[1:] != y_test.shape[1:]:
        train_width, test_width = (y.shape[1] if y.ndim == 2 else 1 for y in (y_train, y_test))
        raise ValueError(f"{source} has {train_width} column(s) in y_train, but {test_width} in y_test")


def _nearest(name: str, known: Sequence[str]) -> str:
    lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f" (is {lower[near[0]]!r} meant?)" if near else ""


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:20])
    more = f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    return f"it has {shown}{more}"
