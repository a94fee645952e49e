"""``gradstep predict``: apply a saved model to the rows of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from gradstep import backends, data, io
from gradstep.commands.output import say
from gradstep.network import Network
from gradstep.validation import check_integer

if TYPE_CHECKING:
    import polars as pl

OUT_SUFFIXES = (".csv", ".parquet", ".npz")


def predict(
    model: Annotated[str, typer.Argument(help="A model file that gradstep train wrote.")],
    file: Annotated[str, typer.Argument(help="Rows to predict: a CSV (also .gz), TSV, Parquet or npz file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where to write: the name ends in .csv, .parquet or .npz.",
            show_default="CSV to standard output",
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="What computes: auto, cpp, numba or numpy.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads to use; 0 is all of them.")] = 0,
) -> None:
    """Predict the rows of a file.

    Writes one line for each row: the prediction and, for classes, the probability of each class.
    """
    if out is not None and not out.name.lower().endswith(OUT_SUFFIXES):
        raise ValueError(f"--out must end in one of {', '.join(OUT_SUFFIXES)}, got {str(out)!r}")
    backends.set_num_threads(check_integer("--threads", threads, minimum=0))
    network = io.load(model, backend=backend)
    text_columns = () if network.encoder is None else network.encoder.text_columns
    features = data.read_features(file, _columns_left_out(io.read_description(model)), text_columns)
    inputs = as_inputs(network, file, features)
    try:
        outputs = network.predict(inputs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} does not suit the model: {error}") from None
    columns = result_columns(network, outputs)
    if out is None:
        sys.stdout.write(_table(columns).write_csv())
        return
    write(out, columns)
    say(f"{len(outputs)} predictions saved in {out}")


def _columns_left_out(description: dict[str, Any]) -> list[str]:
    """Columns that the file may hold and the model does not know; a description may be anybody's."""
    dropped = description.get("dropped")
    names = [description.get("target"), *(dropped if isinstance(dropped, list) else ())]
    return [name for name in names if isinstance(name, str)]


def as_inputs(network: Network, source: str, features: data.Features) -> Any:
    """The features as the network takes them: a table for its encoder, or an array of numbers."""
    if isinstance(features, np.ndarray):
        if network.encoder is not None:
            raise ValueError(
                f"the model was trained on a table with the columns {', '.join(network.encoder.columns)}, "
                f"but {source} holds an array"
            )
        return features
    if network.encoder is not None:
        return features
    for name, dtype in features.schema.items():
        if not dtype.is_numeric():
            raise ValueError(
                f"the model was trained on arrays of numbers, but column {name!r} of {source} holds {dtype}"
            )
    return features.to_numpy()


def result_columns(network: Network, outputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The columns of the result by name: the prediction, then probabilities of classes, or variances."""
    if network.loss.target_kind == "labels":
        classes = network.classes or [str(label) for label in range(network.n_out)]
        best = _as_numbers_if_all_are(classes)[outputs.argmax(axis=1)]
        if not network.loss.has_link:  # decision values
            return {"prediction": best}
        probabilities = {f"probability_{name}": outputs[:, k] for k, name in enumerate(classes)}
        return {"prediction": best, **probabilities}
    if network.loss.outputs_per_target == 1:
        return _numbered("prediction", outputs)
    means, variances = np.split(outputs, 2, axis=1)
    return {**_numbered("prediction", means), **_numbered("variance", variances)}


def _numbered(name: str, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    if values.shape[1] == 1:
        return {name: values[:, 0]}
    return {f"{name}_{k}": values[:, k] for k in range(values.shape[1])}


def write(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    """Write the columns in the format that the name of the file asks for, atomically."""
    with io.replace_atomically(path) as temporary:
        if path.name.lower().endswith(".npz"):
            with temporary.open("wb") as file:
                np.savez(file, **_arrays(columns))
        elif path.name.lower().endswith(".parquet"):
            _table(columns).write_parquet(temporary)
        else:
            _table(columns).write_csv(temporary)


def _arrays(columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """For npz: predictions in one array and probabilities, with their classes, in another."""
    names = [name for name in columns if name.startswith("probability_")]
    if not names:
        values = list(columns.values())
        return {"prediction": values[0] if len(values) == 1 else np.column_stack(values)}
    return {
        "prediction": columns["prediction"],
        "probabilities": np.column_stack([columns[name] for name in names]),
        "classes": np.array([name.removeprefix("probability_") for name in names]),
    }


def _table(columns: dict[str, NDArray[Any]]) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame({name: np.ascontiguousarray(values) for name, values in columns.items()})


def _as_numbers_if_all_are(classes: list[str]) -> NDArray[Any]:
    """The classes as integers if that loses nothing, as text otherwise."""
    try:
        numbers = np.array([int(name) for name in classes])
    except (ValueError, OverflowError):
        return np.array(classes)
    return numbers if [str(number) for number in numbers] == classes else np.array(classes)
