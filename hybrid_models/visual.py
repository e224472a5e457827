"""What hybrids of photographs and clips share: the options of how they see. Free of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybrid_models.errors import UsageError
from hybrid_models.inputs import Sampling, Visual
from hybrid_models.interface import HybridConfig


@dataclass(frozen=True)
class VisualConfig(HybridConfig):
    """What a hybrid sees, and with which eye."""

    encoder: str = "tf_efficientnet_lite0"
    """A convolutional net of the timm library."""
    encoder_weights: str = "hub"
    """Weights the encoder starts from: `hub` (timm's own), `none` (random) or the URI of a safetensors file."""
    freeze_encoder: bool = True
    """Keep the encoder as it is: its features are then computed once per sample."""
    image_size: int = 224
    """Height and width (pixels) to which frames are resized."""
    frames: int = 8
    """Most frames looked at in a clip."""
    sampling: Sampling = "uniform"
    """Which ones: `uniform`, those in the middle of equal parts of its time; `fps`, so many a second; `keyframes`,
    those that were stored whole."""
    fps: float = 2.0
    """Frames a second of sampling `fps`, as long as `frames` are enough."""

    @property
    def visual(self) -> Visual:
        """What is seen of a clip."""
        return Visual(self.image_size, self.image_size, self.frames, self.sampling, self.fps)

    @property
    def weights_read(self) -> tuple[str, ...]:
        """The file of the encoder's weights, if there is one."""
        return () if self.encoder_weights in ("hub", "none") else (self.encoder_weights,)

    def check(self, positive: Sequence[str], shares: Sequence[str], choices: Mapping[str, Sequence[str]]) -> None:
        """Checks how it sees, and a hybrid's own fields.

        Args:
            positive: fields that must be at least 1.
            shares: fields that are a share of something.
            choices: fields that are one of some words.

        Raises:
            UsageError: names the first field that is out of its range.
        """
        self.check_ranges(("image_size", "frames", *positive), shares)
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise UsageError(f"{name} is '{value}': it must be one of {', '.join(known)}")
        if self.freeze_encoder and self.encoder_weights == "none":
            raise UsageError("freeze_encoder with encoder_weights 'none' would keep a random net: change one of them")
        _ = self.visual
