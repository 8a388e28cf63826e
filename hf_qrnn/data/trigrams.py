"""The rows of three characters that a language's words have: evidence that a text is a word of it.

A row begins at every character, the first of a word with a blank before it, and the last ends with
a blank. Words that nobody has seen have few rows that are new; of random letters most are. How many
are too many is measured on the known words themselves: each is judged by all the others, and at
most one in a hundred may have more new rows than the limit.

Nothing here needs a tokenizer: words come composed, decomposed and in the case of the training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

EDGE = " "
"""Stands before and behind a word."""
FIELD = "trigrams"
"""The field of tokenizer_config.json."""

_ALLOWED_SHARE = 0.01  # of the known words, for more new rows than the limit
# Of more, the texts are hardly words, and the file would grow large.
_MOST_ROWS = 50_000


@dataclass(frozen=True)
class Trigrams:
    """The knowledge of how a language's words are spelled.

    Attributes:
        rows: The rows that a word has.
        most_new: The most new rows of a word that is taken for one.
    """

    rows: frozenset[str]
    most_new: int

    def new_rows(self, word: str) -> list[str]:
        """List the rows of `word` that no known word has, each once."""
        return [row for row in dict.fromkeys(_rows(word)) if row not in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Write it for a file: a line for each pair of characters, and what may follow on it."""
        lines = [
            pair + "".join(row[2] for row in rows)
            for pair, rows in groupby(sorted(self.rows), key=lambda row: row[:2])
        ]
        return {"rows": "\n".join(lines), "most_new": self.most_new}


def learn(words: Iterable[str], before: Trigrams | None = None) -> Trigrams | None:
    """Learn the rows of words; None where there is no word, or more rows than words have.

    Args:
        words: The words, each counted once; a text with white space is none.
        before: What is known of others, and stays known.
    """
    known = frozenset[str]() if before is None else before.rows
    own = [
        set(_rows(word))
        for word in dict.fromkeys(words)
        if word and not any(character.isspace() for character in word)
    ]
    if not own:
        return before
    counts = Counter(row for rows in own for row in rows)
    rows = known.union(counts)
    if len(rows) > _MOST_ROWS:
        return None
    # Each word against the others: what it has alone would be new.
    new = Counter(sum(counts[row] == 1 and row not in known for row in rows) for rows in own)
    allowed = _ALLOWED_SHARE * len(own)
    most_new = 0 if before is None else before.most_new
    while sum(words for number, words in new.items() if number > most_new) > allowed:
        most_new += 1
    return Trigrams(rows, most_new)


def read_trigrams(fields: Mapping[str, Any], language: str | None) -> Trigrams | None:
    """Read what a tokenizer's fields say of a language; None where nobody counted.

    Args:
        fields: Those of tokenizer_config.json.
        language: The language; None of a tokenizer without tags.

    Raises:
        ValueError: If the field is damaged.
    """
    several = fields.get(FIELD) or {}
    found = several.get(language or "") if isinstance(several, dict) else several
    if found is None:
        return None
    if isinstance(found, dict):
        rows, most_new = found.get("rows"), found.get("most_new")
        if isinstance(rows, str) and type(most_new) is int:
            lines = (line for line in rows.split("\n") if line)
            return Trigrams(
                frozenset(line[:2] + last for line in lines for last in line[2:]), most_new
            )
    raise ValueError(
        f"`{FIELD}` of a tokenizer must hold `rows` and `most_new` of each language, but does not."
    )


def _rows(word: str) -> list[str]:
    text = f"{EDGE}{word}{EDGE}"
    return [text[start : start + 3] for start in range(len(word))]
