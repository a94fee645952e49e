"""Truths in float64, written apart from the library: other formulas, other loops, no shared code.

Scalar functions use Python's math module; gradients are accumulated sample by sample; optimizers are
unrolled into sums over all past gradients. Slow, and meant to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Scalar = Callable[[float], float]

# --------------------------------------------------------------------------------------------------
# Rounding


def ulp_distance(actual: Array, truth: Array) -> Array:
    """Distance of float32 values from float64 truths, in units of the truth's last float32 place.

    Two NaNs, two infinities of one sign, and two values below the normal range that lie within a few
    denormals of each other have distance 0.
    """
    assert actual.dtype == np.float32
    info = np.finfo(np.float32)
    with np.errstate(all="ignore"):
        rounded = truth.astype(np.float32)
        unit = np.spacing(np.maximum(np.abs(rounded), info.tiny)).astype(np.float64)
        distance = np.abs(actual.astype(np.float64) - truth) / unit
    same = (actual == rounded) | (np.isnan(actual) & np.isnan(truth))
    close = np.abs(actual.astype(np.float64) - truth) <= 4 * float(info.smallest_subnormal)
    return np.where(same | close, 0.0, distance)


# --------------------------------------------------------------------------------------------------
# Activations and their derivatives, one number at a time


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def _softplus(z: float) -> float:
    return z + math.log1p(math.exp(-z)) if z > 0 else math.log1p(math.exp(z))


def _vanishing_below(function: Scalar) -> Scalar:
    """The function's limit, 0, where z is so low that the formula would be 0 * inf."""
    return lambda z: -0.0 if z < -745 else function(z)


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

ACTIVATIONS: dict[str, Scalar] = {
    "identity": lambda z: z,
    "relu": lambda z: z if z > 0 or math.isnan(z) else 0.0,
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "tanh": math.tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "elu": lambda z: z if z > 0 else math.expm1(z),
    "selu": lambda z: _SELU_SCALE * (z if z > 0 else _SELU_ALPHA * math.expm1(z)),
    "gelu": _vanishing_below(lambda z: 0.5 * z * math.erfc(-z / math.sqrt(2))),
    "silu": _vanishing_below(lambda z: z * _sigmoid(z)),
    "mish": _vanishing_below(lambda z: z * math.tanh(_softplus(z))),
}


def _gelu_slope(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2)) + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _mish_slope(z: float) -> float:
    t = math.tanh(_softplus(z))
    return t + z * _sigmoid(z) * (1 - t) * (1 + t)


DERIVATIVES: dict[str, Scalar] = {
    "identity": lambda z: 1.0,
    "relu": lambda z: 1.0 if z > 0 else 0.0,
    "leaky_relu": lambda z: 1.0 if z > 0 else 0.01,
    "tanh": lambda z: 4 / (math.exp(z) + math.exp(-z)) ** 2,
    "sigmoid": lambda z: _sigmoid(z) * _sigmoid(-z),
    "softplus": _sigmoid,
    "elu": lambda z: 1.0 if z > 0 else math.exp(z),
    "selu": lambda z: _SELU_SCALE * (1.0 if z > 0 else _SELU_ALPHA * math.exp(z)),
    "gelu": _gelu_slope,
    "silu": lambda z: _sigmoid(z) * (1 + z * _sigmoid(-z)),
    "mish": _mish_slope,
}


def elementwise(function: Scalar, z: Array) -> Array:
    """Apply a scalar function to every element in float64."""
    values = [function(float(value)) for value in z.ravel()]
    return np.array(values, dtype=np.float64).reshape(z.shape)


# --------------------------------------------------------------------------------------------------
# Losses of one sample, with their gradient with respect to the network's output


class _SampleLoss(NamedTuple):
    value: float
    gradient: list[float]


def _sample_loss(name: str, p: Array, y: Any, options: Mapping[str, float]) -> _SampleLoss:
    k = len(p)
    if name == "mse":
        return _SampleLoss(
            sum((a - b) ** 2 for a, b in zip(p, y, strict=True)) / k,
            [2 * (a - b) / k for a, b in zip(p, y, strict=True)],
        )
    if name == "mae":
        signs = [(a > b) * 1.0 - (a < b) * 1.0 for a, b in zip(p, y, strict=True)]
        return _SampleLoss(sum(abs(a - b) for a, b in zip(p, y, strict=True)) / k, [s / k for s in signs])
    if name == "huber":
        deltas = np.broadcast_to(options.get("delta", 1.0), k)
        parts = [_huber(float(a - b), float(delta)) for a, b, delta in zip(p, y, deltas, strict=True)]
        return _SampleLoss(sum(value for value, _ in parts) / k, [slope / k for _, slope in parts])
    if name == "quantile":
        quantiles = np.broadcast_to(options.get("quantile", 0.5), k)
        parts = [_pinball(float(a - b), float(q)) for a, b, q in zip(p, y, quantiles, strict=True)]
        return _SampleLoss(sum(value for value, _ in parts) / k, [slope / k for _, slope in parts])
    if name == "poisson":
        value = sum(
            math.exp(z) - t * z + (t * math.log(t) - t if t else 0) for z, t in zip(p, y, strict=True)
        )
        return _SampleLoss(value, [math.exp(z) - t for z, t in zip(p, y, strict=True)])
    if name == "gamma":
        value = sum(t / math.exp(z) - math.log(t / math.exp(z)) - 1 for z, t in zip(p, y, strict=True))
        return _SampleLoss(value, [1 - t / math.exp(z) for z, t in zip(p, y, strict=True)])
    if name == "gaussian_nll":
        return _gaussian(p[: k // 2], p[k // 2 :], y, options.get("floor", 1e-6))
    if name == "binary_cross_entropy":
        smoothing = options.get("label_smoothing", 0.0)
        smoothed = [(1 - smoothing) * t + smoothing / 2 for t in y]
        value = sum(t * _softplus(-z) + (1 - t) * _softplus(z) for z, t in zip(p, smoothed, strict=True))
        return _SampleLoss(value, [_sigmoid(z) - t for z, t in zip(p, smoothed, strict=True)])
    if name == "binary_focal":
        parts = [
            _binary_focal(float(z), float(t), options.get("gamma", 2.0)) for z, t in zip(p, y, strict=True)
        ]
        return _SampleLoss(sum(value for value, _ in parts), [slope for _, slope in parts])
    if name == "binary_hinge":
        lacks = [1 - t * z for z, t in zip(p, y, strict=True)]
        return _SampleLoss(
            sum(max(0.0, lack) for lack in lacks), [-t * (lack > 0) for t, lack in zip(y, lacks, strict=True)]
        )
    if name == "cross_entropy":
        smoothing = options.get("label_smoothing", 0.0)
        odds = [sum(math.exp(other - z) for other in p) for z in p]
        wanted = [(1 - smoothing) * (i == y) + smoothing / k for i in range(k)]
        value = sum(q * math.log(o) for q, o in zip(wanted, odds, strict=True))
        return _SampleLoss(value, [1 / o - q for q, o in zip(wanted, odds, strict=True)])
    if name == "focal":
        gamma = options.get("gamma", 2.0)
        shares = [1 / sum(math.exp(other - z) for other in p) for z in p]
        s = shares[y]
        slope = gamma * (1 - s) ** (gamma - 1) * math.log(s) - (1 - s) ** gamma / s if s < 1 else 0.0
        gradient = [slope * s * ((i == y) - share) for i, share in enumerate(shares)]
        return _SampleLoss(-((1 - s) ** gamma) * math.log(s), gradient)
    if name == "hinge":
        rivals = [i for i in range(k) if i != y]
        best = max(rivals, key=lambda i: (p[i], -i))
        lack = 1 + p[best] - p[y]
        return _SampleLoss(
            max(0.0, lack), [(float(i == best) - float(i == y)) * float(lack > 0) for i in range(k)]
        )
    raise KeyError(name)


def _gaussian(means: Array, logs: Array, y: Any, floor: float) -> _SampleLoss:
    variances = [math.exp(s) + floor for s in logs]
    squares = [(m - t) ** 2 for m, t in zip(means, y, strict=True)]
    value = sum(0.5 * (math.log(v) + d / v) for v, d in zip(variances, squares, strict=True))
    of_means = [(m - t) / v for m, t, v in zip(means, y, variances, strict=True)]
    of_variances = [0.5 * (1 / v - d / v**2) for v, d in zip(variances, squares, strict=True)]
    return _SampleLoss(
        value, of_means + [slope * math.exp(s) for slope, s in zip(of_variances, logs, strict=True)]
    )


def _binary_focal(z: float, t: float, gamma: float) -> tuple[float, float]:
    s = _sigmoid(z)
    value = -t * (1 - s) ** gamma * math.log(s) - (1 - t) * s**gamma * math.log(1 - s)
    by_s = t * (gamma * (1 - s) ** (gamma - 1) * math.log(s) - (1 - s) ** gamma / s)
    by_s += (1 - t) * (s**gamma / (1 - s) - gamma * s ** (gamma - 1) * math.log(1 - s))
    return value, by_s * s * (1 - s)


def _huber(d: float, delta: float) -> tuple[float, float]:
    if abs(d) <= delta:
        return 0.5 * d * d, d
    return delta * (abs(d) - 0.5 * delta), math.copysign(delta, d)


def _pinball(d: float, quantile: float) -> tuple[float, float]:
    slope = 1 - quantile if d > 0 else -quantile if d < 0 else 0.0
    return d * slope, slope


# --------------------------------------------------------------------------------------------------
# Networks


class Network(NamedTuple):
    """A dense network and its loss; weights are float64, (n_in, n_out)."""

    weights: list[Array]
    biases: list[Array]
    activations: list[str]
    loss: str
    loss_options: Mapping[str, float] = {}
    l2: float = 0.0

    def outputs(self, X: Array) -> Array:
        """Outputs before any link, (n, n_out)."""
        a = np.asarray(X, dtype=np.float64)
        for W, b, name in zip(self.weights, self.biases, self.activations, strict=True):
            a = elementwise(ACTIVATIONS[name], np.einsum("ni,io->no", a, W) + b)
        return a

    def mean_loss(self, X: Array, y: Array, weight: Array | None = None) -> float:
        """Weighted mean loss with the l2 penalty."""
        w = [1.0] * len(X) if weight is None else [float(v) for v in weight]
        rows = zip(self.outputs(X), y, w, strict=True)
        total = sum(_sample_loss(self.loss, p, t, self.loss_options).value * wi for p, t, wi in rows)
        penalty = sum(float(v) ** 2 for W in self.weights for v in W.ravel()) * self.l2 / 2
        return (total / sum(w) if sum(w) > 0 else 0.0) + penalty

    def gradients(
        self, X: Array, y: Array, weight: Array | None = None
    ) -> tuple[list[Array], list[Array], Array]:
        """dJ/dW and dJ/db of every layer, and dJ/dX, sample by sample."""
        w = np.ones(len(X)) if weight is None else np.asarray(weight, dtype=np.float64)
        shares = w / w.sum() if w.sum() > 0 else w
        dW = [self.l2 * W for W in self.weights]
        db = [np.zeros(len(b)) for b in self.biases]
        dX = np.zeros(X.shape)
        for n in range(len(X)):
            inputs, zs = [np.asarray(X[n], dtype=np.float64)], []
            for W, b, name in zip(self.weights, self.biases, self.activations, strict=True):
                zs.append(inputs[-1] @ W + b)
                inputs.append(elementwise(ACTIVATIONS[name], zs[-1]))
            signal = np.array(_sample_loss(self.loss, inputs[-1], y[n], self.loss_options).gradient)
            for i in reversed(range(len(zs))):
                signal = signal * elementwise(DERIVATIVES[self.activations[i]], zs[i])
                dW[i] = dW[i] + shares[n] * np.outer(inputs[i], signal)
                db[i] = db[i] + shares[n] * signal
                signal = self.weights[i] @ signal
            dX[n] = shares[n] * signal
        return dW, db, dX


def finite_differences(function: Callable[[], float], parameter: Array, step: float = 1e-6) -> Array:
    """Central differences of a function of one float64 array, which is changed in place and put back."""
    gradient = np.zeros(parameter.shape)
    for index in np.ndindex(*parameter.shape):
        value = parameter[index]
        parameter[index] = value + step
        above = function()
        parameter[index] = value - step
        below = function()
        parameter[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient


# --------------------------------------------------------------------------------------------------
# Optimizers, unrolled: how far all past gradients move theta at step t = len(gradients)


def optimizer_change(
    name: str,
    theta: Array,
    gradients: Sequence[Array],
    lr: float,
    options: Mapping[str, float],
    is_weight: bool,
) -> Array:
    """The new theta after the last of the gradients, as a closed sum over all of them."""
    t = len(gradients)
    last = gradients[-1]
    if name == "gradient_descent":
        return theta - lr * last
    if name == "sgd":
        mu = options["momentum"]
        velocity = -lr * sum(mu ** (t - 1 - i) * g for i, g in enumerate(gradients))
        return theta + (mu * velocity - lr * last if options["nesterov"] else velocity)
    if name in ("adam", "adamw"):
        b1, b2 = options["beta1"], options["beta2"]
        m = sum((1 - b1) * b1 ** (t - 1 - i) * g for i, g in enumerate(gradients)) / (1 - b1**t)
        v = sum((1 - b2) * b2 ** (t - 1 - i) * g**2 for i, g in enumerate(gradients)) / (1 - b2**t)
        decay = lr * options["weight_decay"] if name == "adamw" and is_weight else 0.0
        epsilon = options["epsilon"] / (math.sqrt(1 - b2**t) if options.get("epsilon_hat") else 1.0)
        return theta - decay * theta - lr * m / (np.sqrt(v) + epsilon)
    if name == "amsgrad":
        b1, b2 = options["beta1"], options["beta2"]
        squares = [_decayed(b2, [g**2 for g in gradients[: i + 1]]) for i in range(t)]
        root = np.sqrt(np.max(squares, axis=0) / (1 - b2**t)) + options["epsilon"]
        return theta - lr * _decayed(b1, gradients) / (1 - b1**t) / root
    if name == "nadam":
        b1, b2 = options["beta1"], options["beta2"]
        mu = [b1 * (1 - 0.96 ** (i * options["momentum_decay"]) / 2) for i in range(1, t + 2)]
        of_gradient, of_moment = (1 - mu[-2]) / (1 - math.prod(mu[:-1])), mu[-1] / (1 - math.prod(mu))
        root = np.sqrt(_decayed(b2, [g**2 for g in gradients]) / (1 - b2**t)) + options["epsilon"]
        return theta - lr * (of_gradient * last + of_moment * _decayed(b1, gradients)) / root
    if name == "rmsprop":
        steps = [
            g / (np.sqrt(_decayed(options["decay"], [g**2 for g in gradients[: i + 1]])) + options["epsilon"])
            for i, g in enumerate(gradients)
        ]
        return theta - lr * sum(options["momentum"] ** (t - 1 - i) * step for i, step in enumerate(steps))
    if name == "adagrad":
        return theta - lr * last / (np.sqrt(sum(g**2 for g in gradients)) + options["epsilon"])
    if name == "lion":
        past = _decayed(options["beta2"], gradients[:-1]) if t > 1 else 0.0
        direction = np.sign(options["beta1"] * past + (1 - options["beta1"]) * last)
        decay = options["weight_decay"] if is_weight else 0.0
        return theta - lr * (direction + decay * theta)
    raise KeyError(name)


def _decayed(beta: float, values: Sequence[Array]) -> Array:
    """The exponential mean that began with zero."""
    return sum((1 - beta) * beta ** (len(values) - 1 - i) * value for i, value in enumerate(values))


# --------------------------------------------------------------------------------------------------
# Philox4x32-10 with Python integers, straight from the paper's definition


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Four random words of one counter."""
    word, mask = 1 << 32, (1 << 32) - 1
    r0, l0, r1, l1 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * r0, word)
        high1, low1 = divmod(0xCD9E8D57 * r1, word)
        r0, l0, r1, l1 = high1 ^ l0 ^ k0, low1, high0 ^ l1 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return [r0, l0, r1, l1]


def row_key(row: int, seed: int, epoch: int) -> int:
    """The 64-bit key by which a row is shuffled."""
    mask = (1 << 32) - 1
    pair = row // 2
    words = philox((pair & mask, pair >> 32, epoch, 0), (seed & mask, seed >> 32))
    return words[0] | words[1] << 32 if row % 2 == 0 else words[2] | words[3] << 32


# --------------------------------------------------------------------------------------------------
# Networks of other layers, as nested lists; gradients of them are finite differences


class Norm(NamedTuple):
    """Normalise rows (over columns), or columns (over rows with these weights)."""

    gain: Array
    shift: Array
    activation: str
    over_rows: bool
    epsilon: float = 1e-5

    def outputs(self, x: Array, weight: Sequence[float]) -> Array:
        lines = x.T if self.over_rows else x
        shares = np.asarray(weight) if self.over_rows else np.ones(x.shape[1])
        hat = np.zeros(lines.shape)
        for k, line in enumerate(lines):
            mean = math.fsum(float(s * v) for s, v in zip(shares, line, strict=True)) / math.fsum(shares)
            squares = math.fsum(float(s * (v - mean) ** 2) for s, v in zip(shares, line, strict=True))
            hat[k] = (line - mean) / math.sqrt(squares / math.fsum(shares) + self.epsilon)
        hat = hat.T if self.over_rows else hat
        return elementwise(ACTIVATIONS[self.activation], hat * self.gain + self.shift)


class Affine(NamedTuple):
    """``act(x W + b)``."""

    W: Array
    b: Array
    activation: str

    def outputs(self, x: Array, weight: Sequence[float]) -> Array:
        return elementwise(ACTIVATIONS[self.activation], np.einsum("ni,io->no", x, self.W) + self.b)


class Gain(NamedTuple):
    """``act(x gain)``."""

    gain: Array
    activation: str

    def outputs(self, x: Array, weight: Sequence[float]) -> Array:
        return elementwise(ACTIVATIONS[self.activation], np.array([row * self.gain for row in x]))


class Lookup(NamedTuple):
    """A column replaced by rows of a table, at the end."""

    column: int
    W: Array

    def outputs(self, x: Array, weight: Sequence[float]) -> Array:
        rows = []
        for row in x:
            others = [v for c, v in enumerate(row) if c != self.column]
            rows.append([*others, *self.W[round(float(row[self.column]))]])
        return np.array(rows, dtype=np.float64)


class Block(NamedTuple):
    """``act(layers(x) + projection(x))``."""

    layers: Sequence[Any]
    projection: Affine | None
    activation: str

    def outputs(self, x: Array, weight: Sequence[float]) -> Array:
        skip = x if self.projection is None else self.projection.outputs(x, weight)
        inner = x
        for layer in self.layers:
            inner = layer.outputs(inner, weight)
        return elementwise(ACTIVATIONS[self.activation], inner + skip)


def loss_of_layers(
    layers: Sequence[Any], X: Array, y: Array, weight: Array | None, l2: float, loss: str = "mse"
) -> float:
    """Weighted mean loss with the penalty of all W."""
    w = [1.0] * len(X) if weight is None else [float(v) for v in weight]
    a = np.asarray(X, dtype=np.float64)
    for layer in layers:
        a = layer.outputs(a, w)
    total = sum(_sample_loss(loss, p, t, {}).value * wi for p, t, wi in zip(a, y, w, strict=True))
    return total / sum(w) + l2 / 2 * _squares(layers)


def _squares(layers: Sequence[Any]) -> float:
    total = 0.0
    for layer in layers:
        if isinstance(layer, Affine | Lookup):
            total += math.fsum(float(v) ** 2 for v in layer.W.ravel())
        if isinstance(layer, Block):
            total += _squares([*layer.layers, *([layer.projection] if layer.projection else [])])
    return total
