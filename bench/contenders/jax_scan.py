"""JAX in its best form: one compiled call that scans over many epochs, each a scan over its batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import util
from typing import Any, NamedTuple

import numpy as np

from cases import BETA1, BETA2, EPSILON, OPTIMIZERS, Array, Case, Weights
from contenders.base import Contender, Session, shuffled_orders


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


def _loss(case: Case, layers: Any, x: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    activation = {"identity": lambda z: z, "relu": jax.nn.relu, "tanh": jnp.tanh}[case.activation]
    for W, b in layers[:-1]:
        x = activation(x @ W + b)
    W, b = layers[-1]
    z = x @ W + b
    if case.loss == "mse":
        return jnp.mean(jnp.square(z - y))
    if case.loss == "binary_cross_entropy":
        row_losses = jnp.maximum(z, 0) - z * y + jnp.log1p(jnp.exp(-jnp.abs(z)))
        return jnp.mean(jnp.sum(row_losses, axis=1))
    if case.loss == "cross_entropy":
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], axis=1)[:, 0])
    if case.loss == "mae":
        return jnp.mean(jnp.abs(z - y))
    if case.loss == "huber":
        d = jnp.abs(z - y)
        return jnp.mean(jnp.where(d < 1, 0.5 * d * d, d - 0.5))
    return jnp.mean(jnp.sum(jnp.exp(z) - y * z + jax.scipy.special.xlogy(y, y) - y, axis=1))  # poisson


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
        loss, g = jax.value_and_grad(lambda t: _loss(case, unravel(t), x, y))(theta)
        updates, inner = optimizer.update(g, inner, theta)
        return (optax.apply_updates(theta, updates), inner), loss

    return step


def _make_step(case: Case, unravel: Callable[[Any], Any]) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def step(state: Any, x: Any, y: Any) -> Any:
        theta, m, v, correction1, correction2 = state
        loss, g = jax.value_and_grad(lambda t: _loss(case, unravel(t), x, y))(theta)
        m = jax.tree.map(lambda m, g: m + (1 - BETA1) * (g - m), m, g)
        v = jax.tree.map(lambda v, g: v + (1 - BETA2) * (g * g - v), v, g)
        # 1 - beta^t by recurrence: taking beta^t from 1 would cost float32 four digits
        correction1 = BETA1 * correction1 + (1 - BETA1)
        correction2 = BETA2 * correction2 + (1 - BETA2)
        rate, scale = case.learning_rate / correction1, jax.lax.rsqrt(correction2)
        theta = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) * scale + EPSILON), theta, m, v)
        return (theta, m, v, correction1, correction2), loss

    return step


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

        return jax.lax.scan(epoch, state, orders)

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
        flat, unravel = ravel_pytree(weights) if form.is_flat else (None, lambda theta: theta)
        self.theta = np.asarray(flat) if form.is_flat else weights
        step = (_make_step if case.optimizer == "adam" else _make_optax_step)(case, unravel)
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
            self.state = (theta, zeros(theta), zeros(theta), zero, zero.copy())
        else:
            self.state = (theta, _optax_optimizer(self.case).init(theta))
        self.jax.block_until_ready(self.state)

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
        return case.optimizer == "adam" or util.find_spec("optax") is not None

    def prepare(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> Session:
        """Try every form and keep the fastest."""
        import jax

        jax.config.update("jax_enable_x64", case.dtype == "float64")
        is_small = case.parameter_count <= SMALL
        best: tuple[float, JaxSession] | None = None
        for form in SMALL_FORMS if is_small else LARGE_FORMS:
            session = JaxSession(case, data, weights, form)
            seconds = _seconds_per_epoch(session)
            if best is None or seconds < best[0]:
                best = seconds, session
        assert best is not None
        return best[1]
