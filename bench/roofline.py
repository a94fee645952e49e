"""The ceiling: fused multiply-adds in registers, as many as the machine can do."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from contenders.base import usable_cores

SECONDS = 0.2


def fma_peak(threads: int, seconds: float = SECONDS, isa: str | None = None) -> float:
    """Measure the fp32 FMA rate in this process, with the loop that the compiled engine carries.

    Parameters
    ----------
    threads
        Number of threads that all run the loop.
    seconds
        How long to measure.
    isa
        Instruction set; None for the one that the engine uses.

    Returns
    -------
    float
        GFLOP/s, an FMA counting as two operations.

    Raises
    ------
    ImportError
        If gradstep has no compiled core, or one that cannot measure.
    """
    from gradstep import _core

    if not hasattr(_core, "fma_peak"):
        raise ImportError("gradstep._core has no fma_peak")
    return float(_core.fma_peak(threads, seconds, isa))


def fma_peak_apart(threads: int, seconds: float = SECONDS) -> float | None:
    """The same in a process of its own; None where it cannot be measured."""
    command = [sys.executable, str(Path(__file__)), "--threads", str(threads), "--seconds", str(seconds)]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    return float(json.loads(result.stdout)["gflops"]) if result.returncode == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the fp32 FMA peak of this machine.")
    parser.add_argument(
        "--threads", type=int, action="append", help="thread counts (default: 1 and all cores)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of a sample (%(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="samples, of which the median counts (%(default)s)"
    )
    parser.add_argument("--isa", help="instruction set, such as avx2 (default: the best)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    for threads in arguments.threads or sorted({1, usable_cores()}):
        try:
            samples = [fma_peak(threads, arguments.seconds, arguments.isa) for _ in range(arguments.repeats)]
        except ImportError as error:
            print(f"the FMA peak is unavailable: {error}", file=sys.stderr)
            return 1
        gflops = statistics.median(samples)
        if arguments.json:
            print(json.dumps({"threads": threads, "gflops": gflops}))
        else:
            print(f"{threads} thread{'s' if threads > 1 else ''}: {gflops:.0f} GFLOP/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
