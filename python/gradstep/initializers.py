"""Initial weights of dense layers.

Sources: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
networks", AISTATS 2010; He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
Sampler: TypeAlias = "Callable[[np.random.Generator, int], Weights]"
"""So many values from a generator."""

BLOCK = 1 << 14
"""Values that are drawn at a time, so that float64 copies of large layers never exist."""


def _uniform(limit: float) -> Sampler:
    return lambda rng, n: rng.uniform(-limit, limit, n)


def _normal(deviation: float) -> Sampler:
    return lambda rng, n: deviation * rng.standard_normal(n)


INITIALIZERS: dict[str, Callable[[int, int], Sampler]] = {
    "glorot_uniform": lambda i, o: _uniform((6 / (i + o)) ** 0.5),
    "glorot_normal": lambda i, o: _normal((2 / (i + o)) ** 0.5),
    "he_uniform": lambda i, o: _uniform((6 / i) ** 0.5),
    "he_normal": lambda i, o: _normal((2 / i) ** 0.5),
    "zeros": lambda i, o: lambda rng, n: np.zeros(n),
}
"""By name, from the widths of a layer: a variance of 2 / (n_in + n_out) for glorot, 2 / n_in for he."""

_HE_ACTIVATIONS = frozenset({"relu", "leaky_relu", "elu", "gelu", "silu", "mish"})


def default_initializer(activation: str) -> str:
    """The initializer that suits an activation: he_uniform for the relu family, else glorot_uniform."""
    return "he_uniform" if activation in _HE_ACTIVATIONS else "glorot_uniform"


class Given:
    """An array of initial values, compared by its values so that layers can be compared.

    Parameters
    ----------
    values
        The values; copied, so that later changes of the argument have no effect.
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.values = np.array(values, dtype=np.float64)
        self.values.flags.writeable = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash((Given, self.values.shape))

    def __repr__(self) -> str:
        return f"<given array {self.values.shape}>"


def initial_weights(
    initializer: str | Given, seed: int, layer_index: int, n_in: int, n_out: int, dtype: str = "float64"
) -> NDArray[Any]:
    """Draw the weights of one layer.

    Parameters
    ----------
    initializer
        A name of `INITIALIZERS`, or the values themselves.
    seed
        Seed of the network.
    layer_index
        Number of the layer, counted from 0: each layer has its own random stream.
    n_in, n_out
        Widths of the layer.
    dtype
        Of the result; drawn in float64 whatever it is.

    Returns
    -------
    numpy.ndarray
        (n_in, n_out).

    Raises
    ------
    ValueError
        If given values have another shape.
    """
    if isinstance(initializer, Given):
        return given_values(initializer, (n_in, n_out), f"initializer of dense_{layer_index}").astype(dtype)
    rng = np.random.default_rng([seed, layer_index])
    sample = INITIALIZERS[initializer](n_in, n_out)
    # Pages of its own: on the heap a large array that is soon freed leaves a gap that stays in memory.
    pages = mmap.mmap(-1, n_in * n_out * np.dtype(dtype).itemsize)
    weights = np.frombuffer(pages, dtype)
    for start in range(0, weights.size, BLOCK):
        part = weights[start : start + BLOCK]
        part[...] = sample(rng, part.size)
    return weights.reshape(n_in, n_out)


def given_values(given: Given, shape: tuple[int, ...], argument: str) -> Weights:
    """The given values, if they have the expected shape."""
    if given.values.shape != shape:
        raise ValueError(f"{argument} must have shape {shape}, got {given.values.shape}")
    return given.values
