"""The demo's words, against a grammar book."""

from __future__ import annotations

import pytest

from pipelines.datasets.demo.words import (
    ACCUSATIVE,
    ADJECTIVES,
    DATIVE,
    DETERMINERS,
    INTRANSITIVE,
    LIVING,
    NOMINATIVE,
    PLACES,
    THE,
    THINGS,
    TRANSITIVE,
)

NOUNS = {noun.english[0]: noun for noun in LIVING + THINGS + PLACES}
VERBS = {verb.base: verb for verb in TRANSITIVE + INTRANSITIVE}


@pytest.mark.parametrize(
    ("noun", "case", "plural", "form"),
    [
        ("dog", NOMINATIVE, False, "Hund"),
        ("dog", DATIVE, True, "Hunden"),
        ("woman", DATIVE, True, "Frauen"),
        ("boy", NOMINATIVE, False, "Junge"),
        ("boy", ACCUSATIVE, False, "Jungen"),
        ("lion", DATIVE, False, "Löwen"),
        ("garden", DATIVE, True, "Gärten"),
        ("apple", DATIVE, True, "Äpfeln"),
    ],
)
def test_noun_forms(noun: str, case: int, plural: bool, form: str) -> None:
    assert NOUNS[noun].form(case, plural) == form


def test_articles() -> None:
    assert [THE.german[case]["masculine"] for case in range(3)] == ["der", "den", "dem"]
    assert [THE.german[case]["plural"] for case in range(3)] == ["die", "die", "den"]
    mine = next(determiner for determiner in DETERMINERS if determiner.english == "my")
    assert [mine.german[case]["feminine"] for case in range(3)] == ["meine", "meine", "meiner"]


@pytest.mark.parametrize(
    ("english", "gender", "endings"),
    [
        ("the", "masculine", ["e", "en", "en"]),  # der alte, den alten, dem alten
        ("the", "plural", ["en", "en", "en"]),
        ("a", "masculine", ["er", "en", "en"]),  # ein alter, einen alten, einem alten
        ("a", "neuter", ["es", "es", "en"]),
        ("every", "feminine", ["e", "e", "en"]),
        ("two", "plural", ["e", "e", "en"]),  # zwei alte, zwei alte, zwei alten
    ],
)
def test_adjective_endings(english: str, gender: str, endings: list[str]) -> None:
    determiner = next(d for d in DETERMINERS if d.english == english)
    assert [determiner.endings[case][gender] for case in range(3)] == endings


def test_verbs() -> None:
    pick_up, swim = VERBS["pick up"], VERBS["swim"]
    assert (pick_up.third, pick_up.past) == ("picks up", "picked up")
    assert (pick_up.prefix, pick_up.infinitive, pick_up.german_third, pick_up.participle) == (
        "auf",
        "heben",
        "hebt",
        "gehoben",
    )
    assert pick_up.auxiliary == ("hat", "haben")
    assert (swim.prefix, swim.takes, swim.auxiliary) == ("", "none", ("ist", "sind"))


def test_no_english_word_has_two_entries() -> None:
    assert len(NOUNS) == len(LIVING + THINGS + PLACES) == 44
    assert len(VERBS) == len(TRANSITIVE + INTRANSITIVE) == 31
    assert len(dict(ADJECTIVES)) == len(ADJECTIVES) == 26
