"""How the cost of a sample grows with the width and the batch, beside the peers and the roofline.

    python bench/growth.py --json bench/results/growth.json
    python bench/growth.py --from bench/results/growth.json    # the pages again, without measuring

Writes the plot docs/images/growth.png and the tables between the markers ``<!-- growth -->`` of
docs/performance.md. Three sweeps: the width of two hidden layers, the batch of one network, and 10-w-w-10 in
steps of two, where no number of threads and no layout may cost more than the widths beside it suggest.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from cases import Case
from contenders import CONTENDERS
from contenders.base import Contender, usable_cores
from pool import WorkerProcess
from publish import ROOT, measured, replace
from report import Run, best, peak
from run import Settings, console, expected_loss, machine, measure, measure_peaks, prepare, versions

IMAGE = ROOT / "docs/images/growth.png"
COMPARED = ("gradstep-cpp", "jax", "pytorch", "scikit-learn", "numpy")
WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 8192)
FINE_WIDTHS = range(32, 257, 2)
WIDE = 1024
REPEATS, SECONDS = 3, 0.1
ROUNDS = 5


def width_case(width: int) -> Case:
    """Two square layers, batch 256."""
    rows = 1024 if width < 2048 else 512
    return Case(f"width {width}", (width,) * 3, "relu", "mse", rows, 256, 1e-3 if width < 512 else 1e-4)


def batch_case(batch: int) -> Case:
    """One network, from single rows to large batches."""
    rows = min(max(batch * 4, 256), 16_384)
    return Case(f"batch {batch}", (64, 128, 128, 8), "relu", "mse", rows, batch, 1e-4 if batch < 16 else 1e-3)


def fine_case(width: int) -> Case:
    """10-w-w-10, batch 128."""
    return Case(f"10-{width}-{width}-10", (10, width, width, 10), "relu", "mse", 1_280, 128, 1e-3)


def compare(chosen: list[Case], contenders: list[Contender], run: Run) -> None:
    """Every contender with 1 and all threads; wide networks, which are never faster with 1, with all."""
    for case in chosen:
        threads = tuple(sorted({usable_cores(), 1 if max(case.widths) < WIDE else usable_cores()}))
        run["cases"][case.name] = {**case.to_json(), "flops_per_step": case.flops_per_step}
        run["peaks"][case.name] = measure_peaks(threads, case.dtype)
        pairs = [(contender, count) for contender in contenders for count in threads]
        for group in measure(case, pairs, Settings(REPEATS, SECONDS, threads)):
            run["results"] += [{**vars(result), "microseconds": result.microseconds} for result in group]


def sweep_fine(run: Run) -> None:
    """The compiled backend alone, with 1 and all threads in turns, in rounds over all widths.

    A minute without the second core would look like a cliff if each width were measured at one time.
    """
    threads = sorted({1, usable_cores()})
    ours = CONTENDERS["gradstep-cpp"]
    found = {}
    with WorkerProcess(ours, threads[0]) as first, WorkerProcess(ours, threads[-1]) as last:
        for _ in range(ROUNDS):
            for width in FINE_WIDTHS:
                case = fine_case(width)
                expected = expected_loss(case)
                for worker in (first, last):
                    result = prepare(worker, case, expected, SECONDS / 5)
                    if result.error is None:
                        result.samples += [worker.ask("sample") for _ in range(REPEATS)]
                    known = found.setdefault((width, result.threads), result)
                    known.samples += result.samples if known is not result else []
    for (width, _), result in found.items():
        case = fine_case(width)
        run["cases"][case.name] = {**case.to_json(), "flops_per_step": case.flops_per_step}
        run["peaks"][case.name] = {}
        run["results"].append({**vars(result), "microseconds": result.microseconds})


def jumps(times: dict[int, float], limit: float = 1.2) -> dict[int, float]:
    """Widths whose step takes more than `limit` times what the work and the width before suggest."""
    found = {}
    widths = sorted(times)
    for before, width in pairwise(widths):
        work = fine_case(width).flops_per_step / fine_case(before).flops_per_step
        ratio = times[width] / times[before] / work
        if ratio > limit:
            found[width] = ratio
    return found


def times_of(run: Run, threads: int) -> dict[int, float]:
    """Microseconds a step of the fine sweep by width."""
    return {
        run["cases"][r["case"]]["widths"][1]: r["microseconds"]
        for r in run["results"]
        if r["case"].startswith("10-") and r["threads"] == threads and r["microseconds"]
    }


def per_sample(run: Run, case: str, contender: str) -> float | None:
    """Microseconds a sample at the better number of threads."""
    found = best(run, case, contender)
    facts = run["cases"][case]
    return float(found["microseconds"] / facts["batch"]) if found else None


def table(run: Run, kind: str) -> str:
    """Markdown: microseconds a sample, one row a width or batch."""
    columns = (kind, *COMPARED, "roofline")
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for name, facts in run["cases"].items():
        if not name.startswith(f"{kind} "):
            continue
        values = [per_sample(run, name, contender) for contender in COMPARED]
        values.append(roofline(run, facts))
        cells = [name.split()[1], *("–" if v is None else f"{v:,.3g}" for v in values)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def roofline(run: Run, facts: dict[str, Any]) -> float:
    """Microseconds a sample if the products ran at the FMA peak of all cores and nothing else took time."""
    ceiling = peak(run, next(name for name, found in run["peaks"].items() if found))
    assert ceiling is not None
    return (
        Case.from_json({k: v for k, v in facts.items() if k != "flops_per_step"}).flops_per_row
        / ceiling
        / 1e3
    )


def _draw_comparison(axes: Any, run: Run, kind: str) -> None:
    names = [name for name in run["cases"] if name.startswith(f"{kind} ")]
    x = [int(name.split()[1]) for name in names]
    for contender in COMPARED:
        axes.plot(
            x, [per_sample(run, n, contender) for n in names], marker="o", markersize=3, label=contender
        )
    limit = [roofline(run, run["cases"][name]) for name in names]
    axes.plot(x, limit, color="black", linestyle="--", linewidth=1, label="roofline")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(kind)
    axes.set_ylabel("microseconds a sample")
    axes.spines[["top", "right"]].set_visible(False)


def plot(run: Run) -> None:
    """Three panels: width, batch, and 10-w-w-10 with 1 and all threads."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    _draw_comparison(left, run, "width")
    left.set_title("w-w-w, batch 256", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    _draw_comparison(middle, run, "batch")
    middle.set_title("64-128-128-8", fontsize=10)
    for threads in sorted({result["threads"] for result in run["results"]}):
        times = times_of(run, threads)
        right.plot(list(times), list(times.values()), label=f"{threads} thread{'s' if threads > 1 else ''}")
    right.set_title("10-w-w-10, batch 128, gradstep", fontsize=10)
    right.set_xlabel("w")
    right.set_ylabel("microseconds a step")
    right.legend(fontsize=8, frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGE, dpi=110, metadata={"Software": None})


def fine_sentences(run: Run) -> str:
    """What the fine sweep shows: jumps, and widths at which more threads are slower."""
    threads = sorted({result["threads"] for result in run["results"]})
    one, many = times_of(run, threads[0]), times_of(run, threads[-1])
    found = jumps(many)
    listed = ", ".join(f"{width} ({ratio:.2f})" for width, ratio in found.items()) or "none"
    slower = ", ".join(f"{w} ({many[w] / one[w]:.2f})" for w in one if many[w] > 1.03 * one[w]) or "none"
    return (
        f"10-w-w-10, w = {FINE_WIDTHS[0]} to {FINE_WIDTHS[-1]} in steps of 2, batch 128. Widths whose step "
        f"takes over 1.2 times what the width before suggests: {listed}. Widths at which {threads[-1]} "
        f"threads take over 1.03 times the time of one: {slower}."
    )


def publish(run: Run) -> None:
    """The plot, and the tables in docs/performance.md."""
    plot(run)
    text = "\n\n".join(
        (
            "![Microseconds a sample against width and batch](images/growth.png)",
            "Microseconds a sample, w-w-w, batch 256:",
            table(run, "width"),
            "Microseconds a sample, 64-128-128-8:",
            table(run, "batch"),
            fine_sentences(run),
            f"Each contender with its better of 1 and all threads. {measured(run)}",
        )
    )
    replace("docs/performance.md", text, "growth")


def main() -> None:
    """Measure, or read what was measured, and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("bench/results/growth.json"), help="%(default)s")
    parser.add_argument("--fine", action="store_true", help="measure the fine sweep of --json's file again")
    parser.add_argument("--from", dest="source", type=Path, help="publish this file, measure nothing")
    arguments = parser.parse_args()
    if arguments.source:
        publish(json.loads(arguments.source.read_text(encoding="utf-8")))
        return
    if arguments.fine:
        known: Run = json.loads(arguments.json.read_text(encoding="utf-8"))
        known["results"] = [r for r in known["results"] if not r["case"].startswith("10-")]
        sweep_fine(known)
        arguments.json.write_text(json.dumps(known, indent=1), encoding="utf-8")
        publish(known)
        return
    contenders = [c for name, c in CONTENDERS.items() if name in COMPARED and c.available() is None]
    run: Run = {
        "machine": machine(),
        "versions": versions(contenders),
        "cases": {},
        "peaks": {},
        "results": [],
    }
    compare([width_case(width) for width in WIDTHS], contenders, run)
    compare([batch_case(batch) for batch in BATCHES], contenders, run)
    console.print("10-w-w-10", style="dim")
    sweep_fine(run)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(run, indent=1), encoding="utf-8")
    publish(run)


if __name__ == "__main__":
    main()
