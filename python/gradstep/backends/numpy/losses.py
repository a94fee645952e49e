"""The losses and links: every name that the library knows, with its formula and gradient.

``value_and_gradient(p, y, options)`` returns the loss of every row, (B,), and its gradient with respect to
the network's output p, (B, n_out). Classification losses take logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gradstep.backends.base import Array, LossOptions
from gradstep.backends.numpy.activations import sigmoid, softplus


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
    gradient = np.hstack([d * precision, (1 - square) / 2 * sigmoid(s - log_floor)])
    return np.sum(log_v + square, axis=1) / 2, gradient


def _binary_cross_entropy(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``-y log(sigmoid(z)) - (1 - y) log(1 - sigmoid(z))``, summed over outputs.

    Smoothed labels: Szegedy et al., "Rethinking the Inception architecture", CVPR 2016.
    """
    y = y + np.asarray(options["label_smoothing"], z.dtype) * (0.5 - y)
    return np.sum(softplus(z) - z * y, axis=1), sigmoid(z) - y


def _binary_focal(z: Array, y: Array, options: LossOptions) -> tuple[Array, Array]:
    """``-y (1 - p)^gamma log(p) - (1 - y) p^gamma log(1 - p)`` of p = sigmoid(z), summed over outputs.

    Lin et al., "Focal loss for dense object detection", ICCV 2017.
    """
    gamma = np.asarray(options["gamma"], z.dtype)
    minus_log_p, minus_log_q, p, q = softplus(-z), softplus(z), sigmoid(z), sigmoid(-z)
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
    "sigmoid": lambda z, options: sigmoid(z),
    "softmax": lambda z, options: _softmax(z),
    "gaussian": _gaussian,
}
