"""A step beside busy neighbours: two processes that spin, and training with one and with all threads.

    python bench/neighbours.py

A pool of threads that waits for a thread without a processor can lose its whole gain and much more. The
figure is the time of a step with all threads over that with one, both beside the same neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from cases import CASES
from contenders import CONTENDERS
from contenders.base import usable_cores
from pool import WorkerProcess

NAMES = ("4-32-16-4", "17-64-64-6", "64-100-10", "54-256-256-256-7", "784-256-256-10", "1024x4")
SECONDS = 0.5


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that use every cycle they get."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.2)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def microseconds(workers: list[WorkerProcess], rounds: int) -> list[float]:
    """Mean of the rounds, a step, of each worker; they take turns."""
    samples: list[list[float]] = [[] for _ in workers]
    for _ in range(rounds):
        for worker, found in zip(workers, samples, strict=True):
            sample = worker.ask("sample")
            found.append(1e6 * sample["seconds"] / sample["steps"])
    return [statistics.fmean(found) for found in samples]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8, help="samples of each (%(default)s)")
    rounds = parser.parse_args().rounds
    ours, cores = CONTENDERS["gradstep-cpp"], usable_cores()
    print(f"us a step, quiet and beside {cores} busy processes, with 1 and {cores} threads")
    for name in NAMES:
        case = CASES[name]
        with WorkerProcess(ours, 1) as one, WorkerProcess(ours, cores) as all_threads:
            workers = [one, all_threads]
            for worker in workers:
                worker.ask("load", case=case.to_json())
                worker.ask("calibrate", seconds=SECONDS)
            quiet = microseconds(workers, 3)
            with neighbours(cores):
                busy = microseconds(workers, rounds)
        print(
            f"{name:20} quiet {quiet[0]:10.1f} {quiet[1]:10.1f}   busy {busy[0]:10.1f} {busy[1]:10.1f}   "
            f"ratio {busy[1] / busy[0]:.2f}"
        )


if __name__ == "__main__":
    main()
