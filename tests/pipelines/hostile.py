"""Steps for tests of `sandbox.guard`: they do to their process what a broken decoder does."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hybrid_models.inputs import Cut, Inputs, Preprocess, Sample, Visual
from pipelines.reading.limits import Limits
from pipelines.reading.raw import RAW_SCHEMA
from pipelines.reading.sandbox.channel import LENGTH

SCHEMA = pa.schema(
    [
        ("shard", pa.string()), ("index", pa.int64()), ("text", pa.string()), ("error", pa.string()),
        ("lost_rows", pa.int64()), ("pid", pa.int64()), ("last", pa.bool_()),
    ]
)  # fmt: skip


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(3)


def spin() -> None:
    while True:
        pass


def deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def devour() -> None:
    hoard = []
    while True:
        hoard.append(np.ones(1 << 24))


def out_of_code() -> None:
    raise ImportError("no module named 'codec'")


def _say(*messages: bytes) -> None:
    """Sends messages to its worker, and waits until that has read them, and more."""
    for message in messages:
        os.write(int(sys.argv[1]), LENGTH.pack(len(message)) + message)
    time.sleep(60)


def babble() -> None:
    _say(b"hello")


def begin() -> None:
    os.write(int(sys.argv[1]), LENGTH.pack(5))
    time.sleep(60)


def ask_and_not_read() -> None:
    _say(*[b'{"read": [0, 99]}'] * 2000)


def ask_backwards() -> None:
    _say(b'{"read": [0, -1]}')


def ask_beyond() -> None:
    _say(b'{"read": [1e999, 1]}')


def nest() -> None:
    _say(b"[" * 60_000)


TRICKS: dict[str, Callable[[], None]] = {
    "crash": crash, "leave": leave, "spin": spin, "deadlock": deadlock, "devour": devour, "import": out_of_code,
    "babble": babble, "begin": begin, "ask and not read": ask_and_not_read, "ask backwards": ask_backwards,
    "ask beyond": ask_beyond, "nest": nest,
}  # fmt: skip


@dataclass(frozen=True)
class CrashingLimits(Limits):
    """Whoever reads a line of text asks how long it may be, and dies of the answer."""

    def __getattribute__(self, name: str) -> Any:
        if name == "max_bytes":
            crash()
        return super().__getattribute__(name)


@dataclass(frozen=True)
class CrashingVisual(Visual):
    """Whoever decodes the window that begins at a second dies of it."""

    second: float = -1.0

    def times(self, start: float, end: float, frames: Sequence[float], keyframes: Sequence[float]) -> Sequence[float]:
        if start == self.second:
            crash()
        return super().times(start, end, frames, keyframes)


@dataclass(frozen=True)
class CrashingCut(Cut):
    """Whoever looks for the start of a window in a clip dies of it."""

    number: int = -1

    def start(self, number: int) -> float:
        if number == self.number and sys._getframe(1).f_code.co_name == "cut_clip":
            crash()
        return super().start(number)


@dataclass(frozen=True)
class Hostile:
    """Gives back each text but "left out"; one that names a trick plays it, with `once` only until that file exists.
    Says that its rows are another shard's, of "twice" in two columns of one name, and
    leaves the shard out of "less"."""

    once: str = ""
    schema = SCHEMA

    def __call__(self, rows: pa.Table, begin: Callable[[int], None]) -> pa.Table:
        out = []
        for row in rows.to_pylist():
            begin(row["index"])
            text = json.loads(row["fields"]).get("text")
            if row["error"] is None and text in TRICKS and not (self.once and Path(self.once).exists()):
                if self.once:
                    Path(self.once).touch()
                TRICKS[text]()
            if text == "slow":
                time.sleep(0.2)
            if text == "left out":
                continue
            kept = {name: row[name] for name in ("index", "last", "error", "lost_rows")}
            own = {"shard": "another's", "text": text, "pid": os.getpid()}
            out.append({**kept, **own})
        found = pa.Table.from_pylist(out, schema=SCHEMA)
        tricks = {row["text"] for row in out if row["error"] is None}
        if "twice" in tricks:
            return found.append_column("shard", found["shard"])
        return found.drop_columns(["shard"]) if "less" in tricks else found


@dataclass(frozen=True)
class AsItIs:
    """Gives back raw rows."""

    schema = RAW_SCHEMA

    def __call__(self, rows: pa.Table, begin: Callable[[int], None]) -> pa.Table:
        return rows


@dataclass(frozen=True)
class Forger:
    """Says that its rows are of other objects."""

    schema = RAW_SCHEMA

    def __call__(self, rows: pa.Table, begin: Callable[[int], None]) -> pa.Table:
        column = rows.schema.get_field_index("object")
        return rows.set_column(column, rows.schema.field(column), pa.array(["s3://another/one.jpg"] * len(rows)))


class AsSeen(Preprocess):
    """The frames that a model is given, and their times, as they were decoded."""

    def __init__(self, visual: Visual) -> None:
        self.visual = visual

    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        assert inputs.media is not None
        times = np.zeros(0, np.float32) if inputs.times is None else inputs.times
        return {"frames": inputs.media, "times": times, "length": np.asarray(len(inputs.media))}
