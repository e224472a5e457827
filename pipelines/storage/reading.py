"""The bytes of an object: as a stream, or whole and in the state in which it was listed."""

from __future__ import annotations

import asyncio
import io
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, BinaryIO, cast

from pipelines.secrets import shown
from pipelines.storage.addresses import ForbiddenError, StorageError, failed, filesystem, scheme
from pipelines.storage.lookup import FileInfo, info

log = logging.getLogger(__name__)
READ_BUFFER = 1 << 20
READERS = 32
"""Objects of a store without requests of its own that are read at the same time."""
ENDS = 512
"""Objects whose ends are in memory at the same time."""


def open_input(uri: str) -> BinaryIO:
    """Opens an object for reading; seekable, read in blocks.

    Raises:
        FileNotFoundError: it is not there.
        StorageError: the store cannot be reached or refuses.
    """
    fs, path = filesystem(uri)
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
    fs, path = filesystem(file.uri)
    if hasattr(fs, "call_s3"):
        return asyncio.run_coroutine_threadsafe(_get(fs, path, file), fs.loop)
    return _readers().submit(read_listed, file)


def finish_reading(
    file: FileInfo, reading: Future[bytes | None], again: Callable[[], None] = lambda: None
) -> bytes | None:
    """Waits for what was started; an answer that broke off is asked for again. Raises as `read_listed` does.

    Args:
        file: the object.
        reading: what `start_reading` gave.
        again: is told of an answer that broke off.
    """
    try:
        return reading.result()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(file.uri) from None
    except StorageError:
        raise
    except Exception as error:
        if isinstance(error, PermissionError) and isinstance(reason := failed("read", file.uri, error), ForbiddenError):
            raise reason from error
        log.debug("read %s once more: %s", shown(file.uri), shown(str(error)))
        again()
        return read_listed(file)


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS, thread_name_prefix="read")


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
    fs, path = filesystem(file.uri)
    if info(file.uri).etag != file.etag:
        return None
    try:
        data = cast(bytes, fs.cat_file(path, start=0, end=file.size)) if file.size else b""
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(file.uri) from None
    except Exception as error:
        raise failed("read", file.uri, error) from error
    return data if len(data) == file.size and info(file.uri).etag == file.etag else None


def read_ends(files: Sequence[FileInfo], size: int) -> Iterator[bytes | None]:
    """The last `size` bytes of each object, in order, many requests at a time. None where that failed: who opens the
    object learns why."""
    for start in range(0, len(files), ENDS):
        some = files[start : start + ENDS]
        fs, _ = filesystem(some[0].uri)
        paths = [filesystem(file.uri)[1] for file in some]
        starts = [max(0, file.size - size) for file in some]
        for end in fs.cat_ranges(paths, starts, [file.size for file in some], on_error="return"):
            yield end if isinstance(end, bytes) else None


def readable(uris: Collection[str]) -> set[str]:
    """Those of these objects of which a byte can be read, many requests at a time."""
    stores: dict[str, list[str]] = defaultdict(list)
    for uri in sorted(uris):
        stores[scheme(uri)].append(uri)
    return {
        uri
        for own in stores.values()
        for uri, byte in zip(own, read_ends([FileInfo(uri, 1, "") for uri in own], 1), strict=True)
        if byte is not None
    }


def read_bytes(uri: str) -> bytes:
    """The whole object."""
    with open_input(uri) as stream:
        return stream.read()


def read_text(uri: str) -> str:
    """The whole object as UTF-8 text."""
    return read_bytes(uri).decode("utf-8")
