import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from hybrid_models.errors import UsageError
from pipelines import query, storage, tables
from pipelines.pieces import StageSink, list_pieces, table_schema, tiling
from pipelines.shards import Shard
from pipelines.tables import commit_night

NAMES = ["captions", "nowcasts", "translations"]
SHARD = Shard("s3://lake/in/a.tar", 10, "1")
SCHEMA = table_schema(pa.schema([pa.field("caption", pa.string()), pa.field("score", pa.float32())]))


def write_night(tables_uri: str, ds: str, captions: list[str | None]) -> None:
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
    table = storage.join(storage.absolute(tables_uri), "captions")
    folder = storage.join(table, f"ds={ds}", f"fingerprint{len(captions)}")
    StageSink(folder, [SHARD], SCHEMA).write([pa.Table.from_pylist(rows, schema=SCHEMA)], None)
    pieces = [piece for found in list_pieces(folder).values() for piece in tiling(found) or []]
    commit_night(table, ds, pieces, SCHEMA, {"run_id": "r"})


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
    assert refusal("", local) == "the statement has no result: write a SELECT"


def test_a_file_that_cannot_be_read_is_no_mistake_of_the_statement(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for several times, as all that stores do, and then named."""
    tries = []
    whole = query.open_views
    monkeypatch.setattr(query, "open_views", lambda *args: (tries.append(1), whole(*args))[1])
    lost = storage.list_files(storage.join(lake, "captions", "ds=2026-01-31"))
    for file in lost:
        storage.delete(file.uri)
    with pytest.raises(storage.StorageError) as caught:
        query.query("SELECT caption FROM captions", lake, NAMES)
    assert str(caught.value).startswith(f"cannot query {lake}: ")
    assert lost[0].name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(tries) == tables.READ_ATTEMPTS
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
    ],
)
def test_a_query_reaches_nothing_but_the_tables(local: str, tmp_path: Path, sql: str) -> None:
    out = tmp_path / "out"
    assert refusal(sql.format(lake=local, out=out), local)
    assert not out.exists()


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
