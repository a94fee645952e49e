"""Whether all threads are ever slower than one: the same training with both, in turns, case by case.

    python bench/threads.py
    python bench/threads.py --cases 1-1,2-4-1

The figure is the median, over pairs of samples one right after the other, of a step's time with all threads
over that with one; the times are medians of their own. In runs that measure one after the other, minutes
apart on a busy machine, networks that use one thread in both differ by more.
"""

from __future__ import annotations

import argparse
import statistics
import time

from rich import box
from rich.console import Console
from rich.table import Table

from cases import CASES, MORE, Case
from contenders import CONTENDERS
from contenders.base import usable_cores
from pool import WorkerProcess
from run import expected_loss, prepare

SECONDS = 0.05
"""Of a sample."""

BUDGET, FEWEST = 20.0, 5
"""Seconds after which a case has enough pairs, if it has so many."""

SLOWER = 1.03
"""A median above this is named."""


def paired_samples(case: Case, rounds: int) -> list[tuple[float, float]]:
    """Microseconds of a step with one and with all threads, in pairs; which comes first takes turns."""
    ours = CONTENDERS["gradstep-cpp"]
    expected = expected_loss(case)
    with WorkerProcess(ours, 1) as one, WorkerProcess(ours, usable_cores()) as every:
        for worker in (one, every):
            found = prepare(worker, case, expected, SECONDS)
            if found.error is not None:
                raise SystemExit(f"{case.name}: {found.error}")
        pairs: list[tuple[float, float]] = []
        start = time.perf_counter()
        for number in range(rounds):
            if len(pairs) >= FEWEST and time.perf_counter() - start > BUDGET:
                break
            order = (one, every) if number % 2 else (every, one)
            times = {}
            for worker in order:
                sample = worker.ask("sample")
                times[worker] = 1e6 * sample["seconds"] / sample["steps"]
            pairs.append((times[one], times[every]))
    return pairs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {**CASES, **MORE}
    parser.add_argument("--cases", help="names with commas (all of the first cases and of `more`)")
    parser.add_argument(
        "--rounds", type=int, default=21, help="most pairs of samples of a case (%(default)s)"
    )
    arguments = parser.parse_args()
    names = arguments.cases.split(",") if arguments.cases else list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown case {unknown[0]!r}: there are {', '.join(known)}")
    table = Table(title=f"{usable_cores()} threads over 1", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("case", "us a step, 1", f"{usable_cores()}", "median ratio", ""):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name in names:
        pairs = paired_samples(known[name], arguments.rounds)
        ratio = statistics.median(every / one for one, every in pairs)
        times = [f"{statistics.median(found):,.2f}" for found in zip(*pairs, strict=True)]
        table.add_row(name, *times, f"{ratio:.2f}", "slower" if ratio > SLOWER else "")
    Console().print(table)


if __name__ == "__main__":
    main()
