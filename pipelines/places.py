"""Where a command reads and where it writes: both may lie below one root, but neither in the other.

What is written is tidied, and what lies in a folder of outputs may be taken for an output: one word off in a path must
not cost the input.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hybrid_models.errors import UsageError
from pipelines import storage

SAME = {"s3a": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs"}
"""Schemes of one store."""
NOT_FILES = ("http", "https", "ftp", "data")
"""Schemes of what lies in no store."""


@dataclass(frozen=True)
class InputOptions:
    """How `input` names what is read."""

    uri_column: str = ""
    """The input is manifests (.parquet, .jsonl, .tsv), of which this column names a photograph, clip, array or text."""
    allow_prefix: tuple[str, ...] = ()
    """What a manifest may name lies below one of these; the manifest's own bucket, or folder on a disk, by default."""

    def check(self) -> None:
        """Refuses options that do not go together.

        Raises:
            UsageError: says which.
        """
        if self.allow_prefix and not self.uri_column:
            raise UsageError("`allow_prefix` goes with `uri_column`: it bounds what a manifest may name")
        for prefix in self.allow_prefix:
            scheme, dots, _ = prefix.partition("://")
            if (dots and scheme.lower() in NOT_FILES) or "::" in prefix:
                raise UsageError(
                    f"`allow_prefix` {prefix} is no object store: bring what lies on the web into one first"
                )


def check_apart(reads: Mapping[str, str], option: str, writes: Iterable[str]) -> None:
    """Refuses an input that lies in a folder of outputs, is one, or holds one.

    Args:
        reads: field of the options → address, as the user gave it: a folder, a glob pattern or one object.
        option: which field names the outputs.
        writes: folders.

    Raises:
        UsageError: names both, and the way out.
    """
    for folder in writes:
        written = _in_store(folder) + "/"
        for name, address in reads.items():
            read = _reach(address)
            if read.startswith(written) or written.startswith(read):
                how = "is" if read == written else "lies in" if read.startswith(written) else "may reach into"
                raise UsageError(
                    f"`{name}` {address} {how} {written.rstrip('/')}, which this command writes: "
                    f"give another `{option}`, such as a new folder beside the input, or name the input more closely"
                )


def check_outside(option: str, address: str, folders: Iterable[str], what: str) -> None:
    """Refuses an address that is one of these folders or lies in one.

    Raises:
        UsageError: names both.
    """
    for folder in folders:
        if (_in_store(address) + "/").startswith(_in_store(folder) + "/"):
            raise UsageError(f"`{option}` {address} lies in {what} {folder}: give a place outside of it")


def _reach(address: str) -> str:
    """What all names at an address begin with: a folder with its `/`, or a pattern up to its first `*`, `?` or `[`."""
    named = _in_store(address)
    start = storage.GLOB.split(named, maxsplit=1)[0]
    return start if start != named else named + "/"


def _in_store(uri: str) -> str:
    """A `place` by the one name of its store."""
    scheme, dots, path = place(uri).partition("://")
    return f"{SAME.get(scheme, scheme)}{dots}{path}"


def place(uri: str) -> str:
    """One name for one place: links, `.`, `..`, `//` and a `/` at the end are resolved; the root is an empty name."""
    if storage.is_local(uri):
        return storage.absolute(uri).rstrip("/")
    scheme, _, path = uri.partition("://")
    return f"{scheme.lower()}://{posixpath.normpath(path).rstrip('/')}"
