"""What lies below a folder, or matches a pattern."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hybrid_models.errors import UsageError
from pipelines.storage.addresses import StorageError, failed, filesystem, scheme
from pipelines.storage.lookup import FileInfo, check_bucket, file_info

if TYPE_CHECKING:
    import fsspec

log = logging.getLogger(__name__)
GLOB = re.compile(r"[*?\[]")
LEFT_BEHIND = {"thumbs.db", "desktop.ini"}
CAMERAS = re.compile(r"_\w{3}\d{4}(?!\d).*\.(jpe?g|png|webp|mp4|mov|avi)$", re.IGNORECASE | re.ASCII)
"""What cameras call photographs, `_DSC0001.JPG` (JEITA CP-3461: four characters of their choice, four digits), and what
people make of such names."""
LOST = "lost+found"
"""A disk's own folder, which is nobody's to list."""


def list_files(uri: str) -> list[FileInfo]:
    """All objects below a folder, or matching a glob pattern, or the one object itself; sorted by URI.

    Returns an empty list where there is nothing. In a pattern `*` and `?` stop at `/`, `**` as a whole part of the path
    stands for any folders (fsspec's globbing). A name that exists stands for itself, even with `*`, `?` or `[` in it.
    What is not data is left out, unless it is named itself: names that start with `_` or `.` (but for photographs that
    cameras call so, `_DSC0001.JPG`), folder markers, checksums (`.crc`), and what file managers leave behind. Links on
    a disk are followed, each file is found once.

    Raises:
        UsageError: the bucket does not exist, the pattern is none, all that it might mean lies deeper, or a name on a
            disk is no text.
        StorageError: the store cannot be reached or refuses; a folder cannot be listed, or a link leads nowhere.
    """
    fs, path = filesystem(uri)
    try:
        root, pattern = _split_pattern(fs, path)
        reach = None if not pattern or "**" in pattern else pattern.count("/")
        there = [entry for entry in _find(fs, root, reach) if _is_data(entry["name"].removeprefix(root), entry["size"])]
        if not there:
            check_bucket(fs, uri)
        found = _matching(uri, there, root, pattern) if pattern else there
        found = [entry for entry in (_followed(fs, entry) for entry in _once(found, root)) if entry["type"] == "file"]
    except (UsageError, StorageError):
        raise
    except Exception as error:
        raise failed("list", uri, error) from error
    return sorted((file_info(scheme(uri), entry) for entry in found), key=lambda info: info.uri)


def _split_pattern(fs: fsspec.AbstractFileSystem, path: str) -> tuple[str, str]:
    """The folder (or object) to look in, and the pattern of names below it, which is empty if all are meant."""
    parts = path.split("/")
    for i, part in enumerate(parts):
        if GLOB.search(part) and not fs.exists("/".join(parts[: i + 1])):
            return "/".join(parts[:i]) or "/", "/".join(parts[i:])
    return path, ""


def _matching(uri: str, there: list[dict[str, Any]], root: str, pattern: str) -> list[dict[str, Any]]:
    """Objects whose path below the root matches. What a `*` that crosses `/` would find is told: it may be meant."""
    from fsspec.utils import glob_translate

    try:
        reaches = re.compile(glob_translate(pattern)).fullmatch
    except ValueError as error:
        raise UsageError(f"{uri} is no pattern: {str(error).removeprefix('Invalid pattern: ')}") from None
    found, deeper = [], []
    for entry in there:
        name = entry["name"].removeprefix(root).lstrip("/")
        if reaches(name):
            found.append(entry)
        elif fnmatch.fnmatchcase(name, pattern):
            deeper.append(name)
    if deeper:
        told = f"{uri}: {len(deeper)} objects lie deeper than its * reaches, such as {deeper[0]}; ** stands for folders"
        if not found:
            raise UsageError(told)
        log.warning("%s; they are left out", told)
    return found


def _find(fs: fsspec.AbstractFileSystem, path: str, reach: int | None) -> list[dict[str, Any]]:
    """Objects below a path, and links to files on a disk; none if there is nothing. What lies more than `reach` folders
    deep is only worth a hint."""
    if _is_disk(fs):
        return list(_below(fs, path, _Walk(True, reach)))
    try:
        return [entry for entry in fs.find(path, detail=True).values() if entry["type"] == "file"]
    except (FileNotFoundError, IsADirectoryError):  # some S3 stores keep an emptied folder, and s3fs says so
        return []


def _is_disk(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in fs.protocol


@dataclass(frozen=True)
class _Walk:
    """How a folder of a disk is gone through.

    Args:
        data: folders are left out in which no data are, and links to folders are followed; else these are objects.
        reach: how many folders deep it counts that a folder cannot be listed; None wherever it is.
    """

    data: bool
    reach: int | None = None

    def counts(self, depth: int) -> bool:
        """Whether all that is so deep has to be found."""
        return self.reach is None or depth <= self.reach


def _below(
    fs: fsspec.AbstractFileSystem, path: str, walk: _Walk, above: tuple[str, ...] = (), linked: bool = False
) -> Iterator[dict[str, Any]]:
    """What is below a folder of a disk, or the file itself. fsspec's own way leaves out folders that cannot be listed.

    Args:
        fs: the disk.
        path: folder or file.
        walk: how it is gone through.
        above: where the folders really are through which the way led: a link back to one of them ends there.
        linked: one of them is a link; so do entries say.
    """
    try:
        with os.scandir(path) as opened:
            there = list(opened)
    except NotADirectoryError:
        yield fs.info(path)
        return
    except FileNotFoundError:
        return
    except OSError:
        if walk.counts(len(above)):
            raise
        return
    real = os.path.realpath(path)
    if real in above:
        return
    above = (*above, real)
    for entry in there:
        if walk.data and (_is_hidden(entry.name) or entry.name == LOST):
            continue
        if _is_folder(entry, walk, len(above)):
            link = entry.is_symlink()
            if not link or walk.counts(len(above)):
                yield from _below(fs, entry.path, walk, above, linked or link)
            continue
        try:
            yield {**fs.info(entry), "linked": linked}
        except FileNotFoundError:  # removed meanwhile
            continue


def _is_folder(entry: os.DirEntry[str], walk: _Walk, depth: int) -> bool:
    """Whether it is a folder, or a link to one that is followed; what cannot be told is none, where it counts not."""
    try:
        return entry.is_dir(follow_symlinks=walk.data)
    except OSError:
        if walk.counts(depth):
            raise
        return False


def _once(entries: list[dict[str, Any]], root: str) -> list[dict[str, Any]]:
    """Each file of a disk once: what links to folders lead to is left out where it is found by its own name, or by
    another link."""
    linked = [entry for entry in entries if entry.get("linked")]
    if not linked:
        return entries
    own = [entry for entry in entries if not entry.get("linked")]
    real = os.path.realpath(root)
    known = {real + entry["name"].removeprefix(root) for entry in own}
    for entry in sorted(linked, key=lambda entry: str(entry["name"])):
        place = os.path.realpath(entry["name"])
        if place not in known:
            known.add(place)
            own.append(entry)
    return own


def _followed(fs: fsspec.AbstractFileSystem, entry: dict[str, Any]) -> dict[str, Any]:
    """What a link on a disk leads to, under the link's name."""
    name = entry["name"]
    try:
        name.encode()
    except UnicodeEncodeError:
        told = name.encode(errors="backslashreplace").decode()
        raise UsageError(f"the name of {told} is no UTF-8: rename it") from None
    if not entry.get("islink"):
        return entry
    if not fs.exists(name):
        raise StorageError(f"cannot list {name}: it is a link that leads nowhere: mend it, or remove it")
    followed: dict[str, Any] = fs.info(name)
    return followed


def _is_data(relative: str, size: int) -> bool:
    """Whether an object is data, by its path below the folder that was asked for."""
    if size == 0 and relative.endswith(("/", "_$folder$")):
        return False
    *folders, name = relative.split("/")
    if any(folder.startswith(("_", ".")) for folder in folders) or _is_hidden(name):
        return False
    return not name.endswith(".crc") and name.lower() not in LEFT_BEHIND


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", ".")) and not CAMERAS.match(name)


def list_folders(uri: str) -> list[str]:
    """Names of the folders right in a folder, sorted; none if it is not there.

    Raises:
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = filesystem(uri)
    try:
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as error:
        raise failed("list", uri, error) from error
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")


@dataclass(frozen=True)
class StoredFile:
    """One stored object and its age."""

    uri: str
    size: int
    modified: datetime
    """When the store got it, UTC."""
    is_link: bool = False
    """A symbolic link on a disk, which this program never makes."""


def list_all(uri: str) -> list[StoredFile]:
    """All objects below a folder, hidden ones too, without the marks by which S3 consoles make folders; sorted by URI.

    Raises:
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = filesystem(uri)
    try:
        # A link to a folder on a disk is not ours: nothing is looked for behind it, to be removed.
        everything = _below(fs, path, _Walk(False)) if _is_disk(fs) else fs.find(path, detail=True).values()
        entries = [entry for entry in everything if not entry["name"].endswith("/")]
        found = [_stored(fs, scheme(uri), entry) for entry in entries]
    except (FileNotFoundError, IsADirectoryError):  # some S3 stores keep an emptied folder, and s3fs says so
        return []
    except Exception as error:
        raise failed("list", uri, error) from error
    return sorted(found, key=lambda file: file.uri)


def _stored(fs: fsspec.AbstractFileSystem, prefix: str, entry: dict[str, Any]) -> StoredFile:
    modified = entry.get("LastModified") or entry.get("mtime") or fs.modified(entry["name"])
    if not isinstance(modified, datetime):
        modified = datetime.fromtimestamp(modified, UTC)
    is_link = bool(entry.get("islink"))
    return StoredFile(prefix + entry["name"], int(entry["size"] or 0), modified.astimezone(UTC), is_link)
