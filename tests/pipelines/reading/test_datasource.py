import json
from pathlib import Path

import pytest
import ray

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading import datasource
from pipelines.reading.datasource import TABLE_ROWS, ShardDatasource
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.objects import Member
from pipelines.reading.samples import TrainingTexts
from pipelines.reading.sandbox import landlock
from pipelines.reading.shards import Shard, list_shards
from pipelines.reading.units import END, SPAN, Part, Unit, units
from tests import tiny
from tests.pipelines.hostile import Hostile

pytestmark = pytest.mark.usefixtures("ray_cluster")


def parts(shards: list[Shard]) -> list[Part]:
    """Each a unit of its own."""
    return [Part(shard, shard.key) for shard in shards]


def test_poison_rows_cost_only_themselves_on_a_cluster(tmp_path: Path) -> None:
    tiny.write_sentences(str(tmp_path), shards=3, rows=5)
    (tmp_path / "part-00001.txt").write_text("gut\ncrash\nauch gut\nspin\nam Ende gut\n")
    shards = list_shards(str(tmp_path))
    source = ShardDatasource(
        [parts(shards[:2]), parts(shards[2:])], ReadOptions(limits=Limits(max_seconds=0.5)), Hostile()
    )
    assert source.get_name() == "Shards"
    assert source.estimate_inmemory_data_size() == sum(shard.size for shard in shards)
    assert len(source.get_read_tasks(99)) == 2, "a bundle is a task, whatever Ray would like"
    rows = ray.data.read_datasource(source, override_num_blocks=2, num_cpus=0.5).take_all()
    assert len(rows) == 15
    bad = {row["text"]: row["error"].split(":")[0] for row in rows if row["error"]}
    assert bad == {"crash": "InputCrashed", "spin": "InputHangs"}


def test_a_task_decodes_in_the_jail_that_the_command_requires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the node's own variable is, and no row is an error row."""
    tiny.write_sentences(str(tmp_path), shards=1, rows=1)
    monkeypatch.setenv("HYBRID_JAIL", "required")
    (task,) = ShardDatasource([parts(list_shards(str(tmp_path)))], ReadOptions(), Hostile()).get_read_tasks(1)
    monkeypatch.setenv("HYBRID_JAIL", "off")
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(UsageError, match=r"^HYBRID_JAIL=required, but the kernel or container of .* has no landlock"):
        list(task())


def test_a_task_carries_its_shard_alone(tmp_path: Path) -> None:
    """What all have in common is sent once; with each of a hundred thousand, a vocabulary fills the driver's store."""
    tiny.write_sentences(str(tmp_path), shards=2, rows=1)
    decode = Inference.of(artifacts.read(tiny.write_translator(str(tmp_path / "model")))).decode()
    shards = list_shards(str(tmp_path / "*.txt"))
    tasks = ShardDatasource([[part] for part in parts(shards)], decode.options(), decode).get_read_tasks(99)
    assert max(len(ray.cloudpickle.dumps(task)) for task in tasks) < 4096 < len(ray.cloudpickle.dumps(decode))
    rows = [row for task in tasks for block in task() for row in block.to_pylist()]
    assert [(row["shard"], row["unit_key"], row["unit_place"], row["unit_next"]) for row in rows] == [
        (shard.uri, shard.key, 0, END) for shard in shards
    ]


def test_a_table_ends_with_its_unit_or_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30, 7 and 150 shards of ten rows: a table each, and more of what is larger than a table may be."""
    monkeypatch.setattr(datasource, "UNIT_ROWS", 1024)
    tiny.write_sentences(str(tmp_path), shards=187, rows=10)
    shards = list_shards(str(tmp_path))
    together = [Unit.of(shards[:30]), Unit.of(shards[30:37]), Unit.of(shards[37:])]
    bundle = [part for unit in together for part in unit.parts()]
    (task,) = ShardDatasource([bundle], ReadOptions(), Hostile()).get_read_tasks(1)
    tables = list(task())
    assert [len(table) for table in tables] == [300, 70 + 1030, 470]
    assert [table["unit_next"][-1].as_py() == END for table in tables] == [True, False, True]


def test_shards_of_a_bundle_fill_one_table_and_stay_apart_in_it(tmp_path: Path) -> None:
    """Each row knows its shard, and each shard has its last row."""
    tiny.write_sentences(str(tmp_path), shards=TABLE_ROWS // 10, rows=14)
    shards = list_shards(str(tmp_path))
    decode = Inference.of(artifacts.read(tiny.write_translator(str(tmp_path / "model")))).decode()
    (task,) = ShardDatasource([parts(shards)], decode.options(), decode).get_read_tasks(1)
    tables = list(task())
    assert [len(table) for table in tables] == [14 * 19, 14 * (len(shards) - 19)]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [(row["unit_key"], row["unit_place"]) for row in rows] == [(s.key, i) for s in shards for i in range(14)]
    assert [row["shard"] for row in rows if row["last"]] == [shard.uri for shard in shards]


def test_a_group_with_large_fields_is_read(tmp_path: Path) -> None:
    """They are more than a MiB, which travels by the object store: Ray warns of tasks that are so large."""
    (tmp_path / "a.jpg").write_bytes(tiny.jpeg(0))
    file = storage.info(str(tmp_path / "a.jpg"))
    members = [
        Member(file.uri, file.size, file.etag, f"{number}", json.dumps({"note": f"{number:09000}"}))
        for number in range(200)
    ]
    group = Shard(f"{tmp_path}/@0", 200 * file.size, "1", tuple(members))
    source = ShardDatasource([parts([group])], ReadOptions(), Hostile())
    assert len(ray.cloudpickle.dumps(source.get_read_tasks(1)[0])) < 4 << 10
    assert ray.data.read_datasource(source, override_num_blocks=1, num_cpus=0.5).count() == 200


def test_rows_are_placed_in_their_unit_from_the_first_that_is_needed(tmp_path: Path) -> None:
    """By the worker: a child that a file has taken over can name no unit."""
    tiny.write_sentences(str(tmp_path), shards=3, rows=4)
    (unit,) = units(list_shards(str(tmp_path)))
    (task,) = ShardDatasource([unit.parts(SPAN + 2)], ReadOptions(), Hostile()).get_read_tasks(1)
    (table,) = task()
    assert table.schema.names == [*Hostile.schema.names, "unit_key", "unit_place", "unit_next"]
    assert table.schema == task.schema
    assert set(table["unit_key"].to_pylist()) == {unit.key}
    assert table["unit_place"].to_pylist() == [SPAN + 2, SPAN + 3, *range(2 * SPAN, 2 * SPAN + 4)]
    assert table["unit_next"].to_pylist() == [SPAN + 3, 2 * SPAN, *range(2 * SPAN + 1, 2 * SPAN + 4), END]


def test_texts_to_learn_from_have_no_place(tmp_path: Path) -> None:
    tiny.write_sentences(str(tmp_path), shards=2, rows=3)
    shards = list_shards(str(tmp_path))
    source = ShardDatasource([Unit.of(shards).parts()], ReadOptions(), TrainingTexts(tiny.translator().config))
    (task,) = source.get_read_tasks(1)
    (table,) = task()
    assert table.schema.names == ["text"]
