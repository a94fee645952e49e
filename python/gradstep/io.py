"""Model files: one safetensors file with JSON metadata, written atomically."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]

FORMAT_VERSION = 1
"""Grows when older versions of gradstep could not read a file."""

METADATA_KEY = "gradstep"
"""The entry of the safetensors header that holds the JSON metadata."""


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

    from gradstep import __version__

    metadata = {"format_version": FORMAT_VERSION, "gradstep_version": __version__, "config": config}
    header = {METADATA_KEY: json.dumps(metadata, allow_nan=False)}
    # safetensors writes the buffer as it lies in memory, whatever the strides.
    packed = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with replace_atomically(path) as temporary:
        try:
            save_file(packed, temporary, metadata=header)
        except SafetensorError as error:
            raise OSError(f"{os.fspath(path)} cannot be written: {error}") from None


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
        If it is truncated, not a model of gradstep, or written by a newer version.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name} is a folder, not a model file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no model file {name}")
    try:
        with safe_open(path, framework="numpy") as file:
            config = _read_config(name, file.metadata() or {})
            return config, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(f"{name} is truncated or not a model file of gradstep ({reason})") from None


def _read_config(name: str, header: Mapping[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in header:
        raise ValueError(f"{name} is a safetensors file, but not a model of gradstep")
    try:
        metadata = json.loads(header[METADATA_KEY])
        version = int(metadata["format_version"])
        writer = metadata["gradstep_version"]
        config = metadata["config"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name} holds damaged metadata: {error!r}") from None
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{name} was written by gradstep {writer} in format {version}, but this version reads formats up "
            f"to {FORMAT_VERSION}: upgrade gradstep"
        )
    if not isinstance(config, dict):
        raise ValueError(f"{name} holds damaged metadata: config is not an object")
    return config


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
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)} is a folder: name a file in it")
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
