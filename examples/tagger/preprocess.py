"""What a tagger reads: how sentences become samples. Free of torch."""

from __future__ import annotations

import numpy as np

from hybrid_models.errors import BadSample
from hybrid_models.inputs import Inputs, Preprocess, Sample
from hybrid_models.tagger.config import TaggerConfig
from hybrid_models.text import clean_text, pack_json


class TaggerPreprocess(Preprocess):
    """Cleans: `text` uint8 [S], UTF-8, and `source`, the text as packed JSON; for training `tag`, its number."""

    def __init__(self, config: TaggerConfig) -> None:
        self.config = config

    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        text = clean_text(inputs.fields.get("text"), self.config.max_characters, "field 'text'")
        coded = np.frombuffer(text.encode(), np.uint8)
        sample = {"text": coded, "source": pack_json(text), "length": np.asarray(len(coded))}
        if with_target:
            tag = inputs.fields.get("tag")
            if tag not in self.config.tags:
                raise BadSample("UnknownTag", f"'{tag}' is none of {', '.join(self.config.tags)}")
            sample["tag"] = np.asarray(self.config.tags.index(tag))
        return sample
