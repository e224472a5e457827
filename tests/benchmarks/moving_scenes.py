"""How often what happens in an unseen moving scene is said: `python -m tests.benchmarks.moving_scenes LAKE RUN…`

Needs `hybrid prepare moving-scenes --out LAKE/data`, and runs of `hybrid train … --data LAKE/data --storage LAKE`. For
each run it predicts the test clips, whole and with their frames in a random order, as a night would, and counts.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence

import av
import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.datasets.moving_scenes import ACTIONS, encode
from pipelines.models import artifacts
from pipelines.models.session import Inference, Session
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.raw import RAW_SCHEMA
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import list_shards

STEMS = {"moves": "mov(?:es|ing)", "grows": "grow(?:s|ing)", "shrinks": "shrink(?:s|ing)", "appears": "appear(?:s|ing)",
         "vanishes": "vanish(?:es|ing)", "passes": "pass(?:es|ing)"}  # fmt: skip


def action_of(text: str) -> str | None:
    """The action that a caption, or a label, says; None if it says none, or several."""
    found = []
    for action in ACTIONS:
        verb, _, rest = action.partition(" ")
        if re.search(rf"\b{STEMS[verb]}{' ' + rest if rest else ''}\b", text):
            found.append(action)
    return found[0] if len(found) == 1 else None


def shuffled(mp4: bytes, rng: np.random.Generator) -> bytes:
    """The clip with its frames in a random order."""
    with av.open(io.BytesIO(mp4)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return encode(frames[rng.permutation(len(frames))])


def right(session: Session, rows: Sequence[dict], column: str) -> tuple[float, Counter[tuple[str, str]]]:
    """Share of clips whose action is said, and what was said instead."""
    raw = pa.Table.from_pylist(list(rows), schema=RAW_SCHEMA)
    said = [action_of(text or "") for text in session.answer(raw)[column].to_pylist()]
    true = [json.loads(row["fields"])["label"] for row in rows]
    wrong = Counter((t, str(s)) for t, s in zip(true, said, strict=True) if t != s)
    return 1 - wrong.total() / len(rows), wrong


def main(lake: str, runs: Sequence[str]) -> None:
    """Prints a line for each run."""
    shards = list_shards(storage.join(lake, "data/test"))
    rows = [row for shard in shards for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()]
    rng = np.random.default_rng(0)
    mixed = [{**row, "media": shuffled(row["media"], rng)} for row in rows]
    for run in runs:
        artifact = artifacts.read(storage.join(lake, "runs", run, "artifact"))
        column = artifact.hybrid_class.payload_schema.names[0]
        session = Inference.of(artifact).load()
        (whole, wrong), (out_of_order, _) = (right(session, clips, column) for clips in (rows, mixed))
        print(json.dumps({"run": run, "clips": len(rows), "right": round(whole, 4), "shuffled": round(out_of_order, 4),
                          "mistakes": {" → ".join(pair): count for pair, count in wrong.most_common(4)}},
                         ensure_ascii=False))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
