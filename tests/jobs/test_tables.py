import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from jobs import query
from jobs.command import cli
from jobs.command.errors import EndedError
from jobs.tables import main
from pipelines import storage
from pipelines.nights.commit import Partition, commit_night
from pipelines.reading.shards import list_shards
from pipelines.staging.checks import RefusedError, verify
from tests import tiny
from tests.pipelines.nights.test_query import SCHEMA, write_night


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """Two nights of captions."""
    uri = str(tmp_path / "tables")
    write_night(uri, "2026-01-30", ["a dog", None, "a cat"])
    write_night(uri, "2026-01-31", ["a ball"])
    return uri


def listed(capfdbinary: pytest.CaptureFixture[bytes], *argv: str) -> list[dict]:
    assert main([*argv, "--format", "json"]) is None
    return [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]


def test_an_unknown_verb_of_tables_is_answered_with_its_likes() -> None:
    with pytest.raises(UsageError, match=r"^unknown verb 'tydy': did you mean tidy\?$"):
        main(["tydy", "--tables", "x"])


def test_nights_are_listed_now_and_as_they_were(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    nights = listed(capfdbinary, "--tables", lake)
    known = [(n["table"], n["version"], n["ds"], n["rows"], n["files"]) for n in nights]
    assert known == [("captions", 2, "2026-01-30", 3, 1), ("captions", 2, "2026-01-31", 1, 1)]
    assert all(night["bytes"] > 1000 for night in nights)
    assert [night["ds"] for night in listed(capfdbinary, "--tables", lake, "--as-of", "1")] == ["2026-01-30"]
    main(["--tables", lake])
    assert "2026-01-31" in capfdbinary.readouterr().out.decode()


def test_tidying_frees_what_nobody_needs(lake: str, capsys: pytest.CaptureFixture[str]) -> None:
    stray = Path(lake, "captions/ds=2026-01-29/0123456789ab/a.tar-0123456789abcdef-00000000-00000001-end.parquet")
    theirs = Path(lake, "captions/ds=2026-01-29/old.parquet")
    stray.parent.mkdir(parents=True)
    for path in (stray, theirs):
        path.write_bytes(b"12345")

    def tidied(files: int, size: int, dry_run: bool = False) -> dict:
        counts = {"files": files, "bytes": size, "files_unknown": 1}
        removed = {"captions": counts}
        return {"tables": lake, "dry_run": dry_run, "compacted": {}, "removed": removed, "skipped": {}}

    command = ["tidy", "--tables", lake, "--retain-hours", "1"]
    assert main(command) == tidied(0, 0), "it is too young"
    for path in (stray, theirs):
        os.utime(path, (1e9, 1e9))
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == tidied(1, 5, dry_run=True)
    assert capsys.readouterr().out == f"{stray}\n"
    assert stray.exists()
    assert main(command) == tidied(1, 5)
    assert not stray.exists()
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == tidied(0, 0, dry_run=True)
    assert capsys.readouterr().out == ""
    assert theirs.exists()


def test_tables_of_others_are_noted(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    storage.write_bytes(f"{lake}/nowcasts/ds=2026-01-31/event.nc", b"CDF")
    DeltaTable.create(f"{lake}/translations", pa.schema([("q", pa.int64())]))
    *nights, nowcasts, translations = listed(capfdbinary, "--tables", lake)
    assert [(night["table"], night["note"]) for night in nights] == [("captions", None)] * 2
    assert (nowcasts["table"], nowcasts["ds"]) == ("nowcasts", None)
    assert nowcasts["note"].startswith(
        f"{lake}/nowcasts holds ds=2026-01-31/event.nc, which this program did not write"
    )
    assert translations["note"].startswith(f"{lake}/translations is partitioned by nothing, not by ds")
    skipped = main(["tidy", "--tables", lake])["skipped"]  # type: ignore[index]
    assert skipped == {row["table"]: row["note"] for row in (nowcasts, translations)}
    entry = Path(lake, "captions/_delta_log/00000000000000000002.json")
    entry.write_bytes(entry.read_bytes()[:50])
    with pytest.raises(UsageError, match=f"{entry}, an entry of its log, is damaged; move it out"):
        main(["--tables", lake])


def test_a_damaged_table_of_ones_own_name_is_noted_and_hinders_no_other(
    lake: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    shutil.copytree(f"{lake}/captions", f"{lake}/products")
    entry = Path(lake, "products/_delta_log/00000000000000000002.json")
    entry.write_bytes(entry.read_bytes()[:50])
    *nights, products = listed(capfdbinary, "--tables", lake)
    assert [(night["table"], night["note"]) for night in nights] == [("captions", None)] * 2
    assert (products["table"], products["ds"]) == ("products", None)
    assert f"{entry}, an entry of its log, is damaged" in products["note"]
    query.main(["SELECT count(*) AS n FROM captions_all", "--tables", lake, "--format", "json"])
    assert json.loads(capfdbinary.readouterr().out) == {"n": 4}
    with pytest.raises(UsageError, match=f"{entry}, an entry of its log, is damaged"):
        query.main(["SELECT count(*) FROM products", "--tables", lake])


def test_a_night_is_brought_back(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_night(lake, "2026-01-30", ["a bird"])
    command = ["restore", "captions", "--tables", lake, "--as-of", "1", "--ds", "2026-01-30"]
    assert main(command) == {"table": "captions", "ds": "2026-01-30", "changed": True, "version": 4}
    assert main(command) == {"table": "captions", "ds": "2026-01-30", "changed": False, "version": None}
    assert [(n["ds"], n["rows"]) for n in listed(capfdbinary, "--tables", lake)] == [
        ("2026-01-30", 3), ("2026-01-31", 1),
    ]  # fmt: skip
    whole = main(["restore", "captions", "--tables", lake, "--as-of", "1"])
    assert whole == {"table": "captions", "ds": None, "changed": True, "version": 5}
    assert [(n["ds"], n["rows"]) for n in listed(capfdbinary, "--tables", lake)] == [("2026-01-30", 3)]


def test_nights_are_put_into_fewer_files(
    lake: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = f"{lake}/captions"
    for ds, shards in (("2026-02-01", 4), ("2026-02-02", 3)):
        folder = f"{table}/ds={ds}/0123456789ab"
        for number in range(shards):
            storage.write_bytes(f"{lake}-in/{ds}/{number}.tar", b"12345")
        found = list_shards(f"{lake}-in/{ds}")
        for shard in found:
            row = {"sample_id": shard.uri, "shard": shard.uri, "index": 0, "last": True, "status": "ok"}
            tiny.stage(folder, SCHEMA, shard, pa.Table.from_pylist([row], schema=SCHEMA))
        commit_night(Partition(table, ds), verify(found, folder), SCHEMA, {"run_id": "run"})
    gone = sorted(Path(table, "ds=2026-02-02", "0123456789ab").iterdir())[0]
    gone.unlink()

    def gained(version: int | None) -> dict:
        return {"ds": "2026-02-01", "rows": 4, "files": 4, "files_after": 1, "version": version}

    command = ["compact", "captions", "--tables", lake]
    shown = main([*command, "--dry-run"])
    why = f"{table} ds=2026-02-02 lacks its file ds=2026-02-02/0123456789ab/{gone.name}: infer the night again"
    assert shown is not None
    assert shown.pop("skipped") == {"2026-02-02": why}
    assert shown == {"table": "captions", "tables": lake, "dry_run": True, "nights": [gained(None)]}
    monkeypatch.chdir(Path(lake).parent)
    here = ["compact", "captions", "--tables", "tables", "--ds", "2026-02-01"]
    assert main(here) == {
        "table": "captions", "tables": "tables", "dry_run": False, "nights": [gained(5)], "skipped": {},
    }  # fmt: skip
    files = [(night["ds"], night["files"], night["rows"]) for night in listed(capfdbinary, "--tables", lake)]
    assert files == [("2026-01-30", 1, 3), ("2026-01-31", 1, 1), ("2026-02-01", 1, 4), ("2026-02-02", 3, 3)]
    sql = "SELECT count(sample_id) AS n FROM captions WHERE ds < '2026-02-02'"
    query.main([sql, "--tables", "tables", "--format", "csv"])
    assert capfdbinary.readouterr().out == b'"n"\n7\n'
    with pytest.raises(RefusedError, match=r"lacks its file .*: infer the night again"):
        main([*command, "--ds", "2026-02-02"])


def test_tidying_puts_nights_of_all_tables_into_fewer_files_if_it_is_asked(lake: str) -> None:
    folder = f"{lake}/captions/ds=2026-02-01/0123456789ab"
    for number in range(4):
        storage.write_bytes(f"{lake}-in/{number}.tar", b"12345")
    shards = list_shards(f"{lake}-in")
    for shard in shards:
        row = {"sample_id": shard.uri, "shard": shard.uri, "index": 0, "last": True, "status": "ok"}
        tiny.stage(folder, SCHEMA, shard, pa.Table.from_pylist([row], schema=SCHEMA))
    commit_night(Partition(f"{lake}/captions", "2026-02-01"), verify(shards, folder), SCHEMA, {"run_id": "run"})
    gained = {"captions": {"nights": 1, "files": 4, "files_after": 1, "nights_skipped": 0}}
    for dry_run, version in ((["--dry-run"], 3), ([], 4)):
        done = main(["tidy", "--compact", "--tables", lake, *dry_run])
        assert done is not None
        assert done["compacted"] == gained
        assert DeltaTable(f"{lake}/captions").version() == version
    done = main(["tidy", "--compact", "--tables", lake])
    assert done is not None
    assert done["compacted"] == {"captions": dict.fromkeys(gained["captions"], 0)}


@pytest.mark.parametrize(
    ("checkpoint", "told", "code"),
    [(True, "births cannot be tidied", cli.USAGE), (False, "failed: StorageError: cannot read", cli.FAILED)],
    ids=["tidied", "read"],
)
def test_a_table_that_cannot_be_tidied_hinders_no_other(lake: str, checkpoint: bool, told: str, code: int) -> None:
    write_night(lake, "2026-01-30", ["a bird"], "births")
    write_night(lake, "2026-01-31", ["a bird"], "births")
    for table in ("births", "captions"):
        stray = Path(lake, table, "ds=2026-01-29/0123456789ab/a.tar-0123456789abcdef-00000000-00000001-end.parquet")
        stray.parent.mkdir(parents=True)
        stray.write_bytes(b"12345")
        os.utime(stray, (1e9, 1e9))
    if checkpoint:
        DeltaTable(f"{lake}/births").create_checkpoint()
    entry = Path(lake, "births/_delta_log/00000000000000000001.json")
    entry.unlink()
    with pytest.raises(EndedError, match=rf"^1 of 2 tables are tidied; .*{told}") as caught:
        main(["tidy", "--tables", lake, "--retain-hours", "1"])
    assert caught.value.code == code
    assert caught.value.summary is not None
    assert caught.value.summary["removed"] == {"captions": {"files": 1, "bytes": 5, "files_unknown": 0}}
    assert list(caught.value.summary["skipped"]) == ["births"]


def test_an_earlier_state_is_asked_by_the_command(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    sql = "SELECT count(*) AS n FROM captions"
    query.main([sql, "--tables", lake, "--as-of", "1", "--format", "csv"])
    assert capfdbinary.readouterr().out == b'"n"\n2\n'
    query.main([sql, "--tables", lake, "--format", "csv"])
    assert capfdbinary.readouterr().out == b'"n"\n3\n'


def test_current_files_are_exported(lake: str, tmp_path: Path) -> None:
    write_night(lake, "2026-01-30", ["a dog", "a cat"])
    out = tmp_path / "out"
    command = ["export", "--table", "captions", "--tables", lake, "--out", str(out)]
    one = main([*command, "--ds", "2026-01-30"])
    assert one == {"tables": lake, "ds": "2026-01-30", "out": str(out), "files": {"captions": 1}}
    (file,) = out.rglob("*.parquet")
    assert (file.parent, pq.read_metadata(file).num_rows) == (out / "captions/ds=2026-01-30", 2)
    assert main(["export", "--tables", lake, "--out", str(out)]) == {**one, "ds": None, "files": {"captions": 2}}


def test_mistakes_are_one_line(lake: str) -> None:
    def refusal(*argv: str) -> str:
        with pytest.raises(UsageError) as caught:
            main(list(argv))
        assert "\n" not in str(caught.value)
        return cli.with_flags(str(caught.value))

    assert refusal("--tables", f"{lake}/none").startswith(f"no tables at {lake}/none: ")
    assert refusal("--tables", lake, "--as-of", "99") == f"{lake}/captions has no version 99: its newest is 2"
    assert refusal("--tables", lake, "--as-of", "soon").startswith("--as-of 'soon' is neither a version nor a time")
    assert refusal("tidy", "--tables", lake, "--retain-hours", "0").startswith("--retain-hours is 0: ")
    assert refusal("tidy", "--tables", f"{lake}/none").startswith("no tables at ")
    assert refusal("restore", "--tables", lake).startswith("hybrid tables restore needs a table first: captions, ")
    assert "--as-of" in refusal("restore", "captions", "--tables", lake)
    gone = refusal("restore", "captions", "--tables", lake, "--as-of", "1", "--ds", "2026-01-31")
    assert gone == f"{lake}/captions had no rows of 2026-01-31 in version 1: `hybrid tables --as-of` lists nights"
    unknown = refusal("restore", "mine", "--as-of", "1")
    assert unknown.startswith("unknown table 'mine': use captions, ")
    assert unknown.endswith(", or tell by --tables where it is")
    export = ["export", "--tables", lake, "--out"]
    assert refusal(*export, lake).startswith(f"--out {lake}/captions lies in the table {lake}/captions: ")
    assert refusal(*export, f"{lake}/../out", "--table", "mine") == "unknown table 'mine': use captions"
    assert refusal(*export, f"{lake}/../out", "--ds", "2026-02-09").startswith("no rows of 2026-02-09: ")
    assert not Path(lake, "../out").exists() or not [*Path(lake, "../out").iterdir()]
    compact = ["compact", "captions", "--tables", lake]
    assert refusal(*compact, "--ds", "yesterday").startswith("--ds 'yesterday' is not a date: write YYYY-MM-DD")
    assert refusal(*compact, "--ds", "2026-02-09").startswith(f"{lake}/captions has no rows of 2026-02-09: ")
    assert refusal("compact", "--tables", lake).startswith("hybrid tables compact needs a table first: captions, ")
