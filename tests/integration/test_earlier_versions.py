"""What earlier versions left on a store, written by their own code (`tests/fixtures/write_earlier.py` tells how): it is
read, gone on from, or refused in one line.

| | at 703e080 | at 907389d |
|---|---|---|
| a piece's footer tells how many rows are bad | no | yes |
| frames of clips are chosen as they are now | no | yes |
| small shards share a piece | no | no |
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.nights import query, tables, upkeep
from pipelines.nights.commit import Partition
from pipelines.staging import contents
from pipelines.staging.pieces import list_pieces
from tests import tiny
from tests.chaos import nights
from tests.fixtures.write_earlier import LARGE_ROWS, ROOT, ROWS, SMALL

pytestmark = pytest.mark.usefixtures("ray_cluster")
FIXTURES = tiny.ROOT / "tests/fixtures"
TABLES, TABLE = f"{ROOT}/tables", f"{ROOT}/tables/translations"
WHOLE, HALF = "2026-01-01", "2026-01-02"
"""A committed night, of four shards and one bad row, and one of which a part is staged."""
PER_RUN = {"run_id", "created_at"}


@pytest.fixture(params=["703e080", "907389d"])
def commit(request: pytest.FixtureRequest, s3_server: object) -> str:
    """The commit whose files lie on the store now."""
    fs, root = fsspec.core.url_to_fs(ROOT, use_listings_cache=False)
    if fs.exists(root):
        fs.rm(root, recursive=True)
    with tarfile.open(FIXTURES / f"earlier-{request.param}.tar.gz") as archive:
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None
            fs.pipe_file(f"{root}/{member.name}", stream.read())
    return str(request.param)


def infer(cwd: Path, ds: str, *more: str, where: str = TABLES, task: str = "translations") -> tiny.Ran:
    given, model = ("events", "rain") if task == "nowcasts" else ("in", "model")
    return tiny.hybrid_here(
        "infer", task, "--input", f"{ROOT}/{given}/ds={ds}", "--tables", where, "--ds", ds,
        "--model", f"{ROOT}/{model}", "--mlflow", f"sqlite:///{cwd}/mlflow.db", "--max-error-fraction", "0.5", *more,
        cwd=cwd,
    )  # fmt: skip


def rows(ds: str = WHOLE, where: str = TABLES) -> list[dict[str, Any]]:
    sql = f"SELECT * FROM translations_all WHERE ds = '{ds}' ORDER BY shard, index"
    found = query.query(sql, where, ["translations"]).to_pylist()
    return [{name: value for name, value in row.items() if name not in PER_RUN} for row in found]


def files(ds: str = WHOLE) -> set[str]:
    return Partition(TABLE, ds).files()


def listed(cwd: Path) -> list[dict[str, Any]]:
    """What `hybrid tables` says of translations."""
    ran = tiny.hybrid_here("tables", "--tables", TABLES, "--format", "json", cwd=cwd)
    assert ran.code == 0, ran.stderr
    return [row for line in ran.stdout.splitlines() if (row := json.loads(line))["table"] == "translations"]


def refusal(ran: tiny.Ran, code: int) -> str:
    """The one line that says why."""
    assert ran.code == code, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr.strip().splitlines()[-1]


def test_a_table_is_read(commit: str, tmp_path: Path) -> None:
    asked = tiny.hybrid_here(
        "query", "SELECT status, count(*) AS n FROM translations_all GROUP BY status ORDER BY status",
        "--tables", TABLES, "--format", "json", cwd=tmp_path,
    )  # fmt: skip
    assert [json.loads(line) for line in asked.stdout.splitlines()] == [
        {"status": "error", "n": 1}, {"status": "ok", "n": 4 * ROWS},
    ]  # fmt: skip
    (night,) = listed(tmp_path)
    assert (night["ds"], night["rows"], night["bad"], night["files"]) == (WHOLE, 4 * ROWS + 1, None, 5)
    good = [row for row in rows() if row["status"] == "ok"]
    texts = [t for n in range(4) for t in storage.read_text(f"{ROOT}/in/ds={WHOLE}/part-{n:05d}.txt").splitlines()]
    assert [row["source"] for row in good] == texts
    page = tiny.hybrid_here(
        "report", "--tables", TABLES, "--ds", WHOLE, "--mlflow", f"sqlite:///{tmp_path}/mlflow.db", cwd=tmp_path
    )
    assert page.code == 0, page.stderr
    assert good[0]["translation"] in storage.read_text(page.summary["out"])


def test_bad_rows_are_counted_by_footers_or_where_these_do_not_tell_by_rows(commit: str) -> None:
    (folder,) = {f"{TABLE}/{path.rpartition('/')[0]}" for path in files()}
    pieces = [piece for own in list_pieces(folder).values() for piece in own]
    told = [pq.read_schema(fsspec.open(piece.file.uri).open()).metadata for piece in pieces]
    assert {contents.NOTE in footer for footer in told} == {commit == "907389d"}
    (error,) = (row["error"] for row in rows() if row["status"] == "error")
    assert contents.total(pieces).errors == Counter([contents.kind_of(error)])


def test_the_same_night_again_is_no_work(commit: str, tmp_path: Path) -> None:
    before = files()
    night = infer(tmp_path, WHOLE).summary
    assert (night["changed"], night["shards_computed"], night["rows"]) == (False, 0, 4 * ROWS + 1)
    assert (sum(night["errors"].values()), night["ok"]) == (1, 4 * ROWS)
    assert files() == before


def test_a_half_staged_night_is_gone_on_with(commit: str, tmp_path: Path) -> None:
    """Whole shards and the first rows of a large one are used as they are; of small ones the first rows alone are not,
    as they share a unit now."""
    (folder,) = {file.uri.rpartition("/")[0] for file in storage.list_files(f"{TABLE}/ds={HALF}")}
    staged = {file.uri: file.modified for file in storage.list_all(folder)}
    assert len(staged) == 5
    night = infer(tmp_path, HALF).summary
    assert (night["changed"], night["rows"], night["rows_lost"]) == (True, 4 * ROWS + LARGE_ROWS + 1, 0)
    assert night["rows_computed"] == 2 * ROWS + LARGE_ROWS - 2
    used = {f"{TABLE}/{path}" for path in files(HALF)} & set(staged)
    names = sorted(uri.rpartition("/")[2].split(".")[0] for uri in used)
    assert names == ["bad", "large", "part-00000", "part-00001"]
    assert staged.items() <= {file.uri: file.modified for file in storage.list_all(folder)}.items(), "none is rewritten"
    anew = infer(tmp_path, HALF, where=f"{ROOT}/anew").summary
    assert anew["rows_computed"] == anew["rows"] == night["rows"]
    assert nights.difference(rows(HALF, f"{ROOT}/anew"), rows(HALF)) == ""
    assert [night["bad"] for night in listed(tmp_path)] == [None, 1]


def test_a_table_is_compacted(commit: str, tmp_path: Path) -> None:
    """Its files become a pack, by which the same night is still no work."""
    before = rows()
    compact = ("tables", "compact", "translations", "--tables", TABLES)
    (night,) = tiny.hybrid_here(*compact, cwd=tmp_path).summary["nights"]
    assert (night["ds"], night["files"], night["files_after"]) == (WHOLE, 5, 1)
    assert rows() == before
    assert [night["bad"] for night in listed(tmp_path)] == [1]
    again = infer(tmp_path, WHOLE).summary
    assert (again["changed"], again["shards_computed"]) == (False, 0)


def test_a_table_is_tidied(commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the present version needs stays; what was replaced or staged goes, and cannot be brought back then."""
    before, kept = rows(), files()
    of_nights = {file.uri.removeprefix(f"{TABLE}/") for file in storage.list_all(TABLE)} - kept
    unneeded = {path for path in of_nights if not path.startswith(f"{tables.LOG}/")}
    assert len(unneeded) == 10
    tidy = ("tables", "tidy", "--tables", TABLES)
    assert tiny.hybrid_here(*tidy, cwd=tmp_path).summary["removed"]["translations"]["files"] == 0
    monkeypatch.setattr(upkeep, "_now", lambda: datetime.now(UTC) + timedelta(hours=200))
    removed = tiny.hybrid_here(*tidy, cwd=tmp_path).summary["removed"]["translations"]
    assert (removed["files"], removed["files_unknown"]) == (10, 0)
    assert not unneeded & {file.uri.removeprefix(f"{TABLE}/") for file in storage.list_all(TABLE)}
    assert rows() == before
    restored = tiny.hybrid_here("tables", "restore", "translations", "--tables", TABLES, "--as-of", "1", cwd=tmp_path)
    assert "cannot be as it was in version 1: 5 of its files are not kept any more, such as" in refusal(restored, 2)


def test_an_earlier_state_is_brought_back(commit: str, tmp_path: Path) -> None:
    last = rows()
    restore = ("tables", "restore", "translations", "--tables", TABLES, "--ds", WHOLE, "--as-of")
    for version, fingerprint in (("1", None), ("2", last[0]["fingerprint"])):
        assert tiny.hybrid_here(*restore, version, cwd=tmp_path).summary["changed"]
        (found,) = {row["fingerprint"] for row in rows()}
        assert (found == last[0]["fingerprint"]) is (fingerprint is not None)
    assert rows() == last


def test_a_night_that_would_lose_shards_is_refused(commit: str, tmp_path: Path) -> None:
    before = files()
    storage.delete(f"{ROOT}/in/ds={WHOLE}/part-00003.txt", storage.anything)
    said = refusal(infer(tmp_path, WHOLE), 3)
    assert f"1 of its shards are gone, such as {ROOT}/in/ds={WHOLE}/part-00003.txt: nothing was changed" in said
    assert files() == before


def test_a_night_of_other_samples_is_computed_anew(commit: str, tmp_path: Path) -> None:
    """Frames of clips were chosen otherwise at first: a nowcaster's rows of then are not those of now."""
    there = Partition(f"{TABLES}/nowcasts", WHOLE).files()
    night = infer(tmp_path, WHOLE, task="nowcasts").summary
    assert night["rows"] == 3
    assert (night["changed"], night["rows_computed"]) == ((True, 3) if commit == "703e080" else (False, 0))
    assert (Partition(f"{TABLES}/nowcasts", WHOLE).files() == there) is (commit == "907389d")


def test_a_training_whose_samples_are_half_prepared_goes_on(commit: str, tmp_path: Path) -> None:
    """With the samples that are there; with other options it is refused."""
    argv = [
        "train", "translator-demo", "--data", f"{ROOT}/pairs", "--storage", f"{ROOT}/lake", "--name", "half",
        *(word for name, value in SMALL.items() for word in (f"--model.{name.replace('_', '-')}", str(value))),
        "--train.batch-size", "4", "--train.metric", "loss", "--train.validate-samples", "0", "--pictures", "0",
        "--mlflow", f"sqlite:///{tmp_path}/mlflow.db",
    ]  # fmt: skip
    there = {file.uri: file.modified for file in storage.list_all(f"{ROOT}/lake/features")}
    assert sorted(uri.rpartition("/")[2].split("-")[0] for uri in there if uri.endswith("parquet")) == ["more.jsonl"]
    other = tiny.hybrid_here(*argv, "--train.epochs", "2", cwd=tmp_path)
    assert "run 'half' was started with train.epochs=1, not 2: use another --name" in refusal(other, 2)
    ran = tiny.hybrid_here(*argv, "--train.epochs", "1", cwd=tmp_path)
    assert ran.code == 0, ran.stderr
    assert ran.summary["steps"] == 2 * 12 // 4, "of both shards"
    after = {file.uri: file.modified for file in storage.list_all(f"{ROOT}/lake/features")}
    pieces = {uri for uri in there if uri.endswith("parquet")}
    assert {uri: after[uri] for uri in pieces} == {uri: there[uri] for uri in pieces}
    assert {uri.rpartition("/")[0] for uri in after if uri.endswith("parquet")} == {
        uri.rpartition("/")[0] for uri in pieces
    }, "in one folder"
    assert len([uri for uri in after if uri.endswith("parquet")]) == 3
