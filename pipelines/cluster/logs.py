"""Logs on stderr: lines for people, or with HYBRID_LOG_FORMAT=json one JSON object a line for what collects logs."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from pipelines.secrets import shown

FORMAT = "HYBRID_LOG_FORMAT"
QUIET = {
    **dict.fromkeys(("alembic", "httpx", "aiobotocore", "botocore", "fsspec", "s3fs"), logging.WARNING),
    "mlflow": logging.ERROR,  # it warns of every model without a signature
}
OWN = ("shard", "index", "units", "units_done", "rows", "seconds_left")
"""What a single record may know besides the context: `log.warning(…, extra={"shard": …})`. The last four tell how far a
computation is."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, line separators, and marks that change the direction of text."""
_context: ContextVar[dict[str, Any] | None] = ContextVar("context", default=None)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Adds fields, such as `task`, `ds` and `run`, to what this thread logs inside."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def escaped(text: str) -> str:
    """Text for a terminal, which obeys control characters: each becomes `\\u001b` or similar, as in JSON."""
    return CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def configure() -> None:
    """Sets up this process's logging, as HYBRID_LOG_FORMAT says."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = os.environ.get(FORMAT) == "json"
    handler.setFormatter(_Json() if as_json else _Lines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # by which its import would undo what follows
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)


class _Lines(logging.Formatter):
    """Lines without passwords: libraries log addresses, too."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback where there is one."""
        return escaped(shown(super().format(record)))


RECORD = {"time", "level", "logger", "message"}
"""What each of them has."""


def is_record(found: Mapping[str, Any]) -> bool:
    """Whether a line's JSON object is one that was logged, as `_Json` writes it."""
    return found.keys() >= RECORD


class _Json(logging.Formatter):
    """`time` (UTC, ISO 8601), `level`, `logger`, `message`, the context, and `traceback` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": shown(record.getMessage()),
            **(_context.get() or {}),
            **{name: getattr(record, name) for name in OWN if hasattr(record, name)},
        }
        if record.exc_info:
            entry["traceback"] = shown(self.formatException(record.exc_info))
        return escaped(json.dumps(entry, default=str, ensure_ascii=False))
