"""A night in fewer files: the same rows, found by the same night."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.cluster.resources import Resources
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.models.tracking import Tracker
from pipelines.nights import commit, compaction, infer, tables, upkeep
from pipelines.nights.commit import Partition, commit_night
from pipelines.nights.compaction import compact, plan, rewrite
from pipelines.nights.infer import Night
from pipelines.reading import units
from pipelines.reading.shards import NoShardsError, Shard, list_shards
from pipelines.reading.units import Unit
from pipelines.staging import checks, contents, joining
from pipelines.staging.checks import RefusedError, verify
from pipelines.staging.pieces import Piece, list_pieces, tiling
from tests import tiny
from tests.pipelines.nights.made import ONE, RUN, TWO, commit_as_before, meanwhile, night, read
from tests.pipelines.staging.test_pieces import SCHEMA, A, B, rows
from tests.pipelines.staging.test_sink import stage

DS = "2026-01-31"
SHARDS = 24


def everything(uri: str, version: int | None = None) -> list[dict]:
    """All rows of a table with all their columns, in one order."""
    found = DeltaTable(uri, version=version).to_pyarrow_table().to_pylist()
    return sorted(found, key=lambda row: (row["ds"], row["shard"], row["index"]))


def night_files(uri: str, ds: str) -> set[str]:
    return Partition(uri, ds).files()


@pytest.fixture
def old(place: str, tmp_path: Path) -> Night:
    """A night of which each small shard lies for itself, as versions before units staged it."""
    tiny.write_sentences(f"{place}/in/ds={DS}", SHARDS, 3)
    model = tiny.write_translator(str(tmp_path / "model"))
    tiny.write_night(f"{place}/tables", DS, f"{place}/in/ds={DS}", model)
    artifact = artifacts.read(model)
    partition = Partition.of(f"{place}/tables", "translations", DS)
    return Night(list_shards(f"{place}/in/ds={DS}"), partition, Inference.of(artifact))


def given(night: Night) -> str:
    """Its input, as nights are asked for."""
    return night.shards[0].uri.replace(DS, "{ds}").rsplit("/", 1)[0] + "/*.txt"


def again(night: Night) -> tuple[int, int | None]:
    """The same night once more: how many rows it computes, and which version it makes."""
    done = infer.infer(night, Resources(), Tracker("sqlite:////proc/nowhere/mlflow.db"))
    return done.rows_computed, done.version


def opened(uri: str) -> DeltaTable:
    table = tables.open_table(uri)
    assert table is not None
    return table


def test_shards_that_lie_each_for_itself_become_their_units(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 40_000)
    uri = old.partition.table
    before, paths = everything(uri), night_files(uri, DS)
    assert len(paths) == SHARDS
    known = [unit.key for unit in units.units(old.shards)]
    assert 2 <= len(known) <= SHARDS / 2
    shown = compact(uri, given(old), dry_run=True)
    assert [(night.ds, night.files, night.files_after, night.version) for night in shown.nights] == [
        (DS, SHARDS, len(known), None)
    ]
    assert night_files(uri, DS) == paths
    (done,) = compact(uri, given(old)).nights
    assert (done.rows, done.files, done.files_after, done.version) == (3 * SHARDS, SHARDS, len(known), 2)
    assert everything(uri) == before
    assert everything(uri, version=1) == before, "the version before it is kept"
    assert [night.rows for night in tables.nights(opened(uri))] == [3 * SHARDS], "as the log tells"
    assert set(list_pieces(old.folder)) >= set(known)
    assert again(old) == (0, None)
    assert compact(uri, given(old)) == compaction.Compacted()
    infer.check(old)


def test_what_is_replaced_is_tidied_when_it_is_old(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = old.partition.table
    before, paths = everything(uri), night_files(uri, DS)
    compact(uri, given(old))
    assert upkeep.tidy(uri, 1).removed == []
    monkeypatch.setattr(upkeep, "_now", lambda: datetime.now(UTC) + timedelta(hours=49))
    assert upkeep.tidy(uri, 72).removed == []
    removed = {file.uri.removeprefix(f"{uri}/") for file in upkeep.tidy(uri, 48).removed}
    assert removed == paths
    assert everything(uri) == before
    assert again(old) == (0, None)
    with pytest.raises(UsageError, match=f"{SHARDS} of its files are not kept any more"):
        commit.restore(uri, 1, DS)


def test_a_night_is_as_old_as_before(old: Night) -> None:
    uri = old.partition.table

    def written() -> dict[str, datetime]:
        table = tables.open_table(uri)
        assert table is not None
        return {night.ds: night.written for night in tables.nights(table)}

    before = written()
    compact(uri, given(old))
    assert written() == before


def test_an_earlier_state_is_brought_back_and_rewritten_again(old: Night) -> None:
    uri = old.partition.table
    before, paths = everything(uri), night_files(uri, DS)
    compact(uri, given(old))
    assert commit.restore(uri, 1, DS) == 3
    assert night_files(uri, DS) == paths
    (done,) = compact(uri, given(old)).nights
    assert done.version == 4
    assert everything(uri) == everything(uri, version=2) == before
    assert not night_files(uri, DS) & tables.night_files(DeltaTable(uri, version=2), DS), "nothing is written over"


def test_pieces_of_a_unit_become_one_without_its_input(table: str) -> None:
    """A large shard, staged by several tasks, and small ones together."""
    other = Shard("s3://lake/in/c.tar", 10, "1")
    a, b = Unit.of([A, B]).parts()
    folder = storage.join(table, "ds=2026-01-01", ONE)
    for block in (
        rows(other, 0, 2, 6), rows(other, 2, 5, 6, "X: y"), rows(other, 5, 7, 6),
        rows(a, 0, 2, 3), rows(a, 2, 4, 3), rows(b, 0, 1, 2), rows(b, 1, 3, 2, "Z: y"),
    ):  # fmt: skip
        stage(folder, block)
    pieces = [piece for found in list_pieces(folder).values() for piece in tiling(found) or []]
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    before = everything(table)
    (done,) = compact(table).nights
    assert (done.rows, done.files, done.files_after, done.version) == (14, 7, 2, 2)
    assert everything(table) == before
    chosen = [piece for found in list_pieces(folder).values() for piece in tiling(found) or []]
    assert {f"ds=2026-01-01/{ONE}/{piece.file.name}" for piece in chosen} == night_files(table, "2026-01-01")
    assert {piece.rows for piece in chosen} == {7}
    assert contents.total(chosen) == contents.total(pieces)
    assert contents.total(chosen).errors == Counter(X=3, Z=2)


def test_a_night_that_gains_little_is_left(table: str) -> None:
    """Three files would become two, which is not half as many; four would."""
    folder = storage.join(table, "ds=2026-01-01", ONE)
    for block in (rows(A, 0, 2, 3), rows(A, 2, 4, 3), rows(B, 0, 2, 3)):
        stage(folder, block)
    whole = [*list_pieces(folder)[A.key], *list_pieces(folder)[B.key]]
    commit_night(Partition(table, "2026-01-01"), whole, SCHEMA, RUN)
    assert compact(table) == compaction.Compacted()
    stage(folder, rows(B, 2, 4, 3))
    commit_night(Partition(table, "2026-01-01"), [*whole, list_pieces(folder)[B.key][1]], SCHEMA, RUN)
    (done,) = compact(table).nights
    assert (done.files, done.files_after) == (4, 2)


def test_a_piece_has_no_more_than_has_room(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """And rows are read and written some at a time."""
    uri = old.partition.table
    before = everything(uri)
    sizes = [piece.file.size for piece in verify(old.shards, old.folder)]
    monkeypatch.setattr(joining, "PIECE_BYTES", 4 * max(sizes))
    monkeypatch.setattr(joining, "ROWS_BYTES", 2000)
    (done,) = compact(uri, given(old)).nights
    assert SHARDS / 4 <= done.files_after <= SHARDS / 2
    assert everything(uri) == before
    assert again(old) == (0, None)
    for piece in verify(old.shards, old.folder):
        with storage.open_input(piece.file.uri) as stream:
            file = pq.ParquetFile(stream)
            assert 1 < file.num_row_groups < file.metadata.num_rows
    monkeypatch.setattr(joining, "PIECE_BYTES", 0)
    assert compact(uri, given(old)).nights == []


def test_files_of_earlier_versions_are_joined_with_newer_ones(table: str) -> None:
    """They lack columns, have dictionaries, and do not tell how many of their rows are bad."""
    folder = storage.join(table, "ds=2026-01-01", ONE)
    stage(folder, rows(A, 0, 2, 5))
    stage(folder, rows(A, 2, 3, 5, "X: y"))
    commit_as_before(table, list_pieces(folder)[A.key])
    stage(folder, rows(A, 3, 6, 5, "X: y"))
    pieces = tiling(list_pieces(folder)[A.key])
    assert pieces is not None
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    before = everything(table)
    (done,) = compact(table).nights
    assert (done.files, done.files_after) == (3, 1)
    assert everything(table) == before
    (piece,) = tiling(list_pieces(folder)[A.key]) or []
    assert contents.total([piece]).errors == Counter(X=4)
    joined = pq.ParquetFile(pa.BufferReader(storage.read_bytes(piece.file.uri)))
    assert set(joined.schema_arrow.names) == set(SCHEMA.names)
    group = joined.metadata.row_group(0)
    assert not any(group.column(number).has_dictionary_page for number in range(group.num_columns))
    assert joined.read(["index"])["index"].to_pylist() == list(range(6)), "in their order"


# ---- other writers ---------------------------------------------------------------------------------------------------
def test_a_night_that_is_replaced_meanwhile_is_left(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the commit looks, or between its look and its commit."""
    uri = old.partition.table
    for number, fingerprint in enumerate((ONE, TWO)):
        found = plan(opened(uri), old.partition, given(old).replace("{ds}", DS))
        new = night(uri, fingerprint, rows(A, 0, 2, 1), ds=DS)
        if number:
            meanwhile(monkeypatch, lambda new=new: commit_night(old.partition, new, old.schema, RUN))
        else:
            commit_night(old.partition, new, old.schema, RUN)
        with pytest.raises(
            RefusedError, match=f"ds={DS} was replaced by another writer meanwhile: nothing was changed"
        ):
            rewrite(found)
        assert read(uri, DS) == [f"{A.uri}#0", f"{A.uri}#1"]
        assert commit.restore(uri, 1, DS) is not None


def test_a_night_that_is_committed_after_it_replaces_it_whole(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = old.partition.table
    new = night(uri, ONE, rows(A, 0, 2, 1), ds=DS)
    meanwhile(monkeypatch, lambda: compact(uri, given(old)))
    assert commit_night(old.partition, new, old.schema, RUN) == 3
    assert read(uri, DS) == [f"{A.uri}#0", f"{A.uri}#1"]
    assert len(everything(uri, version=2)) == 3 * SHARDS, "the compaction was first"


def test_a_night_of_another_date_does_not_matter(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = old.partition.table
    before = everything(uri)
    other = night(uri, ONE, rows(A, 0, 2, 1), ds="2026-02-01")
    meanwhile(monkeypatch, lambda: commit_night(Partition(uri, "2026-02-01"), other, old.schema, RUN))
    (done,) = compact(uri, given(old), ds=DS).nights
    assert done.files_after == 1
    assert len(read(uri, "2026-02-01")) == 2
    assert [row for row in everything(uri) if row["ds"] == DS] == before


def test_nights_and_compactions_at_once_leave_each_row_once(tmp_path: Path) -> None:
    """In every version, of two dates whose nights are done over and over while both are compacted."""
    table, dates = str(tmp_path / "captions"), ("2026-01-01", "2026-01-02")
    staged: dict[tuple[str, str], list[Piece]] = {}
    for ds in dates:
        for number in range(4):
            storage.write_bytes(f"{tmp_path}/in/{ds}/{number}.tar", b"12345")
        shards = list_shards(f"{tmp_path}/in/{ds}")
        for name in (ONE, TWO):
            folder = storage.join(table, f"ds={ds}", name)
            stage(folder, *(rows(shard, 0, 3, 2) for shard in shards))
            staged[ds, name] = verify(shards, folder)
        commit_night(Partition(table, ds), staged[ds, ONE], SCHEMA, RUN)

    def nights(seed: int) -> int:
        draw, done = random.Random(seed), 0
        for _ in range(15):
            ds = draw.choice(dates)
            with suppress(CommitFailedError):
                pieces = staged[ds, draw.choice((ONE, TWO))]
                done += commit_night(Partition(table, ds), pieces, SCHEMA, {"run_id": str(seed)}) is not None
        return done

    def compactions(seed: int) -> int:
        done = 0
        for number in range(15):
            with suppress(CommitFailedError, RefusedError):
                done += len(compact(table, f"{tmp_path}/in/{{ds}}", dates[number % 2]).nights)
        return done

    with ThreadPoolExecutor() as threads:
        made = threads.submit(nights, 1), threads.submit(nights, 2), threads.submit(compactions, 3)
        assert all(work.result() > 0 for work in made)
    for version in range(2, DeltaTable(table).version() + 1):
        found = Counter((row["ds"], row["sample_id"]) for row in everything(table, version))
        assert (len(found), set(found.values())) == (24, {1}), version


def test_one_that_is_killed_changes_nothing_and_is_done_again(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 40_000)
    uri = old.partition.table
    before, paths = everything(uri), night_files(uri, DS)
    write, room = joining._write, iter([True])

    def killed(joined: joining.Joined) -> Any:
        if next(room, False):
            return write(joined)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(joining, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(uri, given(old))
    assert night_files(uri, DS) == paths
    assert everything(uri) == before
    (left,) = [file for file in storage.list_files(old.folder) if file.uri.removeprefix(f"{uri}/") not in paths]
    with monkeypatch.context() as patched:
        patched.setattr(upkeep, "_now", lambda: datetime.now(UTC) + timedelta(hours=25))
        assert [file.uri for file in upkeep.tidy(uri, 24, dry_run=True).removed] == [left.uri]
    version = DeltaTable(uri).version()
    assert again(old) == (0, version + 1), "the night uses what is there"
    assert everything(uri) == before
    (done,) = compact(uri, given(old)).nights
    assert everything(uri) == before
    assert done.version == version + 2
    assert again(old) == (0, None)


# ---- what is refused ---------------------------------------------------------------------------------------------
def test_another_input_is_refused(old: Night) -> None:
    uri, version = old.partition.table, DeltaTable(old.partition.table).version()
    changed = old.shards[0].uri
    storage.write_bytes(changed, b"another sentence\n")
    said = (
        f"{old.partition} is not what {given(old).replace('{ds}', DS)} would become now: a shard came, went or changed"
    )
    with pytest.raises(RefusedError, match=said.replace("*", r"\*")):
        compact(uri, given(old), ds=DS)
    assert list(compact(uri, given(old)).skipped) == [DS]
    with pytest.raises(NoShardsError):
        compact(uri, given(old).replace("/in/", "/none/"), ds=DS)
    assert "no shards found" in compact(uri, given(old).replace("/in/", "/none/")).skipped[DS]
    assert compact(uri, ds=DS) == compaction.Compacted()
    assert DeltaTable(uri).version() == version


def test_late_shards_beside_old_ones_stay_with_their_own(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of which an earlier version staged only a part are left as they are: all others are rewritten."""
    monkeypatch.setattr(units, "UNIT_BYTES", 40_000)
    folder = old.shards[0].uri.rsplit("/", 1)[0]

    def halves(names: tuple[str, str]) -> tuple[int, int]:
        """Old shards in the unit that late ones of these names would share, and in others."""
        late = [Shard(f"{folder}/{name}", 9, "") for name in names]
        sizes = [len(unit.shards) - 2 for unit in units.units([*old.shards, *late]) if {*late} <= {*unit.shards}]
        return (sizes[0], SHARDS - sizes[0]) if sizes else (0, 0)

    names = next(pair for pair in ((f"late-{n}.txt", f"later-{n}.txt") for n in range(1000)) if min(halves(pair)) > 1)
    for name in names:
        storage.write_bytes(f"{folder}/{name}", b"der Hund\n")
    late = replace(old, shards=list_shards(folder))
    for part in checks.incomplete(late.shards, late.folder):
        row = {"shard": part.shard.uri, "index": 0, "last": True, "status": "ok"}
        tiny.stage(late.folder, late.schema, part, pa.Table.from_pylist([row], schema=late.schema))
    uri = late.partition.table
    assert again(late) == (0, 2)
    before = everything(uri)
    found = plan(opened(uri), late.partition, folder)
    assert len(found.kept) >= halves(names)[0]
    assert sum(len(each.sources) for each in found.joined) == SHARDS + 2 - len(found.kept) >= 2
    assert rewrite(found) == 3
    assert everything(uri) == before
    assert again(late) == (0, None)


def test_a_night_that_is_not_whole_stays_as_it_is(table: str) -> None:
    """No night is: another program took a file out."""
    folder = storage.join(table, "ds=2026-01-01", ONE)
    for first in (0, 1, 3):
        stage(folder, rows(A, first, first + 1, 3))
    commit_night(Partition(table, "2026-01-01"), list_pieces(folder)[A.key], SCHEMA, RUN)
    assert compact(table) == compaction.Compacted()
    stage(folder, rows(A, 2, 3, 3))
    assert compact(table) == compaction.Compacted(), "it lies there, and is not the table's"


def test_tables_and_files_of_others_are_refused(table: str) -> None:
    with pytest.raises(UsageError, match="there is no table at"):
        compact(table)
    stage(storage.join(table, "ds=2026-01-01", ONE), rows(A, 0, 2, 3))
    commit_night(Partition(table, "2026-01-01"), night(table, ONE, rows(A, 2, 4, 3)), SCHEMA, RUN)
    with pytest.raises(UsageError, match=r"has no rows of 2026-02-02: `hybrid tables` lists its nights"):
        compact(table, ds="2026-02-02")
    DeltaTable(table).optimize.compact()
    name = next(iter(night_files(table, "2026-01-01")))
    assert "part-" in name
    assert compact(table) == compaction.Compacted(), "one file"
    DeltaTable.create(f"{table}-others", pa.schema([("q", pa.int64())]))
    with pytest.raises(UsageError, match="is partitioned by nothing, not by ds"):
        compact(f"{table}-others")


def test_files_that_no_night_named_or_that_are_gone_are_refused(table: str) -> None:
    partition = Partition(table, "2026-01-01")
    stage(storage.join(table, "ds=2026-01-01", ONE), rows(A, 0, 2, 3))
    pieces = night(table, ONE, rows(A, 2, 4, 3))
    commit_night(partition, pieces, SCHEMA, RUN)
    storage.delete(pieces[0].file.uri)
    lacking = f"lacks its file ds=2026-01-01/{ONE}/{pieces[0].file.name}: infer the night again"
    with pytest.raises(RefusedError, match=lacking):
        compact(table, ds="2026-01-01")
    assert lacking in compact(table).skipped["2026-01-01"]
    piece = pieces[1]
    foreign = [replace(piece, file=replace(piece.file, uri=f"{table}/ds=2026-01-01/{name}.parquet")) for name in "ab"]
    commit_night(partition, foreign, SCHEMA, RUN)
    with pytest.raises(RefusedError, match=r"has ds=2026-01-01/a\.parquet, which no night of this program has: infer"):
        compact(table, ds="2026-01-01")


def test_a_file_whose_rows_are_not_those_of_its_name_is_said(table: str) -> None:
    stage(storage.join(table, "ds=2026-01-01", ONE), rows(A, 0, 2, 3))
    pieces = night(table, ONE, rows(A, 2, 4, 3))
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    storage.write_bytes(pieces[0].file.uri, storage.read_bytes(night(f"{table}-b", ONE, rows(A, 0, 1, 0))[0].file.uri))
    with pytest.raises(RuntimeError, match=r"-00000000-00000002\.parquet has 1 rows, and its name says otherwise"):
        compact(table)
    assert DeltaTable(table).version() == 1
