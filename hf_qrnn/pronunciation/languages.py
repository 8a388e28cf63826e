"""Languages by whatever a user calls them: "fr", "fre", "fra", "fr-FR" and "French" are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Codes of ISO 639 and the English name of each; Serbian, Croatian and
# Bosnian are one in the lists of words.
_SAME = tuple(
    frozenset(row.split())
    for row in (
        "ady adyghe", "ar ara arabic", "bg bul bulgarian", "ca cat catalan",
        "cs ces cze czech", "cy cym wel welsh", "da dan danish", "de deu ger german",
        "el ell gre greek", "en eng english", "eo epo esperanto", "es spa spanish",
        "et est estonian", "eu eus baq basque", "fa fas per persian", "fi fin finnish",
        "fr fra fre french", "ga gle irish", "gl glg galician", "he heb hebrew", "hi hin hindi",
        "sh hbs sr srp serbian hr hrv croatian bs bos bosnian",
        "hu hun hungarian", "hy hye arm armenian", "id ind indonesian", "is isl ice icelandic",
        "it ita italian", "ja jpn japanese", "ka kat geo georgian", "km khm khmer",
        "ko kor korean", "la lat latin", "lt lit lithuanian", "lv lav latvian",
        "mk mkd mac macedonian", "ms msa may malay", "mt mlt maltese", "nl nld dut dutch",
        "no nor nb nob norwegian", "pl pol polish", "pt por portuguese",
        "ro ron rum romanian", "ru rus russian", "sk slk slo slovak", "sl slv slovenian",
        "sq sqi alb albanian", "sv swe swedish", "sw swa swahili", "th tha thai",
        "tr tur turkish", "uk ukr ukrainian", "vi vie vietnamese", "zh zho chi chinese",
    )
)  # fmt: skip


def find_language(given: str | None, known: Sequence[str]) -> str | None:
    """Find the tag that a user means.

    A tag is found by itself, or by a code or the name of its language. What follows on a code, a
    country or a script ("en-US", "sr-Latn"), must not contradict what follows on the tag's.

    Args:
        given: What the user wrote.
        known: The tags of a model, as "fre" and "eng_us".

    Returns:
        The tag; `given` itself where none, or more than one, may be meant.
    """
    if given is None or given in known:
        return given
    language, part = _split(given)
    same = next((row for row in _SAME if language in row), frozenset([language]))
    parts = {tag: _split(tag)[1] for tag in known if _split(tag)[0] in same}
    found = [tag for tag in parts if parts[tag] == part]
    if not found:
        # Two letters are a country, four a script: the tag may say another kind of thing.
        found = [tag for tag in parts if not part or len(parts[tag]) != len(part)]
    return found[0] if len(found) == 1 else given


def choose_model(
    language: str | None, models: Sequence[str], several: Mapping[str, Sequence[str]]
) -> tuple[str, str | None] | None:
    """Choose the model that pronounces a language, and the language to tell it.

    What is called as the user wrote it goes first.

    Args:
        language: What the user wrote; None = English.
        models: The languages that have a model of their own.
        several: Models of many languages with their tags.

    Returns:
        The language of a model in `models` and None, or the name of one in `several` and its tag;
        where none fits, the first of `several`, which says what it knows; None if there is none.
    """
    wanted = language or "en"
    for is_exact in (True, False):
        for name, known in ((None, models), *several.items()):
            meant = wanted if is_exact else find_language(wanted, known)
            if meant is None or meant not in known:
                continue
            if name is None:
                return meant, None
            if language is not None:
                return name, meant
    return next(((name, language) for name in several if language is not None), None)


def _split(language: str) -> tuple[str, str]:
    """Cut off what follows on the code of a language: "en-US" and "eng_us" are of the US."""
    language, _, part = language.strip().lower().replace("_", "-").partition("-")
    return language, part
