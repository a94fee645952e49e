"""Model files: round trips, atomic writing, and what happens to foreign and damaged files."""

import json
import os
import stat

import numpy as np
import pytest
import safetensors.numpy

from gradstep import io

CONFIG = {"layers": [1, 2.5, None, "three"], "loss": "mse"}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "W": rng.normal(size=(3, 4)).astype(np.float32),
        "transposed": np.asfortranarray(rng.normal(size=(3, 4))),
        "strided": rng.normal(size=(6, 4))[::2, ::-1],
        "step": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 3), dtype=np.float32),
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_config_and_arrays_come_back_bit_for_bit(path, tensors):
    io.write_model(path, CONFIG, tensors)
    config, read = io.read_model(path)
    assert config == CONFIG
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        np.testing.assert_array_equal(read[name], tensor)


def test_same_model_gives_the_same_bytes(path, tensors):
    io.write_model(path, CONFIG, tensors)
    first = path.read_bytes()
    io.write_model(path, CONFIG, tensors)
    assert path.read_bytes() == first


def test_header_holds_plain_json_that_any_safetensors_reader_shows(path, tensors):
    io.write_model(str(path), CONFIG, tensors)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["gradstep"])
    assert metadata["format_version"] == io.FORMAT_VERSION
    assert metadata["config"] == CONFIG
    assert "gradstep_version" in metadata


@pytest.mark.parametrize("crash", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
def test_crash_in_the_middle_of_writing_leaves_the_old_file_whole(path, tensors, monkeypatch, crash):
    io.write_model(path, CONFIG, tensors)
    before = path.read_bytes()

    def half_a_file(_, temporary, metadata):
        temporary.write_bytes(before[: len(before) // 2])
        raise crash

    monkeypatch.setattr(safetensors.numpy, "save_file", half_a_file)
    with pytest.raises(type(crash)):
        io.write_model(path, {"other": 1}, tensors)
    assert path.read_bytes() == before
    assert names(path.parent) == [path.name]


def test_new_file_is_on_disk_before_it_takes_the_place_of_the_old_one(path, tensors, monkeypatch):
    io.write_model(path, CONFIG, tensors)
    before = path.read_bytes()
    calls = []

    def fsync(descriptor, real=os.fsync):
        calls.append(("fsync", stat.S_ISDIR(os.fstat(descriptor).st_mode), path.read_bytes() == before))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    io.write_model(path, {"other": 1}, tensors)
    assert calls == [("fsync", False, True), ("fsync", True, False)]


def test_failed_replacement_leaves_the_old_file_whole(path, tensors, monkeypatch):
    io.write_model(path, CONFIG, tensors)

    def fail(*_):
        raise PermissionError("not allowed")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError):
        io.write_model(path, {"other": 1}, tensors)
    assert io.read_model(path)[0] == CONFIG
    assert names(path.parent) == [path.name]


def test_permissions_follow_the_umask_and_survive_replacement(path, tensors):
    io.write_model(path, CONFIG, tensors)
    plain = path.parent / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o640)
    io.write_model(path, CONFIG, tensors)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_symbolic_link_stays_a_link(path, tensors):
    link = path.parent / "link.safetensors"
    link.symlink_to(path.name)
    io.write_model(link, CONFIG, tensors)
    assert link.is_symlink()
    assert io.read_model(path)[0] == CONFIG


def test_every_truncation_is_refused(path, tensors):
    io.write_model(path, CONFIG, tensors)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is truncated or not a model file of gradstep"):
            io.read_model(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + b"0" * 100, b"\x80\x04" * 100, b"a,b\n1,2\n" * 9, b"\0" * 64])
def test_foreign_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or not a model file"):
        io.read_model(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (None, "is a safetensors file, but not a model of gradstep"),
        ({"format": "pt"}, "is a safetensors file, but not a model of gradstep"),
        ({"gradstep": "{"}, "holds damaged metadata"),
        ({"gradstep": "[]"}, "holds damaged metadata"),
        ({"gradstep": "{}"}, "holds damaged metadata"),
        (
            {"gradstep": '{"format_version": 1, "gradstep_version": "1", "config": 3}'},
            "config is not an object",
        ),
        (
            {"gradstep": '{"format_version": 999, "gradstep_version": "9.9", "config": {}}'},
            "written by gradstep 9.9 in format 999, but this version reads formats up to 1: upgrade gradstep",
        ),
    ],
)
def test_other_safetensors_files_are_refused(path, header, words):
    safetensors.numpy.save_file({"W": np.zeros(3)}, path, metadata=header)
    with pytest.raises(ValueError, match=words) as caught:
        io.read_model(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_said(tmp_path, tensors):
    with pytest.raises(FileNotFoundError, match="there is no model file .*absent"):
        io.read_model(tmp_path / "absent")
    with pytest.raises(IsADirectoryError, match="is a folder, not a model file"):
        io.read_model(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        io.write_model(tmp_path, CONFIG, tensors)
    with pytest.raises(FileNotFoundError, match="cannot be written: there is no folder .*absent"):
        io.write_model(tmp_path / "absent" / "model", CONFIG, tensors)
