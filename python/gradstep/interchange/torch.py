"""Networks from and to PyTorch: ``torch.nn.Sequential`` with the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.backends.numpy import LEAKY_RELU_SLOPE, LINKS, LOSSES
from gradstep.interchange import parity
from gradstep.interchange.forward import Forward, forward_of
from gradstep.layers import Dense, Dropout, Input, Layer
from gradstep.losses import Loss, as_loss
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

_LINK_LOSSES = {"Softmax": "cross_entropy", "Sigmoid": "binary_cross_entropy", "Exp": "poisson"}
"""The loss of a network that ends with one of these modules, where none is given."""


def to_torch(net: Any, *, logits: bool = False) -> torch.nn.Sequential:
    """A network as a PyTorch module with the outputs of `Network.predict`.

    The module holds copies of the parameters and is in evaluation mode; ``.train()`` turns dropout on. It
    takes tensors of the network's dtype, (n, n_in); of a network with a `TableEncoder`, the encoder's
    features. The preprocessing is a module with buffers in front. Where targets are standardized, outputs are
    in the units of y and float64, as in `predict`; ``.float()`` makes everything float32.

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
    modules = [*_front(forward), *_dense(forward)]
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


def _dense(forward: Forward) -> Iterator[torch.nn.Module]:
    import torch

    for layer in forward.layers:
        n_in, n_out = layer.W.shape
        # Without initial values, which would move PyTorch's random generator.
        linear = torch.nn.utils.skip_init(
            torch.nn.Linear, n_in, n_out, dtype=getattr(torch, forward.network.dtype)
        )
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(layer.W.T)))
            linear.bias.copy_(torch.from_numpy(layer.b))
        yield linear
        if layer.activation != "identity":
            name, options = _MODULES[layer.activation]
            yield getattr(torch.nn, name)(**options)
        if layer.dropout:
            yield torch.nn.Dropout(layer.dropout)


def _back(forward: Forward) -> Iterator[torch.nn.Module]:
    import torch

    from gradstep.interchange.torch_modules import Exp, TargetUnits

    links: dict[str, Callable[[], torch.nn.Module]] = {
        "exp": Exp,
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
        Of Linear, each followed by at most one activation (ReLU, LeakyReLU(0.01), Tanh, Sigmoid, Softplus,
        ELU, SELU, GELU, SiLU, Mish) and then Dropout, or such modules in one another; also what `to_torch`
        returned. Flatten in front does nothing to rows. A Linear without bias gets one of zeros.
    loss : str or Loss, optional
        The loss of the network. By default that of the module at the end: cross_entropy for Softmax,
        binary_cross_entropy for Sigmoid, else mse. A module that ends without its Softmax or Sigmoid, as
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

    layers: list[Layer] = field(default_factory=list)
    parameters: list[Array] = field(default_factory=list)
    """W and b of each layer in turn."""
    preprocessing: dict[str, list[float]] | None = None
    target_preprocessing: dict[str, list[float]] | None = None
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
        if self.end in ("Softmax", "Exp", "TargetUnits") and kind not in ("Identity", "TargetUnits"):
            raise ValueError(f"{name} is a {kind}, but a Network ends behind a {self.end}")
        if kind == "Identity" or (kind == "Flatten" and not self.layers and _keeps_rows(module)):
            return
        if kind == "Linear":
            self._add_linear(name, module)
        elif kind == "Dropout":
            self._add_dropout(name, module)
        elif kind == "Preprocess" and not self.layers and self.preprocessing is None:
            self.preprocessing = _affine(module)
        elif kind == "TargetUnits" and self.layers:
            self.target_preprocessing = _affine(module)
        elif kind == "Exp" or (kind == "Softmax" and getattr(module, "dim", None) in (None, 1, -1)):
            if self.end != "Linear":
                raise ValueError(f"{name} is a {kind}, which must stand right behind a Linear in a Network")
        else:
            self._add_activation(name, module)
        self.end = kind

    def _add_linear(self, name: str, module: Any) -> None:
        n_in, n_out = module.in_features, module.out_features
        if self.parameters and n_in != self.parameters[-1].size:
            raise ValueError(f"{name} takes {n_in} columns, but gets {self.parameters[-1].size}")
        W = _numbers(module.weight).T
        b = np.zeros(n_out, W.dtype) if module.bias is None else _numbers(module.bias)
        if not self.layers:
            self.layers.append(Input(n_in))
        self.layers.append(Dense(n_out))
        self.parameters += [W, b]

    def _add_dropout(self, name: str, module: Any) -> None:
        if not isinstance(self.layers[-1] if self.layers else None, Dense):
            raise ValueError(f"{name} is a Dropout, which must stand behind a Linear or its activation")
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
        if not isinstance(last, Dense) or last.activation != "identity":
            raise ValueError(f"{name} is a {kind}, which must stand right behind a Linear in a Network")
        self.layers[-1] = Dense(last.units, activation)

    def network(
        self, loss: str | Loss | None, optimizer: str | Optimizer, seed: int, backend: str
    ) -> Network:
        """The network, with its parameters."""
        if not self.layers:
            raise ValueError("module must have at least one Linear, got none")
        chosen = as_loss(_LINK_LOSSES.get(self.end, "mse") if loss is None else loss)
        self._take_link(chosen)
        # A dropout behind the last layer acts in training alone, and no Network has one there.
        if isinstance(self.layers[-1], Dropout):
            raise ValueError("module ends with Dropout, which must stand between two Linear in a Network")
        dtype = np.result_type(*self.parameters).name
        network = Network(
            self.layers, loss=chosen, optimizer=optimizer, seed=seed, dtype=dtype, backend=backend
        )
        network = self._with_statistics(network, backend)
        names = network.plan.parameter_shapes()
        network.set_parameters(dict(zip(names, self.parameters, strict=True)))
        return network

    def _take_link(self, loss: Loss) -> None:
        """Leave to the loss's link what it computes."""
        link = LOSSES[loss.name].link
        if self.end in ("Softmax", "Exp") and link != self.end.lower():
            raise ValueError(
                f"module ends with {self.end}, so that the loss must be {_LINK_LOSSES[self.end]!r}, "
                f"got {loss.name!r}"
            )
        last = self.layers[-1]
        if self.end == "Sigmoid" and link == "sigmoid" and isinstance(last, Dense):
            self.layers[-1] = Dense(last.units)

    def _with_statistics(self, network: Network, backend: str) -> Network:
        """The network with the preprocessing of the module: an affine map, whatever it was called."""
        if self.preprocessing is None and self.target_preprocessing is None:
            return network
        config = dict(network.config)
        if self.preprocessing is not None:
            config["preprocessing"] = {"mode": "standardize", **self.preprocessing}
        if self.target_preprocessing is not None:
            config["target_preprocessing"] = {"mode": "standardize", **self.target_preprocessing}
        return Network.from_config(config, backend=backend)


def _keeps_rows(module: Any) -> bool:
    return module.start_dim == 1 and module.end_dim in (-1, 1)


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
    if forward.link != "identity" and parts.end not in _LINK_LOSSES:
        outputs = LINKS[forward.link](outputs, {})
    parity.check("PyTorch module", forward, rows, outputs)
