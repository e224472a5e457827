"""Every command that has a help text, from the lists that the command line itself goes by."""

from __future__ import annotations

from hybrid_models import TABLES
from jobs import nightly, prepare, tables
from jobs.command import cli
from jobs.command.options import TASKS
from jobs.recipes import RECIPES

TABLE = next(iter(TABLES.values()))
FURTHER = {
    "prepare": list(prepare.SOURCES),
    "train": RECIPES,
    "promote": ["captioner"],
    "infer": TASKS,
    "nightly": [*TASKS, nightly.ALL_TASKS],
    "tables": [*tables.VERBS, f"restore {TABLE}", f"compact {TABLE}"],
}
"""What may follow a verb, of verbs that go on with other words than options."""


def of(verb: str) -> list[list[str]]:
    """The words before each `--help` of a verb: the verb alone, and with what may follow it."""
    return [[verb], *([verb, *words.split()] for words in FURTHER.get(verb, []))]


def every() -> list[list[str]]:
    """Those of all verbs."""
    return [words for verb in cli.VERBS for words in of(verb)]
