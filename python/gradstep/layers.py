"""Layers of a network: small frozen descriptions, without parameters of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from gradstep.backends.base import DensePlan
from gradstep.backends.numpy import ACTIVATIONS
from gradstep.initializers import INITIALIZERS, Given
from gradstep.names import check_name
from gradstep.validation import check_flag, check_integer, check_real, numeric_array


@dataclass(frozen=True)
class Input:
    """The width of the input, for networks that must be complete before the first `fit`.

    Parameters
    ----------
    units : int
        Number of columns of X, at least 1.
    """

    units: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", check_integer("units", self.units, minimum=1))

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"type": "input", "units": self.units}


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: ``a = activation(x W + b)``.

    Parameters
    ----------
    units : int
        Number of outputs, at least 1.
    activation : str, default "identity"
        identity, relu, leaky_relu (slope 0.01), tanh, sigmoid, softplus, elu, selu, gelu, silu or mish.
    initializer : str or array_like, optional
        Initial weights: glorot_uniform, glorot_normal, he_uniform, he_normal or zeros, or an array
        (n_in, units). By default he_uniform for the relu family (relu, leaky_relu, elu, gelu, silu,
        mish), glorot_uniform for the others.
    bias_initializer : str or array_like, default "zeros"
        Initial biases: zeros, or an array (units,).
    learning_rate_factor : float, default 1.0
        Multiplies the learning rate for this layer, decoupled decay included; positive.
    trainable : bool, default True
        False freezes the layer: updates leave its parameters and moments as they are, whatever l1, l2 and
        decay say. Its weights still count in the penalties of the loss.
    """

    units: int
    activation: str = "identity"
    initializer: str | ArrayLike | Given | None = None
    bias_initializer: str | ArrayLike | Given = "zeros"
    learning_rate_factor: float = 1.0
    trainable: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", check_integer("units", self.units, minimum=1))
        check_name("activation", self.activation, ACTIVATIONS)
        if self.initializer is not None:
            weights = _initializer("initializer", self.initializer, tuple(INITIALIZERS), ndim=2)
            object.__setattr__(self, "initializer", weights)
        bias = _initializer("bias_initializer", self.bias_initializer, ("zeros",), ndim=1)
        object.__setattr__(self, "bias_initializer", bias)
        factor = check_real("learning_rate_factor", self.learning_rate_factor, above=0.0)
        object.__setattr__(self, "learning_rate_factor", factor)
        object.__setattr__(self, "trainable", check_flag("trainable", self.trainable))

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values; given arrays are not part of it, a built network has them as its parameters."""
        return {
            "type": "dense",
            "units": self.units,
            "activation": self.activation,
            "initializer": self.initializer if isinstance(self.initializer, str) else None,
            "learning_rate_factor": self.learning_rate_factor,
            "trainable": self.trainable,
        }


@dataclass(frozen=True)
class Dropout:
    """Zero a share of the layer's outputs in every update, and scale up the others.

    ``a <- a m / (1 - rate)`` with m drawn anew for every row, unit and update; predictions and evaluations
    use all units. Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout: a simple
    way to prevent neural networks from overfitting", JMLR 15, 2014.

    Parameters
    ----------
    rate : float
        Share of the outputs that is dropped, in [0, 1).
    """

    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", check_real("rate", self.rate, minimum=0.0, below=1.0))

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"type": "dropout", "rate": self.rate}


Layer = Input | Dense | Dropout


def _initializer(argument: str, value: Any, names: tuple[str, ...], ndim: int) -> str | Given:
    if isinstance(value, str):
        return check_name(argument, value, names)
    given = value if isinstance(value, Given) else Given(numeric_array(argument, value, "float64"))
    if given.values.ndim != ndim:
        raise ValueError(f"{argument} must have {ndim} dimension(s), got shape {given.values.shape}")
    return given


def check_layers(layers: object) -> tuple[Layer, ...]:
    """The layers as a tuple: at most one `Input`, in front, and at least one `Dense`; `Dropout` between two
    of them.

    Raises
    ------
    TypeError
        If something else than layers is given.
    ValueError
        If their order or number is wrong.
    """
    if not isinstance(layers, Sequence):
        raise TypeError(f"layers must be a list of layers, got {type(layers).__name__}")
    for position, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(f"layers[{position}] must be Input, Dense or Dropout, got {layer!r}")
        if isinstance(layer, Input) and position > 0:
            raise ValueError(f"layers[{position}] is {layer!r}, but Input can only be the first layer")
        if isinstance(layer, Dropout) and not _is_between_dense(layers, position):
            raise ValueError(
                f"layers[{position}] is {layer!r}, but Dropout must stand between two Dense layers"
            )
    if not any(isinstance(layer, Dense) for layer in layers):
        raise ValueError("layers must contain at least one Dense layer")
    return tuple(layers)


def _is_between_dense(layers: Sequence[Any], position: int) -> bool:
    neighbours = layers[position - 1] if position else None, *layers[position + 1 : position + 2]
    return len(neighbours) == 2 and all(isinstance(layer, Dense) for layer in neighbours)


_TYPES: dict[str, Any] = {"input": Input, "dense": Dense, "dropout": Dropout}


def layer_from_config(config: Mapping[str, Any]) -> Layer:
    """Rebuild a layer from its `to_config`."""
    options = {key: value for key, value in config.items() if key != "type"}
    layer: Layer = _TYPES[check_name("layer type", config.get("type"), _TYPES)](**options)
    return layer


def dense_plans(layers: Sequence[Layer], n_in: int) -> tuple[DensePlan, ...]:
    """Shapes and names of all dense layers, ``dense_0`` first, for an input of n_in columns."""
    plans: list[DensePlan] = []
    for layer in layers:
        if isinstance(layer, Dense):
            factor = layer.learning_rate_factor if layer.trainable else 0.0
            name = f"dense_{len(plans)}"
            plans.append(DensePlan(n_in, layer.units, layer.activation, name, rate_factor=factor))
            n_in = layer.units
        elif isinstance(layer, Dropout):
            plans[-1] = replace(plans[-1], dropout=layer.rate)
    return tuple(plans)


class LayerSummary(NamedTuple):
    """What tables and diagrams say of a dense layer."""

    name: str
    n_in: int | None
    """None while it is unknown."""
    units: int
    activation: str
    notes: tuple[str, ...] = ()
    """Layers without parameters behind it, such as "dropout 0.2"."""

    @property
    def parameters(self) -> int | None:
        """Number of weights and biases; None while it is unknown."""
        return None if self.n_in is None else (self.n_in + 1) * self.units


def summaries(layers: Sequence[Layer], n_in: int | None) -> tuple[LayerSummary, ...]:
    """All dense layers, for an input of n_in columns, or of a number that is not known yet."""
    rows: list[LayerSummary] = []
    for layer in layers:
        if isinstance(layer, Dense):
            rows.append(LayerSummary(f"dense_{len(rows)}", n_in, layer.units, layer.activation))
            n_in = layer.units
        elif rows:
            note = " ".join(str(value) for value in layer.to_config().values())
            rows[-1] = rows[-1]._replace(notes=(*rows[-1].notes, note))
    return tuple(rows)
