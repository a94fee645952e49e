"""numpy by hand: preallocated arrays, everything in place, parameters in one vector."""

from __future__ import annotations

import math

import numpy as np

from cases import BETA1, BETA2, EPSILON, Array, Case, Weights
from contenders.base import Contender, Session, shuffled_orders

BLOCK = 1 << 15
"""Elements that Adam treats at a time, so that its dozen passes stay in the cache."""


class Parameters:
    """All weights and biases, or what belongs to each, as views into one vector."""

    def __init__(self, case: Case) -> None:
        self.flat = np.zeros(case.parameter_count, case.dtype)
        self.W: list[Array] = []
        self.b: list[Array] = []
        start = 0
        for n_in, n_out in case.layers:
            middle, end = start + n_in * n_out, start + (n_in + 1) * n_out
            self.W.append(self.flat[start:middle].reshape(n_in, n_out))
            self.b.append(self.flat[middle:end])
            start = end


class Adam:
    """Adam over one vector, block by block, in place."""

    def __init__(self, parameters: Array, gradient: Array, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.m, self.v = np.zeros_like(parameters), np.zeros_like(parameters)
        self.step = 0
        scratch = np.empty(min(BLOCK, parameters.size), parameters.dtype)
        self.blocks = []
        for start in range(0, parameters.size, BLOCK):
            part = slice(start, start + BLOCK)
            views = parameters[part], gradient[part], self.m[part], self.v[part]
            self.blocks.append((*views, scratch[: views[0].size]))

    def reset(self) -> None:
        """Forget all moments."""
        self.m[...] = self.v[...] = self.step = 0

    def update(self) -> None:
        """Apply one update; the bias corrections are folded into two scalars."""
        self.step += 1
        root = math.sqrt(1 - BETA2**self.step)
        rate = self.learning_rate * root / (1 - BETA1**self.step)
        for p, g, m, v, t in self.blocks:
            np.subtract(g, m, out=t)
            t *= 1 - BETA1
            m += t
            np.multiply(g, g, out=t)
            t -= v
            t *= 1 - BETA2
            v += t
            np.sqrt(v, out=t)
            t += EPSILON * root
            np.divide(m, t, out=t)
            t *= rate
            p -= t


class NumpySession(Session):
    """The loops and buffers of one case."""

    def __init__(self, case: Case, data: tuple[Array, Array], weights: Weights) -> None:
        self.case, self.weights = case, weights
        self.X, self.y = data
        self.rng = np.random.default_rng(0)
        self.parameters, self.gradient = Parameters(case), Parameters(case)
        self.adam = Adam(self.parameters.flat, self.gradient.flat, case.learning_rate)
        self.buffers = {size: Buffers(case, size) for size in {case.batch, case.rows % case.batch} - {0}}
        self.output_gradient = {
            "mse": _mse,
            "binary_cross_entropy": _binary_cross_entropy,
            "cross_entropy": _cross_entropy,
        }[case.loss]

    def reset(self) -> None:
        """Copy the initial weights back."""
        for layer, (W, b) in enumerate(self.weights):
            self.parameters.W[layer][...], self.parameters.b[layer][...] = W, b
        self.adam.reset()

    def run(self, epochs: int, orders: Array | None = None) -> float:
        """Whole epochs in Python."""
        loss = 0.0
        for epoch in range(epochs):
            if self.case.is_full_batch:
                loss = self._step(self.X, self.y) * self.case.rows
            else:
                order = shuffled_orders(self.rng, self.case, 1)[0] if orders is None else orders[epoch]
                loss = self._epoch(order)
        return loss / self.case.rows

    def _epoch(self, order: Array) -> float:
        loss = 0.0
        for start in range(0, self.case.rows, self.case.batch):
            rows = order[start : start + self.case.batch]
            x = self.buffers[len(rows)].x
            np.take(self.X, rows, axis=0, out=x, mode="clip")
            loss += self._step(x, self.y[rows]) * len(rows)
        return loss

    def _step(self, x: Array, y: Array) -> float:
        parameters, gradient, buffers = self.parameters, self.gradient, self.buffers[len(x)]
        inputs, a = [], x
        last = len(parameters.W) - 1
        for layer, z in enumerate(buffers.z):
            inputs.append(a)
            np.matmul(a, parameters.W[layer], out=z)
            z += parameters.b[layer]
            if layer < last:
                _activate(self.case.activation, z)
            a = z
        loss, delta = self.output_gradient(a, y)
        for layer in range(last, -1, -1):
            np.matmul(inputs[layer].T, delta, out=gradient.W[layer])
            np.sum(delta, axis=0, out=gradient.b[layer])
            if layer:
                dx = buffers.delta[layer - 1]
                np.matmul(delta, parameters.W[layer].T, out=dx)
                delta = _backward(self.case.activation, inputs[layer], dx)
        self.adam.update()
        return loss


class Buffers:
    """Activations and error signals of a batch."""

    def __init__(self, case: Case, size: int) -> None:
        self.x = np.empty((0 if case.is_full_batch else size, case.widths[0]), case.dtype)
        self.z = [np.empty((size, n_out), case.dtype) for _, n_out in case.layers]
        self.delta = [np.empty((size, n_out), case.dtype) for _, n_out in case.layers[:-1]]


def _activate(name: str, z: Array) -> None:
    """The activation, in place."""
    if name == "relu":
        np.maximum(z, 0, out=z)
    elif name == "tanh":
        np.tanh(z, out=z)


def _backward(name: str, a: Array, delta: Array) -> Array:
    """Multiply delta by the derivative, in place; a is overwritten."""
    if name == "relu":
        delta *= a > 0
    elif name == "tanh":
        np.multiply(a, a, out=a)
        np.subtract(1, a, out=a)
        delta *= a
    return delta


def _mse(p: Array, y: Array) -> tuple[float, Array]:
    p -= y
    flat = p.reshape(-1)
    loss = float(flat @ flat) / p.size
    p *= 2 / p.size
    return loss, p


def _binary_cross_entropy(z: Array, y: Array) -> tuple[float, Array]:
    e = np.exp(-np.abs(z))
    loss = float(np.sum(np.maximum(z, 0) - z * y + np.log1p(e))) / len(z)
    p = np.where(z >= 0, 1, e) / (1 + e)
    p -= y
    p /= len(z)
    return loss, p


def _cross_entropy(z: Array, y: Array) -> tuple[float, Array]:
    rows = np.arange(len(z))
    z -= np.max(z, axis=1, keepdims=True)
    chosen = float(np.sum(z[rows, y]))
    np.exp(z, out=z)
    total = np.sum(z, axis=1, keepdims=True)
    loss = (float(np.sum(np.log(total))) - chosen) / len(z)
    z /= total
    z[rows, y] -= 1
    z /= len(z)
    return loss, z


class NumpyByHand(Contender):
    """numpy with the BLAS it comes with."""

    name = "numpy"
    packages = ("numpy",)

    def prepare(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> Session:
        """Allocate all buffers."""
        return NumpySession(case, data, weights)


class NumpyAvx512(NumpyByHand):
    """The same with OpenBLAS told to use its AVX-512 kernels, which it does not pick on AMD processors.

    Nobody runs numpy like this by default, so it is no peer: it is measured when asked for by name.
    """

    name = "numpy-avx512"
    is_peer = False

    def environment(self, threads: int) -> dict[str, str]:
        """Override OpenBLAS's choice of kernels."""
        return {**super().environment(threads), "OPENBLAS_CORETYPE": "SkylakeX"}

    def available(self) -> str | None:
        """Say no where the instructions are missing."""
        with open("/proc/cpuinfo") as file:
            return None if "avx512vl" in file.read() else "this processor has no AVX-512"
