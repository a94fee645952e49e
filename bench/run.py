"""Time whole training steps of gradstep and its peers, after checking that all compute the same.

python bench/run.py --json bench/results/today.json
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import cases
import reference
import report
from cases import Case
from contenders import CONTENDERS
from contenders.base import Contender, usable_cores
from pool import WorkerError, WorkerProcess, available_memory, memory_estimate
from roofline import fma_peak_apart

TOLERANCE = {"float32": 1e-3, "float64": 1e-5}
"""Largest relative difference between a contender's loss and the float64 reference."""
AVERAGE_TOLERANCE = 1e-2
"""The same of how far the mean of the parameters has moved."""
DROPOUT_TOLERANCE = 0.05
"""The same where everybody drops other outputs."""
BUDGET_SECONDS = 40.0
"""A contender whose samples of a case took longer than this gives no more."""
PAUSE_SECONDS = 0.05
"""Between samples, so that the spinning threads of one contender do not run into the next."""

SETS = {"more": cases.MORE, "toolbox": cases.TOOLBOX, "toolbox-wide": cases.TOOLBOX_WIDE}
ALL_CASES = {**cases.CASES, **{name: case for chosen in SETS.values() for name, case in chosen.items()}}

console = Console(stderr=True)


@dataclass
class Result:
    """What one contender with one thread count did on one case."""

    case: str
    contender: str
    threads: int
    check_loss: float | None = None
    check_error: float | None = None
    """Relative difference between check_loss and the reference."""
    error: str | None = None
    """Why there are no samples."""
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def microseconds(self) -> float | None:
        """Median over the samples, per step."""
        if not self.samples:
            return None
        return 1e6 * float(statistics.median(s["seconds"] / s["steps"] for s in self.samples))


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    repeats: int
    seconds: float
    threads: tuple[int, ...]


def expected_loss(case: Case) -> float:
    """Loss of the float64 reference; the check has no power unless training changes it."""
    data, weights = cases.make_data(case), cases.make_weights(case)
    orders = cases.make_orders(case, case.check_epochs)
    losses = reference.losses(case, data, weights, case.check_epochs, orders)
    if abs(losses[-1] - losses[0]) < 10 * TOLERANCE[case.dtype] * losses[-1]:
        raise ValueError(f"the loss of case {case.name} hardly changes: its agreement check shows nothing")
    return losses[-1]


@functools.cache
def expected_average(case: Case) -> float:
    """How far the mean of the parameters moves, by the float64 reference."""
    data, weights = cases.make_data(case), cases.make_weights(case)
    orders = cases.make_orders(case, case.check_epochs)
    return cases.distance(reference.average(case, data, weights, case.check_epochs, orders), weights)


def prepare(worker: WorkerProcess, case: Case, expected: float, seconds: float) -> Result:
    """Load a case, compare losses, choose the length of a sample."""
    result = Result(case.name, worker.contender.name, worker.threads)
    try:
        worker.ask("load", case=case.to_json())
        loss = worker.ask("check")["loss"]
        result.check_loss, result.check_error = loss, abs(loss - expected) / abs(expected)
        tolerance = DROPOUT_TOLERANCE if case.block == "dropout" else TOLERANCE[case.dtype]
        if not result.check_error <= tolerance:
            result.error = f"disagrees: loss {loss:.6g}, not {expected:.6g}"
            return result
        if case.averaging:
            moved, wanted = worker.ask("check_average")["moved"], expected_average(case)
            if not abs(moved - wanted) <= AVERAGE_TOLERANCE * wanted:
                result.error = f"disagrees: the mean moved by {moved:.6g}, not {wanted:.6g}"
                return result
        worker.ask("calibrate", seconds=seconds)
    except WorkerError as error:
        result.error = str(error)
    return result


def sample_in_turns(workers: list[WorkerProcess], results: list[Result], repeats: int) -> None:
    """Round after round over all contenders, so that a noisy moment hits them alike."""
    for _ in range(repeats):
        for worker, result in zip(workers, results, strict=True):
            spent = sum(sample["seconds"] for sample in result.samples)
            if result.error is None and spent < BUDGET_SECONDS:
                time.sleep(PAUSE_SECONDS)
                try:
                    result.samples.append(worker.ask("sample"))
                except WorkerError as error:
                    result.error = str(error)


def measure(case: Case, pairs: list[tuple[Contender, int]], settings: Settings) -> Iterator[list[Result]]:
    """All contenders on one case, in groups of as many as fit into memory."""
    expected = expected_loss(case)
    fitting = max(1, int(0.7 * available_memory() / memory_estimate(case)))
    for start in range(0, len(pairs), fitting):
        with contextlib.ExitStack() as stack:
            workers, group = [], []
            for contender, threads in pairs[start : start + fitting]:
                console.print(f"{case.name}: preparing {contender.name}, {threads} threads", style="dim")
                workers.append(stack.enter_context(WorkerProcess(contender, threads)))
                group.append(prepare(workers[-1], case, expected, settings.seconds))
            console.print(f"{case.name}: measuring", style="dim")
            sample_in_turns(workers, group, settings.repeats)
        yield group


def measure_peaks(threads: tuple[int, ...], dtype: str) -> dict[int, float]:
    """FMA peak by thread count; empty where it cannot be measured."""
    peaks = {count: fma_peak_apart(count, dtype) for count in threads}
    return {count: peak for count, peak in peaks.items() if peak is not None}


def chosen_contenders(names: list[str] | None) -> Iterator[Contender]:
    """The contenders asked for, or gradstep and its peers; those that cannot run are named and left out."""
    for name, contender in CONTENDERS.items():
        is_wanted = name in names if names else contender.is_peer or name.startswith("gradstep")
        if not is_wanted:
            continue
        reason = contender.available()
        if reason is None:
            yield contender
        else:
            console.print(f"without {name}: {reason}", style="yellow")


def versions(contenders: list[Contender]) -> dict[str, dict[str, str]]:
    """Versions by contender, asked in a process of its own because that may import all of it."""
    found = {}
    for contender in contenders:
        with WorkerProcess(contender, 1) as worker:
            found[contender.name] = worker.ask("versions")["versions"]
    return found


def machine() -> dict[str, Any]:
    """The machine and the moment."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    return {
        "processor": model,
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time training steps of gradstep and its peers.")
    parser.add_argument(
        "--cases",
        help=f"comma-separated, of {', '.join({**cases.CASES, **cases.MORE})}; 'more' for those from "
        f"{next(iter(cases.MORE))} on, 'toolbox' and 'toolbox-wide' for optimizers, losses and layers "
        "(default: those before)",
    )
    parser.add_argument(
        "--contenders",
        help=f"comma-separated, of {', '.join(CONTENDERS)} (default: all but numpy-avx512)",
    )
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), help="instead of the cases' own")
    parser.add_argument("--threads", help="comma-separated thread counts (default: 1 and all cores)")
    parser.add_argument("--repeats", type=int, default=7, help="samples of each, median taken (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="duration of a sample (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="3 samples of 0.1 s, without the large cases")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every sample to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.seconds = 3, 0.1
    if arguments.cases in SETS:
        arguments.cases = ",".join(SETS[arguments.cases])
    for kind, given, known in (
        ("case", arguments.cases, tuple(ALL_CASES)),
        ("contender", arguments.contenders, tuple(CONTENDERS)),
    ):
        for name in (given or "").split(","):
            if name and name not in known:
                parser.error(f"unknown {kind} {name!r}; known are {', '.join(known)}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    default_cases = [name for name in cases.CASES if not (arguments.quick and name in cases.LARGE)]
    chosen_cases = [ALL_CASES[name] for name in (arguments.cases or ",".join(default_cases)).split(",")]
    if arguments.dtype:  # lbfgs is float64 everywhere
        free = [case for case in chosen_cases if case.optimizer != "lbfgs"]
        chosen_cases = [
            replace(case, dtype=arguments.dtype) if case in free else case for case in chosen_cases
        ]
    contenders = list(chosen_contenders(arguments.contenders and arguments.contenders.split(",")))
    threads = sorted({int(count) for count in (arguments.threads or f"1,{usable_cores()}").split(",")})
    settings = Settings(arguments.repeats, arguments.seconds, tuple(threads))
    pairs = [(contender, count) for contender in contenders for count in threads]

    run: dict[str, Any] = {"machine": machine(), "settings": vars(settings), "versions": versions(contenders)}
    run["cases"], run["peaks"], run["results"] = {}, {}, []
    for case in chosen_cases:
        peaks = measure_peaks(settings.threads, case.dtype)
        run["cases"][case.name] = {**case.to_json(), "flops_per_step": case.flops_per_step}
        run["peaks"][case.name] = peaks
        able = [(contender, count) for contender, count in pairs if contender.supports(case)]
        for group in measure(case, able, settings):
            run["results"] += [{**vars(result), "microseconds": result.microseconds} for result in group]
            if arguments.json:  # after every group: a run that is stopped loses little
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(run, indent=1))
        report.print_case(run, case.name)
    report.print_summary(run)
    return 1 if any(result["error"] for result in run["results"]) else 0


if __name__ == "__main__":
    sys.exit(main())
