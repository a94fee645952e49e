"""What happened in one call of `Network.fit`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradstep.metrics import Metric


@dataclass
class History:
    """Losses and metrics per epoch, and how the training ended.

    ``history["loss"]`` is the list of training losses; with validation data there are "val_loss" and the
    validation metrics, such as "val_accuracy". Metrics that `fit` was asked for are there for the training
    rows too, such as "accuracy". Iterating gives these names.
    """

    first_epoch: int = 1
    """Number of this call's first epoch, counted from 1 over the life of the network."""
    metrics: dict[str, list[float]] = field(default_factory=lambda: {"loss": []})
    """One list per name, one value per completed epoch."""
    seconds: float = 0.0
    """Wall-clock time of the call, validation included."""
    samples: int = 0
    """Rows trained on, summed over completed epochs."""
    stopped: str = "finished"
    """Why training ended: "finished", "converged" (LBFGS), "callback", "interrupted", "diverged", or "failed"
    where an exception of a callback or signal handler ended it."""

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

    def append(self, values: dict[str, float]) -> None:
        """Add the metrics of the newest epoch."""
        for name, value in values.items():
            self.metrics.setdefault(name, []).append(value)

    def pad(self) -> None:
        """Fill metrics that an interruption kept from being computed with NaN."""
        for values in self.metrics.values():
            values.extend([float("nan")] * (len(self) - len(values)))

    def __getitem__(self, name: str) -> list[float]:
        return self.metrics[name]

    def __contains__(self, name: object) -> bool:
        return name in self.metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.loss)

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.6g}" for name, values in self.metrics.items() if values)
        return f"<History of {len(self)} epoch(s), {self.stopped}{': ' + last if last else ''}>"


def history_names(metrics: Sequence[Metric], measured: bool, validated: bool) -> tuple[str, ...]:
    """Columns of the history: of the training rows, then of the validation rows."""
    names = tuple(metric.name for metric in metrics)
    after = ("val_loss", *(f"val_{name}" for name in names)) if validated else ()
    return ("loss", *(names if measured else ()), *after)
