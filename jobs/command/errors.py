"""How a verb ends otherwise than by a mistake or a failure of its own."""

from __future__ import annotations

from typing import Any


class EndedError(Exception):
    """A verb ends with this exit code and message, and with a summary if it has done something."""

    def __init__(self, code: int, message: str, summary: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.summary = summary
