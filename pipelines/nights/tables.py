"""Tables, read: what their Delta Lake logs say of nights and files, now or as they were; current files are exported."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from hybrid_models import TABLES
from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.cluster import counters

READ_ATTEMPTS = 5
HISTORY = 50  # commits in which a disturbed writer looks for its own, and a report for earlier nights
LOG = "_delta_log"
COMMIT = re.compile(r"\d{20}\.json")
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
NO_PATH, ESCAPED = re.compile(r"[#?]|%[0-9A-Fa-f]{2}"), re.compile(r"%[0-9A-Fa-f]{2}")
RESERVED = {"reports", "evaluations", "runs", "features"}
"""Folders that lie beside tables."""
GOOD = "null_count.error"
"""Rows of a file without an error."""
TOLD = ("path", "size_bytes", "modification_time", "num_records", GOOD, "partition.ds")
"""What is asked of the log for each file."""
T = TypeVar("T")
AsOf = int | datetime
"""A version of a table, or a moment."""


def patiently(operation: str, uri: str, work: Callable[[], T]) -> T:
    """What `work` gives. delta-rs repeats requests that fail, but not ones whose answer breaks off: all is done again.

    Raises:
        StorageError: the store kept failing; names the table and the cause.
        DeltaError: another writer, or a table that is not there.
    """
    retrying = Retrying(
        retry=retry_if_exception(_is_the_stores),
        stop=stop_after_attempt(READ_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        before_sleep=lambda _: counters.count_retries("store"),
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


def check_name(name: str, own: str) -> None:
    """Refuses a name that a table cannot have in SQL and in its folder.

    Raises:
        UsageError: says why.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"`table` '{name}' must be lower-case letters, digits and '_', a letter first, 63 at most")
    if name in RESERVED or name.endswith("_all"):
        raise UsageError(f"`table` {name} means something else beside the tables: use another name")
    if name in TABLES.values() and name != own:
        raise UsageError(f"`table` {name} is the table of another kind of model: use another name")


def open_table(uri: str, as_of: AsOf | None = None) -> DeltaTable | None:
    """The table, now or as it was, or None if it has never been written.

    Raises:
        UsageError: it has no such version, or does not keep it any more; its log is damaged; or no table can be there.
        StorageError: the store kept failing.
    """
    _check_address(uri)
    try:
        return patiently("read", uri, lambda: open_once(uri, as_of))
    except storage.StorageError as error:
        if re.search("Json error|NoSuchBucket", str(error.__cause__)):
            # of a bucket that is missing the listing tells
            check_commits(uri, [file.uri for file in storage.list_files(storage.join(uri, LOG))])
        raise


def _check_address(uri: str) -> None:
    """Refuses an address of which delta-rs takes a part for something else, and so has the log where the files are not:
    of a URL what follows `#` and `?`; of any, `%20` for a space."""
    if found := (ESCAPED if storage.is_local(uri) else NO_PATH).search(uri):
        raise UsageError(f"{uri} has a '{found[0]}', for which tables have no place: use another `tables`")


def open_once(uri: str, as_of: AsOf | None = None) -> DeltaTable | None:
    try:
        table = DeltaTable(storage.absolute(uri))
    except TableNotFoundError:
        return None
    _check_newest(uri, table.version())
    if isinstance(as_of, int) and as_of > table.version():
        raise UsageError(f"{uri} has no version {as_of}: its newest is {table.version()}")
    if as_of is not None:
        try:
            table.load_as_version(as_of)
        except DeltaError as error:
            raise UsageError(f"{uri} as of {as_of} is not kept any more: {str(error).splitlines()[0]}") from None
    if isinstance(as_of, datetime):
        _check_kept(uri, as_of)
    return table


def _check_newest(uri: str, version: int) -> None:
    """Refuses a log whose newest entry is empty, as a machine leaves it whose power fails: delta-rs takes it for a
    version that changed nothing, and what is written on top of it hides that a night is gone."""
    commit = commit_uri(uri, version)
    try:
        is_empty = not storage.info(commit).size
    except FileNotFoundError:  # a log forgets what its checkpoints hold
        return
    if is_empty:
        check_commits(uri, [commit])


def _check_kept(uri: str, moment: datetime) -> None:
    """Refuses a moment before the first commit that the log still has: delta-rs would give that version for all that
    was before it, which of a table's first one has no rows: to restore it would empty the table."""
    log = storage.list_all(storage.join(uri, LOG))
    commits = [file for file in log if COMMIT.fullmatch(file.uri.rsplit("/", 1)[-1])]
    if not commits or commits[0].modified <= moment:
        return
    began = commits[0].modified.isoformat(timespec="microseconds")
    if commits[0].uri == storage.absolute(commit_uri(uri, 0)):
        raise UsageError(f"there was no {uri} as of {moment} yet: it began at {began}")
    raise UsageError(f"{uri} as of {moment} is not kept any more: its log begins at {began}")


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
        raise UsageError(f"`as_of` '{text}' is neither a version nor a time: write 12 or 2026-01-31T06:00") from None
    return time_ if time_.tzinfo else time_.replace(tzinfo=UTC)


@dataclass(frozen=True)
class StoredNight:
    """A night as a table holds it."""

    ds: str
    rows: int
    bad: int | None
    """How many of them are error rows; None if an earlier version wrote some of its files, and did not tell."""
    files: int
    bytes: int
    written: datetime
    """When the newest of its files was committed, UTC."""


def nights(table: DeltaTable) -> list[StoredNight]:
    """The nights of a table, from its log alone, the oldest first."""
    found = _told(table)
    if len(found) == 0:
        return []
    if GOOD not in found.column_names:  # no file has statistics
        found = found.append_column(GOOD, pa.nulls(len(found), pa.int64()))
    grouped = found.group_by("partition.ds").aggregate(
        [
            ("num_records", "sum"),
            (GOOD, "sum"),
            (GOOD, "count"),
            ("size_bytes", "count"),
            ("size_bytes", "sum"),
            ("modification_time", "max"),
        ]
    )
    return [
        StoredNight(
            night["partition.ds"],
            night["num_records_sum"],
            _bad(night),
            night["size_bytes_count"],
            night["size_bytes_sum"],
            datetime.fromtimestamp(night["modification_time_max"] / 1000, UTC),
        )
        for night in grouped.sort_by("partition.ds").to_pylist()
    ]


def _bad(night: Mapping[str, Any]) -> int | None:
    """Error rows of a night; None where the log does not say so of each of its files."""
    if night[f"{GOOD}_count"] < night["size_bytes_count"]:
        return None
    return int(night["num_records_sum"] - night[f"{GOOD}_sum"])


def bad_rows(action: Mapping[str, Any]) -> int | None:
    """How many rows of a file are error rows, by what the log says of it."""
    good = action.get(GOOD)
    return None if good is None else action["num_records"] - good


def night_files(table: DeltaTable, ds: str = "") -> set[str]:
    """Paths, relative to the table, of the files of one night, or of all."""
    root = table.table_uri.removeprefix("file://").rstrip("/") + "/"
    uris = table.file_uris(file_pruning_predicate=[("ds", "=", ds)] if ds else None)
    return {uri.removeprefix("file://").removeprefix(root) for uri in uris}


def export(table: DeltaTable, uri: str, ds: str, out: str) -> list[str]:
    """Copies the files of one partition, or of all, to `out/ds=DATE/`; returns the addresses of the copies.

    Raises:
        UsageError: a folder of a partition there holds another file.
    """
    copies: dict[str, str] = {}
    for path in sorted(night_files(table, ds)):
        partition, _, name = path.partition("/")
        copies[storage.join(out, partition, name.replace("/", "-"))] = storage.join(uri, path)
    for folder in sorted({copy.rpartition("/")[0] for copy in copies}):
        if others := [file.uri for file in storage.list_all(folder) if file.uri not in copies]:
            raise UsageError(f"{others[0]} is no file of {uri} as it is now: give a new folder as `out`")
    for copy, source in copies.items():
        content = storage.read_bytes(source)
        storage.write_bytes(copy, content, storage.has_digest([hashlib.sha256(content).hexdigest()]))
    return list(copies)


def file_actions(table: DeltaTable) -> list[dict[str, Any]]:
    """What the log says of the table's files, as far as somebody asks for it."""
    return list(_told(table).to_pylist())


def _told(table: DeltaTable) -> pa.Table:
    actions = pa.table(table.get_add_actions(flatten=True))
    return actions.select([name for name in TOLD if name in actions.column_names])


def check_commits(uri: str, commits: Sequence[str]) -> None:
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


def commit_notes(uri: str, newest: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Versions of a table and what their commits say of themselves, from the newest back: as many as the log still has,
    `HISTORY` at most.

    Reads the log itself: `DeltaTable.history` of deltalake 1.6 never returns on S3.

    Raises:
        StorageError: the store kept failing.
        ValueError: an entry of the log is damaged.
    """
    for version in range(newest, max(-1, newest - HISTORY), -1):
        try:
            entries = [json.loads(line) for line in storage.read_text(commit_uri(uri, version)).splitlines()]
        except FileNotFoundError:  # a log forgets what its checkpoints hold
            return
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{commit_uri(uri, version)} is damaged")
        yield version, next((told for entry in entries if (told := entry.get("commitInfo"))), {})


def commit_uri(uri: str, version: int) -> str:
    """Where the log has the commit that made a version."""
    return storage.join(uri, LOG, f"{version:020d}.json")
