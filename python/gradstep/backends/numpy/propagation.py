"""Back-propagation: forward through all layers, then the error signal backward through them.

Source: Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323,
1986.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gradstep.backends.base import Array, LayerTrace, Parameters, Plan
from gradstep.backends.custom_loss import shares_of
from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.backends.numpy.layers import Masks, Pass, backward_pass, forward_pass
from gradstep.backends.numpy.losses import LINKS, LOSSES
from gradstep.random import dropout_mask


def transformed(X: Array, shift: Array | None, scale: Array | None) -> Array:
    """The inputs as the first layer sees them."""
    return X if shift is None or scale is None else (X - shift) * scale


def dropout_masks(plan: Plan, step: int, rows: int) -> Masks:
    """The masks of the update after ``step`` updates, or None without dropout."""
    masks = {}
    for index, layer in enumerate(plan.layers):
        if layer.dropout:
            kept = dropout_mask(layer.dropout, plan.seed, step, index, rows, layer.n_out)
            masks[index] = (kept / (1 - layer.dropout)).astype(plan.dtype)
    return masks or None


def loss_of_rows(plan: Plan, output: Array, y: Array) -> tuple[Array, Array]:
    """The loss of every row, and its gradient with respect to the output."""
    loss = LOSSES[plan.loss]
    return loss.value_and_gradient(output, y, {**loss.defaults, **plan.loss_options})


def _mean_loss(plan: Plan, output: Array, y: Array, weight: Array | None) -> tuple[float, Array]:
    """The loss of a batch and its gradient with respect to the outputs."""
    if plan.custom_loss is not None:
        return plan.custom_loss(y, output, weight)
    row_losses, gradient = loss_of_rows(plan, output, y)
    shares = shares_of(weight, len(output))
    return float(shares @ row_losses), gradient * shares.astype(gradient.dtype)[:, None]


def predictions_of(plan: Plan, output: Array) -> Array:
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


def clip_gradients(plan: Plan, gradients: Parameters) -> None:
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

    Layers that are not dense have ways back of their own (`backward_pass`); a layer that several others take
    gets the sum of their signals. Batch normalisation takes the statistics of these rows.

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
    propagated = propagate(plan, parameters, transformed(X, shift, scale), y, weight, masks, False)
    return propagated.loss, propagated.layers


class Propagated(NamedTuple):
    """A pass forward and back."""

    loss: float
    layers: list[LayerTrace]
    passes: list[Pass]
    shares: Array
    """What each row contributes to the mean, float64."""
    input_gradient: Array | None


def propagate(
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
    passes = forward_pass(plan, parameters, x, masks, shares)
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
        dW, db, below = backward_pass(layer, parameters, forward, delta, shares)
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


def gradients_by_name(plan: Plan, layers: list[LayerTrace]) -> Parameters:
    """The gradient of every parameter: ``dense_0.W``, ``dense_0.b``, ..."""
    gradients: Parameters = {}
    for planned, layer in zip(plan.layers, layers, strict=True):
        for name, gradient in zip(planned.parameter_shapes(), (layer.dW, layer.db), strict=False):
            gradients[f"{planned.name}.{name}"] = gradient
    return gradients
