"""Codes of languages: what a tag before a source may say."""

from __future__ import annotations

import re

_CODE = re.compile(r"[!-;=?-~]+")  # printable ASCII without blanks, "<" and ">"
_TAKEN = ("pad", "/s", "unk", "s")  # in "<" and ">" they are the special tokens


def check_language(language: str) -> None:
    """Raise ValueError unless `language` can be a tag."""
    if not _CODE.fullmatch(language) or language in _TAKEN:
        raise ValueError(
            "a language must be a code such as 'fre', of ASCII without blanks, '<' and '>', and "
            f"none of 'pad', '/s', 'unk' and 's', but is {language!r}."
        )
