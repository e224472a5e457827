import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import query, statement, tables
from pipelines.nights.commit import Partition, commit_night
from pipelines.nights.rules import QueryLimits
from pipelines.reading.shards import Shard
from pipelines.staging import contents
from pipelines.staging.pieces import list_pieces, table_schema, tiling
from tests import tiny
from tests.pipelines.nights.test_statement import condition
from tests.pipelines.reading.made import encrypted_parquet

NAMES = ["captions", "nowcasts", "translations"]
ONE_SELECT = "a query is one SELECT (or DESCRIBE, SUMMARIZE, SHOW, EXPLAIN) and nothing else"
SHARD = Shard("s3://lake/in/a.tar", 10, "1")
SCHEMA = table_schema(pa.schema([pa.field("caption", pa.string()), pa.field("score", pa.float32())]))


def write_night(tables_uri: str, ds: str, captions: list[str | None], name: str = "captions") -> None:
    """A night of `captions`; None is an error row."""
    rows: list[dict[str, Any]] = [
        {
            "sample_id": f"{ds}-{i}", "caption": caption, "score": None if caption is None else -0.5 * i,
            "status": "error" if caption is None else "ok",
            "error": "ImageDecodeError: cut" if caption is None else None, "shard": SHARD.uri, "index": i,
            "last": i + 1 == len(captions), "created_at": datetime(2026, 1, 31, tzinfo=UTC),
        }
        for i, caption in enumerate(captions)
    ]  # fmt: skip
    table = storage.join(storage.absolute(tables_uri), name)
    folder = storage.join(table, f"ds={ds}", f"fingerprint{len(captions)}")
    tiny.stage(folder, SCHEMA, SHARD, pa.Table.from_pylist(rows, schema=SCHEMA))
    pieces = [piece for found in list_pieces(folder).values() for piece in tiling(found) or []]
    commit_night(Partition(table, ds), pieces, SCHEMA, {"run_id": "r"})


@pytest.fixture(params=["local", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    uri = str(tmp_path / "tables") if request.param == "local" else request.getfixturevalue("s3")
    write_night(uri, "2026-01-30", ["a dog", None, "a cat"])
    write_night(uri, "2026-01-31", ["a ball"])
    return uri


@pytest.fixture
def local(tmp_path: Path) -> str:
    uri = str(tmp_path / "tables")
    write_night(uri, "2026-01-30", ["a dog", None, "a cat"])
    return uri


def ask(sql: str, uri: str) -> list[dict[str, Any]]:
    return query.query(sql, uri, NAMES).to_pylist()


def refusal(sql: str, uri: str) -> str:
    with pytest.raises(UsageError) as caught:
        query.query(sql, uri, NAMES)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_views_of_some_dates_have_no_other_files(lake: str) -> None:
    write_night(lake, "2026-02-01", ["late"])
    for file in storage.list_all(f"{lake}/captions/ds=2026-01-30"):
        storage.delete(file.uri, storage.anything)
    sql = "SELECT ds, caption FROM captions ORDER BY ds"
    found = query.query(sql, lake, ["captions"], dates=("2026-01-31", "2026-02-01")).to_pylist()
    assert found == [{"ds": "2026-01-31", "caption": "a ball"}, {"ds": "2026-02-01", "caption": "late"}]
    assert query.query(sql, lake, ["captions"], dates=("2026-02-01", "2026-02-01")).to_pylist() == found[1:]
    assert query.query(sql, lake, ["captions"], dates=("2027-01-01", "2027-01-31")).num_rows == 0


@pytest.mark.parametrize("plain_footer", [True, False])
def test_encrypted_parquet_beside_a_tables_files_is_not_read_and_in_their_place_it_is_named(
    local: str, plain_footer: bool
) -> None:
    content = encrypted_parquet(pa.table({"caption": ["a dog"]}), "caption", plain_footer)
    for path in ("extra.parquet", "ds=2026-01-30/extra.parquet", "ds=2026-01-31/extra.parquet"):
        storage.write_bytes(f"{local}/captions/{path}", content)
    assert ask("SELECT count(*) AS n FROM captions_all", local) == [{"n": 3}]
    (file,) = DeltaTable(f"{local}/captions").file_uris()
    storage.write_bytes(file, content, storage.anything)
    for log in Path(local, "captions", "_delta_log").glob("*.json"):  # whoever replaces a file can tell of its size
        log.write_text(re.sub(r'"size":\d+', f'"size":{len(content)}', log.read_text()))
    with pytest.raises(storage.StorageError, match=r"^cannot query .*crypt") as caught:
        ask("SELECT caption FROM captions", local)
    assert "\n" not in str(caught.value)
    assert local in str(caught.value)


@pytest.mark.parametrize("where", ["ds = '2026-01-31'", "ds > '2026-01-30'", "ds IN ('2026-01-31', '2026-02-01')"])
def test_a_query_of_one_night_opens_no_file_of_another(lake: str, where: str) -> None:
    """They are gone here, which a query that needs them says."""
    for file in storage.list_all(f"{lake}/captions/ds=2026-01-30"):
        storage.delete(file.uri, storage.anything)
    assert ask(f"SELECT count(*) AS n, min(caption) AS c FROM captions WHERE {where}", lake) == [
        {"n": 1, "c": "a ball"}
    ]
    with pytest.raises((UsageError, storage.StorageError), match="ds=2026-01-30"):
        ask("SELECT min(caption) FROM captions", lake)


def test_who_asks_for_errors_opens_no_file_without_one(lake: str) -> None:
    """As the log tells of those of which somebody looked. They are gone here, which a query that needs them says."""
    table = f"{storage.absolute(lake)}/captions"
    folder = f"{table}/ds=2026-01-31/0123456789ab"
    for number, error in enumerate((None, "X: y", None)):
        shard = Shard(f"s3://lake/in/{number}.tar", 10, "1")
        row = {"sample_id": str(number), "error": error, "status": "error" if error else "ok", "shard": shard.uri}
        tiny.stage(folder, SCHEMA, shard, pa.Table.from_pylist([{**row, "index": 0, "last": True}], schema=SCHEMA))
    pieces = [piece for found in list_pieces(folder).values() for piece in tiling(found) or []]
    told = [replace(piece, bad=each.bad) for piece, each in zip(pieces, contents.each(pieces), strict=True)]
    commit_night(Partition(table, "2026-01-31"), told, SCHEMA, {"run_id": "r"})
    for piece in told:
        if not piece.bad:
            storage.delete(piece.file.uri, storage.anything)
    asked = "SELECT sample_id, error FROM captions_all WHERE ds = '2026-01-31' AND {}"
    assert ask(asked.format("error IS NOT NULL"), lake) == [{"sample_id": "1", "error": "X: y"}]
    with pytest.raises((UsageError, storage.StorageError), match="ds=2026-01-31"):
        ask(asked.format("status = 'error'"), lake)


def test_an_open_end_of_dates_leaves_no_night_out(lake: str) -> None:
    for where, expected in {
        "ds <= '2026-01-30'": 3, "ds < '2026-01-31'": 3, "'2026-01-31' >= ds": 4, "ds BETWEEN '' AND '2026-01-31'": 4,
        "ds >= '2026-01-31'": 1, "ds = '2026-01-31' OR ds < '2025'": 1, "ds > ''": 4, "ds = ''": 0, "ds < ''": 0,
    }.items():  # fmt: skip
        assert ask(f"SELECT count(*) AS n FROM captions_all WHERE {where}", lake) == [{"n": expected}], where


def test_what_a_statement_finds_does_not_depend_on_the_files_it_opens(
    local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conditions drawn at random: the same rows from the nights that it tells of as from all."""
    nights = [f"2026-01-{day:02d}" for day in range(1, 8)]
    for ds in nights:
        write_night(local, ds, ["a dog", None])
    draw, told = random.Random(2), 0
    for _ in range(60):
        sql = f"SELECT ds, sample_id FROM captions_all c WHERE {condition(draw, nights, 2)} ORDER BY ALL"
        found = ask(sql.replace("score", "index"), local)
        with monkeypatch.context() as patched:
            patched.setattr(statement, "dates", lambda *args: None)
            assert found == ask(sql.replace("score", "index"), local), sql
        with duckdb.connect() as parser:
            told += statement.dates(statement.parse_reading(parser, sql), ["captions_all"]) is not None
    assert told > 10


def test_good_rows_have_a_view_and_all_rows_another(lake: str) -> None:
    assert ask("SELECT sample_id, caption, score, ds FROM captions ORDER BY sample_id", lake) == [
        {"sample_id": "2026-01-30-0", "caption": "a dog", "score": 0.0, "ds": "2026-01-30"},
        {"sample_id": "2026-01-30-2", "caption": "a cat", "score": -1.0, "ds": "2026-01-30"},
        {"sample_id": "2026-01-31-0", "caption": "a ball", "score": 0.0, "ds": "2026-01-31"},
    ]
    assert ask("SELECT status, error, count(*) AS n FROM captions_all GROUP BY ALL ORDER BY n", lake) == [
        {"status": "error", "error": "ImageDecodeError: cut", "n": 1},
        {"status": "ok", "error": None, "n": 3},
    ]
    assert ask("SELECT count(*) AS n FROM captions_all WHERE ds = '2026-01-31'", lake) == [{"n": 1}]


def test_views_show_the_current_version_only(local: str) -> None:
    write_night(local, "2026-01-30", ["a horse"])
    assert ask("SELECT caption FROM captions_all", local) == [{"caption": "a horse"}]
    assert len(list(Path(local).rglob("*.parquet"))) == 2, "the old night's file is still there"


def test_only_tables_that_exist_have_views(local: str) -> None:
    assert "nowcasts" in refusal("SELECT * FROM nowcasts", local)
    with query.open_views(local, NAMES) as connection:
        views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1").fetchall()
    assert ("captions",) in views
    assert not any(name.startswith("nowcasts") for (name,) in views)


def test_no_table_at_all_is_named(tmp_path: Path) -> None:
    expected = f"no tables at {tmp_path}: `hybrid infer` writes captions, nowcasts, translations"
    assert refusal("SELECT 1", str(tmp_path)) == expected


def test_a_wrong_statement_is_one_line(local: str) -> None:
    assert refusal("SELEC 1", local).startswith("Parser Error: syntax error at or near")
    assert 'Referenced column "captoin" not found' in refusal("SELECT captoin FROM captions", local)
    assert refusal("SELECT 1/0 AS x, caption::INT FROM captions", local).startswith("Conversion Error")
    assert refusal("SET threads = 1", local)
    assert refusal("", local) == ONE_SELECT


def test_a_file_that_cannot_be_read_is_no_mistake_of_the_statement(
    lake: str, monkeypatch: pytest.MonkeyPatch, retried: Counter[str]
) -> None:
    """It is asked for several times, as all that stores do, and then named."""
    tries = []
    whole = query.open_views
    monkeypatch.setattr(query, "open_views", lambda *args: (tries.append(1), whole(*args))[1])
    lost = storage.list_files(storage.join(lake, "captions", "ds=2026-01-31"))
    for file in lost:
        storage.delete(file.uri, storage.anything)
    with pytest.raises(storage.StorageError) as caught:
        query.query("SELECT caption FROM captions", lake, NAMES)
    assert str(caught.value).startswith(f"cannot query {lake}: ")
    assert lost[0].name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(tries) == tables.READ_ATTEMPTS
    assert retried["store"] == tables.READ_ATTEMPTS - 1
    assert ask("SELECT caption FROM captions WHERE ds = '2026-01-30' ORDER BY index", lake)[0] == {"caption": "a dog"}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('{lake}/captions/ds=2026-01-30/*/*.parquet')",
        "COPY (SELECT 1) TO '{out}'",
        "COPY captions TO '{out}' (FORMAT parquet)",
        "EXPORT DATABASE '{out}'",
        "ATTACH '{out}' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM read_csv('https://example.com/x.csv')",
        "SET enable_external_access = true",
        "RESET enable_external_access",
        "SELECT * FROM connection",
        "SELECT 1; COPY (SELECT 1) TO '{out}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'",
        "WITH written AS (COPY captions TO '{out}') SELECT * FROM written",
        "PREPARE later AS SELECT 1",
        "CALL pragma_version()",
        "PRAGMA enable_logging",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM parquet_metadata('{lake}/captions/ds=2026-01-30/*/*.parquet')",
        "SELECT * FROM captions, LATERAL (SELECT * FROM glob(caption))",
        "SELECT (SELECT count(*) FROM READ_BLOB('/etc/passwd'))",
        "SELECT * FROM query('SELECT 1')",
        "SELECT * FROM query_table('captions')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM which_secret('s3://lake', 's3')",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM duckdb_logs()",
        "SELECT * FROM pandas_scan(1)",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT getenv('HOME')",
    ],
)
def test_a_query_reaches_nothing_but_the_tables(local: str, tmp_path: Path, sql: str) -> None:
    out = tmp_path / "out"
    assert refusal(sql.format(lake=local, out=out), local)
    assert not out.exists()


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{scratch}/x'",
        "WITH written AS (COPY captions_all TO '{scratch}/x') SELECT * FROM written",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{scratch}/x'",
        "ATTACH '{scratch}/o.db'",
        "SELECT * FROM read_blob('{scratch}/*')",
        "SELECT * FROM read_blob(current_setting('temp_directory') || '/*')",
    ],
)
def test_temporary_files_are_out_of_reach(
    local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    """Neither those of this query, nor those that DuckDB puts into the working directory by default."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "theirs").write_text("of another query")
    assert refusal(sql.format(scratch=".tmp"), local)
    with query.open_views(local, NAMES) as connection:
        (scratch,) = connection.execute("SELECT current_setting('temp_directory')").fetchall()[0]
        assert Path(scratch).stat().st_mode & 0o077 == 0
        with pytest.raises(UsageError, match="a query"):
            statement.parse_reading(connection, sql.format(scratch=scratch))
    assert not Path(scratch).exists()
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["theirs"]


def test_no_secret_of_the_environment_can_be_read(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://someone:marked-password@127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "marked-key")
    said = str(ask("SELECT * FROM pg_settings", local))
    said += str(ask("SELECT current_setting('http_proxy') AS a, current_setting('http_proxy_password') AS b", local))
    assert "http_proxy" in said
    assert "marked" not in said


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("FROM captions", 2),
        ("DESCRIBE captions", 19),
        ("SUMMARIZE captions", 19),
        ("SHOW TABLES", 2),
        ("EXPLAIN SELECT * FROM captions", 1),
        ("explain analyze SELECT 1", 1),
        ("-- why\nSELECT 1;", 1),
        ("VALUES (1), (2)", 2),
        ("WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT * FROM n", 5),
        ("(SELECT 1) UNION (SELECT 2)", 2),
        ("SELECT unnest([1, 2]) FROM range(3)", 6),
        ("PIVOT captions ON ds IN ('2026-01-30') USING count(*) GROUP BY status", 1),
        ("SELECT * FROM information_schema.tables WHERE table_type = 'VIEW'", 2),
    ],
)
def test_all_that_reads_is_a_query(local: str, sql: str, rows: int) -> None:
    assert len(ask(sql, local)) == rows


# ---- what a statement may cost -----------------------------------------------------------------------------------
def too_much(sql: str, uri: str, **limits: Any) -> str:
    with pytest.raises(UsageError) as caught:
        query.query(sql, uri, NAMES, limits=QueryLimits(**limits))
    return str(caught.value)


def test_time_is_bounded(local: str) -> None:
    started = time.monotonic()
    expected = "the statement takes longer than `limits.max_seconds`=1 allows"
    assert too_much("SELECT count(*) FROM range(1000000000000)", local, max_seconds=1) == expected
    assert time.monotonic() - started < 20
    slowly = "SELECT CASE WHEN range < 100000 THEN '' ELSE md5(repeat(range::VARCHAR, 10000)) END FROM range(1000000)"
    assert too_much(slowly, local, max_seconds=2) == expected.replace("=1", "=2"), "when rows are on their way"


def test_time_that_is_spent_before_a_statement_begins_counts(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a store is slow to open a table; DuckDB forgets an interruption that comes before the statement."""
    open_table = tables.open_table
    monkeypatch.setattr(tables, "open_table", lambda *given: time.sleep(1.2) or open_table(*given))
    expected = "the statement takes longer than `limits.max_seconds`=1 allows"
    assert too_much("SELECT 1", local, max_seconds=1) == expected

    def late() -> None:
        with duckdb.connect() as connection, query._bounded(connection, QueryLimits(max_seconds=1), soon):
            time.sleep(1)
            connection.sql("SELECT count(*) FROM range(1000000000000)").fetchall()

    soon = time.monotonic() + 0.3
    with pytest.raises(UsageError, match=expected):
        late()


def test_memory_and_disk_are_bounded_and_files_removed(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", local)
    expected = f"the statement needs more than `limits.max_memory`={100 << 20} allows: ask for less"
    assert too_much("SELECT list(range) FROM range(100000000)", local, max_memory=100 << 20) == expected
    spilling = "SELECT count(*) AS n FROM (SELECT md5(range::VARCHAR) AS m FROM range(3000000) GROUP BY ALL)"
    limits = QueryLimits(max_memory=100 << 20, max_threads=2)
    assert query.query(spilling, local, NAMES, limits=limits).to_pylist() == [{"n": 3_000_000}]
    expected = f"the statement needs more than `limits.max_disk`={1 << 20} allows: ask for less"
    assert too_much(spilling, local, max_memory=100 << 20, max_threads=2, max_disk=1 << 20) == expected
    assert [path.name for path in Path(local).iterdir()] == ["captions"]


TEXTS = """
import sys, resource
from hybrid_models.errors import UsageError
from pipelines.nights import query
from pipelines.nights.rules import QueryLimits

query.READING, limits = 400 << 20, QueryLimits(max_memory=100 << 20, max_bytes=1 << 20)
before = resource.getrlimit(resource.RLIMIT_DATA)
with query.memory_bounded(limits):
    print(query.query("SELECT count(*) AS n FROM captions", sys.argv[1], ["captions"], limits=limits).to_pylist())
assert resource.getrlimit(resource.RLIMIT_DATA) == before
for sql in sys.argv[2:]:
    try:
        with query.memory_bounded(limits):
            query.query(sql, sys.argv[1], ["captions"], limits=limits)
    except UsageError as error:
        print(error)
"""


def test_texts_that_a_statement_computes_are_bounded(local: str) -> None:
    """DuckDB does not count them: those of a vector of 2,048 rows may come to terabytes."""
    at_once = "SELECT sum(length(repeat('x', 50000000 + range::int))) FROM range(2048)"
    later = "SELECT repeat('x', CASE WHEN range < 100000 THEN 1 ELSE 50000000 END) FROM range(200000)"
    command = [sys.executable, "-c", TEXTS, local, at_once, later]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT, check=True)
    count, *refusals = done.stdout.splitlines()
    assert count == "[{'n': 2}]"
    assert refusals == [f"the statement needs more than `limits.max_memory`={100 << 20} allows: ask for less"] * 2


def test_the_result_is_bounded(local: str) -> None:
    limits = QueryLimits(max_rows=3, max_bytes=1000)
    assert len(query.query("FROM range(3)", local, NAMES, limits=limits)) == 3
    assert too_much("FROM range(1000000000)", local, max_rows=3) == (
        "the result has more than `limits.max_rows`=3 allows: add a LIMIT, or raise it"
    )
    assert too_much("SELECT repeat('x', 2000)", local, max_bytes=1000) == (
        "the result has more than `limits.max_bytes`=1000 allows: add a LIMIT, or raise it"
    )


def test_impossible_limits() -> None:
    with pytest.raises(UsageError, match=r"^`limits\.max_threads` is 0: it must be a number above 0$"):
        QueryLimits(max_threads=0)


def test_a_statement_that_is_nested_too_deeply(local: str) -> None:
    assert "depth" in refusal("SELECT " + "(" * 5000 + "1" + ")" * 5000, local)
    assert refusal("SELECT " + "list(" * 900 + "1" + ")" * 900, local)


# ---- for others --------------------------------------------------------------------------------------------------
ODD = """SELECT * FROM (VALUES (
    DATE '20260-01-31', 'infinity'::TIMESTAMPTZ, DATE '0044-03-15 (BC)', TIMESTAMPTZ '2026-01-31 06:00:00+01',
    INTERVAL 3 MONTH, 'nan'::DOUBLE, '-inf'::FLOAT, 1.50::DECIMAL(9, 2), '\\x01\\xff'::BLOB, NULL,
    {'at': DATE '20260-01-31', 'n': ['nan'::DOUBLE, 1.5]}, MAP {'k': 'NaN'}, TRUE, 170141183460469231731
)) AS t(date, forever, bc, moment, span, nan, inf, price, bytes, nothing, tree, map, yes, huge)"""


def test_json_of_odd_values_is_json(local: str) -> None:
    (line,) = query.as_json(query.query(ODD, local, NAMES))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(line, parse_constant=refuse) == {
        "date": "20260-01-31", "forever": "infinity", "bc": "0044-03-15 (BC)", "moment": "2026-01-31 05:00:00+00",
        "span": "3 months", "nan": None, "inf": None, "price": 1.5, "bytes": "01ff", "nothing": None,
        "tree": {"at": "20260-01-31", "n": [None, 1.5]}, "map": {"k": "NaN"}, "yes": True,
        "huge": 170141183460469231731,
    }  # fmt: skip


def test_odd_values_as_text(local: str) -> None:
    (row,) = query.as_text(query.query(ODD, local, NAMES)).to_pylist()
    assert {name: value for name, value in row.items() if isinstance(value, str)} == {
        "date": "20260-01-31", "forever": "infinity", "bc": "0044-03-15 (BC)", "moment": "2026-01-31 05:00:00+00",
        "span": "3 months", "bytes": "01ff", "tree": '{"at":"20260-01-31","n":[null,1.5]}', "map": '{"k":"NaN"}',
    }  # fmt: skip
    assert (str(row["nan"]), row["price"], row["yes"]) == ("nan", Decimal("1.50"), True)


def test_two_columns_of_one_name(local: str) -> None:
    rows = query.query('SELECT 1 AS a, 2 AS a, \'x\' AS "q"""', local, NAMES)
    assert query.as_json(rows) == ['{"a":1,"a_1":2,"q\\"":"x"}']
    assert query.as_text(rows).column_names == ["a", "a_1", 'q"']


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM captions",
        "INSERT INTO captions_all SELECT * FROM captions_all",
        "UPDATE captions SET caption = 'x'",
        "DROP VIEW captions",
        "CREATE OR REPLACE VIEW captions AS SELECT 1",
    ],
)
def test_a_query_changes_no_table(local: str, sql: str) -> None:
    before = {path: path.read_bytes() for path in Path(local).rglob("*") if path.is_file()}
    with contextlib.suppress(UsageError):
        query.query(sql, local, NAMES)
    assert {path: path.read_bytes() for path in Path(local).rglob("*") if path.is_file()} == before
    assert len(ask("SELECT * FROM captions", local)) == 2


def test_names_of_python_variables_are_no_tables(local: str) -> None:
    secret = pa.table({"x": [1]})
    assert "secret" in refusal("SELECT * FROM secret", local)
    assert len(secret) == 1


def test_rows_for_a_terminal() -> None:
    text = query.render(pa.table({"caption": ["a dog", None], "n": [1, 22]}))
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line] == [
        ["caption", "n"],
        ["varchar", "int64"],
        ["a dog", "1"],
        ["NULL", "22"],
    ]
    assert text == text.rstrip()


def test_an_earlier_state_is_asked(local: str) -> None:
    before = tables.open_table(f"{local}/captions")
    assert before is not None
    write_night(local, "2026-01-30", ["a ball"])
    sql = "SELECT caption FROM captions ORDER BY ALL"
    assert query.query(sql, local, NAMES[:1], before.version()).to_pylist() == [
        {"caption": "a cat"},
        {"caption": "a dog"},
    ]
    assert query.query(sql, local, NAMES[:1]).to_pylist() == [{"caption": "a ball"}]


# ---- tables of other programs --------------------------------------------------------------------------------------
@pytest.fixture
def shared(tmp_path: Path) -> str:
    """A folder with our `captions` and another program's `actions`."""
    uri = str(tmp_path / "tables")
    write_night(uri, "2026-01-30", ["a dog", None])
    deltalake.write_deltalake(f"{uri}/actions", pa.table({"user": ["x"], "action": ["login"]}))
    return uri


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 1 AS a", [{"a": 1}]),
        ("SELECT caption FROM captions", [{"caption": "a dog"}]),
        ("SELECT 'actions' AS a, count(*) AS n FROM captions_all", [{"a": "actions", "n": 2}]),
    ],
)
def test_a_foreign_table_is_left_out_with_a_warning(
    shared: str, sql: str, rows: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    assert query.query(sql, shared, ["actions", "captions"]).to_pylist() == rows
    assert caplog.messages == [
        f"a table cannot be queried: {shared}/actions is partitioned by nothing, not by ds: another program has "
        "written it; bring an earlier version back (`hybrid tables restore`), or use another `tables`"
    ]


def test_a_foreign_table_is_not_queried(shared: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match="actions is partitioned by nothing, not by ds"):
        query.query("SELECT * FROM actions", shared, ["actions"])
    assert caplog.messages == []
    with pytest.raises(UsageError, match="Table with name actions does not exist"):
        query.query("SELECT * FROM actions, captions", shared, ["actions", "captions"])
    assert len(caplog.messages) == 1
