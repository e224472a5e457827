"""Manifests: tables of addresses, each row of which names a photograph, clip, array or text; its other columns are
fields.

A manifest may come from a stranger, so it cannot name what it likes: only what lies below addresses that are allowed.
It is read in the jail, as any shard is; nothing that it says is opened before it is judged.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hybrid_models.errors import UsageError
from pipelines import places, storage
from pipelines.places import InputOptions
from pipelines.reading import objects
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.limits import DEFAULT_LIMITS, Limits
from pipelines.reading.media.decode import MEDIA_TYPES
from pipelines.reading.objects import Member
from pipelines.reading.readers import READERS, suffix_of
from pipelines.reading.rows import Begin, unwatched
from pipelines.reading.sandbox.guard import guarded
from pipelines.reading.shards import Listing, NoShardsError, Shard, find, grouped, odd_name
from pipelines.secrets import shown

KINDS = tuple(suffix for suffix in READERS if suffix.startswith((".parquet", ".jsonl", ".tsv")))
ROW_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("address", pa.string()),  # what stands in the column; null where there is none
        pa.field("fields", pa.string(), nullable=False),  # the others, a JSON object
        pa.field("error", pa.string()),  # why the row cannot be read
        pa.field("lost_rows", pa.int64()),
    ]
)
ADDRESS_SHOWN = 200
"""Characters of an address that is refused."""
MOST_BYTES = 4 << 30
"""So much memory rows of manifests may take in the process that lists them: four million, if they say little."""
ROW_BYTES = 700
"""What a row takes there beside its texts."""
HELD = 3
"""Times that an address is there: as it stands in the row, as a name, in what is wrong with it."""
MOST_CHARACTERS = 4096
"""Of an address: a path on a disk has no more."""
MOST_NAME = 1024
"""Bytes of an object's name in a store, without its bucket: to ask for a longer one is an error of its own."""


def list_input(
    uris: Sequence[str], options: InputOptions, limits: Limits = DEFAULT_LIMITS, cut: bool = False
) -> Listing:
    """What is to be read at these addresses: shards and lone objects, or those that manifests there name.

    Raises:
        NoShardsError: there is nothing.
        UsageError: something there cannot be read; a manifest has no such column; or manifests have too many rows.
        StorageError: the store failed, or gives us nothing of what they name.
    """
    options.check()
    if not options.uri_column:
        return find(uris, cut, options.unknown)
    listing = _manifests(uris, options)
    room = _Room()
    shards = [
        shard
        for manifest in listing.shards
        for shard in grouped(manifest.uri, _members(manifest, options, limits, room), cut)
    ]
    return Listing(shards, listing.skipped)


def list_members(uri: str, options: InputOptions, limits: Limits = DEFAULT_LIMITS) -> list[Member]:
    """What manifests name, a member for each row, in their order.

    Raises: as `list_input`.
    """
    options.check()
    room = _Room()
    manifests = _manifests([uri], options).shards
    return [member for manifest in manifests for member in _members(manifest, options, limits, room)]


def _manifests(uris: Sequence[str], options: InputOptions) -> Listing:
    listing = find(uris, unknown=options.unknown)
    for manifest in listing.shards:
        if manifest.members or suffix_of(manifest.uri) not in KINDS:
            name = manifest.addresses[-1]
            raise UsageError(f"{name} is no manifest ({', '.join(KINDS)}), which `uri_column` needs")
    return listing


def list_references(uri: str, options: InputOptions, limits: Limits = DEFAULT_LIMITS, cut: bool = False) -> list[Shard]:
    """What a model is judged on: shards, or what manifests name, if the input has manifests and all there are some.

    Raises: as `list_input`.
    """
    listing = find([uri], cut, options.unknown)
    are_manifests = all(suffix_of(shard.uri) in KINDS and not shard.members for shard in listing.shards)
    return list_input([uri], options, limits, cut).shards if are_manifests else listing.shards


def _members(manifest: Shard, options: InputOptions, limits: Limits, room: _Room) -> list[Member]:
    """The objects that a manifest names: every row is a member, with why it is not read where it is not."""
    step = _Addresses(options.uri_column)
    rows: list[dict[str, Any]] = []
    for block in guarded(manifest, ReadOptions(limits=limits), step):
        room.take(block, manifest.uri)
        rows += block.to_pylist()
    if rows and all(row["address"] is None and row["error"] is None for row in rows):
        raise UsageError(
            f"{manifest.uri} has no column '{options.uri_column}', which `uri_column` names; "
            f"its first row: {rows[0]['fields'][:ADDRESS_SHOWN]}"
        )
    if len(rows) == 1 and str(rows[0]["error"]).startswith("EmptyShard"):
        raise NoShardsError(f"{manifest.uri} has no rows")
    allowed = [places.place(prefix) for prefix in options.allow_prefix or [_own_place(manifest.uri)]]
    members = [_member(row, number, manifest.uri, allowed) for number, row in enumerate(rows)]
    there = storage.look_up({member.uri for member in members if not member.problem})
    kept = [file for file in there.values() if isinstance(file, storage.ForbiddenError)]
    if objects.FORBIDDEN <= len(kept) == len(there):  # no matter of these objects
        told = f"{kept[0]}, as were all {len(kept)} that {manifest.uri} names and that are there"
        raise storage.ForbiddenError(f"{told}: check the keys, or who may read what")
    return [_as_it_is(member, there.get(member.uri)) for member in members]


class _Room:
    """What is left of `MOST_BYTES`: a manifest, which may be a stranger's, has to leave the driver alive."""

    def __init__(self) -> None:
        self._left = MOST_BYTES

    def take(self, rows: pa.Table, manifest: str) -> None:
        """Raises `UsageError` where there is none left for these rows."""
        self._left -= rows.nbytes + HELD * _held_bytes(rows["address"]) + ROW_BYTES * len(rows)
        if self._left < 0:
            raise UsageError(
                f"{manifest}: the rows of these manifests need more than {MOST_BYTES >> 30} GiB where they are listed: "
                "split them, and infer each part into a table of its own, or pack the objects into shards"
            )


def _held_bytes(texts: pa.ChunkedArray) -> int:
    """What these are in Python: four bytes for each character of a text with one that is rare."""
    characters = pc.fill_null(pc.utf8_length(texts), 0)
    wide = pc.greater(pc.fill_null(pc.binary_length(texts), 0), characters)
    return int(pc.sum(pc.multiply(characters, pc.if_else(wide, 4, 1)), min_count=0).as_py())


def _own_place(manifest: str) -> str:
    """The bucket that a manifest lies in; on a disk its folder."""
    if storage.is_local(manifest):
        return manifest.rpartition("/")[0]
    scheme, _, path = manifest.partition("://")
    return f"{scheme}://{path.partition('/')[0]}"


def _member(row: dict[str, Any], number: int, manifest: str, allowed: Sequence[str]) -> Member:
    """A row's object, not looked up yet."""
    here = f"{manifest}#{number}"
    problem, uri = row["error"], here
    if problem is None:
        try:
            uri = address_of(row["address"], manifest, allowed)
        except ValueError as error:
            problem = str(error)
    if problem is None and (odd := odd_name(uri)):
        problem, uri = f"AddressNotAllowed: {odd}", here  # what is a secret is kept in no table
    if problem is None and objects.media_type_of(uri) is None and not objects.is_text(uri):
        problem = f"UnsupportedMedia: {shown(uri)[-ADDRESS_SHOWN:]} is none of {', '.join(MEDIA_TYPES)}, txt"
    return Member(uri, 0, "", row["sample_id"], row["fields"], problem or "", row["lost_rows"])


def _as_it_is(member: Member, file: storage.FileInfo | storage.ForbiddenError | None) -> Member:
    if member.problem:
        return member
    if isinstance(file, storage.ForbiddenError):
        return replace(member, problem=str(objects.forbidden(file)))
    if file is None:
        return replace(member, problem=f"ObjectMissing: there is no {member.uri}")
    return replace(member, size=file.size, etag=file.etag)


def address_of(address: str | None, manifest: str, allowed: Iterable[str]) -> str:
    """The one name of what a manifest's row names.

    Args:
        address: as it stands there.
        manifest: where.
        allowed: places (`places.place`), below one of which it must lie, wherever links and `..` lead.

    Raises:
        ValueError: an error row's reason, `AddressMissing` or `AddressNotAllowed`.
    """
    if not address:
        raise ValueError("AddressMissing: the row names no object")
    if len(address) > MOST_CHARACTERS:
        raise ValueError(f"AddressNotAllowed: it has {len(address):,} characters, more than {MOST_CHARACTERS:,}")
    try:
        return _allowed(address, manifest, allowed)
    except _NotAllowedError:
        told = shown(address)[:ADDRESS_SHOWN]
        raise ValueError(
            f"AddressNotAllowed: {told} lies below none of the addresses that `allow_prefix` allows"
        ) from None


class _NotAllowedError(Exception):
    """An address that nobody reads."""


def _allowed(address: str, manifest: str, allowed: Iterable[str]) -> str:
    refused = _NotAllowedError()
    if "::" in address or "\0" in address:
        raise refused
    given = address
    if "://" not in address and not (address.startswith("/") and storage.is_local(manifest)):
        given = storage.join(manifest.rpartition("/")[0], address)
    try:
        place = places.place(given)
    except (
        UsageError,
        OSError,
        RuntimeError,
        ValueError,
    ):  # it holds a password; or is no path, or a link that leads to itself
        raise refused from None
    if not any(f"{place}/".startswith(f"{prefix}/") and place != prefix for prefix in allowed):
        raise refused
    if storage.is_local(place):
        return place
    path = given.partition("://")[2]
    if posixpath.normpath(path) != path:  # in a store, `..` is a name like any other: it is read by nobody
        raise refused
    if len(path.partition("/")[2].encode(errors="surrogatepass")) > MOST_NAME:
        raise ValueError(f"AddressNotAllowed: no object's name has more than {MOST_NAME:,} bytes")
    return place


@dataclass(frozen=True)
class _Addresses:
    """Raw rows → `ROW_SCHEMA`, a `Step` of `sandbox.protocol`."""

    column: str

    @property
    def schema(self) -> pa.Schema:
        return ROW_SCHEMA

    def __call__(self, rows: pa.Table, begin: Begin = unwatched) -> pa.Table:
        return pa.Table.from_pylist([self._row(row) for row in rows.to_pylist()], schema=ROW_SCHEMA)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        fields = json.loads(row["fields"])
        named = self.column in fields
        address = fields.pop(self.column, None)
        told = {name: row[name] for name in ("sample_id", "error", "lost_rows")}
        found = address if isinstance(address, str) else "" if named else None
        return {**told, "address": found, "fields": json.dumps(fields)}
