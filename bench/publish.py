"""Write the figures of a run into README.md and docs/: the tables and the plot.

python bench/publish.py bench/results/run.json

Replaces what stands between the markers ``<!-- steps -->`` and ``<!-- /steps -->``, or ``more``, ``toolbox``
and ``toolbox-wide`` for a run of those cases; ``--section avx2`` writes the table alone between the markers
of that name, for a second machine. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from cases import MORE, TOOLBOX, TOOLBOX_WIDE
from contenders import CONTENDERS
from report import Run, best, best_peer, gflops, most_threads, percent_of_peak, threads_ratio

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "docs/images/steps.png"
README_COLUMNS = (
    "gradstep-cpp",
    "gradstep-numba",
    "jax",
    "pytorch",
    "pytorch-compiled",
    "scikit-learn",
    "numpy",
)


def _microseconds(result: dict[str, object] | None) -> str:
    if result is None:
        return "–"
    value = float(str(result["microseconds"]))
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def table(run: Run, threads: bool = True) -> str:
    """Markdown: one row a case, microseconds a step of every contender at its best thread count.

    With `threads` a last column has the compiled backend's time with all threads over that with one; the
    README, which has one table for all readers, goes without.
    """
    names = [name for name in README_COLUMNS if any(r["contender"] == name for r in run["results"])]
    head = ["layers, batch", *names, "GFLOP/s", "of peak", "times the best peer"]
    threads = threads and most_threads(run) > 1
    if threads:
        head.append(f"{most_threads(run)} threads over 1")
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for case, facts in run["cases"].items():
        found = {name: best(run, case, name) for name in names}
        ours, peer = found.get("gradstep-cpp"), best_peer(run, case)
        cells = [f"{case}, {facts['batch']}", *(_microseconds(found[name]) for name in names)]
        if ours and peer:
            ratio = peer["microseconds"] / ours["microseconds"]
            cells += [
                f"{gflops(run, ours):.0f}",
                percent_of_peak(run, ours),
                f"**{ratio:.1f}** ({peer['contender']})",
            ]
        else:
            cells += ["–", "–", "–"]
        if threads:
            over_one = threads_ratio(run, case, "gradstep-cpp")
            cells.append("–" if over_one is None else f"{over_one:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def origin(run: Run) -> str:
    """One sentence: what the figures are, and where they come from."""
    return (
        "Microseconds a training step (shuffled gather, forward, loss, backward, Adam; float32), each "
        f"contender with its better of 1 and all threads. {measured(run)}"
    )


def measured(run: Run) -> str:
    """One sentence: when, where and with what versions."""
    machine, versions = run["machine"], run["versions"]
    packages = sorted(
        {
            f"{name} {version}"
            for found in versions.values()
            for name, version in found.items()
            if name in ("torch", "jax", "scikit-learn", "numpy", "numba", "gradstep")
        }
    )
    return (
        f"Measured {machine['date'][:10]} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['system']}: {', '.join(packages)}."
    )


def plot(run: Run) -> None:
    """Bars: time of every contender over ours, per case, on a logarithmic scale."""
    names = [
        n
        for n in README_COLUMNS
        if CONTENDERS[n].is_peer and any(r["contender"] == n for r in run["results"])
    ]
    cases = [case for case in run["cases"] if best(run, case, "gradstep-cpp")]
    figure, axes = plt.subplots(figsize=(10, 4.2), layout="constrained")
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        ratios = []
        for case in cases:
            ours, other = best(run, case, "gradstep-cpp"), best(run, case, name)
            ratios.append(other["microseconds"] / ours["microseconds"] if ours and other else float("nan"))
        positions = [i + (k - (len(names) - 1) / 2) * width for i in range(len(cases))]
        axes.bar(positions, ratios, width, label=name)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("time of a step / gradstep's")
    labels = [f"{case}\nbatch {run['cases'][case]['batch']}" for case in cases]
    axes.set_xticks(range(len(cases)), labels, fontsize=7, rotation=20)
    axes.set_title("How many times longer the others take for a training step (line: gradstep)", fontsize=10)
    axes.legend(ncols=len(names), fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGE, dpi=110, metadata={"Software": None})


def replace(page: str, text: str, name: str) -> None:
    """Put text between the page's markers of that name."""
    path = ROOT / page
    old = path.read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marked.search(old):
        raise SystemExit(f"{page} has no markers <!-- {name} --> and <!-- /{name} -->")
    path.write_text(marked.sub(lambda m: f"{m[1]}{text}\n{m[2]}", old), encoding="utf-8")


def section_of(run: Run) -> str | None:
    """The markers of the table of a run of other cases than the first ones."""
    for name, known in (("more", MORE), ("toolbox", TOOLBOX), ("toolbox-wide", TOOLBOX_WIDE)):
        if any(case in known for case in run["cases"]):
            return name
    return None


def main() -> None:
    """Read the run, write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="JSON that run.py wrote")
    parser.add_argument("--section", help="markers in docs/performance.md for the table alone")
    arguments = parser.parse_args()
    run: Run = json.loads(arguments.run.read_text(encoding="utf-8"))
    section = arguments.section or section_of(run)
    if section:
        replace("docs/performance.md", f"{table(run)}\n\n{measured(run)}", section)
        return
    plot(run)
    for page in ("README.md", "docs/performance.md"):
        replace(page, f"{table(run, threads=page != 'README.md')}\n\n{origin(run)}", "steps")


if __name__ == "__main__":
    main()
