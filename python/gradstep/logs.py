"""Logs: callbacks that write a record of every epoch to a file, or to TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from gradstep.callbacks import Callback, TrainingState
from gradstep.io import check_writable, replace_atomically

Record = dict[str, Any]


class FileLog(Callback):
    """What logs in one file have in common: when it is opened, and what happens to older records.

    Parameters
    ----------
    path : path-like
        The file; its folder must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(os.fsdecode(os.fspath(path)))
        except TypeError:
            raise TypeError(f"path must be the path of a file, got {path!r}") from None
        self._file: IO[str] | None = None

    def on_fit_begin(self, state: TrainingState) -> None:
        """Start the clock, and make sure that the file can be written."""
        check_writable(self.path)
        self._file = None
        self._start = time.perf_counter()

    def on_epoch_end(self, state: TrainingState) -> None:
        """Add a record."""
        record: Record = {"epoch": state.number}
        record.update({name: state.history[name][-1] for name in state.metrics})
        record["learning_rate"] = state.network.learning_rate
        record["seconds"] = round(time.perf_counter() - self._start, 6)
        if self._file is None:
            self._file = self._open(record)
        self._file.write(self._line(record))
        self._file.flush()

    def on_fit_end(self, state: TrainingState) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, newest: Record) -> IO[str]:
        """The file with the records of earlier epochs, ready for the newest."""
        earlier = [record for record in self._records() if record["epoch"] < newest["epoch"]]
        self._columns = list(dict.fromkeys(name for record in [*earlier, newest] for name in record))
        with replace_atomically(self.path) as temporary:
            temporary.write_text(
                self._head() + "".join(self._line(record) for record in earlier), encoding="utf-8", newline=""
            )
        return open(self.path, "a", encoding="utf-8", newline="")

    def _records(self) -> list[Record]:
        """What the file holds; a last line that a killed process did not finish is left out."""
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        return self._parsed(text[: text.rfind("\n") + 1])

    def _head(self) -> str:
        return ""

    @abstractmethod
    def _parsed(self, text: str) -> list[Record]:
        """The records of whole lines, those of this kind."""

    @abstractmethod
    def _line(self, record: Record) -> str:
        """A record as a line."""


class CSVLog(FileLog):
    """A table with a row an epoch: its number, what the history holds, the learning rate, the seconds so far.

    Seconds are those since this call of `fit` began in this process; the learning rate is that after the
    epoch, without a schedule's factor. Epochs are counted over the life of the network. Rows of earlier
    epochs that the file has already stay; rows of this epoch and later ones are replaced: a call of `fit`
    that goes on, also from a `Checkpoint`, appends, and a new network begins anew.

    Parameters
    ----------
    path : path-like
        The file to write; its folder must exist. A row is in it as soon as its epoch has ended.
    """

    def _head(self) -> str:
        return _row(self._columns)

    def _parsed(self, text: str) -> list[Record]:
        records = []
        for row in csv.DictReader(io.StringIO(text, newline="")):
            with contextlib.suppress(TypeError, ValueError, KeyError):
                values = {name: value for name, value in row.items() if isinstance(name, str) and value}
                records.append({**values, "epoch": int(row["epoch"])})
        return records

    def _line(self, record: Record) -> str:
        return _row([record.get(name, "") for name in self._columns])


class JSONLinesLog(FileLog):
    """A line of JSON an epoch, with what a `CSVLog` has; NaN and infinities become null.

    Earlier epochs are kept and later ones replaced as in a `CSVLog`.

    Parameters
    ----------
    path : path-like
        The file to write; its folder must exist. A line is in it as soon as its epoch has ended.
    """

    def _parsed(self, text: str) -> list[Record]:
        records = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("epoch"), int):
                    records.append(record)
        return records

    def _line(self, record: Record) -> str:
        finite = {name: None if _is_not_finite(value) else value for name, value in record.items()}
        return json.dumps(finite, allow_nan=False) + "\n"


def _row(values: Sequence[Any]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class TensorBoard(Callback):
    """Curves for TensorBoard: the history's values and the learning rate, a point an epoch.

    Needs the package tensorboard (``pip install "gradstep[tensorboard]"``), whose own writer it uses, and
    neither TensorFlow nor PyTorch. Epochs are counted over the life of the network; a call of `fit` that goes
    on, also from a `Checkpoint`, takes the place of what was written from its first epoch on.

    Parameters
    ----------
    directory : path-like
        Where event files go, one a call of `fit`; made if need be. ``tensorboard --logdir`` shows it.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        try:
            self.directory = os.fsdecode(os.fspath(directory))
        except TypeError:
            raise TypeError(f"directory must be the path of a folder, got {directory!r}") from None
        self._writer: Any = None
        _tensorboard()

    def on_fit_begin(self, state: TrainingState) -> None:
        """Forget the last call of `fit`."""
        if os.path.exists(self.directory) and not os.path.isdir(self.directory):
            raise NotADirectoryError(f"directory must be a folder, but {self.directory} is a file")
        self._writer = None

    def on_epoch_end(self, state: TrainingState) -> None:
        """Add a point to every curve."""
        Event, Summary, _, _ = _tensorboard()
        if self._writer is None:
            self._open(state.number)
        values = {name: state.history[name][-1] for name in state.metrics}
        values["learning_rate"] = state.network.learning_rate
        points = [Summary.Value(tag=_tag(name), simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=state.number, summary=Summary(value=points)))
        self._writer.flush()

    def on_fit_end(self, state: TrainingState) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, step: int) -> None:
        Event, _, SessionLog, EventFileWriter = _tensorboard()
        self._writer = EventFileWriter(self.directory)
        # TensorBoard leaves out what it has of this step and later ones.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=start))


def _tag(name: str) -> str:
    """Curves of training and validation rows side by side: loss/train, loss/validation."""
    if name == "learning_rate":
        return name
    return f"{name.removeprefix('val_')}/{'validation' if name.startswith('val_') else 'train'}"


def _tensorboard() -> tuple[Any, Any, Any, Any]:
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        package = (error.name or "tensorboard").partition(".")[0]
        raise ImportError(
            f'TensorBoard needs the package {package}: pip install "gradstep[tensorboard]"', name=error.name
        ) from None
    return Event, Summary, SessionLog, EventFileWriter
