"""Whether short steps take one thread or all: the choice, beside a clock that the tests move on."""

from __future__ import annotations

import itertools

import pytest

from conftest import BACKENDS

pytestmark = pytest.mark.skipif("cpp" not in BACKENDS, reason="the compiled core is not installed")

if "cpp" in BACKENDS:
    from gradstep import _core

USUAL, SHORT = 2_000_000, 900_000  # operations


@pytest.fixture
def choice():
    return _core.ThreadChoice()


def run(choice, steps, time_of, operations=None):
    """Threads of every step, of two; its time is time_of(threads), or less, as its operations are fewer."""
    taken = []
    for _, size in zip(range(steps), operations or itertools.repeat(USUAL), strict=False):
        taken.append(choice.begin_step(size, 2))
        choice.end_step(time_of(taken[-1]) * min(size, USUAL) // USUAL)
    return taken


def times(alone, shared):
    return lambda threads: alone if threads == 1 else shared


def run_up_to_a_trial(choice, time_of):
    """Until one thread is taken where two are faster."""
    assert any(run(choice, 1, time_of) == [1] for _ in range(50_000))


@pytest.mark.parametrize("alone", [50, 80, 97, 103, 130, 200, 800])
def test_the_slower_way_costs_a_hundredth(choice, alone):
    run(choice, 300, times(alone, 100))
    taken = run(choice, 50_000, times(alone, 100))
    spent = sum(alone if threads == 1 else 100 for threads in taken)
    assert spent <= (1.031 if 97 <= alone <= 103 else 1.012) * min(alone, 100) * len(taken)


def test_a_way_that_is_far_behind_is_tried_twice_at_first(choice):
    taken = run(choice, 100, times(300, 100))
    assert taken.count(1) < 30


@pytest.mark.parametrize(("before", "after"), [((100, 200), (100, 70)), ((150, 100), (60, 100))])
def test_a_change_of_what_is_faster_is_found(choice, before, after):
    run(choice, 5_000, times(*before))
    taken = run(choice, 5_000, times(*after))
    better = 1 if after[0] < after[1] else 2
    assert set(taken[-100:]) == {better}


def test_now_and_then_a_slow_step_changes_nothing(choice):
    slow = itertools.cycle([1] * 200 + [100])
    taken = run(choice, 20_000, lambda threads: next(slow) * (90 if threads == 1 else 60))
    assert taken[1000:].count(1) < 1500


@pytest.mark.parametrize("epoch", [2, 3, 14, 57])
def test_a_smaller_last_batch_of_every_epoch_changes_nothing(choice, epoch):
    sizes = itertools.cycle([USUAL] * (epoch - 1) + [SHORT])
    taken = run(choice, 5_000, times(98, 100), sizes)
    assert taken[-1000:].count(1) < 100  # not faster enough, but for one that timed the smaller ones
    taken = run(choice, 5_000, times(60, 100), sizes)
    assert taken[-1000:].count(2) < 30


def test_a_trial_decides_nothing_for_other_sizes(choice):
    run(choice, 300, times(120, 100))
    run_up_to_a_trial(choice, times(120, 100))
    others = run(choice, 1_000, times(150, 100), itertools.cycle([SHORT, SHORT + 1]))
    assert others.count(1) < 100


def test_sizes_by_turns_are_not_measured_anew_all_the_time(choice):
    sizes = itertools.cycle([USUAL, USUAL + 1, USUAL, USUAL, USUAL + 1])
    taken = run(choice, 20_000, times(250, 100), sizes)
    assert taken[1000:].count(1) < 200


def test_an_interrupted_trial_is_forgotten_soon(choice):
    run(choice, 1_000, times(120, 100))
    run_up_to_a_trial(choice, times(120, 100))
    run(choice, 8, lambda threads: 10**6 if threads == 1 else 100)
    taken = run(choice, 12_000, times(60, 100))
    assert set(taken[-100:]) == {1}


def test_another_size_that_stays_becomes_usual(choice):
    run(choice, 1_000, times(50, 100))
    taken = run(choice, 2_000, times(100, 50), itertools.repeat(SHORT))
    assert taken[-500:].count(1) < 30


@pytest.mark.parametrize("bad", [0, -(10**12)])
def test_clocks_that_stand_still_or_go_back_change_nothing(choice, bad):
    run(choice, 1_000, times(150, 100))
    run(choice, 100, lambda threads: bad)
    taken = run(choice, 5_000, times(60, 100))
    assert set(taken[-100:]) == {1}


@pytest.mark.parametrize(("operations", "taken"), [(500_000, {2}), (500_001, {1, 2}), (20_000_000, {2})])
def test_steps_too_short_or_too_long_for_a_choice_take_all_threads(choice, operations, taken):
    assert set(run(choice, 500, times(10, 100), itertools.repeat(operations))) == taken
