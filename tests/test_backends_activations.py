"""Accuracy of every activation over the whole float32 range, as each backend computes it."""

import numpy as np
import pytest

import oracles
from gradstep.backends.numpy.activations import ACTIVATIONS, normal_tail
from networks import make_plan

LARGEST_ERROR = 8  # ULP


def _engine(backend, activation, loss="mse", dtype="float32"):
    """a = activation(1 x + 0)."""
    engine = backend.make_engine(make_plan((1, 1), loss=loss, output_activation=activation, dtype=dtype))
    engine.set_parameters({"dense_0.W": np.ones((1, 1), dtype), "dense_0.b": np.zeros(1, dtype)})
    return engine


def _predict(backend, activation, x):
    out = np.empty((len(x), 1), x.dtype)
    _engine(backend, activation, dtype=x.dtype.name).predict(np.ascontiguousarray(x[:, None]), out)
    return out[:, 0]


def _whole_float32_range():
    """Every 100,000th float32 by bit pattern, and dense samples where activations bend."""
    bits = np.arange(0, 2**32, 99_991, dtype=np.uint64).astype(np.uint32)
    everything = bits.view(np.float32)
    rng = np.random.default_rng(0)
    bends = np.concatenate([rng.uniform(-s, s, 3000) for s in (1e-3, 1.0, 12.0, 110.0)]).astype(np.float32)
    return np.concatenate([everything[np.isfinite(everything)], bends])


def _slopes(backend, activation, x):
    """Derivatives, read off dJ/dx of the mean absolute error below any output: 2^k rows scale exactly."""
    engine = _engine(backend, activation, loss="mae", dtype=x.dtype.name)
    y = np.full((len(x), 1), -1000, x.dtype)
    return engine.loss_and_gradients(x[:, None], y, None, input_gradient=True)[2][:, 0] * len(x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_error_is_small_over_the_whole_range(backend, activation):
    x = _whole_float32_range()
    truth = oracles.elementwise(oracles.ACTIVATIONS[activation], x)
    error = oracles.ulp_distance(_predict(backend, activation, x), truth)
    worst = int(np.argmax(error))
    assert error[worst] <= LARGEST_ERROR, f"{error[worst]:.1f} ULP at {x[worst]!r}"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_exact_at_zero(backend, activation):
    at_zero = _predict(backend, activation, np.zeros(1, np.float32))[0]
    assert at_zero == np.float32(oracles.ACTIVATIONS[activation](0.0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_reaches_its_limits_at_infinity(backend, activation, dtype):
    limits = np.array([oracles.ACTIVATIONS[activation](value) for value in (-np.inf, np.inf)], dtype)
    np.testing.assert_allclose(
        _predict(backend, activation, np.array([-np.inf, np.inf], dtype)), limits, rtol=1e-6
    )


def test_tanh_is_never_beyond_one_and_a_saturated_unit_has_no_slope(backend):
    x = _whole_float32_range()
    assert np.abs(_predict(backend, "tanh", x)).max() == 1
    saturated = np.array([-np.inf, -1e30, -10, 10, 1e30, np.inf], np.float32)
    np.testing.assert_array_equal(_predict(backend, "tanh", saturated)[:, None], np.sign(saturated)[:, None])
    np.testing.assert_array_equal(_slopes(backend, "tanh", saturated[1:-1]), 0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_in_gives_nan_out(backend, activation, dtype):
    x = np.array([1, np.nan, -1, 0.5], dtype)
    np.testing.assert_array_equal(np.isnan(_predict(backend, activation, x)), np.isnan(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float64_activation_keeps_its_precision(backend, activation):
    x = np.concatenate([np.linspace(-40, 40, 2001), np.logspace(-300, 300, 61), -np.logspace(-300, 300, 61)])
    truth = oracles.elementwise(oracles.ACTIVATIONS[activation], x)
    np.testing.assert_allclose(_predict(backend, activation, x), truth, rtol=2e-13, atol=1e-300)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivative_is_accurate(backend, activation, dtype):
    x = np.random.default_rng(1).uniform(-30, 30, 1024).astype(dtype)
    truth = oracles.elementwise(oracles.DERIVATIVES[activation], x)
    epsilon = np.finfo(dtype).eps
    np.testing.assert_allclose(_slopes(backend, activation, x), truth, rtol=32 * epsilon, atol=8 * epsilon)


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("leaky_relu", 0.01), ("elu", 1.0)])
def test_derivative_at_zero_is_the_one_from_below(backend, activation, slope):
    assert _slopes(backend, activation, np.zeros(1, np.float32))[0] == np.float32(slope)


def test_normal_tail_agrees_with_erfc():
    t = np.concatenate([np.linspace(0, 37, 5000), [0.0, 1e-300, 1000.0]])
    truth = oracles.elementwise(lambda value: 0.5 * oracles.math.erfc(value / 2**0.5), t)
    near = np.abs(normal_tail(t) - truth)
    # erfc sees t / sqrt(2) rounded, which alone costs t^2 / 2 units in the last place.
    assert np.all(near <= truth * (4e-15 + t * t * 2.3e-16) + 1e-300)
