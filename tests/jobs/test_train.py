import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.recipes import RECIPES
from jobs.train import main
from pipelines import storage
from pipelines.cluster import connection
from pipelines.models import tracking
from pipelines.reading.shards import Shard
from pipelines.training import driver, runs
from pipelines.training.runs import Trained, TrainJob
from tests import tiny


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set."""
    folder = tmp_path_factory.mktemp("lake")
    tiny.write_pairs(str(folder / "data/train"), 4, seed=1)
    tiny.write_pairs(str(folder / "data/val"), 4, seed=2)
    return folder


def trained_as(run: str, lake: Path) -> Trained:
    return Trained(
        run, "translator", f"{run}/artifact", "models:/translator/3", "3", "val_bleu", 12.5, {"val_bleu": 12.5}, 1, 1,
        9, 99, f"sqlite:///{lake}/m.db", "run", {},
    )  # fmt: skip


@pytest.fixture
def trained(lake: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TrainJob]]:
    """Jobs that would have been trained; no cluster starts."""
    jobs: list[TrainJob] = []

    def note(job: TrainJob, shards: tuple[list[Shard], list[Shard]]) -> Trained:
        assert [len(part) for part in shards] == [1, 1]
        jobs.append(job)
        return trained_as(job.run, lake)

    monkeypatch.setattr(driver, "train", note)
    monkeypatch.setattr(connection, "connect", contextlib.nullcontext)
    yield jobs
    for job in jobs:
        shutil.rmtree(job.run, ignore_errors=True)


def argv(lake: Path, *more: str) -> list[str]:
    return ["--data", f"{lake}/data", "--storage", f"{lake}/lake", "--mlflow", f"sqlite:///{lake}/m.db", *more]


def refusal(arguments: list[str]) -> str:
    with pytest.raises(UsageError) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    return cli.with_flags(str(caught.value))


def test_a_recipe_is_what_is_trained_unless_overridden(lake: Path, trained: list[TrainJob]) -> None:
    assert main(["translator-demo", *argv(lake)])["run"] == f"{lake}/lake/runs/translator-demo"
    more = ["--name", "mine.1", "--num-workers", "2", "--model.hidden-size", "48", "--model.no-tie-embeddings",
            "--train.schedule", "constant", "--train.learning-rate", "0.5", "--decoding.beam-size", "2",
            "--limits.max-bytes", "99", "--resources.batch-size", "7", "--checkpoint-minutes", "0.5"]  # fmt: skip
    assert main(["translator-demo", *argv(lake, *more)])["run"] == f"{lake}/lake/runs/mine.1"
    plain, changed = trained
    assert plain.recipe == RECIPES["translator-demo"]()
    assert (plain.recipe_name, plain.name, plain.num_workers) == ("translator-demo", "translator-demo", 1)
    assert (plain.data, plain.tracking_uri) == (f"{lake}/data", f"sqlite:///{lake}/m.db")
    differences = {
        key: (old, new)
        for (key, old), (_, new) in zip(
            tracking.flatten(runs.plain(plain.recipe)), tracking.flatten(runs.plain(changed.recipe)),
            strict=True,
        )
        if old != new
    }  # fmt: skip
    assert differences == {
        "model.hidden_size": (192, 48),
        "model.tie_embeddings": (True, False),
        "train.schedule": ("cosine", "constant"),
        "train.learning_rate": (5e-3, 0.5),
        "decoding.beam_size": (3, 2),
        "limits.max_bytes": (256 * 2**20, 99),
    }
    assert (plain.checkpoint_minutes, changed.checkpoint_minutes) == (10.0, 0.5)
    assert (changed.num_workers, changed.resources.batch_size) == (2, 7)


def test_workers_may_come_and_go(lake: Path, trained: list[TrainJob]) -> None:
    main(["translator-demo", *argv(lake, "--num-workers", "1..4")])
    assert (trained[-1].num_workers, trained[-1].workers) == ((1, 4), (1, 4))


@pytest.mark.parametrize(
    ("flags", "features"),
    [
        ([], "auto"),
        (["--gpu", "no"], "no"),
        (["--gpu", "yes"], "yes"),
        (["--gpu", "no", "--resources.gpu", "yes"], "yes"),
    ],
)
def test_features_are_made_where_the_training_is(
    lake: Path, trained: list[TrainJob], flags: list[str], features: str
) -> None:
    main(["translator-demo", *argv(lake, *flags)])
    assert trained[-1].resources.gpu == features


def test_a_finished_run_is_not_trained_again(lake: Path, trained: list[TrainJob]) -> None:
    run = f"{lake}/lake/runs/translator-demo"
    main(["translator-demo", *argv(lake)])
    (job,) = trained
    storage.write_bytes(f"{run}/run.json", runs.state_of(job, runs.check(job), None))
    summary = asdict(trained_as(run, lake))
    storage.write_bytes(f"{run}/summary.json", json.dumps(summary).encode())
    assert main(["translator-demo", *argv(lake)]) == summary
    assert trained == [job]
    epochs = RECIPES["translator-demo"]().train.epochs
    assert refusal(["translator-demo", *argv(lake, "--train.epochs", "9")]) == (
        f"run 'translator-demo' was started with train.epochs={epochs}, not 9: use another --name"
    )
    assert main(["translator-demo", *argv(lake, "--train.epochs", "9", "--name", "other")])["run"].endswith("/other")
    shutil.rmtree(run)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train.epochs", "0"], "train.epochs is 0: it must be at least 1"),
        (["--train.metric", "cider_d"], "train.metric 'cider_d' is unknown for a translator: use loss, bleu, chrf"),
        (["--model.hidden-size", "0"], "hidden_size is 0: it must be at least 1"),
        (["--model.hidden-size", "big"], "--model.hidden-size"),
        (["--model.hidden", "3"], "--model.hidden"),
        (["--train.schedule", "linear"], "linear"),
        (["--name", "../up"], "--name '../up' must be letters, digits, '.', '_' and '-'"),
        (["--checkpoint-minutes", "-1"], "--checkpoint-minutes is -1.0: it must be 0 or more"),
        (["--num-workers", "1.."], "--num-workers '1..' must be a number, or two with '..' between them, such as 1..4"),
        (["--num-workers", "two"], "--num-workers 'two' must be a number"),
        (["--num-workers", "-1"], "--num-workers"),
        (["--num-workers", "4..2"], "--num-workers is 4..2: the least comes first, 2..4"),
        (["--num-workers", "0..2"], "--num-workers is 0: it must be at least 1"),
        (["--num-workers", "0"], "--num-workers is 0: it must be at least 1"),
        (["--num-workers", "17"], "--train.batch-size 16 is too small for --num-workers 17: it must be at least 17"),
        (["--data", "/none"], "no shards found at /none/train"),
        (["--window-seconds", "5"], "--window-seconds cuts clips, and this model reads none: leave it out"),
        (["--train.max-failures", "-1"], "train.max-failures is -1: it must be 0 or more, below"),
        (["--storage", "/proc/nowhere"], "cannot write /proc/nowhere/"),
        (
            ["--data", "/lake/runs/first", "--storage", "/lake"],
            "--data /lake/runs/first/train lies in /lake/runs, which",
        ),
        (["--data", "/lake", "--storage", "/lake/val"], "--data /lake/val may reach into /lake/val/runs, which this"),
    ],
)
def test_mistakes_are_one_line(lake: Path, trained: list[TrainJob], more: list[str], message: str) -> None:
    assert message in refusal(["translator-demo", *argv(lake, *more)])
    assert trained == []


def test_a_data_set_that_is_not_whole_is_not_trained_on(lake: Path, trained: list[TrainJob]) -> None:
    marker = lake / "data" / "_unfinished"
    marker.touch()
    assert refusal(["translator-demo", *argv(lake)]) == (
        f"the data set in {lake}/data is not whole: it is being prepared, or that was cut short; prepare it again "
        f"(or remove {lake}/data/_unfinished if none is to be there)"
    )
    marker.unlink()
    assert trained == []


def test_what_has_no_default_is_asked_for(trained: list[TrainJob]) -> None:
    assert "--data" in refusal(["captioner-demo"])
    assert refusal(["captioner-imagenet"]).startswith("unknown recipe 'captioner-imagenet': use captioner-coco, ")
    assert trained == []


def test_a_refused_training_leaves_nothing_behind(lake: Path, tmp_path: Path) -> None:
    places = ["--data", f"{lake}/none", "--storage", str(tmp_path / "lake"), "--mlflow", f"sqlite:///{tmp_path}/m.db"]
    assert "no shards found" in refusal(["translator-demo", *places])
    assert not (tmp_path / "m.db").exists()
    assert refusal(["translator-demo", *argv(lake, "--register-as", "a b")]).startswith("--register-as 'a b' must be ")
