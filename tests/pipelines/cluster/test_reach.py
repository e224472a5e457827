"""Nodes are asked for real; of those here each has the same disk."""

import socket
from collections.abc import Collection
from functools import partial
from pathlib import Path

import pytest
import ray

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.cluster import reach

PROBE = "x.parquet"


@pytest.fixture
def nodes(ray_cluster: str) -> list[str]:
    return [node["NodeID"] for node in ray.nodes()]


def test_a_node_tells_what_it_does_not_have(nodes: list[str], tmp_path: Path) -> None:
    there, missing = tmp_path / "there", str(tmp_path / "missing")
    there.write_bytes(b"")
    assert reach.ask(nodes, partial(reach._missing, [str(there), missing])) == [(socket.gethostname(), [missing])]


def test_a_node_that_is_gone_says_nothing(nodes: list[str], tmp_path: Path) -> None:
    assert reach.ask(["ab" * 28], socket.gethostname) == []


def _refuse() -> str:
    raise UsageError("this node refuses")


def test_what_a_node_refuses_is_raised(nodes: list[str]) -> None:
    with pytest.raises(UsageError, match=r"^this node refuses$"):
        reach.ask(nodes, _refuse)


def test_a_disk_that_another_node_lacks_is_refused(
    nodes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each node would write to its own, and the night would be incomplete after all of its work."""
    asked: list[list[str]] = []
    lacks = ""

    def ask(_: Collection[str], question: partial[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
        (paths,) = question.args
        asked.append(list(paths))
        missing = [path for path in paths if lacks and path.startswith(lacks)]
        assert all(Path(path).exists() for path in paths)
        return [("worker-2", []), ("worker-3", missing)]

    monkeypatch.setattr(reach, "ask", ask)
    shard, folder = str(tmp_path / "in/a.txt"), str(tmp_path / "tables")
    storage.write_bytes(shard, b"a")
    reach.check(nodes, shard, folder, PROBE)
    assert asked == [], "there is this node alone"
    others = [*nodes, "f" * 56]
    reach.check(others, "s3://lake/in/a.txt", "s3://lake/tables", PROBE)
    assert asked == [], "stores are everywhere"
    reach.check(others, shard, folder, PROBE)
    assert [Path(path).parent for path in asked[-1]] == [tmp_path / "in", tmp_path / "tables"]
    for named in (folder, shard):
        lacks = named
        with pytest.raises(UsageError, match=f"^node worker-3 of the cluster does not see {named}, which is on a disk"):
            reach.check(others, shard, folder, PROBE)
    assert storage.list_all(folder) == []
    storage.delete(shard, storage.anything)
    lacks = shard
    reach.check(others, shard, folder, PROBE)
    assert len(asked[-1]) == 1, "what has just gone is nobody's lack"
