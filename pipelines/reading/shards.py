"""Shards: what lies at an address, as it is read: tables and archives, and groups of lone objects."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.reading import objects
from pipelines.reading.media.decode import MEDIA_TYPES
from pipelines.reading.objects import Member
from pipelines.reading.readers import READERS, suffix_of
from pipelines.secrets import shown


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


def list_shards(uri: str, cut: bool = False) -> list[Shard]:
    """The shards at a folder, a glob pattern or a single object; photographs, clips and arrays there in groups.

    Raises:
        NoShardsError: there are none.
        UsageError: one has a suffix that nothing here reads; or a shard's name looks as if it held a password.
    """
    files = storage.list_files(uri)
    if not files:
        why = "it is empty" if storage.exists(uri) else "there is nothing"
        raise NoShardsError(f"no shards found at {uri}: {why}; check the address, or write some with `hybrid prepare`")
    shards: list[Shard] = []
    lone: list[Member] = []
    root = _folder(uri, files)
    for file in files:
        problem = odd_name(file.uri)
        if suffix_of(file.name) is not None:
            if problem:
                raise UsageError(problem)
            shards.append(Shard(file.uri, file.size, file.etag))
        elif objects.media_type_of(file.name) is not None:
            problem = problem and f"AddressNotAllowed: {problem}"
            lone.append(Member(file.uri, file.size, file.etag, file.uri.removeprefix(root), problem=problem))
        else:
            raise UsageError(
                f"{file.uri} is not a shard ({', '.join(READERS)}), nor a photograph, clip or array "
                f"({', '.join(MEDIA_TYPES)}): name what is to be read, such as {_readable(root, files)}"
            )
    return [*shards, *grouped(root, lone, cut)]


def odd_name(uri: str) -> str:
    """Why nothing is read of an object in a store whose name looks as if it held a password: no client would be given
    such an address. Empty of any other; the rest of a night is read."""
    return "" if storage.is_local(uri) or shown(uri) == uri else _ODD_NAME.format(shown(uri))


def _readable(root: str, files: Sequence[storage.FileInfo]) -> str:
    """A pattern of what is there most of what can be read."""
    names = [file.uri.removeprefix(root) for file in files]
    kinds = Counter(kind for name in names if (kind := suffix_of(name) or _suffix_of_media(name)))
    kind = kinds.most_common(1)[0][0] if kinds else ".tar"
    deep = any("/" in name for name in names if name.endswith(kind))
    return f"{root}{'**/' if deep else ''}*{kind}"


def _suffix_of_media(name: str) -> str | None:
    return None if objects.media_type_of(name) is None else f".{name.rpartition('.')[2]}"


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
