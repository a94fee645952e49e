"""The command ``gradstep export``, and `export` of the estimators: the format by the ending, or by name."""

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("polars")
pytest.importorskip("sklearn")
onnx = pytest.importorskip("onnx")

import gradstep as gs  # noqa: E402
from test_cli import fail, succeed  # noqa: E402


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = gs.Network([gs.Input(3), gs.Dense(4, "tanh"), gs.Dense(1)])
    net.save("model.safetensors")
    return net


@pytest.mark.usefixtures("model")
def test_the_ending_says_the_format(tmp_path):
    assert succeed("export", "model.safetensors", "a.onnx") == "a.onnx agrees with model.safetensors\n"
    onnx.checker.check_model("a.onnx")
    succeed("export", "model.safetensors", "motor.h")
    assert "motor_predict" in (tmp_path / "motor.h").read_text()


@pytest.mark.usefixtures("model")
def test_the_format_and_the_name_can_be_given(tmp_path):
    succeed("export", "model.safetensors", "net-1.inc", "--to", "c", "--name", "pump")
    assert "pump_predict" in (tmp_path / "net-1.inc").read_text()


@pytest.mark.usefixtures("model")
def test_what_is_wrong_is_one_sentence(tmp_path):
    assert "OUT must end in one of .onnx, .h, or --to name its format, got a.pt" in fail(
        "export", "model.safetensors", "a.pt"
    )
    assert "unknown format 'onx', did you mean 'onnx'" in fail(
        "export", "model.safetensors", "a", "--to", "onx"
    )
    assert "--name is for the format c" in fail("export", "model.safetensors", "a.onnx", "--name", "x")
    assert "there is no model file nowhere" in fail("export", "nowhere", "a.onnx")
    assert "name must be a letter" in fail("export", "model.safetensors", "1.h")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_methods_of_a_network_are_the_functions(model, tmp_path):
    model.export_onnx(tmp_path / "a.onnx")
    gs.export_onnx(model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    model.export_c(tmp_path / "a.h", name="net")
    gs.export_c(model, tmp_path / "b.h", name="net")
    assert (tmp_path / "a.h").read_bytes() == (tmp_path / "b.h").read_bytes()


def test_estimators_are_exported_by_the_ending_and_by_the_functions(tmp_path):
    from gradstep.sklearn import MLPRegressor

    X = np.random.default_rng(0).normal(size=(40, 3))
    estimator = MLPRegressor(hidden_layer_sizes=(4,), max_iter=200, tol=1e9, random_state=0).fit(X, X[:, 0])
    for name in ("a.onnx", "a.h", "a.safetensors"):
        estimator.export(tmp_path / name)
    gs.export_onnx(estimator, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert "a_predict" in (tmp_path / "a.h").read_text()
    with pytest.raises(ValueError, match=r"path must end in \.safetensors, \.onnx, \.h, got '.*a\.pt'"):
        estimator.export(tmp_path / "a.pt")
