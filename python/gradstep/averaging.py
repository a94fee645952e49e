"""Means of the parameters, and of running statistics, over training, with which a network predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from gradstep.names import check_name
from gradstep.validation import check_flag, check_integer, check_real


@dataclass(frozen=True)
class EMA:
    """Exponential mean: ``mean <- d mean + (1 - d) theta`` after every update; the first one begins it.

    The running statistics of batch normalisation are averaged alike.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control
    Optim. 30, 1992; the exponential form as in PyTorch's ``AveragedModel``.

    Parameters
    ----------
    decay : float, default 0.999
        d, above 0 and below 1.
    warmup : bool, default False
        Take ``min(decay, (1 + t) / (10 + t))`` in update t, counted from 1: early parameters are forgotten
        sooner. TensorFlow's ``num_updates``.
    """

    name: ClassVar[str] = "ema"

    decay: float = 0.999
    warmup: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay", check_real("decay", self.decay, above=0.0, below=1.0))
        object.__setattr__(self, "warmup", check_flag("warmup", self.warmup))

    @property
    def plan_options(self) -> dict[str, Any]:
        """What the engine's plan is told."""
        return {"ema_decay": self.decay, "ema_warmup": self.warmup}

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class SWA:
    """Equal mean of the parameters at the ends of epochs, from one on; before it, the parameters themselves.

    The running statistics of batch normalisation are averaged alike, not computed anew for the mean.

    Source: Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, "Averaging weights leads to wider optima and
    better generalization", UAI 2018.

    Parameters
    ----------
    start : int
        The first epoch that counts, from 1, over the life of the network.
    """

    name: ClassVar[str] = "swa"

    start: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", check_integer("start", self.start, minimum=1))

    @property
    def plan_options(self) -> dict[str, Any]:
        """What the engine's plan is told."""
        return {"swa_start": self.start}

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, **asdict(self)}


Averaging = EMA | SWA

_CLASSES: dict[str, type[EMA] | type[SWA]] = {cls.name: cls for cls in (EMA, SWA)}


def check_averaging(averaging: object) -> Averaging | None:
    """What was given, if it is an `EMA`, an `SWA` or None."""
    if averaging is None or isinstance(averaging, Averaging):
        return averaging
    raise TypeError(f"averaging must be EMA(...), SWA(...) or None, got {averaging!r}")


def averaging_from_config(config: Mapping[str, Any] | None) -> Averaging | None:
    """Rebuild an averaging from its `to_config`."""
    if config is None:
        return None
    options = {key: value for key, value in config.items() if key != "name"}
    return _CLASSES[check_name("averaging", config.get("name"), _CLASSES)](**options)
