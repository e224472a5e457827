"""What a nowcaster reads: how radar windows and clips become samples. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Inputs, Preprocess, Sample, Window
from hybrid_models.nowcaster.config import COLOURS, NowcasterConfig, Unit

IMPOSSIBLE_MM_H = 2000.0
"""More than any radar has measured: the unit must be wrong."""
MOST_LEADS = 1000
"""More lead times than any radar or video needs are a wrong time step."""
GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Red, green and blue in the brightness of a pixel (ITU-R BT.601)."""
PIXEL_BYTES: Mapping[Unit, int] = {"mm/h": 2 + 5, "intensity": 2}
"""Of a nowcast: float16, and for rain one byte for each threshold."""
UNKNOWN_TIME = -1
"""`issue_time` of a sample that has none."""


# ---- rows to samples -----------------------------------------------------------------------------------------------
class NowcasterPreprocess(Preprocess):
    """Checks a window of frames and splits it at the issue time.

    The sample: `past` float16 `[P, H, W]` (mm/h with NaN, or intensity 0 … 1), `step_minutes` float32, `n_leads` int32,
    `issue_time` int64 (microseconds since 1970 UTC, -1 if unknown), `length`; with target `future` float16 `[L, H, W]`.
    In colour frames are `[…, H, W, 3]`, as they are decoded, drawn and kept in the table. float16 keeps rain apart at
    the hundredth below 16 mm/h, finer than radars measure.
    """

    def __init__(self, config: NowcasterConfig) -> None:
        self.config = config
        self.window = Window(config.past_frames, config.horizon_minutes)
        self.visual = config.visual

    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        config = self.config
        step_minutes = _step_minutes(inputs.fields)
        n_leads = int(config.horizon_minutes / step_minutes + 1e-6)
        if n_leads > MOST_LEADS:
            raise BadSample("StepError", f"a step of {step_minutes:g} min makes {n_leads} leads, at most {MOST_LEADS}")
        if n_leads < 1:
            raise BadSample(
                "StepError", f"a step of {step_minutes:g} min exceeds the horizon, {config.horizon_minutes} min"
            )
        needed = config.past_frames + (n_leads if with_target else 0)
        frames = self._frames(inputs.media, needed)
        past, future = frames[: config.past_frames], frames[config.past_frames :]
        if not np.isfinite(past[-1]).any():
            raise BadSample("CoverageError", "the newest frame is missing everywhere: nothing to start a nowcast from")
        sample: dict[str, Any] = {
            "past": past,
            "step_minutes": np.float32(step_minutes),
            "n_leads": np.int32(n_leads),
            "issue_time": np.int64(_issue_time(inputs.fields)),
            "length": np.int64(config.past_frames + n_leads),
        }
        if with_target:
            if not np.isfinite(future).any():
                raise BadSample("CoverageError", "the observed future is missing everywhere: nothing to learn from")
            sample["future"] = future
        return {name: np.asarray(value) for name, value in sample.items()}

    def output_bytes(self, sample: Sample) -> int:
        config = self.config
        pixels = int(sample["n_leads"]) * config.height * config.width
        return pixels * math.prod(config.pixel_shape) * PIXEL_BYTES[config.unit]

    def _frames(self, media: np.ndarray | None, needed: int) -> np.ndarray:
        """The first `needed` frames as float16, in the sample's unit."""
        config = self.config
        if media is None:
            raise BadSample("MediaError", "the row has no frames: expected an array [time, height, width]")
        in_colour = media.ndim == 4 and media.shape[3] == COLOURS and config.unit == "intensity"
        if media.ndim != 3 and not in_colour:
            also = " or, in colour, [time, height, width, 3]" if config.unit == "intensity" else ""
            raise BadSample("ShapeError", f"frames of shape {media.shape}: expected [time, height, width]{also}")
        if media.shape[1:3] != (config.height, config.width):
            has, wants = "×".join(map(str, media.shape[1:3])), f"{config.height}×{config.width}"
            fix = "cut it with `hybrid prepare radar --crop` or train for this grid"
            raise BadSample("GridError", f"the grid is {has}, the model's is {wants}: {fix}")
        if len(media) < needed:
            raise BadSample("LengthError", f"{len(media)} frames where {needed} are needed")
        frames = self._seen(media[:needed]).astype(np.float32)
        top, unit = (IMPOSSIBLE_MM_H, "mm/h") if config.unit == "mm/h" else (255.0, "intensity")
        lowest, highest = np.fmin.reduce(frames, axis=None), np.fmax.reduce(frames, axis=None)
        if lowest < 0 or highest > top:
            raise BadSample("RangeError", f"values from {lowest:g} to {highest:g}: {unit} lies within 0 … {top:g}")
        return (frames if config.unit == "mm/h" else frames / 255).astype(np.float16)

    def _seen(self, media: np.ndarray) -> np.ndarray:
        """Frames in the model's shape: video in colour `[time, H, W, 3]` or in grey `[time, H, W]`, rain as it is."""
        in_colour = media.ndim == 4
        if in_colour and not self.config.colour:
            return np.asarray((media @ GREY).round().astype(np.uint8))
        if self.config.colour and not in_colour:
            return np.broadcast_to(media[..., None], (*media.shape, COLOURS))
        return media


def _step_minutes(fields: Mapping[str, Any]) -> float:
    """Minutes between frames; 1 for video, whose leads are counted in frames."""
    value = fields.get("step_minutes")
    try:
        step = 1.0 if value is None else float(value)
    except (TypeError, ValueError):
        step = float("nan")
    if not 0 < step < float("inf"):
        raise BadSample("StepError", f"step_minutes is {value!r}: it must be a positive number")
    return step


def _issue_time(fields: Mapping[str, Any]) -> int:
    """Microseconds since 1970 UTC; a time without zone is UTC."""
    text = fields.get("issue_time")
    if text is None:
        return UNKNOWN_TIME
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise BadSample("TimeError", f"issue_time is {text!r}: it must be an ISO 8601 time") from None
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
