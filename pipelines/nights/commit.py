"""The commit: a night is one transaction that replaces the partition `ds`: readers see the old night or the new one,
never a part.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.cluster import counters
from pipelines.nights.ownership import COMMON, check_folder, check_ours, columns, mark
from pipelines.nights.tables import (
    COMMIT,
    LOG,
    AsOf,
    bad_rows,
    commit_notes,
    file_actions,
    night_files,
    open_once,
    open_table,
    patiently,
)
from pipelines.staging.checks import RefusedError
from pipelines.staging.pieces import Piece

COMMIT_ATTEMPTS = 5
LOG_BYTES = 8 << 20
"""Of commits that no checkpoint has: the lines of 25,000 files."""
ONCE = CommitProperties(max_commit_retries=0)
"""Of several writers that find no table one makes it, and the others look again. Repeated, as delta-rs would, each of
them makes it anew in a version of its own."""
CHECKPOINT = re.compile(r"\d{20}\.checkpoint.*\.parquet")
DIGITS = 20
May = Callable[[set[str]], None]
"""Is given the paths, relative to the table, of what a night consists of, and raises if that may not be replaced."""
logger = logging.getLogger(__name__)


def always(files: set[str]) -> None:
    """Whatever a night consists of may be replaced."""


@dataclass(frozen=True)
class Partition:
    """What a commit replaces: the rows of one date in one table."""

    table: str
    """URI of the table."""
    ds: str
    """Logical date, YYYY-MM-DD."""

    def __str__(self) -> str:
        return f"{self.table} ds={self.ds}"

    @classmethod
    def of(cls, tables: str, name: str, ds: str) -> Partition:
        """In the table of a name in a folder of tables.

        Raises:
            UsageError: the folder's address has a password.
        """
        return cls(storage.join(storage.absolute(tables), name), ds)

    @property
    def tables(self) -> str:
        """URI of the folder of tables."""
        return self.table.rpartition("/")[0] or "/"

    @property
    def name(self) -> str:
        """The table's."""
        return self.table.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """Below which its files are."""
        return storage.join(self.table, f"ds={self.ds}")

    def files(self) -> set[str]:
        """Paths, relative to the table, of the files that it consists of now.

        Raises:
            UsageError, StorageError: see `open_table`.
        """
        table = open_table(self.table)
        return set() if table is None else night_files(table, self.ds)


def commit_night(
    partition: Partition, pieces: Sequence[Piece], schema: pa.Schema, run: dict[str, str], may: May = always
) -> int | None:
    """Replaces a night by these files in one transaction.

    Two writers of one night use the same Delta application id, so the later one looks again at what it replaces, even
    when neither saw a file of the other (without it, delta-rs lets two first writers of a partition both succeed: seen
    with 1.6).

    Args:
        partition: the night; a table that bears no mark yet is given it, columns that an earlier version lacks are
            added.
        pieces: its files.
        schema: the columns of a file.
        run: kept with the commit; its `run_id` tells this writer's commit from another's.
        may: says whether what the night consists of may be replaced.

    Returns:
        The table's new version, or None if the night already consisted of exactly these files.

    Raises:
        RuntimeError: it may not; as `may` raises it.
        CommitFailedError: another writer replaced the night first, several times over.
        UsageError: the table is none of this program's, see `ownership.check`.
        StorageError: the store kept failing.
    """
    uri, ds = partition.table, partition.ds
    actions = _add_actions(partition, pieces, int(time.time() * 1000))
    table = open_table(uri)
    if table is not None and night_files(table, ds) == {action.path for action in actions}:
        return None
    return _persistently("commit to", uri, lambda: _commit(table, uri, ds, actions, schema, run, may))


def rewrite_night(
    table: DeltaTable, partition: Partition, before: Collection[str], pieces: Sequence[Piece], written: int
) -> int | None:
    """Replaces the files of a night by others that have the same rows, in one transaction.

    Args:
        table: as it was opened, or left by the night before: to open one of many files takes seconds.
        partition: the night.
        before: paths, relative to the table, of the files whose rows these are.
        pieces: what it shall consist of.
        written: when it was written, in milliseconds since 1970: it stays as old as it is.

    Returns:
        The table's new version.

    Raises:
        RefusedError: the night does not consist of the former files any more.
        CommitFailedError: other writers were faster, several times over.
        StorageError: the store kept failing.
    """
    uri, ds = partition.table, partition.ds
    actions = _add_actions(partition, pieces, written)
    run = {"run_id": uuid.uuid4().hex, "rewritten": str(len(before))}

    def unchanged(files: set[str]) -> None:
        if files != set(before):
            raise RefusedError(f"{uri} ds={ds} was replaced by another writer meanwhile: nothing was changed")

    return _persistently("rewrite", uri, lambda: _commit(table, uri, ds, actions, None, run, unchanged))


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
    actions = [_add_again(action) for action in file_actions(before) if ds in ("", action["partition.ds"])]
    if ds and not actions:
        raise UsageError(f"{uri} had no rows of {ds} in version {version}: `hybrid tables --as-of` lists nights")
    _check_kept(uri, version, actions, ds)
    run = {"run_id": uuid.uuid4().hex, "restored": str(version)}
    if ds:
        restored = _persistently("restore", uri, lambda: _commit(None, uri, ds, actions, None, run, always))
    else:
        restored = _restore_all(uri, version, run)
    if restored is not None:
        _check_kept(uri, version, actions, ds)  # who tidied meanwhile took them for files that nobody needs
    return restored


def _restore_all(uri: str, version: int, run: dict[str, str]) -> int | None:
    table = DeltaTable(storage.absolute(uri))
    if table.version() == version:
        return None
    patiently("restore", uri, lambda: table.restore(version, commit_properties=CommitProperties(run)))
    _shorten(uri, table)
    return int(table.version())


def _persistently(operation: str, uri: str, work: Callable[[], int | None]) -> int | None:
    """What `work` gives, which is done again when another writer was faster."""
    for attempt in range(COMMIT_ATTEMPTS):
        try:
            return patiently(operation, uri, work)
        except CommitFailedError:
            if attempt == COMMIT_ATTEMPTS - 1:
                raise
            counters.count_retries("commit")
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _writable(table: DeltaTable | None, uri: str, schema: pa.Schema | None, actions: Sequence[AddAction]) -> DeltaTable:
    """The table in its newest version, ours and marked so."""
    if table is None:
        table = open_once(uri)
    else:
        table.update_incremental()
    if table is None:
        assert schema is not None
        check_folder(uri, {action.path for action in actions})
        fields = DeltaSchema(list(columns(schema).values()))
        return DeltaTable.create(storage.absolute(uri), fields, "ignore", ["ds"], mark(uri), commit_properties=ONCE)
    check_ours(table, uri, schema)
    if not table.metadata().name:
        table.alter.set_table_name(mark(uri))
    return table


def _commit(
    table: DeltaTable | None,
    uri: str,
    ds: str,
    actions: Sequence[AddAction],
    schema: pa.Schema | None,
    run: dict[str, str],
    may: May,
) -> int | None:
    """One attempt; only if what the night consists of may be replaced.

    Args:
        table: as somebody opened it earlier, if so: what came since is read, and not all of it again.
    """
    table = _writable(table, uri, schema, actions)
    files = night_files(table, ds)
    if files == {action.path for action in actions}:
        return _version_of(uri, table.version(), ds, run)
    may(files)
    have = table.schema().fields
    grown = [field for name, field in columns(schema or COMMON).items() if name not in {known.name for known in have}]
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
    table.update_incremental()
    _shorten(uri, table)
    return int(table.version())


def _shorten(uri: str, table: DeltaTable) -> None:
    """Whoever opens a table reads its log from the last checkpoint on. One is made when that is more than `LOG_BYTES`;
    delta-rs counts commits, of which one may have a line for each of 100,000 files. The night is committed: a
    checkpoint that cannot be made is only worth a warning."""
    try:
        log = storage.list_files(storage.join(uri, LOG))
        last = max((file.name[:DIGITS] for file in log if CHECKPOINT.fullmatch(file.name)), default="")
        if sum(file.size for file in log if COMMIT.fullmatch(file.name) and file.name[:DIGITS] > last) > LOG_BYTES:
            table.create_checkpoint()
    except Exception as error:  # delta-rs has more kinds of them than it says
        logger.warning("%s: cannot make a checkpoint of its log: %s", uri, error)


def _version_of(uri: str, newest: int, ds: str, run: dict[str, str]) -> int | None:
    """The newest commit of this night, if this run made it: a store may have done what it said it could not do."""
    for version, told in commit_notes(uri, newest):
        if told.get("ds") == ds:
            return version if told["run_id"] == run["run_id"] else None
    return None


def _add_actions(partition: Partition, pieces: Sequence[Piece], written: int) -> list[AddAction]:
    root = storage.absolute(partition.table) + "/"
    assert all(piece.file.uri.startswith(root) for piece in pieces), f"no files of {partition}"
    ds = {"ds": partition.ds}
    return [
        AddAction(piece.file.uri.removeprefix(root), piece.file.size, ds, written, True, _stats(piece.rows, piece.bad))
        for piece in pieces
    ]


def _add_again(action: Mapping[str, Any]) -> AddAction:
    partition = {"ds": action["partition.ds"]}
    stats = _stats(action["num_records"], bad_rows(action))
    return AddAction(action["path"], action["size_bytes"], partition, action["modification_time"], True, stats)


def _stats(rows: int, bad: int | None) -> str:
    """What the log, and each checkpoint of it, says of a file's rows: whoever lists nights reads none, and whoever asks
    for errors opens no file without one. It has no least and greatest values: where a file has those of some columns,
    delta-rs 1.6 compares the others with null, and DuckDB and pandas get none of its rows."""
    known = {} if bad is None else {"nullCount": {"error": rows - bad}}
    return json.dumps({"numRecords": rows, **known})


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
