"""Write objects whole or not at all, and remove objects of this program by name.

Every write and delete of the program goes through this module, which keeps three rules:

1. Nothing is written or removed through a symbolic link below the folder that a command names.
2. An object that exists is replaced or removed only if the caller's `IsOwn` recognises it: by a digest in a record of
   this program, by a seal, or as a fixed name in a folder that this program claimed while it was empty.
3. Everything else is refused, with the object's name and the way out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hybrid_models.errors import UsageError
from pipelines.storage.addresses import StorageError, absolute, check_scheme, failed, filesystem, is_local, join
from pipelines.storage.listing import StoredFile
from pipelines.storage.lookup import check_bucket, exists, info
from pipelines.storage.reading import read_bytes

FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
WAY_OUT = "move it, or use another address"
DELTA_LOG = "_delta_log"


@dataclass(frozen=True)
class Existing:
    """An object that is about to be replaced or removed."""

    uri: str
    size: int

    def read(self) -> bytes:
        """Its content."""
        return read_bytes(self.uri)


IsOwn = Callable[[Existing], bool]
"""Whether an existing object is one that this program wrote and that nobody has changed since."""


def nothing(existing: Existing) -> bool:
    """The `IsOwn` of a new object: whatever exists is somebody else's."""
    return False


def anything(existing: Existing) -> bool:
    """The `IsOwn` of `--overwrite`: its user said that the object may be replaced."""
    return True


def has_digest(digests: Collection[str]) -> IsOwn:
    """The `IsOwn` of objects whose record holds their SHA-256."""
    return lambda existing: bool(digests) and hashlib.sha256(existing.read()).hexdigest() in digests


def in_claimed(marker: str) -> IsOwn:
    """The `IsOwn` of the fixed names in a folder that this program claimed, while it was empty, by writing a marker."""
    return lambda existing: exists(marker)


def beside(uri: str) -> str:
    """The absolute address of an object that a user named: links are resolved in its folder, not in its own name.

    Raises:
        UsageError: it lies in the log of a Delta table.
    """
    folder, slash, name = uri.rstrip("/").rpartition("/")
    place = join(absolute((folder or "/") if slash else "."), name) if is_local(uri) else absolute(uri)
    _check_outside_log(place)
    return place


def _check_outside_log(place: str) -> None:
    """Refuses an absolute address in the log of any Delta table, where a new file would be a commit."""
    if DELTA_LOG in place.split("/"):
        raise UsageError(
            f"{place} lies in the log of a Delta table, which Delta Lake alone writes: use another address"
        )


def write_bytes(uri: str, data: bytes, is_own: IsOwn = nothing, way_out: str = WAY_OUT) -> None:
    """Write an object atomically: readers see the old one or the whole new one.

    Raises:
        UsageError: an object exists there that is not this program's own, or a link leads elsewhere.
        StorageError: the store cannot be reached or refuses.
    """
    check_replaceable(uri, is_own, way_out)
    fs, path = filesystem(uri)
    try:
        if is_local(uri):
            name = Path(_lexical(uri)).name
            with _folder_of(uri, create=True) as folder, _temporary(folder, name, data) as whole:
                os.replace(whole, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            fs.pipe_file(path, data)
    except UsageError:
        raise
    except Exception as error:
        raise failed("write", uri, error) from error


def check_replaceable(uri: str, is_own: IsOwn, way_out: str = WAY_OUT) -> None:
    """Refuses an address where an object exists that is not this program's own.

    Raises:
        UsageError: one exists, or a link leads elsewhere.
        StorageError: the store cannot be reached or refuses.
    """
    if is_own is anything and not is_local(uri):  # nothing to decide: a store has no links
        return
    existing = _existing(uri)
    if existing is not None and not is_own(existing):
        raise UsageError(f"{uri} exists, and this program did not write it, or it was changed since: {way_out}")


def _existing(uri: str) -> Existing | None:
    try:
        if not is_local(uri):
            return Existing(uri, info(uri).size)
        with _folder_of(uri) as folder:
            state = os.stat(Path(_lexical(uri)).name, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise failed("look up", uri, error) from error
    if stat.S_ISLNK(state.st_mode):
        raise UsageError(_linked(uri))
    if not stat.S_ISREG(state.st_mode):
        raise UsageError(f"{uri} is no regular file: {WAY_OUT}")
    return Existing(uri, state.st_size)


def write_new(uri: str, data: bytes) -> None:
    """Write an object whose name tells its content, unless it exists: what another process wrote stays.

    Of two that write at the same moment one does, on disks that know hard links and on S3 where that knows
    `If-None-Match`; elsewhere one replaces the other's.

    Raises:
        UsageError: a link leads elsewhere.
        StorageError: the store cannot be reached or refuses.
    """
    if exists(uri):
        return
    fs, path = filesystem(uri)
    for last in (False, True):
        try:
            if is_local(uri):
                _create_local(uri, data)
            else:
                fs.pipe_file(path, data, mode="create")
            return
        except UsageError:
            raise
        except Exception as error:  # stores have many words for what is there
            if exists(uri):
                return
            if getattr(error, "errno", None) == errno.ENOSYS:
                write_bytes(uri, data)
                return
            if last:
                raise failed("write", uri, error) from error


def _create_local(uri: str, data: bytes) -> None:
    name = Path(_lexical(uri)).name
    with _folder_of(uri, create=True) as folder, _temporary(folder, name, data) as whole:
        try:
            os.link(whole, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # a disk that knows no hard links
            os.replace(whole, name, src_dir_fd=folder, dst_dir_fd=folder)


@contextmanager
def _temporary(folder: int, target: str, data: bytes) -> Iterator[str]:
    """Name of a new file beside the target, with these bytes; it is gone afterwards."""
    name = f".{target}.{uuid.uuid4().hex[:8]}"
    opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder)
    try:
        with os.fdopen(opened, "wb") as stream:
            stream.write(data)
        yield name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


@contextmanager
def _folder_of(uri: str, create: bool = False) -> Iterator[int]:
    """A descriptor of the folder that an object of a disk is in, opened part by part without following a link.

    Raises:
        UsageError: a part is a link.
        OSError: it cannot be opened or made.
    """
    path = Path(_lexical(uri))
    folder = os.open("/", FOLDER)
    try:
        for depth, name in enumerate(path.parts[1:-1], 2):
            try:
                inner = _opened(folder, name, create)
            except NotADirectoryError:
                part = Path(*path.parts[:depth])
                if part.is_symlink():
                    raise UsageError(_linked(str(part))) from None
                raise NotADirectoryError(errno.ENOTDIR, "Not a folder", str(part)) from None
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _opened(folder: int, name: str, create: bool) -> int:
    try:
        return os.open(name, FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
    return os.open(name, FOLDER, dir_fd=folder)


def _lexical(uri: str) -> str:
    """The absolute path of an object of a disk, with the links in it."""
    check_scheme(uri)
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def _linked(uri: str) -> str:
    return f"{uri} is a link, and nothing is written or removed through one: use what it leads to, or remove the link"


def delete(uri: str, is_own: IsOwn) -> None:
    """Remove one object of this program: no pattern, nothing below a folder, no link. A missing object is no error.

    Raises:
        UsageError: its content is not this program's own, or a link leads elsewhere.
        StorageError: the store cannot be reached or refuses.
    """
    check_replaceable(uri, is_own, "it stays; remove it yourself if nothing needs it")
    _remove(uri)


def delete_listed(file: StoredFile) -> None:
    """Remove an object that a listing showed and whose name tells that this program wrote it, if it is still the same.

    Objects of a store are not looked up again: names of part files hold a hash, which no other program gives.

    Raises:
        UsageError: it is a link, or was changed since.
        StorageError: the store cannot be reached or refuses.
    """
    if is_local(file.uri):
        with suppress(FileNotFoundError):
            state = os.lstat(_lexical(file.uri))
            if stat.S_ISLNK(state.st_mode):
                raise UsageError(_linked(file.uri))
            if (state.st_size, datetime.fromtimestamp(state.st_mtime, UTC)) != (file.size, file.modified):
                raise UsageError(f"{file.uri} was changed since it was listed, so it stays: start the command again")
    _remove(file.uri)


def _remove(uri: str) -> None:
    fs, path = filesystem(uri)
    try:
        if is_local(uri):
            with _folder_of(uri) as folder:
                os.unlink(Path(_lexical(uri)).name, dir_fd=folder)
        else:
            fs.rm_file(path)
    except FileNotFoundError:
        return
    except UsageError:
        raise
    except Exception as error:
        raise failed("delete", uri, error) from error


def check_writable(uri: str) -> None:
    """Proves, by writing and removing one small object, that results can be stored there before any work is done.

    Raises:
        UsageError: they cannot, or it is the log of a Delta table; says why.
    """
    _check_outside_log(absolute(uri))
    probe = join(absolute(uri), f"_write_check_{uuid.uuid4().hex[:8]}")
    fs, _ = filesystem(uri)
    try:
        check_bucket(fs, uri)
        write_bytes(probe, b"", anything)  # a random name, which no other program gives
        delete(probe, anything)
    except StorageError as error:
        raise UsageError(str(error)) from error
