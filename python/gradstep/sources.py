"""Sources of rows that `fit` reads piece by piece: arrays and files that need not fit into memory."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradstep.names import check_name
from gradstep.validation import as_numbers, check_integer

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

Array = NDArray[Any]

WINDOW_BYTES = 1 << 25
"""Default size of a window; two exist at a time, one in training and one being read."""

PLACES = 16
"""A window of an array in memory or on disk is put together from this many places of it."""

PIECES = 8
"""A Parquet file is decoded in pieces of this part of a window; smaller ones take longer."""

BLOCK_ELEMENTS = 1 << 16
"""Numbers of a piece turned from columns into rows at a time, so that both stay in the cache."""


class Piece(NamedTuple):
    """Some rows as a source gives them, before they are checked."""

    X: Any
    """(n, n_in), or a table for the network's encoder."""
    y: Any
    """As for `Network.fit`, n rows."""
    weight: Any = None
    """Sample weights, (n,), or None for none in the whole source."""
    place: str = ""
    """Where the rows are from, for errors."""

    @contextlib.contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Say in front of a TypeError or ValueError of the block where the rows are from."""
        try:
            yield
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self.place}: {error}") from None


class Source(ABC):
    """Rows that `Network.fit` reads in windows of bounded size, so that they need not fit into memory.

    A source is a sequence of chunks, which can be read in any order. An epoch reads them in a new order
    (without shuffling, in theirs), fills a window with them, shuffles its rows while it trains on them, and
    reads the next window in the meantime, in a thread of its own. Every row is visited once, and only the
    last batch of an epoch may be smaller, as windows are whole numbers of batches. To read something else
    than arrays and Parquet files, derive a class that has `chunks` and `read`.

    Iterating gives (X, y), or (X, y, sample_weight), piece by piece in the order of the source.

    Parameters
    ----------
    window_bytes : int, default 2**25
        Size of a window. Two of them exist at a time, and a window holds at least one batch.

    Raises
    ------
    TypeError, ValueError
        If window_bytes is no such number.
    """

    def __init__(self, window_bytes: int = WINDOW_BYTES) -> None:
        self.window_bytes = check_integer("window_bytes", window_bytes, minimum=1)

    @property
    @abstractmethod
    def chunks(self) -> Sequence[int]:
        """Rows of every chunk, in the order of the source."""

    @abstractmethod
    def read(self, chunk: int, *, encoder: Any = None, dtype: str | None = None) -> Iterator[Piece]:
        """Read the rows of a chunk, in order and piece by piece.

        It is called by another thread than `fit` was.

        Parameters
        ----------
        chunk : int
            Number of the chunk.
        encoder : TableEncoder, optional
            The network's; a source of tables gives it the columns, one of numbers does without.
        dtype : str, optional
            What the network computes in: X may be in it at once. None asks for numbers as exact as they are.

        Yields
        ------
        Piece
            At least one row.
        """

    def __len__(self) -> int:
        """Number of rows."""
        return sum(self.chunks)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """All pieces, (X, y) or (X, y, sample_weight), in the order of the source."""
        for piece in self.pieces():
            yield (piece.X, piece.y) if piece.weight is None else (piece.X, piece.y, piece.weight)

    def to_memory_map(
        self, folder: str | os.PathLike[str], *, encoder: Any = None, dtype: str = "float32"
    ) -> ArraySource:
        """Write the rows as they are trained on, so that every epoch reads them without any conversion.

        Parameters
        ----------
        folder : path-like
            Where to write X.npy, y.npy and sample_weight.npy; made if it does not exist.
        encoder : TableEncoder, optional
            Of the network that shall be trained.
        dtype : {"float32", "float64"}
            Type of X.

        Returns
        -------
        ArraySource
            The same rows in the same order, memory-mapped.

        Raises
        ------
        FileExistsError
            If such a file exists.
        """
        from pathlib import Path  # takes long to import

        paths = [Path(folder) / f"{name}.npy" for name in ("X", "y", "sample_weight")]
        for path in paths:
            if path.exists():
                raise FileExistsError(f"{path} exists: name another folder")
        Path(folder).mkdir(parents=True, exist_ok=True)
        parts = [path.with_suffix(".part") for path in paths]
        try:
            count = self._write(parts, encoder, dtype)
            for part, path in zip(parts[:count], paths, strict=False):
                part.replace(path)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        return ArraySource(*(np.load(path, "r") for path in paths[:count]), window_bytes=self.window_bytes)

    def _write(self, paths: Sequence[Path], encoder: Any, dtype: str) -> int:
        """Write X, y and the weights, if there are any, to files; how many."""
        maps: list[Any] = []
        row = 0
        for piece in self.pieces(encoder=encoder, dtype=dtype):
            arrays = [np.asarray(piece.X, dtype), np.asarray(piece.y)]
            arrays += [] if piece.weight is None else [np.asarray(piece.weight)]
            if not maps:
                for path, array in zip(paths, arrays, strict=False):
                    shape = (len(self), *array.shape[1:])
                    maps.append(np.lib.format.open_memmap(path, "w+", array.dtype, shape))
            for mapped, array in zip(maps, arrays, strict=True):
                mapped[row : row + len(array)] = array
            row += len(piece.X)
        return len(maps)

    def pieces(
        self, order: Iterable[int] | None = None, *, encoder: Any = None, dtype: str | None = None
    ) -> Iterator[Piece]:
        """Read chunk after chunk.

        Parameters
        ----------
        order : iterable of int, optional
            Numbers of the chunks; all in the order of the source by default.
        encoder, dtype
            As for `read`.

        Yields
        ------
        Piece
            At least one row.

        Raises
        ------
        ValueError
            If a chunk has not the rows that it should have.
        """
        chunks = self.chunks
        for chunk in range(len(chunks)) if order is None else order:
            rows = 0
            for piece in self.read(chunk, encoder=encoder, dtype=dtype):
                rows += len(piece.X)
                yield piece
            if rows != chunks[chunk]:
                raise ValueError(
                    f"chunk {chunk} of the source must have {chunks[chunk]} rows, but {rows} were read"
                )


class ArraySource(Source):
    """Arrays that `fit` shall read in windows: memory maps larger than memory, or of another dtype.

    Parameters
    ----------
    X : array_like, (n, n_in)
        Numbers of any dtype and layout; a memory map, or anything else with a shape whose slices
        ``X[start:stop]`` are arrays. Only these slices are read.
    y : array_like
        Targets, (n,) or (n, n_out), likewise.
    sample_weight : array_like, (n,), optional
        Weights of the rows, likewise.
    window_bytes : int, default 2**25
        Size of a window of converted rows, put together from up to 16 places of the arrays.

    Raises
    ------
    TypeError, ValueError
        If the arrays have no rows, or not equally many.
    """

    def __init__(
        self, X: Any, y: Any, sample_weight: Any = None, *, window_bytes: int = WINDOW_BYTES
    ) -> None:
        super().__init__(window_bytes)
        self._arrays = [
            _sliceable(name, a) for name, a in (("X", X), ("y", y), ("sample_weight", sample_weight))
        ]
        shape = self._arrays[0].shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"X must have two dimensions (rows, columns), none of them 0, got shape {shape}")
        for name, array in zip(("y", "sample_weight"), self._arrays[1:], strict=True):
            if array is not None and array.shape[:1] != shape[:1]:
                raise ValueError(f"{name} must have as many rows as X ({shape[0]}), got shape {array.shape}")
        rows = max(1, self.window_bytes // (4 * shape[1]) // PLACES)
        self._starts = range(0, shape[0], rows)

    @property
    def chunks(self) -> Sequence[int]:
        """Rows of every chunk, the last one smaller."""
        rows, n = self._starts.step, self._starts.stop
        return [min(rows, n - start) for start in self._starts]

    def read(self, chunk: int, *, encoder: Any = None, dtype: str | None = None) -> Iterator[Piece]:
        """The rows of a chunk, in one piece.

        Parameters
        ----------
        chunk, encoder, dtype
            As for `Source.read`.
        """
        rows = slice(self._starts[chunk], min(self._starts[chunk] + self._starts.step, self._starts.stop))
        X, y, weight = (None if array is None else array[rows] for array in self._arrays)
        yield Piece(X, y, weight, f"rows {rows.start} to {rows.stop - 1}")


def _sliceable(name: str, array: Any) -> Any:
    if array is None and name == "sample_weight":
        return None
    if hasattr(array, "shape") and hasattr(array, "dtype") and hasattr(array, "__getitem__"):
        return array if not hasattr(array, "iloc") else np.asarray(array)
    return as_numbers(name, array)


class ParquetSource(Source):
    """Parquet files that `fit` reads in windows.

    Without an encoder all features must be numbers or booleans that are not missing. Other columns need
    `Network.encoder`, which can be fitted on a sample:
    ``net.encoder = TableEncoder().fit(source.sample(100_000))``.

    Chunks are the row groups of the files. One that is larger than a window can only be read from its
    beginning, so that its rows stay in neighbouring windows: files to be shuffled well have many row groups.

    Parameters
    ----------
    path : path-like, or sequence of them
        One file, or several with the same columns.
    target : str, or sequence of str
        The column to predict, or several for several outputs: numbers or booleans.
    columns : sequence of str, optional
        Features, in this order; all columns but target and weight by default.
    weight : str, optional
        A column with sample weights.
    window_bytes : int, default 2**25
        Size of a window of rows as the network takes them.

    Raises
    ------
    ModuleNotFoundError
        If pyarrow is not installed: it comes with ``gradstep[parquet]``.
    FileNotFoundError, ValueError
        If a file cannot be read, is empty or lacks a column.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        target: str | Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        weight: str | None = None,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        super().__init__(window_bytes)
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        if not paths:
            raise ValueError("path must name at least one Parquet file")
        self._files = [(os.fspath(name), _metadata(os.fspath(name))) for name in paths]
        self._target = [target] if isinstance(target, str) else list(target)
        self._weight = [] if weight is None else [weight]
        first = self._files[0][1].schema.to_arrow_schema()
        for name in (*self._target, *self._weight, *(columns or ())):
            check_name(f"column of {self._files[0][0]}", name, first.names)
        left_out = {*self._target, *self._weight}
        self.columns = (
            tuple(name for name in first.names if name not in left_out) if columns is None else tuple(columns)
        )
        """Names of the features."""
        if not self.columns or left_out & set(self.columns):
            raise ValueError("columns must name at least one feature, and neither target nor weight")
        self._check_schemas(first)
        self._groups = [
            (number, group)
            for number, (_, metadata) in enumerate(self._files)
            for group in range(metadata.num_row_groups)
            if metadata.row_group(group).num_rows
        ]
        if not self._groups:
            raise ValueError(f"{self._files[0][0]} has no rows")

    def _check_schemas(self, first: pa.Schema) -> None:
        for path, metadata in self._files[1:]:
            schema = metadata.schema.to_arrow_schema()
            for name in (*self.columns, *self._target, *self._weight):
                if name not in schema.names:
                    raise ValueError(f"{path} has no column {name!r}, which {self._files[0][0]} has")
                if schema.field(name).type != first.field(name).type:
                    raise ValueError(
                        f"column {name!r} of {path} must be {first.field(name).type} as in "
                        f"{self._files[0][0]}, got {schema.field(name).type}"
                    )

    @property
    def chunks(self) -> Sequence[int]:
        """Rows of every row group."""
        return [self._files[number][1].row_group(group).num_rows for number, group in self._groups]

    def read(self, chunk: int, *, encoder: Any = None, dtype: str | None = None) -> Iterator[Piece]:
        """The rows of a row group.

        Parameters
        ----------
        chunk, encoder, dtype
            As for `Source.read`.

        Yields
        ------
        Piece
            X as a matrix, encoded if there is an encoder.
        """
        number, group = self._groups[chunk]
        path, metadata = self._files[number]
        row = sum(metadata.row_group(before).num_rows for before in range(group))
        for batch in self._batches(number, group, (*self.columns, *self._target, *self._weight)):
            place = f"rows {row} to {row + batch.num_rows - 1} of {path}"
            y = _matrix(batch, self._target, None, place)
            weight = _matrix(batch, self._weight, None, place)[:, 0] if self._weight else None
            if encoder is None:
                X = _matrix(batch, self.columns, dtype, place)
            else:
                X = encoder.transform(_table(batch.select(list(self.columns))))
            yield Piece(X, y if y.shape[1] > 1 else y[:, 0], weight, place)
            row += batch.num_rows

    def sample(self, rows: int = 100_000) -> pa.Table:
        """Read rows spread evenly over the files, such as for `TableEncoder.fit`.

        Parameters
        ----------
        rows : int, default 100_000
            How many, at most; all of a smaller file. The files are read through once.

        Returns
        -------
        pyarrow.Table
            The features, in the order of the files.
        """
        import pyarrow as pa

        count = min(check_integer("rows", rows, minimum=1), len(self))
        chosen = np.arange(count) * len(self) // count
        kept, row = [], 0
        for number, group in self._groups:
            for batch in self._batches(number, group, self.columns):
                first, last = np.searchsorted(chosen, [row, row + batch.num_rows])
                if last > first:
                    kept.append(batch.take(pa.array(chosen[first:last] - row)))
                row += batch.num_rows
        return pa.Table.from_batches(kept)

    def _batches(self, number: int, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        path, metadata = self._files[number]
        rows = max(1024, self.window_bytes // (4 * len(columns)) // PIECES)
        # A buffer makes the reader fetch a large row group bit by bit.
        with pq.ParquetFile(path, metadata=metadata, buffer_size=1 << 16, pre_buffer=False) as file:
            for batch in file.iter_batches(rows, [group], list(columns), use_threads=False):
                if batch.num_rows:
                    yield batch


def _metadata(path: str) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'reading Parquet files in pieces needs the package pyarrow: pip install "gradstep[parquet]"'
        ) from None
    try:
        return pq.read_metadata(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a Parquet file: {error}") from None


def _table(batch: pa.RecordBatch) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches([batch])


def _matrix(batch: pa.RecordBatch, names: Sequence[str], dtype: str | None, place: str) -> Array:
    """Columns as the columns of a matrix, in the dtype or in one that holds all of them."""
    columns = [_column(batch.column(name), name, place) for name in names]
    matrix = np.empty((batch.num_rows, len(columns)), dtype or np.result_type(*columns))
    with np.errstate(over="ignore"):
        block = max(1024, BLOCK_ELEMENTS // len(columns))
        for start in range(0, batch.num_rows, block):
            rows = slice(start, start + block)
            for position, column in enumerate(columns):
                matrix[rows, position] = column[rows]
    return matrix


def _column(column: pa.Array, name: str, place: str) -> Array:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise TypeError(
            f"column {name!r} must hold numbers, got {kind}: set the network's encoder to a TableEncoder, "
            "fitted on a sample, or number the classes of a target"
        )
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise ValueError(
            f"column {name!r} has missing values, the first in row {row} of {place}: fill them, or set the "
            "network's encoder to a TableEncoder"
        )
    values: Array = column.to_numpy(zero_copy_only=False)
    return values


class Batches:
    """Any iterable of batches (X, y) or (X, y, sample_weight), or a function that returns one.

    Parameters
    ----------
    given
        The iterable or function.
    epochs
        How often it will be asked for its batches.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If it can be read only once, and shall be more often.
    """

    window_bytes = WINDOW_BYTES

    def __init__(self, given: Any, epochs: int) -> None:
        if not callable(given) and not isinstance(given, Iterable):
            raise TypeError(
                "y is missing: fit takes X and y, or a source such as ParquetSource, or an iterable of "
                f"batches (X, y), got {type(given).__name__}"
            )
        self._given = given
        self.once = isinstance(given, Iterator)
        if self.once and epochs > 1:
            raise ValueError(
                f"this {type(given).__name__} can be read only once, not for {epochs} epochs: give a list, "
                "an object whose __iter__ starts anew, or a function that returns an iterator"
            )
        self._begun: Iterator[Any] | None = None

    def length(self) -> int | None:
        """Number of batches, where the iterable knows it."""
        try:
            return len(self._given)
        except TypeError:
            return None

    def first(self) -> Piece:
        """The first batch, which the next `pieces` gives too."""
        batches = self._open()
        try:
            first = next(batches)
        except StopIteration:
            raise ValueError("there must be at least one batch, got none") from None
        self._begun = chain([first], batches)
        return _as_piece(first, 0)

    def pieces(self) -> Iterator[Piece]:
        """All batches, from the first one."""
        batches, self._begun = self._begun or self._open(), None
        number = -1
        for number, batch in enumerate(batches):
            yield _as_piece(batch, number)
        if number < 0:
            raise ValueError(
                "an epoch must have at least one batch, got none: an iterable is asked anew in every epoch"
            )

    def _open(self) -> Iterator[Any]:
        opened = (
            self._given() if callable(self._given) and not isinstance(self._given, Iterable) else self._given
        )
        if not isinstance(opened, Iterable):
            raise TypeError(f"the function must return an iterator of batches, got {type(opened).__name__}")
        return iter(opened)


def _as_piece(batch: Any, number: int) -> Piece:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise TypeError(
            f"batches must be (X, y) or (X, y, sample_weight), but number {number} is "
            f"{_described(batch)}; is y missing?"
        )
    weight = batch[2] if len(batch) == 3 else None
    return Piece(batch[0], batch[1], weight, f"batch {number}")


def _described(batch: Any) -> str:
    size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    return f"a {type(batch).__name__}{size}"


SourceLike = Source | Iterable[Any] | Callable[[], Iterable[Any]]
