"""TableEncoder: what columns become, and what is refused."""

import datetime
import decimal
import json

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")
pytest.importorskip("narwhals")

from gradstep.tables import BLOCK_ROWS, TableEncoder  # noqa: E402

COLUMNS = {
    "age": [39.0, None, 38.0, 53.0, 28.0],
    "hours": [40, 13, 40, 40, 45],
    "job": ["clerk", "farmer", None, "clerk", "baker"],
    "retired": [True, False, False, True, False],
}


def pandas_frame(columns=COLUMNS):
    return pd.DataFrame(columns)


def polars_frame(columns=COLUMNS):
    return pl.DataFrame(columns)


def arrow_frame(columns=COLUMNS):
    return polars_frame(columns).to_arrow()


FRAMES = pytest.mark.parametrize("frame", [pandas_frame, polars_frame, arrow_frame])


@FRAMES
def test_every_kind_of_frame_gives_the_same_numbers(frame):
    encoder = TableEncoder()
    out = encoder.fit_transform(frame())
    present = np.array([39.0, 38.0, 53.0, 28.0])
    age = (np.array([39.0, 38.5, 38.0, 53.0, 28.0]) - present.mean()) / present.std()
    hours = np.array(COLUMNS["hours"], dtype=float)
    expected = np.column_stack(
        [
            age,
            [0, 1, 0, 0, 0],
            (hours - hours.mean()) / hours.std(),
            [0, 0, 0, 0, 1],
            [1, 0, 0, 1, 0],
            [0, 1, 0, 0, 0],
            [0, 1, 1, 0, 1],
            [1, 0, 0, 1, 0],
        ]
    )
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    assert encoder.n_features == out.shape[1]
    assert encoder.columns == ("age", "hours", "job", "retired")
    assert encoder.feature_names == (
        "age", "age is missing", "hours", "job=baker", "job=clerk", "job=farmer",
        "retired=False", "retired=True",
    )  # fmt: skip


def test_encoder_of_one_library_reads_frames_of_another_bit_for_bit():
    encoder = TableEncoder().fit(pandas_frame())
    np.testing.assert_array_equal(encoder.transform(pandas_frame()), encoder.transform(polars_frame()))
    other = TableEncoder().fit(polars_frame())
    assert other.to_config() == encoder.to_config()


@FRAMES
def test_unknown_and_missing_categories_are_zeros(frame):
    encoder = TableEncoder().fit(frame())
    columns = {"age": [30.0, 30.0], "hours": [1, 2], "job": ["pilot", None], "retired": [None, True]}
    out = encoder.transform(frame(columns))
    assert not out[:, 3:6].any()
    np.testing.assert_array_equal(out[:, 6:], [[0, 0], [0, 1]])


@FRAMES
def test_missing_values_that_appear_later_take_the_median(frame):
    encoder = TableEncoder().fit(frame({"x": [1.0, 2.0, 9.0]}))
    assert encoder.feature_names == ("x",)
    out = encoder.transform(frame({"x": [None, 2.0]}))
    assert out[0, 0] == out[1, 0]


@FRAMES
def test_entirely_missing_column_at_prediction(frame):
    encoder = TableEncoder().fit(frame())
    out = encoder.transform(frame({name: [None, None] for name in COLUMNS}))
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[:, 1], 1)
    assert not out[:, 3:].any()


@FRAMES
def test_columns_are_matched_by_name(frame):
    encoder = TableEncoder().fit(frame())
    reordered = {name: COLUMNS[name] for name in reversed(COLUMNS)}
    np.testing.assert_array_equal(encoder.transform(frame(reordered)), encoder.transform(frame()))


def test_nan_counts_as_missing_in_polars_too():
    encoder = TableEncoder().fit(pl.DataFrame({"x": [1.0, float("nan"), 3.0], "y": [float("nan")] * 3}))
    assert encoder.feature_names == ("x", "x is missing")


@FRAMES
def test_column_without_values_becomes_no_feature(frame):
    columns = {"x": [1.0, 2.0], "nothing": [None, None]}
    encoder = TableEncoder().fit(frame(columns))
    assert encoder.feature_names == ("x",)
    assert encoder.transform(frame({"x": [1.0], "nothing": ["now"]})).shape == (1, 1)


def test_constant_column_is_centred_without_dividing_by_zero():
    encoder = TableEncoder().fit(pl.DataFrame({"c": [0.1] * 7, "x": range(7)}))
    np.testing.assert_array_equal(
        encoder.transform(pl.DataFrame({"c": [0.1, 1.1], "x": [0, 0]}))[:, 0], [0, 1]
    )


def test_huge_and_tiny_numbers_standardise_like_ordinary_ones():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    encoder = TableEncoder()
    frame = pl.DataFrame({"ordinary": x, "huge": x * 2.0**1019, "tiny": x * 2.0**-1000})
    out = encoder.fit_transform(frame)
    np.testing.assert_array_equal(out[:, 1], out[:, 0])
    np.testing.assert_array_equal(out[:, 2], out[:, 0])


def test_pandas_and_polars_column_types():
    frame = pd.DataFrame(
        {
            "nullable": pd.array([1, None, 3], dtype="Int64"),
            "half": np.array([1, 2, 3], dtype=np.float16),
            "decimal": [decimal.Decimal("1.5"), None, decimal.Decimal(2)],
            "flag": pd.array([True, None, False], dtype="boolean"),
            "objects": np.array([True, None, False], dtype=object),
            "codes": pd.Categorical([2, 1, None]),
            "string": pd.array(["a", None, "b"], dtype="string"),
        }
    )
    assert TableEncoder().fit(frame).feature_names == (
        "nullable", "nullable is missing", "half", "decimal", "decimal is missing", "flag=False",
        "flag=True", "objects=False", "objects=True", "codes=1", "codes=2", "string=a", "string=b",
    )  # fmt: skip
    text = pl.Series(["b", "a", None])
    frame = pl.DataFrame(
        {
            "categorical": text.cast(pl.Categorical),
            "enum": text.cast(pl.Enum(["unused", "b", "a"])),
            "small": pl.Series([1, 2, 3], dtype=pl.UInt8),
        }
    )
    assert TableEncoder().fit(frame).feature_names == (
        "categorical=a", "categorical=b", "enum=a", "enum=b", "small",
    )  # fmt: skip


def test_booleans_written_otherwise_are_recognised():
    encoder = TableEncoder().fit(pl.DataFrame({"b": [True, False]}))
    expected = [[0, 1], [1, 0]]
    for values in ([1, 0], ["true", "false"], ["True", "False"], [1.0, 0.0], [True, False]):
        np.testing.assert_array_equal(encoder.transform(pl.DataFrame({"b": values})), expected)


def test_categories_that_look_like_numbers_survive_a_change_of_type():
    encoder = TableEncoder().fit(pl.DataFrame({"c": ["1", "2", "x"]}))
    expected = [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    for values in ([2, 3, 1], [2.0, None, 1.0], [2.0, float("nan"), 1.0]):
        np.testing.assert_array_equal(encoder.transform(pl.DataFrame({"c": values})), expected)


def test_booleans_are_looked_up_in_every_spelling_of_a_text_column():
    for spelling in (("True", "False"), ("true", "false"), ("TRUE", "FALSE")):
        encoder = TableEncoder().fit(pl.DataFrame({"c": [*spelling, "maybe"]}))
        out = encoder.transform(pl.DataFrame({"c": [True, False, None]}))
        np.testing.assert_array_equal(out[:2], encoder.transform(pl.DataFrame({"c": spelling})))
        assert out[:2].any(axis=1).all()
        assert not out[2].any()
    yes = TableEncoder().fit(pl.DataFrame({"c": ["yes", "no"]}))
    assert not yes.transform(pl.DataFrame({"c": [True, False]})).any()


def test_fractions_may_be_categories():
    frame = pd.DataFrame({"c": pd.Categorical([1.5, 2.0, None])})
    encoder = TableEncoder().fit(frame)
    assert encoder.feature_names == ("c=1.5", "c=2")
    np.testing.assert_array_equal(encoder.transform(frame), [[1, 0], [0, 1], [0, 0]])
    texts = TableEncoder().fit(pl.DataFrame({"c": ["1.5", "2.5", "x1"]}))
    out = texts.transform(pl.DataFrame({"c": [2.5, 1.5, 0.5]}))
    np.testing.assert_array_equal(out, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_features_have_different_names():
    frame = pl.DataFrame({"a": [1.0, None], "a is missing": [0.0, 1.0], "b": ["c", "c"], "b=c": [1, 2]})
    encoder = TableEncoder().fit(frame)
    assert encoder.feature_names == ("a", "a is missing", "a is missing (2)", "b=c", "b=c (2)")
    assert encoder.transform(frame).shape == (2, 5)


def test_text_columns_are_those_whose_categories_are_text():
    frame = pl.DataFrame({"t": ["a"], "n": [1], "b": [True], "e": [None]})
    assert TableEncoder().fit(frame).text_columns == ("t",)


def test_many_categories_keep_the_most_frequent():
    frame = pl.DataFrame({"c": ["b", "b", "d", "d", "c", "a"]})
    encoder = TableEncoder(max_categories=3).fit(frame)
    assert encoder.feature_names == ("c=a", "c=b", "c=d")
    ids = pl.DataFrame({"id": [f"user {i}" for i in range(1000)]})
    assert TableEncoder().fit(ids).n_features == 255


def test_blocks_of_rows_join_without_a_seam():
    n = BLOCK_ROWS + 3
    texts = ["a" if i % 3 else "b" for i in range(n)]
    out = TableEncoder().fit_transform(pl.DataFrame({"c": texts}))
    np.testing.assert_array_equal(out[:, 0], [text == "a" for text in texts])
    np.testing.assert_array_equal(out.sum(axis=1), 1)


@FRAMES
def test_config_is_json_and_rebuilds_the_same_encoder(frame):
    encoder = TableEncoder(max_categories=7).fit(
        frame({**COLUMNS, "third": [1 / 3, 0, 0, 0, 0], "no": [None] * 5})
    )
    config = json.loads(json.dumps(encoder.to_config(), allow_nan=False))
    again = TableEncoder.from_config(config)
    data = frame({**COLUMNS, "third": [0.1, 0, 0, 0, 0], "no": [None] * 5})
    np.testing.assert_array_equal(again.transform(data), encoder.transform(data))
    assert again.to_config() == encoder.to_config()


def test_no_rows_give_no_rows():
    encoder = TableEncoder().fit(polars_frame())
    assert encoder.transform(polars_frame().head(0)).shape == (0, 8)


def test_memory_stays_close_to_the_result():
    import tracemalloc

    rng = np.random.default_rng(0)
    n = 100_000
    frame = pl.DataFrame({f"x{i}": rng.normal(size=n) for i in range(20)} | {"c": rng.choice(["a", "b"], n)})
    encoder = TableEncoder().fit(frame)
    tracemalloc.start()
    out = encoder.transform(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * out.nbytes + 8_000_000


@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        (np.zeros((2, 2, 2)), TypeError, "a matrix of numbers, got ndarray"),
        (pl.LazyFrame({"x": [1]}), TypeError, "got LazyFrame: call its collect"),
        (pl.DataFrame({"x": []}), ValueError, r"rows and columns, got a table of shape \(0, 1\)"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ValueError, "several columns of the same name"),
        (pd.DataFrame([[1, 2]]), TypeError, "must be text, but column 0 is named 0"),
        (
            pd.DataFrame({"x": ["a", None, 1]}),
            TypeError,
            r"'x' .* one type, got 1 \(number\) in row 2 after text",
        ),
        (pd.DataFrame({"x": ["a"] * 200 + [1]}), TypeError, "row 200"),
        (pd.DataFrame({"x": [object()]}), TypeError, "'x' must hold numbers, .* got a object in row 0"),
        (pl.DataFrame({"d": [datetime.date(2020, 1, 1)]}), TypeError, "'d' must hold numbers, .* got Date"),
        (pl.DataFrame({"l": [[1]]}), TypeError, "'l' must hold numbers, .* got List"),
        (
            pl.DataFrame({"x": [0.0, -np.inf]}),
            ValueError,
            "column 'x' holds -inf in row 1, which is not finite",
        ),
        (pl.DataFrame({"x": [None, None]}), ValueError, "no value in any column"),
    ],
)
def test_fit_refuses_in_one_sentence(frame, error, words):
    encoder = TableEncoder()
    with pytest.raises(error, match=words) as caught:
        encoder.fit(frame)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="has learnt nothing yet"):
        encoder.transform(polars_frame())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"age": None}, ValueError, "lacks the column 'age' that"),
        (
            {"age": None, "Age": [1.0] * 5},
            ValueError,
            r"lacks the column 'age' .*is 'Age' meant to be 'age'\?",
        ),
        ({"x": [1] * 5, "y": [1] * 5}, ValueError, "has the columns 'x', 'y' that"),
        ({"age": ["?"] * 5}, TypeError, "'age' held numbers in training, but holds text now, such as '?'"),
        ({"age": [np.inf] * 5}, ValueError, "column 'age' holds inf in row 0"),
        (
            {"age": [1e300] * 5},
            ValueError,
            "column 'age' holds 1e.300 in row 0, which is too large for float32",
        ),
        (
            {"job": [decimal.Decimal("0.5")] * 5},
            TypeError,
            r"'job' must hold categories, got Decimal\('0.5.*'\) \(Decimal\)",
        ),
    ],
)
@pytest.mark.parametrize("frame", [pandas_frame, polars_frame])
def test_transform_refuses_in_one_sentence(frame, change, error, words):
    encoder = TableEncoder().fit(frame())
    columns = {name: values for name, values in {**COLUMNS, **change}.items() if values is not None}
    with pytest.raises(error, match=words):
        encoder.transform(frame(columns))


NUMBER = {"kind": "number", "name": "x", "mean": 0.0, "scale": 1.0, "median": 0.0, "indicator": False}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_categories": 3},
        {"max_categories": 3, "columns": [1]},
        None,
        {"max_categories": "3", "columns": []},
        {"max_categories": 3, "columns": [{"kind": "new", "name": "x"}]},
        {"max_categories": 3, "columns": [{"kind": "empty", "name": "x"}] * 2},
        {"max_categories": 3, "columns": [{"kind": "category", "name": "x", "categories": "abc"}]},
        {"max_categories": 3, "columns": [{"kind": "category", "name": "x", "categories": [1]}]},
        *(
            {"max_categories": 3, "columns": [NUMBER | change]}
            for change in (
                {"mean": float("nan")},
                {"mean": 10**400},
                {"scale": 0.0},
                {"scale": -1.0},
                {"scale": float("inf")},
                {"median": "1"},
                {"indicator": 1},
            )
        ),
    ],
)
def test_foreign_config_is_refused(config):
    with pytest.raises(ValueError, match="config"):
        TableEncoder.from_config(config)


@pytest.mark.parametrize(
    ("max_categories", "error", "words"),
    [
        (0, ValueError, "max_categories must be at least 1, got 0"),
        (-1, ValueError, "max_categories must be at least 1, got -1"),
        (2.5, TypeError, "max_categories must be an integer, got 2.5"),
        (True, TypeError, "max_categories must be an integer, got True"),
        ("many", TypeError, "max_categories must be an integer, got 'many'"),
    ],
)
def test_max_categories_must_be_a_positive_integer(max_categories, error, words):
    with pytest.raises(error, match=words):
        TableEncoder(max_categories=max_categories)


def test_max_categories_may_be_any_integer_type():
    encoder = TableEncoder(max_categories=np.int64(5)).fit(polars_frame())
    assert json.loads(json.dumps(encoder.to_config()))["max_categories"] == 5
