import json
import logging
import subprocess
import sys
import unicodedata
from typing import Any

import pytest

from pipelines.cluster import logs


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A root logger of this test's own."""
    own = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(logging, "root", own)
    return own


def emit(root: logging.Logger, message: str, *args: object, exc_info: Any = None, **extra: Any) -> None:
    root.handle(root.makeRecord("pipelines.x", logging.WARNING, "f", 1, message, args, exc_info, extra=extra))


def test_lines_for_people(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(logs.FORMAT, raising=False)
    root.handlers.clear()  # pytest listens, too
    logs.configure()
    with logs.about(ds="2026-01-31"):
        emit(root, "%d rows", 3)
    assert capsys.readouterr().err.endswith(" WARNING 3 rows\n")
    assert root.level == logging.INFO


def test_what_a_terminal_would_obey_is_escaped() -> None:
    """All that Unicode knows of it, and nothing else: other texts, those of other scripts, too, are as they were."""
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        obeyed = unicodedata.category(char) in ("Cc", "Zl", "Zp") or unicodedata.bidirectional(char) in bidi
        if (obeyed and char not in "\t\n") or char in "\u061c\u200e\u200f":
            assert logs.escaped(char) == f"\\u{code:04x}"
        else:
            assert logs.escaped(char) == char
    text = "a\x1b]0;title\x07\x9b31m\u202eb ü 日本\n\tc"
    assert logs.escaped(text) == "a\\u001b]0;title\\u0007\\u009b31m\\u202eb ü 日本\n\tc"
    assert json.loads(logs.escaped(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize("form", ["", "json"])
def test_no_line_commands_a_terminal(
    form: str, root: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.FORMAT, form)
    root.handlers.clear()  # pytest listens, too
    logs.configure()
    emit(root, "row %s", "\x1b[2J\x9b1m\x7f\u202e", shard="\x9b2J")
    printed = capsys.readouterr().err
    assert "row \\u001b[2J\\u009b1m\\u007f\\u202e" in printed
    assert not logs.CONTROLS.search(printed)


@pytest.mark.parametrize("form", ["", "json"])
def test_no_line_has_has_a_password(
    form: str, root: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.FORMAT, form)
    root.handlers.clear()  # pytest listens, too
    logs.configure()
    try:
        raise OSError("cannot reach http://someone:marked@host/?token=marked")
    except OSError:
        emit(root, "asked %s", "http://:marked@host", exc_info=sys.exc_info())
    printed = capsys.readouterr().err
    assert "asked http://***@host" in printed
    assert "cannot reach http://***@host/?token=***" in printed
    assert "marked" not in printed


def test_json_lines_know_what_they_are_about(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.FORMAT, "json")
    root.handlers.clear()  # pytest listens, too
    logs.configure()
    with logs.about(task="captions", ds="2026-01-31"):
        with logs.about(run="r"):
            emit(root, "ä %s\nand more", "b", shard="s3://lake/a.tar", index=4, other=1)
        emit(root, "after", units=3, units_done=1, rows=20, seconds_left=None)
    emit(root, "outside")
    try:
        raise ValueError("broken")
    except ValueError:
        emit(root, "failed", exc_info=sys.exc_info())
    first, after, outside, failed = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time").startswith("20")
    assert first == {
        "level": "WARNING", "logger": "pipelines.x", "message": "ä b\nand more", "task": "captions",
        "ds": "2026-01-31", "run": "r", "shard": "s3://lake/a.tar", "index": 4,
    }  # fmt: skip
    assert (after["ds"], "run" in after) == ("2026-01-31", False)
    assert [after[name] for name in ("units", "units_done", "rows", "seconds_left")] == [3, 1, 20, None]
    assert "ds" not in outside
    assert failed["traceback"].endswith("ValueError: broken")


def test_mlflow_keeps_the_level_that_it_has_here() -> None:
    """It is imported late, and would set its own up: lines of its database's tables, for every newcomer."""
    script = (
        "import logging; from pipelines.cluster import logs; logs.configure(); import mlflow; "
        "print(logging.getLogger('mlflow.store').getEffectiveLevel(), logging.getLogger('mlflow').handlers)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{logging.ERROR} []"
