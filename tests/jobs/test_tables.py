import json
import os
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from jobs import query
from jobs.tables import main
from tests.pipelines.test_query import write_night


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """Two nights of captions."""
    uri = str(tmp_path / "tables")
    write_night(uri, "2026-01-30", ["a dog", None, "a cat"])
    write_night(uri, "2026-01-31", ["a ball"])
    return uri


def listed(capfdbinary: pytest.CaptureFixture[bytes], *argv: str) -> list[dict]:
    assert main([*argv, "--format", "json"]) is None
    return [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]


def test_nights_are_listed_now_and_as_they_were(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    nights = listed(capfdbinary, "--tables", lake)
    known = [(n["table"], n["version"], n["ds"], n["rows"], n["files"]) for n in nights]
    assert known == [("captions", 2, "2026-01-30", 3, 1), ("captions", 2, "2026-01-31", 1, 1)]
    assert all(night["bytes"] > 1000 for night in nights)
    assert [night["ds"] for night in listed(capfdbinary, "--tables", lake, "--as-of", "1")] == ["2026-01-30"]
    main(["--tables", lake])
    assert "2026-01-31" in capfdbinary.readouterr().out.decode()


def test_tidying_frees_what_nobody_needs(lake: str) -> None:
    stray = Path(lake, "captions", "ds=2026-01-29", "old.parquet")
    stray.parent.mkdir()
    stray.write_bytes(b"12345")
    kept = main(["tidy", "--tables", lake, "--retain-hours", "1"])
    assert kept == {"tables": lake, "removed": {"captions": {"files": 0, "bytes": 0}}}, "it is too young"
    os.utime(stray, (1e9, 1e9))
    freed = main(["tidy", "--tables", lake, "--retain-hours", "1"])
    assert freed == {"tables": lake, "removed": {"captions": {"files": 1, "bytes": 5}}}
    assert not stray.exists()


def test_an_earlier_state_is_asked_by_the_command(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    sql = "SELECT count(*) AS n FROM captions"
    query.main([sql, "--tables", lake, "--as-of", "1", "--format", "csv"])
    assert capfdbinary.readouterr().out == b'"n"\n2\n'
    query.main([sql, "--tables", lake, "--format", "csv"])
    assert capfdbinary.readouterr().out == b'"n"\n3\n'


def test_mistakes_are_one_line(lake: str) -> None:
    def refusal(*argv: str) -> str:
        with pytest.raises(UsageError) as caught:
            main(list(argv))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refusal("--tables", f"{lake}/none").startswith(f"no tables at {lake}/none: ")
    assert refusal("--tables", lake, "--as-of", "99") == f"{lake}/captions has no version 99: its newest is 2"
    assert refusal("--tables", lake, "--as-of", "soon").startswith("--as-of 'soon' is neither a version nor a time")
    assert refusal("tidy", "--tables", lake, "--retain-hours", "0").startswith("--retain-hours is 0: ")
    assert refusal("tidy", "--tables", f"{lake}/none").startswith("no tables at ")
