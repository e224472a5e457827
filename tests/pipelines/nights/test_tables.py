import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import ownership, tables
from pipelines.nights.commit import Partition, commit_night
from tests.pipelines.nights.made import ONE, RUN, THREE, TWO, night, read, refusal
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows


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


# ---- going back --------------------------------------------------------------------------------------------------


# ---- a damaged log -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("left", ["half", "nothing", "zeros", "another"])
def test_a_damaged_newest_commit_is_named_and_can_be_moved_out(table: str, left: str) -> None:
    first, second = night(table, ONE, rows(A, 0, 3, 2)), night(table, TWO, rows(A, 0, 1, 0))
    commit_night(Partition(table, "2026-01-01"), first, SCHEMA, RUN)
    commit_night(Partition(table, "2026-01-01"), second, SCHEMA, RUN)
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
