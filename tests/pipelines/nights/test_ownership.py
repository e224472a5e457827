"""Whose a table is."""

import re
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import s3fs
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from hybrid_models.nowcaster.nowcaster import Nowcaster
from pipelines import storage
from pipelines.nights import ownership, query, tables
from pipelines.nights.commit import Partition, commit_night
from pipelines.staging import contents
from pipelines.staging.contents import Contents
from pipelines.staging.pieces import list_pieces, table_schema
from tests import tiny
from tests.pipelines.nights.made import ONE, RUN, TWO, commit_as_before, night, refusal
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows


@pytest.mark.parametrize(
    "path",
    [
        "ds=2026-01-01/part-00000.txt",
        "invoice.pdf",
        "_SUCCESS",
        ".hidden",
        f"ds=2026-01-01/{ONE}/photos.tar",
        f"ds=2026-01-01/{ONE}/part-0.parquet",
        f"{A.key}-00000000-00000001-end.parquet",
    ],
)
def test_a_table_is_not_made_where_something_else_is(table: str, path: str) -> None:
    storage.write_bytes(f"{table}/{path}", b"x")
    assert refusal(table) == (
        f"{table} holds {path}, which this program did not write: a table is made in an empty folder only; "
        "use another `tables`"
    )
    pieces = night(table, ONE, rows(A, 0, 1, 0))
    with pytest.raises(UsageError, match=f"holds {path}, which"):
        commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
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
    assert commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN) == 1
    ownership.check(table, SCHEMA)


def test_the_marks_of_folders_on_s3_are_nothing(s3: str) -> None:
    bucket, _, key = s3.removeprefix("s3://").partition("/")
    fs = s3fs.S3FileSystem()
    for folder in ("captions/", "captions/ds=2026-01-01/"):
        fs.call_s3("put_object", Bucket=bucket, Key=f"{key}/{folder}", Body=b"")
    ownership.check(f"{s3}/captions", SCHEMA)
    pieces = night(f"{s3}/captions", ONE, rows(A, 0, 2, 1))
    assert commit_night(Partition(f"{s3}/captions", "2026-01-01"), pieces, SCHEMA, RUN) == 1


def test_a_table_of_the_version_before_is_taken_over_at_the_next_commit(table: str) -> None:
    commit_as_before(table, night(table, ONE, rows(A, 0, 2, 1, "X: y")))
    ownership.check(table, SCHEMA)
    assert DeltaTable(table).metadata().name is None
    assert [stored.rows for stored in tables.nights(DeltaTable(table))] == [2]
    second = night(table, TWO, rows(B, 0, 3, 2), ds="2026-01-02")
    assert commit_night(Partition(table, "2026-01-02"), second, SCHEMA, RUN) == 3, (
        "the mark, then the night with its columns"
    )
    delta = DeltaTable(table)
    assert delta.metadata().name == "hybrid:captions"
    assert {field.name for field in delta.schema().fields} == {*SCHEMA.names, "ds"}
    found = duckdb.from_arrow(delta.to_pyarrow_dataset())
    assert found.aggregate("ds, count(*), count(lost_rows)").order("ds").fetchall() == [
        ("2026-01-01", 2, 0), ("2026-01-02", 3, 0),
    ]  # fmt: skip
    reused = [piece for pieces in list_pieces(f"{table}/ds=2026-01-01/{ONE}").values() for piece in pieces]
    assert contents.total(reused) == Contents(Counter(X=2))
    assert commit_night(Partition(table, "2026-01-01"), reused, SCHEMA, RUN) is None
    assert tables.nights(DeltaTable(table, version=1))[0].rows == 2


def test_nowcasts_of_the_version_before_get_their_new_columns_in_place(place: str) -> None:
    """`mean`, `max` and `unit`, null in the nights that are there."""
    uri = storage.absolute(storage.join(place, "nowcasts"))
    schema, folder = table_schema(Nowcaster.payload_schema), f"{uri}/ds=2026-01-01/{ONE}"
    made = {"sample_id": "a", "status": "ok", "shard": A.uri, "index": 0, "last": True, "max_mm_h": [2.0]}
    tiny.stage(folder, schema, A, pa.Table.from_pylist([made], schema=schema))
    pieces = [piece for found in list_pieces(folder).values() for piece in found]
    commit_as_before(uri, pieces, "hybrid:nowcasts", schema)
    assert not {"mean", "max", "unit", "lost_rows"} & {field.name for field in DeltaTable(uri).schema().fields}

    ownership.check(uri, schema)
    video = {"sample_id": "b", "mean": [0.25], "max": [0.5], "unit": "intensity"}
    tiny.write_rows(place, "nowcasts", "2026-01-02", [video])
    asked = query.query("SELECT sample_id, max_mm_h, mean, max, unit FROM nowcasts ORDER BY ds", place, ["nowcasts"])
    assert asked.to_pylist() == [
        {"sample_id": "a", "max_mm_h": [2.0], "mean": None, "max": None, "unit": None},
        {"max_mm_h": None, **video},
    ]
    assert {field.name for field in DeltaTable(uri).schema().fields} == {*schema.names, "ds"}


def columns(**changes: pa.DataType | None) -> pa.Schema:
    """The table's columns with some of another type, or (None) left out."""
    own = {field.name: field.type for field in SCHEMA} | {"ds": pa.string()} | changes
    return pa.schema([(name, kind) for name, kind in own.items() if kind is not None])


@pytest.mark.parametrize(
    ("schema", "partitions", "name", "why"),
    [
        (columns(), ["ds"], "sales", "is the table 'sales', not one of this program's: use another `tables`"),
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
        commit_night(Partition(table, "2026-01-01"), night(table, ONE, rows(A, 0, 1, 0)), SCHEMA, RUN)
    assert DeltaTable(table).version() == 0


def test_a_column_that_must_not_be_null_is_refused(tmp_path: Path) -> None:
    strict = pa.schema([field.with_nullable(field.name != "error") for field in columns()])
    DeltaTable.create(str(tmp_path / "captions"), strict, partition_by=["ds"])
    assert "(error is string without nulls, not string)" in refusal(str(tmp_path / "captions"))


def test_tables_are_found_by_our_mark_and_no_others(place: str) -> None:
    """A foreign table beside ours is in nobody's way."""
    usual = ["captions", "nowcasts", "actions", "translations"]
    assert ownership.names(f"{place}/nowhere") == usual
    english = f"{place}/tables/english"
    commit_night(Partition(english, "2026-01-01"), night(english, ONE, rows(A, 0, 2, True)), SCHEMA, RUN)
    for name in ("theirs", "Odd.Name"):
        DeltaTable.create(f"{place}/tables/{name}", pa.schema([pa.field("n", pa.int64())]))
    storage.write_bytes(f"{place}/tables/reports/2026-01-01.html", b"x")
    names = ownership.names(f"{place}/tables")
    assert names == [*usual, "english"]
    assert query.query("SELECT count(*) AS n FROM english_all", f"{place}/tables", names).to_pylist() == [{"n": 2}]
