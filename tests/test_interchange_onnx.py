"""ONNX files: what ONNX Runtime makes of them, raw columns of tables, and what is refused."""

import json
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnxruntime  # noqa: E402

import gradstep as gs  # noqa: E402
from gradstep.backends.numpy.activations import ACTIVATIONS  # noqa: E402
from gradstep.interchange import onnx as interchange  # noqa: E402

LOSSES = ("mse", "cross_entropy", "binary_cross_entropy", "poisson")


def run(path, feeds):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, feeds)
    return outputs


def trained(activation="tanh", loss="mse", **options):
    rng = np.random.default_rng(0)
    X = rng.normal(20, 4, size=(120, 3)).astype(np.float32)
    y = {
        "mse": X[:, :2] * [30, 0.01] + 500,
        "cross_entropy": rng.integers(0, 3, 120),
        "binary_cross_entropy": rng.integers(0, 2, (120, 2)),
        "poisson": rng.poisson(3, 120),
    }[loss]
    outputs = {"cross_entropy": 3, "poisson": 1}.get(loss, 2)
    layers = [gs.Dense(9, activation), gs.Dropout(0.3), gs.Dense(6, activation), gs.Dense(outputs)]
    net = gs.Network(layers, loss=loss, **{"preprocessing": "standardize", **options})
    net.fit(X, y, epochs=3, verbose=0)
    return net, X


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_onnx_runtime_agrees_with_predict_for_every_activation(tmp_path, activation):
    net, X = trained(activation)
    gs.export_onnx(net, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    np.testing.assert_allclose(run(tmp_path / "model.onnx", {"X": X}), net.predict(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("preprocessing", ["none", "minmax"])
def test_links_and_preprocessing_are_part_of_the_file(tmp_path, loss, dtype, preprocessing):
    net, X = trained(loss=loss, dtype=dtype, preprocessing=preprocessing)
    gs.export_onnx(net, tmp_path / "model.onnx")
    for rows in (X, X[:1]):
        outputs = run(tmp_path / "model.onnx", {"X": rows})
        np.testing.assert_allclose(outputs, net.predict(rows), rtol=1e-5, atol=1e-5)


def test_predictions_are_in_the_units_of_the_targets(tmp_path):
    net, X = trained(target_preprocessing="standardize")
    gs.export_onnx(net, tmp_path / "model.onnx")
    outputs = run(tmp_path / "model.onnx", {"X": X})
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, net.predict(X), rtol=1e-5)


def test_the_file_says_what_it_is(tmp_path):
    net, _ = trained(loss="cross_entropy")
    net.classes = ["low", "mid", "high"]
    gs.export_onnx(net, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert model.ir_version == 7
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]
    assert [v.name for v in model.graph.input] == ["X"]
    assert [v.name for v in model.graph.output] == ["predictions"]
    assert "Dropout" not in {node.op_type for node in model.graph.node}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == net.classes
    assert metadata["loss"] == "cross_entropy"


# --------------------------------------------------------------------------------------------------
# Tables


def table_of(pd, rows=60):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "city": rng.choice(["Oslo", "Bergen", "true"], rows),
            "year": rng.integers(1990, 2024, rows),
            "income": rng.normal(5e4, 1e4, rows),
            "nothing": [None] * rows,
            "member": rng.random(rows) < 0.5,
            "rooms": pd.Categorical(rng.integers(1, 5, rows)),
            "predictions": rng.normal(size=rows),
        }
    )
    frame.loc[::7, ["city", "income"]] = None
    return frame


def table_network(frame, **options):
    net = gs.Network([gs.Dense(8, "relu"), gs.Dense(1)], **options)
    net.encoder = gs.TableEncoder().fit(frame)
    net.fit(frame, np.arange(len(frame)), epochs=3, verbose=0)
    return net


@pytest.mark.parametrize("preprocessing", ["none", "standardize"])
def test_a_file_with_an_encoder_takes_raw_columns(tmp_path, preprocessing):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("narwhals")
    frame = table_of(pd)
    net = table_network(frame, preprocessing=preprocessing)
    gs.export_onnx(net, tmp_path / "model.onnx")
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.load(tmp_path / "model.onnx").graph.input
    }
    text, number = onnx.TensorProto.STRING, onnx.TensorProto.FLOAT
    assert kinds == {
        "city": text,
        "year": number,
        "income": number,
        "member": text,
        "rooms": text,
        "predictions": number,
    }
    new = frame.copy()
    new.loc[3, "city"] = "Tromsø"
    new.loc[5, ["year", "income"]] = np.nan
    feeds = {
        name: new[[name]].to_numpy(np.float32)
        if kind == number
        else new[[name]].astype(object).fillna("").astype(str).to_numpy()
        for name, kind in kinds.items()
    }
    np.testing.assert_allclose(run(tmp_path / "model.onnx", feeds), net.predict(new), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1.0, 2.0, 3.0]},
        {"a": ["x", "y", "x"]},
        {"gradstep_W_0": [1.0, np.nan, 3.0], "gradstep__": [True, False, True]},
        {"a": ["x", "y", "x"], "b": [1.0, 2.0, 3.0], "c": ["", "z", "z"]},
    ],
)
def test_tables_of_any_mixture_and_any_names(tmp_path, columns):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("narwhals")
    net = table_network(pd.DataFrame(columns))
    gs.export_onnx(net, tmp_path / "model.onnx")
    inputs = [value.name for value in onnx.load(tmp_path / "model.onnx").graph.input]
    assert inputs == list(columns)


# --------------------------------------------------------------------------------------------------
# Checks


@pytest.mark.parametrize("has_runtime", [True, False])
def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch, has_runtime):
    if not has_runtime:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "model.onnx").write_text("older")
    monkeypatch.setitem(interchange._OPERATORS, "tanh", ("Sigmoid", {}))
    net, _ = trained("tanh")
    with pytest.raises(
        ArithmeticError, match="the ONNX file does not agree with predict: output 0 of test row"
    ):
        gs.export_onnx(net, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "older"


def test_without_onnx_runtime_the_evaluator_of_onnx_checks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for activation in ACTIVATIONS:
        gs.export_onnx(trained(activation)[0], tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").exists()


def test_without_onnx_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r'the package onnx: pip install "gradstep\[onnx\]"'):
        gs.export_onnx(gs.Network([gs.Input(1), gs.Dense(1)]), tmp_path / "model.onnx")


def test_what_cannot_be_exported_is_one_sentence(tmp_path, monkeypatch):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("narwhals")
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="its input width is not known yet, call fit first"):
        gs.export_onnx(gs.Network([gs.Dense(1)]), path)
    seconds = table_network(pd.DataFrame({"{time}": 1.7e9 + np.arange(9)}))
    with pytest.raises(ValueError, match=r"tell the values of column '\{time\}' apart: they vary by 2\.58"):
        gs.export_onnx(seconds, path)
    with pytest.raises(ValueError, match="needs a name for every column, but one's is empty"):
        gs.export_onnx(table_network(pd.DataFrame({"": [1.0, 2.0]})), path)
    monkeypatch.setattr(interchange, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="too large for an ONNX file"):
        gs.export_onnx(gs.Network([gs.Input(1), gs.Dense(2)]), path)
    assert list(tmp_path.iterdir()) == []
