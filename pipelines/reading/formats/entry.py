"""What a reader gives, and what it is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Cut, Visual, Window
from pipelines.reading.limits import Limits

MAX_ID = 1000
"""Characters of a sample's id."""
FREE_ROWS = 4_000_000
"""A shard may have so many rows, or as many as it has bytes. Addresses that count up take half a byte in Parquet; a
small file that says that it has billions of rows is not worth their time."""
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


def most_rows(stream: BinaryIO) -> int:
    """How many rows a shard may have, which is read from its beginning then."""
    most = max(FREE_ROWS, stream.seek(0, io.SEEK_END))
    stream.seek(0)
    return most


def npy_bytes(array: np.ndarray) -> bytes:
    """An array in NumPy's own format, without pickling."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


Reader = Callable[[BinaryIO, str, ReadOptions], Iterator[Entry]]
Counter = Callable[[BinaryIO, str, ReadOptions], int]
"""How many rows a whole shard would have."""
