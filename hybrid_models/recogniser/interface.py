"""What a recogniser is to those who do not run its net: its options, columns and versions. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import pyarrow as pa

from hybrid_models.inputs import Preprocess
from hybrid_models.interface import DecodingConfig, HybridConfig, Interface
from hybrid_models.recogniser.config import RecogniserConfig
from hybrid_models.recogniser.decoding import RecogniserDecoding
from hybrid_models.recogniser.preprocess import RecogniserPreprocess


class RecogniserInterface(Interface):
    """See `Interface`."""

    name: ClassVar[str] = "recogniser"
    Config: ClassVar[type[HybridConfig]] = RecogniserConfig
    Decoding: ClassVar[type[DecodingConfig]] = RecogniserDecoding
    payload_schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("label", pa.string()),
            ("score", pa.float32()),  # its probability, as the net sees it
            ("scores", pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))),
            ("frames", pa.int32()),
        ]
    )
    schema_version: ClassVar[int] = 1
    samples_version: ClassVar[int] = 3  # frames of clips are chosen by time; edit lists and AVI are put right
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True, "macro_f1": True}
    truth: ClassVar[tuple[str, ...]] = ("reference",)

    @classmethod
    def preprocess(cls, config: HybridConfig, assets: Mapping[str, str]) -> Preprocess:
        return RecogniserPreprocess(cast(RecogniserConfig, config), assets)
