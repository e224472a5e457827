"""Tar archives, as WebDataset writes them: members with one stem are a row."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from hybrid_models.errors import BadSample
from pipelines.reading.formats.entry import MAX_ID, Entry, ReadOptions, json_object
from pipelines.reading.media.decode import MEDIA_TYPES


def read_tar(stream: BinaryIO, name: str, options: ReadOptions) -> Iterator[Entry]:
    """WebDataset: consecutive members with the same stem are one sample. Nothing is ever extracted to disk."""
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        group: dict[str, bytes] = {}
        held = 0
        stem: str | None = None
        problem: str | None = None
        try:
            for member in _members(tar):
                member_stem, suffix = _split_member(member.name)
                if stem is not None and (member_stem != stem or suffix in group):
                    yield _group_entry(stem, group, problem)
                    group, held, problem = {}, 0, None
                stem = member_stem
                held += member.size
                if not member.isreg() or member.issparse():
                    problem = f"UnsupportedMember: {member.name} is a link, device or sparse file"
                elif held > options.limits.max_bytes:
                    problem = f"MemberTooLarge: {member.name} makes {held} bytes, limit {options.limits.max_bytes}"
                else:
                    data = tar.extractfile(member)
                    group[suffix] = data.read() if data is not None else b""
        except Exception:
            if stem is not None and (group or problem):  # what there is of it is whole
                yield _group_entry(stem, group, problem)
            raise
        if stem is not None:
            yield _group_entry(stem, group, problem)
        _check_tar_end(stream, tar.offset)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members but folders, one after the other: a size below zero would lead back to those before."""
    before = -1
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a million members must not stay in memory
        if member.size < 0 or tar.offset <= before:
            raise tarfile.ReadError(f"{member.name[:MAX_ID]} has {member.size} bytes")
        before = tar.offset
        if not member.isdir():
            yield member


def count_tar(stream: BinaryIO, name: str, options: ReadOptions) -> int:
    """How many rows `read_tar` would make, from the members' headers alone."""
    count = 0
    stem: str | None = None
    suffixes: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in _members(tar):
            member_stem, suffix = _split_member(member.name)
            if member_stem != stem or suffix in suffixes:
                count, suffixes = count + 1, set()
            stem = member_stem
            suffixes.add(suffix)
        _check_tar_end(stream, tar.offset)
    return count


def _check_tar_end(stream: BinaryIO, offset: int) -> None:
    """An archive ends with zero blocks; `tarfile` takes any broken header in the middle for the end as well."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise EOFError("the archive has no end mark: it is truncated")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no valid member header at byte {offset}")


def _split_member(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def _group_entry(stem: str, group: dict[str, bytes], problem: str | None) -> Entry:
    if problem is not None:
        return Entry(stem, error=problem)
    fields: dict[str, Any] = {}
    try:
        if "txt" in group:
            fields["text"] = group["txt"].decode("utf-8")
        if "json" in group:
            fields.update(json_object(group["json"]))
    except BadSample as error:
        return Entry(stem, error=str(error))
    except UnicodeDecodeError as error:
        return Entry(stem, error=f"TextDecodeError: {stem}.txt is not UTF-8: {error}")
    media_type = next((suffix for suffix in group if suffix in MEDIA_TYPES), None)
    if media_type is None and not fields:
        return Entry(stem, error=f"UnsupportedMember: {', '.join(group) or 'nothing'} holds no image, clip or text")
    return Entry(stem, group[media_type] if media_type else None, media_type, fields)
