"""One object, or many by name: are they there, and in which state."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from hybrid_models.errors import UsageError
from pipelines.storage.addresses import StorageError, failed, filesystem, scheme

if TYPE_CHECKING:
    import fsspec

LOOK_UPS = 32
"""Objects that are looked up at the same time."""
LIST_FROM = 100
"""With so many to look up in a folder, a listing of it takes fewer requests."""


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


def look_up(uris: Collection[str]) -> dict[str, FileInfo]:
    """Size and etag of many objects, of those that are there. Where many lie in one folder, it is listed instead.

    Raises:
        StorageError: the store cannot be reached or refuses.
    """
    folders: dict[str, set[str]] = defaultdict(set)
    for uri in uris:
        folders[uri.rpartition("/")[0]].add(uri)
    found: dict[str, FileInfo] = {}
    single: list[str] = []
    for folder, wanted in folders.items():
        if len(wanted) < LIST_FROM:
            single += wanted
        else:
            found |= {file.uri: file for file in _list_folder(folder) if file.uri in wanted}
    with ThreadPoolExecutor(LOOK_UPS) as threads:
        found |= {uri: file for uri, file in zip(single, threads.map(_info_if_there, single), strict=True) if file}
    return found


def _list_folder(uri: str) -> list[FileInfo]:
    """Objects right in a folder."""
    fs, path = filesystem(uri)
    try:
        return [file_info(scheme(uri), entry) for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
    except Exception as error:
        if _is_nowhere(error):
            return []
        raise failed("list", uri, error) from error


def _info_if_there(uri: str) -> FileInfo | None:
    fs, path = filesystem(uri)
    try:
        entry = fs.info(path)
    except Exception as error:
        if _is_nowhere(error):
            return None
        raise failed("look up", uri, error) from error
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
