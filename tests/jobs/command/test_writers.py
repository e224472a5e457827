import io
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_models.errors import UsageError
from jobs.command.writers import FORMULA, WRITERS, raw_csv, show
from pipelines.cluster import logs

ROWS = pa.table({"name": ["=1+1", "plain", None], "score": [-1.5, 2.0, None]})


def test_each_format_has_every_row() -> None:
    assert [json.loads(line) for line in WRITERS["json"](ROWS).splitlines()] == ROWS.to_pylist()
    assert pq.read_table(io.BytesIO(WRITERS["parquet"](ROWS))).equals(ROWS)
    assert len(WRITERS["csv"](ROWS).splitlines()) == len(ROWS) + 1
    assert all(name in WRITERS["table"](ROWS).decode() for name in ("name", "score", "plain"))


def test_what_parquet_does_not_know_is_told() -> None:
    rows = pa.table({"x": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(
        UsageError, match=r"^Parquet cannot hold a column: .*: cast it, such as `CAST\(x AS VARCHAR\)`$"
    ):
        WRITERS["parquet"](rows)


def test_only_texts_lose_their_meaning_as_formulas_and_none_where_asked_for_raw() -> None:
    assert b"'=1+1" in WRITERS["csv"](ROWS)
    assert b"-1.5" in WRITERS["csv"](ROWS)
    assert b"'-1.5" not in WRITERS["csv"](ROWS)
    assert b"'" not in raw_csv(ROWS)
    assert FORMULA.startswith("^")


HOSTILE = pa.table({"a\x1b[31m": ["\x1b]0;x\x07\x9b2J\x7f\u202eü\ty"]})


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_rows_command_no_terminal(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a file or pipe they go byte by byte."""
    content = WRITERS[form](HOSTILE)
    for is_terminal in (False, True):
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        monkeypatch.setattr(out, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys, "stdout", out)
        show(content)
        written = out.buffer.getvalue()  # type: ignore[attr-defined]
        assert (written == content) != is_terminal
        assert bool(logs.CONTROLS.search(written.decode())) != is_terminal
        assert "ü" in written.decode()
        if form == "json":
            assert json.loads(written) == HOSTILE.to_pylist()[0]
