"""THE prediction path: a model, how it decodes and what a row may cost, from raw rows to predictions.

Nights, evaluation, promotion, the report, the pyfunc and Python predict through here, so that a row gets the same
prediction from all of them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from hybrid_models.inputs import Cut, Sample
from hybrid_models.interface import DecodingConfig
from pipelines.models import artifacts
from pipelines.models.ahead import made_ahead
from pipelines.models.artifacts import Artifact
from pipelines.models.suspects import Note, Rows, halve
from pipelines.reading.limits import Limits
from pipelines.reading.samples import Decode, unpack

if TYPE_CHECKING:
    from hybrid_models.contract import Batch, Hybrid
    from hybrid_models.explanations import Explanation

log = logging.getLogger(__name__)
T = TypeVar("T")
NOTES = {"decoding": b"hybrid.decoding", "limits": b"hybrid.limits", "cut": b"hybrid.cut"}
"""Keys under which predictions keep how they were made."""
# Large grids fill memory before a batch is full, and gain nothing from company: a window of 10 frames of 512 x 512 is
# 5 MB, and a nowcast takes 0.4 GiB and 1.5 s on one CPU; eight of them at once 3.1 GiB and 2.3 s each.
BATCH_BYTES = 16 << 20
BATCH_OUTPUT_BYTES = 64 << 20
"""A nowcast needs about sixteen times the memory of its output while it is made."""
ALONE = nullcontext()
"""Nobody else works with the model."""


@dataclass(frozen=True)
class Inference:
    """All that decides a prediction; small enough to travel to every worker."""

    artifact: Artifact
    decoding: DecodingConfig
    limits: Limits = field(default_factory=Limits)
    keep: tuple[str, ...] = ()
    cut: Cut | None = None

    @classmethod
    def of(cls, artifact: Artifact, limits: Limits | None = None, cut: Cut | None = None) -> Inference:
        """The model as its recipe means it to decode."""
        return cls(artifact, artifact.decoding, limits or Limits(), cut=cut)

    @classmethod
    def noted(cls, artifact: Artifact, metadata: Mapping[bytes, bytes]) -> Inference:
        """As `note` tells; what it does not tell is the recipe's.

        Raises:
            UsageError: another version wrote it, which had other options.
        """
        given = {kind: json.loads(metadata.get(key, b"{}")) for kind, key in NOTES.items()}
        decoding = artifacts.override(artifact.decoding, given["decoding"])
        cut = Cut(**given["cut"]) if given["cut"] else None
        return cls(artifact, decoding, artifacts.parse(Limits, given["limits"], "limits"), cut=cut)

    @property
    def note(self) -> dict[bytes, bytes]:
        """How it predicts, for the metadata of what is predicted."""
        told = {key: getattr(self, kind) for kind, key in NOTES.items()}
        return {key: json.dumps(asdict(value)).encode() for key, value in told.items() if value is not None}

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides an output."""
        predicted = self.artifact.fingerprint(self.decoding, self.limits)
        rows = {"keep": self.keep, "cut": None if self.cut is None else self.cut.decisive}
        given = {name: value for name, value in rows.items() if value}
        return artifacts.fingerprint({"predicted": predicted, **given}) if given else predicted

    def decode(self, with_target: bool = False) -> Decode:
        """Raw rows → samples, without the model: it travels to whoever reads."""
        preprocess = self.artifact.interface.preprocess(self.artifact.config, self.artifact.assets)
        return Decode(preprocess, self.limits, with_target, self.keep, self.cut)

    def load(self, device: str = "cpu") -> Session:
        """The model with its weights.

        Raises:
            UsageError: the weights do not belong to the configuration.
        """
        import torch

        from hybrid_models.contract import compute_exactly

        compute_exactly(torch.device(device))
        hybrid = self.artifact.load().requires_grad_(False).to(device)
        return Session(hybrid, self.decoding, self.limits, self.cut)


class Session:
    """A loaded model with its decoding options and limits."""

    def __init__(self, hybrid: Hybrid, decoding: DecodingConfig, limits: Limits, cut: Cut | None = None) -> None:
        self.hybrid, self.decoding, self.limits, self.cut = hybrid, decoding, limits, cut

    def override(self, changes: Mapping[str, Any]) -> Session:
        """The same loaded model with some of its decoding options changed.

        Raises:
            UsageError: an option is unknown or has the wrong type.
        """
        return Session(self.hybrid, artifacts.override(self.decoding, changes), self.limits, self.cut)

    def decode(self, with_target: bool = False) -> Decode:
        """Raw rows → samples."""
        preprocess = self.hybrid.preprocess(self.hybrid.config, self.hybrid.assets)
        return Decode(preprocess, self.limits, with_target, cut=self.cut)

    def predict(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """One dict of the payload's columns for each sample, all of them in one forward pass."""
        return self.infer(self.collate(samples))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples as a batch on the model's device; what a thread can do ahead of `infer`."""
        import torch  # takes seconds: only where there is something to predict

        from hybrid_models.contract import module_device, to_device

        with torch.inference_mode():
            return to_device(self.hybrid.collate(samples), module_device(self.hybrid))

    def infer(self, batch: Batch) -> list[dict[str, Any]]:
        """One dict of the payload's columns for each sample of what `collate` gave.

        Raises:
            ArithmeticError: a score, or a nowcast's mean, is no number, or has no end: weights are damaged, or too
                large for half precision.
        """
        import torch

        with torch.inference_mode():
            rows = self.hybrid.predict(batch, self.decoding)
        if not all(math.isfinite(number) for row in rows for value in row.values() for number in _floats(value)):
            raise ArithmeticError("the net gives no number: weights are damaged, or too large for half precision")
        return rows

    def explain(self, samples: Sequence[Sample]) -> list[Explanation]:
        """What can be drawn of the way to each sample's prediction."""
        return self.hybrid.eval().explain(samples, self.decoding) if samples else []

    def answer(self, raw: pa.Table, batch_size: int = 32) -> pa.Table:
        """Rows of `RAW_SCHEMA` → payload, `status` and `error`: an output row for each input row, in the same order."""
        samples = self.decode()(raw)
        packed = samples["sample"]
        rows: list[dict[str, Any]] = [
            {"status": "ok" if error is None else "error", "error": error} for error in samples["error"].to_pylist()
        ]

        def collated(batch: Rows) -> Batch:
            return self.collate([unpack(packed[i].as_py()) for i in batch])

        for part, outputs in outcomes(samples, batch_size, collated, self.infer, Note(None)):
            for i, output in by_row(part, outputs):
                rows[i].update(output)
        schema = pa.schema([*self.hybrid.payload_schema, ("status", pa.string()), ("error", pa.string())])
        return pa.Table.from_pylist(rows, schema=schema)


def _floats(value: Any) -> list[float]:
    """A float column's number, or a list's."""
    return [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, float)]


def outcomes(
    samples: pa.Table,
    batch_size: int,
    make: Callable[[Rows], T],
    work: Callable[[T], list[Any]],
    note: Note,
    failed: Callable[[], None] = lambda: None,
    ahead: int = 0,
    room: int = 1,
    turn: AbstractContextManager[Any] = ALONE,
) -> Iterator[tuple[Rows, list[Any] | str]]:
    """Positions of good rows with an output each, or of one row with why the model cannot work on it.

    Args:
        samples: rows of `SAMPLE_SCHEMA`.
        batch_size: at most so many at once.
        make: positions of rows → what `work` takes.
        work: that → one output for each row.
        note: of this process, for the one that comes after it.
        failed: is called when the model has failed on some rows, before anybody knows on which of them.
        ahead: so many batches are made by a thread while an earlier one is worked on; none where a process has died of
            these samples, so that the note tells what the next one dies of.
        room: see `batches`.
        turn: is entered for all of the model's work, when the first batch is being made: others may work with the same
            model in theirs.
    """
    with note:
        coming = made_ahead(make, batches(samples, batch_size, room), 0 if note.inherited else ahead)
        for batch, made in _in_turn(coming, turn):

            def worked(rows: Rows, batch: Rows = batch, made: Callable[[], T] = made) -> list[Any]:
                return work(made() if rows == batch else make(rows))

            for part, outputs in halve(batch, worked, note, failed):
                if isinstance(outputs, str):
                    row = samples.select(["shard", "index", "object"]).slice(part[0], 1).to_pylist()[0]
                    log.warning("%s row %d: %s", row["object"] or row["shard"], row["index"], outputs, extra=row)
                yield part, outputs


def _in_turn(things: Iterator[T], turn: AbstractContextManager[Any]) -> Iterator[T]:
    """The same things; `turn` is entered when the first of them has come, and left after the last."""
    for first in islice(things, 1):
        with turn:
            yield first
            yield from things


def by_row(part: Sequence[int], outputs: list[dict[str, Any]] | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """What `outcomes` gives, row by row: the payload's columns, or `status` and `error`."""
    if isinstance(outputs, str):
        yield part[0], {"status": "error", "error": outputs}
    else:
        yield from zip(part, outputs, strict=True)


def batches(samples: pa.Table, batch_size: int, room: int = 1) -> Iterator[Rows]:
    """Positions of good rows, in batches of similar length and bounded memory; error rows are left out.

    Args:
        samples: rows of `SAMPLE_SCHEMA`.
        batch_size: samples in one batch at most.
        room: of a GPU's memory: so many times as many samples, and bytes.
    """
    batch_size, most_bytes, most_output = room * batch_size, room * BATCH_BYTES, room * BATCH_OUTPUT_BYTES
    lengths, sizes = samples["length"].to_pylist(), pc.binary_length(samples["sample"]).to_pylist()
    outputs = samples["output_bytes"].to_pylist()
    batch: list[int] = []
    held = largest = 0
    for i in sorted((i for i, length in enumerate(lengths) if length is not None), key=lambda i: lengths[i]):
        largest = max(largest, outputs[i])  # of samples that differ in length, the longest one's is made of all
        full = len(batch) == batch_size or held + sizes[i] > most_bytes
        if batch and (full or largest * (len(batch) + 1) > most_output):
            yield tuple(batch)
            batch, held, largest = [], 0, outputs[i]
        batch.append(i)
        held += sizes[i]
    if batch:
        yield tuple(batch)
