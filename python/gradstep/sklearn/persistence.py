"""Estimators in files without code: the same safetensors with JSON as a network's, and the network alone."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from gradstep.io import read_model, write_model
from gradstep.layers import Activation, BatchNorm, Dense, Input, Layer, LayerNorm
from gradstep.losses import Loss, loss_from_config
from gradstep.network import Network
from gradstep.schedules import SCHEDULE_CLASSES
from gradstep.sklearn.model import Coefficients, named
from gradstep.tables import TableEncoder

Tensors = dict[str, np.ndarray[Any, Any]]
Self = TypeVar("Self", bound="Persistent")

_classes: dict[str, type[Persistent]] = {}
"""Estimators that a file may hold, by name."""


class Persistent:
    """`save`, `load` and `export` of an estimator."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _classes[cls.__name__] = cls

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and everything learnt to one file, atomically; no code is in it.

        Parameters
        ----------
        path : path-like
            The file to write or replace; its folder must exist.

        Raises
        ------
        TypeError
            If a parameter is a function or a generator, which a file cannot hold.
        OSError
            If the file cannot be written.
        """
        tensors: Tensors = {}
        state = _pack_estimator(self, "", tensors)
        write_model(path, {"estimator": state}, tensors)

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike[str]) -> Self:
        """Read an estimator that `save` wrote.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        estimator
            As it was, ready to predict and to train further.

        Raises
        ------
        OSError
            If there is no such file, or it cannot be opened.
        ValueError
            If it is damaged, or holds something else than this estimator.
        """
        config, tensors = read_model(path)
        if "estimator" not in config:
            raise ValueError(f"{os.fspath(path)} holds a network, not an estimator: gradstep.load reads it")
        try:
            estimator = _unpack(config["estimator"], tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{os.fspath(path)} does not hold a whole estimator: {error!r}") from None
        if not isinstance(estimator, cls):
            raise ValueError(f"{os.fspath(path)} holds a {type(estimator).__name__}, not a {cls.__name__}")
        return estimator

    def to_network(self) -> Network:
        """The trained network, as `gradstep.Network`.

        Returns
        -------
        Network
            With the same predictions; probabilities of several classes, or of the second of two.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If nothing was trained yet.
        """
        raise NotImplementedError

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the trained network for `gradstep.load` and the command ``gradstep predict``, or for others.

        Parameters
        ----------
        path : path-like
            The file to write or replace, ending in .safetensors, in .onnx (`gradstep.export_onnx`), or in .h
            for C (`gradstep.export_c`).

        Raises
        ------
        ValueError
            If path has another ending.
        sklearn.exceptions.NotFittedError
            If nothing was trained yet.
        """
        writers = {".safetensors": Network.save, ".onnx": Network.export_onnx, ".h": Network.export_c}
        ending = os.path.splitext(path)[1]
        if ending not in writers:
            raise ValueError(f"path must end in {', '.join(writers)}, got {os.fspath(path)!r}")
        writers[ending](self.to_network(), path)


def _pack_estimator(estimator: Any, prefix: str, tensors: Tensors) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    for name, value in parameters.items():
        if callable(value) or isinstance(value, np.random.RandomState | np.random.Generator):
            raise TypeError(f"the parameter {name} cannot be saved: {value!r} is neither a number nor a name")
    learnt = {
        name: value
        for name, value in vars(estimator).items()
        if name not in parameters and not name.startswith(("_skl", "_callback"))
    }
    return {
        "kind": "estimator",
        "class": type(estimator).__name__,
        "parameters": _pack(parameters, f"{prefix}parameters.", tensors),
        "attributes": _pack(learnt, f"{prefix}attributes.", tensors),
    }


def _pack(value: Any, name: str, tensors: Tensors) -> Any:
    """A JSON value; arrays of numbers go to the tensors."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return {"kind": "labels", "values": [_pack(item, name, tensors) for item in value.tolist()]}
    if isinstance(value, np.ndarray):
        tensors[name] = value
        return {"kind": "array", "name": name}
    if isinstance(value, Mapping):
        items = [
            [_pack(key, name, tensors), _pack(item, f"{name}{key}.", tensors)] for key, item in value.items()
        ]
        return {"kind": "mapping", "items": items}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{name}{index}.", tensors) for index, item in enumerate(value)]
        return {"kind": type(value).__name__, "items": items}
    if isinstance(value, Loss):
        return {"kind": "loss", "config": value.to_config()}
    if type(value) in SCHEDULE_CLASSES.values():
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"kind": "schedule", "class": type(value).__name__, "fields": _pack(fields, name, tensors)}
    if isinstance(value, TableEncoder):
        return {"kind": "encoder", "config": value.to_config()}
    if isinstance(value, Persistent):
        return _pack_estimator(value, name, tensors)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"kind": "float", "text": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name.rstrip('.')} cannot be saved: {value!r}")


def _unpack(value: Any, tensors: Tensors) -> Any:
    if not isinstance(value, dict):
        return value
    kind = value["kind"]
    if kind == "labels":
        return np.array([_unpack(item, tensors) for item in value["values"]])
    if kind == "array":
        return tensors[value["name"]]
    if kind == "mapping":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value["items"]}
    if kind in ("list", "tuple"):
        items = [_unpack(item, tensors) for item in value["items"]]
        return items if kind == "list" else tuple(items)
    if kind == "loss":
        return loss_from_config(value["config"])
    if kind == "schedule":
        return SCHEDULE_CLASSES[value["class"]](**_unpack(value["fields"], tensors))
    if kind == "encoder":
        return TableEncoder.from_config(value["config"])
    if kind == "float":
        return float(value["text"])
    estimator: Any = _classes[value["class"]](**_unpack(value["parameters"], tensors))
    vars(estimator).update(_unpack(value["attributes"], tensors))
    return estimator


def network_of(estimator: Any, loss: Loss, activations: tuple[str, ...], backend: str) -> Network:
    """A network with a fitted perceptron's coefficients."""
    values = Coefficients.of(estimator)
    layers: list[Layer] = [Input(values.widths[0])]
    for width, activation in zip(values.widths[1:], activations, strict=False):
        if values.normalization is None:
            layers.append(Dense(width, activation))
        else:
            norm = BatchNorm() if values.normalization == "batch_norm" else LayerNorm()
            layers += [Dense(width), norm, Activation(activation)]
    layers.append(Dense(values.widths[-1]))
    dtype = values.coefs[0].dtype.name
    network = Network(layers, loss=loss, optimizer="adam", dtype=dtype, backend=backend)
    network.set_parameters(named(values))
    return network
