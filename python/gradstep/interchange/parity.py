"""Whether an export computes what `Network.predict` does, on rows drawn for the purpose."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.interchange.forward import Forward
from gradstep.tables import CategoryColumn, Column, NumberColumn

ROWS = 32
"""Rows that are compared."""

TOLERANCE = 1e-5
"""Largest difference, beside the largest prediction of a column or 1, in the units of the network."""

FLOAT_EPS = float(np.finfo(np.float32).eps)


class ParityError(ArithmeticError):
    """An export does not agree with `Network.predict`; nothing was written."""


def sample_rows(forward: Forward) -> Array:
    """Rows like those of training as far as the preprocessing knows them, else normal ones; the last is 0.

    Embedded columns hold categories.

    Returns
    -------
    numpy.ndarray
        (ROWS, n_in), in the network's dtype, values that float32 can hold.
    """
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS, forward.n_in))
    rows[-1] = 0
    if forward.shift is not None and forward.scale is not None:
        rows = rows / forward.scale + forward.shift
    for column, categories in forward.categories.items():
        rows[:, column] = rng.integers(0, categories, size=ROWS)
    limit = float(np.finfo(np.float32).max) / 4
    rows = np.clip(rows, -limit, limit).astype(np.float32).astype(forward.network.dtype)
    return np.ascontiguousarray(rows)


def sample_table(columns: tuple[Column, ...]) -> dict[str, Array]:
    """Columns of a table like that of training, with missing and unknown values.

    Returns
    -------
    dict
        By name: float32 with NaN for missing numbers, or text in an array of objects, where the empty text
        stands for a missing value.
    """
    rng = np.random.default_rng(0)
    table: dict[str, Array] = {}
    for column in columns:
        if isinstance(column, NumberColumn):
            values = (column.mean + column.scale * rng.normal(size=ROWS)).astype(np.float32)
            values[::7] = np.nan
            table[column.name] = values
        elif isinstance(column, CategoryColumn):
            known = sorted(column.codes())
            texts = [known[k] for k in rng.integers(0, len(known), size=ROWS)]
            texts[3::8] = [""] * len(texts[3::8])
            texts[5] = "neither this nor that"
            table[column.name] = np.array(texts, dtype=object)
    return table


def encode(columns: tuple[Column, ...], table: dict[str, Array], dtype: str) -> Array:
    """What an encoder makes of these columns, as its `transform` of a data frame would, (n, n_features)."""
    out = np.empty((ROWS, sum(len(column.features) for column in columns)), dtype)
    start = 0
    for column in columns:
        stop = start + len(column.features)
        if stop > start:
            column.encode(table[column.name], out[:, start:stop])
        start = stop
    return out


def check(what: str, forward: Forward, rows: Array, outputs: Any) -> None:
    """Compare with `Network.predict`.

    The difference may be 1e-5 beside the largest prediction of the column or 1, whichever is larger, in
    the units of the network, plus what a change of the rows' last float32 digits does to the predictions.

    Parameters
    ----------
    what : str
        What was exported, for the error: "ONNX file", ...
    forward : Forward
        The network.
    rows : ndarray, (n, n_in)
        As the network takes them.
    outputs : array_like, (n, n_out)
        What the export makes of them.

    Raises
    ------
    ParityError
        If they differ.
    """
    outputs = np.asarray(outputs)
    expected = forward.network.predict(rows).astype(np.float64)
    if outputs.shape != expected.shape:
        raise ParityError(f"the {what} makes outputs of shape {outputs.shape} instead of {expected.shape}")
    with np.errstate(invalid="ignore"):
        difference = np.abs(outputs - expected)
    # Where predict itself overflows on rows that were made up, there is nothing to compare.
    difference[~np.isfinite(expected)] = 0
    allowed = _allowed(forward, rows, expected)
    wrong = ~(difference <= allowed)
    if wrong.any():
        row, column = (int(k) for k in np.unravel_index(np.argmax(wrong), wrong.shape))
        raise ParityError(
            f"the {what} does not agree with predict: output {column} of test row {row} is "
            f"{float(outputs[row, column])!r} instead of {float(expected[row, column])!r}"
        )


def _allowed(forward: Forward, rows: Array, expected: Array) -> Array:
    """The largest allowed difference of each column, (n_out,)."""
    unit = np.ones(forward.n_out) if forward.target_scale is None else 1 / forward.target_scale
    shift = np.zeros(forward.n_out) if forward.target_shift is None else forward.target_shift
    signs = np.random.default_rng(1).choice([-FLOAT_EPS, FLOAT_EPS], size=rows.shape).astype(rows.dtype)
    signs[:, list(forward.categories)] = 0
    noise = np.abs(forward.network.predict(rows + rows * signs) - expected)
    finite = np.isfinite(expected) & np.isfinite(noise)
    size = np.where(finite, np.abs(expected - shift), 0).max(axis=0)
    rounding = 2 * FLOAT_EPS * np.where(finite, np.abs(expected), 0).max(axis=0)
    allowed: Array = (
        TOLERANCE * np.maximum(unit, size) + 10 * np.where(finite, noise, 0).max(axis=0) + rounding
    )
    return allowed
