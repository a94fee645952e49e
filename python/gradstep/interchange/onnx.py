"""Networks as ONNX files, with their preprocessing and the encoding of tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.backends.numpy.activations import LEAKY_RELU_SLOPE, SELU_ALPHA, SELU_SCALE
from gradstep.interchange import parity
from gradstep.interchange.forward import (
    Forward,
    ForwardLayer,
    check_columns_float32,
    check_float32,
    forward_of,
)
from gradstep.io import replace_atomically
from gradstep.tables import CategoryColumn, Column, NumberColumn
from gradstep.version import __version__

if TYPE_CHECKING:
    import onnx

OPSET = 13
"""Of December 2020: runtimes since then know it. Gelu and Mish, which are newer, are made of others."""

ML_OPSET = 2
"""Of ai.onnx.ml, for the encoding of text: its LabelEncoder."""

MAX_BYTES = 2**31 - 2**20
"""What one protobuf message may hold, with room for all that is not weights."""


def export_onnx(net: Any, path: str | os.PathLike[str]) -> None:
    """Write a network as an ONNX file that computes what `Network.predict` does, in float32.

    The input is ``X``, float (N, n_in), with any number of rows; the output is ``predictions``, float
    (N, n_out). Preprocessing, softmax, and the targets' own units are part of the file; dropout is not, as in
    every prediction. Class names are in its metadata, under "classes", as JSON. Embedded columns hold
    categories as in training; numbers beyond them are an error when the file runs.

    A network with a `TableEncoder` takes raw columns instead: one input of shape (N, 1) for each column that
    had values in training, under its name. Numbers are float, NaN where they are missing; categories and
    booleans are text as Python prints them ("Oslo", "True", "3"), and where they are missing any text that
    training did not see, such as the empty one.

    The file has opset 13 (ai.onnx.ml 2) and IR version 7, which ONNX Runtime reads since version 1.7. Before
    it takes its place it is checked, and compared with `predict` on 32 rows by ONNX Runtime, or by ONNX's own
    evaluator where that is not installed.

    Parameters
    ----------
    net : Network or estimator of gradstep.sklearn
        The network, trained.
    path : path-like
        The file to write or replace, usually ending in .onnx.

    Raises
    ------
    TypeError, ValueError
        If net is no complete network, float32 cannot hold its numbers, or ONNX its size or columns' names.
    ArithmeticError
        If the file does not agree with `predict`; nothing was written then.
    ImportError
        If the package onnx is not installed.
    OSError
        If the file cannot be written.
    """
    onnx = _import_onnx()
    forward = forward_of(net)
    check_float32(forward, "ONNX file")
    if forward.encodings is not None:
        check_columns_float32(forward.encodings, "ONNX file")
    numbers = sum(values.size for layer in forward.layers for values in layer.arrays.values())
    if 4 * numbers > MAX_BYTES:
        raise ValueError("the network is too large for an ONNX file, which holds up to 2 GB")
    model = onnx_model(forward)
    onnx.checker.check_model(model, full_check=True)
    with replace_atomically(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        _check(temporary, forward)


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'export_onnx needs the package {error.name}: pip install "gradstep[onnx]"'
        ) from None
    return onnx


# --------------------------------------------------------------------------------------------------
# Writing


class _Graph:
    """Nodes and constants of a graph; the names of its values begin with a prefix that no input has."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Iterable[str], **attributes: Any) -> str:
        """Append a node; the name of its output."""
        from onnx import helper

        name = f"{self.prefix}{operator.lower()}_{len(self.nodes)}"
        node = helper.make_node(operator, list(inputs), [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        name = f"{self.prefix}{name}"
        if all(tensor.name != name for tensor in self.constants):
            array = np.ascontiguousarray(np.asarray(values).astype(dtype))
            self.constants.append(numpy_helper.from_array(array.reshape(np.shape(values)), name))
        return name


def onnx_model(forward: Forward) -> onnx.ModelProto:
    """The network as an ONNX model, in memory."""
    from onnx import TensorProto, helper

    columns = forward.encodings
    names = ["X"] if columns is None else [column.name for column in columns if column.features]
    graph = _Graph(_unlike(names))
    if columns is None:
        inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", forward.n_in])]
        value = "X"
    else:
        inputs = [_column_input(column) for column in columns if column.features]
        value = _encode(graph, columns)
    value = _layers(graph, forward, value)
    output = "predictions" if "predictions" not in names else f"{graph.prefix}predictions"
    graph.nodes[-1].output[0] = output
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", forward.n_out])]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "gradstep", inputs, outputs, graph.constants),
        opset_imports=opsets[: 1 if columns is None else 2],
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="gradstep",
        producer_version=__version__,
    )
    helper.set_model_props(model, _metadata(forward))
    return model


def _unlike(names: list[str]) -> str:
    """A prefix that none of the names has."""
    prefix = "gradstep_"
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return prefix


def _metadata(forward: Forward) -> dict[str, str]:
    network = forward.network
    classes = {} if network.classes is None else {"classes": json.dumps(network.classes)}
    return {"loss": network.loss.name, **classes}


def _column_input(column: Column) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    if not column.name:
        raise ValueError("the ONNX file needs a name for every column, but one's is empty")
    kind = TensorProto.FLOAT if isinstance(column, NumberColumn) else TensorProto.STRING
    return helper.make_tensor_value_info(column.name, kind, ["N", 1])


def _encode(graph: _Graph, columns: tuple[Column, ...]) -> str:
    """The features of a table's columns: all numbers together, then each of the others, put in order."""
    numbers = [column for column in columns if isinstance(column, NumberColumn)]
    parts: list[str] = []
    positions: dict[tuple[str, int], int] = {}
    if numbers:
        parts += _numbers(graph, numbers)
        marked = [column for column in numbers if column.indicator]
        positions |= {(column.name, 0): k for k, column in enumerate(numbers)}
        positions |= {(column.name, 1): len(numbers) + k for k, column in enumerate(marked)}
    for column in columns:
        if isinstance(column, CategoryColumn):
            start = len(positions)
            positions |= {(column.name, k): start + k for k in range(len(column.features))}
            parts.append(_categories(graph, column))
    features = parts[0] if len(parts) == 1 else graph.add("Concat", parts, axis=1)
    order = [positions[column.name, k] for column in columns for k in range(len(column.features))]
    if order == sorted(order):
        return features
    return graph.add("Gather", [features, graph.constant("feature_order", order, np.int64)], axis=1)


def _numbers(graph: _Graph, columns: list[NumberColumn]) -> list[str]:
    """Standardised numbers, and the indicators of missing ones; in double, as the encoder computes."""
    from onnx import TensorProto

    names = [column.name for column in columns]
    values = names[0] if len(names) == 1 else graph.add("Concat", names, axis=1)
    missing = graph.add("IsNaN", [values])
    values = graph.add("Cast", [values], to=TensorProto.DOUBLE)
    statistics = [
        graph.constant(f"column_{what}", [[getattr(column, what) for column in columns]], np.float64)
        for what in ("median", "mean", "scale")
    ]
    values = graph.add("Where", [missing, statistics[0], values])
    values = graph.add("Div", [graph.add("Sub", [values, statistics[1]]), statistics[2]])
    parts = [graph.add("Cast", [values], to=TensorProto.FLOAT)]
    marked = [k for k, column in enumerate(columns) if column.indicator]
    if marked:
        indicators = graph.add("Cast", [missing], to=TensorProto.FLOAT)
        if len(marked) < len(columns):
            positions = graph.constant("columns_with_indicator", marked, np.int64)
            indicators = graph.add("Gather", [indicators, positions], axis=1)
        parts.append(indicators)
    return parts


def _categories(graph: _Graph, column: CategoryColumn) -> str:
    """One-hot features; a code of -1 is that of no category."""
    from onnx import TensorProto

    codes = column.codes()
    code = graph.add(
        "LabelEncoder",
        [column.name],
        domain="ai.onnx.ml",
        keys_strings=list(codes),
        values_int64s=list(codes.values()),
        default_int64=-1,
    )
    numbers = graph.constant(f"codes_{len(column.categories)}", [range(len(column.categories))], np.int64)
    return graph.add("Cast", [graph.add("Equal", [code, numbers])], to=TensorProto.FLOAT)


def _layers(graph: _Graph, forward: Forward, value: str) -> str:
    """Everything from the features to the predictions."""
    if forward.shift is not None:
        value = graph.add("Sub", [value, graph.constant("shift", forward.shift)])
        value = graph.add("Mul", [value, graph.constant("scale", forward.scale)])
    values = {-1: value}
    for index, layer in enumerate(forward.layers):
        value = _layer(graph, index, layer, *(values[number] for number in layer.inputs))
        values[index] = value = _function(graph, layer.activation, value)
    is_gaussian = forward.link == "gaussian"
    value = _gaussian(graph, forward, value) if is_gaussian else _function(graph, forward.link, value)
    if forward.target_scale is not None:
        value = graph.add("Mul", [value, graph.constant("y_scale", 1 / forward.target_scale)])
        value = graph.add("Add", [value, graph.constant("y_shift", forward.target_shift)])
    return value


def _gaussian(graph: _Graph, forward: Forward, z: str) -> str:
    """Means as they are, variances from their logarithms."""
    half = forward.n_out // 2
    means, logarithms = (
        graph.add("Gather", [z, graph.constant(name, range(start, start + half), np.int64)], axis=1)
        for name, start in (("of_means", 0), ("of_variances", half))
    )
    variances = graph.add("Add", [graph.add("Exp", [logarithms]), graph.constant("floor", forward.floor)])
    return graph.add("Concat", [means, variances], axis=1)


def _layer(graph: _Graph, index: int, layer: ForwardLayer, x: str, other: str = "") -> str:
    """What a layer makes of its inputs, before its activation."""
    arrays = {name: graph.constant(f"{name}_{index}", values) for name, values in layer.arrays.items()}
    match layer.kind:
        case "dense":
            return graph.add("Gemm", [x, arrays["W"], arrays["b"]])
        case "affine":
            return graph.add("Add", [graph.add("Mul", [x, arrays["gain"]]), arrays["b"]])
        case "sum":
            return graph.add("Add", [x, other])
        case "embedding":
            return _embedding(graph, index, layer, x, arrays["W"])
    # LayerNormalization is newer than the opset.
    centred = graph.add("Sub", [x, graph.add("ReduceMean", [x], axes=[1])])
    variance = graph.add("ReduceMean", [graph.add("Mul", [centred, centred])], axes=[1])
    variance = graph.add("Add", [variance, graph.constant(f"epsilon_{index}", layer.epsilon)])
    normalised = graph.add("Div", [centred, graph.add("Sqrt", [variance])])
    return graph.add("Add", [graph.add("Mul", [normalised, arrays["gain"]]), arrays["shift"]])


def _embedding(graph: _Graph, index: int, layer: ForwardLayer, x: str, vectors: str) -> str:
    """The other columns, then the vectors of the categories."""
    from onnx import TensorProto

    column = graph.constant(f"column_{index}", layer.column, np.int64)
    category = graph.add("Cast", [graph.add("Gather", [x, column], axis=1)], to=TensorProto.INT64)
    # Gather counts negative numbers from the end; as too large ones they are an error.
    negative = graph.add("Less", [category, graph.constant("category_0", 0, np.int64)])
    beyond = graph.constant(f"categories_{index}", len(layer.W), np.int64)
    found = graph.add("Gather", [vectors, graph.add("Where", [negative, beyond, category])], axis=0)
    others = [k for k in range(layer.n_in) if k != layer.column]
    if not others:
        return found
    rest = graph.add("Gather", [x, graph.constant(f"others_{index}", others, np.int64)], axis=1)
    return graph.add("Concat", [rest, found], axis=1)


_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": LEAKY_RELU_SLOPE}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "softplus": ("Softplus", {}),
    "elu": ("Elu", {"alpha": 1.0}),
    "selu": ("Selu", {"alpha": SELU_ALPHA, "gamma": SELU_SCALE}),
    "exp": ("Exp", {}),
    "softmax": ("Softmax", {"axis": 1}),
}
"""Activations and links that are one operator."""


def _function(graph: _Graph, name: str, z: str) -> str:
    """An activation or a link."""
    if name == "identity":
        return z
    if name == "silu":
        return graph.add("Mul", [z, graph.add("Sigmoid", [z])])
    if name == "mish":
        return graph.add("Mul", [z, graph.add("Tanh", [graph.add("Softplus", [z])])])
    if name == "gelu":
        error_function = graph.add("Erf", [graph.add("Mul", [z, graph.constant("sqrt_half", 0.5**0.5)])])
        twice = graph.add("Add", [error_function, graph.constant("one", 1.0)])
        return graph.add("Mul", [graph.add("Mul", [z, graph.constant("half", 0.5)]), twice])
    operator, attributes = _OPERATORS[name]
    return graph.add(operator, [z], **attributes)


# --------------------------------------------------------------------------------------------------
# Checking


def _check(path: Path, forward: Forward) -> None:
    """Compare the file with `predict`, or raise a ParityError."""
    if forward.encodings is None:
        rows = parity.sample_rows(forward)
        feeds = {"X": rows.astype(np.float32)}
    else:
        table = parity.sample_table(forward.encodings)
        rows = parity.encode(forward.encodings, table, forward.network.dtype)
        feeds = {name: values.reshape(-1, 1) for name, values in table.items()}
    parity.check("ONNX file", forward, rows, _run(path, feeds))


def _run(path: Path, feeds: dict[str, Array]) -> Array:
    """The predictions of a file."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(os.fspath(path))
        return np.asarray(next(iter(evaluator.run(None, feeds))))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])
