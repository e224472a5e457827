"""What a captioner reads: how photographs, clips and captions become samples. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import regex

from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Inputs, Preprocess, Sample
from hybrid_models.symbols import BOS, EOS
from hybrid_models.text import Tokenizer, clean_text, pack_json, pad_rows

T = TypeVar("T")
TOKENIZER = "tokenizer.json"


# ---- text ----------------------------------------------------------------------------------------------------------
_NOT_A_WORD = regex.compile(
    r"[^\w\p{No}'&%-]+|(?<![\w\p{No}])[\p{M}\u200c\u200d'-]+|['-]+(?![\w\p{No}])",
)
"""Marks are parts of words to `regex`, as they are not to `re`: without them हिन्दी falls to pieces. Those, and joiners,
that follow no letter are left over of a symbol. Numbers such as ½ and ² are none of its letters."""


def plain_caption(text: Any, max_characters: int, what: str = "caption") -> str:
    """A caption as the decoder learns it: clean, lower case, without punctuation but apostrophes and hyphens in words.

    Raises:
        BadSample: see `clean_text`; also `EmptyText` where no letter or digit is.
    """
    words = " ".join(_NOT_A_WORD.sub(" ", clean_text(text, max_characters, what).lower()).split())
    if not _has_word(words):
        raise BadSample("EmptyText", f"{what} has no word")
    return words


def _captions(config: CaptionerConfig, fields: Mapping[str, Any]) -> list[Any]:
    """A row's captions as they are, none where it has none."""
    value: Any = next(
        (fields[name] for name in (config.captions, "caption", "text") if fields.get(name) is not None), []
    )
    if isinstance(value, str):
        return value.splitlines()
    if not isinstance(value, list):
        raise BadSample("CaptionsMissing", f"field '{config.captions}' is neither a list nor a text")
    return value


def _has_word(caption: Any) -> bool:
    return isinstance(caption, str) and any(map(str.isalnum, caption))


def usable_captions(config: CaptionerConfig, fields: Mapping[str, Any], form: Callable[[Any], T]) -> list[T]:
    """`form` of each of a row's captions, without those that it refuses by `BadSample`.

    Raises:
        BadSample: `CaptionsMissing`, or what is wrong with the last of the captions if none is usable.
    """
    wrong = BadSample("CaptionsMissing", f"no captions in field '{config.captions}', 'caption' or 'text'")
    usable = []
    for caption in _captions(config, fields):
        try:
            usable.append(form(caption))
        except BadSample as error:
            wrong = error
    if not usable:
        raise wrong
    return usable


def training_texts(config: CaptionerConfig, fields: Mapping[str, Any]) -> list[str]:
    """A row's captions in the decoder's form. None from a bad row."""
    try:
        return usable_captions(config, fields, lambda caption: plain_caption(caption, config.max_characters))
    except BadSample:
        return []


class CaptionerPreprocess(Preprocess):
    """Checks frames and tokenizes captions: `frames` uint8 [T,H,W,3], of a clip `times` float32 [T] (seconds),
    `frame_count`, `length`; for training `captions` int32 [R,L] with start and end symbols, padded, and `references`,
    the raw captions as packed JSON."""

    def __init__(self, config: CaptionerConfig, assets: Mapping[str, str]) -> None:
        self.config = config
        self.visual = config.visual
        self._tokenizer = caption_tokenizer(assets)

    def __call__(self, inputs: Inputs, with_target: bool) -> Sample:
        frames, size = inputs.media, self.config.image_size
        if frames is None:
            raise BadSample("MediaMissing", "the row has no image or clip")
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (size, size, 3) or len(frames) == 0:
            raise BadSample(
                "MediaShape", f"media is {frames.dtype} {list(frames.shape)}, not uint8 [frames, {size}, {size}, 3]"
            )
        count = np.asarray(len(frames), dtype=np.int64)
        sample = {"frames": frames, "frame_count": count, "length": count}
        if inputs.times is not None:
            sample["times"] = inputs.times
        return sample | self._target(inputs.fields) if with_target else sample

    def _target(self, fields: Mapping[str, Any]) -> Sample:
        rows = usable_captions(self.config, fields, self._row)[: self.config.max_captions]
        captions = pad_rows(rows).astype(np.int32)
        length = np.asarray(captions.shape[1], dtype=np.int64)
        references = [text for text in _captions(self.config, fields) if _has_word(text)]
        return {"captions": captions, "references": pack_json(references), "length": length}

    def _row(self, caption: Any) -> np.ndarray:
        text = plain_caption(caption, self.config.max_characters)
        return np.concatenate([[BOS], self._tokenizer.encode(text, self.config.max_caption_tokens, "caption"), [EOS]])


def caption_tokenizer(assets: Mapping[str, str]) -> Tokenizer:
    """The tokenizer among the assets.

    Raises:
        UsageError: there is none.
    """
    if TOKENIZER not in assets:
        raise UsageError(f"the captioner has no {TOKENIZER}: learn it from texts or restore the artifact's file")
    return Tokenizer(assets[TOKENIZER])
