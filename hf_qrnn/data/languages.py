"""Codes of languages: what a tag before a source may say, and which one a text gets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

_CODE = re.compile(r"[!-;=?-~]+")  # printable ASCII without blanks, "<" and ">"
_TAKEN = ("pad", "/s", "unk", "s")  # in "<" and ">" they are the special tokens


def check_language(language: str) -> None:
    """Raise ValueError unless `language` can be a tag."""
    if not _CODE.fullmatch(language) or language in _TAKEN:
        raise ValueError(
            "a language must be a code such as 'fre', of ASCII without blanks, '<' and '>', and "
            f"none of 'pad', '/s', 'unk' and 's', but is {language!r}."
        )


def language_tag(language: str) -> str:
    """Return the special token of a language."""
    return f"<{language}>"


def list_languages(known: Sequence[str]) -> str:
    """Write languages for a sentence."""
    return ", ".join(map(repr, known))


def refuse_language(language: str | Sequence[str] | None) -> None:
    """Raise ValueError where a language is given to a model that has no tags."""
    if language is not None:
        raise ValueError(
            "`language` must be left out with a model that has no language tags, but is "
            f"{language if isinstance(language, str) else next(iter(language), None)!r}."
        )


def language_of_each(
    num_texts: int, language: str | Sequence[str] | None, known: Sequence[str]
) -> list[str]:
    """Return the language of each text, every one known.

    Args:
        num_texts: How many texts there are.
        language: The language of all, or of each.
        known: The languages that have tags.

    Raises:
        ValueError: If one is missing or unknown, or there is not one for each text.
    """
    if language is None or isinstance(language, str):
        wanted = [language] * num_texts
    else:
        wanted = list(language)
        if len(wanted) != num_texts:
            raise ValueError(
                "`language` must be one, or one for each text, but there are "
                f"{len(wanted)} for {num_texts} texts."
            )
    for name in [language] if isinstance(language, str) else dict.fromkeys(wanted):
        if name not in known:
            found = f"is {name!r}" if name else "is not given"
            raise ValueError(f"`language` must be one of {list_languages(known)}, but {found}.")
    return cast("list[str]", wanted)
