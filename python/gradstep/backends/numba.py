"""The Numba backend: the same epoch loop, compiled on first use and cached on disk.

The jitted code is in `numba_kernels`; this module keeps a network's arrays and feeds them to it.
Training runs in slices of about `SLICE_SECONDS`, between which Python sees Ctrl-C.

The cache lies beside the package, or in the user's cache folder if that is not writable, or in
``NUMBA_CACHE_DIR``. `needs_compilation` says whether the next call will compile, which takes some
seconds once per dtype, so that a progress line can announce it.

Products of wide layers go to the BLAS library, whose thread count `gradstep.set_num_threads` sets
through threadpoolctl; all else runs on one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numba
import numpy as np
import scipy.linalg.cython_blas  # noqa: F401  np.dot in jitted code calls it

from gradstep.backends import blas_threads
from gradstep.backends import numba_kernels as kernels
from gradstep.backends.base import (
    Array,
    Backend,
    Engine,
    LayerPlan,
    Parameters,
    Plan,
    TrainResult,
    exchanged,
)
from gradstep.backends.interrupt import deferred_interrupt
from gradstep.backends.numba_kernels import (
    ACTIVATION_IDS,
    KIND_IDS,
    LOSS_IDS,
    OPTIMIZER_IDS,
    Data,
    Model,
    Order,
    Snapshot,
    Workspace,
)
from gradstep.backends.numpy.engine import NumpyEngine
from gradstep.backends.numpy.losses import LOSSES
from gradstep.backends.numpy.optimizers import OPTIMIZERS
from gradstep.backends.numpy.ready_arrays import PythonEngine

SLICE_SECONDS = 0.05
"""Time between two looks at Ctrl-C."""

CACHE_ELEMENTS = 1 << 15
"""Numbers per buffer in a chunk of rows of a small network, so that the chunk stays in the L2 cache."""

SMALL_WEIGHTS = 1 << 13
"""Largest weight matrix of a small network."""

SERIAL_PRODUCT = 1 << 18
"""Multiplications up to which OpenBLAS takes one thread. Small networks stay below: two threads would gain
little there, and lose much when another process wants the second core."""

WIDE_ELEMENTS = 1 << 20
"""Numbers per buffer in a chunk of a wide network, whose products want many rows."""

FEWEST_WIDE_ROWS = 512


def _largest_weights(plan: Plan) -> int:
    return max(layer.n_in * layer.n_out for layer in plan.layers if layer.kind == "dense")


def _chunk_rows(plan: Plan, rows: int, forward_alone: bool = False) -> int:
    """How many of a batch's rows go through all layers together; even parts of the batch.

    A batch that is normalised stays in one piece, but on the way forward alone.
    """
    features = plan.n_in + sum(layer.n_out for layer in plan.layers)
    largest = _largest_weights(plan)
    if plan.normalises_batches and not forward_alone:
        return rows
    if largest <= SMALL_WEIGHTS:
        most = max(1, min(CACHE_ELEMENTS // features, SERIAL_PRODUCT // largest))
    else:
        most = max(FEWEST_WIDE_ROWS, WIDE_ELEMENTS // features)
    chunks = -(-rows // most)
    return -(-rows // chunks)


def _read_only(array: Array) -> Array:
    """View that Numba sees as read-only: one compiled version serves all inputs."""
    view: Array = array.view()
    view.flags.writeable = False
    return view


class NumbaEngine(PythonEngine):
    """Parameters, optimizer state and buffers of one network, as flat arrays for the jitted code."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        blas_threads.follow_environment()
        self._shapes, self._statistics_shapes = plan.trained_shapes(), plan.statistics_shapes()
        size = sum(int(np.prod(shape)) for shape in self._shapes.values())
        statistics = sum(int(np.prod(shape)) for shape in self._statistics_shapes.values())
        self._kinds = OPTIMIZERS[plan.optimizer].moments
        theta = np.zeros(size, plan.dtype)
        moments = [np.zeros(size if i < len(self._kinds) else 0, plan.dtype) for i in range(3)]
        self._model = Model(
            layers=_layer_table(plan),
            dropout=np.array([layer.dropout for layer in plan.layers], np.float64),
            rates=_rate_table(plan),
            epsilon=np.array([layer.epsilon for layer in plan.layers], np.float64),
            momentum=np.array([layer.momentum for layer in plan.layers], np.float64),
            seed=np.uint64(plan.seed),
            loss=LOSS_IDS[plan.loss],
            loss_option=_loss_option(plan),
            optimizer=OPTIMIZER_IDS[plan.optimizer],
            options=_option_table(plan),
            origin=0,
            theta=theta,
            gradient=np.zeros_like(theta),
            first_moment=moments[0],
            second_moment=moments[1],
            third_moment=moments[2],
            average=np.zeros(size if plan.averages else 0, plan.dtype),
            statistics=np.zeros(statistics, plan.dtype),
            average_statistics=np.zeros(statistics if plan.averages else 0, plan.dtype),
            batch_statistics=np.zeros(statistics),
            shift=np.zeros(plan.n_in, plan.dtype),
            scale=np.ones(plan.n_in, plan.dtype),
        )
        self._step = 0
        self._work: Workspace | None = None

    def _named(self, flat: Array, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Parameters:
        """Views of a flat array, laid out like theta if there are no other shapes, by name."""
        views: Parameters = {}
        start = 0
        for name, shape in (self._shapes if shapes is None else shapes).items():
            stop = start + int(np.prod(shape))
            views[name] = flat[start:stop].reshape(shape)
            start = stop
        return views

    def _views(self, theta: Array, statistics: Array) -> Parameters:
        return {**self._named(theta), **self._named(statistics, self._statistics_shapes)}

    def _outside(self) -> Parameters:
        """Parameters and running statistics as the user sees them: their average, if there is one."""
        return self._views(self._model.theta, self._model.statistics)

    def _trained(self) -> Parameters:
        """What training moves, where that is not what the user sees."""
        if not self.plan.averages:
            return {}
        return self._views(self._model.average, self._model.average_statistics)

    def parameters(self) -> Parameters:
        """Copies of all parameters by name."""
        return {name: view.copy() for name, view in self._outside().items()}

    def set_parameters(self, values: Mapping[str, Array]) -> None:
        """Overwrite the named parameters."""
        views, trained = self._outside(), self._trained()
        for name, value in values.items():
            views[name][...] = value
            if name in trained:
                trained[name][...] = value

    def _moments(self) -> Parameters:
        arrays = (self._model.first_moment, self._model.second_moment, self._model.third_moment)
        kept = [(kind, self._named(array)) for kind, array in zip(self._kinds, arrays, strict=False)]
        kept.append(("trained", self._trained()))
        return {f"{name}.{kind}": view for kind, views in kept for name, view in views.items()}

    def _exchange(self) -> None:
        """Swap what training moves and what the user sees."""
        model = self._model
        if self.plan.averages:
            pairs = (model.theta, model.average), (model.statistics, model.average_statistics)
            for one, other in pairs:
                one[...], other[...] = other.copy(), one.copy()

    def optimizer_state(self) -> Parameters:
        """Copies of the step count and of all moments by name."""
        state: Parameters = {"step": np.array(self._step, dtype=np.int64)}
        state.update((name, view.copy()) for name, view in self._moments().items())
        return state

    def set_optimizer_state(self, values: Mapping[str, Array]) -> None:
        """Overwrite the whole state."""
        self._step = int(values["step"])
        for name, view in self._moments().items():
            view[...] = values[name]

    def set_input_transform(self, shift: Array | None, scale: Array | None) -> None:
        """Let every later call see ``(X - shift) * scale``."""
        self._model.shift[...] = 0 if shift is None else shift
        self._model.scale[...] = 1 if scale is None else scale

    def _data(self, X: Array, y: Array | None, weight: Array | None) -> Data:
        dtype = np.dtype(self.plan.dtype)
        targets, labels = np.empty((0, 0), dtype), np.empty(0, np.int32)
        if y is not None and LOSSES[self.plan.loss].targets == "labels":
            labels = y
        elif y is not None:
            targets = y
        weight = np.empty(0, dtype) if weight is None else weight
        return Data(*(_read_only(array) for array in (X, targets, labels, weight)))

    def _workspace(self, rows: int, forward_alone: bool = False) -> Workspace:
        """Buffers for a call on this many rows per batch; replaced only when larger ones are needed.

        The size of a chunk depends on the batch alone, never on earlier calls: sums keep their order.
        """
        rows = _chunk_rows(self.plan, rows, forward_alone)
        if self._work is None or self._work.share.size < rows:
            self._work = None  # freed before the larger one is made
            self._work = _make_workspace(self.plan, rows)
        return self._work._replace(rows=rows)

    def predict(self, X: Array, out: Array) -> None:
        """Write the linked outputs of all rows into out."""
        work = self._workspace(len(X), forward_alone=True)
        kernels.evaluate(self._model, self._data(X, None, None), work, IN_ORDER, out)

    def evaluate(self, X: Array, y: Array, weight: Array | None, out: Array | None = None) -> float:
        """Mean loss of all rows without the l2 penalty; predictions go into out if given."""
        out = np.empty((0, 0), self.plan.dtype) if out is None else out
        work = self._workspace(len(X), forward_alone=True)
        return float(kernels.evaluate(self._model, self._data(X, y, weight), work, IN_ORDER, out))

    def loss_and_gradients(
        self, X: Array, y: Array, weight: Array | None, input_gradient: bool = False
    ) -> tuple[float, Parameters, Array | None]:
        """Mean loss, the gradient of every parameter, and dJ/dX if asked for."""
        dX = np.empty(X.shape if input_gradient else (0, 0), self.plan.dtype)
        data, work = self._data(X, y, weight), self._workspace(len(X))
        loss = kernels.gradient(self._model, data, work, IN_ORDER, dX)
        return float(loss), self._named(self._model.gradient.copy()), dX if input_gradient else None

    def step(self, X: Array, y: Array, weight: Array | None, learning_rate: float) -> float:
        """One forward, backward and update on all rows given; returns the loss before the update."""
        data, work = self._data(X, y, weight), self._workspace(len(X))
        with exchanged(self._exchange):
            loss = kernels.step(self._model, data, work, IN_ORDER, float(learning_rate), self._step + 1)
        self._step += math.isfinite(loss)
        return float(loss)

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
        """Run whole epochs; Ctrl-C stops after the current slice of batches."""
        rows = len(X) if order is None else len(order)
        if order is not None:
            visits = _given_order(order)
        else:
            visits = _make_order(rows) if shuffle and batch_size < rows else IN_ORDER
        schedule = min(batch_size, rows), learning_rates, seed, first_epoch
        progress, losses, arguments = self._train_arguments(X, y, weight, epochs, visits, *schedule)
        kernels.train(*arguments, 0)  # compiles, if need be, while Ctrl-C still raises
        with exchanged(self._exchange):
            interrupted = _run_in_slices(arguments, progress, epochs)
        self._step = int(progress[kernels.STEP])
        done = losses[: progress[kernels.EPOCH]].tolist()
        return TrainResult(done, interrupted, diverged=bool(progress[kernels.DIVERGED]))

    def _train_arguments(
        self,
        X: Array,
        y: Array,
        weight: Array | None,
        epochs: int,
        order: Order,
        batch_size: int,
        learning_rates: Array,
        seed: int,
        first_epoch: int,
    ) -> tuple[Array, Array, tuple[object, ...]]:
        """Progress, losses, and all arguments of `numba_kernels.train` but the last."""
        progress = np.array([0, 0, self._step, self._step, 0], np.int64)
        losses = np.empty(epochs)
        model = self._model
        moments = model.first_moment, model.second_moment, model.third_moment
        state = model.theta, *moments, model.average, model.statistics, model.average_statistics
        return (
            progress,
            losses,
            (
                self._model,
                self._data(X, y, weight),
                self._workspace(batch_size),
                order,
                Snapshot(*(np.empty_like(array) for array in state)),
                progress,
                np.zeros(2),
                losses,
                np.ascontiguousarray(learning_rates, np.float64).reshape(epochs, -1 if epochs else 1),
                batch_size,
                np.uint64(seed),
                np.uint64(first_epoch),
            ),
        )


def _run_in_slices(arguments: tuple[object, ...], progress: Array, epochs: int) -> bool:
    """Train to the end, looking for Ctrl-C about every SLICE_SECONDS; returns whether it came."""
    budget = 1
    with deferred_interrupt() as interrupt:
        while progress[kernels.EPOCH] < epochs and not progress[kernels.DIVERGED] and not interrupt.pressed:
            start = time.perf_counter()
            kernels.train(*arguments, budget)
            seconds = max(time.perf_counter() - start, 1e-9)
            budget = max(1, min(int(budget * SLICE_SECONDS / seconds), 16 * budget))
    return interrupt.pressed  # after the block: what comes later raises KeyboardInterrupt again


def _layer_table(plan: Plan) -> Array:
    offset, statistics = 0, 0
    starts = _first_features(plan)
    errors = starts if not plan.is_chain else _alternating(plan)
    table = np.zeros((len(plan.layers), kernels.LOSES_BIAS + 1), np.int64)
    for index, layer in enumerate(plan.layers):
        source, other = plan.inputs(index)
        other = other if layer.kind == "sum" else source
        sizes = [int(np.prod(shape)) for shape in layer.parameter_shapes().values()]
        has_weights = layer.kind in ("dense", "embedding")
        later = _taken_from(plan, index + 1)
        columns = {
            kernels.N_IN: layer.n_in,
            kernels.N_OUT: layer.n_out,
            kernels.ACTIVATION: ACTIVATION_IDS[layer.activation],
            kernels.WEIGHTS: offset,
            kernels.BIASES: offset + sizes[0] if has_weights else offset,
            kernels.ROW: starts[index + 1],
            kernels.KIND: KIND_IDS[layer.kind],
            kernels.GAIN: offset,
            kernels.SHIFT: offset + layer.n_out,
            kernels.INPUT: source,
            kernels.INPUT_ROW: starts[source + 1],
            kernels.OTHER_ROW: starts[other + 1],
            kernels.ERROR: errors[index + 1],
            kernels.INPUT_ERROR: errors[source + 1],
            kernels.OTHER_ERROR: errors[other + 1],
            kernels.KEEP: source in later,
            kernels.KEEP_OTHER: other in later,
            kernels.COLUMN: layer.column,
            kernels.STATISTICS: statistics,
            kernels.LOSES_BIAS: plan.loses_bias(index),
        }
        table[index, list(columns)] = list(columns.values())
        offset += sum(sizes)
        statistics += sum(int(np.prod(shape)) for shape in layer.statistics_shapes().values())
    return table


def _taken_from(plan: Plan, first: int) -> set[int]:
    """Numbers of the layers whose outputs the layers from `first` on take."""
    later = range(first, len(plan.layers))
    return {
        source
        for index in later
        for source in plan.inputs(index)[: 2 if plan.layers[index].kind == "sum" else 1]
    }


def _first_features(plan: Plan) -> list[int]:
    """Of X, then of every layer's outputs, where all of them lie one after the other."""
    widths = [plan.n_in, *(layer.n_out for layer in plan.layers)]
    return [sum(widths[:i]) for i in range(len(widths))]


def _alternating(plan: Plan) -> list[int]:
    """The same where a layer's place is that of the second layer below it."""
    return [(len(plan.layers) - i) % 2 * _widest(plan) for i in range(len(plan.layers) + 1)]


def _widest(plan: Plan) -> int:
    return max(plan.n_in, *(layer.n_out for layer in plan.layers))


def _loss_option(plan: Plan) -> Array:
    """The loss's option for every output; zeros if it has none."""
    options = {**LOSSES[plan.loss].defaults, **plan.loss_options}
    return np.array(np.broadcast_to(next(iter(options.values()), 0.0), plan.n_out), np.float64)


_SETTINGS = ("l1", "clip_value", "clip_norm", "ema_decay", "ema_warmup", "swa_start")


def _rate_table(plan: Plan) -> Array:
    rates = [layer.rate_factor for layer in plan.layers]
    return np.array([] if all(rate == 1 for rate in rates) else rates, np.float64)


def _option_table(plan: Plan) -> Array:
    options = {
        **OPTIMIZERS[plan.optimizer].defaults,
        **plan.optimizer_options,
        "l2": plan.l2,
        "l2_per_batch": float(plan.l2_per_batch),
        **{name: float(getattr(plan, name)) for name in _SETTINGS},
    }
    names = (
        "l2",
        "l2_per_batch",
        "momentum",
        "nesterov",
        "beta1",
        "beta2",
        "epsilon",
        "weight_decay",
        "epsilon_hat",
        "momentum_decay",
        "decay",
        *_SETTINGS,
    )
    return np.array([options.get(name, 0.0) for name in names], np.float64)


def _make_workspace(plan: Plan, rows: int) -> Workspace:
    features, widest = plan.n_in + sum(layer.n_out for layer in plan.layers), _widest(plan)
    others = 0 if plan.is_chain else rows
    return Workspace(
        rows=rows,
        inputs=np.empty(rows * features, plan.dtype),
        slopes=np.empty(rows * features, plan.dtype),
        errors=np.empty(rows * (2 * widest if plan.is_chain else features), plan.dtype),
        targets=np.empty(rows * plan.n_out, plan.dtype),
        hat=np.empty(others * features, plan.dtype),
        inverse=np.empty((len(plan.layers), max(rows, widest) if others else 0)),
        spare=np.empty(others * widest, plan.dtype),
        partial=np.empty(_largest_weights(plan), plan.dtype),
        share=np.empty(rows),
        row_loss=np.empty(rows),
        row_top=np.empty(rows),
        labels=np.empty(rows, np.int32),
    )


def _make_order(n: int) -> Order:
    buckets = 1 << max(1, (n - 1).bit_length())
    return Order(True, True, np.empty(n, np.int64), np.empty(n, np.uint64), np.empty(buckets + 1, np.int64))


def _given_order(order: Array) -> Order:
    return Order(False, True, order, np.empty(0, np.uint64), np.zeros(3, np.int64))


IN_ORDER = Order(False, False, np.empty(0, np.int64), np.empty(0, np.uint64), np.zeros(3, np.int64))


def needs_compilation(dtype: str) -> bool:
    """Whether training in this dtype will have to compile first, which takes some seconds.

    False once this process, or an earlier one that left its code in the cache, has compiled it.

    Parameters
    ----------
    dtype
        "float32" or "float64".
    """
    plan = Plan((LayerPlan(1, 1, "identity", "any"),), "mse", "gradient_descent", dtype=dtype)
    sample, rates = np.zeros((1, 1), dtype), np.zeros(0)
    *_, arguments = NumbaEngine(plan)._train_arguments(sample, sample, None, 0, IN_ORDER, 1, rates, 0, 0)
    typeof: Callable[[object], object] = numba.typeof
    signature = tuple(typeof(argument) for argument in (*arguments, 0))
    if signature in kernels.train.overloads:
        return False
    return kernels.train._cache.load_overload(signature, kernels.train.targetctx) is None


def _describe() -> dict[str, str]:
    cache = kernels.train.stats.cache_path
    return {
        "numba": numba.__version__,
        "BLAS": blas_threads.describe(),
        "cache": cache or "none, because no folder for it is writable",
    }


def _make_engine(plan: Plan) -> Engine:
    """An engine; that of the reference for a custom loss, which jitted code cannot call."""
    return NumbaEngine(plan) if plan.custom_loss is None else NumpyEngine(plan)


BACKEND = Backend(
    name="numba",
    activations=tuple(ACTIVATION_IDS),
    losses=tuple(LOSS_IDS),
    optimizers=tuple(OPTIMIZER_IDS),
    make_engine=_make_engine,
    set_num_threads=blas_threads.set_num_threads,
    get_num_threads=blas_threads.get_num_threads,
    describe=_describe,
)
