"""The optimizers: every name that the library knows, with its rule.

``update`` changes theta and its moments in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from gradstep.backends.base import Array


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
