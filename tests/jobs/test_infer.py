import json
import re
from pathlib import Path

import mlflow
import pytest
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.command.options import TASKS
from jobs.infer import main
from pipelines import storage
from pipelines.cluster import connection
from pipelines.nights import report, tables
from pipelines.reading import objects
from pipelines.reading.sandbox import jail
from pipelines.staging.checks import RefusedError
from tests import tiny


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator and sentences to translate."""
    folder = tmp_path_factory.mktemp("lake")
    tiny.write_translator(str(folder / "model"))
    tiny.write_sentences(str(folder / "in"), shards=2, rows=10)
    return folder


def argv(lake: Path, **changes: str | None) -> list[str]:
    """A complete command, with some options changed or (None) left out."""
    options = {"input": f"{lake}/in", "tables": f"{lake}/tables", "ds": "2026-01-31", "model": f"{lake}/model",
               "mlflow": f"sqlite:///{lake}/mlflow.db"}  # fmt: skip
    given = {**options, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]


def refusal(arguments: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    return cli.with_flags(str(caught.value))


@pytest.mark.usefixtures("ray_cluster")
def test_a_night_and_its_mlflow_run(lake: Path) -> None:
    storage.write_bytes(f"{lake}/in/bad.jsonl", b"{broken\n")
    storage.write_bytes(f"{lake}/in/README.md", b"# Photographs\n")
    summary = main(["translations", *argv(lake), "--decoding.max-length", "5"])
    assert (summary["task"], summary["rows"], summary["ok"], summary["ds"]) == ("translations", 21, 20, "2026-01-31")
    assert (summary["changed"], summary["shards_computed"], summary["version"]) == (True, 3, 1)
    assert (summary["skipped"], summary["skipped_names"]) == (1, [f"{lake}/in/README.md"])
    ((kind, count),) = summary["errors"].items()
    assert count == 1
    rows = DeltaTable(f"{lake}/tables/translations").to_pyarrow_table()
    assert set(rows["run_id"].to_pylist()) == {summary["mlflow_run_id"]}
    assert max(rows["target_tokens"].drop_null().to_pylist()) == 5, "the option on the command line counts"

    run = mlflow.MlflowClient(f"sqlite:///{lake}/mlflow.db").get_run(summary["mlflow_run_id"])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "translations 2026-01-31")
    assert (run.data.metrics["rows"], run.data.metrics["ok"], run.data.metrics[f"errors/{kind}"]) == (21, 20, 1)
    assert run.data.metrics["skipped"] == 1
    assert run.data.params["decoding.max_length"] == "5"
    assert run.data.params["fingerprint"] == summary["fingerprint"]
    held = jail.in_force("auto")
    (note,) = [told for _, told in tables.commit_notes(f"{lake}/tables/translations", 1) if told.get("ds")]
    assert (summary["jail"], note["jail"]) == (held, held)
    page, _ = report.report(f"{lake}/tables", ["translations"], "2026-01-31", f"sqlite:///{lake}/mlflow.db", 0)
    assert re.search(rf"<dt>decoding jail</dt><dd( class=.bad.)?>{re.escape(held)}</dd>", page)
    told = "1 object skipped, neither shards nor photographs, clips or arrays"
    assert f"{told}: <code>{lake}/in/README.md</code>" in page
    (lake / "in/bad.jsonl").unlink()
    (lake / "in/README.md").unlink()


@pytest.mark.usefixtures("ray_cluster")
def test_a_dry_run_says_what_would_be_and_writes_nothing(lake: Path, tmp_path: Path) -> None:
    wanted = ["translations", *argv(lake, tables=str(tmp_path / "tables"), mlflow=f"sqlite:///{tmp_path}/m.db")]
    seen = main([*wanted, "--dry-run"])
    assert (seen["dry_run"], seen["shards"], seen["shards_computed"], seen["rows_there"]) == (True, 2, 2, 0)
    assert (seen["processes"], seen["seconds"]) == (1, None)
    assert list(tmp_path.iterdir()) == []
    foreseen, run_id = seen["files_at_least"], main(wanted)["mlflow_run_id"]
    assert len(DeltaTable(tmp_path / "tables/translations").file_uris()) == foreseen
    seen = main([*wanted, "--dry-run"])
    assert (seen["shards_computed"], seen["rows_there"], seen["processes"]) == (0, 20, None)
    assert seen["files_there"] == seen["files_at_least"] == foreseen
    seen = main([*wanted, "--dry-run", "--decoding.max-length", "7"])
    assert (seen["shards_computed"], seen["pace_of_run"]) == (2, run_id)
    assert 0 < seen["seconds"] < 600
    assert refusal([*wanted, "--dry-run", "--ds", "31.01.2026"]).startswith("--ds ")
    (lake / "in/part-00000.txt").rename(tmp_path / "away")
    with pytest.raises(RefusedError, match="1 of its shards are gone"):
        main([*wanted, "--dry-run"])
    (tmp_path / "away").rename(lake / "in/part-00000.txt")


@pytest.mark.usefixtures("ray_cluster")
def test_a_night_that_is_there_needs_no_cluster(lake: Path, tmp_path: Path) -> None:
    wanted = ["translations", *argv(lake, tables=str(tmp_path / "tables"))]
    first = main(wanted)
    nowhere = {"RAY_ADDRESS": "127.0.0.1:1"}
    again = tiny.hybrid("infer", *wanted, cwd=tmp_path, env=nowhere)
    assert again.code == 0, again.stderr
    assert (again.summary["rows"], again.summary["changed"], again.summary["shards_computed"]) == (20, False, 0)
    assert DeltaTable(f"{tmp_path}/tables/translations").version() == first["version"]


def test_mistakes_are_one_line_and_start_nothing(lake: Path, tmp_path: Path) -> None:
    def night(**changes: str | None) -> str:
        return refusal(["translations", *argv(lake, tables=str(tmp_path / "tables"), **changes)])

    assert night(ds="31.01.2026") == "--ds '31.01.2026' is not a date: write YYYY-MM-DD, such as 2026-01-31"
    assert night(input=f"{lake}/none").startswith(f"no shards found at {lake}/none: ")
    assert night(model=f"{lake}/none").startswith(f"no model at {lake}/none: there is no config.json")
    assert night(model=None) == refusal(["translations", *argv(lake, model=None)])
    assert "--model" in night(model=None)
    assert "--ds" in night(ds=None)
    assert "--colour" in night(colour="red")
    assert "--decoding.beam-size" in night(**{"decoding.beam_size": "wide"})
    assert night(allow_prefix="s3://x") == "--allow-prefix goes with --uri-column: it bounds what a manifest may name"
    assert night(uri_column="photo").startswith(f"{lake}/in/part-00000.txt is no manifest (")
    kept = night(uri_column="photo", keep="photo")
    assert kept == "--keep names 'photo', as --uri-column does: each row's address is in the table's column 'object'"
    assert night(window_seconds="10") == "--window-seconds cuts clips, and this model reads none: leave it out"
    assert night(max_error_fraction="1.5") == "--max-error-fraction is 1.5: it must be from 0 to 1"
    assert not (tmp_path / "tables").exists() or not any((tmp_path / "tables").iterdir())
    wrong = refusal(["captions", *argv(lake)])
    assert wrong == f"{lake}/model is a translator, but a captioner is needed"
    assert refusal(["translations", *argv(lake, tables="/proc/nowhere")]).startswith("cannot write /proc/nowhere/")


def test_what_is_written_is_apart_from_what_is_read(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One word off in --tables: nothing is listed, made or removed, and no cluster is started."""
    monkeypatch.setattr(connection, "connect", None)
    tiny.write_sentences(str(tmp_path / "translations/ds=2026-01-31"), 2, 3)
    before = storage.list_all(str(tmp_path))
    for place in ("translations/ds=2026-01-31", "translations", "translations/ds=*/*", "t*", "./translations/../"):
        said = refusal(["translations", *argv(lake, tables=str(tmp_path), input=f"{tmp_path}/{place}")])
        assert said.startswith(f"--input {tmp_path}/{place} ")
        assert f" {tmp_path}/translations, which this command writes: give another --tables" in said
    said = refusal(["translations", *argv(lake, tables=str(tmp_path))])
    assert said.startswith(f"{tmp_path}/translations holds ds=2026-01-31/part-00000.txt, which this program did not")
    assert storage.list_all(str(tmp_path)) == before


def test_a_night_does_not_lose_shards_silently(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "connect", None)
    tiny.write_sentences(str(tmp_path / "in"), 3, 3)
    tiny.write_night(f"{tmp_path}/tables", "2026-01-31", str(tmp_path / "in"), f"{lake}/model")
    for name in ("part-00000.txt", "part-00001.txt"):
        (tmp_path / "in" / name).unlink()
    with pytest.raises(
        RefusedError, match=r"2 of its shards are gone, such as .*/part-00000\.txt, .*; bring them back"
    ):
        main(["translations", *argv(lake, tables=f"{tmp_path}/tables", input=str(tmp_path / "in"))])
    assert DeltaTable(f"{tmp_path}/tables/translations").version() == 1


def test_every_hybrid_has_its_task() -> None:
    assert TASKS == {
        "captions": "captioner", "nowcasts": "nowcaster", "actions": "recogniser", "translations": "translator",
    }  # fmt: skip


@pytest.mark.usefixtures("ray_cluster")
def test_photographs_as_they_lie_and_as_a_manifest_names_them(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(objects, "GROUP_OBJECTS", 4)
    tiny.write_captioner(str(tmp_path / "model"))
    for number in range(10):
        storage.write_bytes(f"{s3}/in/{number}.jpg", tiny.jpeg(number))
    tiny.write_photos(f"{s3}/in/packed", 1, 3)

    def night(name: str, *more: str, source: str = "in") -> dict:
        options = {"input": f"{s3}/{source}", "tables": f"{s3}/{name}", "ds": "2026-01-31",
                   "model": str(tmp_path / "model"), "mlflow": f"sqlite:///{tmp_path}/mlflow.db"}  # fmt: skip
        summary = main(["captions", *[part for key, value in options.items() for part in (f"--{key}", value)], *more])
        assert summary is not None
        return summary

    first = night("tables")
    assert (first["rows"], first["ok"]) == (13, 13)
    storage.write_bytes(f"{s3}/in/late.jpg", tiny.jpeg(99))
    late = night("tables")
    assert late["rows"] == 14
    assert 1 <= late["shards_computed"] <= 2 < late["shards"]
    rows = {row["sample_id"]: row for row in DeltaTable(f"{s3}/tables/captions").to_pyarrow_table().to_pylist()}
    assert rows["7.jpg"]["object"] == f"{s3}/in/7.jpg"
    assert [row["object"] for row in rows.values()].count(None) == 3

    lines = [{"id": f"order-{n}", "photo": f"{s3}/in/{n}.jpg", "sku": f"A{n}"} for n in (3, 1, 77)]
    lines.append({"id": "spy", "photo": "file:///etc/passwd", "sku": "?"})
    storage.write_bytes(f"{s3}/orders/m.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    named = ("--uri-column", "photo", "--keep", "sku", "--max-error-fraction", "0.5")
    summary = night("orders", *named, source="orders/m.jsonl")
    assert summary["errors"] == {"ObjectMissing": 1, "AddressNotAllowed": 1}
    orders = {row["sample_id"]: row for row in DeltaTable(f"{s3}/orders/captions").to_pyarrow_table().to_pylist()}
    assert {name: json.loads(row["fields"])["sku"] for name, row in orders.items()} == {
        "order-3": "A3", "order-1": "A1", "order-77": "A77", "spy": "?",
    }  # fmt: skip
    assert orders["order-3"]["caption"] == rows["3.jpg"]["caption"], "the same photograph"
    assert "no row has the field" not in caplog.text
    again = night("orders", *named, source="orders/m.jsonl")
    assert (again["changed"], again["rows_computed"]) == (False, 0)
    night("slip", *named[:2], "--keep", "sku", "skuu", *named[4:], source="orders/m.jsonl")
    assert "slip/captions ds=2026-01-31: no row has the field 'skuu', which `keep` names" in caplog.text


def test_the_jail_that_is_off_is_told_by_driver_summary_and_page(lake: Path, tmp_path: Path) -> None:
    wanted = ["translations", *argv(lake, tables=str(tmp_path / "tables"), mlflow=f"sqlite:///{tmp_path}/m.db")]
    ran = tiny.hybrid("infer", *wanted, cwd=tmp_path, env={"HYBRID_JAIL": "off"})
    assert (ran.code, ran.summary["jail"]) == (0, "off"), ran.stderr
    told = "decoding jail: OFF (HYBRID_JAIL=off): a hostile file could reach files and the network"
    assert ran.stderr.count(told) == 1
    page, _ = report.report(f"{tmp_path}/tables", ["translations"], "2026-01-31", f"sqlite:///{tmp_path}/m.db", 0)
    assert '<dt>decoding jail</dt><dd class="bad">off</dd>' in page
