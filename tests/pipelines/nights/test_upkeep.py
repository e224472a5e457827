import logging
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import commit, upkeep
from pipelines.nights.commit import Partition, commit_night
from pipelines.staging.pieces import list_pieces, tiling
from tests.pipelines.nights.made import ONE, RUN, THREE, TWO, night, read
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows


class Clock:
    """Tells upkeep a later time than it is."""

    hours = 25.0

    def __call__(self) -> datetime:
        return datetime.now(UTC) + timedelta(hours=self.hours)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Later than whatever may wait for its commit, unless a test sets it."""
    clock = Clock()
    monkeypatch.setattr(upkeep, "_now", clock)
    return clock


@pytest.fixture
def table(place: str) -> str:
    return storage.join(place, "captions")


def replaced(table: str) -> str:
    """A night that was written twice; returns the path of the first file, which nobody needs any more."""
    (first,) = night(table, ONE, rows(A, 0, 2, 1))
    commit_night(Partition(table, "2026-01-01"), [first], SCHEMA, RUN)
    commit_night(Partition(table, "2026-01-01"), night(table, TWO, rows(A, 0, 3, 2)), SCHEMA, RUN)
    return storage.absolute(first.file.uri)


def paths(files: list) -> list[str]:
    return sorted(file.uri for file in files)


def grow_old(table: str, hours: float) -> None:
    """As if all files of a local table had been written so long ago."""
    then = time.time() - 3600 * hours
    for path in Path(table).rglob("*.parquet*"):
        os.utime(path, (then, then))


def test_only_what_no_kept_version_needs_is_removed(table: str, clock: Clock) -> None:
    assert upkeep.tidy(table, 0).removed == []
    first = replaced(table)
    staged = night(table, THREE, rows(B, 0, 1, 0))[0].file
    time.sleep(1.1)  # stores tell times in seconds
    clock.hours = 23
    assert upkeep.tidy(table, 1).removed == [], "it may wait for its commit"
    clock.hours = 25
    assert upkeep.tidy(table, 48).removed == []
    shown = upkeep.tidy(table, 0, dry_run=True)
    assert paths(shown.removed) == [first, storage.absolute(staged.uri)]
    assert storage.exists(first), "shown, not removed"
    version = DeltaTable(table).version()
    done = upkeep.tidy(table, 0)
    assert (done.removed, done.bytes) == (shown.removed, sum(file.size for file in shown.removed))
    assert not storage.exists(first)
    assert not storage.exists(staged.uri)
    assert read(table) == [f"{A.uri}#{i}" for i in range(3)]
    assert DeltaTable(table).version() == version
    assert upkeep.tidy(table, 0).removed == []


def test_a_night_is_tidied_without_a_look_at_the_others(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = replaced(table)
    (other,) = night(table, THREE, rows(B, 0, 1, 0), ds="2026-01-02")
    storage.write_bytes(f"{table}/ds=2026-01-02/theirs.txt", b"theirs")
    time.sleep(1.1)
    listed: list[str] = []
    list_all = storage.list_all
    monkeypatch.setattr(storage, "list_all", lambda uri: listed.append(uri) or list_all(uri))
    tidied = upkeep.tidy(table, 0, ds="2026-01-01")
    assert listed == [f"{table}/ds=2026-01-01", f"{table}/_delta_log"]
    assert (paths(tidied.removed), tidied.unknown) == ([first], [])
    assert storage.exists(other.file.uri)
    everything = upkeep.tidy(table, 0)
    assert paths(everything.removed) == [storage.absolute(other.file.uri)]
    assert len(everything.unknown) == 1


def test_a_damaged_entry_of_the_log_is_said_and_nothing_is_removed(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    first = replaced(table)
    DeltaTable(table).create_checkpoint()
    entry = Path(table, "_delta_log/00000000000000000002.json")
    whole = entry.read_text()
    for damaged in ("{", whole[:-20], "[]"):
        entry.write_text(damaged)
        with pytest.raises(
            UsageError, match=r"cannot be tidied: .*0002\.json, an entry of its log, is damaged; bring it"
        ):
            upkeep.tidy(table, 0)
    entry.write_text("")
    with pytest.raises(UsageError, match=r"cannot be read: .*0002\.json, an entry of its log, is damaged; move it out"):
        upkeep.tidy(table, 0)
    entry.unlink()
    with pytest.raises(UsageError, match=r"0002\.json, an entry of its log, is missing; bring it back from a backup"):
        upkeep.tidy(table, 0)
    entry.write_text("".join(line + "\n" for line in whole.splitlines() if "commitInfo" not in line))
    assert upkeep.tidy(table, 0).removed == [], "when it was written is not known"
    assert Path(first).exists()


def test_a_clock_that_is_wrong_ends_no_version(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    replaced(table)
    for ds in ("2026-02-01", "2026-02-02"):
        commit_night(Partition(table, ds), night(table, ONE, rows(A, 0, 1, 0), ds=ds), SCHEMA, RUN)
    grow_old(table, 1000)
    backdate(table, 4, 900)
    os.utime(Path(table, "_delta_log/00000000000000000004.json"))  # the store's clock is right
    assert upkeep.tidy(table, 400).removed == [], "versions before the second commit need it"


def test_nights_done_again_in_a_row_read_no_more_of_the_log_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = str(tmp_path / "captions")
    dates = [f"2026-01-{day:02d}" for day in range(1, 9)]
    for ds in dates:
        commit_night(Partition(table, ds), night(table, ONE, rows(A, 0, 2, 1), ds=ds), SCHEMA, RUN)
    grow_old(table, 1000)
    read: list[str] = []
    read_text = storage.read_text
    monkeypatch.setattr(storage, "read_text", lambda uri: read.append(uri) or read_text(uri))
    for ds in dates:
        commit_night(Partition(table, ds), night(table, TWO, rows(A, 0, 3, 2), ds=ds), SCHEMA, RUN)
        read.clear()
        assert upkeep.tidy(table, 48, ds=ds).removed == []
        assert len(read) == 1, "the newest commit explains all that was found"


def test_what_this_program_did_not_write_is_left_and_said(table: str, caplog: pytest.LogCaptureFixture) -> None:
    first = replaced(table)
    strange = [
        "a.pdf",
        "ds=2026-01-01/part-00000.txt",
        f"ds=2026-01-01/{ONE}/photos.tar",
        f"ds=2026-01-01/{ONE}/part-0.parquet",
        "ds=2026-01-02/_SUCCESS",
    ]
    for path in strange:
        storage.write_bytes(f"{table}/{path}", b"theirs")
    time.sleep(1.1)
    if not table.startswith("s3://"):
        grow_old(table, 1000)
    with caplog.at_level(logging.WARNING):
        tidied = upkeep.tidy(table, 0)
    assert paths(tidied.removed) == [first]
    assert paths(tidied.unknown) == sorted(f"{storage.absolute(table)}/{path}" for path in strange)
    assert [storage.read_bytes(f"{table}/{path}") for path in strange] == [b"theirs"] * len(strange)
    (said,) = [record.getMessage() for record in caplog.records if record.name == upkeep.__name__]
    assert said == f"{table}: 5 files are none of this program's and left: {storage.absolute(table)}/a.pdf …"


def test_a_version_within_the_hours_keeps_its_files_however_old_they_are(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    first = replaced(table)
    grow_old(table, 1000)
    assert upkeep.tidy(table, 48).removed == [], "the version before can be read for two days from its end on"
    assert paths(upkeep.tidy(table, 0).removed) == [first]


def backdate(table: str, version: int, hours: float) -> None:
    """As if a commit had been made so long ago."""
    path = Path(table, f"_delta_log/{version:020d}.json")
    text = path.read_text()
    now = str(int(time.time() * 1000))[:6]
    for stamp in {word for word in pa.compute.split_pattern_regex(text, r"\D+").as_py() if word.startswith(now)}:
        text = text.replace(stamp, str(int(stamp) - int(3_600_000 * hours)))
    path.write_text(text)
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))


def test_the_log_is_asked_where_a_checkpoint_has_forgotten(tmp_path: Path) -> None:
    """Checkpoints forget after a week which files were removed; the log's entries are kept for longer."""
    table = str(tmp_path / "captions")
    first = replaced(table)
    grow_old(table, 1000)
    backdate(table, 2, 200)
    DeltaTable(table).create_checkpoint()
    assert upkeep.tidy(table, 400).removed == [], "a version of 200 hours ago needs it"
    assert paths(upkeep.tidy(table, 190).removed) == [first]


def test_a_piece_that_is_staged_again_is_young(tmp_path: Path, clock: Clock) -> None:
    clock.hours = 0
    table = str(tmp_path / "captions")
    first = replaced(table)
    backdate(table, 2, 200)
    grow_old(table, 1000)
    os.utime(first)  # another job has just written it, and will commit it
    assert upkeep.tidy(table, 168).removed == []


def test_what_a_cut_put_left_is_removed(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    first = Path(replaced(table))
    left = first.with_name(f".{first.name}.0a1b2c3d")
    left.write_bytes(b"PAR1")
    grow_old(table, 200)
    assert paths(upkeep.tidy(table, 168).removed) == [str(left)]


def test_tables_of_others_are_not_tidied(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    DeltaTable.create(table, pa.schema([("q", pa.int64())]), name="sales")
    (piece,) = night(table, ONE, rows(A, 0, 2, 1))
    grow_old(table, 1000)
    with pytest.raises(UsageError, match="is the table 'sales'"):
        upkeep.tidy(table, 1)
    assert Path(piece.file.uri).exists()


# ---- two nights and a clock --------------------------------------------------------------------------------------
def test_what_waited_for_long_is_committed_while_another_night_tidies(
    table: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One night has staged its pieces and looks at them a day later; another has listed them as old before that, and
    removes them before the first one commits."""
    replaced(table)  # the other night's table
    staged = night(table, THREE, rows(B, 0, 2, 1), ds="2026-01-02")
    time.sleep(1.1)
    clock.hours = 200
    deletes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_listed", lambda file: deletes.append(file.uri))
        upkeep.tidy(table, 0)
    assert staged[0].file.uri in deletes, "to the other night it is old"

    renewed = upkeep.renew(Partition(table, "2026-01-02"), staged)
    for uri in deletes:
        storage.delete(uri, storage.anything)
    clock.hours = 0
    upkeep.tidy(table, 0)  # and once more, with a fresh look
    assert not storage.exists(staged[0].file.uri)
    commit_night(Partition(table, "2026-01-02"), renewed, SCHEMA, RUN)
    assert read(table, "2026-01-02") == [f"{B.uri}#{i}" for i in range(2)]
    again = list_pieces(renewed[0].file.uri.rsplit("/", 1)[0])[B.key]
    assert tiling(again) == renewed
    assert commit_night(Partition(table, "2026-01-02"), renewed, SCHEMA, RUN) is None


def test_a_night_that_is_brought_back_while_it_is_tidied_keeps_its_files(
    table: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tidying reads the log and removes thousands of files, for minutes, of which nobody needed any when it looked."""
    replaced(table)
    time.sleep(1.1)
    clock.hours = 200
    needed_before = upkeep._needed_before

    def meanwhile(*args: Any) -> Any:
        found = needed_before(*args)
        assert commit.restore(table, 1, "2026-01-01") is not None
        return found

    monkeypatch.setattr(upkeep, "_needed_before", meanwhile)
    assert upkeep.tidy(table, 1).removed == []
    assert read(table, "2026-01-01") == [f"{A.uri}#{i}" for i in range(2)]


def test_what_is_young_or_in_use_is_not_copied(table: str, clock: Clock) -> None:
    pieces = night(table, ONE, rows(A, 0, 2, 1))
    clock.hours = 11
    assert upkeep.renew(Partition(table, "2026-01-01"), pieces) == pieces, "young"
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    clock.hours = 200
    assert upkeep.renew(Partition(table, "2026-01-01"), pieces) == pieces, "in use"
    (other,) = upkeep.renew(Partition(table, "2026-01-02"), pieces)
    assert other.file.uri != pieces[0].file.uri
    assert (other.rows, other.end) == (2, True)
    assert storage.read_bytes(other.file.uri) == storage.read_bytes(pieces[0].file.uri)


def test_what_was_tidied_before_its_commit_is_said(table: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = night(table, ONE, rows(A, 0, 2, 1))
    clock.hours = 200
    monkeypatch.setattr(upkeep, "_old", lambda folders, hours: {pieces[0].file.uri})
    storage.delete(pieces[0].file.uri, storage.anything)
    with pytest.raises(RuntimeError, match="start the job again"):
        upkeep.renew(Partition(table, "2026-01-01"), pieces)
