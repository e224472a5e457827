"""One object, or many by name: are they there, and in which state."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from hybrid_models.errors import UsageError
from pipelines.storage.addresses import ForbiddenError, StorageError, failed, filesystem, is_local, is_s3, scheme

if TYPE_CHECKING:
    import fsspec

LOOK_UPS = 32
"""Objects that are looked up at the same time."""
LIST_FROM = 100
"""With so many to look up in a folder, a listing of it takes less."""
PAGE = 1000
"""Objects of a listing that come in one answer, which takes about as long as ten of them one by one."""
OTHERS = 10
"""So many times as many objects in a folder as are looked for in it: then these are asked for one by one."""
SAMPLE = 10
"""So many of those that a listing did not show are asked for: not all stores of S3's kind list names in order."""


@dataclass(frozen=True)
class FileInfo:
    """One stored object, as a listing shows it."""

    uri: str
    size: int
    etag: str
    """Changes whenever the content does: the object's ETag on S3, modification time and size on a local disk."""

    @property
    def name(self) -> str:
        """The last part of the URI."""
        return self.uri.rsplit("/", 1)[-1]


def file_info(prefix: str, entry: dict[str, Any]) -> FileInfo:
    """An entry of fsspec's listings."""
    etag = entry.get("ETag") or entry.get("etag") or f"{entry.get('mtime', '')}-{entry['size']}"
    return FileInfo(prefix + entry["name"], int(entry["size"]), str(etag).strip('"'))


def info(uri: str) -> FileInfo:
    """The object's size and etag now.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = filesystem(uri)
    try:
        return file_info(scheme(uri), fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(uri) from None
    except Exception as error:
        raise failed("look up", uri, error) from error


def look_up(uris: Collection[str]) -> dict[str, FileInfo | ForbiddenError]:
    """Size and etag of many objects, of those that are there, or why somebody who is known may not see one. Where many
    lie in one folder, it is listed, as far as that pays: a folder may have far more than are looked for.

    Raises:
        StorageError: the store cannot be reached, or does not know who asks.
    """
    folders: dict[str, set[str]] = defaultdict(set)
    for uri in uris:
        folders[uri.rpartition("/")[0]].add(uri)
    found: dict[str, FileInfo | ForbiddenError] = {}
    single: list[str] = []
    for folder, wanted in folders.items():
        listed = None if len(wanted) < LIST_FROM else _listed(folder, wanted)
        if listed is None:
            single += wanted
        else:
            found |= listed
    with ThreadPoolExecutor(LOOK_UPS) as threads:
        found |= {uri: file for uri, file in zip(single, threads.map(_info_if_there, single), strict=True) if file}
    return found


def _listed(folder: str, wanted: set[str]) -> dict[str, FileInfo] | None:
    """Those right in a folder, by listing it; None if it has too many others, or that tells nothing of them."""
    if is_local(folder):
        return _scanned(folder, wanted)
    paged = hasattr(filesystem(folder)[0], "call_s3")
    found: dict[str, FileInfo] = {}
    first, last, before, most = min(wanted), max(wanted), "", OTHERS * len(wanted)
    try:
        for page in _pages(folder, first):
            names = [file.uri for file in page]
            found |= {file.uri: file for file in page if file.uri in wanted}
            most -= PAGE  # with folders, which are not among them
            if paged and (most < 0 or [before, *names] != sorted([before, *names])):
                return None
            before = names[-1] if names else before
            if paged and before > last:
                break
    except ForbiddenError:
        return None
    missing = sorted(wanted - found.keys())
    there = map(_info_if_there, missing[:: len(missing) // SAMPLE + 1] if paged else [])
    return None if any(there) else found


def _scanned(folder: str, wanted: set[str]) -> dict[str, FileInfo]:
    """Those right in a folder of a disk, of which nothing else is kept."""
    fs, path = filesystem(folder or "/")
    try:
        with os.scandir(path) as entries:
            some = ((uri, fs.info(entry)) for entry in entries if (uri := f"{folder}/{entry.name}") in wanted)
            return {uri: file_info("", entry) for uri, entry in some if entry["type"] == "file"}
    except Exception as error:
        if _is_nowhere(error):
            return {}
        raise failed("list", folder, error) from error


def _pages(folder: str, first: str) -> Iterator[list[FileInfo]]:
    """Objects right in a folder; those of S3 in pages, from a name on."""
    fs, path = filesystem(folder)
    try:
        if not hasattr(fs, "call_s3"):
            yield [file_info(scheme(folder), entry) for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
            return
        bucket, key, _ = fs.split_path(path)
        prefix = f"{key}/" if key else ""
        before = prefix + first.rpartition("/")[2][:-1]  # a name that comes before it
        asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", "MaxKeys": PAGE, "StartAfter": before}
        while True:
            answer = fs.call_s3("list_objects_v2", **asked)
            yield [
                file_info(scheme(folder), {**entry, "name": f"{bucket}/{entry['Key']}", "size": entry["Size"]})
                for entry in answer.get("Contents", [])
            ]
            if not answer.get("IsTruncated"):
                return
            asked["ContinuationToken"] = answer["NextContinuationToken"]
    except Exception as error:
        if _is_nowhere(error):
            return
        raise failed("list", folder, error) from error


def _info_if_there(uri: str) -> FileInfo | ForbiddenError | None:
    fs, path = filesystem(uri)
    try:
        entry = fs.info(path)
    except Exception as error:
        if _is_nowhere(error):
            return None
        reason = failed("look up", uri, error)
        if isinstance(reason, ForbiddenError):
            return reason
        raise reason from error
    return file_info(scheme(uri), entry) if entry["type"] == "file" else None


def _is_nowhere(error: Exception) -> bool:
    """Whether nothing is, or can be, at an address."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) or getattr(error, "errno", 0) == errno.ENAMETOOLONG


def exists(uri: str) -> bool:
    """Whether there is an object or folder."""
    fs, path = filesystem(uri)
    try:
        return bool(fs.exists(path))
    except Exception as error:
        raise failed("look up", uri, error) from error


def wait_for(uri: str, seconds: float) -> None:
    """Returns when the store answers.

    Raises:
        StorageError: it did not within so many seconds.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(StorageError),
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=1, max=10),
        reraise=True,
    )
    retrying(exists, uri)


def check_bucket(fs: fsspec.AbstractFileSystem, uri: str) -> None:
    """Refuses a bucket that does not exist: stores answer as if it were empty, or make it when something is written."""
    if not is_s3(uri):
        return
    bucket = uri.partition("://")[2].split("/", 1)[0]
    try:
        fs.call_s3("head_bucket", Bucket=bucket)
    except FileNotFoundError:
        raise UsageError(f"there is no bucket {bucket} for {uri}: create it, or check the address") from None
    except PermissionError:  # one may be allowed a part of a bucket only
        return
    except Exception as error:
        raise failed("look up", uri, error) from error
