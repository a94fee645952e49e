"""The layers forward, and the error signal back through one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from gradstep.backends.base import Array, LayerPlan, Plan
from gradstep.backends.numpy.activations import ACTIVATIONS

Masks = Mapping[int, Array] | None
"""By layer, what its outputs are multiplied by: 0, or 1 / (1 - dropout). Srivastava et al., JMLR 15, 2014."""


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


def statistics_are_finite(forward: Pass) -> bool:
    """A loss may be finite where they are not."""
    if forward.normalised is None:
        return True
    kept = (
        values.astype(forward.x.dtype) for values in (forward.normalised.mean, forward.normalised.variance)
    )
    return all(bool(np.isfinite(values).all()) for values in kept)


def forward_pass(
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


def backward_pass(
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
