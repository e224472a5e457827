import http.server
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from ray.job_submission import JobSubmissionClient

from hybrid_models.errors import UsageError
from pipelines.cluster import logs, submission
from pipelines.cluster.submission import Ending, LogLines
from tests import tiny
from tests.servers import free_ports


@contextmanager
def answering(status: int) -> Iterator[str]:
    """An HTTP server that answers everything so; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_an_address_that_is_none_is_a_mistake() -> None:
    for address in ("head:8265", "ray://head:10001", "http://", "auto"):
        with pytest.raises(UsageError, match="is not the URL of a Ray dashboard: write http://HEAD:8265"):
            submission.connect(address)


def test_who_does_not_answer_or_is_not_ray_is_named() -> None:
    address = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ConnectionError, match=f"^no Ray cluster answers at {address}: connection refused$"):
        submission.connect(address)
    with answering(200) as other, pytest.raises(ConnectionError, match=f"^no Ray cluster answers at {other}: "):
        submission.connect(other)
    with answering(500) as broken, pytest.raises(ConnectionError, match=f"^no Ray cluster answers at {broken}: "):
        submission.connect(broken)


@pytest.mark.parametrize(("status", "message"), [(401, "wants a token"), (403, "does not know this token")])
def test_what_is_wrong_with_the_token_is_said(status: int, message: str) -> None:
    with answering(status) as address, pytest.raises(UsageError) as caught:
        submission.connect(address)
    assert str(caught.value).startswith(
        f"the Ray cluster at {address} {message}: set RAY_AUTH_MODE=token, and RAY_AUTH"
    )


def test_a_password_in_an_address_is_not_shown() -> None:
    port = free_ports(1)[0]
    with pytest.raises(ConnectionError) as caught:
        submission.connect(f"http://me:secret@127.0.0.1:{port}")
    assert str(caught.value).startswith(f"no Ray cluster answers at http://***@127.0.0.1:{port}: ")
    assert "secret" not in str(caught.value)


class Jobs(JobSubmissionClient):
    """A cluster's list of jobs, and one job that ends after some questions about it."""

    def __init__(self, **jobs: str) -> None:
        self.jobs = jobs
        self.asked = 0

    def list_jobs(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                submission_id=name.replace("_", ".").removeprefix("other."),
                status=SimpleNamespace(value=status),
                metadata=None if name.startswith("other_") else {submission.ATTEMPT_OF: "night"},
            )
            for name, status in self.jobs.items()
        ]

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        yield "one\ntw"
        raise RuntimeError("the connection closed")

    def get_job_info(self, name: str) -> SimpleNamespace:
        self.asked += 1
        if self.asked == 1:
            raise requests.ConnectionError("away for a moment")
        ended = self.asked == 3
        status = SimpleNamespace(value="FAILED" if ended else "RUNNING", is_terminal=lambda: ended)
        return SimpleNamespace(status=status, driver_exit_code=3, message="it failed")

    def get_job_logs(self, name: str) -> str:
        return "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("jobs", "found"),
    [
        ({}, ("", "night")),
        ({"night": "RUNNING"}, ("night", "night.2")),
        ({"night": "SUCCEEDED", "nightly": "FAILED"}, ("night", "night.2")),
        ({"night": "FAILED"}, ("", "night.2")),
        ({"night_10": "STOPPED", "night_9": "SUCCEEDED"}, ("", "night.11")),
        ({"night": "FAILED", "night_2": "PENDING"}, ("night.2", "night.3")),
        ({"other_night_20261130": "SUCCEEDED"}, ("", "night")),
        ({"night": "FAILED", "other_night_20261130": "SUCCEEDED"}, ("", "night.2")),
        ({"night": "FAILED", "other_night_2": "SUCCEEDED"}, ("", "night.3")),
        ({"other_night": "RUNNING"}, ("night", "night.2")),
    ],
)
def test_a_name_is_looked_up(jobs: dict[str, str], found: tuple[str, str]) -> None:
    assert submission._look_up(Jobs(**jobs), "night") == found
    assert submission._look_up(Jobs(**jobs), "") == ("", "")


def test_a_job_is_followed_through_lost_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "POLL_SECONDS", 0.01)
    shown: list[str] = []
    job = submission.Job(Jobs(), "night", is_new=True)
    assert submission.follow(job, shown.append) == Ending("FAILED", 3, "it failed", ["one", "two", "three"])
    assert shown == ["one", "two", "three"], "each line once"


def test_a_cluster_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(submission, "LOST_SECONDS", 0.05)
    jobs = Jobs()
    monkeypatch.setattr(jobs, "get_job_info", lambda name: (_ for _ in ()).throw(requests.ConnectionError("gone")))
    with pytest.raises(ConnectionError, match="does not answer any more: gone; see `ray job logs night`"):
        submission.follow(submission.Job(jobs, "night", is_new=True), print)


SUBMITTER = {
    "AWS_ACCESS_KEY_ID": "marked-1", "AWS_SECRET_ACCESS_KEY": "marked-2", "AWS_SESSION_TOKEN": "marked-3",
    "AWS_ENDPOINT_URL": "https://s3.example", "AWS_REGION": "eu-1", "AWS_PROFILE": "mine",
    "AWS_ROLE_ARN": "arn:aws:iam::1:role/x", "AWS_SHARED_CREDENTIALS_FILE": "/home/me/keys",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "MLFLOW_TRACKING_URI": "https://me:marked-4@mlflow.example",
    "MLFLOW_TRACKING_USERNAME": "marked-5", "MLFLOW_TRACKING_PASSWORD": "marked-6", "MLFLOW_TRACKING_TOKEN": "marked-7",
    "HF_TOKEN": "marked-8", "HTTPS_PROXY": "http://me:marked-9@proxy", "HYBRID_LOG_FORMAT": "json", "EMPTY": "",
}  # fmt: skip
REFERENCES = ["AWS_PROFILE", "AWS_ROLE_ARN", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"]
PLAIN = {
    "AWS_ENDPOINT_URL": "https://s3.example", "AWS_REGION": "eu-1", "HYBRID_LOG_FORMAT": "json",
    "MLFLOW_TRACKING_URI": "https://mlflow.example",
}  # fmt: skip
HELD = [*submission.CREDENTIALS, "MLFLOW_TRACKING_URI"]


@pytest.fixture
def submitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who has all kinds of credentials."""
    for name in (*submission.SETTINGS, *submission.CREDENTIALS):
        monkeypatch.delenv(name, raising=False)
    for name, value in SUBMITTER.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("submitter")
def test_by_default_no_secret_is_sent() -> None:
    env, held = submission.environment([], with_credentials=False)
    assert env == PLAIN
    assert sorted(held) == sorted(HELD)
    named, _ = submission.environment([*REFERENCES, "EMPTY"], with_credentials=False)
    assert named == {**PLAIN, **{name: SUBMITTER[name] for name in REFERENCES}}


@pytest.mark.usefixtures("submitter")
@pytest.mark.parametrize("name", ["HF_TOKEN", "HTTPS_PROXY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_USERNAME"])
def test_a_named_credential_is_sent_on_request_alone(name: str) -> None:
    with pytest.raises(UsageError, match=f"^`env` {name} holds a credential: .*`env_values`$"):
        submission.environment([name], with_credentials=False)
    env, sent = submission.environment([name], with_credentials=True)
    assert env == {**PLAIN, **{name: SUBMITTER[name] for name in (*HELD, name)}}
    assert sorted(sent) == sorted({*HELD, name})


def test_a_variable_that_is_not_set_is_a_mistake() -> None:
    for with_credentials in (False, True):
        with pytest.raises(UsageError, match=r"^`env` NOT_SET_ANYWHERE is not set here$"):
            submission.environment(["NOT_SET_ANYWHERE"], with_credentials)


def test_no_file_of_secrets_is_sent_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "SOURCE", tmp_path / "checkout")
    names = (".env", ".git/config", "infra/.env", "jobs/.env", "jobs/credentials", "pipelines/.aws/credentials",
             "hybrid_models/key.pem", "hybrid_models/secrets.json", "jobs/train.py")  # fmt: skip
    for name in names:
        file = tmp_path / "checkout" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("marked")
    submission.pack(tmp_path / "sent")
    assert [path.name for path in (tmp_path / "sent").rglob("*") if path.is_file()] == ["train.py"]


def test_only_source_is_sent_along(tmp_path: Path) -> None:
    submission.pack(tmp_path)
    sent = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert sent == {
        str(path.relative_to(tiny.ROOT))
        for name in submission.PACKAGES
        for path in (tiny.ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".md", ".typed")
    }
    assert {"jobs/train.py", "pipelines/nights/report.html"} <= sent
    assert (tmp_path / "jobs/train.py").read_bytes() == (tiny.ROOT / "jobs/train.py").read_bytes()


def test_lines_come_once_however_often_their_text_does() -> None:
    shown: list[str] = []
    lines = LogLines(shown.append)
    lines.take("one\ntw", 0)
    lines.take("o\nthree\n", 6)
    lines.take("one\ntwo\nthr", 0)  # the connection broke: all of it again
    lines.take("ee\n\nfour", 11)
    assert shown == ["one", "two", "three", ""]
    assert lines.finish() == ["one", "two", "three", "four"]
    assert shown == ["one", "two", "three", "", "four"]


def test_the_summary_is_the_last_json_object() -> None:
    lines = ['{"rows": 1}', "noise", '{"rows": 2}', "{not json", "bye"]
    assert Ending("SUCCEEDED", 0, "", lines).summary == {"rows": 2}
    assert Ending("SUCCEEDED", 0, "", ["bye"]).summary == {}
    record = logging.LogRecord("root", logging.ERROR, "", 0, "traceback", None, None)
    logged = logs._Json().format(record)
    assert Ending("FAILED", 3, "", ['{"nights": []}', logged]).summary == {"nights": []}
    assert Ending("FAILED", 3, "", [logged]).summary == {}
