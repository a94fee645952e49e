"""The compiled engine: instruction sets, threads, memory, and what its objects export."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import BACKENDS
from gradstep.backends.numpy.losses import LOSSES
from networks import make_data, make_engine, make_plan
from networks import train as train_rows

pytestmark = pytest.mark.skipif("cpp" not in BACKENDS, reason="the compiled core is not installed")

if "cpp" in BACKENDS:
    from gradstep import _core

TESTS = Path(__file__).resolve().parent

# One network for each way through the engine: samples in lanes, chunks in panels of one vector, layer by
# layer in panels of two; with widths that are no multiple of anything.
NETWORKS = {
    "lanes": ((3, 7, 2), 1500, 700),
    "wide-lanes": ((5, 31, 19, 3), 1500, 700),
    "chunks": ((17, 33, 65, 3), 700, 300),
    "rows": ((40, 130, 150, 5), 400, 150),
    "layers": ((100, 400, 420, 70), 400, 150),
}
# Batches of one and two rows, and such ends of batches and of chunks, which have a kernel of their own.
FEW_ROWS = {
    "one-row": ((17, 33, 65, 3), 40, 1),
    "two-rows": ((40, 130, 150, 5), 41, 2),
    "one-row-of-many-panels": ((1000, 1025, 3), 4, 1),
    "tail": ((40, 130, 150, 5), 387, 129),
}
RUNS = {**NETWORKS, **FEW_ROWS}
LAYERS_BEYOND_ONE_PASS = ((20, 300, 300, 5), 4500, 4500)

TRAJECTORY = """
import json, sys
import numpy as np
from conftest import BACKENDS
from gradstep import _core
from networks import make_data, make_engine, make_plan
from test_engine import RUNS, train
losses = {
    f"{name} {dtype}": train(name, dtype, epochs=2)[0]
    for name in RUNS for dtype in ("float32", "float64")
}
print(json.dumps({"isa": _core.isa, "losses": losses}))
"""


def train(name, dtype="float32", epochs=2, rows=None):
    """Losses and final state of a short training run."""
    widths, n, batch_size = RUNS[name]
    plan = make_plan(widths, "tanh", "mse", "adam", dtype, l2=1e-4)
    X, y, weight = make_data(plan, rows or n)
    engine = make_engine(BACKENDS["cpp"], plan)
    result = engine.train(
        X,
        y,
        weight,
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=np.full(epochs, 0.01),
        seed=3,
        first_epoch=0,
    )
    return list(result.losses), {**engine.parameters(), **engine.optimizer_state()}


def run_python(code, **environment):
    """Run code in a process of its own, with this folder importable."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=TESTS,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_few_rows_have_the_bits_that_they_have_among_many(name, dtype):
    """Products of one and of two rows are kernels of their own; every sum runs in the same order."""
    plan = make_plan(NETWORKS[name][0], "tanh", "mse", "adam", dtype)
    X = make_data(plan, 40).X
    engine = make_engine(BACKENDS["cpp"], plan)
    together = np.empty((40, plan.n_out), dtype)
    engine.predict(X, together)
    for rows in (1, 2, 3):
        few = np.empty((rows, plan.n_out), dtype)
        engine.predict(X[:rows], few)
        np.testing.assert_array_equal(few, together[:rows])


@pytest.mark.parametrize("isa", _core.instruction_sets if "cpp" in BACKENDS else [])
def test_a_forced_instruction_set_runs_and_agrees_with_the_reference(isa):
    done = run_python(TRAJECTORY, GRADSTEP_ISA=isa)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["isa"] == isa
    for key, losses in result["losses"].items():
        name, dtype = key.split()
        widths, n, batch_size = RUNS[name]
        plan = make_plan(widths, "tanh", "mse", "adam", dtype, l2=1e-4)
        X, y, weight = make_data(plan, n)
        reference = make_engine(BACKENDS["numpy"], plan).train(
            X,
            y,
            weight,
            epochs=2,
            batch_size=batch_size,
            learning_rates=np.full(2, 0.01),
            seed=3,
            first_epoch=0,
        )
        np.testing.assert_allclose(losses, reference.losses, rtol=1e-4 if dtype == "float32" else 1e-11)


def test_an_unknown_instruction_set_is_an_error_that_names_the_valid_ones():
    done = run_python("import gradstep; gradstep.Network([gradstep.Dense(1)])", GRADSTEP_ISA="avx9000")
    assert done.returncode != 0
    assert f"GRADSTEP_ISA must be one of {', '.join(_core.instruction_sets)} on this machine" in done.stderr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RUNS)
def test_training_has_the_same_bits_for_1_2_and_4_threads(name, dtype, threads):
    runs = []
    for count in (1, 2, 4):
        threads(count)
        runs.append(train(name, dtype))
    for losses, state in runs[1:]:
        assert losses == runs[0][0]
        for key, value in state.items():
            np.testing.assert_array_equal(value, runs[0][1][key], err_msg=key)


def test_training_that_tries_one_thread_and_two_has_the_same_bits(threads):
    """Short steps are timed both ways by turns: here a thousand of them."""
    plan = make_plan((17, 33, 65, 3), "tanh", "mse", "adam")
    data = make_data(plan, 600)
    runs = []
    for count in (1, 2):
        threads(count)
        engine = make_engine(BACKENDS["cpp"], plan)
        result = train_rows(engine, data, 500, batch_size=300, learning_rate=1e-3)
        for _ in range(200):
            engine.step(data.X, data.y, None, 1e-3)
        runs.append((list(result.losses), engine.parameters()))
    assert runs[0][0] == runs[1][0]
    for name, value in runs[0][1].items():
        np.testing.assert_array_equal(runs[1][1][name], value)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "widths",
    [(5, 8, 4), (20, 60, 4), (40, 200, 160, 4), (300, 700, 4), (300, 700, 36), (40, 300, 1030), (600, 40, 4)],
    ids=str,
)
def test_every_loss_has_the_same_bits_for_1_and_2_threads(widths, loss, threads):
    plan = make_plan(widths, "tanh", loss, "adam")
    data = make_data(plan, 300)
    runs = []
    for count in (1, 2):
        threads(count)
        engine = make_engine(BACKENDS["cpp"], plan)
        result = train_rows(engine, data, 2, weight=data.weight, batch_size=256, learning_rate=1e-3)
        runs.append((result.losses, engine.parameters()))
    assert runs[0][0] == runs[1][0]
    for name, value in runs[0][1].items():
        np.testing.assert_array_equal(runs[1][1][name], value)


@pytest.mark.parametrize("penalties", [{}, {"l1": 1e-3, "l2": 1e-2}], ids=["", "penalties"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_predictions_have_the_same_bits_for_1_2_and_4_threads(name, penalties, threads):
    widths, n, _ = NETWORKS[name]
    plan = dataclasses.replace(make_plan(widths, "gelu", "cross_entropy", "adam"), **penalties)
    X, y, weight = make_data(plan, n)
    engine = make_engine(BACKENDS["cpp"], plan)
    runs = []
    for count in (1, 2, 4):
        threads(count)
        out = np.empty((n, plan.n_out), np.float32)
        engine.predict(X, out)
        runs.append((out, *engine.loss_and_gradients(X, y, weight, input_gradient=True)))
    for out, loss, gradients, input_gradient in runs[1:]:
        np.testing.assert_array_equal(out, runs[0][0])
        assert loss == runs[0][1]
        for key, value in gradients.items():
            np.testing.assert_array_equal(value, runs[0][2][key], err_msg=key)
        np.testing.assert_array_equal(input_gradient, runs[0][3])


def test_a_batch_beyond_one_pass_gives_the_references_step():
    widths, n, batch_size = LAYERS_BEYOND_ONE_PASS
    plan = make_plan(widths, "silu", "huber", "sgd", "float64", l2=1e-3, loss_options={"delta": 0.7})
    X, y, weight = make_data(plan, n)
    results = [
        make_engine(BACKENDS[name], plan).train(
            X,
            y,
            weight,
            epochs=2,
            batch_size=batch_size,
            learning_rates=np.full(2, 0.1),
            seed=0,
            first_epoch=0,
        )
        for name in ("cpp", "numpy")
    ]
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_profile_shares_out_the_time_of_the_same_training(name, threads):
    widths, n, batch_size = NETWORKS[name]
    plan = make_plan(widths, "tanh", "mse", "adam")
    X, y, _ = make_data(plan, n)
    engine, plain = (make_engine(BACKENDS["cpp"], plan) for _ in range(2))
    _core.set_num_threads(threads)
    try:
        shares = engine.profile(X, y, epochs=3, batch_size=batch_size, learning_rate=0.01)
    finally:
        _core.set_num_threads(0)
    assert list(shares) == ["gather", "forward", "loss", "dX", "dW", "update", "waiting"]
    assert sum(shares.values()) == pytest.approx(1, abs=0.02)
    assert all(shares[phase] > 0 for phase in ("gather", "forward", "loss", "dX", "dW", "update"))
    rates = np.full(3, 0.01)
    plain.train(X, y, None, epochs=3, batch_size=batch_size, learning_rates=rates, seed=0, first_epoch=0)
    for key, value in plain.parameters().items():
        np.testing.assert_array_equal(engine.parameters()[key], value, err_msg=key)


def test_predictions_do_not_depend_on_the_other_rows():
    plan = make_plan((17, 33, 65, 3), "relu", "cross_entropy")
    X, _, _ = make_data(plan, 300)
    engine = make_engine(BACKENDS["cpp"], plan)
    together, alone = np.empty((300, 3), np.float32), np.empty((300, 3), np.float32)
    engine.predict(X, together)
    for row in range(300):
        engine.predict(X[row : row + 1], alone[row : row + 1])
    np.testing.assert_array_equal(alone, together)


def test_the_permutation_is_the_one_of_python():
    from gradstep.random import permutation

    for n in (1, 2, 3, 1000, 100_001):
        np.testing.assert_array_equal(_core.permutation(n, 2**63 + 5, 7), permutation(n, 2**63 + 5, 7))


def test_the_measured_peak_is_a_rate():
    assert _core.fma_peak(1, 0.02) > 0.1
    assert _core.fma_peak(1, 0.02, float64=True) > 0.1


ALLOCATION_COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
static long calls;
long allocation_calls(void) { return calls; }
#define COUNTED(result, name, parameters, ...)                                    \
    result name parameters {                                                      \
        static result (*next) parameters;                                         \
        if (!next) next = (result (*) parameters)dlsym(RTLD_NEXT, #name);         \
        __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);                          \
        return next(__VA_ARGS__);                                                 \
    }
COUNTED(void*, malloc, (size_t n), n)
COUNTED(void*, realloc, (void* p, size_t n), p, n)
COUNTED(void*, aligned_alloc, (size_t alignment, size_t n), alignment, n)
COUNTED(void*, memalign, (size_t alignment, size_t n), alignment, n)
COUNTED(int, posix_memalign, (void** p, size_t alignment, size_t n), p, alignment, n)
"""

COUNT_ALLOCATIONS = """
import ctypes, dataclasses, sys
import numpy as np
from conftest import BACKENDS
from networks import make_data, make_engine, make_plan
from test_engine import LAYERS_BEYOND_ONE_PASS, NETWORKS
calls = ctypes.CDLL(None).allocation_calls
calls.restype = ctypes.c_long
cases = [*NETWORKS.values(), LAYERS_BEYOND_ONE_PASS]
settings = {"l1": 1e-3, "l2": 1e-3, "clip_value": 0.5, "clip_norm": 1.0}
for (widths, n, batch_size), options in [(case, options) for case in cases for options in ({}, settings)]:
    plan = dataclasses.replace(make_plan(widths, "gelu", "mse", "adam"), **options)
    X, y, weight = make_data(plan, n)
    engine = make_engine(BACKENDS["cpp"], plan)
    counts = []
    for epochs in (1, 1, 9):
        rates = np.full(epochs, 1e-3)
        before = calls()
        engine.train(
            X, y, weight, epochs=epochs, batch_size=batch_size, learning_rates=rates, seed=0, first_epoch=0
        )
        counts.append(calls() - before)
    print(counts[1], counts[2])
"""


def _have_gcc():
    return subprocess.run(["sh", "-c", "command -v gcc"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(
    sys.platform != "linux" or not _have_gcc(), reason="counts allocations through LD_PRELOAD with gcc"
)
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer replaces malloc itself")
def test_steps_allocate_nothing(tmp_path):
    (tmp_path / "counter.c").write_text(ALLOCATION_COUNTER)
    library = tmp_path / "counter.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "counter.c", "-ldl"], check=True)
    done = run_python(COUNT_ALLOCATIONS, LD_PRELOAD=str(library), PYTHONMALLOC="pymalloc")
    assert done.returncode == 0, done.stderr
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) == 2 * (len(NETWORKS) + 1)
    for one_epoch, nine_epochs in lines:
        # Nine times the steps; only the list of losses that is handed back grows.
        assert nine_epochs <= one_epoch + 2, lines


ISA_FLAGS = {"baseline": "-march=x86-64-v2", "avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="lists the objects of x86-64")
def test_each_instruction_sets_object_exports_one_table_and_shares_no_code(tmp_path):
    source = TESTS.parent / "csrc"
    if not source.is_dir() or not _have_gcc():
        pytest.skip("needs the C++ sources and g++")
    command = [
        "g++",
        "-std=c++20",
        "-O1",
        "-fno-math-errno",
        "-fno-exceptions",
        "-fno-rtti",
        "-w",
        f"-I{source}",
        "-c",
    ]
    builds = {
        isa: subprocess.Popen(
            [
                *command,
                flag,
                f"-DGRADSTEP_ISA={isa}",
                source / "kernels/kernels.cpp",
                "-o",
                tmp_path / f"{isa}.o",
            ]
        )
        for isa, flag in ISA_FLAGS.items()
    }
    for isa, build in builds.items():
        assert build.wait() == 0
        table = subprocess.run(
            ["nm", "-C", tmp_path / f"{isa}.o"], capture_output=True, text=True, check=True
        ).stdout
        symbols = [line.split(maxsplit=2)[-2:] for line in table.splitlines()]
        # Upper case is visible to the linker; W, V and u may be merged with another object's copy.
        exported = [name for kind, name in symbols if (kind.isupper() and kind != "U") or kind == "u"]
        assert exported == [f"gradstep::kernels_{isa}"]
        needed = {name for kind, name in symbols if kind == "U"}
        assert needed <= {"memcpy", "memset", "memmove", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}, needed


def test_threadpoolctl_limits_the_pool():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    _core.set_num_threads(3)
    try:
        with threadpoolctl.threadpool_limits(1):
            assert _core.num_threads() == 1
        assert _core.num_threads() == 3
        with threadpoolctl.threadpool_limits(2, user_api="gradstep"):
            assert _core.num_threads() == 2
    finally:
        _core.set_num_threads(0)


AT_A_GUARDED_PAGE = """
import ctypes, mmap
import numpy as np
import gradstep as gs
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page), page, 0) == 0
for dtype in ("float32", "float64"):
    size = np.dtype(dtype).itemsize
    for columns in (1, 3, 9, 17, 19):
        count = 24 * columns
        X = np.frombuffer(memory, dtype, count, page - count * size).reshape(24, columns)
        network = gs.Network([gs.Dense(40), gs.Dense(columns)], backend="cpp", dtype=dtype, seed=0)
        network.fit(X, X, epochs=1, batch_size=7, verbose=0)
        assert np.isfinite(network.predict(X)).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pages are guarded by Linux's mprotect")
@pytest.mark.parametrize("isa", _core.instruction_sets if "cpp" in BACKENDS else [])
def test_nothing_behind_the_last_row_is_read(isa):
    done = run_python(AT_A_GUARDED_PAGE, GRADSTEP_ISA=isa)
    assert done.returncode == 0, done.stderr
