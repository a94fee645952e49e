"""Training by mini-batches as scikit-learn's perceptrons do it: the order of the rows, and when to stop.

Every generator call happens in scikit-learn's order, so that one seed gives the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from gradstep.backends.base import Array, Engine
from gradstep.schedules import factors_of
from gradstep.sklearn.callbacks import EpochHooks
from gradstep.sklearn.model import Coefficients, coefficients
from gradstep.sklearn.objective import Objective
from gradstep.sklearn.rows import Rows
from gradstep.sklearn.settings import Settings
from gradstep.sklearn.warn import warn

if TYPE_CHECKING:
    from gradstep.sklearn.base import Perceptron

AUTO_BATCH = 200
SMALLEST_RATE = 1e-6
"""Below this the adaptive schedule stops instead of dividing the learning rate by 5."""

NON_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
    "preprocessed; a smaller learning_rate_init may help, too."
)


@dataclass(frozen=True)
class Split:
    """Which rows train, and what scores the epochs."""

    train: Array | None = None
    """Rows that train; None for all."""
    score: Callable[[], float] | None = None
    """Score of the validation rows, or None without early stopping."""
    loss: Callable[[], float] | None = None
    """Loss of validation rows that the user gave, or None."""


def hold_out(
    n: int, fraction: float, stratify: Array | None, random_state: np.random.RandomState
) -> tuple[Array, Array]:
    """Rows to train on and rows to validate on, as scikit-learn splits them."""
    train, held = train_test_split(
        np.arange(n), random_state=random_state, test_size=fraction, stratify=stratify
    )
    if len(held) < 2:
        raise ValueError(
            "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
        )
    return train, held


class StochasticSolver:
    """One call of fit or partial_fit with sgd or adam; keeps the estimator's attributes up to date.

    Parameters
    ----------
    estimator
        Its attributes of training follow the epochs; its coefficients are set at the end.
    engine
        With the coefficients to start from.
    settings, objective
        What to do.
    rows, split
        What to train on.
    random_state
        The generator that shuffles.
    first_update
        Updates that the optimizer did in calls before.
    """

    def __init__(
        self,
        estimator: Perceptron,
        engine: Engine,
        settings: Settings,
        objective: Objective,
        rows: Rows,
        split: Split,
        random_state: np.random.RandomState,
        first_update: int,
    ) -> None:
        self.estimator = estimator
        self.engine = engine
        self.settings = settings
        self.objective = objective
        self.rows = rows
        self.split = split
        self.random_state = random_state
        self.n = len(rows) if split.train is None else len(split.train)
        self.batch_size = self._batch_size()
        if engine.plan.normalises_batches and self.batch_size < 2:
            raise ValueError("normalization='batch' needs batches of at least 2 rows, got 1")
        self.updates = first_update
        # Where no epoch has a score, the coefficients stay what they were.
        self.best = None if split.score is None else Coefficients.of(estimator)

    def run(self, hooks: EpochHooks, *, incremental: bool) -> None:
        """Train until the settings say stop; for one epoch if incremental."""
        estimator, settings = self.estimator, self.settings
        start = time.perf_counter()
        order = np.arange(self.n) if self.split.train is None else self.split.train.astype(np.int64)
        estimator.n_iter_ = 0
        for _ in range(settings.max_iter):
            hooks.epoch_begins()
            if settings.shuffle:
                self.random_state.shuffle(order)
            visited = order if settings.shuffle or self.split.train is not None else None
            result = self.rows.train_epoch(self.engine, visited, self.batch_size, self._rates())
            if result.raised is not None:
                raise result.raised
            if result.diverged:
                raise ValueError(NON_FINITE)
            if result.interrupted:
                warn("Training interrupted by user.")
                break
            self._record(result.losses[0] * self.objective.reported)
            is_over = self._is_over()
            if hooks.epoch_ended(self._coefficients) or is_over or incremental or self._is_late(start):
                break
            # A schedule is made for all of its epochs: to reach the last one is the plan.
            if estimator.n_iter_ == settings.max_iter and isinstance(settings.learning_rate, str):
                warn(
                    f"Stochastic Optimizer: Maximum iterations ({settings.max_iter}) reached and the "
                    "optimization hasn't converged yet.",
                    ConvergenceWarning,
                )
        self._finish()

    def _batch_size(self) -> int:
        wanted = self.settings.batch_size
        if wanted is None:
            return min(AUTO_BATCH, self.n)
        if wanted > self.n:
            warn("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped")
        return min(wanted, self.n)

    def _rates(self) -> Array:
        """The engine's learning rates for the epoch to come: (1,), or (1, updates) where they differ."""
        schedule = self.settings.learning_rate
        rate = self.objective.learning_rate(self.estimator._rate, self.settings.solver)
        if isinstance(schedule, str):
            return np.array([rate])
        steps = -(-self.n // self.batch_size)
        numbers = np.arange(self.updates, self.updates + steps)
        self.updates += steps
        total = self.settings.max_iter * steps
        return rate * factors_of(schedule, numbers, total, "learning_rate")[None]

    def _record(self, loss: float) -> None:
        estimator = self.estimator
        estimator.n_iter_ += 1
        estimator.t_ += self.n
        estimator.loss_ = loss
        estimator.loss_curve_.append(loss)
        if self.settings.verbose:
            print(f"Iteration {estimator.n_iter_}, loss = {loss:.8f}")
        if self.split.loss is not None:
            estimator.validation_loss_curve_.append(self.split.loss())
        if self.split.score is not None:
            self._record_score(self.split.score())
        else:
            self._count(loss > estimator.best_loss_ - self.settings.tol)
            estimator.best_loss_ = min(estimator.best_loss_, loss)
        if self.settings.solver == "sgd" and self.settings.learning_rate == "invscaling":
            estimator._rate = self.settings.learning_rate_init / (estimator.t_ + 1) ** self.settings.power_t

    def _record_score(self, score: float) -> None:
        estimator = self.estimator
        estimator.validation_scores_.append(score)
        if self.settings.verbose:
            print(f"Validation score: {score:f}")
        self._count(score < estimator.best_validation_score_ + self.settings.tol)
        if score > estimator.best_validation_score_:
            estimator.best_validation_score_ = score
            self.best = self._coefficients()

    def _count(self, is_no_improvement: bool) -> None:
        estimator = self.estimator
        estimator._no_improvement_count = estimator._no_improvement_count + 1 if is_no_improvement else 0

    def _is_over(self) -> bool:
        """Whether nothing has improved for too long; the adaptive schedule takes a smaller rate first."""
        estimator, settings = self.estimator, self.settings
        if estimator._no_improvement_count <= settings.n_iter_no_change:
            return False
        what = "Validation score" if self.split.score is not None else "Training loss"
        message = (
            f"{what} did not improve more than tol={settings.tol:f} for {settings.n_iter_no_change} "
            "consecutive epochs."
        )
        if settings.solver != "sgd" or settings.learning_rate != "adaptive":
            self._say(f"{message} Stopping.")
            return True
        if estimator._rate <= SMALLEST_RATE:
            self._say(f"{message} Learning rate too small. Stopping.")
            return True
        estimator._rate /= 5.0
        self._say(f"{message} Setting learning rate to {estimator._rate:f}")
        estimator._no_improvement_count = 0
        return False

    def _say(self, text: str) -> None:
        if self.settings.verbose:
            print(text)

    def _is_late(self, start: float) -> bool:
        budget = self.settings.time_budget
        return budget is not None and time.perf_counter() - start >= budget

    def _coefficients(self) -> Coefficients:
        return coefficients(self.engine.plan, self.engine.parameters())

    def _finish(self) -> None:
        """The coefficients of the end, or the best ones of early stopping."""
        estimator = self.estimator
        (self.best or self._coefficients()).give_to(estimator)
        estimator._optimizer_state = self.engine.optimizer_state()
