"""What `Network.predict` computes, in plain arrays: what every export starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradstep.backends.base import Array, LayerPlan, Parameters
from gradstep.backends.numpy import LOSSES
from gradstep.layers import layer_plans
from gradstep.network import Network
from gradstep.tables import Column, NumberColumn


@dataclass(frozen=True)
class ForwardLayer:
    """``a = activation(x W + b)``; dropout is only of interest to who trains further."""

    W: Array
    """(n_in, n_out)."""
    b: Array
    """(n_out,)."""
    activation: str
    dropout: float


@dataclass(frozen=True)
class Forward:
    """Preprocessing, layers, link, and the way back to the targets' own units, in this order."""

    network: Network
    """The network itself, for its predictions."""
    shift: Array | None
    scale: Array | None
    """The network sees ``(x - shift) * scale``, in its dtype; None where it sees x."""
    layers: tuple[ForwardLayer, ...]
    link: str
    """identity, exp, sigmoid or softmax."""
    target_shift: Array | None
    target_scale: Array | None
    """Predictions are ``outputs / target_scale + target_shift``, float64; None where they are the outputs."""

    @property
    def n_in(self) -> int:
        """Columns of X."""
        return int(self.layers[0].W.shape[0])

    @property
    def n_out(self) -> int:
        """Columns of the predictions."""
        return int(self.layers[-1].W.shape[1])

    @property
    def encodings(self) -> tuple[Column, ...] | None:
        """What the columns of a table become, if the network has an encoder."""
        encoder = self.network.encoder
        return None if encoder is None else encoder.encodings

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the columns of X, if the network has an encoder."""
        encoder = self.network.encoder
        return None if encoder is None else encoder.feature_names


def as_network(model: Any) -> Network:
    """The network, or that of an estimator of `gradstep.sklearn`.

    Raises
    ------
    TypeError
        If it is neither.
    """
    network = model.to_network() if hasattr(model, "to_network") else model
    if not isinstance(network, Network):
        raise TypeError(f"net must be a Network or an estimator of gradstep.sklearn, got {network!r}")
    return network


def forward_of(model: Any) -> Forward:
    """What a network computes.

    Parameters
    ----------
    model : Network or estimator of gradstep.sklearn
        With parameters, and with statistics where it has a preprocessing.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        If it is not complete, a parameter is not finite, or its encoder does not belong to it.
    """
    network = as_network(model)
    config = network.config
    for part in ("preprocessing", "target_preprocessing"):
        if config[part]["mode"] != "none" and config[part]["shift"] is None:
            raise ValueError(
                f"the network cannot be exported: its {part} has no statistics yet, call fit first"
            )
    if network.n_in is None:
        raise ValueError("the network cannot be exported: its input width is not known yet, call fit first")
    if network.encoder is not None and network.encoder.n_features != network.n_in:
        raise ValueError(
            f"the encoder must make as many features as the network has inputs ({network.n_in}), "
            f"got {network.encoder.n_features}"
        )
    parameters = network.parameters()
    for name, values in parameters.items():
        if not np.isfinite(values).all():
            raise ValueError(f"the network cannot be exported: {name} holds NaN or infinity")
    layers = tuple(
        ForwardLayer(
            layer.W.astype(network.dtype), layer.b.astype(network.dtype), layer.activation, layer.dropout
        )
        for layer in _folded(layer_plans(network.layers, network.n_in), parameters)
    )
    shift, scale = _statistics(config["preprocessing"], network.dtype)
    target_shift, target_scale = _statistics(config["target_preprocessing"], "float64")
    link = LOSSES[network.loss.name].link
    if link not in ("identity", "exp", "sigmoid", "softmax"):
        raise ValueError(f"a network with the loss {network.loss.name} cannot be exported yet")
    return Forward(network, shift, scale, layers, link, target_shift, target_scale)


def _folded(plans: tuple[LayerPlan, ...], parameters: Parameters) -> tuple[ForwardLayer, ...]:
    """Dense layers that compute the same: gains and shifts go into the products beside them.

    Those that stand between two activations become products with a diagonal matrix.
    """
    layers: list[ForwardLayer] = []
    waiting: tuple[Array, Array] | None = None  # gain and shift in front of the next layer
    for plan in plans:
        behind = plan.activation, plan.dropout
        if plan.kind == "dense":
            W, b = (parameters[f"{plan.name}.{name}"].astype(np.float64) for name in "Wb")
            if waiting is not None:
                W, b, waiting = waiting[0][:, None] * W, waiting[1] @ W + b, None
            layers.append(ForwardLayer(W, b, *behind))
            continue
        gain, shift = _gain_and_shift(plan, parameters)
        before = layers[-1] if layers else None
        if waiting is not None:
            gain, shift = waiting[0] * gain, waiting[1] * gain + shift
        elif before is not None and before.activation == "identity" and before.dropout == 0:
            layers[-1] = ForwardLayer(before.W * gain, before.b * gain + shift, *behind)
            continue
        waiting = gain, shift
        if behind != ("identity", 0.0) or plan is plans[-1]:
            layers.append(ForwardLayer(np.diag(gain), shift, *behind))
            waiting = None
    return tuple(layers)


def _gain_and_shift(plan: LayerPlan, parameters: Parameters) -> tuple[Array, Array]:
    """What a layer multiplies every column by and then adds, float64."""
    own = {name: parameters[f"{plan.name}.{name}"].astype(np.float64) for name in plan.parameter_shapes()}
    if plan.kind == "scale":
        return own["gain"], np.zeros(plan.n_out)
    if plan.kind != "batch_norm":
        raise ValueError(f"the network cannot be exported: a layer such as {plan.name} has no export yet")
    mean, variance = (parameters[f"{plan.name}.{name}"].astype(np.float64) for name in ("mean", "variance"))
    gain = own["gain"] / np.sqrt(variance + plan.epsilon)
    return gain, own["shift"] - mean * gain


def _statistics(config: dict[str, Any], dtype: str) -> tuple[Array | None, Array | None]:
    if config["shift"] is None:
        return None, None
    return np.array(config["shift"], np.float64).astype(dtype), np.array(config["scale"]).astype(dtype)


def check_float32(forward: Forward, target: str) -> None:
    """Raise a ValueError where float32 cannot hold what the network needs.

    Parameters
    ----------
    forward : Forward
        The network.
    target : str
        What computes in float32, for the error: "ONNX file", "C header".
    """
    numbers = [value for layer in forward.layers for value in (layer.W, layer.b)]
    numbers += [value for value in (forward.shift, forward.scale, forward.target_shift) if value is not None]
    if forward.target_scale is not None:
        numbers.append(1 / forward.target_scale)
    largest = max(float(np.abs(value).max()) for value in numbers)
    if largest > float(np.finfo(np.float32).max):
        raise ValueError(f"the {target} computes in float32, which cannot hold the network's {largest:.3g}")
    if forward.network.dtype == "float64" and forward.encodings is None:
        _check_resolution(forward.shift, forward.scale, target, "column {} of X")
    _check_resolution(forward.target_shift, forward.target_scale, target, "column {} of y")


def check_columns_float32(columns: tuple[Column, ...], target: str) -> None:
    """Raise a ValueError where float32 cannot tell the numbers of a table's column apart."""
    for column in columns:
        if isinstance(column, NumberColumn):
            name = repr(column.name).replace("{", "{{").replace("}", "}}")
            _check_resolution(np.array([column.mean]), np.array([1 / column.scale]), target, f"column {name}")


def _check_resolution(shift: Array | None, scale: Array | None, target: str, column: str) -> None:
    """Refuse what `preprocessing` refuses in training; a scale of 1 may be that of a constant column."""
    if shift is None or scale is None:
        return
    lost = (scale != 1) & (1 / scale < 4 * np.finfo(np.float32).eps * np.abs(shift))
    if lost.any():
        k = int(np.argmax(lost))
        raise ValueError(
            f"the {target} computes in float32, which cannot tell the values of {column.format(k)} apart: "
            f"they vary by {1 / scale[k]:.3g} around {shift[k]:.9g}; subtract an offset before training"
        )
