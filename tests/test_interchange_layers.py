"""Exports of networks with layers that are not dense: every kind, behind and beside the others."""

import shutil
import subprocess

import numpy as np
import pytest

import gradstep as gs
from gradstep.interchange import c, parity
from gradstep.interchange.forward import check_float32, forward_of

RNG = np.random.default_rng(0)
X = np.column_stack(
    [RNG.normal(20, 4, 90), RNG.integers(0, 5, 90), RNG.normal(-3, 0.5, 90), RNG.integers(0, 3, 90)]
).astype(np.float32)
Y = np.column_stack([X[:, 0] / 10 + X[:, 1], X[:, 2] * X[:, 3]])

NETWORKS = {
    "norm in front": [gs.LayerNorm(), gs.Dense(5, "tanh"), gs.Dense(2)],
    "norm behind an activation": [gs.Dense(6, "gelu"), gs.LayerNorm(), gs.Dropout(0.1), gs.Dense(2)],
    "norm before an activation": [
        gs.Dense(6),
        gs.LayerNorm(epsilon=1e-3),
        gs.Activation("tanh"),
        gs.Dense(2),
    ],
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


@pytest.mark.parametrize("category", [-1, 5, np.nan])
def test_a_category_beyond_those_of_training_is_an_error_of_onnx_runtime(tmp_path, category):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    gs.export_onnx(net_of("embeddings"), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    rows = X[:4].copy()
    rows[2, 1] = category
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"X": rows})


def test_all_columns_may_be_embedded(tmp_path):
    net = gs.Network([gs.Embedding(0, 5, 2), gs.Dense(2)], backend="numpy")
    net.fit(X[:, 1:2], Y, epochs=1, verbose=0)
    gs.export_c(net, tmp_path / "model.h")
    pytest.importorskip("onnx")
    gs.export_onnx(net, tmp_path / "model.onnx")


# --------------------------------------------------------------------------------------------------
# C


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@kinds
@dtypes
def test_the_header_agrees_with_predict(tmp_path, kind, dtype):
    net = net_of(kind, dtype)
    gs.export_c(net, tmp_path / "model.h")
    forward = forward_of(net)
    outputs = c._compiled(tmp_path / "model.h", forward, "model", X)
    np.testing.assert_allclose(outputs, net.predict(X), rtol=1e-4, atol=1e-4)


@kinds
def test_without_a_compiler_the_header_is_evaluated_by_numpy(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(c, "COMPILERS", ())
    net = net_of(kind)
    gs.export_c(net, tmp_path / "model.h")
    text = (tmp_path / "model.h").read_text()
    again = c.reread(text, forward_of(net), "model", X)
    np.testing.assert_allclose(again, net.predict(X), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("standard", ["c++98", "c++20"])
def test_the_header_of_all_layers_is_cpp_without_a_warning(tmp_path, standard):
    gs.export_c(net_of("all"), tmp_path / "model.h")
    source = tmp_path / "main.cpp"
    source.write_text('#include "model.h"\nint main() { float x[4] = {}, y[2]; model_predict(x, y); }\n')
    warnings = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow", "-Wdouble-promotion"]
    command = ["g++", f"-std={standard}", *warnings, str(source), "-o", str(tmp_path / "main")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_header_needs_two_buffers_for_a_chain_and_few_for_blocks(tmp_path):
    chain = trained([gs.LayerNorm(), *(gs.Dense(4, "tanh") for _ in range(6)), gs.Dense(2)])
    blocks = trained([gs.Dense(4), *(gs.Residual([gs.Dense(4, "tanh")]) for _ in range(6)), gs.Dense(2)])
    for net, buffers in ((chain, 2), (blocks, 3)):
        declared = ", ".join(f"h{k}[MODEL_SCRATCH]" for k in range(buffers))
        assert f"    float {declared};" in c.c_source(forward_of(net), "model")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_category_beyond_those_of_training_makes_nan_in_c(tmp_path):
    net = net_of("embeddings")
    gs.export_c(net, tmp_path / "model.h")
    rows = X[:4].copy()
    rows[:, 1] = [-1, 5, np.nan, 4]
    outputs = c._compiled(tmp_path / "model.h", forward_of(net), "model", rows)
    np.testing.assert_array_equal(np.isnan(outputs).all(axis=1), [True, True, True, False])


# --------------------------------------------------------------------------------------------------
# PyTorch


def outputs_of(module, rows):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return module(torch.from_numpy(rows)).numpy()


@kinds
@dtypes
def test_a_module_agrees_with_predict_and_comes_back(kind, dtype):
    pytest.importorskip("torch")
    net = net_of(kind, dtype)
    rows = X.astype(dtype)
    module = gs.to_torch(net)
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(outputs_of(module, rows), net.predict(rows), rtol=tolerance, atol=tolerance)
    again = gs.from_torch(module)
    assert again.dtype == dtype
    np.testing.assert_allclose(again.predict(rows), net.predict(rows), rtol=tolerance, atol=tolerance)
    again.fit(rows, Y, epochs=1, verbose=0)


def test_layers_come_back_as_they_were():
    pytest.importorskip("torch")
    block = gs.Residual(
        [gs.Dense(5), gs.LayerNorm(epsilon=1e-3), gs.Activation("gelu"), gs.Dropout(0.1), gs.Dense(6)]
    )
    layers = [
        gs.Embedding(3, 3, 2),
        gs.Embedding(1, 5, 4),
        gs.Residual([gs.Residual([gs.Dense(8, "tanh")]), gs.Dropout(0.2), gs.Dense(6)]),
        gs.Activation("relu"),
        gs.Dropout(0.3),
        block,
        gs.LayerNorm(),
    ]
    net = gs.Network([gs.Input(4), *layers, gs.Dense(2)], preprocessing="none", backend="numpy")
    again = gs.from_torch(gs.to_torch(net), backend="numpy")
    assert again.layers == net.layers
    assert all(np.array_equal(again.parameters()[name], own) for name, own in net.parameters().items())


def test_a_module_learns_embeddings_and_keeps_the_random_numbers_of_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    module = gs.to_torch(net_of("all")).train()
    assert torch.equal(torch.get_rng_state(), state)
    module(torch.from_numpy(X)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalisations_of_pytorch_become_layers_with_their_statistics(dtype):
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.BatchNorm1d(4, eps=1e-3, momentum=0.2),
        nn.Linear(4, 6),
        nn.LayerNorm(6, eps=1e-4),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Linear(6, 5, bias=False),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 2),
    ).to(getattr(torch, dtype))
    rows = X.astype(dtype)
    with torch.no_grad():
        for _ in range(3):
            module(torch.from_numpy(rows))
        for parameter in module.parameters():
            parameter.add_(0.1)
    net = gs.from_torch(module)
    assert net.layers == (
        gs.Input(4),
        gs.BatchNorm(momentum=0.2, epsilon=1e-3),
        gs.Dense(6),
        gs.LayerNorm(epsilon=1e-4),
        gs.Activation("silu"),
        gs.Dropout(0.1),
        gs.Dense(5),
        gs.BatchNorm(),
        gs.Activation("relu"),
        gs.Dense(2),
    )
    parameters = net.parameters()
    np.testing.assert_array_equal(parameters["batch_norm_0.mean"], module[0].running_mean.numpy())
    np.testing.assert_array_equal(parameters["batch_norm_1.variance"], module[6].running_var.numpy())
    expected = outputs_of(module.eval(), rows)
    np.testing.assert_allclose(net.predict(rows), expected, rtol=1e-5, atol=1e-5)


def test_training_moves_statistics_as_pytorch_does():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(4, momentum=0.3), torch.nn.Linear(4, 2)).double()
    net = gs.from_torch(module, optimizer=gs.SGD(0.0 + 1e-12))
    module(torch.from_numpy(X.astype(np.float64)))
    net.step(X, Y)
    parameters = net.parameters()
    np.testing.assert_allclose(parameters["batch_norm_0.mean"], module[0].running_mean, rtol=1e-12)
    np.testing.assert_allclose(parameters["batch_norm_0.variance"], module[0].running_var, rtol=1e-12)


def test_links_stand_behind_normalisations_and_blocks_too():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    for loss, link in (("cross_entropy", nn.Softmax(dim=1)), ("binary_cross_entropy", nn.Sigmoid())):
        module = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), link)
        net = gs.from_torch(module)
        assert (net.loss.name, net.layers[-1]) == (loss, gs.LayerNorm())
        np.testing.assert_allclose(net.predict(X), outputs_of(module, X), rtol=1e-5)
    net = gs.from_torch(module, loss="mse")
    assert net.layers[-1] == gs.Activation("sigmoid")


def refused_modules():
    torch = pytest.importorskip("torch")
    from gradstep.interchange.torch_modules import EmbedColumn, Preprocess
    from gradstep.interchange.torch_modules import Residual as Block

    nn, vectors = torch.nn, torch.zeros(3, 2)
    same = nn.Identity()
    return {
        "must have a momentum between 0 and 1": [nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 2)],
        "must be a BatchNorm1d with affine=True": [nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)],
        "and track_running_stats=True": [nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)],
        "must have eps greater than 0": [nn.BatchNorm1d(4, eps=0.0), nn.Linear(4, 2)],
        "must be a LayerNorm of one dimension": [nn.LayerNorm((2, 4)), nn.Linear(4, 2)],
        "with elementwise_affine=True": [nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)],
        r"module\[1\] takes 5 columns, but gets 4": [nn.Linear(4, 4), nn.LayerNorm(5)],
        "must have at least one Linear": [nn.LayerNorm(4)],
        "which must stand in front of all": [nn.Linear(4, 4), EmbedColumn(4, 0, vectors)],
        "must replace a column of the input": [EmbedColumn(2, 1, vectors), EmbedColumn(3, 2, vectors)],
        r"module\[0\] must have a layer in its block": [Block(nn.Sequential(), same), nn.Linear(4, 2)],
        "a block from 4 to 3 columns beside a projection that is Identity": [Block(nn.Linear(4, 3), same)],
        "a block from 4 to 4 columns beside a projection that is Linear": [
            Block(nn.Linear(4, 4), nn.Linear(4, 4))
        ],
        "adds 2 columns of its projection to 3": [Block(nn.Linear(4, 3), nn.Linear(4, 2))],
        r"module\[0\]\.projection takes 5 columns, but gets 4": [Block(nn.Linear(4, 3), nn.Linear(5, 3))],
        r"module\[0\]\.block\[1\] is a Softmax, which": [
            Block(nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=1)), same)
        ],
        r"module\[0\]\.block\[0\] is a Preprocess, which": [
            Block(nn.Sequential(Preprocess([0.0], [1.0], torch.float32)), same)
        ],
        r"module\[0\]\.block is a Conv1d, which a Network cannot have": [Block(nn.Conv1d(1, 1, 1), same)],
    }


def test_what_a_network_cannot_have_is_one_sentence():
    torch = pytest.importorskip("torch")
    for message, parts in refused_modules().items():
        with pytest.raises(ValueError, match=message) as caught:
            gs.from_torch(torch.nn.Sequential(*parts))
        assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------
# What all of them start from


def test_a_gain_goes_into_what_nothing_else_takes():
    layers = forward_of(net_of("product that a block takes")).layers
    kinds = [(layer.kind, layer.source, layer.other) for layer in layers]
    assert kinds == [
        ("dense", -1, -1),
        ("affine", 0, -1),  # the gain in the block, whose input the sum takes too
        ("dense", 1, -1),
        ("sum", 2, 0),
        ("affine", 3, -1),  # the gain in front of an activation
        ("dense", 4, -1),
        ("affine", 5, -1),
        ("sum", 6, 5),
        ("affine", 7, -1),  # the gain at the end
    ]
    assert len(forward_of(net_of("norm between gains")).layers) == 3
    folded = forward_of(trained([gs.Dense(4), gs.BatchNorm(), gs.Residual([gs.BatchNorm(), gs.Dense(2)])]))
    assert [layer.kind for layer in folded.layers] == [
        "dense",
        "dense",
        "dense",
        "sum",
    ]  # one is the projection


def test_sample_rows_hold_categories():
    rows = parity.sample_rows(forward_of(net_of("all")))
    assert set(rows[:, 1]) == set(range(5))
    assert set(rows[:, 3]) == set(range(3))


def test_what_float32_cannot_hold_is_refused():
    net = trained([gs.LayerNorm(epsilon=1e-50), gs.Dense(2)], "float64")
    with pytest.raises(ValueError, match="computes in float32, which cannot hold an epsilon of 1e-50"):
        check_float32(forward_of(net), "C header")
    net = trained([gs.LayerNorm(), gs.Dense(2)], "float64")
    net.set_parameters({"layer_norm_0.gain": np.full(4, 1e300)})
    with pytest.raises(ValueError, match="cannot hold the network's 1e"):
        check_float32(forward_of(net), "C header")


# --------------------------------------------------------------------------------------------------
# Means and variances.


def gaussian_net(dtype="float32", units="standardize"):
    options = {"loss": gs.GaussianNLL(0.01), "target_preprocessing": units}
    return trained([gs.Dense(6, "tanh"), gs.Dense(4)], dtype, **options)


@dtypes
@pytest.mark.parametrize("units", ["standardize", "none"])
def test_means_and_variances_are_exported_in_their_units(tmp_path, dtype, units):
    net = gaussian_net(dtype, units)
    gs.export_c(net, tmp_path / "model.h")  # compared with predict
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    gs.export_onnx(net, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"X": X})[0], net.predict(X), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("units", ["standardize", "none"])
def test_means_and_variances_go_to_pytorch_and_back(units):
    torch = pytest.importorskip("torch")
    net = gaussian_net("float64", units)
    module = gs.to_torch(net)
    with torch.no_grad():
        outputs = module(torch.from_numpy(X.astype(float))).numpy()
    np.testing.assert_allclose(outputs, net.predict(X), rtol=1e-9)
    again = gs.from_torch(module)
    assert repr(again.loss) == "GaussianNLL(floor=0.01)"
    np.testing.assert_allclose(again.predict(X), net.predict(X), rtol=1e-9)
    with pytest.raises(ValueError, match="the loss must be 'gaussian_nll'"):
        gs.from_torch(module, loss="mse")
