"""What is measured: networks, data and initial weights, the same for every contender."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = list[tuple[Array, Array]]
"""One (W, b) per layer, W of shape (n_in, n_out)."""

SHUFFLE_SEED = 7
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
OPTIMIZERS: dict[str, dict[str, float]] = {
    "adam": {},
    "adamw": {"weight_decay": 0.01},
    "amsgrad": {},
    "nadam": {"momentum_decay": 0.004},
    "sgd": {"momentum": 0.9, "nesterov": True},
    "rmsprop": {"decay": 0.99, "momentum": 0.9},
    "adagrad": {},
    "lion": {"weight_decay": 0.01},
    "lbfgs": {"history_size": 10},
}
"""Options beside BETA1, BETA2 and EPSILON; lion has BETA1 for both of its."""
AVERAGES = ("ema", "swa")
"""Means of the parameters beside Adam: exponential after every step, equal after every epoch."""
EMA_DECAY = 0.999
BLOCKS = ("layer_norm", "batch_norm", "residual", "scale", "embedding", "dropout")
"""Kinds of hidden layers: normalised in front of the activation, with inputs added to outputs, with a weight
for each input, behind an embedding of column 0, with outputs that are dropped."""
CATEGORIES, EMBEDDED, DROPPED = 100, 8, 0.2
"""Of the embedding, and of the dropout."""
QUANTILE, FOCUS, SMOOTHING, FLOOR = 0.9, 2.0, 0.1, 1e-6
"""Options of the losses quantile, focal and binary_focal, smoothed_cross_entropy, gaussian_nll."""
LABELS = ("cross_entropy", "smoothed_cross_entropy", "focal", "hinge")
"""Losses of classes."""
BINARY = ("binary_cross_entropy", "binary_focal", "binary_hinge")
"""Losses of outputs that are 0 or 1."""
CHECK_STEPS = 20
"""Steps of an agreement check, unless two epochs take more or the case says otherwise."""


@dataclass(frozen=True)
class Case:
    """One network, its data and how it is trained."""

    name: str
    widths: tuple[int, ...]
    """Input, hidden layers, output."""
    activation: str
    """Of the hidden layers; the output layer is linear."""
    loss: str
    """One of gradstep's, or smoothed_cross_entropy; classification losses take logits, regression losses are
    means over outputs, too."""
    rows: int
    batch: int
    """Rows of a batch; a batch of all rows is not shuffled."""
    learning_rate: float
    optimizer: str = "adam"
    """One of gradstep's, with the options in `OPTIMIZERS`; a step of lbfgs is an iteration on all rows."""
    dtype: str = "float32"
    block: str = ""
    """One of `BLOCKS`, or plain dense layers."""
    averaging: str = ""
    """One of `AVERAGES`, or none."""

    @property
    def is_full_batch(self) -> bool:
        """Whether a step sees every row, in order."""
        return self.batch >= self.rows

    @property
    def is_plain(self) -> bool:
        """Whether it is dense layers and Adam, which every contender has."""
        return self.optimizer == "adam" and not self.block and not self.averaging

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the last one perhaps smaller."""
        return math.ceil(self.rows / self.batch)

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(n_in, n_out) of every dense layer."""
        n_in = self.widths[0] + (EMBEDDED - 1 if self.block == "embedding" else 0)
        return tuple(zip((n_in, *self.widths[1:-1]), self.widths[1:], strict=True))

    @property
    def n_targets(self) -> int:
        """Columns of the targets."""
        return self.widths[-1] // 2 if self.loss == "gaussian_nll" else self.widths[-1]

    @property
    def parameter_count(self) -> int:
        """Weights and biases."""
        return sum((n_in + 1) * n_out for n_in, n_out in self.layers)

    @property
    def flops_per_row(self) -> int:
        """Algorithmic operations of a step per row, matrix products alone.

        A multiplication and an addition count as two. The forward product and dW cost 2 I O each, and so
        does dX, which the first layer does not need.
        """
        forward = sum(2 * n_in * n_out for n_in, n_out in self.layers)
        first = 2 * self.widths[0] * self.widths[1]
        return 3 * forward - first

    @property
    def flops_per_step(self) -> float:
        """`flops_per_row` times the mean number of rows of a batch."""
        return self.flops_per_row * self.rows / self.steps_per_epoch

    @property
    def check_epochs(self) -> int:
        """Epochs after which contenders must agree on the loss."""
        return max(2, math.ceil(CHECK_STEPS / self.steps_per_epoch))

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Case:
        """The case that `to_json` wrote."""
        return cls(**{**values, "widths": tuple(values["widths"])})


CASES = {
    case.name: case
    for case in (
        Case("1-1", (1, 1), "identity", "mse", 100, 100, 0.05),
        Case("2-4-1", (2, 4, 1), "tanh", "binary_cross_entropy", 100, 100, 0.02),
        Case("4-32-16-4", (4, 32, 16, 4), "tanh", "mse", 10_000, 10_000, 0.01),
        Case("17-64-64-6", (17, 64, 64, 6), "tanh", "mse", 6_400, 64, 1e-3),
        Case("10-46-46-10", (10, 46, 46, 10), "relu", "mse", 12_800, 128, 1e-3),
        Case("64-100-10", (64, 100, 10), "relu", "cross_entropy", 20_000, 200, 1e-3),
        Case("54-256-256-256-7", (54, 256, 256, 256, 7), "relu", "cross_entropy", 25_600, 256, 3e-4),
        Case("784-256-256-10", (784, 256, 256, 10), "relu", "cross_entropy", 12_800, 128, 3e-4),
        Case("1024x4", (1024,) * 5, "relu", "mse", 1_280, 128, 3e-4),
        Case("4096x3", (4096,) * 4, "relu", "mse", 1_024, 512, 1e-4),
    )
}
"""The cases of the comparison in the README, by name, smallest first."""

MORE = {
    case.name: case
    for case in (
        Case("17-64-64-6 by 1", (17, 64, 64, 6), "tanh", "mse", 640, 1, 1e-4),
        Case("17-64-64-6 by 7", (17, 64, 64, 6), "tanh", "mse", 1_400, 7, 1e-3),
        Case("17-64-64-6 by 32", (17, 64, 64, 6), "tanh", "mse", 3_200, 32, 1e-3),
        Case("17-64-64-6 partial", (17, 64, 64, 6), "tanh", "mse", 1_000, 64, 1e-3),
        Case("17-33-65-3", (17, 33, 65, 3), "tanh", "cross_entropy", 6_400, 64, 1e-3),
        Case("64x5", (64,) * 6, "relu", "mse", 8_192, 8_192, 1e-3),
        Case("10000-64-1", (10_000, 64, 1), "relu", "mse", 1_280, 128, 1e-4),
        Case("1-64-10000", (1, 64, 10_000), "relu", "mse", 1_280, 128, 1e-3),
    )
}
"""Single rows, odd batches and widths, a last batch of 40 instead of 64, one side much the wider."""

_RATES = {"sgd": 1e-2, "adagrad": 1e-2, "rmsprop": 1e-4, "lion": 1e-4}
_LOSSES = ("mae", "huber", "quantile", "poisson", "gamma", "gaussian_nll", *BINARY, *LABELS)


def _toolbox(width: int) -> Iterator[Case]:
    """Every optimizer, loss and kind of layer with two hidden layers of that width."""
    rows, batch = (6_400, 64) if width < 1024 else (1_280, 128)
    scale = min(1.0, 256 / width)
    plain = Case("", (width, width, width, 8), "relu", "mse", rows, batch, 1e-3 * scale)
    for optimizer in OPTIMIZERS:
        if optimizer == "lbfgs":
            continue
        rate = _RATES.get(optimizer, 1e-3) * (scale if optimizer != "sgd" else 1)
        yield replace(plain, name=f"{optimizer} {width}", optimizer=optimizer, learning_rate=rate)
    yield replace(plain, name=f"lbfgs {width}", optimizer="lbfgs", batch=rows, dtype="float64")
    for averaging in AVERAGES:
        yield replace(plain, name=f"{averaging} {width}", averaging=averaging)
    for loss in _LOSSES:
        yield replace(plain, name=f"{loss} {width}", loss=loss)
    for block in BLOCKS:
        yield replace(plain, name=f"{block} {width}", block=block)


TOOLBOX = {case.name: case for case in _toolbox(64)}
TOOLBOX_WIDE = {case.name: case for case in _toolbox(1024)}
"""Optimizers, losses and layers at two widths; contenders that lack one are left out of its case."""

LARGE = ("1024x4", "4096x3")
"""Cases that a quick run leaves out."""


def _generator(case: Case, purpose: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{case.name} {purpose}".encode()))


def make_data(case: Case) -> tuple[Array, Array]:
    """Deterministic data that a linear map with noise explains, so that training lowers the loss.

    Returns
    -------
    X
        Standard normal inputs, (rows, n_in), in the dtype of the case.
    y
        int32 labels (rows,) for losses of classes, else (rows, n_targets) in the dtype of the case.
    """
    rng = _generator(case, "data")
    n_in, n_out = case.widths[0], case.widths[-1]
    X = rng.standard_normal((case.rows, n_in), dtype=np.float32)
    A = rng.standard_normal((n_in, n_out), dtype=np.float32) / np.float32(math.sqrt(n_in))
    signal = X @ A + np.float32(0.1) * rng.standard_normal((case.rows, n_out), dtype=np.float32)
    if case.block == "embedding":
        X[:, 0] = rng.integers(0, CATEGORIES, case.rows)
    if case.loss in LABELS:
        return X.astype(case.dtype), np.argmax(signal, axis=1).astype(np.int32)
    if case.loss == "poisson":
        signal = np.round(np.exp(signal))
    if case.loss == "gamma":
        signal = np.exp(signal)
    y = signal > 0 if case.loss in BINARY else signal[:, : case.n_targets]
    return X.astype(case.dtype), np.ascontiguousarray(y.astype(case.dtype))


def make_vectors(case: Case) -> Array:
    """Deterministic initial vectors of the embedding, (CATEGORIES, EMBEDDED)."""
    rng = _generator(case, "vectors")
    return rng.standard_normal((CATEGORIES, EMBEDDED), dtype=np.float32).astype(case.dtype)


def make_weights(case: Case) -> Weights:
    """Deterministic initial weights, uniform with variance 1 / n_in, and zero biases."""
    rng = _generator(case, "weights")
    weights = []
    for n_in, n_out in case.layers:
        limit = math.sqrt(3 / n_in)
        W = (rng.random((n_in, n_out), dtype=np.float32) * 2 - 1) * np.float32(limit)
        weights.append((W.astype(case.dtype), np.zeros(n_out, case.dtype)))
    return weights


def distance(weights: Weights, others: Weights) -> float:
    """Sum of the absolute differences."""
    pairs = (
        (a, b) for pair, other in zip(weights, others, strict=True) for a, b in zip(pair, other, strict=True)
    )
    return sum(float(np.sum(np.abs(a - b), dtype=np.float64)) for a, b in pairs)


def make_orders(case: Case, epochs: int) -> Array | None:
    """The orders in which gradstep visits the rows, int64 (epochs, rows); None for a full batch."""
    if case.is_full_batch:
        return None
    from gradstep.random import permutation

    return np.stack([permutation(case.rows, SHUFFLE_SEED, epoch) for epoch in range(epochs)])
