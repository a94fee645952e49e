"""C headers: what they compute, how they compile, and what is refused."""

import re
import shutil
import subprocess

import numpy as np
import pytest

import gradstep as gs
from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.interchange import c, parity
from gradstep.interchange.forward import forward_of

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

PROGRAM = """\
#include "model.h"
#include <stdio.h>
int main()
{
    float x[MODEL_INPUTS], y[MODEL_OUTPUTS];
    while (fread(x, sizeof x, 1, stdin) == 1) {
        model_predict(x, y);
        fwrite(y, sizeof y, 1, stdout);
    }
    return 0;
}
"""


def compiled(header, compiler, standard, *flags):
    """The program that applies a header to the rows on its standard input."""
    suffix = "c" if compiler == "gcc" else "cpp"
    source = header.with_name(f"main.{suffix}")
    source.write_text(PROGRAM)
    program = header.with_name(f"main_{suffix}")
    warnings = ("-Wall", "-Wextra", "-Werror", "-pedantic", *flags)
    command = [compiler, f"-std={standard}", *warnings, str(source), "-o", str(program), "-lm"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return program


def run(program, X):
    output = subprocess.run(
        [program], input=X.astype(np.float32).tobytes(), capture_output=True, check=True
    ).stdout
    return np.frombuffer(output, np.float32).reshape(len(X), -1)


def every_activation(loss="mse", **options):
    """A network with a layer of each activation, trained a little."""
    rng = np.random.default_rng(0)
    X = rng.normal(20, 4, size=(100, 3))
    y = rng.integers(0, 2, 100) if loss != "mse" else X[:, :2] * 30 + 500
    outputs = {"cross_entropy": 3, "mse": 2}.get(loss, 1)
    layers = [gs.Dense(5 + k % 3, name) for k, name in enumerate(ACTIVATIONS)]
    net = gs.Network([*layers, gs.Dense(outputs)], loss=loss, preprocessing="standardize", **options)
    net.fit(X, y, epochs=2, verbose=0)
    return net, X


@needs_compiler
@pytest.mark.parametrize(("compiler", "standard"), [("gcc", "c99"), ("g++", "c++98"), ("g++", "c++20")])
def test_the_header_compiles_without_a_warning_and_predicts_the_same(tmp_path, compiler, standard):
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    net, X = every_activation(target_preprocessing="standardize")
    gs.export_c(net, tmp_path / "model.h")
    program = compiled(
        tmp_path / "model.h", compiler, standard, "-Wconversion", "-Wshadow", "-Wdouble-promotion"
    )
    np.testing.assert_allclose(run(program, X), net.predict(X), rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "poisson"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_links_are_part_of_the_header(tmp_path, loss, dtype):
    net, X = every_activation(loss, dtype=dtype)
    gs.export_c(net, tmp_path / "model.h")
    np.testing.assert_allclose(
        run(compiled(tmp_path / "model.h", "gcc", "c99"), X), net.predict(X), atol=1e-5
    )


def test_the_header_needs_math_alone_and_allocates_nothing(tmp_path):
    net, _ = every_activation()
    gs.export_c(net, tmp_path / "model.h")
    text = (tmp_path / "model.h").read_text()
    assert re.findall("#include.*", text) == ["#include <math.h>"]
    assert "alloc" not in text
    assert "double" not in text
    assert "void model_predict(const float *x, float *y)" in text


@pytest.mark.parametrize("layers", [[gs.Dense(1)], [gs.Dense(2, "tanh"), gs.Dense(1)]])
@pytest.mark.parametrize("preprocessing", ["none", "minmax"])
def test_the_smallest_networks_can_be_exported(tmp_path, layers, preprocessing):
    net = gs.Network(layers, preprocessing=preprocessing)
    net.fit(np.arange(10.0).reshape(5, 2), np.arange(5.0), epochs=1, verbose=0)
    gs.export_c(net, tmp_path / "model.h")


def test_without_a_compiler_the_numbers_in_the_text_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    net, _ = every_activation(target_preprocessing="standardize")
    gs.export_c(net, tmp_path / "model.h")
    forward = forward_of(net)
    rows = parity.sample_rows(forward)
    text = (tmp_path / "model.h").read_text()
    np.testing.assert_allclose(c.reread(text, forward, "model", rows), net.predict(rows), rtol=1e-5)


def test_a_compiler_that_compiles_nothing_counts_as_none(tmp_path, monkeypatch):
    monkeypatch.setattr(c, "FLAGS", ("--no-such-flag",))
    gs.export_c(gs.Network([gs.Input(2), gs.Dense(1)]), tmp_path / "model.h")


@pytest.mark.parametrize("has_compiler", [pytest.param(True, marks=needs_compiler), False])
def test_a_header_that_computes_something_else_is_not_written(tmp_path, monkeypatch, has_compiler):
    if not has_compiler:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "model.h").write_text("older")
    source = c.c_source
    monkeypatch.setattr(c, "c_source", lambda *a: source(*a).replace("[3] = {\n    ", "[3] = {\n    1"))
    net = gs.Network([gs.Input(3), gs.Dense(3, "tanh"), gs.Dense(1)])
    net.set_parameters({"dense_0.b": [0.1, 0.2, 0.3]})
    with pytest.raises(
        ArithmeticError, match="the C header does not agree with predict: output 0 of test row"
    ):
        gs.export_c(net, tmp_path / "model.h")
    assert [path.name for path in tmp_path.iterdir()] == ["model.h"]
    assert (tmp_path / "model.h").read_text() == "older"


@needs_compiler
def test_a_header_that_does_not_compile_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(c._FUNCTIONS, "relu", "zz")
    with pytest.raises(ArithmeticError, match=r"the C header does not compile: .*zz"):
        gs.export_c(gs.Network([gs.Input(2), gs.Dense(1, "relu")]), tmp_path / "model.h")
    assert list(tmp_path.iterdir()) == []


def test_the_name_comes_from_the_file_or_the_argument(tmp_path):
    net = gs.Network([gs.Input(2), gs.Dense(1)])
    gs.export_c(net, tmp_path / "my-net.h", name="Motor2")
    text = (tmp_path / "my-net.h").read_text()
    assert "Motor2_predict" in text
    assert "#define MOTOR2_INPUTS 2" in text
    with pytest.raises(ValueError, match="got 'my-net', from the name of the file"):
        gs.export_c(net, tmp_path / "my-net.h")
    for name in ("2fast", "_x", "", "a b", "naïve", "a\n"):
        with pytest.raises(
            ValueError, match="name must be a letter followed by letters, digits and underscor"
        ):
            gs.export_c(net, tmp_path / "my-net.h", name=name)
    with pytest.raises(TypeError, match="name must be text, got 3"):
        gs.export_c(net, tmp_path / "my-net.h", name=3)


def test_the_features_of_a_table_are_explained_in_a_comment_that_they_cannot_end(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("narwhals")
    frame = pd.DataFrame({"age": [31, None, 52.0, 40], "*/ città": ["*/ int", "b", "b", "b"]})
    net = gs.Network([gs.Dense(1)])
    net.encoder = gs.TableEncoder().fit(frame)
    net.fit(frame, [1.0, 2, 3, 4], epochs=1, verbose=0)
    gs.export_c(net, tmp_path / "model.h")
    text = (tmp_path / "model.h").read_text()
    assert " *   x[0] = (age - 41) / " in text
    assert " *   x[1] = 1 where age is missing, else 0" in text
    assert " *   x[3] = 1 where * / citt\\xe0 is 'b', else 0" in text


def test_what_cannot_be_exported_is_one_sentence(tmp_path):
    path = tmp_path / "model.h"
    with pytest.raises(ValueError, match="its input width is not known yet, call fit first"):
        gs.export_c(gs.Network([gs.Dense(1)]), path)
    with pytest.raises(ValueError, match="its preprocessing has no statistics yet, call fit first"):
        gs.export_c(gs.Network([gs.Input(1), gs.Dense(1)], preprocessing="standardize"), path)
    with pytest.raises(TypeError, match=r"net must be a Network or an estimator of gradstep\.sklearn, got 3"):
        gs.export_c(3, path)
    net = gs.Network([gs.Input(1), gs.Dense(1)], dtype="float64")
    net.set_parameters({"dense_0.W": [[1e39]]})
    with pytest.raises(ValueError, match="computes in float32, which cannot hold the network's 1e\\+39"):
        gs.export_c(net, path)
    net = gs.Network([gs.Dense(1)], target_preprocessing="standardize")
    net.fit(np.arange(4.0).reshape(4, 1), 1.7e9 + np.arange(4.0), epochs=1, verbose=0)
    with pytest.raises(ValueError, match=r"tell the values of column 0 of y apart: they vary by 1\.12 aro"):
        gs.export_c(net, path)
    with pytest.raises(FileNotFoundError):
        gs.export_c(gs.Network([gs.Input(2), gs.Dense(1)]), tmp_path / "nowhere" / "model.h")
    assert list(tmp_path.iterdir()) == []
