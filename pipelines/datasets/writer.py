"""Rows → shards and a manifest: what every prepared data set has in common.

`<out>/<split>/<name>-<split>-00000.tar` (or `.jsonl.gz`), and `<out>/_manifest.json`, written last, with the rows,
bytes and SHA-256 of every shard. The same call writes the same bytes: archives carry no times, owners or host names.
Until it ends, `<out>/_unfinished` exists: splits of two calls may share samples. It is a journal of the digests that
this call writes.

An existing file is replaced or removed only if manifest or journal hold its digest, under a name that this data set
gives to shards. The folder is checked before the first byte is written: a file of such a name without a record is
refused.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import logging
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, TypeVar

from hybrid_models.errors import UsageError
from pipelines import storage

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "_manifest.json"
UNFINISHED = "_unfinished"
LEVELS = 3
"""From a shard, or a pattern of some, up to its data set's folder."""
Row = TypeVar("Row")
TarRow = tuple[str, Mapping[str, bytes]]
"""Key and members by suffix: `("1000268201", {"jpg": …, "json": …})`."""


@dataclass(frozen=True)
class WrittenShard:
    """What the manifest says of one shard."""

    name: str
    """Path below the data set's folder."""
    rows: int
    """Samples; frames in a radar event."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Prepared:
    """What was written of a data set.

    Args:
        dataset: its name.
        out: where it is.
        splits: split → rows.
        in_train: split → how many of its contents (photographs, clips, pairs of sentences, events) are in the training
            split, too.
        shards: how many.
        bytes: of all of them.
    """

    dataset: str
    out: str
    splits: dict[str, int]
    in_train: dict[str, int]
    shards: int
    bytes: int


class DatasetWriter:
    """Writes the shards of one data set, one at a time in memory, and at last its manifest.

    Args:
        out: the data set's folder, any URI.
        name: the data set's name, first part of the shards' names.
        rows_per_shard: how many rows a shard has; the last of a split may have fewer.
        options: what decided the content (seed, counts …), for the manifest.
        origins: option → where its rows come from, for data sets of which each user has several by the same name. One
            that comes from elsewhere altogether is another one.
        files: paths below the folder of the ready-made shards that this call may write.

    Raises:
        UsageError: nothing can be written there; another data set, a link or a file without a record is there; or
            `rows_per_shard` is not positive.
    """

    def __init__(
        self,
        out: str,
        name: str,
        rows_per_shard: int,
        options: Mapping[str, Any],
        origins: Mapping[str, str] | None = None,
        files: Sequence[str] = (),
    ) -> None:
        if rows_per_shard < 1:
            raise UsageError(f"`rows_per_shard` is {rows_per_shard}: a shard needs at least one row")
        self._root = storage.absolute(out)
        there = read_manifest(self._root)
        if there is not None and there.dataset != name:
            raise UsageError(
                f"`out` {out} holds the data set '{there.dataset}', whose shards '{name}' would replace: "
                "use another one"
            )
        origins = {option: storage.absolute(place) for option, place in (origins or {}).items()}
        if there is not None and (other := _other_origin(there.options, origins)):
            raise UsageError(
                f"`out` {out} holds a data set of {other}, which this one would replace: use another one, or remove "
                f"{storage.join(out, MANIFEST)} if it is to be replaced"
            )
        self.out = out
        self.name = name
        self.rows_per_shard = rows_per_shard
        self.options = {**origins, **options}
        self._shards: dict[str, list[WrittenShard]] = {}
        self._contents: dict[str, set[bytes]] = defaultdict(set)
        self._files = set(files)
        self._manifest_digests = _digests_of(storage.join(self._root, MANIFEST))
        self._journal_digests = _digests_of(storage.join(self._root, UNFINISHED))
        self._journal = _read_journal(self._root)
        self._recorded = self._read_records([] if there is None else there.shards)
        self._existing = self._check_folder()
        storage.check_writable(out)

    def _read_records(self, shards: Sequence[WrittenShard]) -> dict[str, set[str]]:
        """Path below the folder → the digests that this program wrote there, by manifest and journal."""
        records: dict[str, set[str]] = defaultdict(set)
        for shard in shards:
            records[shard.name].add(shard.sha256)
        for name, digests in self._journal.items():
            records[name].update(digests)
        for name in records:
            if not self._is_shard(name):
                raise UsageError(
                    f"the records in {self._root} ({MANIFEST}, {UNFINISHED}) name {name}, which is no shard of "
                    f"'{self.name}': use another `out`"
                )
        return records

    def _check_folder(self) -> dict[str, str]:
        """Path → digest of the shards of earlier calls, as they are.

        Raises:
            UsageError: a file that this call may write or remove is a link, or has no record of its content.
        """
        existing: dict[str, str] = {}
        for file in storage.list_all(self._root):
            name = file.uri.removeprefix(self._root).lstrip("/")
            if file.is_link and SPLIT.fullmatch(name):
                raise UsageError(f"{file.uri} is a link, and nothing is written through one: remove it, {_OTHER_OUT}")
            if name not in self._recorded and name not in self._files and not self._is_numbered(name):
                continue
            digest = "" if file.is_link else hashlib.sha256(storage.read_bytes(file.uri)).hexdigest()
            if digest not in self._recorded.get(name, ()):
                raise UsageError(
                    f"{file.uri} would be replaced, and {MANIFEST} has no record that this program wrote it as it is: "
                    f"move it, {_OTHER_OUT}"
                )
            existing[name] = digest
        return existing

    def write_tar(self, split: str, rows: Iterable[TarRow], rows_per_shard: int | None = None) -> None:
        """Writes rows as WebDataset shards: the members of a row share its key as file name."""
        self._write_rows(split, rows, rows_per_shard, "tar", pack_tar, _media)

    def write_jsonl(self, split: str, rows: Iterable[Mapping[str, Any]], rows_per_shard: int | None = None) -> None:
        """Writes rows as gzipped JSON lines."""
        self._write_rows(split, rows, rows_per_shard, "jsonl.gz", pack_jsonl, _fields)

    def write_file(self, split: str, file_name: str, data: bytes, rows: int) -> None:
        """Writes one ready-made shard, one of `files`, and remembers it for the manifest.

        One that is there with this content already is left alone, so that what was computed from it stays valid.
        """
        self._contents[split].add(hashlib.sha256(data).digest())
        self._write(split, file_name, data, rows)

    def _write(self, split: str, file_name: str, data: bytes, rows: int) -> None:
        name, digest = f"{split}/{file_name}", hashlib.sha256(data).hexdigest()
        self._note(name, digest)
        if self._existing.get(name) != digest:
            storage.write_bytes(storage.join(self._root, name), data, storage.has_digest(self._recorded[name]))
        self._shards.setdefault(split, []).append(WrittenShard(name, rows, len(data), digest))
        log.debug("wrote %s (%d rows, %d bytes)", name, rows, len(data))

    def _note(self, name: str, digest: str) -> None:
        """Records a shard before it is written, so that a call that is cut short leaves nothing without a record."""
        if self._shards and digest in self._recorded[name]:
            return
        self._recorded[name].add(digest)
        self._journal.setdefault(name, []).append(digest)
        data = json.dumps({"format": FORMAT_VERSION, "shards": self._journal}, indent=1).encode()
        storage.write_bytes(storage.join(self._root, UNFINISHED), data, storage.has_digest(self._journal_digests))
        self._journal_digests = {hashlib.sha256(data).hexdigest()}

    def _write_rows(
        self,
        split: str,
        rows: Iterable[Row],
        size: int | None,
        suffix: str,
        pack: Callable[[list[Row]], bytes],
        content: Callable[[Row], bytes],
    ) -> None:
        stream = iter(rows)
        for number in itertools.count():
            chunk = list(itertools.islice(stream, size or self.rows_per_shard))
            if not chunk:
                return
            self._contents[split].update(hashlib.sha256(content(row)).digest() for row in chunk)
            self._write(split, f"{self.name}-{_label(split)}-{number:05d}.{suffix}", pack(chunk), len(chunk))

    def finish(self) -> Prepared:
        """Removes what an earlier call with other options left, writes the manifest, and returns the summary."""
        self._remove_stale()
        in_train = self._in_train()
        manifest = {
            "format": FORMAT_VERSION,
            "dataset": self.name,
            "options": {"rows_per_shard": self.rows_per_shard, **self.options},
            "splits": {split: _split_entry(shards) for split, shards in self._shards.items()},
            "in_train": in_train,
        }
        data = json.dumps(manifest, indent=1).encode() + b"\n"
        storage.write_bytes(storage.join(self._root, MANIFEST), data, storage.has_digest(self._manifest_digests))
        storage.delete(storage.join(self._root, UNFINISHED), storage.has_digest(self._journal_digests))
        written = [shard for shards in self._shards.values() for shard in shards]
        return Prepared(
            dataset=self.name,
            out=self.out,
            splits={split: sum(shard.rows for shard in shards) for split, shards in self._shards.items()},
            in_train=in_train,
            shards=len(written),
            bytes=sum(shard.bytes for shard in written),
        )

    def _in_train(self) -> dict[str, int]:
        """Contents of the other splits that are in the training split, too: figures on them would flatter."""
        train = self._contents["train"]
        counts = {split: len(found & train) for split, found in self._contents.items() if split != "train"}
        for split, count in counts.items():
            if count:
                log.warning("%s: %d contents of %s are in train, too: leave them out of one", self.name, count, split)
        return counts

    def _remove_stale(self) -> None:
        """Removes the shards of earlier calls that this one did not write; all other files stay."""
        written = {shard.name for shards in self._shards.values() for shard in shards}
        for name in sorted(self._existing.keys() - written):
            storage.delete(storage.join(self._root, name), storage.has_digest(self._recorded[name]))
            log.info("removed %s, which an earlier call had written", name)

    def _is_shard(self, path: str) -> bool:
        """Whether a path below the folder is one that this data set gives to a shard."""
        split, _, name = path.rpartition("/")
        ready = {PurePath(file).suffix for file in self._files}
        return self._is_numbered(path) or (SPLIT.fullmatch(split) is not None and PurePath(name).suffix in ready)

    def _is_numbered(self, path: str) -> bool:
        split, _, name = path.rpartition("/")
        shard = rf"{re.escape(self.name)}-{re.escape(_label(split))}-\d{{5}}\.(tar|jsonl\.gz)"
        return SPLIT.fullmatch(split) is not None and re.fullmatch(shard, name) is not None


SPLIT = re.compile(r"train|val|test|night|night/ds=[^/]+")
_OTHER_OUT = "or use another `out`"


def _label(split: str) -> str:
    """A split in its shards' names."""
    return re.sub(r"[^A-Za-z0-9]+", "-", split.replace("ds=", ""))


def _other_origin(told: Mapping[str, Any], ours: Mapping[str, str]) -> str:
    """Where a data set comes from, if that is told and nowhere that ours does; who moves the photographs or writes a
    new table has the same one still."""
    theirs = {option: str(told.get(option, "")) for option in ours}
    if not all(theirs.values()) or any(place == ours[option] for option, place in theirs.items()):
        return ""
    return " and ".join(theirs.values())


def _read_journal(out: str) -> dict[str, list[str]]:
    """Path below the folder → digests, of a call that was cut short.

    Raises:
        UsageError: it is no journal of this program.
    """
    uri = storage.join(out, UNFINISHED)
    try:
        journal = json.loads(storage.read_bytes(uri))
        if journal["format"] != FORMAT_VERSION:
            raise ValueError(f"format {journal['format']}")
        return {str(name): [str(digest) for digest in digests] for name, digests in journal["shards"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{uri} is no journal of `hybrid prepare`, or damaged ({error}): remove it, {_OTHER_OUT}"
        ) from None


def _digests_of(uri: str) -> set[str]:
    try:
        return {hashlib.sha256(storage.read_bytes(uri)).hexdigest()}
    except FileNotFoundError:
        return set()


def check_finished(uri: str, levels: int = LEVELS) -> None:
    """Refuses a data set that is being prepared, or was not to the end: what is in one split may be in another one.

    Args:
        uri: its folder, a split's, or shards of one.
        levels: in how many folders to look, from there up to one that has a manifest; 1 is its own alone.

    Raises:
        UsageError: it is unfinished.
    """
    place = storage.absolute(uri)
    for _ in range(levels):
        if not place.strip("/") or place.endswith(":/"):
            return
        try:
            unfinished = storage.exists(storage.join(place, UNFINISHED))
            whole = storage.exists(storage.join(place, MANIFEST))
        except storage.StorageError as error:  # of a folder that is none of the user's; reading tells of a store's
            log.debug("%s", error)
            return
        if unfinished:
            raise UsageError(
                f"the data set in {place} is not whole: it is being prepared, or that was cut short; prepare it again "
                f"(or remove {storage.join(place, UNFINISHED)} if none is to be there)"
            )
        if whole:
            return
        place = place.rpartition("/")[0]


def _media(row: TarRow) -> bytes:
    """A row's media, without what is said about them; all of it where there are none."""
    media = [data for suffix, data in row[1].items() if suffix not in ("json", "txt")]
    return b"".join(media or row[1].values())


def _fields(row: Mapping[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in row.items() if name != "id"}).encode()


def _split_entry(shards: list[WrittenShard]) -> dict[str, Any]:
    return {
        "rows": sum(shard.rows for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }


@dataclass(frozen=True)
class Manifest:
    """What the manifest in a data set's folder says."""

    dataset: str
    options: Mapping[str, Any]
    shards: Sequence[WrittenShard]


def read_manifest(out: str) -> Manifest | None:
    """The manifest in a data set's folder, if there is one.

    Raises:
        UsageError: it is none, or damaged.
    """
    uri = storage.join(out, MANIFEST)
    if not storage.exists(uri):
        return None
    try:
        told = json.loads(storage.read_text(uri))
        shards = [WrittenShard(**shard) for entry in told["splits"].values() for shard in entry["shards"]]
        return Manifest(str(told["dataset"]), dict(told.get("options", {})), shards)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{uri} is no manifest of a data set, or damaged ({error}): use another `out`") from None


def pack_tar(rows: Iterable[TarRow]) -> bytes:
    """A WebDataset archive; the same rows always give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for key, members in rows:
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")  # owner 0, time 0
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def pack_jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Gzipped JSON lines; the same rows always give the same bytes."""
    return gzip.compress(b"".join(pack_fields(row) + b"\n" for row in rows), mtime=0)


def pack_fields(fields: Mapping[str, Any]) -> bytes:
    """A JSON object as UTF-8; half of a surrogate pair, as of a text that was cut, becomes `?`."""
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")


def caption_row(key: str, media: bytes, captions: list[str], suffix: str = "jpg", **more: str) -> TarRow:
    """A photograph or clip with captions and `more` fields. Its key loses its dots: suffixes begin at the first one."""
    return key.replace(".", "_"), {
        suffix: media,
        "json": pack_fields({"captions": captions, **more}),
    }
