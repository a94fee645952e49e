"""Layers of a network: small frozen descriptions, without parameters of their own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from gradstep.backends.base import LayerPlan
from gradstep.backends.numpy.activations import ACTIVATIONS
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


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What all layers with parameters have."""

    learning_rate_factor: float = 1.0
    trainable: bool = True

    def __post_init__(self) -> None:
        factor = check_real("learning_rate_factor", self.learning_rate_factor, above=0.0)
        object.__setattr__(self, "learning_rate_factor", factor)
        object.__setattr__(self, "trainable", check_flag("trainable", self.trainable))

    @property
    def rate_factor(self) -> float:
        """What the learning rate is multiplied by; 0 of frozen layers."""
        return self.learning_rate_factor if self.trainable else 0.0

    def __repr__(self) -> str:
        """Its own options, and of those that all have what is not the default."""
        common = {option.name: option.default for option in fields(_Trained)}
        own = [option.name for option in fields(self) if option.name not in common]
        own += [name for name, default in common.items() if getattr(self, name) != default]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in own)})"

    def _rates_config(self) -> dict[str, Any]:
        return {"learning_rate_factor": self.learning_rate_factor, "trainable": self.trainable}


@dataclass(frozen=True, repr=False)
class Dense(_Trained):
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", check_integer("units", self.units, minimum=1))
        check_name("activation", self.activation, ACTIVATIONS)
        if self.initializer is not None:
            weights = _initializer("initializer", self.initializer, tuple(INITIALIZERS), ndim=2)
            object.__setattr__(self, "initializer", weights)
        bias = _initializer("bias_initializer", self.bias_initializer, ("zeros",), ndim=1)
        object.__setattr__(self, "bias_initializer", bias)
        super().__post_init__()

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values; given arrays are not part of it, a built network has them as its parameters."""
        return {
            "type": "dense",
            "units": self.units,
            "activation": self.activation,
            "initializer": self.initializer if isinstance(self.initializer, str) else None,
            **self._rates_config(),
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


@dataclass(frozen=True)
class Activation:
    """The activation of the layer before it: for what stands between a layer and its activation.

    Parameters
    ----------
    name : str
        As of `Dense`.
    """

    name: str

    def __post_init__(self) -> None:
        check_name("activation name", self.name, ACTIVATIONS)

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"type": "activation", "name": self.name}


@dataclass(frozen=True, repr=False, kw_only=True)
class LayerNorm(_Trained):
    """Normalise the columns of every row: ``gain (x - mean) / sqrt(variance + epsilon) + shift``.

    Mean and variance are those of the row, the variance divided by n; gain and shift, one a column, are
    trained and not penalised. Source: Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450, 2016.

    Parameters
    ----------
    epsilon : float, default 1e-5
        Added to the variance, more than 0.
    learning_rate_factor, trainable
        As of `Dense`.
    """

    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", check_real("epsilon", self.epsilon, above=0.0))
        super().__post_init__()

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"type": "layer_norm", "epsilon": self.epsilon, **self._rates_config()}


@dataclass(frozen=True, repr=False, kw_only=True)
class BatchNorm(_Trained):
    """Normalise every column over the rows of the batch, then apply a gain and a shift, which are trained.

    ``gain (x - mean) / sqrt(variance + epsilon) + shift`` with the mean and variance of the batch, weighted
    with ``sample_weight``, in training, in `Network.loss_and_gradients` and in `Network.trace`; predictions
    and evaluations take running ones, ``running += momentum (batch - running)`` after every update. The
    variance is divided by n, for the running one by n - 1. Source: Ioffe and Szegedy, "Batch normalization",
    ICML 2015.

    Parameters
    ----------
    momentum : float, default 0.1
        Part of a batch's statistics in the running ones, in (0, 1). Keras calls 1 minus this momentum.
    epsilon : float, default 1e-5
        Added to the variance, more than 0.
    learning_rate_factor, trainable
        As of `Dense`, for gain and shift; the running statistics move all the same.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        momentum = check_real("momentum", self.momentum, above=0.0, below=1.0)
        object.__setattr__(self, "momentum", momentum)
        object.__setattr__(self, "epsilon", check_real("epsilon", self.epsilon, above=0.0))
        super().__post_init__()

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        options = {"momentum": self.momentum, "epsilon": self.epsilon}
        return {"type": "batch_norm", **options, **self._rates_config()}


@dataclass(frozen=True, repr=False)
class Scale(_Trained):
    """Multiply every column with a weight of its own, which is trained from 1 on and not penalised.

    Parameters
    ----------
    learning_rate_factor, trainable
        As of `Dense`.
    """

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"type": "scale", **self._rates_config()}


@dataclass(frozen=True, repr=False)
class Embedding(_Trained):
    """Replace a column of category numbers with a trained vector for each category.

    Stands in front of all other layers, after `Input`. The other columns come first, in their order, then the
    vectors of all embeddings in theirs. The column is exempt from ``preprocessing``. Vectors start as normal
    numbers with deviation 1 and are weights like those of dense layers: ``l2`` and decay take them all.

    Parameters
    ----------
    column : int
        Number of the column of X, from 0.
    categories : int
        How many there are: the column holds 0 to categories - 1.
    size : int
        Length of the vectors, at least 1.
    learning_rate_factor, trainable
        As of `Dense`.
    """

    column: int
    categories: int
    size: int

    def __post_init__(self) -> None:
        for name, least in (("column", 0), ("categories", 1), ("size", 1)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), minimum=least))
        super().__post_init__()

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "type": "embedding",
            "column": self.column,
            "categories": self.categories,
            "size": self.size,
            **self._rates_config(),
        }


@dataclass(frozen=True, repr=False)
class Residual(_Trained):
    """A block of layers whose inputs are added to its outputs: ``block(x) + x``.

    Where the block changes the width, ``block(x) + x P + p`` with a projection that is trained. An
    `Activation` behind it applies to the sum. Source: He, Zhang, Ren and Sun, "Deep residual learning for
    image recognition", CVPR 2016.

    Parameters
    ----------
    layers : sequence of layers
        The block, which may hold further ones.
    learning_rate_factor, trainable
        As of `Dense`, for the projection; the layers of the block have their own.
    """

    layers: Sequence[Layer]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _check_block(self.layers))
        super().__post_init__()

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        block = [layer.to_config() for layer in self.layers]
        return {"type": "residual", "layers": block, **self._rates_config()}


Layer = Input | Dense | Dropout | Activation | LayerNorm | BatchNorm | Scale | Embedding | Residual


def _initializer(argument: str, value: Any, names: tuple[str, ...], ndim: int) -> str | Given:
    if isinstance(value, str):
        return check_name(argument, value, names)
    given = value if isinstance(value, Given) else Given(numeric_array(argument, value, "float64"))
    if given.values.ndim != ndim:
        raise ValueError(f"{argument} must have {ndim} dimension(s), got shape {given.values.shape}")
    return given


def check_layers(layers: object) -> tuple[Layer, ...]:
    """The layers as a tuple, in an order that makes a network, with at least one `Dense`.

    Raises
    ------
    TypeError
        If something else than layers is given.
    ValueError
        If their order or number is wrong.
    """
    checked = _check_each("layers", layers)
    for position, layer in enumerate(checked):
        if isinstance(layer, Input) and position > 0:
            raise ValueError(f"layers[{position}] is {layer!r}, but Input can only be the first layer")
        if isinstance(layer, Embedding) and not all(
            isinstance(before, Input | Embedding) for before in checked[:position]
        ):
            raise ValueError(
                f"layers[{position}] is {layer!r}, but Embedding can only stand in front of all other layers"
            )
    columns = [layer.column for layer in checked if isinstance(layer, Embedding)]
    if len(set(columns)) < len(columns):
        raise ValueError(f"column of every Embedding must be another one, got {columns}")
    if checked and isinstance(checked[-1], Dropout):
        raise ValueError(f"layers[{len(checked) - 1}] is {checked[-1]!r}, but {_DROPOUT_PLACE}")
    if not any(isinstance(layer, Dense) for layer in all_layers(checked)):
        raise ValueError("layers must contain at least one Dense layer")
    return checked


_DROPOUT_PLACE = "Dropout must stand behind a layer whose outputs it drops, and before another layer"


def _check_block(layers: object) -> tuple[Layer, ...]:
    checked = _check_each("layers of Residual", layers)
    if not checked:
        raise ValueError("layers of Residual must be at least one layer")
    for layer in checked:
        if isinstance(layer, Input | Embedding):
            raise ValueError(f"layers of Residual must not hold {layer!r}, which is for a network's front")
    return checked


def _check_each(argument: str, layers: object) -> tuple[Layer, ...]:
    if not isinstance(layers, Sequence):
        raise TypeError(f"{argument} must be a list of layers, got {type(layers).__name__}")
    for position, layer in enumerate(layers):
        before = layers[position - 1] if position else None
        if not isinstance(layer, Layer):
            raise TypeError(f"{argument}[{position}] must be a layer such as Dense(8), got {layer!r}")
        bare = before is None or isinstance(before, Input | Embedding | Dropout)
        if isinstance(layer, Dropout) and bare:
            raise ValueError(f"{argument}[{position}] is {layer!r}, but {_DROPOUT_PLACE}")
        if isinstance(layer, Activation) and not _lacks_activation(before):
            raise ValueError(
                f"{argument}[{position}] is {layer!r}, but Activation must stand right behind a Dense layer "
                "without one, a normalisation, Scale or Residual"
            )
    return tuple(layers)


def _lacks_activation(layer: object) -> bool:
    if isinstance(layer, Dense):
        return layer.activation == "identity"
    return isinstance(layer, LayerNorm | BatchNorm | Scale | Residual)


def all_layers(layers: Sequence[Layer]) -> Iterator[Layer]:
    """The layers in order, blocks behind their own layers."""
    for layer in layers:
        if isinstance(layer, Residual):
            yield from all_layers(layer.layers)
        yield layer


_TYPES: dict[str, Any] = {
    "input": Input,
    "dense": Dense,
    "dropout": Dropout,
    "activation": Activation,
    "layer_norm": LayerNorm,
    "batch_norm": BatchNorm,
    "scale": Scale,
    "embedding": Embedding,
    "residual": Residual,
}


def layer_from_config(config: Mapping[str, Any]) -> Layer:
    """Rebuild a layer from its `to_config`."""
    options = {key: value for key, value in config.items() if key != "type"}
    kind = check_name("layer type", config.get("type"), _TYPES)
    if kind == "residual":
        options["layers"] = [layer_from_config(layer) for layer in options["layers"]]
    layer: Layer = _TYPES[kind](**options)
    return layer


def layer_plans(layers: Sequence[Layer], n_in: int) -> tuple[LayerPlan, ...]:
    """The layers one after the other, blocks taken apart, for an input of n_in columns, 0 if not yet known.

    Names count each kind: ``dense_0``, ``layer_norm_0``, ``dense_1``; projections are dense layers too.

    Raises
    ------
    ValueError
        If an embedding's column is none of the input's.
    """
    chain = _Chain(n_in)
    chain.append(layers, -1)
    return tuple(chain.plans)


class _Chain:
    """Plans in the making."""

    def __init__(self, n_in: int) -> None:
        self.n_in = n_in
        self.plans: list[LayerPlan] = []
        self._names: Counter[str] = Counter()
        self._columns = list(range(n_in))
        """The input's columns that are still there."""

    def append(self, layers: Sequence[Layer], source: int) -> int:
        """Put layers behind the outputs of plan `source`, -1 for the input; returns where their own are."""
        for layer in layers:
            rate = layer.rate_factor if isinstance(layer, _Trained) else 1.0
            match layer:
                case Dense(units=units, activation=activation):
                    source = self._add("dense", source, units, rate_factor=rate, activation=activation)
                case LayerNorm(epsilon=epsilon):
                    if self._width(source) == 1:
                        raise ValueError("LayerNorm needs at least 2 columns: of one it makes a constant")
                    source = self._add("layer_norm", source, rate_factor=rate, epsilon=epsilon)
                case BatchNorm(epsilon=epsilon, momentum=momentum):
                    options: dict[str, Any] = {"epsilon": epsilon, "momentum": momentum}
                    source = self._add("batch_norm", source, rate_factor=rate, **options)
                case Scale():
                    source = self._add("scale", source, rate_factor=rate)
                case Embedding():
                    source = self._embed(layer, source)
                case Residual():
                    source = self._add_block(layer, source)
                case Activation():
                    self.plans[source] = replace(self.plans[source], activation=layer.name)
                case Dropout():
                    self.plans[source] = replace(self.plans[source], dropout=layer.rate)
        return source

    def _width(self, source: int) -> int:
        return self.n_in if source < 0 else self.plans[source].n_out

    def _add(
        self, kind: str, source: int, n_out: int | None = None, *, prefix: str | None = None, **options: Any
    ) -> int:
        n_in, index, prefix = self._width(source), len(self.plans), prefix or kind
        name = f"{prefix}_{self._names[prefix]}"
        self._names[prefix] += 1
        options = {"activation": "identity", **options}
        n_out = n_in if n_out is None else n_out
        self.plans.append(LayerPlan(n_in, n_out, name=name, kind=kind, back=index - source, **options))
        return index

    def _add_block(self, block: Residual, source: int) -> int:
        end, skip = self.append(block.layers, source), source
        before, width = self._width(source), self._width(end)
        if before not in (0, width):
            skip = self._add("dense", source, width, prefix="projection", rate_factor=block.rate_factor)
        return self._add("sum", end, other_back=len(self.plans) - skip)

    def _embed(self, layer: Embedding, source: int) -> int:
        width = self._width(source)
        options: dict[str, Any] = {"categories": layer.categories, "rate_factor": layer.rate_factor}
        if width == 0:
            return self._add("embedding", source, 0, **options)
        if layer.column not in self._columns:
            raise ValueError(
                f"column of {layer!r} must be one of the {self.n_in} column(s) of X without another embedding"
            )
        column = self._columns.index(layer.column)
        del self._columns[column]
        size = width - 1 + layer.size
        return self._add("embedding", source, size, column=column, **options)


class LayerSummary(NamedTuple):
    """What tables and diagrams say of a layer."""

    plan: LayerPlan
    """With widths of 0 where they are unknown."""
    notes: tuple[str, ...]
    """What else there is to say: "+ dense_0", "dropout 0.2", "frozen"."""

    @property
    def name(self) -> str:
        """That of its parameters."""
        return self.plan.name

    @property
    def n_in(self) -> int | None:
        """None while it is unknown."""
        return self.plan.n_in or None

    @property
    def units(self) -> int | None:
        """Number of outputs; None while it is unknown."""
        return self.plan.n_out or None

    @property
    def described(self) -> str:
        """Activation and notes in one line."""
        return ", ".join((self.plan.activation, *self.notes))

    @property
    def parameters(self) -> int | None:
        """Number of trained parameters; None while it is unknown."""
        shapes = self.plan.parameter_shapes().values()
        known = not shapes or (self.plan.n_in and self.plan.n_out)
        return sum(math.prod(shape) for shape in shapes) if known else None


def summaries(layers: Sequence[Layer], n_in: int | None) -> tuple[LayerSummary, ...]:
    """All layers, for an input of n_in columns, or of a number that is not known yet."""
    plans = layer_plans(layers, n_in or 0)
    rows = []
    for index, plan in enumerate(plans):
        notes = []
        if plan.kind == "sum":
            other = index - plan.other_back
            name, width = (plans[other].name, plans[other].n_out) if other >= 0 else ("input", n_in or 0)
            notes.append(f"+ {name}" if width else f"+ {name} or its projection")
        if plan.dropout:
            notes.append(f"dropout {plan.dropout:g}")
        if plan.rate_factor != 1:
            notes.append(f"learning rate x {plan.rate_factor:g}" if plan.rate_factor else "frozen")
        rows.append(LayerSummary(plan, tuple(notes)))
    return tuple(rows)
