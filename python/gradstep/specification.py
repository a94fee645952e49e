"""What a network is before it has seen data: layers, loss, optimizer and settings, checked together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradstep.averaging import Averaging, averaging_from_config, check_averaging
from gradstep.backends.base import LayerPlan, Parameters, Plan
from gradstep.initializers import Given, default_initializer, given_values, initial_weights
from gradstep.layers import (
    BatchNorm,
    Dense,
    Dropout,
    Embedding,
    Layer,
    all_layers,
    check_layers,
    layer_from_config,
    layer_plans,
    summaries,
)
from gradstep.losses import CustomLoss, Loss, as_loss, loss_from_config
from gradstep.names import check_name
from gradstep.optimizers import LBFGS, Optimizer, as_optimizer, optimizer_from_config
from gradstep.preprocessing import TARGET_PREPROCESSING, check_preprocessing
from gradstep.validation import check_integer, check_real

DTYPES = ("float32", "float64")

OTHER_STREAM = 1 << 20
"""Random streams of weights that are not those of `Dense` layers, which count from 0."""

EXACT_FLOAT32 = 1 << 24
"""Up to this, float32 holds every whole number."""


@dataclass(frozen=True, eq=False)
class Specification:
    """The arguments of `Network` but the backend; see there."""

    layers: tuple[Layer, ...]
    loss: Loss
    optimizer: Optimizer
    l2: float
    l1: float
    averaging: Averaging | None
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
        l1: object,
        averaging: object,
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
            l1=check_real("l1", l1, minimum=0.0),
            averaging=check_averaging(averaging),
            preprocessing=check_preprocessing(preprocessing),
            target_preprocessing=check_name(
                "target_preprocessing", target_preprocessing, TARGET_PREPROCESSING
            ),
            seed=check_integer("seed", seed, minimum=0, maximum=2**64 - 1),
            dtype=check_name("dtype", _dtype_name(dtype), DTYPES),
        )
        specification._check_loss()
        specification._check_layers()
        specification._check_lbfgs()
        return specification

    def _check_loss(self) -> None:
        n_out, loss = self.n_out, self.loss.name
        for option, values in self.loss.engine_options.items():
            if isinstance(values, tuple) and len(values) != n_out:
                raise ValueError(
                    f"{option} of the loss {loss!r} must have one value for each of the {n_out} "
                    f"output(s), got {len(values)}"
                )
        if n_out % self.loss.outputs_per_target:
            raise ValueError(
                f"the last layer must have two units for each target, for its mean and its variance, "
                f"with the loss {loss!r}, got {n_out}"
            )
        activation = layer_plans(self.layers, 0)[-1].activation
        if activation != "identity" and (self.loss.has_link or self.loss.is_classification):
            itself = " (predict applies the link itself)" if self.loss.has_link else ""
            raise ValueError(
                f"the last layer must have activation 'identity' for the loss {loss!r}, which takes "
                f"{self.loss.takes}{itself}, got {activation!r}"
            )
        if self.loss.target_kind == "labels" and n_out < 2:
            raise ValueError(
                f"the last layer must have one unit per class, at least 2, for {loss!r}, got {n_out}; "
                f"use 'binary_{loss}' for a single output"
            )
        if self.target_preprocessing != "none" and not self.loss.learns_units:
            raise ValueError(
                f"target_preprocessing must be 'none' for the loss {loss!r}, "
                f"got {self.target_preprocessing!r}"
            )

    def check_batch(self, rows: int) -> None:
        """Raise a ValueError where batch normalisation would see one row at a time, which it makes zero."""
        if rows < 2 and any(isinstance(layer, BatchNorm) for layer in all_layers(self.layers)):
            raise ValueError(f"batch_size must be at least 2 with BatchNorm, got {rows}")

    def _check_layers(self) -> None:
        for embedding in self.embeddings:
            if self.dtype == "float32" and embedding.categories > EXACT_FLOAT32:
                raise ValueError(
                    f"categories of an Embedding must be at most {EXACT_FLOAT32} with float32, which cannot "
                    f"tell larger numbers apart, got {embedding.categories}: use dtype='float64'"
                )

    def _check_lbfgs(self) -> None:
        if not isinstance(self.optimizer, LBFGS):
            return
        layers = tuple(all_layers(self.layers))
        unfit = {
            "l1, which has no derivative at 0": self.l1 > 0,
            "averaging": self.averaging is not None,
            "Dropout": any(isinstance(layer, Dropout) for layer in layers),
            "BatchNorm, whose statistics follow updates": any(
                isinstance(layer, BatchNorm) for layer in layers
            ),
            "learning_rate_factor": any(getattr(layer, "learning_rate_factor", 1) != 1 for layer in layers),
        }
        for what, given in unfit.items():
            if given:
                raise ValueError(f"the optimizer LBFGS cannot be combined with {what}")

    @property
    def dense_layers(self) -> tuple[Dense, ...]:
        """All dense layers, those of blocks among them; projections are not."""
        return tuple(layer for layer in all_layers(self.layers) if isinstance(layer, Dense))

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """The columns of X that hold categories."""
        return tuple(layer for layer in self.layers if isinstance(layer, Embedding))

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return self.dense_layers[-1].units

    @property
    def n_targets(self) -> int:
        """Columns of y that are not labels."""
        return self.n_out // self.loss.outputs_per_target

    def plan(self, n_in: int) -> Plan:
        """What a backend needs to know for inputs of n_in columns."""
        settings: dict[str, Any] = dict(self.optimizer.clipping)
        if self.averaging is not None:
            settings.update(self.averaging.plan_options)
        return Plan(
            layers=tuple(self._representable(layer) for layer in layer_plans(self.layers, n_in)),
            loss=self.loss.name,
            optimizer=self.optimizer.engine_name,
            loss_options=self.loss.engine_options,
            optimizer_options=self._optimizer_options(),
            l2=self.l2,
            dtype=self.dtype,
            seed=self.seed,
            custom_loss=self.loss.engine_function if isinstance(self.loss, CustomLoss) else None,
            l1=self.l1,
            **settings,
        )

    def _representable(self, layer: LayerPlan) -> LayerPlan:
        """With an epsilon that the dtype holds: 0 would divide what does not vary by 0."""
        return replace(layer, epsilon=max(layer.epsilon, float(np.finfo(self.dtype).tiny)))

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
            values, shapes = planned.initial_values(self.dtype), planned.all_shapes()
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
        layers = summaries(self.layers, n_in)
        for layer in layers:
            shape = f"{layer.n_in or '?'} -> {layer.units or '?'}"
            rows.append((layer.name, layer.described, shape, _count(layer.parameters)))
        total = None if n_in is None else sum(layer.parameters or 0 for layer in layers)
        rows.append(("total", "", "", _count(total)))
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
            "l1": self.l1,
            "averaging": None if self.averaging is None else self.averaging.to_config(),
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
        "l1": config.get("l1", 0.0),
        "averaging": averaging_from_config(config.get("averaging")),
        "preprocessing": config["preprocessing"]["mode"],
        "target_preprocessing": config["target_preprocessing"]["mode"],
        "seed": config["seed"],
        "dtype": config["dtype"],
    }


def _dtype_name(dtype: Any) -> Any:
    """The name of a numpy dtype given as an object."""
    return dtype if isinstance(dtype, str) else getattr(dtype, "name", getattr(dtype, "__name__", dtype))


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
