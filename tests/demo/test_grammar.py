"""The grammar of the embedded corpus, against forms and sentences written by hand."""

from __future__ import annotations

import pytest

from demo.corpus import grammar as corpus_grammar
from demo.corpus import lexicon as corpus_lexicon
from demo.corpus import verbs as corpus_verbs
from demo.corpus.grammar import (
    PRONOUNS,
    Clause,
    NounPhrase,
    adjective_form,
    clock_time,
    determiner,
    english_clause,
    english_date,
    english_number,
    english_past,
    english_plural,
    english_present,
    german_clause,
    german_date,
    german_noun,
    german_number,
    german_present,
    noun_phrase,
    prepositional,
)
from demo.corpus.lexicon import Adjective, Noun, Phrase
from demo.corpus.verbs import Modal, Verb

NOUNS: dict[str, Noun] = {
    noun.german: noun
    for table in vars(corpus_lexicon).values()
    if isinstance(table, tuple) and table and isinstance(table[0], Noun)
    for noun in table
}
ADJECTIVES: dict[str, Adjective] = {
    adjective.german: adjective
    for table in vars(corpus_lexicon).values()
    if isinstance(table, tuple) and table and isinstance(table[0], Adjective)
    for adjective in table
}
VERBS: dict[str, Verb] = {corpus_verbs.lemma(verb): verb for verb in corpus_verbs.ALL_VERBS}
MODALS: dict[str, Modal] = {modal.infinitive: modal for modal in corpus_verbs.MODALS}

TEACHER = NounPhrase("der Lehrer", "the teacher")
DOCTOR = NounPhrase("den Arzt", "the doctor")
BOOK = NounPhrase("das Buch", "the book")
A_BOOK = NounPhrase("ein Buch", "a book", definite=False, negatable=False)
CHILD = NounPhrase("dem Kind", "the child")
ME = NounPhrase("mich", "me", pronoun=True)
MONDAY = Phrase("am Montag", "on Monday")
GARDEN = Phrase("im Garten", "in the garden")


# Words


@pytest.mark.parametrize(
    ("number", "german", "english"),
    [
        (0, "null", "zero"),
        (1, "eins", "one"),
        (12, "zwölf", "twelve"),
        (16, "sechzehn", "sixteen"),
        (17, "siebzehn", "seventeen"),
        (21, "einundzwanzig", "twenty-one"),
        (30, "dreißig", "thirty"),
        (67, "siebenundsechzig", "sixty-seven"),
        (76, "sechsundsiebzig", "seventy-six"),
        (100, "einhundert", "one hundred"),
        (101, "einhunderteins", "one hundred and one"),
        (315, "dreihundertfünfzehn", "three hundred and fifteen"),
        (999, "neunhundertneunundneunzig", "nine hundred and ninety-nine"),
    ],
)
def test_numbers_are_spelled(number: int, german: str, english: str) -> None:
    assert (german_number(number), english_number(number)) == (german, english)


def test_numbers_are_distinct() -> None:
    assert len({german_number(number) for number in range(1000)}) == 1000
    assert len({english_number(number) for number in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("day", "month", "german", "english"),
    [
        (1, ("Januar", "January"), "am ersten Januar", "on the first of January"),
        (3, ("Mai", "May"), "am dritten Mai", "on the third of May"),
        (7, ("Juli", "July"), "am siebten Juli", "on the seventh of July"),
        (8, ("März", "March"), "am achten März", "on the eighth of March"),
        (12, ("April", "April"), "am zwölften April", "on the twelfth of April"),
        (19, ("Juni", "June"), "am neunzehnten Juni", "on the nineteenth of June"),
        (20, ("Mai", "May"), "am zwanzigsten Mai", "on the twentieth of May"),
        (22, ("Mai", "May"), "am zweiundzwanzigsten Mai", "on the twenty-second of May"),
        (31, ("Mai", "May"), "am einunddreißigsten Mai", "on the thirty-first of May"),
    ],
)
def test_dates_are_spelled(day: int, month: tuple[str, str], german: str, english: str) -> None:
    assert (german_date(day, month[0]), english_date(day, month[1])) == (german, english)


@pytest.mark.parametrize(
    ("hour", "minute", "german", "english"),
    [
        (1, 0, "um ein Uhr", "at one o'clock"),
        (12, 0, "um zwölf Uhr", "at twelve o'clock"),
        (14, 0, "um vierzehn Uhr", "at two in the afternoon"),
        (20, 0, "um zwanzig Uhr", "at eight in the evening"),
        (7, 30, "um halb acht", "at half past seven"),
        (0, 30, "um halb eins", "at half past twelve"),
        (3, 15, "um Viertel nach drei", "at a quarter past three"),
        (2, 45, "um Viertel vor drei", "at a quarter to three"),
        (0, 10, "um zehn nach zwölf", "at ten past twelve"),
        (11, 40, "um zwanzig vor zwölf", "at twenty to twelve"),
        (0, 55, "um fünf vor eins", "at five to one"),
    ],
)
def test_times_of_day_are_spelled(hour: int, minute: int, german: str, english: str) -> None:
    assert clock_time(hour, minute) == Phrase(german, english)


@pytest.mark.parametrize(
    ("word", "case", "plural", "german"),
    [
        ("der", "nom", False, "der alte Tisch die alte Lampe das alte Kleid"),
        ("der", "acc", False, "den alten Tisch die alte Lampe das alte Kleid"),
        ("der", "dat", False, "dem alten Tisch der alten Lampe dem alten Kleid"),
        ("der", "nom", True, "die alten Tische die alten Lampen die alten Kleider"),
        ("der", "dat", True, "den alten Tischen den alten Lampen den alten Kleidern"),
        ("ein", "nom", False, "ein alter Tisch eine alte Lampe ein altes Kleid"),
        ("ein", "acc", False, "einen alten Tisch eine alte Lampe ein altes Kleid"),
        ("ein", "dat", False, "einem alten Tisch einer alten Lampe einem alten Kleid"),
        ("unser", "acc", False, "unseren alten Tisch unsere alte Lampe unser altes Kleid"),
        ("mein", "nom", True, "meine alten Tische meine alten Lampen meine alten Kleider"),
        ("kein", "dat", True, "keinen alten Tischen keinen alten Lampen keinen alten Kleidern"),
        ("dies", "nom", False, "dieser alte Tisch diese alte Lampe dieses alte Kleid"),
        ("jed", "dat", False, "jedem alten Tisch jeder alten Lampe jedem alten Kleid"),
        ("viel", "acc", True, "viele alte Tische viele alte Lampen viele alte Kleider"),
        ("einig", "dat", True, "einigen alten Tischen einigen alten Lampen einigen alten Kleidern"),
        ("", "nom", True, "alte Tische alte Lampen alte Kleider"),
        ("", "nom", False, "alter Tisch alte Lampe altes Kleid"),
        ("", "acc", False, "alten Tisch alte Lampe altes Kleid"),
        ("", "dat", False, "altem Tisch alter Lampe altem Kleid"),
    ],
)
def test_noun_phrase_declines(word: str, case: str, plural: bool, german: str) -> None:
    phrases = [
        noun_phrase(NOUNS[noun], case, word=word, plural=plural, adjective=ADJECTIVES["alt"])
        for noun in ("Tisch", "Lampe", "Kleid")
    ]
    assert " ".join(phrase.german for phrase in phrases) == german


@pytest.mark.parametrize(
    ("noun", "case", "plural", "form"),
    [
        ("Student", "nom", False, "Student"),
        ("Student", "acc", False, "Studenten"),
        ("Nachbar", "dat", False, "Nachbarn"),
        ("Bär", "acc", False, "Bären"),
        ("Lehrer", "dat", True, "Lehrern"),
        ("Frau", "dat", True, "Frauen"),
        ("Auto", "dat", True, "Autos"),
        ("Gast", "dat", True, "Gästen"),
        ("Haus", "acc", True, "Häuser"),
    ],
)
def test_german_noun_forms(noun: str, case: str, plural: bool, form: str) -> None:
    assert german_noun(NOUNS[noun], case, plural=plural) == form


@pytest.mark.parametrize(
    ("adjective", "form"), [("teuer", "teure"), ("dunkel", "dunkle"), ("müde", "müde")]
)
def test_adjective_stems(adjective: str, form: str) -> None:
    assert adjective_form(ADJECTIVES[adjective], "nom", "f", "der") == form


def test_english_noun_phrases() -> None:
    apple, tie = NOUNS["Apfel"], ADJECTIVES["alt"]
    assert noun_phrase(apple, "acc", word="ein").english == "an apple"
    assert noun_phrase(apple, "acc", word="ein", adjective=ADJECTIVES["rot"]).english == (
        "a red apple"
    )
    assert noun_phrase(NOUNS["Mann"], "acc", word="ein", adjective=tie).english == "an old man"
    assert noun_phrase(
        NOUNS["Mann"], "acc", word="ein", adjective=ADJECTIVES["ehrlich"]
    ).english == ("an honest man")
    assert noun_phrase(
        NOUNS["Ring"], "acc", word="ein", adjective=ADJECTIVES["nützlich"]
    ).english == ("a useful ring")
    assert noun_phrase(apple, "dat", word="dies", plural=True).english == "these apples"
    three = noun_phrase(apple, "dat", plural=True, number=23, adjective=ADJECTIVES["rot"])
    assert (three.german, three.english) == (
        "dreiundzwanzig roten Äpfeln",
        "twenty-three red apples",
    )


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        *(("Kleid", "dresses"), ("Kirche", "churches"), ("Kiste", "boxes"), ("Schlüssel", "keys")),
        *(
            ("Fabrik", "factories"),
            ("Messer", "knives"),
            ("Maus", "mice"),
            ("Tochter", "daughters"),
        ),
    ],
)
def test_english_plural(noun: str, plural: str) -> None:
    assert english_plural(NOUNS[noun]) == plural


def test_prepositions_contract() -> None:
    assert prepositional("in", "dem Garten") == "im Garten"
    assert prepositional("in", "das Haus") == "ins Haus"
    assert prepositional("zu", "der Schule") == "zur Schule"
    assert prepositional("zu", "dem Berg") == "zum Berg"
    assert prepositional("von", "dem Arzt") == "vom Arzt"
    assert prepositional("auf", "dem Berg") == "auf dem Berg"
    assert prepositional("in", "den Garten") == "in den Garten"


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("kaufen", "kaufe kaufst kauft kaufen kaufen"),
        ("arbeiten", "arbeite arbeitest arbeitet arbeiten arbeiten"),
        ("lesen", "lese liest liest lesen lesen"),
        ("fahren", "fahre fährst fährt fahren fahren"),
        ("haben", "habe hast hat haben haben"),
        ("behalten", "behalte behältst behält behalten behalten"),
        ("tanzen", "tanze tanzt tanzt tanzen tanzen"),
        ("flüstern", "flüstere flüsterst flüstert flüstern flüstern"),
        ("einladen", "lade lädst lädt laden laden"),
        ("wissen", "weiß weißt weiß wissen wissen"),
        ("sein", "bin bist ist sind sind"),
    ],
)
def test_german_present(verb: str, forms: str) -> None:
    agreements = ("1s", "2s", "3s", "1p", "3p")
    assert " ".join(german_present(VERBS[verb], agreement) for agreement in agreements) == forms


@pytest.mark.parametrize(
    ("verb", "present", "past"),
    [
        ("kaufen", "buys", "bought"),
        ("tragen", "carries", "carried"),
        ("waschen", "washes", "washed"),
        ("beten", "prays", "prayed"),
        ("gehen", "goes", "went"),
        ("haben", "has", "had"),
        ("umarmen", "hugs", "hugged"),
        ("benutzen", "uses", "used"),
        ("einschlafen", "falls asleep", "fell asleep"),
        ("warten auf", "waits for", "waited for"),
        ("sein", "is", "was"),
    ],
)
def test_english_third_person_and_past(verb: str, present: str, past: str) -> None:
    assert english_present(VERBS[verb], "3s") == present
    assert english_past(VERBS[verb], "3s") == past


# Sentences: the clause, the order in both languages, the expected texts


def _clause(verb: str, **parts: object) -> Clause:
    return Clause(parts.pop("subject", TEACHER), VERBS[verb], **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("clause", "german", "english"),
    [
        (
            _clause("kaufen", accusative=BOOK),
            "der Lehrer kauft das Buch",
            "the teacher buys the book",
        ),
        (
            _clause("kaufen", accusative=BOOK, front=MONDAY),
            "am Montag kauft der Lehrer das Buch",
            "on Monday the teacher buys the book",
        ),
        (
            _clause("lesen", accusative=BOOK, front=GARDEN, time=MONDAY),
            "im Garten liest der Lehrer am Montag das Buch",
            "in the garden the teacher reads the book on Monday",
        ),
        (
            _clause("lesen", accusative=A_BOOK, manner=Phrase("gern", "gladly")),
            "der Lehrer liest gern ein Buch",
            "the teacher reads a book gladly",
        ),
        (
            _clause("lesen", accusative=BOOK, manner=Phrase("gern", "gladly"), place=GARDEN),
            "der Lehrer liest das Buch gern im Garten",
            "the teacher reads the book gladly in the garden",
        ),
        (
            _clause("anrufen", accusative=DOCTOR),
            "der Lehrer ruft den Arzt an",
            "the teacher calls the doctor",
        ),
        (
            _clause("anrufen", accusative=ME, time=MONDAY),
            "der Lehrer ruft mich am Montag an",
            "the teacher calls me on Monday",
        ),
        (
            _clause("anrufen", accusative=DOCTOR, tense="past", negated=True),
            "der Lehrer hat den Arzt nicht angerufen",
            "the teacher did not call the doctor",
        ),
        (
            _clause("einschlafen", tense="past", place=GARDEN),
            "der Lehrer ist im Garten eingeschlafen",
            "the teacher fell asleep in the garden",
        ),
        (
            _clause("einladen", accusative=DOCTOR, tense="modal", modal=MODALS["müssen"]),
            "der Lehrer muss den Arzt einladen",
            "the teacher must invite the doctor",
        ),
        (
            _clause(
                "kaufen",
                accusative=BOOK,
                tense="modal",
                modal=MODALS["wollen"],
                frequency=Phrase("oft", "often"),
            ),
            "der Lehrer will oft das Buch kaufen",
            "the teacher often wants to buy the book",
        ),
        (
            _clause(
                "kaufen",
                accusative=BOOK,
                tense="modal",
                modal=MODALS["möchten"],
                frequency=Phrase("oft", "often"),
            ),
            "der Lehrer möchte oft das Buch kaufen",
            "the teacher would often like to buy the book",
        ),
        (
            _clause("kaufen", accusative=BOOK, tense="modal", modal=MODALS["werden"], front=MONDAY),
            "am Montag wird der Lehrer das Buch kaufen",
            "on Monday the teacher will buy the book",
        ),
        (
            _clause("geben", dative=CHILD, accusative=A_BOOK, time=MONDAY),
            "der Lehrer gibt am Montag dem Kind ein Buch",
            "the teacher gives the child a book on Monday",
        ),
        (
            _clause("sein", complement=Phrase("müde", "tired"), time=MONDAY, negated=True),
            "der Lehrer ist am Montag nicht müde",
            "the teacher is not tired on Monday",
        ),
        (
            _clause("sein", complement=Phrase("müde", "tired"), tense="past"),
            "der Lehrer war müde",
            "the teacher was tired",
        ),
    ],
)
def test_main_clause_is_ordered(clause: Clause, german: str, english: str) -> None:
    assert german_clause(clause) == german
    assert english_clause(clause) == english


@pytest.mark.parametrize(
    ("clause", "last"),
    [
        (_clause("kaufen", accusative=BOOK), "der Lehrer das Buch kauft"),
        (_clause("anrufen", accusative=DOCTOR), "der Lehrer den Arzt anruft"),
        (
            _clause("anrufen", accusative=DOCTOR, tense="past"),
            "der Lehrer den Arzt angerufen hat",
        ),
        (
            _clause("anrufen", accusative=DOCTOR, tense="modal", modal=MODALS["können"]),
            "der Lehrer den Arzt anrufen kann",
        ),
        (_clause("ankommen", tense="past", time=MONDAY), "der Lehrer am Montag angekommen ist"),
        (_clause("sein", complement=Phrase("alt", "old")), "der Lehrer alt ist"),
    ],
)
def test_subordinate_clause_has_its_verb_last(clause: Clause, last: str) -> None:
    assert german_clause(clause, "last") == last


@pytest.mark.parametrize(
    ("clause", "german"),
    [
        (_clause("anrufen", accusative=DOCTOR), "ruft der Lehrer den Arzt an"),
        (_clause("kaufen", accusative=BOOK, tense="past"), "hat der Lehrer das Buch gekauft"),
        (_clause("sein", complement=Phrase("müde", "tired")), "ist der Lehrer müde"),
    ],
)
def test_inverted_clause_has_its_verb_first(clause: Clause, german: str) -> None:
    assert german_clause(clause, "inverted") == german


def test_pronouns_are_decided_by_the_verb() -> None:
    """Sie is she or they; every verb and modal tells which."""
    she, they = [pronoun.agreement for pronoun in PRONOUNS if pronoun.nominative == "sie"]
    assert (she, they) == ("3s", "3p")
    for verb in corpus_verbs.ALL_VERBS:
        assert german_present(verb, she) != german_present(verb, they)
    for modal in corpus_verbs.MODALS:
        assert modal.third != modal.infinitive


def test_determiners_are_all_declined() -> None:
    for word in corpus_grammar.DETERMINERS:
        forms = {determiner(word, case, "m") for case in ("nom", "acc", "dat")}
        assert len(forms) == 3
