"""Shards: what lies at an address, as it is read: tables and archives, and groups of lone objects."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.places import Unknown
from pipelines.reading import objects
from pipelines.reading.media.decode import MEDIA_TYPES
from pipelines.reading.objects import Member
from pipelines.reading.readers import READERS, suffix_of
from pipelines.secrets import shown

log = logging.getLogger(__name__)
UNKNOWN = f"is not a shard ({', '.join(READERS)}), nor a photograph, clip or array ({', '.join(MEDIA_TYPES)})"
SHOWN = 3
"""Unknown objects that are named."""


@dataclass(frozen=True)
class Shard:
    """One input object, or a group of lone ones, in the state in which it was listed."""

    uri: str
    """Of a group, a name that no object has: FOLDER/@DIGITS."""
    size: int
    etag: str
    members: tuple[Member, ...] = ()
    """The objects of a group."""
    cut: bool = False
    """Its one object is a clip, whose windows are the rows."""
    first: int = 0
    """Rows before this one are there already."""

    @property
    def key(self) -> str:
        """A stem of file names that is unique for a shard in one state (URI and etag)."""
        digest = hashlib.sha256(f"{self.uri}\0{self.etag}".encode()).hexdigest()[:16]
        stem = re.sub(r"[^A-Za-z0-9._]+", "-", self.uri.rsplit("/", 1)[-1]).strip("-._")[:80] or "shard"
        return f"{stem}-{digest}"

    @property
    def name(self) -> str:
        """What rows are called by that have no name of their own."""
        return self.members[0].sample_id if self.cut else self.uri.rsplit("/", 1)[-1]

    def source(self, index: int) -> str | None:
        """The address of the lone object that a row is of."""
        return self.members[0 if self.cut else index].uri if self.members else None

    @property
    def addresses(self) -> list[str]:
        """What it was made of."""
        return [member.uri for member in self.members] or [self.uri]


_ODD_NAME = "the name of {} looks as if it held a password or token: rename it"


class NoShardsError(UsageError):
    """There are no shards at an address."""


@dataclass(frozen=True)
class Listing:
    """What lies at the addresses of an input."""

    shards: list[Shard]
    skipped: list[str] = field(default_factory=list)
    """Addresses of objects that are neither shards nor photographs, clips or arrays."""


def list_shards(uri: str, cut: bool = False) -> list[Shard]:
    """The shards at one address, as `find` lists them; unknown objects are skipped."""
    return find([uri], cut).shards


def find(uris: Sequence[str], cut: bool = False, unknown: Unknown = "skip") -> Listing:
    """What is to be read at folders, glob patterns or single objects; photographs, clips and arrays there in groups.

    Args:
        uris: an object that lies at several of them is read once.
        cut: clips become windows.
        unknown: what happens to objects that nothing here reads.

    Raises:
        NoShardsError: there is nothing.
        UsageError: by `unknown` such an object is an error, or more than half of the objects are such; or a shard's
            name looks as if it held a password.
    """
    shards: dict[str, Shard] = {}
    lone: dict[str, dict[str, Member]] = {}  # by the folder to which the ids of their rows are relative
    skipped: dict[str, None] = {}
    seen: set[str] = set()
    for uri, files in _files(uris):
        root = _folder(uri, files)
        for file in files:
            if file.uri in seen:
                continue
            seen.add(file.uri)
            problem = odd_name(file.uri)
            if suffix_of(file.name) is not None:
                if problem:
                    raise UsageError(problem)
                shards[file.uri] = Shard(file.uri, file.size, file.etag)
            elif objects.media_type_of(file.name) is not None:
                problem = problem and f"AddressNotAllowed: {problem}"
                lone.setdefault(root, {})[file.uri] = _member(file, root, problem)
            elif unknown == "row":
                problem = f"UnsupportedMedia: {shown(file.uri)} {UNKNOWN}"
                lone.setdefault(root, {})[file.uri] = _member(file, root, problem)
            else:
                skipped[file.uri] = None
    found = len(seen) - len(skipped)
    if skipped:
        _check_unknown([shown(uri) for uri in skipped], found, " ".join(uris), unknown)
    groups = [each for root, members in lone.items() for each in grouped(root, list(members.values()), cut)]
    return Listing([*shards.values(), *groups], list(skipped))


def _files(uris: Sequence[str]) -> list[tuple[str, list[storage.FileInfo]]]:
    """The objects at each address; of several, some may have none."""
    found = [(uri, storage.list_files(uri)) for uri in uris]
    if not any(files for _, files in found):
        why = "it is empty" if any(storage.exists(uri) for uri in uris) else "there is nothing"
        at = " ".join(uris)
        raise NoShardsError(f"no shards found at {at}: {why}; check the address, or write some with `hybrid prepare`")
    for uri in [uri for uri, files in found if not files]:
        log.info("%s: there is nothing", shown(uri))
    return found


def _member(file: storage.FileInfo, root: str, problem: str) -> Member:
    return Member(file.uri, file.size, file.etag, file.uri.removeprefix(root), problem=problem)


def _check_unknown(names: Sequence[str], others: int, given: str, unknown: Unknown) -> None:
    """Logs which objects are skipped, or refuses the input."""
    if not others and len(names) == 1:
        raise UsageError(f"{names[0]} {UNKNOWN}: give the address of one")
    if unknown == "error":
        raise UsageError(f"{names[0]} {UNKNOWN}: remove it, or skip such objects with `unknown` skip")
    some = ", ".join(names[:SHOWN])
    if len(names) > others:
        raise UsageError(
            f"{len(names):,} of {len(names) + others:,} objects at {given} are no input, such as {some}: "
            "check the address, or give one or more patterns that name the input only"
        )
    log.warning("%s: skipped %d objects that are no input, such as %s", given, len(names), some)


def odd_name(uri: str) -> str:
    """Why nothing is read of an object in a store whose name looks as if it held a password: no client would be given
    such an address. Empty of any other; the rest of a night is read."""
    return "" if storage.is_local(uri) or shown(uri) == uri else _ODD_NAME.format(shown(uri))


def _folder(uri: str, files: Sequence[storage.FileInfo]) -> str:
    """The folder, with its `/`, that an address names; that of a pattern is what no `*` stands for."""
    named = storage.absolute(uri)
    if all(file.uri.startswith(f"{named}/") for file in files):
        return f"{named}/"
    return storage.GLOB.split(named, maxsplit=1)[0].rpartition("/")[0] + "/"


def grouped(root: str, members: Sequence[Member], cut: bool = False) -> list[Shard]:
    """Lone objects as shards, named below a root that ends with `/` or otherwise cannot be part of a longer name."""
    return [
        Shard(f"{root}@{each.digits}", each.size, each.etag, each.members, cut and objects.to_be_cut(each.members[0]))
        for each in objects.group(members, cut)
    ]


def lone(uri: str, cut: bool = False, first: int = 0) -> Shard:
    """One object as a group, whatever group it was read in.

    Raises:
        FileNotFoundError: it is not there.
    """
    file = storage.info(uri)
    member = Member(file.uri, file.size, file.etag, file.name)
    is_clip = cut and objects.to_be_cut(member)
    return Shard(f"{uri}@", file.size, file.etag, (member,), is_clip, first if is_clip else 0)
