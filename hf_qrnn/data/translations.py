"""Results of translation, free of torch: the engine and the translator give the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

# All that Python, an editor or another tool may take as the end of a line.
_LINE_ENDS = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class Hypothesis:
    """One generated target.

    Attributes:
        ids: Target ids with neither the start nor the end token.
        score: Log-probability in nats, end token included: the sum for greedy search, the sum
            over the length for beam search (transformers' `length_penalty`).
        is_cut: Whether it reached its length limit before an end token.
        log_probability: The same in nats as a sum over the target, end token included, whatever
            the search.
    """

    ids: list[int]
    score: float
    is_cut: bool = False
    log_probability: float = 0.0


@dataclass(frozen=True)
class Translation:
    """One translation.

    Attributes:
        text: As the model wrote it; see `one_line`.
        score: Log-probability in nats: the sum over the target tokens for greedy search, their
            mean for beam search; 0 for an empty source.
        is_cut: Whether it reached the length limit before its end.
        log_probability: The same in nats as a sum over the target tokens, end token included,
            whatever the search.
        has_unknown: Whether the model wrote its token for unknown characters, which `text` lacks.
    """

    text: str
    score: float
    is_cut: bool = False
    log_probability: float = 0.0
    has_unknown: bool = False


def token_pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """Return the text that each id adds; joined, they are the text, end token included.

    Args:
        decode: Decodes ids, special tokens too.
        ids: The ids of a text.
    """
    pieces, done = [], 0
    # Prefixes are decoded, not single ids: a character may be made of several bytes.
    for count in range(1, len(ids) + 1):
        text = decode(list(ids[:count]))
        # Bytes that are no character yet; the last piece takes what never became one.
        is_open = text.endswith("\ufffd") and count < len(ids)
        pieces.append("" if is_open else text[done:])
        done = done if is_open else len(text)
    return pieces


def pieces_of_one_line(pieces: Iterable[str]) -> Iterator[str]:
    """Yield pieces of a text as they come, joined as `one_line` writes the whole."""
    held = ""
    for piece in pieces:
        text = held + piece
        # It is one line end with a newline behind it.
        held = "\r" if text.endswith("\r") else ""
        yield one_line(text.removesuffix(held))
    yield one_line(held)


def one_line(text: str) -> str:
    """Return `text` with a blank for every line end, so that one line in is one line out."""
    return _LINE_ENDS.sub(" ", text)


def distilled_line(source: str, target: str, score: float, language: str | None = None) -> str:
    """Write a line of a file of `distilled.py`, with its newline.

    Raises:
        ValueError: If a text has a tab or a line end, or a number is none that a line may have.
    """
    columns = [source, target, f"{min(score, 0.0):.6f}", *([language] if language else [])]
    line = "\t".join(columns) + "\n"
    if line.count("\t") != len(columns) - 1 or "\r" in line or line.count("\n") != 1:
        raise ValueError(f"`source` must have no tab and no line end, but is {source!r}.")
    return line
