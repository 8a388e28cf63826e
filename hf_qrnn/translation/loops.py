"""Finds where a text goes round in circles, as a translation does whose model has lost its place.

A loop is a phrase that stands several times in a row: a word four times, two or three words three
times, four or more twice, upper and lower case and the marks between them aside; and within a word
a letter eight times, two to four letters four times, five or more three times. What is said twice
or thrice for its own sake ("no, no, no") is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

_WORD = re.compile(r"\w+")
_LONGEST = 60  # words or letters of a phrase


class Loop(NamedTuple):
    """One loop of a text.

    Attributes:
        start: Place of its first character.
        first_end: Where its phrase ends for the first time.
        end: Where it ends for the last time.
    """

    start: int
    first_end: int
    end: int


def count_loops(text: str) -> int:
    """Count the loops of a text; those of a sentence to translate are none of its translation."""
    return len(find_loops(text))


def cut_loops(text: str) -> str:
    """Return `text` with the phrase of every loop once."""
    kept, done = [], 0
    for loop in find_loops(text):
        kept.append(text[done : loop.first_end])
        done = loop.end
    return "".join([*kept, text[done:]])


def find_loops(text: str) -> list[Loop]:
    """Find the loops of a text, from left to right; none overlaps another."""
    words = list(_WORD.finditer(text))
    keys = [word[0].casefold() for word in words]
    found = []
    at = 0
    while at < len(words):
        size, times = _loop_at(keys, at, _word_times)
        if times:
            last = at + size * times - 1
            found.append(Loop(words[at].start(), words[at + size - 1].end(), words[last].end()))
            at = last + 1
            continue
        found += _loops_within(keys[at], words[at].start(), len(words[at][0]))
        at += 1
    return found


def _loops_within(word: str, offset: int, length: int) -> list[Loop]:
    """Find the loops inside one word, which begins at `offset`."""
    # Folding may change the number of letters, and with them all places.
    if len(word) != length or word.isdecimal():
        return []
    found = []
    at = 0
    while at < len(word):
        size, times = _loop_at(word, at, _letter_times)
        if times:
            start = offset + at
            found.append(Loop(start, start + size, start + size * times))
        at += max(1, size * times)
    return found


def _word_times(size: int) -> int:
    """Return how often in a row so many words make a loop."""
    return 4 if size == 1 else 3 if size < 4 else 2


def _letter_times(size: int) -> int:
    """Return how often in a row so many letters make a loop."""
    return 8 if size == 1 else 4 if size < 5 else 3


def _loop_at(items: Sequence[str], at: int, least: Callable[[int], int]) -> tuple[int, int]:
    """Return the size of the phrase that loops from `at` on and how often it stands, or (0, 0)."""
    for size in range(1, min(_LONGEST, (len(items) - at) // 2) + 1):
        phrase = items[at : at + size]
        times = 1
        while items[at + size * times : at + size * (times + 1)] == phrase:
            times += 1
        if times >= least(size):
            return size, times
    return 0, 0
