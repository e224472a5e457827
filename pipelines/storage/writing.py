"""Objects written whole or not at all, and removed by name."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid_models.errors import UsageError
from pipelines.storage.addresses import StorageError, absolute, failed, filesystem, is_local, is_s3, join
from pipelines.storage.lookup import check_bucket, exists


def write_bytes(uri: str, data: bytes) -> None:
    """Writes an object atomically: readers see the old one, or the whole new one, never a part."""
    fs, path = filesystem(uri)
    try:
        if is_local(uri):
            _replace_local(Path(path), data)
        else:
            fs.pipe_file(path, data)
    except Exception as error:
        raise failed("write", uri, error) from error


def write_new(uri: str, data: bytes) -> None:
    """Writes an object, unless there is one: what another process wrote by this name, and may have committed, stays. Of
    two that write at the same moment one does, on disks that know hard links and on S3 where that knows
    `If-None-Match`; elsewhere one replaces the other's.

    Raises:
        StorageError: the store cannot be reached or refuses.
    """
    if exists(uri):
        return
    if is_local(uri) or is_s3(uri):
        _create(uri, data)
    else:
        write_bytes(uri, data)


def _create(uri: str, data: bytes) -> None:
    """All of it, or nothing where there is something by then. S3 may ask for another try."""
    fs, path = filesystem(uri)
    for last in (False, True):
        try:
            if is_local(uri):
                _create_local(Path(path), data)
            else:
                fs.pipe_file(path, data, mode="create")
            return
        except Exception as error:  # stores have many words for what is there
            if exists(uri):
                return
            if getattr(error, "errno", None) == errno.ENOSYS:
                write_bytes(uri, data)
                return
            if last:
                raise failed("write", uri, error) from error


def _replace_local(path: Path, data: bytes) -> None:
    with _written(path, data) as whole:
        whole.replace(path)


def _create_local(path: Path, data: bytes) -> None:
    with _written(path, data) as whole:
        try:
            path.hardlink_to(whole)
        except FileExistsError:
            raise
        except OSError:  # a disk that knows no hard links
            whole.replace(path)


@contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """A file beside a path, with what shall be there; afterwards it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.write_bytes(data)
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def delete(uri: str) -> None:
    """Removes one object: no pattern, nothing below a folder, and of a link on a disk not what it leads to. That it is
    gone already is no error."""
    fs, path = filesystem(uri)
    if is_local(uri):
        named = Path(uri.removeprefix("file://")).expanduser()
        path = str(named.parent.resolve() / named.name)
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
    fs, _ = filesystem(uri)
    try:
        check_bucket(fs, uri)
        write_bytes(probe, b"")
        delete(probe)
    except StorageError as error:
        raise UsageError(str(error)) from error
