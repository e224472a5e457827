"""Failures that would come again in the same way: they end a training at once.

Ray starts a failed worker group anew, `max_failures` times: right for a machine that died, a waste of hours for
gradients that are not finite. So the worker that fails in such a way keeps word of it in the run's folder, workers that
are started again read it and do not begin, and the driver raises the error that was meant.
"""

from __future__ import annotations

import builtins
import json
import logging
import re
import traceback
from dataclasses import asdict, dataclass

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.reading.limits import is_memory_error
from pipelines.secrets import shown
from pipelines.training.runs import files_of

log = logging.getLogger(__name__)
FILE = "failure.json"
LASTING = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError)
"""What a mistake in data, options or the program raises; what the world does to it comes as other errors."""
SHAPES = re.compile(r"shape|size of tensor|sizes? must match|same size|dimension", re.IGNORECASE)
"""How torch's RuntimeErrors speak of tensors that do not fit each other."""
KINDS: dict[str, type[Exception]] = {
    "UsageError": UsageError,
    **{
        name: kind
        for name, kind in vars(builtins).items()
        if isinstance(kind, type) and issubclass(kind, (*LASTING, RuntimeError)) and not issubclass(kind, UnicodeError)
    },
}
"""What can be raised again by its name, from one argument; anything else is told as a RuntimeError."""


@dataclass(frozen=True)
class Failure:
    """What is kept of one; its message and trace have no passwords."""

    attempt: str
    kind: str
    message: str
    trace: str

    def error(self) -> Exception:
        """The error again, with the worker's traceback as a note."""
        known = KINDS.get(self.kind)
        error = RuntimeError(f"{self.kind}: {self.message}") if known is None else known(self.message)
        error.add_note(f"In a training worker:\n{self.trace}")
        return error


def comes_again(error: BaseException) -> bool:
    """Whether a new start would fail in the same way."""
    if is_memory_error(error) or isinstance(error, OSError | storage.StorageError):
        return False
    return isinstance(error, LASTING) or (isinstance(error, RuntimeError) and bool(SHAPES.search(str(error))))


def keep(run: str, attempt: str, error: Exception) -> None:
    """Notes a failure in a run's folder, if it would come again."""
    if not comes_again(error):
        return
    trace = "".join(traceback.format_exception(error))
    failure = Failure(attempt, type(error).__name__, shown(str(error)), shown(trace))
    try:
        storage.write_bytes(storage.join(run, FILE), json.dumps(asdict(failure)).encode(), files_of(run))
    except storage.StorageError as trouble:  # then the training is started again, and fails again
        log.warning("%s", trouble)


def kept(run: str, attempt: str) -> Failure | None:
    """What ended this attempt already; None if nothing did, or if word of it is damaged.

    Raises:
        StorageError: the store kept failing.
    """
    try:
        failure = Failure(**json.loads(storage.read_text(storage.join(run, FILE))))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return failure if failure.attempt == attempt else None
