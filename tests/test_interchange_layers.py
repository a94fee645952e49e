"""Exports of networks with layers that are not dense: every kind, behind and beside the others."""

import shutil

import numpy as np
import pytest

import gradstep as gs
from gradstep.interchange import parity
from gradstep.interchange.forward import check_float32, forward_of

RNG = np.random.default_rng(0)
X = np.column_stack(
    [RNG.normal(20, 4, 90), RNG.integers(0, 5, 90), RNG.normal(-3, 0.5, 90), RNG.integers(0, 3, 90)]
).astype(np.float32)
Y = np.column_stack([X[:, 0] / 10 + X[:, 1], X[:, 2] * X[:, 3]])

NETWORKS = {
    "norm in front": [gs.LayerNorm(), gs.Dense(5, "tanh"), gs.Dense(2)],
    "norm behind an activation": [gs.Dense(6, "gelu"), gs.LayerNorm(), gs.Dropout(0.1), gs.Dense(2)],
    "norm before an activation": [gs.Dense(6), gs.LayerNorm(1e-3), gs.Activation("tanh"), gs.Dense(2)],
    "norm at the end": [gs.Dense(4, "relu"), gs.Dense(2), gs.LayerNorm()],
    "norm between gains": [gs.BatchNorm(), gs.LayerNorm(), gs.Scale(), gs.BatchNorm(), gs.Dense(2)],
    "identity": [gs.Dense(6, "tanh"), gs.Residual([gs.Dense(4, "relu"), gs.Dense(6)]), gs.Dense(2)],
    "projection": [
        gs.Residual([gs.Dense(6, "tanh"), gs.Dropout(0.1), gs.Dense(5)]),
        gs.Activation("relu"),
        gs.Dropout(0.1),
        gs.Dense(2),
    ],
    "block at the end": [gs.Dense(3, "tanh"), gs.Residual([gs.Dense(4, "silu"), gs.Dense(2)])],
    "block in a block": [
        gs.Dense(5, "elu"),
        gs.Residual(
            [
                gs.Residual([gs.Dense(5, "tanh")]),
                gs.Residual([gs.LayerNorm(), gs.Residual([gs.Dense(7, "tanh")]), gs.Activation("relu")]),
                gs.Dense(4),
                gs.Dropout(0.1),
            ]
        ),
        gs.Dense(2),
    ],
    "block that is a block": [gs.BatchNorm(), gs.Residual([gs.Residual([gs.Dense(4)])]), gs.Dense(2)],
    "batches in a block": [
        gs.Dense(6, "tanh"),
        gs.Residual([gs.BatchNorm(), gs.Activation("relu"), gs.Dense(6), gs.BatchNorm(), gs.Scale()]),
        gs.Residual([gs.Dense(6, "relu"), gs.BatchNorm()]),
        gs.Residual([gs.BatchNorm()]),
        gs.Residual([gs.BatchNorm(), gs.Dense(6)]),
        gs.Dense(2),
    ],
    "batches in front of a block": [
        gs.Dense(6),
        gs.BatchNorm(),
        gs.Residual([gs.Dense(6, "tanh")]),
        gs.BatchNorm(),
        gs.Residual([gs.LayerNorm(), gs.Dense(4, "tanh")]),
        gs.BatchNorm(),
        gs.Scale(),
        gs.Dense(2),
    ],
    "product that a block takes": [
        gs.Dense(6),
        gs.Residual([gs.BatchNorm(), gs.Activation("tanh"), gs.Dense(6)]),
        gs.BatchNorm(),
        gs.Activation("relu"),
        gs.Dense(2),
        gs.Residual([gs.BatchNorm(), gs.Activation("tanh")]),
        gs.BatchNorm(),
    ],
    "embeddings": [gs.Embedding(3, 3, 2), gs.Embedding(1, 5, 3), gs.Dense(8, "tanh"), gs.Dense(2)],
    "all": [
        gs.Embedding(1, 5, 3),
        gs.Embedding(3, 3, 2),
        gs.BatchNorm(),
        gs.Dense(8),
        gs.LayerNorm(),
        gs.Activation("gelu"),
        gs.Residual([gs.BatchNorm(), gs.Dense(8, "relu"), gs.Dropout(0.1), gs.Dense(8)]),
        gs.Activation("relu"),
        gs.Residual([gs.LayerNorm(), gs.Dense(5), gs.Residual([gs.Dense(5, "silu")])]),
        gs.BatchNorm(),
        gs.Dense(2),
    ],
}
PREPROCESSED = {name: "minmax" if name == "identity" else "standardize" for name in NETWORKS}

kinds = pytest.mark.parametrize("kind", NETWORKS)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def trained(layers, dtype="float32", **options):
    """A network with these layers, whose gains, shifts and statistics are none of the initial ones."""
    options = {"preprocessing": "standardize", "target_preprocessing": "standardize", **options}
    net = gs.Network(layers, dtype=dtype, backend="numpy", optimizer=gs.Adam(0.05), **options)
    net.fit(X, Y, epochs=2, verbose=0)
    return net


def net_of(kind, dtype="float32"):
    return trained(NETWORKS[kind], dtype, preprocessing=PREPROCESSED[kind])


@kinds
@dtypes
def test_onnx_runtime_agrees_with_predict(tmp_path, kind, dtype):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    net = net_of(kind, dtype)
    gs.export_onnx(net, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for rows in (X, X[:1]):
        (outputs,) = session.run(None, {"X": rows})
        np.testing.assert_allclose(outputs, net.predict(rows), rtol=1e-4, atol=1e-4)
