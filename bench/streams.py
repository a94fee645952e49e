"""Speed of training on data that is read in windows, as a share of the speed on the same data in memory.

    python bench/streams.py

Files are written to a temporary folder just before, so that their pages are warm. Every round measures all
ways one after the other; the best round of each counts. Beside the speed by the clock stands the speed by the
processor time of all threads: what the clock shows where no core is idle and nothing else runs, steadier on a
shared machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import gradstep as gs

CASES = {
    "small": ((16, 32, 1), 1_500_000, 256),
    "medium": ((32, 128, 128, 1), 300_000, 256),
    "adult": ((108, 256, 256, 256, 1), 60_000, 256),
}
"""Widths, rows and batch size."""


def network(widths: tuple[int, ...]) -> gs.Network:
    layers = [gs.Dense(units, "relu") for units in widths[1:-1]]
    return gs.Network([*layers, gs.Dense(widths[-1])], optimizer=gs.Adam(1e-3))


def write(folder: Path, name: str, rows: int, width: int) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, width), dtype=np.float32)
    y = np.tanh(X[:, 0]) + X[:, 1]
    np.save(folder / f"{name}.npy", X)
    columns = {f"x{j}": X[:, j] for j in range(width)}
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table({**columns, "y": y}), path, row_group_size=max(1, (1 << 22) // width))
    mapped = np.load(folder / f"{name}.npy", mmap_mode="r")
    plain = folder / f"{name}-plain.parquet"
    pq.write_table(
        pq.read_table(path), plain, row_group_size=1 << 17, compression="none", use_dictionary=False
    )
    sources = {
        "memory map": gs.ArraySource(mapped, y),
        "Parquet": gs.ParquetSource(path, "y"),
        "Parquet, plain": gs.ParquetSource(plain, "y"),
    }
    return X, y, sources


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.case or CASES:
        widths, rows, batch_size = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            X, y, sources = write(Path(folder), name, rows, widths[0])
            ways = {"in memory": (X, y), **{way: (source,) for way, source in sources.items()}}
            best, busy = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
            for _ in range(arguments.rounds):
                for way, data in ways.items():
                    start = time.process_time()
                    history = network(widths).fit(*data, epochs=2, batch_size=batch_size, verbose=0)
                    busy[way] = max(busy[way], history.samples / (time.process_time() - start))
                    best[way] = max(best[way], history.samples_per_second)
        print(f"{name}: {best['in memory']:,.0f} rows/s in memory", flush=True)
        for way in list(ways)[1:]:
            clock, processor = best[way] / best["in memory"], busy[way] / busy["in memory"]
            print(f"  {way}: {clock:.0%} by the clock, {processor:.0%} by processor time", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
