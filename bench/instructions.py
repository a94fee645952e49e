"""Instructions of a training step, counted by valgrind: a figure that repeats on a busy machine, too.

    python bench/instructions.py            # compare with bench/instructions.json; exits with 1 if it grew
    python bench/instructions.py --write    # keep what is counted now

Counted is `Network.fit` with the AVX2 kernels (valgrind knows no AVX-512) on one thread: the difference
between a longer and a shorter run, so that start and imports drop out. Other compilers make other code:
figures of another one than the file names are not compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

KEPT = Path(__file__).resolve().parent / "instructions.json"
MARGIN = 0.03
STEPS = (200, 1200)
"""Of the shorter and the longer run."""

CASES: dict[str, dict[str, Any]] = {
    "1-1": {"widths": [1, 1], "activation": "identity", "rows": 100, "batch": 100},
    "2-4-1": {"widths": [2, 4, 1], "activation": "tanh", "rows": 100, "batch": 100},
    "17-64-64-6": {"widths": [17, 64, 64, 6], "activation": "tanh", "rows": 640, "batch": 64},
}

PROGRAM = """
import json, sys
import numpy as np
import gradstep as gs
case, steps = json.loads(sys.argv[1]), int(sys.argv[2])
*hidden, n_out = case["widths"][1:]
network = gs.Network(
    [*(gs.Dense(units, case["activation"]) for units in hidden), gs.Dense(n_out)], backend="cpp"
)
rng = np.random.default_rng(0)
X = rng.random((case["rows"], case["widths"][0]), np.float32)
y = rng.random((case["rows"], n_out), np.float32)
epochs = steps * case["batch"] // case["rows"]
history = network.fit(X, y, epochs=epochs, batch_size=case["batch"], verbose=0)
assert len(history.loss) == epochs
"""


def compiler() -> str:
    """The compiler that built the core, as the core says."""
    from gradstep import _core

    return str(_core.compiler)


def count(case: dict[str, Any], steps: int) -> int:
    """Instructions of a process that trains for so many steps."""
    environment = {
        **os.environ,
        "GRADSTEP_ISA": "avx2",
        "GRADSTEP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", sys.executable, "-c"]
        done = subprocess.run(
            [*command, PROGRAM, json.dumps(case), str(steps)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found, done.stderr
    return int(found[1])


def per_step(case: dict[str, Any]) -> float:
    """Instructions of one step."""
    with ThreadPoolExecutor() as pool:
        short, long = pool.map(lambda steps: count(case, steps), STEPS)
    return (long - short) / (STEPS[1] - STEPS[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep what is counted now")
    arguments = parser.parse_args()
    if not shutil.which("valgrind"):
        print("valgrind is not installed: nothing counted")
        return 0
    found = {name: round(per_step(case)) for name, case in CASES.items()}
    if arguments.write:
        KEPT.write_text(json.dumps({"compiler": compiler(), "instructions": found}, indent=1) + "\n")
    kept = json.loads(KEPT.read_text())
    comparable = kept["compiler"] == compiler()
    grown = False
    for name, instructions in found.items():
        before = kept["instructions"][name]
        grown |= instructions > before * (1 + MARGIN)
        change = f"{instructions / before - 1:+.1%}"
        print(f"{name:12s} {instructions:10,d} instructions a step, kept {before:10,d} ({change})")
    if not comparable:
        print(f"not compared: kept for {kept['compiler']}, built by {compiler()}")
    return 1 if grown and comparable else 0


if __name__ == "__main__":
    sys.exit(main())
