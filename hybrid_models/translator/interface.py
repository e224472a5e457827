"""What a translator is to those who do not run its net: its options, columns and versions. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import pyarrow as pa

from hybrid_models.inputs import Preprocess
from hybrid_models.interface import DecodingConfig, HybridConfig, Interface
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.decoding import TranslatorDecoding
from hybrid_models.translator.preprocess import TranslatorPreprocess


class TranslatorInterface(Interface):
    """See `Interface`."""

    name: ClassVar[str] = "translator"
    Config: ClassVar[type[HybridConfig]] = TranslatorConfig
    Decoding: ClassVar[type[DecodingConfig]] = TranslatorDecoding
    payload_schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("source", pa.string()),
            ("translation", pa.string()),
            ("score", pa.float32()),
            ("source_tokens", pa.int32()),
            ("target_tokens", pa.int32()),
        ]
    )
    schema_version: ClassVar[int] = 1
    metrics: ClassVar[Mapping[str, bool]] = {"bleu": True, "chrf": True}
    truth: ClassVar[tuple[str, ...]] = ("reference",)

    @classmethod
    def preprocess(cls, config: HybridConfig, assets: Mapping[str, str]) -> Preprocess:
        return TranslatorPreprocess(cast(TranslatorConfig, config), assets)
