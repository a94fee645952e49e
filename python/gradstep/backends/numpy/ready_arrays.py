"""The short ways of engines that are written in Python: arrays that can be used as they are."""

from __future__ import annotations

import numpy as np

from gradstep.backends.base import Array, Engine, Plan
from gradstep.backends.numpy.losses import LOSSES
from gradstep.validation import READY_ELEMENTS, all_finite

_INT32 = np.dtype(np.int32)


class PythonEngine(Engine):
    """`try_predict` and `try_step` of an engine, by its `predict` and `step`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._dtype = np.dtype(plan.dtype)
        loss = None if plan.custom_loss is not None else LOSSES[plan.loss]
        self._n_targets = plan.n_out // (1 if loss is None else loss.outputs_per_target)
        self._takes_labels = loss is not None and loss.targets == "labels"
        self._embeds = any(layer.kind == "embedding" for layer in plan.layers)

    def try_predict(self, X: object) -> Array | None:
        """The linked outputs; None if X is not a small array that can be used as it is."""
        rows = self._ready_rows(X, self.plan.n_in)
        if rows is None or self._embeds:
            return None
        out = np.empty((len(rows), self.plan.n_out), self._dtype)
        self.predict(rows, out)
        return out

    def try_step(self, X: object, y: object, learning_rate: float) -> float | None:
        """The loss before the update; None if X and y are not small arrays that can be used as they are."""
        rows = self._ready_rows(X, self.plan.n_in)
        if rows is None or self._embeds or self.plan.custom_loss is not None:
            return None
        targets = self._ready_labels(y) if self._takes_labels else self._ready_rows(y, self._n_targets)
        if targets is None or len(targets) != len(rows):
            return None
        return self.step(rows, targets, None, learning_rate)

    def _ready_rows(self, given: object, columns: int) -> Array | None:
        array = _ready_array(given, self._dtype)
        if array is not None and array.ndim == 2 and array.shape[1] == columns and all_finite(array):
            return array
        return None

    def _ready_labels(self, given: object) -> Array | None:
        array = _ready_array(given, _INT32)
        if array is not None and array.ndim == 1 and array.min() >= 0 and array.max() < self.plan.n_out:
            return array
        return None


def _ready_array(given: object, dtype: np.dtype[np.generic]) -> Array | None:
    if (
        type(given) is np.ndarray
        and given.dtype == dtype
        and 0 < given.size <= READY_ELEMENTS
        and given.flags.c_contiguous
        and given.flags.aligned
    ):
        return given
    return None
