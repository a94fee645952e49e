"""Losses: names, or objects where a loss has options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gradstep.backends.numpy import LOSSES
from gradstep.names import check_name
from gradstep.validation import check_real

TargetKind = Literal["values", "probabilities", "labels"]


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss by name, with its options.

    With p the output, y the target and d = p - y, averaged over the rows of the batch:

    - ``mse``: d^2, averaged over outputs
    - ``mae``: abs(d), averaged over outputs; its derivative at 0 is 0
    - ``huber``: d^2 / 2 where abs(d) <= delta, else delta (abs(d) - delta / 2), averaged over outputs
    - ``binary_cross_entropy``: max(p, 0) - p y + log(1 + exp(-abs(p))) of logits p, summed over outputs
    - ``cross_entropy``: log(sum(exp(p))) - p[y] of logits p and the label y

    Parameters
    ----------
    name : str
        One of the names above.
    options : mapping, optional
        Values for the loss's options, here only ``delta`` of huber (default 1.0).
    """

    name: str
    options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("loss", self.name, LOSSES)
        defaults = LOSSES[self.name].defaults
        for option, value in self.options.items():
            check_name(f"option of the loss {self.name!r}", option, defaults)
            check_real(option, value, above=0.0)
        merged = {option: float(self.options.get(option, value)) for option, value in defaults.items()}
        object.__setattr__(self, "options", merged)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loss) and (self.name, self.options) == (other.name, other.options)

    def __hash__(self) -> int:
        return hash((self.name, *sorted(self.options.items())))

    @property
    def is_classification(self) -> bool:
        """Whether the network outputs logits, which `Network.predict` turns into probabilities."""
        return LOSSES[self.name].link != "identity"

    @property
    def target_kind(self) -> TargetKind:
        """What y holds: values, probabilities in [0, 1] per output, or one label per row."""
        return _TARGETS[LOSSES[self.name].link]

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "options": dict(self.options)}


_TARGETS: dict[str, TargetKind] = {"identity": "values", "sigmoid": "probabilities", "softmax": "labels"}


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


def loss_from_config(config: Mapping[str, Any]) -> Loss:
    """Rebuild a loss from its `Loss.to_config`."""
    loss = Loss(**config)
    return Huber(loss.options["delta"]) if loss.name == "huber" else loss


def as_loss(loss: object) -> Loss:
    """A loss from a name or a `Loss`."""
    if isinstance(loss, Loss):
        return loss
    return loss_from_config({"name": check_name("loss", loss, LOSSES)})
