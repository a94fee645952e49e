"""The estimators' hyperparameters, checked: what scikit-learn's perceptrons take, and a few more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.names import check_name
from gradstep.schedules import Schedule, ScheduleLike, check_schedule
from gradstep.validation import check_flag, check_integer, check_real

SOLVERS = ("adam", "sgd", "lbfgs")
STOCHASTIC_SOLVERS = ("adam", "sgd")
SCHEDULES = ("constant", "invscaling", "adaptive")


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of one fit, in the engine's terms."""

    hidden: tuple[int, ...]
    """Widths of the hidden layers."""
    activations: tuple[str, ...]
    """Names of the engine, one for each hidden layer."""
    dropout: tuple[float, ...]
    """Shares of the hidden layers' outputs that an update drops."""
    normalization: str | None
    """Kind of the engine's layer between the products and the activation of every hidden layer."""
    solver: str
    alpha: float
    batch_size: int | None
    """None for "auto": 200, or all rows if they are fewer."""
    learning_rate: str | ScheduleLike
    """A name, or factors of learning_rate_init."""
    learning_rate_init: float
    power_t: float
    max_iter: int
    shuffle: bool
    tol: float
    verbose: bool
    warm_start: bool
    momentum: float
    nesterovs_momentum: bool
    early_stopping: bool
    validation_fraction: float
    beta_1: float
    beta_2: float
    epsilon: float
    n_iter_no_change: float
    max_fun: int
    n_jobs: int | None
    """Threads; None leaves the number as it is."""
    time_budget: float | None
    """Seconds, or None."""
    callbacks: tuple[Callable[[Any], Any], ...]

    @property
    def is_stochastic(self) -> bool:
        """Whether the solver goes through mini-batches."""
        return self.solver in STOCHASTIC_SOLVERS


def check_settings(parameters: Mapping[str, Any]) -> Settings:
    """The settings that an estimator's parameters stand for.

    Raises
    ------
    TypeError, ValueError
        If one of them is not what it must be; the message names it.
    """
    p = parameters
    hidden = _hidden(p["hidden_layer_sizes"])
    return Settings(
        hidden=hidden,
        activations=engine_activations(p["activation"], len(hidden)),
        dropout=_dropout(p["dropout"], len(hidden), p["solver"]),
        normalization=_normalization(p["normalization"], p["solver"]),
        solver=check_name("solver", p["solver"], SOLVERS),
        alpha=check_real("alpha", p["alpha"], minimum=0.0),
        batch_size=_batch_size(p["batch_size"]),
        learning_rate=_schedule(p["learning_rate"], p["solver"]),
        learning_rate_init=check_real("learning_rate_init", p["learning_rate_init"], above=0.0),
        power_t=check_real("power_t", p["power_t"], minimum=0.0),
        max_iter=check_integer("max_iter", p["max_iter"], minimum=1),
        shuffle=_flag("shuffle", p["shuffle"]),
        tol=check_real("tol", p["tol"], minimum=0.0),
        verbose=bool(p["verbose"]),
        warm_start=_flag("warm_start", p["warm_start"]),
        momentum=_unit("momentum", p["momentum"]),
        nesterovs_momentum=_flag("nesterovs_momentum", p["nesterovs_momentum"]),
        early_stopping=_flag("early_stopping", p["early_stopping"]),
        validation_fraction=check_real(
            "validation_fraction", p["validation_fraction"], minimum=0.0, below=1.0
        ),
        beta_1=check_real("beta_1", p["beta_1"], minimum=0.0, below=1.0),
        beta_2=check_real("beta_2", p["beta_2"], minimum=0.0, below=1.0),
        epsilon=check_real("epsilon", p["epsilon"], above=0.0),
        n_iter_no_change=_patience(p["n_iter_no_change"]),
        max_fun=check_integer("max_fun", p["max_fun"], minimum=1),
        n_jobs=check_threads(p["n_jobs"]),
        time_budget=None
        if p["time_budget"] is None
        else check_real("time_budget", p["time_budget"], above=0.0),
        callbacks=_callbacks(p["callbacks"]),
    )


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _hidden(sizes: Any) -> tuple[int, ...]:
    widths = sizes if _is_sequence(sizes) else (sizes,)
    return tuple(check_integer("hidden_layer_sizes", width, minimum=1) for width in widths)


def engine_activations(names: Any, layers: int) -> tuple[str, ...]:
    """The engine's name of the activation of each hidden layer, from one name or one a layer."""
    given = tuple(names) if _is_sequence(names) else (names,) * layers
    if len(given) != layers:
        raise ValueError(
            f"activation must be one name or one for each of the {layers} hidden layer(s), got {len(given)}"
        )
    known = ("logistic", *ACTIVATIONS)
    if not layers and not _is_sequence(names):
        check_name("activation", names, known)
    checked = (check_name("activation", name, known) for name in given)
    return tuple("sigmoid" if name == "logistic" else name for name in checked)


def _dropout(rates: Any, layers: int, solver: Any) -> tuple[float, ...]:
    given = tuple(rates) if _is_sequence(rates) else (rates,) * max(layers, 1)
    checked = tuple(check_real("dropout", rate, minimum=0.0, below=1.0) for rate in given)
    if _is_sequence(rates) and len(checked) != layers:
        raise ValueError(
            f"dropout must be one number or one for each of the {layers} hidden layer(s), got {len(checked)}"
        )
    if any(checked) and solver == "lbfgs":
        raise ValueError(
            "dropout needs the solver adam or sgd: lbfgs wants the same loss at every evaluation"
        )
    return checked[:layers]


def _normalization(name: Any, solver: Any) -> str | None:
    if name is None:
        return None
    check_name("normalization", name, ("batch", "layer"))
    if solver == "lbfgs":
        raise ValueError("normalization needs the solver adam or sgd")
    return f"{name}_norm"


def _batch_size(value: Any) -> int | None:
    return (
        None if isinstance(value, str) and value == "auto" else check_integer("batch_size", value, minimum=1)
    )


def _schedule(value: Any, solver: Any) -> str | ScheduleLike:
    if not isinstance(value, Schedule) and not callable(value):
        return check_name("learning_rate", value, SCHEDULES)
    if solver == "lbfgs":
        raise ValueError("learning_rate is a schedule, which needs the solver adam or sgd: lbfgs has none")
    return check_schedule("learning_rate", value)


def _flag(name: str, value: Any) -> bool:
    return check_flag(name, bool(value) if isinstance(value, np.bool_) else value)


def _unit(name: str, value: Any) -> float:
    number = check_real(name, value, minimum=0.0)
    if number > 1.0:
        raise ValueError(f"{name} must be at most 1, got {value!r}")
    return number


def _patience(value: Any) -> float:
    if isinstance(value, float) and value == math.inf:
        return value
    return check_integer("n_iter_no_change", value, minimum=1)


def check_threads(value: Any) -> int | None:
    """n_jobs as a number of threads: None leaves it as it is, 0 stands for -1, all usable cores."""
    if value is None:
        return None
    return 0 if value == -1 else check_integer("n_jobs", value, minimum=1)


def _callbacks(value: Any) -> tuple[Callable[[Any], Any], ...]:
    if value is None:
        return ()
    given = tuple(value) if _is_sequence(value) else (value,)
    for callback in given:
        if not callable(callback):
            raise TypeError(f"callbacks must be functions of the estimator, got {callback!r}")
    return given
