"""Peak memory of training, beyond the interpreter with its imports and the data.

    python bench/memory.py

The data has the shape of the census table `adult` after encoding: 32,561 rows of 108 columns.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from cases import Case, make_data

ADULT = Case("adult", (108, 256, 256, 256, 1), "relu", "binary_cross_entropy", 32_561, 256, 1e-3)
LIMIT_MB = 100.0
BACKENDS = ("cpp", "numba", "numpy")


def _status(key: str) -> float:
    """A value of this process from /proc in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(key)


def _forget_peak() -> None:
    """Give freed memory back, then let the kernel's high-water mark start from what is left."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _fit(case: Case, X: np.ndarray, y: np.ndarray, backend: str, epochs: int) -> None:
    import gradstep as gs

    hidden = [gs.Dense(units, case.activation) for units in case.widths[1:-1]]
    network = gs.Network(
        [*hidden, gs.Dense(case.widths[-1])],
        loss=case.loss,
        optimizer=gs.Adam(case.learning_rate),
        preprocessing="standardize",
        backend=backend,
    )
    network.fit(X, y, epochs=epochs, batch_size=case.batch, verbose=0)


def measure(backend: str, epochs: int) -> dict[str, float]:
    """Train in this process, after a tiny network has caused every import and compilation.

    Returns
    -------
    dict
        ``before`` and ``peak`` resident memory and their difference ``training``, in MB.
    """
    X, y = make_data(ADULT)
    tiny = Case("tiny", (3, 2, 2, 2, 1), ADULT.activation, ADULT.loss, 8, 4, 1e-3)
    _fit(tiny, *make_data(tiny), backend, 1)
    _forget_peak()
    before = _status("VmRSS")
    _fit(ADULT, X, y, backend, epochs)
    peak = _status("VmHWM")
    return {"before": before, "peak": peak, "training": peak - before}


def measure_apart(backend: str, epochs: int) -> dict[str, float] | None:
    """`measure` in a process of its own; None if the backend is not available."""
    try:
        importlib.import_module(f"gradstep.backends.{backend}")
    except ImportError as error:
        print(f"{backend}: not available: {error}")
        return None
    command = [sys.executable, __file__, "--in-process", "--backend", backend, "--epochs", str(epochs)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    values: dict[str, float] = json.loads(result.stdout)
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, help="default: every one that is available")
    parser.add_argument("--epochs", type=int, default=2, help="epochs to train (%(default)s)")
    parser.add_argument(
        "--in-process", action="store_true", help="measure here, print JSON (needs --backend)"
    )
    arguments = parser.parse_args()
    if arguments.in_process:
        print(json.dumps(measure(arguments.backend, arguments.epochs)))
        return 0
    found = []
    for backend in [arguments.backend] if arguments.backend else BACKENDS:
        values = measure_apart(backend, arguments.epochs)
        if values:
            found.append(values["training"])
            print(
                f"{backend}: {values['training']:.1f} MB beyond the {values['before']:.0f} MB before training"
            )
    print(f"limit: {LIMIT_MB:.0f} MB")
    return 0 if found and max(found) < LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
