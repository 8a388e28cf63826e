"""Reads lexicons: words and pronunciations in a table of two columns or in CMUdict's form."""

from __future__ import annotations

import re
from pathlib import Path

from hf_qrnn.data.reading import read_lines
from hf_qrnn.data.texts import split_symbols

Lexicon = dict[str, list[tuple[str, ...]]]
"""For every word its pronunciations, the first one first, each a tuple of symbols."""

_VARIANT = re.compile(r"\(\d+\)$")


def read_lexicon(path: str | Path) -> Lexicon:
    """Read a lexicon, UTF-8 text, plain, .gz or .xz.

    A line is one pronunciation, and a word may have several lines, the usual one first. It is
    either a word, a tab and symbols with blanks between them; or as in CMUdict a word without
    blanks, blanks and symbols, where "read(2)" is a second line of "read" and " # " begins a
    comment. Blank lines and lines that begin with ";;;" or, without a tab, "# " are skipped, and so
    are the words that `hf-qrnn pronounce` refused: what it writes is a lexicon.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not UTF-8, a line is no pronunciation (names the line), or there
            is none at all.
    """
    lexicon: Lexicon = {}
    for number, line in enumerate(read_lines(path), 1):
        # In a table "#" may be a word.
        if not line.strip() or line.startswith(";;;") or re.match(r"#+( [^\t]*)?\Z", line):
            continue
        word, symbols = _parse(line)
        if not word.strip() or not symbols:
            if "\t\t# " in line:
                continue
            raise ValueError(
                f"line {number} of '{path}' must be a word, a tab and symbols with blanks between "
                f"them, or a word and symbols as in CMUdict, but is {line[:80]!r}."
            )
        found = lexicon.setdefault(word.strip(), [])
        # CMUdict without its digits has many a line twice.
        if symbols not in found:
            found.append(symbols)
    if not lexicon:
        raise ValueError(f"`path` must hold a pronunciation, but '{path}' has none.")
    return lexicon


def _parse(line: str) -> tuple[str, tuple[str, ...]]:
    """Cut a line into its word and its symbols."""
    if "\t" in line:
        word, _, rest = line.partition("\t")
        # Of a third column, nobody can tell what it is.
        return word, () if "\t" in rest else tuple(split_symbols(rest))
    word, _, rest = line.partition(" # ")[0].strip().partition(" ")
    return _VARIANT.sub("", word), tuple(split_symbols(rest))
