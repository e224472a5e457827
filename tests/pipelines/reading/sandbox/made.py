"""Shards of lines and of objects, and what becomes of their rows."""

import json
from pathlib import Path

from pipelines import storage
from pipelines.reading import shards
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.objects import Member
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import Shard, list_shards
from tests.pipelines.hostile import Hostile

LIMITS = Limits(max_seconds=1.5, max_memory=1 << 28)
ALWAYS = Hostile()


def shard(folder: Path, *lines: str, name: str = "a.txt") -> Shard:
    storage.write_bytes(str(folder / name), "".join(f"{line}\n" for line in lines).encode(), storage.anything)
    return list_shards(str(folder / name))[0]


def rows(one: Shard, step: Hostile = ALWAYS, limits: Limits = LIMITS) -> list[dict]:
    found = [row for block in guarded(one, ReadOptions(limits=limits), step) for row in block.to_pylist()]
    assert {row["shard"] for row in found} == {one.uri}, "whatever the child calls them"
    return found


def grouped(folder: Path, *texts: str) -> Shard:
    """A group whose rows have these texts as a field."""
    members = []
    for number, text in enumerate(texts):
        uri = str(folder / f"{number}.jpg")
        storage.write_bytes(uri, f"photo {number}".encode())
        file = storage.info(uri)
        members.append(Member(uri, file.size, file.etag, f"{number}.jpg", json.dumps({"text": text})))
    (one,) = shards.grouped(f"{folder}/", members)
    return one
