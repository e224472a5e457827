"""`python -m tests.chaos.hurried SECONDS …`: `hybrid …` for which an hour of a file's age takes so many seconds.

Nothing younger than a day is ever tidied, and no option makes it less. Here all ages that upkeep knows are shortened
alike, so that what it does in a week is seen in minutes.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from jobs.command import cli
from pipelines.nights import upkeep


def hours_take(seconds: float) -> None:
    """Of all ages that upkeep of this process knows."""
    upkeep.timedelta = lambda hours: timedelta(seconds=hours * seconds)  # type: ignore[assignment, misc]


def command(seconds: float, *argv: str) -> list[str]:
    """`hybrid …` in such a hurry, as this interpreter runs it."""
    return [sys.executable, "-m", "tests.chaos.hurried", str(seconds), *argv]


if __name__ == "__main__":
    hours_take(float(sys.argv.pop(1)))
    cli.main()
