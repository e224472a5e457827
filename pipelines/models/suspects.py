"""Which rows a model fails on: batches that fail are halved until one row is left, which becomes an error.

An exception is caught where it is raised. What kills the process (memory, a crash in native code) leaves a note on the
node's disk, which the process that starts in its place finds: so the same halving goes on across deaths. A batch that
its process did not survive is tried again as it was, since most processes die of something else.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
TRIES = 2
"""A whole batch, and a single row, are to blame when so many processes have died of them."""

Rows = tuple[int, ...]
"""Positions of rows."""


class Note:
    """What this process is working on, for the one that comes after it. Without a path nothing is noted.

    Args:
        path: a file on this node, which outlives the process.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.deaths: Counter[Rows] = Counter()
        """How many processes each batch has cost."""
        self.retried = 0
        """How often something of this work was tried again, or in parts."""
        self.inherited = False
        """A process died before it was done with this work, of whatever it was."""
        self._file = -1

    def __enter__(self) -> Note:
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self.inherited = self._path.exists()
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            except OSError as error:  # a full or read-only disk: what follows is predicted without a note
                log.warning("a row that the model dies of would not be found: %s", error)
                return self
            for begun, following in _pairs(os.pread(self._file, os.fstat(self._file).st_size, 0).splitlines()):
                if begun and following != b"end":
                    self.deaths[tuple(json.loads(begun))] += 1
        return self

    def begin(self, batch: Rows) -> None:
        """The rows that are predicted now."""
        if self._file >= 0:
            os.write(self._file, json.dumps(batch).encode() + b"\n")

    def end(self) -> None:
        """They are done, or have raised an exception."""
        if self._file >= 0:
            os.write(self._file, b"end\n")

    def __exit__(self, *failure: object) -> None:
        if self._path is not None and self._file >= 0:
            os.close(self._file)
            self._path.unlink(missing_ok=True)


def _pairs(lines: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """What was begun, and the line after it."""
    for number, line in enumerate(lines):
        if line != b"end":
            yield line, lines[number + 1] if number + 1 < len(lines) else b""


def halve(
    batch: Rows,
    work: Callable[[Rows], list[Any]],
    note: Note,
    failed: Callable[[], None] = lambda: None,
    whole: bool = True,
) -> Iterator[tuple[Rows, list[Any] | str]]:
    """What `work` makes of a batch, or of parts of it where it fails; why not, for a row that it fails on alone.

    Args:
        batch: positions of rows.
        work: rows → one output each; may raise anything.
        note: of this process.
        failed: is called when it has raised something, and may end the process, which has died of these rows then.
        whole: this is no part of a batch that failed.
    """
    single, deaths = len(batch) == 1, note.deaths[batch]
    if deaths < (TRIES if whole or single else 1):
        note.retried += int(not whole or deaths > 0)
        outputs = _try(batch, work, note, failed)
        if single or not isinstance(outputs, str):
            yield batch, outputs
            return
    elif single:
        yield batch, f"PredictionCrashed: the process that predicted this row died ({deaths} times)"
        return
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        yield from halve(half, work, note, failed, whole=False)


def _try(batch: Rows, work: Callable[[Rows], list[Any]], note: Note, failed: Callable[[], None]) -> list[Any] | str:
    note.begin(batch)
    try:
        return work(batch)
    except Exception as error:  # whatever a model raises for these rows, others are still to be predicted
        failed()
        return f"PredictionError: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    finally:
        note.end()
