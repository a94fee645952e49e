"""gradstep through `Network.fit`, the path that users take, on one of its backends."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from cases import BETA1, EPSILON, OPTIMIZERS, SHUFFLE_SEED, Array, Case, Weights
from contenders.base import Contender, Session

if TYPE_CHECKING:
    import gradstep as gs


def _optimizer(case: Case) -> Any:
    from gradstep.optimizers import OPTIMIZER_CLASSES

    options = OPTIMIZERS[case.optimizer]
    if case.optimizer == "lion":
        options = {**options, "beta1": BETA1, "beta2": BETA1}
    if case.optimizer == "adagrad":
        options = {**options, "epsilon": EPSILON}
    return OPTIMIZER_CLASSES[case.optimizer](case.learning_rate, **options)


class GradstepSession(Session):
    """A network of one case."""

    def __init__(
        self, case: Case, data: tuple[Array, Array], weights: Weights, backend: str, threads: int
    ) -> None:
        import gradstep

        gradstep.set_num_threads(threads)
        self.gradstep = gradstep
        self.case, self.weights, self.backend = case, weights, backend
        self.X, self.y = data
        self.network = self._network()
        self.reset()

    def _network(self) -> gs.Network:
        gs, case = self.gradstep, self.case
        hidden = [gs.Dense(n_out, case.activation) for _, n_out in case.layers[:-1]]
        return gs.Network(
            [gs.Input(case.widths[0]), *hidden, gs.Dense(case.widths[-1])],
            loss=case.loss,
            optimizer=_optimizer(case),
            seed=SHUFFLE_SEED,
            backend=self.backend,
            dtype=case.dtype,
        )

    def reset(self) -> None:
        """Back to the initial weights, fresh moments and the first epoch's order; memory stays."""
        names = self.network.parameters()
        arrays = [array for pair in self.weights for array in pair]
        self.network.set_parameters(dict(zip(names, arrays, strict=True)))
        state = self.network.optimizer_state()
        self.network.set_optimizer_state({name: np.zeros_like(value) for name, value in state.items()})
        self.network.epochs_trained = 0

    def run(self, epochs: int, orders: Array | None = None) -> float:
        """Call `Network.fit`, which shuffles by itself; given orders must be those of its seed."""
        history = self.network.fit(self.X, self.y, epochs=epochs, batch_size=self.case.batch, verbose=0)
        return float(np.asarray(history["loss"])[-1])


class GradstepFit(Contender):
    """One backend."""

    is_peer = False

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.name = f"gradstep-{backend}"
        self.packages = ("numba", "numpy") if backend == "numba" else ("numpy",)

    def available(self) -> str | None:
        """Ask the backend itself."""
        try:
            importlib.import_module("gradstep.network")
            importlib.import_module(f"gradstep.backends.{self.backend}")
        except ImportError as error:
            return str(error)
        return None

    def supports(self, case: Case) -> bool:
        """Everything."""
        return True

    def versions(self) -> dict[str, str]:
        """The package's own version, and what its backend says about itself."""
        import gradstep

        backend = importlib.import_module(f"gradstep.backends.{self.backend}").BACKEND
        return {"gradstep": gradstep.__version__, **super().versions(), **backend.describe()}

    def prepare(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> Session:
        """Build a network."""
        return GradstepSession(case, data, weights, self.backend, threads)
