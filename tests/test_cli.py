"""The command line: what it prints, writes and refuses."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pl = pytest.importorskip("polars")
pytest.importorskip("sklearn")

import gradstep as gs  # noqa: E402
from conftest import BACKENDS  # noqa: E402
from gradstep import io  # noqa: E402
from gradstep.commands import bench  # noqa: E402
from gradstep.commands.app import app  # noqa: E402
from gradstep.commands.problem import Choices, make_problem  # noqa: E402
from gradstep.data import DataSet  # noqa: E402

ENVIRONMENT = {"COLUMNS": "160", "TERMINAL_WIDTH": "160", "NO_COLOR": "1", "TERM": "dumb"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = gs.get_num_threads()
    yield tmp_path
    gs.set_num_threads(threads)


def gradstep(*arguments):
    """Run the command in this process."""
    from typer.testing import CliRunner

    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=ENVIRONMENT)


def succeed(*arguments):
    result = gradstep(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments):
    """The one sentence on standard error."""
    result = gradstep(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("gradstep: ")
    return lines[0]


def start(*arguments, **options):
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "gradstep", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT, **options,
    )  # fmt: skip


def facts(output):
    """Lines of ``name  value``."""
    return dict(re.split(r"  +", line, maxsplit=1) for line in output.splitlines())


@pytest.fixture
def table(folder):
    """A table in which the target follows from the columns, with missing values."""
    rng = np.random.default_rng(0)
    n = 300
    size, colour = rng.normal(size=n), rng.choice(["red", "blue", "green"], n)
    frame = pl.DataFrame(
        {
            "id": [f"row {i}" for i in range(n)],
            "size": [None if i % 10 == 0 else float(value) for i, value in enumerate(size)],
            "colour": colour,
            "kind": np.where((colour == "red") | (size > 0.5), "yes", "no"),
            "price": 100 + 20 * size + 30 * (colour == "blue"),
        }
    )
    frame.drop("price", "id").write_csv("kinds.csv")
    frame.drop("kind", "id").write_parquet("prices.parquet")
    return frame


def test_digits_reach_97_percent_and_say_how():
    out = facts(succeed("train", "digits", "--threads", 1))
    assert out["task"].startswith("classification into 10 classes (the target has 10 distinct whole numbers)")
    assert out["rows"] == "1,259 training, 179 validation, 359 test"
    assert float(out["test accuracy"].split()[0]) >= 0.97
    assert re.fullmatch(r"[\d.]+ s", out["time"])
    assert re.fullmatch(r"[\d,]+ samples a second", out["speed"])
    assert re.fullmatch(r"(cpp|numba|numpy), .+, 1 thread", out["backend"])
    assert out["saved"] == "digits.safetensors"
    assert os.path.exists("digits.safetensors")


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "diabetes"])
def test_other_bundled_sets(name):
    out = facts(succeed("train", name, "--hidden", "16", "--epochs", 40, "--backend", "numpy"))
    if name == "diabetes":
        assert out["task"].startswith("regression")
        assert float(out["test R2"]) > 0.2
        assert float(out["test RMSE"]) < 80
    else:
        assert float(out["test accuracy"].split()[0]) > 0.8


def test_same_seed_gives_the_same_model_file():
    options = ("--hidden", 8, "--epochs", 2, "--backend", "numpy", "-q")
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert succeed("train", "iris", *options, "--seed", seed, "-o", out) == ""
    files = [Path(name).read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_table_of_classes_is_trained_and_predicted(table):
    out = facts(succeed("train", "kinds.csv", "--target", "kind", "--hidden", "32", "--backend", "numpy"))
    assert out["data"] == "kinds.csv: 300 rows, 2 columns"
    assert out["task"] == "classification into 2 classes (the target is text)"
    assert out["inputs"] == "2 columns encoded as 5 features"
    assert float(out["test accuracy"].split()[0]) > 0.85

    table.select("colour", "size", "kind").head(7).write_csv("new.csv")
    assert succeed("predict", "kinds.safetensors", "new.csv", "-o", "out.csv").endswith("saved in out.csv\n")
    result = pl.read_csv("out.csv")
    assert result.columns == ["prediction", "probability_no", "probability_yes"]
    np.testing.assert_allclose(result["probability_no"] + result["probability_yes"], 1, atol=1e-6)
    best = np.where(result["probability_yes"] > 0.5, "yes", "no")
    assert result["prediction"].to_list() == best.tolist()
    expected = io.load("kinds.safetensors").predict(table.select("size", "colour").head(7))
    np.testing.assert_allclose(result["probability_no"], expected[:, 0], rtol=1e-6)


def test_dropped_columns_are_remembered_by_the_model(table):
    table.write_csv("kinds.csv")
    drop = ("--drop", "id", "--drop", "price", "--drop", "id")
    options = ("--target", "kind", *drop, "--hidden", 8, "--backend", "numpy")
    assert facts(succeed("train", "kinds.csv", *options))["data"] == "kinds.csv: 300 rows, 2 columns"
    assert re.search(r"^dropped +id, price$", succeed("info", "kinds.safetensors"), re.MULTILINE)
    whole = succeed("predict", "kinds.safetensors", "kinds.csv")
    table.select("colour", "size").write_csv("kinds.csv")
    assert succeed("predict", "kinds.safetensors", "kinds.csv") == whole


def test_descriptions_that_others_wrote_are_shown_and_passed_over(table):
    """A model file may describe itself by any JSON values."""
    succeed("train", "kinds.csv", "--target", "kind", *TINY)
    net = io.load("kinds.safetensors")
    described = {"tags": [1, 2], "target": ["kind"], "dropped": None, "author": {"name": "x", "age": None}}
    io.save(net, "kinds.safetensors", description=described)
    shown = succeed("info", "kinds.safetensors")
    assert re.search(r"^tags +1, 2$", shown, re.MULTILINE)
    assert re.search(r"^author name +x$", shown, re.MULTILINE)
    assert "dropped" not in shown
    table.select("colour", "size").write_csv("new.csv")
    assert succeed("predict", "kinds.safetensors", "new.csv").startswith("prediction,")


def test_table_of_numbers_is_trained_and_predicted(table):
    out = facts(
        succeed(
            "train", "prices.parquet", "--target", "price", "--hidden", 32, "--backend", "numpy", "-o", "m"
        )
    )
    assert out["task"] == "regression (the target has fractions)"
    assert float(out["test R2"]) > 0.7
    table.drop("kind", "id", "price").write_csv("new.csv")
    for name, read in (("out.csv", pl.read_csv), ("out.parquet", pl.read_parquet)):
        succeed("predict", "m", "new.csv", "-o", name)
        assert read(name).columns == ["prediction"]
    correlation = np.corrcoef(read(name)["prediction"], table["price"])[0, 1]
    assert correlation > 0.85


def test_prediction_of_arrays_reads_and_writes_npz_and_keeps_classes_numbers():
    X = np.random.default_rng(0).normal(size=(60, 3))
    np.savez("data.npz", X=X, y=np.where(X[:, 0] > 0, 7, 3))
    succeed("train", "data.npz", "--hidden", "none", "--epochs", 3, "--backend", "numpy", "-q")
    succeed("predict", "data.safetensors", "data.npz", "-o", "out.npz")
    with np.load("out.npz") as out:
        assert out["prediction"].dtype.kind == "i"
        assert set(out["prediction"]) <= {3, 7}
        assert out["probabilities"].shape == (60, 2)
        assert out["classes"].tolist() == ["3", "7"]
    pl.DataFrame(X, schema=["a", "b", "c"]).write_csv("data.csv")
    lines = succeed("predict", "data.safetensors", "data.csv").splitlines()
    assert lines[0] == "prediction,probability_3,probability_7"
    assert len(lines) == 61


def test_given_test_part_is_the_test():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(100, 2)), rng.normal(size=100)
    np.savez("d.npz", X_train=X[:80], y_train=y[:80], X_test=X[80:], y_test=y[80:])
    out = facts(succeed("train", "d.npz", "--epochs", 1, "--hidden", 4, "--backend", "numpy"))
    assert out["rows"] == "72 training, 8 validation, 20 test (a part of its own)"


TINY = ("--epochs", 1, "--hidden", 4, "--backend", "numpy")


def test_undefined_r2_of_a_single_test_row_is_said_and_the_model_saved():
    np.savez("d.npz", X=np.arange(12.0).reshape(6, 2), y=np.arange(6) + 0.5)
    out = facts(succeed("train", "d.npz", *TINY))
    assert out["rows"].endswith("1 test")
    assert out["test R2"] == "undefined"
    assert float(out["test RMSE"]) > 0
    assert set(io.read_description("d.safetensors")["test"]) == {"loss", "rmse"}


def test_numbers_that_float32_holds_coarsely_are_learnt_without_harm():
    stamps = 1_700_000_000 + np.arange(60)
    pl.DataFrame({"x": np.linspace(0, 1, 60), "t": stamps, "y": stamps}).write_csv("d.csv")
    assert facts(succeed("train", "d.csv", "--target", "y", *TINY))["saved"] == "d.safetensors"


def parts(**changes):
    """An npz with a test part, in which some arrays are others."""
    rng = np.random.default_rng(0)
    arrays = {"X_train": rng.normal(size=(40, 3)), "y_train": rng.normal(size=(40, 2))}
    arrays |= {"X_test": rng.normal(size=(8, 3)), "y_test": rng.normal(size=(8, 2))}
    np.savez("d.npz", **(arrays | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"X_test": [[0, 1, 2], [0, np.inf, 2]], "y_test": np.zeros((2, 2))}, "X_test of d.npz holds inf in"),
        ({"X_test": np.full((8, 3), 1e39)}, "d.npz cannot be used: X_test must fit float32"),
        ({"y_test": np.zeros((8, 3))}, "2 column(s) in y_train, but 3 in y_test"),
        ({"y_test": np.full((8, 2), 1e39)}, "y_test must fit float32, but y_test[0, 0] = 1e+39"),
        ({"y_test": np.full(8, "a"), "y_train": np.arange(40)}, "holds numbers, but y_test holds text"),
    ],
)
def test_bad_test_part_is_refused_before_training(changes, words):
    parts(**changes)
    assert words in fail("train", "d.npz", *TINY)
    assert os.listdir() == ["d.npz"]


def test_model_outlives_a_test_that_fails(monkeypatch):
    def fails(*_):
        raise ValueError("no test today")

    monkeypatch.setattr(gs.Network, "evaluate", fails)
    assert "no test today" in fail("train", "iris", *TINY, "-q")
    assert io.load("iris.safetensors").epochs_trained == 1
    assert io.read_description("iris.safetensors") == {
        "data": "iris",
        "target": None,
        "dropped": None,
        "task": "classification",
    }


@pytest.mark.parametrize("bad", [np.inf, 1e39])
def test_bad_number_is_named_by_its_row_in_the_file(bad):
    good, wrong = np.arange(60) + 0.5, np.arange(60) + 0.5
    wrong[[17, 40]] = bad
    np.savez("x.npz", X=np.column_stack([good, wrong]), y=good)
    assert "row 17, column 1" in fail("train", "x.npz", *TINY)
    np.savez("y.npz", X=good[:, np.newaxis], y=wrong)
    assert re.search(r"row 17\b|y\[17\]", fail("train", "y.npz", *TINY))
    pl.DataFrame({"x": good, "y": wrong}).write_parquet("d.parquet")
    assert re.search(r"row 17\b|y\[17\]", fail("train", "d.parquet", "--target", "y", *TINY))


def test_number_too_large_after_encoding_is_named_by_its_row_in_the_file():
    n = 60
    choices = Choices(seed=0)
    data = DataSet("d", pl.DataFrame({"x": np.zeros(n), "i": np.arange(n)}), np.arange(n) + 0.5, "y")
    row = int(make_problem(data, choices).test[1][-1])
    huge = pl.DataFrame({"x": np.where(np.arange(n) == row, 1e300, 0.0), "i": np.arange(n)})
    with pytest.raises(ValueError, match=f"column 'x' holds 1e.300 in row {row}, which is too large"):
        make_problem(DataSet("d", huge, np.arange(n) + 0.5, "y"), choices)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("categories", "subset"),
    [
        (["01", "02", "x1"], ["02", "01"]),
        (["1.5", "2.5", "x1"], ["2.5", "1.5"]),
        (["1.50", "2.5", "x1"], ["2.5", "1.50"]),
        (["true", "false", "maybe"], ["false", "true"]),
        (["TRUE", "FALSE", "maybe"], ["FALSE", "TRUE"]),
    ],
)
def test_file_with_some_of_the_categories_is_predicted_as_a_part_of_all(categories, subset, suffix):
    rows = categories * 20
    frame = pl.DataFrame(
        {"code": rows, "y": [categories.index(c) + 0.5 * (i % 2) for i, c in enumerate(rows)]}
    )
    frame.write_csv("d.csv")
    succeed("train", "d.csv", "--target", "y", "--epochs", 30, "--hidden", 8, "--backend", "numpy", "-q")
    pl.DataFrame({"code": categories}).write_csv("all.csv")
    expected = dict(zip(categories, predictions("all.csv"), strict=True))
    assert len(set(expected.values())) == 3
    new = pl.DataFrame({"code": subset})
    new.write_csv("new.csv") if suffix == ".csv" else new.write_parquet("new.parquet")
    assert predictions(f"new{suffix}") == [expected[category] for category in subset]


def predictions(file):
    return [float(line) for line in succeed("predict", "d.safetensors", file).splitlines()[1:]]


def test_failed_prediction_leaves_the_old_output_whole(monkeypatch):
    succeed("train", "iris", "--epochs", 1, "--backend", "numpy", "-q")
    Path("out.csv").write_text("old")

    def half_a_file(_, path):
        path.write_text("new")
        raise OSError("disk full")

    monkeypatch.setattr(pl.DataFrame, "write_csv", half_a_file)
    assert "disk full" in fail("predict", "iris.safetensors", "iris", "-o", "out.csv")
    assert Path("out.csv").read_text() == "old"
    assert sorted(os.listdir()) == ["iris.safetensors", "out.csv"]


def test_info_shows_the_installation_and_models(table):
    out = facts(succeed("info"))
    assert out["backend"] in ("cpp", "numba", "numpy")
    assert {"gradstep", "threads", "available backends", "python"} <= out.keys()
    succeed(
        "train", "kinds.csv", "--target", "kind", "--hidden", 4, "--epochs", 1, "--backend", "numpy", "-q"
    )
    described = succeed("info", "kinds.safetensors")
    for words in ("5 -> 4", "size, colour", "no, yes", "kinds.csv", "target", "kind", "test accuracy"):
        assert words in described


def test_bench_measures_every_backend_asked_for(monkeypatch):
    monkeypatch.setattr(bench, "CASES", bench.CASES[:1])
    output = succeed("bench", "--backend", "numpy", "--seconds", 0.01)
    assert "numpy us/step" in output
    case, step, speed = re.split(r"  +", output.splitlines()[-1])
    assert case == "1-1 identity, batch 100"
    assert float(step) > 0
    assert float(speed) >= 0


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the compiled core is not installed")
def test_bench_shows_what_the_time_of_a_step_goes_to(monkeypatch):
    monkeypatch.setattr(bench, "CASES", bench.CASES[2:4])
    output = succeed("bench", "--profile", "--seconds", 0.02)
    head, *rows = output.splitlines()[-3:]
    assert head.split()[1:] == ["us/step", "gather", "forward", "loss", "dX", "dW", "update", "waiting"]
    for row in rows:
        shares = [int(cell[:-1]) for cell in re.split(r"  +", row)[2:]]
        assert sum(shares) == pytest.approx(100, abs=4)
        assert shares[1] > 0  # beside busy neighbours nearly all is waiting


@pytest.mark.skipif("cpp" in BACKENDS, reason="the compiled core is installed")
def test_a_profile_without_the_compiled_core_is_one_sentence():
    assert "cpp" in fail("bench", "--profile")


def test_operations_of_a_bench_case():
    case = bench.Case((3, 5, 2), "relu", "mse", 100, 10)
    forward = weights = 2 * 10 * (3 * 5 + 5 * 2)
    assert case.flops_per_step == forward + weights + 2 * 10 * 5 * 2


@pytest.mark.parametrize("command", ["train", "predict", "info", "bench"])
def test_every_option_has_help_with_its_default(command):
    import typer

    parameters = typer.main.get_command(app).commands[command].params
    for parameter in parameters:
        assert parameter.param_type_name == "argument" or parameter.help, parameter.name
        if parameter.default is None and parameter.param_type_name == "option":
            assert isinstance(parameter.show_default, str), parameter.name
    text = " ".join(succeed(command, "--help").replace("│", " ").split())
    for parameter in parameters:
        assert parameter.param_type_name == "argument" or parameter.opts[0] in text
    if command == "train":
        for default in ("[default: 256,256]", "[default: 0.1]", "0.002 for adam", "[default: 100]"):
            assert default in text


def test_version_and_commands_are_listed():
    assert succeed("--version") == f"gradstep {gs.__version__}\n"
    text = succeed("--help")
    assert all(command in text for command in ("train", "predict", "info", "bench"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digit"], "'digit' is neither a file nor one of the bundled data sets (is 'digits' meant?)"),
        (["absent.csv", "--target", "y"], "there is no file absent.csv"),
        (["kinds.csv"], "--target must name the column of kinds.csv"),
        (["kinds.csv", "--target", "Kind"], "has no column 'Kind' to predict (is 'kind' meant?)"),
        (["kinds.csv", "--target", "kind", "--task", "regression"], "regression needs a target of numbers"),
        (["prices.parquet", "--target", "price", "--task", "classification"], "too many for classes"),
        (["iris", "--target", "species"], "iris has a target of its own"),
        (["iris", "--task", "ranking"], "unknown --task 'ranking'"),
        (["iris", "--hidden", "8;8"], "--hidden must be widths separated by commas, such as 256,256"),
        (["iris", "--hidden", "0,8"], "each width of --hidden must be at least 1, got 0"),
        (["iris", "--activation", "rellu"], "did you mean 'relu'?"),
        (["iris", "--optimizer", "adamm"], "did you mean 'adam'?"),
        (["iris", "--backend", "cuda"], "unknown backend 'cuda'"),
        (["iris", "--lr", "-1"], "gradstep: --lr must be greater than 0, got -1"),
        (["iris", "--lr", "nan"], "gradstep: --lr must be greater than 0, got nan"),
        (["iris", "--l2", "-1"], "gradstep: --l2 must be at least 0, got -1"),
        (["iris", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["iris", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["iris", "--batch-size", "1000"], "--batch-size must be at most 105, the training rows, got 1000"),
        (["iris", "--patience", "-1"], "--patience must be at least 0"),
        (["iris", "--threads", "-1"], "gradstep: --threads must be at least 0, got -1"),
        (["iris", "--seed", "-1"], "gradstep: --seed must be at least 0, got -1"),
        (["iris", "--dtype", "float16"], "unknown dtype 'float16'"),
        (["iris", "--test-fraction", "1"], "--test-fraction must be at least 0 and less than 1, got 1"),
        (["iris", "--test-fraction", "0.5", "--validation-fraction", "0.5"], "must add up to less than 1"),
        (["iris", "--max-categories", "0"], "gradstep: --max-categories must be at least 1, got 0"),
        (["iris", "--preprocessing", "whiten"], "unknown --preprocessing 'whiten'"),
        (["iris", "--out", "absent/model"], "cannot be written: there is no folder"),
        (["iris", "--out", "."], "is a folder"),
        (["iris", "--out", "pipe"], "pipe cannot be replaced: it is not a regular file"),
    ],
)
def test_bad_training_input_gets_one_sentence_and_writes_nothing(table, arguments, words):
    os.mkfifo("pipe")
    before = sorted(os.listdir())
    assert words in fail("train", *arguments)
    assert sorted(os.listdir()) == before
    assert Path("pipe").is_fifo()


def test_target_with_one_value_gets_one_sentence():
    Path("d.csv").write_text("x,y\n" + "1,a\n" * 10)
    assert "has only the value 'a': nothing to learn" in fail("train", "d.csv", "--target", "y")


def test_diverging_training_says_the_epoch_and_saves_nothing():
    result = gradstep("train", "diabetes", "--lr", "1e30", "--optimizer", "sgd", "--backend", "numpy")
    assert result.exit_code == 1
    assert re.search(
        r"gradstep: training diverged in epoch \d+ .* try a smaller learning rate", result.stderr
    )
    assert os.listdir() == []


def test_training_that_diverges_later_saves_the_good_epochs_and_is_an_error():
    options = ("--lr", "0.5", "--optimizer", "sgd", "--hidden", "none", "--backend", "numpy")
    result = gradstep("train", "diabetes", *options)
    assert result.exit_code == 1
    epoch = int(re.search(r"gradstep: training diverged in epoch (\d+) ", result.stderr)[1])
    assert epoch > 1
    assert result.stderr.endswith("; what it learnt is saved in diabetes.safetensors\n")
    out = facts(result.stdout)
    assert out["epochs"].startswith(f"{epoch - 1} of 100, diverged; kept epoch ")
    assert np.isfinite(float(out["test RMSE"]))
    model = io.load("diabetes.safetensors")
    assert model.epochs_trained == epoch - 1
    assert all(np.isfinite(value).all() for value in model.parameters().values())


def test_without_any_validation_loss_no_epoch_is_said_to_be_kept(monkeypatch):
    from gradstep.backends.numpy.engine import NumpyEngine

    def undefined(*arguments, real=NumpyEngine.evaluate):
        real(*arguments)
        return float("nan")

    monkeypatch.setattr(NumpyEngine, "evaluate", undefined)
    out = facts(succeed("train", "iris", "--hidden", 4, "--patience", 2, "--backend", "numpy"))
    assert out["epochs"] == "2 of 100, stopped: no better validation loss for 2 epochs"
    assert set(io.read_description("iris.safetensors")["test"]) == {"accuracy"}


def test_bad_prediction_input_gets_one_sentence(table):
    succeed(
        "train", "kinds.csv", "--target", "kind", "--hidden", 4, "--epochs", 1, "--backend", "numpy", "-q"
    )
    succeed("train", "iris", "--hidden", 4, "--epochs", 1, "--backend", "numpy", "-q")
    model = "kinds.safetensors"
    table.select("size", "kind").write_csv("lacks.csv")
    assert "lacks.csv does not suit the model: the table lacks the column 'colour'" in fail(
        "predict", model, "lacks.csv"
    )
    table.select("size", "colour", "price").write_csv("extra.csv")
    assert "has the column 'price' that the encoder was not" in fail("predict", model, "extra.csv")
    np.savez("narrow.npz", X=np.zeros((2, 3)))
    assert "narrow.npz does not suit the model: X must have 4 column(s)" in fail(
        "predict", "iris.safetensors", "narrow.npz"
    )
    assert "--threads must be at least 0, got -1" in fail("predict", model, "kinds.csv", "--threads", -1)
    assert "was trained on a table with the columns size, colour" in fail("predict", model, "iris")
    assert "column 'colour' of kinds.csv holds String" in fail("predict", "iris.safetensors", "kinds.csv")
    assert "--out must end in one of .csv" in fail("predict", model, "kinds.csv", "-o", "out.xlsx")
    assert "there is no model file absent" in fail("predict", "absent", "kinds.csv")
    assert "is truncated or not a model file" in fail("predict", "kinds.csv", "kinds.csv")
    assert "is truncated or not a model file" in fail("info", "kinds.csv")


def test_bench_refuses_bad_options():
    assert "unknown backend 'cuda'" in fail("bench", "--backend", "cuda")
    assert "--seconds must be greater than 0" in fail("bench", "--seconds", 0)
    assert "--threads must be at least 0, got -1" in fail("bench", "--threads", -1)


def test_module_runs_as_a_command_with_plain_lines_where_there_is_no_terminal():
    with start("train", "iris", "--hidden", 8, "--epochs", 20, "--backend", "numpy") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "test accuracy" in out
    assert re.match(r"epoch +1/20  loss [\d.]+  val_loss", err)
    assert "\r" not in out + err
    assert "\x1b" not in out + err


def test_interruption_keeps_tests_and_saves_the_network():
    options = ("--epochs", 10**7, "--patience", 0, "--backend", "numpy", "--hidden", 8)
    with start("train", "iris", *options) as process:
        assert "epoch" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "interrupted after" in err
    assert ", interrupted" in facts(out)["epochs"]
    assert "test accuracy" in out
    assert io.load("iris.safetensors").epochs_trained > 0


def test_missing_package_is_one_sentence_that_names_the_extra():
    code = "import sys; sys.modules['typer'] = None; from gradstep.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == (
        'gradstep: the command line needs the package typer: pip install "gradstep[cli]"\n'
    )


def test_encoder_learns_from_the_training_rows_alone():
    frame = pl.DataFrame({"id": [f"row {i}" for i in range(100)]})
    data = DataSet("ids", frame, np.arange(100) % 2, "y")
    problem = make_problem(data, Choices(validation_fraction=0.1, test_fraction=0.2))
    assert problem.encoder.n_features == 70
    assert problem.train[0].any(axis=1).all()
    assert not problem.test[0].any()
