"""Losses: names, or objects where a loss has options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np

from gradstep.backends import custom_loss
from gradstep.backends.base import LossOptions
from gradstep.backends.numpy.losses import LOSSES
from gradstep.names import check_name
from gradstep.validation import check_real

TargetKind = Literal["values", "counts", "positive", "probabilities", "signs", "labels", "anything"]

CUSTOM = "custom"
"""The name of all losses that are Python functions."""


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
    - ``gamma``: p - log(y) + y exp(-p) - 1, half the deviance of positive y with the mean exp(p), summed over
      outputs
    - ``gaussian_nll``: (log(v) + (m - y)^2 / v) / 2 of means m and variances v = exp(s) + floor, summed over
      targets; the first half of the outputs are the m, the second the s
    - ``binary_cross_entropy``: max(p, 0) - p y + log(1 + exp(-abs(p))) of logits p, summed over outputs,
      after label_smoothing moved y to y + label_smoothing (1/2 - y)
    - ``binary_focal``: -y (1 - s)^gamma log(s) - (1 - y) s^gamma log(1 - s) of s = sigmoid(p), summed over
      outputs
    - ``binary_hinge``: max(0, 1 - y p) of y = -1 or 1 and decision values p, summed over outputs
    - ``cross_entropy``: log(sum(exp(p))) - sum(q p) of logits p, where q is 1 - label_smoothing at the label
      y, and every output has an equal part of label_smoothing
    - ``focal``: -(1 - s)^gamma log(s) of s = softmax(p)[y]
    - ``hinge``: max(0, 1 + max(p[o], o not y) - p[y]) of decision values p and the label y

    Parameters
    ----------
    name : str
        One of the names above.
    options : mapping, optional
        Values for the loss's options: ``delta`` of huber (default 1.0), ``quantile`` of quantile (default
        0.5); a number, or a sequence with one for each output. ``label_smoothing`` of the cross-entropies
        (default 0.0), ``gamma`` of the focal losses (default 2.0), ``floor`` of gaussian_nll (default 1e-6);
        a number.
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
        """Whether y holds classes: the network outputs logits, or decision values for the hinge losses."""
        return self.target_kind in ("probabilities", "signs", "labels")

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
        """What y holds: values, counts from 0, positive values, probabilities in [0, 1] per output, one of
        two signs per output, or one label per row; anything for a custom loss.
        """
        return cast(TargetKind, LOSSES[self.name].targets)

    @property
    def outputs_per_target(self) -> int:
        """Outputs of the network for a column of y: 2 for gaussian_nll."""
        return LOSSES[self.name].outputs_per_target

    @property
    def learns_units(self) -> bool:
        """Whether the network can learn targets in other units than y's, and predict in those of y."""
        return self.target_kind in ("values", "anything")

    @property
    def takes(self) -> str:
        """What the network's outputs are to the loss."""
        return _TAKES.get(
            LOSSES[self.name].link, "decision values" if self.is_classification else "predictions"
        )

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        options = {name: list(v) if isinstance(v, Sequence) else v for name, v in self.options.items()}
        return {"name": self.name, "options": options}


_TAKES = {
    "exp": "logarithms of means",
    "sigmoid": "logits",
    "softmax": "logits",
    "gaussian": "means and logarithms of variances",
}
"""By link."""

_BOUNDS: dict[str, dict[str, float]] = {
    "delta": {"above": 0.0},
    "quantile": {"above": 0.0, "below": 1.0},
    "label_smoothing": {"minimum": 0.0, "below": 1.0},
    "gamma": {"minimum": 0.0},
    "floor": {"minimum": 1e-30},
}
"""Of options."""

_PER_OUTPUT = ("delta", "quantile")
"""Options of which every output may have its own."""


def _checked_option(option: str, value: object) -> float | tuple[float, ...]:
    if option in _PER_OUTPUT and isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        if len(value) == 0:
            raise ValueError(f"{option} must have a value, got an empty sequence")
        return tuple(check_real(option, number, **_BOUNDS[option]) for number in value)
    return check_real(option, value, **_BOUNDS[option])


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


class CrossEntropy(Loss):
    """Logarithm of the label's probability, the softmax of the outputs, with smoothed labels if wanted.

    ``-sum(q log(softmax(p)))`` of the outputs p, where q has ``1 - label_smoothing`` at the label, and every
    output an equal part of ``label_smoothing``; mean over rows. Source: Szegedy et al., "Rethinking the
    Inception architecture for computer vision", CVPR 2016.

    Parameters
    ----------
    label_smoothing : float, default 0.0
        Part of the label's probability that all outputs share, in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__("cross_entropy", {"label_smoothing": label_smoothing})

    def __repr__(self) -> str:
        return f"CrossEntropy(label_smoothing={self.options['label_smoothing']!r})"


class BinaryCrossEntropy(Loss):
    """Logarithms of the probabilities of yes and no, for every output on its own.

    ``-t log(s) - (1 - t) log(1 - s)`` of s = sigmoid(p) and ``t = y + label_smoothing (1/2 - y)``, summed
    over outputs, mean over rows.

    Parameters
    ----------
    label_smoothing : float, default 0.0
        How far the targets move towards 1/2, in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__("binary_cross_entropy", {"label_smoothing": label_smoothing})

    def __repr__(self) -> str:
        return f"BinaryCrossEntropy(label_smoothing={self.options['label_smoothing']!r})"


class Focal(Loss):
    """Cross-entropy that minds rows less the better they are classified.

    ``-(1 - s)^gamma log(s)`` of s = softmax(p)[y], mean over rows; with gamma = 0 the cross-entropy.
    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, whose alpha are class weights:
    ``fit(class_weight=...)``.

    Parameters
    ----------
    gamma : float, default 2.0
        Not negative.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__("focal", {"gamma": gamma})

    def __repr__(self) -> str:
        return f"Focal(gamma={self.options['gamma']!r})"


class BinaryFocal(Loss):
    """`Focal` for outputs that each say yes or no.

    ``-y (1 - s)^gamma log(s) - (1 - y) s^gamma log(1 - s)`` of s = sigmoid(p), summed over outputs, mean
    over rows.

    Parameters
    ----------
    gamma : float, default 2.0
        Not negative.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__("binary_focal", {"gamma": gamma})

    def __repr__(self) -> str:
        return f"BinaryFocal(gamma={self.options['gamma']!r})"


class GaussianNLL(Loss):
    """A mean and a variance for every target: regression that says how sure it is.

    The last layer has two units a target: first the means m, then the s of the variances ``v = exp(s) +
    floor``. `Network.predict` returns the means, then the variances. The loss is the negative log-likelihood
    but for its constant ``log(2 pi) / 2``: ``(log(v) + (m - y)^2 / v) / 2``, summed over targets, mean over
    rows. Source: Nix and Weigend, "Estimating the mean and variance of the target probability distribution",
    ICNN 1994.

    Parameters
    ----------
    floor : float, default 1e-6
        The least variance, in the units of the network's targets (variances of y, if it standardizes them);
        at least 1e-30. It keeps the loss from falling without end where targets are met exactly.
    """

    def __init__(self, floor: float = 1e-6) -> None:
        super().__init__("gaussian_nll", {"floor": floor})

    def __repr__(self) -> str:
        return f"GaussianNLL(floor={self.options['floor']!r})"


class CustomLoss(Loss):
    """A loss that is a Python function.

    It is called once for each batch, with read-only arrays of the network's dtype:
    ``function(y, outputs, weight) -> (value, gradient)``.

    - ``y``: the targets, (B, columns); a vector of targets is one column.
    - ``outputs``: of the last layer, (B, n_out).
    - ``weight``: (B,), what each row counts for in the mean: 1 / B, or its part of the batch's sample
      weights. It sums to 1 (to 0 where all weights are).
    - ``value``: the mean loss of the batch, a number: ``weight @ losses`` where every row has one.
    - ``gradient``: the derivatives of value with respect to the outputs, (B, n_out).

    `Network.predict` returns the outputs. A file holds no function: `gradstep.load` takes it again.

    Parameters
    ----------
    function : callable
        What it raises ends training, with the parameters of the last update.

    Examples
    --------
    >>> def log_cosh(y, outputs, weight):
    ...     d = outputs - y
    ...     return weight @ np.log(np.cosh(d)).sum(axis=1), weight[:, None] * np.tanh(d)
    >>> net = Network([Dense(1)], loss=log_cosh)
    """

    function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"function must be a function of y, outputs and weight, got {function!r}")
        object.__setattr__(self, "name", CUSTOM)
        object.__setattr__(self, "options", {})
        object.__setattr__(self, "function", function)

    def __repr__(self) -> str:
        return f"CustomLoss({getattr(self.function, '__qualname__', self.function)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CustomLoss) and self.function == other.function

    def __hash__(self) -> int:
        return hash((CUSTOM, self.function))

    @property
    def has_link(self) -> bool:
        """False."""
        return False

    @property
    def target_kind(self) -> TargetKind:
        """Anything."""
        return "anything"

    @property
    def outputs_per_target(self) -> int:
        """1, where it matters: targets that are standardized have a column for every output."""
        return 1

    @property
    def takes(self) -> str:
        """What the function wants."""
        return "outputs"

    @property
    def engine_function(self) -> custom_loss.CustomLoss:
        """What a backend calls."""
        return custom_loss.CustomLoss(self.function)


def _lost(*arguments: Any) -> Any:
    """Stands for the function of a network that was read from a file."""
    raise ValueError(
        "the loss of this network was a Python function, which its file does not hold: to train or evaluate "
        "it, give the function to load, as loss"
    )


def is_lost(loss: Loss) -> bool:
    """Whether it stands for a function that a file did not hold."""
    return isinstance(loss, CustomLoss) and loss.function is _lost


_CLASSES: dict[str, Callable[..., Loss]] = {
    "huber": Huber,
    "quantile": Quantile,
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "focal": Focal,
    "binary_focal": BinaryFocal,
    "gaussian_nll": GaussianNLL,
}
"""Of losses with options."""


def loss_from_config(config: Mapping[str, Any]) -> Loss:
    """Rebuild a loss from its `Loss.to_config`; of a custom one, all but its function."""
    if config["name"] == CUSTOM:
        return CustomLoss(_lost)
    loss = Loss(**config)
    return _CLASSES[loss.name](**loss.options) if loss.name in _CLASSES else loss


def as_loss(loss: object) -> Loss:
    """A loss from a name, a `Loss` or a function."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, type) and issubclass(loss, Loss):
        raise TypeError(f"loss must be a name, a loss or a function, got the class {loss.__name__}")
    if callable(loss) and not isinstance(loss, type):
        return CustomLoss(loss)
    return loss_from_config({"name": check_name("loss", loss, LOSSES)})
