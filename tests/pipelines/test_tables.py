import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage, tables
from pipelines.pieces import Piece, list_pieces, shard_key, tiling
from pipelines.tables import commit_night
from tests.pipelines.test_pieces import SCHEMA, A, B, rows, stage

RUN = {"run_id": "r"}
ONE, TWO, THREE = "111111111111", "222222222222", "333333333333"
"""Fingerprints."""


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
            monkeypatch.setattr(tables, "night_files", looked)
            assert commit_night(table, "2026-01-01", theirs, SCHEMA, RUN) == 1
        return files

    monkeypatch.setattr(tables, "night_files", look)
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
