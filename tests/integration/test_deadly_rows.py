"""Rows that end the process of the model, in a real Ray cluster: the night goes on, and they say so."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from pipelines import storage
from pipelines.cluster.resources import Resources
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.shards import list_shards
from pipelines.staging import checks, engine, pieces
from pipelines.staging.actors import Made, Predictor, Row
from pipelines.staging.pieces import Lineage
from tests import tiny

DEADLY = "Katze Katze Katze Hund"


class Mortal(Predictor):
    """Dies of one sentence, and once of nothing in particular."""

    def _predict(self, made: Made) -> list[Row]:
        once = Path(self.lineage["run_id"])
        if not once.exists():
            once.touch()
            os._exit(1)
        outputs = super()._predict(made)
        if any(output["source"] == DEADLY for output in outputs):
            os._exit(139)
        return outputs


@pytest.mark.usefixtures("ray_cluster")
def test_a_row_that_kills_the_model_costs_only_itself(tmp_path: Path) -> None:
    texts = tiny.sentences(12, seed=5)
    texts[7] = DEADLY
    storage.write_bytes(str(tmp_path / "in/a.txt"), "".join(f"{text}\n" for text in texts).encode(), storage.anything)
    artifact = artifacts.read(tiny.write_translator(str(tmp_path / "model")))
    shards = list_shards(str(tmp_path / "in"))
    lineage = Lineage("model", "1", "f" * 64, str(tmp_path / "died"))
    inference = Inference.of(artifact)
    actor = engine.Actor(Mortal, (inference,), (lineage,))
    schema = pieces.table_schema(artifact.hybrid_class.payload_schema)
    todo = checks.incomplete(shards, str(tmp_path / "out"))
    engine.stage(
        todo, str(tmp_path / "out"), schema, inference.decode(), actor, Resources(batch_size=4), "translations"
    )
    rows = [
        row
        for piece in checks.verify(shards, str(tmp_path / "out"))
        for row in pq.read_table(piece.file.uri).to_pylist()
    ]
    rows.sort(key=lambda row: row["index"])
    told = "PredictionCrashed: the process that predicted this row died (2 times)"
    assert [row["error"] for row in rows] == [None] * 7 + [told] + [None] * 4
    assert [row["source"] for row in rows if row["status"] == "ok"] == texts[:7] + texts[8:]
    context = ray.get_runtime_context()
    assert not list(Path(context.get_temp_dir(), context.get_session_name(), "suspects").iterdir())
