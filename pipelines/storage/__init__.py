"""A URI → files: the only package that distinguishes `s3://` from `file://`. All others write `storage.NAME`.

URIs are plain paths (`./lake`), `file:///…` or `s3://bucket/prefix`; any other scheme is a usage error. S3 is
configured by the standard variables alone: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION.
"""

from pipelines.storage.addresses import (
    ArchivedError,
    ForbiddenError,
    StorageError,
    absolute,
    check_scheme,
    failed,
    is_local,
    join,
    scheme,
)
from pipelines.storage.listing import GLOB, StoredFile, list_all, list_files, list_folders
from pipelines.storage.lookup import FileInfo, exists, info, look_up, wait_for
from pipelines.storage.reading import (
    READ_BUFFER,
    finish_reading,
    open_input,
    read_bytes,
    read_ends,
    read_listed,
    read_text,
    readable,
    start_reading,
)
from pipelines.storage.writing import (
    Existing,
    IsOwn,
    anything,
    beside,
    check_replaceable,
    check_writable,
    delete,
    delete_listed,
    has_digest,
    in_claimed,
    nothing,
    write_bytes,
    write_new,
)

__all__ = [
    "GLOB",
    "READ_BUFFER",
    "ArchivedError",
    "Existing",
    "FileInfo",
    "ForbiddenError",
    "IsOwn",
    "StorageError",
    "StoredFile",
    "absolute",
    "anything",
    "beside",
    "check_replaceable",
    "check_scheme",
    "check_writable",
    "delete",
    "delete_listed",
    "exists",
    "failed",
    "finish_reading",
    "has_digest",
    "in_claimed",
    "info",
    "is_local",
    "join",
    "list_all",
    "list_files",
    "list_folders",
    "look_up",
    "nothing",
    "open_input",
    "read_bytes",
    "read_ends",
    "read_listed",
    "read_text",
    "readable",
    "scheme",
    "start_reading",
    "wait_for",
    "write_bytes",
    "write_new",
]
