"""The actors of the pipeline: weights are loaded once, then samples stream through."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from hybrid_models.contract import to_device
from hybrid_models.inputs import DecodingConfig, Sample
from pipelines.cluster.resources import Compute
from pipelines.models.artifacts import Artifact
from pipelines.reading.samples import SAMPLE_SCHEMA, pack, unpack
from pipelines.staging.pieces import TIMINGS, table_schema
from pipelines.staging.suspects import Note, Rows, halve, node_folder

log = logging.getLogger(__name__)
# Large grids fill memory before a batch is full, and gain nothing from company: a window of 10 frames of 512 x 512 is
# 5 MB, and a nowcast takes 0.4 GiB and 1.5 s on one CPU; eight of them at once 3.1 GiB and 2.3 s each.
BATCH_BYTES = 16 << 20
BATCH_OUTPUT_BYTES = 64 << 20
"""A nowcast needs about sixteen times the memory of its output while it is made."""
RECORD_SCHEMA = pa.schema([pa.field("record", pa.string())])  # what evaluation keeps of a prediction, JSON


@dataclass(frozen=True)
class Lineage:
    """Which model and run made a row."""

    model: str
    model_version: str
    fingerprint: str
    run_id: str


class _Worker:
    """What the actors share: a loaded model on its device, and batches of samples of similar length."""

    def __init__(self, artifact: Artifact | ray.ObjectRef, compute: Compute) -> None:
        self.artifact: Artifact = ray.get(artifact) if isinstance(artifact, ray.ObjectRef) else artifact
        torch.set_num_threads(compute.threads)
        self.compute = compute
        self.device = torch.device("cuda" if compute.gpu else "cpu")
        self.hybrid = self.artifact.load().to(self.device)

    def batches(self, samples: pa.Table) -> Iterator[list[int]]:
        """Positions of good rows, in batches of similar length; error rows are left out."""
        lengths, sizes = samples["length"].to_pylist(), pc.binary_length(samples["sample"]).to_pylist()
        outputs = samples["output_bytes"].to_pylist()
        batch: list[int] = []
        held = largest = 0
        for i in sorted((i for i, length in enumerate(lengths) if length is not None), key=lambda i: lengths[i]):
            largest = max(largest, outputs[i])  # of samples that differ in length, the longest one's is made of all
            full = len(batch) == self.compute.batch_size or held + sizes[i] > BATCH_BYTES
            if batch and (full or largest * (len(batch) + 1) > BATCH_OUTPUT_BYTES):
                yield batch
                batch, held, largest = [], 0, outputs[i]
            batch.append(i)
            held += sizes[i]
        if batch:
            yield batch

    def outcomes(
        self, samples: pa.Table, work: Callable[[Rows], list[Any]], purpose: str
    ) -> Iterator[tuple[int, Any | str]]:
        """Position and output of each good row, or in place of an output why the model cannot work on that row.

        Args:
            samples: rows of `SAMPLE_SCHEMA`.
            work: positions of rows → one output each, never a text.
            purpose: what it is for; other work on the same samples fails for other reasons.
        """
        with Note(self._note_path(samples, purpose)) as note:
            for batch in self.batches(samples):
                for part, outputs in halve(tuple(batch), work, note):
                    if isinstance(outputs, str):
                        self._check_device()
                        row = samples.select(["shard", "index"]).slice(part[0], 1).to_pylist()[0]
                        log.warning("%s row %d: %s", row["shard"], row["index"], outputs, extra=row)
                        yield part[0], outputs
                    else:
                        yield from zip(part, outputs, strict=True)

    def _note_path(self, samples: pa.Table, purpose: str) -> Path | None:
        """The same for the process that gets these samples when this one has died."""
        folder = node_folder()
        if folder is None or not len(samples):
            return None
        ends = samples.select(["shard", "index"]).take([0, len(samples) - 1]).to_pylist()
        return folder / hashlib.sha256(json.dumps([type(self).__name__, purpose, ends]).encode()).hexdigest()

    def _check_device(self) -> None:
        """A GPU that has failed fails all that comes after: then this process ends, and another one takes its place."""
        if self.compute.gpu:
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                log.exception("the GPU does not answer any more")
                os._exit(1)


class Predictor(_Worker):
    """Samples → rows of a table (a Ray Data map actor from `SAMPLE_SCHEMA`).

    Args:
        artifact: the model, or a reference to it in Ray's object store.
        decoding: how to decode.
        compute: batch size, threads, device.
        lineage: recorded in every row.
        judge: keep what evaluation needs of each prediction instead of the prediction itself.
    """

    def __init__(
        self,
        artifact: Artifact | ray.ObjectRef,
        decoding: DecodingConfig,
        compute: Compute,
        lineage: Lineage,
        judge: bool = False,
    ) -> None:
        super().__init__(artifact, compute)
        self.decoding = decoding
        self.lineage = asdict(lineage)
        self.judge = judge
        payload = RECORD_SCHEMA if judge else self.hybrid.payload_schema
        timings = [pa.field(name, pa.float32()) for name in TIMINGS]
        self.schema = pa.schema([*table_schema(payload), *timings])

    def __call__(self, samples: pa.Table) -> pa.Table:
        """One output row for each input row, in the same order."""
        rows = samples.drop_columns(["sample", "length", "output_bytes"]).to_pylist()
        created = datetime.now(UTC)
        for row in rows:
            status = "ok" if row["error"] is None else "error"
            row.update(self.lineage, status=status, created_at=created, predict_seconds=0.0)
        packed = samples["sample"]

        def predicted(batch: Rows) -> list[dict[str, Any]]:
            started = time.perf_counter()
            outputs = self._predict([unpack(packed[i].as_py()) for i in batch])
            seconds = (time.perf_counter() - started) / len(batch)
            return [{**output, "predict_seconds": seconds} for output in outputs]

        for i, output in self.outcomes(samples, predicted, self.lineage["fingerprint"]):
            rows[i].update({"status": "error", "error": output} if isinstance(output, str) else output)
        return pa.Table.from_pylist(rows, schema=self.schema)

    def _predict(self, samples: list[Sample]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            batch = self.hybrid.collate(samples)
            outputs = self.hybrid.predict(to_device(batch, self.device), self.decoding)
        if not self.judge:
            return outputs
        pairs = zip(samples, outputs, strict=True)
        return [
            {"record": json.dumps({**self.hybrid.record(sample, output), "truth": digest(sample, self.hybrid.truth)})}
            for sample, output in pairs
        ]


class Featurizer(_Worker):
    """Samples → samples in which the frozen part of the net has been applied (a Ray Data map actor)."""

    def __call__(self, samples: pa.Table) -> pa.Table:
        """One output row for each input row, in the same order."""
        packed = samples["sample"].to_pylist()
        columns = {name: samples[name].to_pylist() for name in ("sample", "length", "output_bytes", "error")}

        def featurized(batch: Rows) -> list[bytes]:
            with torch.inference_mode():
                return [pack(sample) for sample in self.hybrid.featurize([unpack(packed[i]) for i in batch])]

        for i, features in self.outcomes(samples, featurized, ""):
            columns["sample"][i] = features
            if isinstance(features, str):
                columns["sample"][i] = columns["length"][i] = columns["output_bytes"][i] = None
                columns["error"][i] = features
        for name, values in columns.items():
            field = SAMPLE_SCHEMA.field(name)
            samples = samples.set_column(SAMPLE_SCHEMA.get_field_index(name), field, pa.array(values, field.type))
        return samples


def digest(sample: Sample, names: Sequence[str]) -> str:
    """Hash of a sample's arrays of these names."""
    return hashlib.sha256(pack({name: sample[name] for name in names})).hexdigest()[:16]
