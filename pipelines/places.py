"""Where a command reads and where it writes: both may lie below one root, but neither in the other.

What is written is tidied, and what lies in a folder of outputs may be taken for an output: one word off in a path must
not cost the input.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote

from hybrid_models.errors import UsageError
from pipelines import storage

Unknown = Literal["skip", "error", "row"]


@dataclass(frozen=True)
class InputOptions:
    """How `input` names what is read."""

    uri_column: str = ""
    """The input is manifests (.parquet, .jsonl, .tsv), of which this column names a photograph, clip, array or text."""
    allow_prefix: tuple[str, ...] = ()
    """What a manifest may name lies below one of these; the manifest's own bucket, or folder on a disk, by default."""
    unknown: Unknown = "skip"
    """What to do with objects that are neither shards nor photographs, clips or arrays: skip and count them, stop with
    an error, or write an error row for each. An input of which more than half would be skipped is refused."""

    def check(self) -> None:
        """Refuses options that do not go together.

        Raises:
            UsageError: says which.
        """
        if self.allow_prefix and not self.uri_column:
            raise UsageError("`allow_prefix` goes with `uri_column`: it bounds what a manifest may name")
        for prefix in self.allow_prefix:
            storage.check_scheme(prefix)


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
        written = normal_form(folder) + "/"
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
        if (normal_form(address) + "/").startswith(normal_form(folder) + "/"):
            raise UsageError(f"`{option}` {address} lies in {what} {folder}: give a place outside of it")


def _reach(address: str) -> str:
    """What all names at an address begin with: a folder with its `/`, or a pattern up to its first `*`, `?` or `[`."""
    named = normal_form(address)
    start = storage.GLOB.split(named, maxsplit=1)[0]
    return start if start != named else named + "/"


def normal_form(uri: str) -> str:
    """What overlap checks compare: `place` without percent escapes, in lower case where the file system ignores case.

    Two addresses of one place have one normal form. Two places may share one, such as `a%20b` and `a b`: delta-rs
    writes the first as the second.
    """
    named = unquote(place(uri))
    if not storage.is_local(uri):
        return named
    parts = PurePosixPath(named or "/").parts[1:]
    folder, ignores_case, normal = Path("/"), False, ""
    for part in parts:
        folder /= part
        ignores_case = _ignores_case(folder, ignores_case)
        normal += "/" + (part.casefold() if ignores_case else part)
    return normal


def _ignores_case(path: Path, parent_does: bool) -> bool:
    """Whether the name of a path stands for the same file in other case; as in its folder, where it does not exist."""
    other = path.with_name(path.name.swapcase())
    try:
        return parent_does if other.name == path.name else other.samefile(path)
    except FileNotFoundError:
        return parent_does and not path.exists()
    except OSError:
        return parent_does


def place(uri: str) -> str:
    """One name for one place: links, `.`, `..`, `//` and a `/` at the end are resolved; the root is an empty name.

    Raises:
        UsageError: the address is of an unknown kind, is empty or holds a password.
    """
    address = storage.absolute(uri)
    if storage.is_local(uri):
        return address.rstrip("/")
    scheme, _, path = address.partition("://")
    return f"{scheme}://{posixpath.normpath(path).rstrip('/')}"
