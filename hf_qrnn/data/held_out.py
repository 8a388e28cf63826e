"""Holds training pairs out for validation, by a hash of their sources."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol, TypeVar


class HasSource(Protocol):
    """The part of a pair that is read."""

    @property
    def source(self) -> str:
        """The source."""

    @property
    def language(self) -> str:
        """The language of the source; "" = none."""


Pair = TypeVar("Pair", bound=HasSource)


def hold_out(pairs: Iterable[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into those that stay and those that are held out, each in their order.

    The SHA-256 of a source decides, so that a word's pronunciations stay together and go the same
    way in every run, whatever else is in the file.

    Args:
        pairs: The pairs.
        share: The share of the sources that is held out, in (0, 1).
    """
    split: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(f"{pair.language}\n{pair.source}".encode())
        split[int(digest.hexdigest()[:8], 16) < share * 2**32].append(pair)
    return split
