"""Splits a line into sentences, and a sentence into clauses, so that the parts are the whole.

The rule is a light one: a sentence ends with `.`, `!`, `?` or an ellipsis before white space,
unless what goes on begins with a small letter, or the point belongs to an abbreviation, an initial
or an ordinal. It knows the abbreviations of German and English. In doubt it does not split: two
sentences as one are translated better than half a sentence is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# What a line may begin with that is no part of a sentence: white space, marks of lists, of
# quotations and of headings.
_MARKS = re.compile(
    r"\ufeff?\s*(?:>\s*|(?:[-–—*+•>#]+|\d{1,6}[.)]|\(?(?:[a-zA-Z]|[ivx]{2,4}|\d{1,3})\)"
    r"|\[[ xX]\])\s+)*"
)
# What stands between the cells of a line: tabs, and in a table of Markdown upright bars.
_TABS, _BARS = re.compile(r"\t\s*"), re.compile(r"[|\t][|\s]*")
# What is written in no language: fences of code, tags and characters of HTML, addresses.
_MARKUP = re.compile(
    r"\A\s*(?:```|~~~).*|</?[a-zA-Z][^<>]*>|<[a-z]+:[^<>\s]*>|&#?\w+;"
    r"|\b(?:https?://|www\.)\S+|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+",
    re.DOTALL,
)
_CLOSERS = "\"'”“’‘»«›‹)]}"
_OPENERS = "\"'”“„‚’‘»«›‹([{¿¡–—- "
_END = re.compile(rf"(?<![.!?…])[.!?…]+[{re.escape(_CLOSERS)}]*(?=\s)|[。！？]+[」』”’）]*")
_LAST_WORD = re.compile(r"[^\s\"'”“„‚’‘»«›‹(\[{/–—]+\Z")
_NEXT_WORD = re.compile(r"[\w]+")
_LETTER = re.compile(r"[^\W\d_]")
_SPACE = re.compile(r"\s*")
_NEAR = 60  # so many characters before and after a point say what it is


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Without their last point. Those that often end a sentence ("usw.", "etc.") are not here.
_ABBREVIATIONS = _words(
    """
    abb abk abs abt allg art aufl ausg bd bes bez bspw bzgl bzw ca chr cf dipl dr einschl engl
    entspr evtl exkl fa ff fr franz frl geb gegr gest gez ggf griech hd hl hr hrn hrsg ing inkl
    insb jh jhd kap lat lt max min mind mio mrd mtl mwst nr op ph phil pol prof proz rd red ref
    rel resp röm s schw sen sog st std str svw tel u übers übertr ugs univ urspr v verh vgl vors
    vs weibl wiss z zz zzgl zt adm approx apt assoc ave blvd brig capt cmdr col cpl dept dist ed
    est eds esp fig figs gen gov hon hwy jan feb mar apr jun jul aug sept sep oct okt nov dec
    dez lt maj messrs mlle mme mr mrs ms mt mx no nos pp rep rev sgt sr sra srta st supt viz vol
    vols
    """
)
# Words too, unless a number follows.
_BEFORE_NUMBERS = _words(
    """
    abs art ed fig figs jan max mar min no nos red rep s sen v z
    """
)
_ENDS_ANYWAY = frozenset(("a.m", "p.m"))
_ORDERED = _words(
    """
    januar februar märz april mai juni juli august september oktober november dezember jänner
    feber jan feb mrz apr jun jul aug sept sep okt nov dez jahrhundert jahrhunderts jahrhunderte
    jh jahrtausend weltkrieg weltkriegs weltkrieges klasse stock etage platz rang tag tages tage
    woche mal jahr jahrestag geburtstag kapitel liga bezirk runde spieltag minute auflage stunde
    semester
    """
)
_BEFORE_ORDINALS = _words(
    """
    ab am an auf beim bis das dem den der des die im in jede jeden jedem jeder jedes seit unser
    unsere vom zum zur mein meine sein seine ihr ihre
    """
)
_ROMAN = re.compile(r"[IVXLC]{2,}")

_CONJUNCTIONS = _words(
    """
    und oder aber denn sondern weil dass daß während obwohl wenn nachdem bevor damit sodass als
    ob and or but because that which who while although when after before so if whereas
    """
)
# Where a sentence is split, what is best first; the group is what stands between the parts.
_SEAMS = (
    re.compile(r"(?<=[;:])(\s+)|(?<=[；：])()"),
    re.compile(r"(?<!\s)(\s+[–—-]+\s+)"),
    re.compile(r"(?<=,)(\s+)|(?<=[，、])()"),
    re.compile(rf"(?<!\s)(\s+)(?=(?:{'|'.join(sorted(_CONJUNCTIONS))})\s)", re.IGNORECASE),
)
_BLANK = re.compile(r"(\s+)")


class Part(NamedTuple):
    """A part of a text.

    Attributes:
        text: Its characters.
        is_sentence: False for what is kept as it is.
    """

    text: str
    is_sentence: bool


def split_line(line: str) -> list[Part]:
    """Split a line into sentences and what stands between them; joined, they are the line.

    What tabs part, and in a table of Markdown bars, is no sentence together.
    """
    start = _start(line)
    end = len(line.rstrip())
    parts = [Part(line[:start], False)]
    between = _BARS if line.startswith("|", start) else _TABS
    for match in between.finditer(line, start, end):
        cell_end = start + len(line[start : match.start()].rstrip())
        parts += [*_split_cell(line, start, cell_end), Part(line[cell_end : match.end()], False)]
        start = match.end()
    parts += [*_split_cell(line, start, end), Part(line[max(start, end) :], False)]
    kept: list[Part] = []
    for part in parts:
        if kept and not (part.is_sentence or kept[-1].is_sentence):
            part = Part(kept.pop().text + part.text, False)
        kept.append(part)
    return [part for part in kept if part.text]


def _split_cell(line: str, start: int, end: int) -> list[Part]:
    """Split what stands from `start` to `end`, no white space at either."""
    parts = []
    for match in _END.finditer(line, start, end):
        gap = _SPACE.match(line, match.end(), end)
        assert gap is not None, "it may be empty, and is found even then"
        before = line[max(start, match.start() - _NEAR) : match.start()]
        if _ends(before, match[0], line[gap.end() : min(end, gap.end() + _NEAR)]):
            parts.append(_part(line[start : match.end()]))
            parts.append(Part(gap[0], False))
            start = gap.end()
    if start < end:
        parts.append(_part(line[start:end]))
    return parts


def split_clauses(sentence: str, longest: int) -> list[Part]:
    """Split a sentence at its clauses until none is longer than `longest` characters.

    A part that has no place to be split at stays as long as it is. Joined, they are the sentence.
    """
    if len(sentence) <= longest:
        return [_part(sentence)]
    for seam in _SEAMS:
        halves = _halves(sentence, seam, least=max(1, min(12, longest // 3)))
        if halves is not None:
            first, gap, second = halves
            return [
                *split_clauses(first, longest), *([Part(gap, False)] if gap else []),
                *split_clauses(second, longest),
            ]  # fmt: skip
    return [_part(sentence)]


def split_words(text: str, longest: int) -> list[Part]:
    """Split a text at blanks until no part is longer than `longest` characters, or is one word."""
    halves = None if len(text) <= longest else _halves(text, _BLANK, least=1)
    if halves is None:
        return [_part(text)]
    first, gap, second = halves
    return [*split_words(first, longest), Part(gap, False), *split_words(second, longest)]


def _part(text: str) -> Part:
    # Lines of stars, numbers, rows of points: a model would make something up.
    is_text = _LETTER.search(text) is not None
    return Part(text, is_text and _LETTER.search(_MARKUP.sub("", text)) is not None)


def _start(line: str) -> int:
    """Find where the first sentence of a line begins."""
    found = _MARKS.match(line)
    assert found is not None, "it may be empty, and is found even then"
    number = re.search(r"\d+\.\s+\Z", found[0])
    # "3. Mai" is a date, no item of a list.
    if number is not None and _is_ordered(line[found.end() :]):
        return number.start()
    return found.end()


def _ends(before: str, marks: str, rest: str) -> bool:
    """Tell whether a sentence ends with the marks between what is before them and the rest."""
    if not rest:
        return False  # the end of the line is one anyway
    first = rest.lstrip(_OPENERS)[:1]
    if first.islower() or rest[0] in ",;:)":
        return False
    if marks.rstrip(_CLOSERS) != ".":
        return True
    found = _LAST_WORD.search(before)
    if found is None:
        return True
    return not _is_open(found[0], before[: found.start()], rest)


def _is_open(word: str, before: str, rest: str) -> bool:
    """Tell whether the point after `word` ends no sentence."""
    small = word.lower()
    if word.isdigit():
        previous = _LAST_WORD.search(before.rstrip())
        return (
            not before.strip()
            or rest[0].isdigit()
            or (len(word) < 3 and _is_ordered(rest))
            or (len(word) < 3 and previous is not None and previous[0].lower() in _BEFORE_ORDINALS)
        )
    if small in _ENDS_ANYWAY:
        return False
    if (len(word) == 1 and word.isalpha()) or "." in word or _ROMAN.fullmatch(word):
        return True
    if small.endswith("str"):  # streets
        return True
    return small in _ABBREVIATIONS and (small not in _BEFORE_NUMBERS or rest[0].isdigit())


def _is_ordered(text: str) -> bool:
    """Tell whether a text begins with what is counted by ordinals, as months are."""
    found = _NEXT_WORD.match(text)
    return found is not None and found[0].lower() in _ORDERED


def _halves(text: str, seam: re.Pattern[str], *, least: int) -> tuple[str, str, str] | None:
    """Split a text at the seam nearest to its middle: both parts, and what stands between them."""
    found = [
        match
        for match in seam.finditer(text)
        if match.start() >= least and len(text) - match.end() >= least
    ]
    if not found:
        return None
    best = min(found, key=lambda match: abs(match.start() + match.end() - len(text)))
    return text[: best.start()], best[0], text[best.end() :]
