"""Compares tokenizers, of transformers or of the engine, by what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# What of a tokenizer's backend decides which ids a text gets, and which text ids give.
_PARTS = ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")
SPECIAL_NAMES = ("pad", "eos", "bos", "unk")
"""The special tokens that are compared, in this order."""


class DifferentTokenizersError(ValueError):
    """Tokenizers of one ensemble differ: no fault of what computes it."""


class TokenizerParts(NamedTuple):
    """The parts of a tokenizer.

    Attributes:
        vocabulary: All tokens with their ids.
        specials: The contents of the tokens of `SPECIAL_NAMES`.
        sides: The kinds of source and target (data/symbols.py), or None.
        kind: The name of its class.
        backend: What tokenizer.json holds; None where it is no tokenizer of `tokenizers`.
    """

    vocabulary: Mapping[str, int]
    specials: Mapping[str, str | None]
    sides: tuple[str, str] | None
    kind: str
    backend: Mapping[str, Any] | None


def check_same(all_parts: Sequence[TokenizerParts], names: Sequence[str]) -> None:
    """Raise an error where two tokenizers give a text other ids, or ids another text.

    Args:
        all_parts: Those of the members.
        names: Their models, for the error.

    Raises:
        DifferentTokenizersError: It names the first difference.
    """
    for parts, name in zip(all_parts[1:], names[1:], strict=True):
        difference = _first_difference(all_parts[0], parts, names[0], name)
        if difference is not None:
            raise DifferentTokenizersError(
                f"All models of an ensemble must have the same tokenizer, but those of "
                f"{names[0]!r} and {name!r} differ: {difference}."
            )


def _first_difference(
    one: TokenizerParts, other: TokenizerParts, first: str, second: str
) -> str | None:
    """Say in half a sentence where two tokenizers differ; None = nowhere."""
    ids, others = one.vocabulary, other.vocabulary
    # In the order of the ids, so that it is the first which is named.
    for token in sorted(
        {**ids, **others}, key=lambda token: (ids.get(token, others.get(token)), token)
    ):
        if token not in others or token not in ids:
            holder, place = (first, ids[token]) if token in ids else (second, others[token])
            return f"{token!r} is a token of {holder!r} alone, with the id {place}"
        if ids[token] != others[token]:
            return f"the id of {token!r} is {ids[token]} and {others[token]}"
    for name in SPECIAL_NAMES:
        if one.specials[name] != other.specials[name]:
            return f"`{name}_token` is {one.specials[name]!r} and {other.specials[name]!r}"
    if one.backend is None or other.backend is None:
        return None if one.kind == other.kind else f"they are a {one.kind} and a {other.kind}"
    if one.sides != other.sides:
        return f"their sides are {one.sides} and {other.sides}"
    parts = [part for part in _PARTS if one.backend.get(part) != other.backend.get(part)]
    return f"their `{parts[0]}` is not the same" if parts else None
