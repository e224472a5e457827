"""Raw rows → preprocessed samples: one row in, one row out, either a packed sample or an error with its reason."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load as unpack_arrays
from safetensors.numpy import save as pack_arrays

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Cut, Inputs, Preprocess, Sample
from hybrid_models.interface import HybridConfig
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits, is_memory_error
from pipelines.reading.media.decode import decode_media
from pipelines.reading.rows import Begin, unwatched

log = logging.getLogger(__name__)
KEYS = ("shard", "index", "last", "sample_id", "lost_rows", "object", "start_seconds", "end_seconds")
MAX_KEPT = 64 << 10
"""Characters of the fields that are kept of a row."""
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("last", pa.bool_(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("sample", pa.large_binary()),  # `pack`ed arrays; null in an error row
        pa.field("length", pa.int64()),  # the sample's cost in steps, for grouping by size
        pa.field("output_bytes", pa.int64()),  # what its prediction will have
        pa.field("error", pa.string()),
        pa.field("lost_rows", pa.int64()),  # as in RAW_SCHEMA
        pa.field("object", pa.string()),  # as in RAW_SCHEMA
        pa.field("start_seconds", pa.float64()),  # as in RAW_SCHEMA
        pa.field("end_seconds", pa.float64()),
        pa.field("fields", pa.string()),  # those that are kept, a JSON object
        pa.field("decode_seconds", pa.float32()),
    ]
)
TEXT_SCHEMA = pa.schema([pa.field("text", pa.string())])


def pack(sample: Sample) -> bytes:
    """Arrays of any shapes as one binary value (safetensors), so that every hybrid's samples fit one Arrow schema."""
    return pack_arrays({name: np.asarray(array, order="C") for name, array in sample.items()})


def unpack(data: bytes) -> Sample:
    """The inverse of `pack`."""
    return unpack_arrays(data)


@dataclass(frozen=True)
class Decode:
    """Decodes and preprocesses raw rows on a CPU: `RAW_SCHEMA` → `SAMPLE_SCHEMA`, a `Step` of `sandbox.protocol`."""

    preprocess: Preprocess
    limits: Limits
    with_target: bool = False
    keep: tuple[str, ...] = ()
    """Fields of a row that stay with it."""
    cut: Cut | None = None
    """How clips are cut into windows, a row each."""

    @property
    def schema(self) -> pa.Schema:
        """`SAMPLE_SCHEMA`."""
        return SAMPLE_SCHEMA

    def options(self, stride: int = 1) -> ReadOptions:
        """How the raw rows are read; of a radar event every `stride`-th issue time."""
        inputs = self.preprocess
        return ReadOptions(inputs.window, self.with_target, stride, self.limits, inputs.visual, self.cut)

    def __call__(self, rows: pa.Table, begin: Begin = unwatched) -> pa.Table:
        """One output row for each input row, in the same order; `begin` is told the index of each before its turn."""
        decoded = []
        for row in rows.to_pylist():
            begin(row["index"])
            decoded.append(self.decode_row(row))
        return pa.Table.from_pylist(decoded, schema=SAMPLE_SCHEMA)

    def decode_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """One row of `SAMPLE_SCHEMA`."""
        started = time.perf_counter()
        decoded: dict[str, Any] = {key: row[key] for key in KEYS}
        try:
            decoded["fields"] = self._kept(row)
            sample = self._sample(row)
            output_bytes = self._output_bytes(sample)
            decoded.update(sample=pack(sample), length=int(sample["length"]), output_bytes=output_bytes, error=None)
        except BadSample as bad:
            decoded.update(sample=None, length=None, output_bytes=None, error=str(bad))
        except ImportError:  # the machine's trouble, not the row's
            raise
        except Exception as error:  # a row that nobody thought of must not block a night
            if is_memory_error(error):
                raise MemoryError(str(error)) from error
            reason = f"UnexpectedError: {type(error).__name__}: {error}"
            where = {"shard": row["shard"], "index": row["index"]}
            log.warning("%s row %d: %s", row["shard"], row["index"], reason, extra=where)
            decoded.update(sample=None, length=None, output_bytes=None, error=reason)
        decoded["decode_seconds"] = time.perf_counter() - started
        return decoded

    def _kept(self, row: dict[str, Any]) -> str | None:
        """Of a bad row's fields, too: whose it is, is asked of those first."""
        if not self.keep:
            return None
        fields = json.loads(row["fields"] or "{}")
        text = json.dumps({name: _finite(fields[name]) for name in self.keep if name in fields}, ensure_ascii=False)
        if len(text) > MAX_KEPT:
            reason = f"those to be kept have {len(text):,} characters, at most {MAX_KEPT:,} are allowed: `keep` fewer"
            raise BadSample("FieldsTooLarge", reason)
        return text

    def _sample(self, row: dict[str, Any]) -> Sample:
        if row["error"] is not None:
            raise BadSample.of(row["error"])
        media, times = None, None
        if row["media"] is not None:
            media, times = decode_media(row["media"], row["media_type"], self.preprocess.visual, self.limits)
        return self.preprocess(Inputs(media, json.loads(row["fields"]), times), self.with_target)

    def _output_bytes(self, sample: Sample) -> int:
        size, most = self.preprocess.output_bytes(sample), self.limits.max_output_bytes
        if size > most:
            reason = f"its prediction would have {size:,} bytes, more than max_output_bytes={most:,}"
            raise BadSample("OutputTooLarge", reason)
        return size


def _finite(value: Any) -> Any:
    """A value without NaN and infinities, which JSON does not have: null in their place."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return {key: _finite(item) for key, item in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class TrainingTexts:
    """The texts that assets are learned from: `RAW_SCHEMA` → `TEXT_SCHEMA`, a `Step` of `sandbox.protocol`."""

    config: HybridConfig

    @property
    def schema(self) -> pa.Schema:
        """`TEXT_SCHEMA`."""
        return TEXT_SCHEMA

    def __call__(self, rows: pa.Table, begin: Begin = unwatched) -> pa.Table:
        """All texts of the rows that could be read."""
        good = rows.filter(rows["error"].is_null())
        texts = [
            text for fields in good["fields"].to_pylist() for text in self.config.training_texts(json.loads(fields))
        ]
        return pa.table({"text": texts}, schema=TEXT_SCHEMA)
