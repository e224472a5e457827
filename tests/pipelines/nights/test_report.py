"""The page about a night; a real browser looks at it in tests/integration/test_report_page.py."""

import base64
import io
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from PIL import Image

from hybrid_models import TABLES
from hybrid_models.errors import UsageError
from hybrid_models.explanations import Alignment, Forecast, Gaze
from pipelines import storage
from pipelines.models import registry, server
from pipelines.models.tracking import Tracker
from pipelines.nights import commit, figures, report, tables
from tests import tiny
from tests.pipelines.nights import made
from tests.pipelines.nights.made import ONE, THREE, TWO
from tests.pipelines.reading.media.test_radar import event_bytes
from tests.pipelines.staging.test_pieces import SCHEMA, A, rows

HOSTILE = ("<script>alert(1)</script>", '<img src=x onerror="a()">', "& \"q\" 'too' {{ 7 * 7 }}")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nights of the three tables; the second one has bad rows and hostile texts."""
    folder = tmp_path_factory.mktemp("lake")
    tiny.write_photos(f"{folder}/captions/1", shards=2, rows=4)
    storage.write_bytes(f"{folder}/captions/1/bad.tar", tiny.tar([("torn.jpg", tiny.jpeg(0)[:200])]))
    tiny.write_sentences(f"{folder}/translations/1", shards=1, rows=3)
    storage.write_bytes(f"{folder}/translations/2/hostile.txt", "\n".join([*HOSTILE, "", "der Hund\n"]).encode())
    rain = np.random.default_rng(0).integers(0, 500, (6, 32, 32)).astype(np.uint16)
    storage.write_bytes(f"{folder}/nowcasts/2/event.nc", event_bytes([5 * t for t in range(6)], rain=rain))
    write = {"captions": tiny.write_captioner, "translations": tiny.write_translator, "nowcasts": tiny.write_nowcaster}
    for table, nights in (("captions", "1"), ("translations", "12"), ("nowcasts", "2")):
        write[table](f"{folder}/models/{table}")
        for night in nights:
            tracker = Tracker(mlflow_of(folder))
            run_id = tracker.start(f"{table} {night}", {}, {})
            tracker.log_metrics({"rows_per_second": 2.5 * int(night), "seconds/total_wall": 4.5})
            tracker.finish()
            place = (f"{folder}/tables", f"2026-01-0{night}", f"{folder}/{table}/{night}")
            tiny.write_night(*place, f"{folder}/models/{table}", str(run_id))
    return folder


def mlflow_of(lake: Path) -> str:
    return f"sqlite:///{lake}/mlflow.db"


def page_of(lake: Path, ds: str, tracking_uri: str = "", examples: int = 4) -> tuple[str, list[report.Section]]:
    return report.report(f"{lake}/tables", list(TABLES.values()), ds, tracking_uri or mlflow_of(lake), examples)


class Texts(HTMLParser):
    """All elements and all text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_counts_reasons_and_speeds(lake: Path) -> None:
    page, (captions, translations) = page_of(lake, "2026-01-01")
    assert (captions.table, captions.rows, captions.errors, captions.shards) == ("captions", 9, 1, 3)
    (reason,) = captions.reasons
    assert (reason.kind, reason.count) == ("ImageDecodeError", 1)
    assert reason.examples[0]["sample_id"] == "torn"
    assert reason.examples[0]["place"] == f"{lake}/captions/1/bad.tar"
    assert (translations.rows, translations.errors, translations.reasons) == (3, 0, [])
    assert captions.stored_bytes == sum(f.size for f in storage.list_files(f"{lake}/tables/captions/ds=2026-01-01"))
    (night,) = captions.history
    assert night.rows_per_second == captions.fastest == 2.5
    assert captions.seconds == {"total_wall": 4.5}
    text = Texts(page).text
    assert "Seconds: 4.5 whole run" in " ".join(text.split())
    assert "Night of 2026-01-01" in text
    assert reason.examples[0]["error"] in text

    _, (_, second) = page_of(lake, "2026-01-02")
    assert [(night.ds, night.rows, night.errors, night.rows_per_second) for night in second.history] == [
        ("2026-01-01", 3, 0, 2.5), ("2026-01-02", 5, 1, 5.0),
    ]  # fmt: skip


def test_what_is_shown_is_what_the_table_has(lake: Path) -> None:
    page, (captions, translations) = page_of(lake, "2026-01-01")
    assert {figure.kind for figure in captions.figures} == {"photograph"}
    assert len(captions.figures) == 4
    assert {figure.row["shard"].rsplit("/", 1)[-1] for figure in captions.figures} == {
        "photos-000.tar", "photos-001.tar",
    }  # fmt: skip
    text = Texts(page).text
    assert all(figure.row["caption"] in text for figure in captions.figures)
    tiles = [tile for figure in captions.figures for tile in figure.content["tiles"]]
    assert page.count("data:image/jpeg;base64,") == 4 + len(tiles)
    assert len(tiles) == sum(len(figure.row["caption"].split()) for figure in captions.figures), "one for each word"
    assert [figure.kind for figure in translations.figures] == ["alignment"] * 3
    for figure in translations.figures:
        assert all(sum(weights) == pytest.approx(1, abs=0.02) for _, weights in figure.content["lines"])
    _, (nowcasts, _) = page_of(lake, "2026-01-02")
    shown = nowcasts.figures[0]
    assert shown.kind == "nowcast"
    assert shown.content["animation"].startswith("data:image/gif;base64,")
    assert shown.content["leads"][-1]["mean"] == shown.row["mean"][-1]


def test_texts_cannot_become_markup(lake: Path) -> None:
    page, _ = page_of(lake, "2026-01-02", examples=5)
    parsed = Texts(page)
    assert "script" not in parsed.tags
    assert parsed.handlers == []
    assert all(text in parsed.text for text in HOSTILE), "as they were written"
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page), "nothing comes from a network"


def test_a_page_without_mlflow_shards_or_model(lake: Path, caplog: pytest.LogCaptureFixture) -> None:
    page, (captions, _) = page_of(lake, "2026-01-01", tracking_uri="http://127.0.0.1:9")
    (said,) = [r.getMessage() for r in caplog.records if "report" in r.getMessage()]
    assert said.startswith("the report has no speeds: MLflow at http://127.0.0.1:9: cannot tell how fast nights were: ")
    assert captions.history[0].rows_per_second is None
    assert len(captions.figures) == 4
    kept = storage.read_bytes(f"{lake}/captions/1/photos-000.tar")
    storage.delete(f"{lake}/captions/1/photos-000.tar", storage.anything)
    page, (captions, _) = page_of(lake, "2026-01-01")
    storage.write_bytes(f"{lake}/captions/1/photos-000.tar", kept)
    assert captions.figures == []
    assert captions.note.startswith("Nothing to look at: ")
    assert "photos-000.tar" in captions.note or "No such file" in captions.note
    assert captions.note in Texts(page).text


def test_a_photograph_that_was_replaced_is_not_shown_for_another(lake: Path) -> None:
    kept = storage.read_bytes(f"{lake}/captions/1/photos-000.tar")
    storage.write_bytes(
        f"{lake}/captions/1/photos-000.tar",
        tiny.tar([(f"other-{i}.jpg", tiny.jpeg(i)) for i in range(4)]),
        storage.anything,
    )
    _, (captions, _) = page_of(lake, "2026-01-01")
    storage.write_bytes(f"{lake}/captions/1/photos-000.tar", kept, storage.anything)
    assert {figure.row["shard"].rsplit("/", 1)[-1] for figure in captions.figures} == {"photos-001.tar"}


def test_photographs_of_one_name_in_two_shards_are_not_confused(tmp_path: Path) -> None:
    for shard, first in (("a", 0), ("b", 100)):
        members = [(f"{row}.jpg", tiny.jpeg(first + row)) for row in range(2)]
        storage.write_bytes(f"{tmp_path}/in/{shard}.tar", tiny.tar(members))
    model = tiny.write_captioner(f"{tmp_path}/model")
    tiny.write_night(f"{tmp_path}/tables", "2026-01-01", f"{tmp_path}/in", model)
    _, (captions,) = report.report(
        f"{tmp_path}/tables", ["captions"], "2026-01-01", f"sqlite:///{tmp_path}/mlflow.db", 4
    )
    assert [figure.row["sample_id"] for figure in captions.figures] == ["0", "1", "0", "1"]
    images = [figure.content["image"] for figure in captions.figures]
    assert len(set(images)) == 4, "each with its own"
    for figure, image in zip(captions.figures, images, strict=True):
        seed = int(figure.row["sample_id"]) + (100 if figure.row["shard"].endswith("b.tar") else 0)
        shown = Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))).convert("RGB").resize((4, 4))
        own = Image.open(io.BytesIO(tiny.jpeg(seed))).resize((4, 4))
        assert np.abs(np.asarray(shown, float) - np.asarray(own, float)).mean() < 12


def test_lost_rows_are_told_and_tables_of_others_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = {"model": "m", "run_id": "r", "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    good = {"sample_id": "a", "translation": "x", **made}
    torn = {"sample_id": "b", "error": "ShardReadError: torn", "lost_rows": 1234, **made}
    tiny.write_rows(f"{tmp_path}/tables", "translations", "2026-01-01", [good, torn])
    DeltaTable.create(f"{tmp_path}/tables/captions", pa.schema([("q", pa.int64())]), name="sales")
    page, (translations,) = page_of(tmp_path, "2026-01-01")
    assert (translations.rows, translations.errors, translations.lost) == (2, 1, 1234)
    assert "lost rows" in page
    assert "1,234" in Texts(page).text
    assert f"left out of the report: {tmp_path}/tables/captions is the table 'sales'" in caplog.text
    tiny.write_rows(f"{tmp_path}/tables", "translations", "2026-01-02", [good])
    assert "lost rows" not in page_of(tmp_path, "2026-01-02")[0]


def test_every_error_is_listed_and_a_single_object_by_its_address(tmp_path: Path) -> None:
    made = {"model": "m", "run_id": "r", "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    torn = [
        {"sample_id": f"{n}.jpg", "object": f"s3://lake/{n}.jpg", "error": "ImageDecodeError: cut", **made}
        for n in range(report.ERROR_EXAMPLES + 2)
    ]
    window = {"sample_id": "a.mp4#t=0,2", "object": "s3://lake/a.mp4", "error": "VideoError: cut", **made}
    tiny.write_rows(f"{tmp_path}/tables", "captions", "2026-01-01", [*torn, window])
    page, (section,) = page_of(tmp_path, "2026-01-01")
    image = section.reasons[0]
    assert (image.count, len(image.examples)) == (report.ERROR_EXAMPLES + 2, report.ERROR_EXAMPLES)
    text = " ".join(Texts(page).text.split())
    assert "s3://lake/0.jpg: ImageDecodeError: cut" in text
    assert "0.jpg in" not in text, "its address names it"
    assert "2 more: hybrid query" in text
    assert "a.mp4#t=0,2 in s3://lake/a.mp4: VideoError: cut" in text


def test_a_forced_promotion_is_told(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = registry.Version("captioner", "12", (), "", {}, {"promoted": True, "forced": "learned <little>"})
    monkeypatch.setattr(registry, "versions", lambda uri, names: [version] if names == ["captioner"] else [])
    _, (section, _) = page_of(lake, "2026-01-01")
    assert section.forced == ""
    assert report._forced("models:/captioner/12", "") == "learned <little>"
    assert report._forced("models:/captioner/11", "") == report._forced("lake/artifact", "") == ""
    monkeypatch.setattr(report, "_forced", lambda model, uri: "learned <little>")
    assert "promoted by force: learned <little>" in Texts(page_of(lake, "2026-01-01")[0]).text


def test_what_a_score_is(lake: Path) -> None:
    page, (captions, _) = page_of(lake, "2026-01-01")
    text = " ".join(Texts(page).text.split())
    assert f"score {captions.figures[0].row['score']:.2f}" in text
    assert "A score is the log-probability of a text, divided by its length penalty: the nearer to 0, the surer" in text


def test_models_and_runs_are_linked_to_an_mlflow_server(lake: Path) -> None:
    _, (captions, _) = page_of(lake, "2026-01-01")
    run = server.find_run(server.client(mlflow_of(lake)), captions.run_id)
    assert run is not None
    captions.model = "models:/captioner/12"
    report._add_links(captions, "https://mlflow.example.com/#", run)
    place = f"experiments/{run.info.experiment_id}/runs/{captions.run_id}"
    assert captions.run_link == f"https://mlflow.example.com/#/{place}"
    assert captions.model_link == "https://mlflow.example.com/#/models/captioner/versions/12"
    for odd in ("models:/captioner@champion", "models:/a/b/3", "models:/"):
        other = replace(captions, model=odd, model_link="")
        report._add_links(other, "https://mlflow.example.com/#", run)
        assert other.model_link == ""
    _, (unlinked, _) = page_of(lake, "2026-01-01")
    report._add_links(unlinked, "https://mlflow.example.com/#", None)
    assert (unlinked.run_link, unlinked.model_link) == ("", ""), (
        "an artifact folder, and a run that MLflow does not know"
    )


def test_rows_tell_the_runs_that_the_log_forgot(lake: Path, tmp_path: Path) -> None:
    tables_uri, name = str(tmp_path), "translations"
    shutil.copytree(f"{lake}/tables/{name}", f"{tables_uri}/{name}")

    def history() -> list[tuple[str, str, float | None]]:
        _, (page,) = report.report(tables_uri, [name], "2026-01-02", mlflow_of(lake), 0)
        return [(past.ds, past.run_id, past.rows_per_second) for past in page.history]

    told = history()
    assert [speed for *_, speed in told] == [2.5, 5.0]
    table = DeltaTable(f"{tables_uri}/{name}")
    table.create_checkpoint()
    for version in range(table.version() + 1):
        storage.delete(tables.commit_uri(f"{tables_uri}/{name}", version), storage.anything)
    assert report._commits(f"{tables_uri}/{name}", table.version(), ["2026-01-01"]) == {}
    assert history() == told


def test_a_table_that_lacks_the_night_is_told(lake: Path) -> None:
    page, sections = page_of(lake, "2026-01-02")
    assert {section.table for section in sections} == {"translations", "nowcasts"}
    assert "captions: no rows of this night; the newest before it is 2026-01-01." in Texts(page).text
    assert "no rows of this night" not in Texts(page_of(lake, "2026-01-01")[0]).text, "nowcasts began later"


def test_a_night_that_is_not_there(lake: Path) -> None:
    with pytest.raises(UsageError, match=f"no table at {lake}/tables has rows of 2027-01-01: `hybrid tables --tables"):
        page_of(lake, "2027-01-01")


def test_a_word_lights_the_part_of_the_photograph_that_it_comes_from() -> None:
    """Also of a clip whose frames are averaged: its middle frame is lit."""
    weights = np.zeros((2, 2, 2), np.float32)
    weights[0, 0, 0] = weights[1, 1, 1] = 1.0
    for frames in (1, 3):
        clip = np.zeros((frames, 32, 32, 3), np.uint8)
        clip[frames // 2] = 200
        _, content = figures.element(Gaze(clip, "a b", ["a", "b"], weights), {})
        assert [word for word, _ in content["tiles"]] == ["a", "b"]
        for (_, uri), (lit, dark) in zip(content["tiles"], ((0, -1), (-1, 0)), strict=True):
            tile = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).astype(int)
            assert tile.shape == (figures.TILE, figures.TILE, 3)
            assert tile[lit, lit].mean() > 180
            assert tile[dark, dark].mean() < 70


def test_explanations_are_drawn_by_their_kind() -> None:
    kind, content = figures.element(Alignment(["a", "b"], ["c"], np.array([[0.25, 0.75]], np.float32)), {})
    assert (kind, content) == ("alignment", {"source": ["a", "b"], "lines": [("c", [0.25, 0.75])]})
    kind, content = figures.element(Alignment(["a", "b"], ["c"], None), {})
    assert (kind, content) == ("alignment", {"source": ["a", "b"], "lines": []})
    kind, content = figures.element(Gaze(np.zeros((1, 4, 4, 3), np.uint8), "a", ["a"], None), {})
    assert (kind, content["image"][:23], content["said"]) == ("photograph", "data:image/jpeg;base64,", "a")
    assert (content["times"], content["lines"], content["tiles"]) == ([], [], [])
    clip, looks = np.zeros((2, 4, 4, 3), np.uint8), np.array([[0.25, 0.5]], np.float32)
    _, content = figures.element(Gaze(clip, "a", ["a"], None, looks, np.array([7.5, 127.5])), {})
    assert (content["times"], content["lines"]) == (["7.5 s", "2:07.5"], [("a", [0.25, 0.5])])
    assert content["tiles"] == []
    leads = {"mean_mm_h": [1.0, 2.0], "max_mm_h": [3.0, 4.0], "wet_fraction": [0.5, 0.25], "mean": None}
    frames = np.zeros((2, 8, 8), np.float32)
    kind, content = figures.element(Forecast(frames, frames, None, [5.0, 10.0], "mm/h"), leads)
    assert (kind, content["unit"]) == ("nowcast", "mm/h")
    assert content["leads"] == [
        {"minutes": 5.0, "mean": 1.0, "max": 3.0, "wet": 0.5},
        {"minutes": 10.0, "mean": 2.0, "max": 4.0, "wet": 0.25},
    ]
    video = {"mean": [0.5, 0.25], "max": [1.0, 0.75], "mean_mm_h": None, "max_mm_h": None, "wet_fraction": None}
    _, content = figures.element(Forecast(frames, frames, None, [1.0, 2.0], "intensity"), video)
    assert content["leads"][1] == {"minutes": 2.0, "mean": 0.25, "max": 0.75, "wet": None}
    with pytest.raises(TypeError, match="cannot draw str"):
        figures.element("a word", {})


def test_runs_of_earlier_nights_are_told_by_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of nights that were brought back nothing is told, rather than what the commit after them says."""
    table, (first, second) = str(tmp_path / "captions"), ("2026-01-01", "2026-01-02")

    def write(ds: str, run_id: str, fingerprint: str) -> int:
        pieces = made.night(table, fingerprint, rows(A, 0, 2, 1), ds=ds)
        version = commit.commit_night(commit.Partition(table, ds), pieces, SCHEMA, {"run_id": run_id})
        assert version is not None
        return version

    def runs(version: int | None) -> dict[str, str]:
        assert version is not None
        commits = report._commits(table, version, [first, second])
        return {night: told.get("run_id", "") for night, told in commits.items()}

    write(first, "a", ONE)
    both = write(second, "b", ONE)
    assert runs(both) == {first: "a", second: "b"}
    assert runs(write(second, "c", TWO)) == {first: "a", second: "c"}
    assert runs(commit.restore(table, both, second)) == {first: "a", second: ""}
    newest = write(first, "d", TWO)
    assert runs(newest) == {first: "d", second: ""}
    assert runs(commit.restore(table, both)) == {}
    last = write(first, "e", THREE)
    assert runs(last) == {first: "e"}
    storage.write_bytes(tables.commit_uri(table, newest), b"[1]\n", storage.anything)
    assert report._commits(table, newest, [first]) == {}
    assert "is damaged: rows tell which runs wrote earlier nights" in caplog.text
