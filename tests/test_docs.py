"""The code in README.md and the pages of docs/ runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def python_blocks(page):
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/estimators.md"])
def test_the_pages_code_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    for package in ("pandas", "narwhals", "sklearn", "matplotlib", "tensorboard", "pyarrow", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    blocks = python_blocks(page)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_the_quick_start_has_two_shell_blocks():
    assert len(re.findall(r"^```sh$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)) == 2


@pytest.mark.parametrize(
    "page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/guide.md", "docs/estimators.md"]
)
def test_links_to_files_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert ((ROOT / page).parent / link).exists(), link


def test_the_guide_lists_every_name():
    from gradstep.backends.numpy.activations import ACTIVATIONS
    from gradstep.backends.numpy.losses import LOSSES

    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    for name in (*ACTIVATIONS, *LOSSES):
        assert name in text, name
