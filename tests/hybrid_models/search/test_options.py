import math

import pytest

from hybrid_models.captioner.decoding import CaptionerDecoding
from hybrid_models.errors import UsageError
from hybrid_models.search.options import SearchOptions, TextDecoding
from hybrid_models.symbols import BOS, EOS, PAD, UNK
from hybrid_models.translator.decoding import TranslatorDecoding

WRONG = {"beam_size": 0, "length_penalty": -0.1, "min_length": -1}


@pytest.mark.parametrize("name", [*WRONG, "no_repeat"])
def test_wrong_options(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} is "):
        SearchOptions(1, 2, **{name: WRONG.get(name, -1)})  # type: ignore[arg-type]


@pytest.mark.parametrize("penalty", [math.nan, math.inf, 400.0])
def test_a_length_penalty_that_no_length_is_divided_by_is_refused(penalty: float) -> None:
    """By NaN nothing is better than nothing at all: empty texts, and no error in the night."""
    with pytest.raises(UsageError, match=rf"^length_penalty is {penalty}: it must be from 0 \(off\) to 10.0$"):
        SearchOptions(1, 2, length_penalty=penalty)
    with pytest.raises(UsageError, match="max_length_ratio"):
        TranslatorDecoding(max_length_ratio=penalty * math.inf)


@pytest.mark.parametrize("kind", [TextDecoding, CaptionerDecoding, TranslatorDecoding])
def test_a_decoding_is_refused_as_its_search_is(kind: type[TextDecoding]) -> None:
    for name, wrong in {**WRONG, "beam_size": 257}.items():
        with pytest.raises(UsageError, match=f"^{name} is "):
            kind(**{name: wrong})
    if kind is not TextDecoding:
        with pytest.raises(UsageError, match="max_length"):
            kind(max_length=0)  # type: ignore[call-arg]


def test_what_a_user_says_is_what_is_searched_with() -> None:
    given = {"beam_size": 7, "length_penalty": 0.5, "min_length": 3}
    expected = SearchOptions(BOS, EOS, 7, 0.5, 3, never=(PAD, UNK, BOS))
    assert TranslatorDecoding(**given).search_options() == expected  # type: ignore[arg-type]
    captioner = CaptionerDecoding(**given, no_repeat=4).search_options()  # type: ignore[arg-type]
    assert captioner == SearchOptions(BOS, EOS, 7, 0.5, 3, never=(PAD, UNK, BOS), no_repeat=4)
    assert (TranslatorDecoding().beam_size, CaptionerDecoding().beam_size) == (5, 3)


def test_most_tokens_are_those_of_all_hypotheses() -> None:
    assert SearchOptions(1, 2, beam_size=4).most_tokens([3, 0, 5]) == 32
