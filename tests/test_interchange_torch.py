"""PyTorch modules from networks and networks from them: the same outputs, or one sentence why not."""

import copy
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import gradstep as gs  # noqa: E402
from gradstep.backends.numpy.activations import ACTIVATIONS  # noqa: E402
from gradstep.interchange import torch as interchange  # noqa: E402

LOSSES = {"mse": 2, "cross_entropy": 3, "binary_cross_entropy": 2, "poisson": 1}


def rows(columns=3):
    return np.random.default_rng(0).normal(20, 4, size=(60, columns)).astype(np.float32)


def trained(activation="tanh", loss="mse", **options):
    rng = np.random.default_rng(1)
    X = rows()
    y = {
        "mse": X[:, :2] * [30, 0.01] + 500,
        "cross_entropy": rng.integers(0, 3, 60),
        "binary_cross_entropy": rng.integers(0, 2, (60, 2)),
        "poisson": rng.poisson(3, 60),
    }[loss]
    layers = [gs.Dense(9, activation), gs.Dropout(0.3), gs.Dense(6, activation), gs.Dense(LOSSES[loss])]
    net = gs.Network(layers, loss=loss, **{"preprocessing": "standardize", **options})
    net.fit(X, y, epochs=3, verbose=0)
    return net


def outputs(module, X):
    with torch.no_grad():
        return module(torch.from_numpy(X)).numpy()


# --------------------------------------------------------------------------------------------------
# To PyTorch


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_a_module_has_the_outputs_of_predict(activation):
    net = trained(activation, target_preprocessing="standardize")
    module = gs.to_torch(net)
    np.testing.assert_allclose(outputs(module, rows()), net.predict(rows()), rtol=1e-5)
    assert not module.training
    np.testing.assert_array_equal(outputs(net.to_torch(), rows()), outputs(module, rows()))


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_links_are_part_of_the_module_unless_logits_are_wanted(loss, dtype):
    net = trained(loss=loss, dtype=dtype)
    X = rows().astype(dtype)
    np.testing.assert_allclose(outputs(gs.to_torch(net), X), net.predict(X), rtol=1e-5, atol=1e-6)
    logits = gs.to_torch(net, logits=True)
    link = {
        "mse": lambda z: z,
        "cross_entropy": lambda z: torch.softmax(z, 1),
        "binary_cross_entropy": torch.sigmoid,
        "poisson": torch.exp,
    }[loss]
    np.testing.assert_allclose(outputs(lambda x: link(logits(x)), X), net.predict(X), rtol=1e-5, atol=1e-6)


def test_a_module_holds_copies_and_can_be_trained_copied_and_converted():
    net = trained(target_preprocessing="standardize")
    module = gs.to_torch(net)
    before = net.predict(rows())
    assert outputs(copy.deepcopy(module), rows()).dtype == np.float64
    assert outputs(copy.deepcopy(module).float(), rows()).dtype == np.float32
    optimizer = torch.optim.SGD(module.parameters(), 1e-9)
    module.train()(torch.from_numpy(rows())).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(net.predict(rows()), before)
    assert {p.shape for p in module.parameters()} >= {(9, 3), (6, 9), (2, 6)}
    assert any(isinstance(part, nn.Dropout) for part in module)


def test_the_random_numbers_of_pytorch_stay_where_they_are():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    gs.to_torch(trained())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_that_computes_something_else_is_an_error(monkeypatch):
    monkeypatch.setitem(interchange._MODULES, "tanh", ("Sigmoid", {}))
    with pytest.raises(ArithmeticError, match="the PyTorch module does not agree with predict: output 0 of"):
        gs.to_torch(trained())


def test_without_pytorch_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for function in (gs.to_torch, gs.from_torch):
        with pytest.raises(ModuleNotFoundError, match=r'the package torch: pip install "gradstep\[torch\]"'):
            function(None)


# --------------------------------------------------------------------------------------------------
# From PyTorch


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_has_the_outputs_of_the_module(activation, dtype):
    torch.manual_seed(0)
    name, options = interchange._MODULES[activation]
    module = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(3, 7), getattr(nn, name)(**options), nn.Dropout(0.5)),
        nn.Linear(7, 5, bias=False),
        getattr(nn, name)(**options),
        nn.Linear(5, 2),
    ).to(getattr(torch, dtype))
    net = gs.from_torch(module)
    assert net.dtype == dtype
    assert net.loss.name == "mse"
    assert net.layers[1:3] == (gs.Dense(7, activation), gs.Dropout(0.5))
    assert module.training
    X = rows().astype(dtype) / 20
    np.testing.assert_allclose(net.predict(X), outputs(module.eval(), X), rtol=1e-5, atol=1e-6)
    net.fit(X, np.zeros((60, 2)), epochs=1, verbose=0)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_there_and_back_gives_the_same_network(loss):
    options = {"target_preprocessing": "standardize"} if loss == "mse" else {}
    net = trained(loss=loss, **options)
    again = gs.from_torch(gs.to_torch(net))
    assert again.loss == net.loss
    assert again.layers == (gs.Input(3), *net.layers)
    np.testing.assert_allclose(again.predict(rows()), net.predict(rows()), rtol=1e-6)


def test_the_loss_says_what_becomes_of_the_outputs():
    torch.manual_seed(0)
    X = rows() / 20
    logits = nn.Sequential(nn.Linear(3, 4))
    expected = torch.softmax(logits(torch.from_numpy(X)), 1).detach().numpy()
    for net in (
        gs.from_torch(logits, loss="cross_entropy"),
        gs.from_torch(nn.Sequential(logits, nn.Softmax(dim=1))),
    ):
        np.testing.assert_allclose(net.predict(X), expected, rtol=1e-5)
    sigmoid = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    for loss, activation in ((None, "identity"), ("binary_cross_entropy", "identity"), ("mse", "sigmoid")):
        net = gs.from_torch(sigmoid, loss=loss)
        assert net.layers[-1].activation == activation
        np.testing.assert_allclose(net.predict(X), outputs(sigmoid, X), rtol=1e-5)
    net = gs.from_torch(nn.Linear(3, 1), loss=gs.Huber(2.0), optimizer=gs.SGD(0.1), seed=3, backend="numpy")
    assert (net.loss, net.optimizer, net.seed, net.backend) == (gs.Huber(2.0), gs.SGD(0.1), 3, "numpy")


class Linear(nn.Linear):
    """Not PyTorch's own: its forward may be anything."""


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([nn.InstanceNorm1d(3), nn.Linear(3, 1)], r"module\[0\] is a InstanceNorm1d, which a Network cannot"),
        ([nn.Sequential(nn.Linear(3, 1), nn.Conv1d(1, 1, 1))], r"module\[0\]\[1\] is a Conv1d, which a Netw"),
        (
            [nn.Linear(3, 1), nn.LeakyReLU(0.2)],
            r"module\[1\] must have negative_slope=0.01 in a Network, got",
        ),
        ([nn.Linear(3, 1), nn.GELU("tanh")], r"must have approximate='none' in a Network, got 'tanh'"),
        ([nn.Linear(3, 1), nn.ELU(2.0)], r"must have alpha=1.0 in a Network, got 2.0"),
        ([nn.ReLU(), nn.Linear(3, 1)], r"module\[0\] is a ReLU, which must stand right behind a Linear"),
        ([nn.Linear(3, 1), nn.ReLU(), nn.ReLU()], r"module\[2\] is a ReLU, which must stand right behind"),
        ([nn.Linear(3, 2), nn.Dropout(0.1), nn.ReLU()], r"module\[2\] is a ReLU, which must stand right"),
        ([nn.Dropout(0.1), nn.Linear(3, 2)], r"module\[0\] is a Dropout, which must stand behind a Linear"),
        ([nn.Linear(3, 2), nn.Dropout(0.1)], "module ends with Dropout, which must stand between two Linear"),
        ([nn.Linear(3, 2), nn.Linear(3, 2)], r"module\[1\] takes 3 columns, but gets 2"),
        ([nn.Linear(3, 2), nn.Softmax(dim=0)], r"module\[1\] is a Softmax, which a Network cannot have"),
        (
            [nn.Linear(3, 2), nn.Tanh(), nn.Softmax(dim=1)],
            r"module\[2\] is a Softmax, which must stand right",
        ),
        (
            [nn.Linear(3, 2), nn.Softmax(dim=1), nn.Linear(2, 1)],
            "a Linear, but a Network ends behind a Softm",
        ),
        ([nn.Linear(3, 2), nn.LogSoftmax(dim=1)], r"module\[1\] is a LogSoftmax, which a Network cannot"),
        ([Linear(3, 2)], r"module\[0\] is a Linear of .*, which a Network cannot have"),
        ([], "module must have at least one Linear, got none"),
    ],
)
def test_what_a_network_cannot_have_is_one_sentence(parts, message):
    with pytest.raises(ValueError, match=message) as caught:
        gs.from_torch(nn.Sequential(*parts))
    assert "\n" not in str(caught.value)


def test_what_is_no_module_or_does_not_suit_the_loss_is_one_sentence():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Sequential, got int"):
        gs.from_torch(3)
    with pytest.raises(
        ValueError, match="module ends with Softmax, so that the loss must be 'cross_entropy'"
    ):
        gs.from_torch(nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)), loss="mse")
    with pytest.raises(ValueError, match="the last layer must have activation 'identity' for the loss"):
        gs.from_torch(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), loss="cross_entropy")
