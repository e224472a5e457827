"""Staged Parquet and the one atomic commit: how rows become a night of a table, and how a night is read back.

Shards are staged one object per piece, `<shard stem>-<hash of URI and etag>-<first>-<stop>[-end].parquet`: rows
`first … stop-1`, `-end` if the last of them is the shard's last. A put is atomic, so a listing alone tells what is
complete. A night is then one Delta Lake transaction that replaces the partition `ds`: readers see the old night or
the new one, never a part.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction
from ray.data import Datasink
from ray.data.block import BlockAccessor
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from hybrid_models.errors import UsageError
from pipelines import metrics, storage
from pipelines.shards import Shard

LINEAGE = [
    pa.field("status", pa.string()),  # ok | error
    pa.field("error", pa.string()),  # '<kind>: <message>' where status is error
    pa.field("shard", pa.string()),
    pa.field("index", pa.int64()),
    pa.field("last", pa.bool_()),
    pa.field("model", pa.string()),
    pa.field("model_version", pa.string()),
    pa.field("fingerprint", pa.string()),
    pa.field("run_id", pa.string()),
    pa.field("created_at", pa.timestamp("us", tz="UTC")),
]
TIMINGS = ("decode_seconds", "predict_seconds")
PIECE = re.compile(r"(?P<shard>.+-[0-9a-f]{16})-(?P<first>\d+)-(?P<stop>\d+)(?P<end>-end)?\.parquet")
COMMIT_ATTEMPTS = 5
READ_ATTEMPTS = 5
HISTORY = 50  # commits in which a disturbed writer looks for its own
T = TypeVar("T")
AsOf = int | datetime
"""A version of a table, or a moment."""


def table_schema(payload: pa.Schema) -> pa.Schema:
    """Columns of a table's files: `sample_id`, the hybrid's payload, lineage. `ds` is the partition, not a column."""
    return pa.schema([pa.field("sample_id", pa.string()), *payload, *LINEAGE])


# ---- pieces: names that tell what is complete --------------------------------------------------------------------
@dataclass(frozen=True)
class Piece:
    """One staged file: rows `first … stop-1` of a shard."""

    file: storage.FileInfo
    first: int
    stop: int
    end: bool

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return self.stop - self.first


def shard_key(shard: Shard) -> str:
    """A file-name stem that is unique for a shard in one state (URI and etag)."""
    digest = hashlib.sha256(f"{shard.uri}\0{shard.etag}".encode()).hexdigest()[:16]
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", shard.uri.rsplit("/", 1)[-1]).strip("-._")[:80] or "shard"
    return f"{stem}-{digest}"


def list_pieces(folder: str) -> dict[str, list[Piece]]:
    """The staged pieces in a folder by shard key."""
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for file in storage.list_files(folder):
        if match := PIECE.fullmatch(file.name):
            piece = Piece(file, int(match["first"]), int(match["stop"]), match["end"] is not None)
            pieces[match["shard"]].append(piece)
    return pieces


def tiling(pieces: Sequence[Piece]) -> list[Piece] | None:
    """Pieces that tile `0 … n` without gap or overlap up to an `-end`; None if there is no such choice.

    A retried task may have left overlapping pieces, so this looks for a path from 0 to an end piece.
    """
    arriving: dict[int, Piece | None] = {0: None}
    for piece in sorted(pieces, key=lambda piece: (piece.first, -piece.stop)):
        if piece.first not in arriving:
            continue
        if piece.end:
            return [*_path(arriving, piece.first), piece]
        arriving.setdefault(piece.stop, piece)
    return None


def _path(arriving: dict[int, Piece | None], position: int) -> list[Piece]:
    path: list[Piece] = []
    while (piece := arriving[position]) is not None:
        path.append(piece)
        position = piece.first
    return path[::-1]


class StageSink(Datasink[dict[str, float]]):
    """Ray Data sink that puts one Parquet object per contiguous piece of a shard; a retried task overwrites its own.

    After the write, `written` sums up what all tasks report: rows, bytes, seconds by stage.

    Args:
        folder: URI of the staging folder.
        shards: what is staged.
        schema: columns of the files.
        name: how Ray's metrics call it; without one nothing is counted.
    """

    def __init__(self, folder: str, shards: Sequence[Shard], schema: pa.Schema, name: str = "") -> None:
        self._folder = folder
        self._name = name
        self._keys = {shard.uri: shard_key(shard) for shard in shards}
        self._schema = schema
        self.written: dict[str, float] = defaultdict(float)

    def write(self, blocks: Iterable[Any], ctx: Any) -> dict[str, float]:
        """Writes the rows of these blocks; returns counts and seconds."""
        started = time.perf_counter()
        done: dict[str, float] = defaultdict(float)
        tables = [table for table in (BlockAccessor.for_block(block).to_arrow() for block in blocks) if len(table)]
        if not tables:
            return dict(done)
        table = pa.concat_tables(tables).sort_by([("shard", "ascending"), ("index", "ascending")])
        for first, stop in _runs(table):
            done["bytes"] += self._put(table.slice(first, stop - first))
        done["rows"] = len(table)
        for name in TIMINGS:
            if name in table.column_names:
                done[name] = pa.compute.sum(table[name]).as_py() or 0.0
        done["write_seconds"] = time.perf_counter() - started
        if self._name:
            seconds = {stage: done.get(f"{stage}_seconds", 0.0) for stage in ("decode", "predict", "write")}
            metrics.count_staged(self._name, len(table), _kinds(table["error"]), seconds, int(done["bytes"]))
        return dict(done)

    def _put(self, rows: pa.Table) -> int:
        first, stop = rows["index"][0].as_py(), rows["index"][-1].as_py() + 1
        end = "-end" if rows["last"][-1].as_py() else ""
        name = f"{self._keys[rows['shard'][0].as_py()]}-{first:08d}-{stop:08d}{end}.parquet"
        buffer = io.BytesIO()
        pq.write_table(rows.select(self._schema.names).cast(self._schema), buffer, compression="zstd")
        storage.write_bytes(storage.join(self._folder, name), buffer.getvalue())
        return buffer.tell()

    def on_write_complete(self, write_result: Any) -> None:
        """Adds up what the tasks returned."""
        for done in write_result.write_returns:
            for name, value in done.items():
                self.written[name] += value


def _runs(table: pa.Table) -> list[tuple[int, int]]:
    """Slices of a sorted table in which the shard is one and the index has no gap."""
    shards, index = table["shard"].to_pylist(), table["index"].to_pylist()
    cuts = [i for i in range(1, len(index)) if shards[i] != shards[i - 1] or index[i] != index[i - 1] + 1]
    return list(zip([0, *cuts], [*cuts, len(index)], strict=True))


# ---- counting ----------------------------------------------------------------------------------------------------
def count_errors(pieces: Iterable[Piece]) -> Counter[str]:
    """Error rows of these files by kind of error; reads the one column that tells."""
    counts: Counter[str] = Counter()
    for piece in pieces:
        with storage.open_input(piece.file.uri) as stream:
            counts += _kinds(pq.read_table(stream, columns=["error"])["error"])
    return counts


def _kinds(errors: pa.ChunkedArray) -> Counter[str]:
    return Counter(error.split(":", 1)[0] for error in errors.drop_null().to_pylist())


# ---- the commit --------------------------------------------------------------------------------------------------
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
        UsageError: it has no such version, or does not keep it any more.
    """
    return patiently("read", uri, lambda: _open(uri, as_of))


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
    for action in pa.table(table.get_add_actions(flatten=True)).to_pylist():
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


def night_files(table: DeltaTable, ds: str) -> set[str]:
    """Paths, relative to the table, of the files of one night."""
    root = table.table_uri.removeprefix("file://").rstrip("/") + "/"
    uris = table.file_uris(file_pruning_predicate=[("ds", "=", ds)])
    return {uri.removeprefix("file://").removeprefix(root) for uri in uris}


def commit_night(uri: str, ds: str, pieces: Sequence[Piece], schema: pa.Schema, run: dict[str, str]) -> int | None:
    """Replaces the night `ds` by these files in one transaction.

    Two writers of one night use the same Delta application id, so one of them loses cleanly even when neither saw a
    file of the other (without it, delta-rs lets two first writers of a partition both succeed: seen with 1.6).

    Args:
        uri: the table.
        ds: the night.
        pieces: its files.
        schema: the columns of a file.
        run: kept with the commit; its `run_id` tells this writer's commit from another's.

    Returns:
        The table's new version, or None if the night already consisted of exactly these files.

    Raises:
        CommitFailedError: another writer replaced the night first, several times over.
        StorageError: the store kept failing.
    """
    root = storage.absolute(uri) + "/"
    actions = {path: _add_action(path, piece, ds) for piece in pieces for path in [piece.file.uri.removeprefix(root)]}
    table = open_table(uri)
    if table is not None and night_files(table, ds) == set(actions):
        return None
    for attempt in range(COMMIT_ATTEMPTS):
        try:
            return patiently("commit to", uri, lambda: _commit(uri, ds, actions, schema, run))
        except CommitFailedError:
            if attempt == COMMIT_ATTEMPTS - 1:
                raise
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


def _commit(uri: str, ds: str, actions: Mapping[str, AddAction], schema: pa.Schema, run: dict[str, str]) -> int | None:
    delta_schema = schema.append(pa.field("ds", pa.string()))
    app_id = f"ds={ds}"
    table = _open(uri) or DeltaTable.create(storage.absolute(uri), delta_schema, mode="ignore", partition_by=["ds"])
    if night_files(table, ds) == set(actions):
        return _version_of(table, ds, run)
    version = (table.transaction_version(app_id) or 0) + 1
    table.create_write_transaction(
        list(actions.values()),
        "overwrite",
        delta_schema,
        ["ds"],
        [("ds", "=", ds)],
        commit_properties=CommitProperties({**run, "ds": ds}, app_transactions=[Transaction(app_id, version)]),
    )
    return int(DeltaTable(storage.absolute(uri)).version())


def _version_of(table: DeltaTable, ds: str, run: dict[str, str]) -> int | None:
    """The newest commit of this night, if this run made it: a store may have done what it said it could not do.

    Reads the log itself: `DeltaTable.history` of deltalake 1.6 never returns on S3.
    """
    for version in range(table.version(), max(-1, table.version() - HISTORY), -1):
        entries = storage.read_text(storage.join(table.table_uri, "_delta_log", f"{version:020d}.json")).splitlines()
        commit: dict[str, Any] = next((info for e in entries if (info := json.loads(e).get("commitInfo"))), {})
        if commit.get("ds") == ds:
            return version if commit["run_id"] == run["run_id"] else None
    return None


def _add_action(path: str, piece: Piece, ds: str) -> AddAction:
    stats = json.dumps({"numRecords": piece.rows})
    return AddAction(path, piece.file.size, {"ds": ds}, int(time.time() * 1000), True, stats)


def tidy(uri: str, retain_hours: int) -> list[str]:
    """Removes files that no version within the last `retain_hours` needs; younger unknown ones may be another job's.

    Raises:
        StorageError: the store kept failing.
        DeltaError: it cannot be done now.
    """
    table = open_table(uri)
    if table is None:
        return []
    return patiently(
        "tidy", uri,
        lambda: list(table.vacuum(retain_hours, dry_run=False, enforce_retention_duration=False, full=True)),
    )  # fmt: skip
