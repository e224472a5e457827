"""Whose a table is. One is only made where nothing else is, and bears this program's mark; one that bears none is taken
over if its columns and partitions are ours. All others are refused and left as they are.
"""

from __future__ import annotations

import json
from collections.abc import Collection

import pyarrow as pa
from deltalake import DeltaTable, Field
from deltalake import Schema as DeltaSchema

from hybrid_models import TABLES
from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights.tables import LOG, NAME, check_commits, commit_uri, open_table
from pipelines.staging.pieces import is_own, later_columns, table_schema

COMMON = table_schema(pa.schema([]))
"""Columns that every table of ours has."""


def check(uri: str, schema: pa.Schema) -> DeltaTable | None:
    """Refuses a table that this version cannot write nights to, or a folder in which none may be made.

    Returns:
        The table; None where it is to be made.

    Raises:
        UsageError: what was found there, and the way out.
        StorageError: the store kept failing.
    """
    table = open_table(uri)
    if table is None:
        check_folder(uri)
    else:
        check_ours(table, uri, schema)
        check_commits(uri, [commit_uri(uri, table.version())])
    return table


def names(tables_uri: str) -> list[str]:
    """The tables in a folder: those that hybrids write by default, there or not, then ours with names of their own.

    What another program has beside them is left out: it has other columns. One whose log cannot be read is not.

    Raises:
        StorageError: the store cannot be reached or refuses.
    """
    usual = list(TABLES.values())
    others = [name for name in storage.list_folders(tables_uri) if NAME.fullmatch(name) and name not in usual]
    return [*usual, *(name for name in others if _is_ours(storage.join(tables_uri, name)))]


def _is_ours(uri: str) -> bool:
    """Whether it is, or its log is damaged, which whoever opens it says."""
    try:
        table = open_table(uri)
    except (UsageError, storage.StorageError):
        return True
    try:
        if table is not None:
            check_ours(table, uri)
    except UsageError:
        return False
    return table is not None


def check_ours(table: DeltaTable, uri: str, schema: pa.Schema | None = None) -> None:
    """Refuses a table of another program, and one that was rewritten, by its mark, partitions and columns.

    Args:
        table: the table, now or as it was.
        uri: where it is.
        schema: the columns of a file; by default those that all our tables have.

    Raises:
        UsageError: the first thing that is not as it should be, and the way out.
    """
    metadata = table.metadata()
    if metadata.name not in (None, "", mark(uri)):
        raise UsageError(f"{uri} is the table '{metadata.name}', not one of this program's: use another `tables`")
    if metadata.partition_columns != ["ds"]:
        by = ", ".join(metadata.partition_columns) or "nothing"
        raise UsageError(
            f"{uri} is partitioned by {by}, not by ds: another program has written it; bring an earlier version back "
            "(`hybrid tables restore`), or use another `tables`"
        )
    if different := _difference(table, schema):
        raise UsageError(f"{uri} has other columns than this version writes ({different}): use another `tables`")


def _difference(table: DeltaTable, schema: pa.Schema | None) -> str:
    """The first column that is not as it should be."""
    have = {field.name: field for field in table.schema().fields}
    want, later = columns(schema or COMMON), later_columns(schema or COMMON)
    for name, field in want.items():
        if name not in have:
            if name not in later:
                return f"no {name}"
        elif have[name].type != field.type or not have[name].nullable:
            return f"{name} is {_type(have[name])}, not {_type(field)}"
    more = sorted(set(have) - set(want)) if schema is not None else []
    return f"{more[0]} is not known" if more else ""


def columns(schema: pa.Schema) -> dict[str, Field]:
    """The columns of a table whose files have these: `ds` is the partition."""
    plain = pa.schema([*(field.remove_metadata() for field in schema), pa.field("ds", pa.string())])
    return {field.name: field for field in DeltaSchema.from_arrow(plain).fields}


def _type(field: Field) -> str:
    kind = json.loads(field.to_json())["type"]
    return f"{kind if isinstance(kind, str) else kind['type']}{'' if field.nullable else ' without nulls'}"


def mark(uri: str) -> str:
    """The name by which a table's log says whose it is."""
    return f"hybrid:{uri.rstrip('/').rsplit('/', 1)[-1]}"


def check_folder(uri: str, given: Collection[str] = ()) -> None:
    """Refuses a folder to make a table in: it may hold nothing but what a night left that was killed before its commit.

    Raises:
        UsageError: something else is there.
        StorageError: the store kept failing.
    """
    root = storage.absolute(uri) + "/"
    for file in storage.list_all(uri):
        path = file.uri.removeprefix(root)
        if not (is_own(path) or is_log(path) or path in given):
            raise UsageError(
                f"{uri} holds {path}, which this program did not write: "
                "a table is made in an empty folder only; use another `tables`"
            )


def is_log(path: str) -> bool:
    """Whether a path below a table belongs to its log."""
    return path.startswith(f"{LOG}/")
