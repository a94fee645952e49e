"""Epochs over rows that are not one array: windows of a source, batches of an iterable, drawn rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gradstep.backends.base import Array, Engine, Parameters, TrainResult
from gradstep.backends.interrupt import deferred_interrupt
from gradstep.random import balanced_order, permutation, window_seed
from gradstep.sources import Batches, Piece, Source

CHECKPOINT_BYTES = 8 << 20
"""Parameters and optimizer state up to this size are kept until the end of an epoch, as engines do."""


class Rows(NamedTuple):
    """Validated rows as an engine takes them."""

    X: Array
    """Inputs, (n, n_in)."""
    y: Array
    """Targets as the loss needs them."""
    weight: Array | None
    """Sample weights, (n,), or None."""


Check = Callable[[Piece], Rows]
"""Turns a piece of a source into rows for the engine, or says what is wrong with it."""

Rates = Callable[[int], Array]
"""Learning rates of the next updates, that many."""


class Feed(ABC):
    """Where the rows of an epoch come from, and how they reach the engine."""

    steps: int | None = None
    """Updates of an epoch; None where that is not known."""
    rows: int = 0
    """Rows of the newest epoch."""
    batch_size: int
    """Rows of an update; 0 where batches come as they are."""

    @abstractmethod
    def train(self, engine: Engine, epoch: int, rates: Rates) -> TrainResult:
        """Run one epoch; its number counts over the life of the network."""

    def close(self) -> None:  # noqa: B027 (most feeds have nothing to close)
        """Stop reading."""


class BalancedFeed(Feed):
    """Rows in memory, drawn so that every class is equally likely.

    Parameters
    ----------
    data
        The rows.
    labels
        Class of every row, (n,).
    batch_size, seed
        As for `Engine.train`.
    """

    def __init__(self, data: Rows, labels: Array, batch_size: int, seed: int) -> None:
        self.data, self.labels, self.batch_size, self.seed = data, labels, batch_size, seed
        self.rows = len(labels)
        self.steps = -(-self.rows // batch_size)

    def train(self, engine: Engine, epoch: int, rates: Rates) -> TrainResult:
        """Draw the rows of an epoch, and train on them."""
        return engine.train(
            *self.data,
            epochs=1,
            batch_size=self.batch_size,
            learning_rates=rates(self.steps or 0).reshape(1, -1),
            seed=self.seed,
            first_epoch=epoch,
            order=balanced_order(self.labels, self.seed, epoch),
        )


class _Mean:
    """The loss of an epoch, from those of its parts."""

    def __init__(self) -> None:
        self.losses = self.weights = 0.0
        self.rows = 0

    def add(self, loss: float, rows: Rows) -> None:
        weight = len(rows.X) if rows.weight is None else float(np.sum(rows.weight, dtype=np.float64))
        self.losses += loss * weight
        self.weights += weight
        self.rows += len(rows.X)

    def value(self) -> float:
        return self.losses / self.weights


class _PartedFeed(Feed):
    """Epochs of several calls of the engine, which are undone together where one fails."""

    def train(self, engine: Engine, epoch: int, rates: Rates) -> TrainResult:
        """Run one epoch; without rows, or when the loss diverges, the network is that of the one before."""
        kept = _checkpoint(engine)
        mean = _Mean()
        try:
            failed = self._train_parts(engine, epoch, rates, mean)
            if failed is None and mean.weights == 0:
                raise ValueError("the sample weights of an epoch must not be all zero")
        except KeyboardInterrupt:
            raise
        except BaseException:
            _restore(engine, kept)
            raise
        if failed is None:
            self.rows = mean.rows
            return TrainResult([mean.value()])
        if failed.diverged:
            _restore(engine, kept)
            return TrainResult([], diverged=True, restored=kept is not None)
        return failed

    @abstractmethod
    def _train_parts(self, engine: Engine, epoch: int, rates: Rates, mean: _Mean) -> TrainResult | None:
        """Train on all parts; the result of the one that did not go well, if any."""


def _checkpoint(engine: Engine) -> tuple[Parameters, Parameters] | None:
    shapes = engine.plan.parameter_shapes().values()
    itemsize = np.dtype(engine.plan.dtype).itemsize
    if itemsize * sum(int(np.prod(shape)) for shape in shapes) > CHECKPOINT_BYTES:
        return None
    kept = engine.parameters(), engine.optimizer_state()
    return kept if sum(value.nbytes for part in kept for value in part.values()) <= CHECKPOINT_BYTES else None


def _restore(engine: Engine, kept: tuple[Parameters, Parameters] | None) -> None:
    if kept is not None:
        engine.set_parameters(kept[0])
        engine.set_optimizer_state(kept[1])


class _Alike:
    """Refuses rows that cannot be put together with those of the first piece."""

    def __init__(self) -> None:
        self._first: tuple[bool, tuple[int, ...]] | None = None

    def check(self, piece: Piece, rows: Rows) -> None:
        found = rows.weight is not None, rows.y.shape[1:]
        self._first = first = self._first or found
        if found[0] != first[0]:
            raise ValueError(f"{piece.place}: either all batches must have sample weights or none")
        if found[1] != first[1]:
            raise ValueError(
                f"{piece.place}: rows of y must have shape {first[1]} as in the first batch, got {found[1]}"
            )


class BatchFeed(_PartedFeed):
    """Every batch of an iterable, or every few of them, is one update, in its order; nothing is read ahead.

    Parameters
    ----------
    batches
        The iterable.
    check
        What turns its batches into rows for the engine.
    accumulate
        Batches of an update; at the end of an epoch those that are left.
    """

    def __init__(self, batches: Batches, check: Check, accumulate: int) -> None:
        self._batches, self._check, self._accumulate, self.batch_size = batches, check, accumulate, 0
        length = batches.length()
        self.steps = None if length is None else -(-length // accumulate)

    def _updates(self) -> Iterator[Rows]:
        """The rows of every update."""
        if self._accumulate == 1:
            yield from map(self._check, self._batches.pieces())
            return
        alike, together = _Alike(), []
        for number, piece in enumerate(self._batches.pieces(), start=1):
            rows = self._check(piece)
            alike.check(piece, rows)
            # The iterable may fill the same arrays anew.
            together.append(Rows(*(None if a is None else a.copy() for a in rows)))  # type: ignore[arg-type]
            if number % self._accumulate == 0:
                yield _joined(together)
                together = []
        if together:
            yield _joined(together)

    def _train_parts(self, engine: Engine, epoch: int, rates: Rates, mean: _Mean) -> TrainResult | None:
        for rows in self._updates():
            rate = float(rates(1)[0])
            with deferred_interrupt() as interrupt:
                loss = engine.step(*rows, rate)
            if not np.isfinite(loss):
                return TrainResult([], diverged=True)
            if interrupt.pressed:
                return TrainResult([], interrupted=True)
            mean.add(loss, rows)
        finite = all(bool(np.isfinite(value).all()) for value in engine.parameters().values())
        return None if finite else TrainResult([], diverged=True)


def _joined(parts: list[Rows]) -> Rows:
    joined = (None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Rows(*joined)  # type: ignore[arg-type]


class _Window(NamedTuple):
    """Rows that are shuffled together; a view of a buffer that is filled anew two windows later."""

    rows: Rows
    number: int
    """In its epoch, from 0."""
    last: bool
    """Of its epoch."""


class _Buffer:
    """Room for the rows of one window; its pages are touched once in a call of `fit`."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.rows: Rows | None = None

    def add(self, rows: Rows, start: int) -> int:
        """Copy rows from the start-th on while there is room; how many."""
        if self.rows is None:
            self.rows = Rows(*(None if a is None else self._room(a) for a in rows))  # type: ignore[arg-type]
        count = min(len(rows.X) - start, self.capacity - self.used)
        for room, array in zip(self.rows, rows, strict=True):
            if room is not None and array is not None:
                room[self.used : self.used + count] = array[start : start + count]
        self.used += count
        return count

    def _room(self, like: Array) -> Array:
        return np.empty((self.capacity, *like.shape[1:]), like.dtype)

    def take(self) -> Rows:
        """What it holds; it counts as empty then."""
        assert self.rows is not None
        used, self.used = self.used, 0
        return Rows(*(None if a is None else a[:used] for a in self.rows))  # type: ignore[arg-type]


@dataclass(eq=False, repr=False)
class WindowFeed(_PartedFeed):
    """Windows of whole batches, filled from chunks in a new order every epoch, and shuffled by the engine."""

    source: Source | Batches
    check: Check
    """What turns the source's pieces into rows for the engine."""
    encoder: object
    dtype: str
    n_rows: int | None
    """Of the whole source; None where that is not known."""
    window_rows: int
    """A multiple of the batch size."""
    batch_size: int
    shuffle: bool
    seed: int
    epochs: int
    """How many at most. A checkpoint may begin later than at the first: the first call of `train` tells."""
    _windows: Iterator[_Window] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.n_rows is not None:
            self.steps = -(-self.n_rows // self.batch_size)

    def close(self) -> None:
        """End the reading thread."""
        if self._windows is not None:
            self._windows.close()  # type: ignore[attr-defined]

    def _train_parts(self, engine: Engine, epoch: int, rates: Rates, mean: _Mean) -> TrainResult | None:
        if self._windows is None:
            windows = self._fill(range(epoch, epoch + self.epochs))
            # Foreign iterables run in the caller's thread, and no further than training has got.
            self._windows = windows if isinstance(self.source, Batches) else _read_ahead(windows)
        for rows, number, last in self._windows:
            batch_size = min(self.batch_size, len(rows.X))
            result = engine.train(
                *rows,
                epochs=1,
                batch_size=batch_size,
                learning_rates=rates(-(-len(rows.X) // batch_size)).reshape(1, -1),
                seed=window_seed(self.seed, epoch, number),
                first_epoch=epoch,
                shuffle=self.shuffle,
            )
            if not result.losses or result.interrupted or result.raised is not None:
                return TrainResult([], result.interrupted, result.diverged, result.restored, result.raised)
            mean.add(result.losses[0], rows)
            if last:
                return None
        raise AssertionError("an epoch ends with its last window")

    def _fill(self, epochs: range) -> Iterator[_Window]:
        """All windows of epochs by their numbers over the network's life, in two buffers by turns."""
        buffer, other, alike = _Buffer(self.window_rows), _Buffer(self.window_rows), _Alike()
        for epoch in epochs:
            number = 0
            for piece in self._pieces(epoch):
                rows, start = self.check(piece), 0
                alike.check(piece, rows)
                while start < len(rows.X):
                    if buffer.used == buffer.capacity:
                        yield _Window(buffer.take(), number, last=False)
                        buffer, other, number = other, buffer, number + 1
                    start += buffer.add(rows, start)
            yield _Window(buffer.take(), number, last=True)
            buffer, other = other, buffer

    def _pieces(self, epoch: int) -> Iterator[Piece]:
        if isinstance(self.source, Batches):
            return self.source.pieces()
        order = None
        if self.shuffle:
            order = permutation(len(self.source.chunks), window_seed(self.seed, epoch, -1), epoch).tolist()
        return self.source.pieces(order, encoder=self.encoder, dtype=self.dtype)


def _read_ahead(windows: Iterator[_Window]) -> Iterator[_Window]:
    """The windows; each is made in a thread of its own while the caller is busy with the one before."""
    from concurrent.futures import ThreadPoolExecutor  # takes long to import

    with ThreadPoolExecutor(1, thread_name_prefix="gradstep-reader") as reader:
        coming = reader.submit(next, windows, None)
        while (window := coming.result()) is not None:
            coming = reader.submit(next, windows, None)
            yield window
