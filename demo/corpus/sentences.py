"""The sentences of the embedded corpus: random, German with their one English translation.

A `Speaker` draws words, builds clauses from them and joins clauses to sentences; `grammar`
puts them in order. Words are drawn near-uniformly, so that a small corpus shows each of them often.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from . import lexicon, verbs
from .grammar import (
    PRONOUNS,
    Clause,
    NounPhrase,
    clock_time,
    english_clause,
    english_date,
    english_number,
    german_clause,
    german_date,
    german_number,
    noun_phrase,
    prepositional,
)
from .lexicon import Adjective, Noun, Phrase
from .verbs import Verb

T = TypeVar("T")

# ("adjective", "neu", "Buch") or ("verb", "kaufen", "Buch").
Combination = tuple[str, str, str]

_RESERVED_ONE_IN = 10

_SINGULAR_WORDS = (
    *(("der", 38), ("ein", 30), ("mein", 6), ("dein", 5)),
    *(("sein", 6), ("unser", 5), ("dies", 6), ("jed", 4)),
)
_PLURAL_WORDS = (
    *(("der", 30), ("mein", 5), ("dein", 4), ("sein", 5), ("unser", 5)),
    *(("dies", 7), ("", 12), ("viel", 8), ("einig", 8), ("number", 16)),
)
_SUBSTANCE_WORDS = (("der", 40), ("", 40), ("mein", 5), ("sein", 5), ("unser", 5), ("dies", 5))
_TENSES = (("present", 45), ("past", 32), ("modal", 23))
_IT = NounPhrase("es", "it")
_EUROS = Noun("Euro", "m", "Euro", "euro")
_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MINUTES = (0, 0, 0, 5, 10, 15, 20, 30, 30, 40, 45, 50, 55)


@dataclass(frozen=True)
class Derivation:
    """A sentence in both languages, the German lemmas drawn for it and its combinations."""

    german: str
    english: str
    lemmas: tuple[str, ...]
    combinations: tuple[Combination, ...]

    @property
    def reserved(self) -> bool:
        """True if the sentence contains a combination that training must not see."""
        return any(is_reserved(combination) for combination in self.combinations)


def is_reserved(combination: Combination) -> bool:
    """Tell whether a combination is held out: one in ten, the same ones for every seed."""
    return zlib.crc32(":".join(combination).encode()) % _RESERVED_ONE_IN == 0


class _Dice:
    """Random choices from `random.random` alone, which every Python version draws alike."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def between(self, low: int, high: int) -> int:
        return low + int(self._random() * (high - low + 1))

    def weighted(self, items: Sequence[tuple[T, int]]) -> T:
        total = 0
        for _, weight in items:
            total += weight
        rest = self._random() * total
        for item, weight in items:
            rest -= weight
            if rest < 0:
                return item
        return items[-1][0]


class Speaker:
    """A source of sentences; the same seed draws the same ones.

    `_lemmas` and `_combinations` collect what the current sentence uses, so whatever is drawn must
    also be said.
    """

    def __init__(self, seed: int) -> None:
        self._dice = _Dice(seed)
        self._lemmas: list[str] = []
        self._combinations: list[Combination] = []
        self._adjective_rate = 0.0

    def speak(self) -> Derivation:
        """Draw one sentence."""
        self._lemmas, self._combinations = [], []
        kinds: tuple[tuple[Callable[[], Phrase], int], ...] = (
            (self._statement, 89),
            (self._reported, 4),
            (self._reasoned, 2),
        )
        kind = self._dice.weighted(kinds)
        self._adjective_rate = 0.2 if kind == self._statement else 0.08
        german, english = kind()
        return Derivation(
            german[0].upper() + german[1:],
            english[0].upper() + english[1:],
            tuple(self._lemmas),
            tuple(self._combinations),
        )

    def _say(self, phrase: Phrase) -> Phrase:
        self._lemmas.append(phrase.german)
        return phrase

    def _say_verb(self, choices: Sequence[Verb]) -> Verb:
        verb = self._dice.pick(choices)
        self._lemmas.append(verbs.lemma(verb))
        return verb

    def _combine(self, verb: Verb | None, noun: Noun, adjective: Adjective | None) -> None:
        self._lemmas.append(noun.german)
        if verb:
            self._combinations.append(("verb", verbs.lemma(verb), noun.german))
        if adjective:
            self._lemmas.append(adjective.german)
            self._combinations.append(("adjective", adjective.german, noun.german))

    # Sentences

    def _statement(self) -> Phrase:
        clause = self._adorn(self._bare_clause(), 1.0, front=True)
        return Phrase(german_clause(clause) + ".", english_clause(clause) + ".")

    def _reported(self) -> Phrase:
        asks = self._dice.chance(0.15)
        verb = self._say_verb((verbs.ASK,) if asks else verbs.SAYING_VERBS)
        link = Phrase("ob", "whether") if asks else Phrase("dass", "that")
        past = self._dice.chance(0.25)
        main = Clause(self._subject(), verb, "past" if past else "present")
        if not asks and main.subject.negatable and self._dice.chance(0.1):
            main = main._replace(negated=True)
        return _subordinate(main, link, self._adorn(self._bare_clause(), 0.25), first=False)

    def _reasoned(self) -> Phrase:
        reason = self._dice.chance(0.5)
        link = self._say(self._dice.pick(lexicon.REASONS if reason else lexicon.MOMENTS))
        tense, without = ("", "") if reason else ("present", "negation")
        main = self._adorn(self._bare_clause(), 0.1, tense=tense)
        rest = self._adorn(self._bare_clause(), 0.1, tense=tense, without=(without,))
        return _subordinate(main, link, rest, first=self._dice.chance(0.4))

    # Clauses

    def _bare_clause(self) -> Clause:
        """Draw a clause with what its verb calls for: the present tense, nothing more."""
        kinds: tuple[tuple[Callable[[], Clause], int], ...] = (
            (self._deed, 84),
            (self._state, 9),
            (self._quantity, 5),
            (self._weather, 2),
        )
        return self._dice.weighted(kinds)()

    def _deed(self) -> Clause:
        kinds: tuple[tuple[Callable[[], Clause], int], ...] = (
            (self._thing_deed, 28),
            (self._food_deed, 8),
            (self._person_deed, 21),
            (self._gift, 5),
            (self._action, 14),
            (self._motion, 8),
            (self._preposition_deed, 8),
        )
        return self._dice.weighted(kinds)()

    def _thing_deed(self) -> Clause:
        text = self._dice.chance(0.15)
        verb = self._say_verb(verbs.TEXT_VERBS if text else verbs.THING_VERBS)
        nouns = lexicon.TEXTS if text or self._dice.chance(0.1) else lexicon.THINGS
        thing = self._noun(nouns, lexicon.THING_ADJECTIVES, "acc", verb=verb, negative=True)
        return Clause(self._subject(), verb, accusative=thing)

    def _food_deed(self) -> Clause:
        drink = self._dice.chance(0.4)
        verb = self._say_verb(verbs.DRINK_VERBS if drink else verbs.FOOD_VERBS)
        nouns = lexicon.DRINKS if drink else lexicon.FOODS + lexicon.SUBSTANCES
        food = self._noun(nouns, lexicon.FOOD_ADJECTIVES, "acc", verb=verb, negative=True)
        return Clause(self._subject(), verb, accusative=food)

    def _person_deed(self) -> Clause:
        subject = self._subject()
        if self._dice.chance(0.33):
            verb = self._say_verb(verbs.DATIVE_VERBS)
            return Clause(subject, verb, dative=self._person("dat", verb, subject))
        verb = self._say_verb(verbs.PERSON_VERBS)
        return Clause(subject, verb, accusative=self._person("acc", verb, subject))

    def _gift(self) -> Clause:
        subject, verb = self._subject(), self._say_verb(verbs.GIVING_VERBS)
        nouns = lexicon.TEXTS if self._dice.chance(0.2) else lexicon.THINGS
        # No combinations here: with two objects most gifts would be held out.
        receiver = self._person("dat", None, subject, animals=0.0)
        thing = self._noun(nouns, lexicon.THING_ADJECTIVES, "acc")
        return Clause(subject, verb, dative=receiver, accusative=thing)

    def _action(self) -> Clause:
        return Clause(self._subject(animals=0.3), self._say_verb(verbs.ACTION_VERBS))

    def _motion(self) -> Clause:
        subject, verb = self._subject(animals=0.2), self._say_verb(verbs.MOTION_VERBS)
        indoors = self._dice.chance(0.7)
        nouns = lexicon.ROOMS if indoors else lexicon.SURFACES
        way, case = self._dice.pick(lexicon.ROOM_WAYS if indoors else lexicon.SURFACE_WAYS)
        place = self._noun(nouns, lexicon.PLACE_ADJECTIVES, case, plain=True)
        self._say(way)
        german = prepositional(way.german, place.german)
        return Clause(subject, verb, complement=Phrase(german, f"{way.english} {place.english}"))

    def _preposition_deed(self) -> Clause:
        subject, verb = self._subject(), self._say_verb(verbs.PREPOSITION_VERBS)
        person = self._person(verb.case, verb, subject)
        german = prepositional(verb.preposition, person.german)
        return Clause(subject, verb, complement=Phrase(german, person.english))

    def _state(self) -> Clause:
        """Say that X is very old, or that X is as old as Y."""
        nouns, adjectives = self._dice.weighted(
            (
                ((lexicon.PERSONS, lexicon.PERSON_ADJECTIVES), 40),
                ((lexicon.THINGS, lexicon.THING_ADJECTIVES), 35),
                ((lexicon.ROOMS + lexicon.SURFACES, lexicon.PLACE_ADJECTIVES), 15),
                ((lexicon.DRINKS + lexicon.SUBSTANCES, lexicon.FOOD_ADJECTIVES), 10),
            )
        )
        people = nouns is lexicon.PERSONS
        subject = self._subject() if people else self._noun(nouns, (), "nom", plain=True)
        adjective = self._dice.pick(adjectives)
        self._lemmas.append(adjective.german)
        if self._dice.chance(0.2):
            other = self._noun(nouns, (), "nom", plain=True)
            german = f"so {adjective.german} wie {other.german}"
            english = f"as {adjective.english} as {other.english}"
        else:
            degree = Phrase("", "")
            if self._dice.chance(0.6):
                degree = self._say(self._dice.pick(lexicon.DEGREES))
            german = f"{degree.german} {adjective.german}".strip()
            english = f"{degree.english} {adjective.english}".strip()
        return Clause(subject, verbs.BE, complement=Phrase(german, english))

    def _quantity(self) -> Clause:
        """Say that X costs n euros, or that X is n years old."""
        if self._dice.chance(0.3):
            years = self._dice.between(2, 99)
            german, english = german_number(years), english_number(years)
            age = Phrase(f"{german} Jahre alt", f"{english} years old")
            return Clause(self._subject(), verbs.BE, complement=age)
        subject = self._noun(lexicon.THINGS, lexicon.THING_ADJECTIVES, "nom", plain=True)
        price = noun_phrase(_EUROS, "acc", plural=True, number=self._number(2))
        return Clause(subject, verbs.COST, accusative=price)

    def _weather(self) -> Clause:
        return Clause(_IT, self._say_verb(verbs.WEATHER_VERBS))

    # Noun phrases

    def _number(self, low: int) -> int:
        """Draw a number up to 99, small ones more often; never 1, which needs an inflected ein."""
        high = self._dice.weighted(((12, 60), (99, 40)))
        number = self._dice.between(low if high == 12 else high // 9 + 1, high)
        return number + 1 if low > 0 and number % 100 == 1 else number

    def _noun(
        self,
        nouns: Sequence[Noun],
        adjectives: Sequence[Adjective],
        case: str,
        *,
        verb: Verb | None = None,
        plain: bool = False,
        negative: bool = False,
    ) -> NounPhrase:
        """Draw a noun phrase.

        Args:
            nouns: What to draw the noun from.
            adjectives: What to draw an adjective from, if one is said; may be empty.
            case: "nom", "acc" or "dat".
            verb: The verb it is an object of, if that makes a combination.
            plain: Whether only definite determiners will do.
            negative: Whether kein may be said.
        """
        dice, noun = self._dice, self._dice.pick(nouns)
        adjective = (
            dice.pick(adjectives) if adjectives and dice.chance(self._adjective_rate) else None
        )
        self._combine(verb, noun, adjective)
        uncountable = noun in lexicon.SUBSTANCES or noun in lexicon.DRINKS
        plural = not uncountable and dice.chance(0.25)
        if plain:
            word = dice.weighted((("der", 80), ("dies", 8), ("mein", 6), ("unser", 6)))
        elif negative and dice.chance(0.08):
            word = "kein"
        elif uncountable:
            word = dice.weighted(_SUBSTANCE_WORDS)
        else:
            word = dice.weighted(_PLURAL_WORDS if plural else _SINGULAR_WORDS)
        if word == "number":
            number = self._number(2)
            return noun_phrase(noun, case, plural=True, number=number, adjective=adjective)
        return noun_phrase(noun, case, word=word, plural=plural, adjective=adjective)

    def _name(self) -> NounPhrase:
        name = self._dice.pick(lexicon.NAMES)
        self._lemmas.append(name)
        return NounPhrase(name, name)

    def _subject(self, animals: float = 0.03) -> NounPhrase:
        """Draw who does it: an animal, a name, a pronoun or a person."""
        if self._dice.chance(animals):
            return self._noun(lexicon.ANIMALS, lexicon.PERSON_ADJECTIVES, "nom")
        kind = self._dice.weighted((("person", 55), ("pronoun", 27), ("name", 18)))
        if kind == "name":
            return self._name()
        if kind == "person":
            return self._noun(lexicon.PERSONS, lexicon.PERSON_ADJECTIVES, "nom")
        pronoun = self._dice.pick(PRONOUNS)
        return NounPhrase(
            pronoun.nominative, pronoun.english_subject, pronoun.agreement, pronoun=True
        )

    def _person(
        self, case: str, verb: Verb | None, subject: NounPhrase, *, animals: float = 0.25
    ) -> NounPhrase:
        """Draw whom it is done to; never the speaker or the listener if they do it."""
        kind = self._dice.weighted((("person", 74), ("pronoun", 13), ("name", 13)))
        if kind == "name":
            return self._name()
        if kind == "pronoun":
            others = [
                pronoun
                for pronoun in PRONOUNS
                if pronoun.accusative
                and (pronoun.agreement[0] != subject.agreement[0] or pronoun.agreement == "3s")
            ]
            pronoun = self._dice.pick(others)
            german = pronoun.accusative if case == "acc" else pronoun.dative
            return NounPhrase(german, pronoun.english_object, pronoun=True)
        animal = self._dice.chance(animals)
        nouns = lexicon.ANIMALS if animal else lexicon.PERSONS
        return self._noun(nouns, lexicon.PERSON_ADJECTIVES, case, verb=verb)

    # What else is said: tense, time, frequency, manner, place

    def _adorn(
        self,
        clause: Clause,
        richness: float,
        *,
        front: bool = False,
        without: Sequence[str] = (),
        tense: str = "",
    ) -> Clause:
        """Add tense, negation and adverbials; `richness` scales how many, `without` names some."""
        dice = self._dice
        if clause.verb is verbs.COST or _is_age(clause.complement):
            return self._with_front(clause, richness) if front else clause
        tense = tense or dice.weighted(_TENSES)
        if tense == "modal" and clause.verb is verbs.BE:
            tense = "present"
        clause = clause._replace(tense=tense)
        if tense == "modal":
            modal = dice.pick(verbs.MODALS)
            self._lemmas.append(modal.infinitive)
            clause = clause._replace(modal=modal)
        clause = self._with_adverbs(clause, richness, without)
        if dice.chance(0.85 * richness):
            clause = clause._replace(time=self._time(tense))
        if clause.complement is None and dice.chance(0.09 * richness):
            clause = clause._replace(place=self._place())
        return self._with_front(clause, richness) if front else clause

    def _with_front(self, clause: Clause, richness: float) -> Clause:
        """Move the time or place to the front, or put an opinion there."""
        if clause.time and self._dice.chance(0.8):
            return clause._replace(front=clause.time, time=None)
        if clause.place and self._dice.chance(0.25):
            return clause._replace(front=clause.place, place=None)
        if self._dice.chance(0.15 * richness):
            return clause._replace(front=self._say(self._dice.pick(lexicon.OPINIONS)))
        return clause

    def _with_adverbs(self, clause: Clause, richness: float, without: Sequence[str]) -> Clause:
        """Add one of negation, frequency and manner, or nothing."""
        dice, phrases = self._dice, (clause.subject, clause.dative, clause.accusative)
        spoken = [phrase for phrase in phrases if phrase]
        kind = dice.weighted((("negation", 10), ("frequency", 8), ("manner", 7), ("", 75)))
        if kind in without or not dice.chance(max(richness, 0.5)):
            return clause
        if kind == "negation" and clause.tense != "modal":
            plain = clause.verb is not verbs.BE or _is_plain(clause.complement)
            if plain and all(phrase.negatable for phrase in spoken):
                return clause._replace(negated=True)
        if kind == "frequency" and not any(phrase.negative for phrase in spoken):
            return clause._replace(frequency=self._say(dice.pick(lexicon.FREQUENCIES)))
        if clause.verb in (verbs.BE, *verbs.WEATHER_VERBS):
            return clause
        if kind == "manner":
            return clause._replace(manner=self._say(dice.pick(lexicon.MANNERS)))
        return clause

    def _place(self) -> Phrase:
        """Draw a static place."""
        dice = self._dice
        kind = dice.weighted((("room", 38), ("surface", 18), ("here", 38), ("number", 6)))
        if kind == "here":
            return self._say(dice.pick(lexicon.HERE))
        if kind == "number":
            number = self._number(0)
            return Phrase(f"in Zimmer {german_number(number)}", f"in room {english_number(number)}")
        room = kind == "room"
        preposition = Phrase("in", "in") if room else Phrase("auf", "on")
        if dice.chance(0.4):
            preposition = self._say(dice.pick(lexicon.NEIGHBOURS))
        nouns = lexicon.ROOMS if room else lexicon.SURFACES
        place = self._noun(nouns, lexicon.PLACE_ADJECTIVES, "dat", plain=True)
        german = prepositional(preposition.german, place.german)
        return Phrase(german, f"{preposition.english} {place.english}")

    def _time(self, tense: str) -> Phrase:
        """Draw a time that goes with the tense."""
        dice = self._dice
        kind = dice.weighted(
            (
                (self._season, 14),
                (self._weekday, 12),
                (self._month, 10),
                (self._date, 14),
                (self._clock, 16),
                (self._event, 12),
            )
        )
        if dice.chance(0.25):
            tables = {"present": lexicon.TODAY, "past": lexicon.YESTERDAY}
            return self._say(dice.pick(tables.get(tense, lexicon.TOMORROW)))
        if tense != "present" and dice.chance(0.12):
            return self._distance(past=tense == "past")
        return kind()

    def _season(self) -> Phrase:
        return self._say(self._dice.pick(lexicon.DAY_PARTS))

    def _weekday(self) -> Phrase:
        day = self._say(self._dice.pick(lexicon.WEEKDAYS))
        if self._dice.chance(0.3):
            return Phrase(f"jeden {day.german}", f"every {day.english}")
        return Phrase(f"am {day.german}", f"on {day.english}")

    def _month(self) -> Phrase:
        month = self._say(self._dice.pick(lexicon.MONTHS))
        return Phrase(f"im {month.german}", f"in {month.english}")

    def _date(self) -> Phrase:
        index = self._dice.between(0, 11)
        month = self._say(lexicon.MONTHS[index])
        day = self._dice.between(1, _MONTH_DAYS[index])
        return Phrase(german_date(day, month.german), english_date(day, month.english))

    def _clock(self) -> Phrase:
        minute = self._dice.pick(_MINUTES)
        return clock_time(
            self._dice.between(1, 23) if minute == 0 else self._dice.between(0, 11), minute
        )

    def _event(self) -> Phrase:
        after = self._dice.chance(0.5)
        event = self._noun(lexicon.EVENTS, lexicon.PLACE_ADJECTIVES, "dat", plain=True)
        german = f"{'nach' if after else 'vor'} {event.german}"
        return Phrase(german, f"{'after' if after else 'before'} {event.english}")

    def _distance(self, *, past: bool) -> Phrase:
        """Say a time: three days ago, in three days."""
        number = self._dice.between(2, 30)
        unit = self._say(self._dice.pick(lexicon.UNITS))
        german, english = german_number(number), f"{english_number(number)} {unit.english}"
        return Phrase(
            f"{'vor' if past else 'in'} {german} {unit.german}",
            f"{english} ago" if past else f"in {english}",
        )


def _is_age(complement: Phrase | None) -> bool:
    return complement is not None and complement.english.endswith(" years old")


def _is_plain(complement: Phrase | None) -> bool:
    """Tell whether a predicate is a mere adjective: nicht ziemlich alt would sound odd."""
    return complement is not None and " " not in complement.german


def _subordinate(main: Clause, link: Phrase, rest: Clause, *, first: bool) -> Phrase:
    """Join a main and a subordinate clause; with `first` the subordinate one opens the sentence."""
    german_rest = f"{link.german} {german_clause(rest, 'last')}"
    english_rest = f"{link.english} {english_clause(rest)}"
    if first:
        german = f"{german_rest}, {german_clause(main, 'inverted')}."
        return Phrase(german, f"{english_rest}, {english_clause(main)}.")
    return Phrase(
        f"{german_clause(main)}, {german_rest}.",
        f"{english_clause(main)} {english_rest}.",
    )
