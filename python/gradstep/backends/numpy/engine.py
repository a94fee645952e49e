"""Parameters, optimizer state and training loop of the reference backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gradstep.backends import blas_threads
from gradstep.backends.base import Array, Parameters, Plan, TrainResult, exchanged
from gradstep.backends.interrupt import deferred_interrupt
from gradstep.backends.numpy.layers import forward_pass, statistics_are_finite
from gradstep.backends.numpy.optimizers import OPTIMIZERS, Update
from gradstep.backends.numpy.propagation import (
    Propagated,
    clip_gradients,
    dropout_masks,
    gradients_by_name,
    loss_of_rows,
    predictions_of,
    propagate,
    transformed,
)
from gradstep.backends.numpy.ready_arrays import PythonEngine
from gradstep.random import permutation

BLOCK_ELEMENTS = 1 << 20
"""`predict` and `evaluate` hold at most about this many numbers of each layer."""


class NumpyEngine(PythonEngine):
    """Parameters, optimizer state and training loop of the reference backend."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        blas_threads.follow_environment()
        self._optimizer = OPTIMIZERS[plan.optimizer]
        self._options = {**self._optimizer.defaults, **plan.optimizer_options}
        shapes = plan.trained_shapes()
        self._parameters = {
            name: np.zeros(shape, plan.dtype) for name, shape in plan.parameter_shapes().items()
        }
        self._moments = {
            name: [np.zeros(shape, plan.dtype) for _ in self._optimizer.moments]
            for name, shape in shapes.items()
        }
        self._trained = {
            name: np.zeros_like(value) for name, value in self._parameters.items() if plan.averages
        }
        self._factors = {f"{d.name}.{p}": d.rate_factor for d in plan.layers for p in d.parameter_shapes()}
        self._step = 0
        self._shift: Array | None = None
        self._scale: Array | None = None

    def parameters(self) -> Parameters:
        """Copies of all parameters by name."""
        return {name: value.copy() for name, value in self._parameters.items()}

    def set_parameters(self, values: Mapping[str, Array]) -> None:
        """Overwrite the named parameters."""
        for name, value in values.items():
            self._parameters[name][...] = value
            if name in self._trained:
                self._trained[name][...] = value

    def optimizer_state(self) -> Parameters:
        """Copies of the step count and of all moments by name."""
        state: Parameters = {"step": np.array(self._step, dtype=np.int64)}
        for name, moments in self._moments.items():
            for kind, moment in zip(self._optimizer.moments, moments, strict=True):
                state[f"{name}.{kind}"] = moment.copy()
        state.update((f"{name}.trained", value.copy()) for name, value in self._trained.items())
        return state

    def set_optimizer_state(self, values: Mapping[str, Array]) -> None:
        """Overwrite the whole state."""
        self._step = int(values["step"])
        for name, moments in self._moments.items():
            for kind, moment in zip(self._optimizer.moments, moments, strict=True):
                moment[...] = values[f"{name}.{kind}"]
        for name, value in self._trained.items():
            value[...] = values[f"{name}.trained"]

    def set_input_transform(self, shift: Array | None, scale: Array | None) -> None:
        """Let every later call see ``(X - shift) * scale``."""
        self._shift = None if shift is None else np.array(shift, self.plan.dtype)
        self._scale = None if scale is None else np.array(scale, self.plan.dtype)

    def _blocks(self, n: int) -> Iterator[slice]:
        rows = max(1, BLOCK_ELEMENTS // max(max(layer.n_in, layer.n_out) for layer in self.plan.layers))
        return (slice(start, min(start + rows, n)) for start in range(0, n, rows))

    def _output(self, X: Array) -> Array:
        return forward_pass(self.plan, self._parameters, transformed(X, self._shift, self._scale))[-1].a

    @np.errstate(all="ignore")
    def predict(self, X: Array, out: Array) -> None:
        """Write the linked outputs of all rows into out."""
        for rows in self._blocks(len(X)):
            out[rows] = predictions_of(self.plan, self._output(X[rows]))

    @np.errstate(all="ignore")
    def evaluate(self, X: Array, y: Array, weight: Array | None, out: Array | None = None) -> float:
        """Mean loss of all rows without the l2 penalty; predictions go into out if given."""
        if self.plan.custom_loss is not None:  # of all rows at once
            out = np.empty((len(X), self.plan.n_out), self.plan.dtype) if out is None else out
            self.predict(X, out)
            return self.plan.custom_loss(y, out, weight)[0]
        loss_sum = weight_sum = 0.0
        for rows in self._blocks(len(X)):
            output = self._output(X[rows])
            row_losses, _ = loss_of_rows(self.plan, output, y[rows])
            w = np.ones(len(output)) if weight is None else weight[rows].astype(np.float64)
            loss_sum += float(w @ row_losses)
            weight_sum += float(np.sum(w))
            if out is not None:
                out[rows] = predictions_of(self.plan, output)
        return loss_sum / weight_sum if weight_sum > 0 else 0.0

    @np.errstate(all="ignore")
    def loss_and_gradients(
        self, X: Array, y: Array, weight: Array | None, input_gradient: bool = False
    ) -> tuple[float, Parameters, Array | None]:
        """Mean loss, the gradient of every parameter, and dJ/dX if asked for."""
        x = transformed(X, self._shift, self._scale)
        found = propagate(self.plan, self._parameters, x, y, weight, None, input_gradient)
        dX = found.input_gradient
        if dX is not None and self._scale is not None:
            dX = dX * self._scale
        return found.loss, gradients_by_name(self.plan, found.layers), dX

    def _exchange(self) -> None:
        """Swap `_parameters` and `_trained`: what training moves, and what it is outside."""
        for name, trained in self._trained.items():
            self._trained[name], self._parameters[name] = self._parameters[name], trained

    def _average(self, gain: float) -> None:
        for name, average in self._trained.items():
            theta = self._parameters[name]
            average[...] = theta if gain == 1 else average + gain * (theta - average)

    def step(self, X: Array, y: Array, weight: Array | None, learning_rate: float) -> float:
        """One forward, backward and update on all rows given; returns the loss before the update."""
        with exchanged(self._exchange):
            return self._one_step(X, y, weight, learning_rate)

    @np.errstate(all="ignore")
    def _one_step(self, X: Array, y: Array, weight: Array | None, learning_rate: float) -> float:
        masks = dropout_masks(self.plan, self._step, len(X))
        x = transformed(X, self._shift, self._scale)
        found = propagate(self.plan, self._parameters, x, y, weight, masks, False)
        if not np.isfinite(found.loss):
            return found.loss
        if not all(statistics_are_finite(forward) for forward in found.passes):
            return float("nan")
        gradients = {
            name: g for name, g in gradients_by_name(self.plan, found.layers).items() if self._factors[name]
        }
        clip_gradients(self.plan, gradients)
        self._step += 1
        for name, gradient in gradients.items():
            rate = float(learning_rate) * self._factors[name]
            update = Update(rate, self._step, self._options, name.endswith(".W"))
            self._optimizer.update(self._parameters[name], gradient, self._moments[name], update)
        self._move_statistics(found)
        if self.plan.ema_decay:
            self._average(self.plan.ema_gain(self._step))
        return found.loss

    def _move_statistics(self, found: Propagated) -> None:
        """Move the running statistics towards those of a batch; one row says nothing of the variance."""
        freedom = 1 - float(np.sum(np.square(found.shares)))
        for layer, forward in zip(self.plan.layers, found.passes, strict=True):
            if layer.kind != "batch_norm" or forward.normalised is None or not np.any(found.shares):
                continue
            mean, variance = (self._parameters[f"{layer.name}.{name}"] for name in ("mean", "variance"))
            mean += layer.momentum * (forward.normalised.mean - mean)
            if freedom > 0:
                variance += layer.momentum * (forward.normalised.variance / freedom - variance)

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
        """Run whole epochs; Ctrl-C stops after the current batch."""
        losses: list[float] = []
        rates = np.reshape(learning_rates, (epochs, -1)) if epochs else np.zeros((0, 1))
        with deferred_interrupt() as interrupt, exchanged(self._exchange):
            for epoch in range(epochs):
                start = self.parameters(), self.optimizer_state()
                visited = order
                if visited is None and shuffle and batch_size < len(X):
                    visited = permutation(len(X), seed, first_epoch + epoch)
                loss_sum = weight_sum = 0.0
                batches = _batches(len(X) if visited is None else len(visited), batch_size, visited)
                for batch, rows in enumerate(batches):
                    if interrupt.pressed:
                        return TrainResult(losses, interrupted=True)
                    x, w = X[rows], None if weight is None else weight[rows]
                    batch_weight = float(len(x) if w is None else np.sum(w, dtype=np.float64))
                    rate = float(rates[epoch, min(batch, rates.shape[1] - 1)])
                    try:
                        batch_loss = self._one_step(x, y[rows], w, rate)
                    except Exception as error:
                        if self.plan.custom_loss is None:
                            raise
                        return TrainResult(losses, interrupted=True, raised=error)
                    loss_sum += batch_loss * batch_weight
                    weight_sum += batch_weight
                loss = loss_sum / weight_sum if weight_sum > 0 else 0.0
                if not (np.isfinite(loss) and self._is_finite()):
                    self.set_parameters(start[0])
                    self.set_optimizer_state(start[1])
                    return TrainResult(losses, diverged=True)
                if self.plan.swa_start:
                    self._average(1 / max(1, first_epoch + epoch + 2 - self.plan.swa_start))
                losses.append(loss)
        return TrainResult(losses, interrupted=interrupt.pressed)

    def _is_finite(self) -> bool:
        return all(bool(np.all(np.isfinite(value))) for value in self._parameters.values())


def _batches(n: int, batch_size: int, order: Array | None) -> Iterator[slice | Array]:
    """Consecutive slices of the order; plain slices, which copy nothing, if there is none."""
    for start in range(0, n, batch_size):
        rows = slice(start, min(start + batch_size, n))
        yield rows if order is None else order[rows]
