"""One object, or many by name: are they there, and in which state."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from hybrid_models.errors import UsageError
from pipelines.storage.addresses import ForbiddenError, StorageError, failed, filesystem, is_local, scheme

if TYPE_CHECKING:
    import fsspec

LOOK_UPS = 32
"""Objects that are looked up at the same time."""
LIST_FROM = 100
"""With so many to look up in a folder of a store, a listing of it takes fewer requests."""
PAGE = 1000
"""Objects of a listing that come in one answer."""
PAGES = 2
"""More of them in a folder than answers that those who are looked for need themselves: then these are asked for."""


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
    lie in one folder of a store, it is listed, as far as that pays: a folder may have far more than are looked for.

    Raises:
        StorageError: the store cannot be reached, or does not know who asks.
    """
    folders: dict[str, set[str]] = defaultdict(set)
    for uri in uris:
        folders[uri.rpartition("/")[0]].add(uri)
    found: dict[str, FileInfo | ForbiddenError] = {}
    single: list[str] = []
    for folder, wanted in folders.items():
        listed = None if is_local(folder) or len(wanted) < LIST_FROM else _listed(folder, wanted)
        if listed is None:
            single += wanted
        else:
            found |= listed
    with ThreadPoolExecutor(LOOK_UPS) as threads:
        found |= {uri: file for uri, file in zip(single, threads.map(_info_if_there, single), strict=True) if file}
    return found


def _listed(folder: str, wanted: set[str]) -> dict[str, FileInfo] | None:
    """Those right in a folder, by listing it; None if it has too many others, or nobody may list it."""
    found: dict[str, FileInfo] = {}
    last = max(wanted)
    try:
        for number, page in enumerate(_pages(folder, min(wanted))):
            if number > PAGES + len(wanted) // LIST_FROM:
                return None
            found |= {file.uri: file for file in page if file.uri in wanted}
            if page and page[-1].uri > last:
                break
    except ForbiddenError:
        return None
    return found


def _pages(folder: str, first: str) -> Iterator[list[FileInfo]]:
    """Objects right in a folder, in pages; in S3 of names from the first one on, in their order."""
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
                FileInfo(f"{scheme(folder)}{bucket}/{entry['Key']}", int(entry["Size"]), entry["ETag"].strip('"'))
                for entry in answer.get("Contents", [])
            ]
            if not answer.get("IsTruncated"):
                return
            asked = {**asked, "ContinuationToken": answer["NextContinuationToken"]}
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
    if not uri.startswith("s3://"):
        return
    bucket = uri.removeprefix("s3://").split("/", 1)[0]
    try:
        fs.call_s3("head_bucket", Bucket=bucket)
    except FileNotFoundError:
        raise UsageError(f"there is no bucket {bucket} for {uri}: create it, or check the address") from None
    except PermissionError:  # one may be allowed a part of a bucket only
        return
    except Exception as error:
        raise failed("look up", uri, error) from error
