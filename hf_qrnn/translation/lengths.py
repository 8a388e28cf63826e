"""Lengths of translations against their sources, for the limit that is saved with a model."""

from __future__ import annotations

import math
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from hf_qrnn.data.batching import EncodedPair
from hf_qrnn.data.symbols import sides_of
from hf_qrnn.model.limits_qrnn import DEFAULT_OFFSET, DEFAULT_RATIO

_LENGTH_ROOM = 1.25


def least_rule(tokenizer: PreTrainedTokenizerBase) -> tuple[float, int]:
    """Return the least ratio and offset for a model with this tokenizer.

    Sentences keep much room. Symbols between blanks, as phones are, keep to what the training
    pairs have: fifty of them would be no pronunciation of a short word.
    """
    sides = sides_of(tokenizer)
    has_symbols = sides is not None and sides[1] == "blank"
    return (1.0, 0) if has_symbols else (DEFAULT_RATIO, DEFAULT_OFFSET)


def usual_length(lengths: Iterable[int]) -> int:
    """Return the least length that all but one in a thousand do not exceed."""
    ordered = sorted(lengths)
    return ordered[len(ordered) - 1 - len(ordered) // 1000]


def measure_lengths(
    pairs: Iterable[EncodedPair], *, least: tuple[float, int] = (DEFAULT_RATIO, DEFAULT_OFFSET)
) -> tuple[float, int]:
    """Compute ratio and offset of `limits_qrnn.target_limits` for a model that trains on `pairs`.

    Every target of `pairs` is at most four fifths of its limit. The ratio is the largest of the
    longer half of the sources, with that room; the offset is what the others need beside it (a
    source of one token may have a target of thirty, which is no ratio for long ones).

    Args:
        pairs: training pairs, or the first of them.
        least: smallest ratio and offset to give.
    """
    lengths = sorted((len(pair.source_ids), len(pair.target_ids)) for pair in pairs)
    longer = lengths[len(lengths) // 2 :]
    ratio = max(least[0], *(_LENGTH_ROOM * target / source for source, target in longer))
    ratio = math.ceil(100 * ratio) / 100  # few digits in the file
    rest = max(_LENGTH_ROOM * target - ratio * source for source, target in lengths)
    return ratio, max(least[1], math.ceil(rest))
