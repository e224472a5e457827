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
