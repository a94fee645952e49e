"""The ceiling: fused multiply-adds in registers, as many as the machine can do."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from contenders.base import usable_cores

SECONDS = 0.1
REPEATS = 5
DTYPES = ("float32", "float64")


def fma_peak(
    threads: int,
    seconds: float = SECONDS,
    repeats: int = REPEATS,
    isa: str | None = None,
    dtype: str = "float32",
) -> float:
    """Measure the FMA rate in this process, with the loop that the compiled engine carries.

    The fastest sample counts, because this is a ceiling: whatever else runs can only lower it.

    Parameters
    ----------
    threads
        Number of threads that all run the loop.
    seconds
        How long a sample takes.
    repeats
        Number of samples.
    isa
        Instruction set; None for the one that the engine uses.
    dtype
        ``float32`` or ``float64``.

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
    return max(float(_core.fma_peak(threads, seconds, isa, dtype == "float64")) for _ in range(repeats))


def fma_peak_apart(threads: int, dtype: str) -> float | None:
    """The same in a process of its own; None where it cannot be measured."""
    command = [sys.executable, str(Path(__file__)), "--threads", str(threads), "--dtype", dtype, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(json.loads(result.stdout)["gflops"]) if result.returncode == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the FMA peak of this machine.")
    parser.add_argument(
        "--threads", type=int, action="append", help="thread counts (default: 1 and all cores)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of a sample (%(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="samples, of which the fastest counts (%(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="element type (%(default)s)")
    parser.add_argument("--isa", help="instruction set, such as avx2 (default: the best)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    for threads in arguments.threads or sorted({1, usable_cores()}):
        try:
            gflops = fma_peak(threads, arguments.seconds, arguments.repeats, arguments.isa, arguments.dtype)
        except ImportError as error:
            print(f"the FMA peak is unavailable: {error}", file=sys.stderr)
            return 1
        if arguments.json:
            print(json.dumps({"threads": threads, "gflops": gflops}))
        else:
            print(f"{threads} thread{'s' if threads > 1 else ''}: {gflops:.0f} GFLOP/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
