"""ARPAbet, in which CMUdict writes American English, as International Phonetic Alphabet.

The tables are the customary ones for the 39 phones of CMUdict. A vowel's digit is its stress: 1
primary, 2 secondary, 0 none. AH is the vowel of "strut" where it is stressed and schwa where it is
not, and ER likewise; without a digit both are taken as unstressed, as they mostly are.

A stress mark stands before the onset of its syllable. The rule is maximal onset: of the consonants
between two vowels, the second takes as many as can begin an English word: S T R of "extra", but
only the L of T L in "Atlantic". All consonants before the first vowel are its onset. A word of one
syllable keeps its mark, so that nothing the dictionary says is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

CONSONANTS = {
    "B": "b",
    "CH": "tʃ",
    "D": "d",
    "DH": "ð",
    "F": "f",
    "G": "ɡ",
    "HH": "h",
    "JH": "dʒ",
    "K": "k",
    "L": "l",
    "M": "m",
    "N": "n",
    "NG": "ŋ",
    "P": "p",
    "R": "ɹ",
    "S": "s",
    "SH": "ʃ",
    "T": "t",
    "TH": "θ",
    "V": "v",
    "W": "w",
    "Y": "j",
    "Z": "z",
    "ZH": "ʒ",
}
"""The consonants of CMUdict in IPA."""

VOWELS = {
    "AA": "ɑ",
    "AE": "æ",
    "AH": "ʌ",
    "AO": "ɔ",
    "AW": "aʊ",
    "AY": "aɪ",
    "EH": "ɛ",
    "ER": "ɝ",
    "EY": "eɪ",
    "IH": "ɪ",
    "IY": "i",
    "OW": "oʊ",
    "OY": "ɔɪ",
    "UH": "ʊ",
    "UW": "u",
}
"""The vowels of CMUdict, without their digits, in IPA where they are stressed."""

MARKS = {"1": "ˈ", "2": "ˌ", "0": "", "": ""}
"""The stress marks of IPA for the digits of CMUdict; "" is a vowel without a digit."""

UNSTRESSED = {"AH": "ə", "ER": "ɚ"}
"""The vowels that are others where they are unstressed."""

# For the last consonant of an onset what may stand before it. Any consonant but NG may stand alone;
# Y follows others only before UW and UH ("music", "secure"), else it is alone ("million").
_BEFORE = {
    "L": ("P", "K", "B", "G", "F", "S", "S-P", "S-K"),
    "R": ("P", "T", "K", "B", "D", "G", "F", "TH", "SH", "S-P", "S-T", "S-K"),
    "W": ("T", "K", "D", "G", "S", "TH", "HH", "S-K"),
    "Y": (
        *("P", "T", "K", "B", "D", "G", "F", "V", "TH", "S", "Z", "HH", "M", "N", "L"),
        *("S-P", "S-T", "S-K"),
    ),
    **dict.fromkeys(("P", "T", "K", "F", "M", "N"), ("S",)),
}


def is_arpabet(symbols: Sequence[str]) -> bool:
    """Tell whether all `symbols` are phones of CMUdict, vowels with or without their digit."""
    return all(symbol in CONSONANTS or split_vowel(symbol)[0] in VOWELS for symbol in symbols)


def to_ipa(symbols: Sequence[str]) -> str:
    """Write phones of CMUdict as IPA, without blanks.

    Raises:
        ValueError: If a symbol is no phone of CMUdict.
    """
    pieces: list[str] = []
    cluster: list[str] | None = None  # consonants since the last vowel; None: there was none yet
    for symbol in symbols:
        if symbol in CONSONANTS:
            pieces.append(CONSONANTS[symbol])
            if cluster is not None:
                cluster.append(symbol)
            continue
        vowel, stress = split_vowel(symbol)
        if vowel not in VOWELS:
            raise ValueError(f"`symbols` must be phones of CMUdict, but {symbol!r} is none.")
        onset = len(pieces) if cluster is None else _onset_length(cluster, vowel)
        pieces.insert(len(pieces) - onset, MARKS[stress])
        weak = UNSTRESSED if stress in ("", "0") else {}
        pieces.append(weak.get(vowel, VOWELS[vowel]))
        cluster = []
    return "".join(pieces)


def split_vowel(symbol: str) -> tuple[str, str]:
    """Cut the digit of stress from a phone: ("AH", "0") of "AH0", ("AH", "") of "AH"."""
    return (symbol[:-1], symbol[-1]) if symbol[-1:] in ("0", "1", "2") else (symbol, "")


def _onset_length(cluster: Sequence[str], vowel: str) -> int:
    """Count the last consonants of `cluster` that begin the syllable of `vowel`: the most."""
    lengths = range(len(cluster), 0, -1)
    return next((n for n in lengths if _is_onset(cluster[-n:], vowel)), 0)


def _is_onset(consonants: Sequence[str], vowel: str) -> bool:
    *before, last = consonants
    if not before:
        return last != "NG"
    if last == "Y" and vowel not in ("UW", "UH"):
        return False
    return "-".join(before) in _BEFORE.get(last, ())
