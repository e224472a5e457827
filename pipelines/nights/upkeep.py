"""Upkeep of tables: files of our own making that no version needs any more are removed by name, and nothing else is.

A piece that waits for its commit is needed, too. Tidying leaves whatever is younger than `STAGED_HOURS`, and a night
copies what has waited for more than `RENEWED_HOURS` to a new name before it commits: so between its look and its commit
nobody removes what it commits, unless that takes it twelve hours.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from deltalake import DeltaTable

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import ownership, tables
from pipelines.nights.commit import Partition
from pipelines.staging.pieces import Piece, is_own, renewed_name
from pipelines.storage import StoredFile

log = logging.getLogger(__name__)
STAGED_HOURS = 24.0
"""Nothing younger is ever tidied."""
RENEWED_HOURS = 12.0
"""What has waited longer is copied before it is committed."""
COPIES = 4
"""Made at the same time, each of up to 64 MiB that are in memory."""
REQUESTS, TOGETHER = 32, 4096
"""Files that are removed at the same time, and that wait for it in memory: packs leave as many as a night has units."""


@dataclass(frozen=True)
class Tidied:
    """What tidying found in a folder, a table's or a night's."""

    removed: Sequence[StoredFile]
    """Files that no version needs, removed now, or to be removed."""
    unknown: Sequence[StoredFile]
    """Files that this program did not write and the table does not have: left."""

    @property
    def bytes(self) -> int:
        """Size of what is removed."""
        return sum(file.size for file in self.removed)


def tidy(uri: str, retain_hours: int, dry_run: bool = False, ds: str = "") -> Tidied:
    """Removes pieces, by name, that no version within the last `retain_hours` needs.

    Younger ones are left, and those of the last `STAGED_HOURS`: another job may be about to commit them; so is whatever
    else lies in the folder.

    Args:
        uri: the table.
        retain_hours: how long an earlier version can be read.
        dry_run: remove nothing.
        ds: of this night alone, so that nothing is listed of all the others; without one, of all.

    Raises:
        UsageError: it is not one of our tables; or an entry of its log is damaged or missing.
        StorageError: the store kept failing.
    """
    root = storage.absolute(uri) + "/"
    folder = Partition(uri, ds).folder if ds else uri
    stored = {file.uri.removeprefix(root): file for file in storage.list_all(folder)}
    table = tables.open_table(uri)  # only now: what was committed before the listing is known to be in use
    if table is None:
        return Tidied([], [])
    ownership.check_ours(table, uri)
    now = _now()
    before = now - timedelta(hours=retain_hours)
    staged = now - timedelta(hours=max(retain_hours, STAGED_HOURS))
    in_use = tables.night_files(table, ds)
    old = {path for path, file in stored.items() if file.modified < staged and not file.is_link}
    removable = {path for path in old if is_own(path)} - in_use
    if removable:
        removable -= _needed_before(uri, table.version(), before, removable)
    paths = sorted(removable)
    if not dry_run:
        paths = _remove(table, storage.absolute(uri), ds, {path: stored[path] for path in paths})
    removed = [stored[path] for path in paths]
    unknown = [file for path, file in stored.items() if not (is_own(path) or path in in_use or ownership.is_log(path))]
    if unknown:
        log.warning("%s: %d files are none of this program's and left: %s …", folder, len(unknown), unknown[0].uri)
    return Tidied(removed, unknown)


def renew(partition: Partition, pieces: Sequence[Piece]) -> list[Piece]:
    """The same rows in files that no tidying removes before they are committed: see the module's first lines.

    Args:
        partition: the night; what it has in the table already is in use, however old.
        pieces: the night's files, in one folder.

    Raises:
        RuntimeError: one is gone already.
        StorageError: the store kept failing.
    """
    old = _old({piece.file.uri.rsplit("/", 1)[0] for piece in pieces}, RENEWED_HOURS)
    if not any(piece.file.uri in old for piece in pieces):
        return list(pieces)
    in_use = partition.files()
    root = storage.absolute(partition.table) + "/"
    waited = [piece for piece in pieces if piece.file.uri in old and piece.file.uri.removeprefix(root) not in in_use]
    with ThreadPoolExecutor(COPIES) as threads:
        copies = dict(zip(waited, threads.map(_renewed, waited), strict=True))
    return [copies.get(piece, piece) for piece in pieces]


def _old(folders: set[str], hours: float) -> set[str]:
    before = _now() - timedelta(hours=hours)
    return {file.uri for folder in folders for file in storage.list_all(folder) if file.modified < before}


def _renewed(piece: Piece) -> Piece:
    folder, name = piece.file.uri.rsplit("/", 1)
    second = int(_now().timestamp())
    copy = storage.join(folder, renewed_name(name, second))
    try:
        storage.write_new(copy, storage.read_bytes(piece.file.uri))
    except FileNotFoundError:
        raise RuntimeError(
            f"{piece.file.uri} was tidied before its commit: start the job again, it computes what is missing"
        ) from None
    return replace(piece, file=storage.info(copy), renewed=second)


def _now() -> datetime:
    return datetime.now(UTC)


def _remove(table: DeltaTable, root: str, ds: str, files: Mapping[str, StoredFile]) -> list[str]:
    """Removes files, by their paths in the table, but those of a night that somebody has brought back meanwhile."""
    removed: list[str] = []
    paths = list(files)
    with ThreadPoolExecutor(REQUESTS) as threads:
        for start in range(0, len(paths), TOGETHER):
            tables.patiently("read", root, table.update_incremental)
            in_use = tables.night_files(table, ds)
            some = [path for path in paths[start : start + TOGETHER] if path not in in_use]
            list(threads.map(storage.delete_listed, (files[path] for path in some)))
            removed += some
    return removed


def _needed_before(uri: str, version: int, moment: datetime, paths: set[str]) -> set[str]:
    """Those of these paths that commits since a moment took out of the table: versions before them need them.

    The log's own entries say it: its checkpoints know of a removed file for a week. An entry is older than the moment
    if both its own time and the store's are: one that a clock which goes wrong wrote ends nothing.

    Raises:
        UsageError: an entry that would have to be read is damaged, or missing among others.
        StorageError: the store kept failing.
    """
    stored = storage.list_all(storage.join(uri, tables.LOG))
    names = {file.uri.rsplit("/", 1)[-1]: file for file in stored}
    log_ = {int(name.split(".")[0]): file for name, file in names.items() if tables.COMMIT.fullmatch(name)}
    needed: set[str] = set()
    for number in range(version, min(log_, default=0) - 1, -1):  # the log forgot those before: nobody can read them
        if needed >= paths:
            break
        entries = _entries(uri, number, log_)
        told = [entry["commitInfo"]["timestamp"] for entry in entries if "timestamp" in entry.get("commitInfo", {})]
        if told and told[0] < moment.timestamp() * 1000 and log_[number].modified < moment:
            break
        needed |= paths & {unquote(entry["remove"]["path"]) for entry in entries if "remove" in entry}
    return needed


def _entries(uri: str, number: int, log_: Mapping[int, StoredFile]) -> list[dict[str, Any]]:
    """What a commit says."""
    commit = tables.commit_uri(uri, number)
    problem = "is missing"
    if number in log_:
        try:
            entries = [json.loads(line) for line in storage.read_text(commit).splitlines()]
            if entries and all(isinstance(entry, dict) for entry in entries):
                return entries
        except ValueError:
            pass
        problem = "is damaged"
    raise UsageError(f"{uri} cannot be tidied: {commit}, an entry of its log, {problem}; bring it back from a backup")
