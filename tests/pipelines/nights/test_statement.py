"""What a statement tells before it runs. What it must not do is in test_query.py."""

from __future__ import annotations

import random
from typing import Any

import duckdb
import pytest

from hybrid_models.errors import UsageError
from pipelines.nights import statement
from pipelines.nights.statement import EVER

VIEWS = ["captions", "captions_all", "nowcasts", "nowcasts_all"]
ONE, TWO, LATE = "2026-01-30", "2026-01-31", "2026-02-09"


def dates(sql: str) -> Any:
    with duckdb.connect() as connection:
        return statement.dates(statement.parse_reading(connection, sql), VIEWS)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (f"ds = '{ONE}'", (ONE, ONE)),
        (f"'{ONE}' = DS", (ONE, ONE)),
        (f"captions.ds = '{ONE}' AND caption LIKE '%dog%'", (ONE, ONE)),
        (f"ds >= '{ONE}'", (ONE, EVER[1])),
        (f"'{ONE}' > ds", (EVER[0], ONE)),
        (f"ds > '{ONE}' AND ds <= '{LATE}'", (ONE, LATE)),
        (f"ds BETWEEN '{ONE}' AND '{TWO}'", (ONE, TWO)),
        (f"ds IN ('{LATE}', '{ONE}')", (ONE, LATE)),
        (f"ds = '{LATE}' OR ds = '{ONE}' AND score < 0", (ONE, LATE)),
        (f"ds = '{ONE}' AND ds = '{LATE}'", (LATE, ONE)),
        (f"ds = '{ONE}' OR score < 0", None),
        (f"NOT (ds = '{ONE}')", None),
        (f"ds <> '{ONE}'", None),
        (f"ds NOT IN ('{ONE}')", None),
        (f"ds IN ('{ONE}', upper('x'))", None),
        (f"ds BETWEEN '{ONE}' AND upper('x')", None),
        (f"caption BETWEEN '{ONE}' AND '{TWO}'", None),
        (f"ds::DATE = '{ONE}'", None),
        (f"ds = DATE '{ONE}'", None),
        (f"ds = '{ONE}' COLLATE NOCASE", None),
        (f"other.ds = '{ONE}'", None),
        (f"caption = '{ONE}'", None),
        ("ds = 20260130", None),
        ("ds = NULL", None),
        ("ds LIKE '2026%'", None),
    ],
)
def test_nights_that_a_condition_lets_pass(where: str, expected: Any) -> None:
    assert dates(f"SELECT caption FROM captions WHERE {where}") == expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (f"SELECT max(score) FROM captions c WHERE c.ds = '{ONE}' GROUP BY object ORDER BY 1 LIMIT 3", (ONE, ONE)),
        (f"FROM Captions_All WHERE ds = '{ONE}'", (ONE, ONE)),
        (f"EXPLAIN ANALYZE SELECT * FROM captions WHERE ds = '{ONE}'", (ONE, ONE)),
        (f"WITH c AS (SELECT * FROM captions WHERE ds = '{ONE}') SELECT * FROM c WHERE score < 0", (ONE, ONE)),
        (f"SELECT * FROM (SELECT * FROM captions WHERE ds = '{ONE}') LIMIT 1", (ONE, ONE)),
        (f"SELECT 1 FROM captions WHERE ds = '{ONE}' UNION SELECT 2 FROM nowcasts WHERE ds = '{LATE}'", (ONE, LATE)),
        (f"SELECT * FROM captions WHERE ds = '{ONE}' AND score < (SELECT avg(score) FROM captions)", None),
        (
            f"SELECT * FROM captions WHERE ds = '{ONE}' AND ds IN (SELECT ds FROM nowcasts WHERE ds = '{TWO}')",
            (ONE, TWO),
        ),
        (f"SELECT (SELECT count(*) FROM nowcasts) FROM captions WHERE ds = '{ONE}'", None),
        (f"SELECT * FROM captions WHERE ds = '{ONE}' UNION SELECT * FROM nowcasts", None),
        (f"SELECT * FROM (SELECT * FROM captions) WHERE ds = '{ONE}'", None),
        (f"SELECT * FROM captions JOIN nowcasts USING (ds) WHERE ds = '{ONE}'", None),
        (f"SELECT * FROM captions, nowcasts WHERE captions.ds = '{ONE}'", None),
        (f"SELECT * FROM captions AS c(ds, sample_id) WHERE ds = '{ONE}'", None),
        (f"SELECT * FROM captions TABLESAMPLE 10 ROWS WHERE ds = '{ONE}'", None),
        (f"SELECT * FROM captions WHERE ds = '{ONE}' USING SAMPLE reservoir(5 ROWS) REPEATABLE (1)", None),
        (f"SELECT count(*) FILTER (ds = '{ONE}') FROM captions", None),
        (f"SELECT ds FROM captions GROUP BY ds HAVING ds = '{ONE}'", None),
        (f"WITH captions AS (SELECT * FROM captions_all) SELECT * FROM captions WHERE ds = '{ONE}'", None),
        ("SUMMARIZE captions", None),
        ("SELECT 1", None),
        (f"SELECT * FROM unnest(['{ONE}']) AS t(ds) WHERE ds = '{ONE}'", None),
    ],
)
def test_nights_that_a_statement_asks_for(sql: str, expected: Any) -> None:
    assert dates(sql) == expected


def test_no_row_that_passes_is_of_another_night() -> None:
    """Conditions drawn at random, over rows of all nights and of none."""
    draw = random.Random(0)
    nights = [f"2026-01-{day:02d}" for day in range(1, 8)]
    told = 0
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE captions (ds VARCHAR, score INT)")
        rows = [(ds, score) for ds in [*nights, "", "~", None] for score in (0, 1, None)]
        connection.executemany("INSERT INTO captions VALUES (?, ?)", rows)
        for _ in range(1500):
            where = condition(draw, nights, 3)
            sql = f"SELECT ds FROM captions c WHERE {where}"
            found = statement.dates(statement.parse_reading(connection, sql), VIEWS)
            passed = {ds for (ds,) in connection.execute(sql).fetchall()}
            if found is not None:
                told += 1
                assert all(ds is not None and found[0] <= ds <= found[1] for ds in passed), where
    assert told > 300


def condition(draw: random.Random, nights: list[str], depth: int) -> str:
    night, other = (f"'{draw.choice(nights)}'" for _ in range(2))
    ds = draw.choice(["ds", "c.ds", "DS"])
    simple = [
        f"{ds} {draw.choice(['=', '<', '<=', '>', '>=', '<>', 'IS DISTINCT FROM'])} {night}",
        f"{night} {draw.choice(['=', '<', '<=', '>', '>=', '<>'])} {ds}",
        f"{ds} {draw.choice(['', 'NOT'])} IN ({night}, {other})",
        f"{ds} {draw.choice(['', 'NOT'])} BETWEEN {night} AND {other}",
        "score > 0",
        "score IS NULL",
        f"({ds} = {night}) = (score > 0)",
        f"coalesce({ds}, {night}) = {other}",
    ]
    if depth == 0 or draw.random() < 0.2:
        return draw.choice(simple)
    left, right = condition(draw, nights, depth - 1), condition(draw, nights, depth - 1)
    return draw.choice([f"({left} AND {right})", f"({left} OR {right})", f"(NOT {left})", f"({left}) AND {right}"])


def test_a_statement_that_is_too_long_is_not_parsed() -> None:
    with pytest.raises(UsageError, match=r"^the statement has 2,000,007 characters: 1,000,000 are allowed$"):
        dates("SELECT " + "1" * 2_000_000)


@pytest.mark.parametrize("sql", ["SELECT 1; SELECT 2", "", "SET threads = 1"])
def test_anything_but_one_query_is_refused(sql: str) -> None:
    with pytest.raises(UsageError, match=r"^a query is one SELECT"):
        dates(sql)
