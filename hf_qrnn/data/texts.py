"""Rules of texts that hold for any tokenizer, free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SURROGATE = re.compile("[\ud800-\udfff]")


def has_half_pair(text: str) -> bool:
    """Tell whether a text has half a surrogate pair, which no tokenizer can encode."""
    # `isascii` takes no time, and spares most texts the search.
    return not text.isascii() and _SURROGATE.search(text) is not None


def split_symbols(text: str) -> list[str]:
    """Split a text into its symbols, at U+0020 and nothing else; several together are one blank."""
    return [symbol for symbol in text.split(" ") if symbol]


def list_of_texts(texts: Iterable[str]) -> list[str]:
    """Return texts as a list, of a generator too.

    Raises:
        TypeError: If it is one string, or nothing that gives strings.
        ValueError: If a text has half a surrogate pair.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError("`texts` must be a list of texts, but is one string.")
    if not isinstance(texts, Iterable):
        raise TypeError(f"`texts` must be a list of texts, but is {texts!r}.")
    found = list(texts)
    check_texts(found)
    return found


def check_texts(texts: Iterable[object]) -> None:
    """Raise TypeError or ValueError for what no tokenizer can encode."""
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"`texts` must hold strings, but holds {text!r}.")
        if has_half_pair(text):
            raise ValueError(
                f"`texts` must be valid Unicode, but {text!r} has half a surrogate pair."
            )
