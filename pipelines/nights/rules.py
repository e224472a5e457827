"""What a user decides about nights: when one is not committed, what is kept of those before, what a question costs."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_models.errors import UsageError
from pipelines.reading.limits import MAX_BAD_SHARE, check_positive

MOST_HOURS = 87_600


@dataclass(frozen=True)
class Rules:
    """When a night is not committed."""

    max_error_fraction: float = MAX_BAD_SHARE
    """With more bad samples than this share, nothing is committed (exit code 3)."""
    allow_missing: bool = False
    """A night may lose the rows of shards that it had and that are gone now; else that is refused (exit code 3)."""

    def check(self) -> None:
        """Refuses what is no share.

        Raises:
            UsageError: says what it may be.
        """
        if not 0 <= self.max_error_fraction <= 1:
            raise UsageError(f"`max_error_fraction` is {self.max_error_fraction}: it must be from 0 to 1")


@dataclass(frozen=True)
class Retention:
    """What is kept of a table's past."""

    retain_hours: int = 168
    """How long files that a table does not need any more are kept for earlier versions' readers. What was written
    within a day, or within so long, is not removed either."""

    def check(self) -> None:
        """Refuses to remove files that may be in use.

        Raises:
            UsageError: fewer than one hour; or more than ten years.
        """
        if self.retain_hours < 1:
            raise UsageError(
                f"`retain_hours` is {self.retain_hours}: it must be at least 1, readers and jobs need files"
            )
        if self.retain_hours > MOST_HOURS:
            raise UsageError(f"`retain_hours` is {self.retain_hours}: it must be at most {MOST_HOURS}, ten years")


@dataclass(frozen=True)
class QueryLimits:
    """What one statement may cost."""

    max_memory: int = 2 * 2**30
    """Bytes of memory for sorting, grouping and joining, which go on on disk; reading may need 2 GiB more, and the
    result `max_bytes`."""
    max_disk: int = 16 * 2**30
    """Bytes of temporary files."""
    max_threads: int = 4
    """Threads that compute."""
    max_seconds: float = 600.0
    """Seconds until the statement is ended."""
    max_rows: int = 1_000_000
    """Rows of the result."""
    max_bytes: int = 2**30
    """Bytes of the result."""

    def __post_init__(self) -> None:
        check_positive(self)
