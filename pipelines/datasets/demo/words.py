"""The words of the demo's English–German grammar: nouns, verbs, adjectives and determiners with all their forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

NOMINATIVE, ACCUSATIVE, DATIVE = 0, 1, 2
GENDERS = ("masculine", "feminine", "neuter", "plural")
Word = TypeVar("Word")
Forms = tuple[dict[str, str], dict[str, str], dict[str, str]]
"""By case, by gender (plural is one, too)."""


@dataclass(frozen=True)
class Noun:
    """A noun in both languages: singular and plural."""

    english: tuple[str, str]
    german: tuple[str, str]
    gender: str
    weak: bool
    """Whether it takes its plural's form in all cases of the singular but the nominative."""

    def form(self, case: int, plural: bool) -> str:
        """The German form."""
        singular, many = self.german
        if plural:
            return many + "n" if case == DATIVE and not many.endswith(("n", "s")) else many
        return many if self.weak and case != NOMINATIVE else singular


@dataclass(frozen=True)
class Verb:
    """A verb in both languages."""

    base: str
    third: str
    past: str
    prefix: str
    """The part of a split German verb that a main clause has at its end, or nothing."""
    infinitive: str
    german_third: str
    participle: str
    takes: str
    """Kind of its object: `any`, `living`, `thing`; `none` for an intransitive verb."""
    auxiliary: tuple[str, str]
    """Of the perfect: singular, plural."""


@dataclass(frozen=True)
class Determiner:
    """What a noun phrase begins with."""

    english: str
    plural: tuple[bool, ...]
    """The numbers that it can have."""
    definite: bool
    german: Forms
    endings: Forms
    """Of an adjective after it."""


def _entries(table: str, make: Callable[..., Word]) -> list[Word]:
    """One word for each `;`-separated entry."""
    return [make(*entry.split()) for entry in table.split(";") if entry.strip()]


def _noun(one: str, many: str, gender: str, german: str, german_many: str) -> Noun:
    genders = {"m": "masculine", "w": "masculine", "f": "feminine", "n": "neuter"}
    return Noun((one, many), (german, german_many), genders[gender], gender == "w")


def _transitive(base: str, third: str, past: str, german: str, german_third: str, participle: str, takes: str) -> Verb:
    return _verb(base, third, past, german, german_third, participle, takes, ("hat", "haben"))


def _intransitive(base: str, third: str, past: str, german: str, german_third: str, participle: str, aux: str) -> Verb:
    auxiliary = {"haben": ("hat", "haben"), "sein": ("ist", "sind")}[aux]
    return _verb(base, third, past, german, german_third, participle, "none", auxiliary)


def _verb(
    base: str, third: str, past: str, german: str, german_third: str, participle: str, takes: str, aux: tuple[str, str]
) -> Verb:
    """An underscore stands for a space in English; a bar follows the prefix of a split German verb."""
    base, third, past = (word.replace("_", " ") for word in (base, third, past))
    prefix, _, infinitive = german.rpartition("|")
    return Verb(base, third, past, prefix, infinitive, german_third, participle, takes, aux)


def _forms(nominative: str, accusative: str, dative: str) -> Forms:
    """Each case: the forms for masculine, feminine, neuter, plural; `-` for an empty one."""

    def row(text: str) -> dict[str, str]:
        return dict(zip(GENDERS, text.replace("-", " - ").split(), strict=True))

    rows = [
        {gender: form.strip("-") for gender, form in row(text).items()} for text in (nominative, accusative, dative)
    ]
    return rows[0], rows[1], rows[2]


LIVING = _entries(
    """man men m Mann Männer; woman women f Frau Frauen; child children n Kind Kinder; boy boys w Junge Jungen;
    girl girls n Mädchen Mädchen; teacher teachers m Lehrer Lehrer; doctor doctors f Ärztin Ärztinnen;
    friend friends m Freund Freunde; cook cooks m Koch Köche; neighbour neighbours m Nachbar Nachbarn;
    queen queens f Königin Königinnen; dog dogs m Hund Hunde; cat cats f Katze Katzen; horse horses n Pferd Pferde;
    bird birds m Vogel Vögel; mouse mice f Maus Mäuse; lion lions w Löwe Löwen; cow cows f Kuh Kühe;
    monkey monkeys w Affe Affen; duck ducks f Ente Enten""",
    _noun,
)
THINGS = _entries(
    """book books n Buch Bücher; chair chairs m Stuhl Stühle; table tables m Tisch Tische;
    bicycle bicycles n Fahrrad Fahrräder; letter letters m Brief Briefe; bag bags f Tasche Taschen;
    cup cups f Tasse Tassen; picture pictures n Bild Bilder; key keys m Schlüssel Schlüssel;
    flower flowers f Blume Blumen; lamp lamps f Lampe Lampen; shirt shirts n Hemd Hemden;
    umbrella umbrellas m Regenschirm Regenschirme; apple apples m Apfel Äpfel; knife knives n Messer Messer""",
    _noun,
)
PLACES = _entries(
    """garden gardens m Garten Gärten; house houses n Haus Häuser; kitchen kitchens f Küche Küchen;
    school schools f Schule Schulen; forest forests m Wald Wälder; town towns f Stadt Städte;
    room rooms n Zimmer Zimmer; church churches f Kirche Kirchen; castle castles n Schloss Schlösser""",
    _noun,
)
OBJECTS = {"living": LIVING, "thing": THINGS, "any": LIVING + THINGS}
TRANSITIVE = _entries(
    """see sees saw sehen sieht gesehen any; hear hears heard hören hört gehört living;
    love loves loved lieben liebt geliebt any; buy buys bought kaufen kauft gekauft thing;
    sell sells sold verkaufen verkauft verkauft thing; find finds found finden findet gefunden any;
    draw draws drew zeichnen zeichnet gezeichnet any; wash washes washed waschen wäscht gewaschen any;
    carry carries carried tragen trägt getragen thing; hold holds held halten hält gehalten thing;
    push pushes pushed schieben schiebt geschoben thing; forget forgets forgot vergessen vergisst vergessen any;
    lose loses lost verlieren verliert verloren thing; need needs needed brauchen braucht gebraucht thing;
    visit visits visited besuchen besucht besucht living; ask asks asked fragen fragt gefragt living;
    call calls called an|rufen ruft gerufen living; invite invites invited ein|laden lädt geladen living;
    pick_up picks_up picked_up auf|heben hebt gehoben thing;
    put_away puts_away put_away weg|räumen räumt geräumt thing""",
    _transitive,
)
INTRANSITIVE = _entries(
    """sleep sleeps slept schlafen schläft geschlafen haben; laugh laughs laughed lachen lacht gelacht haben;
    work works worked arbeiten arbeitet gearbeitet haben; sing sings sang singen singt gesungen haben;
    dance dances danced tanzen tanzt getanzt haben; wait waits waited warten wartet gewartet haben;
    swim swims swam schwimmen schwimmt geschwommen sein; run runs ran laufen läuft gelaufen sein;
    stay stays stayed bleiben bleibt geblieben sein; get_up gets_up got_up auf|stehen steht gestanden sein;
    come_back comes_back came_back zurück|kommen kommt gekommen sein""",
    _intransitive,
)
ADJECTIVES = _entries(
    """old alt; young jung; big groß; small klein; red rot; blue blau; green grün; new neu; beautiful schön;
    happy glücklich; sad traurig; heavy schwer; clean sauber; cold kalt; strong stark; clever klug; wild wild;
    quiet still; round rund; funny lustig; brave mutig; hungry hungrig; white weiß; black schwarz; strange seltsam;
    famous berühmt""",
    lambda english, stem: (english, stem),
)
WEAK = _forms("e e e en", "en e e en", "en en en en")
MIXED = _forms("er e es en", "en e es en", "en en en en")
STRONG = _forms("- - - e", "- - - e", "- - - en")
THE = Determiner("the", (False, True), True, _forms("der die das die", "den die das die", "dem der dem den"), WEAK)
A = Determiner("a", (False,), False, _forms("ein eine ein -", "einen eine ein -", "einem einer einem -"), MIXED)
DETERMINERS = (
    *(THE, THE, THE, THE),  # as often as in real text
    *(A, A),
    Determiner(
        "my",
        (False, True),
        True,
        _forms("mein meine mein meine", "meinen meine mein meine", "meinem meiner meinem meinen"),
        MIXED,
    ),
    Determiner(
        "every", (False,), False, _forms("jeder jede jedes -", "jeden jede jedes -", "jedem jeder jedem -"), WEAK
    ),
    Determiner("two", (True,), False, _forms("- - - zwei", "- - - zwei", "- - - zwei"), STRONG),
    Determiner("many", (True,), False, _forms("- - - viele", "- - - viele", "- - - vielen"), STRONG),
)
PRONOUNS = (("he", "er", False), ("she", "sie", False), ("we", "wir", True), ("they", "sie", True))
TIMES = (
    ("today", "heute"),
    ("often", "oft"),
    ("sometimes", "manchmal"),
    ("in the morning", "am Morgen"),
    ("every day", "jeden Tag"),
    ("on Sunday", "am Sonntag"),
    ("in winter", "im Winter"),
    ("after lunch", "nach dem Mittagessen"),
)
PREPOSITIONS = (("in", "in"), ("behind", "hinter"), ("in front of", "vor"), ("near", "bei"), ("next to", "neben"))
CONTRACTIONS = {"in dem": "im", "bei dem": "beim"}
CONJUNCTIONS = (
    ("because", "weil"),
    ("although", "obwohl"),
    ("while", "während"),
    ("if", "wenn"),
    ("before", "bevor"),
)
OPINIONS = (
    ("think", "thinks", "denken", "denkt"),
    ("know", "knows", "wissen", "weiß"),
    ("say", "says", "sagen", "sagt"),
    ("hope", "hopes", "hoffen", "hofft"),
)
"""English plural and third person, German plural and third person."""
MODALS = (
    ("can", "können", "kann"),
    ("must", "müssen", "muss"),
    ("should", "sollen", "soll"),
    ("may", "dürfen", "darf"),
)
"""English, German plural, German third person."""
