"""Compaction: the rows of a night in fewer files, under names by which the same night, inferred again, finds them.

Small files become packs (`staging.pieces`), up to `joining.PACK_BYTES` of them in one, whatever units they are of;
large ones stay. A night packs its own before it commits, where these are many; this is for what came later, and for
tables of earlier versions. What is no work before a compaction is none after; where a shard has changed since, a night
writes the other rows of its pack to a new one (`joining.files`), and computes no more than it would have. That keeps a
log small in which nights of thousands of files come for years: whoever opens a table holds what its log says of all
files.

Nothing is written over, so earlier versions keep their files. The commit wants the night to be as it was looked at: of
a night and a compaction of one date, whoever is second looks again, a night replaces, a compaction gives up. One that
was killed leaves whole packs that no version has: a night of this date uses them instead of what they were made of, or
tidying frees them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.nights import commit, ownership, tables
from pipelines.nights.commit import Partition
from pipelines.staging import contents, joining
from pipelines.staging.checks import RefusedError
from pipelines.staging.joining import Joined
from pipelines.staging.pieces import Piece, is_own, list_pieces

log = logging.getLogger(__name__)
LEAST_GAIN = 2
"""A night is rewritten if its files are at least so many times as many as they become, or if so many small ones are put
together as a night would pack."""


@dataclass(frozen=True)
class Plan:
    """How a night would be rewritten."""

    partition: Partition
    before: frozenset[str]
    """Paths, relative to the table, of the files that it has."""
    kept: Sequence[Piece]
    """Those of them that stay, each as one."""
    packs: Sequence[Joined]
    written: int
    """When the newest of its files was committed, in milliseconds since 1970."""


@dataclass(frozen=True)
class CompactedNight:
    """A night that was rewritten, or would be."""

    ds: str
    rows: int
    files: int
    """As it was."""
    files_after: int
    version: int | None
    """The table's version that has it so; None if nothing was written."""


@dataclass
class Compacted:
    """What came of a compaction."""

    nights: list[CompactedNight] = field(default_factory=list)
    """Those that gain by it."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Those that could not be rewritten, and why; of them nothing was changed."""


def compact(uri: str, ds: str = "", dry_run: bool = False) -> Compacted:
    """Rewrites the nights of a table that gain by it, each in a commit of its own. Which these are its log tells.

    Args:
        uri: the table.
        ds: this night alone; without one all nights, of which those that cannot be rewritten are skipped.
        dry_run: write nothing.

    Raises:
        UsageError: there is no such table or night, or the table is another program's.
        RefusedError: the night that was asked for cannot be rewritten, or another writer replaced it; nothing was
            changed.
        RuntimeError: one of its files is damaged.
        StorageError: the store kept failing.
    """
    table = tables.open_table(uri)
    if table is None:
        raise UsageError(f"there is no table at {uri}")
    ownership.check_ours(table, uri)
    nights = [night for night in tables.nights(table) if ds in ("", night.ds)]
    if ds and not nights:
        raise UsageError(f"{uri} has no rows of {ds}: `hybrid tables` lists its nights")
    files: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for action in tables.file_actions(table):
        files[action["partition.ds"]].append(action)
    done = Compacted()
    for night in nights:
        runs = joining.runs(_sizes(files[night.ds]))
        small, after = sum(len(run) for run in runs if len(run) > 1), len(runs)
        if small < joining.LEAST_FILES and after * LEAST_GAIN > night.files:
            continue
        try:
            found = plan(Partition(storage.absolute(uri), night.ds), files[night.ds])
            version = None if dry_run else rewrite(table, found)
        except (RuntimeError, FileNotFoundError, CommitFailedError) as error:
            if ds or isinstance(error, storage.StorageError):
                raise
            log.warning("%s ds=%s is left alone: %s", uri, night.ds, error)
            done.skipped[night.ds] = str(error)
        else:
            log.info("%s ds=%s: %d files of %d", uri, night.ds, after, night.files)
            done.nights.append(CompactedNight(night.ds, night.rows, night.files, after, version))
    return done


def _sizes(files: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {action["path"]: action["size_bytes"] for action in files}


def plan(partition: Partition, files: Sequence[Mapping[str, Any]]) -> Plan:
    """How a night would be rewritten.

    Args:
        partition: the night.
        files: what the log says of those that it has, as `tables.file_actions` gives it.

    Raises:
        RefusedError: the night is not what this program staged.
        StorageError: the store kept failing.
    """
    sizes = _sizes(files)
    folder = _folder(partition, sizes)
    pieces = _in_use(partition, sizes, folder)
    kept: list[Piece] = []
    packs: list[Joined] = []
    for run in joining.runs(sizes):
        if len(run) == 1:
            kept.append(joining.whole_file(pieces[run[0]]))
        else:
            packs.append(joining.pack(folder, [piece for path in run for piece in pieces[path]]))
    return Plan(partition, frozenset(sizes), kept, packs, max(action["modification_time"] for action in files))


def _folder(partition: Partition, paths: Iterable[str]) -> str:
    """Where all files of a night lie."""
    foreign = sorted(path for path in paths if not is_own(path))
    folders = {path.rpartition("/")[0] for path in paths}
    if foreign or len(folders) > 1:
        raise RefusedError(
            f"{partition} has {foreign[0] if foreign else 'files of several folders'}, which no night of this program "
            "has: infer the night again"
        )
    return storage.join(partition.table, *folders)


def _in_use(partition: Partition, paths: Iterable[str], folder: str) -> dict[str, list[Piece]]:
    """The pieces that a night has, by the path of their file."""
    root = storage.absolute(partition.table) + "/"
    found: dict[str, list[Piece]] = defaultdict(list)
    for own in list_pieces(folder).values():
        for piece in own:
            found[piece.file.uri.removeprefix(root)].append(piece)
    if gone := sorted(set(paths) - set(found)):
        raise RefusedError(f"{partition} lacks its file {gone[0]}: infer the night again")
    return found


def rewrite(table: DeltaTable, found: Plan) -> int | None:
    """Writes the packs and commits the night with them, to the table as it was opened; its new version is returned.

    Raises:
        RefusedError: another writer has replaced the night.
        RuntimeError: a file is damaged, or has not the rows that its name tells.
        StorageError: the store kept failing.
    """
    made = [piece for piece, _ in joining.write(found.packs)]
    told = contents.each(found.kept)
    kept = [replace(piece, bad=each.bad) for piece, each in zip(found.kept, told, strict=True)]
    return commit.rewrite_night(table, found.partition, found.before, [*kept, *made], found.written)
