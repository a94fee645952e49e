"""Rows that come from files and memory maps in windows, from iterables of batches, and class by class."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from conftest import BACKENDS
from gradstep.random import balanced_order

RNG = np.random.default_rng(0)
X = RNG.normal(size=(500, 4)).astype(np.float32)
Y = (X[:, :2] ** 2 + X[:, 2:]).astype(np.float32)
LABELS = (X[:, 0] > 1).astype(np.int64) + (X[:, 1] > 1.5)
WEIGHT = (RNG.integers(0, 4, size=500) / 2).astype(np.float32)
SMALL = 40 * 28
"""Bytes of a window of 40 rows of X, Y and a weight."""


def make(backend="cpp" if "cpp" in BACKENDS else "numpy", outputs=2, **settings):
    name = backend if isinstance(backend, str) else backend.name
    return gs.Network([gs.Dense(8, "tanh"), gs.Dense(outputs)], **{"backend": name, **settings})


def small_source(weight=None):
    return gs.ArraySource(X, Y, weight, window_bytes=SMALL)


def assert_same_parameters(a, b, **tolerance):
    mine, other = a.parameters(), b.parameters()
    for name in mine:
        np.testing.assert_allclose(mine[name], other[name], err_msg=name, **{"rtol": 0, **tolerance})


class Recorder(gs.Source):
    """Rows that name themselves, in chunks of uneven size; remembers in which order they were read."""

    def __init__(self, chunks, window_bytes):
        super().__init__(window_bytes)
        self._chunks, self.order = chunks, []

    @property
    def chunks(self):
        return self._chunks

    def read(self, chunk, *, encoder=None, dtype=None):
        self.order.append(chunk)
        start = sum(self._chunks[:chunk])
        rows = np.arange(start, start + self._chunks[chunk], dtype=np.float32)[:, None]
        for piece in np.array_split(rows, 2):
            if len(piece):
                yield gs.Piece(piece, piece)


class EngineSpy:
    """An engine that notes which rows it was shown, in batches, and trains on none."""

    def __init__(self, engine):
        self.calls = []
        self.engine = engine

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def train(self, X, y, weight, **options):
        self.calls.append((X[:, 0].copy(), options))
        return self.engine.train(X, y, weight, **options)


def spied(net, *data, **settings):
    net.prepare(np.zeros((2, 1)))
    net._engine = EngineSpy(net._built())
    net.fit(*data, verbose=0, **settings)
    return net._engine.calls


# --------------------------------------------------------------------------------------------------
# Windows


def test_an_epoch_shows_every_row_once_in_whole_batches():
    source = Recorder([7, 30, 1, 25, 50, 9, 40], window_bytes=12 * 30)
    calls = spied(make(outputs=1), source, epochs=3, batch_size=8)
    assert len(calls) == 3 * 7  # windows of 24 rows, and one of 18
    for epoch in range(3):
        windows = [rows for rows, _ in calls[7 * epoch : 7 * epoch + 7]]
        assert sorted(np.concatenate(windows)) == list(range(162))
        assert all(len(rows) == 24 for rows in windows[:-1])
    assert source.order[:7] != source.order[7:14]
    assert sorted(source.order[:7]) == list(range(7))
    assert len({options["seed"] for _, options in calls}) == len(calls)


def test_without_shuffling_a_source_trains_as_its_arrays_do(backend):
    for weight in (None, WEIGHT):
        plain, streamed = (make(backend, preprocessing="standardize", seed=3) for _ in range(2))
        settings = {"epochs": 2, "batch_size": 16, "shuffle": False, "verbose": 0}
        expected = plain.fit(X, Y, sample_weight=weight, **settings)
        history = streamed.fit(small_source(weight), **settings)
        assert_same_parameters(plain, streamed)
        assert history.loss == pytest.approx(expected.loss, rel=1e-6)
        assert history.samples == 1000


def test_shuffled_windows_train_alike_on_every_backend(fast_backend, reference):
    nets = [make(backend, dtype="float64", seed=5) for backend in (fast_backend, reference)]
    losses = [net.fit(small_source(), epochs=3, batch_size=7, verbose=0).loss for net in nets]
    np.testing.assert_allclose(*losses, rtol=1e-9)
    assert_same_parameters(*nets, rtol=1e-7, atol=1e-9)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="only the compiled backend promises the same bits")
def test_windows_give_the_same_bits_for_any_number_of_threads():
    before = gs.get_num_threads()
    nets = [make("cpp", seed=5) for _ in range(2)]
    try:
        for threads, net in enumerate(nets, 1):
            gs.set_num_threads(threads)
            net.fit(small_source(), epochs=2, batch_size=20, verbose=0)
    finally:
        gs.set_num_threads(before)
    assert_same_parameters(*nets)


def test_training_on_windows_goes_on_where_it_stopped(backend):
    whole, parts = make(backend), make(backend)
    whole.fit(small_source(), epochs=3, verbose=0)
    parts.fit(small_source(), epochs=1, verbose=0)
    parts.fit(small_source(), epochs=2, verbose=0)
    assert_same_parameters(whole, parts)


def test_another_seed_shuffles_chunks_and_windows_otherwise():
    first, second = (
        spied(make(outputs=1, seed=seed), Recorder([10] * 20, 12 * 40), epochs=1, batch_size=8)
        for seed in (0, 1)
    )
    assert not np.array_equal(first[0][0], second[0][0])
    assert first[0][1]["seed"] != second[0][1]["seed"]


def test_a_memory_map_of_another_dtype_is_converted_window_by_window(tmp_path):
    images = RNG.integers(0, 256, size=(300, 6), dtype=np.uint8)
    mapped = np.memmap(tmp_path / "images", np.uint8, "w+", shape=images.shape)
    mapped[:] = images
    nets = [make(outputs=1, preprocessing="minmax") for _ in range(2)]
    nets[0].fit(gs.ArraySource(mapped, images[:, 0], window_bytes=2000), epochs=1, shuffle=False, verbose=0)
    nets[1].fit(images, images[:, 0], epochs=1, shuffle=False, verbose=0)
    assert_same_parameters(*nets)


def test_statistics_do_not_depend_on_how_rows_are_cut():
    from gradstep.preprocessing import RunningStatistics, column_statistics

    rows = RNG.normal(size=(40_000, 3)) * 5 + 2
    running = RunningStatistics(3)
    for piece in np.split(rows, [1, 7, 5000, 5001, 20_000]):
        running.add(piece)
    whole, cut = column_statistics(rows), running.result()
    for name in ("mean", "deviation", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(cut, name))
    np.testing.assert_allclose(cut.deviation, rows.std(axis=0))


def test_accumulated_batches_of_a_source_are_one_larger_batch(backend):
    accumulated, larger = make(backend), make(backend)
    accumulated.fit(small_source(WEIGHT), epochs=2, batch_size=8, accumulate=3, verbose=0)
    larger.fit(small_source(WEIGHT), epochs=2, batch_size=24, verbose=0)
    assert_same_parameters(accumulated, larger)
    assert accumulated.optimizer_state()["step"] == larger.optimizer_state()["step"]


BALANCED = len(LABELS) / 3 / np.bincount(LABELS)


@pytest.mark.parametrize(
    ("class_weight", "factors"), [({1: 3.0, 2: 0.5}, np.array([1, 3, 0.5])), ("balanced", BALANCED)]
)
@pytest.mark.parametrize("own", [None, WEIGHT])
def test_class_weights_of_a_source_are_the_sample_weights_that_they_stand_for(class_weight, factors, own):
    weights = factors[LABELS] * (1 if own is None else own)
    nets = [make(outputs=3, loss="cross_entropy") for _ in range(2)]
    given, meant = (gs.ArraySource(X, LABELS, each, window_bytes=SMALL) for each in (own, weights))
    nets[0].fit(given, epochs=2, class_weight=class_weight, verbose=0)
    nets[1].fit(meant, epochs=2, verbose=0)
    assert_same_parameters(*nets)


def test_class_weights_multiply_the_weights_as_they_were_given():
    weight = RNG.random(500)
    nets = [make(outputs=3, loss="cross_entropy") for _ in range(2)]
    settings = {"epochs": 2, "class_weight": {1: 3.1, 2: 0.7}, "shuffle": False, "verbose": 0}
    nets[0].fit(gs.ArraySource(X, LABELS, weight, window_bytes=SMALL), **settings)
    nets[1].fit(X, LABELS, sample_weight=weight, **settings)
    assert_same_parameters(*nets)


@pytest.mark.parametrize("preprocessing", ["none", "standardize"])
def test_a_source_without_rows_is_refused(preprocessing):
    for net in (make(preprocessing=preprocessing), make()):
        if preprocessing == "none":
            net.prepare(X, Y)
        for call in (net.fit, net.prepare):
            with pytest.raises(ValueError, match="the source must have at least one row, got none"):
                call(Recorder([], SMALL))


def test_targets_between_two_classes_are_named_by_their_rows():
    y = (X[:, 0] > 0) * 0.5
    net = make(outputs=1, loss="binary_cross_entropy")
    for class_weight in ("balanced", {1: 2.0}):
        with pytest.raises(ValueError, match=r"rows \d+ to \d+: class_weight needs targets that are 0 or 1"):
            net.fit(gs.ArraySource(X, y, window_bytes=SMALL), class_weight=class_weight, verbose=0)


def test_callbacks_validation_and_schedules_work_on_a_source(backend):
    steps = []

    def schedule(step):
        steps.append(step)
        return 1.0

    stopping = gs.EarlyStopping(patience=1, min_delta=100.0)
    history = make(backend).fit(
        small_source(),
        epochs=5,
        batch_size=16,
        validation_data=(X, Y),
        callbacks=[stopping],
        schedule=schedule,
        verbose=0,
    )
    assert history.stopped == "callback"
    assert len(history) == len(history.val_loss) == 2
    assert steps == list(range(2 * 32))
    plain, warmed = make(backend), make(backend)
    plain.fit(X, Y, epochs=2, batch_size=16, shuffle=False, schedule=gs.Cosine(), verbose=0)
    warmed.fit(small_source(), epochs=2, batch_size=16, shuffle=False, schedule=gs.Cosine(), verbose=0)
    assert_same_parameters(plain, warmed)


def test_divergence_and_bad_rows_leave_the_network_of_the_last_good_epoch(backend):
    good, diverging = make(backend), make(backend, optimizer=gs.SGD(0.01))
    diverging.fit(small_source(), epochs=1, verbose=0)
    kept = diverging.parameters()
    diverging.learning_rate = 1e30
    with pytest.raises(gs.DivergenceError, match="last good parameters"):
        diverging.fit(small_source(), epochs=2, verbose=0)
    for name, value in diverging.parameters().items():
        np.testing.assert_array_equal(value, kept[name])

    bad = X.copy()
    bad[444, 2] = np.nan
    good.fit(small_source(), epochs=1, verbose=0)
    kept = good.parameters()
    with pytest.raises(ValueError, match=r"rows 444 to 447: X must be finite, but X\[0, 2\] = nan"):
        good.fit(gs.ArraySource(bad, Y, window_bytes=SMALL), epochs=1, shuffle=False, verbose=0)
    assert good.history.stopped == "failed"
    for name, value in good.parameters().items():
        np.testing.assert_array_equal(value, kept[name])
    assert not any(thread.name.startswith("gradstep-reader") for thread in threading.enumerate())


def test_ctrl_c_while_a_window_is_read_ends_training():
    class Interrupting(Recorder):
        def read(self, chunk, **options):
            if len(self.order) == 12:
                os.kill(os.getpid(), signal.SIGINT)
            return super().read(chunk, **options)

    history = make(outputs=1).fit(Interrupting([10] * 10, 12 * 20), epochs=50, batch_size=5, verbose=0)
    assert history.interrupted
    assert len(history) < 50
    assert not any(thread.name.startswith("gradstep-reader") for thread in threading.enumerate())


def test_nothing_changes_when_a_source_is_refused():
    net = make(outputs=3, loss="cross_entropy", preprocessing="standardize")
    with pytest.raises(ValueError, match="rows 0 to 3: y must"):
        net.fit(gs.ArraySource(X, Y, window_bytes=SMALL), verbose=0)
    assert net.n_in is None
    refused = [
        ({"y": Y}, TypeError, "y must not be given with a source"),
        ({"sample_weight": WEIGHT}, TypeError, "sample_weight must be part of the source"),
        ({"sampling": "balanced"}, ValueError, "sampling='balanced' needs X and y"),
        ({"batch_size": 501}, ValueError, "batch_size must be at most"),
        ({"class_weight": "balanced"}, ValueError, "class_weight needs a loss for classes"),
        ({"metrics": ["mae"]}, ValueError, r"metrics=... without validation_data needs X and y"),
    ]
    net = make()
    for settings, error, message in refused:
        with pytest.raises(error, match=message):
            net.fit(small_source(), **settings, verbose=0)
    assert net.n_in is None
    for given in (small_source(), [(X, Y)]):  # one call of the engine is not one epoch
        with pytest.raises(ValueError, match=r"averaging=SWA.* needs X and y"):
            make(averaging=gs.SWA(1)).fit(given, verbose=0)
    with pytest.raises(ValueError, match="batch_size must be given"):
        make(optimizer="gradient_descent").fit(small_source(), verbose=0)
    with pytest.raises(ValueError, match="y must have as many rows as X"):
        gs.ArraySource(X, Y[:-1])
    with pytest.raises(ValueError, match="chunk 0 of the source must have 9 rows, but 10 were read"):
        liar = Recorder([10], 1000)
        liar.read = lambda chunk, **options: iter([gs.Piece(X[:10, :1], X[:10, :1])])
        liar._chunks = [9]
        make(outputs=1).fit(liar, verbose=0, batch_size=3)


# --------------------------------------------------------------------------------------------------
# Batches


def batches(weight=None):
    for rows in np.split(np.arange(500), [3, 100, 101, 260]):
        yield (X[rows], Y[rows]) if weight is None else [X[rows], Y[rows], weight[rows]]


@pytest.mark.parametrize("weight", [None, WEIGHT + 1])
def test_every_batch_of_an_iterable_is_one_update(backend, weight):
    net, stepped = make(backend), make(backend)
    history = net.fit(lambda: batches(weight), epochs=2, verbose=0)
    losses = []
    for _ in range(2):
        parts = list(batches(weight))
        sums = [len(part[0]) if weight is None else part[2].sum() for part in parts]
        losses.append(np.average([stepped.step(*part) for part in parts], weights=sums))
    assert history.loss == pytest.approx(losses, rel=1e-6)
    assert history.samples == 1000
    assert_same_parameters(net, stepped)
    listed = make(backend)
    listed.fit(list(batches(weight)), epochs=2, verbose=0)
    assert_same_parameters(net, listed)


def test_batches_are_recut_with_a_batch_size():
    net, plain = make(), make()
    settings = {"batch_size": 32, "shuffle": False, "verbose": 0}
    net.fit(batches(), epochs=1, **settings)
    plain.fit(X, Y, epochs=1, **settings)
    assert_same_parameters(net, plain)


@pytest.mark.parametrize("weight", [None, WEIGHT + 1])
def test_accumulated_batches_of_an_iterable_are_one_update(backend, weight):
    net, stepped = make(backend), make(backend)
    net.fit(lambda: batches(weight), epochs=1, accumulate=2, schedule=lambda step: 1 / (1 + step), verbose=0)
    rate = stepped.learning_rate
    for step, rows in enumerate(np.split(np.arange(500), [100, 260])):  # batches 0 and 1, 2 and 3, 4
        stepped.learning_rate = rate / (1 + step)
        stepped.step(X[rows], Y[rows], None if weight is None else weight[rows])
    assert_same_parameters(net, stepped)


def test_a_schedule_over_the_whole_training_counts_accumulated_updates():
    net, plain = make(), make()
    listed = list(batches())
    net.fit(listed, epochs=2, accumulate=2, schedule=gs.Cosine(), verbose=0)
    plain.fit(listed, epochs=2, accumulate=2, schedule=gs.Cosine(6), verbose=0)
    assert_same_parameters(net, plain)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_batches_all_have_weights_or_none(accumulate):
    listed = [(X, Y), (X, Y), (X, Y, WEIGHT), (X, Y, WEIGHT)]
    with pytest.raises(ValueError, match="batch 2: either all batches must have sample weights or none"):
        make().fit(listed, epochs=1, accumulate=accumulate, verbose=0)


@pytest.mark.parametrize("settings", [{"accumulate": 2}, {"batch_size": 32}])
def test_batches_that_are_put_together_are_alike(settings):
    def loss(y, outputs, weight):
        return weight @ ((outputs - y[:, :1]) ** 2).sum(axis=1), 2 * weight[:, None] * (outputs - y[:, :1])

    for second, words in (
        ((X, Y[:, :1]), r"batch 1: rows of y must have shape \(2,\) as in the first batch, got \(1,\)"),
        ((X, Y, WEIGHT), "batch 1: either all batches must have sample weights or none"),
    ):
        with pytest.raises(ValueError, match=words):
            make(loss=loss).fit([(X, Y), second], epochs=1, verbose=0, **settings)


def test_an_epoch_of_weights_of_zero_trains_on_nothing_and_says_so(backend):
    net = make(backend, outputs=3, loss="cross_entropy")
    net.prepare(X, LABELS)
    before = net.parameters()
    with pytest.raises(ValueError, match="the sample weights of an epoch must not be all zero"):
        net.fit([(X, np.minimum(LABELS, 1))], epochs=1, class_weight={0: 0, 1: 0}, verbose=0)
    for name, value in net.parameters().items():
        np.testing.assert_array_equal(value, before[name])


def test_accumulated_batches_may_come_in_the_same_arrays():
    def refilled():
        x, y = np.empty((100, 4), np.float32), np.empty((100, 2), np.float32)
        for start in range(0, 500, 100):
            x[...], y[...] = X[start : start + 100], Y[start : start + 100]
            yield x, y

    nets = make(), make()
    nets[0].fit(refilled, epochs=1, accumulate=2, verbose=0)
    nets[1].fit(
        [(X[i : i + 100], Y[i : i + 100]) for i in range(0, 500, 100)], accumulate=2, epochs=1, verbose=0
    )
    assert_same_parameters(*nets)


def test_refused_class_weights_leave_an_iterator_where_it_was():
    given = iter([(X[:100], LABELS[:100]), (X[100:], LABELS[100:])])
    net = make(outputs=3, loss="cross_entropy", preprocessing="none")
    for class_weight in ("balanced", {9: 1.0}, {0: 0, 1: 0, 2: 0}):
        with pytest.raises(ValueError, match="class_weight"):
            net.fit(given, epochs=1, class_weight=class_weight, verbose=0)
    assert len(list(given)) == 2


@pytest.mark.parametrize("batch_size", [0, 2.5, "all"])
def test_a_refused_batch_size_leaves_an_iterator_where_it_was(batch_size):
    given = iter([(X[:100], Y[:100]), (X[100:], Y[100:])])
    with pytest.raises((TypeError, ValueError), match="batch_size must be"):
        make(preprocessing="none").fit(given, epochs=1, batch_size=batch_size, verbose=0)
    assert len(list(given)) == 2


def test_a_class_without_rows_when_they_were_counted_is_named():
    asked = []

    def changing():
        asked.append(0)
        yield X, np.minimum(LABELS, 1 if len(asked) == 1 else 2)

    net = make(outputs=3, loss="cross_entropy")
    net.classes = ["low", "middle", "high"]
    with pytest.raises(ValueError, match="batch 0: y has the class high, which had no rows when"):
        net.fit(changing, epochs=1, class_weight="balanced", verbose=0)


def test_batches_that_cannot_be_counted_are_named():
    net = make(outputs=3, loss="cross_entropy")
    for bad in ((X[:0], LABELS[:0]), (X, 3), (X, LABELS[:5])):
        with pytest.raises((TypeError, ValueError), match=r"^batch 1: [Xy] must"):
            net.fit([(X, LABELS), bad], epochs=1, class_weight="balanced", verbose=0)


def test_balanced_class_weights_take_a_pass_of_their_own_over_batches():
    def labelled():
        for rows in np.split(np.arange(500), [3, 100, 260]):
            yield X[rows], LABELS[rows]

    balanced, meant = (make(outputs=3, loss="cross_entropy") for _ in range(2))
    balanced.fit(labelled, epochs=1, class_weight="balanced", verbose=0)
    meant.fit(labelled(), epochs=1, class_weight=dict(enumerate(BALANCED)), verbose=0)
    assert_same_parameters(balanced, meant)
    with pytest.raises(ValueError, match="class_weight='balanced' needs a pass of its own"):
        balanced.fit(labelled(), epochs=1, class_weight="balanced", verbose=0)


def test_preprocessing_takes_a_pass_of_its_own_over_batches():
    net, plain = (make(preprocessing="standardize", target_preprocessing="standardize") for _ in range(2))
    net.fit(lambda: batches(), epochs=1, verbose=0)
    plain.prepare(X, Y)
    plain.fit(lambda: batches(), epochs=1, verbose=0)
    assert_same_parameters(net, plain)
    with pytest.raises(ValueError, match="can be read only once"):
        make(preprocessing="standardize").fit(batches(), epochs=1, verbose=0)


def test_what_is_no_iterable_of_batches_is_refused_in_one_sentence():
    refused = [
        (batches(), ValueError, "this generator can be read only once, not for 2 epochs"),
        (X, TypeError, r"batches must be \(X, y\).*is y missing\?"),
        (3, TypeError, "y is missing"),
        ([], ValueError, "at least one batch"),
        ([(X, Y), (X, Y[:3])], ValueError, "batch 1: y must have as many rows"),
        (lambda: 3, TypeError, "the function must return an iterator"),
    ]
    for given, error, message in refused:
        with pytest.raises(error, match=message):
            make().fit(given, epochs=2, verbose=0)
    with pytest.raises(ValueError, match="the number of batches is not known"):
        make().fit(batches, epochs=2, schedule=gs.LinearWarmup(2, gs.Cosine()), verbose=0)
    make().fit(list(batches()), epochs=2, schedule=gs.Cosine(), verbose=0)


# --------------------------------------------------------------------------------------------------
# Balanced draws


def test_balanced_draws_make_every_class_equally_likely():
    labels = np.repeat([0, 2, 3], [9000, 900, 100])
    order = balanced_order(labels, seed=4, epoch=2)
    assert len(order) == 10_000
    share = np.bincount(labels[order], minlength=4) / 10_000
    np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.02)
    drawn = np.bincount(order[labels[order] == 3] - 9900, minlength=100)
    assert drawn.min() > 10
    assert drawn.max() < 70
    assert not np.array_equal(order, balanced_order(labels, seed=4, epoch=3))
    np.testing.assert_array_equal(order, balanced_order(labels, seed=4, epoch=2))


def test_balanced_training_steps_over_the_drawn_rows(backend):
    net, stepped = (make(backend, 3, loss="cross_entropy", dtype="float64", seed=4) for _ in range(2))
    history = net.fit(X, LABELS, epochs=2, batch_size=64, sampling="balanced", verbose=0)
    for epoch in range(2):
        order = balanced_order(LABELS, 4, epoch)
        parts = [order[start : start + 64] for start in range(0, 500, 64)]
        losses = [stepped.step(X[rows], LABELS[rows]) for rows in parts]
        assert history.loss[epoch] == pytest.approx(np.average(losses, weights=[len(p) for p in parts]))
    assert_same_parameters(net, stepped, rtol=1e-9, atol=1e-12)


def test_balanced_training_finds_a_rare_class():
    rare = (X[:, 0] > 1.8).astype(int)
    net = make(outputs=1, loss="binary_cross_entropy", optimizer=gs.Adam(0.01))
    net.fit(X, rare, epochs=5, sampling="balanced", verbose=0)
    assert net.predict(X[rare == 1]).mean() > 0.5
    for loss, y in (("mse", rare), ("binary_cross_entropy", rare * 0.5)):
        with pytest.raises(ValueError, match="needs classes"):
            make(outputs=1, loss=loss).fit(X, y, sampling="balanced", verbose=0)
    with pytest.raises(ValueError, match="shuffle must be True"):
        net.fit(X, rare, sampling="balanced", shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="sampling"):
        net.fit(X, rare, sampling="balance", verbose=0)


# --------------------------------------------------------------------------------------------------
# Parquet


@pytest.fixture
def parquet(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def write(name="rows.parquet", rows=slice(None), row_group_size=64, **columns):
        table = {f"x{j}": X[rows, j] for j in range(4)}
        table.update(a=Y[rows, 0], b=Y[rows, 1], w=WEIGHT[rows], **columns)
        pq.write_table(pa.table(table), tmp_path / name, row_group_size=row_group_size)
        return tmp_path / name

    return write


@pytest.mark.parametrize("row_group_size", [13, 64, 500])
def test_parquet_rows_are_those_of_the_file(parquet, row_group_size):
    path = parquet(row_group_size=row_group_size)
    source = gs.ParquetSource(path, ["a", "b"], weight="w", window_bytes=SMALL)
    assert len(source) == 500
    assert source.columns == ("x0", "x1", "x2", "x3")
    for position, expected in enumerate((X, Y, WEIGHT)):
        np.testing.assert_array_equal(np.concatenate([piece[position] for piece in source]), expected)
    nets = [make(preprocessing="standardize") for _ in range(2)]
    nets[0].fit(source, epochs=2, batch_size=16, shuffle=False, verbose=0)
    nets[1].fit(X, Y, sample_weight=WEIGHT, epochs=2, batch_size=16, shuffle=False, verbose=0)
    assert_same_parameters(*nets)
    assert make().fit(source, epochs=3, verbose=0).samples == 1500


def test_several_files_and_numbers_of_other_types(parquet):
    counts = np.arange(500) - 250
    extra = {"flag": X[:, 0] > 0, "count": counts}
    files = [
        parquet(f"{i}.parquet", rows, **{name: values[rows] for name, values in extra.items()})
        for i, rows in enumerate((slice(0, 200), slice(200, 500)))
    ]
    source = gs.ParquetSource(files, "a", columns=["count", "x1", "flag"])
    rows = np.concatenate([features for features, _ in source])
    np.testing.assert_array_equal(rows, np.stack([counts, X[:, 1], X[:, 0] > 0], axis=1))
    assert next(source.read(0, dtype="float32")).X.dtype == np.float32
    make(outputs=1).fit(source, epochs=1, verbose=0)


def test_an_encoder_fitted_on_a_sample_takes_the_columns_of_a_file(parquet):
    pytest.importorskip("narwhals")
    pa = pytest.importorskip("pyarrow")
    city = np.array(["Oslo", "Bergen", "Molde"])[LABELS]
    source = gs.ParquetSource(parquet(city=city), "a", columns=["x0", "city"])
    with pytest.raises(TypeError, match="column 'city' must hold numbers, got"):
        make(outputs=1).fit(source, verbose=0)
    sample = source.sample(50)
    np.testing.assert_array_equal(sample["x0"].to_numpy(), X[::10, 0])
    assert source.sample(10**6).num_rows == 500
    nets = [make(outputs=1) for _ in range(2)]
    for net in nets:
        net.encoder = gs.TableEncoder().fit(source.sample())
    nets[0].fit(source, epochs=1, shuffle=False, verbose=0)
    nets[1].fit(pa.table({"x0": X[:, 0], "city": city}), Y[:, 0], epochs=1, shuffle=False, verbose=0)
    assert_same_parameters(*nets)


def test_a_file_turned_into_a_memory_map_holds_the_same_rows(parquet, tmp_path):
    source = gs.ParquetSource(parquet(), ["a", "b"], weight="w")
    mapped = source.to_memory_map(tmp_path / "maps")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        "X.npy",
        "sample_weight.npy",
        "y.npy",
    ]
    nets = [make() for _ in range(2)]
    for net, rows in zip(nets, (source, mapped), strict=True):
        net.fit(rows, epochs=1, shuffle=False, verbose=0)
    assert_same_parameters(*nets)
    with pytest.raises(FileExistsError, match="name another folder"):
        source.to_memory_map(tmp_path / "maps")


def test_bad_parquet_files_are_refused_in_one_sentence(parquet, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = parquet()
    with pytest.raises(ValueError, match="'x9'"):
        gs.ParquetSource(path, "x9")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        gs.ParquetSource(tmp_path / "none.parquet", "a")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(ValueError, match="cannot be read as a Parquet file"):
        gs.ParquetSource(tmp_path / "text.parquet", "a")
    with pytest.raises(ValueError, match="neither target nor weight"):
        gs.ParquetSource(path, "a", columns=["a", "b"])
    holes = pa.table({"x": [1.0, None, 3.0], "y": [1.0, 2.0, 3.0]})
    pq.write_table(holes, tmp_path / "holes.parquet")
    with pytest.raises(ValueError, match="column 'x' has missing values, the first in row 1 of rows 0 to 2"):
        make(outputs=1).fit(gs.ParquetSource(tmp_path / "holes.parquet", "y"), verbose=0)
    with pytest.raises(ValueError, match="has no column 'x0'"):
        gs.ParquetSource([path, tmp_path / "holes.parquet"], "a")


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"gradstep\[parquet\]"):
        gs.ParquetSource("rows.parquet", "y")


# --------------------------------------------------------------------------------------------------
# Memory

TRAIN_WITHIN = """
    import resource, sys
    import numpy as np
    import gradstep as gs

    folder, kind = sys.argv[1:]

    def data(kind):
        def make(name):
            if kind == "parquet":
                return gs.ParquetSource(f"{folder}/{name}.parquet", "y", window_bytes=1 << 22)
            X = np.load(f"{folder}/{name}.npy", "r")
            return gs.ArraySource(X, X[:, 0], window_bytes=1 << 22)
        return make

    def network():
        return gs.Network([gs.Dense(8, "relu"), gs.Dense(1)], preprocessing="standardize")

    def used():
        lines = open("/proc/self/status").read().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))

    network().fit(data(kind)("tiny"), epochs=1, verbose=0)  # imports, and starts every thread
    limit = used() + {size} // 5
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        np.empty({size} // 4, np.uint8)
    except MemoryError:
        history = network().fit(data(kind)("big"), epochs=1, batch_size=1024, verbose=0)
        print(history.samples)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("kind", ["parquet", "memory map"])
def test_a_file_trains_under_a_memory_limit_of_a_fifth_of_it(kind, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows, width = 300_000, 100
    block = RNG.random((10_000, width), dtype=np.float32)
    for name, repeats in (("tiny", 1), ("big", rows // 10_000)):
        if kind == "parquet":
            table = pa.table({**{f"x{j}": block[:, j] for j in range(width)}, "y": block[:, 0]})
            path = tmp_path / f"{name}.parquet"
            with pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as writer:
                for _ in range(repeats):
                    writer.write_table(table)
        else:
            path = tmp_path / f"{name}.npy"
            big = np.lib.format.open_memmap(path, "w+", np.float32, (repeats * 10_000, width))
            for start in range(0, len(big), 10_000):
                big[start : start + 10_000] = block
    size = path.stat().st_size
    assert size > 115e6
    script = textwrap.dedent(TRAIN_WITHIN).replace("{size}", str(size))
    environment = {**os.environ, "PYTHONPATH": str(Path(gs.__file__).parent.parent)}
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), kind], env=environment, capture_output=True, text=True
    )
    assert result.stdout.strip() == str(rows), result.stderr
