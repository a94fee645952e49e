"""Learning rates that change with every update."""

import math

import numpy as np
import pytest

import gradstep as gs
from gradstep.schedules import factors_of
from networks import make_data, make_engine, make_plan

STEPS = np.arange(40)


def factors(schedule, total=40):
    return factors_of(schedule, STEPS, total)


def test_formulas():
    np.testing.assert_allclose(factors(gs.StepDecay(10, 0.5)), 0.5 ** (STEPS // 10))
    np.testing.assert_allclose(factors(gs.ExponentialDecay(10, 0.5)), 0.5 ** (STEPS / 10))
    np.testing.assert_allclose(factors(gs.InverseScaling(4, 0.5)), 1 / np.sqrt(1 + STEPS / 4))
    np.testing.assert_allclose(factors(gs.Cosine(final=0.1)), 0.55 + 0.45 * np.cos(np.pi * STEPS / 40))
    assert factors(gs.Cosine(20, final=0.1))[20:] == pytest.approx(0.1)
    np.testing.assert_array_equal(factors(None), np.ones(40))
    np.testing.assert_allclose(factors(lambda step: 1 / (1 + step)), 1 / (1 + STEPS))


def test_warm_restarts_begin_anew():
    falling = factors(gs.Cosine(5, growth=1.0))
    np.testing.assert_allclose(falling[:5], falling[5:10])
    doubling = factors(gs.Cosine(5, growth=2.0))
    assert np.flatnonzero(doubling == 1.0).tolist() == [0, 5, 15, 35]
    np.testing.assert_allclose(doubling[5:15:2], doubling[:5])


def test_one_cycle_rises_and_falls():
    cycle = factors(gs.OneCycle(rise=0.25, start=0.1, final=0.01))
    assert cycle[0] == pytest.approx(0.1)
    assert cycle[-1] == pytest.approx(0.01)
    top = int(np.argmax(cycle))
    assert top in (9, 10)
    assert (np.diff(cycle[: top + 1]) > 0).all()
    assert (np.diff(cycle[top + 1 :]) < 0).all()


def test_warm_up_comes_before_any_other():
    warm = factors(gs.LinearWarmup(10, gs.Cosine(final=0.1)))
    np.testing.assert_allclose(warm[:10], np.arange(1, 11) / 11)
    np.testing.assert_allclose(warm[10:], factors_of(gs.Cosine(final=0.1), np.arange(30), 30))
    np.testing.assert_array_equal(factors(gs.LinearWarmup(3))[3:], 1.0)


@pytest.mark.parametrize("widths", [(3, 4, 2), (3, 200, 300, 2)], ids=str)
def test_every_update_has_its_own_rate(backend, widths):
    plan = make_plan(widths, optimizer="sgd", dtype="float64")
    data = make_data(plan, 50)
    rates = np.linspace(0.1, 0.001, 8).reshape(2, 4)
    engine, stepped = make_engine(backend, plan), make_engine(backend, plan)
    engine.train(
        data.X,
        data.y,
        None,
        epochs=2,
        batch_size=16,
        learning_rates=rates,
        seed=0,
        first_epoch=0,
        shuffle=False,
    )
    for step in range(8):
        rows = slice(16 * (step % 4), 16 * (step % 4) + 16)
        stepped.step(data.X[rows], data.y[rows], None, rates.ravel()[step])
    for name, value in stepped.parameters().items():
        np.testing.assert_allclose(engine.parameters()[name], value, rtol=1e-12, atol=1e-14)


def test_fit_follows_the_schedule_across_calls_of_the_engine(backend):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    seen = []

    class Watch(gs.Callback):
        """Makes every epoch a call of its own."""

    def rate(step):
        seen.append(step)
        return 1 / (1 + step)

    nets = [gs.Network([gs.Dense(1)], optimizer=gs.SGD(0.1), seed=0, backend=backend.name) for _ in range(2)]
    nets[0].fit(X, y, epochs=3, batch_size=16, schedule=rate, verbose=0)
    assert seen == list(range(9))
    nets[1].fit(
        X, y, epochs=3, batch_size=16, schedule=gs.InverseScaling(power=1.0), callbacks=[Watch()], verbose=0
    )
    for name, value in nets[0].parameters().items():
        np.testing.assert_allclose(nets[1].parameters()[name], value, rtol=1e-6)


def test_a_plateau_lowers_the_rate():
    X = np.random.default_rng(0).normal(size=(30, 2))
    net = gs.Network([gs.Dense(1)], optimizer=gs.SGD(1e-12))
    net.fit(
        X, X[:, 0], epochs=7, callbacks=[gs.ReduceOnPlateau(2, 0.1, min_delta=1.0, least=5e-15)], verbose=0
    )
    assert net.learning_rate == pytest.approx(5e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gs.StepDecay(0), "every must be at least 1"),
        (lambda: gs.StepDecay(5, 1.5), "factor must be at most 1"),
        (lambda: gs.Cosine(final=0.0), "final must be greater than 0"),
        (lambda: gs.Cosine(growth=0.5), "growth must be at least 1"),
        (lambda: gs.OneCycle(rise=0.0), "rise must be greater than 0"),
        (lambda: factors(lambda step: -1.0), "schedule must return positive numbers, got -1.0 for step 0"),
        (lambda: factors(lambda step: math.nan), "schedule must return positive numbers"),
        (lambda: gs.ReduceOnPlateau(factor=1.0), "factor must be less than 1"),
    ],
)
def test_bad_schedules_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_schedule_is_an_error():
    with pytest.raises(TypeError, match="then must be a schedule"):
        gs.LinearWarmup(3, then=0.1)
    net = gs.Network([gs.Dense(1)])
    with pytest.raises(TypeError, match="schedule must be a schedule"):
        net.fit(np.ones((4, 1)), np.ones(4), schedule="cosine", verbose=0)
