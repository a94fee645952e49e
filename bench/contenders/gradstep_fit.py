"""gradstep through `Network.fit`, the path that users take, on one of its backends."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from cases import (
    BETA1,
    CATEGORIES,
    DROPPED,
    EMA_DECAY,
    EMBEDDED,
    EPSILON,
    FLOOR,
    FOCUS,
    OPTIMIZERS,
    QUANTILE,
    SHUFFLE_SEED,
    SMOOTHING,
    Array,
    Case,
    Weights,
    make_vectors,
)
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
    if case.optimizer == "lbfgs":
        options = {**options, "tolerance": 0.0}
    return OPTIMIZER_CLASSES[case.optimizer](case.learning_rate, **options)


def _loss(case: Case) -> Any:
    import gradstep as gs

    losses: dict[str, Any] = {
        "quantile": gs.Quantile(QUANTILE),
        "gaussian_nll": gs.GaussianNLL(FLOOR),
        "binary_focal": gs.BinaryFocal(FOCUS),
        "focal": gs.Focal(FOCUS),
        "smoothed_cross_entropy": gs.CrossEntropy(label_smoothing=SMOOTHING),
    }
    return losses.get(case.loss, case.loss)


def _hidden_layers(case: Case, n_out: int) -> list[Any]:
    import gradstep as gs

    dense = gs.Dense(n_out, case.activation)
    blocks: dict[str, list[Any]] = {
        "layer_norm": [gs.Dense(n_out), gs.LayerNorm(), gs.Activation(case.activation)],
        "batch_norm": [gs.Dense(n_out), gs.BatchNorm(), gs.Activation(case.activation)],
        "residual": [gs.Residual([dense])],
        "scale": [gs.Scale(), dense],
        "dropout": [dense, gs.Dropout(DROPPED)],
    }
    return blocks.get(case.block, [dense])


def network_of(case: Case, backend: str) -> gs.Network:
    """The case's network, with weights of its own."""
    import gradstep as gs

    front = [gs.Embedding(0, CATEGORIES, EMBEDDED)] if case.block == "embedding" else []
    hidden = [layer for _, n_out in case.layers[:-1] for layer in _hidden_layers(case, n_out)]
    return gs.Network(
        [gs.Input(case.widths[0]), *front, *hidden, gs.Dense(case.widths[-1])],
        loss=_loss(case),
        optimizer=_optimizer(case),
        averaging={"ema": gs.EMA(EMA_DECAY), "swa": gs.SWA(1)}.get(case.averaging),
        seed=SHUFFLE_SEED,
        backend=backend,
        dtype=case.dtype,
    )


def initial_parameters(case: Case, network: gs.Network, weights: Weights) -> dict[str, Array]:
    """The case's weights by gradstep's names; gains and shifts are 1 and 0 in a new network."""
    named = network.parameters()
    for index, (W, b) in enumerate(weights):
        named[f"dense_{index}.W"], named[f"dense_{index}.b"] = W, b
    if case.block == "embedding":
        named["embedding_0.W"] = make_vectors(case)
    return named


class GradstepSession(Session):
    """A network of one case."""

    def __init__(
        self, case: Case, data: tuple[Array, Array], weights: Weights, backend: str, threads: int
    ) -> None:
        import gradstep

        gradstep.set_num_threads(threads)
        self.case = case
        self.X, self.y = data
        self.network = network_of(case, backend)
        self.initial = initial_parameters(case, self.network, weights)
        self.reset()

    def reset(self) -> None:
        """Back to the initial weights, fresh moments and the first epoch's order; memory stays."""
        self.network.set_parameters(self.initial)
        state = self.network.optimizer_state()
        kept = {name: value for name, value in state.items() if name.endswith(".trained")}
        zeros = {name: np.zeros_like(value) for name, value in state.items()}
        self.network.set_optimizer_state({**zeros, **kept})
        self.network.epochs_trained = 0

    def average(self) -> Weights:
        """What the network predicts with."""
        named = self.network.parameters()
        return [(named[f"dense_{i}.W"], named[f"dense_{i}.b"]) for i in range(len(self.case.layers))]

    def run(self, epochs: int, orders: Array | None = None) -> float:
        """Call `Network.fit`, which shuffles by itself; given orders must be those of its seed."""
        history = self.network.fit(self.X, self.y, epochs=epochs, batch_size=self.case.batch, verbose=0)
        return history.last["loss"]


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
