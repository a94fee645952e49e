"""A training in child processes that are killed, until it comes to its end; see test_checkpoint.py.

Usage: kills.py FOLDER random|files KILLS. Children are killed at random moments, or before their first,
second, third ... operation on a file. Prints how many were killed, and how many trainings came to their end;
fails if one of these ends is not, bit for bit, that of a training that nobody disturbed.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

import gradstep as gs

EPOCHS = 20


def train(folder: Path) -> bytes:
    """Run the training, or what is left of it; all that it ended with."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(48, 3)).astype(np.float32)
    y = np.sin(X[:, 0])
    net = gs.Network(
        [gs.Dense(8, "tanh"), gs.Dropout(0.2), gs.Dense(1)],
        optimizer=gs.Adam(0.05),
        preprocessing="standardize",
        backend="cpp",
    )
    callbacks = [
        gs.Checkpoint(folder / "run", keep=2),
        gs.EarlyStopping(15),
        gs.ReduceOnPlateau(2, 0.7),
        gs.CSVLog(folder / "log.csv"),
    ]
    history = net.fit(
        X,
        y,
        epochs=EPOCHS,
        batch_size=16,
        validation_data=(X[:9], 1 - y[:9]),
        schedule=gs.Cosine(),
        callbacks=callbacks,
        verbose=0,
    )
    state = {name: a.tobytes() for name, a in {**net.parameters(), **net.optimizer_state()}.items()}
    rows = [line.rsplit(",", 1)[0] for line in (folder / "log.csv").read_text().splitlines()]
    best = gs.load_checkpoint(folder / "run", best=True).parameters()
    ended = [callbacks[1].best, callbacks[1].best_epoch, history.stopped, history.samples, net.learning_rate]
    return pickle.dumps(
        [state, history.metrics, rows, ended, best["dense_0.W"].tobytes(), net.epochs_trained]
    )


def die_at(operation: int) -> None:
    """Kill this process before it opens, renames, links or removes a file for the so-manieth time."""
    left = operation

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.link", "os.remove"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(folder: Path, operation: int = 0) -> int:
    """Start a process that trains and writes its result to a file."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at(operation)
            result = train(folder)
            (folder / "result").write_bytes(result)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def main(folder: Path, kind: str, kills: int) -> None:
    """Compare the ends of trainings that are killed so often with that of one that is not."""
    (folder / "whole").mkdir()
    started = time.perf_counter()
    expected = train(folder / "whole")
    seconds = time.perf_counter() - started
    random.seed(0)
    killed = ended = 0
    while killed < kills or ended == 0:
        place = folder / f"run{ended}"
        place.mkdir(exist_ok=True)
        pid = child(place, killed + 1 if kind == "files" and killed < kills else 0)
        if kind == "random" and killed < kills:
            time.sleep(random.uniform(0, seconds / 6))
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == -signal.SIGKILL:
            killed += 1
            continue
        assert status == 0, status
        assert (place / "result").read_bytes() == expected, place
        ended += 1
    print(killed, ended)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
