"""Layers of the package import only downwards."""

import ast
from pathlib import Path

import pytest

import gradstep

PACKAGE = Path(gradstep.__file__).parent

LAYERS = (
    {"version", "names", "validation", "random"},
    {"backends.base", "backends.interrupt", "backends.blas_threads", "backends.threadpool_control"},
    {"backends.custom_loss"},
    {"backends.numpy.activations", "backends.numpy.optimizers"},
    {"backends.numpy.losses", "backends.numpy.layers"},
    {"backends.numpy.propagation", "backends.numpy.ready_arrays"},
    {"backends.numpy.engine"},
    {"backends.numpy"},
    {"backends.numba_kernels", "_core"},
    {"backends.numba", "backends.cpp"},
    {"backends", "lbfgs"},
    {
        "averaging",
        "initializers",
        "layers",
        "losses",
        "optimizers",
        "preprocessing",
        "schedules",
        "sources",
    },
    {"diagram"},
    {"history", "progress", "metrics", "class_weights", "tracing", "callbacks", "plot"},
    {"specification", "streaming", "training", "fit_arguments"},
    {"network"},
    {"gradients", "learning_rate", "info", "tables", "data"},
    {"io"},
    {"checkpoint", "logs", "interchange"},
    {""},  # gradstep itself: the public names
    {"sklearn"},
    {"cli", "commands"},
    {"__main__"},
)
"""From the bottom to the top; a module imports from its own layer or from below."""

EXCEPTIONS = {("network", name) for name in ("io", "interchange.c", "interchange.onnx", "interchange.torch")}
"""`Network.save` and the exports hand over to the layers above, when they are called."""


def _level(module):
    package = module.partition(".")[0]
    module = package if package in ("commands", "interchange", "sklearn") else module
    levels = [level for level, names in enumerate(LAYERS) if module in names]
    assert levels, f"tests/test_layering.py does not know where gradstep.{module} belongs"
    return levels[0]


def _module(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _statements(node):
    """All nodes but those that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if not _is_type_checking(child):
            yield child
            yield from _statements(child)


def _imports(path):
    for node in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "gradstep")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gradstep":
            for alias in node.names:
                below = PACKAGE.joinpath(*node.module.split(".")[1:], alias.name)
                is_module = below.with_suffix(".py").exists() or below.is_dir() or alias.name == "_core"
                yield f"{node.module}.{alias.name}" if is_module else node.module
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively, which this test does not follow"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[_module(path) or "gradstep" for path in FILES])
def test_modules_import_from_their_own_layer_or_below(path):
    importer = _module(path)
    for name in _imports(path):
        imported = name.removeprefix("gradstep").removeprefix(".")
        if (importer, imported) not in EXCEPTIONS:
            assert _level(imported) <= _level(importer), f"{importer} imports {imported}, which is above it"


def test_the_backends_know_nothing_of_the_networks():
    """The contract is all they share with the layers above."""
    network = _level("layers")
    for path in (PACKAGE / "backends").rglob("*.py"):
        for name in _imports(path):
            assert _level(name.removeprefix("gradstep").removeprefix(".")) < network
