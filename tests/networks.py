"""Plans, data and engines for the tests of the backends."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import oracles
from gradstep.backends.base import Backend, Engine, LayerPlan, Plan
from gradstep.backends.numpy.losses import LOSSES

Array = np.ndarray[Any, np.dtype[Any]]

OPTIMIZER_OPTIONS: dict[str, dict[str, float]] = {
    "gradient_descent": {},
    "sgd": {"momentum": 0.9, "nesterov": 1.0},
    "adam": {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8},
    "adamw": {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1},
    "amsgrad": {"beta1": 0.5, "beta2": 0.7, "epsilon": 1e-8},
    "nadam": {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "momentum_decay": 0.1},
    "rmsprop": {"decay": 0.9, "momentum": 0.5, "epsilon": 1e-8},
    "adagrad": {"epsilon": 1e-8},
    "lion": {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1},
}


def make_plan(
    widths: Sequence[int],
    activation: str = "tanh",
    loss: str = "mse",
    optimizer: str = "gradient_descent",
    dtype: str = "float32",
    l2: float = 0.0,
    loss_options: Mapping[str, float] | None = None,
    output_activation: str = "identity",
    optimizer_options: Mapping[str, float] | None = None,
) -> Plan:
    """A plan with the given widths: inputs, hidden layers, outputs."""
    last = len(widths) - 2
    layers = [
        LayerPlan(n_in, n_out, output_activation if i == last else activation, f"dense_{i}")
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths))
    ]
    options = OPTIMIZER_OPTIONS[optimizer] if optimizer_options is None else optimizer_options
    return Plan(tuple(layers), loss, optimizer, loss_options or {}, options, l2, dtype)


def make_parameters(plan: Plan, seed: int = 0) -> dict[str, Array]:
    """Random weights of a size that keeps activations in range, and random biases."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) / np.sqrt(shape[0] if len(shape) == 2 else 4)).astype(plan.dtype)
        for name, shape in plan.trained_shapes().items()
    }


class Data(NamedTuple):
    """Inputs, targets as the plan's loss wants them, and sample weights, a few of them zero."""

    X: Array
    y: Array
    weight: Array


def make_data(plan: Plan, rows: int, seed: int = 1) -> Data:
    """Random data for a plan."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, plan.n_in)).astype(plan.dtype)
    targets = LOSSES[plan.loss].targets
    if targets == "labels":
        y = rng.integers(0, plan.n_out, size=rows).astype(np.int32)
    elif targets == "probabilities":
        y = np.round(rng.uniform(-0.2, 1.2, size=(rows, plan.n_out)).clip(0, 1), 2).astype(plan.dtype)
    elif targets == "counts":
        y = rng.poisson(1.5, size=(rows, plan.n_out)).astype(plan.dtype)
    elif targets == "positive":
        y = rng.gamma(2.0, size=(rows, plan.n_out)).astype(plan.dtype)
    elif targets == "signs":
        # Uneven: where signs of one size cancel, only rounding is left, which most optimizers enlarge.
        y = rng.choice([-1.0, 1.0], p=[0.3, 0.7], size=(rows, plan.n_out)).astype(plan.dtype)
    else:
        columns = plan.n_out // LOSSES[plan.loss].outputs_per_target
        y = (1.5 * rng.normal(size=(rows, columns))).astype(plan.dtype)
    weight = (rng.integers(0, 4, size=rows) / 2).astype(plan.dtype)
    return Data(X, y, weight)


def make_engine(backend: Backend, plan: Plan, seed: int = 0) -> Engine:
    """An engine with `make_parameters`."""
    engine = backend.make_engine(plan)
    engine.set_parameters(make_parameters(plan, seed))
    return engine


def make_oracle(plan: Plan, parameters: Mapping[str, Array]) -> oracles.Network:
    """The same network in the oracle's float64."""
    return oracles.Network(
        weights=[parameters[f"{layer.name}.W"].astype(np.float64) for layer in plan.layers],
        biases=[parameters[f"{layer.name}.b"].astype(np.float64) for layer in plan.layers],
        activations=[layer.activation for layer in plan.layers],
        loss=plan.loss,
        loss_options=plan.loss_options,
        l2=plan.l2,
    )


def train(engine: Engine, data: Data, epochs: int, **options: Any) -> Any:
    """Call `Engine.train` with everything that a test does not care about filled in."""
    learning_rate = options.pop("learning_rate", 0.05)
    arguments: dict[str, Any] = {"weight": None, "batch_size": 16, "seed": 7, "first_epoch": 0, **options}
    weight = arguments.pop("weight")
    rates = np.full(epochs, learning_rate, dtype=np.float64)
    return engine.train(data.X, data.y, weight, epochs=epochs, learning_rates=rates, **arguments)
