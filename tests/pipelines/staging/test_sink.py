"""What is written: one object for each contiguous piece."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.reading.units import SPAN, Unit
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


@pytest.mark.parametrize("kind", ["ObjectForbidden", "ObjectGone", "ObjectChanged", "ImageDecodeError"])
def test_a_piece_with_rows_that_failed_for_a_moment_says_so(tmp_path: Path, kind: str) -> None:
    stage(str(tmp_path), rows(A, 0, 2, 3), rows(A, 2, 4, 3, f"{kind}: told"), rows(B, 0, 2, 1))
    ((passing,), (other,)) = (list_pieces(str(tmp_path))[shard.key] for shard in (A, B))
    assert bool(passing.moment) is (kind != "ImageDecodeError")
    assert (passing.rows, passing.end, other.moment) == (4, True, 0)


def test_a_piece_goes_on_from_shard_to_shard_of_a_unit(tmp_path: Path) -> None:
    unit = Unit.of([A, B])
    a, b = unit.parts()
    done = stage(str(tmp_path), rows(b, 0, 2, 3), rows(a, 2, 3, 2), rows(a, 0, 1, 2), rows(b, 3, 4, 3, "X: y"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        f"{unit.key}-00000000-00000001.parquet",
        f"{unit.key}-00000002-{SPAN + 2}-n3.parquet",
        f"{unit.key}-{SPAN + 3}-{SPAN + 4}-end.parquet",
    ], "a row of each is missing"
    assert sorted(done.contents) == [(name, (tmp_path / name).stat().st_size) for name in names]
    table = pq.read_table(tmp_path / names[1])
    assert table.schema.names == SCHEMA.names
    found = [(row["shard"], row["index"], row["last"]) for row in table.to_pylist()]
    assert found == [(A.uri, 2, True), (B.uri, 0, False), (B.uri, 1, False)], "of the shard itself"
    assert [piece.rows for piece in sorted(list_pieces(str(tmp_path))[unit.key], key=lambda p: p.first)] == [1, 3, 1]


def test_the_sink_says_what_all_tasks_have_written(tmp_path: Path) -> None:
    sink = StageSink(str(tmp_path), SCHEMA)
    done = [sink.write([rows(A, 0, 3, 5)], None), sink.write([rows(A, 3, 6, 5, "X: y")], None), sink.write([], None)]
    sink.on_write_complete(SimpleNamespace(write_returns=done))
    assert (sink.staged.rows, sink.staged.seconds["predict"]) == (6, 3.0)
    pieces = tiling(list_pieces(str(tmp_path))[A.key]) or []
    assert [(piece.file.name, piece.file.size) for piece in pieces] == sorted(sink.staged.contents)
    assert total(pieces, sink.staged.contents) == total(pieces) == Contents(Counter(X=3))


def test_a_file_has_the_jails_that_its_rows_were_decoded_in(tmp_path: Path) -> None:
    for number, jails in enumerate((["off"], ["landlock+seccomp"], [])):
        StageSink(str(tmp_path), SCHEMA, jails=frozenset(jails)).write([rows(A, number, number + 1, 2)], None)
    pieces = tiling(list_pieces(str(tmp_path))[A.key]) or []
    assert total(pieces).jails == {"off", "landlock+seccomp"}
    assert total(pieces[2:]) == Contents()


def test_a_piece_is_laid_out_for_its_readers(tmp_path: Path) -> None:
    """Its rows in their order, together, without dictionaries; its footer says what each column lies between."""
    stage(str(tmp_path), rows(A, 2, 4, 3, "X: y"), rows(A, 0, 2, 3))
    (path,) = tmp_path.iterdir()
    file = pq.ParquetFile(path)
    assert (file.metadata.num_row_groups, file.read()["index"].to_pylist()) == (1, [0, 1, 2, 3])
    columns = [file.metadata.row_group(0).column(number) for number in range(file.metadata.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    assert not any(column.has_dictionary_page for column in columns)
    told = {column.path_in_schema: column.statistics for column in columns}
    assert (told["sample_id"].min, told["sample_id"].max) == (f"{A.uri}#0", f"{A.uri}#3")
    assert (told["status"].min, told["status"].max, told["error"].null_count) == ("error", "ok", 2)


def test_a_piece_that_is_there_stays(tmp_path: Path) -> None:
    """Another job may have committed it, by its size: the log would tell where another file ends."""
    stage(str(tmp_path), rows(A, 0, 3, 3))
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    other = rows(A, 0, 3, 3)
    column = other.schema.get_field_index("run_id")
    other = other.set_column(column, other.schema.field(column), pa.array(["another run's"] * 3, pa.string()))
    done = StageSink(str(tmp_path), SCHEMA).write([other], None)
    assert done.rows == 3
    assert path.read_bytes() == before
    (piece,) = list_pieces(str(tmp_path))[A.key]
    assert total([piece], done.contents) == total([piece])


@pytest.mark.parametrize("key", [None, "../../elsewhere-0123456789abcdef", "a/b-0123456789abcdef", "a"])
def test_a_row_of_no_unit_is_not_written(tmp_path: Path, key: str | None) -> None:
    """Which would be lost, or lie elsewhere."""
    table = rows(A, 0, 3, 2)
    column = table.schema.get_field_index("unit_key")
    table = table.set_column(column, PASSING[0], pa.array([key] * 3, pa.string()))
    with pytest.raises(ValueError, match="is no name of a piece"):
        stage(str(tmp_path / "staged"), table)
    assert list(tmp_path.iterdir()) == []
