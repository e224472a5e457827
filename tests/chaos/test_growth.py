"""What a soak tells of what it measured, and whom it measures."""

from __future__ import annotations

from pathlib import Path

import psutil

from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.chaos import growth
from tests.chaos.growth import Measured


def test_a_decoder_is_found(tmp_path: Path) -> None:
    """Its process by its command, which names its module."""
    tiny.write_sentences(str(tmp_path / "in"), shards=1, rows=3)
    decode = Inference.of(artifacts.read(tiny.write_translator(str(tmp_path / "model")))).decode()
    (shard,) = list_shards(str(tmp_path / "in"))
    before = psutil.Process().children()
    assert sum(len(block) for block in guarded(shard, decode.options(), decode)) == 3
    decoders = growth.named(psutil.Process().children(), growth.DECODER)
    assert set(decoders) >= set(psutil.Process().children()) - set(before)
    assert max(map(growth.resident, decoders)) > 10 << 20


def test_trends_are_of_the_second_half() -> None:
    """What grows at first, and no more, is flat; of the rest, what a night adds."""
    measured = [
        Measured(nights, {"flat": 100.0 if nights else 1.0, "grows": 10.0 + 2.0 * nights, "none": 0.0})
        for nights in (0, 10, 20, 30, 40)
    ]
    assert [(t.name, t.first, t.middle, t.last, t.verdict) for t in growth.trends(measured)] == [
        ("flat", 1.0, 100.0, 100.0, "flat"),
        ("grows", 10.0, 50.0, 90.0, "+2 a night"),
        ("none", 0.0, 0.0, 0.0, "flat"),
    ]
    assert growth.table(measured).splitlines()[::3] == [
        "| what | after 0 nights | after 20 | after 40 | from there to the end |",
        "| grows | 10.0 | 50.0 | 90.0 | +2 a night |",
    ]
