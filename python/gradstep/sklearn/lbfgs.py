"""Training by L-BFGS: SciPy's, on the engine's float64 gradients of all rows."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gradstep.backends.base import Array, Engine
from gradstep.lbfgs import minimize as minimize_by_lbfgs
from gradstep.lbfgs import pack, set_packed, unpack
from gradstep.sklearn.model import coefficients
from gradstep.sklearn.objective import Objective
from gradstep.sklearn.rows import Rows
from gradstep.sklearn.settings import Settings

if TYPE_CHECKING:
    from gradstep.sklearn.base import Perceptron


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
        return coefficients(self.engine.plan, unpack(self.engine.plan, theta))

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Loss and gradient."""
        set_packed(self.engine, theta)
        loss, gradients = self.rows.loss_and_gradients(self.engine)
        gradient = pack(self.engine.plan, gradients) / self.scale
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
    coefs, intercepts = estimator.coefs_, estimator.intercepts_
    result = minimize_by_lbfgs(
        function,
        np.concatenate([values.ravel() for values in (*coefs, *intercepts)]).astype(np.float64),
        report if settings.verbose else None,
        {"maxfun": settings.max_fun, "maxiter": settings.max_iter, "gtol": settings.tol},
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
