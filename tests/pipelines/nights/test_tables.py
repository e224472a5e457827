import json
import os
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import commit, ownership, query, report, tables, upkeep
from pipelines.nights.commit import Partition, commit_night
from pipelines.staging import contents
from pipelines.staging.pieces import list_pieces
from tests.pipelines.nights.made import ONE, RUN, THREE, TWO, meanwhile, night, read, refusal
from tests.pipelines.nights.test_query import write_night
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows
from tests.pipelines.staging.test_sink import stage


def test_a_table_as_it_was(table: str) -> None:
    commit_night(Partition(table, "2026-01-01"), night(table, ONE, rows(A, 0, 2, 1)), SCHEMA, RUN)
    first = tables.open_table(table)
    assert first is not None
    then = datetime.now(UTC)
    time.sleep(1.1)  # stores tell times in seconds
    pieces = night(table, TWO, rows(B, 0, 3, 2))
    commit_night(Partition(table, "2026-01-02"), pieces, SCHEMA, RUN)
    both = ["2026-01-01", "2026-01-02"]
    for as_of, expected in ((first.version(), both[:1]), (then, both[:1]), (None, both)):
        found = tables.open_table(table, as_of)
        assert found is not None
        assert [stored.ds for stored in tables.nights(found)] == expected
    newest = tables.nights(found)[-1]
    assert newest.bad is None, "nobody told"
    assert (newest.rows, newest.files, newest.bytes) == (3, 1, sum(piece.file.size for piece in pieces))
    assert abs((newest.written - datetime.now(UTC)).total_seconds()) < 60
    with pytest.raises(UsageError, match=f"{table} has no version 9: its newest is {found.version()}"):
        tables.open_table(table, 9)
    for open_ in (tables.open_table, commit.restore):
        with pytest.raises(
            UsageError, match=rf"^there was no {table} as of 2020-01-01 .* yet: it began at {then:%Y-%m}"
        ):
            open_(table, datetime(2020, 1, 1, tzinfo=UTC))
    assert tables.open_table(table).version() == found.version(), "a wrong year empties no table"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a b", "a::b", "100%", "a#b", "a?b", "a%20b"])
def test_an_address_that_would_have_the_log_elsewhere_than_the_files_is_refused(place: str, name: str) -> None:
    """Else a night would be committed where nobody finds it."""
    table = storage.join(place, name, "captions")
    pieces = night(table, ONE, rows(A, 0, 2, 1))
    refused = "%20" if "%20" in name else (set(name) & {"#", "?"} and not storage.is_local(place) and name[1])
    if refused:
        with pytest.raises(UsageError, match=rf"captions has a '{re.escape(refused)}', for which tables have no place"):
            tables.open_table(table)
        with pytest.raises(UsageError, match="for which tables have no place"):
            commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
        return
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    assert len(read(table, "2026-01-01")) == 2


def test_a_version_or_a_moment() -> None:
    assert tables.parse_as_of("12") == 12
    assert tables.parse_as_of("2026-01-31T06:00") == datetime(2026, 1, 31, 6, tzinfo=UTC)
    assert tables.parse_as_of("2026-01-31T06:00+02:00") == datetime(2026, 1, 31, 4, tzinfo=UTC)
    assert tables.parse_as_of("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    for text in ("yesterday", "-1", ""):
        with pytest.raises(UsageError, match="is neither a version nor a time"):
            tables.parse_as_of(text)


def test_the_log_tells_how_many_rows_are_bad(table: str) -> None:
    """Of nights that say so, also after one of them was brought back; and readers leave out what has none."""
    folder = storage.join(table, "ds=2026-01-01", ONE)
    stage(folder, rows(A, 0, 4, 3))
    stage(folder, rows(B, 0, 3, 2, "X: y"))
    pieces = [piece for found in list_pieces(folder).values() for piece in found]
    known = [replace(piece, bad=each.bad) for piece, each in zip(pieces, contents.each(pieces), strict=True)]
    commit_night(Partition(table, "2026-01-01"), known, SCHEMA, RUN)
    assert [stored.bad for stored in tables.nights(DeltaTable(table))] == [3]
    commit_night(Partition(table, "2026-01-01"), night(table, TWO, rows(B, 0, 3, 2)), SCHEMA, RUN)
    assert commit.restore(table, 1, "2026-01-01") == 3
    DeltaTable(table).create_checkpoint()
    (found,) = tables.nights(DeltaTable(table))
    assert (found.rows, found.bad) == (7, 3)
    dataset = DeltaTable(table).to_pyarrow_dataset()
    assert dataset.filter(pc.field("error").is_valid()).count_rows() == 3
    assert dataset.filter(pc.field("error").is_null()).count_rows() == 4


# ---- a log that forgot what its checkpoints hold -------------------------------------------------------------------
def forget(table: str, hours: float) -> None:
    """As if the log so far had been written so long ago, and were cleaned of what is older than an hour."""
    delta = DeltaTable(table)
    delta.alter.set_table_properties({"delta.logRetentionDuration": "interval 1 hours"})
    then = time.time() - 3600 * hours
    for path in Path(table, "_delta_log").glob("*.json"):
        os.utime(path, (then, then))
    delta = DeltaTable(table)
    delta.create_checkpoint()
    delta.cleanup_metadata()


def test_a_table_goes_on_after_its_log_was_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables_uri, table = str(tmp_path), str(tmp_path / "captions")
    first, second = (Partition(table, ds) for ds in ("2026-01-01", "2026-01-02"))
    one = night(table, ONE, rows(A, 0, 2, 1))
    commit_night(first, one, SCHEMA, RUN)
    commit_night(second, night(table, ONE, rows(A, 0, 2, 1), ds=second.ds), SCHEMA, RUN)
    commit_night(first, two := night(table, TWO, rows(A, 0, 3, 2)), SCHEMA, RUN)
    forget(table, 5)
    log = sorted(path.name for path in Path(table, "_delta_log").glob("*.json"))
    assert log == ["00000000000000000004.json"], "the commits of both nights are gone"

    ownership.check(table, SCHEMA)
    assert "captions" in ownership.names(tables_uri)
    now = tables.open_table(table)
    assert now is not None
    assert [(night.ds, night.rows) for night in tables.nights(now)] == [(first.ds, 3), (second.ds, 2)]
    sql = "SELECT ds, count(*) AS n FROM captions GROUP BY ds ORDER BY ds"
    with query.open_views(tables_uri, ["captions"]) as connection:
        assert connection.execute(sql).fetchall() == [(first.ds, 3), (second.ds, 2)]
    _, (page,) = report.report(tables_uri, ["captions"], second.ds, f"sqlite:///{tmp_path}/mlflow.db", 0)
    assert (page.rows, [(past.ds, past.rows) for past in page.history]) == (2, [(first.ds, 3), (second.ds, 2)])
    assert commit_night(first, two, SCHEMA, RUN) is None, "the same night again"
    theirs, ours = (
        night(table, name, rows(B, 0, count, count - 1), ds=second.ds) for name, count in ((TWO, 1), (THREE, 4))
    )
    meanwhile(monkeypatch, lambda: commit_night(second, theirs, SCHEMA, RUN))
    assert commit_night(second, ours, SCHEMA, RUN) == 6, "after it looked again"
    assert (len(read(table, second.ds)), DeltaTable(table).transaction_version(f"ds={second.ds}")) == (4, 3)
    assert commit.restore(table, 4, second.ds) == 7
    assert len(read(table, second.ds)) == 2
    assert commit_night(first, one, SCHEMA, RUN) == 8
    assert commit.restore(table, 7) == 9
    assert len(read(table)) == 3

    for as_of in (1, datetime.now(UTC) - timedelta(hours=6)):
        for open_ in (tables.open_table, commit.restore):
            with pytest.raises(UsageError, match="is not kept any more: "):
                open_(table, as_of)
    before = tables.open_table(table, datetime.now(UTC) - timedelta(hours=4))
    assert before is not None
    assert before.version() == 4

    monkeypatch.setattr(upkeep, "_now", lambda: datetime.now(UTC) + timedelta(hours=30))
    assert upkeep.tidy(table, 48).removed == []
    monkeypatch.setattr(upkeep, "_now", lambda: datetime.now(UTC) + timedelta(hours=60))
    removed = {file.uri for file in upkeep.tidy(table, 48).removed}
    assert removed == {piece.file.uri for piece in (*one, *theirs, *ours)}
    assert (len(read(table)), len(read(table, second.ds))) == (3, 2)


REASONS = (
    "SELECT split_part(error, ':', 1) AS reason, count(*) + coalesce(sum(lost_rows), 0) AS rows FROM captions_all "
    "WHERE ds = '2026-01-01' AND error IS NOT NULL GROUP BY ALL"
)
"""As docs/querying.md has it, of one night."""


def test_reasons_outlive_the_commit_that_told_them(tmp_path: Path) -> None:
    """They are in the rows; only files that have some are opened, also when the log has forgotten the commit."""
    table = str(tmp_path / "captions")
    partition = Partition(table, "2026-01-01")
    folder = storage.join(partition.folder, ONE)
    stage(folder, rows(A, 0, 4, 3))
    stage(folder, rows(B, 0, 3, 2, "X: y"))
    pieces = [piece for found in list_pieces(folder).values() for piece in found]
    told = contents.each(pieces)
    known = [replace(piece, bad=each.bad) for piece, each in zip(pieces, told, strict=True)]
    reasons = contents.added(told).errors
    assert commit_night(partition, known, SCHEMA, {**RUN, "errors": json.dumps(reasons)}) == 1
    forget(table, 5)
    assert not any("errors" in note for _, note in tables.commit_notes(table, DeltaTable(table).version()))
    good = next(piece for piece in known if not piece.bad)
    storage.delete(good.file.uri, storage.anything)
    found = query.query(REASONS, str(tmp_path), ["captions"]).to_pylist()
    assert {row["reason"]: row["rows"] for row in found} == reasons == {"X": 3}


def test_who_looks_for_a_commit_that_the_log_forgot_finds_none(tmp_path: Path) -> None:
    """A writer whose night is there already asks whether it was its own doing."""
    table = str(tmp_path / "captions")
    pieces = night(table, ONE, rows(A, 0, 2, 1))
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    forget(table, 5)
    assert commit._version_of(table, DeltaTable(table).version(), "2026-01-01", RUN) is None


# ---- a damaged log -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("left", ["half", "nothing", "zeros", "another"])
def test_a_damaged_newest_commit_is_named_and_can_be_moved_out(table: str, left: str) -> None:
    first, second = night(table, ONE, rows(A, 0, 3, 2)), night(table, TWO, rows(A, 0, 1, 0))
    commit_night(Partition(table, "2026-01-01"), first, SCHEMA, RUN)
    commit_night(Partition(table, "2026-01-01"), second, SCHEMA, RUN)
    entry = f"{table}/_delta_log/00000000000000000002.json"
    whole = storage.read_bytes(entry)
    damaged = {"half": whole[: len(whole) // 2], "nothing": b"", "zeros": bytes(300), "another": b"[1]\n"}[left]
    storage.write_bytes(entry, damaged, storage.anything)
    assert refusal(table) == (
        f"{table} cannot be read: {entry}, an entry of its log, is damaged; "
        "move it out of the log and infer its night again, as docs/querying.md tells"
    )
    for work in (tables.open_table, lambda uri: commit.restore(uri, 1), lambda uri: upkeep.tidy(uri, 1)):
        with pytest.raises(UsageError, match=re.escape(entry)):
            work(table)
    storage.delete(entry, storage.anything)
    ownership.check(table, SCHEMA)
    assert len(read(table)) == 3, "the night before"
    assert commit_night(Partition(table, "2026-01-01"), second, SCHEMA, RUN) == 2
    assert len(read(table)) == 1


def test_an_older_damaged_commit_needs_a_backup(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    for name in (ONE, TWO, THREE):
        commit_night(Partition(table, "2026-01-01"), night(table, name, rows(A, 0, 3, 2)), SCHEMA, RUN)
    entry = Path(table, "_delta_log/00000000000000000002.json")
    entry.write_bytes(entry.read_bytes()[:100])
    assert refusal(table).endswith(f"{entry}, an entry of its log, is damaged; bring it back from a backup")


def test_a_log_whose_oldest_entries_are_in_a_checkpoint(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    commit_night(Partition(table, "2026-01-01"), night(table, ONE, rows(A, 0, 3, 2)), SCHEMA, RUN)
    DeltaTable(table).create_checkpoint()
    for entry in Path(table, "_delta_log").glob("*.json"):
        entry.unlink()
    ownership.check(table, SCHEMA)


def test_a_bucket_that_does_not_exist_is_named(s3: str) -> None:
    assert s3
    with pytest.raises(UsageError, match=r"^there is no bucket nobucket for s3://nobucket/x/captions"):
        tables.open_table("s3://nobucket/x/captions")


@pytest.fixture(params=["local", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of tables: a table of two nights, of which the first was written twice."""
    uri = str(tmp_path / "tables") if request.param == "local" else request.getfixturevalue("s3") + "/tables"
    write_night(uri, "2026-01-30", ["a dog", None])
    write_night(uri, "2026-01-30", ["a dog", None, "a cat"])
    write_night(uri, "2026-01-31", ["a ball"])
    return uri


def exported(uri: str, out: str, ds: str = "") -> list[str]:
    table = tables.open_table(f"{uri}/captions")
    assert table is not None
    return [file.removeprefix(f"{out}/") for file in tables.export(table, f"{uri}/captions", ds, out)]


def test_only_live_files_are_copied(lake: str) -> None:
    out = storage.absolute(f"{lake}/../out") if lake.startswith("/") else lake.replace("/tables", "/out")
    files = exported(lake, out)
    live = sorted(tables.night_files(tables.open_table(f"{lake}/captions")))  # type: ignore[arg-type]
    assert [file.split("/")[0] for file in files] == ["ds=2026-01-30", "ds=2026-01-31"]
    for file, path in zip(files, live, strict=True):
        assert storage.read_bytes(f"{out}/{file}") == storage.read_bytes(f"{lake}/captions/{path}")
    assert sorted(file.uri for file in storage.list_all(out)) == [f"{out}/{file}" for file in files]
    assert exported(lake, out, "2026-01-31") == files[1:], "the same again changes nothing"


def test_readers_of_plain_parquet_find_each_row_once(tmp_path: Path) -> None:
    uri, out = str(tmp_path / "tables"), str(tmp_path / "out")
    write_night(uri, "2026-01-30", ["a dog", None])
    write_night(uri, "2026-01-30", ["a dog", None, "a cat"])
    exported(uri, out, "2026-01-30")

    def rows(folder: str) -> list[tuple[str, int]]:
        pattern = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
        return duckdb.sql(f"SELECT ds::VARCHAR, count(*) FROM {pattern} GROUP BY ds").fetchall()

    assert rows(f"{uri}/captions") == [("2026-01-30", 5)], "the superseded file, too"
    assert rows(out) == [("2026-01-30", 3)]


def test_other_files_are_never_replaced_or_mixed_in(tmp_path: Path) -> None:
    uri, out = str(tmp_path / "tables"), str(tmp_path / "out")
    write_night(uri, "2026-01-30", ["a dog", None])
    (file,) = exported(uri, out)
    write_night(uri, "2026-01-30", ["a dog", None, "a cat"])
    with pytest.raises(UsageError, match=rf"^{out}/{file} is no file of {uri}/captions as it is now: "):
        exported(uri, out)
    assert [found.uri for found in storage.list_all(out)] == [f"{out}/{file}"], "nothing was written beside it"
    (fresh,) = exported(uri, f"{out}-2")
    storage.write_bytes(f"{out}-2/{fresh}", b"theirs", storage.anything)
    with pytest.raises(UsageError, match=f"{fresh} exists, and this program did not write it"):
        exported(uri, f"{out}-2")
    assert storage.read_bytes(f"{out}-2/{fresh}") == b"theirs"


def test_a_night_that_is_not_there(tmp_path: Path) -> None:
    write_night(str(tmp_path), "2026-01-30", ["a dog"])
    assert exported(str(tmp_path), f"{tmp_path}/out", "2026-01-29") == []
