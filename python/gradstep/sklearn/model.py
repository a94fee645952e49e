"""An estimator's engine: made from its coefficients, and read back into them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradstep import backends
from gradstep.backends.base import Array, Engine, Parameters, Plan


class Coefficients(NamedTuple):
    """What an estimator learns: its attributes of the same names with an underscore behind."""

    coefs: list[Array]
    """W of every layer, (n_in, n_out)."""
    intercepts: list[Array]
    """b of every layer, (n_out,)."""
    normalizations: list[dict[str, Array]]
    """Of every hidden layer: gain and shift, and of batch normalisation mean and variance, (n_out,) each."""

    @classmethod
    def of(cls, estimator: Any) -> Coefficients:
        """Those that an estimator has."""
        return cls(estimator.coefs_, estimator.intercepts_, getattr(estimator, "normalizations_", []))

    def attributes(self) -> dict[str, Any]:
        """By the names that an estimator gives them; one that normalises nothing is as scikit-learn's."""
        learnt = {"coefs_": self.coefs, "intercepts_": self.intercepts}
        return learnt | ({"normalizations_": self.normalizations} if self.normalizations else {})

    def give_to(self, estimator: Any) -> None:
        """Make them the estimator's."""
        vars(estimator).update(self.attributes())

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the input and of all layers."""
        return (self.coefs[0].shape[0], *(W.shape[1] for W in self.coefs))

    @property
    def normalization(self) -> str | None:
        """Kind of the engine's layers that normalise."""
        if not self.normalizations:
            return None
        return "batch_norm" if "mean" in self.normalizations[0] else "layer_norm"


def make_engine(plan: Plan, backend: str, values: Coefficients) -> Engine:
    """An engine with these parameters."""
    engine = backends.get(backend).make_engine(plan)
    set_coefficients(engine, values)
    return engine


def named(values: Coefficients) -> Parameters:
    """The coefficients by the engine's names."""
    parameters: Parameters = {}
    for index, (W, b) in enumerate(zip(values.coefs, values.intercepts, strict=True)):
        parameters[f"dense_{index}.W"], parameters[f"dense_{index}.b"] = W, b
    for index, own in enumerate(values.normalizations):
        parameters |= {f"{values.normalization}_{index}.{name}": value for name, value in own.items()}
    return parameters


def set_coefficients(engine: Engine, values: Coefficients) -> None:
    """Overwrite the engine's parameters."""
    dtype = engine.plan.dtype
    engine.set_parameters({name: np.ascontiguousarray(v, dtype) for name, v in named(values).items()})


def coefficients(plan: Plan, parameters: Parameters) -> Coefficients:
    """Parameters by name as an estimator keeps them."""
    dense = [layer.name for layer in plan.layers if layer.kind == "dense"]
    return Coefficients(
        [parameters[f"{name}.W"] for name in dense],
        [parameters[f"{name}.b"] for name in dense],
        [
            {name: parameters[f"{layer.name}.{name}"] for name in layer.all_shapes()}
            for layer in plan.layers
            if layer.kind != "dense"
        ],
    )


def initial_normalizations(plan: Plan) -> list[dict[str, Array]]:
    """What changes nothing but for the normalisation itself."""
    return [layer.initial_values(plan.dtype) for layer in plan.layers if layer.kind != "dense"]


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
