"""JAX in its best form: one compiled call that scans over many epochs, each a scan over its batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import util
from typing import Any, NamedTuple

import numpy as np

from cases import (
    BETA1,
    BETA2,
    DROPPED,
    EMA_DECAY,
    EPSILON,
    FLOOR,
    FOCUS,
    LABELS,
    OPTIMIZERS,
    QUANTILE,
    SMOOTHING,
    Array,
    Case,
    Weights,
    make_vectors,
)
from contenders.base import Contender, Session, shuffled_orders
from lbfgs import minimize


class Form(NamedTuple):
    """A way to write the same program; which one is fastest depends on the case."""

    is_flat: bool
    """Parameters, gradient and moments are one vector each, so that Adam is one loop."""
    unroll: int
    """Steps per iteration of the innermost loop."""


SMALL_FORMS = (Form(False, 1), Form(False, 4), Form(True, 1), Form(True, 16))
LARGE_FORMS = (Form(False, 1), Form(False, 2))
SMALL = 1 << 17
"""Up to this many parameters a vector of them may pay."""
TRIAL_SECONDS = 0.05


def _initial(case: Case, weights: Weights) -> Any:
    """Weights, and what other layers have beside them."""
    import jax.numpy as jnp

    theta: dict[str, Any] = {"dense": weights}
    if case.block in ("layer_norm", "batch_norm"):
        theta["gains"] = [jnp.ones(n_out, case.dtype) for _, n_out in case.layers[:-1]]
        theta["shifts"] = [jnp.zeros(n_out, case.dtype) for _, n_out in case.layers[:-1]]
    if case.block == "scale":
        theta["gains"] = [jnp.ones(n_in, case.dtype) for n_in, _ in case.layers[:-1]]
    if case.block == "embedding":
        theta["vectors"] = make_vectors(case)
    return theta


def _hidden_layer(case: Case, theta: Any, index: int, x: Any, key: Any) -> Any:
    """One hidden layer; batch normalisation keeps no running statistics, which spares JAX some work."""
    import jax
    import jax.numpy as jnp

    activation = {"identity": lambda z: z, "relu": jax.nn.relu, "tanh": jnp.tanh}[case.activation]
    W, b = theta["dense"][index]
    if case.block == "scale":
        x = x * theta["gains"][index]
    z = x @ W + b
    if case.block in ("layer_norm", "batch_norm"):
        axis = 1 if case.block == "layer_norm" else 0
        z = jax.nn.standardize(z, axis=axis, epsilon=1e-5)
        z = z * theta["gains"][index] + theta["shifts"][index]
    a = activation(z)
    if case.block == "residual":
        return x + a
    if case.block == "dropout":
        kept = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - DROPPED, a.shape)
        return jnp.where(kept, a / (1 - DROPPED), 0)
    return a


def _loss(case: Case, theta: Any, x: Any, y: Any, key: Any) -> Any:
    import jax.numpy as jnp

    if case.block == "embedding":
        x = jnp.concatenate([x[:, 1:], theta["vectors"][x[:, 0].astype(jnp.int32)]], axis=1)
    for index in range(len(case.layers) - 1):
        x = _hidden_layer(case, theta, index, x, key)
    W, b = theta["dense"][-1]
    return _mean_loss(case, x @ W + b, y)


def _label_losses(case: Case, z: Any, y: Any) -> Any:
    """By row."""
    import jax
    import jax.numpy as jnp

    own = jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]
    if case.loss == "hinge":
        others = jnp.max(jnp.where(jnp.arange(z.shape[1]) == y[:, None], -jnp.inf, z), axis=1)
        return jax.nn.relu(1 + others - own)
    top = jax.nn.logsumexp(z, axis=1)
    losses = top - own
    if case.loss == "smoothed_cross_entropy":
        return (1 - SMOOTHING) * losses + SMOOTHING * (top - jnp.mean(z, axis=1))
    return (1 - jnp.exp(-losses)) ** FOCUS * losses if case.loss == "focal" else losses


def _output_losses(case: Case, z: Any, y: Any) -> Any:
    """By row and output, of losses that are summed over outputs."""
    import jax
    import jax.numpy as jnp

    match case.loss:
        case "poisson":
            return jnp.exp(z) - y * z + jax.scipy.special.xlogy(y, y) - y
        case "gamma":
            return z - jnp.log(y) + y * jnp.exp(-z) - 1
        case "gaussian_nll":
            mean, s = jnp.split(z, 2, axis=1)
            variance = jnp.exp(s) + FLOOR
            return (jnp.log(variance) + jnp.square(mean - y) / variance) / 2
        case "binary_hinge":
            return jax.nn.relu(1 - (2 * y - 1) * z)
    losses = jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))
    return (1 - jnp.exp(-losses)) ** FOCUS * losses if case.loss == "binary_focal" else losses


def _mean_loss(case: Case, z: Any, y: Any) -> Any:
    import jax.numpy as jnp

    if case.loss in LABELS:
        return jnp.mean(_label_losses(case, z, y))
    if case.loss == "mse":
        return jnp.mean(jnp.square(z - y))
    if case.loss == "mae":
        return jnp.mean(jnp.abs(z - y))
    if case.loss == "huber":
        d = jnp.abs(z - y)
        return jnp.mean(jnp.where(d < 1, 0.5 * d * d, d - 0.5))
    if case.loss == "quantile":
        return jnp.mean(jnp.maximum(QUANTILE * (y - z), (QUANTILE - 1) * (y - z)))
    return jnp.mean(jnp.sum(_output_losses(case, z, y), axis=1))


def _optax_optimizer(case: Case) -> Any:
    """Optax's optimizers, for all but Adam."""
    import optax

    rate, options = case.learning_rate, OPTIMIZERS[case.optimizer]
    adam = {"b1": BETA1, "b2": BETA2, "eps": EPSILON}
    match case.optimizer:
        case "adamw":
            return optax.adamw(rate, **adam, **options)
        case "sgd":
            return optax.sgd(rate, **options)
        case "rmsprop":
            decay, momentum = options["decay"], options["momentum"]
            return optax.rmsprop(rate, decay, EPSILON, momentum=momentum, eps_in_sqrt=False)
        case "adagrad":
            # its epsilon is under the root
            return optax.adagrad(rate, initial_accumulator_value=0.0, eps=EPSILON**2)
        case "lion":
            return optax.lion(rate, b1=BETA1, b2=BETA1, **options)
    raise NotImplementedError(case.optimizer)


def _make_optax_step(case: Case, unravel: Callable[[Any], Any]) -> Callable[..., Any]:
    import jax
    import optax

    optimizer = _optax_optimizer(case)

    def step(state: Any, x: Any, y: Any) -> Any:
        theta, inner = state
        loss, g = jax.value_and_grad(lambda t: _loss(case, unravel(t), x, y, None))(theta)
        updates, inner = optimizer.update(g, inner, theta)
        return (optax.apply_updates(theta, updates), inner), loss

    return step


def _make_step(case: Case, unravel: Callable[[Any], Any]) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def step(state: Any, x: Any, y: Any) -> Any:
        theta, m, v, correction1, correction2, key = state
        used, key = jax.random.split(key) if case.block == "dropout" else (key, key)
        loss, g = jax.value_and_grad(lambda t: _loss(case, unravel(t), x, y, used))(theta)
        m = jax.tree.map(lambda m, g: m + (1 - BETA1) * (g - m), m, g)
        v = jax.tree.map(lambda v, g: v + (1 - BETA2) * (g * g - v), v, g)
        # 1 - beta^t by recurrence: taking beta^t from 1 would cost float32 four digits
        correction1 = BETA1 * correction1 + (1 - BETA1)
        correction2 = BETA2 * correction2 + (1 - BETA2)
        rate, scale = case.learning_rate / correction1, jax.lax.rsqrt(correction2)
        theta = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) * scale + EPSILON), theta, m, v)
        return (theta, m, v, correction1, correction2, key), loss

    return step


def _averaging(case: Case, train: Callable[..., Any]) -> Callable[..., Any]:
    """A step or an epoch with a mean of the parameters beside its state, which the first one begins."""
    import jax.numpy as jnp
    import optax

    def averaging(state: Any, *batch: Any) -> Any:
        inner, mean, count = state
        inner, loss = train(inner, *batch)
        gain = 1 / (count + 1) if case.averaging == "swa" else jnp.where(count == 0, 1.0, 1 - EMA_DECAY)
        return (inner, optax.incremental_update(inner[0], mean, gain), count + 1), loss

    return averaging


def _make_full_batch_run(step: Callable[..., Any], form: Form) -> Any:
    import jax

    @partial(jax.jit, static_argnames="epochs", donate_argnums=0)
    def run(state: Any, X: Any, y: Any, epochs: int) -> Any:
        return jax.lax.scan(lambda s, _: step(s, X, y), state, length=epochs, unroll=min(form.unroll, epochs))

    return run


def _make_mini_batch_run(step: Callable[..., Any], form: Form, case: Case) -> Any:
    import jax

    whole = case.rows // case.batch * case.batch
    rest = case.rows - whole

    @partial(jax.jit, donate_argnums=0)
    def run(state: Any, X: Any, y: Any, orders: Any) -> Any:
        def batch(state: Any, rows: Any) -> Any:
            return step(state, X[rows], y[rows])

        def epoch(state: Any, order: Any) -> Any:
            batches = order[:whole].reshape(-1, case.batch)
            state, losses = jax.lax.scan(batch, state, batches, unroll=min(form.unroll, len(batches)))
            total = losses.sum() * case.batch
            if rest:
                state, loss = batch(state, order[whole:])
                total += loss * rest
            return state, total / case.rows

        return jax.lax.scan(_averaging(case, epoch) if case.averaging == "swa" else epoch, state, orders)

    return run


class JaxSession(Session):
    """The compiled program of one case in one form.

    It returns the losses of all epochs, as every other contender can: given leave to drop them, XLA
    removes the loss from all steps but the last.
    """

    def __init__(self, case: Case, data: tuple[Array, Array], weights: Weights, form: Form) -> None:
        import jax
        import jax.numpy as jnp
        from jax.flatten_util import ravel_pytree

        self.jax, self.jnp = jax, jnp
        self.case, self.rng = case, np.random.default_rng(0)
        self.X, self.y = (jnp.asarray(array) for array in data)
        theta = _initial(case, weights)
        flat, unravel = ravel_pytree(theta) if form.is_flat else (None, lambda theta: theta)
        self.theta, self.unravel = np.asarray(flat) if form.is_flat else theta, unravel
        step = (_make_step if case.optimizer == "adam" else _make_optax_step)(case, unravel)
        if case.averaging == "ema":
            step = _averaging(case, step)
        if case.is_full_batch:
            self.program = _make_full_batch_run(step, form)
        else:
            self.program = _make_mini_batch_run(step, form, case)
        self.reset()

    def reset(self) -> None:
        """Copy the initial weights to the device."""
        self.state = None  # lets go of the old state before the new one is made
        theta = self.jax.tree.map(self.jnp.array, self.theta)
        if self.case.optimizer == "adam":
            zeros = partial(self.jax.tree.map, self.jnp.zeros_like)
            zero = self.jnp.zeros((), self.case.dtype)
            # rbg, which is faster on CPUs than the default generator
            key = self.jax.random.key(0, impl="rbg") if self.case.block == "dropout" else None
            self.state = (theta, zeros(theta), zeros(theta), zero, zero.copy(), key)
            if self.case.averaging:
                self.state = (self.state, zeros(theta), zero.copy())
        else:
            self.state = (theta, _optax_optimizer(self.case).init(theta))
        self.jax.block_until_ready(self.state)

    def average(self) -> Weights:
        """The state's own."""
        mean = self.unravel(self.state[1])
        return [(np.asarray(W), np.asarray(b)) for W, b in mean["dense"]]

    def run(self, epochs: int, orders: Array | None = None) -> float:
        """One call; numpy shuffles, which is faster than a sort on the device."""
        if self.case.is_full_batch:
            self.state, losses = self.program(self.state, self.X, self.y, epochs)
        else:
            if orders is None:
                orders = shuffled_orders(self.rng, self.case, epochs)
            orders = orders.astype(np.int32, copy=False)
            self.state, losses = self.program(self.state, self.X, self.y, orders)
        self.jax.block_until_ready(self.state)
        return float(losses[-1])


class JaxLbfgsSession(Session):
    """Compiled gradients under SciPy's L-BFGS."""

    def __init__(self, case: Case, data: tuple[Array, Array], weights: Weights) -> None:
        import jax
        import jax.numpy as jnp
        from jax.flatten_util import ravel_pytree

        X, y = (jnp.asarray(array) for array in data)
        flat, unravel = ravel_pytree(_initial(case, weights))
        self.case, self.initial = case, np.asarray(flat)
        program = jax.jit(jax.value_and_grad(lambda theta: _loss(case, unravel(theta), X, y, None)))

        def function(theta: Array) -> tuple[float, Array]:
            loss, gradient = program(theta)
            return float(loss), np.asarray(gradient)

        self.function = function
        self.reset()

    def reset(self) -> None:
        """Back to the initial weights."""
        self.theta = self.initial

    def run(self, epochs: int, orders: Array | None = None) -> float:
        """So many iterations."""
        self.theta, losses = minimize(self.case, self.function, self.theta, epochs)
        return losses[-1]


def _seconds_per_epoch(session: JaxSession) -> float:
    """Time of the fastest of a few short runs; lengths grow because short ones measure the call."""
    epochs = 1
    while True:
        session.run(epochs)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            session.run(epochs)
            seconds.append(time.perf_counter() - start)
        if min(seconds) > TRIAL_SECONDS / 4:
            return min(seconds) / epochs
        epochs *= 32


class JaxScan(Contender):
    """JAX on the CPU."""

    name = "jax"
    packages = ("jax", "jaxlib")

    def environment(self, threads: int) -> dict[str, str]:
        """One thread needs Eigen's own switch too."""
        flags = "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
        return {**super().environment(threads), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}

    def supports(self, case: Case) -> bool:
        """All but those of which optax has another formula; the others need optax."""
        if case.optimizer in ("amsgrad", "nadam"):
            return False
        needs_optax = case.averaging or case.optimizer not in ("adam", "lbfgs")
        return not needs_optax or util.find_spec("optax") is not None

    def prepare(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> Session:
        """Try every form and keep the fastest."""
        import jax

        jax.config.update("jax_enable_x64", case.dtype == "float64")
        if case.optimizer == "lbfgs":
            return JaxLbfgsSession(case, data, weights)
        is_small = case.parameter_count <= SMALL
        best: tuple[float, JaxSession] | None = None
        for form in SMALL_FORMS if is_small else LARGE_FORMS:
            session = JaxSession(case, data, weights, form)
            seconds = _seconds_per_epoch(session)
            if best is None or seconds < best[0]:
                best = seconds, session
        assert best is not None
        return best[1]
