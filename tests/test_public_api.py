"""The public surface: names, documentation, the example of the front page, and the price of the import."""

import dataclasses
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs

PACKAGE = Path(gs.__file__).parent


def test_public_names_exist_and_are_sorted_by_kind():
    assert len(set(gs.__all__)) == len(gs.__all__)
    assert set(gs.__all__) <= set(dir(gs))
    for name in gs.__all__:
        assert getattr(gs, name) is not None
    with pytest.raises(AttributeError, match="module 'gradstep' has no attribute 'Dens'"):
        gs.Dens  # noqa: B018


def _public_objects():
    for name in (*gs.__all__, *(f"plot.{name}" for name in gs.plot.__all__)):
        value = getattr(gs.plot if name.startswith("plot.") else gs, name.removeprefix("plot."))
        if not callable(value):
            continue
        yield name, value
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (callable(member) or isinstance(member, property)):
                    yield f"{name}.{attribute}", member


@pytest.mark.parametrize(("name", "value"), list(_public_objects()))
def test_everything_public_is_documented(name, value):
    assert inspect.getdoc(value), name


@pytest.mark.parametrize(
    "name", [name for name, value in _public_objects() if "." not in name or inspect.isfunction(value)]
)
def test_documented_parameters_are_the_real_ones(name):
    value = gs
    for part in name.split("."):
        value = getattr(value, part)
    if inspect.isclass(value) and issubclass(value, Exception):
        return
    documentation = inspect.getdoc(value)
    if "Parameters\n----------" not in documentation:
        return
    section = documentation.split("Parameters\n----------\n")[1].split("\n\n")[0]
    heads = [line.split(" : ")[0] for line in section.splitlines() if line and not line.startswith(" ")]
    documented = [name for head in heads for name in head.split(", ")]
    parameters = {name: p for name, p in inspect.signature(value).parameters.items() if name != "self"}
    # The order of those that are given by name is free.
    by_name = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    in_order = [name for name in parameters if name not in by_name]
    assert documented[: len(in_order)] == in_order
    assert sorted(documented[len(in_order) :]) == sorted(by_name)


def test_version_is_that_of_the_package():
    metadata = PACKAGE.parent.parent / "pyproject.toml"
    if not metadata.exists():
        pytest.skip("installed without its pyproject.toml")
    assert f'\nversion = "{gs.__version__}"\n' in metadata.read_text()


def test_the_design_in_one_example(tmp_path, backend):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 5)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
    net = gs.Network(
        [gs.Dense(32, "relu"), gs.Dense(3)],
        loss="cross_entropy",
        optimizer=gs.Adam(1e-2),
        preprocessing="standardize",
        seed=0,
        backend=backend.name,
        dtype="float32",
    )
    history = net.fit(
        X[:200],
        y[:200],
        epochs=30,
        batch_size=20,
        validation_data=(X[200:], y[200:]),
        callbacks=[gs.EarlyStopping(patience=5)],
        verbose=0,
    )
    assert history.val_loss[-1] < history.val_loss[0]
    assert net.evaluate(X[200:], y[200:])["accuracy"] > 0.85
    assert gs.check_gradients(net, X[:5], y[:5])
    net.save(tmp_path / "model.safetensors", optimizer=True)
    again = gs.load(tmp_path / "model.safetensors", backend=backend.name)
    np.testing.assert_array_equal(again.predict(X), net.predict(X))
    continued = [network.fit(X, y, epochs=2, verbose=0).loss for network in (net, again)]
    assert continued[0] == continued[1]


def test_public_dataclasses_are_frozen_descriptions():
    for cls in (gs.Dense, gs.Input, gs.Adam, gs.AdamW, gs.SGD, gs.GradientDescent, gs.Loss, gs.Trace):
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen


# --------------------------------------------------------------------------------------------------
# The import


def _run(code, folder):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(PACKAGE.parent)
    environment["PYTHONPYCACHEPREFIX"] = str(folder)
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return result.stdout


def test_importing_costs_at_most_50_ms_more_than_numpy(tmp_path):
    """Or half of what numpy itself costs, on a machine where that takes more than 100 ms."""
    code = (
        "import time; start = time.process_time(); import numpy; middle = time.process_time(); "
        "import gradstep; print(middle - start, time.process_time() - middle)"
    )
    runs = [[float(seconds) for seconds in _run(code, tmp_path).split()] for _ in range(8)]
    of_numpy, own = (min(seconds) for seconds in zip(*runs[1:], strict=True))  # the first one compiles
    assert own < max(0.05, of_numpy / 2)


def test_importing_loads_none_of_the_heavy_packages(tmp_path):
    heavy = "tqdm safetensors numba scipy narwhals polars pandas sklearn rich typer threadpoolctl joblib onnx"
    loaded = _run("import sys, gradstep; print(*sys.modules)", tmp_path).split()
    assert "gradstep.network" in loaded
    assert not {*heavy.split(), "matplotlib"} & set(loaded)


def test_every_module_can_be_imported_first(tmp_path):
    """No import depends on another one that happened before: there are no cycles."""
    modules = [
        ".".join(("gradstep", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in sorted(PACKAGE.glob("*.py"))
        if path.stem not in ("__init__", "__main__", "cli")
    ]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    for loaded in [m for m in sys.modules if m.startswith('gradstep') and m != 'gradstep._core']:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module(name)\n"
        "print('fine')"
    )
    assert _run(script, tmp_path).strip() == "fine"
    assert importlib.import_module("gradstep.network").Network is gs.Network
