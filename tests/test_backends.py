import _thread
import dataclasses
import inspect
import itertools
import signal
import threading

import numpy as np
import pytest

import oracles
from conftest import BACKENDS
from gradstep.backends.base import Engine, LayerTrace
from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.backends.numpy.losses import LOSSES
from gradstep.backends.numpy.optimizers import OPTIMIZERS
from gradstep.backends.numpy.propagation import trace
from gradstep.random import permutation
from networks import (
    OPTIMIZER_OPTIONS,
    Data,
    make_data,
    make_engine,
    make_oracle,
    make_parameters,
    make_plan,
    train,
)

AGREEMENT = {"float32": 2e-4, "float64": 1e-10}


def _assert_same_state(a, b):
    for mine, other in ((a.parameters(), b.parameters()), (a.optimizer_state(), b.optimizer_state())):
        assert mine.keys() == other.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


def _assert_close_state(a, b, tolerance):
    for mine, other in ((a.parameters(), b.parameters()), (a.optimizer_state(), b.optimizer_state())):
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name].dtype == other[name].dtype
            np.testing.assert_allclose(mine[name], other[name], rtol=tolerance, atol=tolerance, err_msg=name)


# --------------------------------------------------------------------------------------------------
# The contract


def test_backends_know_the_same_names(backend):
    assert backend.activations == tuple(ACTIVATIONS)
    assert backend.losses == tuple(LOSSES)
    assert backend.optimizers == tuple(OPTIMIZERS)


def test_backend_modules_carry_their_own_name():
    assert all(backend.name == name for name, backend in BACKENDS.items())


def test_engines_have_the_signatures_of_the_contract(backend):
    engine = backend.make_engine(make_plan((2, 1)))
    assert isinstance(engine, Engine)
    for name, method in inspect.getmembers(Engine, inspect.isfunction):
        if not name.startswith("__"):
            assert inspect.signature(getattr(type(engine), name)) == inspect.signature(method), name


def test_describe_gives_text(backend):
    facts = backend.describe()
    assert facts
    assert all(isinstance(text, str) for pair in facts.items() for text in pair)


def test_thread_count_is_reported(backend):
    assert backend.get_num_threads() >= 1


# --------------------------------------------------------------------------------------------------
# Parameters and state


def test_parameters_keep_names_shapes_and_values(backend, dtype):
    plan = make_plan((17, 33, 65, 3), dtype=dtype)
    values = make_parameters(plan)
    engine = make_engine(backend, plan)
    read = engine.parameters()
    assert list(read) == list(plan.parameter_shapes())
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


def test_parameters_are_copies(backend):
    plan = make_plan((3, 2))
    engine = make_engine(backend, plan)
    engine.parameters()["dense_0.W"][...] = 7
    np.testing.assert_array_equal(engine.parameters()["dense_0.W"], make_parameters(plan)["dense_0.W"])


def test_setting_one_parameter_leaves_the_others(backend):
    engine = make_engine(backend, make_plan((3, 4, 2)))
    before = engine.parameters()
    engine.set_parameters({"dense_1.b": np.array([5.0, 6.0])})
    after = engine.parameters()
    np.testing.assert_array_equal(after.pop("dense_1.b"), [5, 6])
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_has_the_promised_names(backend, optimizer):
    engine = make_engine(backend, make_plan((3, 2), optimizer=optimizer))
    state = engine.optimizer_state()
    kinds = OPTIMIZERS[optimizer].moments
    assert set(state) == {"step"} | {f"dense_0.{p}.{kind}" for p in "Wb" for kind in kinds}
    assert state["step"].dtype == np.int64
    assert state["step"].shape == ()
    assert not any(value.any() for value in state.values())


# --------------------------------------------------------------------------------------------------
# Prediction


@pytest.mark.parametrize("loss", LOSSES)
def test_predict_applies_the_link(backend, loss, dtype):
    plan = make_plan((3, 5, 4), "relu", loss, dtype=dtype)
    engine = make_engine(backend, plan)
    data = make_data(plan, 50)
    out = np.empty((50, 4), dtype)
    engine.predict(data.X, out)
    z = make_oracle(plan, engine.parameters()).outputs(data.X)
    if loss in ("binary_cross_entropy", "binary_focal"):
        z = 1 / (1 + np.exp(-z))
    elif loss in ("cross_entropy", "focal"):
        z = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    elif loss in ("poisson", "gamma"):
        z = np.exp(z)
    elif loss == "gaussian_nll":
        z = np.hstack([z[:, :2], np.exp(z[:, 2:]) + 1e-6])
    np.testing.assert_allclose(out, z, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_evaluate_is_the_mean_loss_without_the_penalty(backend, loss, weighted, dtype):
    plan = make_plan((3, 5, 4), "relu", loss, dtype=dtype, l2=3.0)
    engine = make_engine(backend, plan)
    data = make_data(plan, 50)
    weight = data.weight if weighted else None
    out, expected = np.empty((2, 50, 4), dtype)
    truth = make_oracle(plan, engine.parameters())._replace(l2=0.0).mean_loss(data.X, data.y, weight)
    assert engine.evaluate(data.X, data.y, weight, out) == pytest.approx(truth, rel=1e-5)
    assert engine.evaluate(data.X, data.y, weight) == pytest.approx(truth, rel=1e-5)
    engine.predict(data.X, expected)
    np.testing.assert_array_equal(out, expected)


def test_evaluate_with_zero_weights_is_zero(backend, dtype):
    plan = make_plan((3, 2), dtype=dtype)
    data = make_data(plan, 5)
    assert make_engine(backend, plan).evaluate(data.X, data.y, np.zeros(5, dtype)) == 0


def test_many_rows_are_the_same_as_few(backend, reference):
    plan = make_plan((2, 2048, 1), "relu", dtype="float64")
    data = make_data(plan, 1500)  # more rows than any block of this width
    out, expected = np.empty((2, 1500, 1))
    engine = make_engine(backend, plan)
    engine.predict(data.X, out)
    make_engine(reference, plan).predict(data.X, expected)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)
    truth = np.mean((expected - data.y) ** 2)
    assert engine.evaluate(data.X, data.y, None) == pytest.approx(truth, rel=1e-10)


def test_input_transform_shifts_and_scales(backend, dtype):
    plan = make_plan((3, 5, 1), dtype=dtype, optimizer="adam")
    shift, scale = np.array([3, -1, 0.5], dtype), np.array([0.5, 2, 1], dtype)
    data = make_data(plan, 40)
    moved = Data(np.ascontiguousarray((data.X - shift) * scale), data.y, data.weight)
    inside, outside = make_engine(backend, plan), make_engine(backend, plan)
    inside.set_input_transform(shift, scale)
    a, b = train(inside, data, 2), train(outside, moved, 2)
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-6)
    _assert_close_state(inside, outside, 1e-5 if dtype == "float32" else 1e-12)
    assert inside.evaluate(data.X, data.y, None) == pytest.approx(
        outside.evaluate(moved.X, moved.y, None), rel=1e-5
    )
    inside.set_input_transform(None, None)
    assert inside.evaluate(moved.X, moved.y, None) == pytest.approx(
        outside.evaluate(moved.X, moved.y, None), rel=1e-5
    )


def test_read_only_input_is_accepted_and_unchanged(backend):
    plan = make_plan((3, 4, 1), optimizer="adam")
    data = make_data(plan, 20)
    copies = Data(*(value.copy() for value in data))
    for value in data:
        value.flags.writeable = False
    engine = make_engine(backend, plan)
    engine.set_input_transform(np.ones(3, np.float32), np.ones(3, np.float32))
    train(engine, data, 1, weight=data.weight)
    engine.evaluate(data.X, data.y, data.weight)
    engine.predict(data.X, np.empty((20, 1), np.float32))
    engine.loss_and_gradients(data.X, data.y, data.weight, input_gradient=True)
    for value, copy in zip(data, copies, strict=True):
        np.testing.assert_array_equal(value, copy)


# --------------------------------------------------------------------------------------------------
# Optimizers


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_step_follows_the_optimizers_definition(backend, optimizer):
    plan = make_plan((3, 4, 2), optimizer=optimizer, dtype="float64", l2=0.05)
    data, lr = make_data(plan, 12), 0.03
    engine = make_engine(backend, plan)
    past = {name: [] for name in plan.parameter_shapes()}
    for step in range(1, 5):
        before = engine.parameters()
        expected_loss, gradients, _ = engine.loss_and_gradients(data.X, data.y, data.weight)
        loss = engine.step(data.X, data.y, data.weight, lr)
        assert loss == pytest.approx(expected_loss, rel=1e-12)
        assert int(engine.optimizer_state()["step"]) == step
        for name, theta in engine.parameters().items():
            past[name].append(gradients[name])
            expected = oracles.optimizer_change(
                optimizer, before[name], past[name], lr, plan.optimizer_options, name.endswith(".W")
            )
            np.testing.assert_allclose(theta, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_epsilon_hat_is_added_before_the_correction(backend, dtype):
    options = {"beta1": 0.9, "beta2": 0.99, "epsilon": 0.1, "epsilon_hat": 1.0}
    plan = make_plan((3, 4, 2), optimizer="adam", dtype=dtype, optimizer_options=options)
    data = make_data(plan, 12)
    engine = make_engine(backend, plan)
    past = {name: [] for name in plan.parameter_shapes()}
    for _ in range(3):
        before = engine.parameters()
        _, gradients, _ = engine.loss_and_gradients(data.X, data.y, None)
        engine.step(data.X, data.y, None, 0.03)
        for name, theta in engine.parameters().items():
            past[name].append(gradients[name])
            expected = oracles.optimizer_change("adam", before[name], past[name], 0.03, options, False)
            np.testing.assert_allclose(theta, expected, rtol=1e-11 if dtype == "float64" else 2e-6, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("widths", [(3, 4, 2), (3, 40, 2), (3, 200, 300, 2)], ids=str)
def test_l2_per_batch_is_divided_by_the_batch_weight(backend, widths, weighted):
    plain = make_plan(widths, optimizer="sgd", dtype="float64", l2=0.05)
    shared = dataclasses.replace(plain, l2=0.05 * 12, l2_per_batch=True)
    data = make_data(plain, 12)
    weight = data.weight * (12 / data.weight.sum()) if weighted else None
    engines = [make_engine(backend, plan) for plan in (plain, shared)]
    first, second = (engine.loss_and_gradients(data.X, data.y, weight) for engine in engines)
    assert first[0] == pytest.approx(second[0], rel=1e-14)
    for engine in engines:
        train(engine, data, 2, weight=weight, batch_size=12)
    for name, value in engines[0].parameters().items():
        np.testing.assert_allclose(first[1][name], second[1][name], rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(engines[1].parameters()[name], value, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("batch_size", [7, 40])
@pytest.mark.parametrize("widths", [(3, 4, 2), (3, 40, 2), (3, 200, 300, 2)], ids=str)
def test_an_order_says_which_rows_are_visited(backend, widths, batch_size):
    plan = make_plan(widths, optimizer="adam", dtype="float64")
    data = make_data(plan, 30)
    order = np.random.default_rng(3).permutation(30)[:20].astype(np.int64)
    chosen = Data(data.X[order], data.y[order], data.weight[order])
    listed, plain = make_engine(backend, plan), make_engine(backend, plan)
    result = train(listed, data, 2, weight=data.weight, batch_size=batch_size, order=order)
    expected = train(plain, chosen, 2, weight=chosen.weight, batch_size=batch_size, shuffle=False)
    np.testing.assert_array_equal(result.losses, expected.losses)
    for name, value in plain.parameters().items():
        np.testing.assert_array_equal(listed.parameters()[name], value)


def test_sgd_without_momentum_is_gradient_descent(backend, dtype):
    plain = make_plan((3, 4, 1), dtype=dtype)
    momentum = make_plan(
        (3, 4, 1), optimizer="sgd", dtype=dtype, optimizer_options={"momentum": 0.0, "nesterov": 0.0}
    )
    engines = [make_engine(backend, plan) for plan in (plain, momentum)]
    results = [train(engine, make_data(plain, 30), 3) for engine in engines]
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-6)


def test_training_lowers_the_loss(backend, dtype):
    plan = make_plan((3, 16, 1), optimizer="adam", dtype=dtype)
    data = make_data(plan, 200)
    learnable = data._replace(y=np.sin(data.X[:, :1] * data.X[:, 1:2]))
    losses = train(make_engine(backend, plan), learnable, 20, learning_rate=0.02).losses
    assert losses[-1] < 0.3 * losses[0]


# --------------------------------------------------------------------------------------------------
# Epochs


def test_an_epoch_is_steps_over_the_permutation(backend, dtype):
    plan = make_plan((3, 4, 2), optimizer="adam", dtype=dtype, l2=0.01)
    data = make_data(plan, 37)
    whole, stepped = make_engine(backend, plan), make_engine(backend, plan)
    result = train(whole, data, 2, weight=data.weight, batch_size=8, seed=2**63 + 1, first_epoch=5)
    expected = []
    for epoch in (5, 6):
        order = permutation(37, 2**63 + 1, epoch)
        total = 0.0
        for start in range(0, 37, 8):
            rows = order[start : start + 8]
            loss = stepped.step(data.X[rows], data.y[rows], data.weight[rows], 0.05)
            total += loss * float(data.weight[rows].sum())
        expected.append(total / float(data.weight.sum()))
    np.testing.assert_allclose(result.losses, expected, rtol=1e-6 if dtype == "float32" else 1e-13)
    _assert_close_state(whole, stepped, 1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("batch_size", [37, 100])
def test_a_batch_of_all_rows_keeps_their_order(backend, batch_size):
    plan = make_plan((3, 4, 2), optimizer="adam")
    data = make_data(plan, 37)
    a, b = make_engine(backend, plan), make_engine(backend, plan)
    assert (
        train(a, data, 3, batch_size=batch_size).losses
        == train(b, data, 3, batch_size=37, shuffle=False).losses
    )
    _assert_same_state(a, b)


def test_shuffle_false_goes_in_order(backend):
    plan = make_plan((3, 4, 2))
    data = make_data(plan, 20)
    a, b = make_engine(backend, plan), make_engine(backend, plan)
    train(a, data, 1, batch_size=6, shuffle=False)
    for start in range(0, 20, 6):
        b.step(data.X[start : start + 6], data.y[start : start + 6], None, 0.05)
    _assert_close_state(a, b, 1e-6)


def test_learning_rates_change_from_epoch_to_epoch(backend):
    plan = make_plan((3, 4, 2), dtype="float64")
    data = make_data(plan, 20)
    a, b = make_engine(backend, plan), make_engine(backend, plan)
    rates = np.array([0.1, 0.0, 0.02])
    a.train(data.X, data.y, None, epochs=3, batch_size=8, learning_rates=rates, seed=1, first_epoch=0)
    for epoch, rate in enumerate(rates):
        train(b, data, 1, batch_size=8, learning_rate=rate, seed=1, first_epoch=epoch)
    _assert_same_state(a, b)


@pytest.mark.parametrize("weighted", [False, True])
def test_epoch_loss_of_a_frozen_network_is_its_loss(backend, weighted):
    plan = make_plan((3, 4, 2), dtype="float64", l2=0.2)
    data = make_data(plan, 21)
    weight = data.weight if weighted else None
    engine = make_engine(backend, plan)
    expected = engine.loss_and_gradients(data.X, data.y, weight)[0]
    losses = train(engine, data, 1, weight=weight, learning_rate=0.0, batch_size=4).losses
    np.testing.assert_allclose(losses, [expected], rtol=1e-12)


def test_zero_epochs_do_nothing(backend):
    plan = make_plan((3, 2))
    engine = make_engine(backend, plan)
    result = train(engine, make_data(plan, 5), 0)
    assert len(result.losses) == 0
    assert not result.interrupted
    assert not result.diverged


# --------------------------------------------------------------------------------------------------
# Backends against each other


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_trajectories_agree_with_the_reference(fast_backend, reference, loss, optimizer, weighted, dtype):
    plan = make_plan((5, 17, 9, 4 if loss == "gaussian_nll" else 3), "tanh", loss, optimizer, dtype, l2=0.01)
    data = make_data(plan, 75)
    weight = data.weight if weighted else None
    engines = [make_engine(backend, plan) for backend in (fast_backend, reference)]
    mine, expected = (train(engine, data, 4, weight=weight, learning_rate=0.01) for engine in engines)
    np.testing.assert_allclose(mine.losses, expected.losses, rtol=AGREEMENT[dtype])
    _assert_close_state(*engines, AGREEMENT[dtype])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_trajectories_agree_for_every_activation(fast_backend, reference, activation):
    plan = make_plan((4, 8, 2), activation, dtype="float64", output_activation=activation)
    data = make_data(plan, 50)
    engines = [make_engine(backend, plan) for backend in (fast_backend, reference)]
    mine, expected = (train(engine, data, 3) for engine in engines)
    np.testing.assert_allclose(mine.losses, expected.losses, rtol=1e-10)
    _assert_close_state(*engines, 1e-10)


@pytest.mark.parametrize(
    ("widths", "rows", "batch_size"),
    [
        ((1, 1), 100, 100),
        ((1, 1), 1, 1),
        ((2, 4, 1), 100, 1),
        ((17, 33, 65, 3), 70, 64),
        ((3, 128, 5), 40, 33),
        ((200, 150, 130, 10), 140, 128),
        ((7, 1000, 3), 50, 25),
        ((3, 4, 2), 9000, 9000),
        ((2, 2500, 1), 700, 700),
        ((5, 1023, 1025, 2), 8, 3),
    ],
    ids=str,
)
def test_trajectories_agree_for_every_shape(fast_backend, reference, widths, rows, batch_size):
    plan = make_plan(widths, "relu", optimizer="adam", dtype="float64")
    data = make_data(plan, rows)
    engines = [make_engine(backend, plan) for backend in (fast_backend, reference)]
    options = {"batch_size": batch_size, "learning_rate": 1e-3}
    mine, expected = (train(engine, data, 2, **options) for engine in engines)
    np.testing.assert_allclose(mine.losses, expected.losses, rtol=1e-9)
    for name, value in engines[0].parameters().items():
        np.testing.assert_allclose(value, engines[1].parameters()[name], rtol=1e-6, atol=1e-8)


# --------------------------------------------------------------------------------------------------
# Resuming, stopping, diverging


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_resumes_bit_for_bit(backend, optimizer, dtype):
    plan = make_plan((5, 19, 3), "gelu", "cross_entropy", optimizer, dtype, l2=0.01)
    data = make_data(plan, 50)
    straight, first, second = (make_engine(backend, plan, seed) for seed in (0, 0, 1))
    losses = train(straight, data, 5).losses
    part = train(first, data, 2).losses
    second.set_parameters(first.parameters())
    second.set_optimizer_state(first.optimizer_state())
    part += train(second, data, 3, first_epoch=2).losses
    assert part == losses
    _assert_same_state(straight, second)


@pytest.mark.parametrize("loss", LOSSES)
def test_training_resumes_bit_for_bit_with_every_loss(backend, loss):
    plan = make_plan((5, 19, 4), "tanh", loss, "adam", l2=0.01)
    data = make_data(plan, 50)
    straight, first, second = (make_engine(backend, plan, seed) for seed in (0, 0, 1))
    losses = train(straight, data, 3, weight=data.weight).losses
    part = train(first, data, 1, weight=data.weight).losses
    second.set_parameters(first.parameters())
    second.set_optimizer_state(first.optimizer_state())
    part += train(second, data, 2, weight=data.weight, first_epoch=1).losses
    assert part == losses
    _assert_same_state(straight, second)


def test_training_twice_gives_the_same_bits(backend, dtype):
    plan = make_plan((33, 70, 3), "relu", "cross_entropy", "adam", dtype)
    data = make_data(plan, 100)
    engines = [make_engine(backend, plan) for _ in range(2)]
    assert train(engines[0], data, 3).losses == train(engines[1], data, 3).losses
    _assert_same_state(*engines)


def test_earlier_calls_do_not_change_the_bits(backend):
    plan = make_plan((3, 4, 2), optimizer="adam")
    data, many = make_data(plan, 5000), make_data(plan, 20000)
    fresh, used = make_engine(backend, plan), make_engine(backend, plan)
    used.evaluate(many.X, many.y, many.weight)
    used.loss_and_gradients(many.X, many.y, None)
    used.predict(many.X[:3], np.empty((3, 2), np.float32))
    assert train(fresh, data, 2, batch_size=5000).losses == train(used, data, 2, batch_size=5000).losses
    _assert_same_state(fresh, used)


@pytest.mark.parametrize("optimizer", ["gradient_descent", "sgd"])
def test_divergence_restores_the_last_good_epoch(backend, optimizer, dtype):
    plan = make_plan((3, 4, 1), "identity", optimizer=optimizer, dtype=dtype)
    data = make_data(plan, 32)
    diverging, stopped = make_engine(backend, plan), make_engine(backend, plan)
    result = train(diverging, data, 500, learning_rate=2.0)
    assert result.diverged
    assert not result.interrupted
    assert 0 < len(result.losses) < 500
    assert np.isfinite(result.losses).all()
    epoch_by_epoch = []
    while not (epoch := train(stopped, data, 1, learning_rate=2.0, first_epoch=len(epoch_by_epoch))).diverged:
        epoch_by_epoch += epoch.losses
    assert list(result.losses) == epoch_by_epoch  # not fewer: every good epoch counts
    _assert_same_state(diverging, stopped)
    assert all(np.isfinite(value).all() for value in diverging.parameters().values())


def test_divergence_in_the_first_epoch_changes_nothing(backend):
    plan = make_plan((3, 4, 1), "identity", optimizer="adam")
    engine = make_engine(backend, plan)
    data = make_data(plan, 32)
    huge = data._replace(y=np.full_like(data.y, 3e38))
    result = train(engine, huge, 3)
    assert result.diverged
    assert len(result.losses) == 0
    _assert_same_state(engine, make_engine(backend, plan))


def test_ctrl_c_stops_after_a_whole_batch(backend):
    plan = make_plan((20, 64, 1), optimizer="sgd")
    data = make_data(plan, 2000)
    engine = make_engine(backend, plan)
    train(engine, data, 1)  # compiles
    done = int(engine.optimizer_state()["step"])
    handler = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    result = train(engine, data, 1_000_000, learning_rate=1e-5)
    timer.join()
    assert result.interrupted
    assert not result.diverged
    assert signal.getsignal(signal.SIGINT) is handler
    steps = int(engine.optimizer_state()["step"]) - done
    batches = 2000 // 16
    assert len(result.losses) * batches <= steps <= (len(result.losses) + 1) * batches
    assert np.isfinite(engine.evaluate(data.X, data.y, None))


def test_training_works_outside_the_main_thread(backend):
    plan = make_plan((3, 4, 1), optimizer="adam")
    data = make_data(plan, 40)
    here, there = make_engine(backend, plan), make_engine(backend, plan)
    thread = threading.Thread(target=train, args=(there, data, 2))
    thread.start()
    train(here, data, 2)
    thread.join()
    _assert_same_state(here, there)


# --------------------------------------------------------------------------------------------------
# The trace of the reference


def test_trace_obeys_the_chain_rule():
    plan = make_plan((3, 4, 5, 2), "silu", dtype="float64", l2=0.1)
    parameters, data = make_parameters(plan), make_data(plan, 6)
    shift, scale = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.25, 2.0])
    loss, layers = trace(plan, parameters, data.X, data.y, data.weight, shift, scale)
    moved = (data.X - shift) * scale
    network = make_oracle(plan, parameters)
    assert loss == pytest.approx(network.mean_loss(moved, data.y, data.weight), rel=1e-12)
    assert [layer.name for layer in layers] == ["dense_0", "dense_1", "dense_2"]
    np.testing.assert_array_equal(layers[0].x, moved)
    for below, above in itertools.pairwise(layers):
        np.testing.assert_array_equal(below.a, above.x)
        W, slope = parameters[f"{above.name}.W"], oracles.elementwise(oracles.DERIVATIVES["silu"], below.z)
        np.testing.assert_allclose(below.delta, (above.delta @ W.T) * slope, rtol=1e-10, atol=1e-15)
    dW, db, _ = network.gradients(moved, data.y, data.weight)
    for layer, expected_dW, expected_db in zip(layers, dW, db, strict=True):
        assert isinstance(layer, LayerTrace)
        np.testing.assert_allclose(layer.dW, expected_dW, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(layer.db, expected_db, rtol=1e-10, atol=1e-14)


def test_every_optimizer_has_options_in_the_tests():
    assert OPTIMIZER_OPTIONS.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "hinge"])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("widths", [(3, 3), (20, 40, 3), (100, 300, 300, 3)])
def test_losses_of_nan_are_nan(backend, widths, position, loss):
    plan = make_plan(widths, loss=loss)
    engine = make_engine(backend, plan)
    data = make_data(plan, 40)
    last = f"dense_{len(widths) - 2}.b"
    biases = engine.parameters()[last]
    biases[position] = np.nan
    engine.set_parameters({last: biases})
    other = np.full(40, (position + 1) % 3, np.int32)  # the NaN is not the label's own output
    assert np.isnan(engine.evaluate(data.X, other, None))


@pytest.mark.parametrize(
    ("epsilon", "sizes", "tolerance"),
    # Squares below the normal range have fewer digits.
    [(1e-8, (1e-30, 1e15), 2e-6), (1e-30, (1e-17, 1e17), 1e-5)],
)
@pytest.mark.parametrize("optimizer", ["adam", "amsgrad", "nadam", "rmsprop", "adagrad"])
def test_float32_updates_are_accurate_for_gradients_of_every_size(
    backend, reference, optimizer, epsilon, sizes, tolerance
):
    """Roots may be made of estimates; those of zero and of squares that underflow are among them."""
    gradients = np.concatenate([[0.0], np.geomspace(*sizes, 69)])
    moved = {}
    for maker, dtype in ((backend, "float32"), (reference, "float64")):
        options = {**OPTIMIZER_OPTIONS[optimizer], "epsilon": epsilon}
        plan = make_plan((len(gradients), 1), "identity", "mse", optimizer, dtype, optimizer_options=options)
        engine = maker.make_engine(plan)
        shape = (len(gradients), 1)
        engine.set_parameters({"dense_0.W": np.zeros(shape, dtype), "dense_0.b": np.zeros(1, dtype)})
        data = Data(gradients[None].astype(dtype), np.full((1, 1), -0.5, dtype), None)
        train(engine, data, 1, learning_rate=1.0)
        moved[dtype] = engine.parameters()["dense_0.W"][:, 0]
    np.testing.assert_allclose(moved["float32"], moved["float64"], rtol=tolerance)
