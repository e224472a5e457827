from pathlib import Path

import pytest
import ray

from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.datasource import ShardDatasource
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import Limits
from pipelines.reading.samples import SAMPLE_SCHEMA
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.pipelines.hostile import SCHEMA, Hostile

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_poison_rows_cost_only_themselves_on_a_cluster(tmp_path: Path) -> None:
    tiny.write_sentences(str(tmp_path), shards=3, rows=5)
    (tmp_path / "part-00001.txt").write_text("gut\ncrash\nauch gut\nspin\nam Ende gut\n")
    shards = list_shards(str(tmp_path))
    source = ShardDatasource(shards, ReadOptions(limits=Limits(max_seconds=0.5)), Hostile(), SCHEMA)
    assert source.get_name() == "Shards"
    assert source.estimate_inmemory_data_size() == sum(shard.size for shard in shards)
    assert len(source.get_read_tasks(99)) == 3, "a shard is the unit, whatever Ray would like"
    rows = ray.data.read_datasource(source, override_num_blocks=3, num_cpus=0.5).take_all()
    assert len(rows) == 15
    bad = {row["text"]: row["error"].split(":")[0] for row in rows if row["error"]}
    assert bad == {"crash": "InputCrashed", "spin": "InputHangs"}


def test_a_task_carries_its_shard_alone(tmp_path: Path) -> None:
    """What all have in common is sent once; with each of a hundred thousand, a vocabulary fills the driver's store."""
    tiny.write_sentences(str(tmp_path), shards=2, rows=1)
    decode = Inference.of(artifacts.read(tiny.write_translator(str(tmp_path / "model")))).decode()
    shards = list_shards(str(tmp_path / "*.txt"))
    tasks = ShardDatasource(shards, decode.options(), decode, SAMPLE_SCHEMA).get_read_tasks(99)
    assert max(len(ray.cloudpickle.dumps(task)) for task in tasks) < 4096 < len(ray.cloudpickle.dumps(decode))
    rows = [row for task in tasks for block in task() for row in block.to_pylist()]
    assert [(row["shard"], row["shard_key"]) for row in rows] == [(shard.uri, shard.key) for shard in shards]
