import io
import json
import re
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.transaction import AddAction

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import commit, ownership, tables
from pipelines.nights.commit import commit_night
from pipelines.staging.checks import Errors, count_errors
from pipelines.staging.pieces import GROWN, Piece, list_pieces, shard_key, tiling
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows, stage

RUN = {"run_id": "r"}
ONE, TWO, THREE = "111111111111", "222222222222", "333333333333"
"""Fingerprints."""


def night(uri: str, fingerprint: str, *blocks: pa.Table, ds: str = "2026-01-01") -> list[Piece]:
    folder = storage.join(uri, f"ds={ds}", fingerprint)
    stage(folder, *blocks)
    return [piece for pieces in list_pieces(folder).values() for piece in tiling(pieces) or []]


@pytest.fixture
def table(place: str) -> str:
    return storage.join(place, "captions")


def read(uri: str, ds: str = "2026-01-01") -> list[str]:
    return sorted(DeltaTable(uri).to_pyarrow_table(filters=[("ds", "=", ds)])["sample_id"].to_pylist())


def test_a_commit_replaces_its_night_and_no_other(table: str) -> None:
    first = night(table, ONE, rows(A, 0, 2, 1), rows(B, 0, 1, 0))
    assert commit_night(table, "2026-01-01", first, SCHEMA, RUN) == 1
    other = storage.join(table, "ds=2026-01-02", ONE)
    stage(other, rows(A, 0, 1, 0))
    commit_night(table, "2026-01-02", tiling(list_pieces(other)[shard_key(A)]) or [], SCHEMA, RUN)
    second = night(table, TWO, rows(A, 0, 3, 2))
    assert commit_night(table, "2026-01-01", second, SCHEMA, RUN) == 3
    assert read(table) == [f"{A.uri}#{i}" for i in range(3)]
    assert read(table, "2026-01-02") == [f"{A.uri}#0"]
    old = DeltaTable(table, version=1).to_pyarrow_table()
    assert old.num_rows == 3, "a reader of an earlier version still sees it whole"
    action = DeltaTable(table).get_add_actions(flatten=True)
    assert pa.table(action)["num_records"].to_pylist() == [3, 1]


def test_the_same_files_are_not_committed_twice(table: str) -> None:
    pieces = night(table, ONE, rows(A, 0, 2, 1))
    assert commit_night(table, "2026-01-01", pieces, SCHEMA, RUN) == 1
    assert commit_night(table, "2026-01-01", pieces, SCHEMA, RUN) is None
    assert DeltaTable(table).version() == 1


def test_of_two_first_writers_of_a_night_one_replaces_the_other(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look at the table before either commits; the loser has to look again, so the night is never mixed."""
    ours, theirs = night(table, ONE, rows(A, 0, 2, 1)), night(table, TWO, rows(B, 0, 1, 0))
    looked = tables.night_files
    race = iter([True])

    def look(delta: DeltaTable, ds: str) -> set[str]:
        files = looked(delta, ds)
        if next(race, False):
            monkeypatch.setattr(commit, "night_files", looked)
            assert commit_night(table, "2026-01-01", theirs, SCHEMA, RUN) == 1
        return files

    monkeypatch.setattr(commit, "night_files", look)
    assert commit_night(table, "2026-01-01", ours, SCHEMA, RUN) == 2
    assert read(table) == [f"{A.uri}#0", f"{A.uri}#1"]
    assert pa.table(DeltaTable(table, version=1).get_add_actions())["num_records"].to_pylist() == [1]


def test_the_delta_log_records_the_run(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    commit_night(table, "2026-01-01", night(table, ONE, rows(A, 0, 1, 0)), SCHEMA, {"model": "m", "run_id": "r"})
    log = (tmp_path / "captions/_delta_log/00000000000000000001.json").read_text().splitlines()
    info = next(json.loads(line)["commitInfo"] for line in log if "commitInfo" in line)
    assert (info["model"], info["run_id"]) == ("m", "r")


def test_a_table_as_it_was(table: str) -> None:
    commit_night(table, "2026-01-01", night(table, ONE, rows(A, 0, 2, 1)), SCHEMA, RUN)
    first = tables.open_table(table)
    assert first is not None
    then = datetime.now(UTC)
    time.sleep(1.1)  # stores tell times in seconds
    pieces = night(table, TWO, rows(B, 0, 3, 2))
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


# ---- ours or not -------------------------------------------------------------------------------------------------
def refusal(uri: str, schema: pa.Schema = SCHEMA) -> str:
    """How a night is refused, which leaves everything as it is."""
    before = storage.list_all(uri)
    with pytest.raises(UsageError) as caught:
        ownership.check(uri, schema)
    assert "\n" not in str(caught.value)
    assert storage.list_all(uri) == before
    return str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "ds=2026-01-01/part-00000.txt",
        "invoice.pdf",
        "_SUCCESS",
        ".hidden",
        f"ds=2026-01-01/{ONE}/photos.tar",
        f"ds=2026-01-01/{ONE}/part-0.parquet",
        f"{shard_key(A)}-00000000-00000001-end.parquet",
    ],
)
def test_a_table_is_not_made_where_something_else_is(table: str, path: str) -> None:
    storage.write_bytes(f"{table}/{path}", b"x")
    assert refusal(table) == (
        f"{table} holds {path}, which this program did not write: a table is made in an empty folder only; "
        "use another --tables"
    )
    pieces = night(table, ONE, rows(A, 0, 1, 0))
    with pytest.raises(UsageError, match=f"holds {path}, which"):
        commit_night(table, "2026-01-01", pieces, SCHEMA, RUN)
    assert tables.open_table(table) is None


def test_a_killed_first_night_goes_on(table: str) -> None:
    ownership.check(table, SCHEMA)
    pieces = night(table, ONE, rows(A, 0, 2, 1))
    night(table, TWO, rows(B, 0, 1, 0), ds="2026-01-02")
    if not table.startswith("s3://"):
        Path(table, f"ds=2026-01-01/{ONE}/.{pieces[0].file.name}.0a1b2c3d").write_bytes(b"PAR1")
        Path(table, "_delta_log").mkdir()
        Path(table, "_delta_log/00000000000000000000.json#1").write_bytes(b"{")
        Path(table, "empty").mkdir()
    ownership.check(table, SCHEMA)
    assert commit_night(table, "2026-01-01", pieces, SCHEMA, RUN) == 1
    ownership.check(table, SCHEMA)


def test_the_marks_of_folders_on_s3_are_nothing(s3: str) -> None:
    bucket, _, key = s3.removeprefix("s3://").partition("/")
    fs = s3fs.S3FileSystem()
    for folder in ("captions/", "captions/ds=2026-01-01/"):
        fs.call_s3("put_object", Bucket=bucket, Key=f"{key}/{folder}", Body=b"")
    ownership.check(f"{s3}/captions", SCHEMA)
    pieces = night(f"{s3}/captions", ONE, rows(A, 0, 2, 1))
    assert commit_night(f"{s3}/captions", "2026-01-01", pieces, SCHEMA, RUN) == 1


BEFORE = pa.schema([field for field in SCHEMA if field.name not in GROWN])
"""Columns of the version that did not count lost rows."""


def commit_as_before(uri: str, pieces: list[Piece], name: str | None = None) -> None:
    """A night as the version wrote it that marked no table and did not count lost rows."""
    delta_schema = BEFORE.append(pa.field("ds", pa.string()))
    for piece in pieces:
        old = pq.read_table(io.BytesIO(storage.read_bytes(piece.file.uri))).select(BEFORE.names)
        buffer = io.BytesIO()
        pq.write_table(old, buffer, compression="zstd")
        storage.write_bytes(piece.file.uri, buffer.getvalue())
    root = storage.absolute(uri) + "/"
    actions = [
        AddAction(
            piece.file.uri.removeprefix(root), storage.info(piece.file.uri).size, {"ds": "2026-01-01"},
            int(time.time() * 1000), True, json.dumps({"numRecords": piece.rows}),
        )
        for piece in pieces
    ]  # fmt: skip
    delta = DeltaTable.create(uri, delta_schema, mode="ignore", partition_by=["ds"], name=name)
    properties = CommitProperties({"ds": "2026-01-01", **RUN}, app_transactions=[Transaction("ds=2026-01-01", 1)])
    delta.create_write_transaction(
        actions, "overwrite", delta_schema, ["ds"], [("ds", "=", "2026-01-01")], commit_properties=properties
    )


def test_a_table_of_the_version_before_is_taken_over_at_the_next_commit(table: str) -> None:
    commit_as_before(table, night(table, ONE, rows(A, 0, 2, 1, "X: y")))
    ownership.check(table, SCHEMA)
    assert DeltaTable(table).metadata().name is None
    assert [stored.rows for stored in tables.nights(DeltaTable(table))] == [2]
    second = night(table, TWO, rows(B, 0, 3, 2), ds="2026-01-02")
    assert commit_night(table, "2026-01-02", second, SCHEMA, RUN) == 3, "the mark, then the night with its columns"
    delta = DeltaTable(table)
    assert delta.metadata().name == "hybrid:captions"
    assert {field.name for field in delta.schema().fields} == {*SCHEMA.names, "ds"}
    found = duckdb.from_arrow(delta.to_pyarrow_dataset())
    assert found.aggregate("ds, count(*), count(lost_rows)").order("ds").fetchall() == [
        ("2026-01-01", 2, 0), ("2026-01-02", 3, 0),
    ]  # fmt: skip
    reused = [piece for pieces in list_pieces(f"{table}/ds=2026-01-01/{ONE}").values() for piece in pieces]
    assert count_errors(reused) == Errors(Counter(X=2), 0)
    assert commit_night(table, "2026-01-01", reused, SCHEMA, RUN) is None
    assert tables.nights(DeltaTable(table, version=1))[0].rows == 2


def test_columns_are_added_with_the_night_in_one_commit(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    commit_as_before(table, night(table, ONE, rows(A, 0, 2, 1)), name="hybrid:captions")
    assert commit_night(table, "2026-01-02", night(table, TWO, rows(B, 0, 3, 2), ds="2026-01-02"), SCHEMA, RUN) == 2
    assert "lost_rows" in [field.name for field in DeltaTable(table).schema().fields]
    assert "lost_rows" not in [field.name for field in DeltaTable(table, version=1).schema().fields]
    frame = polars.scan_delta(table).select("sample_id", "lost_rows").collect()
    assert frame.height == 5
    assert frame["lost_rows"].null_count() == 5
    log = Path(table, "_delta_log/00000000000000000002.json").read_text()
    assert "metaData" in log
    third = night(table, THREE, rows(B, 0, 1, 0), ds="2026-01-02")
    assert commit_night(table, "2026-01-02", third, SCHEMA, RUN) == 3
    assert "metaData" not in Path(table, "_delta_log/00000000000000000003.json").read_text(), "once is enough"


def columns(**changes: pa.DataType | None) -> pa.Schema:
    """The table's columns with some of another type, or (None) left out."""
    own = {field.name: field.type for field in SCHEMA} | {"ds": pa.string()} | changes
    return pa.schema([(name, kind) for name, kind in own.items() if kind is not None])


@pytest.mark.parametrize(
    ("schema", "partitions", "name", "why"),
    [
        (columns(), ["ds"], "sales", "is the table 'sales', not one of this program's: use another --tables"),
        (columns(), ["ds"], "hybrid:nowcasts", "is the table 'hybrid:nowcasts', not one"),
        (columns(), [], None, "is partitioned by nothing, not by ds: another program has written it; bring an earlier"),
        (columns(), [], "hybrid:captions", "is partitioned by nothing, not by ds"),
        (columns(), ["ds", "model"], None, "is partitioned by ds, model, not by ds"),
        (columns(index=pa.int32()), ["ds"], None, r"than this version writes \(index is integer, not long\): use"),
        (columns(caption=pa.list_(pa.string())), ["ds"], None, r"\(caption is array, not string\)"),
        (columns(caption=None), ["ds"], "hybrid:captions", r"\(no caption\)"),
        (columns(shard=None), ["ds"], None, r"\(no shard\)"),
        (columns(price=pa.float64()), ["ds"], "hybrid:captions", r"\(price is not known\)"),
        (pa.schema([("q", pa.int64()), ("ds", pa.string())]), ["ds"], None, r"\(no sample_id\)"),
    ],
)
def test_tables_of_others_are_refused(
    tmp_path: Path, schema: pa.Schema, partitions: list[str], name: str | None, why: str
) -> None:
    table = str(tmp_path / "captions")
    DeltaTable.create(table, schema, partition_by=partitions, name=name)
    assert re.search(why, refusal(table)), refusal(table)
    with pytest.raises(UsageError, match=why):
        commit_night(table, "2026-01-01", night(table, ONE, rows(A, 0, 1, 0)), SCHEMA, RUN)
    assert DeltaTable(table).version() == 0


def test_a_column_that_must_not_be_null_is_refused(tmp_path: Path) -> None:
    strict = pa.schema([field.with_nullable(field.name != "error") for field in columns()])
    DeltaTable.create(str(tmp_path / "captions"), strict, partition_by=["ds"])
    assert "(error is string without nulls, not string)" in refusal(str(tmp_path / "captions"))


# ---- going back --------------------------------------------------------------------------------------------------
def test_a_night_is_brought_back(table: str) -> None:
    first, second = night(table, ONE, rows(A, 0, 3, 2)), night(table, TWO, rows(A, 0, 1, 0))
    commit_night(table, "2026-01-01", first, SCHEMA, RUN)
    commit_night(table, "2026-01-02", night(table, ONE, rows(B, 0, 1, 0), ds="2026-01-02"), SCHEMA, RUN)
    commit_night(table, "2026-01-01", second, SCHEMA, RUN)
    newer = night(table, TWO, rows(B, 0, 2, 1), ds="2026-01-02")
    commit_night(table, "2026-01-02", newer, SCHEMA, RUN)
    assert (len(read(table)), len(read(table, "2026-01-02"))) == (1, 2)
    assert commit.restore(table, 2, "2026-01-01") == 5
    assert (len(read(table)), len(read(table, "2026-01-02"))) == (3, 2), "the other night stays as it is"
    assert commit.restore(table, 2, "2026-01-01") is None
    assert commit.restore(table, 2) == 6
    assert (len(read(table)), len(read(table, "2026-01-02"))) == (3, 1)
    assert commit_night(table, "2026-01-02", newer, SCHEMA, RUN) == 7, "nights are written as before"


def test_what_is_not_kept_is_not_brought_back(table: str) -> None:
    pieces = night(table, ONE, rows(A, 0, 3, 2), rows(B, 0, 1, 0))
    commit_night(table, "2026-01-01", pieces, SCHEMA, RUN)
    commit_night(table, "2026-01-01", night(table, TWO, rows(A, 0, 1, 0)), SCHEMA, RUN)
    storage.delete(pieces[0].file.uri)
    path = f"ds=2026-01-01/{ONE}/{pieces[0].file.name}"
    for ds in ("2026-01-01", ""):
        with pytest.raises(UsageError) as caught:
            commit.restore(table, 1, ds)
        assert str(caught.value) == (
            f"{table} cannot be as it was in version 1: 1 of its files are not kept any more, such as {path}; "
            "infer the night again"
        )
    with pytest.raises(UsageError, match=r"had no rows of 2027-01-01 in version 1: `hybrid tables --as-of` lists"):
        commit.restore(table, 1, "2027-01-01")
    with pytest.raises(UsageError, match="has no version 9"):
        commit.restore(table, 9)
    with pytest.raises(UsageError, match="there is no table at"):
        commit.restore(f"{table}-none", 1)
    assert DeltaTable(table).version() == 2


def test_what_another_program_made_of_a_table_is_undone(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    commit_night(table, "2026-01-01", night(table, ONE, rows(A, 0, 3, 2)), SCHEMA, RUN)
    everything = DeltaTable(table).to_pyarrow_table()
    write_deltalake(table, everything, mode="overwrite", schema_mode="overwrite", partition_by=[])
    assert "is partitioned by nothing" in refusal(table)
    with pytest.raises(UsageError, match="is partitioned by nothing"):
        commit.restore(table, 1, "2026-01-01")
    assert commit.restore(table, 1) == 3
    ownership.check(table, SCHEMA)
    assert read(table) == [f"{A.uri}#{i}" for i in range(3)]


# ---- a damaged log -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("left", ["half", "nothing", "zeros", "another"])
def test_a_damaged_newest_commit_is_named_and_can_be_moved_out(table: str, left: str) -> None:
    first, second = night(table, ONE, rows(A, 0, 3, 2)), night(table, TWO, rows(A, 0, 1, 0))
    commit_night(table, "2026-01-01", first, SCHEMA, RUN)
    commit_night(table, "2026-01-01", second, SCHEMA, RUN)
    entry = f"{table}/_delta_log/00000000000000000002.json"
    whole = storage.read_bytes(entry)
    damaged = {"half": whole[: len(whole) // 2], "nothing": b"", "zeros": bytes(300), "another": b"[1]\n"}[left]
    storage.write_bytes(entry, damaged)
    assert refusal(table) == (
        f"{table} cannot be read: {entry}, an entry of its log, is damaged; "
        "move it out of the log and infer its night again, as docs/querying.md tells"
    )
    storage.delete(entry)
    ownership.check(table, SCHEMA)
    assert len(read(table)) == 3, "the night before"
    assert commit_night(table, "2026-01-01", second, SCHEMA, RUN) == 2
    assert len(read(table)) == 1


def test_an_older_damaged_commit_needs_a_backup(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    for name in (ONE, TWO, THREE):
        commit_night(table, "2026-01-01", night(table, name, rows(A, 0, 3, 2)), SCHEMA, RUN)
    entry = Path(table, "_delta_log/00000000000000000002.json")
    entry.write_bytes(entry.read_bytes()[:100])
    assert refusal(table).endswith(f"{entry}, an entry of its log, is damaged; bring it back from a backup")


def test_a_log_whose_oldest_entries_are_in_a_checkpoint(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    commit_night(table, "2026-01-01", night(table, ONE, rows(A, 0, 3, 2)), SCHEMA, RUN)
    DeltaTable(table).create_checkpoint()
    for entry in Path(table, "_delta_log").glob("*.json"):
        entry.unlink()
    ownership.check(table, SCHEMA)
