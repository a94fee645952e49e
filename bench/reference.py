"""The loss that every contender must reach: float64 back-propagation, written for reading."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cases import BETA1, BETA2, EPSILON, Array, Case, Weights

ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "identity": (lambda z: z, lambda a: np.ones_like(a)),
    "relu": (lambda z: np.maximum(z, 0), lambda a: (a > 0).astype(a.dtype)),
    "tanh": (np.tanh, lambda a: 1 - a * a),
}
"""Activation of z, and its derivative as a function of the activation."""


def loss_and_gradient(name: str, z: Array, y: Array) -> tuple[float, Array]:
    """Mean loss of a batch and its gradient with respect to the network's output z, (B, n_out)."""
    if name == "mse":
        return float(np.mean((z - y) ** 2)), 2 * (z - y) / z.size
    if name == "binary_cross_entropy":
        p = 1 / (1 + np.exp(-z))
        return float(np.mean(np.sum(np.logaddexp(0, z) - z * y, axis=1))), (p - y) / len(z)
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


def losses(
    case: Case, data: tuple[Array, Array], weights: Weights, epochs: int, orders: Array | None
) -> list[float]:
    """Mean loss of every epoch, training with Adam from the initial weights.

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
        Mean over the rows of the losses before each update.
    """
    X, y = data
    X, y = X.astype(np.float64), y if case.loss == "cross_entropy" else y.astype(np.float64)
    parameters = [(W.astype(np.float64), b.astype(np.float64)) for W, b in weights]
    moments = [[(np.zeros_like(p), np.zeros_like(p)) for p in layer] for layer in parameters]
    history = []
    step = 0
    for epoch in range(epochs):
        order = np.arange(case.rows) if orders is None else orders[epoch]
        total = 0.0
        for start in range(0, case.rows, case.batch):
            rows = order[start : start + case.batch]
            loss, gradient = gradients(case, parameters, X[rows], y[rows])
            total += loss * len(rows)
            step += 1
            for layer, layer_moments, layer_gradient in zip(parameters, moments, gradient, strict=True):
                for p, (m, v), g in zip(layer, layer_moments, layer_gradient, strict=True):
                    m += (1 - BETA1) * (g - m)
                    v += (1 - BETA2) * (g * g - v)
                    corrected = m / (1 - BETA1**step), v / (1 - BETA2**step)
                    p -= case.learning_rate * corrected[0] / (np.sqrt(corrected[1]) + EPSILON)
        history.append(total / case.rows)
    return history
