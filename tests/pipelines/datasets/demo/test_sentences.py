"""Sentence pairs: exact translations of clauses put together by hand, and properties of many drawn ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sacrebleu import corpus_bleu

from pipelines.datasets.demo.sentences import Clause, Grammar, Phrase, distinct_pairs
from pipelines.datasets.demo.words import INTRANSITIVE, TRANSITIVE

VERBS = {verb.base: verb for verb in TRANSITIVE + INTRANSITIVE}
DOG = Phrase("the dog", "der Hund", plural=False, definite=True)
WE = Phrase("we", "wir", plural=True, definite=True)
CAT = Phrase("the cat", "die Katze", plural=False, definite=True)
GARDEN = ("in the garden", "im Garten")
TODAY = ("today", "heute")


@pytest.mark.parametrize(
    ("clause", "english", "main", "inverted", "subordinate"),
    [
        (
            Clause(DOG, VERBS["see"], "present", CAT, GARDEN, TODAY),
            "the dog sees the cat in the garden today",
            "der Hund sieht heute die Katze im Garten",
            "sieht der Hund heute die Katze im Garten",
            "der Hund heute die Katze im Garten sieht",
        ),
        (
            Clause(DOG, VERBS["see"], "past", CAT),
            "the dog saw the cat",
            "der Hund hat die Katze gesehen",
            "hat der Hund die Katze gesehen",
            "der Hund die Katze gesehen hat",
        ),
        (
            Clause(WE, VERBS["call"], "present", CAT, negated=True),
            "we do not call the cat",
            "wir rufen die Katze nicht an",
            "rufen wir die Katze nicht an",
            "wir die Katze nicht anrufen",
        ),
        (
            Clause(WE, VERBS["get up"], "past", negated=True),
            "we did not get up",
            "wir sind nicht aufgestanden",
            "sind wir nicht aufgestanden",
            "wir nicht aufgestanden sind",
        ),
        (
            Clause(DOG, VERBS["pick up"], "must", CAT, time=TODAY),
            "the dog must pick up the cat today",
            "der Hund muss heute die Katze aufheben",
            "muss der Hund heute die Katze aufheben",
            "der Hund heute die Katze aufheben muss",
        ),
    ],
)
def test_word_order(clause: Clause, english: str, main: str, inverted: str, subordinate: str) -> None:
    assert clause.english() == english
    assert clause.german() == main
    assert clause.german_inverted() == inverted
    assert clause.german_subordinate() == subordinate


def test_questions() -> None:
    assert Clause(DOG, VERBS["sleep"], "present").english_question() == "does the dog sleep"
    assert Clause(WE, VERBS["get up"], "past", time=TODAY).english_question() == "did we get up today"
    assert Clause(DOG, VERBS["sleep"], "present", negated=True).english_question() == "does the dog not sleep"
    assert Clause(WE, VERBS["see"], "can", CAT).english_question() == "can we see the cat"


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return list(itertools.islice(distinct_pairs(np.random.default_rng(0)), 4000))


def test_sentences_are_distinct_and_well_formed(pairs: list[tuple[str, str]]) -> None:
    assert len({english for english, _ in pairs}) == 4000
    for english, german in pairs:
        for text in (english, german):
            assert text[0].isupper()
            assert text[-1] in ".?"
            assert "  " not in text
            assert not any(wrong in text for wrong in (" ,", ",,", ",.", ",?", "in dem ", "bei dem ", "|", "_", "None"))
        assert english[-1] == german[-1]


def test_every_english_sentence_has_one_german_one() -> None:
    grammar = Grammar(np.random.default_rng(1))
    known: dict[str, str] = {}
    for english, german in (grammar.pair() for _ in range(20_000)):
        assert known.setdefault(english, german) == german
    assert len(known) < 20_000  # some did come twice


def test_the_task_has_the_size_of_a_demo_and_is_no_copying(pairs: list[tuple[str, str]]) -> None:
    english_words = {word for english, _ in pairs for word in english.lower().strip(".?").replace(",", "").split()}
    german_words = {word for _, german in pairs for word in german.lower().strip(".?").replace(",", "").split()}
    assert 240 < len(english_words) < 500
    assert 300 < len(german_words) < 700
    copied = corpus_bleu([english for english, _ in pairs], [[german for _, german in pairs]])
    assert copied.score < 1
    assert max(len(german.split()) for _, german in pairs) < 40


def test_subordinate_clauses_end_with_their_verb(pairs: list[tuple[str, str]]) -> None:
    finite = {verb.auxiliary[i] for verb in VERBS.values() for i in (0, 1)}
    finite |= {verb.prefix + form for verb in VERBS.values() for form in (verb.infinitive, verb.german_third)}
    finite |= {"können", "kann", "müssen", "muss", "sollen", "soll", "dürfen", "darf"}
    opinions = [german for english, german in pairs if " that " in english and ", dass " in german]
    assert len(opinions) > 400
    assert all(german.rstrip(".").split()[-1] in finite for german in opinions)
