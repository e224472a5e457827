"""Tables: Delta Lake logs over staged pieces. A night is one transaction that replaces the partition `ds`: readers see
the old night or the new one, never a part.

A table is only made where nothing else is, and bears this program's mark; one that bears none is taken over if its
columns and partitions are ours. All others are refused and left as they are.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Field, Transaction
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.staging.pieces import GROWN, Piece, is_own, table_schema

COMMIT_ATTEMPTS = 5
READ_ATTEMPTS = 5
HISTORY = 50  # commits in which a disturbed writer looks for its own
LOG = "_delta_log"
COMMIT = re.compile(r"\d{20}\.json")
COMMON = table_schema(pa.schema([]))
"""Columns that every table of ours has."""
T = TypeVar("T")
AsOf = int | datetime
"""A version of a table, or a moment."""


# ---- reading -----------------------------------------------------------------------------------------------------
def patiently(operation: str, uri: str, work: Callable[[], T]) -> T:
    """What `work` gives. delta-rs repeats requests that fail, but not ones whose answer breaks off: all is done again.

    Args:
        operation: how an error calls it, such as `read`.
        uri: the table.
        work: may be done several times.

    Raises:
        StorageError: the store kept failing; names the table and the cause.
        DeltaError: another writer, or a table that is not there.
    """
    retrying = Retrying(
        retry=retry_if_exception(_is_the_stores),
        stop=stop_after_attempt(READ_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        reraise=True,
    )
    try:
        return retrying(work)
    except Exception as error:
        if _is_the_stores(error):
            raise storage.failed(operation, uri, error) from error
        raise


def _is_the_stores(error: BaseException) -> bool:
    """delta-rs tells what the store did by OSError, or by its most general error."""
    return isinstance(error, OSError) or type(error) is DeltaError


def open_table(uri: str, as_of: AsOf | None = None) -> DeltaTable | None:
    """The table, now or as it was, or None if it has never been written.

    Raises:
        UsageError: it has no such version, or does not keep it any more; or its log is damaged.
        StorageError: the store kept failing.
    """
    try:
        return patiently("read", uri, lambda: _open(uri, as_of))
    except storage.StorageError as error:
        if "Json error" in str(error):
            _check_commits(uri, [file.uri for file in storage.list_files(storage.join(uri, LOG))])
        raise


def _open(uri: str, as_of: AsOf | None = None) -> DeltaTable | None:
    try:
        table = DeltaTable(storage.absolute(uri))
    except TableNotFoundError:
        return None
    if isinstance(as_of, int) and as_of > table.version():
        raise UsageError(f"{uri} has no version {as_of}: its newest is {table.version()}")
    if as_of is not None:
        try:
            table.load_as_version(as_of)
        except DeltaError as error:
            raise UsageError(f"{uri} as of {as_of} is not kept any more: {str(error).splitlines()[0]}") from None
    return table


def parse_as_of(text: str) -> AsOf:
    """A version, or a time in ISO 8601 (UTC unless it says otherwise).

    Raises:
        UsageError: it is neither.
    """
    if text.isdecimal():
        return int(text)
    try:
        time_ = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--as-of '{text}' is neither a version nor a time: write 12 or 2026-01-31T06:00") from None
    return time_ if time_.tzinfo else time_.replace(tzinfo=UTC)


@dataclass(frozen=True)
class StoredNight:
    """A night as a table holds it."""

    ds: str
    rows: int
    files: int
    bytes: int
    written: datetime
    """When the newest of its files was committed, UTC."""


def nights(table: DeltaTable) -> list[StoredNight]:
    """The nights of a table, from its log alone, the oldest first."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for action in _files(table):
        found[action["partition.ds"]].append(action)
    return [
        StoredNight(
            ds,
            sum(action["num_records"] for action in actions),
            len(actions),
            sum(action["size_bytes"] for action in actions),
            datetime.fromtimestamp(max(action["modification_time"] for action in actions) / 1000, UTC),
        )
        for ds, actions in sorted(found.items())
    ]


def night_files(table: DeltaTable, ds: str = "") -> set[str]:
    """Paths, relative to the table, of the files of one night, or of all."""
    root = table.table_uri.removeprefix("file://").rstrip("/") + "/"
    uris = table.file_uris(file_pruning_predicate=[("ds", "=", ds)] if ds else None)
    return {uri.removeprefix("file://").removeprefix(root) for uri in uris}


def _files(table: DeltaTable) -> list[dict[str, Any]]:
    """What the log says of the table's files."""
    return list(pa.table(table.get_add_actions(flatten=True)).to_pylist())


# ---- ours or not -------------------------------------------------------------------------------------------------
def check(uri: str, schema: pa.Schema) -> None:
    """Refuses a table that this version cannot write nights to, or a folder in which none may be made.

    Args:
        uri: the table, or where it is to be.
        schema: the columns of a file.

    Raises:
        UsageError: what was found there, and the way out.
        StorageError: the store kept failing.
    """
    table = open_table(uri)
    if table is None:
        check_folder(uri)
    else:
        check_ours(table, uri, schema)
        _check_commits(uri, [commit_uri(uri, table.version())])


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
    if metadata.name not in (None, "", _mark(uri)):
        raise UsageError(f"{uri} is the table '{metadata.name}', not one of this program's: use another --tables")
    if metadata.partition_columns != ["ds"]:
        by = ", ".join(metadata.partition_columns) or "nothing"
        raise UsageError(
            f"{uri} is partitioned by {by}, not by ds: another program has written it; bring an earlier version back "
            "(`hybrid tables restore`), or use another --tables"
        )
    if different := _difference(table, schema):
        raise UsageError(f"{uri} has other columns than this version writes ({different}): use another --tables")


def _difference(table: DeltaTable, schema: pa.Schema | None) -> str:
    """The first column that is not as it should be."""
    have = {field.name: field for field in table.schema().fields}
    want = _columns(schema or COMMON)
    for name, field in want.items():
        if name not in have:
            if name not in GROWN:
                return f"no {name}"
        elif have[name].type != field.type or not have[name].nullable:
            return f"{name} is {_type(have[name])}, not {_type(field)}"
    more = sorted(set(have) - set(want)) if schema is not None else []
    return f"{more[0]} is not known" if more else ""


def _columns(schema: pa.Schema) -> dict[str, Field]:
    return {field.name: field for field in DeltaSchema.from_arrow(schema.append(pa.field("ds", pa.string()))).fields}


def _type(field: Field) -> str:
    kind = json.loads(field.to_json())["type"]
    return f"{kind if isinstance(kind, str) else kind['type']}{'' if field.nullable else ' without nulls'}"


def _mark(uri: str) -> str:
    """The name by which a table's log says whose it is."""
    return f"hybrid:{uri.rstrip('/').rsplit('/', 1)[-1]}"


def check_folder(uri: str, given: Collection[str] = ()) -> None:
    """Refuses a folder to make a table in: it may hold nothing but what a night left that was killed before its commit.

    Args:
        uri: the folder.
        given: paths below it that are known to be ours.

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
                "a table is made in an empty folder only; use another --tables"
            )


def _check_commits(uri: str, commits: Sequence[str]) -> None:
    """Refuses a log with a damaged entry among the newest of these."""
    newest_first = sorted((uri for uri in commits if COMMIT.fullmatch(uri.rsplit("/", 1)[-1])), reverse=True)
    for commit in newest_first[:HISTORY]:
        try:
            entries = [json.loads(line) for line in storage.read_text(commit).splitlines()]
        except FileNotFoundError:  # a log forgets what its checkpoints hold
            return
        except ValueError:
            entries = []
        if not entries or not all(isinstance(entry, dict) for entry in entries):
            newest = "move it out of the log and infer its night again, as docs/querying.md tells"
            way_out = newest if commit == newest_first[0] else "bring it back from a backup"
            raise UsageError(f"{uri} cannot be read: {commit}, an entry of its log, is damaged; {way_out}")


def is_log(path: str) -> bool:
    """Whether a path below a table belongs to its log."""
    return path.startswith(f"{LOG}/")


def commit_uri(uri: str, version: int) -> str:
    """Where the log has the commit that made a version."""
    return storage.join(uri, LOG, f"{version:020d}.json")


# ---- the commit --------------------------------------------------------------------------------------------------
def commit_night(uri: str, ds: str, pieces: Sequence[Piece], schema: pa.Schema, run: dict[str, str]) -> int | None:
    """Replaces the night `ds` by these files in one transaction.

    Two writers of one night use the same Delta application id, so one of them loses cleanly even when neither saw a
    file of the other (without it, delta-rs lets two first writers of a partition both succeed: seen with 1.6).

    Args:
        uri: the table; one that bears no mark yet is given it, columns that an earlier version lacks are added.
        ds: the night.
        pieces: its files.
        schema: the columns of a file.
        run: kept with the commit; its `run_id` tells this writer's commit from another's.

    Returns:
        The table's new version, or None if the night already consisted of exactly these files.

    Raises:
        CommitFailedError: another writer replaced the night first, several times over.
        UsageError: the table is none of this program's, see `check`.
        StorageError: the store kept failing.
    """
    root = storage.absolute(uri) + "/"
    actions = [_add_action(piece.file.uri.removeprefix(root), piece, ds) for piece in pieces]
    table = open_table(uri)
    if table is not None and night_files(table, ds) == {action.path for action in actions}:
        return None
    return _persistently("commit to", uri, lambda: _commit(_writable(uri, schema, actions), ds, actions, schema, run))


def restore(uri: str, as_of: AsOf, ds: str = "") -> int | None:
    """Brings a table back as it was, or one night of it, in one transaction.

    Args:
        uri: the table.
        as_of: when it was as it shall be.
        ds: the night; without one all nights, and what another program made of the table is undone, too.

    Returns:
        The table's new version, or None if the night is like that already.

    Raises:
        UsageError: there was no such table or night, or its files are not kept any more.
        CommitFailedError: other writers were faster, several times over.
        StorageError: the store kept failing.
    """
    before = open_table(uri, as_of)
    if before is None:
        raise UsageError(f"there is no table at {uri}")
    check_ours(before, uri)
    version = before.version()
    actions = [_add_again(action) for action in _files(before) if ds in ("", action["partition.ds"])]
    if ds and not actions:
        raise UsageError(f"{uri} had no rows of {ds} in version {version}: `hybrid tables --as-of` lists nights")
    _check_kept(uri, version, actions, ds)
    run = {"run_id": uuid.uuid4().hex, "restored": str(version)}
    if ds:
        return _persistently("restore", uri, lambda: _commit(_writable(uri, None, actions), ds, actions, None, run))
    table = DeltaTable(storage.absolute(uri))
    patiently("restore", uri, lambda: table.restore(version, commit_properties=CommitProperties(run)))
    return int(table.version())


def _persistently(operation: str, uri: str, work: Callable[[], int | None]) -> int | None:
    """What `work` gives, which is done again when another writer was faster."""
    for attempt in range(COMMIT_ATTEMPTS):
        try:
            return patiently(operation, uri, work)
        except CommitFailedError:
            if attempt == COMMIT_ATTEMPTS - 1:
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _writable(uri: str, schema: pa.Schema | None, actions: Sequence[AddAction]) -> DeltaTable:
    """The table, ours and marked so."""
    table = _open(uri)
    if table is None:
        assert schema is not None
        check_folder(uri, {action.path for action in actions})
        fields = DeltaSchema(list(_columns(schema).values()))
        return DeltaTable.create(storage.absolute(uri), fields, "ignore", ["ds"], _mark(uri))
    check_ours(table, uri, schema)
    if not table.metadata().name:
        table.alter.set_table_name(_mark(uri))
    return table


def _commit(
    table: DeltaTable, ds: str, actions: Sequence[AddAction], schema: pa.Schema | None, run: dict[str, str]
) -> int | None:
    if night_files(table, ds) == {action.path for action in actions}:
        return _version_of(table, ds, run)
    have = table.schema().fields
    grown = [field for name, field in _columns(schema or COMMON).items() if name not in {known.name for known in have}]
    app_id = f"ds={ds}"
    number = (table.transaction_version(app_id) or 0) + 1
    table.create_write_transaction(
        list(actions),
        "overwrite",
        DeltaSchema([*have, *grown]),
        ["ds"],
        [("ds", "=", ds)],
        commit_properties=CommitProperties({**run, "ds": ds}, app_transactions=[Transaction(app_id, number)]),
    )
    return int(DeltaTable(table.table_uri).version())


def _version_of(table: DeltaTable, ds: str, run: dict[str, str]) -> int | None:
    """The newest commit of this night, if this run made it: a store may have done what it said it could not do.

    Reads the log itself: `DeltaTable.history` of deltalake 1.6 never returns on S3.
    """
    for version in range(table.version(), max(-1, table.version() - HISTORY), -1):
        entries = storage.read_text(commit_uri(table.table_uri, version)).splitlines()
        commit: dict[str, Any] = next((info for e in entries if (info := json.loads(e).get("commitInfo"))), {})
        if commit.get("ds") == ds:
            return version if commit["run_id"] == run["run_id"] else None
    return None


def _add_action(path: str, piece: Piece, ds: str) -> AddAction:
    stats = json.dumps({"numRecords": piece.rows})
    return AddAction(path, piece.file.size, {"ds": ds}, int(time.time() * 1000), True, stats)


def _add_again(action: Mapping[str, Any]) -> AddAction:
    stats = json.dumps({"numRecords": action["num_records"]})
    partition = {"ds": action["partition.ds"]}
    return AddAction(action["path"], action["size_bytes"], partition, action["modification_time"], True, stats)


def _check_kept(uri: str, version: int, actions: Iterable[AddAction], ds: str) -> None:
    """Refuses to bring back what is not there any more."""
    root = storage.absolute(uri) + "/"
    folder = storage.join(uri, f"ds={ds}") if ds else uri
    stored = {file.uri.removeprefix(root): file.size for file in storage.list_files(folder)}
    gone = [action.path for action in actions if stored.get(action.path) != action.size]
    if gone:
        raise UsageError(
            f"{uri} cannot be as it was in version {version}: {len(gone)} of its files are not kept any more, such as "
            f"{gone[0]}; infer the night again"
        )
