"""The reference backend: back-propagation as a textbook writes it, in numpy.

`ACTIVATIONS`, `LOSSES` and `OPTIMIZERS` define every name that the library knows, with its formula;
the other backends compute the same functions faster. `trace` is the algorithm: forward through all
layers, then the error signal backward through them.

Source of the algorithm: Rumelhart, Hinton and Williams, "Learning representations by
back-propagating errors", Nature 323, 1986.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gradstep.backends import blas_threads
from gradstep.backends.base import (
    Array,
    Backend,
    Engine,
    LayerPlan,
    LayerTrace,
    LossOptions,
    Parameters,
    Plan,
    TrainResult,
    exchanged,
)
from gradstep.backends.custom_loss import shares_of
from gradstep.backends.interrupt import deferred_interrupt
from gradstep.random import dropout_mask, permutation

# --------------------------------------------------------------------------------------------------
# Activations. exp is only taken of arguments <= 0, so that nothing overflows.


@dataclass(frozen=True, eq=False, repr=False)
class Activation:
    """An elementwise function and its derivative."""

    forward: Callable[[Array], Array]
    """``a`` as a function of ``z``."""
    derivative: Callable[[Array, Array], Array]
    """``da/dz`` as a function of ``z`` and ``a``, whichever is easier."""


LEAKY_RELU_SLOPE = 0.01
SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805
SMOOTH_TAIL = 1000.0
"""gelu, silu and mish are 0 below minus this in both dtypes; clipping there keeps 0 * inf away."""

# exp(t^2 / 2) (1 + t) Phi(-t) as a polynomial in (t - 5) / (t + 5), highest power first: interpolated
# at 1000 Chebyshev points. Relative error 1.4e-15 for 0 <= t <= 1000. The mapping is that of Shepherd
# and Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc(x)", Math. Comp. 36, 1981.
NORMAL_TAIL = (
    -2.7072507615664297e-10,
    2.2146092167333077e-09,
    3.566282253217314e-09,
    -2.5502660103743948e-08,
    -2.6146120245690777e-08,
    1.8853256070139426e-07,
    1.2769674768092427e-07,
    -1.300529381423364e-06,
    -7.020007006864741e-08,
    9.055788344013888e-06,
    -9.89617418240875e-06,
    -5.36060336256306e-05,
    0.00018233417109768892,
    7.791214768105776e-06,
    -0.001676072350155199,
    0.00652200072596688,
    -0.015170415401812055,
    0.024536963238720278,
    -0.026401042966347536,
    0.01000235238542597,
    0.031030368425963524,
    -0.0915522818340114,
    0.461515829850038,
)


def normal_tail(t: Array) -> Array:
    """Upper tail of the normal distribution, 1 - Phi(t) = erfc(t / sqrt(2)) / 2.

    Parameters
    ----------
    t
        float64, 0 <= t <= 1000.

    Returns
    -------
    numpy.ndarray
        float64, relative error below 3e-15 down to the smallest normal number.
    """
    high = np.round(t * 256) / 256  # high^2 is exact, so that exp keeps its relative accuracy
    density = np.exp(-high * high / 2) * np.exp(-(t - high) * (t + high) / 2)
    series: Array = np.polyval(NORMAL_TAIL, (t - 5) / (t + 5))
    tail: Array = density * series / (1 + t)
    return tail


def _normal_distribution(z: Array) -> Array:
    """Phi(z) in float64."""
    z = z.astype(np.float64)
    tail = normal_tail(np.minimum(np.abs(z), SMOOTH_TAIL))
    return np.where(z < 0, tail, 1 - tail)


def _sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))
    a: Array = np.where(z < 0, e, 1) / (1 + e)
    return a


def _softplus(z: Array) -> Array:
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def _elu(z: Array) -> Array:
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))


def _elu_derivative(z: Array) -> Array:
    return np.exp(np.minimum(z, 0))


def _selu(z: Array) -> Array:
    return SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * _elu(z))


def _selu_derivative(z: Array, a: Array) -> Array:
    return SELU_SCALE * np.where(z > 0, 1, SELU_ALPHA * _elu_derivative(z)).astype(z.dtype)


def _gelu(z: Array) -> Array:
    """``z Phi(z)``, rounded once from float64."""
    z64 = np.maximum(z.astype(np.float64), -SMOOTH_TAIL)
    return (z64 * _normal_distribution(z64)).astype(z.dtype)


def _gelu_derivative(z: Array, a: Array) -> Array:
    z64 = np.clip(z.astype(np.float64), -SMOOTH_TAIL, SMOOTH_TAIL)
    density = np.exp(-z64 * z64 / 2) / np.sqrt(2 * np.pi)
    slope: Array = (_normal_distribution(z64) + z64 * density).astype(z.dtype)
    return slope


def _silu(z: Array) -> Array:
    """``z sigmoid(z)``; the square root of exp(-|z|) keeps tiny results accurate."""
    z = np.maximum(z, -SMOOTH_TAIL)
    root = np.exp(-np.abs(z) / 2)
    a: Array = np.where(z < 0, z * root * root, z) / (1 + root * root)
    return a


def _silu_derivative(z: Array, a: Array) -> Array:
    s = _sigmoid(z)
    slope: Array = s + np.clip(z, -SMOOTH_TAIL, SMOOTH_TAIL) * s * (1 - s)
    return slope


def _mish(z: Array) -> Array:
    """``z tanh(softplus(z))``, with tanh(log(1 + u)) = u (u + 2) / (u (u + 2) + 2) for u = exp(z)."""
    z = np.maximum(z, -SMOOTH_TAIL)
    root = np.exp(-np.abs(z) / 2)
    e = root * root
    negative = z * root * root * (e + 2) / (e * (e + 2) + 2)
    positive = z * ((1 + 2 * e) / (1 + 2 * e + 2 * e * e))
    a: Array = np.where(z < 0, negative, positive)
    return a


def _mish_derivative(z: Array, a: Array) -> Array:
    t = np.tanh(_softplus(z))
    slope: Array = t + np.clip(z, -SMOOTH_TAIL, SMOOTH_TAIL) * _sigmoid(z) * (1 - t * t)
    return slope


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda z: z, lambda z, a: np.ones_like(z)),
    "relu": Activation(lambda z: np.maximum(z, 0), lambda z, a: (z > 0).astype(z.dtype)),
    "leaky_relu": Activation(
        lambda z: np.where(z > 0, z, LEAKY_RELU_SLOPE * z),
        lambda z, a: np.where(z > 0, 1, LEAKY_RELU_SLOPE).astype(z.dtype),
    ),
    "tanh": Activation(np.tanh, lambda z, a: (1 - a) * (1 + a)),
    "sigmoid": Activation(_sigmoid, lambda z, a: a * (1 - a)),
    "softplus": Activation(_softplus, lambda z, a: _sigmoid(z)),
    "elu": Activation(_elu, lambda z, a: _elu_derivative(z)),
    "selu": Activation(_selu, _selu_derivative),
    "gelu": Activation(_gelu, _gelu_derivative),
    "silu": Activation(_silu, _silu_derivative),
    "mish": Activation(_mish, _mish_derivative),
}

# --------------------------------------------------------------------------------------------------
# Losses. `value_and_gradient(p, y, options)` returns the loss of every row, (B,), and its gradient
# with respect to the network's output p, (B, n_out). Classification losses take logits.


@dataclass(frozen=True, eq=False, repr=False)
class Loss:
    """A loss per row with its gradient, and the link from outputs to predictions."""

    value_and_gradient: Callable[[Array, Array, LossOptions], tuple[Array, Array]]
    targets: str = "values"
    """What y holds, by the names of `gradstep.losses.TargetKind`."""
    link: str = "identity"
    defaults: LossOptions = field(default_factory=dict)
    """Options with their defaults."""
    outputs_per_target: int = 1


def _mse(p: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    d = p - y
    return np.mean(d * d, axis=1), 2 * d / d.shape[1]


def _mae(p: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    d = p - y
    return np.mean(np.abs(d), axis=1), np.sign(d) / d.shape[1]


def _huber(p: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    d = p - y
    delta = np.asarray(options["delta"], d.dtype)
    clipped = np.clip(d, -delta, delta)
    return np.mean(clipped * (d - clipped / 2), axis=1), clipped / d.shape[1]


def _quantile(p: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """Koenker and Bassett, "Regression quantiles", Econometrica 46, 1978."""
    d = p - y
    quantile = np.asarray(options["quantile"], d.dtype)
    slope = np.where(d > 0, 1 - quantile, np.where(d < 0, -quantile, d))
    return np.mean(d * slope, axis=1), slope / d.shape[1]


def _poisson(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``exp(z) - y z + y log(y) - y``, half the deviance of counts y with the rate exp(z), summed."""
    rate = np.exp(z)
    least = np.where(y > 0, y * (np.log(np.where(y > 0, y, 1)) - 1), 0)
    return np.sum(rate - y * z + least, axis=1), rate - y


def _gamma(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``z - log(y) + y exp(-z) - 1``, half the deviance of positive y with the mean exp(z), summed."""
    ratio = y * np.exp(-z)
    return np.sum(z - np.log(y) + ratio - 1, axis=1), 1 - ratio


def _gaussian_nll(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``(log(v) + (m - y)^2 / v) / 2`` for means m and variances v = exp(s) + floor of outputs (m, s),
    summed.

    Nix and Weigend, "Estimating the mean and variance of the target probability distribution", ICNN 1994.
    """
    m, s = np.split(z, 2, axis=1)
    log_floor = np.log(np.asarray(options["floor"], z.dtype))
    log_v = np.logaddexp(s, log_floor)
    d, precision = m - y, np.exp(-log_v)
    square = d * d * precision
    gradient = np.hstack([d * precision, (1 - square) / 2 * _sigmoid(s - log_floor)])
    return np.sum(log_v + square, axis=1) / 2, gradient


def _binary_cross_entropy(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``-y log(sigmoid(z)) - (1 - y) log(1 - sigmoid(z))``, summed over outputs.

    Smoothed labels: Szegedy et al., "Rethinking the Inception architecture", CVPR 2016.
    """
    y = y + np.asarray(options["label_smoothing"], z.dtype) * (0.5 - y)
    return np.sum(_softplus(z) - z * y, axis=1), _sigmoid(z) - y


def _binary_focal(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``-y (1 - p)^gamma log(p) - (1 - y) p^gamma log(1 - p)`` of p = sigmoid(z), summed over outputs.

    Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """
    gamma = np.asarray(options["gamma"], z.dtype)
    minus_log_p, minus_log_q, p, q = _softplus(-z), _softplus(z), _sigmoid(z), _sigmoid(-z)
    of_one, of_zero = y * np.exp(-gamma * minus_log_q), (1 - y) * np.exp(-gamma * minus_log_p)
    slope = of_zero * (p + gamma * q * minus_log_q) - of_one * (q + gamma * p * minus_log_p)
    return np.sum(of_one * minus_log_p + of_zero * minus_log_q, axis=1), slope


def _binary_hinge(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``max(0, 1 - y z)`` of y = -1 or 1, summed over outputs."""
    lack = 1 - y * z
    return np.sum(np.maximum(lack, 0), axis=1), np.where(lack > 0, -y, 0)


def _cross_entropy(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``-log(softmax(z)[y])`` with y the number of the class.

    With smoothed labels the sum of ``-q log(softmax(z))``, where q has 1 - label_smoothing at y, and all
    outputs an equal part of label_smoothing.
    """
    top = np.max(z, axis=1, keepdims=True)
    exponentials = np.exp(z - top)
    total = np.sum(exponentials, axis=1)
    smoothing = np.asarray(options["label_smoothing"], z.dtype)
    q = np.full(z.shape, smoothing / z.shape[1], z.dtype)
    q[np.arange(len(y)), y] += 1 - smoothing
    return np.log(total) - np.sum(q * (z - top), axis=1), exponentials / total[:, None] - q


def _focal(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``-(1 - p)^gamma log(p)`` of p = softmax(z)[y]; 1 - p is summed up from the other outputs."""
    rows = np.arange(len(y))
    gamma, least = np.asarray(options["gamma"], z.dtype), np.finfo(z.dtype).tiny
    shifted = z - np.max(z, axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    mine = exponentials[rows, y]
    exponentials[rows, y] = 0
    others = np.sum(exponentials, axis=1)
    total = mine + others
    p, u = mine / total, others / total
    cost = np.where(others <= mine, np.log1p(others / mine), np.log(total) - shifted[rows, y])
    power = np.maximum(u, least) ** gamma
    slope = power * (u + gamma * p * cost)
    gradient = (slope / np.maximum(others, least))[:, None] * exponentials
    gradient[rows, y] = -slope
    return power * cost, gradient


def _hinge(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``max(0, 1 + z[o] - z[y])`` of the largest other output z[o]; of several, the first.

    Crammer and Singer, "On the algorithmic implementation of multiclass kernel-based vector machines",
    JMLR 2, 2001.
    """
    rows = np.arange(len(y))
    others = z.copy()
    others[rows, y] = -np.inf
    best = np.argmax(others, axis=1)
    lack = 1 + z[rows, best] - z[rows, y]
    gradient = np.zeros_like(z)
    gradient[rows, best] = lack > 0
    gradient[rows, y] = -gradient[rows, best]
    return np.maximum(lack, 0), gradient


LOSSES: dict[str, Loss] = {
    "mse": Loss(_mse),
    "mae": Loss(_mae),
    "huber": Loss(_huber, defaults={"delta": 1.0}),
    "quantile": Loss(_quantile, defaults={"quantile": 0.5}),
    "poisson": Loss(_poisson, "counts", "exp"),
    "gamma": Loss(_gamma, "positive", "exp"),
    "gaussian_nll": Loss(_gaussian_nll, "values", "gaussian", {"floor": 1e-6}, outputs_per_target=2),
    "binary_cross_entropy": Loss(_binary_cross_entropy, "probabilities", "sigmoid", {"label_smoothing": 0.0}),
    "binary_focal": Loss(_binary_focal, "probabilities", "sigmoid", {"gamma": 2.0}),
    "binary_hinge": Loss(_binary_hinge, "signs"),
    "cross_entropy": Loss(_cross_entropy, "labels", "softmax", {"label_smoothing": 0.0}),
    "focal": Loss(_focal, "labels", "softmax", {"gamma": 2.0}),
    "hinge": Loss(_hinge, "labels"),
}


def _softmax(z: Array) -> Array:
    exponentials: Array = np.exp(z - np.max(z, axis=1, keepdims=True))
    probabilities: Array = exponentials / np.sum(exponentials, axis=1, keepdims=True)
    return probabilities


def _gaussian(z: Array, options: LossOptions) -> Array:
    """Means, and variances from their logarithms."""
    m, s = np.split(z, 2, axis=1)
    return np.hstack([m, np.exp(s) + np.asarray(options["floor"], z.dtype)])


LINKS: dict[str, Callable[[Array, LossOptions], Array]] = {
    "identity": lambda z, options: z,
    "exp": lambda z, options: np.exp(z),
    "sigmoid": lambda z, options: _sigmoid(z),
    "softmax": lambda z, options: _softmax(z),
    "gaussian": _gaussian,
}

# --------------------------------------------------------------------------------------------------
# Optimizers. `update` changes theta and its moments in place.


@dataclass(frozen=True, eq=False, repr=False)
class Update:
    """What an optimizer may know about one update, apart from the arrays."""

    learning_rate: float
    step: int
    """Number of this update, counted from 1."""
    options: Mapping[str, float]
    is_weight: bool
    """False for biases, which never decay."""


@dataclass(frozen=True, eq=False, repr=False)
class Optimizer:
    """One update rule."""

    update: Callable[[Array, Array, list[Array], Update], None]
    """Called with theta, the gradient, the moments and an `Update`."""
    moments: tuple[str, ...] = ()
    """Names of the arrays that it keeps per parameter, zero at first."""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """Options with their defaults."""


def _gradient_descent(theta: Array, g: Array, moments: list[Array], u: Update) -> None:
    theta -= u.learning_rate * g


def _sgd(theta: Array, g: Array, moments: list[Array], u: Update) -> None:
    """Momentum as in Sutskever et al., ICML 2013; Nesterov as in PyTorch and scikit-learn."""
    (v,) = moments
    mu = u.options["momentum"]
    v *= mu
    v -= u.learning_rate * g
    theta += mu * v - u.learning_rate * g if u.options["nesterov"] else v


def _adam(theta: Array, g: Array, moments: list[Array], u: Update) -> None:
    """Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015."""
    m, v = moments
    beta1, beta2 = u.options["beta1"], u.options["beta2"]
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    m_hat = m / (1 - beta1**u.step)
    v_hat = v / (1 - beta2**u.step)
    epsilon = u.options["epsilon"]
    if u.options["epsilon_hat"]:
        epsilon /= (1 - beta2**u.step) ** 0.5
    theta -= u.learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)


def _adamw(theta: Array, g: Array, moments: list[Array], u: Update) -> None:
    """Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019."""
    if u.is_weight:
        theta *= 1 - u.learning_rate * u.options["weight_decay"]
    _adam(theta, g, moments, u)


def _amsgrad(theta: Array, g: Array, moments: list[Array], u: Update) -> None:
    """Reddi, Kale and Kumar, "On the convergence of Adam and beyond", ICLR 2018."""
    m, v, v_max = moments
    beta1, beta2 = u.options["beta1"], u.options["beta2"]
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    np.maximum(v_max, v, out=v_max)
    root = np.sqrt(v_max / (1 - beta2**u.step)) + u.options["epsilon"]
    theta -= u.learning_rate * (m / (1 - beta1**u.step)) / root


def nadam_momenta(beta1: float, decay: float, step: int) -> tuple[float, float, float]:
    """Mu of this step and of the next, and the product of all up to this one; 0 once it is negligible."""
    product = 1.0
    for t in range(1, step + 1):
        product *= beta1 * (1.0 - 0.5 * 0.96 ** (t * decay))
        if product < 1e-17:
            product = 0.0
            break
    momentum = beta1 * (1.0 - 0.5 * 0.96 ** (step * decay))
    return momentum, beta1 * (1.0 - 0.5 * 0.96 ** ((step + 1) * decay)), product


def _nadam(theta: Array, g: Array, moments: list[Array], u: Update) -> None:
    """Dozat, "Incorporating Nesterov momentum into Adam", ICLR 2016 workshop; the schedule of PyTorch."""
    m, v = moments
    beta1, beta2 = u.options["beta1"], u.options["beta2"]
    momentum, following, product = nadam_momenta(beta1, u.options["momentum_decay"], u.step)
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    root = np.sqrt(v / (1 - beta2**u.step)) + u.options["epsilon"]
    of_gradient = u.learning_rate * (1 - momentum) / (1 - product)
    of_moment = u.learning_rate * following / (1 - product * following)
    theta -= (of_gradient * g + of_moment * m) / root


def _rmsprop(theta: Array, g: Array, moments: list[Array], u: Update) -> None:
    """Hinton, "Neural networks for machine learning", lecture 6e, 2012; epsilon outside the root."""
    v, momentum = moments
    v += (1 - u.options["decay"]) * (g * g - v)
    momentum *= u.options["momentum"]
    momentum += g / (np.sqrt(v) + u.options["epsilon"])
    theta -= u.learning_rate * momentum


def _adagrad(theta: Array, g: Array, moments: list[Array], u: Update) -> None:
    """Duchi, Hazan and Singer, "Adaptive subgradient methods", JMLR 12, 2011."""
    (v,) = moments
    v += g * g
    theta -= u.learning_rate * g / (np.sqrt(v) + u.options["epsilon"])


def _lion(theta: Array, g: Array, moments: list[Array], u: Update) -> None:
    """Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023."""
    (m,) = moments
    direction = np.sign(m + (1 - u.options["beta1"]) * (g - m))
    m += (1 - u.options["beta2"]) * (g - m)
    if u.is_weight:
        theta *= 1 - u.learning_rate * u.options["weight_decay"]
    theta -= u.learning_rate * direction


_MOMENT_DEFAULTS = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
_ADAM_DEFAULTS = {**_MOMENT_DEFAULTS, "epsilon_hat": 0.0}

OPTIMIZERS: dict[str, Optimizer] = {
    "gradient_descent": Optimizer(_gradient_descent),
    "sgd": Optimizer(_sgd, ("momentum",), {"momentum": 0.0, "nesterov": 0.0}),
    "adam": Optimizer(_adam, ("m", "v"), _ADAM_DEFAULTS),
    "adamw": Optimizer(_adamw, ("m", "v"), {**_ADAM_DEFAULTS, "weight_decay": 0.01}),
    "amsgrad": Optimizer(_amsgrad, ("m", "v", "v_max"), _MOMENT_DEFAULTS),
    "nadam": Optimizer(_nadam, ("m", "v"), {**_MOMENT_DEFAULTS, "momentum_decay": 0.004}),
    "rmsprop": Optimizer(_rmsprop, ("v", "momentum"), {"decay": 0.99, "momentum": 0.0, "epsilon": 1e-8}),
    "adagrad": Optimizer(_adagrad, ("v",), {"epsilon": 1e-10}),
    "lion": Optimizer(_lion, ("m",), {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}),
}

# --------------------------------------------------------------------------------------------------
# Back-propagation.


def _transform(X: Array, shift: Array | None, scale: Array | None) -> Array:
    return X if shift is None or scale is None else (X - shift) * scale


class Pass(NamedTuple):
    """One layer on the way forward."""

    x: Array
    z: Array
    a: Array
    normalised: Normalised | None = None


class Normalised(NamedTuple):
    """The inputs of a normalisation with mean 0 and variance 1, and what made them so."""

    x: Array
    mean: Array
    variance: Array
    inverse: Array
    """``1 / sqrt(variance + epsilon)``."""


def _normalised(
    layer: LayerPlan, parameters: Mapping[str, Array], x: Array, shares: Array | None
) -> Normalised:
    """By the statistics of each row, of each column of a batch with these shares, or by the running ones.

    Ba, Kiros and Hinton, "Layer normalization", 2016; Ioffe and Szegedy, "Batch normalization", ICML 2015.
    """
    mean: Array
    variance: Array
    if layer.kind == "layer_norm":
        mean = np.mean(x.astype(np.float64), axis=1, keepdims=True)
        variance = np.mean(np.square(x - mean), axis=1, keepdims=True)
    elif shares is None:
        mean, variance = parameters[f"{layer.name}.mean"], parameters[f"{layer.name}.variance"]
    else:
        mean = np.sum(shares[:, None] * x, axis=0)
        variance = np.sum(shares[:, None] * np.square(x - mean), axis=0)
    inverse = (1 / np.sqrt(variance.astype(np.float64) + layer.epsilon)).astype(x.dtype)
    return Normalised((x - mean).astype(x.dtype) * inverse, mean, variance, inverse)


def _statistics_are_finite(forward: Pass) -> bool:
    """A loss may be finite where they are not."""
    if forward.normalised is None:
        return True
    kept = (
        values.astype(forward.x.dtype) for values in (forward.normalised.mean, forward.normalised.variance)
    )
    return all(bool(np.isfinite(values).all()) for values in kept)


def _forward(
    plan: Plan,
    parameters: Mapping[str, Array],
    x: Array,
    masks: Masks = None,
    shares: Array | None = None,
) -> list[Pass]:
    """All layers in turn; batch normalisation takes the running statistics where there are no shares."""
    passes: list[Pass] = []
    outputs = {-1: x}
    for index, layer in enumerate(plan.layers):
        source, other = plan.inputs(index)
        x, normalised = outputs[source], None
        match layer.kind:
            case "dense":
                z = x @ parameters[f"{layer.name}.W"] + parameters[f"{layer.name}.b"]
            case "sum":
                z = x + outputs[other]
            case "scale":
                z = x * parameters[f"{layer.name}.gain"]
            case "embedding":
                vectors = parameters[f"{layer.name}.W"][x[:, layer.column].astype(np.int64)]
                z = np.hstack([np.delete(x, layer.column, axis=1), vectors])
            case _:
                normalised = _normalised(layer, parameters, x, shares)
                z = normalised.x * parameters[f"{layer.name}.gain"] + parameters[f"{layer.name}.shift"]
        a = ACTIVATIONS[layer.activation].forward(z)
        passes.append(Pass(x, z, a, normalised))
        outputs[index] = a if masks is None or index not in masks else a * masks[index]
    return passes


def _backward(
    layer: LayerPlan, parameters: Mapping[str, Array], forward: Pass, delta: Array, shares: Array
) -> tuple[Array, Array, Callable[[], Array]]:
    """Gradients of a layer's two parameters, empty for what it lacks, and a way to those of its input."""
    x, nothing = forward.x, np.zeros(0, delta.dtype)
    match layer.kind:
        case "dense":
            W = parameters[f"{layer.name}.W"]
            return x.T @ delta, np.sum(delta, axis=0), lambda: delta @ W.T
        case "sum":
            return nothing, nothing, lambda: delta
        case "scale":
            gain = parameters[f"{layer.name}.gain"]
            return np.sum(delta * x, axis=0), nothing, lambda: delta * gain
        case "embedding":
            others = layer.n_in - 1
            dW = np.zeros_like(parameters[f"{layer.name}.W"])
            np.add.at(dW, x[:, layer.column].astype(np.int64), delta[:, others:])
            return dW, nothing, lambda: np.insert(delta[:, :others], layer.column, 0, axis=1)
    assert forward.normalised is not None
    hat, inverse = forward.normalised.x, forward.normalised.inverse
    d_gain, d_shift = np.sum(delta * hat, axis=0), np.sum(delta, axis=0)

    def below() -> Array:
        g = delta * parameters[f"{layer.name}.gain"]
        if layer.kind == "layer_norm":
            common = np.mean(g, axis=1, keepdims=True) + hat * np.mean(g * hat, axis=1, keepdims=True)
        else:
            common = np.sum(g, axis=0) + hat * np.sum(g * hat, axis=0)
            common = common * shares.astype(g.dtype)[:, None]
        dx: Array = (g - common) * inverse
        return dx

    return d_gain, d_shift, below


Masks = Mapping[int, Array] | None
"""By layer, what its outputs are multiplied by: 0, or 1 / (1 - dropout). Srivastava et al., JMLR 15, 2014."""


def dropout_masks(plan: Plan, step: int, rows: int) -> Masks:
    """The masks of the update after ``step`` updates, or None without dropout."""
    masks = {}
    for index, layer in enumerate(plan.layers):
        if layer.dropout:
            kept = dropout_mask(layer.dropout, plan.seed, step, index, rows, layer.n_out)
            masks[index] = (kept / (1 - layer.dropout)).astype(plan.dtype)
    return masks or None


def _loss(plan: Plan, output: Array, y: Array) -> tuple[Array, Array]:
    loss = LOSSES[plan.loss]
    return loss.value_and_gradient(output, y, {**loss.defaults, **plan.loss_options})


def _mean_loss(plan: Plan, output: Array, y: Array, weight: Array | None) -> tuple[float, Array]:
    """The loss of a batch and its gradient with respect to the outputs."""
    if plan.custom_loss is not None:
        return plan.custom_loss(y, output, weight)
    row_losses, gradient = _loss(plan, output, y)
    shares = shares_of(weight, len(output))
    return float(shares @ row_losses), gradient * shares.astype(gradient.dtype)[:, None]


def _linked(plan: Plan, output: Array) -> Array:
    """Predictions."""
    if plan.custom_loss is not None:
        return output
    loss = LOSSES[plan.loss]
    return LINKS[loss.link](output, {**loss.defaults, **plan.loss_options})


def _batch_l2(plan: Plan, weight: Array | None, n: int) -> float:
    """The plan's l2, for a batch of n rows."""
    if plan.l2 == 0 or not plan.l2_per_batch:
        return plan.l2
    total = n if weight is None else float(np.sum(weight, dtype=np.float64))
    return plan.l2 / total if total > 0 else 0.0


def _penalty(plan: Plan, parameters: Mapping[str, Array], l2: float) -> float:
    weights = [parameters[name] for name in plan.trained_shapes() if name.endswith(".W")]
    penalty = 0.0
    if l2:
        penalty += l2 / 2 * sum(float(np.sum(np.square(W, dtype=np.float64))) for W in weights)
    if plan.l1:
        penalty += plan.l1 * sum(float(np.sum(np.abs(W), dtype=np.float64)) for W in weights)
    return penalty


def _clip(plan: Plan, gradients: Parameters) -> None:
    """Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.

    All gradients are scaled by ``clip_norm / (norm + 1e-6)`` where that is below 1, as in PyTorch.
    """
    if plan.clip_value:
        for g in gradients.values():
            np.clip(g, -plan.clip_value, plan.clip_value, out=g)
    if plan.clip_norm:
        squares = sum(float(np.sum(np.square(g, dtype=np.float64))) for g in gradients.values())
        factor = plan.clip_norm / (squares**0.5 + 1e-6)
        if factor < 1:
            for g in gradients.values():
                g *= factor


@np.errstate(all="ignore")
def trace(
    plan: Plan,
    parameters: Mapping[str, Array],
    X: Array,
    y: Array,
    weight: Array | None = None,
    shift: Array | None = None,
    scale: Array | None = None,
    masks: Masks = None,
) -> tuple[float, list[LayerTrace]]:
    """Run the chain rule through the network and keep everything.

    With p the network's output, J the mean loss, and * the elementwise product, the error signal
    starts at the output layer and goes back through the transposed weights::

        delta_L = dJ/dp * act'(z_L)
        delta_l = (delta_{l+1} W_{l+1}^T) * act'(z_l)
        dJ/dW_l = x_l^T delta_l + l2 W_l + l1 sign(W_l)
        dJ/db_l = sum of delta_l over the rows

    Layers that are not dense have ways back of their own (`_backward`); a layer that several others take gets
    the sum of their signals. Batch normalisation takes the statistics of these rows.

    Parameters
    ----------
    plan
        The network.
    parameters
        Its arrays by name, in the plan's dtype.
    X
        Inputs, (B, n_in).
    y
        Targets, as an `Engine` takes them.
    weight
        Sample weights, (B,), or None.
    shift, scale
        Input transform ``(X - shift) * scale``, both (n_in,), or None.
    masks
        By layer, (B, n_out): the next layer's input is ``a * mask``, and the error signal takes the same
        factor.

    Returns
    -------
    loss : float
        Mean loss with the penalties.
    layers : list of LayerTrace
        One entry per layer, first layer first.
    """
    propagated = _propagate(plan, parameters, _transform(X, shift, scale), y, weight, masks, False)
    return propagated.loss, propagated.layers


class Propagated(NamedTuple):
    """A pass forward and back."""

    loss: float
    layers: list[LayerTrace]
    passes: list[Pass]
    shares: Array
    """What each row contributes to the mean, float64."""
    input_gradient: Array | None


def _propagate(
    plan: Plan,
    parameters: Mapping[str, Array],
    x: Array,
    y: Array,
    weight: Array | None,
    masks: Masks,
    input_gradient: bool,
) -> Propagated:
    """What `trace` says, for transformed inputs."""
    shares = shares_of(weight, len(x))
    passes = _forward(plan, parameters, x, masks, shares)
    loss, gradient = _mean_loss(plan, passes[-1].a, y, weight)
    l2 = _batch_l2(plan, weight, len(x))
    loss += _penalty(plan, parameters, l2)

    layers: list[LayerTrace] = []
    signals: dict[int, Array] = {len(passes) - 1: gradient}
    for index in reversed(range(len(passes))):
        layer, forward, gradient = plan.layers[index], passes[index], signals.pop(index)
        if masks is not None and index in masks:
            gradient = gradient * masks[index]
        delta = gradient * ACTIVATIONS[layer.activation].derivative(forward.z, forward.a)
        dW, db, below = _backward(layer, parameters, forward, delta, shares)
        if plan.loses_bias(index):
            db = np.zeros_like(db)
        if l2 and f"{layer.name}.W" in parameters:
            dW += l2 * parameters[f"{layer.name}.W"]
        if plan.l1 and f"{layer.name}.W" in parameters:
            dW += plan.l1 * np.sign(parameters[f"{layer.name}.W"])
        layers.append(LayerTrace(layer.name, forward.x, forward.z, forward.a, delta, dW, db))
        for source in plan.inputs(index) if layer.kind == "sum" else plan.inputs(index)[:1]:
            if source >= 0 or input_gradient:
                signals[source] = signals[source] + below() if source in signals else below()
    return Propagated(loss, layers[::-1], passes, shares, signals.get(-1))


def _gradients(plan: Plan, layers: list[LayerTrace]) -> Parameters:
    gradients: Parameters = {}
    for planned, layer in zip(plan.layers, layers, strict=True):
        for name, gradient in zip(planned.parameter_shapes(), (layer.dW, layer.db), strict=False):
            gradients[f"{planned.name}.{name}"] = gradient
    return gradients


# --------------------------------------------------------------------------------------------------
# The engine.

BLOCK_ELEMENTS = 1 << 20
"""`predict` and `evaluate` hold at most about this many numbers of each layer."""


class NumpyEngine(Engine):
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
        self._trained = {name: np.zeros(shape, plan.dtype) for name, shape in shapes.items() if plan.averages}
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
            if self.plan.averages:
                state[f"{name}.trained"] = self._trained[name].copy()
        return state

    def set_optimizer_state(self, values: Mapping[str, Array]) -> None:
        """Overwrite the whole state."""
        self._step = int(values["step"])
        for name, moments in self._moments.items():
            for kind, moment in zip(self._optimizer.moments, moments, strict=True):
                moment[...] = values[f"{name}.{kind}"]
            if self.plan.averages:
                self._trained[name][...] = values[f"{name}.trained"]

    def set_input_transform(self, shift: Array | None, scale: Array | None) -> None:
        """Let every later call see ``(X - shift) * scale``."""
        self._shift = None if shift is None else np.array(shift, self.plan.dtype)
        self._scale = None if scale is None else np.array(scale, self.plan.dtype)

    def _blocks(self, n: int) -> Iterator[slice]:
        rows = max(1, BLOCK_ELEMENTS // max(max(layer.n_in, layer.n_out) for layer in self.plan.layers))
        return (slice(start, min(start + rows, n)) for start in range(0, n, rows))

    def _output(self, X: Array) -> Array:
        return _forward(self.plan, self._parameters, _transform(X, self._shift, self._scale))[-1].a

    @np.errstate(all="ignore")
    def predict(self, X: Array, out: Array) -> None:
        """Write the linked outputs of all rows into out."""
        for rows in self._blocks(len(X)):
            out[rows] = _linked(self.plan, self._output(X[rows]))

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
            row_losses, _ = _loss(self.plan, output, y[rows])
            w = np.ones(len(output)) if weight is None else weight[rows].astype(np.float64)
            loss_sum += float(w @ row_losses)
            weight_sum += float(np.sum(w))
            if out is not None:
                out[rows] = _linked(self.plan, output)
        return loss_sum / weight_sum if weight_sum > 0 else 0.0

    @np.errstate(all="ignore")
    def loss_and_gradients(
        self, X: Array, y: Array, weight: Array | None, input_gradient: bool = False
    ) -> tuple[float, Parameters, Array | None]:
        """Mean loss, the gradient of every parameter, and dJ/dX if asked for."""
        x = _transform(X, self._shift, self._scale)
        found = _propagate(self.plan, self._parameters, x, y, weight, None, input_gradient)
        dX = found.input_gradient
        if dX is not None and self._scale is not None:
            dX = dX * self._scale
        return found.loss, _gradients(self.plan, found.layers), dX

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
        x = _transform(X, self._shift, self._scale)
        found = _propagate(self.plan, self._parameters, x, y, weight, masks, False)
        if not np.isfinite(found.loss):
            return found.loss
        if not all(_statistics_are_finite(forward) for forward in found.passes):
            return float("nan")
        gradients = {
            name: g for name, g in _gradients(self.plan, found.layers).items() if self._factors[name]
        }
        _clip(self.plan, gradients)
        self._step += 1
        for name, gradient in gradients.items():
            rate = float(learning_rate) * self._factors[name]
            update = Update(rate, self._step, self._options, name.endswith(".W"))
            self._optimizer.update(self._parameters[name], gradient, self._moments[name], update)
        if self.plan.ema_decay:
            self._average(self.plan.ema_gain(self._step))
        self._move_statistics(found)
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


def _describe() -> dict[str, str]:
    return {"numpy": np.__version__, "BLAS": blas_threads.describe()}


BACKEND = Backend(
    name="numpy",
    activations=tuple(ACTIVATIONS),
    losses=tuple(LOSSES),
    optimizers=tuple(OPTIMIZERS),
    make_engine=NumpyEngine,
    set_num_threads=blas_threads.set_num_threads,
    get_num_threads=blas_threads.get_num_threads,
    describe=_describe,
)
