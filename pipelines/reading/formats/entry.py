"""What a reader gives, and what it is told."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Cut, Visual, Window
from pipelines.reading.limits import Limits

MAX_ID = 1000
"""Characters of a sample's id."""
MAX_COLUMNS = 4096
"""Columns of a table; each row becomes a value for each of them."""
MAX_ERROR = 2000
"""Characters of an error row's reason."""


@dataclass(frozen=True)
class ReadOptions:
    """How rows are made of a shard.

    Args:
        window: how radar events are cut into samples; None for hybrids that read no radar.
        with_target: radar windows include the observed future, and only issue times that have one are samples.
        stride: every n-th issue time of a radar event is a sample.
        limits: bounds on one row.
        visual: size and number of a clip's frames; None for hybrids that read no clips.
        cut: how clips are cut into windows, a row each; None keeps each clip one row.
    """

    window: Window | None = None
    with_target: bool = False
    stride: int = 1
    limits: Limits = field(default_factory=Limits)
    visual: Visual | None = None
    cut: Cut | None = None


@dataclass(frozen=True)
class Entry:
    """One row of a shard, not yet numbered."""

    sample_id: str
    media: bytes | None = None
    media_type: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    lost_rows: int | None = None
    """How many rows after this one cannot be read, where that is known."""
    start_seconds: float | None = None
    """Of a window of a clip, from its first frame."""
    end_seconds: float | None = None


def json_object(text: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSample("JsonDecodeError", str(error)) from error
    if not isinstance(value, dict):
        raise BadSample("JsonDecodeError", f"expected an object, found {type(value).__name__}")
    return value


def stored_bytes(stream: BinaryIO) -> int:
    """The size of a shard, which is then read from its beginning."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return size


def check_columns(names: Sequence[str], count: int) -> None:
    """Raises `BadSample` for a table with too many columns (`count`, with nested ones), or with two of one name."""
    if count > MAX_COLUMNS:
        raise BadSample("TooManyColumns", f"{count:,}, at most {MAX_COLUMNS:,} are read; keep those that are needed")
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise BadSample("AmbiguousColumns", f"there are two columns '{twice}'; keep one")


def npy_bytes(array: np.ndarray) -> bytes:
    """An array in NumPy's own format, without pickling."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


Reader = Callable[[BinaryIO, str, ReadOptions], Iterator[Entry]]
RowCounter = Callable[[BinaryIO, str, ReadOptions], int]
"""How many rows a whole shard would have."""
