"""Trajectories of 20 steps in float64 against PyTorch's, to 1e-6 relative."""

import numpy as np
import pytest

import gradstep as gs

torch = pytest.importorskip("torch")

STEPS = 20
RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 5))
Y = np.stack([np.sin(X[:, 0]) + X[:, 1], X[:, 2] * X[:, 3]], axis=1)


def _groups(model, decay=0.0):
    """gradstep's decoupled decay spares biases."""
    named = list(model.named_parameters())
    weights = [p for name, p in named if name.endswith("weight")]
    return [
        {"params": weights, "weight_decay": decay},
        {"params": [p for name, p in named if name.endswith("bias")], "weight_decay": 0.0},
    ]


CASES = {
    "gradient_descent": (gs.GradientDescent(0.1), lambda m: torch.optim.SGD(m.parameters(), 0.1)),
    "momentum": (gs.SGD(0.05, 0.9), lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9)),
    "nesterov": (
        gs.SGD(0.05, 0.9, nesterov=True),
        lambda m: torch.optim.SGD(m.parameters(), 0.05, momentum=0.9, nesterov=True),
    ),
    "adam": (gs.Adam(0.01), lambda m: torch.optim.Adam(m.parameters(), 0.01)),
    "adamw": (
        gs.AdamW(0.01, weight_decay=0.1),
        lambda m: torch.optim.AdamW(_groups(m, 0.1), 0.01),
    ),
    "amsgrad": (gs.AMSGrad(0.01), lambda m: torch.optim.Adam(m.parameters(), 0.01, amsgrad=True)),
    "nadam": (gs.NAdam(0.01), lambda m: torch.optim.NAdam(m.parameters(), 0.01)),
    "rmsprop": (
        gs.RMSprop(0.01, momentum=0.5),
        lambda m: torch.optim.RMSprop(m.parameters(), 0.01, momentum=0.5),
    ),
    "adagrad": (gs.Adagrad(0.05), lambda m: torch.optim.Adagrad(m.parameters(), 0.05)),
}


def _pair(optimizer, backend, width=7, factors=(1.0, 1.0), trainable=(True, True), **settings):
    """The same network in gradstep and in PyTorch."""
    net = gs.Network(
        [
            gs.Input(5),
            gs.Dense(width, "tanh", learning_rate_factor=factors[0], trainable=trainable[0]),
            gs.Dense(2, learning_rate_factor=factors[1], trainable=trainable[1]),
        ],
        optimizer=optimizer,
        backend=backend.name,
        dtype="float64",
        **settings,
    )
    model = torch.nn.Sequential(
        torch.nn.Linear(5, width), torch.nn.Tanh(), torch.nn.Linear(width, 2)
    ).double()
    _copy_weights(net, {"dense_0": model[0], "dense_1": model[2]})
    return net, model


def _copy_weights(net, modules):
    with torch.no_grad():
        for name, layer in modules.items():
            layer.weight.copy_(torch.tensor(net.parameters()[f"{name}.W"].T.copy()))
            layer.bias.copy_(torch.tensor(net.parameters()[f"{name}.b"]))


def _loss(model, l1=0.0, l2=0.0):
    loss = torch.nn.functional.mse_loss(model(torch.tensor(X)), torch.tensor(Y))
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            loss = loss + l1 * p.abs().sum() + l2 / 2 * (p**2).sum()
    return loss


def _assert_same(net, model):
    for index, name in ((0, "dense_0"), (2, "dense_1")):
        mine, theirs = net.parameters(), model.state_dict()
        for kind, value in (("W", theirs[f"{index}.weight"].T), ("b", theirs[f"{index}.bias"])):
            np.testing.assert_allclose(mine[f"{name}.{kind}"], value.numpy(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("width", [7, 150])
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_pytorch(backend, case, width):
    optimizer, make = CASES[case]
    net, model = _pair(optimizer, backend, width)
    theirs = make(model)
    for _ in range(STEPS):
        theirs.zero_grad()
        loss = _loss(model)
        loss.backward()
        theirs.step()
        assert net.step(X, Y) == pytest.approx(loss.item(), rel=1e-6)
    _assert_same(net, model)


@pytest.mark.parametrize("clipping", [{"clip_norm": 0.3}, {"clip_value": 0.05}])
def test_clipping_and_penalties_are_those_of_pytorch(backend, clipping):
    net, model = _pair(gs.Adam(0.01, **clipping), backend, l1=0.01, l2=0.1)
    theirs = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(STEPS):
        theirs.zero_grad()
        _loss(model, l1=0.01, l2=0.1).backward()
        if "clip_norm" in clipping:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        else:
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.05)
        theirs.step()
        net.step(X, Y)
    _assert_same(net, model)


def test_factors_of_the_learning_rate_are_pytorchs_parameter_groups(backend):
    net, model = _pair(gs.AdamW(0.01, weight_decay=0.1), backend, factors=(0.1, 2.0))
    groups = [
        {**group, "lr": 0.01 * factor}
        for layer, factor in ((0, 0.1), (2, 2.0))
        for group in _groups(model[layer], 0.1)
    ]
    theirs = torch.optim.AdamW(groups)
    for _ in range(STEPS):
        theirs.zero_grad()
        _loss(model).backward()
        theirs.step()
        net.step(X, Y)
    _assert_same(net, model)


def test_a_frozen_layer_takes_no_part_in_the_norm(backend):
    net, model = _pair(gs.SGD(0.1, 0.9, clip_norm=0.2), backend, trainable=(False, True))
    model[0].requires_grad_(False)
    theirs = torch.optim.SGD(model[2].parameters(), 0.1, momentum=0.9)
    for _ in range(STEPS):
        theirs.zero_grad()
        _loss(model).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        theirs.step()
        net.step(X, Y)
    _assert_same(net, model)


def _train_both(net, model, theirs, averaging, averaged):
    """All steps, each an epoch, with PyTorch's average after those that count."""
    first = averaging.start if isinstance(averaging, gs.SWA) else 1
    for epoch in range(1, STEPS + 1):
        theirs.zero_grad()
        _loss(model).backward()
        theirs.step()
        if epoch >= first:
            averaged.update_parameters(model)
    net.fit(X, Y, epochs=STEPS, batch_size=len(X), verbose=0)


def test_averages_are_those_of_pytorch(backend):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    for averaging, average in (
        (gs.EMA(0.9), lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9))),
        (gs.SWA(5), AveragedModel),
    ):
        net, model = _pair(gs.SGD(0.1), backend, averaging=averaging)
        theirs, averaged = torch.optim.SGD(model.parameters(), 0.1), average(model)
        _train_both(net, model, theirs, averaging, averaged)
        _assert_same(net, averaged.module)


@pytest.mark.parametrize("averaging", [gs.EMA(0.9), gs.SWA(5)])
def test_averaged_statistics_are_those_of_pytorch(backend, averaging):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    net = gs.Network(
        [gs.Input(5), gs.Dense(4), gs.BatchNorm(), gs.Dense(2)],
        optimizer=gs.SGD(0.1),
        averaging=averaging,
        dtype="float64",
        backend=backend.name,
    )
    modules = torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
    model = torch.nn.Sequential(*modules).double()
    _copy_weights(net, {"dense_0": model[0], "dense_1": model[2]})
    theirs = torch.optim.SGD(model.parameters(), 0.1)
    mean_of = {} if isinstance(averaging, gs.SWA) else {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}
    averaged = AveragedModel(model, use_buffers=True, **mean_of)
    _train_both(net, model, theirs, averaging, averaged)
    mean, variance = averaged.module[1].running_mean, averaged.module[1].running_var
    np.testing.assert_allclose(net.parameters()["batch_norm_0.mean"], mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(net.parameters()["batch_norm_0.variance"], variance, rtol=1e-6)


def test_accumulated_gradients_are_those_of_pytorch(backend):
    net, model = _pair(gs.SGD(0.1, 0.9), backend)
    theirs = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    inputs, targets = torch.tensor(X), torch.tensor(Y)
    for _ in range(STEPS):
        theirs.zero_grad()
        for rows in (slice(0, 8), slice(8, 16), slice(16, 24)):
            (torch.nn.functional.mse_loss(model(inputs[rows]), targets[rows]) / 3).backward()
        theirs.step()
    net.fit(X, Y, epochs=STEPS, batch_size=8, accumulate=3, shuffle=False, verbose=0)
    _assert_same(net, model)
