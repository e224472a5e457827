"""What a recogniser reads: how clips and their labels become samples. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Inputs, Preprocess, Sample
from hybrid_models.recogniser.config import RecogniserConfig
from hybrid_models.text import pack_json

LABELS = "labels.json"
MAX_LABELS = 1000
"""With more, a field was named that is no label."""
MAX_CHARACTERS = 200
"""Of a label."""


def label_of(config: RecogniserConfig, fields: Mapping[str, Any]) -> str:
    """A row's label.

    Raises:
        BadSample: `LabelMissing`, `LabelTooLong`.
    """
    value = fields.get(config.label)
    label = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not label:
        raise BadSample("LabelMissing", f"field '{config.label}' holds no text or whole number")
    if len(label) > MAX_CHARACTERS:
        raise BadSample("LabelTooLong", f"{len(label):,} characters, at most {MAX_CHARACTERS} are allowed")
    return label


def learn_labels(texts: Iterable[str]) -> str:
    """The different labels in order, a JSON list.

    Raises:
        UsageError: there is none, or but one, or far too many.
    """
    labels: set[str] = set()
    for text in texts:
        labels.add(text)
        if len(labels) > MAX_LABELS:
            raise UsageError(f"there are more than {MAX_LABELS} different labels: name another field by `model.label`")
    if len(labels) < 2:
        raise UsageError(f"{len(labels)} different labels in the training data: `model.label` names their field")
    return json.dumps(sorted(labels), ensure_ascii=False)


def read_labels(assets: Mapping[str, str]) -> list[str]:
    """The labels among the assets.

    Raises:
        UsageError: there are none.
    """
    try:
        labels = json.loads(assets[LABELS])
    except (KeyError, ValueError, RecursionError) as error:
        raise UsageError(f"the recogniser has no whole {LABELS} ({error}): restore the artifact's file") from None
    whole = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not whole or not 2 <= len(set(labels)) == len(labels) <= MAX_LABELS:
        raise UsageError(f"{LABELS} is no list of 2 to {MAX_LABELS} different labels: restore the artifact's file")
    return [str(label) for label in labels]


def training_texts(config: RecogniserConfig, fields: Mapping[str, Any]) -> list[str]:
    """A row's label. None from a bad row."""
    try:
        return [label_of(config, fields)]
    except BadSample:
        return []


class RecogniserPreprocess(Preprocess):
    """Checks frames: `frames` uint8 [T,H,W,3], where known `times` float32 [T] (seconds), `frame_count`, `length`; for
    training `label`, its number, and `reference`, its text, which is the same to models of other labels."""

    def __init__(self, config: RecogniserConfig, assets: Mapping[str, str]) -> None:
        self.config = config
        self.visual = config.visual
        self._numbers = {label: number for number, label in enumerate(read_labels(assets))}

    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        size, frames = self.config.image_size, inputs.media
        if frames is None:
            raise BadSample("MediaMissing", "the row has no clip")
        if frames.dtype == np.uint8 and frames.ndim == 3:
            frames = self._coloured(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (size, size, 3) or len(frames) == 0:
            raise BadSample(
                "MediaShape",
                f"media is {frames.dtype} {list(frames.shape)}, not uint8 [t, {size}, {size}, 3] or [t, y, x]",
            )
        count = np.asarray(len(frames), dtype=np.int64)
        sample = {"frames": frames, "frame_count": count, "length": count}
        if inputs.times is not None:
            sample["times"] = inputs.times
        if with_target:
            label = label_of(self.config, inputs.fields)
            if label not in self._numbers:
                raise BadSample("UnknownLabel", f"'{label}' is none of {', '.join(self._numbers)}"[:MAX_CHARACTERS])
            sample["label"] = np.asarray(self._numbers[label], dtype=np.int64)
            sample["reference"] = pack_json(label)
        return sample

    def _coloured(self, grey: np.ndarray) -> np.ndarray:
        """The wanted ones of grey frames uint8 [T,y,x], resized, with three equal channels."""
        assert self.visual is not None
        side = (self.config.image_size, self.config.image_size)
        chosen = [Image.fromarray(grey[i]) for i in self.visual.positions(len(grey))]
        return np.stack([np.asarray(each.resize(side, Image.Resampling.BICUBIC).convert("RGB")) for each in chosen])
