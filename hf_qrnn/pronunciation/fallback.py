"""An adaptor to misaki, the front end of the speech synthesiser Kokoro, in American English.

misaki writes one letter for each diphthong and affricate, "ɜɹ" and "əɹ" for ER, and a stress mark
directly before its vowel, not before the onset. As in its dictionary, T between a vowel or R and an
unstressed vowel becomes a tap, AH0 L before no vowel "ᵊl", and the vowel of the endings "-ed" and
"-es" where they are syllables "ᵻ".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from .arpabet import CONSONANTS, MARKS, UNSTRESSED, VOWELS, is_arpabet, split_vowel
from .pronouncer import Pronouncer

_CONSONANTS = {**CONSONANTS, "CH": "ʧ", "JH": "ʤ"}
_VOWELS = {**VOWELS, "AW": "W", "AY": "I", "ER": "ɜɹ", "EY": "A", "OW": "O", "OY": "Y"}
_UNSTRESSED = {**UNSTRESSED, "ER": "əɹ"}
_SIBILANTS = ("S", "Z", "SH", "ZH", "CH", "JH")
_JOINTS = re.compile(r"[-_/.\s]+")
# misaki's ratings: 4 and 3 for its dictionaries, 2 for what espeak-ng says.
_RATINGS = {"lexicon": 3, "model": 2}


class Token(Protocol):
    """The part of misaki's token that is read."""

    text: str


class MisakiFallback:
    """Pronounces the words that misaki does not know: `misaki.en.G2P(fallback=...)`.

    Symbols that are not those of CMUdict are passed on as they are, without blanks: they must be
    misaki's own.

    Args:
        pronouncer: One of American English.
    """

    def __init__(self, pronouncer: Pronouncer) -> None:
        self._pronouncer = pronouncer

    def __call__(self, token: Token) -> tuple[str | None, int | None]:
        """Return phones and rating of a token; None and None if a part of it is refused."""
        # misaki joins what has no blank between it, as "foo-bar".
        words = [word for word in _JOINTS.split(token.text) if word]
        found = [row[0] for row in self._pronouncer.pronounce(words)]
        if not found or any(one.is_refused for one in found):
            return None, None
        return "".join(to_misaki(one.symbols) for one in found), min(
            _RATINGS[one.origin] for one in found
        )


def to_misaki(symbols: Sequence[str]) -> str:
    """Write phones of CMUdict in misaki's letters; other symbols are only joined."""
    if not is_arpabet(symbols):
        return "".join(symbols)
    padded = ["", *symbols, "", ""]
    return "".join(_letter(*padded[index - 1 : index + 3]) for index in range(1, len(symbols) + 1))


def _letter(before: str, symbol: str, after: str, next_but_one: str) -> str:
    """Write `symbol`, which stands between others or at an end ("")."""
    if symbol == "T" and (_is_vowel(before) or before == "R") and after.endswith("0"):
        return "ɾ"
    if symbol in _CONSONANTS:
        return _CONSONANTS[symbol]
    vowel, stress = split_vowel(symbol)
    if stress == "0" and vowel in ("AH", "IH") and before and not next_but_one:
        has_sibilant = after == "Z" and before in _SIBILANTS
        if has_sibilant or (after == "D" and before in ("T", "D")):
            return "ᵻ"
    if symbol == "AH0" and after == "L" and before and not _is_vowel(next_but_one):
        return "ᵊ"
    weak = _UNSTRESSED if stress in ("", "0") else {}
    return MARKS[stress] + weak.get(vowel, _VOWELS[vowel])


def _is_vowel(symbol: str) -> bool:
    return split_vowel(symbol)[0] in VOWELS
