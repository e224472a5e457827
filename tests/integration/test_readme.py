"""Every command and example of README.md is run, in order, in one folder, on small stand-ins for the public data."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import timm
from deltalake import DeltaTable
from safetensors.torch import save_file

from hybrid_models.inputs import Visual
from jobs.demo import NIGHTS
from pipelines.datasets.demo import data as demo_data
from pipelines.datasets.demo.nights import FILM, SHOT_SECONDS
from pipelines.datasets.demo.scenes import COLOURS
from pipelines.datasets.moving_scenes import RATE
from pipelines.reading.media.decode import decode_media
from tests import tiny
from tests.pipelines.datasets.test_public_data import make_mnist
from tests.pipelines.reading.media.test_radar import event_bytes

README = (tiny.ROOT / "README.md").read_text()
SMALLER = {
    "hybrid demo": "--scenes 1200 --digits 200 --sentences 1600",
    "hybrid prepare demo": "--scenes 40 --digits 40",
    "hybrid prepare flickr8k": "--val-images 8",
    "hybrid prepare moving-mnist": "--train 32 --val 4 --test 4",
    "hybrid train translator-demo": "--train.validate-samples 20 --pictures 1",
    "hybrid train translator-multi30k": "--train.epochs 1 --model.hidden-size 64 --model.vocab-size 400 --pictures 0",
    "hybrid train captioner-flickr8k": "--train.epochs 1 --model.hidden-size 64 --model.vocab-size 400 --pictures 0",
    "hybrid train nowcaster-radar": "--train.epochs 1 --train.validate-samples 4 --pictures 0",
    "hybrid train nowcaster-moving-mnist": "--train.epochs 1 --train.validate-samples 4 --pictures 0",
}
SAID = "demo-stderr.txt"
BEATS = {"captions": 0.8, "translations": 5.0}  # by how much the demo must beat its baseline
pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(3600)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with stand-ins of the public data sets in their owners' layouts."""
    place = tmp_path_factory.mktemp("readme")
    (place / "multi30k").mkdir()
    for stem, seed in (("train", 0), ("val", 1), ("test_2016_flickr", 2)):
        lines = tiny.sentences(160 if stem == "train" else 20, seed)
        for language, change in (("en", str), ("de", str.upper)):
            text = "".join(change(line) + "\n" for line in lines)
            (place / "multi30k" / f"{stem}.{language}.gz").write_bytes(gzip.compress(text.encode()))
    write_flickr8k(place / "flickr8k")
    encoder = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    (place / "weights").mkdir()
    save_file(encoder.state_dict(), place / "weights" / "tf_efficientnet_lite0.safetensors")
    (place / "radar").mkdir()
    for number, name in enumerate(("bom2_20180616", "knmi_20100826", "fmi_20160928")):
        write_event(place / "radar" / f"{name}.nc", number)
    make_mnist(place / "mnist")
    return place


def write_flickr8k(folder: Path) -> None:
    folder.mkdir()
    images = []
    for split, count in (("train", 32), ("dev", 8)):
        members = [(f"{split}{i:03d}.jpg", tiny.jpeg(i if split == "train" else 1000 + i)) for i in range(count)]
        (folder / f"images-{split}-000.tar").write_bytes(tiny.tar(members))
        for number, (name, _) in enumerate(members):
            images.append({"filename": name, "split": split, "captions": tiny.sentences(5, number)})
    (folder / "captions.json").write_text(json.dumps({"images": images}))


def write_event(path: Path, number: int) -> None:
    """26 frames of a shower that moves two pixels a step."""
    y, x = np.mgrid[0:256, 0:256]
    shower = 800 * np.exp(-((x - 100) ** 2 + (y - 120) ** 2) / 800)
    rain = np.stack([np.roll(shower, 2 * t, axis=1) for t in range(26)]).astype(np.uint16)
    path.write_bytes(event_bytes([number * 10_000 + 5 * t for t in range(26)], rain=rain))


def run(command: str, cwd: Path, env: dict[str, str]) -> str:
    """What a command prints on stdout. The demo starts as a process, with a cluster of its own, as a newcomer's would;
    the others run here."""
    if command.startswith("make "):
        told = [*command.split(), "--dry-run", "--no-print-directory"]
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(told, cwd=tiny.ROOT, env=outside, capture_output=True, text=True, check=True)
        if command == "make test":  # which runs this
            assert "pytest --numprocesses 2" in done.stdout
            return ""
        command = done.stdout.splitlines()[-1]
    assert command.startswith(".venv/bin/hybrid "), command
    more = next((options for start, options in SMALLER.items() if command.startswith(f".venv/bin/{start}")), "")
    _, *argv = shlex.split(f"{command} {more}")
    ran = tiny.hybrid(*argv, cwd=cwd, env=env, timeout=2400) if argv[0] == "demo" else tiny.hybrid_here(*argv, cwd=cwd)
    assert ran.code == 0, f"{command}\n{ran.stderr[-3000:]}"
    if argv[0] == "demo":
        (cwd / SAID).write_text(ran.stderr)
    return ran.stdout


@pytest.fixture(scope="module")
def outputs(folder: Path, ray_cluster: str) -> Iterator[dict[str, str]]:
    """What each command printed on stdout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        env = {"RAY_ADDRESS": "", "MLFLOW_TRACKING_URI": ""}
        yield {command: run(command, folder, env) for command in commands()}


def summary(outputs: dict[str, str], start: str) -> dict:
    return dict(json.loads(next(out for cmd, out in outputs.items() if start in cmd).strip().splitlines()[-1]))


def test_the_demo_beats_its_baselines(outputs: dict[str, str]) -> None:
    demo = summary(outputs, "make demo")
    tasks = demo["tasks"]
    assert {name: task["rows"] for name, task in tasks.items()} == dict.fromkeys(tasks, 180)
    assert set(tasks) == {"captions", "nowcasts", "translations"}
    for name, margin in BEATS.items():
        assert tasks[name]["value"] > tasks[name]["baseline"] + margin, tasks[name]
    assert tasks["nowcasts"]["value"] < 0.7 * tasks["nowcasts"]["baseline"], tasks["nowcasts"]
    assert tasks["captions"]["nights"][1]["errors"] == {"ImageDecodeError": 1}


def test_the_demo_says_where_everything_lies(outputs: dict[str, str], folder: Path) -> None:
    demo, out = summary(outputs, "make demo"), folder / "demo-out"
    assert (demo["tables"], demo["mlflow"]) == (f"{out}/tables", f"sqlite:///{out}/mlflow.db")
    assert demo["mlflow_command"] == f"mlflow server --backend-store-uri sqlite:///{out}/mlflow.db"
    assert demo["report"] == f"{out}/tables/reports/{NIGHTS[-1]}.html"
    assert f"Night of {NIGHTS[-1]}" in Path(demo["report"]).read_text()
    client = mlflow.MlflowClient(demo["mlflow"])
    for name, task in demo["tasks"].items():
        assert [(n["ds"], n["rows"], n["changed"]) for n in task["nights"]] == [(ds, 90, True) for ds in NIGHTS]
        rows = DeltaTable(f"{demo['tables']}/{name}").to_pyarrow_table()
        assert sorted(rows["ds"].to_pylist()) == [ds for ds in NIGHTS for _ in range(90)]
        assert set(rows["model"].to_pylist()) == {task["model"]}
        _, hybrid, version = task["model"].split("/")
        registered = client.get_model_version(hybrid, version)
        assert sorted(registered.aliases) == ["challenger", "champion"]
        gate = json.loads(registered.tags["hybrid.promotion"])
        assert (gate["passed"], gate["forced"], gate["champion_before"]) == (True, "", None)
        assert gate["candidate_value"] == pytest.approx(task["value"])


def test_while_the_demo_runs_no_library_speaks(outputs: dict[str, str], folder: Path) -> None:
    said, _, asked = (folder / SAID).read_text().partition("\nSELECT ")
    assert asked, "some rows are shown at the end"
    for line in filter(None, said.splitlines()):
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) ", line), line
    (shown,) = [shown for command, shown in outputs.items() if "make demo" in command]
    assert len(shown.splitlines()) == 1, "nor on stdout, beside the summary"


def test_a_nowcasters_card_shows_its_errors_by_lead_time(outputs: dict[str, str], folder: Path) -> None:
    (curves,) = (folder / "demo-out" / "runs").glob("*/artifact/lead-times.png")
    card = (curves.parent / "README.md").read_text()
    assert "![lead-times](lead-times.png)" in card
    assert "| validation metric | value | persistence |" in card


def test_the_demo_answers_questions(outputs: dict[str, str]) -> None:
    queries = [out for cmd, out in outputs.items() if "hybrid query" in cmd]
    assert len(queries) == 4
    assert "2026-01-0" in queries[0]
    assert "ImageDecodeError" in queries[1]
    assert re.search(r"58\.0\s*│\s*60\.0\s*│\s*\w+", queries[2]), queries[2]
    lines = queries[3].splitlines()
    assert lines[0] == '"sample_id","source","translation"'
    assert len(lines) == 6


def test_the_demos_film_is_told_scene_by_scene(outputs: dict[str, str], folder: Path) -> None:
    table = DeltaTable(str(folder / "demo-out/tables/captions")).to_pyarrow_table()
    rows = [row for row in table.to_pylist() if (row["object"] or "").endswith(f"/{FILM}")]
    assert [(row["start_seconds"], row["end_seconds"]) for row in sorted(rows, key=lambda row: row["index"])] == [
        (SHOT_SECONDS * number, SHOT_SECONDS * (number + 1)) for number in range(30)
    ]
    media = (folder / "demo-out/data/scenes" / demo_data.NIGHTS[-1] / FILM).read_bytes()
    frames = decode_media(media, "mp4", Visual(64, 64, 10_000, sampling="first")).array
    said = [{colour for colour in COLOURS if f" {colour} " in row["caption"]} for row in rows]
    seen = [colours_in(frames[int((row["start_seconds"] + 1) * RATE)]) for row in rows]
    assert sum(bool(told) and told <= there for told, there in zip(said, seen, strict=True)) > 20, (said, seen)


def colours_in(frame: np.ndarray) -> set[str]:
    """Names of the colours that things of a scene have."""
    return {
        name for name, colour in COLOURS.items() if (np.abs(frame - np.array(colour, float)).max(-1) < 40).sum() >= 30
    }


def test_own_data_is_trained_on_judged_and_run(outputs: dict[str, str], folder: Path) -> None:
    assert summary(outputs, "hybrid train translator-demo")["epochs"] == 2
    assert summary(outputs, "--input lake/sentences/test")["samples"] == 50
    assert summary(outputs, "hybrid promote")["champion"] == "models:/translator/1"
    night = summary(outputs, "hybrid infer translations")
    assert (night["rows"], night["ok"], night["model"]) == (90, 90, "models:/translator/1")
    nights = summary(outputs, "hybrid nightly")["nights"]
    assert [(night["ds"], night["rows"]) for night in nights][-1] == ("2026-01-02", 90), "the first one was there"
    assert sum(night["rows"] for night in nights) == 90
    assert "Night of 2026-01-02" in (folder / "morning.html").read_text()
    (listed,) = [out for cmd, out in outputs.items() if "hybrid tables" in cmd]
    assert "2026-01-01" in listed
    (listed,) = [out for cmd, out in outputs.items() if cmd.endswith("hybrid models")]
    assert "champion" in listed


def test_the_public_recipes_run(outputs: dict[str, str]) -> None:
    for recipe in ("translator-multi30k", "captioner-flickr8k", "nowcaster-radar", "nowcaster-moving-mnist"):
        trained = summary(outputs, f"hybrid train {recipe}")
        assert trained["epochs"] == 1
        assert np.isfinite(trained["value"])


def test_the_python_example_runs(outputs: dict[str, str], folder: Path) -> None:
    (example,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=folder, env={**os.environ, "PYTHONPATH": str(tiny.ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (tiny.ROOT / target).exists(), target
