"""Model files: one safetensors file with JSON metadata, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradstep.losses import CUSTOM
from gradstep.network import Network
from gradstep.tables import TableEncoder
from gradstep.validation import check_integer
from gradstep.version import __version__

Tensors = dict[str, NDArray[Any]]

FORMAT_VERSION = 1
"""Grows when older versions of gradstep could not read a file."""

METADATA_KEY = "gradstep"
"""The entry of the safetensors header that holds the JSON metadata."""

OPTIMIZER_PREFIX = "optimizer."
"""In front of the names of the optimizer's state; parameters have their own names."""

EXTRA_PREFIX = "extra."
"""In front of the names of arrays that are no part of the network."""

CHECKSUM = "sha256"
"""The entry of the metadata with the checksum of all the rest, tensors included."""

_DAMAGED = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""What JSON that `save` did not write may raise: its numbers and its depth have no bounds."""


def save(
    network: Network,
    path: str | os.PathLike[str],
    *,
    optimizer: bool = False,
    description: Mapping[str, Any] | None = None,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write a network with its preprocessing, classes and encoder to one safetensors file, atomically.

    Parameters
    ----------
    network : Network
        The network.
    path : path-like
        The file to write or replace; its folder must exist.
    optimizer : bool, default False
        Also write the optimizer's state: after `load`, training goes on bit for bit.
    description : mapping, optional
        Plain JSON values to keep in the file, such as what the network was trained on.
    extra : mapping of str to ndarray, optional
        Arrays to keep in the file, which `load` ignores.

    Raises
    ------
    ValueError
        If the network has no parameters yet, parameters that are not finite, or an encoder
        that do not belong to it.
    OSError
        If the file cannot be written.
    """
    tensors = dict(network.parameters())
    if optimizer:
        state = network.optimizer_state()
        tensors.update({OPTIMIZER_PREFIX + name: value for name, value in state.items()})
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"the network cannot be saved: {name} holds NaN or infinity")
    tensors.update({EXTRA_PREFIX + name: value for name, value in (extra or {}).items()})
    _check_encoder(network)
    config = {
        "network": network.config,
        "encoder": None if network.encoder is None else network.encoder.to_config(),
        "description": dict(description or {}),
    }
    write_model(path, config, tensors)


def load(path: str | os.PathLike[str], *, backend: str = "auto", loss: Any = None) -> Network:
    """Read a network that `Network.save` wrote.

    Parameters
    ----------
    path : path-like
        The file.
    backend : {"auto", "cpp", "numba", "numpy"}
        What computes.
    loss : callable or CustomLoss, optional
        For a network that was trained with a Python function as its loss: that function, which the file does
        not hold. Without it the network predicts, and cannot be trained or evaluated.

    Returns
    -------
    Network
        Ready to predict, and to train further; exactly so if the optimizer's state was saved.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be opened.
    ValueError
        If it is truncated, altered, not a model of gradstep, or written by a newer version, or a loss is
        given for a network that knows its own.
    ImportError
        If the backend asked for is not available.
    """
    config, tensors = read_model(path)
    if loss is not None and not _lacks_loss(config):
        raise ValueError(f"loss must not be given: the loss of {os.fspath(path)} is no Python function")
    try:
        network = Network.from_config(config["network"], backend=backend, loss=loss)
        if config["encoder"] is not None:
            network.encoder = TableEncoder.from_config(config["encoder"])
        _set_tensors(network, tensors)
        _check_encoder(network)
    except KeyError as error:
        hint = ": an estimator is in it, whose class reads it with load" if "estimator" in config else ""
        raise ValueError(f"{os.fspath(path)} lacks {error} in its metadata{hint}") from None
    except _DAMAGED as error:
        raise ValueError(f"{os.fspath(path)} does not hold a whole model: {error}") from None
    return network


def _lacks_loss(config: Mapping[str, Any]) -> bool:
    network = config.get("network")
    loss = network.get("loss") if isinstance(network, Mapping) else None
    return isinstance(loss, Mapping) and loss.get("name") == CUSTOM


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the description that was given to `save`.

    Parameters
    ----------
    path : path-like
        A model file.

    Returns
    -------
    dict
        Empty if none was given.

    Raises
    ------
    OSError, ValueError
        As `load`.
    """
    description = _read(path, with_tensors=False)[0].get("description") or {}
    if not isinstance(description, dict):
        raise ValueError(f"{os.fspath(path)} holds damaged metadata: description is not an object")
    return description


def _check_encoder(network: Network) -> None:
    if network.encoder is not None and network.encoder.n_features != network.n_in:
        raise ValueError(
            f"the encoder must make as many features as the network has inputs ({network.n_in}), "
            f"got {network.encoder.n_features}"
        )


def _set_tensors(network: Network, tensors: Tensors) -> None:
    parameters, state = network_tensors(tensors)
    missing = [name for name in network.plan.parameter_shapes() if name not in parameters]
    if missing:
        raise ValueError(f"it lacks the parameter {missing[0]!r}")
    network.set_parameters(parameters)
    if state:
        network.set_optimizer_state(state)


def network_tensors(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Parameters, and the optimizer's state if there is one, among the tensors of a file."""
    others = (OPTIMIZER_PREFIX, EXTRA_PREFIX)
    parameters = {name: value for name, value in tensors.items() if not name.startswith(others)}
    return parameters, with_prefix(tensors, OPTIMIZER_PREFIX)


def with_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_model(path: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write a model file; a crash at any moment leaves an older file at path whole.

    Parameters
    ----------
    path : path-like
        The file to write or replace; its folder must exist.
    config : mapping
        Plain JSON values that describe the model.
    tensors : mapping of str to ndarray
        Arrays by name.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # safetensors writes the buffer as it lies in memory, whatever the strides.
    packed = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    written = {"format_version": FORMAT_VERSION, "gradstep_version": __version__, "config": config}
    metadata = json.loads(json.dumps(written, allow_nan=False))  # as it will be read
    metadata[CHECKSUM] = _checksum(metadata, packed)
    header = {METADATA_KEY: json.dumps(metadata, allow_nan=False)}
    with replace_atomically(path) as temporary:
        try:
            save_file(packed, temporary, metadata=header)
        except SafetensorError as error:
            raise OSError(f"{os.fspath(path)} cannot be written: {error}") from None


def _checksum(metadata: Mapping[str, Any], tensors: Tensors) -> str:
    """SHA-256 of the metadata without its checksum, and of every tensor's name, type, shape and bytes."""
    rest = {name: value for name, value in metadata.items() if name != CHECKSUM}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, tensor.dtype.str, tensor.shape]).encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_model(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Tensors]:
    """Read a model file.

    Parameters
    ----------
    path : path-like
        A file that `write_model` wrote.

    Returns
    -------
    config : dict
        The plain JSON values that were written.
    tensors : dict of str to ndarray
        The arrays that were written, bit for bit.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be opened.
    ValueError
        If it is truncated, altered, not a model of gradstep, or written by a newer version.
    """
    return _read(path, with_tensors=True)


def _read(path: str | os.PathLike[str], with_tensors: bool) -> tuple[dict[str, Any], Tensors]:
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name} is a folder, not a model file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no model file {name}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = _read_metadata(name, file.metadata() or {})
            keys = list(file.keys()) if with_tensors else []
            tensors = {key: _read_tensor(name, file, key) for key in keys}
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(f"{name} is truncated or not a model file of gradstep ({reason})") from None
    if with_tensors and CHECKSUM in metadata and metadata[CHECKSUM] != _checksum(metadata, tensors):
        raise ValueError(f"{name} is damaged: its contents do not match its checksum")
    config: dict[str, Any] = metadata["config"]
    return config, tensors


def _read_tensor(name: str, file: Any, key: str) -> NDArray[Any]:
    tensor: NDArray[Any] | None
    try:
        tensor = file.get_tensor(key)
    except (TypeError, AttributeError):  # how safetensors says that numpy has no such type
        tensor = None
    if tensor is None or tensor.dtype.kind not in "biufc":  # other packages may have taught numpy more
        kind = file.get_slice(key).get_dtype()
        raise ValueError(f"{name} holds {key} as {kind}, which numpy cannot read")
    return tensor


def _read_metadata(name: str, header: Mapping[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in header:
        raise ValueError(f"{name} is a safetensors file, but not a model of gradstep")
    try:
        metadata: dict[str, Any] = json.loads(header[METADATA_KEY], parse_constant=_refuse_constant)
        version = check_integer("format_version", metadata["format_version"], minimum=1)
        writer = metadata["gradstep_version"]
        config = metadata["config"]
    except _DAMAGED as error:
        raise ValueError(f"{name} holds damaged metadata: {error!r}") from None
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{name} was written by gradstep {writer} in format {version}, but this version reads formats up "
            f"to {FORMAT_VERSION}: upgrade gradstep"
        )
    if not isinstance(config, dict):
        raise ValueError(f"{name} holds damaged metadata: config is not an object")
    return metadata


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


@contextmanager
def replace_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file to write, and put it in the place of path when all went well.

    The old file stays whole until the new one is complete and on disk; after an exception the
    temporary file is gone and the old one untouched. Permissions and symbolic links are kept.

    Parameters
    ----------
    path : path-like
        The file to write or replace.

    Yields
    ------
    Path
        An empty file in the same folder.

    Raises
    ------
    OSError
        If path is a folder, a device or a pipe, or its folder does not exist or allow it.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)} is a folder: name a file in it")
    if target.exists() and not target.is_file():
        raise OSError(f"{os.fspath(path)} cannot be replaced: it is not a regular file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{os.fspath(path)} cannot be written: there is no folder {target.parent}")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    temporary.touch(exist_ok=False)
    try:
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        _flush_to_disk(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_to_disk(target.parent)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise an OSError now if `replace_atomically` could not write there later."""
    with suppress(_NotToBeWritten), replace_atomically(path):
        raise _NotToBeWritten


class _NotToBeWritten(Exception):  # noqa: N818
    """Ends a rehearsal of writing."""
