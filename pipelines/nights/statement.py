"""A stranger's SQL statement before it runs: whether it only reads, and of which nights."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import duckdb

from hybrid_models.errors import UsageError

READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""The kinds of query that only read, as DuckDB's parser calls them. `COPY_QUERY_NODE`, say, may stand in a WITH."""
MAKING_ROWS = {"generate_series", "json_each", "json_tree", "range", "repeat", "unnest"}
"""Functions that may stand where a table does; others read files, settings, memory at an address, or run SQL."""
EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?", re.IGNORECASE)
Dates = tuple[str, str]
"""The first and the last night that may be asked for."""
EVER = ("", "\U0010ffff")
MOST_CHARACTERS = 1_000_000
"""Of a statement: nothing ends its parsing, which takes more than a second for each million."""
FROM, UNTIL = "COMPARE_GREATERTHAN", "COMPARE_LESSTHAN"
MIRRORED = {FROM: UNTIL, UNTIL: FROM}


def parse_reading(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    """One statement that reads: SELECT, FROM, VALUES, DESCRIBE, SUMMARIZE, SHOW, or EXPLAIN of one; as DuckDB's
    parser gives it.

    Raises:
        UsageError: it is another statement, several, none, or calls a function that it must not.
        duckdb.Error: it is no SQL.
    """
    if len(sql) > MOST_CHARACTERS:
        raise UsageError(f"the statement has {len(sql):,} characters: {MOST_CHARACTERS:,} are allowed")
    read = EXPLAIN.sub("", sql, count=1) if EXPLAIN.match(sql) else sql
    (text,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [read]).fetchall()[0]
    try:
        parsed: dict[str, Any] = json.loads(text, object_hook=_check_node)
    except RecursionError:
        raise UsageError("the statement is nested too deeply: write it as several WITH … AS") from None
    if parsed["error"] and parsed["error_type"] == "parser":
        connection.execute(read)  # says where
    if parsed["error"] or len(parsed["statements"]) != 1:
        raise UsageError("a query is one SELECT (or DESCRIBE, SUMMARIZE, SHOW, EXPLAIN) and nothing else")
    return parsed


def _check_node(node: dict[str, Any]) -> dict[str, Any]:
    """A part of a parsed statement, if it may be there."""
    kind = str(node.get("type"))
    if kind.endswith("_NODE") and kind not in READING:
        raise UsageError(f"a query only reads: {kind.removesuffix('_NODE').removesuffix('_QUERY')} is not allowed")
    if kind == "TABLE_FUNCTION" and (name := node["function"]["function_name"].lower()) not in MAKING_ROWS:
        raise UsageError(
            f"{name}(…) is not allowed in a query: it asks the views, and {', '.join(sorted(MAKING_ROWS))}"
        )
    return node


# ---- of which nights -------------------------------------------------------------------------------------------------
def dates(parsed: Mapping[str, Any], views: Collection[str]) -> Dates | None:
    """Nights that a statement's rows can come from; None if it may ask for all.

    Told by comparisons of `ds` with texts that every row of a view must pass: in the WHERE of a SELECT from that view
    alone. Whatever is written otherwise may ask for all nights.
    """
    found = list(_dates(parsed, {view.lower() for view in views}))
    hull = _hull(found) if found else EVER
    return None if hull == EVER else hull


def _dates(node: Any, views: Collection[str]) -> Iterator[Dates]:
    """For each place where a statement reads a view, the nights of which rows pass."""
    if isinstance(node, list):
        for child in node:
            yield from _dates(child, views)
    if not isinstance(node, dict):
        return
    if node.get("type") == "BASE_TABLE" and node["table_name"].lower() in views:
        yield EVER
        return
    if node.get("type") == "SELECT_NODE" and not node["sample"] and _is_view(table := node["from_table"], views):
        node = dict(node, from_table=None)
        yield EVER if node["where_clause"] is None else _passing(node["where_clause"], table)
    for child in node.values():
        yield from _dates(child, views)


def _is_view(table: Mapping[str, Any], views: Collection[str]) -> bool:
    """Whether a SELECT is from a view alone, whole (a sample is drawn before WHERE) and with the columns' own names."""
    if table["type"] != "BASE_TABLE" or table["sample"] or table["column_name_alias"]:
        return False
    return table["table_name"].lower() in views


def _passing(condition: Mapping[str, Any], table: Mapping[str, Any]) -> Dates:
    """The nights whose rows a condition can be true for."""
    match condition["type"]:
        case "CONJUNCTION_AND":
            parts = [_passing(child, table) for child in condition["children"]]
            return max(first for first, _ in parts), min(last for _, last in parts)
        case "CONJUNCTION_OR":
            return _hull([_passing(child, table) for child in condition["children"]])
        case "COMPARE_IN":
            asked, *values = condition["children"]
            texts = [text for value in values if (text := _text(value)) is not None]
            known = _is_ds(asked, table) and len(texts) == len(values)
            return (min(texts), max(texts)) if known else EVER
        case "COMPARE_BETWEEN":
            first, last = _text(condition["lower"]), _text(condition["upper"])
            if first is None or last is None or not _is_ds(condition["input"], table):
                return EVER
            return first, last
        case str(kind) if condition.get("class") == "COMPARISON":
            kind, left, right = kind.removesuffix("OREQUALTO"), condition["left"], condition["right"]
            if _is_ds(right, table):
                kind, left, right = MIRRORED.get(kind, kind), right, left
            text = _text(right)
            if text is None or not _is_ds(left, table):
                return EVER
            nights = {"COMPARE_EQUAL": (text, text), FROM: (text, EVER[1]), UNTIL: (EVER[0], text)}
            return nights.get(kind, EVER)
    return EVER


def _hull(ranges: Collection[Dates]) -> Dates:
    return min(first for first, _ in ranges), max(last for _, last in ranges)


def _is_ds(node: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    names = [name.lower() for name in node["column_names"]] if node["type"] == "COLUMN_REF" else []
    return names in (["ds"], [(table["alias"] or table["table_name"]).lower(), "ds"])


def _text(node: Mapping[str, Any]) -> str | None:
    """A constant's text; None if it is none."""
    literal = node.get("literal", {}) if node["type"] == "VALUE_CONSTANT" else {}
    return literal["text"] if literal.get("kind") == "STRING" else None
