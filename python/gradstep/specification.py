"""What a network is before it has seen data: layers, loss, optimizer and settings, checked together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradstep.backends.base import LayerPlan, Parameters, Plan
from gradstep.initializers import Given, default_initializer, given_values, initial_weights
from gradstep.layers import (
    Dense,
    Embedding,
    Layer,
    check_layers,
    dense_layers,
    layer_from_config,
    layer_plans,
)
from gradstep.losses import Loss, as_loss, loss_from_config
from gradstep.names import check_name
from gradstep.optimizers import Optimizer, as_optimizer, optimizer_from_config
from gradstep.preprocessing import TARGET_PREPROCESSING, check_preprocessing
from gradstep.validation import check_integer, check_real

DTYPES = ("float32", "float64")

OTHER_STREAM = 1 << 20
"""Random streams of weights that are not those of `Dense` layers, which count from 0."""

_ONES = ("gain", "variance")
"""Parameters that are not 0 at first."""


@dataclass(frozen=True)
class Specification:
    """The arguments of `Network` but the backend; see there."""

    layers: tuple[Layer, ...]
    loss: Loss
    optimizer: Optimizer
    l2: float
    preprocessing: str
    target_preprocessing: str
    seed: int
    dtype: str

    @classmethod
    def checked(
        cls,
        *,
        layers: object,
        loss: object,
        optimizer: object,
        l2: object,
        preprocessing: object,
        target_preprocessing: object,
        seed: object,
        dtype: object,
    ) -> Specification:
        """The specification of these arguments, or a TypeError or ValueError in one sentence."""
        specification = cls(
            layers=check_layers(layers),
            loss=as_loss(loss),
            optimizer=as_optimizer(optimizer),
            l2=check_real("l2", l2, minimum=0.0),
            preprocessing=check_preprocessing(preprocessing),
            target_preprocessing=check_name(
                "target_preprocessing", target_preprocessing, TARGET_PREPROCESSING
            ),
            seed=check_integer("seed", seed, minimum=0, maximum=2**64 - 1),
            dtype=check_name("dtype", _dtype_name(dtype), DTYPES),
        )
        specification._check_loss()
        return specification

    def _check_loss(self) -> None:
        n_out, loss = self.n_out, self.loss.name
        for option, values in self.loss.engine_options.items():
            if isinstance(values, tuple) and len(values) != n_out:
                raise ValueError(
                    f"{option} of the loss {loss!r} must have one value for each of the {n_out} "
                    f"output(s), got {len(values)}"
                )
        if not self.loss.has_link:
            return
        activation = layer_plans(self.layers, 0)[-1].activation
        if activation != "identity":
            takes = "logits" if self.loss.is_classification else "logarithms of rates"
            raise ValueError(
                f"the last layer must have activation 'identity' for the loss {loss!r}, which takes {takes} "
                f"(predict applies the link itself), got {activation!r}"
            )
        if self.loss.target_kind == "labels" and n_out < 2:
            raise ValueError(
                f"the last layer must have one unit per class, at least 2, for {loss!r}, got {n_out}; "
                "use 'binary_cross_entropy' for a single output"
            )
        if self.target_preprocessing != "none":
            raise ValueError(
                f"target_preprocessing must be 'none' for the loss {loss!r}, "
                f"got {self.target_preprocessing!r}"
            )

    @property
    def dense_layers(self) -> tuple[Dense, ...]:
        """All dense layers, those of blocks among them; projections are not."""
        return tuple(dense_layers(self.layers))

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """The columns of X that hold categories."""
        return tuple(layer for layer in self.layers if isinstance(layer, Embedding))

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return self.dense_layers[-1].units

    def plan(self, n_in: int) -> Plan:
        """What a backend needs to know for inputs of n_in columns."""
        return Plan(
            layers=layer_plans(self.layers, n_in),
            loss=self.loss.name,
            optimizer=self.optimizer.name,
            loss_options=self.loss.engine_options,
            optimizer_options=self._optimizer_options(),
            l2=self.l2,
            dtype=self.dtype,
            seed=self.seed,
        )

    def _optimizer_options(self) -> dict[str, float]:
        """The optimizer's, with an epsilon that the dtype holds: 0 would divide what has no gradient by 0."""
        options = dict(self.optimizer.options)
        if "epsilon" in options:
            options["epsilon"] = max(options["epsilon"], float(np.finfo(self.dtype).tiny))
        return options

    def initial_parameters(self, plan: Plan) -> Iterator[Parameters]:
        """Parameters before training, the same for every backend, layer by layer to save memory."""
        dense = enumerate(self.dense_layers)
        for index, planned in enumerate(plan.layers):
            if planned.name.startswith("dense_"):
                yield self._initial_dense(*next(dense), planned)
                continue
            shapes = {**planned.parameter_shapes(), **planned.statistics_shapes()}
            values = {name: np.full(shape, name in _ONES, self.dtype) for name, shape in shapes.items()}
            if planned.kind == "embedding":
                rng = np.random.default_rng([self.seed, OTHER_STREAM + index])
                values["W"] = rng.standard_normal(shapes["W"]).astype(self.dtype)
            elif planned.kind == "dense":
                stream, (n_in, n_out) = OTHER_STREAM + index, shapes["W"]
                values["W"] = initial_weights("glorot_uniform", self.seed, stream, n_in, n_out, self.dtype)
            yield {f"{planned.name}.{name}": value for name, value in values.items()}

    def _initial_dense(self, index: int, layer: Dense, planned: LayerPlan) -> Parameters:
        initializer = layer.initializer
        if not isinstance(initializer, str | Given):
            initializer = default_initializer(planned.activation)
        weights = initial_weights(initializer, self.seed, index, planned.n_in, planned.n_out, self.dtype)
        biases = np.zeros(planned.n_out)
        if isinstance(layer.bias_initializer, Given):
            argument = f"bias_initializer of {planned.name}"
            biases = given_values(layer.bias_initializer, (planned.n_out,), argument)
        return {f"{planned.name}.W": weights, f"{planned.name}.b": biases.astype(self.dtype)}

    def table(self, n_in: int | None) -> str:
        """Layers, shapes and parameter counts, one line each; n_in is None while it is unknown."""
        rows = [("layer", "activation", "shape", "parameters")]
        plans, total = layer_plans(self.layers, n_in or 0), 0
        for layer in plans:
            known = layer.n_in > 0 and layer.n_out > 0
            count = sum(int(np.prod(shape)) for shape in layer.parameter_shapes().values()) if known else None
            total += count or 0
            shape = f"{layer.n_in or '?'} -> {layer.n_out or '?'}"
            rows.append((layer.name, layer.activation, shape, _count(count)))
        rows.append(("total", "", "", _count(None if n_in is None else total)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False))
            + f"  {row[3]:>{widths[3]}}"
            for row in rows
        )

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values, but for the preprocessing, which has statistics with it."""
        return {
            "layers": [layer.to_config() for layer in self.layers],
            "loss": self.loss.to_config(),
            "optimizer": self.optimizer.to_config(),
            "l2": self.l2,
            "seed": self.seed,
            "dtype": self.dtype,
        }


def arguments_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Network` that a config describes."""
    return {
        "layers": [layer_from_config(layer) for layer in config["layers"]],
        "loss": loss_from_config(config["loss"]),
        "optimizer": optimizer_from_config(config["optimizer"]),
        "l2": config["l2"],
        "preprocessing": config["preprocessing"]["mode"],
        "target_preprocessing": config["target_preprocessing"]["mode"],
        "seed": config["seed"],
        "dtype": config["dtype"],
    }


def _dtype_name(dtype: Any) -> Any:
    """The name of a numpy dtype given as an object."""
    return dtype if isinstance(dtype, str) else getattr(dtype, "name", getattr(dtype, "__name__", dtype))


def _count(parameters: int | None) -> str:
    return "?" if parameters is None else f"{parameters:,}"
