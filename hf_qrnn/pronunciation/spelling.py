"""Words as a model was trained on them, and the words that it cannot know."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from hf_qrnn.data.texts import split_symbols
from hf_qrnn.data.trigrams import EDGE

from .letters import Letters

MAX_CHARACTERS = 100
"""The most characters of a word a model is asked. The longest in dictionaries have 60 to 80."""

_APOSTROPHES = str.maketrans("\u2019\u02bc", "''")
# Joiners, marks of direction and byte order, soft hyphens, choices of a glyph: nobody says them.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
# No pattern: one that looks for blanks at the end takes quadratic time for those within.
_BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\ufeff"
_NAMED_ROWS = 3  # that a sentence names


class Spelling:
    """The spelling that a model knows, by its vocabulary.

    A model whose vocabulary lacks the capitals of most of its small letters was trained on words
    in lower case, and gets every word so; one that lacks the small letters of most of its
    capitals, in upper case. Any other gets a word as it is, or in lower case if it does not know a
    character of it. Of a vocabulary of bytes nobody can tell; and phones that are written letter
    by letter, instead of as symbols (`--target_tokens blank`), count as letters of words.

    Words have no white space; but where those of the training had blanks, these may too.

    Of a model with language tags, the letters of the language count, as the training pairs had
    them, and not those that only other languages have.

    A word that is not known so is tried with straight apostrophes for curved ones, in Unicode's
    composed and decomposed forms (NFC, NFD), and without characters that nobody sees.

    Args:
        letters: The model's.
        is_strict: Whether a word must be spelled like those of the training (trigrams.py), where
            the model remembers how they are.
    """

    def __init__(self, letters: Letters, *, is_strict: bool = False) -> None:
        self._letters = letters
        self._rows = letters.spelling if is_strict else None
        # By ids, which are of composed or decomposed letters as the tokenizer makes them. The tag
        # and the end token are in every row.
        rows = letters.encode(sorted(letters.alphabet or ()))
        self._own = {index for row in rows for index in row}
        self._fold = None if letters.has_symbols else _case(letters.alphabet or letters.vocabulary)

    def spell(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """Spell words for the model.

        Returns:
            For every word its form for the model and ""; or "" and the reason why it has none,
            which goes on after the word: "has digits".
        """
        words = [trimmed(word) for word in words]
        reasons = [self._fault(word) for word in words]
        # Not of what is too long: Unicode's forms of many marks take quadratic time.
        forms = [
            [] if reason else self._forms(word) for word, reason in zip(words, reasons, strict=True)
        ]
        good = [index for index, reason in enumerate(reasons) if not reason]
        # All at once, since most are known: a tokenizer takes as long for one as for dozens.
        known = dict(zip(good, self._know([forms[index][0] for index in good]), strict=True))
        results = []
        for index, reason in enumerate(reasons):
            if reason:
                results.append(("", reason))
                continue
            first, *others = forms[index]
            if known[index]:
                results.append((first, ""))
                continue
            other = next((form for form in others if self._know([form])[0]), "")
            results.append((other, "" if other else self._unknown(first)))
        return self._strict(results)

    def _strict(self, results: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Refuse forms that are spelled as no word of the training."""
        rows = self._rows
        if rows is None:
            return results
        forms = [form for form, _ in results if form]
        # What the model reads: composed or decomposed as its tokenizer makes it.
        read = dict(zip(forms, self._letters.decode(self._letters.encode(forms)), strict=True))
        new = {form: rows.new_rows(text) for form, text in read.items()}
        return [
            ("", _strange(new[form])) if form and len(new[form]) > rows.most_new else (form, reason)
            for form, reason in results
        ]

    def _fault(self, word: str) -> str:
        """Give the reason to ask no model for `word`, or ""."""
        if not word:
            return "is empty"
        if any("\ud800" <= character <= "\udfff" for character in word):
            return "is not valid Unicode"
        if len(word) > MAX_CHARACTERS:
            return f"is longer than {MAX_CHARACTERS} characters"
        if self._letters.has_symbols:  # of any kind, with blanks between them
            return ""
        kinds = [unicodedata.category(character)[0] for character in seen(word)]
        # As in Vietnamese, whose words of several syllables are written with blanks.
        own = {" "} & set(self._letters.alphabet or ())
        if any(character.isspace() and character not in own for character in word):
            return "has white space: it must be one word"
        if "N" in kinds:
            return "has digits, which must be written as words"
        if "L" not in kinds:
            return "has no letter"
        return "begins with a mark that belongs on a letter" if kinds[0] == "M" else ""

    def _forms(self, word: str) -> list[str]:
        """List the spellings to try, each once."""
        cases = [word, word.lower()] if self._fold is None else [self._fold(word)]
        forms = [
            form
            for shown in (lambda case: case, seen)
            for case in map(shown, cases)
            for form in (
                case,
                straight(case),
                unicodedata.normalize("NFC", straight(case)),
                unicodedata.normalize("NFD", straight(case)),
            )
        ]
        return list(dict.fromkeys(forms))

    def _know(self, forms: Sequence[str]) -> list[bool]:
        unknown, is_open = self._letters.unknown, self._letters.alphabet is None
        return [
            unknown not in row and (is_open or self._own.issuperset(row))
            for row in self._letters.encode(forms)
        ]

    def _unknown(self, form: str) -> str:
        parts = list(dict.fromkeys(split_symbols(form) if self._letters.has_symbols else form))
        known = self._know(parts)
        named = ", ".join(repr(x) for x, is_known in zip(parts, known, strict=True) if not is_known)
        kind = "symbols" if self._letters.has_symbols else "characters"
        language = self._letters.language
        is_open = self._letters.alphabet is None
        knower = "the model" if is_open else f"the model, in {language!r},"
        return f"has {kind} that {knower} does not know: {named}"


def straight(word: str) -> str:
    """Write straight apostrophes for curved ones."""
    return word.translate(_APOSTROPHES)


def trimmed(word: str) -> str:
    """Cut off white space, and the byte order mark of a file, at the ends of a word."""
    return word.strip(_BLANKS)


def seen(word: str) -> str:
    """Leave out the characters that nobody sees."""
    return _UNSEEN.sub("", word)


def _strange(rows: Sequence[str]) -> str:
    """Say which rows of letters no word of the training has; "-" is the word's end."""
    named = [unicodedata.normalize("NFC", row.replace(EDGE, "-")) for row in rows[:_NAMED_ROWS]]
    more = ", ..." if len(rows) > _NAMED_ROWS else ""
    listed = ", ".join(map(repr, named))
    return f"is spelled like no word that the model has learnt: none has {listed}{more}"


def _case(tokens: Iterable[str]) -> Callable[[str], str] | None:
    """Find the case of all words by their letters; None where it has both, or none."""
    letters = {token for token in tokens if len(token) == 1 and token.isalpha()}
    for is_own, fold, swap in (
        (str.islower, str.lower, str.upper),
        (str.isupper, str.upper, str.lower),
    ):
        # Letters of one form are of no case: of most scripts, and as phones.
        own = [x for x in letters if is_own(x) and len(swap(x)) == 1 and swap(x) != x]
        if own and 2 * sum(swap(letter) in letters for letter in own) < len(own):
            return fold
    return None
