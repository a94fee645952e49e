"""What may be passed, what may not, and that nothing changes when it may not."""

import decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradstep as gs
from conftest import BACKENDS
from gradstep import validation
from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.backends.numpy.losses import LOSSES
from gradstep.validation import (
    all_finite,
    check_inputs,
    check_labels,
    check_probabilities,
    check_values,
    check_weight,
    numeric_array,
)

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.ones(4, dtype=np.float32)


@pytest.fixture
def net():
    network = gs.Network([gs.Dense(1)], optimizer=gs.SGD(1e-4))
    network.fit(X, Y, epochs=1, verbose=0)
    return network


def _state(network):
    return [value.tobytes() for value in {**network.parameters(), **network.optimizer_state()}.values()]


# --------------------------------------------------------------------------------------------------
# Bad input


def _with(index, value, array=X):
    changed = array.copy()
    changed[index] = value
    return changed


BAD_X = [
    (_with((2, 1), np.nan), ValueError, r"X must be finite, but X\[2, 1\] = nan \(row 2, column 1"),
    (_with((3, 0), -np.inf), ValueError, r"X must be finite, but X\[3, 0\] = -inf"),
    (
        _with((1, 2), 1e39, X.astype(np.float64)),
        ValueError,
        r"fit float32, but X\[1, 2\] = 1e\+39.*too large",
    ),
    (X[:, :2], ValueError, r"X must have 3 column\(s\), the network's input width, got 2"),
    (X[:0], ValueError, r"at least one row and one column, got shape \(0, 3\)"),
    (X[:, :0], ValueError, r"at least one row and one column, got shape \(4, 0\)"),
    (X[0], ValueError, r"two dimensions \(rows, columns\), got shape \(3,\); use .*X.reshape\(1, -1\) if"),
    (X[None], ValueError, r"two dimensions \(rows, columns\), got shape \(1, 4, 3\)"),
    (3.0, ValueError, r"two dimensions \(rows, columns\), got shape \(\)"),
    ([[1, 2, 3], [1, 2]], ValueError, "X must be a regular array, but its rows differ in length"),
    ([["1", "2", "a"]], TypeError, r"X must hold numbers, but X\[0, 0\] = '1' is a string"),
    ([[1.0, "x", 3.0]], TypeError, "X must hold numbers"),
    (np.array([[1, "x", 3]], dtype=object), TypeError, r"X\[0, 1\] = 'x' is a string"),
    (np.array([[1, None, 3]], dtype=object), TypeError, r"X\[0, 1\] = None is of type NoneType"),
    (pd.DataFrame({"a": [1.0], "b": ["u"], "c": [2.0]}), TypeError, r"X\[0, 1\] = 'u' is a string"),
    (X.astype(complex), TypeError, "X must hold real numbers, got dtype complex128"),
    (X.astype("datetime64[s]"), TypeError, "X must hold real numbers, got dtype datetime64"),
    (None, TypeError, "X must be an array of numbers, got NoneType"),
    ({"a": 1}, TypeError, "X must be an array of numbers, got dict"),
    (np.ma.masked_equal(X, 4), ValueError, "X has masked values"),
]


@pytest.mark.parametrize("use", ["fit", "predict", "evaluate", "step", "loss_and_gradients", "trace"])
@pytest.mark.parametrize(("bad", "error", "message"), BAD_X)
def test_bad_inputs_are_one_sentence_and_change_nothing(net, use, bad, error, message):
    before, epochs = _state(net), net.epochs_trained
    arguments = (bad,) if use == "predict" else (bad, Y)
    options = {"epochs": 1, "verbose": 0} if use == "fit" else {}
    with pytest.raises(error, match=message) as caught:
        getattr(net, use)(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert (_state(net), net.epochs_trained) == (before, epochs)


BAD_FIT = [
    ({"y": Y[:3]}, ValueError, r"y must have as many rows as X \(4\), got 3"),
    ({"y": np.ones((4, 2))}, ValueError, r"y must have shape \(4, 1\), as the network has 1 output\(s\)"),
    ({"y": 1.0}, ValueError, r"y must have one entry per row of X \(4\), got the single value 1.0"),
    ({"y": _with(2, np.nan, Y)}, ValueError, r"y must be finite, but y\[2, 0\] = nan"),
    ({"y": list("abcd")}, TypeError, r"y must hold numbers, but y\[0\] = 'a' is a string"),
    ({"sample_weight": Y[:3]}, ValueError, r"sample_weight must have as many rows as X \(4\), got 3"),
    ({"sample_weight": -Y}, ValueError, r"sample_weight must not be negative, but sample_weight\[0\] = -1"),
    ({"sample_weight": 0 * Y}, ValueError, "sample_weight must not be all zero"),
    (
        {"sample_weight": np.array([1e-40] + [1.0] * (len(Y) - 1))},
        ValueError,
        r"sample_weight must be 0 or at least 1e-30 times its largest value, .* = 1e-40",
    ),
    ({"sample_weight": _with(1, np.inf, Y)}, ValueError, r"sample_weight\[1\] = inf"),
    ({"sample_weight": np.ones((4, 1))}, ValueError, r"sample_weight must have shape \(4,\), got \(4, 1\)"),
    ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
    ({"epochs": 2.0}, TypeError, "epochs must be an integer, got 2.0"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ({"batch_size": -5}, ValueError, "batch_size must be at least 1, got -5"),
    ({"batch_size": 5}, ValueError, r"batch_size must be at most the number of rows \(4\), got 5"),
    ({"batch_size": "all"}, TypeError, "batch_size must be an integer, got 'all'"),
    ({"shuffle": "yes"}, TypeError, "shuffle must be True or False, got 'yes'"),
    ({"verbose": "no"}, TypeError, "verbose must be an integer, got 'no'"),
    ({"callbacks": gs.EarlyStopping()}, TypeError, "callbacks must be a list of callbacks"),
    ({"callbacks": [print]}, TypeError, "callbacks must be instances of Callback"),
    ({"validation_data": X}, TypeError, r"validation_data must be \(X, y\) or \(X, y, sample_weight\)"),
    ({"validation_data": (X[:, :1], Y)}, ValueError, r"validation_data\[0\] must have 3 column"),
    ({"validation_data": (X, Y[:2])}, ValueError, r"validation_data\[1\] must have as many rows"),
    ({"validation_data": (X, Y, -Y)}, ValueError, r"validation_data\[2\] must not be negative"),
]


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD_FIT)
def test_bad_arguments_of_fit_are_one_sentence_and_change_nothing(net, new, arguments, error, message):
    if new:
        net = gs.Network([gs.Dense(1)], preprocessing="standardize")
    before = None if new else _state(net)
    with pytest.raises(error, match=message):
        net.fit(**{"X": X, "y": Y, "epochs": 1, "verbose": 0, **arguments})
    if new:
        assert net.n_in is None
        assert net.config["preprocessing"]["shift"] is None
    else:
        assert _state(net) == before


BAD_LABELS = [
    ([0, 1, 3, 0], ValueError, r"labels in y must be 0 to 2, as the network has 3 outputs, but y\[2\] = 3"),
    ([0, 1, -1, 0], ValueError, r"labels in y must be 0 to 2.*y\[2\] = -1"),
    ([0, 1.5, 1, 0], ValueError, r"y must hold integer labels, but y\[1\] = 1.5"),
    ([0, 1, np.nan, 0], ValueError, r"y must be finite, but y\[2\] = nan"),
    (["a", "b", "c", "a"], TypeError, r"y must hold numbers, but y\[0\] = 'a' is a string"),
    (np.full((4, 3), 1 / 3), ValueError, r"must be one-hot \(a single 1, else 0\), but row 0 is \[0.333"),
    (np.ones((4, 3)), ValueError, r"must be one-hot .* row 0 is \[1, 1, 1\]"),
    (np.zeros((4, 2)), ValueError, r"one label per row or one-hot rows of width 3, got shape \(4, 2\)"),
    (np.array([0, 1, 2**40, 0]), ValueError, "labels in y must be 0 to 2"),
]


@pytest.mark.parametrize("use", ["fit", "step", "evaluate"])
@pytest.mark.parametrize(("bad", "error", "message"), BAD_LABELS)
def test_bad_labels_are_one_sentence(use, bad, error, message):
    network = gs.Network([gs.Input(3), gs.Dense(3)], loss="cross_entropy")
    with pytest.raises(error, match=message):
        getattr(network, use)(X, bad)


@pytest.mark.parametrize("label", [-1, 3, -(2**31)])
def test_the_short_way_of_step_refuses_labels_out_of_range(label):
    """The engine would read beyond its memory."""
    network = gs.Network([gs.Input(3), gs.Dense(3)], loss="cross_entropy")
    network.step(X, np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="labels in y must be 0 to 2"):
        network.step(X, np.array([0, 0, 0, label], np.int32))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_the_short_ways_refuse_what_is_not_finite(wrong):
    """Arrays that need no conversion skip most of the checks, but not this one."""
    network = gs.Network([gs.Input(3), gs.Dense(1)])
    y = np.ones((4, 1), np.float32)
    network.step(X, y)
    before = _state(network)
    bad_X, bad_y = _with((1, 2), wrong), _with((2, 0), wrong, y)
    with pytest.raises(ValueError, match=r"X must be finite, but X\[1, 2\]"):
        network.step(bad_X, y)
    with pytest.raises(ValueError, match=r"y must be finite, but y\[2, 0\]"):
        network.step(X, bad_y)
    with pytest.raises(ValueError, match=r"X must be finite, but X\[1, 2\]"):
        network.predict(bad_X)
    assert _state(network) == before


def test_probabilities_out_of_range_are_one_sentence():
    network = gs.Network([gs.Input(3), gs.Dense(2)], loss="binary_cross_entropy")
    y = np.zeros((4, 2), np.float32)
    network.step(X, y)
    y[1, 1] = 2
    with pytest.raises(ValueError, match=r"y must be between 0 and 1.*y\[1, 1\] = 2.0"):
        network.step(X, y)


BAD_NETWORKS = [
    ({"loss": "msee"}, ValueError, "unknown loss 'msee', did you mean 'mse'"),
    ({"optimizer": "adamm"}, ValueError, "did you mean 'adam"),
    ({"l2": -1.0}, ValueError, "l2 must be at least 0, got -1"),
    ({"seed": -1}, ValueError, "seed must be at least 0"),
    ({"seed": 2**64}, ValueError, "seed must be at most 18446744073709551615"),
    ({"seed": 1.0}, TypeError, "seed must be an integer"),
    ({"dtype": "float16"}, ValueError, "unknown dtype 'float16'"),
    ({"dtype": int}, ValueError, "unknown dtype 'int'"),
    ({"backend": "nunpy"}, ValueError, "unknown backend 'nunpy', did you mean 'numpy'"),
    ({"preprocessing": "standardise"}, ValueError, "did you mean 'standardize'"),
    ({"layers": []}, ValueError, "at least one Dense layer"),
    (
        {"layers": [gs.Dense(1)], "loss": "cross_entropy"},
        ValueError,
        "at least 2, for 'cross_entropy', got 1",
    ),
    (
        {"layers": [gs.Dense(1, "sigmoid")], "loss": "binary_cross_entropy"},
        ValueError,
        r"activation 'identity' for the loss 'binary_cross_entropy'.*got 'sigmoid'",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_NETWORKS)
def test_bad_networks_are_one_sentence(arguments, error, message):
    with pytest.raises(error, match=message):
        gs.Network(**{"layers": [gs.Dense(1)], **arguments})


# --------------------------------------------------------------------------------------------------
# Good input


def test_matching_arrays_are_not_copied():
    assert check_inputs(X, "float32", 3) is X
    y = np.ones((4, 1), np.float32)
    assert check_values(y, "float32", 4, 1) is y
    assert np.shares_memory(check_values(Y, "float32", 4, 1), Y)
    labels = np.zeros(4, np.int32)
    assert check_labels(labels, "float32", 4, 3) is labels
    assert check_weight(Y, "float32", 4) is Y


def test_a_memory_map_is_used_in_place(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(4, 3))
    assert np.shares_memory(check_inputs(mapped, "float32", 3), mapped)


def _layouts(array, folder):
    """The same values as anything that numpy can view."""
    wide = np.zeros((len(array), 2 * array.shape[1]), array.dtype)
    wide[:, ::2] = array
    read_only = array.copy()
    read_only.flags.writeable = False
    (folder / "rows").write_bytes(array.tobytes())
    misaligned = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    return {
        "contiguous": array,
        "Fortran": np.asfortranarray(array),
        "strided": wide[:, ::2],
        "reversed": array[::-1][::-1],
        "read-only": read_only,
        "misaligned": misaligned,
        "big-endian": array.astype(array.dtype.newbyteorder(">")),
        "memory-mapped": np.memmap(folder / "rows", array.dtype, "r", shape=array.shape),
        "float64": array.astype(np.float64),
        "longdouble": array.astype(np.longdouble),
        "list": array.tolist(),
        "objects": array.astype(object),
        "decimals": [[decimal.Decimal(str(value)) for value in row] for row in array],
        "pandas": pd.DataFrame(array),
        "polars": pl.DataFrame(array),
        "unmasked": np.ma.masked_array(array),
        "float16": array.astype(np.float16),
        "int8": array.astype(np.int8),
        "uint64": array.astype(np.uint64),
    }


def test_anything_numpy_can_view_gives_the_same_rows(tmp_path):
    for name, values in _layouts(X, tmp_path).items():
        rows = check_inputs(values, "float32", 3)
        assert rows.dtype == np.float32, name
        assert rows.flags.c_contiguous, name
        assert rows.flags.aligned, name
        np.testing.assert_array_equal(rows, X, err_msg=name)


def test_booleans_are_numbers():
    np.testing.assert_array_equal(check_inputs(X > 4, "float32", 3), X > 4)
    np.testing.assert_array_equal(check_labels([True, False], "float32", 2, 2), [1, 0])


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 1, 2],
        np.array([2, 0, 1, 2], np.uint8),
        np.array([2, 0, 1, 2], np.int64)[:, None],
        np.array([2.0, 0.0, 1.0, 2.0]),
        pd.Series([2, 0, 1, 2]),
        pl.Series([2, 0, 1, 2]),
        np.eye(3)[[2, 0, 1, 2]],
        np.eye(3, dtype=bool)[[2, 0, 1, 2]].tolist(),
    ],
)
def test_labels_become_int32(labels):
    checked = check_labels(labels, "float32", 4, 3)
    assert checked.dtype == np.int32
    np.testing.assert_array_equal(checked, [2, 0, 1, 2])


def test_probabilities_include_their_bounds():
    y = np.array([[0.0], [1.0], [0.5]])
    np.testing.assert_array_equal(check_probabilities(y, "float64", 3, 1), y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_finite_numbers_are_finite(dtype):
    """Their squares are not."""
    assert all_finite(np.full(5, np.finfo(dtype).max, dtype))
    assert not all_finite(np.array([1, np.inf], dtype))
    assert not all_finite(np.array([1, np.nan], dtype))


@pytest.mark.parametrize("position", [0, validation.BLOCK_ELEMENTS - 1, validation.BLOCK_ELEMENTS, 20_001])
def test_the_first_offender_is_found_in_every_block(position):
    flat = np.zeros(20_002, np.float32)
    flat[position:] = np.inf
    with pytest.raises(ValueError, match=rf"v\[{position}\] = inf"):
        numeric_array("v", flat, "float32")


WIDTHS = [(1, 1), (3, 1), (1, 4), (17, 33, 65, 3), (2, 1000, 2), (3, 1023, 3), (2, 1025, 5)]
DTYPES = ["float32", "float64", "float16", "int8", "uint8", "int64", "bool"]
LAYOUTS = ["contiguous", "Fortran", "strided", "read-only", "memory-mapped", "list"]


def _arrange(values, layout, folder):
    if layout == "Fortran":
        return np.asfortranarray(values)
    if layout == "strided":
        return np.repeat(np.repeat(values, 2, axis=0), 3, axis=1)[::2, ::3]
    if layout == "read-only":
        values.flags.writeable = False
    if layout == "memory-mapped":
        path = folder / f"{values.dtype}-{values.shape}"
        path.write_bytes(values.tobytes())
        return np.memmap(path, values.dtype, "r", shape=values.shape)
    return values.tolist() if layout == "list" else values


OPTIMIZERS = {
    "gradient_descent": gs.GradientDescent,
    "momentum": lambda rate: gs.SGD(rate / 3, momentum=0.9),
    "nesterov": lambda rate: gs.SGD(rate / 3, momentum=0.9, nesterov=True),
    "adam": gs.Adam,
    "adamw": lambda rate: gs.AdamW(rate, weight_decay=0.1),
}
TOLERANCE = {"float32": (3e-4, 1e-2), "float64": (1e-9, 1e-6)}
"""Of gradients at the start and of outputs after training, relative to the largest entry."""


def _assert_close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-3))


@pytest.mark.parametrize("backend_name", BACKENDS)
@settings(max_examples=40)
@given(
    widths=st.one_of(st.sampled_from(WIDTHS), st.lists(st.integers(1, 40), min_size=2, max_size=5)),
    rows=st.sampled_from([1, 2, 7, 33]),
    given_dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    loss=st.sampled_from(sorted(LOSSES)),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    weighted=st.booleans(),
    batch=st.integers(1, 33),
    seed=st.integers(0, 2**64 - 1),
)
def test_random_networks_train_on_random_data(
    tmp_path_factory,
    backend_name,
    widths,
    rows,
    given_dtype,
    layout,
    dtype,
    activation,
    loss,
    optimizer,
    weighted,
    batch,
    seed,
):
    kind, per_target = LOSSES[loss].targets, LOSSES[loss].outputs_per_target
    n_out = max(widths[-1], 2) if kind == "labels" else per_target * widths[-1]
    layers = [gs.Dense(units, activation) for units in widths[1:-1]] + [gs.Dense(n_out)]
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2 if given_dtype == "bool" else 5, (rows, widths[0])).astype(given_dtype)
    targets = rng.integers(0, 2, (rows, n_out // per_target))
    if kind == "labels":
        targets = rng.integers(0, n_out, rows)
    elif kind == "positive":
        targets += 1
    weight = rng.uniform(0.5, 2.0, rows) if weighted else None
    data = _arrange(values.copy(), layout, tmp_path_factory.getbasetemp())
    y = targets.copy()

    found = []
    for name in dict.fromkeys([backend_name, "numpy"]):
        network = gs.Network(
            layers,
            loss=loss,
            optimizer=OPTIMIZERS[optimizer](0.1 / (10 + max(widths))),
            preprocessing="standardize",
            l2=1e-3,
            seed=seed,
            backend=name,
            dtype=dtype,
        )
        network.prepare(data)
        value, gradients = network.loss_and_gradients(data, y, weight, input_gradient=True)
        history = network.fit(data, y, epochs=2, batch_size=min(batch, rows), sample_weight=weight, verbose=0)
        found.append((value, gradients, history.loss, network.predict(data)))
    (value, gradients, losses, outputs), (value_, gradients_, losses_, outputs_) = found[0], found[-1]
    at_start, at_end = TOLERANCE[dtype]
    _assert_close(value, value_, at_start)
    for name, gradient in gradients.items():
        _assert_close(gradient, gradients_[name], at_start)
    _assert_close(losses, losses_, at_end)
    _assert_close(outputs, outputs_, at_end)
    assert outputs.shape == (rows, n_out)
    np.testing.assert_array_equal(np.asarray(data), values)
    np.testing.assert_array_equal(y, targets)


def test_integers_too_large_for_float64_are_named():
    with pytest.raises(ValueError, match="l2 must fit float64, got an integer of 401 digits"):
        gs.Network([gs.Dense(1)], l2=10**400)
    X = np.array([[1, 2], [3, 10**400]], dtype=object)
    with pytest.raises(ValueError, match=r"X must fit float64, but X\[1, 1\] is too large"):
        gs.Network([gs.Dense(1)]).fit(X, [1.0, 2.0], verbose=0)


@pytest.mark.parametrize("size", [3e38, 1e-40, 1e-300, 1e300])
@pytest.mark.parametrize("backend_name", BACKENDS)
def test_only_ratios_of_sample_weights_matter(backend_name, size):
    rng = np.random.default_rng(0)
    X, y, ratio = rng.random((50, 3)), rng.random(50), rng.uniform(0.25, 1.0, 50)
    losses = []
    for weight in (ratio, ratio * size):
        net = gs.Network([gs.Dense(4, "tanh"), gs.Dense(1)], backend=backend_name)
        losses.append(net.fit(X, y, sample_weight=weight, epochs=3, batch_size=8, verbose=0).loss)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
