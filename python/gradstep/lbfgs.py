"""Training by L-BFGS: SciPy's, on an engine's gradients of all rows. SciPy is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradstep.backends.base import Array, Engine, Parameters, Plan


def pack(plan: Plan, parameters: Parameters) -> Array:
    """Parameters by name as one float64 array: the weights of all layers, then all others."""
    return np.concatenate([parameters[name].ravel() for name in _packed_shapes(plan)], dtype=np.float64)


def unpack(plan: Plan, theta: Array) -> Parameters:
    """Views of a packed array by name."""
    parameters: Parameters = {}
    at = 0
    for name, shape in _packed_shapes(plan).items():
        stop = at + int(np.prod(shape))
        parameters[name] = theta[at:stop].reshape(shape)
        at = stop
    return parameters


def _packed_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    shapes = plan.trained_shapes().items()
    weights = {name: shape for name, shape in shapes if name.endswith(".W")}
    return {**weights, **dict(shapes)}


def set_packed(engine: Engine, theta: Array) -> None:
    """Overwrite the engine's parameters, rounded to its dtype."""
    named = unpack(engine.plan, theta)
    engine.set_parameters({name: np.ascontiguousarray(value) for name, value in named.items()})


def minimize(
    function: Callable[[Array], tuple[float, Array]],
    theta: Array,
    callback: Callable[[Any], None] | None,
    options: dict[str, Any],
) -> Any:
    """SciPy's L-BFGS-B without bounds (Liu and Nocedal, Mathematical Programming 45, 1989).

    Parameters
    ----------
    function : callable
        Loss and gradient of packed parameters.
    theta : ndarray
        Where to begin, float64.
    callback : callable, optional
        Called after every iteration with SciPy's intermediate result; StopIteration ends the search.
    options : dict
        SciPy's, such as maxiter and gtol.

    Returns
    -------
    scipy.optimize.OptimizeResult
    """
    return scipy_minimize()(function, theta, method="L-BFGS-B", jac=True, callback=callback, options=options)


def scipy_minimize() -> Callable[..., Any]:
    """SciPy's function, or an ImportError that names the extra."""
    try:
        from scipy.optimize import minimize as function
    except ImportError:
        raise ImportError('L-BFGS needs the package scipy: pip install "gradstep[lbfgs]"') from None
    found: Callable[..., Any] = function
    return found


class Objective:
    """Training loss and gradient of an engine on fixed rows, as functions of packed parameters.

    Frozen layers stay where they are: their gradient is zero, and so is every step of theirs.
    """

    def __init__(self, engine: Engine, X: Array, y: Array, weight: Array | None) -> None:
        self.engine = engine
        self.rows = X, y, weight
        self.frozen = [
            f"{layer.name}.{name}"
            for layer in engine.plan.layers
            if layer.rate_factor == 0
            for name in layer.parameter_shapes()
        ]

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Loss and gradient, float64."""
        set_packed(self.engine, theta)
        loss, gradients, _ = self.engine.loss_and_gradients(*self.rows)
        for name in self.frozen:
            gradients[name][...] = 0
        return loss, pack(self.engine.plan, gradients)
