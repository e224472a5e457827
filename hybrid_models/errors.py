"""The two kinds of mistake: the user's, and a row's. Free of torch, so that everything may import them."""

from __future__ import annotations


class UsageError(ValueError):
    """The user's mistake: the message is one readable line that names the object and the fix."""


class BadSample(ValueError):  # noqa: N818 - it describes the sample, which becomes an error row
    """A row that cannot be predicted: it becomes an error row `'<kind>: <message>'`; the rest of the night goes on.

    Args:
        kind: the reason's name, counted in summaries, such as `ImageDecodeError`.
        message: what is wrong with this row, for the person who has to mend it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    @classmethod
    def of(cls, reason: str) -> BadSample:
        """The error of a row that says `'<kind>: <message>'`."""
        kind, _, message = reason.partition(": ")
        return cls(kind, message)

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"
