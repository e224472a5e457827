"""A nowcaster's configuration: architecture and preprocessing. Free of torch and of arrays, as help texts show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from hybrid_models.errors import UsageError
from hybrid_models.inputs import Visual
from hybrid_models.interface import HybridConfig

Unit = Literal["mm/h", "intensity"]
"""What pixels are: rain rates, or intensities."""
COLOURS = 3
"""Values of a pixel in colour: red, green and blue."""


@dataclass(frozen=True)
class NowcasterConfig(HybridConfig):
    """Architecture and preprocessing of a nowcaster.

    Raises:
        UsageError: a size or weight is out of its range, or sizes do not fit together.
    """

    not_in_samples: ClassVar[frozenset[str]] = frozenset({"patch", "hidden_dims", "kernel_size", "augment"})

    past_frames: int = 6
    """Frames that the network sees, the newest last."""
    horizon_minutes: int = 60
    """How far ahead it forecasts: as many lead times as time steps fit in."""
    height: int = 256
    """Rows of the grid that samples must have."""
    width: int = 256
    """Columns of the grid that samples must have."""
    unit: Unit = "mm/h"
    """What frames hold: rain rate in mm/h, forecast along its motion, or video of intensities 0 … 255, made 0 … 1, as
    arrays or clips (mp4 …), whose first frames are taken, in grey unless `colour`, and resized."""
    colour: bool = False
    """Forecast video in colour instead of grey: red, green and blue; what is grey has three equal channels."""
    patch: int = 8
    """Side of the square of pixels that becomes one cell of the network's grid."""
    hidden_dims: tuple[int, ...] = (32,)
    """Channels of each ConvLSTM layer; for rain the same in encoder and forecaster."""
    kernel_size: int = 3
    """Width of the ConvLSTMs' square kernels; odd."""
    augment: bool = True
    """Train on random quarter turns and mirror images too; off where up is not down."""

    def __post_init__(self) -> None:
        self.check_ranges(("past_frames", "horizon_minutes", "height", "width", "patch", "kernel_size"))
        if self.unit not in get_args(Unit):
            raise UsageError(f"unit is '{self.unit}': it must be 'mm/h' or 'intensity'")
        if self.colour and self.unit == "mm/h":
            raise UsageError("colour is True, but rain has none: set unit to 'intensity' or colour to False")
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise UsageError(f"hidden_dims is {self.hidden_dims}: name at least one layer's channels, such as (32,)")
        if self.kernel_size % 2 == 0:
            raise UsageError(f"kernel_size is {self.kernel_size}: it must be odd, to keep the grid")
        if self.unit == "mm/h" and self.past_frames < 2:
            raise UsageError("past_frames is 1: the motion of rain needs at least 2 frames")
        if self.augment and self.height != self.width:
            raise UsageError(
                f"grid {self.height}×{self.width} cannot be turned: make it square or set augment to False"
            )

    @property
    def visual(self) -> Visual | None:
        """Of a clip, the first frames; rain is no picture."""
        if self.unit == "mm/h":
            return None
        return Visual(self.height, self.width, self.past_frames + self.horizon_minutes, sampling="first")

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Last axes of frames, after height and width: (3,), red, green and blue, or none."""
        return (COLOURS,) if self.colour else ()
