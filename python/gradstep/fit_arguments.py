"""The arguments of `Network.fit` beside its rows: what is refused, without a change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gradstep.callbacks import Callback
from gradstep.lbfgs import scipy_minimize
from gradstep.sources import Source
from gradstep.streaming import Feed

if TYPE_CHECKING:
    from gradstep.schedules import ScheduleLike


def check_fit_schedule(schedule: object) -> ScheduleLike:
    """A schedule, a function, or None."""
    if schedule is None:
        return None
    from gradstep.schedules import check_schedule  # not at every start of a program

    return check_schedule("schedule", schedule)


def check_total(schedule: ScheduleLike, feed: Feed) -> None:
    """A schedule over the whole training needs a feed that knows how many steps that takes."""
    if schedule is None or feed.steps is not None:
        return
    from gradstep.schedules import needs_total

    if needs_total(schedule):
        raise ValueError(
            "this schedule takes the length of the whole training, but the number of batches is not known: "
            "give it a number of steps, or the iterable a __len__"
        )


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """All callbacks of a list, or none."""
    if callbacks is None:
        return ()
    if isinstance(callbacks, Callback):
        raise TypeError("callbacks must be a list of callbacks, got a single one")
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be a list of callbacks, got {callbacks!r}")
    given: tuple[Callback, ...] = tuple(callbacks)
    for callback in given:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be instances of Callback, got {callback!r}")
    return given


def check_source(source: Any, y: Any, sample_weight: Any, sampling: str) -> None:
    """Refuse what a source brings with it, or cannot have, and a source without rows."""
    if isinstance(source, Source) and len(source) == 0:
        raise ValueError("the source must have at least one row, got none")
    if y is not None:
        raise TypeError("y must not be given with a source, which has its own targets")
    if sample_weight is not None:
        raise TypeError("sample_weight must be part of the source or of its batches (X, y, sample_weight)")
    if sampling != "all":
        raise ValueError(f"sampling={sampling!r} needs X and y in memory or mapped into it, not a source")


def check_lbfgs(all_rows: bool, schedule: ScheduleLike, sampling: str) -> None:
    """Refuse what L-BFGS cannot do, or without SciPy all of it."""
    scipy_minimize()  # or what to install
    if not all_rows or schedule is not None or sampling != "all":
        raise ValueError("the optimizer LBFGS takes all rows at once, and no schedule")
