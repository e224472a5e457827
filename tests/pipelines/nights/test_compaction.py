"""A night in fewer files: the same rows, found by the same night."""

import os
import random
import re
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
from pipelines.nights.rules import Rules
from pipelines.reading import units
from pipelines.reading.shards import Shard, list_shards
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


def again(night: Night) -> tuple[int, int | None]:
    """The same night once more: how many rows it computes, and which version it makes."""
    done = infer.infer(night, Resources(), Tracker("sqlite:////proc/nowhere/mlflow.db"))
    return done.rows_computed, done.version


def files(partition: Partition) -> list[dict[str, Any]]:
    """What the log says of a night's files."""
    table = tables.open_table(partition.table)
    assert table is not None
    return [action for action in tables.file_actions(table) if action["partition.ds"] == partition.ds]


def largest(partition: Partition) -> int:
    """Bytes of a night's largest file."""
    return max(action["size_bytes"] for action in files(partition))


def test_many_small_files_become_a_pack(old: Night) -> None:
    uri = old.partition.table
    before, paths, keys = everything(uri), night_files(uri, DS), set(list_pieces(old.folder))
    assert len(paths) == SHARDS
    shown = compact(uri, dry_run=True)
    assert [(night.ds, night.files, night.files_after, night.version) for night in shown.nights] == [
        (DS, SHARDS, 1, None)
    ]
    assert night_files(uri, DS) == paths
    (done,) = compact(uri).nights
    assert (done.rows, done.files, done.files_after, done.version) == (3 * SHARDS, SHARDS, 1, 2)
    assert everything(uri) == before
    assert everything(uri, version=1) == before, "the version before it is kept"
    assert [(night.rows, night.bad, night.files) for night in nights(uri)] == [(3 * SHARDS, 0, 1)], "as the log tells"
    assert set(list_pieces(old.folder)) == keys, "they are the units that they were"
    assert again(old) == (0, None)
    assert compact(uri) == compaction.Compacted()
    infer.check(old)


def test_small_files_become_a_pack_where_others_are_large(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of them as a night would pack, however little that is of all its files."""
    monkeypatch.setattr(compaction, "LEAST_GAIN", SHARDS + 1)
    monkeypatch.setattr(joining, "LEAST_FILES", SHARDS + 1)
    assert compact(old.partition.table) == compaction.Compacted()
    monkeypatch.setattr(joining, "LEAST_FILES", SHARDS)
    assert [(done.files, done.files_after) for done in compact(old.partition.table).nights] == [(SHARDS, 1)]
    assert compact(old.partition.table) == compaction.Compacted()


def nights(uri: str) -> list[tables.StoredNight]:
    table = tables.open_table(uri)
    assert table is not None
    return tables.nights(table)


def test_what_is_replaced_is_tidied_when_it_is_old(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = old.partition.table
    before, paths = everything(uri), night_files(uri, DS)
    compact(uri)
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

    before = [night.written for night in nights(uri)]
    compact(uri)
    assert [night.written for night in nights(uri)] == before


def test_an_earlier_state_is_brought_back_and_rewritten_again(old: Night) -> None:
    uri = old.partition.table
    before, paths = everything(uri), night_files(uri, DS)
    compact(uri)
    assert commit.restore(uri, 1, DS) == 3
    assert night_files(uri, DS) == paths
    (done,) = compact(uri).nights
    assert done.version == 4
    assert everything(uri) == everything(uri, version=2) == before


def test_pieces_of_several_units_become_one_file(table: str) -> None:
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
    assert (done.rows, done.files, done.files_after, done.version) == (14, 7, 1, 2)
    assert everything(table) == before
    chosen = [piece for found in list_pieces(folder).values() for piece in tiling(found) or []]
    (file,), _ = joining.files(chosen, joining.write)
    assert night_files(table, "2026-01-01") == {f"ds=2026-01-01/{ONE}/{file.file.name}"}
    assert [piece.name for piece in chosen] == [piece.name for piece in pieces]
    assert contents.total([file]) == contents.total(pieces)
    assert contents.total([file]).errors == Counter(X=3, Z=2)
    assert [night.bad for night in nights(table)] == [5]


def test_large_files_stay_and_small_ones_share_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "PACK_BYTES", 100)
    assert joining.runs({}) == []
    assert joining.runs({"a": 49}) == [["a"]]
    assert joining.runs({"c": 49, "a": 49, "b": 50, "d": 2, "e": 1}) == [["b"], ["a", "c", "d"], ["e"]]
    assert joining.runs({"a": 500, "b": 20, "c": 50}) == [["a"], ["c"], ["b"]]


def test_a_night_that_gains_little_is_left(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files would become two, which is not half as many; four would."""
    folder = storage.join(table, "ds=2026-01-01", ONE)
    for block in (rows(A, 0, 2, 3), rows(A, 2, 4, 3), rows(B, 0, 2, 3)):
        stage(folder, block)
    whole = [*list_pieces(folder)[A.key], *list_pieces(folder)[B.key]]
    monkeypatch.setattr(joining, "PACK_BYTES", 2 * max(piece.file.size for piece in whole) + 2)
    commit_night(Partition(table, "2026-01-01"), whole, SCHEMA, RUN)
    assert compact(table) == compaction.Compacted()
    stage(folder, rows(B, 2, 4, 3))
    commit_night(Partition(table, "2026-01-01"), [*whole, list_pieces(folder)[B.key][1]], SCHEMA, RUN)
    (done,) = compact(table).nights
    assert (done.files, done.files_after) == (4, 2)


def test_a_pack_has_no_more_than_has_room(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """And rows are read and written some at a time."""
    uri = old.partition.table
    before = everything(uri)
    monkeypatch.setattr(joining, "PACK_BYTES", 4 * largest(old.partition))
    monkeypatch.setattr(joining, "ROWS_BYTES", 2000)
    (done,) = compact(uri).nights
    assert SHARDS / 4 <= done.files_after <= SHARDS / 2
    assert everything(uri) == before
    assert again(old) == (0, None)
    for path in night_files(uri, DS):
        with storage.open_input(f"{uri}/{path}") as stream:
            file = pq.ParquetFile(stream)
            assert 1 < file.num_row_groups < file.metadata.num_rows
    monkeypatch.setattr(joining, "PACK_BYTES", 0)
    assert compact(uri).nights == []


def test_packs_become_larger_ones(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = old.partition.table
    before, names = everything(uri), sorted(list_pieces(old.folder))
    with monkeypatch.context() as patched:
        patched.setattr(joining, "PACK_BYTES", 6 * largest(old.partition))
        (done,) = compact(uri).nights
    assert 2 <= done.files_after <= 6
    (done,) = compact(uri).nights
    assert done.files_after == 1
    assert everything(uri) == before
    assert sorted(list_pieces(old.folder)) == names
    assert again(old) == (0, None)


# ---- the same night, when its input is another one ----------------------------------------------------------------
def compute(night: Night, folder: str) -> tuple[Night, int]:
    """Does a night over what is in a folder now, with rows that nobody predicted; how many rows were computed."""
    night = replace(night, shards=list_shards(folder), rules=replace(night.rules, allow_missing=True))
    done = 0
    for part in checks.incomplete(night.shards, night.folder):
        assert part.shard.first == 0
        lines = storage.read_text(part.shard.uri).splitlines()
        block = [
            {
                "sample_id": f"{part.shard.uri}#{n}", "shard": part.shard.uri, "index": n, "last": n == len(lines) - 1,
                "status": "error" if line == "bad" else "ok", "error": "Bad: row" if line == "bad" else None,
                "source": line,
            }
            for n, line in enumerate(lines)
        ]  # fmt: skip
        tiny.stage(night.folder, night.schema, part, pa.Table.from_pylist(block, schema=night.schema))
        done += len(lines)
    infer.check(night)
    return night, done


def told(uri: str) -> list[tuple[str, str, str | None]]:
    """Each row: its shard, what it was made of, and its error."""
    return [(row["sample_id"], row["source"], row["error"]) for row in everything(uri)]


def expected(folder: str) -> list[tuple[str, str, str | None]]:
    return sorted(
        (f"{shard.uri}#{n}", line, "Bad: row" if line == "bad" else None)
        for shard in list_shards(folder)
        for n, line in enumerate(storage.read_text(shard.uri).splitlines())
    )


def test_a_late_shard_costs_its_unit_and_a_new_pack(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 40_000)
    uri, folder = old.partition.table, old.shards[0].uri.rsplit("/", 1)[0]
    compact(uri)
    (pack,) = night_files(uri, DS)
    storage.write_bytes(f"{folder}/late.txt", b"der Hund\nbad\n")
    late, computed = compute(old, folder)
    assert computed == 2, "all others lie there each for itself"
    assert again(late) == (0, 3)
    assert len(night_files(uri, DS)) == 2
    assert pack in night_files(uri, DS), "all its rows are needed, so it stays"
    assert [(night.rows, night.bad) for night in nights(uri)] == [(3 * SHARDS + 2, 1)]
    assert again(late) == (0, None)
    (done,) = compact(uri).nights
    assert (done.files, done.files_after) == (2, 1)
    assert again(late) == (0, None)


def test_a_shard_that_changes_takes_its_rows_out_of_its_pack(old: Night) -> None:
    uri, folder = old.partition.table, old.shards[0].uri.rsplit("/", 1)[0]
    compact(uri)
    (pack,) = night_files(uri, DS)
    before = {row["sample_id"]: row for row in everything(uri)}
    changed = old.shards[7].uri
    storage.write_bytes(changed, b"another sentence\n", storage.anything)
    now, computed = compute(old, folder)
    assert computed == 1
    assert again(now) == (0, 3)
    assert len(night_files(uri, DS)) == 2
    assert pack not in night_files(uri, DS)
    rows_now = {row["sample_id"]: row for row in everything(uri)}
    assert rows_now.pop(f"{changed}#0")["source"] == "another sentence"
    assert rows_now == {id_: row for id_, row in before.items() if row["shard"] != changed}
    assert everything(uri, version=2) == list(before.values()), "the version before it is kept"
    assert again(now) == (0, None)


def test_a_night_that_was_refused_leaves_the_one_before_as_it_is(old: Night) -> None:
    """It has written the rest of the pack already; when its bad shard is as it was before, so is the night."""
    uri, folder = old.partition.table, old.shards[0].uri.rsplit("/", 1)[0]
    compact(uri)
    before, changed = night_files(uri, DS), old.shards[7]
    data, state = storage.read_bytes(changed.uri), Path(changed.uri).stat() if "://" not in changed.uri else None
    storage.write_bytes(changed.uri, b"bad\nbad\nbad\nbad\nbad\n", storage.anything)
    now, _ = compute(old, folder)
    with pytest.raises(RefusedError, match="5 of 74 samples are bad"):
        again(now)
    assert len([file for file in storage.list_files(old.folder) if "pack-of-" in file.name]) == 2
    storage.write_bytes(changed.uri, data, storage.anything)
    if state is not None:
        os.utime(changed.uri, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert again(replace(old, shards=list_shards(folder))) == (0, None)
    assert night_files(uri, DS) == before


def test_a_shard_that_is_gone_is_refused_and_can_be_let_go(old: Night) -> None:
    uri, folder = old.partition.table, old.shards[0].uri.rsplit("/", 1)[0]
    compact(uri)
    gone = old.shards[3].uri
    storage.delete(gone, storage.anything)
    less = replace(old, shards=list_shards(folder))
    with pytest.raises(RefusedError, match=f"1 of its shards are gone, such as {gone}: nothing was changed"):
        infer.check(less)
    less = replace(less, rules=replace(less.rules, allow_missing=True))
    assert again(less) == (0, 3)
    assert {row["shard"] for row in everything(uri)} == {shard.uri for shard in less.shards}
    (file,) = night_files(uri, DS)
    assert f"pack-of-{SHARDS - 1}-" in file
    assert again(less) == (0, None)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_changes_or_goes_each_row_is_there_once(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nights, compactions, tidying and restoring in a random order, over an input that changes in between. After a wait
    tidying takes all files for old."""
    monkeypatch.setattr(units, "UNIT_BYTES", 30_000)
    draw, folder = random.Random(seed), f"{tmp_path}/in/ds={DS}"
    artifact = artifacts.read(tiny.write_translator(str(tmp_path / "model")))
    partition = Partition.of(f"{tmp_path}/tables", "translations", DS)
    night = Night([], partition, Inference.of(artifact), Rules(max_error_fraction=1.0))
    now, names = datetime.now(UTC), [f"{n:02d}" for n in range(20)]
    monkeypatch.setattr(upkeep, "_now", lambda: now)
    for name in names[:12]:
        storage.write_bytes(f"{folder}/{name}.txt", b"ein Hund\neine Katze\n")
    for step in range(25):
        name = draw.choice(names)
        match draw.choice(("write", "write", "delete", *["infer", "compact"] * 2, "tidy", "wait", "restore")):
            case "write":
                lines = [draw.choice(("ein Hund", "bad", f"Nummer {step}")) for _ in range(draw.randint(1, 4))]
                storage.write_bytes(
                    f"{folder}/{name}.txt", "".join(f"{line}\n" for line in lines).encode(), storage.anything
                )
            case "delete" if len(storage.list_files(folder)) > 1:
                storage.delete(f"{folder}/{name}.txt", storage.anything)
            case "infer":
                night, _ = compute(night, folder)
                again(night)
                assert sorted(told(partition.table)) == expected(folder), (seed, step)
                assert again(night) == (0, None), (seed, step)
                assert [found.rows for found in nights(partition.table)] == [len(expected(folder))]
                assert [found.bad for found in nights(partition.table)] == [
                    sum(error is not None for _, _, error in expected(folder))
                ]
            case "compact" if tables.open_table(partition.table) is not None:
                before = everything(partition.table)
                monkeypatch.setattr(joining, "PACK_BYTES", draw.choice((20_000, 60_000, 64 << 20)))
                compact(partition.table)
                assert everything(partition.table) == before, (seed, step)
            case "tidy" if tables.open_table(partition.table) is not None:
                before = everything(partition.table)
                upkeep.tidy(partition.table, 24)
                assert everything(partition.table) == before, (seed, step)
            case "restore" if (table := tables.open_table(partition.table)) is not None:
                with suppress(UsageError):  # its files are not kept
                    commit.restore(partition.table, draw.randint(1, table.version()), draw.choice((DS, "")))
            case "wait":
                now += timedelta(hours=draw.choice((1, 13, 30)))
            case _:
                pass


def test_a_pack_that_waited_is_copied_and_stays_a_pack(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a compaction that was killed before its commit: a night that uses it makes it young first."""
    uri = old.partition.table
    before = everything(uri)
    found = plan(old.partition, files(old.partition))
    ((pack, _),) = joining.write(found.packs)
    monkeypatch.setattr(upkeep, "_now", lambda: datetime.now(UTC) + timedelta(hours=13))
    assert again(old) == (0, 2)
    (path,) = night_files(uri, DS)
    assert path.rsplit("-r", 1)[0] == f"ds={DS}/{old.folder.rsplit('/', 1)[-1]}/{pack.file.name.rsplit('-r', 1)[0]}"
    assert not path.endswith(pack.file.name)
    assert everything(uri) == before
    assert again(old) == (0, None)


def test_for_many_nights_a_table_is_opened_once(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open one of years takes seconds, or many. Another night that comes meanwhile stays."""
    dates = [f"2026-01-{day:02d}" for day in range(1, 5)]
    for ds in dates:
        for row in range(3):
            stage(storage.join(table, f"ds={ds}", ONE), rows(A, row, row + 1, 2))
        commit_night(Partition(table, ds), night(table, ONE, ds=ds), SCHEMA, RUN)
    before = everything(table)
    opened: list[str] = []
    open_once = tables.open_once
    for module in (tables, commit):
        monkeypatch.setattr(module, "open_once", lambda uri, *as_of: opened.append(uri) or open_once(uri, *as_of))
    late = night(table, ONE, rows(A, 0, 3, 2), ds="2026-02-01")
    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: commit_night(Partition(table, "2026-02-01"), late, SCHEMA, RUN))
        done = compact(table)
    assert len(opened) == 2, "and once by who committed meanwhile"
    assert [(each.ds, each.files, each.files_after) for each in done.nights] == [(ds, 3, 1) for ds in dates]
    after = everything(table)
    assert [row for row in after if row["ds"] != "2026-02-01"] == before
    assert len(after) == len(before) + 3


# ---- files of earlier versions ------------------------------------------------------------------------------------
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
    (file,), _ = joining.files(tiling(list_pieces(folder)[A.key]) or [], joining.write)
    assert contents.total([file]).errors == Counter(X=4)
    joined = pq.ParquetFile(pa.BufferReader(storage.read_bytes(file.file.uri)))
    assert set(joined.schema_arrow.names) == set(SCHEMA.names)
    group = joined.metadata.row_group(0)
    assert not any(group.column(number).has_dictionary_page for number in range(group.num_columns))
    assert joined.read(["index"])["index"].to_pylist() == list(range(6)), "in their order"


# ---- other writers ---------------------------------------------------------------------------------------------------
def test_a_night_that_is_replaced_meanwhile_is_left(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the commit looks, or between its look and its commit."""
    uri = old.partition.table
    for number, fingerprint in enumerate((ONE, TWO)):
        opened, found = tables.open_table(uri), plan(old.partition, files(old.partition))
        assert opened is not None
        new = night(uri, fingerprint, rows(A, 0, 2, 1), ds=DS)
        if number:
            meanwhile(monkeypatch, lambda new=new: commit_night(old.partition, new, old.schema, RUN))
        else:
            commit_night(old.partition, new, old.schema, RUN)
        with pytest.raises(
            RefusedError, match=f"ds={DS} was replaced by another writer meanwhile: nothing was changed"
        ):
            rewrite(opened, found)
        assert read(uri, DS) == [f"{A.uri}#0", f"{A.uri}#1"]
        assert commit.restore(uri, 1, DS) is not None


def test_a_night_that_is_committed_after_it_replaces_it_whole(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = old.partition.table
    new = night(uri, ONE, rows(A, 0, 2, 1), ds=DS)
    meanwhile(monkeypatch, lambda: compact(uri))
    assert commit_night(old.partition, new, old.schema, RUN) == 3
    assert read(uri, DS) == [f"{A.uri}#0", f"{A.uri}#1"]
    assert len(everything(uri, version=2)) == 3 * SHARDS, "the compaction was first"


def test_a_night_of_another_date_does_not_matter(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = old.partition.table
    before = everything(uri)
    other = night(uri, ONE, rows(A, 0, 2, 1), ds="2026-02-01")
    meanwhile(monkeypatch, lambda: commit_night(Partition(uri, "2026-02-01"), other, old.schema, RUN))
    (done,) = compact(uri, ds=DS).nights
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
                done += len(compact(table, dates[number % 2]).nights)
        return done

    with ThreadPoolExecutor() as threads:
        made = threads.submit(nights, 1), threads.submit(nights, 2), threads.submit(compactions, 3)
        assert all(work.result() > 0 for work in made)
    for version in range(2, DeltaTable(table).version() + 1):
        found = Counter((row["ds"], row["sample_id"]) for row in everything(table, version))
        assert (len(found), set(found.values())) == (24, {1}), version


def test_one_that_is_killed_changes_nothing_and_is_done_again(old: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = old.partition.table
    before, paths = everything(uri), night_files(uri, DS)
    write, room = joining.write_one, iter([True])

    def killed(joined: joining.Joined) -> Any:
        if next(room, False):
            return write(joined)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(joining, "PACK_BYTES", 12 * largest(old.partition))
        patched.setattr(joining, "write_one", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(uri)
    assert night_files(uri, DS) == paths
    assert everything(uri) == before
    (left,) = [file for file in storage.list_files(old.folder) if file.uri.removeprefix(f"{uri}/") not in paths]
    with monkeypatch.context() as patched:
        patched.setattr(upkeep, "_now", lambda: datetime.now(UTC) + timedelta(hours=25))
        assert [file.uri for file in upkeep.tidy(uri, 24, dry_run=True).removed] == [left.uri]
    version = DeltaTable(uri).version()
    assert again(old) == (0, version + 1), "the night uses what is there"
    assert everything(uri) == before
    (done,) = compact(uri).nights
    assert everything(uri) == before
    assert (done.files_after, done.version) == (1, version + 2)
    assert again(old) == (0, None)


# ---- what is refused ---------------------------------------------------------------------------------------------
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
    storage.delete(pieces[0].file.uri, storage.anything)
    lacking = f"lacks its file ds=2026-01-01/{ONE}/{pieces[0].file.name}: infer the night again"
    with pytest.raises(RefusedError, match=lacking):
        compact(table, ds="2026-01-01")
    assert lacking in compact(table).skipped["2026-01-01"]
    piece = pieces[1]
    foreign = [replace(piece, file=replace(piece.file, uri=f"{table}/ds=2026-01-01/{name}.parquet")) for name in "ab"]
    commit_night(partition, foreign, SCHEMA, RUN)
    with pytest.raises(RefusedError, match=r"has ds=2026-01-01/a\.parquet, which no night of this program has: infer"):
        compact(table, ds="2026-01-01")


def test_one_damaged_night_keeps_no_other_from_being_rewritten(table: str) -> None:
    for day in (1, 2, 3):
        ds = f"2026-01-0{day}"
        stage(storage.join(table, f"ds={ds}", ONE), rows(A, 0, 2, 3))
        pieces = night(table, ONE, rows(A, 2, 4, 3), ds=ds)
        commit_night(Partition(table, ds), pieces, SCHEMA, RUN)
    damaged = storage.join(table, "ds=2026-01-02", ONE, pieces[0].file.name)
    storage.write_bytes(damaged, storage.read_bytes(damaged)[:-9], storage.anything)
    done = compact(table)
    assert [night.ds for night in done.nights] == ["2026-01-01", "2026-01-03"]
    assert done.skipped["2026-01-02"].startswith(f"{damaged} is damaged (")
    with pytest.raises(RuntimeError, match=f"{damaged} is damaged .*: take it away, and infer its night again"):
        compact(table, ds="2026-01-02")


def test_a_damaged_file_that_would_stay_is_said_too(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = storage.join(table, "ds=2026-01-01", ONE)
    stage(folder, rows(A, 0, 2, 3))
    pieces = night(table, ONE, rows(A, 2, 4, 3), rows(B, 0, 300, 299))
    large = max(pieces, key=lambda piece: piece.file.size)
    monkeypatch.setattr(joining, "PACK_BYTES", 2 * large.file.size - 1)
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    monkeypatch.setattr(compaction, "LEAST_GAIN", 1)
    storage.write_bytes(large.file.uri, storage.read_bytes(large.file.uri)[:-9], storage.anything)
    assert compact(table).skipped["2026-01-01"].startswith(f"{large.file.uri} is damaged (")


def test_a_file_whose_rows_are_not_those_of_its_name_is_said(table: str) -> None:
    stage(storage.join(table, "ds=2026-01-01", ONE), rows(A, 0, 2, 3))
    pieces = night(table, ONE, rows(A, 2, 4, 3))
    commit_night(Partition(table, "2026-01-01"), pieces, SCHEMA, RUN)
    storage.write_bytes(
        pieces[0].file.uri, storage.read_bytes(night(f"{table}-b", ONE, rows(A, 0, 1, 0))[0].file.uri), storage.anything
    )
    said = "-00000000-00000002.parquet has 1 rows, and its name says otherwise"
    assert said in compact(table).skipped["2026-01-01"]
    with pytest.raises(RuntimeError, match=re.escape(said)):
        compact(table, ds="2026-01-01")
    assert DeltaTable(table).version() == 1
