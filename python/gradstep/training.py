"""The training loop around an engine: epochs, validation, callbacks, progress and interruption."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstep.backends.base import Array, Engine, TrainResult
from gradstep.callbacks import Callback, TrainingState
from gradstep.history import History
from gradstep.lbfgs import Objective, minimize, pack, set_packed
from gradstep.optimizers import LBFGS
from gradstep.progress import Progress, Silent, start_progress
from gradstep.streaming import BalancedFeed, Feed, Rows, WindowFeed

if TYPE_CHECKING:
    from gradstep.network import Network
    from gradstep.schedules import ScheduleLike

SECONDS_PER_CALL = 0.15
"""How long the engine runs between two movements of the progress bar, about."""

GROWTH = 16
"""Most by which the number of epochs per call grows from one call to the next."""


EPOCHS_PER_CALL = 1 << 16
"""Most epochs of one call of the engine, or updates with a schedule: bounds the memory of their rates."""


class DivergenceError(FloatingPointError, RuntimeError):
    """A loss or parameter became NaN or infinite; the network keeps its last good parameters.

    These are those of the end of the last good epoch; networks above 8 MB of parameters and optimizer state
    keep those of the last step instead, for memory's sake: without the update that failed, or with a part of
    it. `EarlyStopping` has set the best ones.
    """


@dataclass(frozen=True, eq=False, repr=False)
class Job:
    """One call of `fit`, validated."""

    rows: Rows | Feed
    """Rows in memory, or what trains epoch by epoch on others."""
    epochs: int
    batch_size: int
    """Rows of an update; 0 where batches come as they are."""
    shuffle: bool
    measure: Callable[[], dict[str, float]] | None
    """What the history holds beside the loss, computed after every epoch, or None without it."""
    callbacks: Sequence[Callback]
    metric_names: tuple[str, ...]
    """What the history will hold."""
    verbose: int
    accumulate: int = 1
    class_weights: Array | None = None
    """With which a feed weights the rows of every class."""
    schedule: ScheduleLike = None
    """Factors of the learning rate, update by update."""
    note: str | None = None
    """A sentence to show before the first epoch."""


class Training:
    """One call of `fit`.

    Parameters
    ----------
    network
        The network; its ``history`` and ``epochs_trained`` follow the training.
    engine
        Its engine.
    job
        What to do. Its callbacks are told that it begins, and may refuse: nothing has changed yet.
    """

    def __init__(self, network: Network, engine: Engine, job: Job) -> None:
        self.network = network
        self.engine = engine
        self.job = job
        self.history = History(first_epoch=network.epochs_trained + 1)
        self.callbacks = tuple(sorted(job.callbacks, key=lambda callback: callback.last))
        self.feed = job.rows if isinstance(job.rows, Feed) else None
        self.each_epoch = bool(job.callbacks) or job.measure is not None or self.feed is not None
        if isinstance(job.rows, Feed):
            self.steps = job.rows.steps or 1
        else:
            self.steps = -(-len(job.rows.X) // job.batch_size)
        self.most_epochs = EPOCHS_PER_CALL if job.schedule is None else max(1, EPOCHS_PER_CALL // self.steps)
        self.restored = True
        self.progress: Progress = Silent()
        self.notes: list[str] | None = [] if job.note is None else [job.note]
        with contextlib.ExitStack() as begun:
            for callback in self.callbacks:
                callback.on_fit_begin(self._state())
                begun.callback(callback.on_fit_end, self._state())
            begun.pop_all()
        self.fed = len(self.history) * self.steps  # a checkpoint may have brought epochs

    def run(self) -> History:
        """Run the epochs.

        Returns
        -------
        History
            Also where training was stopped by a callback or Ctrl-C.

        Raises
        ------
        DivergenceError
            If a loss or parameter became NaN or infinite.
        """
        self.network.history = self.history
        self.progress = start_progress(self.job.verbose, self.job.epochs, len(self.history))
        earlier = self.history.seconds
        start = time.perf_counter()
        try:
            self._epochs()
        except KeyboardInterrupt:
            self.history.stopped = "interrupted"
            self.history.pad()
        except BaseException:
            self.history.stopped = "failed"
            self.history.pad()
            raise
        finally:
            self.history.seconds = earlier + time.perf_counter() - start
            self._end()
        if self.history.stopped == "diverged":
            raise DivergenceError(self._divergence())
        return self.history

    def _epochs(self) -> None:
        notes, self.notes = self.notes or [], None
        for note in notes:
            self.progress.note(note)
        stepwise = self.each_epoch or self.progress.visible
        epochs = 1 if stepwise else min(self.job.epochs, self.most_epochs)
        while self.history.stopped == "finished" and len(self.history) < self.job.epochs:
            start = time.perf_counter()
            self._train(epochs)
            if not self.each_epoch:
                epochs = self._next_epochs(epochs, time.perf_counter() - start)

    def _next_epochs(self, epochs: int, seconds: float) -> int:
        """Epochs of the next call, so that it takes about `SECONDS_PER_CALL`."""
        remaining = min(self.job.epochs - len(self.history), self.most_epochs)
        if not self.progress.visible:
            return remaining
        fitting = int(SECONDS_PER_CALL * epochs / max(seconds, 1e-9))
        return max(1, min(fitting, GROWTH * epochs, remaining))

    def _train(self, epochs: int) -> None:
        """One call of the engine, and what follows it."""
        rows = self.job.rows
        if isinstance(rows, Feed):
            result = rows.train(self.engine, self.network.epochs_trained, self._next_rates)
        else:
            result = self.engine.train(
                rows.X,
                rows.y,
                rows.weight,
                epochs=epochs,
                batch_size=self.job.batch_size,
                learning_rates=self._learning_rates(epochs),
                seed=self.network.seed,
                first_epoch=self.network.epochs_trained,
                shuffle=self.job.shuffle,
            )
        self._record(result)
        if result.raised is not None:
            raise result.raised
        if self.history.stopped != "finished":
            return
        for callback in self.callbacks:
            if callback.on_epoch_end(self._state()):
                self.history.stopped = "callback"

    def _learning_rates(self, epochs: int) -> Array:
        """One for each of the epochs, or for each of their updates where a schedule says so."""
        rate, schedule = self.network.learning_rate, self.job.schedule
        if schedule is None:
            return np.full(epochs, rate)
        from gradstep.schedules import factors_of  # not at every start of a program

        first, count = len(self.history) * self.steps, epochs * self.steps
        factors = factors_of(schedule, np.arange(first, first + count), self.job.epochs * self.steps)
        return rate * factors.reshape(epochs, self.steps)

    def _next_rates(self, count: int) -> Array:
        """Rates of the next updates of a feed."""
        steps = np.arange(self.fed, self.fed + count)
        self.fed += count
        if self.job.schedule is None:
            return np.full(count, self.network.learning_rate)
        from gradstep.schedules import factors_of

        factors = factors_of(self.job.schedule, steps, self.job.epochs * self.steps)
        return self.network.learning_rate * factors

    def _record(self, result: TrainResult) -> None:
        if result.interrupted:
            self.history.stopped = "interrupted"
        elif result.diverged:
            self.history.stopped = "diverged"
            self.restored = result.restored
        if not result.losses:
            return
        self.network.epochs_trained += len(result.losses)
        self.history.extend(result.losses)
        rows = self.job.rows
        self.history.samples += len(result.losses) * (len(rows.X) if isinstance(rows, Rows) else rows.rows)
        newest = {"loss": result.losses[-1], **self._measure()}
        self.progress.update(len(self.history), newest)

    def _measure(self) -> dict[str, float]:
        if self.job.measure is None:
            return {}
        values = self.job.measure()
        self.history.append(values)
        return values

    def _state(self) -> TrainingState:
        job = self.job
        return TrainingState(
            self.network,
            self.history,
            len(self.history),
            job.epochs,
            job.metric_names,
            callbacks=self.callbacks,
            arguments={
                "rows": len(job.rows.X) if isinstance(job.rows, Rows) else None,
                "accumulate": job.accumulate,
                "batch_size": job.batch_size or None,
                "shuffle": job.shuffle,
                "schedule": job.schedule,
            },
            identity=lambda: self._identity,
            note=self._note,
        )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        rows = self.job.rows
        weighted = rows.data if isinstance(rows, BalancedFeed) else rows if isinstance(rows, Rows) else None
        weight = None if weighted is None else weighted.weight
        classes = self.job.class_weights
        return {
            "weights": None if weight is None else blake2b(weight.data, digest_size=8).hexdigest(),
            "class_weights": None if classes is None else classes.tolist(),
            "rows_of_feed": rows.n_rows if isinstance(rows, WindowFeed) else None,
            "window_bytes": rows.source.window_bytes if isinstance(rows, WindowFeed) else None,
        }

    def _note(self, sentence: str) -> None:
        """Show a sentence, or keep it until there is where to."""
        if self.notes is None:
            self.progress.note(sentence)
        else:
            self.notes.append(sentence)

    def _end(self) -> None:
        with contextlib.ExitStack() as stack:  # every callback ends, whatever another one raises
            stack.callback(self.progress.close)
            stack.callback(self._note_interruption)
            if self.feed is not None:
                stack.callback(self.feed.close)
            for callback in reversed(self.callbacks):
                stack.callback(callback.on_fit_end, self._state())

    def _note_interruption(self) -> None:
        if self.history.interrupted:
            done = f"{len(self.history)} of {self.job.epochs} epochs"
            self.progress.note(f"interrupted after {done}: the network keeps what it learnt")

    def _divergence(self) -> str:
        rate = self.network.learning_rate
        kept = "last good" if self.restored else "last finite"
        if not all(np.isfinite(values).all() for values in self.network.parameters().values()):
            kept = "last"
        return (
            f"training diverged in epoch {self.network.epochs_trained + 1} (a loss or parameter became "
            f"NaN or infinite); the network keeps its {kept} parameters: try a smaller learning rate, "
            f"such as {rate / 10:g} instead of {rate:g}"
        )


class LbfgsTraining(Training):
    """One call of `fit` with `LBFGS`: SciPy leads, an iteration is an epoch."""

    def _epochs(self) -> None:
        remaining = self.job.epochs - len(self.history)  # a checkpoint may have brought epochs
        if remaining == 0:
            return
        if self.job.note is not None:
            self.progress.note(self.job.note)
        optimizer = self.network.optimizer
        rows = self.job.rows
        assert isinstance(optimizer, LBFGS)
        assert isinstance(rows, Rows)
        objective = Objective(self.engine, rows.X, rows.y, rows.weight)
        self.good = pack(self.engine.plan, self.engine.parameters())
        options = {
            "maxiter": remaining,
            "maxfun": np.iinfo(np.int32).max,
            "maxcor": optimizer.history_size,
            "gtol": optimizer.tolerance,
            "ftol": 64 * np.finfo(np.float64).eps,
        }
        try:
            with np.errstate(all="ignore"):
                known = [objective(self.good)]  # what SciPy asks for first
                if np.isfinite(known[0][0]):
                    minimize(
                        lambda theta: known.pop() if known else objective(theta),
                        self.good,
                        self._iteration,
                        options,
                    )
                else:
                    self.history.stopped = "diverged"
        finally:
            set_packed(self.engine, self.good)
        if self.history.stopped == "finished" and len(self.history) < self.job.epochs:
            self.history.stopped = "converged"

    def _iteration(self, intermediate_result: Any) -> None:
        """After an iteration; the name of the argument tells SciPy what to hand over."""
        if not (np.isfinite(intermediate_result.fun) and np.isfinite(intermediate_result.x).all()):
            self.history.stopped = "diverged"
            raise StopIteration
        self.good = intermediate_result.x.copy()
        set_packed(self.engine, self.good)
        self._record(TrainResult([float(intermediate_result.fun)]))
        for callback in self.callbacks:
            if callback.on_epoch_end(self._state()):
                self.history.stopped = "callback"
        self.good = pack(self.engine.plan, self.engine.parameters())
        if self.history.stopped != "finished":
            raise StopIteration
