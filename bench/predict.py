"""How long predictions take, and a step that Python asks for, beside the peers.

    python bench/predict.py

One row through 17-64-64-6 as a user would ask each library for it; 100,000 rows through networks 256 wide
and wider; `Network.step` beside the same step inside `fit`. The fastest of several rounds counts: these are
single calls of a few microseconds. All outputs are compared before anything is timed. Needs scikit-learn,
torch, onnx and onnxruntime; a library that is not installed is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import gradstep as gs
from contenders.base import usable_cores
from roofline import fma_peak_apart

SMALL = (17, 64, 64, 6)
WIDE = ((54, 256, 256, 256, 7), (784, 256, 256, 10), (256, 1024, 1024, 1024, 16))
ROWS = 100_000
ROUNDS = 9
STEP_BATCH = 32

console = Console()
Predict = Callable[[np.ndarray], np.ndarray]


def network_of(widths: tuple[int, ...], activation: str) -> gs.Network:
    """A network with its initial weights."""
    layers = [gs.Dense(width, activation) for width in widths[1:-1]]
    return gs.Network([gs.Input(widths[0]), *layers, gs.Dense(widths[-1])], optimizer="adam", backend="cpp")


def layers_of(network: gs.Network) -> list[tuple[np.ndarray, np.ndarray]]:
    """(W, b) of every layer."""
    values = list(network.parameters().values())
    return list(zip(values[::2], values[1::2], strict=True))


def seconds_of(call: Callable[[], Any], duration: float = 0.05) -> float:
    """Of one call: the fastest round."""
    calls, best = 1, float("inf")
    for _ in range(ROUNDS + 8):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        taken = time.perf_counter() - start
        if taken < duration / 2:
            calls = max(calls * 2, int(calls * duration / max(taken, 1e-6)))
        else:
            best = min(best, taken / calls)
    return best


def scikit_learn(network: gs.Network) -> Predict:
    """`MLPRegressor.predict`."""
    from sklearn.neural_network import MLPRegressor

    layers = layers_of(network)
    n_in, n_out = layers[0][0].shape[0], layers[-1][0].shape[1]
    model = MLPRegressor(hidden_layer_sizes=[len(b) for _, b in layers[:-1]], activation="tanh", max_iter=1)
    rng = np.random.default_rng(0)
    few = rng.standard_normal((4, n_in)).astype(np.float32)
    model.partial_fit(few, rng.standard_normal((4, n_out)))
    model.coefs_, model.intercepts_ = [W for W, _ in layers], [b for _, b in layers]
    return model.predict  # type: ignore[no-any-return]


def pytorch(network: gs.Network) -> Predict:
    """A traced `nn.Sequential` in inference mode, numpy in and out."""
    import torch
    from torch import nn

    modules: list[Any] = []
    for W, b in layers_of(network):
        linear = nn.Linear(*W.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(W.T.copy()))
            linear.bias.copy_(torch.from_numpy(b))
        modules += [linear, nn.Tanh()]
    torch.set_num_threads(1)
    with torch.inference_mode():
        example = torch.zeros(1, layers_of(network)[0][0].shape[0])
        model = torch.jit.freeze(torch.jit.trace(nn.Sequential(*modules[:-1]).eval(), example))

    def predict(X: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(X)).numpy()  # type: ignore[no-any-return]

    return predict


def onnx_runtime(network: gs.Network) -> Predict:
    """An `InferenceSession` on one thread, all optimizations on."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    layers, nodes, constants, at = layers_of(network), [], [], "x"
    for index, (W, b) in enumerate(layers):
        constants += [numpy_helper.from_array(W, f"W{index}"), numpy_helper.from_array(b, f"b{index}")]
        nodes.append(helper.make_node("Gemm", [at, f"W{index}", f"b{index}"], [f"z{index}"]))
        at = f"z{index}"
        if index < len(layers) - 1:
            nodes.append(helper.make_node("Tanh", [at], [f"a{index}"]))
            at = f"a{index}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, layers[0][0].shape[0]])
    y = helper.make_tensor_value_info(at, TensorProto.FLOAT, [None, layers[-1][0].shape[1]])
    graph = helper.make_graph(nodes, "network", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda X: session.run(None, {"x": X})[0]  # type: ignore[no-any-return]


def contenders(network: gs.Network) -> Iterator[tuple[str, Predict]]:
    """Ours and every peer that is installed."""
    yield "gradstep", network.predict
    for make in (scikit_learn, pytorch, onnx_runtime):
        try:
            yield make.__name__, make(network)
        except ImportError as error:
            console.print(f"without {make.__name__}: {error}", style="yellow")


def single_rows() -> None:
    """One row from Python."""
    network = network_of(SMALL, "tanh")
    row = np.random.default_rng(0).standard_normal((1, SMALL[0])).astype(np.float32)
    expected, ours = network.predict(row), 0.0
    table = Table(title="one row, 17-64-64-6 tanh", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "us a call", "times gradstep's"):
        table.add_column(column, justify="right" if column else "left")
    for name, predict in contenders(network):
        np.testing.assert_allclose(
            np.asarray(predict(row)).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5
        )
        seconds = seconds_of(lambda predict=predict: predict(row))
        ours = ours or seconds
        table.add_row(name, f"{1e6 * seconds:.2f}", f"{seconds / ours:.1f}")
    console.print(table)


def resident_peak_megabytes() -> float:
    """Highest resident memory of this process so far."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3


def many_rows() -> None:
    """Share of the FMA peak, and memory beyond the outputs."""
    ceiling = fma_peak_apart(usable_cores(), "float32")  # the peers leave threads that spin
    if ceiling is None:
        raise SystemExit("the compiled core is needed: the FMA peak is measured in it")
    table = Table(title=f"{ROWS:,} rows, all threads", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("network", "ms", "GFLOP/s", "of peak", "MB beyond the outputs"):
        table.add_column(column, justify="right" if column != "network" else "left")
    for widths in WIDE:
        network = network_of(widths, "relu")
        X = np.random.default_rng(0).standard_normal((ROWS, widths[0]), dtype=np.float32)
        network.predict(X[:1000])
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_peak_megabytes()
        seconds = min(_timed(network, X) for _ in range(5))
        extra = resident_peak_megabytes() - before - ROWS * widths[-1] * 4 / 1e6
        flops = 2 * ROWS * sum(n_in * n_out for n_in, n_out in pairwise(widths))
        gflops = flops / seconds / 1e9
        name = "-".join(map(str, widths))
        table.add_row(
            name, f"{1e3 * seconds:.1f}", f"{gflops:.0f}", f"{gflops / ceiling:.0%}", f"{max(extra, 0):.1f}"
        )
    console.print(table)


def _timed(network: gs.Network, X: np.ndarray) -> float:
    start = time.perf_counter()
    network.predict(X)
    return time.perf_counter() - start


def steps_from_python() -> None:
    """`step` in a loop beside the same steps inside `fit`."""
    network = network_of(SMALL, "tanh")
    rng = np.random.default_rng(0)
    rows = STEP_BATCH * 200
    X = rng.standard_normal((rows, SMALL[0])).astype(np.float32)
    y = rng.standard_normal((rows, SMALL[-1])).astype(np.float32)
    few, targets = X[:STEP_BATCH].copy(), y[:STEP_BATCH].copy()
    inside = (
        seconds_of(lambda: network.fit(X, y, epochs=20, batch_size=STEP_BATCH, verbose=0), 0.1) / 20 / 200
    )
    asked = seconds_of(lambda: network.step(few, targets))
    console.print(
        f"a step of {STEP_BATCH} rows, 17-64-64-6 tanh: {1e6 * inside:.2f} us inside fit, "
        f"{1e6 * asked:.2f} us from Python, {1e6 * (asked - inside):.2f} us more"
    )


if __name__ == "__main__":
    single_rows()
    many_rows()
    steps_from_python()
