"""What a captioner reads: its configuration, and how photographs, clips and captions become samples. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import regex

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.inputs import Inputs, Preprocess, Sample
from hybrid_models.symbols import BOS, EOS
from hybrid_models.text import MIN_VOCABULARY, Tokenizer, clean_text, pack_json, pad_rows
from hybrid_models.visual import VisualConfig

T = TypeVar("T")
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class CaptionerConfig(VisualConfig):
    """Architecture and preprocessing of a captioner.

    Raises:
        UsageError: a size, rate, limit or name is out of its range.
    """

    learns_from_texts: ClassVar[bool] = True
    not_in_samples: ClassVar[frozenset[str]] = frozenset(
        {
            "encoder_weights", "cell", "embedding_size", "hidden_size", "attention_size", "tie_embeddings", "dropout",
            "label_smoothing", "reward_share", "vocab_size",
        }
    )  # fmt: skip

    temporal: Literal["mean", "lstm", "gru"] = "mean"
    """How a clip's frames become one: `mean` averages what is seen in them, which knows no order; an RNN over them
    tells moving left from moving right."""
    mirror: bool = False
    """Show half of the samples as their mirror images in training; not where captions tell left from right."""
    attention: bool = True
    """Attend to the encoder's spatial grid at every word; otherwise only its mean is seen, at the start (faster)."""
    cell: Literal["gru", "lstm"] = "lstm"
    """The decoder's recurrent cell."""
    embedding_size: int = 256
    """Size of a token's vector."""
    hidden_size: int = 512
    """Size of the decoder's state."""
    attention_size: int = 256
    """Size of the space in which attention compares."""
    tie_embeddings: bool = True
    """The output layer is the embedding."""
    dropout: float = 0.4
    """Share of embedding and output values dropped in training."""
    label_smoothing: float = 0.1
    """Share of the target mass spread over all words in training (the validation loss has none)."""
    reward_share: float = 0.0
    """Share of the epochs, the last ones, that draw captions from the model and raise the CIDEr-D of what is drawn
    (self-critical training), instead of teaching it the references; rounded to whole epochs, never the first. Their
    logged loss is near 0, and document frequencies are those of a worker's images of a batch."""
    vocab_size: int = 3000
    """Most tokens of the vocabulary."""
    captions: str = "captions"
    """Field with a list of captions, or one a line; rows without it are read from `caption` or `text`."""
    max_captions: int = 10
    """Most captions of one sample used in training."""
    max_caption_tokens: int = 60
    """A longer caption is left out of training."""
    max_characters: int = 1000
    """A longer caption is left out of training, seen before it is tokenized."""

    def __post_init__(self) -> None:
        sizes = ("embedding_size", "hidden_size", "attention_size")
        limits = ("max_captions", "max_caption_tokens", "max_characters")
        choices = {"cell": ("gru", "lstm"), "temporal": ("mean", "lstm", "gru")}
        self.check((*sizes, *limits), ("dropout", "label_smoothing", "reward_share"), choices)
        if self.vocab_size < MIN_VOCABULARY:
            raise UsageError(f"vocab_size is {self.vocab_size}: it must be at least {MIN_VOCABULARY}")

    @property
    def least_share(self) -> int:
        """Rewards compare images."""
        return 2 if self.reward_share else 1

    def training_texts(self, fields: Mapping[str, Any]) -> list[str]:
        """A row's captions in the decoder's form."""
        try:
            return usable_captions(self, fields, lambda caption: plain_caption(caption, self.max_characters))
        except BadSample:
            return []


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
