"""What a captioner is to those who do not run its net: its options, columns and versions. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import pyarrow as pa

from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.captioner.decoding import CaptionerDecoding
from hybrid_models.captioner.preprocess import CaptionerPreprocess
from hybrid_models.inputs import Preprocess
from hybrid_models.interface import DecodingConfig, HybridConfig, Interface


class CaptionerInterface(Interface):
    """See `Interface`."""

    name: ClassVar[str] = "captioner"
    Config: ClassVar[type[HybridConfig]] = CaptionerConfig
    Decoding: ClassVar[type[DecodingConfig]] = CaptionerDecoding
    payload_schema: ClassVar[pa.Schema] = pa.schema(
        [("caption", pa.string()), ("score", pa.float32()), ("caption_tokens", pa.int32()), ("frames", pa.int32())]
    )
    schema_version: ClassVar[int] = 1
    samples_version: ClassVar[int] = 4  # captions keep their marks, and have a letter or digit
    metrics: ClassVar[Mapping[str, bool]] = {"cider_d": True, "bleu4": True}
    truth: ClassVar[tuple[str, ...]] = ("references",)

    @classmethod
    def preprocess(cls, config: HybridConfig, assets: Mapping[str, str]) -> Preprocess:
        return CaptionerPreprocess(cast(CaptionerConfig, config), assets)
