"""Learning rates that change with every update: factors of the optimizer's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradstep.backends.base import Array
from gradstep.validation import check_integer, check_real


@dataclass(frozen=True)
class Schedule:
    """What all schedules have in common: a factor of the learning rate for every update.

    An object is called by `Network.fit` with the numbers of updates, counted from 0 at the beginning of that
    call, and with the number of updates that the call was asked for.
    """

    def factors(self, steps: Array, total: int) -> Array:
        """Factors of the learning rate.

        Parameters
        ----------
        steps : ndarray
            Numbers of updates, from 0.
        total : int
            Updates of the whole call of `fit`.

        Returns
        -------
        ndarray
            float64, as many, positive.
        """
        raise NotImplementedError


def _keep_real(
    owner: object,
    name: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    most: float = math.inf,
) -> None:
    value = check_real(name, getattr(owner, name), minimum=minimum, above=above)
    if value > most:
        raise ValueError(f"{name} must be at most {most:g}, got {value:g}")
    object.__setattr__(owner, name, value)


def _keep_steps(owner: object, name: str, *, optional: bool = False) -> None:
    value = getattr(owner, name)
    if value is not None or not optional:
        object.__setattr__(owner, name, check_integer(name, value, minimum=1))


@dataclass(frozen=True)
class _Decay(Schedule):
    """Multiply by a factor in so many updates."""

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _keep_steps(self, "every")
        _keep_real(self, "factor", above=0.0, most=1.0)


@dataclass(frozen=True)
class StepDecay(_Decay):
    """Multiply by a factor every so many updates: ``factor^floor(step / every)``.

    Parameters
    ----------
    every : int
        Updates between two changes, at least 1.
    factor : float, default 0.1
        In (0, 1].
    """

    def factors(self, steps: Array, total: int) -> Array:
        """``factor^floor(step / every)``."""
        return np.asarray(self.factor ** (steps // self.every), np.float64)


@dataclass(frozen=True)
class ExponentialDecay(_Decay):
    """Fall by the same share with every update: ``factor^(step / every)``.

    Parameters
    ----------
    every : int
        Updates in which the learning rate is multiplied by factor, at least 1.
    factor : float, default 0.1
        In (0, 1].
    """

    def factors(self, steps: Array, total: int) -> Array:
        """``factor^(step / every)``."""
        return np.asarray(self.factor ** (steps / self.every), np.float64)


@dataclass(frozen=True)
class InverseScaling(Schedule):
    """Fall with a power of the number of updates: ``(1 + step / every)^-power``.

    Parameters
    ----------
    every : int, default 1
        Updates of one unit, at least 1.
    power : float, default 0.5
        At least 0.
    """

    every: int = 1
    power: float = 0.5

    def __post_init__(self) -> None:
        _keep_steps(self, "every")
        _keep_real(self, "power", minimum=0.0)

    def factors(self, steps: Array, total: int) -> Array:
        """``(1 + step / every)^-power``."""
        return np.asarray((1 + steps / self.every) ** -self.power, np.float64)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 to ``final``: ``final + (1 - final) (1 + cos(pi step / steps)) / 2``.

    With ``growth``, it begins anew after ``steps`` updates, then after growth times as many, and so on: warm
    restarts.

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.

    Parameters
    ----------
    steps : int, optional
        Updates of the (first) fall; by default those of the whole fit.
    final : float, default 0.01
        Where it ends, in (0, 1].
    growth : float, optional
        At least 1; None stays at ``final`` after the fall.
    """

    steps: int | None = None
    final: float = 0.01
    growth: float | None = None

    def __post_init__(self) -> None:
        _keep_steps(self, "steps", optional=True)
        _keep_real(self, "final", above=0.0, most=1.0)
        if self.growth is not None:
            _keep_real(self, "growth", minimum=1.0)

    def factors(self, steps: Array, total: int) -> Array:
        """The cosine, or the cosines."""
        first = float(self.steps or total)
        if self.growth is None:
            share = np.minimum(steps / first, 1.0)
        elif self.growth == 1.0:
            share = (steps % first) / first
        else:
            cycle = np.floor(np.log1p(steps / first * (self.growth - 1)) / math.log(self.growth) + 1e-12)
            begin = first * (self.growth**cycle - 1) / (self.growth - 1)
            share = np.clip((steps - begin) / (first * self.growth**cycle), 0.0, 1.0)
        return np.asarray(self.final + (1 - self.final) * (1 + np.cos(np.pi * share)) / 2, np.float64)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up along a cosine from ``start`` to 1, then down to ``final``, over the whole fit or ``steps`` updates.

    Source: Smith and Topin, "Super-convergence: very fast training of neural networks using large learning
    rates", 2017.

    Parameters
    ----------
    steps : int, optional
        Updates of the cycle; by default those of the whole fit.
    rise : float, default 0.3
        Share of them that goes up, in (0, 1].
    start : float, default 0.04
        Factor at the beginning, in (0, 1].
    final : float, default 1e-4
        Factor at the end, in (0, 1].
    """

    steps: int | None = None
    rise: float = 0.3
    start: float = 0.04
    final: float = 1e-4

    def __post_init__(self) -> None:
        _keep_steps(self, "steps", optional=True)
        for name in ("rise", "start", "final"):
            _keep_real(self, name, above=0.0, most=1.0)

    def factors(self, steps: Array, total: int) -> Array:
        """Two halves of cosines."""
        last = max(float(self.steps or total) - 1, 1.0)
        top = self.rise * last
        up = self.start + (1 - self.start) * (1 - np.cos(np.pi * np.minimum(steps / top, 1.0))) / 2
        share = np.clip((steps - top) / max(last - top, 1e-9), 0.0, 1.0)
        down = self.final + (1 - self.final) * (1 + np.cos(np.pi * share)) / 2
        return np.where(steps <= top, up, down)


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """Rise in a line for so many updates, ``(step + 1) / (steps + 1)``, then follow another schedule.

    Parameters
    ----------
    steps : int
        Updates of the rise, at least 1.
    then : Schedule or callable, optional
        What follows, counted from the end of the rise; by default 1.
    """

    steps: int
    then: ScheduleLike = None

    def __post_init__(self) -> None:
        _keep_steps(self, "steps")
        object.__setattr__(self, "then", check_schedule("then", self.then))

    def factors(self, steps: Array, total: int) -> Array:
        """The line, then the other schedule."""
        rising = (steps + 1) / (self.steps + 1)
        later = factors_of(self.then, np.maximum(steps - self.steps, 0), max(total - self.steps, 1))
        return np.where(steps < self.steps, rising, later)


SCHEDULE_CLASSES: dict[str, type[Schedule]] = {
    cls.__name__: cls for cls in (StepDecay, ExponentialDecay, InverseScaling, Cosine, OneCycle, LinearWarmup)
}
"""What a file may name."""

ScheduleLike = Schedule | Callable[[int], float] | None
"""A schedule, a function of the number of updates that returns a factor, or None for a constant rate."""


def check_schedule(argument: str, schedule: object) -> ScheduleLike:
    """A schedule as it is.

    Raises
    ------
    TypeError
        If it is neither a schedule, nor a function, nor None.
    """
    if schedule is None or isinstance(schedule, Schedule):
        return schedule
    if callable(schedule) and not isinstance(schedule, type):
        return schedule
    raise TypeError(
        f"{argument} must be a schedule such as Cosine(), or a function of the step, got {schedule!r}"
    )


def factors_of(schedule: ScheduleLike, steps: Array, total: int, argument: str = "schedule") -> Array:
    """Factors of the learning rate for the updates of these numbers.

    Raises
    ------
    ValueError
        If a factor is not a positive finite number.
    """
    if schedule is None:
        return np.ones(len(steps))
    if isinstance(schedule, Schedule):
        return schedule.factors(steps, total)
    factors = np.array([float(schedule(int(step))) for step in steps], np.float64)
    bad = ~(np.isfinite(factors) & (factors > 0))
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(
            f"{argument} must return positive numbers, got {factors[at]} for step {int(steps[at])}"
        )
    return factors


def needs_total(schedule: ScheduleLike) -> bool:
    """Whether the factors depend on the number of updates of the whole call of `fit`."""
    if isinstance(schedule, LinearWarmup):
        return needs_total(schedule.then)
    return isinstance(schedule, Schedule) and getattr(schedule, "steps", 0) is None
