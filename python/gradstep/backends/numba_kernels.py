"""Everything that Numba compiles: whole epochs of training, one step, evaluation.

Layout: inside a batch everything is feature-major, (features, rows), so that vector lanes run along
the rows however narrow a layer is; the gather of a batch transposes it. A batch goes through all
layers in chunks of rows that stay in the cache, and the chunks' gradients are added.

Letters: B rows of a chunk, K the summed dimension.

Three habits of Numba shape the code. A Python number is float64, so arithmetic on float32 arrays casts
its constants with ``array.dtype.type``; transcendental functions are float64 throughout and rounded
once when stored, but for tanh, which has a float32 form of its own. Every array that a function gets is
counted, atomically, and handed over as seven words: counts are off, and what a step calls with whole
models is inlined. And compiled code is cached until *this* file changes, so ids are spelt out here.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return"

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import overload

from gradstep.backends.base import Array
from gradstep.backends.numpy.activations import (
    LEAKY_RELU_SLOPE,
    NORMAL_TAIL,
    SELU_ALPHA,
    SELU_SCALE,
    SMOOTH_TAIL,
)
from gradstep.backends.numpy.optimizers import nadam_momenta

IDENTITY, RELU, LEAKY_RELU, TANH, SIGMOID, SOFTPLUS, ELU, SELU, GELU, SILU, MISH = range(11)
ACTIVATION_IDS = {
    "identity": IDENTITY,
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "tanh": TANH,
    "sigmoid": SIGMOID,
    "softplus": SOFTPLUS,
    "elu": ELU,
    "selu": SELU,
    "gelu": GELU,
    "silu": SILU,
    "mish": MISH,
}

(
    MSE,
    MAE,
    HUBER,
    QUANTILE,
    POISSON,
    GAMMA,
    GAUSSIAN_NLL,
    BINARY_CROSS_ENTROPY,
    BINARY_FOCAL,
    BINARY_HINGE,
    CROSS_ENTROPY,
    FOCAL,
    HINGE,
) = range(13)
LOSS_IDS = {
    "mse": MSE,
    "mae": MAE,
    "huber": HUBER,
    "quantile": QUANTILE,
    "poisson": POISSON,
    "gamma": GAMMA,
    "gaussian_nll": GAUSSIAN_NLL,
    "binary_cross_entropy": BINARY_CROSS_ENTROPY,
    "binary_focal": BINARY_FOCAL,
    "binary_hinge": BINARY_HINGE,
    "cross_entropy": CROSS_ENTROPY,
    "focal": FOCAL,
    "hinge": HINGE,
}

GRADIENT_DESCENT, SGD, ADAM, ADAMW, AMSGRAD, NADAM, RMSPROP, ADAGRAD, LION = range(9)
OPTIMIZER_IDS = {
    "gradient_descent": GRADIENT_DESCENT,
    "sgd": SGD,
    "adam": ADAM,
    "adamw": ADAMW,
    "amsgrad": AMSGRAD,
    "nadam": NADAM,
    "rmsprop": RMSPROP,
    "adagrad": ADAGRAD,
    "lion": LION,
}


class Model(NamedTuple):
    """A plan and its state as arrays; ``real`` is the plan's dtype."""

    layers: Array
    """int64 (L, 20): columns N_IN ... LOSES_BIAS below."""
    dropout: Array
    """float64 (L,): share of each layer's outputs that an update drops."""
    rates: Array
    """float64 (L,): factors of the learning rate, 0 for frozen layers; empty if all are 1."""
    epsilon: Array
    """float64 (L,), of normalisations."""
    momentum: Array
    """float64 (L,), of running statistics."""
    seed: int
    """uint64, of the dropout masks."""
    loss: int
    loss_option: Array
    """float64 (n_out,): the loss's only option for every output."""
    optimizer: int
    options: Array
    """float64: entries L2 ... SWA_START below."""
    origin: int
    """Where theta begins, in the numbers of `layers`: not at 0 for a model of one layer of several."""
    theta: Array
    """All parameters: W then b of every layer, real."""
    gradient: Array
    """dJ/dtheta, real."""
    first_moment: Array
    """Velocity of sgd, m of adam; empty if the optimizer has none, real."""
    second_moment: Array
    """v of adam, else empty, real."""
    third_moment: Array
    """v_max of amsgrad, else empty, real."""
    average: Array
    """Mean of the parameters, or empty, real."""
    statistics: Array
    """Running means and variances, layer by layer, real."""
    average_statistics: Array
    """Their mean, or empty, real."""
    batch_statistics: Array
    """The same of the last batch, float64."""
    shift: Array
    scale: Array
    """The input transform, (n_in,), real."""


(
    N_IN,
    N_OUT,
    ACTIVATION,
    WEIGHTS,
    BIASES,
    ROW,
    KIND,
    GAIN,
    SHIFT,
    INPUT,
    INPUT_ROW,
    OTHER_ROW,
    ERROR,
    INPUT_ERROR,
    OTHER_ERROR,
    KEEP,
    KEEP_OTHER,
    COLUMN,
    STATISTICS,
    LOSES_BIAS,
) = range(20)
"""Columns of `Model.layers`: widths, activation id, offsets of W (which ends where b begins) in theta, and
the layer's first feature in the chunk's buffers; kind, offsets of gain and shift in theta; number of the
layer that it takes, or -1; first feature of its input, and of a sum's other input; first feature of its error
signal and of those of its inputs in `Workspace.errors`, and whether these have contributions of later layers;
the column that an embedding replaces; offset of its statistics; whether its biases have no gradient."""

DENSE, LAYER_NORM, BATCH_NORM, SUM, SCALE, EMBEDDING = range(6)
KIND_IDS = {
    "dense": DENSE,
    "layer_norm": LAYER_NORM,
    "batch_norm": BATCH_NORM,
    "sum": SUM,
    "scale": SCALE,
    "embedding": EMBEDDING,
}

(
    L2,
    L2_PER_BATCH,
    MOMENTUM,
    NESTEROV,
    BETA1,
    BETA2,
    EPSILON,
    WEIGHT_DECAY,
    EPSILON_HAT,
    MOMENTUM_DECAY,
    DECAY,
    L1,
    CLIP_VALUE,
    CLIP_NORM,
    EMA_DECAY,
    EMA_WARMUP,
    SWA_START,
) = range(17)
"""Entries of `Model.options`."""


class Data(NamedTuple):
    """Samples; read-only arrays."""

    X: Array
    """(n, n_in), real."""
    targets: Array
    """(n, targets), real; (0, 0) for losses of labels and where nothing is compared."""
    labels: Array
    """int32 (n,) for losses of labels, else empty."""
    weight: Array
    """(n,), real; empty for equal weights."""


class Workspace(NamedTuple):
    """Buffers of one chunk of rows."""

    rows: int
    """Rows of a chunk, at most what the buffers hold."""
    inputs: Array
    """The gathered input, then every layer's output, one feature after the other, real."""
    slopes: Array
    """Derivative of every layer's activation in the same places, real."""
    errors: Array
    """Error signals: of a layer and the one below where layers are a chain, else of all, real."""
    targets: Array
    """real (rows * n_out)."""
    hat: Array
    """Normalised inputs, in the places of their layers' outputs, real; empty where layers are a chain."""
    inverse: Array
    """1 / deviation of every row or column, float64 (L, rows or widest); as hat."""
    spare: Array
    """An error signal that is to be added to another, real (rows * widest); as hat."""
    partial: Array
    """dW of a chunk that is not the batch's first, real (largest W)."""
    share: Array
    """What each row contributes to the mean, float64 (rows,)."""
    row_loss: Array
    """float64 (rows,)."""
    labels: Array
    """int32 (rows,)."""
    row_top: Array
    """Largest logit of each row, float64 (rows,)."""


class Order(NamedTuple):
    """In which order an epoch visits the rows."""

    shuffled: bool
    """Whether `rows` is drawn anew for every epoch."""
    listed: bool
    """Whether the epoch visits `rows`, not simply all rows in turn."""
    rows: Array
    """int64 (rows of an epoch,), or empty if not listed."""
    keys: Array
    """uint64 (n,), or empty if not shuffled."""
    counts: Array
    """int64 (a power of two + 1,)."""


class Snapshot(NamedTuple):
    """State at the start of an epoch, to go back to after a divergence; arrays as in `Model`."""

    theta: Array
    first_moment: Array
    second_moment: Array
    third_moment: Array
    average: Array
    statistics: Array
    average_statistics: Array


EPOCH, BATCH, STEP, EPOCH_STEP, DIVERGED = range(5)
"""Entries of the progress of a run: epoch and batch to do next, updates so far, the same at the start of the
epoch, and whether a loss or parameter became non-finite."""

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
"""Without Numba's reference counts, which took half of a tiny network's step; the option is private, but as
old as the oldest Numba that is allowed. Nothing is allocated in here, and the caller holds all arrays. Numba
then refuses functions that return one, unless they are inlined before it looks."""
jit: Callable[..., Any] = numba.njit(**_OPTIONS)
inlined: Callable[..., Any] = numba.njit(forceinline=True, **_OPTIONS)
"""For what a step calls with whole models: to pass their arrays takes longer than a tiny layer."""
view: Callable[..., Any] = numba.njit(inline="always", **_OPTIONS)
"""For what returns views."""
_INLINE: Any = {"forceinline": True, "fastmath": {"contract"}, **_OPTIONS}
elementary: Callable[..., Any] = numba.njit(**_INLINE)
"""For functions of one number: a loop becomes vector code only if nothing in it is called. Products and sums
may be fused."""

summing: Callable[..., Any] = numba.njit(fastmath={"reassoc"}, **_OPTIONS)
"""For sums over rows: vector code adds in an order of its own, always the same one."""


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and cache it on disk where a folder is writable."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # "no locator available": neither the package nor the home is writable
        return jit(function)


# --------------------------------------------------------------------------------------------------
# Elementary functions in float64, written without branches or calls so that loops over them become
# vector code.

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10
_ROUND = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to an integer, held in the low bits
_SIGNIFICAND_BITS = np.int64(52)
_EXPONENT_BIAS = np.int64(1023)
_LOWEST = -708.0  # exp is normal down to here


@elementary
def _reduce(x: float) -> tuple[float, float]:
    """2^k and exp(r) - 1 for x = k ln 2 + r with abs(r) <= ln(2) / 2, by the Taylor series."""
    shifted = x * _LOG2_E + _ROUND
    k = shifted - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    q = ((r / 6227020800.0 + 1 / 479001600.0) * r + 1 / 39916800.0) * r + 1 / 3628800.0
    q = (((q * r + 1 / 362880.0) * r + 1 / 40320.0) * r + 1 / 5040.0) * r + 1 / 720.0
    q = (((q * r + 1 / 120.0) * r + 1 / 24.0) * r + 1 / 6.0) * r + 0.5
    bits = np.int64((np.float64(shifted).view(np.int64) + _EXPONENT_BIAS) << _SIGNIFICAND_BITS)
    return bits.view(np.float64), r + r * r * q


@elementary
def exp_negative(x: float) -> float:
    """exp(x) for x <= 0, within 2 ULP of float64; 0 below -708."""
    scale, fraction = _reduce(x)
    return 0.0 if x < _LOWEST else scale + scale * fraction


@elementary
def expm1_negative(x: float) -> float:
    """exp(x) - 1 for x <= 0, within 3 ULP of float64."""
    scale, fraction = _reduce(x)
    return -1.0 if x < -50.0 else scale * fraction + (scale - 1.0)


@elementary
def log1p_unit(x: float) -> float:
    """log(1 + x) for 0 <= x <= 1, as 2 artanh(x / (2 + x)), within 3 ULP of float64."""
    s = x / (2.0 + x)
    q = s * s
    p = (((q / 33.0 + 1 / 31.0) * q + 1 / 29.0) * q + 1 / 27.0) * q + 1 / 25.0
    p = (((p * q + 1 / 23.0) * q + 1 / 21.0) * q + 1 / 19.0) * q + 1 / 17.0
    p = (((p * q + 1 / 15.0) * q + 1 / 13.0) * q + 1 / 11.0) * q + 1 / 9.0
    p = ((p * q + 1 / 7.0) * q + 1 / 5.0) * q + 1 / 3.0
    return 2.0 * s * (p * q + 1.0)


@elementary
def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    e = exp_negative(-abs(x))
    return (e if x < 0.0 else 1.0) / (1.0 + e)


# The same in float32. A number without a type would make float64 of it.
_ONE = np.float32(1)
_TANH_MOST = np.float32(9.02)  # tanh rounds to 1 from here on
_P1, _P2, _P3, _P4 = (np.float32(c) for c in (0.1338268741, 0.003497457847, 2.063582512e-5, 1.338429453e-8))
_Q1, _Q2, _Q3, _Q4 = (np.float32(c) for c in (0.4671600866, 0.02588436159, 3.288517622e-4, 7.790250677e-7))


@elementary
def _tanh_32(x: float) -> float:
    """The quotient x P(x^2) / Q(x^2) of csrc/kernels/elementary.h, within 6 ULP and never beyond 1."""
    t = x * x
    p = (((_P4 * t + _P3) * t + _P2) * t + _P1) * t + _ONE
    q = (((_Q4 * t + _Q3) * t + _Q2) * t + _Q1) * t + _ONE
    a = x * p / q
    above, below = (a > _ONE) | (x > _TANH_MOST), (a < -_ONE) | (x < -_TANH_MOST)
    return _ONE if above else (-_ONE if below else a)


@elementary
def _tanh_64(x: float) -> float:
    e = expm1_negative(-2.0 * abs(x))
    a = -e / (2.0 + e)
    return -a if x < 0.0 else a


def tanh(x: float) -> float:
    """The hyperbolic tangent, in the precision of x."""
    raise NotImplementedError  # compiled below


@overload(tanh, jit_options=_INLINE, strict=False)
def _tanh_of(x: Any) -> Callable[[float], float]:
    return (lambda x: _tanh_32(x)) if x == numba.float32 else (lambda x: _tanh_64(x))


_C = NORMAL_TAIL


@elementary
def normal_distribution(x: float) -> tuple[float, float]:
    """Phi(x) and its density; the tail is that of `gradstep.backends.numpy.activations.normal_tail`."""
    t = SMOOTH_TAIL if abs(x) > SMOOTH_TAIL else abs(x)
    high = (t * 256.0 + _ROUND - _ROUND) / 256.0
    e = exp_negative(-0.5 * high * high) * exp_negative(-0.5 * (t - high) * (t + high))
    u = (t - 5.0) / (t + 5.0)
    q = ((((_C[0] * u + _C[1]) * u + _C[2]) * u + _C[3]) * u + _C[4]) * u + _C[5]
    q = (((((q * u + _C[6]) * u + _C[7]) * u + _C[8]) * u + _C[9]) * u + _C[10]) * u + _C[11]
    q = (((((q * u + _C[12]) * u + _C[13]) * u + _C[14]) * u + _C[15]) * u + _C[16]) * u + _C[17]
    q = ((((q * u + _C[18]) * u + _C[19]) * u + _C[20]) * u + _C[21]) * u + _C[22]
    tail = e * q / (1.0 + t)
    return tail if x < 0.0 else 1.0 - tail, e * 0.3989422804014327


# --------------------------------------------------------------------------------------------------
# Random numbers: `gradstep.random.philox`.

DROPOUT_STREAM = 1
_U32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_INCREMENT_0, _INCREMENT_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@jit
def philox(c0: int, c1: int, c2: int, c3: int, seed: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of four 32-bit counter words; all numbers uint64."""
    k0, k1 = seed & _LOW, seed >> _U32
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (p1 >> _U32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _U32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _INCREMENT_0) & _LOW, (k1 + _INCREMENT_1) & _LOW
    return c0, c1, c2, c3


# --------------------------------------------------------------------------------------------------
# Activations: replace z by a = act(z) and write da/dz, both flat.


@jit
def _activate_relu(z: Array, slope: Array) -> None:
    one, zero = z.dtype.type(1), z.dtype.type(0)
    for i in range(z.size):
        v = z[i]
        slope[i] = one if v > zero else zero
        z[i] = zero if v <= zero else v


@jit
def _activate_leaky_relu(z: Array, slope: Array) -> None:
    one, zero, low = z.dtype.type(1), z.dtype.type(0), z.dtype.type(LEAKY_RELU_SLOPE)
    for i in range(z.size):
        v = z[i]
        slope[i] = one if v > zero else low
        z[i] = low * v if v <= zero else v


@jit
def _activate_tanh(z: Array, slope: Array) -> None:
    one = z.dtype.type(1)
    for i in range(z.size):
        a = tanh(z[i])
        z[i] = a
        slope[i] = (one - a) * (one + a)


@jit
def _activate_sigmoid(z: Array, slope: Array) -> None:
    for i in range(z.size):
        a = sigmoid(float(z[i]))
        z[i] = a
        slope[i] = a * (1.0 - a)


@jit
def _activate_softplus(z: Array, slope: Array) -> None:
    for i in range(z.size):
        v = float(z[i])
        e = exp_negative(-abs(v))
        z[i] = (v if v > 0.0 else 0.0) + log1p_unit(e)
        slope[i] = (e if v < 0.0 else 1.0) / (1.0 + e)


@jit
def _activate_elu(scale: float, alpha: float, z: Array, slope: Array) -> None:
    """Elu, and selu with its scale."""
    for i in range(z.size):
        v = float(z[i])
        e = expm1_negative(0.0 if v > 0.0 else v)
        z[i] = scale * (v if v > 0.0 else alpha * e)
        slope[i] = scale * (1.0 if v > 0.0 else alpha * (e + 1.0))


@jit
def _activate_gelu(z: Array, slope: Array) -> None:
    for i in range(z.size):
        v = float(z[i])
        cumulative, density = normal_distribution(v)
        z[i] = (-SMOOTH_TAIL if v < -SMOOTH_TAIL else v) * cumulative
        slope[i] = cumulative + (0.0 if abs(v) > SMOOTH_TAIL else v) * density


@jit
def _activate_silu(z: Array, slope: Array) -> None:
    for i in range(z.size):
        v = -SMOOTH_TAIL if float(z[i]) < -SMOOTH_TAIL else float(z[i])
        e = exp_negative(-abs(v))
        s = (e if v < 0.0 else 1.0) / (1.0 + e)
        rest = (1.0 if v < 0.0 else e) / (1.0 + e)
        z[i] = v * s
        slope[i] = s * (1.0 + (SMOOTH_TAIL if v > SMOOTH_TAIL else v) * rest)


@jit
def _activate_mish(z: Array, slope: Array) -> None:
    """With u = exp(z): tanh(log(1 + u)) = u (u + 2) / (u (u + 2) + 2)."""
    for i in range(z.size):
        v = -SMOOTH_TAIL if float(z[i]) < -SMOOTH_TAIL else float(z[i])
        e = exp_negative(-abs(v))
        numerator = e * (e + 2.0) if v < 0.0 else 1.0 + 2.0 * e
        rest = 2.0 if v < 0.0 else 2.0 * e * e
        t = numerator / (numerator + rest)
        s = (e if v < 0.0 else 1.0) / (1.0 + e)
        z[i] = v * t
        slope[i] = t + (SMOOTH_TAIL if v > SMOOTH_TAIL else v) * s * (1.0 - t * t)


@inlined
def activate(kind: int, z: Array, slope: Array) -> None:
    """Replace z by act(z) and write act'(z) to slope; the identity leaves both alone."""
    if kind == RELU:
        _activate_relu(z, slope)
    elif kind == LEAKY_RELU:
        _activate_leaky_relu(z, slope)
    elif kind == TANH:
        _activate_tanh(z, slope)
    elif kind == SIGMOID:
        _activate_sigmoid(z, slope)
    elif kind == SOFTPLUS:
        _activate_softplus(z, slope)
    elif kind == ELU:
        _activate_elu(1.0, 1.0, z, slope)
    elif kind == SELU:
        _activate_elu(SELU_SCALE, SELU_ALPHA, z, slope)
    elif kind == GELU:
        _activate_gelu(z, slope)
    elif kind == SILU:
        _activate_silu(z, slope)
    elif kind == MISH:
        _activate_mish(z, slope)


# --------------------------------------------------------------------------------------------------
# Losses of a chunk: p is (n_out, B) and its targets as many rows, or half as many for gaussian_nll; the
# gradient dJ/dp is written, (n_out, B). Returns the chunk's part of the mean loss.


@jit
def _squared_error(p: Array, y: Array, share: Array, row_loss: Array, g: Array) -> None:
    n_out, B = p.shape
    part = 1.0 / n_out
    for j in range(n_out):
        for r in range(B):
            d = float(p[j, r]) - float(y[j, r])
            row_loss[r] += d * d * part
            g[j, r] = 2.0 * d * share[r] * part


@jit
def _regression_loss(
    kind: int, option: Array, p: Array, y: Array, share: Array, row_loss: Array, g: Array
) -> None:
    n_out, B = p.shape
    for j in range(n_out):
        delta = option[j]
        for r in range(B):
            d = float(p[j, r]) - float(y[j, r])
            if kind == MAE:
                value, slope = abs(d), (1.0 if d > 0.0 else 0.0) - (1.0 if d < 0.0 else 0.0)
            elif kind == QUANTILE:
                slope = 1.0 - delta if d > 0.0 else (-delta if d < 0.0 else 0.0)
                value = d * slope
            else:
                slope = -delta if d < -delta else (delta if d > delta else d)
                value = slope * (d - 0.5 * slope)
            row_loss[r] += value / n_out
            g[j, r] = slope * share[r] / n_out


@jit
def _binary_cross_entropy(option: Array, z: Array, y: Array, share: Array, row_loss: Array, g: Array) -> None:
    n_out, B = z.shape
    for j in range(n_out):
        smoothing = option[j]
        for r in range(B):
            v, t = float(z[j, r]), float(y[j, r])
            t += smoothing * (0.5 - t)
            e = exp_negative(-abs(v))
            row_loss[r] += (v if v > 0.0 else 0.0) - v * t + log1p_unit(e)
            g[j, r] = ((e if v < 0.0 else 1.0) / (1.0 + e) - t) * share[r]


@jit
def _poisson(z: Array, y: Array, share: Array, row_loss: Array, g: Array) -> None:
    n_out, B = z.shape
    for j in range(n_out):
        for r in range(B):
            v, t = float(z[j, r]), float(y[j, r])
            rate = math.exp(v)
            row_loss[r] += rate - t * v + (t * (math.log(t) - 1.0) if t > 0.0 else 0.0)
            g[j, r] = (rate - t) * share[r]


@jit
def _gamma(z: Array, y: Array, share: Array, row_loss: Array, g: Array) -> None:
    n_out, B = z.shape
    for j in range(n_out):
        for r in range(B):
            v, t = float(z[j, r]), float(y[j, r])
            ratio = t * math.exp(-v)
            row_loss[r] += v - math.log(t) + ratio - 1.0
            g[j, r] = (1.0 - ratio) * share[r]


@jit
def _gaussian_nll(option: Array, z: Array, y: Array, share: Array, row_loss: Array, g: Array) -> None:
    targets, B = y.shape
    log_floor = math.log(option[0])
    for j in range(targets):
        for r in range(B):
            s, d = float(z[targets + j, r]), float(z[j, r]) - float(y[j, r])
            above = s - log_floor
            log_v = (s if above > 0.0 else log_floor) + log1p_unit(exp_negative(-abs(above)))
            precision = math.exp(-log_v)
            square = d * d * precision
            row_loss[r] += 0.5 * (log_v + square)
            g[j, r] = d * precision * share[r]
            g[targets + j, r] = 0.5 * (1.0 - square) * sigmoid(above) * share[r]


@jit
def _binary_focal(option: Array, z: Array, y: Array, share: Array, row_loss: Array, g: Array) -> None:
    n_out, B = z.shape
    for j in range(n_out):
        gamma = option[j]
        for r in range(B):
            v, t = float(z[j, r]), float(y[j, r])
            e = exp_negative(-abs(v))
            tail, inverse = log1p_unit(e), 1.0 / (1.0 + e)
            log_p, log_q = (v if v < 0.0 else 0.0) - tail, (-v if v > 0.0 else 0.0) - tail
            p, q = (e if v < 0.0 else 1.0) * inverse, (1.0 if v < 0.0 else e) * inverse
            of_one, of_zero = t * math.exp(gamma * log_q), (1.0 - t) * math.exp(gamma * log_p)
            row_loss[r] -= of_one * log_p + of_zero * log_q
            slope = of_zero * (p - gamma * q * log_q) - of_one * (q - gamma * p * log_p)
            g[j, r] = slope * share[r]


@jit
def _binary_hinge(z: Array, y: Array, share: Array, row_loss: Array, g: Array) -> None:
    n_out, B = z.shape
    for j in range(n_out):
        for r in range(B):
            t = float(y[j, r])
            lack = 1.0 - t * float(z[j, r])
            row_loss[r] += 0.0 if lack <= 0.0 else lack
            g[j, r] = -t * share[r] if lack > 0.0 else 0.0


@jit
def softmax(z: Array, top: Array, total: Array, p: Array) -> None:
    """Write softmax(z) over the features to p, the largest logit to top, and sum(exp(z - top)) to total."""
    n_out, B = z.shape
    for r in range(B):
        top[r] = z[0, r]
        total[r] = 0.0
    for j in range(1, n_out):
        for r in range(B):
            top[r] = z[j, r] if z[j, r] > top[r] else top[r]
    for j in range(n_out):
        for r in range(B):
            e = exp_negative(float(z[j, r]) - top[r])
            p[j, r] = e
            total[r] += e
    for j in range(n_out):
        for r in range(B):
            p[j, r] /= total[r]


@jit
def _cross_entropy(option: Array, z: Array, labels: Array, share: Array, work: Workspace, g: Array) -> None:
    n_out, B = z.shape
    smoothing = option[0]
    rest = smoothing / n_out
    softmax(z, work.row_top, work.row_loss, g)
    for r in range(B):
        label = labels[r]
        chosen = (1.0 - smoothing) * (float(z[label, r]) - work.row_top[r])
        work.row_loss[r] = math.log(work.row_loss[r]) - chosen
        g[label, r] -= z.dtype.type(1.0 - smoothing)
    if smoothing > 0.0:
        for j in range(n_out):
            for r in range(B):
                work.row_loss[r] -= rest * (float(z[j, r]) - work.row_top[r])
                g[j, r] -= z.dtype.type(rest)
    for j in range(n_out):
        for r in range(B):
            g[j, r] *= share[r]


@jit
def _focal(option: Array, z: Array, labels: Array, share: Array, work: Workspace, g: Array) -> None:
    n_out, B = z.shape
    gamma, least = option[0], float(np.finfo(z.dtype).tiny)
    for r in range(B):
        label, top = labels[r], float(z[0, r])
        for j in range(1, n_out):
            top = float(z[j, r]) if z[j, r] > top else top
        others = 0.0
        for j in range(n_out):
            others += 0.0 if j == label else exp_negative(float(z[j, r]) - top)
        chosen = float(z[label, r]) - top
        mine = exp_negative(chosen)
        total = others + mine
        p, u = mine / total, others / total
        cost = math.log1p(others / mine) if others <= mine else math.log(total) - chosen
        power = max(u, least) ** gamma
        slope = power * (u + gamma * p * cost)
        work.row_loss[r] = power * cost
        for j in range(n_out):
            part = exp_negative(float(z[j, r]) - top) / max(others, least)
            g[j, r] = (-slope if j == label else slope * part) * share[r]


@jit
def _hinge(z: Array, labels: Array, share: Array, work: Workspace, g: Array) -> None:
    n_out, B = z.shape
    for r in range(B):
        label, best, bad = labels[r], -1, 0.0
        for j in range(n_out):
            bad += float(z[j, r]) - float(z[j, r])
            if j != label and (best < 0 or z[j, r] > z[best, r]):
                best = j
        lack = 1.0 + float(z[best, r]) - float(z[label, r]) + bad  # NaN in any output is NaN
        work.row_loss[r] = 0.0 if lack <= 0.0 else lack
        for j in range(n_out):
            sign = -1.0 if j == label else (1.0 if j == best else 0.0)
            g[j, r] = sign * share[r] if lack > 0.0 else 0.0


@inlined
def loss_and_delta(model: Model, work: Workspace, p: Array, y: Array, labels: Array, g: Array) -> float:
    """Part of the mean loss that the chunk's rows contribute; its gradient goes to g."""
    B = p.shape[1]
    share, row_loss = work.share, work.row_loss
    option = model.loss_option
    for r in range(B):
        row_loss[r] = 0.0
    if model.loss == CROSS_ENTROPY:
        _cross_entropy(option, p, labels, share, work, g)
    elif model.loss == FOCAL:
        _focal(option, p, labels, share, work, g)
    elif model.loss == HINGE:
        _hinge(p, labels, share, work, g)
    elif model.loss == MSE:
        _squared_error(p, y, share, row_loss, g)
    elif model.loss == BINARY_CROSS_ENTROPY:
        _binary_cross_entropy(option, p, y, share, row_loss, g)
    elif model.loss == BINARY_FOCAL:
        _binary_focal(option, p, y, share, row_loss, g)
    elif model.loss == BINARY_HINGE:
        _binary_hinge(p, y, share, row_loss, g)
    elif model.loss == POISSON:
        _poisson(p, y, share, row_loss, g)
    elif model.loss == GAMMA:
        _gamma(p, y, share, row_loss, g)
    elif model.loss == GAUSSIAN_NLL:
        _gaussian_nll(option, p, y, share, row_loss, g)
    else:
        _regression_loss(model.loss, option, p, y, share, row_loss, g)
    total = 0.0
    for r in range(B):
        total += share[r] * row_loss[r]
    return total


# --------------------------------------------------------------------------------------------------
# Products. All three have the form z[j, r] += sum over k of A[k, j] x[k, r].

_NARROW = 32
"""Outputs below which a plain loop beats the BLAS library, whose tiles would be mostly empty."""
_SHORT = 8
"""Summed dimension below which the same holds."""


@numba.njit(**{**_OPTIONS, "_nrt": True})
def _dot(a: Array, b: Array, out: Array) -> None:
    """The BLAS library; `np.dot` returns an array."""
    np.dot(a, b, out)


@jit
def _accumulate(A: Array, x: Array, z: Array) -> None:
    """Add A^T x to z (J, B), with A (K, J) and x (K, B), four terms at a time."""
    K, J = A.shape
    B = x.shape[1]
    for j in range(J):
        k = 0
        while k + 4 <= K:
            a0, a1, a2, a3 = A[k, j], A[k + 1, j], A[k + 2, j], A[k + 3, j]
            for r in range(B):
                z[j, r] += (a0 * x[k, r] + a1 * x[k + 1, r]) + (a2 * x[k + 2, r] + a3 * x[k + 3, r])
            k += 4
        while k < K:
            a0 = A[k, j]
            for r in range(B):
                z[j, r] += a0 * x[k, r]
            k += 1


@inlined
def affine(W: Array, b: Array, x: Array, z: Array) -> None:
    """Write W^T x + b to z, with W (n_in, n_out), b (n_out,), x (n_in, B), z (n_out, B)."""
    n_in, n_out = W.shape
    B = x.shape[1]
    if n_out < _NARROW or n_in < _SHORT:
        for j in range(n_out):
            for r in range(B):
                z[j, r] = b[j]
        _accumulate(W, x, z)
    else:
        _dot(W.T, x, z)
        for j in range(n_out):
            for r in range(B):
                z[j, r] += b[j]


@jit
def delta_through(W: Array, delta: Array, below: Array) -> None:
    """Write W delta to below, with W (n_in, n_out), delta (n_out, B), below (n_in, B)."""
    n_in, n_out = W.shape
    if n_in < _NARROW or n_out < _SHORT:
        for i in range(n_in):
            for r in range(delta.shape[1]):
                below[i, r] = 0.0
        _accumulate(W.T, delta, below)
    else:
        _dot(W, delta, below)


_FEW = 32
"""Inputs or outputs below which plain loops beat the BLAS library at weight gradients."""


@summing
def _sum(values: Array) -> float:
    """Sum in float64."""
    total = 0.0
    for i in range(values.size):
        total += values[i]
    return total


@summing
def _few_weight_gradients(x: Array, delta: Array, dW: Array) -> None:
    """Write x delta^T to dW, two inputs and two outputs at a time: a vector is loaded for two products.

    The last of an odd number is its own partner: the same sum is written twice.
    """
    n_in, n_out = dW.shape
    zero = x.dtype.type(0)
    for i in range(0, n_in, 2):
        for j in range(0, n_out, 2):
            next_i, next_j = min(i + 1, n_in - 1), min(j + 1, n_out - 1)
            s00 = s01 = s10 = s11 = zero
            for r in range(x.shape[1]):
                s00 += x[i, r] * delta[j, r]
                s01 += x[i, r] * delta[next_j, r]
                s10 += x[next_i, r] * delta[j, r]
                s11 += x[next_i, r] * delta[next_j, r]
            dW[i, j], dW[i, next_j], dW[next_i, j], dW[next_i, next_j] = s00, s01, s10, s11


@inlined
def add_weight_gradient(x: Array, delta: Array, first: bool, partial: Array, dW: Array, db: Array) -> None:
    """Write or add x delta^T to dW and the row sums of delta to db, with x (n_in, B), delta (n_out, B)."""
    target = dW if first else partial
    if min(dW.shape) < _FEW:
        _few_weight_gradients(x, delta, target)
    else:
        _dot(x, delta.T, target)
    if not first:
        for i in range(dW.shape[0]):
            for j in range(dW.shape[1]):
                dW[i, j] += partial[i, j]
    for j in range(delta.shape[0]):
        db[j] = _sum(delta[j]) + (0.0 if first else db[j])


# --------------------------------------------------------------------------------------------------
# A chunk of rows forward and backward.


@view
def weights_of(model: Model, flat: Array, layer: int) -> tuple[Array, Array]:
    """Views of W (n_in, n_out) and b (n_out,) of a layer in a flat array laid out like theta."""
    n_in, n_out = model.layers[layer, N_IN], model.layers[layer, N_OUT]
    w, b = model.layers[layer, WEIGHTS], model.layers[layer, BIASES]
    return flat[w : w + n_in * n_out].reshape((n_in, n_out)), flat[b : b + n_out]


@view
def rows_of(buffer: Array, work: Workspace, first_feature: int, features: int, B: int) -> Array:
    """View of a chunk's features (features, B) in a buffer."""
    start = first_feature * work.rows
    return buffer[start : start + features * B].reshape((features, B))


@inlined
def gather(model: Model, data: Data, order: Order, start: int, B: int, x: Array) -> None:
    """Transpose B rows of the epoch's order into x (n_in, B), shifted and scaled."""
    for block in range(0, B, 16):
        end = min(block + 16, B)
        for f in range(x.shape[0]):
            shift, scale = model.shift[f], model.scale[f]
            if order.listed:
                for r in range(block, end):
                    x[f, r] = (data.X[order.rows[start + r], f] - shift) * scale
            else:
                for r in range(block, end):
                    x[f, r] = (data.X[start + r, f] - shift) * scale


@inlined
def gather_targets(data: Data, order: Order, start: int, B: int, y: Array, labels: Array) -> None:
    """Copy the chunk's targets to y (targets, B), or its labels."""
    if data.labels.size > 0:
        for r in range(B):
            labels[r] = data.labels[order.rows[start + r] if order.listed else start + r]
        return
    for j in range(y.shape[0]):
        if order.listed:
            for r in range(B):
                y[j, r] = data.targets[order.rows[start + r], j]
        else:
            for r in range(B):
                y[j, r] = data.targets[start + r, j]


@inlined
def batch_weight(data: Data, order: Order, start: int, stop: int) -> float:
    """Sum of the sample weights of a range of the epoch's order."""
    if data.weight.size == 0:
        return float(stop - start)
    total = 0.0
    for position in range(start, stop):
        total += data.weight[order.rows[position] if order.listed else position]
    return total


@inlined
def gather_shares(data: Data, order: Order, start: int, B: int, total_weight: float, share: Array) -> None:
    """Write what each of the chunk's rows contributes to the batch's mean; 0 if all weights are 0."""
    for r in range(B):
        share[r] = 1.0
    if data.weight.size > 0:
        for r in range(B):
            share[r] = data.weight[order.rows[start + r] if order.listed else start + r]
    factor = 1.0 / total_weight if total_weight > 0.0 else 0.0
    for r in range(B):
        share[r] *= factor


@jit
def drop(model: Model, layer: int, step: int, first: int, a: Array, slope: Array) -> None:
    """`gradstep.random.dropout_mask` on a (n_out, B) and its slope; the chunk begins at row `first`."""
    rate = model.dropout[layer]
    threshold, factor = np.uint64(rate * 4294967296.0), a.dtype.type(1.0 / (1.0 - rate))
    stream = np.uint64(DROPOUT_STREAM + layer)
    nothing = a.dtype.type(0)
    for j in range(a.shape[0]):
        for group in range(first // 4, (first + a.shape[1] + 3) // 4):
            words = philox(np.uint64(j), np.uint64(group), np.uint64(step) & _LOW, stream, model.seed)
            for w in range(4):
                r = 4 * group + w - first
                if 0 <= r < a.shape[1]:
                    kept = factor if words[w] >= threshold else nothing
                    a[j, r] *= kept
                    slope[j, r] *= kept


@jit
def _scale_and_shift(model: Model, layer: int, x: Array, z: Array) -> None:
    """Write x gain + shift to z; a scale has no shift."""
    gain, shift = model.layers[layer, GAIN], model.layers[layer, SHIFT]
    shifts = model.layers[layer, KIND] != SCALE
    for j in range(x.shape[0]):
        factor = model.theta[gain + j]
        term = model.theta[shift + j] if shifts else factor - factor
        for r in range(x.shape[1]):
            z[j, r] = x[j, r] * factor + term


@jit
def _normalise_rows(epsilon: float, x: Array, hat: Array, inverse: Array) -> None:
    """Ba, Kiros and Hinton 2016."""
    n, B = x.shape
    for r in range(B):
        total = squares = 0.0
        for j in range(n):
            total += x[j, r]
        mean = total / n
        for j in range(n):
            squares += (x[j, r] - mean) ** 2
        inverse[r] = 1.0 / math.sqrt(squares / n + epsilon)
        for j in range(n):
            hat[j, r] = (x[j, r] - mean) * inverse[r]


@jit
def _normalise_columns(
    epsilon: float, share: Array, x: Array, hat: Array, means: Array, variances: Array, inverse: Array
) -> None:
    """Ioffe and Szegedy 2015."""
    n, B = x.shape
    for j in range(n):
        mean = variance = 0.0
        for r in range(B):
            mean += share[r] * x[j, r]
        for r in range(B):
            variance += share[r] * (x[j, r] - mean) ** 2
        means[j], variances[j], inverse[j] = mean, variance, 1.0 / math.sqrt(variance + epsilon)
        for r in range(B):
            hat[j, r] = (x[j, r] - mean) * inverse[j]


@jit
def _vector_of(model: Model, layer: int, category: float, size: int) -> int:
    """Where a category's vector begins; they were checked, but a slip must not read beyond the table."""
    first, end = model.layers[layer, WEIGHTS], model.layers[layer, BIASES]
    return min(max(first + np.int64(category) * size, first), end - size)


@jit
def _embed(model: Model, layer: int, x: Array, z: Array) -> None:
    column, others = model.layers[layer, COLUMN], x.shape[0] - 1
    size = z.shape[0] - others
    for j in range(others):
        for r in range(x.shape[1]):
            z[j, r] = x[j + 1 if j >= column else j, r]
    for r in range(x.shape[1]):
        vector = _vector_of(model, layer, x[column, r], size)
        for c in range(size):
            z[others + c, r] = model.theta[vector + c]


@jit
def forward_other(model: Model, work: Workspace, layer: int, batch: bool, x: Array, z: Array) -> None:
    """Pre-activation of a layer that is not dense; a batch is normalised by its own statistics."""
    kind, n_out, B = model.layers[layer, KIND], z.shape[0], z.shape[1]
    if kind == EMBEDDING:
        _embed(model, layer, x, z)
        return
    if kind == SUM:
        other = rows_of(work.inputs, work, model.layers[layer, OTHER_ROW], n_out, B)
        for j in range(n_out):
            for r in range(B):
                z[j, r] = x[j, r] + other[j, r]
        return
    if kind == LAYER_NORM:
        hat = rows_of(work.hat, work, model.layers[layer, ROW], n_out, B)
        _normalise_rows(model.epsilon[layer], x, hat, work.inverse[layer])
        x = hat
    elif kind == BATCH_NORM:
        hat = rows_of(work.hat, work, model.layers[layer, ROW], n_out, B)
        at, inverse = model.layers[layer, STATISTICS], work.inverse[layer]
        if batch:
            means, variances = model.batch_statistics[at:], model.batch_statistics[at + n_out :]
            _normalise_columns(model.epsilon[layer], work.share, x, hat, means, variances, inverse)
        else:
            for j in range(n_out):
                inverse[j] = 1.0 / math.sqrt(model.statistics[at + n_out + j] + model.epsilon[layer])
                for r in range(B):
                    hat[j, r] = (x[j, r] - model.statistics[at + j]) * inverse[j]
        x = hat
    _scale_and_shift(model, layer, x, z)


@inlined
def forward(model: Model, work: Workspace, B: int, step: int, first: int, batch: bool) -> None:
    """All layers' outputs and slopes of the gathered chunk.

    Units are dropped for the update after ``step`` others, if that is not negative; the chunk begins at row
    ``first`` of the batch. Batch normalisation takes the chunk for the batch, or else the running statistics.
    """
    for layer in range(model.layers.shape[0]):
        n_out, row = model.layers[layer, N_OUT], model.layers[layer, ROW]
        x = rows_of(work.inputs, work, model.layers[layer, INPUT_ROW], model.layers[layer, N_IN], B)
        z = rows_of(work.inputs, work, row, n_out, B)
        if model.layers[layer, KIND] == DENSE:
            W, b = weights_of(model, model.theta, layer)
            affine(W, b, x, z)
        else:
            forward_other(model, work, layer, batch, x, z)
        slope = rows_of(work.slopes, work, row, n_out, B)
        activate(model.layers[layer, ACTIVATION], z.reshape(n_out * B), slope.reshape(n_out * B))
        if step >= 0 and model.dropout[layer] > 0.0:
            if model.layers[layer, ACTIVATION] == IDENTITY:
                slope[:] = slope.dtype.type(1)
            drop(model, layer, step, first, z, slope)


@jit
def _multiply(delta: Array, slope: Array) -> None:
    for j in range(delta.shape[0]):
        for r in range(delta.shape[1]):
            delta[j, r] *= slope[j, r]


@jit
def _pass_on(source: Array, keep: bool, target: Array) -> None:
    """Write source to target, or add it."""
    for j in range(source.shape[0]):
        for r in range(source.shape[1]):
            target[j, r] = source[j, r] + target[j, r] if keep else source[j, r]


@jit
def _gain_gradients(model: Model, layer: int, first: bool, x: Array, delta: Array) -> None:
    gain, shift = model.layers[layer, GAIN], model.layers[layer, SHIFT]
    shifts = model.layers[layer, KIND] != SCALE
    for j in range(x.shape[0]):
        total = 0.0
        for r in range(x.shape[1]):
            total += delta[j, r] * x[j, r]
        model.gradient[gain + j] = total + (0.0 if first else model.gradient[gain + j])
        if shifts:
            model.gradient[shift + j] = _sum(delta[j]) + (0.0 if first else model.gradient[shift + j])


@jit
def _back_through_rows(gain: Array, hat: Array, inverse: Array, delta: Array, below: Array) -> None:
    n, B = hat.shape
    for r in range(B):
        total = product = 0.0
        for j in range(n):
            g = float(delta[j, r]) * float(gain[j])
            total += g
            product += g * hat[j, r]
        for j in range(n):
            g = float(delta[j, r]) * float(gain[j])
            below[j, r] = (g - total / n - hat[j, r] * (product / n)) * inverse[r]


@jit
def _back_through_columns(
    gain: Array, share: Array, hat: Array, inverse: Array, delta: Array, below: Array
) -> None:
    n, B = hat.shape
    for j in range(n):
        total = product = 0.0
        for r in range(B):
            total += delta[j, r]
            product += delta[j, r] * hat[j, r]
        for r in range(B):
            g = delta[j, r] - share[r] * (total + hat[j, r] * product)
            below[j, r] = g * gain[j] * inverse[j]


@jit
def _back_through_embedding(model: Model, layer: int, first: bool, x: Array, delta: Array) -> None:
    """The gradient of the table."""
    column, others = model.layers[layer, COLUMN], x.shape[0] - 1
    size = delta.shape[0] - others
    if first:
        for i in range(model.layers[layer, WEIGHTS], model.layers[layer, BIASES]):
            model.gradient[i] = 0.0
    for r in range(x.shape[1]):
        vector = _vector_of(model, layer, x[column, r], size)
        for c in range(size):
            model.gradient[vector + c] += delta[others + c, r]


@jit
def backward_other(
    model: Model, work: Workspace, layer: int, first: bool, x: Array, delta: Array, below: Array
) -> None:
    """Gradients of a layer that is not dense; the error signal of its input goes to below, overwriting it."""
    kind, B = model.layers[layer, KIND], delta.shape[1]
    n_out, inverse = delta.shape[0], work.inverse[layer]
    if kind == EMBEDDING:
        _back_through_embedding(model, layer, first, x, delta)
        column = model.layers[layer, COLUMN]
        for j in range(below.shape[0]):
            for r in range(B):
                below[j, r] = delta[j - 1 if j > column else j, r] if j != column else 0.0
    elif kind == SUM:
        _pass_on(delta, False, below)
    else:
        gain = model.theta[model.layers[layer, GAIN] : model.layers[layer, GAIN] + n_out]
        if kind == SCALE:
            _gain_gradients(model, layer, first, x, delta)
            for j in range(n_out):
                for r in range(B):
                    below[j, r] = delta[j, r] * gain[j]
            return
        hat = rows_of(work.hat, work, model.layers[layer, ROW], n_out, B)
        _gain_gradients(model, layer, first, hat, delta)
        if kind == LAYER_NORM:
            _back_through_rows(gain, hat, inverse, delta, below)
        else:
            _back_through_columns(gain, work.share, hat, inverse, delta, below)


@inlined
def backward(model: Model, work: Workspace, B: int, first: bool, dropped: bool, input_gradient: bool) -> None:
    """Error signals and gradients of a chunk, from dJ/dp in the last layer's place in ``work.errors``.

    Gradients overwrite those of the model if the chunk is the batch's first, else add to them. With
    input_gradient, dJ/dx (n_in, B) of the gathered chunk is left in the first layer's INPUT_ERROR.
    """
    for layer in range(model.layers.shape[0] - 1, -1, -1):
        n_in, n_out = model.layers[layer, N_IN], model.layers[layer, N_OUT]
        delta = rows_of(work.errors, work, model.layers[layer, ERROR], n_out, B)
        if model.layers[layer, ACTIVATION] != IDENTITY or (dropped and model.dropout[layer] > 0.0):
            slope = rows_of(work.slopes, work, model.layers[layer, ROW], n_out, B)
            _multiply(delta, slope)
        x = rows_of(work.inputs, work, model.layers[layer, INPUT_ROW], n_in, B)
        kind, keep = model.layers[layer, KIND], model.layers[layer, KEEP] != 0
        target = rows_of(work.errors, work, model.layers[layer, INPUT_ERROR], n_in, B)
        below = rows_of(work.spare, work, 0, n_in, B) if keep else target
        if kind == DENSE:
            dW, db = weights_of(model, model.gradient, layer)
            partial = work.partial[: n_in * n_out].reshape((n_in, n_out))
            add_weight_gradient(x, delta, first, partial, dW, db)
            if model.layers[layer, LOSES_BIAS] != 0:
                db[:] = 0
            if model.layers[layer, INPUT] >= 0 or input_gradient:
                W, _ = weights_of(model, model.theta, layer)
                delta_through(W, delta, below)
        else:
            backward_other(model, work, layer, first, x, delta, below)
            if kind == SUM:
                other = rows_of(work.errors, work, model.layers[layer, OTHER_ERROR], n_in, B)
                _pass_on(delta, model.layers[layer, KEEP_OTHER] != 0, other)
        if keep:
            _pass_on(below, True, target)


@inlined
def move_statistics(model: Model, data: Data, order: Order, start: int, stop: int) -> None:
    """Move the running statistics towards those of the batch; one row says nothing of the variance."""
    total = batch_weight(data, order, start, stop)
    if model.statistics.size == 0 or not total > 0.0:
        return
    squares = 0.0
    for position in range(start, stop):
        row = order.rows[position] if order.listed else position
        squares += (float(data.weight[row] if data.weight.size > 0 else 1.0) / total) ** 2
    for layer in range(model.layers.shape[0]):
        if model.layers[layer, KIND] == BATCH_NORM:
            at, n, part = model.layers[layer, STATISTICS], model.layers[layer, N_OUT], model.momentum[layer]
            for i in range(at, at + n):
                model.statistics[i] += part * (model.batch_statistics[i] - model.statistics[i])
            for i in range(at + n, at + 2 * n if squares < 1.0 else 0):
                variance = model.batch_statistics[i] / (1.0 - squares)
                model.statistics[i] += part * (variance - model.statistics[i])


# --------------------------------------------------------------------------------------------------
# A batch, and its update.


@jit
def _add_l1(model: Model) -> float:
    l1, zero = model.theta.dtype.type(model.options[L1]), model.theta.dtype.type(0)
    total = 0.0
    for layer in range(model.layers.shape[0]):
        for i in range(model.layers[layer, WEIGHTS], model.layers[layer, BIASES]):
            theta = model.theta[i]
            total += abs(float(theta))
            model.gradient[i] += l1 if theta > zero else (-l1 if theta < zero else zero)
    return model.options[L1] * total


@inlined
def add_penalty(model: Model, total_weight: float) -> float:
    """Add l2 W + l1 sign(W) to dJ/dW of every layer; returns l2 / 2 sum(W^2) + l1 sum(|W|)."""
    l2 = model.options[L2]
    if model.options[L2_PER_BATCH] != 0.0:
        l2 = l2 / total_weight if total_weight > 0.0 else 0.0
    penalty = _add_l1(model) if model.options[L1] != 0.0 else 0.0
    if l2 == 0.0:
        return penalty
    total = 0.0
    for layer in range(model.layers.shape[0]):
        start, stop = model.layers[layer, WEIGHTS], model.layers[layer, BIASES]
        s0 = s1 = s2 = s3 = 0.0
        for i in range(start, stop):
            model.gradient[i] += model.theta.dtype.type(l2) * model.theta[i]
        for i in range(start, stop - 3, 4):
            s0 += float(model.theta[i]) ** 2
            s1 += float(model.theta[i + 1]) ** 2
            s2 += float(model.theta[i + 2]) ** 2
            s3 += float(model.theta[i + 3]) ** 2
        for i in range(stop - (stop - start) % 4, stop):
            s0 += float(model.theta[i]) ** 2
        total += (s0 + s1) + (s2 + s3)
    return 0.5 * l2 * total + penalty


@inlined
def gradient_of_batch(
    model: Model, data: Data, work: Workspace, order: Order, start: int, stop: int, step: int, dX: Array
) -> float:
    """Mean loss of a batch with the penalty; its gradient goes to the model, dJ/dX to dX unless empty.

    Units are dropped for the update after ``step`` others, if that is not negative.
    """
    total_weight = batch_weight(data, order, start, stop)
    last = model.layers.shape[0] - 1
    n_in, n_out = model.layers[0, N_IN], model.layers[last, N_OUT]
    loss = 0.0
    for chunk in range(start, stop, work.rows):
        B = min(work.rows, stop - chunk)
        x = rows_of(work.inputs, work, 0, n_in, B)
        y = rows_of(work.targets, work, 0, data.targets.shape[1], B)
        g = rows_of(work.errors, work, model.layers[last, ERROR], n_out, B)
        gather(model, data, order, chunk, B, x)
        gather_targets(data, order, chunk, B, y, work.labels)
        gather_shares(data, order, chunk, B, total_weight, work.share)
        forward(model, work, B, step, chunk - start, True)
        p = rows_of(work.inputs, work, model.layers[last, ROW], n_out, B)
        loss += loss_and_delta(model, work, p, y, work.labels, g)
        backward(model, work, B, chunk == start, step >= 0, dX.size > 0)
        if dX.size > 0:
            dx = rows_of(work.errors, work, model.layers[0, INPUT_ERROR], n_in, B)
            for r in range(B):
                for f in range(n_in):
                    dX[chunk + r, f] = dx[f, r] * model.scale[f]
    real = model.theta.dtype.type
    for i in range(model.batch_statistics.size if step >= 0 else 0):
        if not math.isfinite(real(model.batch_statistics[i])):
            return np.nan
    return loss + add_penalty(model, total_weight)


@jit
def _update_adam(model: Model, start: int, stop: int, rate: float, step: int) -> None:
    real = model.theta.dtype.type
    beta1, beta2 = model.options[BETA1], model.options[BETA2]
    gain1, gain2, epsilon = real(1.0 - beta1), real(1.0 - beta2), real(model.options[EPSILON])
    rate_hat = real(rate / (1.0 - beta1**step))
    root_hat = real(1.0 / math.sqrt(1.0 - beta2**step))
    if model.options[EPSILON_HAT] != 0.0:
        epsilon *= root_hat
    theta, m, v, g = model.theta, model.first_moment, model.second_moment, model.gradient
    for i in range(start, stop):
        m[i] += gain1 * (g[i] - m[i])
        v[i] += gain2 * (g[i] * g[i] - v[i])
        theta[i] -= rate_hat * m[i] / (math.sqrt(v[i]) * root_hat + epsilon)


@jit
def _update_sgd(model: Model, start: int, stop: int, learning_rate: float) -> None:
    real = model.theta.dtype.type
    rate, mu = real(learning_rate), real(model.options[MOMENTUM])
    nesterov = model.options[NESTEROV] != 0.0
    theta, velocity, g = model.theta, model.first_moment, model.gradient
    for i in range(start, stop):
        v = mu * velocity[i] - rate * g[i]
        velocity[i] = v
        theta[i] += mu * v - rate * g[i] if nesterov else v


@jit
def _decay_weights(model: Model, learning_rate: float) -> None:
    """The decoupled decay of adamw and lion."""
    keep = model.theta.dtype.type(1.0 - learning_rate * model.options[WEIGHT_DECAY])
    for layer in range(model.layers.shape[0]):
        for i in range(model.layers[layer, WEIGHTS], model.layers[layer, BIASES]):
            model.theta[i - model.origin] *= keep


@jit
def _follow(m: Array, v: Array, g: Array, gain1: float, gain2: float) -> None:
    """Exponential means of the gradient and of its square."""
    for i in range(g.size):
        m[i] += gain1 * (g[i] - m[i])
        v[i] += gain2 * (g[i] * g[i] - v[i])


@jit
def _update_amsgrad(model: Model, rate: float, step: int) -> None:
    real = model.theta.dtype.type
    beta1, beta2 = model.options[BETA1], model.options[BETA2]
    theta, m, v, v_max = model.theta, model.first_moment, model.second_moment, model.third_moment
    _follow(m, v, model.gradient, real(1.0 - beta1), real(1.0 - beta2))
    rate_hat, epsilon = real(rate / (1.0 - beta1**step)), real(model.options[EPSILON])
    root_hat = real(1.0 / math.sqrt(1.0 - beta2**step))
    for i in range(theta.size):
        v_max[i] = v[i] if v[i] > v_max[i] else v_max[i]
        theta[i] -= rate_hat * m[i] / (math.sqrt(v_max[i]) * root_hat + epsilon)


_nadam_momenta = jit(nadam_momenta)


@jit
def _update_nadam(model: Model, rate: float, step: int) -> None:
    real = model.theta.dtype.type
    beta1, beta2, decay = model.options[BETA1], model.options[BETA2], model.options[MOMENTUM_DECAY]
    theta, m, v, g = model.theta, model.first_moment, model.second_moment, model.gradient
    momentum, following, product = _nadam_momenta(beta1, decay, step)
    _follow(m, v, g, real(1.0 - beta1), real(1.0 - beta2))
    of_gradient = real(rate * (1.0 - momentum) / (1.0 - product))
    of_moment = real(rate * following / (1.0 - product * following))
    root_hat, epsilon = real(1.0 / math.sqrt(1.0 - beta2**step)), real(model.options[EPSILON])
    for i in range(theta.size):
        theta[i] -= (of_gradient * g[i] + of_moment * m[i]) / (math.sqrt(v[i]) * root_hat + epsilon)


@jit
def _update_rmsprop(model: Model, learning_rate: float) -> None:
    real = model.theta.dtype.type
    rate, mu, gain = real(learning_rate), real(model.options[MOMENTUM]), real(1.0 - model.options[DECAY])
    epsilon = real(model.options[EPSILON])
    theta, v, momentum, g = model.theta, model.first_moment, model.second_moment, model.gradient
    for i in range(theta.size):
        v[i] += gain * (g[i] * g[i] - v[i])
        momentum[i] = mu * momentum[i] + g[i] / (math.sqrt(v[i]) + epsilon)
        theta[i] -= rate * momentum[i]


@jit
def _update_adagrad(model: Model, learning_rate: float) -> None:
    rate, epsilon = model.theta.dtype.type(learning_rate), model.theta.dtype.type(model.options[EPSILON])
    theta, v, g = model.theta, model.first_moment, model.gradient
    for i in range(theta.size):
        v[i] += g[i] * g[i]
        theta[i] -= rate * g[i] / (math.sqrt(v[i]) + epsilon)


@jit
def _update_lion(model: Model, learning_rate: float) -> None:
    real = model.theta.dtype.type
    rate, zero = real(learning_rate), real(0)
    gain1, gain2 = real(1.0 - model.options[BETA1]), real(1.0 - model.options[BETA2])
    theta, m, g = model.theta, model.first_moment, model.gradient
    for i in range(theta.size):
        c = m[i] + gain1 * (g[i] - m[i])
        m[i] += gain2 * (g[i] - m[i])
        theta[i] -= rate if c > zero else (-rate if c < zero else zero)


@inlined
def _clip(model: Model) -> None:
    real, g = model.theta.dtype.type, model.gradient
    most = real(model.options[CLIP_VALUE])
    if most > 0:
        for i in range(g.size):
            g[i] = most if g[i] > most else (-most if g[i] < -most else g[i])
    if model.options[CLIP_NORM] > 0:
        squares = 0.0
        for i in range(g.size):
            squares += float(g[i]) ** 2
        factor = model.options[CLIP_NORM] / (math.sqrt(squares) + 1e-6)
        if factor < 1.0:
            for i in range(g.size):
                g[i] *= real(factor)


@jit
def _end_of_layer(model: Model, layer: int) -> int:
    return model.layers[layer + 1, WEIGHTS] if layer + 1 < model.layers.shape[0] else model.theta.size


@view
def _layer_of(model: Model, layer: int) -> Model:
    """One layer as a model of its own, for its update."""
    start, stop = model.layers[layer, WEIGHTS], _end_of_layer(model, layer)
    return Model(
        model.layers[layer : layer + 1],
        model.dropout,
        model.rates,
        model.epsilon,
        model.momentum,
        model.seed,
        model.loss,
        model.loss_option,
        model.optimizer,
        model.options,
        start,
        model.theta[start:stop],
        model.gradient[start:stop],
        model.first_moment[start:stop],
        model.second_moment[start:stop],
        model.third_moment[start:stop],
        model.average,
        model.statistics,
        model.average_statistics,
        model.batch_statistics,
        model.shift,
        model.scale,
    )


@jit
def follow(average: Array, values: Array, gain: float) -> None:
    """Average += gain (values - average); a gain of 1 copies."""
    real = values.dtype.type
    for i in range(average.size):
        average[i] = values[i] if gain == 1.0 else average[i] + real(gain) * (values[i] - average[i])


@jit
def move_average(model: Model, gain: float) -> None:
    """Let the average of parameters and statistics follow them."""
    follow(model.average, model.theta, gain)
    follow(model.average_statistics, model.statistics, gain)


@inlined
def move_exponential_average(model: Model, step: int) -> None:
    """The average after the step-th update, if it follows each."""
    decay = model.options[EMA_DECAY]
    if decay > 0.0:
        if model.options[EMA_WARMUP] != 0.0:
            decay = min(decay, (1.0 + step) / (10.0 + step))
        move_average(model, 1.0 if step <= 1 else 1.0 - decay)


@inlined
def update(model: Model, learning_rate: float, step: int) -> None:
    """Clip the gradient, and move all parameters but frozen ones; step counts from 1."""
    for layer in range(model.rates.size):
        if model.rates[layer] == 0.0:
            model.gradient[model.layers[layer, WEIGHTS] : _end_of_layer(model, layer)] = 0
    _clip(model)
    for layer in range(model.rates.size):
        if model.rates[layer] != 0.0:
            _update_all(_layer_of(model, layer), learning_rate * model.rates[layer], step)
    if model.rates.size == 0:
        _update_all(model, learning_rate, step)


@inlined
def _update_all(model: Model, learning_rate: float, step: int) -> None:
    real = model.theta.dtype.type
    size = model.theta.size
    if model.optimizer == GRADIENT_DESCENT:
        rate = real(learning_rate)
        for i in range(size):
            model.theta[i] -= rate * model.gradient[i]
    elif model.optimizer == SGD:
        _update_sgd(model, 0, size, learning_rate)
    elif model.optimizer == AMSGRAD:
        _update_amsgrad(model, learning_rate, step)
    elif model.optimizer == NADAM:
        _update_nadam(model, learning_rate, step)
    elif model.optimizer == RMSPROP:
        _update_rmsprop(model, learning_rate)
    elif model.optimizer == ADAGRAD:
        _update_adagrad(model, learning_rate)
    else:
        if model.optimizer != ADAM:
            _decay_weights(model, learning_rate)
        if model.optimizer == LION:
            _update_lion(model, learning_rate)
        else:
            _update_adam(model, 0, size, learning_rate, step)


# --------------------------------------------------------------------------------------------------
# Shuffling: `gradstep.random.permutation`, bit for bit.


@jit
def pair_keys(pair: int, seed: int, epoch: int) -> tuple[int, int]:
    """Sort keys of rows 2 pair and 2 pair + 1; all numbers uint64."""
    c0, c1, c2, c3 = philox(pair & _LOW, pair >> _U32, epoch & _LOW, pair ^ pair, seed)
    return c0 | (c1 << _U32), c2 | (c3 << _U32)


@jit
def shuffle(order: Order, seed: int, epoch: int) -> None:
    """Stable argsort of random keys: into buckets by their leading bits, then insertion in each.

    Keys are uniform and buckets as many as rows, so that the insertion sort moves little.
    """
    n, buckets = order.rows.size, order.counts.size - 1
    bits = 0
    while (1 << bits) < buckets:
        bits += 1
    shift, counts = np.uint64(64 - bits), order.counts
    for bucket in range(buckets + 1):
        counts[bucket] = 0
    for pair in range((n + 1) // 2):
        even, odd = pair_keys(np.uint64(pair), seed, epoch)
        counts[np.int64(even >> shift) + 1] += 1
        if 2 * pair + 1 < n:
            counts[np.int64(odd >> shift) + 1] += 1
    for bucket in range(buckets):
        counts[bucket + 1] += counts[bucket]
    for pair in range((n + 1) // 2):
        keys = pair_keys(np.uint64(pair), seed, epoch)
        for odd_row in range(min(2, n - 2 * pair)):
            bucket = np.int64(keys[odd_row] >> shift)
            order.keys[counts[bucket]] = keys[odd_row]
            order.rows[counts[bucket]] = 2 * pair + odd_row
            counts[bucket] += 1
    _insertion_sort(order.keys, order.rows)


@jit
def _insertion_sort(keys: Array, rows: Array) -> None:
    for i in range(1, keys.size):
        key, row = keys[i], rows[i]
        j = i
        while j > 0 and keys[j - 1] > key:
            keys[j], rows[j] = keys[j - 1], rows[j - 1]
            j -= 1
        keys[j], rows[j] = key, row


# --------------------------------------------------------------------------------------------------
# What Python calls.


@jit
def _copy(source: Array, target: Array) -> None:
    for i in range(source.size):
        target[i] = source[i]


@jit
def _copy_state(source: Snapshot, target: Snapshot) -> None:
    _copy(source.theta, target.theta)
    _copy(source.first_moment, target.first_moment)
    _copy(source.second_moment, target.second_moment)
    _copy(source.third_moment, target.third_moment)
    _copy(source.average, target.average)
    _copy(source.statistics, target.statistics)
    _copy(source.average_statistics, target.average_statistics)


@jit
def _all_finite(values: Array) -> bool:
    bad = 0
    for i in range(values.size):
        bad += 0 if math.isfinite(values[i]) else 1
    return bad == 0


@entry
def train(
    model: Model,
    data: Data,
    work: Workspace,
    order: Order,
    snapshot: Snapshot,
    progress: Array,
    sums: Array,
    losses: Array,
    learning_rates: Array,
    batch_size: int,
    seed: int,
    first_epoch: int,
    budget: int,
) -> None:
    """Go on with a run for at most ``budget`` batches.

    Parameters
    ----------
    progress
        int64 (5,): entries EPOCH ... DIVERGED; where the run is, and where it goes on.
    sums
        float64 (2,): the epoch's loss times weight, and weight, so far.
    losses
        float64 (epochs,): written as epochs end.
    learning_rates
        float64 (epochs, 1), or (epochs, batches of an epoch).
    seed, first_epoch
        uint64.
    """
    n = order.rows.size if order.listed else data.X.shape[0]
    moments = model.first_moment, model.second_moment, model.third_moment
    state = Snapshot(model.theta, *moments, model.average, model.statistics, model.average_statistics)
    nothing = work.inputs[:0].reshape((0, 0))
    while budget > 0 and progress[EPOCH] < losses.size and progress[DIVERGED] == 0:
        epoch, start = progress[EPOCH], progress[BATCH] * batch_size
        if start == 0:
            _copy_state(state, snapshot)
            progress[EPOCH_STEP] = progress[STEP]
            sums[0] = sums[1] = 0.0
            if order.shuffled:
                shuffle(order, seed, first_epoch + np.uint64(epoch))
        stop = min(start + batch_size, n)
        loss = gradient_of_batch(model, data, work, order, start, stop, progress[STEP], nothing)
        progress[BATCH] += 1
        if math.isfinite(loss):
            progress[STEP] += 1
            rate = learning_rates[epoch, min(start // batch_size, learning_rates.shape[1] - 1)]
            update(model, rate, progress[STEP])
            move_statistics(model, data, order, start, stop)
            move_exponential_average(model, progress[STEP])
        weight = batch_weight(data, order, start, stop)
        sums[0] += loss * weight
        sums[1] += weight
        budget -= 1
        if stop == n:
            losses[epoch] = sums[0] / sums[1] if sums[1] > 0.0 else 0.0
            if math.isfinite(losses[epoch]) and _all_finite(model.theta):
                if model.options[SWA_START] > 0.0:
                    averaged = float(first_epoch) + epoch + 1 - model.options[SWA_START]
                    move_average(model, 1.0 / (averaged + 1.0) if averaged > 0.0 else 1.0)
                progress[EPOCH] += 1
                progress[BATCH] = 0
            else:
                _copy_state(snapshot, state)
                progress[STEP] = progress[EPOCH_STEP]
                progress[DIVERGED] = 1


@entry
def gradient(model: Model, data: Data, work: Workspace, order: Order, dX: Array) -> float:
    """Mean loss of all rows with the penalty; gradients go to the model, dJ/dX to dX unless empty."""
    return gradient_of_batch(model, data, work, order, 0, data.X.shape[0], -1, dX)


@entry
def step(model: Model, data: Data, work: Workspace, order: Order, learning_rate: float, number: int) -> float:
    """One update on all rows, the number-th of the run, if the loss before it is finite; returns the loss."""
    nothing = work.inputs[:0].reshape((0, 0))
    loss = gradient_of_batch(model, data, work, order, 0, data.X.shape[0], number - 1, nothing)
    if math.isfinite(loss):
        update(model, learning_rate, number)
        move_statistics(model, data, order, 0, data.X.shape[0])
        move_exponential_average(model, number)
    return loss


@entry
def evaluate(model: Model, data: Data, work: Workspace, order: Order, out: Array) -> float:
    """Mean loss without the penalty if there are targets; predictions go to out unless empty."""
    n = data.X.shape[0]
    last = model.layers.shape[0] - 1
    n_in, n_out = model.layers[0, N_IN], model.layers[last, N_OUT]
    compared = data.labels.size > 0 or data.targets.size > 0
    total_weight = batch_weight(data, order, 0, n)
    loss = 0.0
    for chunk in range(0, n, work.rows):
        B = min(work.rows, n - chunk)
        gather(model, data, order, chunk, B, rows_of(work.inputs, work, 0, n_in, B))
        forward(model, work, B, -1, 0, False)
        p = rows_of(work.inputs, work, model.layers[last, ROW], n_out, B)
        g = rows_of(work.errors, work, model.layers[last, ERROR], n_out, B)
        if compared:
            y = rows_of(work.targets, work, 0, data.targets.shape[1], B)
            gather_targets(data, order, chunk, B, y, work.labels)
            gather_shares(data, order, chunk, B, total_weight, work.share)
            loss += loss_and_delta(model, work, p, y, work.labels, g)
        if out.size > 0:
            _write_linked(model, work, p, g, out[chunk : chunk + B])
    return loss


@jit
def _write_linked(model: Model, work: Workspace, p: Array, scratch: Array, out: Array) -> None:
    """Write the link of p (n_out, B) to out (B, n_out)."""
    n_out, B = p.shape
    linked = p
    if model.loss == CROSS_ENTROPY or model.loss == FOCAL:
        softmax(p, work.row_top, work.row_loss, scratch)
        linked = scratch
    for j in range(n_out):
        for r in range(B):
            v = linked[j, r]
            if model.loss == BINARY_CROSS_ENTROPY or model.loss == BINARY_FOCAL:
                out[r, j] = sigmoid(float(v))
            elif model.loss == POISSON or model.loss == GAMMA:
                out[r, j] = math.exp(float(v))
            elif model.loss == GAUSSIAN_NLL and j >= n_out // 2:
                out[r, j] = math.exp(float(v)) + model.loss_option[j]
            else:
                out[r, j] = v
