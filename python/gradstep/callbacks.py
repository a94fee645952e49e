"""Callbacks: what `Network.fit` calls before, between and after epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from gradstep.history import History
from gradstep.names import check_name
from gradstep.validation import check_flag, check_integer, check_real

if TYPE_CHECKING:
    from gradstep.network import Network


@dataclass(frozen=True)
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


class Callback:
    """Base of callbacks; override what is needed.

    With any callback, epochs run one at a time, so that each one ends with `on_epoch_end`.
    """

    def on_fit_begin(self, state: TrainingState) -> None:
        """Before the first epoch of a call of `fit`; what it raises keeps the call from changing anything."""

    def on_epoch_end(self, state: TrainingState) -> bool | None:
        """After every epoch; returning a true value stops the training."""

    def on_fit_end(self, state: TrainingState) -> None:
        """After the last epoch, also after Ctrl-C or a diverged epoch."""


class EarlyStopping(Callback):
    """Stop when a loss has not improved for a while, and go back to the best parameters.

    Parameters
    ----------
    patience : int, default 10
        Epochs without improvement after which training stops, at least 1.
    min_delta : float, default 0.0
        What counts as an improvement: more than this below the best so far.
    monitor : str, optional
        A key of the history that should become small; "val_loss" by default, or "loss" without
        validation data.
    restore_best : bool, default True
        Set the parameters to those of the best epoch when training ends, for whatever reason.

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
    ) -> None:
        self.patience = check_integer("patience", patience, minimum=1)
        self.min_delta = check_real("min_delta", min_delta, minimum=0.0)
        if monitor is not None and not isinstance(monitor, str):
            raise TypeError(f"monitor must be a key of the history or None, got {monitor!r}")
        self.monitor = monitor
        self.restore_best = check_flag("restore_best", restore_best)
        self._reset()

    def _reset(self) -> None:
        self.best = float("inf")
        self.best_epoch = 0
        self._parameters: dict[str, NDArray[Any]] | None = None

    def on_fit_begin(self, state: TrainingState) -> None:
        """Forget the last call of `fit`."""
        if self.monitor is not None:
            check_name("monitor", self.monitor, state.metrics)
        self._reset()

    def on_epoch_end(self, state: TrainingState) -> bool:
        """Compare with the best epoch."""
        history = state.history
        monitor = self.monitor or ("val_loss" if "val_loss" in history else "loss")
        value = history[monitor][-1]
        if value < self.best - self.min_delta:
            self.best, self.best_epoch = value, state.epoch
            if self.restore_best:
                self._parameters = state.network.parameters()
        return state.epoch - self.best_epoch >= self.patience

    def on_fit_end(self, state: TrainingState) -> None:
        """Restore the parameters of the best epoch."""
        if self._parameters is not None and self.best_epoch < state.epoch:
            state.network.set_parameters(self._parameters)
        self._parameters = None


class ReduceOnPlateau(Callback):
    """Multiply the network's learning rate when a loss has not improved for a while.

    Parameters
    ----------
    patience : int, default 5
        Epochs without improvement after which the learning rate falls, at least 1.
    factor : float, default 0.5
        What it is multiplied by, in (0, 1).
    min_delta : float, default 0.0
        What counts as an improvement: more than this below the best so far.
    least : float, default 0.0
        Where the learning rate stops falling.
    monitor : str, optional
        A key of the history that should become small; "val_loss" by default, or "loss" without
        validation data.
    """

    def __init__(
        self,
        patience: int = 5,
        factor: float = 0.5,
        min_delta: float = 0.0,
        least: float = 0.0,
        monitor: str | None = None,
    ) -> None:
        self.patience = check_integer("patience", patience, minimum=1)
        self.factor = check_real("factor", factor, above=0.0, below=1.0)
        self.min_delta = check_real("min_delta", min_delta, minimum=0.0)
        self.least = check_real("least", least, minimum=0.0)
        if monitor is not None and not isinstance(monitor, str):
            raise TypeError(f"monitor must be a key of the history or None, got {monitor!r}")
        self.monitor = monitor

    def on_fit_begin(self, state: TrainingState) -> None:
        """Forget the last call of `fit`."""
        if self.monitor is not None:
            check_name("monitor", self.monitor, state.metrics)
        self._best, self._since = float("inf"), 0

    def on_epoch_end(self, state: TrainingState) -> bool:
        """Compare with the best epoch."""
        history = state.history
        value = history[self.monitor or ("val_loss" if "val_loss" in history else "loss")][-1]
        if value < self._best - self.min_delta:
            self._best, self._since = value, 0
            return False
        self._since += 1
        if self._since >= self.patience:
            network = state.network
            network.learning_rate = min(
                network.learning_rate, max(network.learning_rate * self.factor, self.least)
            )
            self._since = 0
        return False
