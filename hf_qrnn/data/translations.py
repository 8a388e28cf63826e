"""Results of translation, free of torch: the engine and the translator give the same."""

from __future__ import annotations

import re
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


def one_line(text: str) -> str:
    """Return `text` with a blank for every line end, so that one line in is one line out."""
    return _LINE_ENDS.sub(" ", text)
