"""``gradstep train``: from a data set to a saved model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from gradstep import backends, io
from gradstep.callbacks import EarlyStopping
from gradstep.commands.output import say_facts
from gradstep.commands.problem import Choices, Problem, make_problem
from gradstep.data import BUNDLED, DataSet, read_data
from gradstep.history import History
from gradstep.layers import Dense
from gradstep.names import check_name
from gradstep.network import Network
from gradstep.optimizers import OPTIMIZER_CLASSES, Optimizer
from gradstep.training import DivergenceError
from gradstep.validation import check_integer, check_real

LEARNING_RATES = {"gradient_descent": 0.1, "sgd": 0.05, "adam": 0.002, "adamw": 0.002}
"""Good starts for networks and batches of the default size; the others have their defaults."""


@dataclass(frozen=True)
class Recipe:
    """What the user may decide about the network and its training."""

    hidden: str
    activation: str
    optimizer: str
    learning_rate: float | None
    l2: float
    epochs: int
    batch_size: int | None
    patience: int
    backend: str
    dtype: str
    seed: int

    def layers(self, n_out: int) -> list[Dense]:
        """Hidden layers and a linear output layer."""
        return [*(Dense(width, self.activation) for width in _widths(self.hidden)), Dense(n_out)]

    def make_optimizer(self) -> Optimizer:
        """The optimizer, with the learning rate given or a usual one."""
        name = check_name("optimizer", self.optimizer, OPTIMIZER_CLASSES)
        rate = LEARNING_RATES.get(name) if self.learning_rate is None else self.learning_rate
        return OPTIMIZER_CLASSES[name](**({} if rate is None else {"learning_rate": rate}))

    def network(self, problem: Problem) -> Network:
        """The network for a problem, untrained."""
        is_regression = problem.task == "regression"
        network = Network(
            self.layers(problem.n_out),
            loss="mse" if is_regression else "cross_entropy",
            optimizer=self.make_optimizer(),
            l2=self.l2,
            preprocessing=problem.preprocessing,
            target_preprocessing="standardize" if is_regression else "none",
            seed=self.seed,
            backend=self.backend,
            dtype=self.dtype,
        )
        network.encoder = problem.encoder
        network.classes = problem.classes
        return network

    def check(self) -> None:
        """Raise for choices that fit no data at all, before any is read."""
        check_integer("--epochs", self.epochs, minimum=1)
        check_integer("--patience", self.patience, minimum=0)
        check_integer("--seed", self.seed, minimum=0, maximum=2**64 - 1)
        check_real("--l2", self.l2, minimum=0.0)
        if self.learning_rate is not None:
            check_real("--lr", self.learning_rate, above=0.0)
        if self.batch_size is not None:
            check_integer("--batch-size", self.batch_size, minimum=1)
        Network(
            self.layers(n_out=2),
            optimizer=self.make_optimizer(),
            l2=self.l2,
            seed=self.seed,
            backend=self.backend,
            dtype=self.dtype,
        )

    def check_rows(self, n: int) -> None:
        """Raise if n training rows are too few for a batch."""
        if self.batch_size is not None and self.batch_size > n:
            raise ValueError(f"--batch-size must be at most {n}, the training rows, got {self.batch_size}")


def train(
    data: Annotated[
        str,
        typer.Argument(help=f"A CSV (also .gz), TSV, Parquet or npz file, or one of {', '.join(BUNDLED)}."),
    ],
    target: Annotated[
        str | None,
        typer.Option(help="The column to predict.", show_default="none: needed for CSV and Parquet files"),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            help="A column to learn nothing from, such as a row number; may be given several times.",
            show_default="none",
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(help="classification, regression, or auto: by the values of the target.")
    ] = "auto",
    hidden: Annotated[
        str, typer.Option(help="Widths of the hidden layers, separated by commas, or none.")
    ] = "256,256",
    activation: Annotated[str, typer.Option(help="Activation of the hidden layers.")] = "relu",
    optimizer: Annotated[
        str, typer.Option(help=f"What updates the weights: {', '.join(OPTIMIZER_CLASSES)}.")
    ] = "adam",
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate.",
            show_default=", ".join(f"{rate:g} for {name}" for name, rate in LEARNING_RATES.items()),
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Most passes over the training rows.")] = 100,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Rows of an update.",
            show_default="32 to 256, by the number of rows; all of them for gradient_descent",
        ),
    ] = None,
    l2: Annotated[float, typer.Option(help="Weight of the penalty l2 / 2 * sum of squared weights.")] = 0.0,
    preprocessing: Annotated[
        str,
        typer.Option(
            help="For arrays: standardize, minmax, none, or auto: minmax for whole numbers such as pixels, "
            "else standardize. Tables are encoded column by column."
        ),
    ] = "auto",
    max_categories: Annotated[
        int, typer.Option(help="Most categories of one column of a table; rarer ones count as unknown.")
    ] = 255,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the rows that decides when to stop.")
    ] = 0.1,
    test_fraction: Annotated[
        float, typer.Option(help="Share of the rows that is kept for the final test.")
    ] = 0.2,
    patience: Annotated[
        int,
        typer.Option(
            help="Stop after this many epochs without a better validation loss, and go back to the best "
            "epoch; 0 never stops."
        ),
    ] = 10,
    backend: Annotated[str, typer.Option(help="What computes: auto, cpp, numba or numpy.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads to use; 0 is all of them.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    seed: Annotated[int, typer.Option(help="Decides the split, the first weights and the shuffling.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The model file to write.", show_default="the name of DATA, .safetensors"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Train a network on a data set, test it, and save it.

    Ctrl-C ends the training early: the network so far is tested and saved.
    So is that of the last good epoch if training diverges: still an error.
    """
    choices = Choices(task, preprocessing, max_categories, validation_fraction, test_fraction, seed)
    recipe = Recipe(hidden, activation, optimizer, lr, l2, epochs, batch_size, patience, backend, dtype, seed)
    choices.check()
    backends.set_num_threads(check_integer("--threads", threads, minimum=0))
    recipe.check()
    path = out or Path(Path(data).name.split(".")[0] + ".safetensors")
    io.check_writable(path)
    dropped = list(dict.fromkeys(drop or ()))
    data_set = read_data(data, target, dropped)
    problem = make_problem(data_set, choices, dtype)
    recipe.check_rows(len(problem.train[0]))
    network = recipe.network(problem)
    if not quiet:
        say_facts(describe_problem(data_set, problem, network, recipe))
    training = fit(network, problem, recipe, verbose=0 if quiet else 1)
    description = {
        "data": Path(data).name,
        "target": data_set.target_name,
        "dropped": dropped or None,
        "task": problem.task,
    }
    result = save_and_test(network, problem, path, description)
    if not quiet:
        say_facts([*describe_training(network, problem, recipe, training, result), ("saved", str(path))])
    if training.divergence is not None:
        raise DivergenceError(f"{training.divergence}; what it learnt is saved in {path}")


@dataclass(frozen=True)
class Training:
    """How a training ended that left a network worth saving."""

    history: History
    kept: int
    """The epoch of the best validation loss, to which the network went back; 0 without one."""
    divergence: DivergenceError | None


def fit(network: Network, problem: Problem, recipe: Recipe, verbose: int) -> Training:
    """Train until the epochs are over, the validation loss stops falling or training diverges.

    Divergence in the first epoch leaves nothing to go on with, and raises DivergenceError.
    """
    stopping = None
    if recipe.patience > 0 and problem.validation is not None:
        stopping = EarlyStopping(patience=recipe.patience)
    batch_size = recipe.batch_size
    if batch_size is None and not network.optimizer.full_batch:
        batch_size = default_batch_size(len(problem.train[0]))
    divergence = None
    try:
        network.fit(
            *problem.train,
            epochs=recipe.epochs,
            batch_size=batch_size,
            validation_data=problem.validation,
            callbacks=[] if stopping is None else [stopping],
            verbose=verbose,
        )
    except DivergenceError as error:
        if network.epochs_trained == 0:
            raise
        divergence = error
    assert network.history is not None
    return Training(network.history, 0 if stopping is None else stopping.best_epoch, divergence)


def save_and_test(
    network: Network, problem: Problem, path: Path, description: dict[str, Any]
) -> dict[str, float]:
    """Save the network before its test, which may fail, and again with what came out."""
    io.save(network, path, description=description)
    if problem.test is None:
        return {}
    result = network.evaluate(*problem.test)
    finite = {name: value for name, value in result.items() if math.isfinite(value)}
    io.save(network, path, description={**description, "test": finite})
    return result


def default_batch_size(n: int) -> int:
    """The power of two just below a 128th of the rows, but 32 to 256, and at most all rows."""
    exponent = min(max(int(math.log2(n / 128)), 5), 8)
    return min(n, 1 << exponent)


def describe_problem(
    data: DataSet, problem: Problem, network: Network, recipe: Recipe
) -> list[tuple[str, str]]:
    """What will be learnt, from what, by what."""
    columns = data.features.shape[1]
    kind = "columns" if data.is_table else "features"
    into = "" if problem.classes is None else f" into {len(problem.classes)} classes"
    parts = {"training": problem.train, "validation": problem.validation, "test": problem.test}
    split = ", ".join(f"{len(part[0]):,} {name}" for name, part in parts.items() if part is not None)
    hidden = [layer.units for layer in network.layers if isinstance(layer, Dense)]
    widths = [problem.train[0].shape[1], *hidden]
    parameters = sum((n_in + 1) * n_out for n_in, n_out in pairwise(widths))
    return [
        ("data", f"{data.name}: {len(data):,} rows, {columns} {kind}"),
        ("task", f"{problem.task}{into} ({problem.reason})"),
        ("rows", f"{split}{'' if data.test is None else ' (a part of its own)'}"),
        ("inputs", _describe_inputs(problem)),
        ("network", f"{' -> '.join(map(str, widths))}, {recipe.activation}, {parameters:,} parameters"),
    ]


def _describe_inputs(problem: Problem) -> str:
    if problem.encoder is not None:
        return f"{len(problem.encoder.columns)} columns encoded as {problem.encoder.n_features} features"
    words = {"minmax": "scaled from 0 to 1", "standardize": "standardized", "none": "as they are"}
    return words[problem.preprocessing]


def describe_training(
    network: Network, problem: Problem, recipe: Recipe, training: Training, result: dict[str, float]
) -> list[tuple[str, str]]:
    """How well and how fast it went."""
    history = training.history
    facts = [("epochs", _describe_epochs(training, recipe))]
    if problem.test is not None:
        facts += _describe_test(problem, result)
    details = backends.get(network.backend).describe()
    instructions = details.get("instruction set") or details.get("BLAS") or ""
    threads = backends.get(network.backend).get_num_threads()
    return [
        *facts,
        ("time", f"{history.seconds:.2f} s"),
        ("speed", f"{history.samples_per_second:,.0f} samples a second"),
        ("backend", f"{network.backend}, {instructions}, {threads} thread{'s' if threads > 1 else ''}"),
    ]


def _describe_epochs(training: Training, recipe: Recipe) -> str:
    history = training.history
    done = f"{len(history)} of {recipe.epochs}"
    if history.interrupted:
        done += ", interrupted"
    if training.divergence is not None:
        done += ", diverged"
    if history.stopped == "callback":
        done += f", stopped: no better validation loss for {recipe.patience} epochs"
    if training.kept:
        done += f"; kept epoch {training.kept}"
    return done


def _describe_test(problem: Problem, result: dict[str, float]) -> list[tuple[str, str]]:
    assert problem.test is not None
    y = problem.test[1]
    if problem.classes is None:
        r2 = f"{result['r2']:.4f}" if math.isfinite(result["r2"]) else "undefined"
        return [("test R2", r2), ("test RMSE", f"{result['rmse']:.6g}")]
    counts = np.bincount(y, minlength=len(problem.classes))
    always = f"always guessing {problem.classes[int(counts.argmax())]!r}: {counts.max() / len(y):.4f}"
    return [("test accuracy", f"{result['accuracy']:.4f} ({always})")]


def _widths(hidden: str) -> list[int]:
    if hidden.strip().lower() in ("", "none", "0"):
        return []
    try:
        widths = [int(width) for width in hidden.split(",")]
    except ValueError:
        raise ValueError(
            f"--hidden must be widths separated by commas, such as 256,256, or none, got {hidden!r}"
        ) from None
    return [check_integer("each width of --hidden", width, minimum=1) for width in widths]
