import os
import time
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from hybrid_models.translator.translator import TranslatorDecoding
from jobs import tidy
from pipelines.models import artifacts, server
from pipelines.models.tracking import Tracker
from pipelines.staging import uses
from tests import tiny
from tests.pipelines.training.test_leftovers import FINISHED, KEY, OTHER, PIECE, write_features, write_run


def grow_old(folder: str) -> None:
    for path in Path(folder).rglob("*"):
        os.utime(path, (1e9, 1e9))


def test_what_a_model_in_use_or_nobody_needs(
    tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = artifacts.make(tiny.translator(), TranslatorDecoding(beam_size=1), {}, "Card.\n")
    for version in ("1", "2"):
        tracker = Tracker(tracking_uri)
        tracker.start("train", {}, {})
        assert tracker.register("translator", files) == version
    lake = str(tmp_path / "lake")
    free = write_features(lake, KEY)
    for key, version in ((KEY, 1), (OTHER, 2)):  # version 2 is the challenger
        folder = Path(lake, "evaluations", key)
        folder.mkdir(parents=True)
        (folder / PIECE).write_bytes(b"PAR1")
        uses.mark(str(folder), uses.MODEL, f"models:/translator/{version}")
    argv = ["--storage", lake, "--mlflow", tracking_uri]
    assert {folder["files"] for folder in tidy.main(argv)["removed"].values()} == {0}, "all are young"
    grow_old(lake)
    capsys.readouterr()

    shown = tidy.main([*argv, "--dry-run"])
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == f"{free}/{PIECE}"
    assert all(Path(file).exists() for file in listed)
    assert shown["needed"] == {f"{lake}/evaluations/{OTHER}": "models:/translator/2"}
    assert {kind: counts["files"] for kind, counts in shown["removed"].items()} == {
        "features": 1, "evaluations": 2, "runs": 0,
    }  # fmt: skip

    done = tidy.main(argv)
    assert done == {**shown, "dry_run": False}
    assert not any(Path(file).exists() for file in listed)
    assert Path(lake, "evaluations", OTHER, PIECE).exists()


def test_another_mlflow_frees_no_records(tmp_path: Path, tracking_uri: str) -> None:
    """A cron job without `MLFLOW_TRACKING_URI` looks at a database of its own."""
    lake = str(tmp_path / "lake")
    folder = Path(lake, "evaluations", KEY)
    folder.mkdir(parents=True)
    (folder / PIECE).write_bytes(b"PAR1")
    uses.mark(str(folder), uses.MODEL, "models:/translator/2")
    grow_old(lake)
    none = tmp_path / "none.db"
    with pytest.raises(UsageError, match=f"there is no MLflow database at {none}"):
        tidy.main(["--storage", lake, "--mlflow", f"sqlite:///{none}"])
    assert not none.exists()
    server.make_ready(tracking_uri)
    done = tidy.main(["--storage", lake, "--mlflow", tracking_uri])
    assert done["needed"] == {str(folder): "models:/translator/2, which this MLflow does not know"}
    assert (folder / PIECE).exists()


def test_a_storage_is_named(tracking_uri: str) -> None:
    with pytest.raises(UsageError, match="--storage"):
        tidy.main(["--mlflow", tracking_uri])


def age(folder: str, hours: float) -> None:
    """Sets the times of all files below a folder back."""
    for path in Path(folder).rglob("*"):
        os.utime(path, (time.time() - 3600 * hours,) * 2)


def below(lake: str) -> dict[str, bytes]:
    return {str(path.relative_to(lake)): path.read_bytes() for path in Path(lake).rglob("*") if path.is_file()}


@pytest.mark.parametrize("hours", [13.0, 30.0])
def test_runs_that_are_unfinished_or_in_use_keep_everything(tmp_path: Path, tracking_uri: str, hours: float) -> None:
    """Older than twelve hours nothing is safe for its age alone for long; a finished run loses its checkpoints."""
    server.make_ready(tracking_uri)
    lake = str(tmp_path / "lake")
    going, done, busy = (
        write_run(lake, name, FINISHED if name != "going" else None) for name in ("going", "done", "busy")
    )
    write_features(lake, KEY, (uses.RUN, going), (uses.RUN, done))
    write_features(lake, OTHER, (uses.RUN, done))
    before = below(lake)
    age(lake, hours)
    (Path(busy) / "history.jsonl").touch()  # a second start of this name is at work
    freed = tidy.main(["--storage", lake, "--mlflow", tracking_uri])
    gone = before.keys() - below(lake).keys()
    assert below(lake).items() <= before.items()
    if hours < 24:
        assert gone == set()
    else:
        assert {path for path in gone if not path.startswith("runs/done/")} == {
            path for path in before if path.startswith(f"features/{OTHER}/")
        }
        assert freed["removed"]["runs"]["files"] == len([path for path in gone if path.startswith("runs/done/")]) == 5
        assert "runs/done/checkpoint_epoch_0001/mine.txt" in below(lake)
    assert freed["needed"][going] == ("somebody, within the last day" if hours < 24 else "it is unfinished")
    assert freed["needed"][busy] == "somebody, within the last day"
