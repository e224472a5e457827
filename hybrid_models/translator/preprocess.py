"""What a translator reads: how sentences become samples. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Inputs, Preprocess, Sample
from hybrid_models.symbols import EOS
from hybrid_models.text import Tokenizer, clean_text, pack_json
from hybrid_models.translator.config import TranslatorConfig

TOKENIZER = "tokenizer.json"
SOURCE_TOKENIZER = "source_tokenizer.json"


def training_texts(config: TranslatorConfig, fields: Mapping[str, Any]) -> list[str]:
    """Both sentences of a row, each after its side (`source` or `target`) and a tab. None from a bad row."""
    sides = (("source", config.source), ("target", config.target))
    try:
        return [f"{side}\t{clean_text(text_of(config, fields, name), config.max_characters)}" for side, name in sides]
    except BadSample:
        return []


class TranslatorPreprocess(Preprocess):
    """Cleans and tokenizes: `source` int32 [S] with its end symbol, `length`; for training `target` int32 [T] without
    special symbols and `reference`, the raw translation as packed JSON."""

    def __init__(self, config: TranslatorConfig, assets: Mapping[str, str]) -> None:
        self.config = config
        self._source, self._target = tokenizers(config, assets)

    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        config = self.config
        source = np.append(self._tokens(inputs.fields, config.source, self._source, config.max_source_tokens), EOS)
        sample = {"source": source.astype(np.int32), "length": np.int64(len(source))}
        if with_target:
            target = self._tokens(inputs.fields, config.target, self._target, config.max_target_tokens)
            sample |= {"target": target, "reference": pack_json(inputs.fields[config.target])}
            sample["length"] = np.int64(len(source) + len(target))
        return {name: np.asarray(value) for name, value in sample.items()}

    def _tokens(self, fields: Mapping[str, Any], name: str, tokenizer: Tokenizer, max_tokens: int) -> np.ndarray:
        text = clean_text(text_of(self.config, fields, name), self.config.max_characters, f"field '{name}'")
        return tokenizer.encode(text, max_tokens, f"field '{name}'")


def text_of(config: TranslatorConfig, fields: Mapping[str, Any], name: str) -> Any:
    return fields.get(name, fields.get("text")) if name == config.source else fields.get(name)


def tokenizers(config: TranslatorConfig, assets: Mapping[str, str]) -> tuple[Tokenizer, Tokenizer]:
    """The source's and the target's tokenizer, the same one for a joint vocabulary.

    Raises:
        UsageError: an asset is missing.
    """
    for name in (TOKENIZER,) if config.joint_vocabulary else (TOKENIZER, SOURCE_TOKENIZER):
        if name not in assets:
            raise UsageError(f"the translator has no {name}: learn it from texts or restore the artifact's file")
    target = Tokenizer(assets[TOKENIZER])
    return (target if config.joint_vocabulary else Tokenizer(assets[SOURCE_TOKENIZER])), target
