import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage, tables
from pipelines.shards import Shard
from pipelines.storage import FileInfo
from pipelines.tables import Piece, StageSink, commit_night, list_pieces, shard_key, table_schema, tiling

SCHEMA = table_schema(pa.schema([pa.field("caption", pa.string())]))
RUN = {"run_id": "r"}
A, B = Shard("s3://lake/in/a.tar", 10, "1"), Shard("s3://lake/in/b b.tar", 10, "1")


def piece(first: int, stop: int, end: bool = False) -> Piece:
    return Piece(FileInfo(f"x-{first}-{stop}", 1, ""), first, stop, end)


def intervals(pieces: list[Piece] | None) -> list[tuple[int, int]] | None:
    return None if pieces is None else [(p.first, p.stop) for p in pieces]


def test_tiling_needs_every_row_up_to_the_end() -> None:
    assert intervals(tiling([piece(0, 5), piece(5, 9, end=True)])) == [(0, 5), (5, 9)]
    assert tiling([piece(0, 5), piece(6, 9, end=True)]) is None
    assert tiling([piece(0, 5), piece(5, 9)]) is None
    assert tiling([piece(1, 5, end=True)]) is None
    assert tiling([]) is None


def test_tiling_chooses_among_overlapping_pieces() -> None:
    pieces = [piece(0, 5), piece(0, 3), piece(3, 7), piece(4, 9, end=True), piece(7, 9, end=True)]
    assert intervals(tiling(pieces)) == [(0, 3), (3, 7), (7, 9)]
    assert tiling([piece(0, 5), piece(3, 7), piece(6, 9, end=True)]) is None


def test_shard_keys_depend_on_uri_and_etag() -> None:
    keys = {shard_key(A), shard_key(B), shard_key(Shard(A.uri, A.size, "2")), shard_key(Shard("s3://x/a.tar", 10, "1"))}
    assert len(keys) == 4
    assert shard_key(B).startswith("b-b.tar-")
    assert shard_key(Shard("s3://x/é_a.tar", 1, "")).startswith("a.tar-"), "a leading _ would hide its pieces"


def rows(shard: Shard, first: int, stop: int, last: int, error: str | None = None) -> pa.Table:
    """Rows as the model's actor emits them."""
    table = [
        {
            "sample_id": f"{shard.uri}#{i}",
            "caption": None if error else f"caption {i}",
            "status": "error" if error else "ok",
            "error": error,
            "shard": shard.uri,
            "index": i,
            "last": i == last,
            "decode_seconds": 0.25,
            "predict_seconds": 0.5,
        }
        for i in range(first, stop)
    ]
    return pa.Table.from_pylist(
        table, schema=pa.schema([*SCHEMA, *[pa.field(n, pa.float32()) for n in tables.TIMINGS]])
    )


def stage(folder: str, *blocks: pa.Table) -> dict[str, float]:
    sink = StageSink(folder, [A, B], SCHEMA)
    return sink.write(blocks, None)


def test_the_sink_writes_one_object_for_each_contiguous_piece(tmp_path: Path) -> None:
    done = stage(str(tmp_path), rows(A, 0, 3, 5), rows(B, 0, 2, 1), rows(A, 4, 6, 5), rows(A, 3, 4, 5, "X: y"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{shard_key(A)}-00000000-00000006-end.parquet", f"{shard_key(B)}-00000000-00000002-end.parquet"]
    assert (done["rows"], done["decode_seconds"], done["predict_seconds"]) == (8, 2.0, 4.0)
    table = pq.read_table(tmp_path / names[0])
    assert table.schema.names == SCHEMA.names
    assert table["index"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["caption"].to_pylist()[3] is None
    assert tables.count_errors(tiling(list_pieces(str(tmp_path))[shard_key(A)]) or []) == {"X": 1}


def night(uri: str, name: str, *blocks: pa.Table) -> list[Piece]:
    folder = storage.join(uri, "ds=2026-01-01", name)
    stage(folder, *blocks)
    return [piece for pieces in list_pieces(folder).values() for piece in tiling(pieces) or []]


@pytest.fixture(params=["local", "s3"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return storage.join(str(tmp_path) if request.param == "local" else request.getfixturevalue("s3"), "captions")


def read(uri: str, ds: str = "2026-01-01") -> list[str]:
    return sorted(DeltaTable(uri).to_pyarrow_table(filters=[("ds", "=", ds)])["sample_id"].to_pylist())


def test_a_commit_replaces_its_night_and_no_other(table: str) -> None:
    first = night(table, "one", rows(A, 0, 2, 1), rows(B, 0, 1, 0))
    assert commit_night(table, "2026-01-01", first, SCHEMA, RUN) == 1
    other = storage.join(table, "ds=2026-01-02", "one")
    stage(other, rows(A, 0, 1, 0))
    commit_night(table, "2026-01-02", tiling(list_pieces(other)[shard_key(A)]) or [], SCHEMA, RUN)
    second = night(table, "two", rows(A, 0, 3, 2))
    assert commit_night(table, "2026-01-01", second, SCHEMA, RUN) == 3
    assert read(table) == [f"{A.uri}#{i}" for i in range(3)]
    assert read(table, "2026-01-02") == [f"{A.uri}#0"]
    old = DeltaTable(table, version=1).to_pyarrow_table()
    assert old.num_rows == 3, "a reader of an earlier version still sees it whole"
    action = DeltaTable(table).get_add_actions(flatten=True)
    assert pa.table(action)["num_records"].to_pylist() == [3, 1]


def test_the_same_files_are_not_committed_twice(table: str) -> None:
    pieces = night(table, "one", rows(A, 0, 2, 1))
    assert commit_night(table, "2026-01-01", pieces, SCHEMA, RUN) == 1
    assert commit_night(table, "2026-01-01", pieces, SCHEMA, RUN) is None
    assert DeltaTable(table).version() == 1


def test_of_two_first_writers_of_a_night_one_replaces_the_other(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look at the table before either commits; the loser has to look again, so the night is never mixed."""
    ours, theirs = night(table, "ours", rows(A, 0, 2, 1)), night(table, "theirs", rows(B, 0, 1, 0))
    looked = tables.night_files
    race = iter([True])

    def look(delta: DeltaTable, ds: str) -> set[str]:
        files = looked(delta, ds)
        if next(race, False):
            monkeypatch.setattr(tables, "night_files", looked)
            assert commit_night(table, "2026-01-01", theirs, SCHEMA, RUN) == 1
        return files

    monkeypatch.setattr(tables, "night_files", look)
    assert commit_night(table, "2026-01-01", ours, SCHEMA, RUN) == 2
    assert read(table) == [f"{A.uri}#0", f"{A.uri}#1"]
    assert pa.table(DeltaTable(table, version=1).get_add_actions())["num_records"].to_pylist() == [1]


def test_tidy_removes_only_what_no_kept_version_needs(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    assert tables.tidy(table, 0) == []
    first = night(table, "one", rows(A, 0, 2, 1))
    commit_night(table, "2026-01-01", first, SCHEMA, RUN)
    second = night(table, "two", rows(A, 0, 3, 2))
    commit_night(table, "2026-01-01", second, SCHEMA, RUN)
    night(table, "staging", rows(B, 0, 1, 0))
    assert tables.tidy(table, 24) == []
    removed = tables.tidy(table, 0)
    assert sorted(Path(p).parent.name for p in removed) == ["one", "staging"]
    assert read(table) == [f"{A.uri}#{i}" for i in range(3)]


def test_the_delta_log_records_the_run(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    commit_night(table, "2026-01-01", night(table, "one", rows(A, 0, 1, 0)), SCHEMA, {"model": "m", "run_id": "r"})
    log = (tmp_path / "captions/_delta_log/00000000000000000001.json").read_text().splitlines()
    info = next(json.loads(line)["commitInfo"] for line in log if "commitInfo" in line)
    assert (info["model"], info["run_id"]) == ("m", "r")


def test_a_table_as_it_was(table: str) -> None:
    commit_night(table, "2026-01-01", night(table, "one", rows(A, 0, 2, 1)), SCHEMA, RUN)
    first = tables.open_table(table)
    assert first is not None
    then = datetime.now(UTC)
    time.sleep(1.1)  # stores tell times in seconds
    pieces = night(table, "two", rows(B, 0, 3, 2))
    commit_night(table, "2026-01-02", pieces, SCHEMA, RUN)
    both = ["2026-01-01", "2026-01-02"]
    for as_of, expected in ((first.version(), both[:1]), (then, both[:1]), (None, both)):
        found = tables.open_table(table, as_of)
        assert found is not None
        assert [stored.ds for stored in tables.nights(found)] == expected
    newest = tables.nights(found)[-1]
    assert (newest.rows, newest.files, newest.bytes) == (3, 1, sum(piece.file.size for piece in pieces))
    assert abs((newest.written - datetime.now(UTC)).total_seconds()) < 60
    with pytest.raises(UsageError, match=f"{table} has no version 9: its newest is {found.version()}"):
        tables.open_table(table, 9)


def test_a_version_or_a_moment() -> None:
    assert tables.parse_as_of("12") == 12
    assert tables.parse_as_of("2026-01-31T06:00") == datetime(2026, 1, 31, 6, tzinfo=UTC)
    assert tables.parse_as_of("2026-01-31T06:00+02:00") == datetime(2026, 1, 31, 4, tzinfo=UTC)
    assert tables.parse_as_of("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    for text in ("yesterday", "-1", ""):
        with pytest.raises(UsageError, match="is neither a version nor a time"):
            tables.parse_as_of(text)
