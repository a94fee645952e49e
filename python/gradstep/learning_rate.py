"""Find a learning rate: raise it with every update of a copy, and see where the loss falls."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.network import Network
from gradstep.optimizers import LBFGS
from gradstep.random import permutation
from gradstep.streaming import Rows
from gradstep.training import DivergenceError
from gradstep.validation import check_batch_size, check_integer, check_real

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 0.2
"""Deviation of the bell with which losses are smoothed, in decades of the learning rate."""

DIVERGED = 4.0
"""The test ends where the loss, beside that before the test and averaged over the last few updates, is this
many times its smallest value."""

AVERAGED = 0.7
"""Share of the running average that the next update keeps."""

NOISE = 2.0
"""Standard errors of the smoothed loss by which it must fall before a learning rate is suggested."""

LEAST_FALL = 0.01
"""Share of the first loss by which it must fall, too."""


@dataclass(frozen=True, eq=False)
class LearningRateRange:
    """Result of `find_learning_rate`: the loss of every update beside its learning rate."""

    learning_rates: Array
    """Of the updates, rising, (steps,) or fewer where the loss left before."""
    losses: Array
    """Of the batches, each before its update, as many."""
    smoothed: Array
    """The losses, averaged over neighbouring learning rates, as many."""
    suggestion: float | None
    """Where the smoothed loss has fallen halfway to its minimum; None if the fall is within its noise."""
    diverged: bool
    """Whether the loss left before the last step."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw it: `gradstep.plot.learning_rate_range`.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        matplotlib Axes
            The one drawn on.
        """
        from gradstep.plot import learning_rate_range

        return learning_rate_range(self, ax)

    def __repr__(self) -> str:
        found = "no suggestion" if self.suggestion is None else f"suggestion {self.suggestion:.2g}"
        first, last = self.learning_rates[0], self.learning_rates[-1]
        end = ", where the loss left" if self.diverged else ""
        return f"<LearningRateRange of {len(self.losses)} updates, {first:.2g} to {last:.2g}{end}: {found}>"


def find_learning_rate(
    net: Network,
    X: Any,
    y: Any,
    *,
    start: float = 1e-7,
    stop: float = 10.0,
    steps: int = 100,
    batch_size: int | None = None,
    sample_weight: Any = None,
) -> LearningRateRange:
    """Try rising learning rates on a copy of the network: the learning-rate range test.

    Update i uses the rate ``start (stop / start)^(i / (steps - 1))``, on batches shuffled as `Network.fit`
    does. Losses count relative to those that the same batches had before the test, which takes out the noise
    of the batches. The test ends early where the loss is not finite, or its running average is four times as
    large as it was at best. For the suggestion, losses are averaged over neighbouring rates, with a bell of
    deviation 0.2 decades. The suggestion is the smallest rate where this average has fallen halfway to its
    minimum: a rate to begin with, seldom the very best. It is None if the fall is below two standard errors,
    or 1 %, as in a network that is trained already. The network itself does not change; the copy takes as
    much memory again.

    Source: Smith, "Cyclical learning rates for training neural networks", WACV 2017.

    Parameters
    ----------
    net : Network
        The network, new or trained; the test begins with its parameters and optimizer state.
    X, y
        As for `Network.fit`.
    start, stop : float
        The first and the last learning rate, positive.
    steps : int, default 100
        Updates, at least 10.
    batch_size : int, optional
        Rows per update, as for `Network.fit`.
    sample_weight : array_like, (n,), optional
        Weights of the rows in the loss; rows without are left out.

    Returns
    -------
    LearningRateRange
        Its ``suggestion`` is a learning rate or None, and its ``plot()`` shows how it was found.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    DivergenceError
        If the loss is not finite from the beginning.

    Examples
    --------
    >>> found = gs.find_learning_rate(net, X, y)
    >>> net.learning_rate = found.suggestion
    """
    rates = _rates(start, stop, steps)
    if isinstance(net.optimizer, LBFGS):
        raise ValueError("net must learn at a rate, but the optimizer LBFGS searches the size of every step")
    twin = copy.deepcopy(net)
    rows = twin._rows_to_learn(X, y, sample_weight)
    size = check_batch_size(batch_size, len(rows.X), twin.optimizer.default_batch_size(len(rows.X)))
    before = _losses_before(twin, rows, size, len(rates))
    losses, diverged = _losses(twin, rows, rates, size, before)
    if not (len(losses) and np.isfinite(before).all()):
        raise DivergenceError("the loss is not finite from the beginning: try smaller inputs or parameters")
    rates, before = rates[: len(losses)], before[: len(losses)]
    smoothed, errors = _smoothed(rates, losses, before)
    return LearningRateRange(rates, losses, smoothed, _suggestion(rates, smoothed, errors), diverged)


def _rates(start: float, stop: float, steps: int) -> Array:
    start = check_real("start", start, above=0.0)
    stop = check_real("stop", stop, above=0.0)
    if not stop > start:
        raise ValueError(f"stop must be greater than start ({start:g}), got {stop:g}")
    return np.geomspace(start, stop, check_integer("steps", steps, minimum=10))


def _losses(twin: Network, rows: Rows, rates: Array, batch_size: int, before: Array) -> tuple[Array, bool]:
    """The loss of every update until it leaves the losses before, and whether it did."""
    engine = twin._built()
    losses: list[float] = []
    average = average_before = 0.0
    best = math.inf
    batches = _batches(twin, rows, batch_size)
    for rate, loss_before, batch in zip(rates, before, batches, strict=False):
        loss = engine.step(batch.X, batch.y, batch.weight, float(rate))
        if not math.isfinite(loss):
            break
        losses.append(loss)
        average = AVERAGED * average + loss
        average_before = AVERAGED * average_before + loss_before
        relative = average / (average_before or 1.0)
        if relative > DIVERGED * best:
            return np.array(losses), True
        best = min(best, relative)
    return np.array(losses), len(losses) < len(rates)


def _losses_before(twin: Network, rows: Rows, batch_size: int, count: int) -> Array:
    """The losses of the same batches in the network as it is, with the penalty that updates report."""
    engine = twin._built()
    batches = itertools.islice(_batches(twin, rows, batch_size), count)
    if engine.plan.normalises_batches:  # which evaluations do with the running statistics
        return np.array([engine.loss_and_gradients(*batch)[0] for batch in batches])
    losses: Array = np.array([engine.evaluate(*batch) for batch in batches])
    first = next(_batches(twin, rows, batch_size))
    losses += float(engine.loss_and_gradients(*first)[0]) - float(losses[0])
    return losses


def _batches(twin: Network, rows: Rows, batch_size: int) -> Iterator[Rows]:
    """Batches without end, shuffled anew every epoch; rows without weight are left out."""
    kept = np.arange(len(rows.X)) if rows.weight is None else np.flatnonzero(rows.weight)
    for epoch in itertools.count(twin.epochs_trained):
        order = kept if batch_size >= len(kept) else kept[permutation(len(kept), twin.seed, epoch)]
        for begin in range(0, len(kept), batch_size):
            chosen = order[begin : begin + batch_size]
            yield Rows(rows.X[chosen], rows.y[chosen], None if rows.weight is None else rows.weight[chosen])


def _smoothed(rates: Array, losses: Array, before: Array) -> tuple[Array, Array]:
    """Losses averaged over neighbouring rates, and the standard errors of these averages.

    Which rows a batch happens to hold moves its loss more than an update does. What is averaged is therefore
    the ratio to the loss that the same batches had before the test: it is 1 until training shows.
    """
    decades = np.log10(rates)
    bell = np.exp(-(((decades[:, None] - decades) / WIDTH) ** 2) / 2)
    bell /= bell.sum(axis=1, keepdims=True)
    if not before.all():  # batches that fit perfectly have no ratio
        before = np.full_like(before, before.mean() or 1.0)
    scale = before.mean() / (bell @ before)
    smoothed = scale * (bell @ losses)
    noise = losses - smoothed / before.mean() * before
    return smoothed, scale * np.sqrt(np.square(bell) @ np.square(noise))


def _suggestion(rates: Array, smoothed: Array, errors: Array) -> float | None:
    """The rate where half of the fall has happened, if the loss falls beyond its noise."""
    fall = smoothed[0] - smoothed
    fall[fall <= NOISE * errors] = 0.0
    if fall.max() <= LEAST_FALL * smoothed[0]:
        return None
    return float(rates[int(np.argmax(fall >= fall.max() / 2))])
