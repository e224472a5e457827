"""What a data set is made of is opened in a child."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hybrid_models.errors import BadSample
from pipelines.datasets import opened as module
from pipelines.datasets.opened import opened
from pipelines.reading.sandbox import jail
from tests import tiny
from tests.pipelines.datasets.makes import crashes, fails, read_secret, refuses, told


@pytest.mark.parametrize("name", ["a.jpg", "a.nc"])
def test_a_file_is_opened_elsewhere_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    (tmp_path / name).write_bytes(tiny.jpeg(1))
    process, size, environment = json.loads(opened(str(tmp_path / name), told))
    assert size == len(tiny.jpeg(1))
    assert process != os.getpid()
    assert "canary" not in environment.values()
    assert environment["HOME"] == "/nonexistent"


@pytest.mark.skipif(jail.in_force("auto") != jail.WHOLE, reason="this machine has no jail")
def test_a_file_that_takes_its_reader_over_reads_no_other(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary")
    (tmp_path / "a.nc").write_text(str(tmp_path / "secret"))
    with pytest.raises(BadSample, match=r"^UnexpectedError: PermissionError: "):
        opened(str(tmp_path / "a.nc"), read_secret)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (refuses, "^Odd: 3 bytes$"),
        (fails, r"^UnexpectedError: LookupError: .*3 bytes.* \(tried 2 times\)$"),
        (crashes, r"^InputCrashed: the process that worked on this row was killed by SIGSEGV \(tried 2 times\)$"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, make: module.Make, error: str) -> None:
    (tmp_path / "a.avi").write_bytes(b"abc")
    with pytest.raises(BadSample, match=error):
        opened(str(tmp_path / "a.avi"), make)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened(str(tmp_path / "b.nc"), told)


def test_a_child_that_answers_nothing_made_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.avi").write_bytes(b"abc")
    for rows in ([], [{"made": None, "error": None}]):
        monkeypatch.setattr(module, "guarded", lambda *_, rows=rows: [module.pa.Table.from_pylist(rows, module.MADE)])
        with pytest.raises(BadSample, match=r"answered nothing$"):
            opened(str(tmp_path / "a.avi"), told)
