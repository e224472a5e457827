"""A backup as one tar stream, and the way back: databases (SQLite), folders and buckets.

    python infra/backup.py save sqlite:///mlflow.db ./mlflow-artifacts s3://lake > backup.tar
    python infra/backup.py restore sqlite:///mlflow.db ./mlflow-artifacts s3://lake < backup.tar

Nothing need stop while it is saved: what refers to other things is saved before them. So the database comes first (a
model's files are older than its version), and in a folder or bucket the Delta logs (a table's files are older than the
commit that names them); `hybrid tables tidy` leaves alone what the last days need. Restoring wants empty places.
PostgreSQL has its own tools: infra/backup.sh calls them.
"""

from __future__ import annotations

import io
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, BinaryIO, cast

import fsspec

SQLITE = "sqlite:///"
PLACES = "places"
"""The first member says of what kind each place is: a database or objects."""
END = "end"
"""The last member says how many others there are: a stream that was cut off has none."""
LOG = "/_delta_log/"
HINT = "_last_checkpoint"
IN_MEMORY = 64 << 20
"""Bytes of an object that is copied before it is saved; more go through a temporary file."""
ATTEMPTS = 3


def save(uris: Sequence[str], stream: BinaryIO) -> int:
    """Writes all that lies at the URIs, in this order; returns the number of objects.

    Raises:
        SystemExit: one of them is not there; nothing is written, then.
    """
    for uri in uris:
        if not is_there(uri):
            sys.exit(f"there is nothing at {uri}")
    count = 0
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        note(tar, PLACES, " ".join(map(kind, uris)))
        for place, uri in enumerate(uris):
            for key, size, content in database(uri) if uri.startswith(SQLITE) else objects(uri):
                member = tarfile.TarInfo(f"{place}/{key}")
                member.size = size
                with content:
                    tar.addfile(member, content)
                count += 1
        note(tar, END, str(count))
    return count


def kind(uri: str) -> str:
    """What a place is."""
    return "database" if uri.startswith(SQLITE) else "objects"


def note(tar: tarfile.TarFile, name: str, text: str) -> None:
    """A member that tells of the others."""
    member = tarfile.TarInfo(name)
    member.size = len(text.encode())
    tar.addfile(member, io.BytesIO(text.encode()))


def database(uri: str) -> Iterator[tuple[str, int, BinaryIO]]:
    """A SQLite database as it is at one moment, also while it is written."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "copy.db")
        source = f"file:{Path(uri.removeprefix(SQLITE)).resolve()}?mode=ro"
        with closing(sqlite3.connect(source, uri=True)) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new)
        yield "database", copy.stat().st_size, copy.open("rb")


def objects(uri: str) -> Iterator[tuple[str, int, BinaryIO]]:
    """Key, size and content of everything below a URI: first the hints where a Delta log's checkpoint is, then the
    logs, then the rest, each of them listed when its turn comes. What goes meanwhile is left out."""
    fs, root = opened(uri)
    turns = (
        lambda key: LOG in f"/{key}" and key.endswith(HINT),
        lambda key: LOG in f"/{key}" and not key.endswith(HINT),
        lambda key: LOG not in f"/{key}",
    )
    for is_due in turns:
        for path, entry in sorted(fs.find(root, detail=True).items()):
            key = path.removeprefix(root).lstrip("/")
            if entry["type"] != "file" or not key or not is_due(key):
                continue
            if (content := copied(fs, path)) is not None:
                size = content.tell()
                content.seek(0)
                yield key, size, content


def copied(fs: fsspec.AbstractFileSystem, path: str) -> BinaryIO | None:
    """An object as it is at one moment; none where it is gone, as jobs remove what they need no more. Of one that was
    written anew meanwhile a store refuses the rest: it is begun again."""
    for left in range(ATTEMPTS, 0, -1):
        copy = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115, closed by who saves it
        try:
            with fs.open(path, "rb") as content:
                shutil.copyfileobj(content, copy, 1 << 20)
            return cast(BinaryIO, copy)
        except FileNotFoundError:
            return None
        except OSError:
            if left == 1:
                raise
    raise AssertionError("unreachable")


def restore(uris: Sequence[str], stream: BinaryIO) -> int:
    """Writes a saved stream's content to the URIs, which are as many as were saved, in that order, and empty.

    Raises:
        SystemExit: a place is not empty, or another one than was saved, with nothing written; or the stream is cut off;
            what has been written stays, then.
    """
    for uri in uris:
        if not is_empty(uri):
            sys.exit(f"{uri} is not empty: restore to an empty place, or empty it first")
    count, told = 0, -1
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                if member.name == PLACES:
                    check_places(uris, content.read().decode().split())
                    continue
                if member.name == END:
                    told = int(content.read())
                    break
                put(*target(uris, member.name), content)
                count += 1
    except tarfile.TarError as error:
        sys.exit(f"this is no whole backup: {error}")
    if count != told:
        sys.exit(f"this is no whole backup: it ends after {count} objects")
    return count


def check_places(uris: Sequence[str], saved: Sequence[str]) -> None:
    """Refuses other places than were saved.

    Raises:
        SystemExit: how many there were, and of which kind.
    """
    if list(map(kind, uris)) != saved:
        sys.exit(f"this is a backup of {', '.join(saved)}: give as many places, in that order")


def target(uris: Sequence[str], name: str) -> tuple[str, str]:
    """The place and the key of a member.

    Raises:
        SystemExit: it is of no such place, or what is no database would be one.
    """
    place, _, key = name.partition("/")
    uri = uris[int(place)] if place.isdecimal() and int(place) < len(uris) else ""
    if not uri or (uri.startswith(SQLITE) and key != "database"):
        sys.exit(f"this is no backup of these places, in this order: it holds {name}")
    return uri, key


def put(uri: str, key: str, content: IO[bytes]) -> None:
    """One object; a database is put where its URI says."""
    if ".." in key.split("/"):
        sys.exit(f"this is no backup of ours: it holds {key}")
    fs, root = opened(uri.removeprefix(SQLITE))
    path = root if uri.startswith(SQLITE) else f"{root}/{key}"
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    with fs.open(path, "wb") as target:
        shutil.copyfileobj(content, target, 1 << 20)


def is_there(uri: str) -> bool:
    """Whether there is such a database, folder or bucket; it may be empty."""
    fs, root = opened(uri.removeprefix(SQLITE))
    return bool(fs.exists(root))


def is_empty(uri: str) -> bool:
    """Whether nothing is there yet; makes a bucket that is not there."""
    fs, root = opened(uri.removeprefix(SQLITE))
    if "s3" in fs.protocol:
        fs.makedirs(root.split("/")[0], exist_ok=True)
    return not fs.exists(root) or (fs.isdir(root) and not fs.find(root))


def opened(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and its own path there."""
    options = {"use_listings_cache": False} if "://" in uri else {}
    fs, root = fsspec.core.url_to_fs(uri if "://" in uri else str(Path(uri).resolve()), **options)
    return fs, root.rstrip("/")


def main(argv: Sequence[str]) -> None:
    """`save URI …` writes to stdout, `restore URI …` reads from stdin."""
    if len(argv) < 2 or argv[0] not in ("save", "restore"):
        sys.exit("usage: backup.py save|restore URI [URI ...]")
    verb, *uris = argv
    count = save(uris, sys.stdout.buffer) if verb == "save" else restore(uris, sys.stdin.buffer)
    print(f"{verb}d {count} objects", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
