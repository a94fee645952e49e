"""The compiled engine when memory, threads, signals or numbers go wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest

from conftest import BACKENDS
from networks import make_data, make_engine, make_plan, train
from test_engine import NETWORKS, run_python

pytestmark = pytest.mark.skipif("cpp" not in BACKENDS, reason="the compiled core is not installed")

if "cpp" in BACKENDS:
    from gradstep import _core

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
LAYOUTS = pytest.mark.parametrize("layout", NETWORKS)

ABOVE_THE_CHECKPOINT_LIMIT = (20, 900, 900, 1)
"""With Adam more than 8 MB of parameters and states."""


def engine_and_data(layout, optimizer="adam", loss="mse", dtype="float32"):
    widths, n, _ = NETWORKS[layout]
    plan = make_plan(widths, "tanh", loss, optimizer, dtype)
    return make_engine(BACKENDS["cpp"], plan), make_data(plan, n)


FAILED_ALLOCATION = """
import resource, sys
import numpy as np
from conftest import BACKENDS
from networks import make_data, make_engine, make_plan, train

call, widths = sys.argv[1], eval(sys.argv[2])
plan = make_plan(widths, "tanh")
engine, few = make_engine(BACKENDS["cpp"], plan), make_data(plan, 16)
train(engine, few, 1)
many = make_data(plan, 100_000)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
try:
    if call == "train":
        train(engine, many, 1, batch_size=100_000)
    else:
        engine.loss_and_gradients(many.X, many.y, None)
except MemoryError:
    print("MemoryError")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for data in (few, many):
    print(np.isfinite(train(engine, data, 1, batch_size=len(data.X)).losses).all())
"""


@pytest.mark.skipif(sys.platform != "linux" or SANITIZED, reason="limits the address space")
@pytest.mark.parametrize("call", ["train", "loss_and_gradients"])
@pytest.mark.parametrize("widths", [(100, 256, 100, 3), (40, 300, 300, 3)])
def test_an_engine_survives_a_failed_allocation(call, widths):
    code = f"import sys; sys.argv[1:] = [{call!r}, {str(widths)!r}]\n{FAILED_ALLOCATION}"
    done = run_python(code, GRADSTEP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["MemoryError", "True", "True"]


def test_divergence_above_the_checkpoint_limit_keeps_finite_parameters():
    plan = make_plan(ABOVE_THE_CHECKPOINT_LIMIT, "relu", optimizer="adam")
    data = make_data(plan, 64)
    engine = make_engine(BACKENDS["cpp"], plan)
    result = train(engine, data, 50, learning_rate=1e3)  # finite losses whose gradients overflow
    assert result.diverged
    assert not result.restored
    for name, value in {**engine.parameters(), **engine.optimizer_state()}.items():
        assert np.isfinite(value).all(), name


@LAYOUTS
@pytest.mark.parametrize("change", ["step", "set_parameters", "interrupted"])
def test_divergence_goes_back_to_the_start_of_the_call_whatever_happened_since_the_last_one(layout, change):
    engine, data = engine_and_data(layout)
    train(engine, data, 70)
    if change == "step":
        engine.step(data.X, data.y, None, 0.1)
    elif change == "set_parameters":
        engine.set_parameters({name: 0.5 * value for name, value in engine.parameters().items()})
    else:
        train(engine, data, 65)
        train(engine, data, 3)
    before = {**engine.parameters(), **engine.optimizer_state()}
    result = train(engine, data, 5, learning_rate=1e38)
    assert result.diverged
    assert result.restored
    assert len(result.losses) == 0
    for name, value in {**engine.parameters(), **engine.optimizer_state()}.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@LAYOUTS
def test_a_loss_that_is_not_finite_changes_nothing(layout):
    engine, data = engine_and_data(layout)
    before = {**engine.parameters(), **engine.optimizer_state()}
    loss = engine.step(data.X, np.full_like(data.y, 3e38), None, 0.1)
    assert not np.isfinite(loss)
    for name, value in {**engine.parameters(), **engine.optimizer_state()}.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@LAYOUTS
def test_a_finite_loss_with_an_infinite_gradient_changes_nothing_in_a_step(layout):
    engine, data = engine_and_data(layout)
    before = engine.parameters()
    weights = {name: value for name, value in before.items() if name.endswith(".W")}
    X = np.full_like(data.X, 3e38)  # tanh saturates: the outputs are finite, the gradient of dense_0.W is not
    steep = {
        name: np.sign(value) * 1e-37 if name == "dense_0.W" else value for name, value in weights.items()
    }
    engine.set_parameters(steep)
    loss = engine.step(X, np.full_like(data.y, 1e3), None, 0.1)
    after = engine.parameters()
    assert all(np.isfinite(value).all() for value in after.values())
    if not np.isfinite(loss):
        np.testing.assert_array_equal(after["dense_0.W"], steep["dense_0.W"].astype(np.float32))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="sends itself a signal")
class TestSignalHandlers:
    @pytest.fixture
    def send(self):
        """Send SIGUSR1 to this process in a moment, answered by the handler given."""
        previous = signal.getsignal(signal.SIGUSR1)
        timers = []

        def arm(handler):
            signal.signal(signal.SIGUSR1, handler)
            timers.append(threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)))
            timers[-1].start()

        yield arm
        for timer in timers:
            timer.join()
        signal.signal(signal.SIGUSR1, previous)

    def test_a_handler_that_uses_the_network_gets_an_error_not_a_deadlock(self, send):
        engine, data = engine_and_data("chunks")
        answers = []

        def handler(signum, frame):
            try:
                engine.parameters()
            except RuntimeError as error:
                answers.append(str(error))
            raise KeyboardInterrupt

        send(handler)
        result = train(engine, data, 1_000_000, learning_rate=1e-6)
        assert result.interrupted
        assert answers == [
            "this network is at work: a signal handler or a loss cannot use it before that call returns"
        ]
        engine.parameters()

    def test_what_a_handler_raises_comes_with_the_epochs_done(self, send):
        class StopError(Exception):
            pass

        def handler(signum, frame):
            raise StopError

        engine, data = engine_and_data("lanes")
        send(handler)
        result = train(engine, data, 1_000_000, learning_rate=1e-6)
        assert isinstance(result.raised, StopError)
        assert result.raised.__traceback__ is not None
        assert result.interrupted
        steps_an_epoch = -(-len(data.X) // 16)
        assert int(engine.optimizer_state()["step"]) // steps_an_epoch == len(result.losses) > 0

    def test_predictions_answer_a_handler_between_blocks(self, send):
        def handler(signum, frame):
            raise KeyboardInterrupt

        engine = make_engine(BACKENDS["cpp"], make_plan((3, 500, 500, 3), "tanh"))
        X = np.zeros((400_000, 3), np.float32)
        out = np.full((len(X), 3), np.nan, np.float32)
        _core.set_num_threads(1)
        send(handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                engine.predict(X, out)
        finally:
            _core.set_num_threads(0)
        assert np.isfinite(out[0]).all()
        assert np.isnan(out[-1]).all()


def test_another_thread_reads_parameters_of_one_step_not_of_two():
    engine, data = engine_and_data("chunks", "gradient_descent")
    engine.set_parameters({name: np.zeros_like(value) for name, value in engine.parameters().items()})
    seen, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            seen.append(engine.optimizer_state()["step"])

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        train(engine, data, 3, learning_rate=1e-6)
    stop.set()
    reader.join()
    steps = 3 * -(-len(data.X) // 16)
    assert {int(step) % steps for step in seen} <= {0}  # never in the middle of a call


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_during_training_can_use_the_network():
    engine, data = engine_and_data("chunks")
    out = np.empty((len(data.X), engine.plan.n_out), np.float32)
    trainer = threading.Thread(target=train, args=(engine, data, 300))
    trainer.start()
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        engine.predict(data.X, out)
        os._exit(0)
    status = None
    deadline = time.monotonic() + 20
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        time.sleep(0.01)
    trainer.join()
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert status == 0


@pytest.mark.parametrize(("given", "used"), [(1, 1), (7, 7), (10**6, 1024), (-1, None)])
def test_thread_counts_are_bounded(given, used):
    default = _core.default_num_threads()
    _core.set_num_threads(given)
    try:
        assert _core.num_threads() == (default if used is None else used)
    finally:
        _core.set_num_threads(0)


X, Y = np.zeros((8, 3), np.float32), np.zeros((8, 2), np.float32)
BAD_ARRAYS = {
    "X of another width": (np.zeros((8, 4), np.float32), Y, None, "X must be"),
    "no rows": (X[:0], Y[:0], None, "X must be"),
    "y of another dtype": (X, Y.astype(np.float64), None, "y must have the engine's dtype"),
    "y of another length": (X, Y[:7], None, "y must be"),
    "y of another width": (X, Y[:, :1].copy(), None, "y must be"),
    "labels": (X, np.zeros(8, np.int32), None, "y must have the engine's dtype"),
    "weight of another length": (X, Y, np.ones(7, np.float32), "weight must be"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused_at_the_border(case):
    engine = make_engine(BACKENDS["cpp"], make_plan((3, 4, 2)))
    bad_X, y, weight, message = BAD_ARRAYS[case]
    with pytest.raises(ValueError, match=message):
        engine.step(bad_X, y, weight, 0.1)
    with pytest.raises(ValueError, match=message):
        engine.loss_and_gradients(bad_X, y, weight)


def test_a_batch_of_nothing_is_refused_at_the_border():
    engine = make_engine(BACKENDS["cpp"], make_plan((3, 4, 2)))
    rates = np.full(1, 0.1)
    with pytest.raises(ValueError, match="batch_size must be positive"):
        engine.train(X, Y, None, epochs=1, batch_size=0, learning_rates=rates, seed=0, first_epoch=0)
    with pytest.raises(ValueError, match="learning_rates must be"):
        engine.train(X, Y, None, epochs=2, batch_size=4, learning_rates=rates, seed=0, first_epoch=0)
