"""The loss that every contender must reach: float64 back-propagation, written for reading.

For losses and layers that are not written out here, gradstep's numpy backend in float64 takes its place: the
check is that libraries which share no code reach the same loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from cases import BETA1, BETA2, EMA_DECAY, EPSILON, OPTIMIZERS, Array, Case, Weights
from lbfgs import minimize

ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "identity": (lambda z: z, lambda a: np.ones_like(a)),
    "relu": (lambda z: np.maximum(z, 0), lambda a: (a > 0).astype(a.dtype)),
    "tanh": (np.tanh, lambda a: 1 - a * a),
}
"""Activation of z, and its derivative as a function of the activation."""


WRITTEN_OUT = ("mse", "binary_cross_entropy", "mae", "huber", "poisson", "cross_entropy")


def loss_and_gradient(name: str, z: Array, y: Array) -> tuple[float, Array]:
    """Mean loss of a batch and its gradient with respect to the network's output z, (B, n_out)."""
    if name == "mse":
        return float(np.mean((z - y) ** 2)), 2 * (z - y) / z.size
    if name == "binary_cross_entropy":
        p = 1 / (1 + np.exp(-z))
        return float(np.mean(np.sum(np.logaddexp(0, z) - z * y, axis=1))), (p - y) / len(z)
    if name == "mae":
        return float(np.mean(np.abs(z - y))), np.sign(z - y) / z.size
    if name == "huber":
        slope = np.clip(z - y, -1, 1)
        return float(np.mean(slope * (z - y - slope / 2))), slope / z.size
    if name == "poisson":
        constant = np.where(y > 0, y * np.log(np.maximum(y, 1)), 0) - y  # counts
        return float(np.mean(np.sum(np.exp(z) - y * z + constant, axis=1))), (np.exp(z) - y) / len(z)
    p = np.exp(z - np.max(z, axis=1, keepdims=True))
    p /= np.sum(p, axis=1, keepdims=True)
    one_hot = np.eye(z.shape[1])[y]
    return float(-np.mean(np.log(np.sum(p * one_hot, axis=1)))), (p - one_hot) / len(z)


def gradients(case: Case, parameters: Weights, x: Array, y: Array) -> tuple[float, Weights]:
    """Mean loss of a batch and the gradient of every (W, b)."""
    activate, derivative = ACTIVATIONS[case.activation]
    inputs = [x]
    for W, b in parameters[:-1]:
        inputs.append(activate(inputs[-1] @ W + b))
    W, b = parameters[-1]
    loss, delta = loss_and_gradient(case.loss, inputs[-1] @ W + b, y)
    result: Weights = []
    for layer in range(len(parameters) - 1, -1, -1):
        result.append((inputs[layer].T @ delta, np.sum(delta, axis=0)))
        if layer:
            delta = (delta @ parameters[layer][0].T) * derivative(inputs[layer])
    return loss, result[::-1]


class Parameter:
    """One array and what its optimizer keeps of it, with PyTorch's formulas, and lion's of its paper."""

    def __init__(self, case: Case, value: Array, is_weight: bool) -> None:
        self.value, self.is_weight = value, is_weight
        self.name, self.rate, self.options = case.optimizer, case.learning_rate, OPTIMIZERS[case.optimizer]
        self.m, self.v, self.most = (np.zeros_like(value) for _ in range(3))
        self.step, self.product = 0, 1.0

    def update(self, g: Array) -> None:
        """Move by one step."""
        self.step += 1
        if self.is_weight:
            self.value *= 1 - self.rate * self.options.get("weight_decay", 0)
        self.value -= self.rate * getattr(self, f"_{self.name}")(g)

    def _follow(self, g: Array) -> Array:
        """Both means; returns the corrected second."""
        self.m += (1 - BETA1) * (g - self.m)
        self.v += (1 - BETA2) * (g * g - self.v)
        return self.v / (1 - BETA2**self.step)

    def _adam(self, g: Array) -> Array:
        root = np.sqrt(self._follow(g)) + EPSILON
        return self.m / (1 - BETA1**self.step) / root

    _adamw = _adam

    def _amsgrad(self, g: Array) -> Array:
        self._follow(g)
        self.most = np.maximum(self.most, self.v)
        root = np.sqrt(self.most / (1 - BETA2**self.step)) + EPSILON
        return self.m / (1 - BETA1**self.step) / root

    def _nadam(self, g: Array) -> Array:
        root = np.sqrt(self._follow(g)) + EPSILON
        mu, following = (
            BETA1 * (1 - 0.5 * 0.96 ** (t * self.options["momentum_decay"]))
            for t in (self.step, self.step + 1)
        )
        self.product *= mu
        of_moment = following / (1 - self.product * following)
        return ((1 - mu) / (1 - self.product) * g + of_moment * self.m) / root

    def _sgd(self, g: Array) -> Array:
        self.m = self.options["momentum"] * self.m + g
        return g + self.options["momentum"] * self.m  # Nesterov's

    def _rmsprop(self, g: Array) -> Array:
        self.v += (1 - self.options["decay"]) * (g * g - self.v)
        self.m = self.options["momentum"] * self.m + g / (np.sqrt(self.v) + EPSILON)
        return self.m

    def _adagrad(self, g: Array) -> Array:
        self.v += g * g
        return g / (np.sqrt(self.v) + EPSILON)

    def _lion(self, g: Array) -> Array:
        self.m = BETA1 * self.m + (1 - BETA1) * g  # both of its betas are BETA1
        return np.sign(self.m)


def losses(
    case: Case, data: tuple[Array, Array], weights: Weights, epochs: int, orders: Array | None
) -> list[float]:
    """Mean loss of every epoch, training from the initial weights.

    Parameters
    ----------
    case
        What to train; its dtype is ignored, all arithmetic is float64.
    data, weights
        From `cases.make_data` and `cases.make_weights`.
    epochs
        Number of epochs.
    orders
        Row numbers by epoch, (epochs, rows), or None for rows as they are.

    Returns
    -------
    list of float
        Mean over the rows of the losses before each update; of L-BFGS the loss after each iteration.
    """
    if case.block or case.loss not in WRITTEN_OUT:
        return _reference_backend(case, data, weights, epochs)
    parameters = [(W.astype(np.float64), b.astype(np.float64)) for W, b in weights]
    if case.optimizer == "lbfgs":
        return _lbfgs(case, parameters, *_exact(case, data), epochs)
    totals = [0.0] * epochs
    for epoch, rows, loss in _steps(case, parameters, data, epochs, orders):
        totals[epoch] += loss * rows
    return [total / case.rows for total in totals]


def average(
    case: Case, data: tuple[Array, Array], weights: Weights, epochs: int, orders: Array | None
) -> Weights:
    """The case's mean of the parameters; arguments as for `losses`."""
    parameters = [(W.astype(np.float64), b.astype(np.float64)) for W, b in weights]
    mean = [(W.copy(), b.copy()) for W, b in parameters]
    taken = 0
    for step, _ in enumerate(_steps(case, parameters, data, epochs, orders), 1):
        if case.averaging == "swa" and step % case.steps_per_epoch:
            continue
        taken += 1
        gain = 1 / taken if case.averaging == "swa" or taken == 1 else 1 - EMA_DECAY
        for pair, its_mean in zip(parameters, mean, strict=True):
            for value, of in zip(pair, its_mean, strict=True):
                of += gain * (value - of)
    return mean


def _exact(case: Case, data: tuple[Array, Array]) -> tuple[Array, Array]:
    X, y = data
    return X.astype(np.float64), y if case.loss == "cross_entropy" else y.astype(np.float64)


def _steps(
    case: Case, parameters: Weights, data: tuple[Array, Array], epochs: int, orders: Array | None
) -> Iterator[tuple[int, int, float]]:
    """Epoch, rows and loss of every step, which moves the parameters."""
    X, y = _exact(case, data)
    updated = [(Parameter(case, W, True), Parameter(case, b, False)) for W, b in parameters]
    for epoch in range(epochs):
        order = np.arange(case.rows) if orders is None else orders[epoch]
        for start in range(0, case.rows, case.batch):
            rows = order[start : start + case.batch]
            loss, gradient = gradients(case, parameters, X[rows], y[rows])
            for layer, its_gradient in zip(updated, gradient, strict=True):
                for parameter, g in zip(layer, its_gradient, strict=True):
                    parameter.update(g)
            yield epoch, len(rows), loss


def _lbfgs(case: Case, parameters: Weights, X: Array, y: Array, iterations: int) -> list[float]:
    """What `losses` says, after each iteration."""

    def function(theta: Array) -> tuple[float, Array]:
        at = 0
        for array in (array for pair in parameters for array in pair):
            array[...] = theta[at : at + array.size].reshape(array.shape)
            at += array.size
        loss, gradient = gradients(case, parameters, X, y)
        return loss, np.concatenate([array.ravel() for pair in gradient for array in pair])

    start = np.concatenate([array.ravel() for pair in parameters for array in pair])
    return minimize(case, function, start, iterations)[1]


def _reference_backend(case: Case, data: tuple[Array, Array], weights: Weights, epochs: int) -> list[float]:
    """What `losses` says, by gradstep; its network shuffles in the case's orders by itself."""
    from contenders.gradstep_fit import initial_parameters, network_of

    case = replace(case, dtype="float64")
    network = network_of(case, "numpy")
    initial = initial_parameters(case, network, weights)
    network.set_parameters({name: value.astype(np.float64) for name, value in initial.items()})
    X, y = data
    y = y if y.dtype == np.int32 else y.astype(np.float64)
    history = network.fit(X.astype(np.float64), y, epochs=epochs, batch_size=case.batch, verbose=0)
    return [float(loss) for loss in history["loss"]]
