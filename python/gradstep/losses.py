"""Losses: names, or objects where a loss has options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gradstep.backends.base import LossOptions
from gradstep.backends.numpy import LOSSES
from gradstep.names import check_name
from gradstep.validation import check_real

TargetKind = Literal["values", "counts", "probabilities", "labels"]


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss by name, with its options.

    With p the output, y the target and d = p - y, averaged over the rows of the batch:

    - ``mse``: d^2, averaged over outputs
    - ``mae``: abs(d), averaged over outputs; its derivative at 0 is 0
    - ``huber``: d^2 / 2 where abs(d) <= delta, else delta (abs(d) - delta / 2), averaged over outputs
    - ``quantile``: q abs(d) where d < 0, else (1 - q) abs(d), averaged over outputs
    - ``poisson``: exp(p) - y p + y log(y) - y, half the deviance of counts y with the rate exp(p), summed
      over outputs
    - ``binary_cross_entropy``: max(p, 0) - p y + log(1 + exp(-abs(p))) of logits p, summed over outputs
    - ``cross_entropy``: log(sum(exp(p))) - p[y] of logits p and the label y

    Parameters
    ----------
    name : str
        One of the names above.
    options : mapping, optional
        Values for the loss's options: ``delta`` of huber (default 1.0), ``quantile`` of quantile (default
        0.5); a number, or a sequence with one for each output.
    """

    name: str
    options: Mapping[str, float | Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("loss", self.name, LOSSES)
        defaults = LOSSES[self.name].defaults
        for option in self.options:
            check_name(f"option of the loss {self.name!r}", option, defaults)
        given = {option: _checked_option(option, value) for option, value in self.options.items()}
        object.__setattr__(self, "options", {**defaults, **given})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loss) and (self.name, self.options) == (other.name, other.options)

    def __hash__(self) -> int:
        return hash((self.name, *sorted(self.options.items())))

    @property
    def is_classification(self) -> bool:
        """Whether the network outputs logits, which `Network.predict` turns into probabilities."""
        return self.target_kind in ("probabilities", "labels")

    @property
    def has_link(self) -> bool:
        """Whether `Network.predict` applies a function to the network's outputs."""
        return LOSSES[self.name].link != "identity"

    @property
    def engine_options(self) -> LossOptions:
        """The options as a backend takes them."""
        return {name: tuple(v) if isinstance(v, Sequence) else v for name, v in self.options.items()}

    @property
    def target_kind(self) -> TargetKind:
        """What y holds: values, counts from 0, probabilities in [0, 1] per output, or one label per row."""
        return _TARGETS[LOSSES[self.name].link]

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        options = {name: list(v) if isinstance(v, Sequence) else v for name, v in self.options.items()}
        return {"name": self.name, "options": options}


_TARGETS: dict[str, TargetKind] = {
    "identity": "values",
    "exp": "counts",
    "sigmoid": "probabilities",
    "softmax": "labels",
}

_BELOW: dict[str, float] = {"quantile": 1.0}
"""What an option must stay below."""


def _checked_option(option: str, value: object) -> float | tuple[float, ...]:
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        if len(value) == 0:
            raise ValueError(f"{option} must have a value, got an empty sequence")
        return tuple(check_real(option, number, above=0.0, below=_BELOW.get(option)) for number in value)
    return check_real(option, value, above=0.0, below=_BELOW.get(option))


class Huber(Loss):
    """Squared error near zero, absolute error beyond delta.

    ``d^2 / 2`` where abs(d) <= delta, else ``delta (abs(d) - delta / 2)``, mean over rows and outputs.
    Source: Huber, "Robust estimation of a location parameter", Ann. Math. Statist. 35, 1964.

    Parameters
    ----------
    delta : float, default 1.0
        Where the two pieces meet, in the units of the network's targets (deviations of y, if it standardizes
        them); positive.
    """

    def __init__(self, delta: float = 1.0) -> None:
        super().__init__("huber", {"delta": delta})

    def __repr__(self) -> str:
        return f"Huber(delta={self.options['delta']!r})"


class Quantile(Loss):
    """Predictions that a given share of the targets lies below: the pinball loss.

    ``q (y - p)`` where y > p, else ``(1 - q) (p - y)``, mean over rows and outputs.
    Source: Koenker and Bassett, "Regression quantiles", Econometrica 46, 1978.

    Parameters
    ----------
    quantile : float or sequence of float, default 0.5
        q, in (0, 1): the median by default. A sequence has one for each output of the network.
    """

    def __init__(self, quantile: float | Sequence[float] = 0.5) -> None:
        super().__init__("quantile", {"quantile": quantile})

    def __repr__(self) -> str:
        return f"Quantile({self.options['quantile']!r})"


def loss_from_config(config: Mapping[str, Any]) -> Loss:
    """Rebuild a loss from its `Loss.to_config`."""
    loss = Loss(**config)
    if loss.name == "huber":
        return Huber(**loss.options)  # type: ignore[arg-type]
    return Quantile(**loss.options) if loss.name == "quantile" else loss


def as_loss(loss: object) -> Loss:
    """A loss from a name or a `Loss`."""
    if isinstance(loss, Loss):
        return loss
    return loss_from_config({"name": check_name("loss", loss, LOSSES)})
