"""The examples run, and do what they say."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(capsys):
    def run(name, *arguments):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        result = module.main(*arguments)
        return result, capsys.readouterr().out.splitlines()

    return run


def losses(lines):
    """The rows of the table of losses, one for every 100 epochs."""
    rows = [[float(cell) for cell in line.split()] for line in lines[1:11]]
    assert [row[0] for row in rows] == list(range(100, 1001, 100))
    return [row[1:] for row in rows]


def test_linear_regression_recovers_the_line(run):
    lines, output = run("linear_regression")
    assert list(lines) == ["plain", "stochastic", "momentum"]
    for slope, intercept in lines.values():
        assert slope == pytest.approx(3, abs=0.1)
        assert intercept == pytest.approx(2.5, abs=0.1)
    assert output[0].split() == ["epoch", "plain", "stochastic", "momentum"]
    assert all(loss < 0.12 for row in losses(output) for loss in row)


def test_perceptron_learns_its_rounded_target(run):
    accuracies, output = run("perceptron")
    assert list(accuracies) == ["plain", "stochastic", "momentum"]
    assert min(accuracies.values()) >= 0.97
    table = losses(output)
    assert all(last < first for first, last in zip(table[0], table[-1], strict=True))


def test_plots_writes_a_picture(run, tmp_path):
    for package in ("matplotlib", "sklearn"):
        pytest.importorskip(package)
    (accuracy, r2), _ = run("plots", tmp_path / "plots.png")
    assert accuracy > 0.9
    assert r2 > 0.9
    assert (tmp_path / "plots.png").read_bytes().startswith(b"\x89PNG")


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"linear_regression", "perceptron", "plots"}
