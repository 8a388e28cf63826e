"""The grammar of the embedded German-English corpus: inflection and word order.

A `NounPhrase` knows its two texts and how it agrees with a verb; a `Clause` knows who does what,
when, how and where; `german_clause` and `english_clause` put it in order. Nothing here is random.

Agreement is one of "1s", "2s", "3s", "1p", "3p"; case one of "nom", "acc", "dat".
"""

from __future__ import annotations

from typing import NamedTuple

from .lexicon import Adjective, Noun, Phrase
from .verbs import Modal, Verb

_GERMAN_UNITS = [
    "null",
    "eins",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "zehn",
    "elf",
    "zwölf",
    "dreizehn",
    "vierzehn",
    "fünfzehn",
    "sechzehn",
    "siebzehn",
    "achtzehn",
    "neunzehn",
]
_GERMAN_TENS = [
    "zwanzig",
    "dreißig",
    "vierzig",
    "fünfzig",
    "sechzig",
    "siebzig",
    "achtzig",
    "neunzig",
]
_ENGLISH_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_ENGLISH_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_GERMAN_ORDINALS = {1: "erst", 3: "dritt", 7: "siebt", 8: "acht"}
_ENGLISH_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
    "twenty": "twentieth",
    "thirty": "thirtieth",
}

# Endings for masculine, feminine, neuter and plural. The strong ones are also those of dieser.
_STRONG = {
    "nom": {"m": "er", "f": "e", "n": "es", "p": "e"},
    "acc": {"m": "en", "f": "e", "n": "es", "p": "e"},
    "dat": {"m": "em", "f": "er", "n": "em", "p": "en"},
}
_WEAK = {
    "nom": {"m": "e", "f": "e", "n": "e", "p": "en"},
    "acc": {"m": "en", "f": "e", "n": "e", "p": "en"},
    "dat": {"m": "en", "f": "en", "n": "en", "p": "en"},
}
_DEFINITE = {
    "nom": {"m": "der", "f": "die", "n": "das", "p": "die"},
    "acc": {"m": "den", "f": "die", "n": "das", "p": "die"},
    "dat": {"m": "dem", "f": "der", "n": "dem", "p": "den"},
}
_CONTRACTIONS = {
    "in dem ": "im ",
    "in das ": "ins ",
    "an dem ": "am ",
    "von dem ": "vom ",
    "zu dem ": "zum ",
    "zu der ": "zur ",
}
_EIN_WORDS = {"ein": "a", "kein": "no", "mein": "my", "dein": "your", "sein": "his", "unser": "our"}
_STRONG_WORDS = {"dies": "this", "jed": "every", "viel": "many", "einig": "some"}

_INDEFINITE = ("", "ein", "kein", "viel", "einig")
DETERMINERS: tuple[str, ...] = ("der", *_EIN_WORDS, *_STRONG_WORDS)


class Pronoun(NamedTuple):
    """A personal pronoun; without `accusative` it is a subject only (sie: her or them)."""

    nominative: str
    accusative: str
    dative: str
    agreement: str
    english_subject: str
    english_object: str = ""


PRONOUNS: tuple[Pronoun, ...] = (
    Pronoun("ich", "mich", "mir", "1s", "I", "me"),
    Pronoun("du", "dich", "dir", "2s", "you", "you"),
    Pronoun("er", "ihn", "ihm", "3s", "he", "him"),
    Pronoun("sie", "", "", "3s", "she"),
    Pronoun("wir", "uns", "uns", "1p", "we", "us"),
    Pronoun("sie", "", "", "3p", "they"),
)


class NounPhrase(NamedTuple):
    """A subject or object: its two texts in their case, and how it behaves in a clause.

    `definite` and `pronoun` decide its place in the German clause; `negative` marks kein;
    `negatable` is false where nicht would sound odd (each, numbers, anything indefinite).
    """

    german: str
    english: str
    agreement: str = "3s"
    definite: bool = True
    pronoun: bool = False
    negative: bool = False
    negatable: bool = True


class Clause(NamedTuple):
    """One clause; `tense` is "present", "past" or "modal".

    `complement` is what the verb calls for besides objects: a prepositional object, a direction, a
    predicate. `front` comes first in a main clause in both languages.
    """

    subject: NounPhrase
    verb: Verb
    tense: str = "present"
    modal: Modal | None = None
    dative: NounPhrase | None = None
    accusative: NounPhrase | None = None
    complement: Phrase | None = None
    front: Phrase | None = None
    time: Phrase | None = None
    frequency: Phrase | None = None
    manner: Phrase | None = None
    place: Phrase | None = None
    negated: bool = False


def german_number(number: int) -> str:
    """Spell a number from 0 to 999 in German: 321 is dreihunderteinundzwanzig."""
    if number >= 100:
        rest = german_number(number % 100) if number % 100 else ""
        return _unit_in_compound(number // 100) + "hundert" + rest
    if number < 20:
        return _GERMAN_UNITS[number]
    tens = _GERMAN_TENS[number // 10 - 2]
    return f"{_unit_in_compound(number % 10)}und{tens}" if number % 10 else tens


def _unit_in_compound(unit: int) -> str:
    return "ein" if unit == 1 else _GERMAN_UNITS[unit]


def english_number(number: int) -> str:
    """Spell a number from 0 to 999 in English: 321 is three hundred and twenty-one."""
    if number >= 100:
        rest = f" and {english_number(number % 100)}" if number % 100 else ""
        return f"{_ENGLISH_UNITS[number // 100]} hundred{rest}"
    if number < 20:
        return _ENGLISH_UNITS[number]
    tens = _ENGLISH_TENS[number // 10 - 2]
    return f"{tens}-{_ENGLISH_UNITS[number % 10]}" if number % 10 else tens


def german_date(day: int, month: str) -> str:
    """Write day 1 to 31 of a month as a time: am dritten Mai."""
    stem = _GERMAN_ORDINALS.get(day, german_number(day) + ("t" if day < 20 else "st"))
    return f"am {stem}en {month}"


def english_date(day: int, month: str) -> str:
    """Write day 1 to 31 of a month as a time: on the third of May."""
    head, dash, last = english_number(day).rpartition("-")
    return f"on the {head}{dash}{_ENGLISH_ORDINALS.get(last, last + 'th')} of {month}"


def clock_time(hour: int, minute: int) -> Phrase:
    """Say a time of day: half past seven is um halb acht, German counts to the coming hour.

    Args:
        hour: 1 to 23 for a full hour (um zwanzig Uhr is at eight in the evening), else 0 to 11.
        minute: 0, 5, 10, 15, 20, 30, 40, 45, 50 or 55.
    """
    if minute == 0:
        if hour > 12:
            part = "afternoon" if hour < 18 else "evening"
            english = f"at {english_number(hour - 12)} in the {part}"
            return Phrase(f"um {german_number(hour)} Uhr", english)
        hour = hour or 12
        return Phrase(
            f"um {_unit_in_compound(hour)} Uhr",
            f"at {english_number(hour)} o'clock",
        )
    this, following = hour or 12, hour + 1
    if minute == 30:
        return Phrase(f"um halb {german_number(following)}", f"at half past {english_number(this)}")
    after = minute < 30
    count = minute if after else 60 - minute
    named = this if after else following
    german = "Viertel" if count == 15 else german_number(count)
    english = "a quarter" if count == 15 else english_number(count)
    return Phrase(
        f"um {german} {'nach' if after else 'vor'} {german_number(named)}",
        f"at {english} {'past' if after else 'to'} {english_number(named)}",
    )


def german_noun(noun: Noun, case: str, *, plural: bool = False) -> str:
    """Inflect a noun for a case: n in the dative plural, n-declension where the noun is weak."""
    if plural:
        needs_n = case == "dat" and noun.plural[-1] not in "ns"
        return noun.plural + "n" if needs_n else noun.plural
    return noun.plural if noun.weak and case != "nom" else noun.german


def english_plural(noun: Noun) -> str:
    """Return the English plural of a noun."""
    word = noun.english
    if noun.english_plural:
        return noun.english_plural
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if word[-1] == "y" and word[-2] not in "aeou" else word + "s"


def determiner(word: str, case: str, gender: str) -> str:
    """Inflect a determiner of `DETERMINERS`; gender "p" is the plural of any gender."""
    if word == "der":
        return _DEFINITE[case][gender]
    if word in _EIN_WORDS and (gender, case) in {("m", "nom"), ("n", "nom"), ("n", "acc")}:
        return word
    return word + _STRONG[case][gender]


def adjective_form(adjective: Adjective, case: str, gender: str, word: str = "") -> str:
    """Inflect an adjective after the determiner `word`; empty: after none or a number.

    Strong without a determiner, with viele and einige and where ein shows no ending (ein alter
    Mann, but einem alten Mann); weak everywhere else.
    """
    bare = not word or word in ("viel", "einig")
    if word in _EIN_WORDS:
        bare = determiner(word, case, gender) == word
    endings = _STRONG if bare else _WEAK
    return (adjective.stem or adjective.german) + endings[case][gender]


def noun_phrase(
    noun: Noun,
    case: str,
    *,
    word: str = "",
    plural: bool = False,
    number: int = 0,
    adjective: Adjective | None = None,
) -> NounPhrase:
    """Build determiner or number, adjective and noun in one case.

    Args:
        noun: The head.
        case: "nom", "acc" or "dat".
        word: One of `DETERMINERS`, or empty for none.
        plural: Whether the phrase is plural.
        number: A number from 2 on in place of the determiner; the phrase must then be plural.
        adjective: At most one, before the noun.
    """
    gender = "p" if plural else noun.gender
    german = [determiner(word, case, gender)] if word else []
    english = [_english_determiner(word, plural)] if word else []
    if number:
        german, english = [german_number(number)], [english_number(number)]
    if adjective:
        german.append(adjective_form(adjective, case, gender, word))
        english.append(adjective.english)
    german.append(german_noun(noun, case, plural=plural))
    english.append(english_plural(noun) if plural else noun.english)
    if word == "ein" and _begins_with_vowel_sound(english[1]):
        english[0] = "an"
    return NounPhrase(
        " ".join(german),
        " ".join(english),
        agreement="3p" if plural else "3s",
        definite=word not in _INDEFINITE,
        negative=word == "kein",
        negatable=word not in _INDEFINITE and word != "jed",
    )


def _english_determiner(word: str, plural: bool) -> str:
    if word == "der":
        return "the"
    if word == "dies" and plural:
        return "these"
    return _EIN_WORDS.get(word) or _STRONG_WORDS[word]


def _begins_with_vowel_sound(word: str) -> bool:
    return word == "honest" or (word[0] in "aeiou" and word != "useful")


def prepositional(preposition: str, phrase: str) -> str:
    """Put a German preposition before a phrase, contracted where German does: im, zum, zur."""
    text = f"{preposition} {phrase}"
    for long, short in _CONTRACTIONS.items():
        if text.startswith(long):
            return short + text[len(long) :]
    return text


def german_present(verb: Verb, agreement: str) -> str:
    """Return the present form of a verb, without its separable prefix."""
    if agreement == "3s":
        return verb.third
    if agreement == "1s":
        return verb.first or _present_stem(verb) + "e"
    if agreement == "2s":
        stem = verb.third[:-1]
        return verb.second or stem + ("t" if stem[-1] in "sßz" else "st")
    return "sind" if verb.infinitive == "sein" else verb.infinitive


def _present_stem(verb: Verb) -> str:
    infinitive = verb.infinitive
    return infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]


def english_present(verb: Verb, agreement: str) -> str:
    """Return the present of an English verb, with what follows its first word (falls asleep)."""
    word, space, rest = verb.english.partition(" ")
    if word == "be":
        word = {"1s": "am", "3s": "is"}.get(agreement, "are")
    elif agreement == "3s":
        word = _third_person(word)
    return word + space + rest


def _third_person(word: str) -> str:
    if word in ("have", "do", "go"):
        return {"have": "has", "do": "does", "go": "goes"}[word]
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if word[-1] == "y" and word[-2] not in "aeou" else word + "s"


def english_past(verb: Verb, agreement: str) -> str:
    """Return the past of an English verb, with what follows its first word (fell asleep)."""
    word, space, rest = verb.english.partition(" ")
    if word == "be":
        past = "was" if agreement in ("1s", "3s") else "were"
    elif verb.past:
        past = verb.past
    elif word.endswith("e"):
        past = word + "d"
    else:
        y = word[-1] == "y" and word[-2] not in "aeou"
        past = word[:-1] + "ied" if y else word + "ed"
    return past + space + rest


def _german_verb(clause: Clause) -> tuple[str, str]:
    """Return the finite verb and the words at the end of a main clause."""
    verb, agreement = clause.verb, clause.subject.agreement
    if clause.modal:
        modal = clause.modal
        forms = {"1s": modal.first, "2s": modal.second, "3s": modal.third}
        return forms.get(agreement, modal.infinitive), verb.prefix + verb.infinitive
    if clause.tense == "past":
        if verb.infinitive == "sein":
            past = {"1s": "war", "2s": "warst", "3s": "war"}
            return past.get(agreement, "waren"), ""
        auxiliary = _SEIN if verb.sein else _HABEN
        return auxiliary.get(agreement, "sind" if verb.sein else "haben"), verb.participle
    return german_present(verb, agreement), verb.prefix


_SEIN = {"1s": "bin", "2s": "bist", "3s": "ist"}
_HABEN = {"1s": "habe", "2s": "hast", "3s": "hat"}


def _german_middle(clause: Clause) -> list[str]:
    """Return all between the finite verb and the end: pronouns, time, objects, manner, place."""
    dative, accusative = clause.dative, clause.accusative
    known = [item for item in (dative, accusative) if item and (item.definite or item is dative)]
    pronouns = [item for item in known if item.pronoun]
    known = [item for item in known if not item.pronoun]
    unknown = [accusative] if accusative and not accusative.definite else []
    before = [*pronouns, clause.time, clause.frequency, *known, clause.manner, *unknown]
    after = [clause.place, clause.complement]
    words = [item.german for item in before if item] + (["nicht"] if clause.negated else [])
    return words + [item.german for item in after if item]


def german_clause(clause: Clause, order: str = "main") -> str:
    """Put a clause in German order, without capital and full stop.

    Args:
        clause: The clause; `front` is used only where the order is "main".
        order: "main" (verb second), "inverted" (verb first: after something else took
            the first place) or "last" (in a subordinate clause).
    """
    finite, end = _german_verb(clause)
    subject, middle = clause.subject.german, _german_middle(clause)
    if order == "last":
        separable = clause.verb.prefix and end == clause.verb.prefix
        verbs = [end + finite] if separable else [end, finite]
        words = [subject, *middle, *verbs]
    elif order == "inverted":
        words = [finite, subject, *middle, end]
    elif clause.front:
        words = [clause.front.german, finite, subject, *middle, end]
    else:
        words = [subject, finite, *middle, end]
    return " ".join(word for word in words if word)


def _english_verb(clause: Clause, *, support: bool) -> tuple[str, str]:
    """Return the auxiliary (may be empty) and the rest of the verb; `support`: do, does, did."""
    verb, agreement = clause.verb, clause.subject.agreement
    if clause.modal:
        modal = clause.modal
        if modal.auxiliary:
            return modal.auxiliary, f"{modal.following} {verb.english}".strip()
        verb = verb._replace(english=f"{modal.following} {verb.english}")
    past = clause.tense == "past"
    finite = english_past(verb, agreement) if past else english_present(verb, agreement)
    if verb.english == "be":
        return finite, ""
    if support:
        do = "does" if agreement == "3s" else "do"
        return "did" if past else do, verb.english
    return "", finite


def english_clause(clause: Clause) -> str:
    """Put a clause in English order, without capital and full stop."""
    auxiliary, verb = _english_verb(clause, support=clause.negated)
    subject, front = clause.subject.english, clause.front.english if clause.front else ""
    negation = "not" if clause.negated else ""
    frequency = clause.frequency.english if clause.frequency else ""
    after: list[Phrase | NounPhrase | None] = [clause.dative, clause.accusative, clause.complement]
    after += [clause.manner, clause.place, clause.time]
    words = [front, subject, auxiliary, negation, frequency, verb]
    words += [item.english for item in after if item]
    return " ".join(word for word in words if word)
