"""Model files: round trips, atomic writing, and what happens to foreign and damaged files."""

import json
import os
import stat
import struct

import numpy as np
import pytest
import safetensors.numpy

import gradstep as gs
from gradstep import io
from gradstep.tables import TableEncoder

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


def test_pipe_is_not_replaced(path, tensors):
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be replaced: it is not a regular file"):
        io.write_model(path, CONFIG, tensors)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert names(path.parent) == [path.name]


def test_link_to_a_pipe_is_refused_before_anything_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    link = tmp_path / "link"
    link.symlink_to("pipe")
    with pytest.raises(OSError, match="link cannot be replaced: it is not a regular file"):
        io.check_writable(link)
    assert (tmp_path / "pipe").is_fifo()


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


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + b"0" * 100, b"\x80\x04" * 100, b"a,b\n1,2\n" * 9, b"\0" * 64]
)
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
        *(
            (
                {"gradstep": f'{{"format_version": {version}, "gradstep_version": "1", "config": {{}}}}'},
                "holds damaged metadata",
            )
            for version in ("Infinity", "-Infinity", "1e999", "-3", "0", "true", '"1"', "1.0", "null")
        ),
        (
            {"gradstep": '{"format_version": 1, "gradstep_version": "1", "config": {"l2": NaN}}'},
            "holds damaged metadata: .*NaN is not JSON",
        ),
        ({"gradstep": "[" * 100_000}, "holds damaged metadata"),
    ],
)
def test_other_safetensors_files_are_refused(path, header, words):
    safetensors.numpy.save_file({"W": np.zeros(3)}, path, metadata=header)
    with pytest.raises(ValueError, match=words) as caught:
        io.read_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "size"), [("BF16", 2), ("F8_E4M3", 1)])
def test_tensor_of_a_type_that_numpy_lacks_is_refused(path, tensors, kind, size):
    io.write_model(path, CONFIG, tensors)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensor = {"dtype": kind, "shape": [1], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "W": tensor}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(ValueError, match=f"holds W as {kind}, which numpy cannot read"):
        io.read_model(path)


def test_missing_files_and_folders_are_said(tmp_path, tensors):
    with pytest.raises(FileNotFoundError, match=r"there is no model file .*absent"):
        io.read_model(tmp_path / "absent")
    with pytest.raises(IsADirectoryError, match="is a folder, not a model file"):
        io.read_model(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        io.write_model(tmp_path, CONFIG, tensors)
    with pytest.raises(FileNotFoundError, match=r"cannot be written: there is no folder .*absent"):
        io.write_model(tmp_path / "absent" / "model", CONFIG, tensors)


def trained(optimizer="adam", seed=0, **options):
    rng = np.random.default_rng(1)
    X = 5 + 3 * rng.normal(size=(50, 4))
    y = rng.integers(0, 3, 50)
    options = {"loss": "cross_entropy", "preprocessing": "standardize"} | options
    net = gs.Network(
        [gs.Dense(8, "tanh"), gs.Dense(3)], optimizer=optimizer, seed=seed, backend="numpy", **options
    )
    if options["loss"] != "cross_entropy":
        y = rng.normal(size=(50, 3))
    net.fit(X, y, epochs=2, batch_size=16, verbose=0)
    return net, X, y


@pytest.mark.parametrize(
    "optimizer",
    [
        gs.GradientDescent(0.1),
        gs.SGD(0.05, momentum=0.9, nesterov=True),
        gs.Adam(0.01),
        gs.AdamW(0.01, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stopping_saving_loading_and_going_on_is_the_uninterrupted_run(path, optimizer, dtype):
    whole, X, y = trained(optimizer, dtype=dtype, l2=0.01)
    first, _, _ = trained(optimizer, dtype=dtype, l2=0.01)
    first.save(path, optimizer=True)
    second = io.load(path, backend="numpy")
    assert second.epochs_trained == 2
    history = second.fit(X, y, epochs=3, batch_size=16, verbose=0)
    expected = whole.fit(X, y, epochs=3, batch_size=16, verbose=0)
    assert history.loss == expected.loss
    for name, value in whole.parameters().items():
        np.testing.assert_array_equal(second.parameters()[name], value)
    for name, value in whole.optimizer_state().items():
        np.testing.assert_array_equal(second.optimizer_state()[name], value)


def test_without_the_optimizer_state_the_file_is_smaller_and_predicts_the_same(path):
    net, X, _ = trained()
    net.save(path, optimizer=True)
    large = path.stat().st_size
    net.save(path)
    assert path.stat().st_size < 0.6 * large
    loaded = io.load(path, backend="numpy")
    np.testing.assert_array_equal(loaded.predict(X), net.predict(X))
    assert all(not value.any() for value in loaded.optimizer_state().values())


def test_description_of_the_network_comes_back(path):
    net, X, y = trained(gs.SGD(0.03, momentum=0.5), seed=7, l2=0.25)
    net.classes = ["no", "perhaps", "yes"]
    net.save(path)
    loaded = io.load(path, backend="numpy")
    assert loaded.config == net.config
    assert loaded.classes == ["no", "perhaps", "yes"]
    assert loaded.optimizer == gs.SGD(0.03, momentum=0.5)
    assert loaded.evaluate(X, y) == net.evaluate(X, y)


def test_standardized_targets_come_back_in_their_own_units(path):
    net, X, _ = trained(loss=gs.Huber(0.5), target_preprocessing="standardize")
    net.save(path)
    loaded = io.load(path, backend="numpy")
    np.testing.assert_array_equal(loaded.predict(X), net.predict(X))
    assert loaded.loss.to_config() == gs.Huber(0.5).to_config()


def test_encoder_travels_inside_the_file(path):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"x": [1.0, None, 3.0, 4.0], "c": ["a", "b", None, "b"]})
    net = gs.Network([gs.Dense(2)], loss="cross_entropy", backend="numpy")
    net.encoder = TableEncoder().fit(frame)
    net.fit(frame, [0, 1, 0, 1], epochs=1, verbose=0)
    net.save(path)
    loaded = io.load(path, backend="numpy")
    new = pl.DataFrame({"c": ["b", "z"], "x": [None, 2.0]})
    np.testing.assert_array_equal(loaded.predict(new), net.predict(new))


def test_description_is_kept_and_read_without_the_network(path):
    net, _, _ = trained()
    io.save(net, path, description={"target": "price"})
    assert io.read_description(path) == {"target": "price"}
    net.save(path)
    assert io.read_description(path) == {}


def test_network_without_parameters_cannot_be_saved_and_harms_no_file(path):
    trained()[0].save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="input width is not known yet"):
        gs.Network([gs.Dense(3)], backend="numpy").save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_network_that_is_not_finite_cannot_be_saved_and_harms_no_file(path, monkeypatch, value):
    net, _, _ = trained()
    net.save(path)
    before = path.read_bytes()
    parameters = net.parameters()
    parameters["dense_1.W"][2, 1] = value
    monkeypatch.setattr(net, "parameters", lambda: parameters)
    with pytest.raises(ValueError, match=r"cannot be saved: dense_1\.W holds NaN or infinity"):
        net.save(path)
    assert path.read_bytes() == before
    assert names(path.parent) == [path.name]


def test_two_classes_of_a_single_output_are_saved(path):
    net = gs.Network([gs.Input(2), gs.Dense(1)], loss="binary_cross_entropy", backend="numpy")
    net.classes = ["no", "yes"]
    net.save(path)
    assert io.load(path, backend="numpy").classes == ["no", "yes"]


def test_encoder_of_another_width_cannot_be_saved(path):
    pl = pytest.importorskip("polars")
    net, _, _ = trained()
    net.encoder = TableEncoder().fit(pl.DataFrame({"x": [1.0, 2.0]}))
    with pytest.raises(ValueError, match=r"as many features as the network has inputs \(4\), got 1"):
        net.save(path)


ENCODER = {
    "max_categories": 255,
    "columns": [
        {"name": name, "kind": "number", "mean": 0.0, "scale": 1.0, "median": 0.0, "indicator": False}
        for name in "abcd"
    ],
}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda config, tensors: tensors.pop("dense_1.b"), "lacks the parameter 'dense_1.b'"),
        (lambda config, tensors: tensors.update({"dense_0.W": np.zeros((2, 2))}), "W must have shape"),
        (lambda config, tensors: tensors.update({"extra": np.zeros(1)}), "unknown parameter 'extra'"),
        (lambda config, tensors: tensors.pop("optimizer.step"), "optimizer state lacks 'step'"),
        (lambda config, tensors: config["network"].pop("layers"), "does not describe a network"),
        (lambda config, tensors: config["network"].update(layers=7), "does not describe a network"),
        (lambda config, tensors: config["network"]["loss"].update(name="mean"), "unknown loss 'mean'"),
        (lambda config, tensors: config.pop("network"), "lacks 'network' in its metadata"),
        (lambda config, tensors: config.update(encoder={}), "does not describe a TableEncoder"),
        (lambda config, tensors: config["network"].update(l2=10**400), "l2 must fit float64"),
        (lambda config, tensors: config["network"].update(classes="abc"), "classes must be a list of names"),
        (
            lambda config, tensors: config["network"].update(classes=["a", "b"]),
            "classes must be one name",
        ),
        (
            lambda config, tensors: config.update(encoder={**ENCODER, "columns": ENCODER["columns"][:3]}),
            r"as many features as the network has inputs \(4\), got 3",
        ),
    ],
)
def test_model_that_contradicts_itself_is_refused(path, damage, words):
    net, _, _ = trained()
    net.save(path, optimizer=True)
    config, tensors = io.read_model(path)
    damage(config, tensors)
    io.write_model(path, config, tensors)
    with pytest.raises(ValueError, match=words) as caught:
        io.load(path, backend="numpy")
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_description_that_is_no_object_is_refused(path):
    net, _, _ = trained()
    net.save(path)
    config, tensors = io.read_model(path)
    io.write_model(path, config | {"description": "train"}, tensors)
    with pytest.raises(ValueError, match="damaged metadata: description is not an object"):
        io.read_description(path)


def test_unknown_backend_is_said_at_loading(path):
    trained()[0].save(path)
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        io.load(path, backend="cuda")
