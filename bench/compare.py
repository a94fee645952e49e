"""What got slower, or faster, between two runs by more than noise.

    python bench/compare.py bench/results/before.json bench/results/after.json

A result counts as changed if its median and its fastest sample both moved by more than the margin: 3 %, or
what the medians of both runs lie above their fastest samples, where that is more. Exits with 1 if anything
got slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from report import Run, console

LEAST = 0.03
"""A smaller change is of no interest."""

Key = tuple[str, str, int]
"""Case, contender, threads."""


@dataclass(frozen=True)
class Change:
    """One result in both runs, as ratios of times: above 1 is slower."""

    key: Key
    median: float
    fastest: float
    margin: float

    @property
    def slower(self) -> bool:
        """Whether it got slower by more than noise."""
        return min(self.median, self.fastest) > 1 + self.margin

    @property
    def faster(self) -> bool:
        """Whether it got faster by more than noise."""
        return max(self.median, self.fastest) < 1 / (1 + self.margin)


def samples(run: Run) -> dict[Key, list[float]]:
    """Seconds a step of every sample, by what was measured."""
    return {
        (result["case"], result["contender"], result["threads"]): [
            sample["seconds"] / sample["steps"] for sample in result["samples"]
        ]
        for result in run["results"]
        if result["samples"]
    }


def changes(before: Run, after: Run) -> list[Change]:
    """All results that are in both runs, in the order of the later one."""
    old, new = samples(before), samples(after)
    found = []
    for key in new:
        if key not in old:
            continue
        spread = sum(statistics.median(run[key]) / min(run[key]) - 1 for run in (old, new))
        found.append(
            Change(
                key,
                statistics.median(new[key]) / statistics.median(old[key]),
                min(new[key]) / min(old[key]),
                max(LEAST, spread),
            )
        )
    return found


def print_changes(title: str, found: list[Change]) -> None:
    """One line a change, the largest first."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("case", "contender", "threads", "time of the median", "of the fastest", "margin"):
        table.add_column(column, justify="left" if column in ("case", "contender") else "right")
    for change in sorted(found, key=lambda change: -abs(change.median - 1)):
        case, contender, threads = change.key
        times = (f"x {change.median:.2f}", f"x {change.fastest:.2f}", f"{100 * change.margin:.0f} %")
        table.add_row(case, contender, str(threads), *times)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    before, after = (json.loads(path.read_text()) for path in (arguments.before, arguments.after))
    if before["machine"]["processor"] != after["machine"]["processor"]:
        console.print("the runs are of different processors", style="yellow")
    found = changes(before, after)
    slower = [change for change in found if change.slower]
    faster = [change for change in found if change.faster]
    for title, changed in (("slower", slower), ("faster", faster)):
        if changed:
            print_changes(title, changed)
    console.print(f"{len(found)} results in both runs: {len(slower)} slower, {len(faster)} faster")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
