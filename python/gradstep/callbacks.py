"""Callbacks: what `Network.fit` calls before, between and after epochs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from gradstep.history import History
from gradstep.metrics import is_better_when_large
from gradstep.names import check_name
from gradstep.validation import check_flag, check_integer, check_real

if TYPE_CHECKING:
    from gradstep.network import Network


@dataclass(frozen=True, eq=False, repr=False)
class TrainingState:
    """What a callback is told."""

    network: Network
    """The network in training; its parameters may be read and set."""
    history: History
    """Losses of this call of `fit` so far; ``history["loss"][-1]`` is the newest."""
    epoch: int
    """Epochs completed in this call of `fit`."""
    epochs: int
    """Epochs that this call of `fit` was asked for."""
    metrics: tuple[str, ...]
    """Names of what the history holds after every epoch."""
    callbacks: tuple[Callback, ...] = ()
    """All callbacks of this call of `fit`, in the order in which they are called."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What else `fit` was given: "rows" (their number), "accumulate", "shuffle", "schedule", and "batch_size"
    (the rows of an update, or None where the batches of an iterable are updates)."""
    note: Callable[[str], None] = field(default_factory=lambda: _say_nothing)
    """Shows a sentence with the progress, or nothing where `fit` is silent."""
    identity: Callable[[], Mapping[str, Any]] = field(default_factory=lambda: dict)
    """What else makes it this training, for a `Checkpoint`: of rows in memory a digest of their weights, of a
    source the number of rows, the weights of classes and the size of the windows."""

    @property
    def number(self) -> int:
        """Number of the newest epoch, counted from 1 over the life of the network; see `History.epochs`."""
        return self.history.first_epoch - 1 + self.epoch


def _say_nothing(sentence: str) -> None:
    """What `TrainingState.note` is where there is no progress to show it with."""


class Callback:
    """Base of callbacks; override what is needed.

    With any callback, epochs run one at a time, so that each one ends with `on_epoch_end`. A callback that
    remembers something from epoch to epoch also overrides `get_state` and `set_state`, so that a `Checkpoint`
    can keep it.
    """

    last: ClassVar[bool] = False
    """Whether this kind is called after all others that are not, wherever it stands in the list."""

    def on_fit_begin(self, state: TrainingState) -> None:
        """Before the first epoch of a call of `fit`; what it raises keeps the call from changing anything."""

    def on_epoch_end(self, state: TrainingState) -> bool | None:
        """After every epoch; returning a true value stops the training."""

    def on_fit_end(self, state: TrainingState) -> None:
        """After the last epoch, also after Ctrl-C or a diverged epoch."""

    def get_state(self) -> dict[str, Any]:
        """What goes into a checkpoint: numbers, texts, truth values, None and arrays by name."""
        return {}

    def set_state(self, state: dict[str, Any]) -> bool | None:
        """Go on from what `get_state` returned, after `on_fit_begin`.

        Returning a true value says that this callback had ended the training: no epoch follows.
        """


@dataclass
class Watched:
    """A value of the history, and the best that it was.

    Parameters
    ----------
    monitor
        A key of the history, or None for "val_loss", or "loss" without validation data.
    mode
        "min" or "max" is best; "auto" asks the metric.
    min_delta
        By how much a value must be better than the best to count.
    """

    monitor: str | None
    mode: str
    min_delta: float = 0.0
    best: float = float("inf")

    def __post_init__(self) -> None:
        if self.monitor is not None and not isinstance(self.monitor, str):
            raise TypeError(f"monitor must be a key of the history or None, got {self.monitor!r}")
        check_name("mode", self.mode, ("auto", "min", "max"))
        self.min_delta = check_real("min_delta", self.min_delta, minimum=0.0)

    def begin(self, names: tuple[str, ...]) -> None:
        """Forget the last call of `fit`; the history of this one will have the names."""
        if self.monitor is not None:
            if self.monitor.startswith("val_") and not any(name.startswith("val_") for name in names):
                raise ValueError(f"monitor {self.monitor!r} needs validation_data, which fit has not got")
            check_name("monitor", self.monitor, names)
        self.key = self.monitor or ("val_loss" if "val_loss" in names else "loss")
        self.large = self.mode == "max" or (self.mode == "auto" and is_better_when_large(self.key))
        self.best = -float("inf") if self.large else float("inf")

    def improves(self, history: History) -> bool:
        """Whether the newest value is the best, which is kept."""
        value = history[self.key][-1]
        if self.large:
            better = value > self.best + self.min_delta
        else:
            better = value < self.best - self.min_delta
        if better:
            self.best = value
        return better


class EarlyStopping(Callback):
    """Stop when a loss has not improved for a while, and go back to the best parameters.

    Parameters
    ----------
    patience : int, default 10
        Epochs without improvement after which training stops, at least 1.
    min_delta : float, default 0.0
        What counts as an improvement: more than this better than the best so far.
    monitor : str, optional
        A key of the history; "val_loss" by default, or "loss" without validation data.
    restore_best : bool, default True
        Set the parameters to those of the best epoch when training ends, for whatever reason.
    mode : {"auto", "min", "max"}
        Whether monitor should become small or large. "auto" knows the metrics by their names, and takes
        those that end in "_score" to be better when large; everything else when small.

    Attributes
    ----------
    best : float
        Best value in the last call of `fit`.
    best_epoch : int
        Its epoch, counted from 1 within that call; 0 before any.
    """

    def __init__(
        self,
        patience: int = 10,
        min_delta: float = 0.0,
        monitor: str | None = None,
        restore_best: bool = True,
        mode: str = "auto",
    ) -> None:
        self.patience = check_integer("patience", patience, minimum=1)
        self._watched = Watched(monitor, mode, min_delta)
        self.restore_best = check_flag("restore_best", restore_best)
        self.best_epoch = self._epoch = 0
        self._parameters: dict[str, NDArray[Any]] | None = None

    @property
    def best(self) -> float:
        """Best value in the last call of `fit`."""
        return self._watched.best

    def on_fit_begin(self, state: TrainingState) -> None:
        """Forget the last call of `fit`."""
        self._watched.begin(state.metrics)
        self.best_epoch = self._epoch = 0
        self._parameters = None

    def on_epoch_end(self, state: TrainingState) -> bool:
        """Compare with the best epoch."""
        self._epoch = state.epoch
        if self._watched.improves(state.history):
            self.best_epoch = state.epoch
            if self.restore_best:
                self._parameters = state.network.parameters()
        return self._is_over()

    def _is_over(self) -> bool:
        return self._epoch - self.best_epoch >= self.patience

    def on_fit_end(self, state: TrainingState) -> None:
        """Restore the parameters of the best epoch."""
        if self._parameters is not None and self.best_epoch < state.epoch:
            state.network.set_parameters(self._parameters)
        self._parameters = None

    def get_state(self) -> dict[str, Any]:
        """The best epoch, and its parameters."""
        parameters = {f"parameters.{name}": value for name, value in (self._parameters or {}).items()}
        return {"epoch": self._epoch, "best": self.best, "best_epoch": self.best_epoch, **parameters}

    def set_state(self, state: dict[str, Any]) -> bool:
        """Go on waiting, unless patience was at its end."""
        self._epoch, self.best_epoch = state.pop("epoch"), state.pop("best_epoch")
        self._watched.best = state.pop("best")
        if self.restore_best and state:
            self._parameters = {name.removeprefix("parameters."): value for name, value in state.items()}
        return self._is_over()


class ReduceOnPlateau(Callback):
    """Multiply the network's learning rate when a loss has not improved for a while.

    Parameters
    ----------
    patience : int, default 5
        Epochs without improvement after which the learning rate falls, at least 1.
    factor : float, default 0.5
        What it is multiplied by, in (0, 1).
    min_delta : float, default 0.0
        What counts as an improvement: more than this better than the best so far.
    least : float, default 0.0
        Where the learning rate stops falling.
    monitor : str, optional
        A key of the history; "val_loss" by default, or "loss" without validation data.
    mode : {"auto", "min", "max"}
        Whether monitor should become small or large, as for `EarlyStopping`.
    """

    def __init__(
        self,
        patience: int = 5,
        factor: float = 0.5,
        min_delta: float = 0.0,
        least: float = 0.0,
        monitor: str | None = None,
        mode: str = "auto",
    ) -> None:
        self.patience = check_integer("patience", patience, minimum=1)
        self.factor = check_real("factor", factor, above=0.0, below=1.0)
        self._watched = Watched(monitor, mode, min_delta)
        self.least = check_real("least", least, minimum=0.0)
        self._since = 0

    def on_fit_begin(self, state: TrainingState) -> None:
        """Forget the last call of `fit`."""
        self._watched.begin(state.metrics)
        self._since = 0

    def on_epoch_end(self, state: TrainingState) -> bool:
        """Compare with the best epoch."""
        self._since = 0 if self._watched.improves(state.history) else self._since + 1
        if self._since >= self.patience:
            network = state.network
            network.learning_rate = min(
                network.learning_rate, max(network.learning_rate * self.factor, self.least)
            )
            self._since = 0
        return False

    def get_state(self) -> dict[str, Any]:
        """The best value, and the epochs since then."""
        return {"best": self._watched.best, "since": self._since}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on waiting."""
        self._watched.best, self._since = state["best"], state["since"]


class TimeBudget(Callback):
    """Stop after the epoch in which the time is used up.

    The time is counted anew in every call of `fit`, also in one that goes on from a `Checkpoint`.

    Parameters
    ----------
    seconds : float
        Wall-clock time from the beginning of a call of `fit`, positive.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = check_real("seconds", seconds, above=0.0)

    def on_fit_begin(self, state: TrainingState) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, state: TrainingState) -> bool:
        """Look at the clock."""
        return time.perf_counter() - self._start >= self.seconds
