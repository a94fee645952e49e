"""A process that measures one contender with one thread count; `run.py` starts it and tells it what to do.

Commands and replies are lines of JSON on standard input and output. The heavy imports happen once,
and a case stays loaded between samples, so that the samples of many contenders can take turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import cases
from contenders import CONTENDERS
from contenders.base import Contender, Session

MAX_EPOCHS = 1 << 22


class Worker:
    """State between commands."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.contender, self.threads = contender, threads
        self.case: cases.Case
        self.session: Session
        self.epochs = 1

    def versions(self) -> dict[str, Any]:
        """What does the work."""
        return {"versions": self.contender.versions()}

    def load(self, case: dict[str, Any]) -> dict[str, Any]:
        """Make data and weights and prepare the contender."""
        self.case = cases.Case.from_json(case)
        data, weights = cases.make_data(self.case), cases.make_weights(self.case)
        self.session = self.contender.prepare(self.case, data, weights, self.threads)
        return {}

    def check(self) -> dict[str, Any]:
        """Loss after the agreed number of epochs in the agreed order."""
        epochs = self.case.check_epochs
        orders = cases.make_orders(self.case, epochs)
        self.session.reset()
        return {"loss": self.session.run(epochs, orders)}

    def check_average(self) -> dict[str, Any]:
        """How far the check's training has moved the mean of the parameters."""
        return {"moved": cases.distance(self.session.average(), cases.make_weights(self.case))}

    def calibrate(self, seconds: float) -> dict[str, Any]:
        """Choose the number of epochs so that a sample takes about the seconds given."""
        if (
            self.case.optimizer == "lbfgs"
        ):  # early iterations search lines longer: everybody makes the same ones
            self.epochs = self.case.check_epochs
            return {"epochs": self.epochs}
        self.epochs = 1
        while True:
            self._timed()  # compiles, where the number of epochs is compiled in
            taken = self._timed()["seconds"]
            if taken > 0.7 * seconds or self.epochs >= MAX_EPOCHS:
                return {"epochs": self.epochs}
            growth = seconds / max(taken, 1e-6)
            self.epochs = min(MAX_EPOCHS, max(self.epochs + 1, round(self.epochs * min(growth, 50))))

    def sample(self) -> dict[str, Any]:
        """One timed run."""
        return self._timed()

    def _timed(self) -> dict[str, Any]:
        self.session.reset()
        cpu, start = time.process_time(), time.perf_counter()
        loss = self.session.run(self.epochs)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        steps = self.epochs * self.case.steps_per_epoch
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "steps": steps, "loss": loss}


def serve(worker: Worker) -> None:
    """Answer commands until standard input ends. An error is an answer too."""
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)  # libraries that print must not break the protocol
        for line in sys.stdin:
            command = json.loads(line)
            try:
                reply = getattr(worker, command.pop("command"))(**command)
            except Exception as error:  # the report names whatever a contender could not do
                reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


if __name__ == "__main__":
    serve(Worker(CONTENDERS[sys.argv[1]], int(sys.argv[2])))
