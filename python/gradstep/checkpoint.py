"""Checkpoints: model files written during training, from which a new process goes on exactly."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradstep.callbacks import Callback, TrainingState, Watched
from gradstep.io import (
    EXTRA_PREFIX,
    Tensors,
    check_writable,
    load,
    network_tensors,
    read_model,
    replace_atomically,
    save,
    with_prefix,
)
from gradstep.network import Network
from gradstep.validation import check_flag, check_integer

DESCRIPTION = "checkpoint"
"""The entry of a model file's description that makes it a checkpoint."""

BEST = "best.safetensors"
"""The name of the best one."""

_NAME = re.compile(r"epoch-(\d+)\.safetensors")
_TEMPORARY = re.compile(r"\.(epoch-\d+|best)\.safetensors\.[0-9a-f]+\.tmp")

_SAME_TO = 1e-5
"""Relative difference up to which statistics of X and y count as those of the same rows."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read and found whole."""

    path: Path
    network: Mapping[str, Any]
    """`Network.config` after its epoch."""
    training: Mapping[str, Any]
    """What `Checkpoint` wrote about the training."""
    tensors: Tensors

    @property
    def epochs(self) -> int:
        """Epochs of the call of `fit` that are done."""
        return int(self.training["epochs"])


class Checkpoint(Callback):
    """Write the training to files, and go on from there when the same program is started again.

    After every so many epochs, and after the last one, a file ``epoch-00012.safetensors`` holds the network,
    the state of its optimizer, the history, and the states of all callbacks. Each is a model file that
    `gradstep.load` reads. Files are written next to their place and moved into it, and have a checksum: a
    process that is killed at any moment loses the epochs since the last checkpoint, and nothing else.

    With resume, a call of `fit` whose directory holds checkpoints of the same call begins after their newest
    epoch: losses, parameters and learning rates are then bit for bit those of a call that was never
    interrupted (compiled backend; data, arguments and network must be the same). A finished call returns at
    once with the network and the whole history. Only ``epochs`` may change, to a number not below those done;
    a schedule that takes its length from the whole `fit` is then another one. A damaged checkpoint is
    passed over with a warning, and the one before it taken.

    It is called after all other callbacks, so that a checkpoint knows what they did in its epoch.

    Parameters
    ----------
    directory : path-like
        Where the files are; made if need be. Every call of `fit` needs one of its own.
    every : int, default 1
        Epochs between two checkpoints, at least 1.
    keep : int, default 3
        How many of the newest stay, at least 1.
    best : bool, default True
        Also keep the best one of all that were written, as ``best.safetensors``.
    monitor : str, optional
        A key of the history that says which is best; "val_loss" by default, or "loss" without validation
        data.
    mode : {"auto", "min", "max"}
        Whether monitor should become small or large, as for `EarlyStopping`.
    resume : bool, default True
        Go on from the newest checkpoint in directory. False starts anew, and removes the checkpoints that are
        there when the first new one is whole.

    Attributes
    ----------
    resumed : int
        Epochs that the last call of `fit` took from a checkpoint; 0 if it began anew.
    """

    last = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: int = 1,
        keep: int = 3,
        best: bool = True,
        monitor: str | None = None,
        mode: str = "auto",
        resume: bool = True,
    ) -> None:
        self.directory = _as_path(directory)
        self.every = check_integer("every", every, minimum=1)
        self.keep = check_integer("keep", keep, minimum=1)
        self.keeps_best = check_flag("best", best)
        self._watched = Watched(monitor, mode)
        self.resume = check_flag("resume", resume)
        self.resumed = 0
        self._found: Saved | None = None

    def on_fit_begin(self, state: TrainingState) -> None:
        """Look for checkpoints, and go on from the newest."""
        self._watched.begin(state.metrics)
        self._best_epoch = self.resumed = 0
        self._start, self._earlier = time.perf_counter(), 0.0
        self._begun = _beginning(state)
        self._prepare_directory()
        self._stale = [] if self.resume else _checkpoints(self.directory)
        self._found = self._newest(state) if self.resume else None
        group = [callback for callback in state.callbacks if isinstance(callback, Checkpoint)]
        if self is group[-1]:  # all have looked, and nobody can refuse any more
            _go_on(group, state)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Write a checkpoint if one is due."""
        is_last = state.epoch == state.epochs or state.history.stopped != "finished"
        if state.epoch % self.every != 0 and not is_last:
            return
        improved = self._watched.improves(state.history)
        if improved:
            self._best_epoch = state.number
        path = self.directory / f"epoch-{state.number:05d}.safetensors"
        _write(path, state, self._training(state))
        for old in self._stale:
            if old != path:
                old.unlink(missing_ok=True)
        self._stale = []
        if improved and self.keeps_best:
            _link(path, self.directory / BEST)
        self._prune(state.number)

    # ----------------------------------------------------------------------------------------------

    def _prepare_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise NotADirectoryError(f"directory must be a folder, but {self.directory} is a file") from None
        check_writable(self.directory / BEST)
        for entry in self.directory.iterdir():  # what a killed process left
            if _TEMPORARY.fullmatch(entry.name):
                entry.unlink(missing_ok=True)

    def _newest(self, state: TrainingState) -> Saved | None:
        """The newest whole checkpoint, of the same training."""
        paths = [path for path in _checkpoints(self.directory) if path.name != BEST]
        for number, path in enumerate(paths):
            try:
                saved = _read(path)
            except ValueError as error:
                _warn_of(error, paths[number + 1 :])
                self._stale.append(path)
                reason = error
                continue
            self._check_same(saved, state)
            return saved
        if paths:
            raise ValueError(
                f"directory {self.directory} holds no whole checkpoint ({reason}): remove them, or give "
                "resume=False to start anew"
            )
        return None

    def _check_same(self, saved: Saved, state: TrainingState) -> None:
        was, now = saved.training["begun"], self._begun
        for name in now:
            if name in was and not _is_same(was[name], now[name]):  # files may be older than a name
                changed = _difference(name, was[name], now[name])
                raise ValueError(
                    f"directory {self.directory} holds checkpoints of another training ({changed}): name "
                    "another directory, or give resume=False to start anew"
                )
        if saved.epochs > state.epochs:
            raise ValueError(
                f"epochs must be at least {saved.epochs}, as so many are done in directory {self.directory}, "
                f"got {state.epochs}"
            )

    def _training(self, state: TrainingState) -> dict[str, Any]:
        """What a checkpoint says about the training, but for arrays."""
        return {
            "begun": self._begun,
            "epochs": state.epoch,
            "samples": state.history.samples,
            "seconds": self._earlier + time.perf_counter() - self._start,
            "best": repr(self._watched.best),  # may be infinite, which is not JSON
            "best_epoch": self._best_epoch,
        }

    def _take_over(self, saved: Saved) -> None:
        """The training goes on from a checkpoint, which may be another one's: be as after that epoch."""
        self.resumed, self._earlier = saved.epochs, float(saved.training["seconds"])
        own, self._found = self._found, None
        if own is None:
            return
        self._watched.best, self._best_epoch = float(own.training["best"]), int(own.training["best_epoch"])
        if self.keeps_best and self._best_epoch == _number(own.path):  # a process may have died in between
            _link(own.path, self.directory / BEST)

    def _prune(self, newest: int) -> None:
        """Remove checkpoints beyond those to keep, and any of later epochs."""
        paths = [path for path in _checkpoints(self.directory) if path.name != BEST]
        past = [path for path in paths if _number(path) <= newest]
        for path in {*paths} - {*past[: self.keep]}:
            path.unlink(missing_ok=True)


def load_checkpoint(
    directory: str | os.PathLike[str], *, best: bool = False, backend: str = "auto"
) -> Network:
    """Read the newest whole network that a `Checkpoint` wrote, to use it.

    To go on with the training, call `Network.fit` with a `Checkpoint` of the same directory instead.

    Parameters
    ----------
    directory : path-like
        The checkpoint's directory.
    best : bool, default False
        Read the best one instead.
    backend : {"auto", "cpp", "numba", "numpy"}
        What computes.

    Returns
    -------
    Network
        As from `gradstep.load`. A damaged file is passed over with a warning, and the one before it taken.

    Raises
    ------
    OSError
        If there is no checkpoint.
    ValueError
        If none is whole.
    """
    folder = _as_path(directory)
    if check_flag("best", best):
        return load(folder / BEST, backend=backend)
    paths = [path for path in _checkpoints(folder) if path.name != BEST]
    if not paths:
        raise FileNotFoundError(f"there is no checkpoint in directory {folder}")
    for number, path in enumerate(paths[:-1]):
        try:
            return load(path, backend=backend)
        except ValueError as error:
            _warn_of(error, paths[number + 1 :])
    return load(paths[-1], backend=backend)


def _as_path(directory: object) -> Path:
    try:
        return Path(os.fsdecode(os.fspath(directory)))  # type: ignore[call-overload]
    except TypeError:
        raise TypeError(f"directory must be the path of a folder, got {directory!r}") from None


def _checkpoints(directory: Path) -> list[Path]:
    """All checkpoints, the best one and then from the newest to the oldest."""
    entries = list(directory.iterdir()) if directory.is_dir() else []
    numbered = [entry for entry in entries if _NAME.fullmatch(entry.name)]
    best = [entry for entry in entries if entry.name == BEST]
    return best + sorted(numbered, key=_number, reverse=True)


def _number(path: Path) -> int:
    """The epoch in a checkpoint's name."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def _warn_of(error: ValueError, older: list[Path]) -> None:
    instead = f"the one before it is used: {older[0].name}" if older else "there is none before it"
    warnings.warn(f"{error}; {instead}", UserWarning, stacklevel=_stacklevel())


def _stacklevel() -> int:
    """How far up the first caller outside of the package is."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("gradstep."):
        level, frame = level + 1, frame.f_back
    return level


# --------------------------------------------------------------------------------------------------
# Is it the same training?


def _beginning(state: TrainingState) -> dict[str, Any]:
    """What must be the same for a training to go on, as JSON gives it back."""
    config = {name: value for name, value in state.network.config.items() if name != "classes"}
    # The address of a function is another one in every process.
    schedule = re.sub(r" at 0x[0-9a-f]+", "", repr(state.arguments["schedule"]))
    begun = {
        **config,
        **state.arguments,
        **state.identity(),
        "schedule": schedule,
        "metrics": ", ".join(state.metrics),
    }
    plain: dict[str, Any] = json.loads(json.dumps(begun))
    return plain


def _is_same(was: Any, now: Any) -> bool:
    if not (isinstance(was, dict) and isinstance(now, dict) and {"mode", "shift", "scale"} == now.keys()):
        return bool(was == now)
    if was["mode"] != now["mode"] or (was["shift"] is None) != (now["shift"] is None):
        return False
    if now["shift"] is None:
        return True
    # Other versions of numpy may round sums in another way.
    scale = np.array(now["scale"])
    return len(was["scale"]) == len(scale) and all(
        bool((np.abs(np.array(was[name]) - np.array(now[name])) <= _SAME_TO * scale).all())
        for name in ("shift", "scale")
    )


def _difference(name: str, was: Any, now: Any) -> str:
    """What is another value in one of two JSON values, in words."""
    parts: list[tuple[str, Any, Any]] = []
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        parts = [(f"{name}.{key}", was[key], now[key]) for key in now]
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        parts = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(was, now, strict=True))]
    for part in parts:
        if part[1] != part[2]:
            return _difference(*part)
    return f"{name} was {_short(was)}, now it is {_short(now)}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --------------------------------------------------------------------------------------------------
# Files.


def _write(path: Path, state: TrainingState, training: Mapping[str, Any]) -> None:
    history = state.history.metrics
    extra: Tensors = {f"history.{name}": np.array(values, np.float64) for name, values in history.items()}
    states = []
    for index, callback in enumerate(state.callbacks):
        held = callback.get_state()
        arrays = {name: value for name, value in held.items() if _is_array(value)}
        extra.update({f"callback.{index}.{name}": value for name, value in arrays.items()})
        plain = {name: value for name, value in held.items() if name not in arrays}
        if held:
            states.append({"index": index, "kind": _kind(callback), "state": _as_text(callback, plain)})
    described = {**training, "history": list(history), "callbacks": states}
    save(state.network, path, optimizer=True, description={DESCRIPTION: described}, extra=extra)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def _as_text(callback: Callback, state: Mapping[str, Any]) -> str:
    """The state as JSON with infinities, which a model file's own JSON may not have."""
    try:
        if not all(isinstance(name, str) for name in state):
            raise TypeError
        return json.dumps(state, default=lambda value: value.item())
    except (TypeError, ValueError, AttributeError):
        raise TypeError(
            f"{_kind(callback)}.get_state must return numbers, texts, truth values, None and arrays by name, "
            f"got {state!r}"
        ) from None


def _kind(callback: Callback) -> str:
    return type(callback).__qualname__


def _read(path: Path) -> Saved:
    config, tensors = read_model(path)
    try:
        training = config["description"][DESCRIPTION]
        return Saved(path, config["network"], training, tensors)
    except (KeyError, TypeError):
        raise ValueError(f"{path} is a model file, but not a checkpoint") from None


def _go_on(group: list[Checkpoint], state: TrainingState) -> None:
    """Restore the latest of the checkpoints that those of this kind have found."""
    found = [checkpoint._found for checkpoint in group if checkpoint._found is not None]
    if found:
        newest = max(found, key=lambda saved: saved.epochs)
        _restore(newest, state)
        for checkpoint in group:
            checkpoint._take_over(newest)


def _restore(saved: Saved, state: TrainingState) -> None:
    """Bring callbacks, network and history to where they were."""
    extra = with_prefix(saved.tensors, EXTRA_PREFIX)
    ended = _restore_callbacks(saved, extra, state)
    network, history = state.network, state.history
    parameters, optimizer = network_tensors(saved.tensors)
    network.set_parameters(parameters)
    network.set_optimizer_state(optimizer)
    network.learning_rate = saved.network["optimizer"]["learning_rate"]
    network.epochs_trained = saved.network["epochs_trained"]
    history.metrics = {name: extra[f"history.{name}"].tolist() for name in saved.training["history"]}
    history.samples, history.seconds = saved.training["samples"], saved.training["seconds"]
    if ended:
        history.stopped = "callback"
    state.note(f"going on after epoch {saved.epochs} of {state.epochs}, from {saved.path}")


def _restore_callbacks(saved: Saved, extra: Tensors, state: TrainingState) -> bool:
    """Each callback gets the first state of its kind that nobody has; whether one had ended the training."""
    held = list(saved.training["callbacks"])
    ended = False
    for callback in state.callbacks:
        own = next((entry for entry in held if entry["kind"] == _kind(callback)), None)
        if own is not None:
            held.remove(own)
            arrays = with_prefix(extra, f"callback.{own['index']}.")
            ended |= bool(callback.set_state({**json.loads(own["state"]), **arrays}))
    return ended


def _link(path: Path, target: Path) -> None:
    """Make target the same file as path, atomically; a copy where the file system has no links."""
    temporary = target.with_name(f".{target.name}.{os.urandom(6).hex()}.tmp")
    try:
        os.link(path, temporary)
    except OSError:
        with replace_atomically(target) as copy:
            shutil.copyfile(path, copy)
        return
    try:
        os.replace(temporary, target)
    finally:
        # Two names of one file already: replacing does nothing then, and leaves both.
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
