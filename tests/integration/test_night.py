"""Nights on a real S3 server: repeated, changed, and with bad input (killed ones: tests/chaos/test_accidents.py)."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from deltalake import DeltaTable

from pipelines import storage
from pipelines.reading import units
from pipelines.reading.shards import list_shards
from pipelines.staging import checks
from tests import tiny

DS = "2026-01-31"
pytestmark = pytest.mark.usefixtures("ray_cluster")


def infer(s3: str, shards: str, tables: str, *more: str) -> list[str]:
    return [
        "infer", "translations", "--input", f"{s3}/{shards}", "--tables", f"{s3}/{tables}", "--ds", DS,
        "--model", f"{s3}/model", *more,
    ]  # fmt: skip


def rows(tables: str, task: str = "translations") -> Counter[tuple]:
    """The table as a multiset of rows, without what differs from run to run."""
    columns = ["ds", "sample_id", "translation", "status", "error", "shard", "index", "last", "fingerprint"]
    table = DeltaTable(f"{tables}/{task}").to_pyarrow_table().select(columns)
    return Counter(tuple(row.values()) for row in table.to_pylist())


def test_a_night_again_and_again(s3: str, tmp_path: Path) -> None:
    """The same once more, with a late shard and without an old one, which has to be allowed, and with another beam."""
    tiny.write_translator(f"{s3}/model")
    tiny.write_sentences(f"{s3}/in", shards=3, rows=20)
    first = tiny.hybrid_here(*infer(s3, "in", "tables"), cwd=tmp_path)
    assert (first.code, first.summary["shards_computed"], first.summary["changed"]) == (0, 3, True), first.stderr
    before = rows(f"{s3}/tables")

    same = tiny.hybrid_here(*infer(s3, "in", "tables"), cwd=tmp_path)
    assert (same.code, same.summary["shards_computed"], same.summary["changed"]) == (0, 0, False)
    assert same.summary["rows"] == 60
    assert DeltaTable(f"{s3}/tables/translations").version() == first.summary["version"]
    assert rows(f"{s3}/tables") == before

    storage.write_bytes(f"{s3}/in/late.txt", b"der Hund\ndie Katze\n", storage.anything)
    storage.delete(f"{s3}/in/part-00000.txt", storage.anything)
    refused = tiny.hybrid_here(*infer(s3, "in", "tables"), cwd=tmp_path)
    assert refused.code == 3
    assert f"1 of its shards are gone, such as {s3}/in/part-00000.txt: nothing was changed" in refused.stderr
    assert rows(f"{s3}/tables") == before
    late = tiny.hybrid_here(*infer(s3, "in", "tables", "--allow-missing"), cwd=tmp_path)
    assert (late.summary["shards_computed"], late.summary["rows"]) == (3, 42), "a late shard costs its unit"
    shards = {row[5].rsplit("/", 1)[-1] for row in rows(f"{s3}/tables")}
    assert shards == {"late.txt", "part-00001.txt", "part-00002.txt"}
    assert len(DeltaTable(f"{s3}/tables/translations").file_uris()) == 1, "three tasks read the unit; it is joined"

    beam = tiny.hybrid_here(*infer(s3, "in", "tables", "--decoding.beam-size", "3"), cwd=tmp_path)
    assert (beam.code, beam.summary["shards_computed"], beam.summary["changed"]) == (0, 3, True)
    assert beam.summary["fingerprint"] != first.summary["fingerprint"]
    after = rows(f"{s3}/tables")
    assert sum(after.values()) == 42
    assert {row[-1] for row in after} == {beam.summary["fingerprint"]}, "no row of the old beam size is left"


def objects(tables: str) -> set[str]:
    """Paths of the staged files, with their times: what is written again has another one."""
    return {f"{file.uri} {file.modified}" for file in storage.list_all(tables) if "/ds=" in file.uri}


def test_small_shards_share_objects_and_a_late_one_redoes_its_unit(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty in some units, beside one that is large."""
    monkeypatch.setattr(units, "UNIT_BYTES", 60_000)
    tiny.write_translator(f"{s3}/model")
    tiny.write_sentences(f"{s3}/in", shards=60, rows=4)
    storage.write_bytes(
        f"{s3}/in/large.jsonl", b'{"text": "der Hund", "note": "' + 60_000 * b"-" + b'"}\n', storage.anything
    )
    argv = [*infer(s3, "in", "tables"), "--resources.min-actors", "1"]
    first = tiny.hybrid_here(*argv, cwd=tmp_path)
    assert first.code == 0, first.stderr
    assert (first.summary["shards"], first.summary["shards_computed"], first.summary["rows"]) == (61, 61, 241)
    before, night = objects(f"{s3}/tables"), rows(f"{s3}/tables")
    table = DeltaTable(f"{s3}/tables/translations")
    assert len(table.file_uris()) == len(units.units(list_shards(f"{s3}/in"))), "each is one object"
    assert sum(table.get_add_actions()["num_records"].to_pylist()) == 241, "although places are left out"

    same = tiny.hybrid_here(*argv, cwd=tmp_path)
    assert (same.code, same.summary["shards_computed"], same.summary["changed"]) == (0, 0, False)
    assert (objects(f"{s3}/tables"), rows(f"{s3}/tables")) == (before, night)

    listed = list_shards(f"{s3}/in")
    known = {unit.key for unit in units.units(listed)}
    assert 5 <= len(known) < 20
    storage.write_bytes(f"{s3}/in/late.txt", b"der Hund\ndie Katze\n", storage.anything)
    touched = [unit for unit in units.units(list_shards(f"{s3}/in")) if unit.key not in known]
    late = tiny.hybrid_here(*argv, cwd=tmp_path)
    assert (late.code, late.summary["changed"], late.summary["rows"]) == (0, True, 243), late.stderr
    assert late.summary["shards_computed"] == sum(len(unit.shards) for unit in touched) < 30
    assert before < objects(f"{s3}/tables"), "the others are used as they are"
    assert sum((night - rows(f"{s3}/tables")).values()) == 0


def test_a_night_that_lost_some_objects_computes_the_rest_of_their_units(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was killed leaves them: some tasks have written, of a unit not the first."""
    monkeypatch.setattr(units, "UNIT_BYTES", 60_000)
    tiny.write_translator(f"{s3}/model")
    tiny.write_sentences(f"{s3}/in", shards=60, rows=4)
    argv = [*infer(s3, "in", "whole"), "--resources.min-actors", "1"]
    whole = tiny.hybrid_here(*argv, cwd=tmp_path)
    assert whole.code == 0, whole.stderr
    folder = f"translations/ds={DS}/{whole.summary['fingerprint'][:12]}"
    draw = random.Random(1)
    kept = [file for file in storage.list_files(f"{s3}/whole/{folder}") if draw.random() < 0.8]
    for file in kept:
        storage.write_bytes(f"{s3}/partial/{folder}/{file.name}", storage.read_bytes(file.uri), storage.anything)
    todo = checks.incomplete(list_shards(f"{s3}/in"), f"{s3}/partial/{folder}")
    assert 0 < len(todo) < 60
    argv = [*infer(s3, "in", "partial"), "--resources.min-actors", "1"]
    partial = tiny.hybrid_here(*argv, cwd=tmp_path)
    assert partial.code == 0, partial.stderr
    assert (partial.summary["shards_computed"], partial.summary["rows"]) == (len(todo), 240)
    assert partial.summary["rows_computed"] == sum(4 - part.shard.first for part in todo)
    assert rows(f"{s3}/partial") == rows(f"{s3}/whole")


def test_one_corrupt_shard_of_twenty_and_every_row_is_accounted_for(s3: str, tmp_path: Path) -> None:
    tiny.write_captioner(f"{s3}/model")
    tiny.write_photos(f"{s3}/in", shards=20, rows=10)
    whole = storage.read_bytes(f"{s3}/in/photos-007.tar")
    storage.write_bytes(f"{s3}/in/photos-007.tar", whole[: len(whole) // 2], storage.anything)
    broken = bytearray(storage.read_bytes(f"{s3}/in/photos-011.tar"))
    broken[512:1024] = bytes(512)  # the first photograph's header
    storage.write_bytes(f"{s3}/in/photos-011.tar", bytes(broken), storage.anything)

    argv = ["captions" if word == "translations" else word for word in infer(s3, "in", "tables")]
    night = tiny.hybrid_here(*argv, cwd=tmp_path)
    assert night.code == 0, night.stderr
    summary = night.summary
    assert summary["errors"] == {"ShardReadError": 1, "ImageDecodeError": 1}
    assert summary["rows"] == summary["ok"] + 2

    table = DeltaTable(f"{s3}/tables/captions").to_pyarrow_table().to_pylist()
    by_shard: dict[str, list[dict]] = {}
    for row in table:
        by_shard.setdefault(row["shard"].rsplit("/", 1)[-1], []).append(row)
    assert len(by_shard) == 20
    for name, members in by_shard.items():
        members.sort(key=lambda row: row["index"])
        assert [row["index"] for row in members] == list(range(len(members))), "exactly one row for each input row"
        assert [row["last"] for row in members] == [False] * (len(members) - 1) + [True]
        if name not in ("photos-007.tar", "photos-011.tar"):
            assert [row["status"] for row in members] == ["ok"] * 10
            assert all(row["caption"] is not None for row in members)
    cut = by_shard["photos-007.tar"]
    assert [row["status"] for row in cut] == ["ok"] * (len(cut) - 1) + ["error"]
    assert cut[-1]["caption"] is None
    assert "unexpected end of data" in cut[-1]["error"]

    strict = tiny.hybrid_here(*argv[:-1], f"{s3}/model", "--max-error-fraction", "0.001", cwd=tmp_path)
    assert strict.code == 3
    assert "2 of " in strict.stderr
    assert "nothing was committed" in strict.stderr
    assert DeltaTable(f"{s3}/tables/captions").version() == summary["version"]


def test_a_night_of_an_object_for_each_shard_is_compacted_and_is_the_same_night(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk and on S3; late shards and tidying go on from there."""
    tiny.write_translator(f"{place}/model")
    tiny.write_sentences(f"{place}/in/ds={DS}", shards=30, rows=4)
    argv = [*infer(place, f"in/ds={DS}", "tables"), "--resources.min-actors", "1"]
    with monkeypatch.context() as before:
        before.setattr(units, "UNIT_BYTES", 0)  # as versions were that staged each shard for itself
        first = tiny.hybrid_here(*argv, cwd=tmp_path)
    assert first.code == 0, first.stderr
    assert len(objects(f"{place}/tables")) == 30
    night = rows(f"{place}/tables")

    monkeypatch.setattr(units, "UNIT_BYTES", 60_000)
    compact = ["tables", "compact", "translations", "--tables", f"{place}/tables"]
    gained = {"ds": DS, "rows": 120, "files": 30, "files_after": 1}
    shown = tiny.hybrid_here(*compact, "--dry-run", cwd=tmp_path)
    assert shown.summary["nights"] == [{**gained, "version": None}], shown.stderr
    done = tiny.hybrid_here(*compact, cwd=tmp_path)
    assert (done.code, done.summary["nights"]) == (0, [{**gained, "version": 2}]), done.stderr
    assert rows(f"{place}/tables") == night
    assert len(objects(f"{place}/tables")) == 31, "earlier versions need the others"

    same = tiny.hybrid_here(*argv, cwd=tmp_path)
    assert (same.code, same.summary["rows_computed"], same.summary["changed"]) == (0, 0, False), same.stderr
    assert DeltaTable(f"{place}/tables/translations").version() == 2
    storage.write_bytes(f"{place}/in/ds={DS}/late.txt", b"der Hund\ndie Katze\n", storage.anything)
    late = tiny.hybrid_here(*argv, cwd=tmp_path)
    assert (late.code, late.summary["changed"], late.summary["rows"]) == (0, True, 122), late.stderr
    assert late.summary["shards_computed"] < 31, "its unit, and no other"
    assert sum((night - rows(f"{place}/tables")).values()) == 0
