"""What happened in one call of `Network.fit`."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradstep.metrics import Metric


BULK = 1024
"""Epochs of one call of the engine whose losses are no Python floats until somebody asks for the list: a
tiny network ends millions of epochs a second, and a float of each took 15 to 25 % of the time."""

_LOCK = threading.RLock()
"""Of what is not in a list yet: another thread may read while the training's adds."""


class History:
    """Losses and metrics per epoch, and how the training ended.

    ``history["loss"]`` is the list of training losses; with validation data there are "val_loss" and the
    validation metrics, such as "val_accuracy". Metrics that `fit` was asked for are there for the training
    rows too, such as "accuracy". Iterating gives these names. Ask again after training: a list that was taken
    before may lack the newest losses.

    Parameters
    ----------
    first_epoch : int, default 1
        Number of this call's first epoch, counted from 1 over the life of the network.
    metrics : dict, optional
        One list per name, one value per completed epoch; by default no epochs of "loss".
    seconds : float, default 0.0
        Wall-clock time of the call, validation included.
    samples : int, default 0
        Rows trained on, summed over completed epochs.
    stopped : str, default "finished"
        Why training ended: "finished", "converged" (LBFGS), "callback", "interrupted", "diverged", or
        "failed" where an exception of a callback or signal handler ended it.
    """

    def __init__(
        self,
        first_epoch: int = 1,
        metrics: dict[str, list[float]] | None = None,
        seconds: float = 0.0,
        samples: int = 0,
        stopped: str = "finished",
    ) -> None:
        self.first_epoch = first_epoch
        self.seconds = seconds
        self.samples = samples
        self.stopped = stopped
        self._metrics = {"loss": []} if metrics is None else metrics
        self._bulk: array[float] = array("d")  # losses that are not in the list yet
        self._listed = 0  # those that were when the first of these came

    @property
    def metrics(self) -> dict[str, list[float]]:
        """One list per name, one value per completed epoch."""
        with _LOCK:
            bulk = self._bulk
            if bulk:  # Ctrl-C, or a handler that reads this, may come anywhere: the same is done again
                self._metrics["loss"][self._listed : self._listed + len(bulk)] = bulk
                self._bulk = array("d")
        return self._metrics

    @metrics.setter
    def metrics(self, values: dict[str, list[float]]) -> None:
        with _LOCK:
            self._metrics, self._bulk = values, array("d")

    @property
    def epochs(self) -> list[int]:
        """Number of every completed epoch, counted from 1 over the life of the network."""
        return list(range(self.first_epoch, self.first_epoch + len(self)))

    @property
    def loss(self) -> list[float]:
        """Mean training loss of every epoch."""
        return self.metrics["loss"]

    @property
    def val_loss(self) -> list[float]:
        """Validation loss of every epoch; empty without validation data."""
        return self.metrics.get("val_loss", [])

    @property
    def last(self) -> dict[str, float]:
        """The newest value of every name that has one; where only that is asked for, no list is made."""
        with _LOCK:
            newest = {name: values[-1] for name, values in self._metrics.items() if values}
            return {**newest, "loss": self._bulk[-1]} if self._bulk else newest

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the training."""
        return self.stopped == "interrupted"

    @property
    def samples_per_second(self) -> float:
        """Rows trained on per second."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0

    def plot(self, ax: Axes | None = None, *, metric: str = "loss") -> Axes:
        """Draw the learning curves: `gradstep.plot.learning_curves`.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.
        metric : str, default "loss"
            What to draw, such as "accuracy".

        Returns
        -------
        matplotlib Axes
            The one drawn on.
        """
        from gradstep.plot import learning_curves

        return learning_curves(self, ax, metric=metric)

    def extend(self, losses: Sequence[float]) -> None:
        """Add the training losses of the newest epochs."""
        with _LOCK:
            if not self._bulk and len(losses) < BULK:
                self._metrics["loss"].extend(losses)
                return
            if not self._bulk:
                self._listed = len(self._metrics["loss"])
            self._bulk.extend(losses)

    def append(self, values: dict[str, float]) -> None:
        """Add the other metrics of the newest epoch."""
        for name, value in values.items():
            self.metrics.setdefault(name, []).append(value)

    def pad(self) -> None:
        """Fill metrics that an interruption kept from being computed with NaN."""
        for values in self.metrics.values():
            values.extend([float("nan")] * (len(self) - len(values)))

    def __getitem__(self, name: str) -> list[float]:
        return self.metrics[name]

    def __contains__(self, name: object) -> bool:
        return name in self._metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)

    def __len__(self) -> int:
        with _LOCK:
            return self._listed + len(self._bulk) if self._bulk else len(self._metrics["loss"])

    def __eq__(self, other: object) -> bool:
        return self.__getstate__() == other.__getstate__() if type(other) is type(self) else NotImplemented

    def __getstate__(self) -> dict[str, Any]:
        metrics = self.metrics  # first: with all losses in their list
        private = ("_metrics", "_bulk", "_listed")
        return {"metrics": metrics, **{k: v for k, v in vars(self).items() if k not in private}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        History.__init__(self)
        for name, value in state.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {value:.6g}" for name, value in self.last.items())
        return f"<History of {len(self)} epoch(s), {self.stopped}{': ' + last if last else ''}>"


def history_names(metrics: Sequence[Metric], measured: bool, validated: bool) -> tuple[str, ...]:
    """Columns of the history: of the training rows, then of the validation rows."""
    names = tuple(metric.name for metric in metrics)
    after = ("val_loss", *(f"val_{name}" for name in names)) if validated else ()
    return ("loss", *(names if measured else ()), *after)
