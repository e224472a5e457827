import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from pipelines import submission
from pipelines.submission import Ending, LogLines
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


def test_only_source_is_sent_along(tmp_path: Path) -> None:
    submission.pack(tmp_path)
    sent = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert sent == {
        str(path.relative_to(tiny.ROOT))
        for name in submission.PACKAGES
        for path in (tiny.ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"jobs/train.py", "pipelines/report.html"} <= sent
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
