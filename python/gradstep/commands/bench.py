"""``gradstep bench``: how fast the installed backends train on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from gradstep import backends
from gradstep.commands.output import say, say_row
from gradstep.layers import Dense
from gradstep.network import Network
from gradstep.validation import check_integer

REPETITIONS = 3
"""Measurements of each case; the fastest counts."""


@dataclass(frozen=True)
class Case:
    """A network and its data: random numbers, trained with Adam."""

    widths: tuple[int, ...]
    """Input, hidden layers, output."""
    activation: str
    loss: str
    rows: int
    batch: int

    @property
    def name(self) -> str:
        """Widths and batch."""
        return f"{'-'.join(map(str, self.widths))} {self.activation}, batch {self.batch}"

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; they divide the rows evenly."""
        return self.rows // self.batch

    @property
    def flops_per_step(self) -> float:
        """Operations of the matrix products: 2 B I O forward, for dW and, but in the first layer, for dX."""
        products = [n_in * n_out for n_in, n_out in pairwise(self.widths)]
        return 2.0 * self.batch * (3 * sum(products) - products[0])

    def data(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Inputs and targets, the same every time."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((self.rows, self.widths[0]), dtype=np.float32)
        if self.loss == "cross_entropy":
            return X, rng.integers(0, self.widths[-1], self.rows).astype(np.int32)
        return X, rng.standard_normal((self.rows, self.widths[-1]), dtype=np.float32)

    def network(self, backend: str) -> Network:
        """The network, untrained."""
        hidden = [Dense(width, self.activation) for width in self.widths[1:-1]]
        return Network([*hidden, Dense(self.widths[-1])], loss=self.loss, backend=backend)


CASES = (
    Case((1, 1), "identity", "mse", 100, 100),
    Case((4, 32, 16, 4), "tanh", "mse", 10_000, 10_000),
    Case((17, 64, 64, 6), "tanh", "mse", 6_400, 64),
    Case((64, 100, 10), "relu", "cross_entropy", 20_000, 200),
    Case((54, 256, 256, 256, 7), "relu", "cross_entropy", 25_600, 256),
    Case((784, 256, 256, 10), "relu", "cross_entropy", 12_800, 128),
    Case((1024,) * 5, "relu", "mse", 1_280, 128),
)


def bench(
    backend: Annotated[
        str, typer.Option(help="What to measure: all, cpp, numba or numpy, or several with commas.")
    ] = "all",
    threads: Annotated[int, typer.Option(help="Threads to use; 0 is all of them.")] = 0,
    seconds: Annotated[
        float, typer.Option(help="Length of a measurement; each case is measured three times.")
    ] = 0.1,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show what the time of a step goes to instead (cpp only).")
    ] = False,
) -> None:
    """Measure training steps on this machine.

    Whole calls of fit are timed: random data, shuffled mini-batches, Adam, float32. A step is one
    update. GFLOP/s counts the operations of the matrix products alone. The fastest of three counts.
    With --profile: the share of the threads' time that gathering rows, the forward pass, the loss, the
    errors (dX), the weight gradients (dW), the update and waiting take.
    """
    if not seconds > 0:
        raise ValueError(f"--seconds must be greater than 0, got {seconds:g}")
    backends.set_num_threads(check_integer("--threads", threads, minimum=0))
    names = ["cpp"] if profile else _names(backend)
    for name in names:
        chosen = backends.get(name)
        facts = ", ".join(f"{key} {value}" for key, value in chosen.describe().items())
        say(f"{name}: {facts}, {chosen.get_num_threads()} threads")
    for name, reason in backends.available().items():
        if reason is not None:
            say(f"{name}: not available: {reason}")
    say()
    if profile:
        _show_profile(seconds)
        return
    head = ["case", *(f"{name} {unit}" for name in names for unit in ("us/step", "GFLOP/s"))]
    widths = [max(len(case.name) for case in CASES), *(max(12, len(cell)) for cell in head[1:])]
    say_row(head, widths, style="bold")
    for case in CASES:
        say_row(_row(case, names, seconds), widths)


def _show_profile(seconds: float) -> None:
    head = ["case", "us/step", "gather", "forward", "loss", "dX", "dW", "update", "waiting"]
    widths = [max(len(case.name) for case in CASES), 9, *(7 for _ in head[2:])]
    say_row(head, widths, style="bold")
    for case in CASES:
        step = seconds_per_step(case, "cpp", seconds)
        shares = phase_shares(case, step, seconds)
        say_row([case.name, f"{1e6 * step:,.2f}", *(f"{shares[name]:.0%}" for name in head[2:])], widths)


def phase_shares(case: Case, step: float, seconds: float) -> dict[str, float]:
    """Share of the threads' time by phase, of a run of about that many seconds."""
    X, y = case.data()
    network = case.network("cpp")
    network.fit(X, y, epochs=1, batch_size=case.batch, verbose=0)
    engine = backends.get("cpp").make_engine(network.plan)
    engine.set_parameters(network.parameters())
    targets = y if y.dtype == np.int32 else y.reshape(len(y), -1)
    # Once before it counts: memory is only given when it is first used, half of the time of a few wide steps.
    for epochs in (1, max(1, int(seconds / (step * case.steps_per_epoch)))):
        shares = engine.profile(X, targets, epochs=epochs, batch_size=case.batch, learning_rate=1e-3)
    assert shares is not None
    return shares


def _names(backend: str) -> list[str]:
    if backend == "all":
        return [name for name, reason in backends.available().items() if reason is None]
    return [backends.get(name.strip()).name for name in backend.split(",")]


def _row(case: Case, names: list[str], seconds: float) -> list[str]:
    cells = [case.name]
    for name in names:
        step = seconds_per_step(case, name, seconds)
        cells += [f"{1e6 * step:,.2f}", f"{case.flops_per_step / step / 1e9:.1f}"]
    return cells


def seconds_per_step(case: Case, backend: str, seconds: float) -> float:
    """Time of one update: the best of several calls of `fit`, each about this long."""
    network = case.network(backend)
    X, y = case.data()
    epochs = 1
    _time(network, X, y, case.batch, epochs)  # Compiles, allocates, fills caches.
    while (elapsed := _time(network, X, y, case.batch, epochs)) < seconds / 2:
        epochs = max(epochs + 1, int(epochs * min(100.0, seconds / max(elapsed, 1e-9))))
    best = min(_time(network, X, y, case.batch, epochs) for _ in range(REPETITIONS))
    return min(best, elapsed) / (epochs * case.steps_per_epoch)


def _time(network: Network, X: NDArray[Any], y: NDArray[Any], batch: int, epochs: int) -> float:
    start = time.perf_counter()
    history = network.fit(X, y, epochs=epochs, batch_size=batch, verbose=0)
    if history.interrupted:
        raise typer.Abort
    return time.perf_counter() - start
