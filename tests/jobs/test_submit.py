"""What `hybrid submit` refuses; jobs on a real cluster that wants a token: tests/integration/test_rehearsal.py."""

from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.submit import explain, main
from pipelines.cluster import submission
from pipelines.cluster.submission import Ending


def refusal(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        main(list(argv))
    assert "\n" not in str(caught.value)
    return cli.with_flags(str(caught.value))


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert refusal().startswith("after -- comes a verb and its options: demo, prepare, train, ")
    assert refusal("--", "submit").startswith("after -- comes a verb and its options, not 'submit': ")
    assert refusal("--", "fly").startswith("after -- comes a verb and its options, not 'fly': ")
    assert refusal("--", "query", "SELECT 1").startswith("after -- comes a verb and its options, not 'query': ")
    assert refusal("--", "tidy") == "--address is needed: the URL of the cluster's dashboard, http://HEAD:8265"
    assert refusal("--address", "head", "--", "tidy").startswith("--address 'head' is not the URL")
    assert "--colour" in refusal("--colour", "red", "--", "train")
    (tmp_path / "lake" / "ds=1" / "multi30k").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    places = ("lake/ds=1/multi30k", "./lake", "lake/*/x.tar", "lake/{ds}", "lake/ds=*/x.tar", "~/lake")
    for words in (*(("--data", place) for place in places), ("--data=./lake",)):
        assert "is a path of this machine alone, which the cluster does not see: " in refusal(
            "--", "train", "translator-multi30k", *words, "--storage", "s3://lake"
        )
    assert refusal("--", "train", "x", "--data", "s3://lake/x", "--storage=s3://lake").startswith("--address is needed")
    for verb in ("train x --data s3://lake/x", "demo", "evaluate --input s3://x", "promote x --input s3://x"):
        assert refusal("--", *verb.split()) == (
            f"--storage is needed: by default {verb.split()[0]} writes below the folder where the job runs"
        )
    assert refusal("--", "tidy", "--storage", "s3:/lake") == "s3:/lake is no address of a known kind: write s3://lake"
    for option in ("--tables", "--storage", "--input", "--data", "--out", "--source", "--references"):
        for place in ("lake", "morning.html", "file://lake", "none/x"):
            for words in ([option, place], [f"{option}={place}"], [option, "s3://lake/a", place]):
                assert refusal("--", "report", *words).startswith(f"{option} {place} is a path below the folder where")
        for place in ("/shared/lake", "file:///shared/lake", "s3://lake", "s3://lake/{ds}/*.tar"):
            assert refusal("--", "report", option, place, "--ds", "x").startswith("--address is needed")
    train = ("--", "train", "x", "--data", "s3://lake/x", "--storage", "s3://lake")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    told = "sqlite:///mlflow.db is a database below the folder where the job runs on the cluster"
    assert refusal(*train).startswith(f"MLFLOW_TRACKING_URI {told}")
    for words in (
        ["tidy", "--storage", "s3://lake"],
        ["prepare", "kth", "--out", "s3://lake/x"],
        [*train[1:], "--help"],
    ):
        assert refusal("--", *words).startswith("--address is needed")
    assert refusal(*train, "--mlflow", "http://mlflow:5000").startswith("--address is needed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert refusal(*train, "--mlflow=sqlite:///mlflow.db").startswith(f"--mlflow {told}")
    assert refusal(*train, "--mlflow", "sqlite:////shared/mlflow.db").startswith("--address is needed")


@pytest.mark.parametrize(
    "words",
    [
        ["--mlflow", "http://me:marked@mlflow:5000"],
        ["--mlflow=http://me:marked@mlflow:5000"],
        ["--tables", "s3://key:marked@lake/tables"],
        ["--input", "s3://lake/x?X-Amz-Signature=marked"],
    ],
)
def test_a_command_with_a_secret_is_not_sent(words: list[str]) -> None:
    """Ray shows a job's command to all who may list jobs."""
    told = refusal("--", "report", "--ds", "2026-01-31", *words)
    assert "***" in told
    assert "marked" not in told
    assert told.endswith("on the nodes, or send them by --env-values")


def test_what_is_sent_or_held_back_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[dict[str, str]] = []
    monkeypatch.setattr(submission, "connect", lambda address: None)
    monkeypatch.setattr(
        submission,
        "submit",
        lambda client, command, submission_id, env, metadata: (
            sent.append(env) or submission.Job(client, "job", is_new=True)
        ),
    )
    for name in submission.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    caplog.set_level("INFO")

    def lines(*own: str) -> list[str]:
        caplog.clear()
        main(["--address", "http://head:8265", "--no-wait", *own, "--", "tables", "--tables", "s3://lake"])
        return [f"{record.levelname} {record.getMessage()}" for record in caplog.records][:-1]

    assert lines() == lines("--env-values") == [], "nothing to tell of"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "marked")
    assert lines() == [
        "INFO credentials in AWS_SECRET_ACCESS_KEY are not sent: the job uses those of the nodes; "
        "--env-values sends them"
    ]
    assert "marked" not in str(sent)
    assert lines("--env-values") == [
        "WARNING --env-values sends AWS_SECRET_ACCESS_KEY: all who may list the cluster's jobs can read them "
        "(`ray job list`, dashboard, GCS, logs)"
    ]
    assert sent[-1]["AWS_SECRET_ACCESS_KEY"] == "marked"
    monkeypatch.setenv("HF_TOKEN", "marked")
    assert refusal("--address", "http://head:8265", "--env", "HF_TOKEN", "--", "tables") == (
        "--env HF_TOKEN holds a credential: set it on the nodes, or send it with --env-values"
    )


def test_a_job_that_did_not_succeed_is_explained_by_its_own_last_words() -> None:
    said = ["2026-01-31 INFO working", "hybrid: no model at x: there is no config.json", "noise"]
    assert explain("night", Ending("FAILED", 2, "Job entrypoint command failed", said)) == (
        "job night failed: no model at x: there is no config.json"
    )
    assert explain("night", Ending("STOPPED", None, "Job was intentionally stopped.\nmore", [])) == (
        "job night stopped: Job was intentionally stopped."
    )


def test_a_job_may_ask_for_more_of_the_jail_and_never_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    for value in ("off", "auto"):
        monkeypatch.setenv("HYBRID_JAIL", value)
        assert refusal("--env", "HYBRID_JAIL", "--", "tidy").startswith(f"HYBRID_JAIL={value} is not sent with a job")
    monkeypatch.setenv("HYBRID_JAIL", "required")
    assert refusal("--env", "HYBRID_JAIL", "--", "tidy").startswith("--address is needed")
