"""Networks from and to PyTorch: ``torch.nn.Sequential`` with the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.backends.numpy.activations import LEAKY_RELU_SLOPE
from gradstep.backends.numpy.losses import LINKS, LOSSES
from gradstep.interchange import parity
from gradstep.interchange.forward import Forward, ForwardLayer, forward_of
from gradstep.layers import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    Embedding,
    Input,
    Layer,
    LayerNorm,
    Residual,
    all_layers,
)
from gradstep.losses import GaussianNLL, Loss, as_loss
from gradstep.network import Network
from gradstep.optimizers import Optimizer

if TYPE_CHECKING:
    import torch

_MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("Identity", {}),
    "relu": ("ReLU", {}),
    "leaky_relu": ("LeakyReLU", {"negative_slope": LEAKY_RELU_SLOPE}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "softplus": ("Softplus", {"beta": 1.0}),
    "elu": ("ELU", {"alpha": 1.0}),
    "selu": ("SELU", {}),
    "gelu": ("GELU", {"approximate": "none"}),
    "silu": ("SiLU", {}),
    "mish": ("Mish", {}),
}
"""Activations as PyTorch's modules, with the options for which the two agree."""

_LAYERS = ("Linear", "LayerNorm", "BatchNorm1d", "EmbedColumn", "Residual")
"""Modules that become layers with parameters."""

_PLACES = "Linear, LayerNorm, BatchNorm1d or Residual"
"""What may stand in front of activations, links and Dropout."""

_LINK_LOSSES = {"Softmax": "cross_entropy", "Sigmoid": "binary_cross_entropy", "Exp": "poisson"}
"""The loss of a network that ends with one of these modules, where none is given."""


def to_torch(net: Any, *, logits: bool = False) -> torch.nn.Sequential:
    """A network as a PyTorch module with the outputs of `Network.predict`.

    The module holds copies of the parameters and is in evaluation mode; ``.train()`` turns dropout on. It
    takes tensors of the network's dtype, (n, n_in); of a network with a `TableEncoder`, the encoder's
    features. The preprocessing is a module with buffers in front. `BatchNorm` and `Scale` are part of the
    Linear or LayerNorm beside them, or a Linear with a diagonal weight; `Residual` and `Embedding` are
    modules of `gradstep.interchange.torch_modules`. Where targets are standardized, outputs are in the units
    of y and float64, as in `predict`; ``.float()`` makes everything float32.

    Parameters
    ----------
    net : Network or estimator of gradstep.sklearn
        The network, trained.
    logits : bool, default False
        Leave out the sigmoid, softmax or exponential at the end, as PyTorch's losses want it
        (BCEWithLogitsLoss, CrossEntropyLoss, PoissonNLLLoss).

    Returns
    -------
    torch.nn.Sequential
        Compared with `predict` on 32 rows.

    Raises
    ------
    TypeError, ValueError
        If net is no complete network.
    ArithmeticError
        If the module does not agree with `predict`.
    ImportError
        If PyTorch is not installed.
    """
    torch = _import_torch("to_torch")
    forward = forward_of(net)
    modules = [*_front(forward), *_modules(forward, -1, len(forward.layers) - 1)]
    complete = torch.nn.Sequential(*modules, *_back(forward)).eval()
    rows = parity.sample_rows(forward)
    parity.check("PyTorch module", forward, rows, _outputs(complete, rows))
    return torch.nn.Sequential(*modules).eval() if logits and forward.link != "identity" else complete


def _import_torch(function: str) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f'{function} needs the package torch: pip install "gradstep[torch]"'
        ) from None
    return torch


def _front(forward: Forward) -> Iterator[torch.nn.Module]:
    import torch

    from gradstep.interchange.torch_modules import Preprocess

    if forward.shift is not None and forward.scale is not None:
        dtype = getattr(torch, forward.network.dtype)
        yield Preprocess(forward.shift.tolist(), forward.scale.tolist(), dtype)


def _modules(forward: Forward, start: int, end: int) -> list[torch.nn.Module]:
    """What leads from the outputs of one layer to those of another."""
    modules: list[list[torch.nn.Module]] = []
    while end != start:
        layer, before = forward.layers[end], _before(forward, end)
        modules.append([_module(forward, layer, before), *_behind(layer)])
        end = before
    return [module for part in reversed(modules) for module in part]


def _before(forward: Forward, index: int) -> int:
    """The layer in front of another one; of a sum, that in front of its block."""
    layer = forward.layers[index]
    if layer.kind != "sum":
        return layer.source
    place = layer.source
    while place not in (layer.other, -1):
        place = forward.layers[place].source
    return place if place == layer.other else forward.layers[layer.other].source


def _module(forward: Forward, layer: ForwardLayer, before: int) -> torch.nn.Module:
    """A layer as a module with its parameters, without its activation."""
    import torch

    from gradstep.interchange.torch_modules import EmbedColumn, Residual

    dtype = getattr(torch, forward.network.dtype)
    match layer.kind:
        case "dense" | "affine":
            return _linear(layer, dtype)
        case "sum":
            block = torch.nn.Sequential(*_modules(forward, before, layer.source))
            projection = _modules(forward, before, layer.other)
            return Residual(block, projection[0] if projection else torch.nn.Identity())
        case "embedding":
            return EmbedColumn(layer.n_in, layer.column, torch.tensor(layer.W))
    norm = torch.nn.LayerNorm(layer.n_out, eps=layer.epsilon, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(layer.arrays["gain"]))
        norm.bias.copy_(torch.from_numpy(layer.arrays["shift"]))
    return norm


def _linear(layer: ForwardLayer, dtype: torch.dtype) -> torch.nn.Module:
    import torch

    # Without initial values, which would move PyTorch's random generator.
    linear = torch.nn.utils.skip_init(torch.nn.Linear, layer.n_in, layer.n_out, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(layer.W.T)))
        linear.bias.copy_(torch.from_numpy(layer.b))
    return linear


def _behind(layer: ForwardLayer) -> Iterator[torch.nn.Module]:
    import torch

    if layer.activation != "identity":
        name, options = _MODULES[layer.activation]
        yield getattr(torch.nn, name)(**options)
    if layer.dropout:
        yield torch.nn.Dropout(layer.dropout)


def _back(forward: Forward) -> Iterator[torch.nn.Module]:
    import torch

    from gradstep.interchange.torch_modules import Exp, Gaussian, TargetUnits

    links: dict[str, Callable[[], torch.nn.Module]] = {
        "exp": Exp,
        "gaussian": lambda: Gaussian(forward.floor),
        "sigmoid": torch.nn.Sigmoid,
        "softmax": lambda: torch.nn.Softmax(dim=1),
    }
    if forward.link in links:
        yield links[forward.link]()
    if forward.target_shift is not None and forward.target_scale is not None:
        yield TargetUnits(forward.target_shift.tolist(), forward.target_scale.tolist())


def _outputs(module: torch.nn.Module, rows: Array) -> Array:
    import torch

    with torch.no_grad():
        outputs: Array = module(torch.from_numpy(rows)).numpy()
    return outputs


# --------------------------------------------------------------------------------------------------
# From PyTorch


def from_torch(
    module: Any,
    *,
    loss: str | Loss | None = None,
    optimizer: str | Optimizer = "adam",
    seed: int = 0,
    backend: str = "auto",
) -> Network:
    """A network with the layers and parameters of a PyTorch module, and the same predictions.

    Parameters
    ----------
    module : torch.nn.Sequential
        Of Linear, LayerNorm and BatchNorm1d, each followed by at most one activation (ReLU, LeakyReLU(0.01),
        Tanh, Sigmoid, Softplus, ELU, SELU, GELU, SiLU, Mish) and then Dropout, or such modules in one
        another; also what `to_torch` returned. Flatten in front does nothing to rows. A Linear or LayerNorm
        without bias gets one of zeros.
    loss : str or Loss, optional
        The loss of the network. By default that of the module at the end: cross_entropy for Softmax,
        binary_cross_entropy for Sigmoid, poisson and gaussian_nll for the Exp and Gaussian that `to_torch`
        makes, else mse. A module that ends without its Softmax or Sigmoid, as
        PyTorch's losses want it, needs ``loss="cross_entropy"`` or ``loss="binary_cross_entropy"`` here: the
        network's predictions are then the softmax or sigmoid of its outputs.
    optimizer : str or Optimizer, default "adam"
        For further training, as for `Network`; PyTorch's optimizers have no part in a module.
    seed : int, default 0
        For further training.
    backend : {"auto", "cpp", "numba", "numpy"}
        What computes.

    Returns
    -------
    Network
        Of dtype float64 if a parameter is, else float32; compared with the module on 32 rows.

    Raises
    ------
    TypeError, ValueError
        If module is none, or has parts that a `Network` cannot have.
    ArithmeticError
        If the network does not agree with the module.
    ImportError
        If PyTorch is not installed.
    """
    torch = _import_torch("from_torch")
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Sequential, got {type(module).__name__}")
    # Compared on the processor and without dropout, and left as it was.
    module = copy.deepcopy(module).cpu().eval()
    parts = _Parts()
    for name, part in _flat(module, ""):
        parts.add(name, part)
    network = parts.network(loss, optimizer, seed, backend)
    _check_import(module, parts, network)
    return network


def _flat(module: torch.nn.Module, name: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules of a Sequential by their places, such as "module[2][0]"."""
    import torch

    if type(module) is torch.nn.Sequential:
        for index, part in enumerate(module):
            yield from _flat(part, f"{name}[{index}]")
    else:
        yield f"module{name}", module


@dataclass
class _Parts:
    """What the modules of a Sequential say of a network, in turn."""

    inside: bool = False
    """Of a Residual."""
    n_in: int | None = None
    """Columns that the first layer takes."""
    width: int | None = None
    """Columns that the next layer gets."""
    layers: list[Layer] = field(default_factory=list)
    parameters: list[Array] = field(default_factory=list)
    """Those that are trained of each layer in turn, such as W and b."""
    statistics: list[Array] = field(default_factory=list)
    """Running means and variances."""
    columns: list[int] = field(default_factory=list)
    """The input's columns in front of which no Embedding stands."""
    preprocessing: dict[str, list[float]] | None = None
    target_preprocessing: dict[str, list[float]] | None = None
    gaussian: GaussianNLL | None = None
    """The loss of a module that ends with means and variances."""
    end: str = ""
    """Name of the last module's class."""

    def add(self, name: str, module: torch.nn.Module) -> None:
        """Take the next module, or raise a ValueError that says why a network cannot have it there."""
        kind = type(module).__name__
        if kind.startswith("Lazy"):
            raise ValueError(f"{name} has no parameters yet: call module with rows first")
        if not type(module).__module__.startswith(("torch.nn.", "gradstep.")):
            source = type(module).__module__
            raise ValueError(f"{name} is a {kind} of {source}, which a Network cannot have")
        ends = ("Softmax", "Exp", "Gaussian", "TargetUnits")
        if self.end in ends and kind not in ("Identity", "TargetUnits"):
            raise ValueError(f"{name} is a {kind}, but a Network ends behind a {self.end}")
        front = not self.layers and not self.inside
        if kind == "Identity" or (kind == "Flatten" and front and _keeps_rows(module)):
            return
        if kind in _LAYERS:
            self._add_layer(name, module)
        elif kind == "Dropout":
            self._add_dropout(name, module)
        elif kind == "Preprocess" and front and self.preprocessing is None:
            self.preprocessing = _affine(module)
        elif kind == "TargetUnits" and self.layers and not self.inside:
            self.target_preprocessing = _affine(module)
        elif not self.inside and _is_link(module):
            self._check_link(name, kind)
            self.gaussian = GaussianNLL(module.floor) if kind == "Gaussian" else None
        else:
            self._add_activation(name, module)
        self.end = kind

    def _check_link(self, name: str, kind: str) -> None:
        if self.end not in _LAYERS or self.end == "EmbedColumn":
            raise ValueError(f"{name} is a {kind}, which must stand right behind a {_PLACES}")

    def _add_layer(self, name: str, module: Any) -> None:
        match type(module).__name__:
            case "Linear":
                self._take(name, module.in_features, module.out_features)
                W = _numbers(module.weight).T
                self.parameters += [W, _or_zeros(module.bias, W)]
                self.layers.append(Dense(module.out_features))
            case "LayerNorm":
                self._add_layer_norm(name, module)
            case "BatchNorm1d":
                self._add_batch_norm(name, module)
            case "EmbedColumn":
                self._add_embedding(name, module)
            case _:
                self._add_block(name, module)

    def _take(self, name: str, n_in: int, n_out: int) -> None:
        """Check the width of the next layer."""
        if self.width not in (None, n_in):
            raise ValueError(f"{name} takes {n_in} columns, but gets {self.width}")
        self.n_in = n_in if self.n_in is None else self.n_in
        self.width = n_out

    def _add_layer_norm(self, name: str, module: Any) -> None:
        if len(module.normalized_shape) != 1 or not module.elementwise_affine:
            raise ValueError(f"{name} must be a LayerNorm of one dimension with elementwise_affine=True")
        (width,) = module.normalized_shape
        self._take(name, width, width)
        gain = _numbers(module.weight)
        self.parameters += [gain, _or_zeros(module.bias, gain)]
        self.layers.append(LayerNorm(epsilon=_above_0(name, "eps", module.eps)))

    def _add_batch_norm(self, name: str, module: Any) -> None:
        if not module.affine or module.running_mean is None:
            raise ValueError(f"{name} must be a BatchNorm1d with affine=True and track_running_stats=True")
        if module.momentum is None or not 0 < module.momentum < 1:
            raise ValueError(
                f"{name} must have a momentum between 0 and 1 in a Network, got {module.momentum!r}"
            )
        self._take(name, module.num_features, module.num_features)
        self.parameters += [_numbers(module.weight), _numbers(module.bias)]
        self.statistics += [_numbers(module.running_mean), _numbers(module.running_var)]
        epsilon = _above_0(name, "eps", module.eps)
        self.layers.append(BatchNorm(momentum=float(module.momentum), epsilon=epsilon))

    def _add_embedding(self, name: str, module: Any) -> None:
        if self.inside or not all(isinstance(layer, Embedding) for layer in self.layers):
            raise ValueError(
                f"{name} is an EmbedColumn, which must stand in front of all layers in a Network"
            )
        vectors = _numbers(module.embedding.weight)
        categories, size = vectors.shape
        self._take(name, module.n_in, module.n_in - 1 + size)
        self.columns = self.columns if self.layers else list(range(module.n_in))
        if not 0 <= module.column < len(self.columns):
            raise ValueError(f"{name} must replace a column of the input, got column {module.column}")
        self.layers.append(Embedding(self.columns.pop(module.column), categories, size))
        self.parameters.append(vectors)

    def _add_block(self, name: str, module: Any) -> None:
        """A Residual: its block's parameters, then its projection's."""
        block = _Parts(inside=True, width=self.width)
        for place, part in _flat(module.block, ""):
            block.add(f"{name}.block{place.removeprefix('module')}", part)
        if block.n_in is None or block.width is None:
            raise ValueError(f"{name} must have a layer in its block")
        self._take(name, block.n_in, block.width)
        self.parameters += block.parameters
        self.statistics += block.statistics
        self.layers.append(Residual(block.layers))
        projection, kind = module.projection, type(module.projection).__name__
        if kind != ("Identity" if block.n_in == block.width else "Linear"):
            raise ValueError(
                f"{name} has a block from {block.n_in} to {block.width} columns beside a projection that is "
                f"{kind}, which a Network cannot have"
            )
        if kind == "Linear":
            side = _Parts(inside=True, width=block.n_in)
            side.add(f"{name}.projection", projection)
            if side.width != block.width:
                raise ValueError(
                    f"{name} adds {side.width} columns of its projection to {block.width} of its block"
                )
            self.parameters += side.parameters

    def _add_dropout(self, name: str, module: Any) -> None:
        last = self.layers[-1] if self.layers else None
        if last is None or isinstance(last, Embedding | Dropout):
            raise ValueError(f"{name} is a Dropout, which must stand behind a {_PLACES} or its activation")
        self.layers.append(Dropout(module.p))

    def _add_activation(self, name: str, module: torch.nn.Module) -> None:
        kind = type(module).__name__
        activation = next((a for a, (class_name, _) in _MODULES.items() if class_name == kind), None)
        if activation is None:
            raise ValueError(f"{name} is a {kind}, which a Network cannot have")
        for option, value in _MODULES[activation][1].items():
            given = getattr(module, option)
            if given != value:
                raise ValueError(f"{name} must have {option}={value!r} in a Network, got {given!r}")
        last = self.layers[-1] if self.layers else None
        if isinstance(last, Dense) and last.activation == "identity":
            self.layers[-1] = Dense(last.units, activation)
        elif isinstance(last, LayerNorm | BatchNorm | Residual):
            self.layers.append(Activation(activation))
        else:
            raise ValueError(f"{name} is a {kind}, which must stand right behind a {_PLACES} in a Network")

    def network(
        self, loss: str | Loss | None, optimizer: str | Optimizer, seed: int, backend: str
    ) -> Network:
        """The network, with its parameters."""
        if self.n_in is None or not any(isinstance(layer, Dense) for layer in all_layers(self.layers)):
            raise ValueError("module must have at least one Linear, got none")
        chosen = as_loss((self.gaussian or _LINK_LOSSES.get(self.end, "mse")) if loss is None else loss)
        self._take_link(chosen)
        # A dropout behind the last layer acts in training alone, and no Network has one there.
        if isinstance(self.layers[-1], Dropout):
            raise ValueError("module ends with Dropout, which must stand between two Linear in a Network")
        dtype = np.result_type(*self.parameters).name
        network = Network(
            [Input(self.n_in), *self.layers],
            loss=chosen,
            optimizer=optimizer,
            seed=seed,
            dtype=dtype,
            backend=backend,
        )
        network = self._with_statistics(network, backend)
        names = network.plan.parameter_shapes()
        values = [*self.parameters, *self.statistics]
        network.set_parameters(dict(zip(names, values, strict=True)))
        return network

    def _take_link(self, loss: Loss) -> None:
        """Leave to the loss's link what it computes."""
        link = LOSSES[loss.name].link
        if self.end in ("Softmax", "Exp") and link != self.end.lower():
            raise ValueError(
                f"module ends with {self.end}, so that the loss must be {_LINK_LOSSES[self.end]!r}, "
                f"got {loss.name!r}"
            )
        if self.gaussian is not None and link != "gaussian":
            raise ValueError(
                f"module ends with Gaussian, so that the loss must be 'gaussian_nll', got {loss.name!r}"
            )
        last = self.layers[-1]
        if self.end == "Sigmoid" and link == "sigmoid":
            self.layers[-1:] = [Dense(last.units)] if isinstance(last, Dense) else []

    def _with_statistics(self, network: Network, backend: str) -> Network:
        """The network with the preprocessing of the module: an affine map, whatever it was called."""
        if self.preprocessing is None and self.target_preprocessing is None:
            return network
        config = dict(network.config)
        if self.preprocessing is not None:
            config["preprocessing"] = {"mode": "standardize", **self.preprocessing}
        if self.target_preprocessing is not None:
            of_means = None if self.gaussian is None else len(self.target_preprocessing["shift"]) // 2
            units = {name: values[:of_means] for name, values in self.target_preprocessing.items()}
            config["target_preprocessing"] = {"mode": "standardize", **units}
        return Network.from_config(config, backend=backend)


def _is_link(module: Any) -> bool:
    kind = type(module).__name__
    return kind in ("Exp", "Gaussian") or (kind == "Softmax" and module.dim in (None, 1, -1))


def _keeps_rows(module: Any) -> bool:
    return module.start_dim == 1 and module.end_dim in (-1, 1)


def _or_zeros(bias: Any, weights: Array) -> Array:
    """What a module adds, with one number an output; zeros where it adds nothing."""
    return np.zeros(weights.shape[-1], weights.dtype) if bias is None else _numbers(bias)


def _above_0(name: str, option: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must have {option} greater than 0 in a Network, got {value!r}")
    return float(value)


def _affine(module: Any) -> dict[str, list[float]]:
    return {name: getattr(module, name).double().tolist() for name in ("shift", "scale")}


def _numbers(parameter: Any) -> Array:
    import torch

    kept = parameter.detach()
    numbers: Array = (kept if kept.dtype == torch.float64 else kept.float()).numpy()
    return numbers


def _check_import(module: torch.nn.Module, parts: _Parts, network: Network) -> None:
    forward = forward_of(network)
    rows = parity.sample_rows(forward)
    widened = module.to(getattr(_import_torch("from_torch"), network.dtype))
    outputs = _outputs(widened, rows).astype(np.float64)
    if forward.link != "identity" and parts.end not in _LINK_LOSSES and parts.gaussian is None:
        outputs = LINKS[forward.link](outputs, {"floor": forward.floor})
    parity.check("PyTorch module", forward, rows, outputs)
