"""An estimator's engine: made from its coefficients, and read back into them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from gradstep import backends
from gradstep.backends.base import Array, Engine, Parameters, Plan


def make_engine(plan: Plan, backend: str, coefs: Sequence[Array], intercepts: Sequence[Array]) -> Engine:
    """An engine with these parameters."""
    engine = backends.get(backend).make_engine(plan)
    set_coefficients(engine, coefs, intercepts)
    return engine


def set_coefficients(engine: Engine, coefs: Sequence[Array], intercepts: Sequence[Array]) -> None:
    """Overwrite the engine's parameters."""
    dtype = engine.plan.dtype
    parameters: Parameters = {}
    for layer, W, b in zip(engine.plan.layers, coefs, intercepts, strict=True):
        parameters[f"{layer.name}.W"] = np.ascontiguousarray(W, dtype)
        parameters[f"{layer.name}.b"] = np.ascontiguousarray(b, dtype)
    engine.set_parameters(parameters)


def coefficients(plan: Plan, parameters: Parameters) -> tuple[list[Array], list[Array]]:
    """Parameters by name as lists of W (n_in, n_out) and of b (n_out,)."""
    return (
        [parameters[f"{layer.name}.W"] for layer in plan.layers],
        [parameters[f"{layer.name}.b"] for layer in plan.layers],
    )


def initial_coefficients(
    widths: Sequence[int], activation: str, random_state: np.random.RandomState, dtype: str
) -> tuple[list[Array], list[Array]]:
    """Weights and biases as scikit-learn draws them: Glorot and Bengio, AISTATS 2010, biases alike.

    Uniform within ``sqrt(6 / (n_in + n_out))``, of 2 instead of 6 for the logistic activation.
    """
    coefs, intercepts = [], []
    for n_in, n_out in itertools.pairwise(widths):
        bound = np.sqrt((2.0 if activation == "logistic" else 6.0) / (n_in + n_out))
        coefs.append(random_state.uniform(-bound, bound, (n_in, n_out)).astype(dtype, copy=False))
        intercepts.append(random_state.uniform(-bound, bound, n_out).astype(dtype, copy=False))
    return coefs, intercepts


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """The number of threads within the block; None leaves it as it is, 0 means all usable cores."""
    if count is None:
        yield
        return
    before = backends.chosen_num_threads()
    backends.set_num_threads(count)
    try:
        yield
    finally:
        backends.set_num_threads(before)
