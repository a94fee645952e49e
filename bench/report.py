"""Tables from the JSON of a run.

python bench/report.py bench/results/today.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from contenders import CONTENDERS

Run = dict[str, Any]
console = Console(width=None if sys.stdout.isatty() else 170)


def best(run: Run, case: str, contender: str) -> dict[str, Any] | None:
    """The result of a contender with the thread count that suits it best."""
    results = [
        result
        for result in run["results"]
        if (result["case"], result["contender"]) == (case, contender) and not result["error"]
    ]
    return min(results, key=lambda result: result["microseconds"], default=None)


def best_peer(run: Run, case: str) -> dict[str, Any] | None:
    """The fastest of all peers."""
    found = [best(run, case, name) for name, contender in CONTENDERS.items() if contender.is_peer]
    return min(
        (result for result in found if result), key=lambda result: result["microseconds"], default=None
    )


def most_threads(run: Run) -> int:
    """The largest number of threads that anything had."""
    return max((int(result["threads"]) for result in run["results"]), default=1)


def threads_ratio(run: Run, case: str, contender: str) -> float | None:
    """A contender's time with the most threads over that with one: below 1 they help."""
    times = {
        result["threads"]: result["microseconds"]
        for result in run["results"]
        if (result["case"], result["contender"]) == (case, contender) and not result["error"]
    }
    most = most_threads(run)
    return float(times[most] / times[1]) if most > 1 and {1, most} <= times.keys() else None


def gflops(run: Run, result: dict[str, Any]) -> float:
    """Algorithmic operations a second."""
    return float(run["cases"][result["case"]]["flops_per_step"] / result["microseconds"] / 1e3)


def peak(run: Run, case: str) -> float | None:
    """FMA peak of all cores in the dtype of a case: the highest of the run, for it is a ceiling."""
    dtype = run["cases"][case]["dtype"]
    peaks = [run["peaks"][name] for name, facts in run["cases"].items() if facts["dtype"] == dtype]
    return max((value for found in peaks for value in found.values()), default=None)


def percent_of_peak(run: Run, result: dict[str, Any]) -> str:
    """Share of the whole machine's peak, whatever the thread count of the result."""
    ceiling = peak(run, result["case"])
    return f"{100 * gflops(run, result) / ceiling:.0f} %" if ceiling else "-"


def _format(microseconds: float) -> str:
    digits = 2 if microseconds < 10 else 1 if microseconds < 1000 else 0
    return f"{microseconds:,.{digits}f}"


def _ratio(result: dict[str, Any] | None, to: dict[str, Any] | None) -> str:
    """How many times as fast as `to`."""
    return f"{to['microseconds'] / result['microseconds']:.2f}" if result and to else "-"


def print_case(run: Run, case: str) -> None:
    """Every contender with every thread count on one case."""
    ceilings = ", ".join(f"{count} threads {value:.0f}" for count, value in run["peaks"][case].items())
    title = f"{case} (FMA peak in GFLOP/s: {ceilings or 'unavailable'})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("contender")
    columns = (
        "threads",
        "us a step",
        "fastest",
        "GFLOP/s",
        "of peak",
        "cores used",
        "loss off by",
        "x best peer",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for result in run["results"]:
        if result["case"] != case:
            continue
        if result["error"]:
            table.add_row(result["contender"], str(result["threads"]), f"[red]{result['error']}")
            continue
        samples = result["samples"]
        fastest = min(sample["seconds"] / sample["steps"] for sample in samples) * 1e6
        cores = sum(s["cpu_seconds"] for s in samples) / sum(s["seconds"] for s in samples)
        table.add_row(
            result["contender"],
            str(result["threads"]),
            _format(result["microseconds"]),
            _format(fastest),
            f"{gflops(run, result):.1f}",
            percent_of_peak(run, result),
            f"{cores:.1f}",
            f"{result['check_error']:.0e}",
            _ratio(result, best_peer(run, case)),
        )
    console.print(table)


def print_summary(run: Run) -> None:
    """Best of all thread counts for every contender, one row per case."""
    names = [name for name in CONTENDERS if any(r["contender"] == name for r in run["results"])]
    ours = [name for name in names if name.startswith("gradstep")]
    names.sort(key=lambda name: name not in ours)
    title = "microseconds a step, best thread count (threads in brackets)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("case")
    for name in names:
        table.add_column(name, justify="right")
    if ours:
        table.add_column(f"GFLOP/s of {ours[0].removeprefix('gradstep-')}", justify="right")
        table.add_column("of peak", justify="right")
        table.add_column("best peer", justify="right")
        for name in ours:
            table.add_column(f"x peer: {name.removeprefix('gradstep-')}", justify="right")
    for case in run["cases"]:
        found = {name: best(run, case, name) for name in names}
        cells = [f"{_format(r['microseconds'])} ({r['threads']})" if r else "-" for r in found.values()]
        peer = best_peer(run, case)
        if ours:
            first = found[ours[0]]
            cells += [f"{gflops(run, first):.1f}", percent_of_peak(run, first)] if first else ["-", "-"]
            cells.append(peer["contender"] if peer else "-")
            cells += [_ratio(found[name], peer) for name in ours]
        table.add_row(case, *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the tables of a run.")
    parser.add_argument("file", type=Path, help="what run.py wrote with --json")
    arguments = parser.parse_args()
    run = json.loads(arguments.file.read_text())
    for case in run["cases"]:
        print_case(run, case)
    print_summary(run)


if __name__ == "__main__":
    main()
