"""What an address is, and the client of its store; a store's errors as one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_models.errors import UsageError
from pipelines.secrets import shown

if TYPE_CHECKING:
    import fsspec

CLIENT = {
    "user_agent": "hybrid-pipelines",
    "response_checksum_validation": "when_required",
    "max_pool_connections": 64,
}
"""Of the S3 client: what it says of itself is not made up anew for each request, which takes longer than sending it;
and with ten connections, its default, no more requests are under way at a time, however many are asked for."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ARCHIVED = "InvalidObjectState"
FORBIDDEN = {"AccessDenied", "AllAccessDisabled", ARCHIVED}
"""What S3 says where it refuses an object to somebody whom it knows."""
SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://", re.IGNORECASE)
TORN = re.compile(r"(?P<scheme>s3[an]?|gc?s|abfss?|az|hdfs|https?|s?ftp|file|local|memory):", re.IGNORECASE)
"""An address that lacks a slash, such as `s3:/lake`: on a disk it would be a folder of that name."""
SCHEMES = ("s3", "file")
"""Every other scheme, or alias of one (`local://`, `s3a://`, `S3://`), is refused: an object has one address."""
READS = {"look up", "list", "open", "read"}
UNSAID = "403"
"""Its answer without a reason, as to all requests for an object's state."""


class StorageError(RuntimeError):
    """Object storage could not do what was asked; the message names the object, the operation and the cause."""


class ForbiddenError(StorageError):
    """The store knows who asks, and does not give this one object."""


class CredentialsError(StorageError):
    """There are none, or the store does not know them: a new start fails alike."""


class ArchivedError(ForbiddenError):
    """Nobody gets it, until it is brought back from an archive."""


def is_local(uri: str) -> bool:
    """Whether a URI is on a disk of this machine."""
    return "://" not in uri or uri.startswith("file://")


def is_s3(uri: str) -> bool:
    """Whether a URI is in an S3 store."""
    return uri.startswith("s3://")


def check_scheme(uri: str) -> None:
    """Refuses an address of an unknown kind.

    Raises:
        UsageError: it is neither `s3://…`, `file://…` nor a path; says what to write.
    """
    whole, torn = SCHEME.match(uri), TORN.match(uri)
    if not (whole or torn or "://" in uri) or (whole and whole["scheme"] in SCHEMES):
        return
    name = torn["scheme"].lower() if torn else ""
    name = {"s3a": "s3", "s3n": "s3", "local": "file"}.get(name, name)
    rest = uri[torn.end() :].lstrip("/") if torn else ""
    meant = f"{name}://{'/' * (name == 'file')}{rest}" if name in SCHEMES else "s3://BUCKET/KEY, file:///PATH or a path"
    raise UsageError(f"{shown(uri)} is no address of a known kind: write {shown(meant)}")


def absolute(uri: str) -> str:
    """The same place as a URI that does not depend on the working directory: an absolute path, or the URI itself.

    Raises:
        UsageError: it is empty; it holds a password or token, which would be stored with every row; or its scheme is
            unknown or lacks a slash.
    """
    if not uri.strip():
        raise UsageError("an address is empty: is a variable not set?")
    check_scheme(uri)
    if is_local(uri):
        return str(Path(uri.removeprefix("file://")).expanduser().resolve())
    if shown(uri) != uri:
        raise UsageError(
            f"{shown(uri)} holds a password or token, which tables and pages would show: take it from the address "
            "and set AWS_…"
        )
    return uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    """Appends path parts to a URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and its own path of a URI. Listings are never cached: other jobs write at the same time."""
    import fsspec  # takes longer to import than a help text to print

    place = absolute(uri)
    options: dict[str, Any] = {"use_listings_cache": False, "config_kwargs": CLIENT} if is_s3(place) else {}
    try:
        fs = fsspec.filesystem("s3" if is_s3(place) else "file", **options)
    except ImportError as error:
        raise UsageError(f"cannot open {uri}: {shown(str(error))} (pip install s3fs)") from error
    return fs, str(fs._strip_protocol(place))


def scheme(uri: str) -> str:
    """`s3://` and the like, which fsspec's own paths lack; nothing for a disk."""
    return "" if is_local(uri) else uri.split("://", 1)[0] + "://"


def failed(operation: str, uri: str, error: Exception) -> StorageError:
    """An error of a store's client as one line: what was tried on which object, why it failed, what to check."""
    text = ANSI.sub("", str(error))
    cause = ": ".join(line.strip(" ↳") for line in text.splitlines() if line.strip())[:400] or type(error).__name__
    told = f"cannot {operation} {shown(uri)}: {shown(cause)}"
    if operation in READS and isinstance(error, PermissionError) and _is_forbidden(uri, error):
        return ArchivedError(told) if _code(error) == ARCHIVED else ForbiddenError(told)
    hint = ""
    if is_local(uri):
        return StorageError(told)
    if "AccessKeyId" in cause or "ignature" in cause:
        return CredentialsError(f"{told}; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if "locate credentials" in cause:
        return CredentialsError(
            f"{told}; set the AWS_… credentials or a role on this machine, or give a job yours: "
            "`hybrid submit --env-values`"
        )
    if isinstance(error, PermissionError):
        hint = "; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    elif re.search(r"connect\b|credentials", cause, re.IGNORECASE):
        hint = "; check AWS_ENDPOINT_URL and the AWS_… credentials"
    return StorageError(f"{told}{hint}")


def _is_forbidden(uri: str, error: PermissionError) -> bool:
    """Whether it is this object that nobody gives us, and not that our keys are wrong, or too old."""
    if is_local(uri):
        return True
    code = _code(error)
    fs, path = filesystem(uri)
    if code == UNSAID and hasattr(fs, "call_s3"):
        bucket, key, _ = fs.split_path(path)
        try:
            fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        except PermissionError as refused:
            code = _code(refused)
        except Exception:  # it does not matter why: the first error is what is told
            return False
        else:
            return True
    return code in FORBIDDEN


def _code(error: BaseException) -> str:
    """The name that S3 has for an error."""
    response = getattr(error.__cause__, "response", None)  # of others' errors not a dict
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
