import json
from pathlib import Path

import mlflow
import pytest

from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.evaluate import main
from tests import tiny


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A translator and pairs to judge it on."""
    folder = tmp_path_factory.mktemp("lake")
    tiny.write_translator(str(folder / "model"))
    tiny.write_pairs(str(folder / "test"), 12, seed=4)
    return folder


@pytest.mark.usefixtures("ray_cluster")
def test_a_judgement_is_printed_and_logged(lake: Path) -> None:
    uri = f"sqlite:///{lake}/mlflow.db"
    summary = main(
        ["--model", f"{lake}/model", "--input", f"{lake}/test", "--storage", f"{lake}/lake", "--mlflow", uri]
    )
    assert (summary["hybrid"], summary["samples"], summary["errors"]) == ("translator", 12, {})
    assert summary["baseline"]["name"] == "copy the source"
    client = mlflow.MlflowClient(uri)
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["bleu"] == pytest.approx(summary["metrics"]["bleu"])
    assert run.data.metrics["baseline/bleu"] == pytest.approx(summary["baseline"]["bleu"])
    assert run.data.params["decoding.max_length"] == "12"
    stored = Path(run.info.artifact_uri.removeprefix("file://")) / "evaluation.json"
    assert json.loads(stored.read_text())["metrics"] == summary["metrics"]
    pictures = stored.parent / "pictures"
    assert sorted(path.name for path in pictures.iterdir()) == [f"example-{number}.png" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--input", "{lake}/test"], "--model"),
        (["--model", "{lake}/model"], "--input"),
        (["--model", "{lake}/none", "--input", "{lake}/test"], "no model at {lake}/none: there is no config.json"),
        (["--model", "{lake}/model", "--input", "{lake}/none"], "no shards found at {lake}/none"),
        (
            ["--model", "{lake}/model", "--input", "{lake}/test", "--stride", "0"],
            "--stride is 0: it must be at least 1",
        ),
        (["--model", "{lake}/model", "--input", "{lake}/test", "--beam", "3"], "--beam"),
        (
            ["--model", "{lake}/model", "--input", "{lake}/test", "--window-seconds", "5"],
            "--window-seconds cuts clips, an",
        ),
        (["--model", "{lake}/model", "--input", "{lake}/cut/test"], "the data set in {lake}/cut is not whole: "),
        (["--model", "{lake}/model", "--input", "{lake}/test", "--storage", "/proc/nowhere"], "cannot write /proc/"),
        (
            ["--model", "{lake}/model", "--input", "{lake}", "--storage", "{lake}/lake"],
            "--input {lake} may reach into {lake}/lake/evaluations, which this command writes: give another --storage",
        ),
    ],
)
def test_mistakes_are_one_line(lake: Path, argv: list[str], message: str) -> None:
    (lake / "cut").mkdir(exist_ok=True)
    (lake / "cut" / "_unfinished").touch()
    with pytest.raises(UsageError) as caught:
        main([argument.format(lake=lake) for argument in argv])
    assert message.format(lake=lake) in cli.with_flags(str(caught.value))
    assert "\n" not in str(caught.value)
