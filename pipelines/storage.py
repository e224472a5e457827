"""A URI → files: the only module that knows `s3://` from `file://`.

URIs are plain paths (`./lake`), `file://…`, `s3://bucket/prefix`, or any other scheme that fsspec knows. S3 is
configured by the standard variables alone: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION.
"""

from __future__ import annotations

import asyncio
import fnmatch
import io
import logging
import re
import uuid
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.utils import glob_translate
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from hybrid_models.errors import UsageError
from pipelines.secrets import shown

log = logging.getLogger(__name__)
READ_BUFFER = 1 << 20
CLIENT = {"user_agent": "hybrid-pipelines", "response_checksum_validation": "when_required"}
"""Of the S3 client: what it says of itself is not made up anew for each request, which takes longer than sending it."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")
GLOB = re.compile(r"[*?\[]")
LEFT_BEHIND = {"thumbs.db", "desktop.ini"}
LOOK_UPS = 32
"""Objects that are looked up at the same time."""
LIST_FROM = 100
"""With so many to look up in a folder, a listing of it takes fewer requests."""


class StorageError(RuntimeError):
    """Object storage could not do what was asked; the message names the object, the operation and the cause."""


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


def is_local(uri: str) -> bool:
    """Whether a URI is on a disk of this machine."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """The same place as a URI that does not depend on the working directory: an absolute path, or the URI itself.

    Raises:
        UsageError: it holds a password or token, which would be stored with every row.
    """
    if is_local(uri):
        return str(Path(uri.removeprefix("file://")).expanduser().resolve())
    if shown(uri) != uri:
        raise UsageError(
            f"{shown(uri)} holds a password or token, which tables and pages would show: take it from the address "
            "and set AWS_…, or FSSPEC_… for other stores (FSSPEC_FTP_PASSWORD)"
        )
    return uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """Appends path parts to a URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def _filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and its own path of a URI. Listings are never cached: other jobs write at the same time."""
    try:
        options: dict[str, Any] = {} if is_local(uri) else {"use_listings_cache": False}
        if uri.startswith("s3://"):
            options["config_kwargs"] = CLIENT
        return cast("tuple[fsspec.AbstractFileSystem, str]", fsspec.core.url_to_fs(absolute(uri), **options))
    except (ValueError, ImportError) as error:
        hint = " (pip install 'hybrid-pipelines[s3]')" if uri.startswith("s3://") else ""
        raise UsageError(f"cannot open {uri}: {shown(str(error))}{hint}") from error


def _scheme(uri: str) -> str:
    return "" if is_local(uri) else uri.split("://", 1)[0] + "://"


def failed(operation: str, uri: str, error: Exception) -> StorageError:
    """An error of a store's client as one line: what was tried on which object, why it failed, what to check."""
    text = ANSI.sub("", str(error))
    cause = ": ".join(line.strip(" ↳") for line in text.splitlines() if line.strip())[:400] or type(error).__name__
    hint = ""
    if isinstance(error, PermissionError) or "AccessKey" in cause or "Signature" in cause:
        hint = "; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif re.search(r"connect\b|credentials", cause, re.IGNORECASE):
        hint = "; check AWS_ENDPOINT_URL and the AWS_… credentials"
    return StorageError(f"cannot {operation} {shown(uri)}: {shown(cause)}{hint}")


def _info(scheme: str, entry: dict[str, Any]) -> FileInfo:
    etag = entry.get("ETag") or entry.get("etag") or f"{entry.get('mtime', '')}-{entry['size']}"
    return FileInfo(scheme + entry["name"], int(entry["size"]), str(etag).strip('"'))


def list_files(uri: str) -> list[FileInfo]:
    """All objects below a folder, or matching a glob pattern, or the one object itself; sorted by URI.

    Returns an empty list where there is nothing. In a pattern `*` and `?` stop at `/`, `**` as a whole part of the path
    stands for any folders (fsspec's globbing). A name that exists stands for itself, even with `*`, `?` or `[` in it.
    What is not data is left out, unless it is named itself: names that start with `_` or `.`, folder markers, checksums
    (`.crc`), and what file managers leave behind.

    Raises:
        UsageError: the bucket does not exist, the pattern is none, or all that it might mean lies deeper.
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = _filesystem(uri)
    try:
        root, pattern = _split_pattern(fs, path)
        there = [entry for entry in _find(fs, root) if _is_data(entry["name"].removeprefix(root), entry["size"])]
        if not there:
            _check_bucket(fs, uri)
        found = _matching(uri, there, root, pattern) if pattern else there
    except (UsageError, StorageError):
        raise
    except Exception as error:
        raise failed("list", uri, error) from error
    return sorted((_info(_scheme(uri), entry) for entry in found), key=lambda info: info.uri)


def _split_pattern(fs: fsspec.AbstractFileSystem, path: str) -> tuple[str, str]:
    """The folder (or object) to look in, and the pattern of names below it, which is empty if all are meant."""
    parts = path.split("/")
    for i, part in enumerate(parts):
        if GLOB.search(part) and not fs.exists("/".join(parts[: i + 1])):
            return "/".join(parts[:i]) or "/", "/".join(parts[i:])
    return path, ""


def _matching(uri: str, there: list[dict[str, Any]], root: str, pattern: str) -> list[dict[str, Any]]:
    """Objects whose path below the root matches. What a `*` that crosses `/` would find is told: it may be meant."""
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


def _find(fs: fsspec.AbstractFileSystem, path: str) -> list[dict[str, Any]]:
    """Objects below a path, none if there is nothing; a local link to a file is one, too."""
    try:
        found = fs.find(path, detail=True).values()
    except (FileNotFoundError, IsADirectoryError):  # some S3 stores keep an emptied folder, and s3fs says so
        return []
    return [entry for entry in found if entry["type"] == "file" or (entry.get("islink") and fs.isfile(entry["name"]))]


def _is_data(relative: str, size: int) -> bool:
    """Whether an object is data, by its path below the folder that was asked for."""
    if size == 0 and relative.endswith(("/", "_$folder$")):
        return False
    parts = relative.split("/")
    if any(part.startswith(("_", ".")) for part in parts):
        return False
    return not parts[-1].endswith(".crc") and parts[-1].lower() not in LEFT_BEHIND


def _check_bucket(fs: fsspec.AbstractFileSystem, uri: str) -> None:
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


def list_folders(uri: str) -> list[str]:
    """Names of the folders right in a folder, sorted; none if it is not there.

    Raises:
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = _filesystem(uri)
    try:
        entries = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as error:
        raise failed("list", uri, error) from error
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")


def info(uri: str) -> FileInfo:
    """The object's size and etag now.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = _filesystem(uri)
    try:
        return _info(_scheme(uri), fs.info(path))
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
    fs, path = _filesystem(uri)
    try:
        return [_info(_scheme(uri), entry) for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as error:
        raise failed("list", uri, error) from error


def _info_if_there(uri: str) -> FileInfo | None:
    fs, path = _filesystem(uri)
    try:
        entry = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        raise failed("look up", uri, error) from error
    return _info(_scheme(uri), entry) if entry["type"] == "file" else None


def exists(uri: str) -> bool:
    """Whether there is an object or folder."""
    fs, path = _filesystem(uri)
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


def open_input(uri: str) -> BinaryIO:
    """Opens an object for reading; seekable, read in blocks.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = _filesystem(uri)
    try:
        return io.BufferedReader(_Input(fs.open(path, "rb"), uri), READ_BUFFER)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(uri) from None
    except Exception as error:
        raise failed("open", uri, error) from error


class _Input(io.RawIOBase):
    """An object being read, whose failures are `StorageError`s: readers tell them from bad data by that."""

    def __init__(self, stream: Any, uri: str) -> None:
        super().__init__()
        self._stream = stream
        self._uri = uri

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except Exception as error:
            raise failed("read", self._uri, error) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def start_reading(file: FileInfo) -> Future[bytes | None]:
    """What `read_listed` gives, while the caller does something else: `finish_reading` waits for it.

    Objects of S3 are one request each, side by side in s3fs's own thread: with two, and a thread for each object that
    waits for that one, they cost twice the CPU.
    """
    fs, path = _filesystem(file.uri)
    if hasattr(fs, "call_s3"):
        return asyncio.run_coroutine_threadsafe(_get(fs, path, file), fs.loop)
    return _readers().submit(read_listed, file)


def finish_reading(file: FileInfo, reading: Future[bytes | None]) -> bytes | None:
    """Waits for what was started; an answer that broke off is asked for again. Raises as `read_listed` does."""
    try:
        return reading.result()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(file.uri) from None
    except StorageError:
        raise
    except Exception as error:
        log.debug("read %s once more: %s", shown(file.uri), shown(str(error)))
        return read_listed(file)


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="read")


async def _get(fs: Any, path: str, file: FileInfo) -> bytes | None:
    """One request: its answer has the state and the bytes."""
    bucket, key, _ = fs.split_path(path)
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
    try:
        same = answer["ContentLength"] == file.size and answer["ETag"].strip('"') == file.etag
        return cast(bytes, await answer["Body"].read()) if same else None
    finally:
        answer["Body"].close()


def read_listed(file: FileInfo) -> bytes | None:
    """The bytes of an object in the state in which it was listed; None if it is another one now.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = _filesystem(file.uri)
    if info(file.uri).etag != file.etag:
        return None
    try:
        data = cast(bytes, fs.cat_file(path, start=0, end=file.size)) if file.size else b""
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(file.uri) from None
    except Exception as error:
        raise failed("read", file.uri, error) from error
    return data if len(data) == file.size and info(file.uri).etag == file.etag else None


def read_bytes(uri: str) -> bytes:
    """The whole object."""
    with open_input(uri) as stream:
        return stream.read()


def read_text(uri: str) -> str:
    """The whole object as UTF-8 text."""
    return read_bytes(uri).decode("utf-8")


def write_bytes(uri: str, data: bytes) -> None:
    """Writes an object atomically: readers see the old one, or the whole new one, never a part."""
    fs, path = _filesystem(uri)
    try:
        if is_local(uri):
            _replace_local(Path(path), data)
        else:
            fs.pipe_file(path, data)
    except Exception as error:
        raise failed("write", uri, error) from error


def _replace_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def delete(uri: str) -> None:
    """Removes one object: no pattern, and nothing below a folder. That it is gone already is no error."""
    fs, path = _filesystem(uri)
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        return
    except Exception as error:
        raise failed("delete", uri, error) from error


def check_writable(uri: str) -> None:
    """Proves, by writing and removing one small object, that results can be stored there before any work is done.

    Raises:
        UsageError: they cannot; says why.
    """
    probe = join(absolute(uri), f"_write_check_{uuid.uuid4().hex[:8]}")
    fs, _ = _filesystem(uri)
    try:
        _check_bucket(fs, uri)
        write_bytes(probe, b"")
        delete(probe)
    except StorageError as error:
        raise UsageError(str(error)) from error


@dataclass(frozen=True)
class StoredFile:
    """One stored object and its age."""

    uri: str
    size: int
    modified: datetime
    """When the store got it, UTC."""


def list_all(uri: str) -> list[StoredFile]:
    """All objects below a folder, hidden ones too, without the marks by which S3 consoles make folders; sorted by URI.

    Raises:
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = _filesystem(uri)
    try:
        entries = [entry for entry in fs.find(path, detail=True).values() if not entry["name"].endswith("/")]
        found = [_stored(fs, _scheme(uri), entry) for entry in entries]
    except (FileNotFoundError, IsADirectoryError):  # some S3 stores keep an emptied folder, and s3fs says so
        return []
    except Exception as error:
        raise failed("list", uri, error) from error
    return sorted(found, key=lambda file: file.uri)


def _stored(fs: fsspec.AbstractFileSystem, scheme: str, entry: dict[str, Any]) -> StoredFile:
    modified = entry.get("LastModified") or entry.get("mtime") or fs.modified(entry["name"])
    if not isinstance(modified, datetime):
        modified = datetime.fromtimestamp(modified, UTC)
    return StoredFile(scheme + entry["name"], int(entry["size"] or 0), modified.astimezone(UTC))
