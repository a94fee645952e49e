"""Training by L-BFGS: SciPy's, on the engine's float64 gradients of all rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gradstep.backends.base import Array, Engine
from gradstep.lbfgs import minimize as minimize_by_lbfgs
from gradstep.lbfgs import pack, set_packed, unpack
from gradstep.sklearn.callbacks import EpochHooks
from gradstep.sklearn.model import Coefficients, coefficients
from gradstep.sklearn.objective import Objective
from gradstep.sklearn.rows import Rows
from gradstep.sklearn.settings import Settings
from gradstep.sklearn.warn import warn

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

    def copies(self, theta: Array) -> Coefficients:
        """Copies of the packed coefficients."""
        parameters = unpack(self.engine.plan, theta)
        return coefficients(self.engine.plan, {name: value.copy() for name, value in parameters.items()})

    def __call__(self, theta: Array) -> tuple[float, Array]:
        """Loss and gradient."""
        set_packed(self.engine, theta)
        loss, gradients = self.rows.loss_and_gradients(self.engine)
        gradient = pack(self.engine.plan, gradients) / self.scale
        weights = theta[: self.weights]
        gradient[: self.weights] += self.l2 * weights
        return loss / self.scale + 0.5 * self.l2 * float(weights @ weights), gradient


class _Watch:
    """SciPy's callback: tells who asked of every iteration, and ends training where someone says so."""

    def __init__(
        self,
        estimator: Perceptron,
        function: _Function,
        settings: Settings,
        validation_loss: Callable[[], float] | None,
        hooks: EpochHooks,
    ) -> None:
        self.estimator = estimator
        self.function = function
        self.settings = settings
        self.validation_loss = validation_loss
        self.hooks = hooks
        self.start = time.perf_counter()
        self.stopped = False
        estimator.n_iter_ = 0

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        s = self.settings
        return bool(
            s.verbose or self.hooks.watched or self.validation_loss is not None or s.time_budget is not None
        )

    def __call__(self, intermediate_result: Any) -> None:
        """After an iteration; SciPy goes by the argument's name."""
        estimator, theta = self.estimator, intermediate_result.x
        estimator.n_iter_ += 1
        estimator.loss_ = float(intermediate_result.fun)
        if self.settings.verbose:
            print(f"Iteration {estimator.n_iter_}, loss = {estimator.loss_:.8f}")
        if self.validation_loss is not None:
            set_packed(self.function.engine, theta)
            estimator.validation_loss_curve_.append(self.validation_loss())
        self.hooks.epoch_begins()
        self.stopped = self.hooks.epoch_ended(lambda: self.function.copies(theta)) or self._is_late()
        if self.stopped:
            raise StopIteration

    def _is_late(self) -> bool:
        budget = self.settings.time_budget
        return budget is not None and time.perf_counter() - self.start >= budget


def minimize(
    estimator: Perceptron,
    engine: Engine,
    settings: Settings,
    objective: Objective,
    rows: Rows,
    validation_loss: Callable[[], float] | None,
    hooks: EpochHooks,
) -> None:
    """Train, and set the estimator's coefficients, `loss_` and `n_iter_`."""
    function = _Function(engine, rows, objective, settings.alpha)
    watch = _Watch(estimator, function, settings, validation_loss, hooks)
    coefs, intercepts = estimator.coefs_, estimator.intercepts_
    result = minimize_by_lbfgs(
        function,
        np.concatenate([values.ravel() for values in (*coefs, *intercepts)]).astype(np.float64),
        watch if watch.needed else None,
        {"maxfun": settings.max_fun, "maxiter": settings.max_iter, "gtol": settings.tol},
    )
    if not np.isfinite(result.x).all():
        raise ValueError(
            "Solver produced non-finite parameter weights. The input data may contain large values."
        )
    if result.status != 0 and not watch.stopped:
        warn(
            f"lbfgs failed to converge after {result.nit} iteration(s) (status={result.status}):\n"
            f"{result.message}\n\nYou might also want to scale the data or to increase max_iter="
            f"{settings.max_iter}.",
            ConvergenceWarning,
        )
    estimator.n_iter_ = max(1, min(int(result.nit), settings.max_iter))
    estimator.loss_ = float(result.fun)
    function.copies(result.x).give_to(estimator)
