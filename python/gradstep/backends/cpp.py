"""The compiled backend: converts between the contract's names and the engine's layers."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradstep.backends import threadpool_control
from gradstep.backends.base import Array, Backend, Engine, Parameters, Plan, TrainResult
from gradstep.backends.numpy.losses import LOSSES

try:
    from gradstep import _core
except ImportError as error:
    if "GRADSTEP_ISA" in str(error):  # a wish that cannot be met is an error, not a reason to fall back
        raise ValueError(str(error)) from None
    raise ImportError(
        "the compiled core is not installed (there was no C++ compiler that can build it: GCC 12 or Clang)"
        if error.name == "gradstep._core" or "cannot import name" in str(error)
        else f"the compiled core does not load ({error})"
    ) from None

threadpool_control.register()

# The engine's numbers for parameters, for running statistics, and for those that training moves where the
# others are an average; from 0 on: the optimizer's states.
_PARAMETERS, _STATISTICS, _TRAINED_STATISTICS = -1, -2, -3


_SETTINGS = ("l1", "clip_value", "clip_norm", "ema_decay", "ema_warmup", "swa_start")


def _options(plan: Plan) -> dict[str, float]:
    settings = {name: getattr(plan, name) for name in _SETTINGS}
    return {name: float(value) for name, value in {**settings, **plan.optimizer_options}.items()}


def _described(
    plan: Plan, index: int
) -> tuple[int, int, str, float, float, str, tuple[int, int, int, int], float, float]:
    layer = plan.layers[index]
    links = (*plan.inputs(index), layer.column, layer.categories)
    dense = layer.n_in, layer.n_out, layer.activation, layer.dropout, layer.rate_factor
    return (*dense, layer.kind, links, layer.epsilon, layer.momentum)


class CppEngine(Engine):
    """A plan compiled by ``gradstep._core``."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        make = _core.EngineFloat32 if plan.dtype == "float32" else _core.EngineFloat64
        self._dtype = np.dtype(plan.dtype)
        defaults = {} if plan.custom_loss else LOSSES[plan.loss].defaults
        loss_options = {**defaults, **plan.loss_options}
        self._core = make(
            layers=[_described(plan, index) for index in range(len(plan.layers))],
            loss=plan.loss,
            loss_options={name: np.atleast_1d(value).tolist() for name, value in loss_options.items()},
            optimizer=plan.optimizer,
            optimizer_options=_options(plan),
            l2=plan.l2,
            l2_per_batch=plan.l2_per_batch,
            seed=plan.seed,
        )
        self.takes_sparse = self._core.takes_sparse

    def parameters(self) -> Parameters:
        """Copies of all parameters by name."""
        named = self._named(self._core.get(_PARAMETERS), "")
        return {**named, **self._statistics(_STATISTICS, "")} if self.plan.normalises_batches else named

    def _statistics(self, what: int, suffix: str) -> Parameters:
        pairs = zip(self.plan.layers, self._core.get(what), strict=True)
        return {
            f"{layer.name}.{name}{suffix}": array.reshape(shape)
            for layer, arrays in pairs
            for (name, shape), array in zip(layer.statistics_shapes().items(), arrays, strict=False)
        }

    def set_parameters(self, values: Mapping[str, Array]) -> None:
        """Overwrite the named parameters."""
        self._set(_PARAMETERS, values, "")
        if self.plan.normalises_batches:
            self._set(_STATISTICS, values, "")

    def optimizer_state(self) -> Parameters:
        """Step count and moments by name."""
        state: Parameters = {"step": np.array(self._core.step_count, dtype=np.int64)}
        for index, name in enumerate(self._core.state_names):
            state.update(self._named(self._core.get(index), f".{name}"))
        if self.plan.normalises_batches and self.plan.averages:
            state.update(self._statistics(_TRAINED_STATISTICS, ".trained"))
        return state

    def set_optimizer_state(self, values: Mapping[str, Array]) -> None:
        """Overwrite step count and moments."""
        for index, name in enumerate(self._core.state_names):
            self._set(index, values, f".{name}")
        if self.plan.normalises_batches and self.plan.averages:
            self._set(_TRAINED_STATISTICS, values, ".trained")
        self._core.step_count = int(values["step"])

    def set_input_transform(self, shift: Array | None, scale: Array | None) -> None:
        """Let every later call see ``(X - shift) * scale``."""
        if shift is None or scale is None:
            self._core.set_input_transform(None, None)
        else:
            self._core.set_input_transform(self._array(shift), self._array(scale))

    def predict(self, X: Array, out: Array) -> None:
        """Write the linked outputs of all rows into out."""
        self._core.predict(X, None, None, out)

    def try_predict(self, X: object) -> Array | None:
        """The linked outputs; None if X is not a small array that can be used as it is."""
        out: Array | None = self._core.try_predict(X)
        return out

    def evaluate(self, X: Array, y: Array, weight: Array | None, out: Array | None = None) -> float:
        """Mean loss of all rows without the l2 penalty."""
        if self.plan.custom_loss is not None:  # of all rows at once
            out = np.empty((len(X), self.plan.n_out), self._dtype) if out is None else out
            self._core.predict(X, None, None, out)
            return self.plan.custom_loss(y, out, weight)[0]
        loss: float = self._core.predict(X, y, weight, out)
        return loss

    def _targets(self, y: Array, weight: Array | None) -> Any:
        """The targets, or the custom loss that knows them."""
        custom = self.plan.custom_loss
        if custom is None:
            return y

        def loss(rows: Array, outputs: Array) -> tuple[float, Array]:
            return custom(y[rows], outputs, None if weight is None else weight[rows])

        return loss

    def loss_and_gradients(
        self, X: Array, y: Array, weight: Array | None, input_gradient: bool = False
    ) -> tuple[float, Parameters, Array | None]:
        """Mean loss, the gradient of every parameter, and dJ/dX if asked for."""
        loss, layers, dx = self._core.loss_and_gradients(X, self._targets(y, weight), weight, input_gradient)
        return loss, self._named(layers, ""), dx

    def train(
        self,
        X: Array,
        y: Array,
        weight: Array | None,
        *,
        epochs: int,
        batch_size: int,
        learning_rates: Array,
        seed: int,
        first_epoch: int,
        shuffle: bool = True,
        order: Array | None = None,
    ) -> TrainResult:
        """Run whole epochs without the GIL."""
        y = self._targets(y, weight)
        losses, interrupted, diverged, restored, raised = self._core.train(
            X, y, weight, epochs, batch_size, learning_rates, seed, first_epoch, shuffle, order
        )
        return TrainResult(array("d", losses), interrupted, diverged, restored, raised)

    def step(self, X: Array, y: Array, weight: Array | None, learning_rate: float) -> float:
        """One forward, backward and update on all rows given."""
        loss: float = self._core.step(X, self._targets(y, weight), weight, learning_rate)
        return loss

    def try_step(self, X: object, y: object, learning_rate: float) -> float | None:
        """The loss before the update; None if X and y are not small arrays that can be used as they are."""
        loss: float | None = self._core.try_step(X, y, learning_rate)
        return loss

    def profile(
        self, X: Array, y: Array, *, epochs: int, batch_size: int, learning_rate: float
    ) -> dict[str, float] | None:
        """Train, and tell which share of the threads' time each phase of the steps took."""
        rates = np.full(epochs, learning_rate, dtype=np.float64)
        shares: dict[str, float] = self._core.profile_train(
            X, self._targets(y, None), epochs, batch_size, rates
        )
        phases = {name: shares[name] for name in ("gather", "forward", "loss", "dX", "dW", "update")}
        return {**phases, "waiting": max(0.0, 1 - sum(phases.values()))}

    def _array(self, values: Any) -> Array:
        return np.ascontiguousarray(values, dtype=self._dtype)

    def _named(self, layers: list[tuple[Array, Array]], suffix: str) -> Parameters:
        named: Parameters = {}
        for layer, arrays in zip(self.plan.layers, layers, strict=True):
            for (name, shape), value in zip(layer.parameter_shapes().items(), arrays, strict=False):
                named[f"{layer.name}.{name}{suffix}"] = value.reshape(shape)
        return named

    def _set(self, what: int, values: Mapping[str, Array], suffix: str) -> None:
        for index, layer in enumerate(self.plan.layers):
            shapes = layer.parameter_shapes() if what > _STATISTICS else layer.statistics_shapes()
            given: list[Array | None] = [None, None]
            for slot, name in enumerate(shapes):
                value = values.get(f"{layer.name}.{name}{suffix}")
                if value is not None:  # gains are one row to the engine
                    rows = value[None] if slot == 0 and np.ndim(value) == 1 else value
                    given[slot] = self._array(rows)
            self._core.set(what, index, *given)


BACKEND = Backend(
    name="cpp",
    activations=tuple(_core.activations),
    losses=tuple(_core.losses),
    optimizers=tuple(_core.optimizers),
    make_engine=CppEngine,
    set_num_threads=_core.set_num_threads,
    get_num_threads=_core.num_threads,
    describe=lambda: {
        "instruction set": _core.isa,
        "instruction sets of this machine": ", ".join(_core.instruction_sets),
    },
)
