"""Text in and out: cleaning with limits, and a subword tokenizer that gives every text back.

Tokens are byte-level byte pairs (Sennrich et al. 2016; Radford et al. 2019): any text can be encoded, nothing is
unknown, and `decode(encode(text))` is the text again, up to Unicode NFC and white space.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer as _Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from hybrid_models.errors import BadSample, UsageError
from hybrid_models.symbols import EOS, MIN_VOCABULARY, PAD, SPECIALS

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SPACE = "\u0120"
"""As tokens have it, in which each byte is a printable character."""


def clean_text(text: Any, max_characters: int, what: str = "text") -> str:
    """A text on one line: NFC, control characters (NUL too) and runs of white space become one space.

    Halves of surrogate pairs, which UTF-8 cannot hold, become U+FFFD.

    Args:
        text: what the row has.
        max_characters: checked first, so that a huge text costs nothing.
        what: how to call the text in messages, such as `field 'en'`.

    Raises:
        BadSample: `TextMissing` (not a string), `TextTooLong`, or `EmptyText`.
    """
    if not isinstance(text, str):
        raise BadSample("TextMissing", f"{what} is {type(text).__name__}, not a string")
    if len(text) > max_characters:
        raise BadSample("TextTooLong", f"{what} has {len(text)} characters, at most {max_characters} are allowed")
    visible = _SURROGATE.sub("\ufffd", _UNPRINTABLE.sub(" ", text))
    cleaned = " ".join(unicodedata.normalize("NFC", visible).split())
    if not cleaned:
        raise BadSample("EmptyText", f"{what} has no printable character")
    return cleaned


PARTS = {"model": "BPE", "normalizer": "NFC", "pre_tokenizer": "ByteLevel", "decoder": "ByteLevel"}
"""What `Tokenizer.train` makes. Other parts may panic, run for ever, or give ids that no net has learned."""
ABSENT = ("post_processor", "truncation", "padding")
LEARNED = ("type", "vocab", "merges")
"""What a model may have set. Of its options, a prefix of subwords alone makes the library panic, which it prints."""


def _check_parts(serialised: str) -> None:
    try:
        content = json.loads(serialised)
        found = {name: content[name]["type"] for name in PARTS}
        more = [name for name in ABSENT if content.get(name) is not None]
        more += [name for name, value in content["model"].items() if name not in LEARNED and value]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"tokenizer.json is not a tokenizer ({what}): train again or restore the file") from None
    if found != PARTS or more:
        raise UsageError(f"tokenizer.json has {found} {' '.join(more)}, not {PARTS}: it was made by something else")


class Tokenizer:
    """Text ↔ token ids, by what `to_json` gave.

    Raises:
        UsageError: it is not the JSON of such a tokenizer.
    """

    def __init__(self, serialised: str) -> None:
        _check_parts(serialised)
        try:
            self._tokenizer = _Tokenizer.from_str(serialised)
        except Exception as error:  # the library raises bare Exception
            raise UsageError(f"tokenizer.json is not a tokenizer ({error}): train again or restore the file") from error
        except BaseException as error:  # and where it panics, what no `except Exception` catches
            if type(error).__name__ != "PanicException":
                raise
            raise UsageError(f"tokenizer.json is not a tokenizer ({error}): train again or restore the file") from None
        found = tuple(self._tokenizer.id_to_token(i) for i in range(len(SPECIALS)))
        if found != SPECIALS:
            raise UsageError(f"tokenizer.json starts with {found} instead of {SPECIALS}: it was made by something else")
        ids = sorted(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if ids != list(range(len(ids))):
            raise UsageError("tokenizer.json leaves out or repeats token ids: train again or restore the file")
        self._tokenizer.encode_special_tokens = True  # a text that says `</s>` must not end there; not serialised

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns at most `vocab_size` tokens (fewer if the texts have fewer) from clean texts.

        Raises:
            UsageError: `vocab_size` is below `MIN_VOCABULARY`, or there are no texts.
        """
        if vocab_size < MIN_VOCABULARY:
            raise UsageError(f"vocab_size is {vocab_size}: at least {MIN_VOCABULARY} (all bytes) are needed")
        tokenizer = _Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        counted = _Counted(texts)
        tokenizer.train_from_iterator(counted, trainer)
        if counted.count == 0:
            raise UsageError("no training texts to learn a tokenizer from: check the shards and the fields' names")
        return cls(tokenizer.to_str())

    def to_json(self) -> str:
        """The tokenizer as JSON, readable by the `tokenizers` library anywhere."""
        return self._tokenizer.to_str()

    def __len__(self) -> int:
        """The number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, max_tokens: int, what: str = "text") -> np.ndarray:
        """int32 [T]: the ids of a clean text, without start and end symbols.

        A special symbol's name in a text (`</s>`) is text like any other.

        Raises:
            BadSample: `TextTooLong`, more than `max_tokens`.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) > max_tokens:
            raise BadSample("TextTooLong", f"{what} has {len(ids)} tokens, at most {max_tokens} are allowed")
        return np.asarray(ids, dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special symbols are left out, an incomplete character is U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).strip()

    def spelling(self) -> list[tuple[str, bool]]:
        """What each token adds to a text: its bytes, a character for each, and whether a space comes before them.
        Special symbols add nothing."""
        ids = self._tokenizer.get_vocab()
        tokens = sorted(ids, key=ids.__getitem__)
        special: list[tuple[str, bool]] = [("", False)] * len(SPECIALS)
        return special + [(token.removeprefix(_SPACE), token.startswith(_SPACE)) for token in tokens[len(SPECIALS) :]]

    def words(self, ids: Sequence[int]) -> tuple[list[str], np.ndarray]:
        """The words of a text, split at spaces, and int64 [words], the position of each one's first token.

        An end symbol is the word `(end)`.
        """
        starts = [n for n, i in enumerate(ids) if n == 0 or i == EOS or self._token(i).startswith(_SPACE)]
        words = [self.decode(ids[first:end]) or "␣" for first, end in pairwise([*starts, len(ids)])]
        named = ["(end)" if ids[first] == EOS else word for first, word in zip(starts, words, strict=True)]
        return named, np.asarray(starts)

    def _token(self, i: int) -> str:
        return str(self._tokenizer.id_to_token(i))


def rows_of_words(weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float32 [words-1,S]: weights [tokens,S], averaged over the tokens of each word; the end symbol has none."""
    return np.add.reduceat(weights, starts)[:-1] / np.diff(starts)[:, None]


class _Counted:
    """An iterable that knows how many items it has given."""

    def __init__(self, items: Iterable[str]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> Any:
        for item in self._items:
            self.count += 1
            yield item


def pack_json(value: Any) -> np.ndarray:
    """Any JSON value as uint8 [n] (UTF-8), which a sample can hold."""
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), dtype=np.uint8)


def unpack_json(packed: np.ndarray) -> Any:
    """The value that `pack_json` packed."""
    return json.loads(packed.tobytes())


def written_places(targets: np.ndarray) -> np.ndarray:
    """int64 [M]: the places in [N·(T-1)] of what targets [N,T] have after the start symbols and is no padding."""
    return np.flatnonzero(targets[:, 1:] != PAD)


def pad_rows(rows: Sequence[np.ndarray], width: int | None = None) -> np.ndarray:
    """int64 [len(rows), width]: rows of ids, padded with `PAD` at their ends (to the longest by default)."""
    width = max(map(len, rows)) if width is None else width
    padded = np.full((len(rows), width), PAD, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return padded
