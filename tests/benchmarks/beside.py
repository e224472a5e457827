"""A night's model process on a device that is slow: how much longer it takes than the device itself.

    python -m tests.benchmarks.beside

The device is made up, on a CPU: it waits, as who waits for a GPU does. So do the making of batches and the building of
tables, for less long; a tiny translator, as no real work is to be measured. In turn: as on a GPU, where both are done
beside the device's work, and as on a CPU, one after another.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from hybrid_models.inputs import Inputs
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.cluster.resources import Compute
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.samples import SAMPLE_SCHEMA, pack
from pipelines.staging.actors import Predictor
from pipelines.staging.pieces import Lineage
from tests import tiny

BATCHES, BATCH = 64, 4
SECONDS = {"collate": 0.02, "infer": 0.04, "_table": 0.02}
ROUNDS = 5


class OnDevice(Predictor):
    """Takes `SECONDS` for each part of a batch."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        for name, seconds in SECONDS.items():
            owner = self if name == "_table" else self.session
            setattr(owner, name, _slowly(getattr(owner, name), seconds))

    def _memory(self) -> tuple[int, int]:
        return 1, 1


def _slowly(work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        started = time.perf_counter()
        result = work(*arguments)
        time.sleep(max(0.0, seconds - (time.perf_counter() - started)))
        return result

    return slow


def main() -> None:
    """Prints seconds beside those of the device alone."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = artifacts.read(tiny.write_translator(folder))
    inference = Inference(artifact, TranslatorDecoding(beam_size=1, max_length=2))
    decode = artifact.hybrid_class.preprocess(artifact.config, artifact.assets)
    row = {"shard": "a", "sample_id": "a", "output_bytes": 0, "decode_seconds": 0.0, "last": False}
    samples = [decode(Inputs(None, {"en": text}), False) for text in tiny.sentences(BATCHES * BATCH, seed=1)]
    rows = [
        {**row, "index": i, "sample": pack(sample), "length": int(sample["length"])} for i, sample in enumerate(samples)
    ]
    table = pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
    on_cpu = OnDevice(inference, Compute(BATCH, 1, gpu=False), Lineage("a", "1", "f", "run"))
    on_gpu = OnDevice(inference, Compute(BATCH, 1, gpu=False), Lineage("a", "1", "f", "run"))
    on_gpu.compute = replace(on_gpu.compute, gpu=True)
    seconds: dict[str, list[float]] = {"beside each other": [], "one after another": []}
    for _ in range(ROUNDS):
        for (_, found), predictor in zip(seconds.items(), (on_gpu, on_cpu), strict=True):
            started = time.perf_counter()
            predictor(table)
            found.append(time.perf_counter() - started)
    device = BATCHES * SECONDS["infer"]
    for name, found in seconds.items():
        took = statistics.median(found)
        print(f"{name}: {took:.2f} s for {BATCHES} batches, {took / device:.2f} times the {device:.2f} s of the device")


if __name__ == "__main__":
    main()
