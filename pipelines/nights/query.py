"""SQL over the tables: DuckDB views on the files of each table's current version, and nothing else.

A statement comes from a stranger. It may read the views and compute, within limits; it reaches no file and no network,
changes no setting (those of the engine, which it may see, hold no secret), and what it spills to disk lies in a folder
of its own that is removed afterwards.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
import resource
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import ownership, statement, tables
from pipelines.nights.rules import QueryLimits
from pipelines.nights.statement import EVER, Dates
from pipelines.nights.tables import AsOf
from pipelines.reading.limits import is_memory_error

log = logging.getLogger(__name__)
AGAIN = 0.1
"""Seconds after which a statement that goes on is interrupted again."""
BATCH_ROWS = 2048
READING = 2 << 30
"""Bytes of memory that reading tables may take, beside a statement and its result."""
# What DuckDB makes of an error of the store while it reads a table: the statement is not to blame.
_UNREAD = re.compile(
    r"reading the stream registered as '\w+' failed: (?:IOError: )?(.*?)(?:\s*\. Detail: |$)", re.DOTALL
)


DEFAULT_LIMITS = QueryLimits()


@contextmanager
def open_views(
    tables_uri: str,
    names: Sequence[str],
    as_of: AsOf | None = None,
    limits: QueryLimits = DEFAULT_LIMITS,
    dates: Dates | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with, for each table that exists, the views NAME (good rows) and NAME_all (error rows, too).

    A table of another program gets no views, and a warning says why. The connection reaches no network and no file but
    those that it spills itself.

    Args:
        tables_uri: the folder of tables.
        names: the tables.
        as_of: a version or moment of theirs; now by default.
        limits: bounds on memory, disk and threads.
        dates: files of nights before the first and after the last of these need not be in the views. Of a table of many
            years, naming all of them takes longer than reading a night.

    Raises:
        UsageError: there is none of the tables at this URI, or only another program's, or one of them has no such
            version.
    """
    with tempfile.TemporaryDirectory(prefix="hybrid-query-") as scratch, _engine(limits) as connection:
        found: list[str] = []
        foreign: list[UsageError] = []
        for name in names:
            uri = storage.join(storage.absolute(tables_uri), name)
            table = tables.open_table(uri, as_of)
            if table is None:
                continue
            try:
                ownership.check_ours(table, uri)
            except UsageError as error:
                foreign.append(error)
                continue
            chosen = table.to_pyarrow_dataset(file_pruning_predicate=_files_of(dates))
            connection.register(f"{name}_all", chosen)
            connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM "{name}_all" WHERE status = \'ok\'')
            found.append(name)
        if foreign and not found:
            raise foreign[0]
        for refusal in foreign:
            log.warning("a table cannot be queried: %s", refusal)
        if not found:
            raise UsageError(f"no tables at {tables_uri}: `hybrid infer` writes {', '.join(names)}")
        settings = {
            "memory_limit": f"{limits.max_memory}B",
            "temp_directory": scratch,
            "max_temp_directory_size": f"{limits.max_disk}B",
            "TimeZone": "UTC",
            "http_proxy": "",  # it comes from the environment, perhaps with a password
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "enable_external_access": False,
            "python_enable_replacements": False,
            "lock_configuration": True,
        }
        for name, value in settings.items():
            connection.execute(f"SET {name} = ?", [value])
        yield connection


def _engine(limits: QueryLimits) -> duckdb.DuckDBPyConnection:
    """DuckDB with no more threads than are allowed: it starts them at once, and each has a stack."""
    return duckdb.connect(config={"threads": min(limits.max_threads, os.cpu_count() or 1)})


def _files_of(dates: Dates | None) -> list[tuple[str, str, Any]] | None:
    """What delta-rs chooses files by; for an end that is open nothing, as it takes an empty text for null."""
    ends = zip(("ds", "ds"), (">=", "<="), dates or EVER, strict=True)
    return [end for end in ends if end[2] not in EVER] or None


def render(rows: pa.Table) -> str:
    """Rows as a table for a terminal."""
    return str(duckdb.from_arrow(rows)).rstrip()


def as_json(rows: pa.Table) -> list[str]:
    """Each row as a JSON object on a line of its own.

    JSON has no NaN, no infinity and no dates: numbers that are none become null, dates and intervals texts (also
    `20260-01-31`, `infinity`, `3 months`), bytes hex.
    """
    with duckdb.connect() as connection:
        relation, columns = _plain(rows, connection)
        members = ", ".join(f"{name} := {value}" for name, value in columns.items())
        return [_valid_json(text) for (text,) in relation.project(f"to_json(struct_pack({members}))").fetchall()]


def as_text(rows: pa.Table) -> pa.Table:
    """Numbers and truth values as they are, anything else as text; nested values as JSON, as in `as_json`."""
    with duckdb.connect() as connection:
        relation, columns = _plain(rows, connection)
        for (name, value), field in zip(columns.items(), rows.schema, strict=True):
            if pa.types.is_nested(field.type):
                columns[name] = f"to_json({value})"
            if not _is_number(field.type):
                columns[name] = f"({columns[name]})::VARCHAR"
        texts = relation.project(", ".join(f"{value} AS {name}" for name, value in columns.items())).to_arrow_table()
    for i, field in enumerate(rows.schema):
        if pa.types.is_nested(field.type):
            valid = [None if text is None else _valid_json(text) for text in texts.column(i).to_pylist()]
            texts = texts.set_column(i, texts.schema.field(i).name, pa.array(valid, pa.string()))
    return texts


def _plain(rows: pa.Table, connection: duckdb.DuckDBPyConnection) -> tuple[duckdb.DuckDBPyRelation, dict[str, str]]:
    """Rows in DuckDB, and an expression for each column by its quoted name, in which bytes are hex."""
    connection.execute("SET TimeZone = 'UTC'")
    relation = duckdb.from_arrow(rows, connection=connection)
    quoted = ['"' + name.replace('"', '""') + '"' for name in relation.columns]
    binary = [pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in rows.schema.types]
    return relation, {
        name: f"lower(hex({name}))" if is_binary else name for name, is_binary in zip(quoted, binary, strict=True)
    }


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _valid_json(text: str) -> str:
    """JSON as DuckDB writes it, but for numbers that are none."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    value = json.loads(text, parse_constant=lambda name: None)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def query(
    sql: str,
    tables_uri: str,
    names: Sequence[str],
    as_of: AsOf | None = None,
    parameters: Sequence[Any] = (),
    limits: QueryLimits = DEFAULT_LIMITS,
    dates: Dates | None = None,
) -> pa.Table:
    """The result of one SQL statement, in which each `?` stands for one of the parameters.

    Args:
        sql: it asks the views of `open_views`.
        tables_uri: as there, and so are `names`, `as_of` and `dates`.
        names: the tables.
        as_of: a version or moment of theirs.
        parameters: in the order of the `?`.
        limits: what it may cost.
        dates: the first and the last night that it asks for, where that is known; otherwise what the statement tells.

    Raises:
        UsageError: the statement is wrong, with DuckDB's reason in one line; or it is more than a query, or costs more
            than the limits allow.
        StorageError: the store kept failing.
    """
    deadline = time.monotonic() + limits.max_seconds
    with duckdb.connect(config={"enable_external_access": False}) as parser, _bounded(parser, limits, deadline):
        parsed = statement.parse_reading(parser, sql)
    asked = dates or statement.dates(parsed, [view for name in names for view in (name, f"{name}_all")])

    def ask() -> pa.Table:
        with (
            open_views(tables_uri, names, as_of, limits, asked) as connection,
            _bounded(connection, limits, deadline),
        ):
            return _fetch(connection.sql(sql, params=list(parameters)), limits)

    return tables.patiently("query", tables_uri, ask)


@contextmanager
def memory_bounded(limits: QueryLimits) -> Iterator[None]:
    """Inside, this process gets no more memory than a statement, its result and reading may take: DuckDB does not count
    the texts that it computes. On Linux; elsewhere nothing bounds them.

    Raises:
        UsageError: that was not enough.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    there = int(statm.read_text().split()[5]) * mmap.PAGESIZE
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = there + limits.max_memory + limits.max_bytes + READING
    bounds = [most, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    except MemoryError:
        raise _too_large("max_memory", limits) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _bounded(connection: duckdb.DuckDBPyConnection, limits: QueryLimits, deadline: float) -> Iterator[None]:
    """Ends what takes too long, and tells what went wrong in one line."""
    too_long = UsageError(f"the statement takes longer than {_option('max_seconds', limits)} allows")
    if time.monotonic() >= deadline:
        raise too_long
    ended = threading.Event()

    def interrupt() -> None:
        """Again and again: what has not begun yet is not interrupted."""
        wait = deadline - time.monotonic()
        while not ended.wait(wait):
            connection.interrupt()
            wait = AGAIN

    timer = threading.Thread(target=interrupt, daemon=True)
    timer.start()
    try:
        yield
    except duckdb.InterruptException:
        raise too_long from None
    except pa.ArrowInvalid as error:
        raise UsageError(f"the result cannot be told: {error}") from None
    except (duckdb.Error, OSError) as error:  # the latter of what goes wrong when rows are on their way already
        if str(error).startswith("INTERRUPT"):
            raise too_long from None
        if isinstance(error, duckdb.OutOfMemoryException) or is_memory_error(error):
            full = "max_temp_directory_size" in str(error)
            raise _too_large("max_disk" if full else "max_memory", limits) from None
        if isinstance(error, OSError):
            raise
        if (unread := _UNREAD.search(str(error))) is not None:
            raise OSError(unread[1]) from error
        raise UsageError(" ".join(str(error).split())) from None
    finally:
        ended.set()
        timer.join()


def _fetch(relation: duckdb.DuckDBPyRelation, limits: QueryLimits) -> pa.Table:
    """The whole result, if it is not too large."""
    reader = relation.to_arrow_reader(BATCH_ROWS)
    batches: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in reader:
        rows, size = rows + len(batch), size + batch.nbytes
        for name, value in {"max_rows": rows, "max_bytes": size}.items():
            if value > getattr(limits, name):
                raise UsageError(f"the result has more than {_option(name, limits)} allows: add a LIMIT, or raise it")
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


def _too_large(option: str, limits: QueryLimits) -> UsageError:
    return UsageError(f"the statement needs more than {_option(option, limits)} allows: ask for less")


def _option(name: str, limits: QueryLimits) -> str:
    return f"`limits.{name}`={getattr(limits, name)}"
