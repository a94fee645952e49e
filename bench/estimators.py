"""The estimators beside scikit-learn's own perceptrons: speed of a fit, and accuracy on real tables.

    python bench/estimators.py speed --data FOLDER
    python bench/estimators.py accuracy --data FOLDER
    python bench/estimators.py grid                      # a grid search with one and with two processes

FOLDER holds the data sets with their load.py; digits comes with scikit-learn. Each of the first two writes
its table between markers of docs/estimators.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
from sklearn import neural_network
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

import gradstep as gs
from gradstep.sklearn import MLPClassifier, MLPRegressor, TabularClassifier, TabularRegressor, rows
from publish import replace
from run import machine

PAGE = "docs/estimators.md"
MOST_ROWS = 5_000
"""Training rows of an accuracy run; of larger sets a part, drawn anew for every seed."""
REST = 0.3
"""Seconds between two fits: the threads of OpenBLAS spin on after scikit-learn's."""


def clock() -> float:
    """Seconds; with one thread those of the processor, which do not count who else is at work."""
    return time.process_time() if gs.get_num_threads() == 1 else time.perf_counter()


class Problem(NamedTuple):
    """Numbers ready for both libraries."""

    X: Any
    y: Any
    is_classification: bool


def loader(folder: Path) -> Any:
    """The module load.py of the data's folder."""
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoded(X: Any, y: Any, task: str, dtype: Any) -> Problem:
    """Tables as numbers, targets of regression standardised."""
    if hasattr(X, "columns"):
        X = gs.TableEncoder().fit(X).transform(X)
    y = np.asarray(y)
    if task == "regression":
        y = (y - y.mean()) / y.std()
    return Problem(np.ascontiguousarray(X, dtype), y, task == "classification")


def speed_problems(data: Any) -> dict[str, Callable[[Any], Problem]]:
    """Problems by name, as functions of the dtype."""
    digits_X, digits_y = load_digits(return_X_y=True)

    def images(dtype: Any) -> Problem:
        X, y, task = data.load("fashion_mnist")
        return encoded(X[:10_000], y[:10_000], task, dtype)

    return {
        "digits": lambda dtype: encoded(digits_X / 16, digits_y, "classification", dtype),
        "adult": lambda dtype: encoded(*data.load("adult"), dtype),
        "california_housing": lambda dtype: encoded(*data.load("california_housing"), dtype),
        "fashion_mnist, 10,000 rows": images,
    }


@contextlib.contextmanager
def engine_clock() -> Iterator[list[float]]:
    """Seconds of each call of the engine within the block."""
    seconds: list[float] = []
    train = rows._train_epoch

    def timed(*arguments: Any) -> Any:
        start = clock()
        try:
            return train(*arguments)
        finally:
            seconds.append(clock() - start)

    rows._train_epoch = timed
    try:
        yield seconds
    finally:
        rows._train_epoch = train


def fit_seconds(model: Any, problem: Problem) -> float:
    """Time of one fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        time.sleep(REST)
        start = clock()
        model.fit(problem.X, problem.y)
        return clock() - start


def network_seconds(model: Any, problem: Problem, epochs: int) -> float:
    """Time of `Network.fit` on the same network, batches and epochs."""
    labels = np.unique(problem.y, return_inverse=True)[1] if problem.is_classification else problem.y
    outputs = model.n_outputs_
    loss = {"softmax": "cross_entropy", "logistic": "binary_cross_entropy", "identity": "mse"}[
        model.out_activation_
    ]
    y = labels.astype(np.int32 if loss == "cross_entropy" else problem.X.dtype)
    net = gs.Network(
        [gs.Dense(100, "relu"), gs.Dense(outputs)],
        loss=loss,
        optimizer=gs.Adam(1e-3),
        l2=1e-6,
        dtype=problem.X.dtype.name,
    )
    time.sleep(REST)
    start = clock()
    net.fit(problem.X, y, epochs=epochs, batch_size=min(200, len(y)), verbose=0)
    return clock() - start


def speed_row(name: str, problem: Problem, rounds: int) -> str:
    """One problem: both libraries in turn, with the same number of epochs."""
    epochs = max(10, min(100, 200_000 // len(problem.y)))
    parameters = {"max_iter": epochs, "tol": 0.0, "n_iter_no_change": 10**6, "random_state": 0}
    pair = (
        (neural_network.MLPClassifier, MLPClassifier)
        if problem.is_classification
        else (neural_network.MLPRegressor, MLPRegressor)
    )
    times: list[list[float]] = [[], [], []]
    outside = []
    for _ in range(rounds):
        models = [cls(**parameters) for cls in pair]
        for model, found in zip(models, times, strict=False):
            with engine_clock() as inside:
                found.append(fit_seconds(model, problem))
        outside.append(1 - sum(inside) / times[1][-1])
        times[2].append(network_seconds(models[1], problem, epochs))
        relative = abs(models[0].loss_ / models[1].loss_ - 1)
        if relative > (1e-1 if problem.X.dtype == np.float32 else 1e-3):
            raise SystemExit(f"{name}: the losses differ by {relative:.1e}")
    theirs, ours, _ = (statistics.median(found) for found in times)
    ratio = statistics.median(a / b for a, b in zip(times[0], times[1], strict=True))
    overhead = statistics.median(a / b for a, b in zip(times[1], times[2], strict=True)) - 1
    return (
        f"| {name}, {problem.X.dtype.name} | {epochs} | {theirs:.2f} | {ours:.3f} | **{ratio:.1f}** | "
        f"{100 * overhead:+.0f} % | {100 * statistics.median(outside):.1f} % |"
    )


def speed(data: Any, rounds: int) -> str:
    """The table of fits."""
    lines = [
        "| set, dtype | epochs | scikit-learn s | gradstep s | times faster | over `Network.fit` "
        "| outside the engine |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, problem in speed_problems(data).items():
        for dtype in (np.float64, np.float32):
            lines.append(speed_row(name, problem(dtype), rounds))
            print(lines[-1], flush=True)
    threads = gs.get_num_threads()
    note = "one thread, seconds of the processor" if threads == 1 else f"{threads} threads"
    return "\n".join(lines) + f"\n\nBoth with {note}."


def accuracy_row(data: Any, name: str, seeds: int) -> str:
    """Test scores over the seeds: scikit-learn's perceptron, ours, and the estimator for tables."""
    scores: list[list[float]] = [[], [], []]
    for seed in range(seeds):
        (X, y), (X_test, y_test), task = data.split(name, seed)
        whole = len(y)
        chosen = np.random.default_rng(seed).permutation(len(y))[:MOST_ROWS]
        X, y = (part.iloc[chosen] if hasattr(part, "iloc") else part[chosen] for part in (X, y))
        is_table = hasattr(X, "columns")
        encoder = gs.TableEncoder().fit(X) if is_table else None
        train, test = (encoder.transform(part) if encoder else part for part in (X, X_test))
        y, y_test = np.asarray(y), np.asarray(y_test)
        if task == "regression":
            mean, scale = y.mean(), y.std()
            y, y_test = (y - mean) / scale, (y_test - mean) / scale
            classes: Any = (neural_network.MLPRegressor, MLPRegressor, TabularRegressor)
        else:
            classes = (neural_network.MLPClassifier, MLPClassifier, TabularClassifier)
        for cls, found in zip(classes, scores, strict=True):
            tabular = cls in (TabularClassifier, TabularRegressor)
            model = cls(random_state=seed) if tabular else cls(random_state=seed, max_iter=30)
            inputs = (X, X_test) if tabular else (train, test)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(inputs[0], y)
            found.append(model.score(inputs[1], y_test))
    cells = [f"{np.mean(found):.4f} ± {np.std(found):.4f}" for found in scores]
    difference = np.array(scores[1]) - scores[0]
    noise = np.std(difference, ddof=1) / np.sqrt(seeds)
    size = f"{len(chosen):,}" if len(chosen) == whole else f"{len(chosen):,} of {whole:,}"
    return (
        f"| {name} | {size} | {' | '.join(cells[:2])} | {difference.mean():+.4f} ± {noise:.4f} | {cells[2]} |"
    )


def accuracy(data: Any, seeds: int) -> str:
    """The table of scores."""
    lines = [
        "| set | rows to train on | scikit-learn | gradstep | difference ± its error | gradstep's Tabular |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in data.names():
        lines.append(accuracy_row(data, name, seeds))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def grid() -> None:
    """Seconds of a grid search with one and two processes."""
    X, y = load_digits(return_X_y=True)
    candidates = {"hidden_layer_sizes": [(64,), (128,), (256,), (256, 128)], "alpha": [1e-4, 1e-2]}
    seconds = {1: [], 2: []}  # type: dict[int, list[float]]
    for _ in range(3):
        for n_jobs, found in seconds.items():
            search = GridSearchCV(MLPClassifier(max_iter=60, random_state=0), candidates, cv=3, n_jobs=n_jobs)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                start = time.perf_counter()
                search.fit(X / 16, y)
                found.append(time.perf_counter() - start)
    one, two = (statistics.median(found) for found in seconds.values())
    print(f"n_jobs=1 {one:.2f} s, n_jobs=2 {two:.2f} s, ratio {one / two:.2f}")


def origin() -> str:
    """Where the figures come from."""
    facts = machine()
    return (
        f"Measured {facts['date'][:10]} on {facts['processor']}, {facts['cores']} cores: "
        f"gradstep {gs.__version__}, scikit-learn {sklearn.__version__}, numpy {np.__version__}."
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "accuracy", "grid"))
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--threads", type=int, help="of both libraries in `speed`; all cores by default")
    parser.add_argument("--rounds", type=int, default=5, help="samples, or seeds (%(default)s)")
    arguments = parser.parse_args()
    if arguments.what == "grid":
        return grid()
    if arguments.data is None:
        parser.error("--data is needed")
    data = loader(arguments.data)
    if arguments.threads is not None:
        gs.set_num_threads(arguments.threads)
        threadpool_limits(arguments.threads)
    table = (speed if arguments.what == "speed" else accuracy)(data, arguments.rounds)
    replace(PAGE, f"{table}\n\n{origin()}", arguments.what)
    return None


if __name__ == "__main__":
    main()
