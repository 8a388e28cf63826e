"""The embedded corpus: German sentences, each with its one English translation, from a grammar.

`make_corpus` is what training uses. The words are in `lexicon` and `verbs`, their
forms and order in `grammar`, what is said in `sentences`; here the splits are made.

German to English is a function: no German sentence has two translations, so exact match is a fair
score. The held-out sentences combine words that were never seen together in training.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .sentences import Derivation, Speaker

# Lengths of the sentences that are kept, in characters: German at least, either language at most.
_MIN_LENGTH, _MAX_LENGTH = 37, 52

# As many draws in a row without a usable sentence mean that there is none left.
_MAX_FRUITLESS_DRAWS = 5_000


@dataclass(frozen=True)
class SentencePair:
    """A German sentence and its English translation."""

    source: str
    target: str


@dataclass(frozen=True)
class CorpusSplits:
    """Three lists without a common sentence; `held_out` has word combinations unknown to both."""

    train: list[SentencePair]
    test: list[SentencePair]
    held_out: list[SentencePair]


def derivations(seed: int) -> Iterator[Derivation]:
    """Draw sentences without end; both their German and their English never come twice.

    Args:
        seed: The same seed draws the same sentences in every process.
    """
    speaker = Speaker(seed)
    german: set[str] = set()
    english: set[str] = set()
    fruitless = 0
    while fruitless < _MAX_FRUITLESS_DRAWS:
        derivation = speaker.speak()
        too_long = max(len(derivation.german), len(derivation.english)) > _MAX_LENGTH
        if (
            too_long
            or len(derivation.german) < _MIN_LENGTH
            or derivation.german in german
            or derivation.english in english
        ):
            fruitless += 1
            continue
        fruitless = 0
        german.add(derivation.german)
        english.add(derivation.english)
        yield derivation


def make_corpus(
    *, num_train: int, num_test: int = 500, num_held_out: int = 500, seed: int = 0
) -> CorpusSplits:
    """Make a corpus of distinct sentence pairs.

    Args:
        num_train: Sentences to train on.
        num_test: Sentences like those, to test on.
        num_held_out: Sentences with an adjective and noun, or a verb and object, that neither train
            nor test contains together, although train contains every one of their words.
        seed: The same seed makes the same corpus in every process and Python version.

    Raises:
        ValueError: If a size is not positive, or too few such sentences can be made.
    """
    for name, size in (
        ("num_train", num_train),
        ("num_test", num_test),
        ("num_held_out", num_held_out),
    ):
        if size < 1:
            raise ValueError(f"`{name}` must be positive, but is {size}.")
    stream = derivations(seed)
    known: list[Derivation] = []
    combined: list[Derivation] = []
    for derivation in stream:
        (combined if derivation.reserved else known).append(derivation)
        if len(known) == num_test + num_train:
            break
    if len(known) < num_test + num_train:
        made = max(len(known) - num_test, 0)
        raise ValueError(f"`num_train` must be at most {made}, but is {num_train}.")
    test, train = known[:num_test], known[num_test:]
    held_out = _held_out(train, combined, stream, num_held_out)
    return CorpusSplits(_pairs(train), _pairs(test), _pairs(held_out))


def _held_out(
    train: list[Derivation], combined: list[Derivation], stream: Iterator[Derivation], size: int
) -> list[Derivation]:
    """Choose reserved sentences whose words all occur in train, and draw more if need be."""
    vocabulary = {word for item in train for word in _words(item)}
    held_out = [item for item in combined if vocabulary.issuperset(_words(item))][:size]
    fruitless = 0
    while len(held_out) < size and fruitless < _MAX_FRUITLESS_DRAWS:
        item = next(stream, None)
        if item is None:
            break
        fruitless += 1
        if item.reserved and vocabulary.issuperset(_words(item)):
            held_out.append(item)
            fruitless = 0
    if len(held_out) < size:
        raise ValueError(
            f"`num_held_out` must be at most {len(held_out)} with `num_train` {len(train)}, "
            f"but is {size}. Train on more sentences, so that they contain all words."
        )
    return held_out


def _words(derivation: Derivation) -> list[str]:
    """List the words of a sentence, marked with their language."""
    german = re.findall(r"[^ ,.?]+", derivation.german)
    english = re.findall(r"[^ ,.?]+", derivation.english)
    return [f"de:{word}" for word in german] + [f"en:{word}" for word in english]


def _pairs(items: list[Derivation]) -> list[SentencePair]:
    return [SentencePair(item.german, item.english) for item in items]
