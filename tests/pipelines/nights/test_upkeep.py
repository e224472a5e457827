import logging
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import upkeep
from pipelines.nights.commit import commit_night
from tests.pipelines.nights.made import ONE, RUN, THREE, TWO, night, read
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows


@pytest.fixture
def table(place: str) -> str:
    return storage.join(place, "captions")


def replaced(table: str) -> str:
    """A night that was written twice; returns the path of the first file, which nobody needs any more."""
    (first,) = night(table, ONE, rows(A, 0, 2, 1))
    commit_night(table, "2026-01-01", [first], SCHEMA, RUN)
    commit_night(table, "2026-01-01", night(table, TWO, rows(A, 0, 3, 2)), SCHEMA, RUN)
    return storage.absolute(first.file.uri)


def paths(files: list) -> list[str]:
    return sorted(file.uri for file in files)


def grow_old(table: str, hours: float) -> None:
    """As if all files of a local table had been written so long ago."""
    then = time.time() - 3600 * hours
    for path in Path(table).rglob("*.parquet*"):
        os.utime(path, (then, then))


def test_only_what_no_kept_version_needs_is_removed(table: str) -> None:
    assert upkeep.tidy(table, 0).removed == []
    first = replaced(table)
    staged = night(table, THREE, rows(B, 0, 1, 0))[0].file
    time.sleep(1.1)  # stores tell times in seconds
    assert upkeep.tidy(table, 24).removed == []
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
    assert said == f"{table}: 5 files are none of this program's and left, such as {storage.absolute(table)}/a.pdf"


def test_a_version_within_the_hours_keeps_its_files_however_old_they_are(tmp_path: Path) -> None:
    table = str(tmp_path / "captions")
    first = replaced(table)
    grow_old(table, 1000)
    assert upkeep.tidy(table, 24).removed == [], "the version before can be read for a day from now on"
    assert paths(upkeep.tidy(table, 0).removed) == [first]


def backdate(table: str, version: int, hours: float) -> None:
    """As if a commit had been made so long ago."""
    path = Path(table, f"_delta_log/{version:020d}.json")
    text = path.read_text()
    now = str(int(time.time() * 1000))[:6]
    for stamp in {word for word in pa.compute.split_pattern_regex(text, r"\D+").as_py() if word.startswith(now)}:
        text = text.replace(stamp, str(int(stamp) - int(3_600_000 * hours)))
    path.write_text(text)


def test_the_log_is_asked_where_a_checkpoint_has_forgotten(tmp_path: Path) -> None:
    """Checkpoints forget after a week which files were removed; the log's entries are kept for longer."""
    table = str(tmp_path / "captions")
    first = replaced(table)
    grow_old(table, 1000)
    backdate(table, 2, 200)
    DeltaTable(table).create_checkpoint()
    assert upkeep.tidy(table, 400).removed == [], "a version of 200 hours ago needs it"
    assert paths(upkeep.tidy(table, 190).removed) == [first]


def test_a_piece_that_is_staged_again_is_young(tmp_path: Path) -> None:
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
