"""SQL over the tables: DuckDB views on the files of each table's current version, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

from hybrid_models.errors import UsageError
from pipelines import storage, tables
from pipelines.tables import AsOf

# What DuckDB makes of an error of the store while it reads a table: the statement is not to blame.
_UNREAD = re.compile(
    r"reading the stream registered as '\w+' failed: (?:IOError: )?(.*?)(?:\s*\. Detail: |$)", re.DOTALL
)


def open_views(tables_uri: str, names: Sequence[str], as_of: AsOf | None = None) -> duckdb.DuckDBPyConnection:
    """A connection with, for each table that exists, the views NAME (good rows) and NAME_all (error rows, too).

    Afterwards the connection reaches no file and no network of its own: it reads the tables, and only reads.

    Args:
        tables_uri: the folder of tables.
        names: the tables.
        as_of: a version or moment of theirs; now by default.

    Raises:
        UsageError: there is none of the tables at this URI, or one of them has no such version.
    """
    connection = duckdb.connect()
    found = []
    for name in names:
        table = tables.open_table(storage.join(storage.absolute(tables_uri), name), as_of)
        if table is None:
            continue
        connection.register(f"{name}_all", table.to_pyarrow_dataset())
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {name}_all WHERE status = 'ok'")
        found.append(name)
    if not found:
        raise UsageError(f"no tables at {tables_uri}: `hybrid infer` writes {', '.join(names)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET lock_configuration = true")
    return connection


def render(rows: pa.Table) -> str:
    """Rows as a table for a terminal."""
    return str(duckdb.from_arrow(rows)).rstrip()


def query(
    sql: str, tables_uri: str, names: Sequence[str], as_of: AsOf | None = None, parameters: Sequence[Any] = ()
) -> pa.Table:
    """The result of one SQL statement, in which each `?` stands for one of the parameters.

    Raises:
        UsageError: the statement is wrong; DuckDB's reason in one line.
        StorageError: the store kept failing.
    """
    return tables.patiently("query", tables_uri, lambda: _query(sql, tables_uri, names, as_of, parameters))


def _query(sql: str, tables_uri: str, names: Sequence[str], as_of: AsOf | None, parameters: Sequence[Any]) -> pa.Table:
    with open_views(tables_uri, names, as_of) as connection:
        try:
            relation = connection.sql(sql, params=list(parameters))
            if relation is None:
                raise UsageError("the statement has no result: write a SELECT")
            return relation.to_arrow_table()
        except duckdb.Error as error:
            if (unread := _UNREAD.search(str(error))) is not None:
                raise OSError(unread[1]) from error
            raise UsageError(" ".join(str(error).split())) from None
