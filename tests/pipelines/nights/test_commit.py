"""A night is one transaction."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import commit, ownership, query, tables
from pipelines.nights.commit import Partition, commit_night
from pipelines.reading.shards import Shard
from pipelines.staging import contents
from pipelines.staging.pieces import Piece, list_pieces, table_schema, tiling
from tests import tiny
from tests.pipelines.nights.made import ONE, RUN, THREE, TWO, commit_as_before, night, read, refusal
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows
from tests.pipelines.staging.test_sink import stage


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_partition_is_one_date_of_one_table(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    lake = request.getfixturevalue("s3") if place == "s3" else str(tmp_path)
    partition = Partition.of(f"{lake}/", "captions", "2026-01-01")
    assert partition == Partition(f"{lake}/captions", "2026-01-01")
    assert (partition.tables, partition.name) == (lake, "captions")
    assert (partition.folder, str(partition)) == (f"{lake}/captions/ds=2026-01-01", f"{lake}/captions ds=2026-01-01")
    assert partition.files() == set()
    pieces = night(partition.table, ONE, rows(A, 0, 3, 2))
    commit_night(partition, pieces, SCHEMA, RUN)
    assert {f"{partition.table}/{path}" for path in partition.files()} == {piece.file.uri for piece in pieces}
    assert Partition(partition.table, "2026-01-02").files() == set()


def test_a_commit_replaces_its_night_and_no_other(table: str) -> None:
    first = night(table, ONE, rows(A, 0, 2, 1), rows(B, 0, 1, 0))
    assert commit_night(Partition(table, "2026-01-01"), first, SCHEMA, RUN) == 1
    other = storage.join(table, "ds=2026-01-02", ONE)
    stage(other, rows(A, 0, 1, 0))
    commit_night(Partition(table, "2026-01-02"), tiling(list_pieces(other)[A.key]) or [], SCHEMA, RUN)
    second = night(table, TWO, rows(A, 0, 3, 2))
    assert commit_night(Partition(table, "2026-01-01"), second, SCHEMA, RUN) == 3
    assert read(table) == [f"{A.uri}#{i}" for i in range(3)]
    assert read(table, "2026-01-02") == [f"{A.uri}#0"]
    old = DeltaTable(table, version=1).to_pyarrow_table()
    assert old.num_rows == 3, "a reader of an earlier version still sees it whole"
    action = DeltaTable(table).get_add_actions(flatten=True)
    assert pa.table(action)["num_records"].to_pylist() == [3, 1]


def test_the_same_files_are_not_committed_twice(table: str) -> None:
    pieces = night(table, ONE, rows(A, 0, 2, 1))
    assert commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN) == 1
    assert commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN) is None
    assert DeltaTable(table).version() == 1


def test_of_two_first_writers_of_a_night_one_replaces_the_other(
    table: str, monkeypatch: pytest.MonkeyPatch, retried: Counter[str]
) -> None:
    """Both look at the table before either commits; the loser has to look again, so the night is never mixed."""
    ours, theirs = night(table, ONE, rows(A, 0, 2, 1)), night(table, TWO, rows(B, 0, 1, 0))
    looked = tables.night_files
    race = iter([True])

    def look(delta: DeltaTable, ds: str) -> set[str]:
        files = looked(delta, ds)
        if next(race, False):
            monkeypatch.setattr(commit, "night_files", looked)
            assert commit_night(Partition(table, "2026-01-01"), theirs, SCHEMA, RUN) == 1
        return files

    monkeypatch.setattr(commit, "night_files", look)
    assert commit_night(Partition(table, "2026-01-01"), ours, SCHEMA, RUN) == 2
    assert retried == {"commit": 1}
    assert read(table) == [f"{A.uri}#0", f"{A.uri}#1"]
    assert pa.table(DeltaTable(table, version=1).get_add_actions())["num_records"].to_pylist() == [1]


def test_a_night_need_not_look_again_because_another_date_was_committed_meanwhile(
    table: str, monkeypatch: pytest.MonkeyPatch, retried: Counter[str]
) -> None:
    first, ours, theirs = (Partition(table, f"2026-01-0{day}") for day in (1, 2, 3))
    staged = {partition: night(table, ONE, rows(A, 0, 2, 1), ds=partition.ds) for partition in (first, ours, theirs)}
    assert commit_night(first, staged[first], SCHEMA, RUN) == 1
    attempts: list[str] = []
    once, looked = commit._commit, tables.night_files

    def look(delta: DeltaTable, ds: str) -> set[str]:
        files = looked(delta, ds)
        if len(attempts) == 1:  # within the attempt to commit ours
            monkeypatch.setattr(commit, "night_files", looked)
            assert commit_night(theirs, staged[theirs], SCHEMA, RUN) == 2
        return files

    monkeypatch.setattr(commit, "_commit", lambda uri, ds, *more: attempts.append(more[0]) or once(uri, ds, *more))
    monkeypatch.setattr(commit, "night_files", look)
    assert commit_night(ours, staged[ours], SCHEMA, RUN) == 3
    assert attempts == [ours.ds, theirs.ds], "one each"
    assert retried == {}
    assert [read(table, partition.ds) for partition in (ours, theirs)] == [[f"{A.uri}#0", f"{A.uri}#1"]] * 2


def test_twenty_nights_that_are_committed_at_once_are_all_there(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them makes the table."""
    attempts: list[str] = []
    once = commit._commit
    monkeypatch.setattr(commit, "_commit", lambda uri, ds, *more: attempts.append(ds) or once(uri, ds, *more))
    dates = [f"2026-01-{day:02d}" for day in range(1, 21)]
    staged = {ds: night(table, ONE, rows(A, 0, 2, 1), ds=ds) for ds in dates}
    at_once = Barrier(len(dates))

    def backfill(ds: str) -> int | None:
        at_once.wait()
        return commit_night(Partition(table, ds), staged[ds], SCHEMA, {"run_id": ds})

    with ThreadPoolExecutor(len(dates)) as threads:
        assert None not in list(threads.map(backfill, dates))
    now = tables.open_table(table)
    assert now is not None
    assert [(found.ds, found.rows) for found in tables.nights(now)] == [(ds, 2) for ds in dates]
    assert now.version() == len(dates), "the table is made once"
    assert len(attempts) <= 3 * len(dates), "nobody waits for everybody"


def test_the_log_tells_of_errors_and_has_no_bounds(table: str) -> None:
    """Readers would lose rows by them: see `commit._stats`."""
    told, untold = night(table, ONE, rows(A, 0, 2, 1), rows(B, 0, 3, 2, "X: y"))
    (bad,) = contents.each([told])
    commit_night(Partition(table, "2026-01-01"), [replace(told, bad=bad.bad), untold], SCHEMA, RUN)
    lines = storage.read_text(tables.commit_uri(table, 1)).splitlines()
    stats = [json.loads(added["stats"]) for line in lines if (added := json.loads(line).get("add"))]
    assert sorted(stats, key=len, reverse=True) == [
        {"numRecords": told.rows, "nullCount": {"error": told.rows - bad.bad}},
        {"numRecords": untold.rows},
    ]


SCORED = table_schema(pa.schema([pa.field("caption", pa.string()), pa.field("score", pa.float32())]))
TEXTS = ("", "a", "b", "X: y", "~", "é", "\uffff", "\U00010000", "\U0001f600", "\U0010ffff", "a\n\"'\\", "a" * 300)
NUMBERS = (None, 0.0, 1.5, -4.0, -4.5, 1e-45, 3.4028234663852886e38, math.nan, math.inf, -math.inf)


def drawn_night(uri: str, draw: random.Random) -> list[dict[str, Any]]:
    """Files with some errors, all and none, of which the log tells or does not; gives their rows."""
    every: list[dict[str, Any]] = []
    pieces: list[Piece] = []
    folder = storage.join(uri, "ds=2026-01-01", ONE)
    for number in range(draw.randint(1, 4)):
        shard, count, often = Shard(f"s3://lake/in/{number}.tar", 1, "e"), draw.randint(1, 4), draw.choice([0, 0.5, 1])
        rows = [
            {
                "sample_id": draw.choice([*TEXTS, None]), "caption": draw.choice(TEXTS), "status": "ok", "error": None,
                "score": draw.choice(NUMBERS), "shard": shard.uri, "index": i, "last": i == count - 1,
            }
            for i in range(count)
        ]  # fmt: skip
        wrong = {"caption": None, "score": None, "status": "error", "error": draw.choice(TEXTS)}
        rows = [row | wrong if draw.random() < often else row for row in rows]
        tiny.stage(folder, SCORED, shard, pa.Table.from_pylist(rows, schema=SCORED))
        own = tiling(list_pieces(folder)[shard.key]) or []
        told = zip(own, contents.each(own), strict=True)
        pieces += own if draw.random() < 0.3 else [replace(piece, bad=each.bad) for piece, each in told]
        every += rows
    commit_night(Partition(uri, "2026-01-01"), pieces, SCORED, RUN)
    return every


def question(draw: random.Random) -> tuple[str, pc.Expression]:
    """Of a column, in SQL and for pyarrow."""
    name = draw.choice(["sample_id", "caption", "score", "status", "error"])
    column = pc.field(name)
    if draw.random() < 0.3:
        return draw.choice([(f"{name} IS NULL", column.is_null()), (f"{name} IS NOT NULL", column.is_valid())])
    if name == "score":
        value, shown = (number := draw.choice([0.0, 1.5, -4.0, -4.25])), f"{number}::FLOAT"
    else:
        value = draw.choice(["ok", "error"] if name == "status" else TEXTS)
        shown = "'" + value.replace("'", "''") + "'"
    return draw.choice(
        [
            (f"{name} = {shown}", column == value),
            (f"{name} < {shown}", column < value),
            (f"{name} >= {shown}", column >= value),
        ]
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_reader_loses_a_row_by_what_the_log_says(tmp_path: Path, seed: int) -> None:
    """Each finds in the table what it finds in the rows themselves: of NaN they think differently."""
    draw = random.Random(seed)
    uri = str(tmp_path / "captions")
    rows = pa.Table.from_pylist(drawn_night(uri, draw), schema=SCORED)
    if seed % 2:
        DeltaTable(uri).create_checkpoint()
    for _ in range(8):
        sql, expression = question(draw)
        select = f'SELECT shard, "index" FROM {{}} WHERE {sql} ORDER BY ALL'
        readers = {
            "DuckDB": (
                duckdb.sql(select.format("rows")).to_arrow_table(),
                query.query(select.format("captions_all"), str(tmp_path), ["captions"]),
            ),
            "Polars": (
                polars.from_arrow(rows).lazy().sql(select.format("self")).collect().to_arrow(),
                polars.scan_delta(uri).sql(select.format("self")).collect().to_arrow(),
            ),
            "pyarrow": (rows.filter(expression), DeltaTable(uri).to_pyarrow_dataset().to_table(filter=expression)),
        }
        for name, (expected, found) in readers.items():
            assert placed_rows(found) == placed_rows(expected), f"{name}: {sql}"


def placed_rows(rows: pa.Table) -> list[tuple[str, int]]:
    return sorted(zip(rows["shard"].to_pylist(), rows["index"].to_pylist(), strict=True))


@pytest.mark.parametrize("folder", ["captions", "my lake/é/captions"])
def test_a_commit_whose_answer_is_lost_is_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    table = str(tmp_path / folder)
    pieces = night(table, ONE, rows(A, 0, 2, 1))
    done = DeltaTable.create_write_transaction

    def lost(self: DeltaTable, *args: Any, **kwargs: Any) -> None:
        done(self, *args, **kwargs)
        monkeypatch.setattr(DeltaTable, "create_write_transaction", done)
        raise OSError("the connection broke off")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lost)
    assert commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, {"run_id": "this one"}) == 1
    assert DeltaTable(table).version() == 1


def test_the_delta_log_records_the_run(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    commit_night(
        Partition(table, "2026-01-01"), night(table, ONE, rows(A, 0, 1, 0)), SCHEMA, {"model": "m", "run_id": "r"}
    )
    log = (tmp_path / "captions/_delta_log/00000000000000000001.json").read_text().splitlines()
    info = next(json.loads(line)["commitInfo"] for line in log if "commitInfo" in line)
    assert (info["model"], info["run_id"]) == ("m", "r")


def test_columns_are_added_with_the_night_in_one_commit(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    commit_as_before(table, night(table, ONE, rows(A, 0, 2, 1)), name="hybrid:captions")
    assert (
        commit_night(Partition(table, "2026-01-02"), night(table, TWO, rows(B, 0, 3, 2), ds="2026-01-02"), SCHEMA, RUN)
        == 2
    )
    assert "lost_rows" in [field.name for field in DeltaTable(table).schema().fields]
    assert "lost_rows" not in [field.name for field in DeltaTable(table, version=1).schema().fields]
    frame = polars.scan_delta(table).select("sample_id", "lost_rows").collect()
    assert frame.height == 5
    assert frame["lost_rows"].null_count() == 5
    log = Path(table, "_delta_log/00000000000000000002.json").read_text()
    assert "metaData" in log
    third = night(table, THREE, rows(B, 0, 1, 0), ds="2026-01-02")
    assert commit_night(Partition(table, "2026-01-02"), third, SCHEMA, RUN) == 3
    assert "metaData" not in Path(table, "_delta_log/00000000000000000003.json").read_text(), "once is enough"


def test_a_long_log_has_a_checkpoint(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its bytes; whoever opens the table reads what comes after it, and all versions stay."""
    partitions = [Partition(table, f"2026-01-{day:02d}") for day in range(1, 5)]
    folder = storage.join(table, "_delta_log")

    def commit_all(partitions: list[Partition]) -> list[str]:
        for partition in partitions:
            stage(storage.join(partition.folder, ONE), rows(A, 0, 2, 1))
            pieces = tiling(list_pieces(storage.join(partition.folder, ONE))[A.key]) or []
            commit_night(partition, pieces, SCHEMA, RUN)
        return [file.name for file in storage.list_files(folder) if "checkpoint" in file.name]

    assert commit_all(partitions[:2]) == []
    size = sum(file.size for file in storage.list_files(folder))
    monkeypatch.setattr(commit, "LOG_BYTES", size)
    assert commit_all(partitions[2:3]) == ["00000000000000000003.checkpoint.parquet"]
    assert commit_all(partitions[3:]) == ["00000000000000000003.checkpoint.parquet"], "the log after it is short"
    assert [night.rows for night in tables.nights(DeltaTable(table))] == [2, 2, 2, 2]
    assert [night.ds for night in tables.nights(DeltaTable(table, version=2))] == ["2026-01-01", "2026-01-02"]
    assert commit_night(partitions[0], night(table, TWO, rows(A, 0, 3, 2)), SCHEMA, RUN) == 5, "transactions go on"
    assert commit.restore(table, 4, "2026-01-01") == 6
    assert read(table) == [f"{A.uri}#0", f"{A.uri}#1"]


def test_a_night_outlives_a_checkpoint_that_cannot_be_made(
    table: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: DeltaTable) -> None:
        raise DeltaError("the store is away")

    monkeypatch.setattr(commit, "LOG_BYTES", 0)
    monkeypatch.setattr(DeltaTable, "create_checkpoint", fails)
    assert commit_night(Partition(table, "2026-01-01"), night(table, ONE, rows(A, 0, 2, 1)), SCHEMA, RUN) == 1
    assert "captions: cannot make a checkpoint of its log: the store is away" in caplog.text


def test_a_night_is_brought_back(table: str) -> None:
    first, second = night(table, ONE, rows(A, 0, 3, 2)), night(table, TWO, rows(A, 0, 1, 0))
    commit_night(Partition(table, "2026-01-01"), first, SCHEMA, RUN)
    commit_night(Partition(table, "2026-01-02"), night(table, ONE, rows(B, 0, 1, 0), ds="2026-01-02"), SCHEMA, RUN)
    commit_night(Partition(table, "2026-01-01"), second, SCHEMA, RUN)
    newer = night(table, TWO, rows(B, 0, 2, 1), ds="2026-01-02")
    commit_night(Partition(table, "2026-01-02"), newer, SCHEMA, RUN)
    assert (len(read(table)), len(read(table, "2026-01-02"))) == (1, 2)
    assert commit.restore(table, 2, "2026-01-01") == 5
    assert (len(read(table)), len(read(table, "2026-01-02"))) == (3, 2), "the other night stays as it is"
    assert commit.restore(table, 2, "2026-01-01") is None
    assert commit.restore(table, 2) == 6
    assert (len(read(table)), len(read(table, "2026-01-02"))) == (3, 1)
    assert commit_night(Partition(table, "2026-01-02"), newer, SCHEMA, RUN) == 7, "nights are written as before"


def test_what_is_not_kept_is_not_brought_back(table: str) -> None:
    pieces = night(table, ONE, rows(A, 0, 3, 2), rows(B, 0, 1, 0))
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    commit_night(Partition(table, "2026-01-01"), night(table, TWO, rows(A, 0, 1, 0)), SCHEMA, RUN)
    storage.delete(pieces[0].file.uri, storage.anything)
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


@pytest.mark.parametrize("ds", ["2026-01-01", ""])
def test_files_that_go_while_they_are_brought_back_are_said(
    table: str, ds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = night(table, ONE, rows(A, 0, 3, 2), rows(B, 0, 1, 0))
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    commit_night(Partition(table, "2026-01-01"), night(table, TWO, rows(A, 0, 1, 0)), SCHEMA, RUN)
    patiently = commit.patiently

    def tidied_meanwhile(operation: str, uri: str, work: Callable[[], Any]) -> Any:
        done = patiently(operation, uri, work)
        if operation == "restore":
            storage.delete(pieces[0].file.uri, storage.anything)
        return done

    monkeypatch.setattr(commit, "patiently", tidied_meanwhile)
    with pytest.raises(UsageError, match=r"1 of its files are not kept any more, such as .*; infer the night again$"):
        commit.restore(table, 1, ds)


def test_what_another_program_made_of_a_table_is_undone(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    commit_night(Partition(table, "2026-01-01"), night(table, ONE, rows(A, 0, 3, 2)), SCHEMA, RUN)
    everything = DeltaTable(table).to_pyarrow_table()
    write_deltalake(table, everything, mode="overwrite", schema_mode="overwrite", partition_by=[])
    assert "is partitioned by nothing" in refusal(table)
    with pytest.raises(UsageError, match="is partitioned by nothing"):
        commit.restore(table, 1, "2026-01-01")
    assert commit.restore(table, 1) == 3
    ownership.check(table, SCHEMA)
    assert read(table) == [f"{A.uri}#{i}" for i in range(3)]
