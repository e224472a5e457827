import io
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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
from pipelines.reading.bundles import bundled
from pipelines.reading.samples import SAMPLE_SCHEMA
from pipelines.reading.sandbox import jail
from pipelines.reading.shards import Shard, list_shards
from pipelines.reading.units import Part, units
from pipelines.staging import checks, engine
from pipelines.staging.actors import Predictor
from pipelines.staging.contents import Contents
from pipelines.staging.joining import pack, write
from pipelines.staging.pieces import PASSING, Lineage, Piece, list_pieces, table_schema, tiling
from tests import tiny
from tests.pipelines.staging.test_pieces import A, B
from tests.pipelines.staging.test_pieces import rows as made_rows
from tests.pipelines.staging.test_sink import stage as put
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
    here = Contents(jails=frozenset({jail.in_force("auto")}))
    assert written.contents == {(file.name, file.size): here for file in storage.list_files(folder)}
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
    limits = ray.data.DataContext.get_current().execution_options.resource_limits
    assert limits.object_store_memory == engine.OUTPUTS * connection.WAITING_BYTES, "as many shares for each process"
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
    storage.delete(last.file.uri, storage.anything)
    todo = checks.incomplete(shards, folder)
    assert todo == together[1].parts(last.first), "from the first row that is missing on"
    again = engine.stage(todo, folder, schema, inference.decode(), actor, RESOURCES, "test")
    assert again.rows == last.rows
    assert [row["translation"] for row in rows(folder, shards)] == expected


class Together:
    """Keeps with each row how many processes computed at once, beside a lot; waits for another one for a while."""

    def __init__(self, compute: Compute, seen: str) -> None:
        self._seen, self._own = Path(seen), Path(seen, str(os.getpid()))

    def __call__(self, samples: pa.Table) -> pa.Table:
        self._own.touch()
        until = time.monotonic() + 10
        while (there := len(list(self._seen.iterdir()))) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.1)  # so that the other one has seen it, too
        told = json.dumps([there, "x" * (1 << 20)])
        self._own.unlink()
        place = samples.schema.get_field_index("fields")
        return samples.set_column(place, samples.schema.field(place), pa.array([told] * len(samples)))


@pytest.mark.long
def test_all_processes_compute_when_what_comes_of_it_is_large(
    inference: Inference, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when Ray has seen so: of a smaller bound, one would wait for the other from then on."""
    monkeypatch.setattr(connection, "WAITING_BYTES", 16 << 20)  # a table has seven
    tiny.write_sentences(str(tmp_path / "many"), shards=12, rows=7)
    shards, folder = list_shards(str(tmp_path / "many")), str(tmp_path / "staged")
    schema = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])
    (tmp_path / "seen").mkdir()
    actor = engine.Actor(Together, (), (str(tmp_path / "seen"),))
    with joining(tmp_path, ray_cluster, [0.0], gpus=0):
        while len(engine.computing(ray.nodes())) < 2:  # one CPU is too few for two processes and a writer
            time.sleep(0.1)
        engine.stage(parts(shards), folder, schema, inference.decode(), actor, Resources(min_actors=2), "test")
    beside = [json.loads(row["fields"])[0] for row in rows(folder, shards)]
    assert sum(number == 2 for number in beside) > len(beside) / 2


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
    """Keeps with each row which process had it, and on which node; takes its time as long as there is but one."""

    def __init__(self, compute: Compute, seen: str) -> None:
        assert not compute.gpu
        self._seen = Path(seen)

    def __call__(self, samples: pa.Table) -> pa.Table:
        context = ray.get_runtime_context()
        (self._seen / context.get_node_id()).touch()
        time.sleep(1 if len(list(self._seen.iterdir())) > 1 else 5)
        place = samples.schema.get_field_index("fields")
        told = json.dumps([context.get_actor_id(), context.get_node_id()])
        return samples.set_column(place, samples.schema.field(place), pa.array([told] * len(samples)))


@pytest.mark.long
@pytest.mark.parametrize("most", [3, 1000])
def test_a_job_without_gpus_grows_and_ends(inference: Inference, tmp_path: Path, ray_cluster: str, most: int) -> None:
    """Also where there is no room for all: no process keeps others from reading and writing. The node that comes in the
    middle computes, too."""
    tiny.write_sentences(str(tmp_path / "many"), shards=60, rows=7)
    shards, folder = list_shards(str(tmp_path / "many")), str(tmp_path / "staged")
    schema = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])
    (tmp_path / "seen").mkdir()
    resources, actor = Resources(min_actors=1, max_actors=most), engine.Actor(Slow, (), (str(tmp_path / "seen"),))
    with joining(tmp_path, ray_cluster, [1.0], gpus=0):
        engine.stage(parts(shards), folder, schema, inference.decode(), actor, resources, "test")
    limits = ray.data.DataContext.get_current().execution_options.resource_limits
    shares = engine.OUTPUTS * min(most, len(shards))
    assert limits.object_store_memory == shares * connection.WAITING_BYTES, "what waits grows with them"
    found = rows(folder, shards)
    assert [(row["shard"], row["index"]) for row in found] == [(shard.uri, i) for shard in shards for i in range(7)]
    places = [json.loads(row["fields"]) for row in found]
    assert 2 <= len({actor for actor, _ in places}) <= most
    assert {node for _, node in places} - {ray.get_runtime_context().get_node_id()}, "rows of the node that came"


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


class Crowded:
    """Keeps with each row how many calls there were at once, at most, until this one ended, and its table's size."""

    def __init__(self, compute: Compute) -> None:
        assert compute.gpu
        self._lock, self._now, self._most = threading.Lock(), 0, 0

    def __call__(self, samples: pa.Table) -> pa.Table:
        with self._lock:
            self._now += 1
            self._most = max(self._most, self._now)
        time.sleep(3)
        with self._lock:
            self._now -= 1
        told = json.dumps([self._most, samples["sample"].nbytes])
        columns = {"sample": pa.nulls(len(samples), pa.binary()), "fields": pa.array([told] * len(samples))}
        for name, values in columns.items():
            place = samples.schema.get_field_index(name)
            samples = samples.set_column(place, SAMPLE_SCHEMA.field(name), values.cast(SAMPLE_SCHEMA.field(name).type))
        return samples


@pytest.mark.long
def test_a_gpu_has_a_second_table_while_it_computes_one(tmp_path: Path, ray_cluster: str) -> None:
    """Also of tables as large as they come, while more are being read."""
    (tmp_path / "photos").mkdir()
    for shard in range(12):
        members = [(f"{shard}-{row}.jpg", tiny.jpeg(shard * 100 + row, size=512)) for row in range(100)]
        (tmp_path / "photos" / f"{shard}.tar").write_bytes(tiny.tar(members))
    shards, folder = list_shards(str(tmp_path / "photos")), str(tmp_path / "staged")
    schema = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])
    decode = Inference.of(artifacts.read(tiny.write_captioner(str(tmp_path / "model"), image_size=512))).decode()
    with joining(tmp_path, ray_cluster, [0.0]):
        engine.stage(parts(shards), folder, schema, decode, engine.Actor(Crowded, ()), Resources(gpu="yes"), "test")
    found = [json.loads(row["fields"]) for row in rows(folder, shards)]
    assert len(found) == 1200
    assert max(size for _, size in found) > 60 << 20
    assert max(most for most, _ in found) == engine.CALLS_ON_GPU


HURRY = "hurry"


class Noting:
    """Takes its time until it is told to hurry; notes on which node it has which rows in hand, and when it is done."""

    def __init__(self, compute: Compute, notes: str) -> None:
        context = ray.get_runtime_context()
        self._lines = Path(notes, f"{context.get_node_id()}-{context.get_actor_id()}")

    def __call__(self, samples: pa.Table) -> pa.Table:
        self._note(json.dumps(samples["unit_key"].to_pylist()))
        time.sleep(0.05 if (self._lines.parent / HURRY).exists() else 3)
        self._note("done")
        return samples

    def _note(self, line: str) -> None:
        with self._lines.open("a") as lines:
            lines.write(f"{line}\n")


@dataclass(frozen=True)
class Noted:
    """What a node's processes have had."""

    rows: list[str]
    """For each row that was begun with its unit's key; one that was begun twice is there twice."""
    done: int
    """Calls that were ended."""
    busy: bool


def noted(notes: Path) -> dict[str, Noted]:
    """By the node's id."""
    found: dict[str, Noted] = {}
    for path in sorted(path for path in notes.iterdir() if path.name != HURRY):
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        begun = [json.loads(line) for line in lines if line != "done\n"]
        node = path.name.split("-")[0]
        before = found.get(node, Noted([], 0, False))
        rows, done = [key for keys in begun for key in keys], len(lines) - len(begun)
        found[node] = Noted([*before.rows, *rows], before.done + done, before.busy or done < len(begun))
    return found


@dataclass(frozen=True)
class Killed:
    """A node that went, and what was staged just before."""

    node: str
    staged: set[str]
    """URIs of pieces."""


def kill_a_busy_one(nodes: dict[str, RayNode], notes: Path, folder: str) -> Killed:
    """One that has done something, and has something in hand, once some pieces are staged."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        staged = {file.uri for file in storage.list_all(folder)}
        for name, seen in noted(notes).items():
            if len(staged) > 2 and name in nodes and seen.done >= 2 and seen.busy:
                nodes[name].kill()
                (notes / HURRY).touch()
                return Killed(name, staged)
        time.sleep(0.05)
    raise AssertionError(f"none of {list(nodes)} works: {noted(notes)}")


@contextmanager
def there(folder: Path, address: str, count: int) -> Iterator[dict[str, RayNode]]:
    """Nodes of two CPUs by their ids."""
    nodes: dict[str, RayNode] = {}
    before = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    try:
        for number in range(count):
            node = RayNode(folder / f"node-{number}", 2, address).start()
            (name,) = {known["NodeID"] for known in ray.nodes() if known["Alive"]} - before - set(nodes)
            nodes[name] = node
        yield nodes
    finally:
        for node in nodes.values():
            node.kill()
        while {known["NodeID"] for known in ray.nodes() if known["Alive"]} != before:
            time.sleep(0.2)


@pytest.mark.long
def test_a_node_that_goes_costs_its_units_only(
    inference: Inference, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more rows are computed twice than the units have that it had in hand."""
    monkeypatch.setattr("pipelines.reading.units.UNIT_BYTES", 20_000)
    tiny.write_sentences(str(tmp_path / "many"), shards=80, rows=7)
    shards, folder, notes = list_shards(str(tmp_path / "many")), str(tmp_path / "staged"), tmp_path / "notes"
    together = {unit.key: unit for unit in units(shards)}
    assert 20 < len(together) < 60
    notes.mkdir()
    schema = pa.schema([field for field in SAMPLE_SCHEMA if field not in PASSING])
    actor = engine.Actor(Noting, (), (str(notes),))
    with there(tmp_path, ray_cluster, 2) as nodes, ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill_a_busy_one, nodes, notes, folder)
        engine.stage(parts(shards), folder, schema, inference.decode(), actor, Resources(min_actors=6), "test")
        killed = killing.result()
    found = rows(folder, shards)
    assert sorted((row["shard"], row["index"]) for row in found) == [(s.uri, i) for s in shards for i in range(7)]
    staged = {
        key: [piece for piece in own if piece.file.uri in killed.staged] for key, own in list_pieces(folder).items()
    }
    seen = noted(notes)
    in_hand = [key for key in set(seen[killed.node].rows) if tiling(staged[key]) is None]
    computed = sum(len(own.rows) for own in seen.values())
    assert 0 < computed - len(found) <= sum(7 * len(together[key].shards) for key in in_hand)


@pytest.fixture
def staged(place: str) -> list[Piece]:
    """Two pieces of six rows in a folder."""
    for block in (made_rows(A, 0, 2, 2), made_rows(B, 0, 4, 4)):
        put(storage.join(place, "staged"), block)
    return [piece for own in list_pieces(storage.join(place, "staged")).values() for piece in own]


def test_packs_are_written_by_nodes_whose_cpus_are_taken(staged: list[Piece]) -> None:
    """More of them than are made at a time; one that is done again finds its file."""

    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    class Busy:
        def ready(self) -> bool:
            return True

    busy = Busy.remote()
    assert ray.get(busy.ready.remote())
    folder = staged[0].file.uri.rpartition("/")[0]
    packs = [pack(folder, [piece]) for piece in staged] + [pack(folder, staged)]
    made = engine.write_packs(packs)
    assert made == write(packs) == engine.write_packs(packs)
    assert [piece.rows for piece, _ in made] == [2, 4, 6]
    assert [piece.file.name for piece, _ in made] == [each.piece.file.name for each in packs]
    ray.kill(busy)


def test_a_head_without_cpus_makes_no_packs() -> None:
    head, node, gone = (
        {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus} if cpus else {"memory": 1.0}}
        for name, alive, cpus in (("head", True, 0.0), ("node", True, 2.0), ("gone", False, 2.0))
    )
    assert engine.computing([head, node, gone]) == ["node"]
    assert engine.computing([head, gone]) == ["head"], "there is no other"


def test_what_a_pack_fails_of_is_said_in_a_line(staged: list[Piece]) -> None:
    missing = pack(staged[0].file.uri.rpartition("/")[0], staged)
    storage.delete(staged[1].file.uri, storage.anything)
    with pytest.raises(RuntimeError, match=r"was removed meanwhile: start again$") as caught:
        engine.write_packs([missing])
    assert type(caught.value) is RuntimeError
    assert "\n" not in str(caught.value)
