"""The contract between a network and the code that computes it.

A backend compiles a `Plan` into an `Engine`. The contract is coarse, so that Python never runs
inside the hot loop: whole epochs happen in one call. Arguments are validated before they get here;
engines trust them, but for `try_predict` and `try_step`, which look at small arrays themselves.

Conventions, the same for every backend:

- Rows are samples: a dense layer computes ``a = act(x W + b)`` with ``W`` of shape (n_in, n_out), the others
  what `LayerPlan` says.
- Losses are means over the batch (weighted means with sample weights), over outputs too for mse, mae,
  huber and quantile, summed over outputs for all others; every training loss includes
  ``l2 / 2 * sum(W**2) + l1 * sum(abs(W))`` over all weights, never over biases, gains and shifts; l1's
  gradient is 0 at 0.
- An update sees the mean gradient with its penalties, without frozen layers: cut to ``clip_value``, then
  scaled to the norm ``clip_norm`` where it is larger.
- Where parameters are averaged, `parameters` are the average, with which everything but training computes;
  those that training moves are the optimizer state's "trained". `set_parameters` sets both. Plans
  that normalise batches have no averages.
- Classification losses take logits, poisson and gamma take logarithms of means, gaussian_nll those of
  variances behind the means: a plan's last activation is the identity there, and `predict` applies the link
  (`sigmoid`, `softmax`, `exp` or `gaussian`).
- The batches of an epoch are consecutive slices of `gradstep.random.permutation`, or of an order that the
  caller gives; the last one may be smaller. A batch that holds every row is not shuffled.
- In `train` and `step`, a layer's dropout zeroes the outputs that `gradstep.random.dropout_mask` does not
  keep, and divides the others by ``1 - dropout``; everywhere else it does nothing.
- Batch normalisation takes the statistics of the batch in `train`, `step` and `loss_and_gradients`; the
  first two move the running ones towards them after every update,
  ``running += momentum (batch - running)``, the variance as that of a sample, ``/ (1 - sum of shares**2)``:
  n / (n - 1) for rows of equal weight.
- Weights come from `parameters` in natural shapes, whatever the layout inside.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LossOptions = Mapping[str, float | tuple[float, ...]]
"""One number for all outputs, or one an output."""
Parameters = dict[str, Array]


KINDS = ("dense", "layer_norm", "batch_norm", "sum", "scale", "embedding")
"""What a layer may be; see `LayerPlan`."""


@dataclass(frozen=True)
class LayerPlan:
    """One layer: ``a = activation(z)``, with z made of the layer's inputs x.

    ============  ======================================================================================
    kind          z
    ============  ======================================================================================
    dense         ``x W + b``
    layer_norm    ``gain (x - mean) / sqrt(variance + epsilon) + shift``, over the columns of each row
    batch_norm    the same over the rows of a batch, which count by their weights; `predict` and
                  `evaluate` take the running statistics instead
    sum           ``x`` plus the outputs of another layer
    scale         ``x gain``
    embedding     the columns of x but one, then that row of W which the one names
    ============  ======================================================================================
    """

    n_in: int
    n_out: int
    activation: str
    name: str
    """Prefix of the layer's parameters: ``dense_0`` has ``dense_0.W`` and ``dense_0.b``."""
    dropout: float = 0.0
    """Share of the outputs that every update drops, in [0, 1); 0 for the last layer."""
    rate_factor: float = 1.0
    """Of the learning rate; 0: frozen, no update touches parameters and moments."""
    kind: str = "dense"
    """One of `KINDS`."""
    back: int = 1
    """How many layers before this one its inputs come from; the network's own are in front of the first."""
    other_back: int = 0
    """The same for the second summand of a sum."""
    epsilon: float = 1e-5
    """Of layer_norm and batch_norm."""
    momentum: float = 0.1
    """Part of a batch's statistics in the running ones of batch_norm."""
    column: int = 0
    """The column that an embedding replaces."""
    categories: int = 0
    """Rows of an embedding's W."""

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is trained, by name without the prefix."""
        match self.kind:
            case "dense":
                return {"W": (self.n_in, self.n_out), "b": (self.n_out,)}
            case "layer_norm" | "batch_norm":
                return {"gain": (self.n_out,), "shift": (self.n_out,)}
            case "scale":
                return {"gain": (self.n_out,)}
            case "embedding":
                return {"W": (self.categories, self.n_out - self.n_in + 1)}
        return {}

    def statistics_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the running statistics, by name without the prefix."""
        return {"mean": (self.n_out,), "variance": (self.n_out,)} if self.kind == "batch_norm" else {}

    def all_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is trained and of the running statistics."""
        return {**self.parameter_shapes(), **self.statistics_shapes()}

    def initial_values(self, dtype: str) -> Parameters:
        """What leaves the inputs as they are but for the normalisation, by name without the prefix."""
        ones = ("gain", "variance")
        return {name: np.full(shape, name in ones, dtype) for name, shape in self.all_shapes().items()}


class Csr(NamedTuple):
    """Sparse rows: row r has the columns and values ``starts[r]`` to ``starts[r + 1]``."""

    starts: Array
    """int64 (n + 1,)."""
    columns: Array
    """int32 (stored values,)."""
    values: Array
    """In the plan's dtype, (stored values,)."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1


@dataclass(frozen=True)
class Plan:
    """Everything an engine needs to know, in plain values."""

    layers: tuple[LayerPlan, ...]
    loss: str
    optimizer: str
    loss_options: LossOptions = field(default_factory=dict)
    optimizer_options: Mapping[str, float] = field(default_factory=dict)
    """The optimizer's hyperparameters except the learning rate, which comes with every epoch."""
    l2: float = 0.0
    dtype: str = "float32"
    l2_per_batch: bool = False
    """A batch's penalty is divided by its summed weights, or its rows without: scikit-learn's."""
    seed: int = 0
    """Of the dropout masks, 64 bits; the shuffle's comes with every call."""
    custom_loss: Callable[[Array, Array, Array | None], tuple[float, Array]] | None = None
    """The mean loss of a whole batch and its gradient, (B, n_out), from y, outputs and sample weights;
    `loss` is "custom" then. A `gradstep.backends.custom_loss.CustomLoss`."""
    l1: float = 0.0
    clip_value: float = 0.0
    clip_norm: float = 0.0
    """0: not clipped."""
    ema_decay: float = 0.0
    """Of the exponential mean of the parameters and running statistics; 0: none."""
    ema_warmup: bool = False
    swa_start: int = 0
    """First epoch of an equal mean of the same, counted from 1; 0: none."""

    @property
    def averages(self) -> bool:
        """Whether predictions use a mean of the parameters."""
        return self.ema_decay > 0 or self.swa_start > 0

    def ema_gain(self, step: int) -> float:
        """``mean <- mean + gain (theta - mean)`` after update ``step``, counted from 1."""
        if step <= 1:
            return 1.0
        return 1 - (min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_warmup else self.ema_decay)

    @property
    def n_in(self) -> int:
        """Width of the input."""
        return self.layers[0].n_in

    @property
    def n_out(self) -> int:
        """Width of the output."""
        return self.layers[-1].n_out

    def inputs(self, index: int) -> tuple[int, int]:
        """Numbers of the layers that layer `index` takes: its input's and, of a sum, the other's; -1 is X."""
        layer = self.layers[index]
        return index - layer.back, index - layer.other_back if layer.kind == "sum" else -1

    def loses_bias(self, index: int) -> bool:
        """Whether batch normalisation takes out again what the layer's biases add: they have no gradient.

        Rounding alone would give them one, which adaptive optimizers would blow up to steps of any direction.
        """
        layer = self.layers[index]
        if layer.kind != "dense" or layer.activation != "identity" or layer.dropout:
            return False
        takers = [other for other in range(index + 1, len(self.layers)) if index in self.inputs(other)]
        return [self.layers[taker].kind for taker in takers] == ["batch_norm"]

    def trained_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all that has a gradient, in order: ``dense_0.W``, ``dense_0.b``, ..."""
        return {
            f"{layer.name}.{name}": shape
            for layer in self.layers
            for name, shape in layer.parameter_shapes().items()
        }

    def statistics_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the running statistics of batch normalisation: ``batch_norm_0.mean``, ..."""
        return {
            f"{layer.name}.{name}": shape
            for layer in self.layers
            for name, shape in layer.statistics_shapes().items()
        }

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters: what is trained, then the running statistics."""
        return {**self.trained_shapes(), **self.statistics_shapes()}

    @property
    def is_chain(self) -> bool:
        """Whether all layers are dense, each behind the one before."""
        return all(layer.kind == "dense" for layer in self.layers)

    @property
    def normalises_batches(self) -> bool:
        """Whether a step needs all rows of its batch at once."""
        return any(layer.kind == "batch_norm" for layer in self.layers)


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What one call of `Engine.train` did."""

    losses: Sequence[float]
    """Mean training loss of every completed epoch: a list, or an ``array.array``."""
    interrupted: bool = False
    """Ctrl-C was pressed: training stopped after a whole batch."""
    diverged: bool = False
    """A loss or parameter became non-finite in epoch ``first_epoch + len(losses)``."""
    restored: bool = True
    """After divergence: parameters and optimizer state are those of the end of the last good epoch. False
    where a backend keeps no copy of them: they are the last finite ones then, of the last step."""
    raised: BaseException | None = None
    """What a custom loss raised, or a signal handler, but for Ctrl-C's: training stopped after a whole batch.
    The handler's of the compiled backend only; the others let it through, and lose that call's epochs."""


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """The chain rule at one layer, all arrays with one row per sample."""

    name: str
    x: Array
    """Input of the layer, (B, n_in)."""
    z: Array
    """Pre-activation, (B, n_out): ``x W + b`` of a dense layer."""
    a: Array
    """Activation ``act(z)``, (B, n_out)."""
    delta: Array
    """Error signal dJ/dz, (B, n_out)."""
    dW: Array  # noqa: N815
    """dJ/dW, (n_in, n_out); of layers with gains dJ/dgain, (n_out,); empty where there is neither."""
    db: Array
    """dJ/db or dJ/dshift, (n_out,); empty where there is neither."""


@contextlib.contextmanager
def exchanged(exchange: Callable[[], None]) -> Iterator[None]:
    """Exchange two things for the length of a block."""
    exchange()
    try:
        yield
    finally:
        exchange()


class Engine(ABC):
    """A compiled plan that owns its parameters and optimizer state.

    Shapes: X is (n, n_in) in the plan's dtype, C-contiguous, or a `Csr` where `takes_sparse`. y is in the
    plan's dtype, (n, n_out), or (n, n_out / 2) for gaussian_nll, or of any width for a custom loss; int32
    (n,) for the losses of labels, cross_entropy, focal and hinge. weight is (n,) in the plan's dtype, or
    None.
    """

    takes_sparse: bool = False
    """Whether `train`, `step` and `loss_and_gradients` take a `Csr` for X."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @abstractmethod
    def parameters(self) -> Parameters:
        """Copies of all parameters and running statistics, as `Plan.parameter_shapes`."""

    @abstractmethod
    def set_parameters(self, values: Mapping[str, Array]) -> None:
        """Overwrite the named parameters."""

    @abstractmethod
    def optimizer_state(self) -> Parameters:
        """Copies of the optimizer's state: ``step`` (int64 scalar array) and, per parameter and moment,
        ``dense_0.W.momentum`` (sgd) or ``dense_0.W.m`` and ``dense_0.W.v`` (adam, adamw). Where the
        parameters are an average, ``dense_0.W.trained`` of each of them and of the running statistics: what
        training goes on from.
        """

    @abstractmethod
    def set_optimizer_state(self, values: Mapping[str, Array]) -> None:
        """Overwrite the whole state; training then goes on bit for bit."""

    @abstractmethod
    def set_input_transform(self, shift: Array | None, scale: Array | None) -> None:
        """Let every later call see ``(X - shift) * scale``; both (n_in,), or None for X as it is."""

    @abstractmethod
    def predict(self, X: Array, out: Array) -> None:
        """Write the linked outputs of all rows into out (n, n_out), in constant workspace."""

    @abstractmethod
    def try_predict(self, X: object) -> Array | None:
        """What `predict` writes, if X is a small array that can be used as it is; else None.

        That is a numpy array itself, no subclass, of the plan's dtype in this machine's byte order, (n,
        n_in), n > 0, C-contiguous and aligned, of at most `READY_ELEMENTS` finite numbers; it may be
        read-only. Never for embeddings, whose categories are not looked at. None asks the caller to check and
        convert X, which costs more than the predictions of few rows. Nothing may pass that
        `gradstep.validation` refuses.
        """

    @abstractmethod
    def evaluate(self, X: Array, y: Array, weight: Array | None, out: Array | None = None) -> float:
        """Mean loss of all rows without the l2 penalty; writes what `predict` would into out if given."""

    @abstractmethod
    def loss_and_gradients(
        self, X: Array, y: Array, weight: Array | None, input_gradient: bool = False
    ) -> tuple[float, Parameters, Array | None]:
        """Mean loss, the gradient of every parameter, and dJ/dX (n, n_in) if asked for.

        dJ/dX is with respect to X before the input transform.
        """

    @abstractmethod
    def train(
        self,
        X: Array,
        y: Array,
        weight: Array | None,
        *,
        epochs: int,
        batch_size: int,
        learning_rates: Array,
        seed: int,
        first_epoch: int,
        shuffle: bool = True,
        order: Array | None = None,
    ) -> TrainResult:
        """Run whole epochs: shuffle, gather, forward, loss, backward, update.

        order, int64 (rows,) and C-contiguous, says which rows every epoch of the call visits, one after the
        other; then nothing is shuffled. learning_rates is float64 (epochs,), or (epochs, steps) with one
        for each batch. Epoch e of this call is epoch ``first_epoch + e`` of the permutation stream. The loss
        of an epoch is the mean of the losses that its batches had before their updates, weighted by the
        batches' summed sample weights.
        """

    @abstractmethod
    def step(self, X: Array, y: Array, weight: Array | None, learning_rate: float) -> float:
        """One forward, backward and update on all rows given; returns the loss before the update.

        A loss that is not finite is returned, and changes nothing. NaN is returned where a finite loss has a
        gradient that overflows; a large network may have done a part of the update then.
        """

    @abstractmethod
    def try_step(self, X: object, y: object, learning_rate: float) -> float | None:
        """What `step` does, if X and y are small arrays that can be used as they are; else None, and nothing.

        X and y as X in `try_predict`; y (n, targets), or int32 (n,) labels of known classes. That any finite
        targets will do for the loss is for the caller to know. Always None for a custom loss.
        """

    def profile(
        self, X: Array, y: Array, *, epochs: int, batch_size: int, learning_rate: float
    ) -> dict[str, float] | None:
        """Train, and tell which share of the threads' time each phase of the steps took.

        Returns
        -------
        dict or None
            ``gather``, ``forward``, ``loss``, ``dX``, ``dW``, ``update``, and ``waiting``, which is the rest:
            threads that wait for each other or for work. The sum is 1. Where a tiny network's last layer and
            its loss are one pass, ``loss`` is all of that. None where it is not measured.
        """
        return None


@dataclass(frozen=True, eq=False, repr=False)
class Backend:
    """One way to compute: how to make an engine, and which names it knows."""

    name: str
    activations: tuple[str, ...]
    losses: tuple[str, ...]
    optimizers: tuple[str, ...]
    make_engine: Callable[[Plan], Engine]
    set_num_threads: Callable[[int], None]
    get_num_threads: Callable[[], int]
    describe: Callable[[], dict[str, str]]
    """Facts for `gradstep info`: ``{"instruction set": "avx512", ...}``."""
