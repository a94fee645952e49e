"""A network: layers, a loss and an optimizer, compiled by a backend."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradstep import backends
from gradstep.backends.base import Array, Engine, Parameters, Plan
from gradstep.backends.numpy import trace as reference_trace
from gradstep.callbacks import Callback
from gradstep.history import History
from gradstep.layers import Input, Layer
from gradstep.losses import Loss
from gradstep.metrics import metric_names, metrics
from gradstep.names import check_name
from gradstep.optimizers import Optimizer
from gradstep.preprocessing import Transform, fit_transform
from gradstep.schedules import ScheduleLike, check_schedule
from gradstep.specification import Specification, arguments_from_config
from gradstep.tracing import Trace
from gradstep.training import DivergenceError, Job, Rows, Training
from gradstep.validation import (
    BLOCK_ELEMENTS,
    TARGET_CHECKS,
    all_finite,
    as_numbers,
    check_batch_size,
    check_categories,
    check_finite,
    check_flag,
    check_inputs,
    check_integer,
    check_weight,
    numeric_array,
)

SMALL_BATCH = 256
"""Rows up to which labels are quicker checked as Python integers than by numpy."""


class Network:
    """A dense network with its loss, optimizer, preprocessing and parameters.

    Parameters
    ----------
    layers : sequence of layers
        `Dense` layers, optionally behind an `Input`, with `Activation`, `BatchNorm`, `LayerNorm`, `Dropout`,
        `Scale`, `Residual` and `Embedding` beside them. A single ``Dense(1)`` is linear regression.
    loss : str or Loss, default "mse"
        mse, mae, huber, quantile, poisson, binary_cross_entropy or cross_entropy, or an object such as
        ``Huber(2.0)`` or ``Quantile([0.1, 0.9])``. The two
        cross-entropies need a last layer with the identity: it outputs logits, and `predict` applies
        the sigmoid or softmax.
    optimizer : str or Optimizer, default "adam"
        gradient_descent, sgd, adam or adamw with their defaults, or an object such as ``Adam(1e-2)``.
    l2 : float, default 0.0
        Adds ``l2 / 2 * sum(W**2)`` over all weights, not biases, to the training loss.
    preprocessing : {"none", "standardize", "minmax"}
        What happens to the columns of X before the first layer: mean 0 and deviation 1, or from 0 to 1.
        The statistics are those of the rows of the first `fit`, and stay.
    target_preprocessing : {"none", "standardize"}
        For mse, mae and huber: whether the network learns ``(y - mean) / deviation``, with the
        statistics of the first `fit`. `predict` returns y's own units; losses are in those of the network.
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
        loss: str | Loss = "mse",
        optimizer: str | Optimizer = "adam",
        l2: float = 0.0,
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

    def __repr__(self) -> str:
        head = (
            f"Network: loss {self.loss.name}, {self.optimizer!r}, "
            f"preprocessing {self._specification.preprocessing}, {self.dtype}, backend {self.backend}"
        )
        return "\n".join([head, *(f"  {line}" for line in self._specification.table(self.n_in).splitlines())])

    # ----------------------------------------------------------------------------------------------
    # Description, for files, copies and pickles.

    @property
    def config(self) -> dict[str, Any]:
        """Everything but parameters, optimizer state and encoder, as plain JSON values."""
        return {
            **self._specification.to_config(),
            "preprocessing": _transform_config(self._specification.preprocessing, self._input_transform),
            "target_preprocessing": _transform_config(
                self._specification.target_preprocessing, self._target_transform
            ),
            "n_in": self.n_in,
            "classes": self.classes,
            "epochs_trained": self.epochs_trained,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, backend: str = "auto") -> Network:
        """Rebuild a network from its `config`, with initial parameters.

        Parameters
        ----------
        config : mapping
            What `config` returned.
        backend : str, default "auto"
            What computes.

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
            network = cls(**arguments_from_config(config), backend=backend)
            network._restore(config)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"config does not describe a network: {error!r}") from error
        return network

    def _restore(self, config: Mapping[str, Any]) -> None:
        n_in = config["n_in"]
        if n_in is not None:
            self._plan = self._specification.plan(check_integer("n_in", n_in, minimum=1))
        self._input_transform = _transform_from_config(config["preprocessing"], n_in)
        self._target_transform = _transform_from_config(config["target_preprocessing"], self.n_out)
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
        fast = self._engine is not None and self._is_prepared() and not self._specification.embeddings
        self._fast_engine = self._engine if fast else None
        self._fast_n_in = -1 if self._plan is None else self._plan.n_in
        self._fast_n_out = self.n_out
        self._fast_labels = frozenset(range(self.n_out if self.loss.target_kind == "labels" else 0))
        self._fast_step = self._target_transform is None and self.loss.target_kind in ("values", "labels")
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
        X : array_like, (n, n_in)
            Training rows.
        y : array_like, optional
            Their targets, needed for ``target_preprocessing="standardize"``.

        Raises
        ------
        TypeError, ValueError
            If X or y is not as `fit` needs it.
        """
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
            if input_transform is not None:
                embedded = [embedding.column for embedding in self._specification.embeddings]
                input_transform = input_transform.without(embedded)
        if target_transform is None and y is not None:
            target_transform = fit_transform(self._specification.target_preprocessing, y, "float64", "y")
        if self._engine is None:
            plan = self._specification.plan(X.shape[1]) if self._plan is None else self._plan
            self._start_engine(plan, self._specification.initial_parameters(plan))
        self._input_transform, self._target_transform = input_transform, target_transform
        self._refresh()
        return self._built()

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
        return TARGET_CHECKS[self.loss.target_kind](y, dtype, n, self.n_out, argument)

    def _check_rows(self, X: Any, y: Any, sample_weight: Any) -> Rows:
        X = self._check_inputs(X)
        return Rows(X, self._check_y(y, len(X)), check_weight(sample_weight, self.dtype, len(X)))

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
        y: Any,
        *,
        epochs: int = 10,
        batch_size: int | None = None,
        sample_weight: Any = None,
        validation_data: Any = None,
        shuffle: bool = True,
        schedule: ScheduleLike = None,
        callbacks: Sequence[Callback] | None = None,
        verbose: int = 1,
    ) -> History:
        """Train for a number of epochs; called again, go on training.

        Parameters
        ----------
        X : array_like, (n, n_in)
            Finite numbers of any dtype and layout. C-contiguous arrays of the network's dtype, memory
            maps among them, are used in place.
        y : array_like
            (n, n_out), or (n,) for one output; for binary_cross_entropy in [0, 1]; for cross_entropy
            labels 0 to n_out - 1 (n,), or one-hot rows (n, n_out).
        epochs : int, default 10
            Passes over the rows.
        batch_size : int, optional
            Rows per update, 1 to n; the last batch of an epoch may be smaller. By default 32, or all
            rows with `GradientDescent`.
        sample_weight : array_like, (n,), optional
            Weights of the rows in the loss, not negative.
        validation_data : tuple, optional
            (X, y) or (X, y, sample_weight), evaluated after every epoch.
        shuffle : bool, default True
            Visit the rows in a new order every epoch, which depends on seed and epoch alone.
        schedule : Schedule or callable, optional
            Factors of the learning rate, update by update: a `Schedule`, or a function of the number of
            updates in this call, from 0.
        callbacks : sequence of Callback, optional
            Called after every epoch.
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
        X = self._encoded(X)
        rows = self._check_rows(X, y, sample_weight)
        n, n_in = rows.X.shape
        validation = self._check_validation(validation_data, n_in)
        epochs = check_integer("epochs", epochs, minimum=1)
        batch_size = check_batch_size(batch_size, n, self.optimizer.default_batch_size(n))
        shuffle = check_flag("shuffle", shuffle)
        schedule = check_schedule("schedule", schedule)
        callbacks = _check_callbacks(callbacks)
        verbose = check_integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, minimum=0)

        with self._unchanged_on_error():
            engine = self._prepare(rows.X, rows.y, X)
            if validation is not None:
                self._network_units(validation, "validation_data[1]")
            job = Job(
                rows=self._network_units(rows),
                epochs=epochs,
                batch_size=batch_size,
                shuffle=shuffle,
                validate=None if validation is None else lambda: self._evaluate(engine, validation),
                callbacks=callbacks,
                metric_names=self._history_names(validation is not None),
                verbose=verbose,
                schedule=schedule,
                note=backends.first_use_note(self._backend, self.dtype) if verbose else None,
            )
            training = Training(self, engine, job)
        return training.run()

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

    def _history_names(self, validated: bool) -> tuple[str, ...]:
        names = ("loss", *metric_names(self.loss.target_kind)) if validated else ()
        return ("loss", *(f"val_{name}" for name in names))

    def predict(self, X: Any) -> Array:
        """Outputs for rows: values, or probabilities for a classification loss.

        Parameters
        ----------
        X : array_like, (n, n_in)
            Finite numbers.

        Returns
        -------
        numpy.ndarray
            (n, n_out), always two-dimensional; in the network's dtype, or float64 in y's own units where
            targets are standardized.

        Raises
        ------
        TypeError, ValueError
            If X is not as above, or the network is not complete.
        """
        engine = self._fast_engine
        if not (
            engine is not None
            and type(X) is np.ndarray
            and X.dtype is self._dtype
            and X.ndim == 2
            and X.shape[1] == self._fast_n_in
            and 0 < X.size <= BLOCK_ELEMENTS
            and X.flags.carray
            and all_finite(X)
        ):
            engine = self._ready()
            X = self._check_inputs(X)
        out = np.empty((X.shape[0], self._fast_n_out), self._dtype)
        engine.predict(X, out)
        return out if self._target_transform is None else self._target_transform.invert(out)

    def evaluate(self, X: Any, y: Any, sample_weight: Any = None) -> dict[str, float]:
        """Loss and metrics.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        dict
            ``loss`` without the l2 penalty; ``accuracy`` for classification losses; ``rmse`` and ``r2`` in
            the units of y for the others.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as `fit` needs it, or the network is not complete.
        """
        engine = self._ready()
        return self._evaluate(engine, self._check_rows(X, y, sample_weight))

    def _evaluate(self, engine: Engine, rows: Rows) -> dict[str, float]:
        out = np.empty((len(rows.X), self.n_out), self._dtype)
        loss = engine.evaluate(rows.X, self._network_units(rows).y, rows.weight, out)
        if self._target_transform is not None:
            out = self._target_transform.invert(out)
        return {"loss": loss, **metrics(self.loss.target_kind, out, rows.y, rows.weight)}

    def step(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """One forward pass, backward pass and update on all rows given.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`. C-contiguous arrays of the network's dtype (labels: int32) take the shortest way.

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
        engine = self._fast_engine
        if (
            engine is not None
            and sample_weight is None
            and self._fast_step
            and type(X) is np.ndarray
            and X.dtype is self._dtype
            and X.ndim == 2
            and X.shape[1] == self._fast_n_in
            and 0 < X.size <= BLOCK_ELEMENTS
            and X.flags.carray
            and all_finite(X)
            and self._is_target(y, X.shape[0])
        ):
            loss = engine.step(X, y, None, self._specification.optimizer.learning_rate)
        else:
            engine, rows = self._checked(X, y, sample_weight)
            loss = engine.step(rows.X, rows.y, rows.weight, self.learning_rate)
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss of this step, or its gradient, is not finite: try a learning rate smaller than "
                f"{self.learning_rate:g}, or smaller inputs"
            )
        return loss

    def _is_target(self, y: Any, n: int) -> bool:
        """Whether y can go to the engine as it is."""
        if type(y) is not np.ndarray or not y.flags.carray:
            return False
        if self._fast_labels:
            if y.dtype is not _INT32 or y.shape != (n,) or n > SMALL_BATCH:
                return False
            return self._fast_labels.issuperset(y.tolist())
        return y.dtype is self._dtype and y.shape == (n, self._fast_n_out) and all_finite(y)

    def _checked(self, X: Any, y: Any, sample_weight: Any) -> tuple[Engine, Rows]:
        """Engine and rows in the network's units; the input width is learnt if need be."""
        self._require_statistics()
        X = self._encoded(X)
        rows = self._check_rows(X, y, sample_weight)
        return self._prepare(rows.X, None, X), self._network_units(rows)

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
        if name in self.plan.statistics_shapes() and name.endswith(".variance") and np.any(array < 0):
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


_CACHES = ("_dtype", "_fast_engine", "_fast_n_in", "_fast_n_out", "_fast_labels", "_fast_step")
_INT32 = np.dtype(np.int32)


def _check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    if callbacks is None:
        return ()
    if isinstance(callbacks, Callback):
        raise TypeError("callbacks must be a list of callbacks, got a single one")
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be a list of callbacks, got {callbacks!r}")
    given: tuple[Callback, ...] = tuple(callbacks)
    for callback in given:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be instances of Callback, got {callback!r}")
    return given


def _transform_config(mode: str, transform: Transform | None) -> dict[str, Any]:
    statistics = {"shift": None, "scale": None} if transform is None else transform.to_config()
    return {"mode": mode, **statistics}


def _transform_from_config(config: Mapping[str, Any], width: int | None) -> Transform | None:
    if config["shift"] is None:
        return None
    try:
        transform = Transform.from_config(config)
    except OverflowError:
        raise ValueError("statistics of the preprocessing must fit float64") from None
    if config["mode"] == "none":
        raise ValueError("preprocessing 'none' has no statistics")
    if transform.shift.shape != (width,) or transform.scale.shape != (width,):
        raise ValueError(f"statistics of the preprocessing must have {width} entries each")
    if not (
        np.isfinite(transform.shift).all()
        and np.isfinite(transform.scale).all()
        and (transform.scale > 0).all()
    ):
        raise ValueError("statistics of the preprocessing must be finite, and scales positive")
    return transform
