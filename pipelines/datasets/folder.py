"""One's own photographs or clips, and a table that says something about them → shards with splits.

They lie in a folder, or where the table, a manifest, says. Nothing leaks from one split to another: what belongs
together, by a column of the table or by equal content, is in one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hybrid_models.errors import BadSample, UsageError
from pipelines import storage
from pipelines.datasets.writer import DatasetWriter, Prepared, TarRow, pack_fields
from pipelines.places import InputOptions
from pipelines.reading import manifests, objects
from pipelines.reading.limits import DEFAULT_LIMITS
from pipelines.reading.objects import Fetched, Member

log = logging.getLogger(__name__)
SPLITS = ("test", "val", "train")
FILE_COLUMNS = ("file", "file_name", "filename", "image", "video", "path")
"""Columns that may name the file where none is named."""
LIST_COLUMN = "captions"
"""Column with a list of captions, where there is none with one of them."""
CAPTION_COLUMN = "caption"
SHOWN = 3


@dataclass(frozen=True)
class Columns:
    """Which columns of the table say what.

    Args:
        file: the path of a photograph or clip below the folder; by default the first of `FILE_COLUMNS` that is there.
        caption: a caption, one a row, or a list of them; by default `caption` or `captions`, if they are there.
        group: what belongs together and so into one split, such as a scene or a person; equal content by default.
    """

    file: str = ""
    caption: str = ""
    group: str = ""


@dataclass
class Described:
    """What the table says of one file."""

    captions: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


def prepare_folder(
    source: str, table: str, out: str, columns: Columns, rows_per_shard: int, shares: Mapping[str, float], seed: int
) -> Prepared:
    """Packs the files that a table describes: `{"captions": […], …}` beside each, with the table's other columns.

    Args:
        source: folder of photographs or clips.
        table: csv, tsv, json or jsonl, see `read_table`.
        out: where the splits go.
        columns: of the table.
        rows_per_shard: files of one shard.
        shares: of `val` and `test`.
        seed: of the split.

    Raises:
        UsageError: a file that the table names is missing or too large, nothing is described, or a split is empty.
    """
    _check_shares(shares)
    described = read_table(table, columns)
    members = find_files(source, table, described)
    origins = {"source": source, "table": table}
    writer = DatasetWriter(out, "folder", rows_per_shard, {**shares, "seed": seed}, origins)
    return _pack(writer, members, described, columns.group, shares, seed)


def prepare_manifest(
    manifest: str,
    named: InputOptions,
    out: str,
    columns: Columns,
    rows_per_shard: int,
    shares: Mapping[str, float],
    seed: int,
) -> Prepared:
    """Packs the objects that a manifest names, as `prepare_folder` packs files.

    Args:
        manifest: one, or a folder or pattern of some; rows of one address are of one object.
        named: its column of addresses, and what they may name.
        out: where the splits go.
        columns: of the manifest, but for `file`.
        rows_per_shard: objects of one shard.
        shares: of `val` and `test`.
        seed: of the split.

    Raises:
        UsageError: a row names nothing that can be read, or what `prepare_folder` says.
    """
    _check_shares(shares)
    if not named.uri_column:
        raise UsageError("`uri_column` is needed: the manifest's column that names a photograph, clip, array or text")
    found = manifests.list_members(manifest, named)
    _check_readable(manifest, found)
    rows = [{**json.loads(member.fields), named.uri_column: member.uri} for member in found]
    described = _by_file(rows, manifest, replace(columns, file=named.uri_column))
    members = {member.uri: replace(member, sample_id=member.uri) for member in found}
    _check_names(described)
    origins = {"manifests_in": storage.absolute(manifest).rpartition("/")[0]}  # there may be one for each day
    options = {"manifest": manifest, **shares, "seed": seed}
    writer = DatasetWriter(out, "manifest", rows_per_shard, options, origins)
    return _pack(writer, [members[uri] for uri in sorted(members)], described, columns.group, shares, seed)


def _check_shares(shares: Mapping[str, float]) -> None:
    if not all(0 <= share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise UsageError(f"`val` {shares['val']} and `test` {shares['test']} must be shares that leave some for train")


def _check_readable(manifest: str, members: Sequence[Member]) -> None:
    if bad := [member for member in members if member.problem]:
        raise UsageError(
            f"{len(bad)} of {len(members)} rows of {manifest} name nothing that can be read, such as row "
            f"{bad[0].sample_id}: {bad[0].problem}; mend these rows, or leave them out"
        )


def _pack(
    writer: DatasetWriter,
    members: Sequence[Member],
    described: Mapping[str, Described],
    group: str,
    shares: Mapping[str, float],
    seed: int,
) -> Prepared:
    splits: dict[str, list[Member]] = {split: [] for split in SPLITS}
    for member, content in contents(members):
        together = described[member.sample_id].fields.get(group) if group else None
        key = hashlib.sha256(content).hexdigest() if together in (None, "") else f"group {together}"
        splits[split_of(key, shares, seed)].append(member)
    if empty := [split for split in SPLITS if not splits[split] and shares.get(split) != 0]:
        raise UsageError(f"no file falls into {empty[0]}: {len(members)} files are too few for these shares")
    for split in reversed(SPLITS):
        writer.write_tar(split, _rows(splits[split], described))
    return writer.finish()


def split_of(key: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of all that has this key: decided by a hash, so that new files do not move others."""
    place = int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big") / 2**64
    return "test" if place < shares["test"] else "val" if place < shares["test"] + shares["val"] else "train"


def _rows(members: Sequence[Member], described: Mapping[str, Described]) -> Iterator[TarRow]:
    for member, content in contents(members):
        said = described[member.sample_id]
        captions = {"captions": said.captions} if said.captions else {}
        fields = {"file": member.sample_id, **said.fields, **captions}
        suffix = objects.media_type_of(member.uri) or "txt"
        yield _key(member.sample_id), {suffix: content, "json": pack_fields(fields)}


def _key(path: str) -> str:
    """The name of a row: a path without dots, as suffixes begin at the first one; of an address without its scheme."""
    return path.rpartition("://")[2].lstrip("/").replace(".", "_")


def contents(members: Sequence[Member]) -> Iterator[tuple[Member, bytes]]:
    """Each file with its bytes, fetched ahead.

    Raises:
        UsageError: one is too large, is refused, or was replaced meanwhile.
    """
    fetched = Fetched(members, DEFAULT_LIMITS)
    try:
        for number, member in enumerate(members):
            yield member, fetched.read(number)
    except BadSample as bad:
        told = bad.message if bad.kind == "ObjectForbidden" else f"cannot read {member.uri}: {bad.message}"
        raise UsageError(told) from None
    finally:
        fetched.close()


def find_files(source: str, table: str, described: Mapping[str, Described]) -> list[Member]:
    """The files that are described, in order.

    Raises:
        UsageError: one is not there, or is no photograph or clip; or two would have one name.
    """
    root = f"{storage.absolute(source)}/"
    there = {file.uri.removeprefix(root): file for file in storage.list_files(source)}
    media = {name: file for name, file in there.items() if objects.media_type_of(name) is not None}
    if missing := [name for name in described if name not in media]:
        some = ", ".join(missing[:SHOWN])
        why = "are not there" if missing[0] not in there else "are no photographs, clips or arrays"
        raise UsageError(
            f"{len(missing)} of {len(described)} files that {table} names {why} in {source}, such as {some}; "
            f"there are, among others, {', '.join(list(media)[:SHOWN]) or 'none'}"
        )
    if left := len(media) - len(described):
        log.warning("%s: %d files are not in %s and left out", source, left, table)
    _check_names(described)
    return [Member(media[name].uri, media[name].size, media[name].etag, name) for name in sorted(described)]


def _check_names(names: Iterable[str]) -> None:
    keys: dict[str, str] = {}
    for name in names:
        if (other := keys.setdefault(_key(name), name)) != name:
            raise UsageError(f"{other} and {name} would have one name: rename one")


# ---- tables --------------------------------------------------------------------------------------------------------
def read_table(uri: str, columns: Columns) -> dict[str, Described]:
    """What a table says, by file.

    `.csv`, `.tsv`: a header, then a row for each file or each of its captions. `.jsonl`: an object a line. `.json`: a
    list of such objects; or an object of file → caption, captions, or such an object; or COCO's `images` and
    `annotations` of captions, whose images' fields are columns, too.

    Raises:
        UsageError: it is not there, of another kind or damaged, does not name files, or lacks a column that is named.
    """
    kind = uri.lower().rpartition(".")[2]
    if kind not in ("csv", "tsv", "json", "jsonl"):
        raise UsageError(f"{uri} is no table of captions: csv, tsv, json or jsonl is needed")
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
        rows = _delimited(text, "," if kind == "csv" else "\t") if kind.endswith("sv") else _objects(text, kind)
    except FileNotFoundError:
        raise UsageError(f"there is no {uri}") from None
    except (ValueError, RecursionError, csv.Error, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{uri} cannot be read: {type(error).__name__}: {error}") from None
    if not rows:
        raise UsageError(f"{uri} describes no file")
    return _by_file(rows, uri, columns)


def _delimited(text: str, delimiter: str) -> list[dict[str, Any]]:
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(f"row {number + 1} has not as many columns as the header")
    return rows


def _objects(text: str, kind: str) -> list[dict[str, Any]]:
    if kind == "jsonl":
        return [dict(json.loads(line)) for line in text.split("\n") if line.strip()]  # not at U+2028
    value = json.loads(text)
    if isinstance(value, list):
        return [dict(each) for each in value]
    if "images" in value and "annotations" in value:
        return _coco(value["images"], value["annotations"])
    return [
        {"file": name, **said} if isinstance(said, dict) else {"file": name, CAPTION_COLUMN: said}
        for name, said in value.items()
    ]


def _coco(images: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not all("caption" in each for each in annotations):
        raise ValueError("its annotations are no captions; give labels as a column of another table")
    known = {
        image["id"]: {
            **{key: value for key, value in image.items() if key not in ("id", "file_name")},
            "file": image["file_name"],
        }
        for image in images
    }
    return [{**known[each["image_id"]], CAPTION_COLUMN: each["caption"]} for each in annotations]


def _by_file(rows: Sequence[Mapping[str, Any]], uri: str, columns: Columns) -> dict[str, Described]:
    known = [columns.file] if columns.file else [name for name in FILE_COLUMNS if name in rows[0]]
    if not known or known[0] not in rows[0]:
        told = f"'{columns.file}'" if columns.file else f"one of {', '.join(FILE_COLUMNS)}"
        raise UsageError(f"{uri} has no column {told} that names files; it has {', '.join(map(str, rows[0]))}")
    said_in = [columns.caption] if columns.caption else [CAPTION_COLUMN, LIST_COLUMN]
    if columns.group in (known[0], *said_in, LIST_COLUMN):
        raise UsageError(f"`group_column` '{columns.group}' names files or captions: another column is to group by")
    for column, use in ((columns.group, "to group by"), (columns.caption, "of captions")):
        if column and not any(column in row for row in rows):
            raise UsageError(f"{uri} has no column '{column}' {use}; it has {', '.join(map(str, rows[0]))}")
    described: dict[str, Described] = {}
    for number, row in enumerate(rows):
        name = row.get(known[0])
        if not isinstance(name, str) or not name:
            raise UsageError(f"{uri}: row {number + 1} names no file in '{known[0]}'")
        said = described.setdefault(name.removeprefix("./"), Described())
        texts = next((row[name] for name in said_in if name in row), None) or []
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"{uri}: row {number + 1} has neither a text nor a list of texts for a caption")
        said.captions += texts
        rest = {key: value for key, value in row.items() if key not in (known[0], *said_in, LIST_COLUMN)}
        _merge(said.fields, rest, columns.group, f"{uri}: row {number + 1}", name)
    return described


def _merge(fields: dict[str, Any], more: Mapping[str, Any], group: str, where: str, name: str) -> None:
    """Adds what a further row says of a file: what is known stays, and an empty value gives way.

    Raises:
        UsageError: it is of two groups.
    """
    for key, value in more.items():
        known = fields.get(key)
        if known in (None, ""):
            fields[key] = value
        elif group and key == group and value not in (None, "", known):
            raise UsageError(f"{where} says that {name} belongs to '{value}', an earlier one to '{known}': give it one")
