"""A night's model process on a device that is slow: how much longer it takes than the device itself.

    python -m tests.benchmarks beside

The device is made up, on a CPU: it waits, as who waits for a GPU does. So do the making of batches and the building of
tables, for less long; a tiny translator, as no real work is to be measured. In turn: as on a GPU, where both are done
beside the device's work, of one table and of those before and after it; the same, one table after another; and as on a
CPU, where nothing is beside anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from hybrid_models.inputs import Inputs
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.cluster.resources import Compute
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.samples import SAMPLE_SCHEMA, pack
from pipelines.staging.actors import Predictor
from pipelines.staging.engine import CALLS_ON_GPU
from pipelines.staging.pieces import Lineage
from tests import tiny
from tests.benchmarks.figures import Row, in_turn

BATCHES, BATCH = 64, 4
TABLE = 4
"""Batches of a table: so many has one of photographs on a large GPU."""
SECONDS = {"collate": 0.02, "infer": 0.04, "_table": 0.02}
ROUNDS = 5
MOST = 1.1
"""Times as long as the device may a night's process take."""


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


def rows(full: bool, scratch: Path) -> list[Row]:
    """Seconds of the clock beside those of the device, which is the slowest of the three."""
    table, inference = samples(str(scratch / "model"))
    on_cpu, on_gpu = (OnDevice(inference, Compute(BATCH, 1, gpu=False), Lineage("a", "1", "f", "run")) for _ in "ab")
    on_gpu.compute = replace(on_gpu.compute, gpu=True)
    tables = [table.slice(first, TABLE * BATCH) for first in range(0, len(table), TABLE * BATCH)]
    measures = {
        "beside": partial(taken, on_gpu, tables, CALLS_ON_GPU),
        "single": partial(taken, on_gpu, tables, 1),
        "after": partial(taken, on_cpu, tables, 1),
    }
    found, device = in_turn(ROUNDS, measures), BATCHES * SECONDS["infer"]
    what = f"{BATCHES} batches, {TABLE} to a table, made and put into it"
    goal = round(MOST * device, 2)
    return [
        Row(f"{what} beside the device's work", found["beside"], "s", device, "the device", goal=goal),
        Row(f"{what} beside that, one table after another", found["single"], "s", device, "the device"),
        Row(f"{what} one after another", found["after"], "s", device, "the device"),
    ]


def samples(model: str) -> tuple[pa.Table, Inference]:
    """Rows of `SAMPLE_SCHEMA`, and the model, written to a folder, that they are for."""
    artifact = artifacts.read(tiny.write_translator(model))
    decode = artifact.hybrid_class.preprocess(artifact.config, artifact.assets)
    row = {"shard": "a", "sample_id": "a", "output_bytes": 0, "decode_seconds": 0.0, "last": False}
    made = [decode(Inputs(None, {"en": text}), False) for text in tiny.sentences(BATCHES * BATCH, seed=1)]
    found = [{**row, "index": i, "sample": pack(one), "length": int(one["length"])} for i, one in enumerate(made)]
    decoding = TranslatorDecoding(beam_size=1, max_length=2)
    return pa.Table.from_pylist(found, schema=SAMPLE_SCHEMA), Inference(artifact, decoding)


def taken(predictor: OnDevice, tables: Sequence[pa.Table], calls: int) -> float:
    """Seconds of the clock, with so many tables at a time, as Ray hands them over."""
    began = time.perf_counter()
    with ThreadPoolExecutor(calls) as threads:
        list(threads.map(predictor, tables))
    return time.perf_counter() - began
