import datetime
import os
from pathlib import Path
from typing import Any

import mlflow
import pytest
from deltalake import DeltaTable

from hybrid_models import Hybrid
from hybrid_models.errors import UsageError
from hybrid_models.interface import DecodingConfig
from hybrid_models.translator.translator import TranslatorDecoding
from jobs import report
from jobs.command import cli
from jobs.command.errors import EndedError
from jobs.command.options import TASKS
from jobs.nightly import NightlyOptions, Unit, check, check_places, main, nights
from pipelines import storage
from pipelines.cluster import connection
from pipelines.models import artifacts, registry
from pipelines.models.tracking import Tracker
from pipelines.nights import ownership, query
from pipelines.nights.commit import Partition
from tests import tiny

DAY = datetime.timedelta(days=1)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of three nights, one of them with a bad row, and two registered translators; the first is champion."""
    folder = tmp_path_factory.mktemp("lake")
    for ds, rows in (("2026-01-01", 5), ("2026-01-02", 6), ("2026-01-04", 4)):
        tiny.write_sentences(f"{folder}/translations/ds={ds}", shards=2, rows=rows)
    storage.write_bytes(f"{folder}/translations/ds=2026-01-02/bad.jsonl", b"{broken\n")
    tiny.write_pairs(f"{folder}/references/ds=2026-01-01", rows=8, seed=3)
    for seed in (0, 1):
        register(folder, tiny.translator(seed), TranslatorDecoding(beam_size=1, max_length=8))
    registry.promote(mlflow_of(folder), "translator", "1")
    return folder


def register(lake: Path, hybrid: Hybrid, decoding: DecodingConfig) -> None:
    tracker = Tracker(mlflow_of(lake))
    tracker.start("train", {}, {})
    tracker.register(hybrid.name, artifacts.make(hybrid, decoding, {}, "Card.\n"))
    tracker.finish()


def mlflow_of(lake: Path) -> str:
    return f"sqlite:///{lake}/mlflow.db"


def argv(lake: Path, *more: str, tables: str = "tables") -> list[str]:
    return [
        "translations", "--input", f"{lake}/translations/ds={{ds}}/*", "--tables", f"{lake}/{tables}",
        "--mlflow", mlflow_of(lake), *more,
    ]  # fmt: skip


def refusal(arguments: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    return cli.with_flags(str(caught.value))


def stored(lake: Path) -> dict[str, int]:
    """Rows of each night in the table."""
    counts: dict[str, int] = {}
    for ds in DeltaTable(f"{lake}/tables/translations").to_pyarrow_table()["ds"].to_pylist():
        counts[ds] = counts.get(ds, 0) + 1
    return counts


@pytest.mark.usefixtures("ray_cluster")
def test_nights_are_done_caught_up_with_and_done_again(lake: Path) -> None:
    judged = argv(lake, "--ds", "2026-01-01", "--references", f"{lake}/references/ds={{ds}}")
    foreseen = main([*judged, "--dry-run"])
    nowhere = f"sqlite:///{lake}/nowhere/m.db"
    elsewhere = [nowhere if word == mlflow_of(lake) else word for word in judged]
    assert refusal([*elsewhere, "--dry-run"]) == f"there is no MLflow database at {lake}/nowhere/m.db"
    assert not (lake / "nowhere").exists()
    assert not (lake / "tables").exists()
    first = main(judged)
    assert foreseen["reports"] == []
    assert [(night["ds"], night["shards_computed"]) for night in foreseen["nights"]] == [("2026-01-01", 2)]
    (night,) = first["nights"]
    assert (night["task"], night["ds"], night["rows"], night["changed"]) == ("translations", "2026-01-01", 10, True)
    assert night["model"] == "models:/translator/1"
    assert night["input_bytes"] == sum(f.size for f in storage.list_files(f"{lake}/translations/ds=2026-01-01"))
    assert 0 < night["model_busy"] <= 1
    assert night["evaluation"]["samples"] == 8
    run = mlflow.MlflowClient(mlflow_of(lake)).get_run(night["mlflow_run_id"]).data
    assert run.metrics["evaluation/bleu"] == night["evaluation"]["bleu"]
    assert {name: run.metrics[name] for name in ("input_bytes", "model_busy")} == {
        name: night[name] for name in ("input_bytes", "model_busy")
    }

    assert first["reports"] == [f"{lake}/tables/reports/2026-01-01.html"]
    page = storage.read_bytes(first["reports"][0])
    assert b"Night of 2026-01-01" in page
    client = mlflow.MlflowClient(mlflow_of(lake))
    assert Path(client.download_artifacts(night["mlflow_run_id"], "report.html")).read_bytes() == page

    with pytest.raises(EndedError) as ended:
        main(argv(lake, "--ds", "2026-01-04", "--catch-up", "3", "--no-report"))
    assert ended.value.code == cli.REFUSED, "one night has too many bad rows, the others are done"
    assert "2 of 3 nights are done; translations ds=2026-01-02: 1 of 13 samples are bad" in str(ended.value)
    assert ended.value.summary is not None
    assert ended.value.summary["reports"] == []
    done = [(night["ds"], night["rows"]) for night in ended.value.summary["nights"]]
    assert done == [("2026-01-03", 0), ("2026-01-04", 8)], "oldest first; the first of January is there already"
    assert [(p["ds"], p["exit_code"]) for p in ended.value.summary["problems"]] == [("2026-01-02", cli.REFUSED)]
    assert stored(lake) == {"2026-01-01": 10, "2026-01-04": 8}

    storage.write_bytes(f"{lake}/translations/ds=2026-01-01/late.txt", b"der Hund\n")
    registry.promote(mlflow_of(lake), "translator", "2", "1")
    again = main(argv(lake, "--backfill", "2026-01-01..2026-01-02", "--max-error-fraction", "0.5", "--no-report"))
    found = {night["ds"]: (night["rows"], night["shards_computed"], night["model"]) for night in again["nights"]}
    assert found == {
        "2026-01-01": (11, 3, "models:/translator/2"),
        "2026-01-02": (13, 3, "models:/translator/2"),
    }, "late shards and the new champion"
    twice = main(argv(lake, "--ds", "2026-01-01", "--no-report"))["nights"][0]
    assert (twice["shards_computed"], twice["changed"]) == (0, False), "cron may fire twice"
    assert stored(lake) == {"2026-01-01": 11, "2026-01-02": 13, "2026-01-04": 8}


@pytest.mark.usefixtures("ray_cluster")
def test_what_comes_after_a_night_does_not_undo_it(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """References that cannot be read, and a page that cannot be written, are problems of their own."""
    storage.write_bytes(f"{lake}/torn/a.unknown", b"?")
    monkeypatch.setattr(report, "write", lambda *args: 1 / 0)
    with pytest.raises(EndedError) as ended:
        main(argv(lake, "--ds", "2026-01-04", "--references", f"{lake}/torn/*", tables="after"))
    assert ended.value.code == cli.FAILED
    assert str(ended.value).startswith("1 of 1 nights are done; report ds=2026-01-04: failed: ZeroDivisionError")
    assert ended.value.summary is not None
    assert [night["rows"] for night in ended.value.summary["nights"]] == [8]
    found = [(problem["what"], problem["exit_code"]) for problem in ended.value.summary["problems"]]
    assert found == [("evaluation of translations", cli.USAGE), ("report", cli.FAILED)]


@pytest.mark.usefixtures("ray_cluster")
def test_a_night_without_shards_is_a_note_or_an_error(lake: Path) -> None:
    (night,) = main(argv(lake, "--ds", "2026-02-01", tables="empty"))["nights"]
    assert (night["rows"], night["changed"]) == (0, False)
    assert night["note"].startswith(f"no shards found at {lake}/translations/ds=2026-02-01/*: ")
    with pytest.raises(EndedError) as ended:
        main(argv(lake, "--ds", "2026-02-01", "--require-input", tables="empty"))
    assert ended.value.code == cli.USAGE
    assert not Path(lake, "empty", "translations").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_all_tasks_do_those_that_have_a_champion(lake: Path) -> None:
    everything = ["--all-tasks", *argv(lake, "--ds", "2026-01-04", tables="all")[1:]]
    assert "has no {task}" in refusal(everything)
    everything[2] = f"{lake}/{{task}}/ds={{ds}}"
    assert refusal([*everything, "--model", "m"]) == "--model is of one task: leave it out with --all-tasks"
    first = main([*everything, "--no-report"])
    assert [(night["task"], night["rows"]) for night in first["nights"]] == [("translations", 8)], (
        "the one with a model"
    )
    assert first["problems"] == []
    for hybrid in (tiny.captioner(), tiny.nowcaster()):
        register(lake, hybrid, hybrid.Decoding())
    with pytest.raises(EndedError, match="captioner has no champion yet: `hybrid promote captioner") as ended:
        main([*everything, "--no-report"])
    assert ended.value.code == cli.USAGE
    summary = ended.value.summary
    assert summary is not None
    assert [(night["task"], night["rows"]) for night in summary["nights"]] == [("translations", 8)]
    assert [problem["what"] for problem in summary["problems"]] == ["captions", "nowcasts"]
    for name in ("captioner", "nowcaster"):
        registry.promote(mlflow_of(lake), name, "1")
    tiny.write_photos(f"{lake}/captions/ds=2026-01-04", shards=1, rows=3)
    done = main(everything)["nights"]
    assert [(night["task"], night["rows"]) for night in done] == [
        ("captions", 3), ("nowcasts", 0), ("translations", 8),
    ]  # fmt: skip


@pytest.mark.usefixtures("ray_cluster")
def test_two_models_of_one_kind_have_a_champion_and_a_table_each(lake: Path) -> None:
    tracker = Tracker(mlflow_of(lake))
    tracker.start("train", {}, {})
    decoding = TranslatorDecoding(beam_size=1, max_length=8)
    tracker.register("translator-de-en", artifacts.make(tiny.translator(7), decoding, {}, "Card.\n"))
    tracker.finish()
    registry.promote(mlflow_of(lake), "translator-de-en", "1")
    both = {}
    for more in ([], ["--model", "models:/translator-de-en@champion", "--table", "english"]):
        (night,) = main(argv(lake, "--ds", "2026-01-04", *more, tables="both"))["nights"]
        both[night["task"]] = night
    champion = registry.champion(mlflow_of(lake), "translator")
    assert {name: (night["rows"], night["model"]) for name, night in both.items()} == {
        "translations": (8, f"models:/translator/{champion}"), "english": (8, "models:/translator-de-en/1"),
    }  # fmt: skip
    assert both["english"]["table"] == f"{lake}/both/english"
    assert ownership.names(f"{lake}/both") == [*TASKS, "english"]
    joined = "SELECT count(*) AS n FROM translations JOIN english USING (ds, shard, index)"
    assert query.query(joined, f"{lake}/both", ownership.names(f"{lake}/both")).to_pylist() == [{"n": 8}]
    page = Path(f"{lake}/both/reports/2026-01-04.html").read_text()
    assert 'id="english"' in page
    assert 'id="translations"' in page
    caught_up = [*more, "--catch-up", "2", "--max-error-fraction", "0.5"]
    again = main(argv(lake, "--ds", "2026-01-04", *caught_up, tables="both"))["nights"]
    assert [(night["ds"], night["rows"], night["changed"]) for night in again] == [
        ("2026-01-02", 13, True), ("2026-01-03", 0, False), ("2026-01-04", 8, False),
    ], "what its own table lacks"  # fmt: skip


def test_mistakes_are_one_line_and_start_nothing(lake: Path) -> None:
    def night(*more: str) -> str:
        return refusal(argv(lake, *more, tables="none"))

    assert night() == "--ds is needed, a date or today or yesterday; or --backfill FIRST..LAST"
    assert night("--ds", "today", "--backfill", "2026-01-01..2026-01-02") == night()
    assert night("--ds", "31.01.2026") == "--ds '31.01.2026' is not a date: write YYYY-MM-DD, such as 2026-01-31"
    assert night("--ds", "today", "--table", "Eng") == (
        "--table 'Eng' must be lower-case letters, digits and '_', a letter first, 63 at most"
    )
    assert night("--ds", "today", "--table", "captions").startswith("--table captions is the table of another kind of")
    assert night("--ds", "today", "--table", "reports").startswith("--table reports means something else beside")
    assert night("--backfill", "2026-01-01") == ("--backfill '2026-01-01' is not a range: write FIRST..LAST, two dates")
    assert night("--backfill", "2026-01-02..2026-01-01") == (
        "--backfill 2026-01-02..2026-01-01 is turned round: write 2026-01-01..2026-01-02"
    )
    assert night("--backfill", "2026-1-1..x").startswith("--backfill '2026-1-1' is not a date")
    assert night("--backfill", "1926-01-01..2026-01-01").startswith("1926-01-01..2026-01-01 are 36526 nights, at most")
    assert "--catch-up must be 0 or more" in night("--ds", "today", "--catch-up", "-1")
    assert "at most 3660 are done at once" in night("--ds", "today", "--catch-up", "1000000")
    assert nights(NightlyOptions(("in",), "tables", ds="0001-01-02", catch_up=3)) == ["0001-01-01", "0001-01-02"]
    assert "--catch-up must be 0 or more" in night("--backfill", "2026-01-01..2026-01-02", "--catch-up", "1")
    assert night("--ds", "today", "--window-seconds", "9") == (
        "--window-seconds cuts clips, and this model reads none: leave it out"
    )
    assert night("--ds", "today", "--retain-hours", "0").startswith("--retain-hours is 0")
    assert "cannot get models:/translator/9: " in night("--ds", "today", "--model", "models:/translator/9")
    assert "has no {ds}" in refusal([*argv(lake)[:1], "--input", f"{lake}/in", *argv(lake, "--ds", "today")[3:]])
    assert refusal(["poems"]).startswith(
        "unknown task (or --all-tasks) 'poems': use captions, nowcasts, actions, translations"
    )
    assert refusal([]).startswith("hybrid nightly needs a task (or --all-tasks) first: ")
    assert not Path(lake, "none", "translations").exists()


def test_inputs_in_the_folder_of_tables_stay(lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented layout with one word off: the inputs, old enough to be tidied, are the table's folder."""
    monkeypatch.setattr(connection, "connect", None)
    for ds in ("2026-01-01", "2026-01-02"):
        tiny.write_sentences(f"{tmp_path}/translations/ds={ds}", 2, 3)
    (tmp_path / "translations/contract.pdf").write_bytes(b"%PDF")
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    before = storage.list_all(str(tmp_path))
    command = ["translations", "--tables", str(tmp_path), "--mlflow", mlflow_of(lake), "--ds", "2026-01-02"]
    pattern = f"{tmp_path}/{{task}}/ds={{ds}}/*"
    assert refusal([*command, "--input", pattern]) == (
        f"--input {tmp_path}/translations/ds=2026-01-02/* lies in {tmp_path}/translations, which this command writes: "
        "give another --tables, such as a new folder beside the input, or name the input more closely"
    )
    assert refusal([*command, "--input", pattern, "--catch-up", "1"]).startswith("--input ")
    elsewhere = f"{lake}/{{task}}/ds={{ds}}"
    for folder in ("translations", "evaluations/x", "reports"):
        said = refusal([*command, "--input", elsewhere, "--references", f"{tmp_path}/{folder}"])
        assert said.startswith(f"--references {tmp_path}/{folder} ")
    said = refusal([*command, "--input", elsewhere])
    assert said.startswith(f"{tmp_path}/translations holds contract.pdf, which this program did not write: ")
    assert storage.list_all(str(tmp_path)) == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_night_that_lost_shards_is_refused_unless_that_is_allowed(lake: Path, tmp_path: Path) -> None:
    tiny.write_sentences(f"{tmp_path}/in/2026-01-31", 3, 3)
    command = [
        "translations", "--input", f"{tmp_path}/in/{{ds}}", "--tables", f"{tmp_path}/tables", "--no-report",
        "--mlflow", mlflow_of(lake), "--ds", "2026-01-31", "--model", "models:/translator/1",
    ]  # fmt: skip
    assert main(command)["nights"][0]["rows"] == 9
    (tmp_path / "in/2026-01-31/part-00000.txt").unlink()
    with pytest.raises(EndedError, match=r"0 of 1 nights are done; .* 1 of its shards are gone, such as") as ended:
        main(command)
    assert ended.value.code == cli.REFUSED
    (night,) = main([*command, "--allow-missing"])["nights"]
    assert (night["rows"], night["shards_computed"]) == (6, 2), "the two that shared a unit with it"


def options(**given: Any) -> NightlyOptions:
    return NightlyOptions(("in/{ds}",), "tables", **given)


def test_every_pattern_is_of_one_night() -> None:
    tasks = ["captions"]
    with pytest.raises(UsageError, match=r"^--input b has no \{ds\}"):
        check(NightlyOptions(("a/{ds}", "b"), "tables", ds="today"), tasks)
    with pytest.raises(UsageError, match=r"^--input is empty"):
        check(NightlyOptions((), "tables", ds="today"), tasks)
    with pytest.raises(UsageError, match=r"^`input` /t/captions/ds=2026-01-01 lies in /t/captions"):
        check_places(NightlyOptions(("/in/{ds}", "/t/captions/ds={ds}"), "/t"), tasks, ["2026-01-01"])


def test_dates_of_nights() -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    assert nights(options(ds="yesterday"))[0] in {(today - DAY).isoformat(), today.isoformat()}  # midnight may pass
    assert nights(options(ds="2024-03-01", catch_up=2)) == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert nights(options(backfill="2025-12-31..2026-01-01")) == ["2025-12-31", "2026-01-01"]
    assert Unit("captions", Partition("lake/products", "2026-01-31")).fill("s3://lake/{task}/ds={ds}/*.tar") == (
        "s3://lake/captions/ds=2026-01-31/*.tar"
    )
