"""The actors of the pipeline: weights are loaded once, then samples stream through."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from hybrid_models.contract import to_device
from hybrid_models.inputs import DecodingConfig, Sample
from pipelines.artifacts import Artifact
from pipelines.pieces import TIMINGS, table_schema
from pipelines.samples import SAMPLE_SCHEMA, pack, unpack

# Large grids fill memory before a batch is full, and gain nothing from company: a window of 10 frames of 512 x 512 is
# 5 MB, and a nowcast takes 0.4 GiB and 1.5 s on one CPU; eight of them at once 3.1 GiB and 2.3 s each.
BATCH_BYTES = 16 << 20
RECORD_SCHEMA = pa.schema([pa.field("record", pa.string())])  # what evaluation keeps of a prediction, JSON


@dataclass(frozen=True)
class Lineage:
    """Which model and run made a row."""

    model: str
    model_version: str
    fingerprint: str
    run_id: str


@dataclass(frozen=True)
class Compute:
    """How one actor computes."""

    batch_size: int
    """Samples in one forward pass, fewer where they are large (`BATCH_BYTES`)."""
    threads: int
    """CPU threads of torch."""
    gpu: bool
    """Whether the model goes to the actor's GPU."""


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
        batch: list[int] = []
        held = 0
        for i in sorted((i for i, length in enumerate(lengths) if length is not None), key=lambda i: lengths[i]):
            if batch and (len(batch) == self.compute.batch_size or held + sizes[i] > BATCH_BYTES):
                yield batch
                batch, held = [], 0
            batch.append(i)
            held += sizes[i]
        if batch:
            yield batch


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
        rows = samples.drop_columns(["sample", "length"]).to_pylist()
        created = datetime.now(UTC)
        for row in rows:
            status = "ok" if row["error"] is None else "error"
            row.update(self.lineage, status=status, created_at=created, predict_seconds=0.0)
        packed = samples["sample"]
        for batch in self.batches(samples):
            started = time.perf_counter()
            outputs = self._predict([unpack(packed[i].as_py()) for i in batch])
            seconds = (time.perf_counter() - started) / len(batch)
            for i, output in zip(batch, outputs, strict=True):
                rows[i].update(output, predict_seconds=seconds)
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
        for batch in self.batches(samples):
            with torch.inference_mode():
                featurized = self.hybrid.featurize([unpack(packed[i]) for i in batch])
            for i, sample in zip(batch, featurized, strict=True):
                packed[i] = pack(sample)
        column = SAMPLE_SCHEMA.get_field_index("sample")
        return samples.set_column(column, SAMPLE_SCHEMA.field(column), pa.array(packed, pa.large_binary()))


def digest(sample: Sample, names: Sequence[str]) -> str:
    """Hash of a sample's arrays of these names."""
    return hashlib.sha256(pack({name: sample[name] for name in names})).hexdigest()[:16]
