"""The interface between the benchmark and everything that it measures."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from importlib import metadata, util

import numpy as np

from cases import Array, Case, Weights

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "GRADSTEP_NUM_THREADS",
    "NPROC",
)
"""Set before a worker starts, because most libraries read them at import. NPROC is XLA's."""


BASIC_LOSSES = ("mse", "binary_cross_entropy", "cross_entropy")


class Session(ABC):
    """One contender with one case loaded, in a process with a fixed number of threads."""

    @abstractmethod
    def reset(self) -> None:
        """Go back to the initial weights and a fresh optimizer. Not timed."""

    @abstractmethod
    def run(self, epochs: int, orders: Array | None = None) -> float:
        """Train whole epochs: the timed region.

        Every step gathers its shuffled batch (unless the batch holds every row), runs forward, computes
        the loss, runs backward and updates all parameters. Without orders the contender
        shuffles in here, by its own means.

        Parameters
        ----------
        epochs
            Number of passes over the rows.
        orders
            Row numbers in the order in which each epoch visits them, int64 (epochs, rows).

        Returns
        -------
        float
            Mean over the rows of the last epoch's losses, each taken before its batch's update; of L-BFGS
            the loss after the last iteration.
        """

    def average(self) -> Weights:
        """The mean of the parameters, for cases that have one."""
        raise NotImplementedError


class Contender(ABC):
    """One way to train a network."""

    name: str
    packages: tuple[str, ...]
    """Distributions whose versions belong beside the result."""
    is_peer = True
    """Whether its speed counts when the best peer is chosen."""

    def environment(self, threads: int) -> dict[str, str]:
        """Environment variables of a worker process."""
        return {variable: str(threads) for variable in THREAD_VARIABLES}

    def available(self) -> str | None:
        """None, or one sentence why it cannot run here."""
        missing = [package for package in self.packages if util.find_spec(_module(package)) is None]
        return f"{', '.join(missing)} is not installed" if missing else None

    def supports(self, case: Case) -> bool:
        """Whether it has the case's optimizer, loss and layers."""
        return case.is_plain and case.loss in BASIC_LOSSES

    def versions(self) -> dict[str, str]:
        """Version of every package that does the work."""
        return {package: metadata.version(package) for package in self.packages}

    @abstractmethod
    def prepare(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> Session:
        """Do everything that need not happen again for every run, compilation included."""


def _module(package: str) -> str:
    return {"scikit-learn": "sklearn"}.get(package, package)


def shuffled_orders(rng: np.random.Generator, case: Case, epochs: int) -> Array:
    """A random order per epoch, int32 (epochs, rows)."""
    rows = np.arange(case.rows, dtype=np.int32)
    return rng.permuted(np.broadcast_to(rows, (epochs, case.rows)), axis=1)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
