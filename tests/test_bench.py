"""The benchmark counts operations rightly and times only contenders that compute the same."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parent.parent / "bench"
if not BENCH.is_dir():
    pytest.skip("the benchmarks are not part of the installed package", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import cases  # noqa: E402
import compare  # noqa: E402
import reference  # noqa: E402
import report  # noqa: E402
from contenders import CONTENDERS  # noqa: E402

SMALLEST = cases.CASES["1-1"]


def expected_losses(case):
    data, weights = cases.make_data(case), cases.make_weights(case)
    orders = cases.make_orders(case, case.check_epochs)
    return reference.losses(case, data, weights, case.check_epochs, orders)


def check_loss(name, case):
    session = CONTENDERS[name].prepare(case, cases.make_data(case), cases.make_weights(case), threads=1)
    session.reset()
    return session.run(case.check_epochs, cases.make_orders(case, case.check_epochs))


def test_operations_of_a_step_count_every_product_but_the_first_dx():
    case = cases.CASES["17-64-64-6"]
    forward = 2 * 64 * (17 * 64 + 64 * 64 + 64 * 6)
    dW = forward
    dX = 2 * 64 * (64 * 64 + 64 * 6)
    assert case.flops_per_step == forward + dW + dX


def test_operations_of_a_partial_batch_count_its_rows_only():
    case = dataclasses.replace(cases.CASES["17-64-64-6"], rows=96)
    assert case.steps_per_epoch == 2
    assert case.flops_per_step == case.flops_per_row * 48


def test_cases_cover_the_published_comparison_with_ten_networks():
    assert len(cases.CASES) == 10
    assert cases.CASES["1024x4"].parameter_count == 4 * 1025 * 1024


def test_data_and_weights_repeat():
    case = cases.CASES["64-100-10"]
    for first, second in zip(cases.make_data(case), cases.make_data(case), strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(cases.make_weights(case)[0][0], cases.make_weights(case)[0][0])


@pytest.mark.parametrize("name", ["1-1", "2-4-1"])
def test_training_changes_the_loss_enough_for_the_agreement_check_to_mean_something(name):
    losses = expected_losses(cases.CASES[name])
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("contender", ["numpy", "gradstep-numpy"])
def test_contender_reaches_the_loss_of_the_reference(contender):
    assert check_loss(contender, SMALLEST) == pytest.approx(expected_losses(SMALLEST)[-1], rel=1e-5)


@pytest.mark.parametrize(
    ("activation", "loss"), [("tanh", "mse"), ("relu", "cross_entropy"), ("tanh", "binary_cross_entropy")]
)
def test_numpy_by_hand_and_gradstep_agree_on_shuffled_and_partial_batches(activation, loss):
    case = cases.Case("small", (5, 8, 3), activation, loss, rows=50, batch=16, learning_rate=0.01)
    expected = expected_losses(case)[-1]
    assert check_loss("numpy", case) == pytest.approx(expected, rel=1e-4)
    assert check_loss("gradstep-numpy", case) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("case", cases.TOOLBOX.values(), ids=lambda c: c.name)
def test_every_optimizer_loss_and_layer_of_the_toolbox_has_the_same_reference(case):
    batch = 50 if case.is_full_batch else 16
    small = dataclasses.replace(case, widths=(5, 8, 4), rows=50, batch=batch)
    assert check_loss("gradstep-numpy", small) == pytest.approx(expected_losses(small)[-1], rel=1e-4)


@pytest.mark.parametrize("averaging", cases.AVERAGES)
def test_the_mean_of_the_parameters_is_that_of_the_reference(averaging):
    case = cases.Case("small", (5, 8, 3), "tanh", "mse", 50, 16, 0.01, averaging=averaging)
    data, weights, orders = cases.make_data(case), cases.make_weights(case), cases.make_orders(case, 3)
    session = CONTENDERS["gradstep-numpy"].prepare(case, data, weights, threads=1)
    session.run(3, orders)
    expected = reference.average(case, data, weights, 3, orders)
    assert cases.distance(session.average(), expected) < 1e-4 * cases.distance(expected, weights)


def test_a_case_survives_its_way_through_json():
    assert cases.Case.from_json(SMALLEST.to_json()) == SMALLEST


def run_of(**steps):
    """A run with the seconds a step of these samples, by contender."""
    return {
        "results": [
            {
                "case": "1-1",
                "contender": name,
                "threads": 1,
                "samples": [{"seconds": 2 * value, "steps": 2} for value in values],
            }
            for name, values in steps.items()
        ]
    }


def test_only_changes_beyond_noise_count():
    before = run_of(quiet=[1.0, 1.0, 1.01], noisy=[1.0, 1.2, 1.3], better=[2.0, 2.0, 2.0], gone=[1.0])
    after = run_of(quiet=[1.06, 1.06, 1.07], noisy=[1.1, 1.3, 1.4], better=[1.0, 1.0, 1.0], new=[1.0])
    found = {change.key[1]: change for change in compare.changes(before, after)}
    assert list(found) == ["quiet", "noisy", "better"]
    assert [found[name].slower for name in found] == [True, False, False]
    assert [found[name].faster for name in found] == [False, False, True]


def test_a_slow_median_beside_an_equal_fastest_sample_is_noise():
    (change,) = compare.changes(run_of(a=[1.0, 1.0, 1.0]), run_of(a=[1.0, 1.5, 1.5]))
    assert not change.slower


def test_threads_are_compared_where_both_numbers_were_measured():
    def result(case, threads, microseconds, error=None):
        return {
            "case": case,
            "contender": "gradstep-cpp",
            "threads": threads,
            "microseconds": microseconds,
            "error": error,
        }

    run = {"results": [result("a", 1, 10), result("a", 4, 4), result("b", 1, 10), result("b", 2, 6)]}
    run["results"].append(result("b", 4, 0, error="diverged"))
    assert report.most_threads(run) == 4
    assert report.threads_ratio(run, "a", "gradstep-cpp") == pytest.approx(0.4)
    assert report.threads_ratio(run, "b", "gradstep-cpp") is None
    assert report.threads_ratio(run, "a", "jax") is None
