"""Peak memory of training, beyond the interpreter with its imports and the data.

    python bench/memory.py

The first network is small beside its data, which has the shape of the census table `adult` after encoding:
32,561 rows of 108 columns. The second is large beside its data, and measured in copies of its parameters.
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
WIDE = Case("wide", (1024,) * 5, "relu", "mse", 1_280, 128, 3e-4)
LIMIT_COPIES = 3.2
"""Parameters and Adam's two moments are three; beyond them one batch of activations is allowed."""
CASES = {case.name: case for case in (ADULT, WIDE)}
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


def copies_of_the_parameters(case: Case, megabytes: float) -> float:
    """Memory as a multiple of the parameters', after one batch of inputs and activations."""
    activations = case.batch * sum(case.widths)
    return (megabytes * 1e6 / 4 - activations) / case.parameter_count


def measure(case: Case, backend: str, epochs: int) -> dict[str, float]:
    """Train in this process, after a tiny network has caused every import and compilation.

    Returns
    -------
    dict
        ``before`` and ``peak`` resident memory and their difference ``training``, in MB.
    """
    X, y = make_data(case)
    tiny = Case("tiny", (3, 2, 2, 2, 1), case.activation, case.loss, 8, 4, 1e-3)
    _fit(tiny, *make_data(tiny), backend, 1)
    _forget_peak()
    before = _status("VmRSS")
    _fit(case, X, y, backend, epochs)
    peak = _status("VmHWM")
    return {"before": before, "peak": peak, "training": peak - before}


def measure_apart(case: Case, backend: str, epochs: int) -> dict[str, float] | None:
    """`measure` in a process of its own; None if the backend is not available."""
    try:
        importlib.import_module(f"gradstep.backends.{backend}")
    except ImportError as error:
        print(f"{backend}: not available: {error}")
        return None
    command = [sys.executable, __file__, "--in-process", "--case", case.name, "--backend", backend]
    command += ["--epochs", str(epochs)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    values: dict[str, float] = json.loads(result.stdout)
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), default=ADULT.name, help="with --in-process")
    parser.add_argument("--backend", choices=BACKENDS, help="default: every one that is available")
    parser.add_argument("--epochs", type=int, default=2, help="epochs to train (%(default)s)")
    parser.add_argument(
        "--in-process", action="store_true", help="measure here, print JSON (needs --backend)"
    )
    arguments = parser.parse_args()
    if arguments.in_process:
        print(json.dumps(measure(CASES[arguments.case], arguments.backend, arguments.epochs)))
        return 0
    good = True
    for backend in [arguments.backend] if arguments.backend else BACKENDS:
        values = measure_apart(ADULT, backend, arguments.epochs)
        if values:
            good &= values["training"] < LIMIT_MB
            print(
                f"{ADULT.name}, {backend}: {values['training']:.1f} MB beyond {values['before']:.0f} MB "
                f"(limit {LIMIT_MB:.0f})"
            )
    values = measure_apart(WIDE, "cpp", arguments.epochs)
    if values:
        copies = copies_of_the_parameters(WIDE, values["training"])
        good &= copies < LIMIT_COPIES
        print(f"{WIDE.name}, cpp: {copies:.2f} copies of the parameters (limit {LIMIT_COPIES})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
