"""What a nowcaster is to those who do not run its net: its options, columns and versions. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import pyarrow as pa

from hybrid_models.inputs import Preprocess
from hybrid_models.interface import LATER, DecodingConfig, HybridConfig, Interface
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.preprocess import NowcasterPreprocess


class NowcasterInterface(Interface):
    """See `Interface`."""

    name: ClassVar[str] = "nowcaster"
    Config: ClassVar[type[HybridConfig]] = NowcasterConfig
    Decoding: ClassVar[type[DecodingConfig]] = NowcasterDecoding
    payload_schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("issue_time", pa.timestamp("us", tz="UTC")),
            ("step_minutes", pa.float32()),
            ("lead_minutes", pa.list_(pa.float32())),
            ("mean_mm_h", pa.list_(pa.float32())),
            ("max_mm_h", pa.list_(pa.float32())),
            ("wet_fraction", pa.list_(pa.float32())),
            ("frames", pa.binary()),
            ("frames_shape", pa.list_(pa.int32())),
            ("thresholds_mm_h", pa.list_(pa.float32())),
            ("probability", pa.binary()),
            pa.field("mean", pa.list_(pa.float32()), metadata=LATER),
            pa.field("max", pa.list_(pa.float32()), metadata=LATER),
            pa.field("unit", pa.string(), metadata=LATER),
        ]
    )
    """`frames` is float16, little-endian, C order, of shape `frames_shape` = [leads, height, width], in colour
    [leads, height, width, 3] (red, green, blue), in `unit`: `mm/h`, or `intensity` (0 … 1) of video; `mean` and `max`
    have one value per lead time, in `unit`, over the pixels that the newest frame covers, in colour over their
    channels, too; `mean_mm_h`, `max_mm_h` and `wet_fraction` the same for rain, and are null for video.
    `probability` is uint8, C order, [leads, thresholds, height, width]: per cent that a pixel has at least so much
    rain; null for video, which has no thresholds."""
    schema_version: ClassVar[int] = 3
    samples_version: ClassVar[int] = 2  # frames of clips: edit lists and AVI are put right
    metrics: ClassVar[Mapping[str, bool]] = {
        "csi_1": True, "csi_5": True, "crps": False, "mse": False, "mae": False, "ssim": True,
    }  # fmt: skip
    truth: ClassVar[tuple[str, ...]] = ("issue_time", "step_minutes", "future")

    @classmethod
    def preprocess(cls, config: HybridConfig, assets: Mapping[str, str]) -> Preprocess:
        return NowcasterPreprocess(cast(NowcasterConfig, config))

    @classmethod
    def metrics_of(cls, config: HybridConfig) -> list[str]:
        absent = ("ssim",) if cast(NowcasterConfig, config).unit == "mm/h" else ("csi_1", "csi_5", "crps")
        return [name for name in cls.metrics if name not in absent]
