import io
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.cluster import connection
from pipelines.cluster.resources import Compute, Resources
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.datasource import bundled
from pipelines.reading.samples import SAMPLE_SCHEMA
from pipelines.reading.shards import Shard, list_shards
from pipelines.reading.units import Part, units
from pipelines.staging import checks, engine
from pipelines.staging.actors import Predictor
from pipelines.staging.contents import Contents
from pipelines.staging.pieces import PASSING, Lineage, list_pieces, table_schema
from tests import tiny
from tests.servers import RayNode

pytestmark = pytest.mark.usefixtures("ray_cluster")
RESOURCES = Resources(min_actors=1, batch_size=4)


@pytest.fixture
def inference(tmp_path: Path) -> Inference:
    tiny.write_sentences(str(tmp_path / "in"), shards=2, rows=7)
    return Inference.of(artifacts.read(tiny.write_translator(str(tmp_path / "model"))))


def parts(shards: list[Shard]) -> list[Part]:
    return [part for unit in units(shards) for part in unit.parts()]


def rows(folder: str, shards: list[Shard]) -> list[dict]:
    pieces = checks.verify(shards, folder)
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(piece.file.uri))) for piece in pieces]
    return list(pa.concat_tables(tables).to_pylist())


def test_samples_are_staged_as_they_are_without_a_model(inference: Inference, place: str, tmp_path: Path) -> None:
    shards, folder = list_shards(str(tmp_path / "in")), storage.join(place, "staged")
    schema = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])
    written = engine.stage(parts(shards), folder, schema, inference.decode(), None, RESOURCES, "test")
    assert (written.rows, written.actors) == (14, 1)
    assert written.bytes == sum(file.size for file in storage.list_files(folder))
    assert written.contents == {(file.name, file.size): Contents() for file in storage.list_files(folder)}
    assert written.seconds["decode"] > 0
    found = rows(folder, shards)
    assert [(row["shard"], row["index"]) for row in found] == [(shard.uri, i) for shard in shards for i in range(7)]
    assert all(row["sample"] and row["error"] is None for row in found)


def test_samples_stream_through_the_model(inference: Inference, tmp_path: Path) -> None:
    shards, folder = list_shards(str(tmp_path / "in")), str(tmp_path / "staged")
    schema = table_schema(inference.artifact.hybrid_class.payload_schema)
    lineage = Lineage("m", "1", "f", "r")
    actor = engine.Actor(Predictor, (inference,), (lineage,))
    written = engine.stage(parts(shards), folder, schema, inference.decode(), actor, RESOURCES, "test")
    assert written.rows == 14
    assert written.seconds["predict"] > 0
    texts = [text for shard in shards for text in storage.read_text(shard.uri).splitlines()]
    expected = tiny.translator().translate(texts, beam_size=1, max_length=12)
    assert [row["translation"] for row in rows(folder, shards)] == expected


def test_small_shards_are_staged_many_to_an_object(
    inference: Inference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although a task reads some of them, and another one writes them."""
    monkeypatch.setattr("pipelines.reading.units.UNIT_BYTES", 100_000)
    tiny.write_sentences(str(tmp_path / "many"), shards=70, rows=2)
    shards, folder = list_shards(str(tmp_path / "many")), str(tmp_path / "staged")
    schema = table_schema(inference.artifact.hybrid_class.payload_schema)
    actor = engine.Actor(Predictor, (inference,), (Lineage("m", "1", "f", "r"),))
    tasks, together = len(bundled(parts(shards), 1)), units(shards)
    assert tasks < 40
    assert 3 <= len(together) < 12
    written = engine.stage(parts(shards), folder, schema, inference.decode(), actor, RESOURCES, "test")
    assert written.rows == 140
    assert len(written.contents) <= tasks + len(together) - 1
    ordered = [shard for unit in together for shard in unit.shards]
    assert [(row["shard"], row["index"]) for row in rows(folder, shards)] == [
        (s.uri, i) for s in ordered for i in (0, 1)
    ]
    texts = [text for shard in ordered for text in storage.read_text(shard.uri).splitlines()]
    expected = tiny.translator().translate(texts, beam_size=1, max_length=12)
    assert [row["translation"] for row in rows(folder, shards)] == expected
    last = max(list_pieces(folder)[together[1].key], key=lambda piece: piece.first)
    storage.delete(last.file.uri)
    todo = checks.incomplete(shards, folder)
    assert todo == together[1].parts(last.first), "from the first row that is missing on"
    again = engine.stage(todo, folder, schema, inference.decode(), actor, RESOURCES, "test")
    assert again.rows == last.rows
    assert [row["translation"] for row in rows(folder, shards)] == expected


class OnGpu:
    """Keeps with each row where it was, when there are two GPUs."""

    def __init__(self, compute: Compute) -> None:
        assert compute.gpu

    def __call__(self, samples: pa.Table) -> pa.Table:
        until = time.monotonic() + 120
        while ray.cluster_resources().get("GPU", 0) < 2 and time.monotonic() < until:
            time.sleep(0.5)
        time.sleep(1)
        context = ray.get_runtime_context()
        told = json.dumps([context.get_node_id(), *context.get_accelerator_ids()["GPU"]])
        place = samples.schema.get_field_index("fields")
        return samples.set_column(place, samples.schema.field(place), pa.array([told] * len(samples)))


@contextmanager
def joining(folder: Path, address: str, delays: Sequence[float], gpus: int = 1) -> Iterator[None]:
    """Nodes that say that they have a GPU, or so many, come after so many seconds each, and go in the end."""
    nodes = [RayNode(folder / f"node-{number}", 4, address, gpus=gpus) for number in range(len(delays))]
    before = sum(node["Alive"] for node in ray.nodes())

    def come() -> None:
        for node, delay in zip(nodes, delays, strict=True):  # one after the other: they would name their sockets alike
            time.sleep(delay)
            node.start()

    with ThreadPoolExecutor() as threads:
        coming = threads.submit(come)
        try:
            yield
        finally:
            coming.result()
            for node in nodes:
                node.kill()
            while sum(node["Alive"] for node in ray.nodes()) > before:  # other tests have the same cluster
                time.sleep(0.2)


def test_nobody_waits_for_gpus_on_this_machine(
    inference: Inference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, actor = list_shards(str(tmp_path / "in")), engine.Actor(OnGpu, ())
    monkeypatch.setenv(connection.STARTED_HERE, connection.for_others()["RAY_ADDRESS"])
    with pytest.raises(UsageError, match=r"^`resources\.gpu` is yes, but this machine has no GPU: leave it out, or"):
        engine.stage(
            parts(shards), str(tmp_path), SAMPLE_SCHEMA, inference.decode(), actor, Resources(gpu="yes"), "test"
        )


class Slow:
    """Keeps with each row which process had it."""

    def __init__(self, compute: Compute) -> None:
        assert not compute.gpu

    def __call__(self, samples: pa.Table) -> pa.Table:
        time.sleep(1)
        place = samples.schema.get_field_index("fields")
        told = pa.array([ray.get_runtime_context().get_actor_id()] * len(samples))
        return samples.set_column(place, samples.schema.field(place), told)


@pytest.mark.long
@pytest.mark.parametrize("most", [3, 1000])
def test_a_job_without_gpus_grows_and_ends(inference: Inference, tmp_path: Path, ray_cluster: str, most: int) -> None:
    """Also where there is no room for all: no process keeps others from reading and writing."""
    tiny.write_sentences(str(tmp_path / "many"), shards=60, rows=7)
    shards, folder = list_shards(str(tmp_path / "many")), str(tmp_path / "staged")
    schema = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])
    resources, actor = Resources(min_actors=1, max_actors=most), engine.Actor(Slow, ())
    with joining(tmp_path, ray_cluster, [1.0], gpus=0):
        engine.stage(parts(shards), folder, schema, inference.decode(), actor, resources, "test")
    found = rows(folder, shards)
    assert [(row["shard"], row["index"]) for row in found] == [(shard.uri, i) for shard in shards for i in range(7)]
    assert 2 <= len({row["fields"] for row in found}) <= most


@pytest.mark.long
def test_a_job_waits_for_gpus_and_grows_as_they_come(
    inference: Inference, tmp_path: Path, ray_cluster: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For whole blocks on GPUs Ray Data has rules of its own."""
    tiny.write_sentences(str(tmp_path / "many"), shards=40, rows=7)
    shards, folder = list_shards(str(tmp_path / "many")), str(tmp_path / "staged")
    schema = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])
    resources, actor = Resources(gpu="yes", max_actors=2), engine.Actor(OnGpu, ())
    with joining(tmp_path, ray_cluster, [2.0, 1.0]), caplog.at_level("WARNING"):
        engine.stage(parts(shards), folder, schema, inference.decode(), actor, resources, "test")
    found = rows(folder, shards)
    assert [(row["shard"], row["index"]) for row in found] == [(shard.uri, i) for shard in shards for i in range(7)]
    places = {tuple(json.loads(row["fields"])) for row in found}
    assert len({node for node, _ in places}) == 2
    assert {gpu for _, gpu in places} == {"0"}
    assert f"{folder}: waits for a GPU: the cluster has none now" in caplog.text
