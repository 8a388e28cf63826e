"""Edits between texts (Levenshtein 1966), exactly, and the error rates that count them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Count the fewest insertions, deletions and replacements from one sequence to the other.

    Bit i of an integer says how the distance changes at element i of `first`: a column of the
    usual table takes a few operations on integers of any length (Myers 1999; Hyyro 2003).
    """
    if not first:
        return len(second)
    # Bit i of places[x] is set where first[i] == x.
    places: dict[Hashable, int] = {}
    for index, element in enumerate(first):
        places[element] = places.get(element, 0) | 1 << index
    # Down the column of the empty prefix of `second` the distance rises by one at every element.
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = every, 0, len(first)
    for element in second:
        equal = places.get(element, 0)
        diagonal = ((((equal & rises) + rises) ^ rises) | equal | falls) & every
        grows, shrinks = (falls | ~(diagonal | rises)) & every, diagonal & rises
        # The distance of the whole of `first` is at the bottom of the column: its last bit.
        distance += bool(grows & last) - bool(shrinks & last)
        grows, shrinks = grows << 1 | 1, shrinks << 1
        rises, falls = (shrinks | ~(diagonal | grows)) & every, diagonal & grows & every
    return distance


def char_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute edits of characters (code points) per character of all references together.

    Args:
        hypotheses: N texts.
        references: The right texts of each; where there are several, the nearest gives the edits
            and the mean of all gives the length, as in TER.

    Returns:
        0 where all are right; above 1 where more was written than there was to write. 1 where
        edits face empty references alone.
    """
    return _error_rate(hypotheses, references, list)


def token_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute `char_error_rate` of the tokens between blanks; no token is moved, unlike in TER.

    A blank is U+0020 and nothing else, as it is for the symbols of a tokenizer.

    Args:
        hypotheses: N texts.
        references: The right texts of each.
    """
    return _error_rate(hypotheses, references, split_tokens)


def word_error_rate(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute the share of texts that equal none of their references, token by token.

    A line is a word where words become phones. There this is what a word error rate is, not the
    edits between words that speech recognition has under the same name. Blanks together or at the
    ends are no difference, as in `token_error_rate`: one is 0 where the other is.

    Args:
        hypotheses: N texts.
        references: The right texts of each.
    """
    pairs = zip(hypotheses, references, strict=True)
    wrong = sum(
        split_tokens(text) not in [split_tokens(other) for other in right] for text, right in pairs
    )
    return wrong / len(hypotheses)


def split_tokens(text: str) -> list[str]:
    """Split a text into its tokens between blanks; several blanks together are one."""
    return [token for token in text.split(" ") if token]


def exact_match(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Count the texts equal to one of their references, in per cent.

    Args:
        hypotheses: N texts.
        references: The right texts of each.
    """
    pairs = zip(hypotheses, references, strict=True)
    return 100.0 * sum(text in right for text, right in pairs) / len(hypotheses)


def _error_rate(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    split: Callable[[str], Sequence[Hashable]],
) -> float:
    edits, length = 0, 0.0
    for text, several in zip(hypotheses, references, strict=True):
        own, right = split(text), [split(reference) for reference in several]
        edits += min(edit_distance(own, elements) for elements in right)
        length += sum(map(len, right)) / len(right)
    return edits / length if length > 0 else float(edits > 0)
