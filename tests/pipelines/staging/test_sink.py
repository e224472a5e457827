"""What is written: one object for each contiguous piece."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.staging.contents import Contents, Staged, total
from pipelines.staging.pieces import PASSING, list_pieces, tiling
from pipelines.staging.sink import StageSink
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows


def stage(folder: str, *blocks: pa.Table) -> Staged:
    return StageSink(folder, SCHEMA).write(blocks, None)


def test_the_sink_writes_one_object_for_each_contiguous_piece(tmp_path: Path) -> None:
    done = stage(str(tmp_path), rows(A, 0, 3, 5), rows(B, 0, 2, 1), rows(A, 4, 6, 5), rows(A, 3, 4, 5, "X: y"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{A.key}-00000000-00000006-end.parquet", f"{B.key}-00000000-00000002-end.parquet"]
    assert (done.rows, done.seconds["decode"], done.seconds["predict"]) == (8, 2.0, 4.0)
    sizes = [(tmp_path / name).stat().st_size for name in names]
    assert done.bytes == sum(sizes)
    assert done.contents == {(names[0], sizes[0]): Contents(Counter(X=1)), (names[1], sizes[1]): Contents()}
    table = pq.read_table(tmp_path / names[0])
    assert table.schema.names == SCHEMA.names
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["caption"].to_pylist()[3] is None


def test_the_sink_says_what_all_tasks_have_written(tmp_path: Path) -> None:
    sink = StageSink(str(tmp_path), SCHEMA)
    done = [sink.write([rows(A, 0, 3, 5)], None), sink.write([rows(A, 3, 6, 5, "X: y")], None), sink.write([], None)]
    sink.on_write_complete(SimpleNamespace(write_returns=done))
    assert (sink.staged.rows, sink.staged.seconds["predict"]) == (6, 3.0)
    pieces = tiling(list_pieces(str(tmp_path))[A.key]) or []
    assert [(piece.file.name, piece.file.size) for piece in pieces] == sorted(sink.staged.contents)
    assert total(pieces, sink.staged.contents) == total(pieces) == Contents(Counter(X=3))


@pytest.mark.parametrize("key", [None, "../../elsewhere-0123456789abcdef", "a/b-0123456789abcdef", "a"])
def test_a_row_of_no_shard_is_not_written(tmp_path: Path, key: str | None) -> None:
    """Which would be lost, or lie elsewhere: the decoding child may have said whose it is."""
    table = rows(A, 0, 3, 2)
    place = table.schema.get_field_index("shard_key")
    table = table.set_column(place, PASSING[0], pa.array([key] * 3, pa.string()))
    with pytest.raises(ValueError, match="is no name of a piece"):
        stage(str(tmp_path / "staged"), table)
    assert list(tmp_path.iterdir()) == []
