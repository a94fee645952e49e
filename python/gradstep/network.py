"""A network: layers, a loss and an optimizer, compiled by a backend."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstep import backends
from gradstep.averaging import SWA, Averaging
from gradstep.backends.base import Array, Engine, Parameters, Plan
from gradstep.backends.numpy.propagation import trace as reference_trace
from gradstep.callbacks import Callback
from gradstep.class_weights import Classes, ClassWeights
from gradstep.fit_arguments import (
    check_callbacks,
    check_fit_schedule,
    check_lbfgs,
    check_source,
    check_total,
)
from gradstep.history import History, history_names
from gradstep.layers import Input, Layer
from gradstep.losses import Loss, is_lost
from gradstep.metrics import Metric, MetricLike, check_metrics, try_metrics
from gradstep.names import check_name
from gradstep.optimizers import LBFGS, MINI_BATCH, Optimizer
from gradstep.preprocessing import (
    PieceStatistics,
    Transform,
    fit_transform,
    transform_config,
    transform_from_config,
)
from gradstep.sources import Batches, Piece, Source
from gradstep.specification import Specification, arguments_from_config
from gradstep.streaming import BalancedFeed, BatchFeed, Check, Feed, Rows, WindowFeed
from gradstep.tracing import Trace
from gradstep.training import DivergenceError, Job, LbfgsTraining, Training
from gradstep.validation import (
    TARGET_CHECKS,
    as_numbers,
    check_batch_size,
    check_categories,
    check_finite,
    check_flag,
    check_inputs,
    check_integer,
    check_weight,
    check_weight_part,
    numeric_array,
)

if TYPE_CHECKING:
    import torch

    from gradstep.schedules import ScheduleLike

MOST_ACCUMULATED = 1_000_000
"""Batches of one update; more are a slip, and would ask for all their memory at once."""

SAMPLING = ("all", "balanced")
"""Which rows an epoch visits."""


class Network:
    """A dense network with its loss, optimizer, preprocessing and parameters.

    Parameters
    ----------
    layers : sequence of layers
        `Dense` layers, optionally behind an `Input`, with `Activation`, `BatchNorm`, `LayerNorm`, `Dropout`,
        `Scale`, `Residual` and `Embedding` beside them. A single ``Dense(1)`` is linear regression.
    loss : str or Loss, default "mse"
        A name as in `Loss`, such as "mse", "cross_entropy" or "gaussian_nll", an object such as
        ``Huber(2.0)`` or ``Quantile([0.1, 0.9])``, or a Python function as in `CustomLoss`. Classification
        losses need a last layer with the identity: it outputs logits, and `predict` applies the sigmoid or
        softmax.
    optimizer : str or Optimizer, default "adam"
        gradient_descent, sgd, adam, adamw, amsgrad, nadam, rmsprop, adagrad, lion or lbfgs with their
        defaults, or an object such as ``Adam(1e-2)``.
    l2 : float, default 0.0
        Adds ``l2 / 2 * sum(W**2)`` over all weights, not biases, to the training loss.
    l1 : float, default 0.0
        Adds ``l1 * sum(abs(W))`` over all weights, not biases, to the training loss; the gradient is
        ``l1 * sign(W)``, 0 at 0.
    averaging : EMA or SWA, optional
        Keep a mean of the parameters over the updates or epochs. The mean is what `parameters` returns, and
        what predicts, evaluates and validates; training moves those of the optimizer state "trained".
        `set_parameters` sets both.
    preprocessing : {"none", "standardize", "minmax"}
        What happens to the columns of X before the first layer: mean 0 and deviation 1, or from 0 to 1.
        The statistics are those of the rows of the first `fit`, and stay.
    target_preprocessing : {"none", "standardize"}
        For mse, mae, huber, quantile, gaussian_nll and Python functions: whether the network learns ``(y -
        mean) / deviation``, with the statistics of the first `fit`. `predict` returns y's own units; losses
        are in those of the network.
    seed : int, default 0
        Determines initial weights and shuffling, 0 to 2**64 - 1.
    backend : {"auto", "cpp", "numba", "numpy"}
        What computes; "auto" takes what `set_backend` or GRADSTEP_BACKEND says, else the fastest available.
    dtype : {"float32", "float64"}
        Type of parameters and computation.

    Attributes
    ----------
    history : History or None
        Of the last call of `fit`.
    epochs_trained : int
        Epochs over the life of the network.
    encoder : TableEncoder or None
        If set, X may be a data frame wherever X is taken, and goes through ``encoder.transform``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    ImportError
        If the backend asked for is not available.

    Examples
    --------
    >>> net = Network([Dense(64, "relu"), Dense(10)], loss="cross_entropy")
    >>> history = net.fit(X, y, epochs=20, batch_size=128)
    >>> net.predict(X).argmax(axis=1)
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        loss: str | Loss | Callable[..., Any] = "mse",
        optimizer: str | Optimizer = "adam",
        l2: float = 0.0,
        l1: float = 0.0,
        averaging: Averaging | None = None,
        preprocessing: str = "none",
        target_preprocessing: str = "none",
        seed: int = 0,
        backend: str = "auto",
        dtype: str = "float32",
    ) -> None:
        self._specification = Specification.checked(
            layers=layers,
            loss=loss,
            optimizer=optimizer,
            l2=l2,
            l1=l1,
            averaging=averaging,
            preprocessing=preprocessing,
            target_preprocessing=target_preprocessing,
            seed=seed,
            dtype=dtype,
        )
        self._backend_choice = backend
        self._backend = backends.get(backend)

        self.history: History | None = None
        self.epochs_trained = 0
        self._classes: list[str] | None = None
        self.encoder: Any = None
        self._engine: Engine | None = None
        self._plan: Plan | None = None
        self._input_transform: Transform | None = None
        self._target_transform: Transform | None = None
        if isinstance(self.layers[0], Input):
            self._plan = self._specification.plan(self.layers[0].units)
        self._refresh()

    # ----------------------------------------------------------------------------------------------
    # What it is made of.

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, as given."""
        return self._specification.layers

    @property
    def loss(self) -> Loss:
        """The loss."""
        return self._specification.loss

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer with its present learning rate."""
        return self._specification.optimizer

    @property
    def learning_rate(self) -> float:
        """The optimizer's learning rate; may be set between and during calls of `fit`."""
        return self._specification.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        optimizer = replace(self.optimizer, learning_rate=value)
        self._specification = replace(self._specification, optimizer=optimizer)

    @property
    def seed(self) -> int:
        """Determines initial weights and shuffling."""
        return self._specification.seed

    @property
    def dtype(self) -> str:
        """Name of the type of parameters and computation."""
        return self._specification.dtype

    @property
    def backend(self) -> str:
        """Name of the backend that computes."""
        return self._backend.name

    @property
    def classes(self) -> list[str] | None:
        """Names of the labels 0, 1, ..., saved with the network; one per output, or two for a single one.

        May be set to any sequence, whose entries are kept as text.

        Raises
        ------
        ValueError
            If their number is another.
        """
        return self._classes

    @classes.setter
    def classes(self, names: Iterable[object] | None) -> None:
        if names is None:
            self._classes = None
            return
        if isinstance(names, str):
            raise TypeError(f"classes must be a list of names, got the text {names!r}")
        kept = [str(name) for name in names]
        if len(kept) not in (self.n_out, max(self.n_out, 2)):
            raise ValueError(
                f"classes must be one name per output ({self.n_out}), or two for one, got {len(kept)}"
            )
        self._classes = kept

    @property
    def n_in(self) -> int | None:
        """Columns of X; None before the first fit of a network without `Input`."""
        return None if self._plan is None else self._plan.n_in

    @property
    def n_out(self) -> int:
        """Number of outputs."""
        return self._specification.n_out

    @property
    def plan(self) -> Plan:
        """What the backend was told.

        Raises
        ------
        ValueError
            If the width of the input is not known yet.
        """
        if self._plan is None:
            raise ValueError(
                "the input width is not known yet: call fit first, or begin layers with Input(n)"
            )
        return self._plan

    def _headline(self) -> str:
        return (
            f"Network: loss {self.loss.name}, {self.optimizer!r}, "
            f"preprocessing {self._specification.preprocessing}, {self.dtype}, backend {self.backend}"
        )

    def _repr_html_(self) -> str:
        """The table of `repr` and a diagram, for notebooks."""
        from gradstep.diagram import network_html

        return network_html(self._headline(), self.layers, self.n_in, self.classes)

    def __repr__(self) -> str:
        head = self._headline()
        return "\n".join([head, *(f"  {line}" for line in self._specification.table(self.n_in).splitlines())])

    # ----------------------------------------------------------------------------------------------
    # Description, for files, copies and pickles.

    @property
    def config(self) -> dict[str, Any]:
        """Everything but parameters, optimizer state and encoder, as plain JSON values."""
        return {
            **self._specification.to_config(),
            "preprocessing": transform_config(self._specification.preprocessing, self._input_transform),
            "target_preprocessing": transform_config(
                self._specification.target_preprocessing, self._target_transform
            ),
            "n_in": self.n_in,
            "classes": self.classes,
            "epochs_trained": self.epochs_trained,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, backend: str = "auto", loss: Any = None) -> Network:
        """Rebuild a network from its `config`, with initial parameters.

        Parameters
        ----------
        config : mapping
            What `config` returned.
        backend : str, default "auto"
            What computes.
        loss : callable or CustomLoss, optional
            The loss, if that is a Python function: the config does not hold it.

        Returns
        -------
        Network
            Followed by `set_parameters`, and `set_optimizer_state` where training shall go on exactly.

        Raises
        ------
        ValueError
            If the mapping does not describe a network.
        """
        try:
            arguments = arguments_from_config(config)
            if loss is not None and is_lost(arguments["loss"]):
                arguments["loss"] = loss
            network = cls(**arguments, backend=backend)
            network._restore(config)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"config does not describe a network: {error!r}") from error
        return network

    def _restore(self, config: Mapping[str, Any]) -> None:
        n_in = config["n_in"]
        if n_in is not None:
            self._plan = self._specification.plan(check_integer("n_in", n_in, minimum=1))
        self._input_transform = transform_from_config(config["preprocessing"], n_in)
        self._target_transform = transform_from_config(
            config["target_preprocessing"], self._specification.n_targets
        )
        self.classes = config["classes"]
        self.epochs_trained = check_integer("epochs_trained", config["epochs_trained"], minimum=0)

    def save(self, path: str | os.PathLike[str], *, optimizer: bool = False) -> None:
        """Write the network to a safetensors file, atomically.

        Parameters
        ----------
        path : path-like
            The file to write or replace.
        optimizer : bool, default False
            Also write the optimizer's state: after `gradstep.load`, training goes on bit for bit.

        Raises
        ------
        ValueError
            If the network has no parameters yet.
        OSError
            If the file cannot be written.
        """
        from gradstep.io import save

        save(self, path, optimizer=optimizer)

    def export_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX file that predicts the same: `gradstep.export_onnx`."""
        from gradstep.interchange.onnx import export_onnx

        export_onnx(self, path)

    def export_c(self, path: str | os.PathLike[str], *, name: str | None = None) -> None:
        """Write a C header that predicts the same: `gradstep.export_c`."""
        from gradstep.interchange.c import export_c

        export_c(self, path, name=name)

    def to_torch(self, *, logits: bool = False) -> torch.nn.Sequential:
        """A PyTorch module with the same outputs: `gradstep.to_torch`."""
        from gradstep.interchange.torch import to_torch

        return to_torch(self, logits=logits)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_backend", "_engine", *_CACHES):
            del state[name]
        if self._engine is not None:
            state["parameters"] = self._engine.parameters()
            state["optimizer_state"] = self._engine.optimizer_state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        parameters = state.pop("parameters", None)
        optimizer_state = state.pop("optimizer_state", None)
        self.__dict__.update(state)
        self._backend = backends.get(self._backend_choice)
        self._engine = None
        self._refresh()
        if parameters is not None:
            self.set_parameters(parameters)
            self.set_optimizer_state(optimizer_state)

    # ----------------------------------------------------------------------------------------------
    # The engine.

    def _built(self) -> Engine:
        """The engine, made with initial parameters if there is none yet."""
        if self._engine is None:
            plan = self.plan
            self._start_engine(plan, self._specification.initial_parameters(plan))
        assert self._engine is not None
        return self._engine

    def _start_engine(self, plan: Plan, parameters: Iterable[Mapping[str, Array]]) -> None:
        engine = self._backend.make_engine(plan)
        for part in parameters:
            engine.set_parameters(part)
        self._plan, self._engine = plan, engine
        self._refresh()

    def _ready(self) -> Engine:
        """The engine of a network that knows its preprocessing."""
        self._require_statistics()
        return self._built()

    def _require_statistics(self) -> None:
        if not self._is_prepared():
            raise ValueError(
                "the preprocessing has no statistics yet: call fit, or prepare(X, y) with training rows"
            )

    def _is_prepared(self) -> bool:
        return (self._specification.preprocessing == "none" or self._input_transform is not None) and (
            self._specification.target_preprocessing == "none" or self._target_transform is not None
        )

    def _refresh(self) -> None:
        """Tell the engine its input transform, and keep what the short ways of `predict` and `step` need."""
        self._dtype = np.dtype(self.dtype)
        any_targets_will_do = self._target_transform is None and self.loss.target_kind in ("values", "labels")
        by_epochs = isinstance(self._specification.averaging, SWA) or isinstance(self.optimizer, LBFGS)
        self._engine_for_predict = self._engine if self._is_prepared() else None
        self._engine_for_step = self._engine_for_predict if any_targets_will_do and not by_epochs else None
        if self._engine is not None:
            transform = self._input_transform
            if transform is None:
                self._engine.set_input_transform(None, None)
            else:
                shift, scale = transform.shift.astype(self._dtype), transform.scale.astype(self._dtype)
                self._engine.set_input_transform(shift, scale)

    def prepare(self, X: Any, y: Any = None) -> None:
        """Learn input width and preprocessing from training rows, without training.

        `fit` does it by itself; this is for networks trained by `step` alone. Statistics that the
        network has already are kept.

        Parameters
        ----------
        X : array_like, (n, n_in), or Source
            Training rows. A source is read through once, and brings its targets.
        y : array_like, optional
            Their targets, needed for ``target_preprocessing="standardize"``.

        Raises
        ------
        TypeError, ValueError
            If X or y is not as `fit` needs it.
        """
        if isinstance(X, Source):
            check_source(X, y, None, "all")
            self._prepare_from(X)
            return
        source = self._encoded(X)
        X = self._check_inputs(source)
        if (
            y is None
            and self._specification.target_preprocessing != "none"
            and self._target_transform is None
        ):
            raise ValueError("y is needed to standardize targets")
        self._prepare(X, None if y is None else self._check_y(y, len(X)), source)

    def _prepare(self, X: Array, y: Array | None, source: Any) -> Engine:
        """Engine and statistics, from validated rows, and from X as it was given."""
        if self._engine is not None and self._is_prepared():
            return self._engine
        input_transform, target_transform = self._input_transform, self._target_transform
        if input_transform is None:
            exact = X if self._specification.preprocessing == "none" else as_numbers("X", source)
            input_transform = fit_transform(self._specification.preprocessing, exact, self.dtype, "X")
        if target_transform is None and y is not None:
            target_transform = fit_transform(self._specification.target_preprocessing, y, "float64", "y")
        return self._adopt(X.shape[1], input_transform, target_transform)

    def _adopt(
        self, n_in: int, input_transform: Transform | None, target_transform: Transform | None
    ) -> Engine:
        """The engine for rows of a width, with these statistics from now on."""
        if self._engine is None:
            plan = self._specification.plan(n_in) if self._plan is None else self._plan
            self._start_engine(plan, self._specification.initial_parameters(plan))
        if input_transform is not None:
            embedded = [embedding.column for embedding in self._specification.embeddings]
            input_transform = input_transform.without(embedded)
        self._input_transform, self._target_transform = input_transform, target_transform
        self._refresh()
        return self._built()

    def _prepare_from(self, source: Source | Batches) -> Engine:
        """Engine and statistics from one pass over a source, or from its first piece where that is enough."""
        if self._engine is not None and self._is_prepared():
            return self._engine
        if self._is_prepared():
            piece = source.first() if isinstance(source, Batches) else next(self._pieces(source))
            n_in = self._check_piece(piece).X.shape[1]
            return self._adopt(n_in, self._input_transform, self._target_transform)
        if isinstance(source, Batches) and source.once:
            raise ValueError(
                "the statistics of the preprocessing need a pass of their own over the batches, which can be "
                "read only once: call prepare(X, y) first, or give a function that returns an iterator"
            )
        modes = self._specification.preprocessing, self._specification.target_preprocessing
        inputs, targets = (PieceStatistics(mode) for mode in modes)
        n_in = self.n_in
        for piece in self._pieces(source):
            X = self._encoded(piece.X)
            rows = self._check_piece(piece._replace(X=X), n_in)
            n_in = rows.X.shape[1]
            inputs.add(X)
            targets.add(rows.y)
        assert n_in is not None
        return self._adopt(
            n_in,
            self._input_transform or inputs.transform(self.dtype, "X"),
            self._target_transform or targets.transform("float64", "y"),
        )

    # ----------------------------------------------------------------------------------------------
    # Arguments.

    def _encoded(self, X: Any) -> Any:
        """X as the network takes it, before any conversion: the encoder's features of a frame."""
        if self.encoder is not None and not isinstance(X, np.ndarray):
            return self.encoder.transform(X)
        return X

    def _check_inputs(self, X: Any, argument: str = "X", n_in: int | None = None) -> Array:
        width = self.n_in if n_in is None else n_in
        checked = check_inputs(self._encoded(X), self.dtype, width, argument)
        for embedding in self._specification.embeddings:
            check_categories(argument, checked, embedding.column, embedding.categories)
        return checked

    def _check_y(self, y: Any, n: int, argument: str = "y") -> Array:
        # Targets that the network learns in other units stay exact until they are in these.
        dtype = self.dtype if self._specification.target_preprocessing == "none" else "float64"
        kind, columns = self.loss.target_kind, self._specification.n_targets
        if kind == "labels":
            columns = self.n_out
        elif kind == "anything" and self._specification.target_preprocessing != "none":
            kind = "values"  # a column for every output, whose predictions get its units
        return TARGET_CHECKS[kind](y, dtype, n, columns, argument)

    def _check_rows(self, X: Any, y: Any, sample_weight: Any) -> Rows:
        X = self._check_inputs(X)
        return Rows(X, self._check_y(y, len(X)), check_weight(sample_weight, self.dtype, len(X)))

    def _pieces(self, source: Source | Batches) -> Iterator[Piece]:
        return source.pieces() if isinstance(source, Batches) else source.pieces(encoder=self.encoder)

    def _check_piece(
        self, piece: Piece, n_in: int | None = None, class_weights: ClassWeights | None = None
    ) -> Rows:
        """The rows of a source's piece, checked, their weights times those of their classes."""
        with piece.named_in_errors():
            X = self._check_inputs(piece.X, n_in=n_in)
            y = self._check_y(piece.y, len(X))
            weight = check_weight_part(piece.weight, self.dtype, len(X))
            if class_weights is not None:  # times the weights as they were given, before any rounding
                weight = class_weights.part_weight(y, piece.weight, self.dtype)
            return Rows(X, y, weight)

    def _feed_piece(self, piece: Piece, class_weights: ClassWeights | None) -> Rows:
        return self._network_units(self._check_piece(piece, class_weights=class_weights))

    def _check_validation(self, data: Any, n_in: int) -> Rows | None:
        if data is None:
            return None
        if not isinstance(data, tuple | list) or len(data) not in (2, 3):
            raise TypeError("validation_data must be (X, y) or (X, y, sample_weight)")
        X = self._check_inputs(data[0], "validation_data[0]", n_in)
        y = self._check_y(data[1], len(X), "validation_data[1]")
        weight = data[2] if len(data) == 3 else None
        return Rows(X, y, check_weight(weight, self.dtype, len(X), "validation_data[2]"))

    def _network_units(self, rows: Rows, argument: str = "y") -> Rows:
        """The rows with their targets as the network learns them, which it can hold."""
        transform = self._target_transform
        if transform is None:
            return rows
        with np.errstate(over="ignore"):
            y = transform.apply(rows.y, self.dtype)
        check_finite(argument, y, rows.y)
        return Rows(rows.X, y, rows.weight)

    # ----------------------------------------------------------------------------------------------
    # Training and use.

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        epochs: int = 10,
        batch_size: int | None = None,
        sample_weight: Any = None,
        class_weight: Mapping[Any, float] | str | None = None,
        validation_data: Any = None,
        accumulate: int = 1,
        shuffle: bool = True,
        sampling: str = "all",
        schedule: ScheduleLike = None,
        metrics: Sequence[MetricLike] | None = None,
        callbacks: Sequence[Callback] | None = None,
        verbose: int = 1,
    ) -> History:
        """Train for a number of epochs; called again, go on training.

        Parameters
        ----------
        X : array_like, (n, n_in), or Source, or iterable of batches
            Finite numbers of any dtype and layout. C-contiguous arrays of the network's dtype, memory
            maps among them, are used in place. Without y: a `Source`, whose rows are read and shuffled in
            windows; or an iterable of (X, y) or (X, y, sample_weight), or a function that returns one, asked
            anew in every epoch.
        y : array_like
            (n, n_out), or (n,) for one output; for gaussian_nll (n, n_out / 2). In [0, 1] for
            binary_cross_entropy and binary_focal; -1 and 1, or 0 and 1, for binary_hinge; for cross_entropy,
            focal and hinge labels 0 to n_out - 1 (n,), or one-hot rows (n, n_out); for a Python function
            anything with n rows.
        epochs : int, default 10
            Passes over the rows.
        batch_size : int, optional
            Rows per update, 1 to n; the last batch of an epoch may be smaller. By default 32, or all
            rows with `GradientDescent`. Without it, every batch of an iterable is an update, in its order;
            with it, their rows are put together and treated as those of a source.
        sample_weight : array_like, (n,), optional
            Weights of the rows in the loss, not negative.
        class_weight : dict or "balanced", optional
            Weights of the classes, by their numbers or by their names in `classes`; 1 for those that it does
            not name. "balanced" gives every class the same sum: rows / (classes * rows of the class), of the
            classes in y; it counts those of a source in a pass of its own. Sample weights are multiplied by
            them; validation rows are not. For labels, and for one output of 0 and 1, or -1 and 1.
        validation_data : tuple, optional
            (X, y) or (X, y, sample_weight), evaluated after every epoch.
        accumulate : int, default 1
            Batches, up to a million, whose gradients are averaged, by the sums of their weights, before one
            update; the rest at the end of an epoch makes an update of its own. It is the update of one batch
            of so many rows more (the engine takes the rows of any batch in parts, but for `BatchNorm` and
            losses that are Python functions, which see them together), so that schedules and the optimizer's
            step count go by updates.
        shuffle : bool, default True
            Visit the rows in a new order every epoch, which depends on seed and epoch alone.
        sampling : {"all", "balanced"}
            Whether an epoch visits every row once, or draws as many with replacement, so that every class is
            equally likely.
        schedule : Schedule or callable, optional
            Factors of the learning rate, update by update: a `Schedule`, or a function of the number of
            updates in this call, from 0.
        metrics : sequence, optional
            What the history holds beside the losses, for these rows (which costs a prediction of all of them
            after every epoch) and, with "val_" in front, for validation_data; as for `evaluate`. By default
            those of `evaluate`, for validation_data alone. Functions are called once before training begins,
            so that what they refuse changes nothing.
        callbacks : sequence of Callback, optional
            Called after every epoch. A `Checkpoint` among them goes on with a call that was killed.
        verbose : int, default 1
            0 shows no progress.

        Returns
        -------
        History
            Of this call; also kept as `history`. Ctrl-C ends the training after the current batch and
            returns as usual, with ``history.interrupted``.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above; nothing has changed then.
        DivergenceError
            If a loss or parameter became NaN or infinite; the network keeps its last good parameters.
        """
        epochs = check_integer("epochs", epochs, minimum=1)
        accumulate = check_integer("accumulate", accumulate, minimum=1, maximum=MOST_ACCUMULATED)
        if batch_size is not None:
            batch_size = check_integer("batch_size", batch_size, minimum=1)
        shuffle = check_flag("shuffle", shuffle)
        sampling = check_name("sampling", sampling, SAMPLING)
        schedule = check_fit_schedule(schedule)
        lbfgs = isinstance(self.optimizer, LBFGS)
        callbacks = check_callbacks(callbacks)
        verbose = check_integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, minimum=0)
        with self._unchanged_on_error():
            rows: Rows | Feed
            whole: Rows | None = None  # the rows, where they are at hand
            weights: ClassWeights | None = None  # of classes whose rows are not at hand
            if y is None or isinstance(X, Source):
                check_source(X, y, sample_weight, sampling)
                self._check_streamable(metrics, validation_data)
                source = X if isinstance(X, Source) else Batches(X, epochs)
                if class_weight is not None:
                    weights = self._class_weights_of(source, class_weight)
                engine = self._prepare_from(source)
                check = partial(self._feed_piece, class_weights=weights)
                rows = self._feed(source, check, epochs, batch_size, accumulate, shuffle)
                check_total(schedule, rows)
                validation = self._check_validation(validation_data, self.plan.n_in)
            else:
                X = self._encoded(X)
                data = self._check_rows(X, y, sample_weight)
                if class_weight is not None:
                    data = self._weigh_classes(data, class_weight, sample_weight)
                n, n_in = data.X.shape
                validation = self._check_validation(validation_data, n_in)
                batch_size = check_batch_size(batch_size, n, self.optimizer.default_batch_size(n))
                batch_size = min(n, batch_size * accumulate)
                self._specification.check_batch(batch_size)
                if lbfgs:
                    check_lbfgs(batch_size == n, schedule, sampling)
                engine = self._prepare(data.X, data.y, X)
                rows = whole = self._network_units(data)
                if sampling == "balanced":
                    rows = self._balanced(rows, batch_size, shuffle)
            if validation is not None:
                self._network_units(validation, "validation_data[1]")
            weighted = any(part is not None and part.weight is not None for part in (whole, validation))
            checked = self._check_metrics(metrics, weighted)
            measured = whole if metrics is not None and checked else None
            self._try_metrics(engine, checked, measured or validation)
            job = Job(
                rows=rows,
                epochs=epochs,
                batch_size=rows.batch_size if isinstance(rows, Feed) else batch_size or 0,
                accumulate=accumulate,
                class_weights=None if weights is None else weights.by_class,
                shuffle=shuffle,
                measure=self._measure(engine, checked, measured, validation),
                callbacks=callbacks,
                metric_names=history_names(checked, measured is not None, validation is not None),
                verbose=verbose,
                schedule=schedule,
                note=backends.first_use_note(self._backend, self.dtype) if verbose else None,
            )
            training = (LbfgsTraining if lbfgs else Training)(self, engine, job)
        return training.run()

    def _check_streamable(self, metrics: Any, validation_data: Any) -> None:
        """Refuse what needs all rows at hand, where there is a source."""
        whole = {
            "the optimizer LBFGS": isinstance(self.optimizer, LBFGS),
            "averaging=SWA(...)": isinstance(self._specification.averaging, SWA),
            "metrics=... without validation_data": metrics is not None and validation_data is None,
        }
        for what, wanted in whole.items():
            if wanted:
                raise ValueError(f"{what} needs X and y in memory or mapped into it, not a source")

    def _weigh_classes(self, rows: Rows, class_weight: Any, sample_weight: Any) -> Rows:
        """The rows with the weights of their classes multiplied into those of their own."""
        classes = self._one_class_a_row()
        weights = ClassWeights(class_weight, classes, lambda: classes.count_rows(rows.y))
        return rows._replace(weight=weights.sample_weight(rows.y, sample_weight, self.dtype))

    def _class_weights_of(self, source: Source | Batches, class_weight: Any) -> ClassWeights:
        classes = self._one_class_a_row()
        return ClassWeights(class_weight, classes, lambda: self._count_rows(source, classes))

    def _one_class_a_row(self) -> Classes:
        return Classes(self.loss.target_kind, self.n_out, self.classes)

    def _count_rows(self, source: Source | Batches, classes: Classes) -> Array:
        """Rows of every class, in a pass over the source."""
        if isinstance(source, Batches) and source.once:
            raise ValueError(
                "class_weight='balanced' needs a pass of its own over the batches, which can be read only "
                "once: give the weights as a dict, or a function that returns an iterator"
            )
        total = np.zeros(classes.count, np.int64)
        for piece in self._pieces(source):
            rows = self._check_piece(piece)
            with piece.named_in_errors():
                total += classes.count_rows(rows.y)
        return total

    def _feed(
        self,
        source: Source | Batches,
        check: Check,
        epochs: int,
        batch_size: int | None,
        accumulate: int,
        shuffle: bool,
    ) -> Feed:
        """What trains on a source in windows, or on the batches of an iterable."""
        if isinstance(source, Batches) and batch_size is None:
            return BatchFeed(source, check, accumulate)
        n = len(source) if isinstance(source, Source) else None
        width = self.plan.n_in + (1 if self.loss.target_kind == "labels" else self.n_out) + 1
        window_rows = max(1, source.window_bytes // (self._dtype.itemsize * width))
        if n is None:
            assert batch_size is not None
            batch_size *= accumulate
            self._specification.check_batch(batch_size)
        else:
            default = self.optimizer.default_batch_size(n)
            if batch_size is None and default > max(window_rows, MINI_BATCH):
                raise ValueError(
                    f"batch_size must be given: by default {self.optimizer.name} takes all {n} rows at once, "
                    f"but a window holds {window_rows}"
                )
            batch_size = min(n, check_batch_size(batch_size, n, default) * accumulate)
            self._specification.check_batch(batch_size)
            window_rows = min(window_rows, n + batch_size)
        return WindowFeed(
            source=source,
            check=check,
            encoder=self.encoder,
            dtype=self.dtype,
            n_rows=n,
            window_rows=max(1, window_rows // batch_size) * batch_size,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.seed,
            epochs=epochs,
        )

    def _balanced(self, rows: Rows, batch_size: int, shuffle: bool) -> Feed:
        """What draws the rows of every epoch class by class."""
        if not shuffle:
            raise ValueError("shuffle must be True with sampling='balanced', which draws rows at random")
        labels = rows.y
        if self.loss.target_kind != "labels":
            if (
                self.loss.target_kind != "probabilities"
                or self.n_out > 1
                or ((labels != 0) & (labels != 1)).any()
            ):
                raise ValueError(
                    "sampling='balanced' needs classes: labels with cross_entropy, or one output of 0 and 1 "
                    "with binary_cross_entropy"
                )
            labels = labels[:, 0].astype(np.int32)
        return BalancedFeed(rows, labels, batch_size, self.seed)

    @contextlib.contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Forget what the network learnt about its inputs in the block if the block fails."""
        before = self._plan, self._engine, self._input_transform, self._target_transform
        try:
            yield
        except BaseException:
            self._plan, self._engine, self._input_transform, self._target_transform = before
            self._refresh()
            raise

    def _measure(
        self, engine: Engine, metrics: Sequence[Metric], rows: Rows | None, validation: Rows | None
    ) -> Callable[[], dict[str, float]] | None:
        """What computes the history's metrics after an epoch."""
        if rows is None and validation is None:
            return None

        def measure() -> dict[str, float]:
            values = {} if rows is None else self._metrics_of(engine, rows, metrics)
            if validation is not None:
                found = self._evaluate(engine, validation, metrics)
                values.update({f"val_{name}": value for name, value in found.items()})
            return values

        return measure

    def _metrics_of(self, engine: Engine, rows: Rows, metrics: Sequence[Metric]) -> dict[str, float]:
        predictions = self._predicted(engine, rows.X)
        return {metric.name: metric(rows.y, predictions, rows.weight) for metric in metrics}

    def _try_metrics(self, engine: Engine, metrics: Sequence[Metric], rows: Rows | None) -> None:
        if rows is not None and any(metric.is_given for metric in metrics):
            try_metrics(metrics, rows.y, self._predicted(engine, rows.X), rows.weight)

    def _check_metrics(self, metrics: Any, weighted: bool) -> tuple[Metric, ...]:
        return check_metrics(
            metrics,
            self.loss.target_kind,
            self.n_out,
            weighted=weighted,
            probabilities=self.loss.has_link or not self.loss.is_classification,
        )

    def predict(self, X: Any) -> Array:
        """Outputs for rows: values, or probabilities for a classification loss, or decision values for hinge.

        Parameters
        ----------
        X : array_like, (n, n_in)
            Finite numbers.

        Returns
        -------
        numpy.ndarray
            (n, n_out), always two-dimensional: for gaussian_nll the means, then the variances; in the
            network's dtype, or float64 in y's own units where targets are standardized.

        Raises
        ------
        TypeError, ValueError
            If X is not as above, or the network is not complete.
        """
        engine = self._engine_for_predict
        out = None if engine is None else engine.try_predict(X)
        if out is None:
            engine = self._ready()
            return self._predicted(engine, self._check_inputs(X))
        return self._in_units_of_y(out)

    def _predicted(self, engine: Engine, X: Array) -> Array:
        out = np.empty((X.shape[0], self.n_out), self._dtype)
        engine.predict(X, out)
        return self._in_units_of_y(out)

    def _in_units_of_y(self, out: Array) -> Array:
        """Predictions of the network in y's own units, float64 if these are not the network's."""
        transform = self._target_transform
        if transform is None:
            return out
        if self.loss.outputs_per_target == 1:
            return transform.invert(out)
        means, variances = np.split(out, 2, axis=1)
        return np.hstack([transform.invert(means), variances / np.square(transform.scale)])

    def evaluate(
        self, X: Any, y: Any, sample_weight: Any = None, *, metrics: Sequence[MetricLike] | None = None
    ) -> dict[str, float]:
        """Loss and metrics.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        metrics : sequence, optional
            Names, functions ``(y_true, y_pred) -> float``, and functions with a name for each,
            ``("mine", function)``. By default accuracy for classification losses, rmse and r2 for the others.

            For regression, in the units of y, means over rows and outputs: "rmse", the root of the mean
            squared error; "mae"; "mape", abs(p - y) / abs(y), a share; "r2", the mean over outputs of
            ``1 - sum (p - y)^2 / sum (y - mean y)^2``, NaN where y is constant.

            For classification: "accuracy" (several outputs of binary_cross_entropy: all together),
            "top_5_accuracy" or ("top_k", 5), "balanced_accuracy" (mean recall of the classes), "f1" (of
            class 1 of two, else the mean over classes), "roc_auc" (as f1, one class against the rest; NaN
            where one has no rows), "log_loss" (summed over outputs).

            A function gets y and predictions (n,), or (n, n_out) for several outputs. For classification it
            gets classes for both, or, where its second parameter is called y_score, y_proba, y_prob or
            probas_pred, and for scikit-learn's log_loss, probabilities: of class 1 (n,) for two classes, else
            (n, n_classes). Sample weights go into its parameter sample_weight.

        Returns
        -------
        dict
            ``loss`` without the l2 penalty, and the metrics by name.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above or as `fit` needs it, or the network is not complete.
        ImportError
            For f1 and roc_auc, without scikit-learn.
        """
        engine = self._ready()
        rows = self._check_rows(X, y, sample_weight)
        return self._evaluate(engine, rows, self._check_metrics(metrics, rows.weight is not None))

    def _evaluate(self, engine: Engine, rows: Rows, metrics: Sequence[Metric]) -> dict[str, float]:
        out = np.empty((len(rows.X), self.n_out), self._dtype)
        loss = engine.evaluate(rows.X, self._network_units(rows).y, rows.weight, out)
        out = self._in_units_of_y(out)
        return {"loss": loss, **{metric.name: metric(rows.y, out, rows.weight) for metric in metrics}}

    def step(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """One forward pass, backward pass and update on all rows given.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`. Small C-contiguous arrays of the network's dtype, y with two dimensions or int32
            labels, take the shortest way, without sample_weight.

        Returns
        -------
        float
            The loss before the update.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as `fit` needs it; nothing has changed then.
        DivergenceError
            If the loss is NaN or infinite; nothing has changed then. Or if its gradient overflows: in a large
            network the update may have been done in part.
        """
        engine = self._engine_for_step
        loss = None
        if engine is not None and sample_weight is None:
            loss = engine.try_step(X, y, self._specification.optimizer.learning_rate)
        if loss is None:
            self._refuse_step()
            engine, rows = self._checked(X, y, sample_weight)
            loss = engine.step(rows.X, rows.y, rows.weight, self.learning_rate)
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss of this step, or its gradient, is not finite: try a learning rate smaller than "
                f"{self.learning_rate:g}, or smaller inputs"
            )
        return loss

    def _refuse_step(self) -> None:
        if isinstance(self.optimizer, LBFGS):
            raise ValueError("step cannot be used with the optimizer LBFGS: use fit")
        if isinstance(self._specification.averaging, SWA):
            raise ValueError("step makes no epochs, which averaging=SWA(...) counts: use fit, or EMA")

    def _checked(self, X: Any, y: Any, sample_weight: Any) -> tuple[Engine, Rows]:
        """Engine and rows in the network's units; the input width is learnt if need be."""
        self._require_statistics()
        X = self._encoded(X)
        rows = self._check_rows(X, y, sample_weight)
        return self._prepare(rows.X, None, X), self._network_units(rows)

    def _rows_to_learn(self, X: Any, y: Any, sample_weight: Any) -> Rows:
        """Rows in the network's units, after `prepare` with them."""
        source = self._encoded(X)
        rows = self._check_rows(source, y, sample_weight)
        self._prepare(rows.X, rows.y, source)
        return self._network_units(rows)

    def loss_and_gradients(
        self, X: Any, y: Any, sample_weight: Any = None, *, input_gradient: bool = False
    ) -> tuple[float, Parameters]:
        """Mean loss with the l2 penalty, and its gradient.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        input_gradient : bool, default False
            Add the gradient with respect to X, (n, n_in), under the name "X".

        Returns
        -------
        loss : float
            In the units of the network, if targets are standardized.
        gradients : dict of str to numpy.ndarray
            By the names of `parameters`; running statistics have none.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as `fit` needs it, or the network is not complete.
        """
        engine, rows = self._checked(X, y, sample_weight)
        loss, gradients, dX = engine.loss_and_gradients(rows.X, rows.y, rows.weight, input_gradient)
        return loss, gradients if dX is None else {**gradients, "X": dX}

    def trace(self, X: Any, y: Any, sample_weight: Any = None) -> Trace:
        """The chain rule layer by layer, computed by the numpy reference.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        Trace
            The loss and, per layer, its input x, pre-activation z, activation a, error signal delta = dJ/dz,
            dW and db.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as `fit` needs it, or the network is not complete.
        """
        engine, rows = self._checked(X, y, sample_weight)
        shift = scale = None
        if self._input_transform is not None:
            shift = self._input_transform.shift.astype(self._dtype)
            scale = self._input_transform.scale.astype(self._dtype)
        loss, layers = reference_trace(
            self.plan, engine.parameters(), rows.X, rows.y, rows.weight, shift, scale
        )
        return Trace(loss, tuple(layers))

    # ----------------------------------------------------------------------------------------------
    # Parameters.

    def parameters(self) -> Parameters:
        """Copies of all parameters: ``{"dense_0.W": (n_in, n_out), "dense_0.b": (n_out,), ...}``.

        Normalisations have a ``gain`` and a ``shift``, a `Scale` has a ``gain``, an `Embedding` a ``W`` of
        shape (categories, size). The running ``mean`` and ``variance`` of a `BatchNorm` are among them.

        Raises
        ------
        ValueError
            If the width of the input is not known yet.
        """
        return self._built().parameters()

    def set_parameters(self, values: Mapping[str, Any]) -> None:
        """Overwrite some or all parameters.

        Parameters
        ----------
        values : mapping of str to array_like
            By the names of `parameters`, in the same shapes.

        Raises
        ------
        TypeError, ValueError
            If a name, shape or value is wrong; nothing has changed then.
        """
        plan = self.plan
        shapes = plan.parameter_shapes()
        checked = {name: self._check_parameter("parameter", name, v, shapes) for name, v in values.items()}
        if self._engine is None and checked.keys() == shapes.keys():
            self._start_engine(plan, [checked])
        else:
            self._built().set_parameters(checked)

    def _check_parameter(
        self, kind: str, name: str, value: Any, shapes: Mapping[str, tuple[int, ...]]
    ) -> Array:
        check_name(kind, name, shapes)
        array = numeric_array(name, value, self.dtype)
        if array.shape != shapes[name]:
            raise ValueError(f"{name} must have shape {shapes[name]}, got {array.shape}")
        of = name.removesuffix(".trained")
        if of in self.plan.statistics_shapes() and of.endswith(".variance") and np.any(array < 0):
            raise ValueError(f"{name} must not be negative, got {array.min():g}")
        return array

    def optimizer_state(self) -> Parameters:
        """Copies of the step count and moments by name, such as "step" and "dense_0.W.m".

        Raises
        ------
        ValueError
            If the width of the input is not known yet.
        """
        return self._built().optimizer_state()

    def set_optimizer_state(self, values: Mapping[str, Any]) -> None:
        """Overwrite the whole state of the optimizer.

        Parameters
        ----------
        values : mapping of str to array_like
            By the names of `optimizer_state`, all of them, in the same shapes.

        Raises
        ------
        TypeError, ValueError
            If a name, shape or value is wrong or missing; nothing has changed then.
        """
        engine = self._built()
        shapes = {name: value.shape for name, value in engine.optimizer_state().items()}
        missing = [name for name in shapes if name not in values]
        if missing:
            raise ValueError(f"the optimizer state lacks {missing[0]!r}")
        checked = {
            name: self._check_parameter("optimizer state", name, value, shapes)
            for name, value in values.items()
            if name != "step"
        }
        step = check_integer("step", np.asarray(values["step"]).item(), minimum=0)
        engine.set_optimizer_state({**checked, "step": np.array(step, np.int64)})


_CACHES = ("_dtype", "_engine_for_predict", "_engine_for_step")
