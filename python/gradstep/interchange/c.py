"""Networks as C: one header that needs nothing but ``math.h``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.backends.numpy.activations import ACTIVATIONS, LEAKY_RELU_SLOPE, SELU_ALPHA, SELU_SCALE
from gradstep.backends.numpy.losses import LINKS
from gradstep.interchange import parity
from gradstep.interchange.forward import Forward, ForwardLayer, check_float32, forward_of
from gradstep.io import replace_atomically
from gradstep.tables import CategoryColumn, Column, NumberColumn
from gradstep.version import __version__

COMPILERS = ("cc", "gcc", "clang")
"""Any of these compiles the header for the comparison with `predict`."""

FLAGS = ("-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic")

SECONDS = 600
"""After which compiling or running the test counts as not possible."""

NUMBERS_PER_LINE = 8

# Of z. Comparisons let NaN through: a broken sensor must not look like a measurement.
_FUNCTIONS = {
    "relu": "z < 0.0f ? 0.0f : z",
    "leaky_relu": f"z < 0.0f ? {LEAKY_RELU_SLOPE}f * z : z",
    "tanh": "tanhf(z)",
    "sigmoid": "1.0f / (1.0f + expf(-z))",
    "softplus": "(z < 0.0f ? 0.0f : z) + log1pf(expf(-fabsf(z)))",
    "elu": "z < 0.0f ? expm1f(z) : z",
    "selu": f"{np.float32(SELU_SCALE)!s}f * (z < 0.0f ? {np.float32(SELU_ALPHA)!s}f * expm1f(z) : z)",
    "gelu": "0.5f * z * erfcf(z * -0.70710678f)",
    "silu": "z / (1.0f + expf(-z))",
    "mish": "z * tanhf((z < 0.0f ? 0.0f : z) + log1pf(expf(-fabsf(z))))",
    "exp": "expf(z)",
}


_KINDS = {
    "dense": """\
/* y = W x + b, with one row of W for each output. */
static inline void NAME_dense(const float *W, const float *b, const float *x, int n_in, float *y, int n_out)
{
    int i, o;
    for (o = 0; o < n_out; ++o) {
        float sum = b[o];
        for (i = 0; i < n_in; ++i)
            sum += *W++ * x[i];
        y[o] = sum;
    }
}""",
    "affine": """\
static inline void NAME_affine(const float *gain, const float *b, const float *x, float *y, int n)
{
    int i;
    for (i = 0; i < n; ++i)
        y[i] = gain[i] * x[i] + b[i];
}""",
    "layer_norm": """\
/* y = gain (x - mean) / sqrt(variance + epsilon) + shift, with mean and variance over x. */
static inline void NAME_layer_norm(const float *gain, const float *shift, float epsilon, const float *x,
                                   float *y, int n)
{
    float mean = 0.0f, variance = 0.0f, deviation;
    int i;
    for (i = 0; i < n; ++i)
        mean += x[i];
    mean /= (float)n;
    for (i = 0; i < n; ++i)
        variance += (x[i] - mean) * (x[i] - mean);
    deviation = sqrtf(variance / (float)n + epsilon);
    for (i = 0; i < n; ++i)
        y[i] = gain[i] * ((x[i] - mean) / deviation) + shift[i];
}""",
    "sum": """\
static inline void NAME_sum(const float *x, const float *other, float *y, int n)
{
    int i;
    for (i = 0; i < n; ++i)
        y[i] = x[i] + other[i];
}""",
    "embedding": """\
/* y = x without a column, then that row of W which the column names; NaN where there is no such row. */
static inline void NAME_embedding(const float *W, int categories, int size, const float *x, int n_in,
                                  int column, float *y)
{
    const int known = x[column] >= 0.0f && x[column] < (float)categories;
    int i;
    for (i = 0; i < n_in; ++i)
        if (i != column)
            *y++ = x[i];
    if (known)
        W += (int)x[column] * size;
    for (i = 0; i < size; ++i)
        *y++ = known ? W[i] : NAN;
}""",
}
"""A function for each kind of layer; NAME stands for that of the network."""


def export_c(net: Any, path: str | os.PathLike[str], *, name: str | None = None) -> None:
    """Write a network as one C99 header without dependencies, for microcontrollers and other programs.

    The header holds the weights as ``static const float`` and the function

        static inline void NAME_predict(const float *x, float *y);

    which computes what `Network.predict` does for one row, preprocessing and softmax included, in float. It
    needs ``math.h`` alone, allocates nothing, keeps no state, and compiles as C99 and as C++; NAME_INPUTS,
    NAME_OUTPUTS and NAME_SCRATCH (floats of each of its buffers on the stack, of which a chain of layers has
    two at most) are macros with NAME in capitals. Embedded columns hold categories as in training; NaN comes
    of numbers beyond them. Of a network with a `TableEncoder`, x are the encoder's features; a comment says
    how each is made.

    Before the file takes its place it is compiled and compared with `predict` on 32 rows; where there is no C
    compiler, the numbers in it are read back and evaluated by numpy.

    Parameters
    ----------
    net : Network or estimator of gradstep.sklearn
        The network, trained.
    path : path-like
        The file to write or replace, usually ending in .h.
    name : str, optional
        What the names in the header begin with: a letter, then letters, digits and underscores. By default
        the name of the file without its ending.

    Raises
    ------
    TypeError, ValueError
        If net is no complete network, float cannot hold its numbers, or the name is not as above.
    ArithmeticError
        If the header does not agree with `predict`; nothing was written then.
    OSError
        If the file cannot be written.
    """
    name = _checked_name(path, name)
    forward = forward_of(net)
    check_float32(forward, "C header")
    source = c_source(forward, name)
    with replace_atomically(path) as temporary:
        temporary.write_text(source, encoding="ascii")
        rows = parity.sample_rows(forward)
        outputs = _compiled(temporary, forward, name, rows)
        if outputs is None:
            outputs = reread(temporary.read_text(encoding="ascii"), forward, name, rows)
        parity.check("C header", forward, rows, outputs)


def _checked_name(path: str | os.PathLike[str], name: object) -> str:
    origin = "" if name is not None else ", from the name of the file"
    name = Path(os.fspath(path)).stem if name is None else name
    if not isinstance(name, str):
        raise TypeError(f"name must be text, got {name!r}")
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(
            f"name must be a letter followed by letters, digits and underscores, got {name!r}{origin}"
        )
    return name


# --------------------------------------------------------------------------------------------------
# Writing


def c_source(forward: Forward, name: str) -> str:
    """The text of the header, in ASCII."""
    arrays = dict(_arrays(forward))
    guard = f"GRADSTEP_{name.upper()}_H"
    parts = [
        _heading(forward, name, arrays),
        f"#ifndef {guard}\n#define {guard}\n\n#include <math.h>",
        _sizes(forward, name),
        *(_array(f"{name}_{key}", values) for key, values in arrays.items()),
        *_helpers(forward, name),
        _predict(forward, name),
        f"#endif /* {guard} */\n",
    ]
    return "\n\n".join(parts)


def _arrays(forward: Forward) -> Iterator[tuple[str, Array]]:
    """All constants by name, float32; weights with one row for each output or category, as they are read."""
    if forward.shift is not None and forward.scale is not None:
        yield "shift", forward.shift.astype(np.float32)
        yield "scale", forward.scale.astype(np.float32)
    for index, layer in enumerate(forward.layers):
        for key, values in layer.arrays.items():
            yield f"{key}{index}", (values.T if layer.kind == "dense" else values).astype(np.float32)
    if forward.target_shift is not None and forward.target_scale is not None:
        yield "y_shift", forward.target_shift.astype(np.float32)
        yield "y_scale", (1 / forward.target_scale).astype(np.float32)


def _heading(forward: Forward, name: str, arrays: dict[str, Array]) -> str:
    widths = f"{forward.n_in}" + "".join(f" -> {p.n_out} {_described(p)}" for p in forward.layers)
    numbers = sum(values.size for values in arrays.values())
    buffers = len(set(_places(forward).values()) - {"x", "y"})
    lines = [
        f"{name}: a network, written by gradstep {__version__}.",
        "",
        f"Layers: {widths}.",
        f"{4 * numbers:,} bytes of constants, {4 * buffers * _scratch(forward):,} bytes of buffers (stack).",
        f"x: {forward.n_in} finite number(s), as they are measured: they are scaled inside.",
        f"y: {forward.n_out} {_outputs(forward)}, which must not overlap x.",
    ]
    if forward.shift is None:
        lines[4] = f"x: {forward.n_in} finite number(s)."
    for column, categories in forward.categories.items():
        lines.append(f"x[{column}] is a category, 0 to {categories - 1}; numbers beyond make NaN.")
    if forward.network.classes is not None:
        lines.append(f"Classes: {', '.join(forward.network.classes)}.")
    if forward.encodings is not None:
        lines += ["", "x is made from the columns of a table:", *_recipe(forward.encodings)]
    return "/*\n" + "\n".join(f" * {_comment(line)}".rstrip() for line in lines) + "\n */"


def _described(layer: ForwardLayer) -> str:
    if layer.kind == "dense":
        return layer.activation
    return layer.kind if layer.activation == "identity" else f"{layer.kind} {layer.activation}"


def _comment(line: str) -> str:
    """Text that cannot end a comment, in ASCII."""
    ascii_text = line.encode("ascii", "backslashreplace").decode("ascii")
    printable = "".join(c if c.isprintable() else " " for c in ascii_text)
    return printable.replace("*/", "* /").replace("/*", "/ *").replace("??/", "? ?/")


def _recipe(columns: tuple[Column, ...]) -> Iterator[str]:
    start = 0
    for column in columns:
        if isinstance(column, NumberColumn):
            yield (
                f"  x[{start}] = ({column.name} - {column.mean:.9g}) / {column.scale:.9g}, "
                f"with {column.median:.9g} for a missing value"
            )
            if column.indicator:
                yield f"  x[{start + 1}] = 1 where {column.name} is missing, else 0"
        elif isinstance(column, CategoryColumn):
            for k, category in enumerate(column.categories):
                yield f"  x[{start + k}] = 1 where {column.name} is {category!r}, else 0"
        start += len(column.features)


def _outputs(forward: Forward) -> str:
    kinds = {"softmax": "probabilities", "sigmoid": "probability(ies)", "exp": "expected count(s)"}
    kinds["gaussian"] = "means, then variances"
    return kinds.get(forward.link, "prediction(s)")


def _sizes(forward: Forward, name: str) -> str:
    sizes = {"INPUTS": forward.n_in, "OUTPUTS": forward.n_out, "SCRATCH": _scratch(forward)}
    return "\n".join(f"#define {name.upper()}_{key} {value}" for key, value in sizes.items())


def _scratch(forward: Forward) -> int:
    """Width of a buffer: of the scaled inputs and of all layers but the last, which writes to y."""
    widths = [layer.n_out for layer in forward.layers[:-1]]
    return max([0 if forward.shift is None else forward.n_in, *widths])


def _places(forward: Forward) -> dict[int, str]:
    """Where the outputs of each layer are: the first buffer that nobody reads any more, or y."""
    last = {source: index for index, layer in enumerate(forward.layers) for source in layer.inputs}
    places = {-1: "x" if forward.shift is None else "h0"}
    for index in range(len(forward.layers) - 1):
        taken = {place for layer, place in places.items() if last[layer] >= index}
        places[index] = next(f"h{k}" for k in range(index + 2) if f"h{k}" not in taken)
    return {**places, len(forward.layers) - 1: "y"}


def _number(value: Any) -> str:
    """A float as C writes it."""
    return f"{value!s}f"


def _array(name: str, values: Array) -> str:
    texts = [_number(number) for number in values.reshape(-1)]
    lines = [
        "    " + ", ".join(texts[start : start + NUMBERS_PER_LINE])
        for start in range(0, len(texts), NUMBERS_PER_LINE)
    ]
    return f"static const float {name}[{len(texts)}] = {{\n" + ",\n".join(lines) + "\n};"


def _helpers(forward: Forward, name: str) -> Iterator[str]:
    kinds = {layer.kind for layer in forward.layers}
    yield from (text.replace("NAME", name) for kind, text in _KINDS.items() if kind in kinds)
    used = {layer.activation for layer in forward.layers} | {forward.link}
    for function, expression in _FUNCTIONS.items():
        if function in used:
            yield f"""\
static inline void {name}_{function}(float *y, int n)
{{
    int i;
    for (i = 0; i < n; ++i) {{
        const float z = y[i];
        y[i] = {expression};
    }}
}}"""
    if forward.link == "gaussian":
        yield f"""\
static inline void {name}_gaussian(float *y, int n)
{{
    int i;
    for (i = n / 2; i < n; ++i)
        y[i] = expf(y[i]) + {_number(np.float32(forward.floor))};
}}"""
    if forward.link == "softmax":
        yield f"""\
static inline void {name}_softmax(float *y, int n)
{{
    float top = y[0], sum = 0.0f;
    int i;
    for (i = 1; i < n; ++i)
        if (y[i] > top)
            top = y[i];
    for (i = 0; i < n; ++i)
        sum += y[i] = expf(y[i] - top);
    for (i = 0; i < n; ++i)
        y[i] /= sum;
}}"""


def _predict(forward: Forward, name: str) -> str:
    size = name.upper()
    loops = forward.shift is not None or forward.target_shift is not None
    lines = ["int i;"] if loops else []
    places = _places(forward)
    statements: list[str] = []
    if forward.shift is not None:
        statements += [
            f"for (i = 0; i < {size}_INPUTS; ++i)",
            f"    h0[i] = (x[i] - {name}_shift[i]) * {name}_scale[i];",
        ]
    for index, layer in enumerate(forward.layers):
        statements.append(f"{name}_{layer.kind}({_arguments(index, layer, places, name)});")
        if layer.activation != "identity":
            statements.append(f"{name}_{layer.activation}({places[index]}, {layer.n_out});")
    if forward.link != "identity":
        statements.append(f"{name}_{forward.link}(y, {size}_OUTPUTS);")
    if forward.target_shift is not None:
        statements += [
            f"for (i = 0; i < {size}_OUTPUTS; ++i)",
            f"    y[i] = y[i] * {name}_y_scale[i] + {name}_y_shift[i];",
        ]
    buffers = sorted(set(places.values()) - {"x", "y"}, key=lambda buffer: int(buffer[1:]))
    if buffers:
        lines.insert(0, "float " + ", ".join(f"{buffer}[{size}_SCRATCH]" for buffer in buffers) + ";")
    body = "\n".join(f"    {line}" for line in [*lines, *statements])
    return f"""\
/* Predictions for one row: from x, {size}_INPUTS numbers, to y, {size}_OUTPUTS numbers. */
static inline void {name}_predict(const float *x, float *y)
{{
{body}
}}"""


def _arguments(index: int, layer: ForwardLayer, places: dict[int, str], name: str) -> str:
    """What a layer's function is called with."""
    x, y = places[layer.source], places[index]
    arrays = [f"{name}_{key}{index}" for key in layer.arrays]
    match layer.kind:
        case "dense":
            return ", ".join([*arrays, x, str(layer.n_in), y, str(layer.n_out)])
        case "affine":
            return ", ".join([*arrays, x, y, str(layer.n_out)])
        case "layer_norm":
            return ", ".join([*arrays, _number(np.float32(layer.epsilon)), x, y, str(layer.n_out)])
        case "sum":
            return ", ".join([x, places[layer.other], y, str(layer.n_out)])
    sizes = [str(length) for length in layer.W.shape]
    return ", ".join([*arrays, *sizes, x, str(layer.n_in), str(layer.column), y])


# --------------------------------------------------------------------------------------------------
# Checking


def _compiled(header: Path, forward: Forward, name: str, rows: Array) -> Array | None:
    """What the header computes, or None where nothing can be compiled and run.

    Raises
    ------
    ParityError
        If there is a compiler that compiles other programs, but not this header.
    """
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.h").write_bytes(header.read_bytes())
        program = _compile(compiler, Path(folder), "test", _test_program(name, len(rows)))
        if isinstance(program, str):
            works = _compile(compiler, Path(folder), "probe", _PROBE)
            if isinstance(works, str):
                return None
            raise parity.ParityError(f"the C header does not compile: {program}")
        try:
            run = subprocess.run(
                [program],
                input=rows.astype(np.float32).tobytes(),
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None  # such as a folder in which nothing may be executed
    if run.returncode != 0 or len(run.stdout) != 4 * len(rows) * forward.n_out:
        raise parity.ParityError(f"the C header's test program failed with exit code {run.returncode}")
    return np.frombuffer(run.stdout, np.float32).reshape(len(rows), forward.n_out)


_PROBE = """\
#include <math.h>
#include <stdio.h>
int main(int argc, char **argv) { (void)argv; return printf("%g", (double)expf((float)argc)) < 0; }
"""


def _test_program(name: str, rows: int) -> str:
    size = name.upper()
    return f"""\
#include "model.h"
#include <stdio.h>
static float x[{size}_INPUTS], y[{size}_OUTPUTS];
int main(void)
{{
    int row;
    for (row = 0; row < {rows}; ++row) {{
        if (fread(x, sizeof x, 1, stdin) != 1)
            return 1;
        {name}_predict(x, y);
        if (fwrite(y, sizeof y, 1, stdout) != 1)
            return 1;
    }}
    return 0;
}}
"""


def _compile(compiler: str, folder: Path, name: str, source: str) -> Path | str:
    """The program, or the first line of the compiler's complaint."""
    file, program = folder / f"{name}.c", folder / name
    file.write_text(source, encoding="ascii")
    command = [compiler, *FLAGS, str(file), "-o", str(program), "-lm"]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if run.returncode == 0:
        return program
    lines = [line for line in run.stderr.splitlines() if "error" in line]
    return lines[0] if lines else f"exit code {run.returncode}"


def reread(source: str, forward: Forward, name: str, rows: Array) -> Array:
    """What a header computes, by numpy from the numbers in its text; the order of operations is assumed."""
    pattern = rf"static const float {re.escape(name)}_(\w+)\[(\d+)\] = \{{([^}}]*)\}};"
    arrays = {}
    for key, size, body in re.findall(pattern, source):
        values = np.array([np.float32(text.strip().rstrip("f")) for text in body.split(",")])
        if len(values) != int(size):
            raise parity.ParityError(f"the C header declares {key} with {size} numbers but has {len(values)}")
        arrays[key] = values
    a = rows.astype(np.float32)
    if "shift" in arrays:
        a = (a - arrays["shift"]) * arrays["scale"]
    outputs = {-1: a}
    for index, layer in enumerate(forward.layers):
        own = {key: arrays[f"{key}{index}"] for key in layer.arrays}
        a = _evaluated(layer, own, *(outputs[number] for number in layer.inputs))
        outputs[index] = a = ACTIVATIONS[layer.activation].forward(a)
    a = LINKS[forward.link](a, {"floor": forward.floor})
    return a * arrays["y_scale"] + arrays["y_shift"] if "y_shift" in arrays else a


def _evaluated(layer: ForwardLayer, arrays: dict[str, Array], x: Array, other: Array | None = None) -> Array:
    """What a layer's function computes, for rows."""
    z: Array
    match layer.kind:
        case "dense":
            z = x @ arrays["W"].reshape(layer.n_out, -1).T + arrays["b"]
        case "affine":
            z = x * arrays["gain"] + arrays["b"]
        case "sum":
            z = x + other
        case "embedding":
            vectors = arrays["W"].reshape(layer.W.shape)[x[:, layer.column].astype(np.int64)]
            z = np.hstack([np.delete(x, layer.column, axis=1), vectors])
        case _:
            centred = x - np.mean(x, axis=1, keepdims=True)
            variance = np.mean(np.square(centred), axis=1, keepdims=True)
            z = centred / np.sqrt(variance + np.float32(layer.epsilon)) * arrays["gain"] + arrays["shift"]
    return z
