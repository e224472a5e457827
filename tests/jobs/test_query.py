import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.query import asked, main
from pipelines import storage
from pipelines.nights.commit import Partition, commit_night
from pipelines.reading.shards import Shard
from pipelines.staging.pieces import list_pieces, table_schema, tiling
from tests import tiny

SHARD = Shard("s3://lake/in/a.nc", 10, "1")
SCHEMA = table_schema(pa.schema([("lead_minutes", pa.list_(pa.float32())), ("frames", pa.binary())]))
SQL = "SELECT sample_id, lead_minutes, error FROM nowcasts_all ORDER BY index"


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """A folder of tables with three rows of nowcasts, one of them an error row."""
    rows: list[dict[str, Any]] = [
        {"sample_id": "ä,1", "lead_minutes": [5.0, 10.0], "frames": b"\x01\xff", "status": "ok"},
        {"sample_id": 'b"2', "status": "error", "error": "RadarDecodeError: cut"},
        {"sample_id": "c", "lead_minutes": [], "frames": b"", "status": "ok"},
    ]
    for i, row in enumerate(rows):
        row.update(shard=SHARD.uri, index=i, last=i == 2)
    table = storage.join(str(tmp_path / "tables"), "nowcasts")
    folder = storage.join(table, "ds=2026-01-31", "x")
    tiny.stage(folder, SCHEMA, SHARD, pa.Table.from_pylist(rows, schema=SCHEMA))
    pieces = [piece for found in list_pieces(folder).values() for piece in tiling(found) or []]
    commit_night(Partition(table, "2026-01-31"), pieces, SCHEMA, {"run_id": "r"})
    return str(tmp_path / "tables")


def test_a_table_for_people(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([SQL, "--tables", lake]) is None
    lines = capfdbinary.readouterr().out.decode().splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert cells == [
        ["sample_id", "lead_minutes", "error"],
        ["varchar", "float[]", "varchar"],
        ["ä,1", "[5.0, 10.0]", "NULL"],
        ['b"2', "NULL", "RadarDecodeError: cut"],
        ["c", "[]", "NULL"],
    ]


def test_a_reader_that_ends_early_is_no_failure(lake: str) -> None:
    command = [sys.executable, "-m", "jobs.command.cli", "query", SQL, "--tables", lake]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_csv(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    main([SQL, "--tables", lake, "--format", "csv"])
    rows = list(csv.reader(io.StringIO(capfdbinary.readouterr().out.decode())))
    assert rows == [
        ["sample_id", "lead_minutes", "error"],
        ["ä,1", "[5.0,10.0]", ""],
        ['b"2', "", "RadarDecodeError: cut"],
        ["c", "[]", ""],
    ]


FORMULAS = """SELECT '=1+1' AS "=a", '+1' AS b, '-1' AS c, '@x' AS d, e't\\tx' AS e, e'\\tx' AS f, -1 AS g, -1.5 AS h,
    ['=1'] AS i, 'a=1' AS j, NULL::VARCHAR AS k, '=x'::ENUM('=x') AS l, e'\\r=1' AS m, '＝1' AS n"""


def test_csv_holds_nothing_that_a_spreadsheet_would_run(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    main([FORMULAS, "--tables", lake, "--format", "csv"])
    names, values = csv.reader(io.StringIO(capfdbinary.readouterr().out.decode(), newline=""))
    assert names == ["'=a", *"bcdefghijklmn"]
    assert values == [
        "'=1+1", "'+1", "'-1", "'@x", "t\tx", "'\tx", "-1", "-1.5", '["=1"]', "a=1", "", "'=x", "'\r=1", "'＝1"
    ]  # fmt: skip
    main([FORMULAS, "--tables", lake, "--format", "csv", "--raw"])
    names, values = csv.reader(io.StringIO(capfdbinary.readouterr().out.decode(), newline=""))
    assert names == ["=a", *"bcdefghijklmn"]
    assert values == ["=1+1", "+1", "-1", "@x", "t\tx", "\tx", "-1", "-1.5", '["=1"]', "a=1", "", "=x", "\r=1", "＝1"]


def test_limits_are_options(lake: str) -> None:
    with pytest.raises(UsageError, match=r"more than `limits\.max_rows`=2 allows"):
        main([SQL, "--tables", lake, "--limits.max-rows", "2"])


def test_json_is_one_object_a_line(lake: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    main(
        [
            "SELECT sample_id, lead_minutes, frames, ds FROM nowcasts ORDER BY index",
            "--tables",
            lake,
            "--format",
            "json",
        ]
    )
    printed = capfdbinary.readouterr().out.decode()
    assert "ä,1" in printed, "text as it is"
    assert [json.loads(line) for line in printed.splitlines()] == [
        {"sample_id": "ä,1", "lead_minutes": [5.0, 10.0], "frames": "01ff", "ds": "2026-01-31"},
        {"sample_id": "c", "lead_minutes": [], "frames": "", "ds": "2026-01-31"},
    ]


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_rows_go_to_a_file_and_the_summary_to_stdout(
    lake: str, tmp_path: Path, kind: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    out = str(tmp_path / "deep" / "rows")
    named = f"{out}.{kind.upper()}"
    main([SQL, "--tables", lake, "--out", named])
    summary = main([SQL, "--tables", lake, "--format", kind, "--out", out])
    assert Path(named).read_bytes() == Path(out).read_bytes(), "what its name ends with"
    assert summary == {"rows": 3, "columns": ["sample_id", "lead_minutes", "error"], "out": out}
    assert capfdbinary.readouterr().out == b""
    if kind == "parquet":
        assert pq.read_table(out).to_pylist() == [
            {"sample_id": "ä,1", "lead_minutes": [5.0, 10.0], "error": None},
            {"sample_id": 'b"2', "lead_minutes": None, "error": "RadarDecodeError: cut"},
            {"sample_id": "c", "lead_minutes": [], "error": None},
        ]
    else:
        main([SQL, "--tables", lake, "--format", kind])
        assert capfdbinary.readouterr().out == Path(out).read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [SQL, "--format", "parquet", "--tables", "{lake}"],
            "--format parquet needs --out: Parquet is not for a terminal",
        ),
        (
            [SQL, "--tables", "{lake}", "--out", "rows.txt"],
            "--out rows.txt needs --format csv, json or parquet, or to end with .csv, .json or .parquet",
        ),
        (
            [SQL, "--tables", "{lake}", "--format", "table", "--out", "rows.csv"],
            "--format table leaves rows out, and is for a terminal: write csv, json or parquet to --out",
        ),
        (["SELECT nothing FROM nowcasts", "--tables", "{lake}"], 'Referenced column "nothing" not found'),
        (["SELECT 1", "--tables", "{lake}/none"], "no tables at {lake}/none: `hybrid infer` writes captions, "),
        (["SELECT 1"], "--tables"),
        ([SQL, "--tables", "{lake}", "--raw"], "--raw is about --format csv: table has texts as they are"),
        ([SQL, "--tables", "{lake}", "--format", "xml"], "xml"),
        ([SQL, "--tables", "{lake}", "--limit", "3"], "--limit"),
        ([], "SQL"),
    ],
)
def test_mistakes_are_one_line(lake: str, argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        main([argument.format(lake=lake) for argument in argv])
    assert message.format(lake=lake) in cli.with_flags(str(caught.value))
    assert "\n" not in str(caught.value)


def test_only_tables_that_a_statement_names_are_opened() -> None:
    names = ["captions", "nowcasts", "translations"]
    assert asked("SELECT * FROM Captions_all", names) == ["captions"]
    assert asked("SELECT * FROM captions JOIN TRANSLATIONS USING (ds)", names) == ["captions", "translations"]
    assert asked("SELECT 1", names) == names


def test_rows_are_not_written_into_a_table(lake: str) -> None:
    with pytest.raises(UsageError, match=r"`out` .*nowcasts/x\.csv lies in the table"):
        main([SQL, "--tables", lake, "--format", "csv", "--out", f"{lake}/nowcasts/x.csv"])
    assert main([SQL, "--tables", lake, "--format", "csv", "--out", f"{lake}/x.csv"]) is not None
