"""What scikit-learn's perceptrons minimise, in terms of the engine's losses.

scikit-learn's regression takes half the squared error, summed over the outputs in its gradient and averaged
over them in the loss that it reports. The engine's mse has no half and averages over outputs: it is `scale` =
2 / outputs times the loss behind scikit-learn's gradient. Scaling everything that meets a gradient by the
same number gives the same trajectory.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from gradstep.backends.base import LayerPlan, LossOptions, Plan
from gradstep.sklearn.settings import Settings


@dataclass(frozen=True)
class Objective:
    """A loss of the engine, and its proportion to the estimator's."""

    loss: str
    out_activation: str
    """scikit-learn's name of the link: identity, logistic, softmax or exp."""
    options: LossOptions = field(default_factory=dict)
    scale: float = 1.0
    """The engine's loss over the one whose gradient the estimator descends."""
    reported: float = 1.0
    """The loss that the estimator reports over the engine's."""

    def learning_rate(self, rate: float, solver: str) -> float:
        """The engine's learning rate; Adam's steps do not depend on the gradient's size."""
        return rate / self.scale if solver == "sgd" else rate


def squared_error(outputs: int) -> Objective:
    """scikit-learn's squared error."""
    return Objective("mse", "identity", scale=2.0 / outputs, reported=0.5)


def make_plan(
    widths: tuple[int, ...], settings: Settings, objective: Objective, dtype: str, seed: int = 0
) -> Plan:
    """The engine's plan of an estimator's network; widths are those of the input and of all layers."""
    layers = _layers(widths, settings.activations, settings.normalization, settings.dropout)
    if settings.solver == "lbfgs":  # its penalty is added outside, where the rows may come in blocks
        return Plan(layers, objective.loss, "gradient_descent", objective.options, dtype=dtype)
    return Plan(
        layers,
        objective.loss,
        settings.solver,
        objective.options,
        _optimizer_options(settings, objective.scale),
        l2=settings.alpha * objective.scale,
        dtype=dtype,
        l2_per_batch=True,
        seed=seed,
    )


_LOSS_OF_LINK = {
    "identity": "mse",
    "exp": "poisson",
    "logistic": "binary_cross_entropy",
    "softmax": "cross_entropy",
}


def make_prediction_plan(
    widths: tuple[int, ...],
    activations: tuple[str, ...],
    normalization: str | None,
    out_activation: str,
    dtype: str,
) -> Plan:
    """A plan that only predicts; it keeps no moments."""
    layers = _layers(widths, activations, normalization)
    return Plan(layers, _LOSS_OF_LINK[out_activation], "gradient_descent", dtype=dtype)


def _layers(
    widths: tuple[int, ...],
    activations: tuple[str, ...],
    normalization: str | None,
    dropout: tuple[float, ...] = (),
) -> tuple[LayerPlan, ...]:
    rates = dropout or (0.0,) * len(activations)
    layers = []
    for index, (n_in, n_out) in enumerate(itertools.pairwise(widths[:-1])):
        if normalization is not None:
            layers.append(LayerPlan(n_in, n_out, "identity", f"dense_{index}"))
            n_in = n_out
        kind = normalization or "dense"
        name = f"{kind}_{index}"
        layers.append(LayerPlan(n_in, n_out, activations[index], name, rates[index], kind=kind))
    layers.append(LayerPlan(widths[-2], widths[-1], "identity", f"dense_{len(widths) - 2}"))
    return tuple(layers)


def _optimizer_options(settings: Settings, scale: float) -> dict[str, float]:
    if settings.solver == "sgd":
        return {"momentum": settings.momentum, "nesterov": float(settings.nesterovs_momentum)}
    return {
        "beta1": settings.beta_1,
        "beta2": settings.beta_2,
        "epsilon": settings.epsilon * scale,
        "epsilon_hat": 1.0,
    }
