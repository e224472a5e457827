"""What a hybrid shows of its way to a prediction, as arrays; `pipelines.models.pictures` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Alignment:
    """Where a translator looked while it wrote.

    Args:
        source: its words, and `(end)`, the end symbol.
        target: its words.
        weights: float32 [target, source], each row a distribution; none without attention.
    """

    source: Sequence[str]
    target: Sequence[str]
    weights: np.ndarray | None


@dataclass(frozen=True)
class Gaze:
    """What was said of a photograph or clip, and where a captioner looked while it wrote.

    Args:
        frames: uint8 [T,H,W,3], as the encoder sees them; a photograph is one.
        said: the caption, or the label and how sure that is.
        words: of the caption; of a recogniser the label.
        weights: float32 [words, rows, columns], over the grid averaged over the frames; none without attention.
        frame_weights: float32 [words, T], over the frames; none where nothing reads them in order, or there is one. Of
            each word, both together sum to 1.
        times: float32 [T], seconds from the clip's first frame, where they are known.
    """

    frames: np.ndarray
    said: str
    words: Sequence[str]
    weights: np.ndarray | None
    frame_weights: np.ndarray | None = None
    times: np.ndarray | None = None


@dataclass(frozen=True)
class Forecast:
    """What a nowcaster saw, foretold, and what came.

    Args:
        past: [P,H,W], NaN where nothing was measured; of video in colour all frames are […,H,W,3].
        nowcast: [L,H,W], in the unit of `past`.
        observed: [L,H,W], or None if it is not known.
        lead_minutes: [L].
        unit: `mm/h`, or `intensity` 0 … 1.
        chance: [L,H,W], the probability of at least 1 mm/h; None for video.
    """

    past: np.ndarray
    nowcast: np.ndarray
    observed: np.ndarray | None
    lead_minutes: Sequence[float]
    unit: str
    chance: np.ndarray | None = None


Explanation = Alignment | Gaze | Forecast
