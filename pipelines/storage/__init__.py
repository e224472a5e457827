"""A URI → files: the only room that knows `s3://` from `file://`. All others write `storage.NAME`.

URIs are plain paths (`./lake`), `file://…`, `s3://bucket/prefix`, or any other scheme that fsspec knows. S3 is
configured by the standard variables alone: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION.
"""

from pipelines.storage.addresses import (
    ArchivedError,
    ForbiddenError,
    StorageError,
    absolute,
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
from pipelines.storage.writing import check_writable, delete, write_bytes, write_new

__all__ = [
    "GLOB",
    "READ_BUFFER",
    "ArchivedError",
    "FileInfo",
    "ForbiddenError",
    "StorageError",
    "StoredFile",
    "absolute",
    "check_writable",
    "delete",
    "exists",
    "failed",
    "finish_reading",
    "info",
    "is_local",
    "join",
    "list_all",
    "list_files",
    "list_folders",
    "look_up",
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
