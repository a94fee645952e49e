import numpy as np
import pytest

import oracles
from networks import make_data, make_engine, make_plan, train

pytest.importorskip("numba")
pytest.importorskip("scipy")

from numba.core.caching import CacheImpl

from gradstep.backends import numba as numba_backend
from gradstep.backends import numba_kernels as kernels
from gradstep.random import permutation


def _bits_apart(actual, truth):
    """Distance in units of the truth's last float64 place."""
    return np.max(np.abs(actual - truth) / np.spacing(np.abs(truth)))


@pytest.mark.parametrize("n", [2, 3, 1000, 4097])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**64 - 1, 2**32 - 1), (12345, 6)])
def test_shuffle_is_the_permutation_of_the_package(n, seed, epoch):
    order = numba_backend._make_order(n)
    kernels.shuffle(order, np.uint64(seed), np.uint64(epoch))
    np.testing.assert_array_equal(order.rows, permutation(n, seed, epoch))


def test_shuffle_keeps_the_order_of_equal_keys():
    keys = np.array([3, 1, 3, 1, 2, 1], np.uint64)
    rows = np.arange(6)
    kernels._insertion_sort(keys, rows)
    np.testing.assert_array_equal(rows, [1, 3, 5, 4, 0, 2])


@pytest.mark.parametrize(
    ("name", "limit", "low", "high"),
    [("exp_negative", 2, -700, 0), ("expm1_negative", 3, -100, 0), ("log1p_unit", 3, 0, 1)],
)
def test_elementary_functions_are_as_accurate_as_they_say(name, limit, low, high):
    x = np.concatenate([np.linspace(low, high, 20001), np.sign(low + high) * np.logspace(-300, 0, 301)])
    truth = {"exp_negative": np.exp, "expm1_negative": np.expm1, "log1p_unit": np.log1p}[name](x)
    function = getattr(kernels, name)
    actual = np.array([function(value) for value in x])
    assert _bits_apart(actual[truth != 0], truth[truth != 0]) <= limit
    np.testing.assert_array_equal(actual[truth == 0], 0)


def test_density_and_distribution_are_normal():
    for x in np.linspace(-6, 6, 25):
        cumulative, density = kernels.normal_distribution(x)
        assert cumulative == pytest.approx(0.5 * oracles.math.erfc(-x / 2**0.5), rel=1e-13)
        assert density == pytest.approx(np.exp(-x * x / 2) / np.sqrt(2 * np.pi), rel=1e-13)


def test_no_compilation_is_announced_once_trained(dtype):
    plan = make_plan((3, 2), dtype=dtype)
    train(make_engine(numba_backend.BACKEND, plan), make_data(plan, 5), 1)
    assert not numba_backend.needs_compilation(dtype)


def test_compilation_is_announced_when_nothing_is_cached(monkeypatch):
    fresh = kernels.jit(kernels.train.py_func)
    monkeypatch.setattr(kernels, "train", fresh)
    assert numba_backend.needs_compilation("float32")


def test_one_compiled_version_serves_all_plans_and_inputs():
    for loss in ("mse", "cross_entropy"):
        plan = make_plan((3, 4, 2), loss=loss, optimizer="adam")
        data = make_data(plan, 40)
        engine = make_engine(numba_backend.BACKEND, plan)
        train(engine, data, 1)
        data.X.flags.writeable = data.y.flags.writeable = False
        train(engine, data, 1, weight=data.weight)
    versions = [signature for signature in kernels.train.signatures if "float32" in str(signature[0])]
    assert len(versions) == 1


def test_an_unwritable_cache_is_no_error(monkeypatch):
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    uncached = kernels.entry(kernels.gradient.py_func)
    assert uncached.stats.cache_path is None
    monkeypatch.setattr(kernels, "train", uncached)
    assert "no folder" in numba_backend.BACKEND.describe()["cache"]


@pytest.mark.parametrize("rows", [1, 7, 100, 3641, 10_000])
@pytest.mark.parametrize("widths", [(3, 4, 2), (64, 100, 10), (784, 256, 10)])
def test_chunks_are_even_parts_of_the_batch(widths, rows):
    plan = make_plan(widths)
    chunk = numba_backend._chunk_rows(plan, rows)
    chunks = -(-rows // chunk)
    assert 1 <= chunk <= rows
    assert chunk - 1 <= rows / chunks


def test_a_step_allocates_nothing_that_grows_with_it():
    import tracemalloc

    plan = make_plan((50, 40, 3), optimizer="adam")
    data = make_data(plan, 640)
    engine = make_engine(numba_backend.BACKEND, plan)
    train(engine, data, 1)
    tracemalloc.start()
    train(engine, data, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    parameters = sum(value.nbytes for value in engine.parameters().values())
    order = 640 * 16 + 1025 * 8
    assert peak < 3 * parameters + order + 20_000
