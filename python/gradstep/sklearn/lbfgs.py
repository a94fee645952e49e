"""Training by L-BFGS: SciPy's, on the engine's float64 gradients of all rows."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning

from gradstep.backends.base import Array, Engine
from gradstep.sklearn.model import coefficients
from gradstep.sklearn.objective import Objective
from gradstep.sklearn.rows import Rows
from gradstep.sklearn.settings import Settings

if TYPE_CHECKING:
    from gradstep.sklearn.base import Perceptron


def _packed(coefs: list[Array], intercepts: list[Array]) -> Array:
    return np.concatenate([values.ravel() for values in (*coefs, *intercepts)]).astype(np.float64)


class _Function:
    """The objective with its penalty and its gradient, as functions of the packed coefficients."""

    def __init__(self, engine: Engine, rows: Rows, objective: Objective, alpha: float) -> None:
        self.engine = engine
        self.rows = rows
        self.scale = objective.scale
        weight = rows.weight_sum()
        self.l2 = alpha / weight if weight > 0 else 0.0
        self.weights = sum(layer.n_in * layer.n_out for layer in engine.plan.layers)

    def unpack(self, theta: Array) -> tuple[list[Array], list[Array]]:
        """Views of the packed coefficients."""
        coefs, intercepts, at = [], [], 0
        for layer in self.engine.plan.layers:
            size = layer.n_in * layer.n_out
            coefs.append(theta[at : at + size].reshape(layer.n_in, layer.n_out))
            at += size
        for layer in self.engine.plan.layers:
            intercepts.append(theta[at : at + layer.n_out])
            at += layer.n_out
        return coefs, intercepts

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Loss and gradient."""
        named = {}
        for layer, W, b in zip(self.engine.plan.layers, *self.unpack(theta), strict=True):
            named[f"{layer.name}.W"], named[f"{layer.name}.b"] = np.ascontiguousarray(W), b
        self.engine.set_parameters(named)
        loss, gradients = self.rows.loss_and_gradients(self.engine)
        gradient = _packed(*coefficients(self.engine.plan, gradients)) / self.scale
        weights = theta[: self.weights]
        gradient[: self.weights] += self.l2 * weights
        return loss / self.scale + 0.5 * self.l2 * float(weights @ weights), gradient


def minimize(
    estimator: Perceptron, engine: Engine, settings: Settings, objective: Objective, rows: Rows
) -> None:
    """Train, and set the estimator's coefficients, `loss_` and `n_iter_`."""
    function = _Function(engine, rows, objective, settings.alpha)

    def report(intermediate_result: Any) -> None:
        print(f"Iteration {report.count}, loss = {intermediate_result.fun:.8f}")  # type: ignore[attr-defined]
        report.count += 1  # type: ignore[attr-defined]

    report.count = 1  # type: ignore[attr-defined]
    result = scipy.optimize.minimize(
        function,
        _packed(estimator.coefs_, estimator.intercepts_),
        method="L-BFGS-B",
        jac=True,
        callback=report if settings.verbose else None,
        options={"maxfun": settings.max_fun, "maxiter": settings.max_iter, "gtol": settings.tol},
    )
    if not np.isfinite(result.x).all():
        raise ValueError(
            "Solver produced non-finite parameter weights. The input data may contain large values."
        )
    if result.status != 0:
        warnings.warn(
            f"lbfgs failed to converge after {result.nit} iteration(s) (status={result.status}):\n"
            f"{result.message}\n\nYou might also want to scale the data or to increase max_iter="
            f"{settings.max_iter}.",
            ConvergenceWarning,
            stacklevel=6,
        )
    coefs, intercepts = function.unpack(result.x)
    estimator.n_iter_ = max(1, min(int(result.nit), settings.max_iter))
    estimator.loss_ = float(result.fun)
    estimator.coefs_ = [W.copy() for W in coefs]
    estimator.intercepts_ = [b.copy() for b in intercepts]
