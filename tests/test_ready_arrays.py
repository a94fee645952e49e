"""The short ways of an engine: small arrays that can be used as they are, on every backend."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

import gradstep as gs
from gradstep.backends.custom_loss import CustomLoss
from gradstep.validation import READY_ELEMENTS
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
    "too many": lambda X: np.resize(X, (READY_ELEMENTS // X.shape[1] + 1, X.shape[1])),
    "NaN": lambda X: holding(X, np.nan),
    "infinity": lambda X: holding(X, -np.inf),
}


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


READY = {
    "read-only": read_only,
    "from a pickle": lambda X: pickle.loads(pickle.dumps(X)),
    "a dtype of its own": lambda X: X.view(np.dtype(X.dtype.str, metadata={"unit": "m"})),
    "the largest": lambda X: np.resize(X, (READY_ELEMENTS // X.shape[1], X.shape[1])),
    "numbers whose squares overflow": lambda X: np.full_like(X, np.finfo(X.dtype).max),
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


@pytest.mark.parametrize("kind", READY)
def test_rows_need_no_more_than_they_have_to(backend, kind):
    engine = engine_of(backend)
    X, y = (READY[kind](each) for each in make_data(engine.plan, ROWS)[:2])
    few = min(len(X), len(y))
    assert engine.try_predict(X) is not None
    assert engine.try_step(X[:few], y[:few], 0.0) is not None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", NOT_READY)
def test_other_rows_are_left_to_the_caller(backend, dtype, kind):
    engine = engine_of(backend, dtype)
    assert engine.try_predict(NOT_READY[kind](make_data(engine.plan, ROWS).X)) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["mse", "gaussian_nll", "cross_entropy", "focal", "hinge"])
def test_a_step_on_ready_arrays_is_a_step(backend, loss, dtype):
    plan = make_plan((5, 4, 4), loss=loss, optimizer="adam", dtype=dtype)
    tried, asked = (make_engine(backend, plan) for _ in range(2))
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


def test_categories_are_left_to_the_caller(backend):
    net = gs.Network([gs.Input(2), gs.Embedding(1, 4, 3), gs.Dense(1)], backend=backend.name)
    engine = backend.make_engine(net.plan)
    X = np.array([[0.5, 99]], np.float32)
    assert engine.try_predict(X) is None
    assert engine.try_step(X, np.ones((1, 1), np.float32), 0.1) is None


def test_a_custom_loss_is_left_to_the_caller(backend):
    def mean(y, outputs, weight):
        return outputs.mean(), np.full_like(outputs, 1 / outputs.size)

    plan = dataclasses.replace(make_plan(WIDTHS), loss="custom", custom_loss=CustomLoss(mean))
    X, y, _ = make_data(make_plan(WIDTHS), ROWS)
    assert make_engine(backend, plan).try_step(X, y, 0.1) is None


# --------------------------------------------------------------------------------------------------
# Networks, which know what engines do not look at. All have an engine before they are asked.

SMALL_X, SMALL_Y = make_data(make_plan(WIDTHS), ROWS)[:2]


def network_of(backend, **settings):
    net = gs.Network([gs.Dense(4, "tanh"), gs.Dense(3)], backend=backend.name, **settings)
    net.prepare(SMALL_X, SMALL_Y)
    return net


REFUSED = {
    "LBFGS": ({"optimizer": gs.LBFGS()}, SMALL_Y, "step cannot be used with the optimizer LBFGS"),
    "SWA": ({"averaging": gs.SWA(1)}, SMALL_Y, "step makes no epochs"),
    "no probability": ({"loss": "binary_cross_entropy"}, SMALL_Y + 2, "y must be between 0 and 1"),
    "negative": ({"loss": "poisson"}, -np.ones_like(SMALL_Y), "y must not be negative"),
    "no sign": ({"loss": "binary_hinge"}, np.full_like(SMALL_Y, 0.5), "y must hold -1 and 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_ready_arrays_are_refused_as_others_are(backend, kind):
    settings, y, message = REFUSED[kind]
    net = gs.Network([gs.Input(5), gs.Dense(3)], backend=backend.name, **settings)
    before = net.parameters()
    with pytest.raises(ValueError, match=message):
        net.step(SMALL_X, y)
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_category_that_there_is_not_is_refused(backend):
    net = gs.Network([gs.Input(5), gs.Embedding(4, 3, 2), gs.Dense(3)], backend=backend.name)
    net.parameters()
    for call in (lambda: net.predict(SMALL_X), lambda: net.step(SMALL_X, SMALL_Y)):
        with pytest.raises(ValueError, match="column 4 of X must hold categories 0 to 2"):
            call()


SETTINGS = {
    "inputs in other units": {"preprocessing": "standardize"},
    "targets in other units": {"target_preprocessing": "standardize"},
    "an average": {"averaging": gs.EMA(0.5)},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_ready_arrays_train_and_are_predicted_as_others_are(backend, kind):
    short, long = (network_of(backend, **SETTINGS[kind]) for _ in range(2))
    for _ in range(3):
        assert short.step(SMALL_X, SMALL_Y) == long.step(np.asfortranarray(SMALL_X), SMALL_Y.tolist())
    np.testing.assert_array_equal(short.predict(SMALL_X), long.predict(SMALL_X.tolist()))
