"""Counts what a pronouncer says to what is no word: random letters, digits, other scripts.

A right answer to most of them is a refusal. An answer that is longer than the model's limit, or any
answer to digits or to another script, is a fault.
"""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from hf_qrnn.data.json_files import read_json
from hf_qrnn.engine import Translator
from hf_qrnn.pronunciation import Pronouncer
from hf_qrnn.pronunciation.letters import EngineLetters

_SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyz", "абвгдежзийклмнопрстуфхцчшщъыьэюя", "αβγδεζηθικλμνξοπρστυφχψω",
    "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցւփքօֆ", "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "אבגדהוזחטיכלמנסעפצקרשת", "ابتثجحخدذرزسشصضطظعغفقكلمنهوي", "अआइईउऊकखगघचछजझटठडढणतथदधनपफबभमयरलव",
    "あいうえおかきくけこさしすせそたちつてと",
    "가나다라마바사아자차카타파하", "一二三四五六七八九十人口手日月",
)  # fmt: skip
_SIGNS = "!?.,;:-_/@#&*()[]<>=+~$%\"' \t\n\x00\u200b\u202e\ufeff\u0301\u0308\U0001f600\U0001f355"
_REFUSED = ("digits", "letters and digits", "another script", "signs")
"""The kinds to which every answer is a fault."""
KINDS = ("letters", "many letters", "few letters again and again", *_REFUSED, "letters and signs")


@dataclass
class Count:
    """The answers to the strings of one kind.

    Attributes:
        strings: Their number.
        said: The number of those that were not refused.
        faults: Of these, those that must not be said, or are longer than the limit.
        longest: The most symbols of an answer.
    """

    strings: int = 0
    said: int = 0
    faults: int = 0
    longest: int = 0


def count_phantoms(
    model: Path, language: str | None, number: int, *, seed: int = 0
) -> dict[str, Count]:
    """Ask a model for `number` strings, as many of each kind, by the engine.

    Args:
        model: A folder with a saved model.
        language: The language of the words; None of a model without tags.
        number: Strings, at least one of each kind.
        seed: Seed of the strings.

    Raises:
        ValueError: If the number is too small, or the folder has no such model.
    """
    if number < len(KINDS):
        raise ValueError(f"`strings` must be at least {len(KINDS)}, but is {number}.")
    translator = Translator(model)
    pronouncer = Pronouncer(translator, language=language)
    letters = EngineLetters(translator.tokens, pronouncer.language)
    own = sorted(x for x in letters.alphabet or letters.vocabulary if len(x) == 1 and x.isalpha())
    draw = random.Random(seed)
    kinds = islice(cycle(KINDS), number)
    strings = [(kind, _draw(kind, own, draw)) for kind in kinds]
    ratio, offset = _limit(model)
    counts = {kind: Count() for kind in KINDS}
    answers = pronouncer.pronounce([text for _, text in strings])
    for (kind, text), (best, *_) in zip(strings, answers, strict=True):
        count = counts[kind]
        count.strings += 1
        if best.is_refused:
            continue
        count.said += 1
        count.longest = max(count.longest, len(best.symbols))
        # Of both the end token counts; a decomposed word is the longest that the model reads.
        read = len(unicodedata.normalize("NFD", text)) + 1
        is_longer = len(best.symbols) + 1 > math.ceil(ratio * read) + offset
        count.faults += is_longer or kind in _REFUSED
    return counts


def table(counts: dict[str, Count]) -> str:
    """Write the counts as a table of Markdown."""
    rows = [
        f"| {kind} | {count.strings:,} | {100 * (1 - count.said / count.strings):.1f} | "
        f"{count.longest} | {count.faults} |"
        for kind, count in counts.items()
    ]
    head = "| strings | number | refused, % | longest answer, symbols | faults |"
    return "\n".join([head, "| --- | --- | --- | --- | --- |", *rows])


def _limit(model: Path) -> tuple[float, int]:
    """Read the line that limits the length of an answer."""
    found = read_json(model / "generation_config.json")
    try:
        return float(found["max_length_ratio"]), int(found["max_length_offset"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`phantom` must be a model with a limit of length, but is '{model}'."
        ) from error


def _draw(kind: str, own: Sequence[str], draw: random.Random) -> str:
    length = draw.randint(3, 12)
    if kind == "many letters":
        return "".join(draw.choices(own, k=draw.randint(13, 60)))
    if kind == "few letters again and again":
        return "".join(draw.choices(own, k=draw.randint(1, 2))) * draw.randint(3, 20)
    if kind == "digits":
        return "".join(draw.choices("0123456789\u00bd\u0663", k=length))
    if kind == "letters and digits":
        return _mixed(draw.choices(own, k=length), draw.choices("0123456789", k=2), draw)
    if kind == "another script":
        strange = [x for x in _SCRIPTS if not set(unicodedata.normalize("NFD", x)) & set(own)]
        return "".join(draw.choices(draw.choice(strange), k=length))
    if kind == "signs":
        return "".join(draw.choices(_SIGNS, k=length))
    if kind == "letters and signs":
        return _mixed(draw.choices(own, k=length), draw.choices(_SIGNS, k=2), draw)
    return "".join(draw.choices(own, k=length))


def _mixed(some: list[str], others: list[str], draw: random.Random) -> str:
    both = [*some, *others]
    draw.shuffle(both)
    return "".join(both)
