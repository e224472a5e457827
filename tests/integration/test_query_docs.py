"""The questions of docs/querying.md are asked of real tables on S3, by every engine, and have the right answers."""

import re
from typing import Any

import numpy as np
import pytest

from tests import tiny
from tests.servers import BUCKET

DOCUMENT = (tiny.ROOT / "docs" / "querying.md").read_text()
LEADS = [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0]
RAIN = np.arange(7 * 2 * 3, dtype="<f2").reshape(7, 2, 3)
PERCENT = np.arange(7 * 5 * 2 * 3, dtype=np.uint8).reshape(7, 5, 2, 3)
MAPS = {
    "frames": RAIN.tobytes(),
    "frames_shape": [7, 2, 3],
    "thresholds_mm_h": [0.5, 1.0, 2.0, 5.0, 10.0],
    "probability": PERCENT.tobytes(),
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "captions": [
        {"sample_id": "b", "caption": "a dog runs", "score": -1.0},
        {
            "sample_id": "a",
            "caption": "two dogs",
            "score": -2.0,
            "fields": '{"product": "A7"}',
            "object": "s3://x/a.jpg",
        },
        {"sample_id": "c", "caption": "a cat", "score": -3.0},
    ],
    "nowcasts": [
        {"sample_id": "soon", "lead_minutes": LEADS, "max_mm_h": [1.0, 2.0, 3.0, 4.0, 5.0, 21.5, 30.0]},
        {"sample_id": "late", "lead_minutes": LEADS, "max_mm_h": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 99.0]},
        {"sample_id": "now", "lead_minutes": LEADS, "max_mm_h": [40.25, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], **MAPS},
    ],
    "actions": [
        {
            "sample_id": "clip",
            "label": "runs",
            "score": 0.5,
            "scores": [{"label": "runs", "score": 0.5}, {"label": "walks", "score": 0.25}],
        },
        {"sample_id": "sure", "label": "runs", "score": 0.75, "scores": [{"label": "runs", "score": 0.75}]},
    ],
    "translations": [
        {"sample_id": "x", "source": "a dog", "translation": "ein Hund", "score": -1.5},
        {"sample_id": "y", "source": "a cat", "translation": "eine Kuh", "score": -4.5},
    ],
}
ANSWERS = {
    "captions": [{"sample_id": "a", "caption": "two dogs"}, {"sample_id": "b", "caption": "a dog runs"}],
    "nowcasts": [{"sample_id": "now", "most": 40.25}, {"sample_id": "soon", "most": 21.5}],
    "translations": [{"sample_id": "y", "translation": "eine Kuh", "score": -4.5}],
}


@pytest.fixture(scope="module")
def lake(s3_server: object) -> str:
    """Four tables of two nights on S3, with a row that could not be predicted in each."""
    uri = f"s3://{BUCKET}/querying/tables"
    for name, rows in ROWS.items():
        for ds in ("2026-01-30", "2026-01-31"):
            tiny.write_rows(uri, name, ds, [*rows, {"sample_id": "bad", "error": "ImageDecodeError: cut"}])
    return uri


def engines() -> list[Any]:
    chapters = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    blocks = {title: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for title, text in chapters}
    return [pytest.param(found[0], id=title) for title, found in blocks.items() if found]


def test_three_engines_are_shown() -> None:
    assert [param.id for param in engines()] == ["DuckDB", "Polars", "pandas"]


@pytest.mark.parametrize("code", engines())
def test_the_engines_agree(code: str, lake: str) -> None:
    scope: dict[str, Any] = {}
    exec(code.replace("s3://lake/tables", lake), scope)
    for name, expected in ANSWERS.items():
        answer = scope[name]
        found = answer.to_dicts() if hasattr(answer, "to_dicts") else answer.to_dict("records")
        assert found == expected, name


def test_the_maps_of_a_nowcast_are_arrays(lake: str) -> None:
    (code,) = re.findall(r"^## The maps of a nowcast\n.*?```python\n(.*?)```", DOCUMENT, re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {}
    exec(code.replace("s3://lake/tables", lake), scope)
    np.testing.assert_array_equal(scope["rain"], RAIN)
    np.testing.assert_array_equal(scope["heavy"], PERCENT[5, 3])


@pytest.mark.parametrize(
    ("beginning", "rows"),
    [
        ("SELECT sample_id, caption", ['"a","two dogs"', '"b","a dog runs"']),
        ("SELECT sample_id, error", ['"bad","ImageDecodeError: cut"']),
        ("SELECT sample_id, unnest", ['"clip","runs",0.5', '"clip","walks",0.25'] * 2),
        ("SELECT fields->>'product'", [',"a cat",', ',"a dog runs",', '"A7","two dogs","s3://x/a.jpg"']),
    ],
)
def test_the_command_agrees(beginning: str, rows: list[str], lake: str, tmp_path: Any) -> None:
    commands = re.findall(r'^    hybrid query "(SELECT .*?)" --tables', DOCUMENT, re.MULTILINE)
    (command,) = [command for command in commands if command.startswith(beginning)]
    ran = tiny.hybrid_here("query", command, "--tables", lake, "--format", "csv", cwd=tmp_path)
    assert ran.code == 0, ran.stderr
    assert sorted(ran.stdout.splitlines()[1:]) == sorted(rows)
