"""What a user decides about nights: when one is not committed, and what is kept of those before."""

from __future__ import annotations

from dataclasses import dataclass

from hybrid_models.errors import UsageError
from pipelines.reading.limits import MAX_BAD_SHARE

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
    """How long files that a table does not need any more are kept for earlier versions' readers; a day at the least."""

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
