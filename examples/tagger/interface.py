"""What a tagger is to those who do not run its net: its options, columns and versions. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import pyarrow as pa

from hybrid_models.inputs import Preprocess
from hybrid_models.interface import DecodingConfig, HybridConfig, Interface
from hybrid_models.tagger.config import TaggerConfig
from hybrid_models.tagger.decoding import TaggerDecoding
from hybrid_models.tagger.preprocess import TaggerPreprocess


class TaggerInterface(Interface):
    """See `Interface`."""

    name: ClassVar[str] = "tagger"
    Config: ClassVar[type[HybridConfig]] = TaggerConfig
    Decoding: ClassVar[type[DecodingConfig]] = TaggerDecoding
    payload_schema: ClassVar[pa.Schema] = pa.schema(
        [("source", pa.string()), ("tag", pa.string()), ("probability", pa.float32())]
    )
    schema_version: ClassVar[int] = 1
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True}
    truth: ClassVar[tuple[str, ...]] = ("tag",)

    @classmethod
    def preprocess(cls, config: HybridConfig, assets: Mapping[str, str]) -> Preprocess:
        return TaggerPreprocess(cast(TaggerConfig, config))
