"""Training rows, dense or sparse: engines that take no sparse ones get blocks that are dense in turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from gradstep.backends.base import Array, Csr, Engine, Parameters, TrainResult

BLOCK_BYTES = 16 << 20
"""Dense size of a block of sparse rows, about; at least one row, and at least one batch in training."""


@dataclass(frozen=True)
class Rows(ABC):
    """Inputs with targets as the engine takes them, and weights."""

    X: Any
    """(n, n_in) in the engine's dtype."""
    y: Array
    weight: Array | None

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def take(self, rows: Array) -> Rows:
        """Some of the rows."""
        weight = None if self.weight is None else self.weight[rows]
        return type(self)(self.X[rows], self.y[rows], weight)

    @abstractmethod
    def train_epoch(self, engine: Engine, order: Array | None, batch_size: int, rates: Array) -> TrainResult:
        """One epoch over the rows of an order, or over all in turn; rates are (1,) or (1, updates)."""

    @abstractmethod
    def blocks(self) -> Iterator[Rows]:
        """All rows, dense, in one or more blocks."""

    def loss_and_gradients(self, engine: Engine) -> tuple[float, Parameters]:
        """Mean loss and its gradients over all rows."""
        total = 0.0
        loss, gradients = 0.0, None
        for block in self.blocks():
            weight = block.weight_sum()
            part, found, _ = engine.loss_and_gradients(block.X, block.y, block.weight)
            total += weight
            loss += part * weight
            if gradients is None and weight == self.weight_sum():
                return part, found
            if gradients is None:
                gradients = {name: np.zeros_like(value) for name, value in found.items()}
            for name, value in found.items():
                gradients[name] += weight * value
        assert gradients is not None
        scale = 1 / total if total > 0 else 0.0
        return loss * scale, {name: value * scale for name, value in gradients.items()}

    def evaluate(self, engine: Engine) -> float:
        """Mean loss of all rows without the penalty."""
        total = loss = 0.0
        for block in self.blocks():
            weight = block.weight_sum()
            total += weight
            loss += engine.evaluate(block.X, block.y, block.weight) * weight
        return loss / total if total > 0 else 0.0

    def weight_sum(self) -> float:
        """Summed weights, the number of rows if there are none."""
        return float(len(self)) if self.weight is None else float(np.sum(self.weight, dtype=np.float64))


class DenseRows(Rows):
    """Rows of an array."""

    def train_epoch(self, engine: Engine, order: Array | None, batch_size: int, rates: Array) -> TrainResult:
        """One epoch over the rows of an order, or over all in turn."""
        return _train_epoch(engine, self.X, self.y, self.weight, order, batch_size, rates)

    def blocks(self) -> Iterator[Rows]:
        """All rows at once."""
        yield self


class SparseRows(Rows):
    """Rows of a CSR matrix; never dense all at once."""

    def train_epoch(self, engine: Engine, order: Array | None, batch_size: int, rates: Array) -> TrainResult:
        """One epoch over the rows of an order, or over all in turn."""
        if engine.takes_sparse:
            return _train_epoch(engine, self._csr(), self.y, self.weight, order, batch_size, rates)
        order = np.arange(len(self)) if order is None else order
        block = max(1, self._block_rows() // batch_size) * batch_size
        loss = total = 0.0
        for start in range(0, len(order), block):
            rows = self.take(order[start : start + block])
            dense = DenseRows(rows.X.toarray(), rows.y, rows.weight)
            first = start // batch_size
            its_rates = rates if rates.ndim == 1 else rates[:, first : first + -(-len(dense) // batch_size)]
            result = dense.train_epoch(engine, None, min(batch_size, len(dense)), its_rates.copy())
            if not result.losses:
                return result
            loss += result.losses[0] * dense.weight_sum()
            total += dense.weight_sum()
            if result.interrupted or result.raised is not None:
                return result
        return TrainResult([loss / total if total > 0 else 0.0])

    def loss_and_gradients(self, engine: Engine) -> tuple[float, Parameters]:
        """Mean loss and its gradients over all rows."""
        if not engine.takes_sparse:
            return super().loss_and_gradients(engine)
        loss, gradients, _ = engine.loss_and_gradients(self._csr(), self.y, self.weight)
        return loss, gradients

    def _csr(self) -> Any:
        return Csr(np.asarray(self.X.indptr, np.int64), np.asarray(self.X.indices, np.int32), self.X.data)

    def blocks(self) -> Iterator[Rows]:
        """Blocks of rows in turn."""
        size = self._block_rows()
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            weight = None if self.weight is None else self.weight[rows]
            yield DenseRows(self.X[rows].toarray(), self.y[rows], weight)

    def _block_rows(self) -> int:
        return max(1, int(BLOCK_BYTES // (self.X.shape[1] * self.X.dtype.itemsize)))


def _train_epoch(
    engine: Engine, X: Any, y: Array, weight: Array | None, order: Array | None, batch_size: int, rates: Array
) -> TrainResult:
    return engine.train(
        X,
        y,
        weight,
        epochs=1,
        batch_size=batch_size,
        learning_rates=rates,
        seed=0,
        first_epoch=0,
        shuffle=False,
        order=order,
    )


def make_rows(X: Any, y: Array, weight: Array | None) -> Rows:
    """Rows of an array, or of a sparse matrix in any format."""
    if scipy.sparse.issparse(X):
        return SparseRows(X.tocsr(), y, weight)
    return DenseRows(X, y, weight)


def predict(engine: Engine, X: Any) -> Array:
    """Linked outputs (n, n_out) for dense or sparse rows in the engine's dtype."""
    out = np.empty((X.shape[0], engine.plan.n_out), engine.plan.dtype)
    if not scipy.sparse.issparse(X):
        engine.predict(X, out)
        return out
    X = X.tocsr()
    size = max(1, int(BLOCK_BYTES // (X.shape[1] * out.itemsize)))
    for start in range(0, X.shape[0], size):
        engine.predict(X[start : start + size].toarray(), out[start : start + size])
    return out
