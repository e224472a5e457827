"""English–German sentence pairs for the demo, from a small grammar with several hundred word forms.

What makes the two languages differ here is what makes translation a task: genders and cases, adjective endings, verbs
at the end of subordinate clauses, split verbs, the auxiliary of the perfect, inversion after what stands first. Every
English sentence has exactly one German one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipelines.datasets.demo import words as words
from pipelines.datasets.demo.words import ACCUSATIVE, DATIVE, NOMINATIVE, Noun, Verb

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase or pronoun, in the case that it was made for."""

    english: str
    german: str
    plural: bool
    definite: bool


@dataclass(frozen=True)
class Clause:
    """What is said; the word order depends on where it is said."""

    subject: Phrase
    verb: Verb
    tense: str
    """`present`, `past`, or a modal verb's English name."""
    object: Phrase | None = None
    place: tuple[str, str] | None = None
    time: tuple[str, str] | None = None
    negated: bool = False

    # ---- English -----------------------------------------------------------------------------------------------------
    def english(self) -> str:
        """Subject, verb, object, place, time."""
        return _join(self.subject.english, self._english_verb(), *self._english_rest())

    def english_question(self) -> str:
        """`does the dog sleep in the garden`"""
        auxiliary = self._english_auxiliary() or ("do" if self.subject.plural else "does")
        negation = "not" if self.negated else ""
        return _join(auxiliary, self.subject.english, negation, self.verb.base, *self._english_rest())

    def _english_rest(self) -> tuple[str, ...]:
        return (_english(self.object), self.place[0] if self.place else "", self.time[0] if self.time else "")

    def _english_auxiliary(self) -> str:
        return {"present": "", "past": "did"}.get(self.tense, self.tense)

    def _english_verb(self) -> str:
        present = self.verb.base if self.subject.plural else self.verb.third
        if self.negated:
            auxiliary = self._english_auxiliary() or ("do" if self.subject.plural else "does")
            return f"{auxiliary} not {self.verb.base}"
        if self.tense in ("present", "past"):
            return present if self.tense == "present" else self.verb.past
        return f"{self.tense} {self.verb.base}"

    # ---- German ------------------------------------------------------------------------------------------------------
    def german(self) -> str:
        """Subject, finite verb, …, rest of the verb."""
        finite, rest = self._german_verb()
        return _join(self.subject.german, finite, *self._german_middle(), rest)

    def german_inverted(self) -> str:
        """After something that stands first, or in a question: finite verb, subject, …, rest of the verb."""
        finite, rest = self._german_verb()
        return _join(finite, self.subject.german, *self._german_middle(), rest)

    def german_subordinate(self) -> str:
        """Subject, …, rest of the verb, finite verb."""
        finite, rest = self._german_verb()
        end = f"{rest}{finite}" if self.tense == "present" else f"{rest} {finite}"
        return _join(self.subject.german, *self._german_middle(), end)

    def _german_middle(self) -> tuple[str, ...]:
        negation = "nicht" if self.negated else ""
        time, place = self.time[1] if self.time else "", self.place[1] if self.place else ""
        return (time, self.object.german if self.object else "", negation, place)

    def _german_verb(self) -> tuple[str, str]:
        """The finite part, and what else belongs to the verb."""
        verb, plural = self.verb, self.subject.plural
        if self.tense == "present":
            return (verb.infinitive if plural else verb.german_third), verb.prefix
        if self.tense == "past":
            return verb.auxiliary[plural], verb.prefix + verb.participle
        many, one = {english: forms for english, *forms in words.MODALS}[self.tense]
        return (many if plural else one), verb.prefix + verb.infinitive


def _english(phrase: Phrase | None) -> str:
    return phrase.english if phrase else ""


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _sentence(text: str, mark: str = ".") -> str:
    """Capital letter, full stop, and no comma before one."""
    return text[0].upper() + (text + mark).replace(",,", ",").replace(f",{mark}", mark)[1:]


class Grammar:
    """Draws sentence pairs; `rng` decides everything."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def pair(self) -> tuple[str, str]:
        """One English sentence and its German translation."""
        kinds = (self._statement, self._question, self._with_reason, self._reason_first, self._opinion)
        return kinds[int(self.rng.choice(len(kinds), p=[0.4, 0.1, 0.2, 0.12, 0.18]))]()

    def _statement(self) -> tuple[str, str]:
        clause = self._clause(self._subject(relative=0.15))
        if clause.time is None and self._chance(0.3):
            english, german = self._pick(words.TIMES)
            return _sentence(f"{english} {clause.english()}"), _sentence(f"{german} {clause.german_inverted()}")
        return _sentence(clause.english()), _sentence(clause.german())

    def _question(self) -> tuple[str, str]:
        clause = self._clause(self._subject())
        return _sentence(clause.english_question(), "?"), _sentence(clause.german_inverted(), "?")

    def _with_reason(self) -> tuple[str, str]:
        main, reason = self._clause(self._subject(), long=0.3), self._clause(self._subject(), long=0.3)
        english, german = self._pick(words.CONJUNCTIONS)
        return (
            _sentence(f"{main.english()} {english} {reason.english()}"),
            _sentence(f"{main.german()}, {german} {reason.german_subordinate()}"),
        )

    def _reason_first(self) -> tuple[str, str]:
        main, reason = self._clause(self._subject(), long=0.3), self._clause(self._subject(), long=0.3)
        english, german = self._pick(words.CONJUNCTIONS)
        return (
            _sentence(f"{english} {reason.english()}, {main.english()}"),
            _sentence(f"{german} {reason.german_subordinate()}, {main.german_inverted()}"),
        )

    def _opinion(self) -> tuple[str, str]:
        who, content = self._subject(), self._clause(self._subject(), long=0.3)
        many, one, german_many, german_one = self._pick(words.OPINIONS)
        return (
            _sentence(f"{who.english} {many if who.plural else one} that {content.english()}"),
            _sentence(f"{who.german} {german_many if who.plural else german_one}, dass {content.german_subordinate()}"),
        )

    def _clause(self, subject: Phrase, long: float = 0.5) -> Clause:
        """`long`: chance of a place, and of a time."""
        verb = self._pick(words.TRANSITIVE if self._chance(0.65) else words.INTRANSITIVE)
        thing = None if verb.takes == "none" else self._noun_phrase(words.OBJECTS[verb.takes], ACCUSATIVE)
        tense = str(self.rng.choice(["present", "past", self._pick(words.MODALS)[0]], p=[0.5, 0.3, 0.2]))
        deniable = tense in ("present", "past") and (thing is None or thing.definite)
        if deniable and self._chance(0.2):
            return Clause(subject, verb, tense, thing, negated=True)
        place = self._place() if self._chance(long) else None
        time = self._pick(words.TIMES) if self._chance(long * 0.6) else None
        return Clause(subject, verb, tense, thing, place, time)

    def _subject(self, relative: float = 0.0) -> Phrase:
        if self._chance(0.2):
            english, german, plural = self._pick(words.PRONOUNS)
            return Phrase(english, german, plural, definite=True)
        noun = self._pick(words.LIVING)
        phrase = self._noun_phrase([noun], NOMINATIVE)
        return self._with_relative_clause(phrase, noun) if self._chance(relative) else phrase

    def _with_relative_clause(self, phrase: Phrase, noun: Noun) -> Phrase:
        """`the dog that sees the cat` → `der Hund, der die Katze sieht,`"""
        pronoun = words.THE.german[NOMINATIVE]["plural" if phrase.plural else noun.gender]
        clause = self._clause(Phrase("that", pronoun, phrase.plural, definite=True), long=0)
        english = f"{phrase.english} {clause.english()}"
        return Phrase(english, f"{phrase.german}, {clause.german_subordinate()},", phrase.plural, phrase.definite)

    def _noun_phrase(self, nouns: Sequence[Noun], case: int) -> Phrase:
        noun, determiner = self._pick(nouns), self._pick(words.DETERMINERS)
        plural = self._pick(determiner.plural)
        gender = "plural" if plural else noun.gender
        english, german = noun.english[plural], noun.form(case, plural)
        if self._chance(0.4):
            adjective, stem = self._pick(words.ADJECTIVES)
            english, german = f"{adjective} {english}", f"{stem}{determiner.endings[case][gender]} {german}"
        article = "an" if determiner.english == "a" and english[0] in "aeiou" else determiner.english
        return Phrase(
            f"{article} {english}", f"{determiner.german[case][gender]} {german}", plural, determiner.definite
        )

    def _place(self) -> tuple[str, str]:
        english, german = self._pick(words.PREPOSITIONS)
        where = self._noun_phrase(words.PLACES, DATIVE)
        text = f"{german} {where.german}"
        for long, short in words.CONTRACTIONS.items():
            if text.startswith(f"{long} "):
                text = short + text.removeprefix(long)
        return f"{english} {where.english}", text

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _pick(self, options: Sequence[Choice]) -> Choice:
        return options[int(self.rng.integers(len(options)))]


def distinct_pairs(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Sentence pairs without end, no English sentence twice."""
    grammar = Grammar(rng)
    seen: set[str] = set()
    while True:
        english, german = grammar.pair()
        if english not in seen:
            seen.add(english)
            yield english, german
