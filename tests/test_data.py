"""Reading data sets, inferring the task, splitting rows."""

import gzip
from pathlib import Path

import numpy as np
import pytest

pl = pytest.importorskip("polars")
pytest.importorskip("sklearn")

from gradstep.data import BUNDLED, choose_rows, infer_task, read_data, read_features  # noqa: E402

PARTS = {"X_train": np.zeros((2, 2)), "y_train": [0, 1], "X_test": np.zeros((1, 2)), "y_test": [0]}
CSV = "size,colour,price\n1.5,red,10\nNA,?,12\n3,blue,9\n"


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def columns(features):
    return {name: features[name].to_list() for name in features.columns}


def test_csv_gzip_tsv_and_parquet_hold_the_same(write, tmp_path):
    expected = {"size": [1.5, None, 3.0], "colour": ["red", None, "blue"]}
    parquet = str(tmp_path / "d.parquet")
    pl.DataFrame({**expected, "price": [10, 12, 9]}).write_parquet(parquet)
    sources = [
        write("d.csv", CSV),
        write("d.csv.gz", gzip.compress(CSV.encode())),
        write("d.tsv", CSV.replace(",", "\t")),
        write("semicolons.csv", CSV.replace(",", ";")),
        write("spaces.csv", CSV.replace(",", ", ")),
        parquet,
    ]
    for source in sources:
        data = read_data(source, "price")
        assert columns(data.features) == expected, source
        assert data.target.tolist() == [10, 12, 9]
        assert data.is_table
        assert len(data) == 3
        assert columns(read_features(source, ["price"])) == expected


@pytest.mark.parametrize("token", ["", " ", "?", "NA", "N/A", "NaN", "nan", "null", "NULL"])
def test_missing_value_tokens(write, token):
    data = read_data(write("d.csv", f"x,c,y\n{token},{token},1\n2,b,0\n"), "y")
    assert columns(data.features) == {"x": [None, 2], "c": [None, "b"]}


def test_numbers_are_recognised_in_the_last_row_of_a_long_column(write):
    data = read_data(write("d.csv", "x,y\n" + "1,0\n" * 2000 + "0.5,1\n"), "y")
    assert data.features["x"].dtype == pl.Float64


@pytest.mark.parametrize("name", ["d.csv", "padded.csv", "d.csv.gz", "d.tsv"])
def test_columns_asked_for_as_text_are_read_as_it_stands(write, name):
    text = "code,flag,x\n01,true,1.50\n?,false,2\n"
    if name == "padded.csv":
        text = text.replace(",", " , ")
    elif name == "d.tsv":
        text = text.replace(",", "\t")
    source = write(name, gzip.compress(text.encode()) if name.endswith(".gz") else text)
    read = read_features(source, text_columns=["code", "flag"])
    assert columns(read) == {"code": ["01", None], "flag": ["true", "false"], "x": [1.5, 2.0]}


def test_text_categorical_and_boolean_targets(tmp_path):
    path = str(tmp_path / "d.parquet")
    frame = pl.DataFrame({"x": [1, 2], "text": ["a", "b"], "flag": [True, False]})
    frame.with_columns(cat=pl.col("text").cast(pl.Categorical)).write_parquet(path)
    assert read_data(path, "text").target.tolist() == ["a", "b"]
    assert read_data(path, "cat").target.tolist() == ["a", "b"]
    assert read_data(path, "flag").target.tolist() == [True, False]


def test_npz_with_images_and_a_test_part(tmp_path):
    path = str(tmp_path / "d.npz")
    images = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    np.savez(path, X_train=images, y_train=np.array([[0], [1], [1]]), X_test=images[:1], y_test=[1])
    data = read_data(path)
    np.testing.assert_array_equal(data.features, images.reshape(3, 8))
    assert data.target.tolist() == [0, 1, 1]
    assert data.test is not None
    assert data.test[0].shape == (1, 8)
    assert not data.is_table
    assert read_features(path).shape == (3, 8)


def test_npz_for_prediction_needs_no_target(tmp_path):
    path = str(tmp_path / "d.npz")
    np.savez(path, X=np.zeros((3, 2)))
    assert read_features(path).shape == (3, 2)
    with pytest.raises(ValueError, match="must hold the arrays X and y, or X_train and y_train"):
        read_data(path)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets(name):
    data = read_data(name)
    task, reason = infer_task(data.target)
    assert task == ("regression" if name == "diabetes" else "classification")
    assert reason
    assert data.features.dtype == np.float64
    assert len(data.features) == len(data.target) == len(data)
    if name == "iris":
        assert sorted(set(data.target.tolist())) == ["setosa", "versicolor", "virginica"]


@pytest.mark.parametrize(
    ("target", "task", "reason"),
    [
        (["a", "b"], "classification", "text"),
        ([True, False], "classification", "true or false"),
        ([3, 7, 3], "classification", "2 distinct whole numbers"),
        ([1.0, 2.0], "classification", "2 distinct whole numbers"),
        (range(21), "regression", "21 distinct numbers"),
        ([0.5, 1.0], "regression", "fractions"),
        ([[1, 2]], "regression", "2 columns"),
    ],
)
def test_task_is_inferred_with_a_reason(target, task, reason):
    inferred, why = infer_task(np.array(target))
    assert inferred == task
    assert reason in why


def test_chosen_rows_share_every_class_and_follow_the_seed():
    groups = np.repeat([0, 1, 2], [700, 250, 50])
    chosen = choose_rows(groups, 0.2, seed=3)
    assert chosen.sum() == 200
    assert [chosen[groups == k].sum() for k in range(3)] == [140, 50, 10]
    np.testing.assert_array_equal(chosen, choose_rows(groups, 0.2, seed=3))
    assert (chosen != choose_rows(groups, 0.2, seed=4)).any()
    assert not choose_rows(groups, 0.0, seed=0).any()


def test_chosen_rows_are_spread_at_random_without_groups():
    counts = sum(choose_rows(np.zeros(10), 0.3, seed).astype(int) for seed in range(2000))
    assert np.abs(counts / 2000 - 0.3).max() < 0.05


@pytest.mark.parametrize(
    ("name", "content", "target", "error", "words"),
    [
        ("d.csv", CSV, "prize", ValueError, r"no column 'prize' .*is 'price' meant\?.*size, colour, price"),
        ("d.csv", CSV, None, ValueError, "--target must name the column .* it has size, colour, price"),
        ("d.csv", "", "y", ValueError, "cannot be read"),
        ("d.csv", "x,y\n", "y", ValueError, "has no rows"),
        ("d.csv", "y\n1\n", "y", ValueError, "has only the column 'y'"),
        ("d.csv", "x,y\n1,2\n1,2,3\n", "y", ValueError, "cannot be read"),
        ("d.csv", "x,y\n1,\n1,2\n,\n", "y", ValueError, "lacks 2 of 3 values, the first in row 0"),
        ("d.csv", b"x,y\n\xff\xfe,1\n", "y", ValueError, "cannot be read"),
        ("d.csv", "x,a,x,y\n1,2,3,4\n", "y", ValueError, "has 2 columns named 'x': give each a name"),
        ("d.csv", "x, x,y\n1,2,3\n", "y", ValueError, "has 2 columns named 'x'"),
        ("d.csv", '"x","x",y\n1,2,3\n', "y", ValueError, "has 2 columns named 'x'"),
        ("d.csv", "x,y,,\n1,2,3,4\n", "y", ValueError, "has 2 columns named ''"),
        ("d.csv", 'x,"' + "y" * 200_000, "y", ValueError, "cannot be read"),
        (
            "d.csv",
            "a,b,y\n,1,1\n1,2,3\n1,-inf,1\ninf,1,2\n",
            "y",
            ValueError,
            "column 'b' of .* holds -inf in row 2, which is not finite",
        ),
        ("d.csv", "a,y\n1,\n1,inf\n", "y", ValueError, "column 'y' of .* holds inf in row 1"),
        ("d.csv.gz", "x,y\n1,2\n", "y", ValueError, "cannot be read"),
        ("d.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-20], "price", ValueError, "cannot be read"),
        ("d.parquet", "x,y\n1,2\n", "y", ValueError, "cannot be read"),
        ("d.npz", "x,y\n1,2\n", None, ValueError, "cannot be read as a npz file"),
        ("d.npz", b"", None, ValueError, "cannot be read as a npz file"),
        ("d.npz", b"", "y", ValueError, "has a target of its own"),
        ("d.xlsx", "", "y", ValueError, "must end in one of .csv"),
    ],
)
def test_bad_files_get_one_sentence(write, name, content, target, error, words):
    path = write(name, content)
    with pytest.raises(error, match=words) as caught:
        read_data(path, target)
    assert "\n" not in str(caught.value)
    assert Path(path).name in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.zeros(3), "y": np.zeros(3)}, r"X of .* at least one row and column, got shape \(3,\)"),
        ({"X": np.zeros((3, 2)), "y": np.zeros(2)}, "y of .* must have 3 rows as X"),
        ({"X": np.array([["a"]]), "y": np.zeros(1)}, "must hold numbers"),
        ({"X": np.zeros((2, 2)), "y": np.array([0.0, np.nan])}, "y of .* is not finite in row 1"),
        ({"X": np.array([[object()]]), "y": np.zeros(1)}, "npz file of plain arrays"),
        (
            {"X_train": np.zeros((2, 2)), "y_train": [0, 1], "X_test": np.zeros((1, 3)), "y_test": [0]},
            "2 columns in X_train, but 3 in X_test",
        ),
        ({"X": np.array([[0, 1], [0, np.nan]]), "y": [0, 1]}, "X of .* holds nan in row 1, column 1"),
        ({**PARTS, "X_test": [[0.0, np.inf]]}, "X_test of .* holds inf in row 0, column 1"),
        ({**PARTS, "y_test": ["a"]}, "y_train of .* holds numbers, but y_test holds text"),
        ({**PARTS, "y_test": [True]}, "y_train of .* holds numbers, but y_test holds booleans"),
        ({**PARTS, "y_test": [[0.0, 1.0]]}, r"1 column\(s\) in y_train, but 2 in y_test"),
        (
            {**PARTS, "y_train": np.zeros((2, 2)), "y_test": np.zeros((1, 3))},
            r"2 column\(s\) in y_train, but 3 in y_test",
        ),
    ],
)
def test_bad_npz_arrays_get_one_sentence(tmp_path, arrays, words):
    path = str(tmp_path / "d.npz")
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=words):
        read_data(path)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("digit", FileNotFoundError, r"'digit' is neither .*is 'digits' meant\?"),
        ("mnist", FileNotFoundError, "neither a file nor one of the bundled data sets: digits, iris"),
        ("absent.csv", FileNotFoundError, "there is no file absent.csv"),
        (".", IsADirectoryError, "is a folder"),
    ],
)
def test_unknown_sources_get_one_sentence(source, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        read_data(source, "y")


def test_bundled_sets_refuse_a_target_and_dropped_columns():
    with pytest.raises(ValueError, match="iris has a target of its own"):
        read_data("iris", "species")
    with pytest.raises(ValueError, match="iris has no columns with names: --drop is for CSV"):
        read_data("iris", drop=["species"])


def test_dropped_columns_are_no_features(write):
    data = read_data(write("d.csv", "id,x,row,y\n7,1.5,a,0\n8,2.5,b,1\n"), "y", ["id", "row"])
    assert columns(data.features) == {"x": [1.5, 2.5]}


@pytest.mark.parametrize("name", ["^p.*$", "*"])
def test_columns_named_like_patterns_are_columns(write, name):
    path = write("d.csv", f"{name},p,q,y\n7,1.5,a,0\n8,2.5,b,1\n")
    assert columns(read_data(path, "y", [name]).features) == {"p": [1.5, 2.5], "q": ["a", "b"]}
    assert list(columns(read_data(path, name).features)) == ["p", "q", "y"]
    assert list(columns(read_features(path, [name, "absent"]))) == ["p", "q", "y"]
    assert list(columns(read_features(path))) == [name, "p", "q", "y"]


def test_a_dropped_column_may_hold_infinity(write):
    data = read_data(write("d.csv", "x,odd,y\n1.5,inf,0\n2.5,1,1\n"), "y", ["odd"])
    assert columns(data.features) == {"x": [1.5, 2.5]}


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (["idd"], r"no column 'idd' to drop \(is 'id' meant\?\): it has id, x, y"),
        (["x,id"], r"no column 'x,id' to drop \(give --drop once for each of x, id\)"),
        (["y"], "--drop and --target name the same column 'y'"),
        (["x", "id"], "has only the column 'y' beside those to drop"),
    ],
)
def test_columns_that_cannot_be_dropped_get_one_sentence(write, drop, words):
    with pytest.raises(ValueError, match=words):
        read_data(write("d.csv", "id,x,y\n7,1.5,0\n8,2.5,1\n"), "y", drop)
