"""Rows → shards and a manifest: what every prepared data set has in common.

`<out>/<split>/<name>-<split>-00000.tar` (or `.jsonl.gz`), and `<out>/_manifest.json`, written last, with the rows,
bytes and SHA-256 of every shard. The same call writes the same bytes: archives carry no times, owners or host names.
Until it ends, `<out>/_unfinished` says so: splits of two calls may share what is in them. It has the names of shards
that are called what their source calls them, by which the next call knows them.
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

    Raises:
        UsageError: nothing can be written there, another data set is there, or `rows_per_shard` is not positive.
    """

    def __init__(
        self,
        out: str,
        name: str,
        rows_per_shard: int,
        options: Mapping[str, Any],
        origins: Mapping[str, str] | None = None,
    ) -> None:
        if rows_per_shard < 1:
            raise UsageError(f"`rows_per_shard` is {rows_per_shard}: a shard needs at least one row")
        storage.check_writable(out)
        there = read_manifest(out)
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
        self._begun = _names_left(out)
        """Shards with names of their own of this call, and of one that was cut short."""

    def write_tar(self, split: str, rows: Iterable[TarRow], rows_per_shard: int | None = None) -> None:
        """Writes rows as WebDataset shards: the members of a row share its key as file name."""
        self._write_rows(split, rows, rows_per_shard, "tar", pack_tar, _media)

    def write_jsonl(self, split: str, rows: Iterable[Mapping[str, Any]], rows_per_shard: int | None = None) -> None:
        """Writes rows as gzipped JSON lines."""
        self._write_rows(split, rows, rows_per_shard, "jsonl.gz", pack_jsonl, _fields)

    def write_file(self, split: str, file_name: str, data: bytes, rows: int) -> None:
        """Writes one ready-made shard and remembers it for the manifest.

        One that is there with this content already is left alone, so that what was computed from it stays valid.
        """
        self._contents[split].add(hashlib.sha256(data).digest())
        self._begun.add(f"{split}/{file_name}")
        self._begin()
        self._write(split, file_name, data, rows)

    def _begin(self) -> None:
        storage.write_bytes(storage.join(self.out, UNFINISHED), "\n".join(sorted(self._begun)).encode())

    def _write(self, split: str, file_name: str, data: bytes, rows: int) -> None:
        name = f"{split}/{file_name}"
        uri = storage.join(self.out, name)
        if not self._shards:
            self._begin()
        if not _has_content(uri, data):
            storage.write_bytes(uri, data)
        shard = WrittenShard(name, rows, len(data), hashlib.sha256(data).hexdigest())
        self._shards.setdefault(split, []).append(shard)
        log.debug("wrote %s (%d rows, %d bytes)", name, rows, len(data))

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
        storage.write_bytes(storage.join(self.out, MANIFEST), json.dumps(manifest, indent=1).encode() + b"\n")
        storage.delete(storage.join(self.out, UNFINISHED))
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
        """Shards of the previous manifest, or left by a call that was cut short; files of other names, and what lies
        deeper or behind a link, as in another data set's folder, are not ours."""
        root = storage.absolute(self.out)
        written = {shard.name for shards in self._shards.values() for shard in shards}
        there = read_manifest(self.out)
        earlier = self._begun | (set() if there is None else {shard.name for shard in there.shards})
        for file in storage.list_files(root):
            name = file.uri.removeprefix(root).lstrip("/")
            if name not in written and (name in earlier or self._is_ours(name)) and not _is_behind_link(file.uri):
                storage.delete(file.uri)
                log.info("removed %s, which an earlier call had written", name)

    def _is_ours(self, path: str) -> bool:
        """Whether a path below the folder is one that this class gives to a shard of a split."""
        split, _, name = path.rpartition("/")
        shard = rf"{re.escape(self.name)}-{re.escape(_label(split))}-\d{{5}}\.(tar|jsonl\.gz)"
        return SPLIT.fullmatch(split) is not None and re.fullmatch(shard, name) is not None


def _is_behind_link(uri: str) -> bool:
    """Whether a file on a disk lies in a folder that a link leads to. The folder that is written to has none in its
    own address."""
    folder = uri.rpartition("/")[0]
    return storage.is_local(uri) and storage.absolute(folder) != folder


SPLIT = re.compile(r"[^/]+|night/ds=[^/]+")


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


def _names_left(out: str) -> set[str]:
    try:
        return set(storage.read_text(storage.join(out, UNFINISHED)).splitlines())
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


def _has_content(uri: str, data: bytes) -> bool:
    try:
        return storage.read_bytes(uri) == data
    except FileNotFoundError:
        return False


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
    except (ValueError, LookupError, TypeError, AttributeError) as error:
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
