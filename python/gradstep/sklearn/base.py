"""What the estimators have in common: fitting, predicting, and the attributes that both leave."""

from __future__ import annotations

import contextlib
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from gradstep.backends.base import Array, Engine, Plan
from gradstep.losses import Loss
from gradstep.network import Network
from gradstep.sklearn.callbacks import CallbackSupportMixin, EpochHooks, FitHooks
from gradstep.sklearn.lbfgs import minimize
from gradstep.sklearn.model import (
    Coefficients,
    initial_coefficients,
    initial_normalizations,
    make_engine,
    set_coefficients,
    threads,
)
from gradstep.sklearn.objective import Objective, make_plan, make_prediction_plan
from gradstep.sklearn.persistence import Persistent, network_of
from gradstep.sklearn.rows import Rows, make_rows, predict
from gradstep.sklearn.settings import (
    STOCHASTIC_SOLVERS,
    Settings,
    check_settings,
    check_threads,
    engine_activations,
)
from gradstep.sklearn.stochastic import Split, StochasticSolver, hold_out

FLOATS = (np.float64, np.float32)
"""dtypes that inputs keep; all others become the first."""

SPARSE = ["csr", "csc"]

_engines: weakref.WeakKeyDictionary[Perceptron, tuple[Plan, str, Engine]] = weakref.WeakKeyDictionary()
"""Engines that predicted last; not in the estimators, whose state is plain arrays."""


def _has_partial_fit(estimator: Any) -> bool:
    if estimator.solver not in STOCHASTIC_SOLVERS:
        raise AttributeError(
            f"partial_fit is only available for stochastic optimizers. {estimator.solver} is not stochastic."
        )
    return True


with_partial_fit = available_if(_has_partial_fit)
"""For methods that lbfgs does not have."""


class Perceptron(Persistent, CallbackSupportMixin, BaseEstimator):  # type: ignore[misc]
    """A multi-layer perceptron with scikit-learn's interface; base of the estimators."""

    activation: Any
    solver: str
    random_state: Any
    n_jobs: int | None
    backend: str

    coefs_: list[Array]
    intercepts_: list[Array]
    normalizations_: list[dict[str, Array]]
    loss_: float
    loss_curve_: list[float]
    best_loss_: Any
    validation_scores_: Any
    best_validation_score_: Any
    validation_loss_curve_: list[float]
    n_iter_: int
    t_: int
    n_layers_: int
    n_outputs_: int
    out_activation_: str
    _no_improvement_count: int
    _rate: float
    _optimizer_state: dict[str, Array]

    def _store(self, parameters: dict[str, Any]) -> None:
        """Keep the arguments of a constructor, its ``locals()``, as they are."""
        self.__dict__.update({k: v for k, v in parameters.items() if k not in ("self", "__class__")})

    # ----------------------------------------------------------------------------------------------
    # What a subclass says about its targets.

    @abstractmethod
    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, Any]:
        """Arguments of fit as arrays, with scikit-learn's checks."""

    @abstractmethod
    def _learn_targets(self, y: Any, settings: Settings, *, first: bool, incremental: bool) -> int:
        """Learn what y holds, or check that it fits what is known; returns the number of outputs."""

    @abstractmethod
    def _objective(self, outputs: int) -> Objective:
        """What is minimised."""

    @abstractmethod
    def _encoded_targets(self, y: Any, dtype: str) -> Array:
        """Targets as the engine takes them."""

    @abstractmethod
    def _score_of(self, outputs: Array, y: Array, sample_weight: Array | None) -> float:
        """Score of the engine's outputs, for encoded targets."""

    def _with_class_weight(self, y: Any, sample_weight: Array | None) -> Array | None:
        """Sample weights times what the classes weigh."""
        return sample_weight

    def _strata(self, y: Array) -> Array | None:
        """What a held-out part of encoded targets is stratified by."""
        return None

    # ----------------------------------------------------------------------------------------------
    # Fitting.

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        validation: tuple[Any, Any, Any] = (None, None, None),
        *,
        incremental: bool,
    ) -> Any:
        settings = check_settings(vars(self))
        if incremental and settings.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        with self._unchanged_on_error(), threads(settings.n_jobs):
            self._fit_checked(X, y, sample_weight, validation, settings, incremental)
        return self

    def _fit_checked(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        validation: tuple[Any, Any, Any],
        settings: Settings,
        incremental: bool,
    ) -> None:
        first = not hasattr(self, "coefs_") or (not settings.warm_start and not incremental)
        given = X, y, {} if sample_weight is None else {"sample_weight": sample_weight}
        X, y = self._validated(X, y, reset=first)
        weight = check_sample_weight(sample_weight, X.shape[0])
        outputs = self._learn_targets(y, settings, first=first, incremental=incremental)
        weight = self._with_class_weight(y, weight)
        dtype = X.dtype.name if settings.is_stochastic else "float64"
        rows = self._rows(X, y, weight, dtype)
        objective = self._objective(outputs)
        random_state = check_random_state(self.random_state)
        # scikit-learn draws nothing here, so that nothing may be drawn without dropout.
        seed = int(random_state.randint(2**31)) if any(settings.dropout) else 0
        plan = make_plan((X.shape[1], *settings.hidden, outputs), settings, objective, dtype, seed)
        if first:
            self._start(plan, settings, objective, random_state, X.dtype.name)
        self._check_shapes(plan)
        given_rows = self._validation_rows(validation, dtype)
        hooks = EpochHooks(self, settings) if incremental else self._fit_hooks(settings, given)
        engine = make_engine(plan, self.backend, Coefficients.of(self))
        if settings.is_stochastic:
            first_update = self._restore_optimizer(engine, settings, incremental)
            split = self._split(engine, rows, given_rows, settings, random_state)
            solver = StochasticSolver(
                self, engine, settings, objective, rows, split, random_state, first_update
            )
            self._forget_moments()
            solver.run(hooks, incremental=incremental)
        else:
            minimize(
                self, engine, settings, objective, rows, self._validation_loss(engine, given_rows), hooks
            )
        if isinstance(hooks, FitHooks):
            hooks.fit_ended()

    @contextlib.contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Go back to what was learnt before the block if it fails."""
        before = {
            name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()
        }
        try:
            yield
        except BaseException:
            for name in set(vars(self)) - set(before):
                if not name.startswith(("_callback", "_skl")):  # those still have to be taken down
                    delattr(self, name)
            self.__dict__.update(before)
            raise

    def _fit_hooks(self, settings: Settings, given: tuple[Any, Any, dict[str, Any]]) -> EpochHooks:
        """What watches this fit; scikit-learn's callbacks cost nothing where there are none."""
        if not getattr(self, "_skl_callbacks", ()):
            return EpochHooks(self, settings)
        return FitHooks(self, settings, *given)

    def _rows(self, X: Any, y: Any, weight: Array | None, dtype: str) -> Rows:
        X = X.astype(dtype, copy=False)
        weight = None if weight is None else np.ascontiguousarray(weight, dtype)
        return make_rows(X, self._encoded_targets(y, dtype), weight)

    def _validation_rows(self, validation: tuple[Any, Any, Any], dtype: str) -> Rows | None:
        X, y, sample_weight = validation
        if X is None and y is None:
            if sample_weight is not None:
                raise ValueError("sample_weight_val needs X_val and y_val")
            return None
        if X is None or y is None:
            raise ValueError("X_val and y_val must both be given, or none")
        X, y = self._validated(X, y, reset=False)
        return self._rows(X, y, check_sample_weight(sample_weight, X.shape[0], "sample_weight_val"), dtype)

    def _start(
        self,
        plan: Plan,
        settings: Settings,
        objective: Objective,
        random_state: np.random.RandomState,
        dtype: str,
    ) -> None:
        """Initial coefficients, and attributes as before the first epoch."""
        widths = (plan.n_in, *settings.hidden, plan.n_out)
        activation = self.activation if isinstance(self.activation, str) else "relu"
        coefs, intercepts = initial_coefficients(widths, activation, random_state, dtype)
        self.__dict__.pop("normalizations_", None)
        Coefficients(coefs, intercepts, initial_normalizations(plan)).give_to(self)
        self.n_iter_ = self.t_ = 0
        self.n_outputs_, self.n_layers_ = plan.n_out, len(widths)
        self.out_activation_ = objective.out_activation
        self.__dict__.pop("validation_loss_curve_", None)
        if not settings.is_stochastic:
            return
        self.loss_curve_ = []
        self._no_improvement_count = 0
        stops_early = settings.early_stopping
        self.best_loss_ = None if stops_early else np.inf
        self.validation_scores_ = [] if stops_early else None
        self.best_validation_score_ = -np.inf if stops_early else None

    def _check_shapes(self, plan: Plan) -> None:
        had = [W.shape for W in self.coefs_]
        wanted = [(layer.n_in, layer.n_out) for layer in plan.layers if layer.kind == "dense"]
        if had != wanted:
            raise ValueError(
                f"training can only go on with the shapes of before, {had}, but hidden_layer_sizes and the "
                f"data ask for {wanted}"
            )
        kind = next((layer.kind for layer in plan.layers if layer.kind != "dense"), None)
        known = Coefficients.of(self).normalization
        if known != kind:
            before, now = (None if name is None else name.removesuffix("_norm") for name in (known, kind))
            raise ValueError(
                f"training can only go on with the normalization of before, {before!r}, got {now!r}"
            )

    def _restore_optimizer(self, engine: Engine, settings: Settings, incremental: bool) -> int:
        """Go on with the optimizer of before, where partial_fit does; returns its updates so far."""
        known = getattr(self, "_optimizer_state", None)
        if incremental and known is not None and known.keys() == engine.optimizer_state().keys():
            engine.set_optimizer_state(known)
            return int(known["step"])
        self._rate = settings.learning_rate_init
        return 0

    def _forget_moments(self) -> None:
        """Let go of what the engine holds now: wide networks would hold it twice."""
        self._optimizer_state = {}
        self.coefs_, self.intercepts_ = [], []

    def _split(
        self,
        engine: Engine,
        rows: Rows,
        given: Rows | None,
        settings: Settings,
        random_state: np.random.RandomState,
    ) -> Split:
        """What trains and what validates."""
        train, held = None, given
        loss = self._validation_loss(engine, given)
        if given is None and settings.early_stopping:
            train, rows_held = hold_out(
                len(rows), settings.validation_fraction, self._strata(rows.y), random_state
            )
            held = rows.take(rows_held)
        if not settings.early_stopping or held is None:
            return Split(train, None, loss)
        scored = held
        return Split(train, lambda: self._score_rows(engine, scored), loss)

    def _validation_loss(self, engine: Engine, rows: Rows | None) -> Callable[[], float] | None:
        """What adds to `validation_loss_curve_`, or None without rows for it."""
        if rows is None:
            return None
        if not hasattr(self, "validation_loss_curve_"):
            self.validation_loss_curve_ = []
        scale = self._objective(engine.plan.n_out).reported
        return lambda: rows.evaluate(engine) * scale

    def _score_rows(self, engine: Engine, rows: Rows) -> float:
        outputs = predict(engine, rows.X)
        return self._score_of(outputs, rows.y, rows.weight) if np.isfinite(outputs).all() else float("nan")

    # ----------------------------------------------------------------------------------------------
    # Predicting.

    def _outputs(self, X: Any) -> Array:
        """Linked outputs, (n, n_outputs_)."""
        check_is_fitted(self)
        dtype = self.coefs_[0].dtype
        X = validate_data(self, X, accept_sparse=SPARSE, dtype=dtype, order="C", reset=False)
        values = Coefficients.of(self)
        activations = engine_activations(self.activation, len(values.coefs) - 1)
        kind = values.normalization
        plan = make_prediction_plan(values.widths, activations, kind, self.out_activation_, dtype.name)
        known = _engines.get(self)
        if known is not None and known[:2] == (plan, self.backend):
            engine = known[2]
            set_coefficients(engine, values)
        else:
            engine = make_engine(plan, self.backend, values)
            _engines[self] = plan, self.backend, engine
        with threads(check_threads(self.n_jobs)):
            return predict(engine, X)

    def to_network(self) -> Network:
        """The trained network, as `gradstep.Network`; see `Persistent.to_network`."""
        check_is_fitted(self)
        activations = engine_activations(self.activation, len(self.coefs_) - 1)
        network = network_of(self, self._network_loss(), activations, self.backend)
        network.classes = self._class_names()
        return network

    def _class_names(self) -> list[str] | None:
        """Names of the outputs' classes for a network, or None."""
        return None

    @abstractmethod
    def _network_loss(self) -> Loss:
        """The loss of the trained network."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def check_sample_weight(weight: Any, n: int, argument: str = "sample_weight") -> Array | None:
    """Weights as (n,) floats, or None.

    Raises
    ------
    ValueError
        If they are no numbers, do not match the rows, are negative, or are all zero.
    """
    if weight is None:
        return None
    if np.isscalar(weight):
        weight = np.full(n, weight, dtype=np.float64)
    array: Array = check_array(weight, ensure_2d=False, dtype=FLOATS, input_name=argument, order="C")
    if array.ndim != 1:
        raise ValueError(f"{argument} must be 1D array or scalar, got an array of shape {array.shape}")
    if array.shape != (n,):
        raise ValueError(f"{argument}.shape == {array.shape}, expected {(n,)}!")
    if array.min() < 0:
        raise ValueError(f"{argument} must not be negative, got {array.min()}")
    if not array.any():
        raise ValueError(f"{argument} must not be all zero: at least one row has to count")
    return array
