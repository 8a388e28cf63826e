"""Makes tokenizers whose two sides differ, with tags of languages, and encodes by sides.

A side is "char" or "blank". "char": every character (code point) is a token. "blank": every symbol
between blanks is one, as the phones of "HH AH0 L OW1". The content of a symbol's token is U+2581,
the mark by which SentencePiece begins words, and the symbol. So no symbol is ever taken for a
character of the other side or for a special token, and a blank stands before every symbol but the
first when ids are decoded.

A blank is U+0020 and nothing else. A text of a "blank" side may have several of them together, or
some at its ends: they are read as one, or none. With single blanks the round trip is exact.

The tag of the language "fre" is the special token "<fre>", the first of a source. It is read at
the beginning of a text and nowhere else.

Characters of a source may be decomposed (Unicode NFD), so that letters share their accents and
syllables of Hangul are written by their letters. Symbols never are: they stay as they were written.

All is done by parts of `tokenizers` in a plain `PreTrainedTokenizerFast`: loaded by `AutoTokenizer`
in any program, `tokenizer("<fre>bonjour")` gives the ids of a source, and `tokenizer.decode` the
text of either side. What the sides are is in tokenizer_config.json.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .languages import (
    check_language,
    language_of_each,
    language_tag,
    list_languages,
    refuse_language,
)
from .texts import check_texts, split_symbols
from .tokenization import (
    SPECIAL_TOKENS,
    UNK_TOKEN,
    add_characters,
    encode_batch,
    is_nfc,
    is_nfd,
    tokenizer_kind,
    wrap_tokenizer,
)
from .trigrams import FIELD as TRIGRAMS
from .trigrams import Trigrams, learn, read_trigrams

SIDES = ("char", "blank")
"""The kinds of a side: characters, or symbols between blanks."""
SYMBOL_MARK = "\u2581"
"""The beginning of the content of a symbol's token."""
_ALPHABETS = "alphabets"  # the field of tokenizer_config.json

# Stands for the mark while ids are decoded, where it is a blank and U+2581 a character. Unicode
# promises that no text holds this code point: here it is always unknown.
_NO_CHARACTER = "\U0010ffff"


def train_symbol_tokenizer(
    sources: Iterable[str],
    targets: Iterable[str],
    *,
    source_tokens: str = "char",
    target_tokens: str = "blank",
    languages: Sequence[str] = (),
    min_count: int = 1,
    nfc: bool = False,
    source_nfd: bool = False,
) -> PreTrainedTokenizerFast:
    """Learn one vocabulary for two sides of characters or of symbols between blanks.

    Ids 0 to 3 are the special tokens; then come the tags, the characters and the symbols, each in
    the order of their code points. Two sides of the same kind share their tokens. A character or
    symbol outside the vocabulary is one `<unk>`.

    Args:
        sources: The training sources.
        targets: Their targets.
        source_tokens: "char" or "blank".
        target_tokens: "char" or "blank".
        languages: What the sources may be tagged with, as "fre"; none = no source has a tag.
        min_count: Occurrences that a character or symbol needs to get an id, at least 1.
        nfc: Compose characters (Unicode NFC) before counting and before every encoding.
        source_nfd: Decompose the characters of sources (Unicode NFD) before counting and before
            every encoding; with `nfc` targets alone are composed. Decoded, a source is decomposed.

    Returns:
        A tokenizer that encodes sources; `encode_targets` encodes targets.

    Raises:
        TypeError: If `sources`, `targets` or `languages` is one string.
        ValueError: If a side is of no such kind, a language is no code, `min_count` is below 1 or
            leaves a side without tokens, a text is not valid Unicode, or sources are to be
            decomposed that are not characters, or whose characters targets share.
    """
    for name, given in {"sources": sources, "targets": targets, "languages": languages}.items():
        if isinstance(given, str):
            raise TypeError(f"`{name}` must be a list of texts, but is one string.")
    sides = (source_tokens, target_tokens)
    check_side(source_tokens=source_tokens, target_tokens=target_tokens)
    check_source_nfd(source_nfd, source_tokens, target_tokens)
    for language in languages:
        check_language(language)
    if min_count < 1:
        raise ValueError(f"`min_count` must be at least 1, but is {min_count}.")
    names = sorted(set(languages))
    found = _count(_in_form(sources, nfc, source_nfd), _in_form(targets, nfc), sides)
    tokens = [*SPECIAL_TOKENS, *map(language_tag, names), *_frequent(found, min_count)]
    tokenizer = Tokenizer(_model({token: index for index, token in enumerate(tokens)}))
    _set_parts(tokenizer, source_tokens, names, nfc, source_nfd)
    return wrap_tokenizer(
        tokenizer,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        languages=names,
        extra_special_tokens=list(map(language_tag, names)),
    )


def sides_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the kinds of source and target; None for a tokenizer that knows no sides."""
    if tokenizer_kind(tokenizer) != "symbol":
        return None
    return tokenizer.init_kwargs["source_tokens"], tokenizer.init_kwargs["target_tokens"]


def languages(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the languages that a tokenizer has tags for, in the order of their code points."""
    if sides_of(tokenizer) is None:
        return ()
    return tuple(tokenizer.init_kwargs.get("languages") or ())


def with_alphabets(
    tokenizer: PreTrainedTokenizerBase, sources: Iterable[tuple[str, str]]
) -> PreTrainedTokenizerBase:
    """Make a tokenizer that also remembers which characters each language has in its sources.

    A vocabulary of many languages does not tell that one is never written in another's script.

    Args:
        tokenizer: One with tags and sources of characters; every other is returned as it is.
        sources: Pairs of a language and a source.

    Returns:
        A copy, which knows these characters and those it knew before; `tokenizer` itself if
        there is nothing new.
    """
    sides = sides_of(tokenizer)
    if sides is None or sides[0] != "char" or not languages(tokenizer):
        return tokenizer
    found = {name: set(text) for name, text in _alphabets(tokenizer).items()}
    forms = is_nfc(tokenizer), is_nfd(tokenizer)
    for language, source in sources:
        found.setdefault(language, set()).update(*_in_form([source], *forms))
    texts = {language: "".join(sorted(found[language])) for language in sorted(found)}
    return _remembering(tokenizer, _ALPHABETS, texts)


def alphabet(tokenizer: PreTrainedTokenizerBase, language: str | None) -> frozenset[str] | None:
    """Return the characters of a language's sources; None where nobody counted them.

    They are as the vocabulary has them: composed or decomposed if the tokenizer does it.
    """
    text = _alphabets(tokenizer).get(language or "")
    return None if text is None else frozenset(text)


def with_spellings(
    tokenizer: PreTrainedTokenizerBase, sources: Iterable[tuple[str, str]]
) -> PreTrainedTokenizerBase:
    """Make a tokenizer that also remembers how the sources of each language are spelled.

    Args:
        tokenizer: One with sources of characters and targets of symbols: sources that are words.
            Every other is returned as it is.
        sources: Pairs of a language, "" without tags, and a source.

    Returns:
        A copy, which knows these rows of characters (trigrams.py) and those it knew before;
        `tokenizer` itself if there is nothing new.
    """
    if sides_of(tokenizer) != ("char", "blank"):
        return tokenizer
    forms = is_nfc(tokenizer), is_nfd(tokenizer)
    words: dict[str, dict[str, None]] = {}
    for language, source in sources:
        words.setdefault(language, {}).update(dict.fromkeys(_in_form([source], *forms)))
    before = dict(tokenizer.init_kwargs.get(TRIGRAMS) or {})
    found = dict(before)
    for language in words:
        learnt = learn(words[language], read_trigrams({TRIGRAMS: before}, language))
        found.pop(language, None)
        if learnt is not None:
            found[language] = learnt.to_json()
    return _remembering(tokenizer, TRIGRAMS, found)


def spelling(tokenizer: PreTrainedTokenizerBase, language: str | None) -> Trigrams | None:
    """Return the rows of characters of a language's sources; None where nobody counted them."""
    if sides_of(tokenizer) is None:
        return None
    return read_trigrams(tokenizer.init_kwargs, language)


def without_words(
    tokenizer: PreTrainedTokenizerBase, languages: Iterable[str]
) -> PreTrainedTokenizerBase:
    """Make a tokenizer that remembers neither characters nor spellings of these languages.

    What a part of the sources has must not be taken for what they have.
    """
    forgotten = set(languages)
    for name in (_ALPHABETS, TRIGRAMS):
        before = tokenizer.init_kwargs.get(name) or {}
        kept = {language: before[language] for language in before if language not in forgotten}
        tokenizer = _remembering(tokenizer, name, kept)
    return tokenizer


def encode_sources(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    language: str | Sequence[str] | None = None,
) -> list[list[int]]:
    """Encode sources as ids that end with one end token; a tag comes first where there are tags.

    Args:
        tokenizer: Any tokenizer that passed `check_tokenizer`.
        texts: The sources, possibly none.
        language: The language of all, or of each; one of `languages(tokenizer)`, and None where
            these are none.

    Raises:
        TypeError: If `texts` is one string, or holds something else than strings.
        ValueError: If a language is missing, unknown or too much, or a text is not valid Unicode.
    """
    known = languages(tokenizer)
    if isinstance(texts, str):
        raise TypeError("`texts` must be a list of texts, but is one string.")
    if not known:
        refuse_language(language)
        return encode_batch(tokenizer, texts)
    check_texts(texts)
    wanted = language_of_each(len(texts), language, known)
    tags = [language_tag(name) for name in wanted]
    rows = encode_batch(tokenizer, [tag + text for tag, text in zip(tags, texts, strict=True)])
    ids = cast(list[int], tokenizer.convert_tokens_to_ids(tags))
    for index, row in enumerate(rows):
        # NFC would make one character of the tag's last and an accent that begins the text.
        if row[0] != ids[index]:
            rows[index] = [ids[index], *encode_batch(tokenizer, [texts[index]])[0]]
    return rows


def encode_targets(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Encode targets as ids that end with one end token.

    Args:
        tokenizer: Any tokenizer that passed `check_tokenizer`.
        texts: The targets, possibly none.

    Raises:
        TypeError: If `texts` is one string, or holds something else than strings.
        ValueError: If a text is not valid Unicode.
    """
    sides = sides_of(tokenizer)
    if sides is None or isinstance(texts, str):
        return encode_batch(tokenizer, texts)
    check_texts(texts)
    # By the vocabulary alone: the tokenizer's own parts are for sources.
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    unknown, end = vocabulary[UNK_TOKEN], int(tokenizer.eos_token_id)
    return [
        [*(vocabulary.get(token, unknown) for token in _split(text, sides[1])), end]
        for text in _in_form(texts, is_nfc(tokenizer))
    ]


def add_symbols(
    tokenizer: PreTrainedTokenizerBase,
    sources: Iterable[str],
    targets: Iterable[str],
    *,
    languages: Sequence[str] = (),
    min_count: int = 1,
) -> PreTrainedTokenizerBase:
    """Make a tokenizer that also knows what is new in these texts; the old ids stay.

    New tags, characters and symbols get the ids after the last, in this order. A character
    tokenizer learns characters (`add_characters`); every other kind is returned as it is.

    Args:
        tokenizer: A tokenizer of any kind.
        sources: New training sources.
        targets: Their targets.
        languages: The languages of these sources.
        min_count: Occurrences that a new character or symbol needs to get an id.

    Returns:
        `tokenizer` itself if there is nothing to add, else a copy.

    Raises:
        ValueError: If there are languages and the tokenizer has no tags, or the other way round.
    """
    sides, tagged = sides_of(tokenizer), _tagged(tokenizer)
    if bool(languages) != bool(tagged):
        tags = f"the tags {list_languages(tagged)}" if tagged else "no language tags"
        raise ValueError(
            f"`language_tag` must {'be given' if tagged else 'be left out'} with a model whose "
            f"tokenizer has {tags}, but "
            f"is {'not' if tagged else 'given'}."
        )
    if sides is None:
        return add_characters(tokenizer, chain(sources, targets), min_count=min_count)
    for language in languages:
        check_language(language)
    known: dict[str, int] = tokenizer.get_vocab()
    nfc, nfd = is_nfc(tokenizer), is_nfd(tokenizer)
    found = _count(_in_form(sources, nfc, nfd), _in_form(targets, nfc), sides)
    names = [*tagged, *sorted(set(languages) - set(tagged))]
    new = [language_tag(name) for name in names if language_tag(name) not in known]
    for counts in found.values():
        new += sorted(x for x, count in counts.items() if count >= min_count and x not in known)
    if not new:
        return tokenizer
    first = max(known.values()) + 1
    longer = copy.deepcopy(cast(PreTrainedTokenizerFast, tokenizer))
    backend = longer.backend_tokenizer
    backend.model = _model({**known, **{token: first + i for i, token in enumerate(new)}})
    _set_parts(backend, sides[0], names, nfc, nfd)
    longer.init_kwargs["languages"] = sorted(names)
    longer.add_special_tokens({"extra_special_tokens": list(map(language_tag, sorted(names)))})
    return longer


def check_side(**given: str) -> None:
    """Raise ValueError where a value is no kind of a side, by the names of the arguments."""
    for name, side in given.items():
        if side not in SIDES:
            raise ValueError(f"`{name}` must be one of 'char', 'blank', but is {side!r}.")


def check_source_nfd(source_nfd: bool, source_tokens: str, target_tokens: str) -> None:
    """Raise ValueError where sources are to be decomposed on sides that cannot have it."""
    # Two sides of characters share them: targets would be written in decomposed ones.
    if source_nfd and (source_tokens, target_tokens) != ("char", "blank"):
        raise ValueError(
            "`source_nfd` must be left out, or be False, unless `source_tokens` is 'char' and "
            f"`target_tokens` is 'blank', but is True with {source_tokens!r} and {target_tokens!r}."
        )


def _alphabets(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    return {} if sides_of(tokenizer) is None else tokenizer.init_kwargs.get(_ALPHABETS) or {}


def _remembering(
    tokenizer: PreTrainedTokenizerBase, name: str, fields: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a field of tokenizer_config.json; itself if it has that field."""
    if fields == (tokenizer.init_kwargs.get(name) or {}):
        return tokenizer
    remembers = copy.deepcopy(tokenizer)
    remembers.init_kwargs[name] = {language: fields[language] for language in sorted(fields)}
    return remembers


def _tagged(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return `languages(tokenizer)`, where an argument has that name."""
    return languages(tokenizer)


def _count(
    sources: Iterable[str], targets: Iterable[str], sides: tuple[str, str]
) -> dict[str, Counter[str]]:
    """Count the tokens of each kind of side, "char" before "blank"."""
    found = {kind: Counter[str]() for kind in SIDES if kind in sides}
    for texts, kind in zip((sources, targets), sides, strict=True):
        for text in texts:
            found[kind].update(_split(text, kind))
    for counts in found.values():
        for token in [token for token in counts if _NO_CHARACTER in token]:
            del counts[token]
    return found


def _frequent(found: dict[str, Counter[str]], min_count: int) -> Iterator[str]:
    """Yield the tokens of each kind of side that occur often enough, of which there must be one."""
    for kind, counts in found.items():
        what = {"char": "character", "blank": "symbol"}[kind]
        if not counts:
            raise ValueError(f"the texts of a {kind!r} side must hold a {what}, but are empty.")
        if max(counts.values()) < min_count:
            raise ValueError(
                f"`min_count` must be at most {max(counts.values())}, the count of the most "
                f"frequent {what}, but is {min_count}."
            )
        yield from sorted(token for token, count in counts.items() if count >= min_count)


def _split(text: str, side: str) -> Iterable[str]:
    """Split a text, in the form of its side, into the contents of its tokens."""
    if side == "char":
        return text
    return [SYMBOL_MARK + symbol for symbol in split_symbols(text)]


def _steps(nfc: bool, nfd: bool = False) -> list[normalizers.Normalizer]:
    """List what makes the form of a text; both, so that a saved tokenizer tells what it does."""
    return [*([normalizers.NFC()] if nfc else []), *([normalizers.NFD()] if nfd else [])]


def _in_form(texts: Iterable[str], nfc: bool, nfd: bool = False) -> Iterator[str]:
    """Yield the texts composed, decomposed or as they are."""
    # By `tokenizers`, which may know another version of Unicode than Python.
    form = normalizers.Sequence(_steps(nfc, nfd))
    for text in texts:
        check_texts([text])
        yield form.normalize_str(text) if nfc or nfd else text


def _model(vocabulary: dict[str, int]) -> models.WordLevel:
    return models.WordLevel(vocab=vocabulary, unk_token=UNK_TOKEN)


def _set_parts(tokenizer: Tokenizer, side: str, names: Sequence[str], nfc: bool, nfd: bool) -> None:
    """Set the parts that read a source and write either side."""
    tags = [language_tag(name) for name in names]
    steps = _steps(nfc, nfd)
    if side == "char":
        # "<fre>" at the very beginning, else one character. `[\s\S]` is a newline too.
        choice = "".join(rf"\A{re.escape(tag)}|" for tag in tags)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{choice}[\s\S]"), "isolated")
    else:
        steps += [
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" +"), f" {SYMBOL_MARK}"),
            normalizers.Prepend(SYMBOL_MARK),
        ]
        # A tag has no mark, but the symbol that follows it without a blank.
        for tag in tags:
            marked = rf"\A{SYMBOL_MARK}{re.escape(tag)}"
            steps.append(normalizers.Replace(Regex(rf"{marked}(?= |\z)"), tag))
            steps.append(normalizers.Replace(Regex(marked), f"{tag} {SYMBOL_MARK}"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    if len(steps) == 1:
        tokenizer.normalizer = steps[0]
    elif steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    # A symbol's mark becomes a blank, and nothing where the text begins.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(rf"\A{SYMBOL_MARK}(?=[\s\S])"), _NO_CHARACTER),
            decoders.Metaspace(replacement=_NO_CHARACTER, prepend_scheme="always"),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(tag, special=True, normalized=False) for tag in tags])
