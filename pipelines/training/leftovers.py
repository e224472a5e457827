"""What is kept for reuse and needed no more, removed by name: features, records of evaluations, checkpoints.

| folder | is needed while |
|---|---|
| `features/KEY` | a run that has marked it is unfinished |
| `evaluations/KEY` | a model that has marked it bears an alias (champion, challenger …) |
| `runs/NAME` | it is unfinished; of a finished one checkpoints and initial weights go, and all else stays |

A folder in which anything is younger than a day is left: somebody may be at work. What is freed can be computed again.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipelines import storage
from pipelines.models import artifacts, weights
from pipelines.staging import uses
from pipelines.staging.pieces import PIECE, UNFINISHED
from pipelines.storage import StoredFile
from pipelines.training.runs import CHECKPOINT

YOUNG_HOURS = 24.0
KINDS = ("features", "evaluations", "runs")
KEY = re.compile(r"[0-9a-f]{12}")
CHECKPOINT_FILE = re.compile(
    rf"{CHECKPOINT.pattern}/(weights\.safetensors|optimizer\.pt|progress\.json|validation\.json)"
)


@dataclass(frozen=True)
class Folder:
    """One folder of what is kept."""

    uri: str
    needed_by: str
    files: Sequence[StoredFile]

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.uri.rsplit("/", 2)[1]


Needs = Callable[[str], str]
"""Who needs what a model, such as `models:/NAME/VERSION`, has marked; empty if nobody does."""


def find(uri: str, needs: Needs) -> list[Folder]:
    """What is kept below a storage's URI, and who needs it.

    Args:
        uri: the `--storage` of trainings and evaluations, or a folder of tables.
        needs: tells who needs what a model has marked.

    Raises:
        StorageError: the store kept failing.
    """
    root = storage.absolute(uri)
    return [
        _look(folder, files, needs)
        for kind in KINDS
        for folder, files in _by_folder(storage.join(root, kind)).items()
        if kind == "runs" or KEY.fullmatch(folder.rsplit("/", 1)[-1])
    ]


def remove(folder: Folder, needs: Needs) -> list[StoredFile]:
    """Removes what nobody needs of a folder, which is looked at once more; returns what is gone.

    Raises:
        StorageError: the store kept failing.
    """
    parent = folder.uri.rsplit("/", 1)[0]
    again = _look(folder.uri, _by_folder(parent, folder.uri).get(folder.uri, {}), needs)
    if again.needed_by:
        return []
    for file in again.files:
        storage.delete_listed(file)
    return list(again.files)


def _by_folder(parent: str, only: str = "") -> dict[str, dict[str, StoredFile]]:
    """Files below each folder of a parent, or below one of them, by their path in it."""
    found: dict[str, dict[str, StoredFile]] = defaultdict(dict)
    for file in storage.list_all(only or parent):
        name, _, path = file.uri.removeprefix(parent + "/").partition("/")
        if path and not file.is_link:
            found[storage.join(parent, name)][path] = file
    return dict(sorted(found.items()))


def _look(folder: str, files: dict[str, StoredFile], needs: Needs) -> Folder:
    is_run = folder.rsplit("/", 2)[1] == "runs"
    return _run(folder, files) if is_run else _staged(folder, files, needs)


def _staged(folder: str, files: dict[str, StoredFile], needs: Needs) -> Folder:
    own = [file for path, file in files.items() if _is_piece(path) or uses.MARK.fullmatch(path)]
    marks = [file for path, file in files.items() if uses.MARK.fullmatch(path)]
    runs = storage.join(folder.rsplit("/", 2)[0], "runs")
    needed = _young(files) or next(filter(None, (_user(mark, runs, needs) for mark in marks)), "")
    return Folder(folder, needed, own)


def _is_piece(path: str) -> bool:
    unfinished = UNFINISHED.fullmatch(path)
    return PIECE.fullmatch(unfinished["name"] if unfinished else path) is not None


def _user(mark: StoredFile, runs: str, needs: Needs) -> str:
    """Who needs what this mark is in; empty if nobody does. A mark is believed as it is, and leads nowhere else."""
    use = uses.read(mark.uri) if mark.size <= uses.MAX_MARK else None
    if use is None:
        return f"{mark.uri}, which cannot be read"
    if use.kind == uses.MODEL:
        return needs(use.user)
    if use.user.rsplit("/", 1)[0] != runs:
        return f"{use.user}, as {mark.uri} says"
    started = storage.exists(storage.join(use.user, "run.json"))
    return use.user if started and not _is_finished(use.user) else ""


def _run(folder: str, files: dict[str, StoredFile]) -> Folder:
    initial = set(_initial(folder, files))
    going = [file for path, file in files.items() if CHECKPOINT_FILE.fullmatch(path) or path in initial]
    finished = "run.json" in files and _is_finished(folder)
    return Folder(folder, _young(files) or ("" if finished else "it is unfinished"), going)


def _is_finished(run: str) -> bool:
    """Whether a run has been trained to the end, and its model is registered: else it goes on with its checkpoints."""
    try:
        summary = json.loads(storage.read_text(storage.join(run, "summary.json")))
        return bool(summary["model_version"]) and storage.exists(storage.join(run, "artifact", weights.CONFIG))
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # damaged: nothing is taken from it
        return False


def _initial(folder: str, files: dict[str, StoredFile]) -> Iterator[str]:
    """Paths of the untrained model's files."""
    place = "initial/" + weights.CONFIG
    if place not in files:
        return
    try:
        assets = json.loads(storage.read_text(storage.join(folder, place)))["assets"]
        names = [weights.CONFIG, weights.WEIGHTS, artifacts.CARD, *assets]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return
    yield from (f"initial/{name}" for name in names)


def _young(files: dict[str, StoredFile]) -> str:
    before = _now() - timedelta(hours=YOUNG_HOURS)
    return "somebody, within the last day" if any(file.modified > before for file in files.values()) else ""


def _now() -> datetime:
    return datetime.now(UTC)
