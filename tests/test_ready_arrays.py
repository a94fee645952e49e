"""The short ways of an engine: small arrays that can be used as they are, on every backend."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gradstep.backends.custom_loss import CustomLoss
from networks import make_data, make_engine, make_plan

ROWS, WIDTHS = 6, (5, 4, 3)


class Subclass(np.ndarray):
    """What numpy's own functions may treat in ways of their own: masked arrays, matrices."""


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def holding(array, value):
    changed = array.copy()
    changed[-1, -1] = value
    return changed


NOT_READY = {
    "a list": lambda X: X.tolist(),
    "None": lambda X: None,
    "another dtype": lambda X: X.astype(np.float64 if X.dtype == np.float32 else np.float32),
    "integers": lambda X: X.astype(np.int32),
    "bytes swapped": lambda X: X.astype(X.dtype.newbyteorder()),
    "columns first": np.asfortranarray,
    "every second row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "a subclass": lambda X: X.view(Subclass),
    "unaligned": unaligned,
    "one dimension": lambda X: X.reshape(-1),
    "three dimensions": lambda X: X[None],
    "another width": lambda X: np.ascontiguousarray(X[:, 1:]),
    "no rows": lambda X: X[:0],
    "too many": lambda X: np.resize(X, (9000, X.shape[1])),
    "NaN": lambda X: holding(X, np.nan),
    "infinity": lambda X: holding(X, -np.inf),
}


def engine_of(backend, dtype="float32", loss="mse"):
    return make_engine(backend, make_plan(WIDTHS, loss=loss, dtype=dtype))


def state_of(engine):
    values = {**engine.parameters(), **engine.optimizer_state()}
    return {name: value.tobytes() for name, value in values.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ready_rows_are_predicted_as_ever(backend, dtype):
    engine = engine_of(backend, dtype)
    X = make_data(engine.plan, ROWS).X
    out = np.empty((ROWS, WIDTHS[-1]), dtype)
    engine.predict(X, out)
    tried = engine.try_predict(X)
    assert tried.dtype == dtype
    assert tried.tobytes() == out.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", NOT_READY)
def test_other_rows_are_left_to_the_caller(backend, dtype, kind):
    engine = engine_of(backend, dtype)
    assert engine.try_predict(NOT_READY[kind](make_data(engine.plan, ROWS).X)) is None


@pytest.mark.parametrize("loss", ["mse", "gaussian_nll", "cross_entropy"])
def test_a_step_on_ready_arrays_is_a_step(backend, loss):
    widths = (5, 4, 4)
    tried, asked = (make_engine(backend, make_plan(widths, loss=loss, optimizer="adam")) for _ in range(2))
    X, y, _ = make_data(tried.plan, ROWS)
    for _ in range(3):
        assert tried.try_step(X, y, 0.1) == asked.step(X, y, None, 0.1)
    assert state_of(tried) == state_of(asked)


@pytest.mark.parametrize("argument", ["X", "y"])
@pytest.mark.parametrize("kind", NOT_READY)
def test_other_arrays_make_no_step(backend, argument, kind):
    engine = engine_of(backend)
    X, y, _ = make_data(engine.plan, ROWS)
    given = {"X": X, "y": y}
    given[argument] = NOT_READY[kind](given[argument])
    before = state_of(engine)
    assert engine.try_step(given["X"], given["y"], 0.1) is None
    assert state_of(engine) == before


WRONG_LABELS = {
    "a list": lambda y: y.tolist(),
    "int64": lambda y: y.astype(np.int64),
    "a class too many": lambda y: np.where(y == 0, WIDTHS[-1], y).astype(np.int32),
    "negative": lambda y: np.where(y == 0, -1, y).astype(np.int32),
    "another length": lambda y: y[1:],
    "a column": lambda y: y[:, None],
}


@pytest.mark.parametrize("kind", WRONG_LABELS)
def test_other_labels_make_no_step(backend, kind):
    engine = engine_of(backend, loss="cross_entropy")
    X = make_data(engine.plan, ROWS).X
    y = np.array([0, 1, 2, 0, 1, 2], np.int32)
    assert engine.try_step(X, y, 0.0) is not None
    assert engine.try_step(X, WRONG_LABELS[kind](y), 0.0) is None


def test_rows_and_targets_of_different_numbers_make_no_step(backend):
    engine = engine_of(backend)
    X, y, _ = make_data(engine.plan, ROWS)
    assert engine.try_step(X, y[1:], 0.1) is None


def test_a_custom_loss_is_left_to_the_caller(backend):
    def mean(y, outputs, weight):
        return outputs.mean(), np.full_like(outputs, 1 / outputs.size)

    plan = dataclasses.replace(make_plan(WIDTHS), loss="custom", custom_loss=CustomLoss(mean))
    X, y, _ = make_data(make_plan(WIDTHS), ROWS)
    assert make_engine(backend, plan).try_step(X, y, 0.1) is None
