"""What `Network.predict` computes, in plain arrays: what every export starts from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gradstep.backends.base import Array, LayerPlan, Parameters
from gradstep.backends.numpy.losses import LOSSES
from gradstep.layers import Embedding, layer_plans
from gradstep.network import Network
from gradstep.specification import EXACT_FLOAT32
from gradstep.tables import Column, NumberColumn


@dataclass(frozen=True)
class ForwardLayer:
    """One layer: ``a = activation(z)``, with z as `LayerPlan` has it for these kinds.

    ============  ===========================  =========================================================
    kind          arrays                       z
    ============  ===========================  =========================================================
    dense         W (n_in, n_out), b           ``x W + b``
    layer_norm    gain, shift                  rows with mean 0 and variance 1, times gain, plus shift
    sum                                        ``x`` plus the outputs of `other`
    affine        gain, b                      ``x gain + b``, column by column: no kind of `LayerPlan`
    embedding     W (categories, size)         the columns of x but one, then that row of W it names
    ============  ===========================  =========================================================
    """

    kind: str
    n_in: int
    n_out: int
    arrays: dict[str, Array]
    source: int
    """Number of the layer whose outputs are x; -1 for those of the preprocessing."""
    other: int = -1
    """The same for the second summand of a sum."""
    activation: str = "identity"
    dropout: float = 0.0
    """Only of interest to who trains further."""
    epsilon: float = 0.0
    """Of a layer_norm."""
    column: int = 0
    """The column of x that an embedding replaces."""

    @property
    def W(self) -> Array:  # noqa: N802
        """Of a dense layer or an embedding; of an affine one the diagonal matrix that does the same."""
        return np.diag(self.arrays["gain"]) if self.kind == "affine" else self.arrays["W"]

    @property
    def b(self) -> Array:
        """Of a dense or affine layer, (n_out,)."""
        return self.arrays["b"]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of all layers that it takes."""
        return (self.source, self.other) if self.kind == "sum" else (self.source,)


@dataclass(frozen=True)
class Forward:
    """Preprocessing, layers, link, and the way back to the targets' own units, in this order."""

    network: Network
    """The network itself, for its predictions."""
    shift: Array | None
    scale: Array | None
    """The network sees ``(x - shift) * scale``, in its dtype; None where it sees x."""
    layers: tuple[ForwardLayer, ...]
    """Each behind those that it takes; the outputs are those of the last."""
    link: str
    """identity, exp, sigmoid, softmax or gaussian, which leaves means and makes variances of what follows."""
    target_shift: Array | None
    target_scale: Array | None
    """Predictions are ``outputs / target_scale + target_shift``, float64; None where they are the outputs."""

    @property
    def n_in(self) -> int:
        """Columns of X."""
        return self.layers[0].n_in

    @property
    def n_out(self) -> int:
        """Columns of the predictions."""
        return self.layers[-1].n_out

    @property
    def categories(self) -> dict[int, int]:
        """How many categories the embedded columns of X have, by column."""
        layers = self.network.layers
        return {layer.column: layer.categories for layer in layers if isinstance(layer, Embedding)}

    @property
    def floor(self) -> float:
        """What the gaussian link adds to its variances."""
        floor: Any = self.network.loss.options.get("floor", 0.0)
        return float(floor)

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
        replace(layer, arrays={name: values.astype(network.dtype) for name, values in layer.arrays.items()})
        for layer in _Folding(layer_plans(network.layers, network.n_in), parameters).layers
    )
    shift, scale = _statistics(config["preprocessing"], network.dtype)
    target_shift, target_scale = _statistics(config["target_preprocessing"], "float64")
    link = LOSSES[network.loss.name].link
    if link == "gaussian" and target_shift is not None and target_scale is not None:
        # variances have the square of the targets' unit
        target_shift = np.concatenate([target_shift, np.zeros_like(target_shift)])
        target_scale = np.concatenate([target_scale, np.square(target_scale)])
    return Forward(network, shift, scale, layers, link, target_shift, target_scale)


class _Waiting(NamedTuple):
    """Outputs of a layer times a gain plus a shift, for the one layer that takes them."""

    source: int
    gain: Array
    shift: Array


class _Folding:
    """Layers that compute the same, float64: gains and shifts go into the layers beside them.

    Into the layer in front of them if nothing else takes its outputs, else into the product behind them if
    nothing else takes theirs. The rest become affine layers.
    """

    def __init__(self, plans: tuple[LayerPlan, ...], parameters: Parameters) -> None:
        self.layers: list[ForwardLayer] = []
        self._parameters = parameters
        self._outputs: dict[int, int | _Waiting] = {-1: -1}
        """Where the outputs of each plan are: those of a layer, or waiting for the next one."""
        self._takers = Counter(
            index - back
            for index, plan in enumerate(plans)
            for back in ((plan.back, plan.other_back) if plan.kind == "sum" else (plan.back,))
        )
        for index, plan in enumerate(plans):
            if plan.kind in ("scale", "batch_norm"):
                self._outputs[index] = self._rescaled(plan, index)
            else:
                self._outputs[index] = self._added(plan, index)

    def _own(self, plan: LayerPlan) -> dict[str, Array]:
        names = plan.all_shapes()
        return {name: self._parameters[f"{plan.name}.{name}"].astype(np.float64) for name in names}

    def _added(self, plan: LayerPlan, index: int) -> int:
        """The number of a new layer that does what the plan says."""
        source, arrays = self._outputs[index - plan.back], self._own(plan)
        if plan.kind == "dense" and isinstance(source, _Waiting):
            arrays["b"] = source.shift @ arrays["W"] + arrays["b"]
            arrays["W"], source = source.gain[:, None] * arrays["W"], source.source
        layer = ForwardLayer(
            plan.kind,
            plan.n_in,
            plan.n_out,
            arrays,
            self._settled(source),
            self._settled(self._outputs[index - plan.other_back]) if plan.kind == "sum" else -1,
            plan.activation,
            plan.dropout,
            plan.epsilon,
            plan.column,
        )
        self.layers.append(layer)
        return len(self.layers) - 1

    def _rescaled(self, plan: LayerPlan, index: int) -> int | _Waiting:
        """The outputs of a layer that multiplies every column and then adds."""
        gain, shift = _gain_and_shift(plan, self._own(plan))
        source = self._outputs[index - plan.back]
        if isinstance(source, _Waiting):
            source = _Waiting(source.source, source.gain * gain, source.shift * gain + shift)
        elif self._takes_in(source, index - plan.back):
            before = self.layers[source]
            arrays = {name: values * gain for name, values in before.arrays.items()}
            last = "b" if before.kind == "dense" else "shift"
            arrays[last] = arrays[last] + shift
            self.layers[source] = replace(
                before, arrays=arrays, activation=plan.activation, dropout=plan.dropout
            )
            return source
        else:
            source = _Waiting(source, gain, shift)
        if (plan.activation, plan.dropout, self._takers[index]) == ("identity", 0.0, 1):
            return source
        return self._settled(source, plan.activation, plan.dropout)

    def _takes_in(self, layer: int, plan: int) -> bool:
        """Whether a layer, the last one of a plan, can take in what stands behind it."""
        if layer < 0 or self._takers[plan] != 1:
            return False
        before = self.layers[layer]
        linear = before.kind in ("dense", "layer_norm")
        return linear and before.activation == "identity" and before.dropout == 0

    def _settled(self, outputs: int | _Waiting, activation: str = "identity", dropout: float = 0.0) -> int:
        """The number of a layer with these outputs, a new one if they wait."""
        if not isinstance(outputs, _Waiting):
            return outputs
        width, arrays = len(outputs.gain), {"gain": outputs.gain, "b": outputs.shift}
        self.layers.append(
            ForwardLayer(
                "affine", width, width, arrays, outputs.source, activation=activation, dropout=dropout
            )
        )
        return len(self.layers) - 1


def _gain_and_shift(plan: LayerPlan, own: dict[str, Array]) -> tuple[Array, Array]:
    """What a scale or batch_norm multiplies every column by and then adds."""
    if plan.kind == "scale":
        return own["gain"], np.zeros(plan.n_out)
    gain = own["gain"] / np.sqrt(own["variance"] + plan.epsilon)
    return gain, own["shift"] - own["mean"] * gain


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
    numbers = [value for layer in forward.layers for value in layer.arrays.values()]
    numbers += [value for value in (forward.shift, forward.scale, forward.target_shift) if value is not None]
    if forward.target_scale is not None:
        numbers.append(1 / forward.target_scale)
    largest = max(float(np.abs(value).max()) for value in numbers)
    if largest > float(np.finfo(np.float32).max):
        raise ValueError(f"the {target} computes in float32, which cannot hold the network's {largest:.3g}")
    for layer in forward.layers:
        if layer.kind == "layer_norm" and layer.epsilon < float(np.finfo(np.float32).tiny):
            raise ValueError(
                f"the {target} computes in float32, which cannot hold an epsilon of {layer.epsilon:.3g}"
            )
    for column, categories in forward.categories.items():
        if categories > EXACT_FLOAT32:
            raise ValueError(
                f"the {target} computes in float32, which cannot tell {categories} categories of column "
                f"{column} apart"
            )
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
