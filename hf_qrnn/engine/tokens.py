"""Reads a saved tokenizer by `tokenizers` alone: texts to ids and back.

The ids and texts are those of `encode_sources` (data/symbols.py) and `decode_batch`
(data/tokenization.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from hf_qrnn.data.json_files import read_json
from hf_qrnn.data.languages import language_of_each, language_tag, refuse_language
from hf_qrnn.data.same_tokenizers import SPECIAL_NAMES, TokenizerParts
from hf_qrnn.data.texts import list_of_texts
from hf_qrnn.data.translations import token_pieces

from .settings import require

# Classes that are their tokenizer.json. Any other may build a tokenizer of its own from it.
_PLAIN = ("TokenizersBackend", "PreTrainedTokenizerFast")
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
# Fields by which transformers changes what tokenizer.json says.
_CHANGES = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "additional_special_tokens",
)
_CHUNK_SIZE = 512
SIDES = ("char", "blank")
"""The kinds of a side, as in data/symbols.py."""


class Tokens:
    """The tokenizer of a folder.

    Args:
        folder: A folder with tokenizer.json and tokenizer_config.json.
        vocab_size: Tokens that the model has.

    Attributes:
        config: The fields of tokenizer_config.json.
        sides: The kinds of source and target (data/symbols.py); None where it knows no sides.
        languages: The languages whose tags the model knows; none where it needs no language.
        eos: The id of the end token.
        unk: The id of the token for unknown characters, or None.

    Raises:
        ValueError: If there is no tokenizer, it is damaged, it has no end token, or transformers
            would make another one of it than its tokenizer.json says.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.config = config = read_json(_file(folder, "tokenizer_config.json"))
        _check_plain(config)
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(_file(folder, "tokenizer.json")))
        except Exception as error:  # `tokenizers` raises plain Exception
            raise ValueError(
                f"`tokenizer.json` must be a saved tokenizer, but is damaged: {error}."
            ) from error
        added = self._tokenizer.get_added_tokens_decoder().values()
        known = {token.content for token in added}
        _check_added(config, known)
        special = {token.content for token in added if token.special}
        _check_extra(config.get("extra_special_tokens"), special)
        self.sides = _sides(config)
        self.languages = _languages(config, special) if self.sides else ()
        # Special tokens that only the config names are cut out of a decoded text too.
        named = [_content(config.get(name)) for name in _NAMED]
        missing = [token for token in dict.fromkeys(named) if token and token not in known]
        self._tokenizer.add_tokens([AddedToken(token, special=True) for token in missing])
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A special token is never read from text.
        self._tokenizer.encode_special_tokens = True
        end = _content(config.get("eos_token"))
        eos: Any = None if end is None else self._tokenizer.token_to_id(end)
        require("eos_token", "a token of the tokenizer", end, eos is not None)
        self.eos = int(eos)
        unknown = _content(config.get("unk_token"))
        self.unk = None if unknown is None else self._tokenizer.token_to_id(unknown)
        # Ids may have gaps.
        size = 1 + max(self.vocabulary().values())
        require("vocab_size", f"at least {size}, the tokenizer's", vocab_size, vocab_size >= size)
        self._vocab_size = vocab_size

    def encode(
        self, texts: Sequence[str], language: str | Sequence[str] | None = None
    ) -> list[list[int]]:
        """Encode texts as ids that end with exactly one end token; a tag comes first if there are.

        Args:
            texts: Sources, possibly none.
            language: The language of all, or of each; None where there are no tags.

        Raises:
            TypeError: If `texts` is one string, or holds something else than strings.
            ValueError: If a language is missing, unknown or too much, or a text is not valid
                Unicode (half a surrogate pair).
        """
        texts = list_of_texts(texts)
        if not self.languages:
            refuse_language(language)
            return self._encode(texts)
        wanted = language_of_each(len(texts), language, self.languages)
        tags = [language_tag(name) for name in wanted]
        rows = self._encode([tag + text for tag, text in zip(tags, texts, strict=True)])
        for index, (row, tag) in enumerate(zip(rows, tags, strict=True)):
            first = self._tokenizer.token_to_id(tag)
            # NFC would make one character of the tag's last and an accent that begins the text.
            if row[0] != first:
                rows[index] = [first, *self._encode([texts[index]])[0]]
        return rows

    def alphabet(self, language: str | None) -> frozenset[str] | None:
        """Return the characters of a language's sources; None where nobody counted them."""
        alphabets = self.config.get("alphabets") if self.sides else None
        text = alphabets.get(language or "") if isinstance(alphabets, dict) else None
        return frozenset(text) if isinstance(text, str) else None

    def parts(self) -> TokenizerParts:
        """Return what another tokenizer is compared with."""
        named = {name: _content(self.config.get(f"{name}_token")) for name in SPECIAL_NAMES}
        backend = json.loads(self._tokenizer.to_str())
        return TokenizerParts(self.vocabulary(), named, self.sides, _PLAIN[0], backend)

    def vocabulary(self) -> dict[str, int]:
        """Return all tokens with their ids."""
        found: dict[str, int] = self._tokenizer.get_vocab()
        return found

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """Decode rows of ids without their special tokens."""
        # One by one: a batch would start threads.
        return [self._tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each id adds, special tokens too (`token_pieces`)."""
        return token_pieces(
            lambda own: str(self._tokenizer.decode(own, skip_special_tokens=False)), ids
        )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = []
        for start in range(0, len(texts), _CHUNK_SIZE):
            chunk = list(texts[start : start + _CHUNK_SIZE])
            rows.extend(encoding.ids for encoding in self._tokenizer.encode_batch(chunk))
        # Some tokenizers append none, some another token first; the model must see one end.
        for row in rows:
            while row and row[-1] == self.eos:
                row.pop()
            row.append(self.eos)
            # A post-processor adds whatever ids it names.
            rule = f"one that gives ids below {self._vocab_size}, the model's"
            require("tokenizer.json", rule, max(row), max(row) < self._vocab_size)
        return rows


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"The model must have a tokenizer, but there is no `{name}`.")
    return path


def _check_plain(config: dict[str, Any]) -> None:
    """Refuse a tokenizer of which transformers makes more than its tokenizer.json."""
    kind = config.get("tokenizer_class")
    rule = f"one of {', '.join(map(repr, _PLAIN))} for the engine"
    require("tokenizer_class", rule, kind, kind in _PLAIN)
    for name in _CHANGES:
        value = config.get(name)
        require(name, "absent for the engine, which does not have it", value, not value)


def _check_added(config: dict[str, Any], known: set[str]) -> None:
    added = config.get("added_tokens_decoder")
    for token in map(_content, added.values() if isinstance(added, dict) else ()):
        if token not in known:
            raise ValueError(
                f"`added_tokens_decoder` must hold tokens of tokenizer.json, but holds {token!r}."
            )


def _check_extra(extra: Any, special: set[str]) -> None:
    """Refuse special tokens that tokenizer.json does not have: transformers would add them."""
    extra = extra or []
    is_list = isinstance(extra, (dict, list))
    require("extra_special_tokens", "a list or an object", extra, is_list)
    for token in extra.values() if isinstance(extra, dict) else extra:
        content = _content(token)
        rule = "special tokens of tokenizer.json for the engine"
        require("extra_special_tokens", rule, content or token, content in special)


def _sides(config: dict[str, Any]) -> tuple[str, str] | None:
    """Return what `sides_of` (data/symbols.py) does."""
    names = ("source_tokens", "target_tokens")
    if config.get(names[1]) is None:
        return None
    for name in names:
        require(name, "one of 'char', 'blank'", config.get(name), config.get(name) in SIDES)
    return config[names[0]], config[names[1]]


def _languages(config: dict[str, Any], special: set[str]) -> tuple[str, ...]:
    """Return the languages of a config, each with a tag among the special tokens."""
    names = config.get("languages") or []
    require("languages", "a list of codes", names, isinstance(names, list))
    for name in names:
        is_known = isinstance(name, str) and language_tag(name) in special
        require("languages", "codes that have tags in tokenizer.json", name, is_known)
    return tuple(names)


def _content(token: Any) -> str | None:
    """Return the text of a special token, which may be an object that describes it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
