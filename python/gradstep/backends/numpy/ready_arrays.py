"""The short ways of engines that are written in Python: arrays that can be used as they are."""

from __future__ import annotations

import numpy as np

from gradstep.backends.base import Array, Engine, Plan
from gradstep.backends.numpy.losses import LOSSES
from gradstep.validation import BLOCK_ELEMENTS, all_finite

_INT32 = np.dtype(np.int32)

_SMALL_BATCH = 256
"""Rows up to which labels are quicker checked as Python integers than by numpy."""


class TriesReadyArrays(Engine):
    """`try_predict` and `try_step` of an engine, by its `predict` and `step`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._dtype = np.dtype(plan.dtype)
        loss = None if plan.custom_loss else LOSSES[plan.loss]
        self._n_targets = plan.n_out // (loss.outputs_per_target if loss else 1)
        self._labels = frozenset(range(plan.n_out if loss and loss.targets == "labels" else 0))

    def try_predict(self, X: object) -> Array | None:
        """The linked outputs; None if X is not a small array that can be used as it is."""
        rows = self._ready_rows(X, self.plan.n_in)
        if rows is None:
            return None
        out = np.empty((len(rows), self.plan.n_out), self._dtype)
        self.predict(rows, out)
        return out

    def try_step(self, X: object, y: object, learning_rate: float) -> float | None:
        """The loss before the update; None if X and y are not small arrays that can be used as they are."""
        rows = self._ready_rows(X, self.plan.n_in)
        if rows is None or self.plan.custom_loss:
            return None
        targets = self._ready_labels(y) if self._labels else self._ready_rows(y, self._n_targets)
        if targets is None or len(targets) != len(rows):
            return None
        return self.step(rows, targets, None, learning_rate)

    def _ready_rows(self, given: object, columns: int) -> Array | None:
        if (
            type(given) is np.ndarray
            and given.dtype is self._dtype
            and given.ndim == 2
            and given.shape[1] == columns
            and 0 < given.size <= BLOCK_ELEMENTS
            and given.flags.carray
            and all_finite(given)
        ):
            return given
        return None

    def _ready_labels(self, given: object) -> Array | None:
        if (
            type(given) is np.ndarray
            and given.dtype is _INT32
            and given.ndim == 1
            and given.size <= _SMALL_BATCH
            and given.flags.carray
            and self._labels.issuperset(given.tolist())
        ):
            return given
        return None
