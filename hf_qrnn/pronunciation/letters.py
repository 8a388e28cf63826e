"""Letters and symbols as a model reads and writes them, by torch's tokenizer or the engine's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from hf_qrnn.data.trigrams import Trigrams, read_trigrams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_qrnn.engine.tokens import Tokens


class Letters(Protocol):
    """The tokens of a model.

    Attributes:
        has_symbols: Whether its words are symbols between blanks (`--source_tokens blank`).
        language: The language of the words; None where there are no tags.
        alphabet: The characters of that language; None where nobody counted them.
        spelling: The rows of characters of that language's words; None where nobody counted them.
        vocabulary: All tokens.
        unknown: The id of the token for unknown characters, or None.
    """

    has_symbols: bool
    language: str | None
    alphabet: frozenset[str] | None
    spelling: Trigrams | None
    vocabulary: Collection[str]
    unknown: int | None

    def encode(self, words: Sequence[str]) -> list[list[int]]:
        """Encode words as ids that end with one end token."""

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Decode rows of ids without their special tokens."""


class TokenizerLetters:
    """The letters of transformers' tokenizer.

    Args:
        tokenizer: The model's.
        language: The language of the words; None where the tokenizer has no tags.

    Raises:
        ValueError: If `language` is missing, unknown or too much.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, language: str | None = None) -> None:
        # Not above: it imports transformers, which the engine does without.
        from hf_qrnn.data.symbols import alphabet, sides_of, spelling

        self._tokenizer, self.language = tokenizer, language
        self.has_symbols = (sides_of(tokenizer) or ("char",))[0] == "blank"
        self.alphabet = alphabet(tokenizer, language)
        self.spelling = spelling(tokenizer, language)
        self.vocabulary: Collection[str] = tokenizer.get_vocab()
        self.unknown: int | None = tokenizer.unk_token_id
        self.encode(["a"])  # a wrong language shows here

    def encode(self, words: Sequence[str]) -> list[list[int]]:
        """Encode words, with the language's tag in front where there are tags."""
        from hf_qrnn.data.symbols import encode_sources

        return encode_sources(self._tokenizer, words, self.language)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Decode rows of ids without their special tokens."""
        from hf_qrnn.data.tokenization import decode_batch

        return decode_batch(self._tokenizer, rows)


class EngineLetters:
    """The letters of the engine's tokenizer.

    Args:
        tokens: The model's.
        language: The language of the words; None where the tokenizer has no tags.

    Raises:
        ValueError: If `language` is missing, unknown or too much.
    """

    def __init__(self, tokens: Tokens, language: str | None = None) -> None:
        self._tokens, self.language = tokens, language
        self.has_symbols = (tokens.sides or ("char",))[0] == "blank"
        self.alphabet = tokens.alphabet(language)
        self.spelling = read_trigrams(tokens.config, language)
        self.vocabulary: Collection[str] = tokens.vocabulary()
        self.unknown: int | None = tokens.unk
        self.encode(["a"])  # a wrong language shows here

    def encode(self, words: Sequence[str]) -> list[list[int]]:
        """Encode words, with the language's tag in front where there are tags."""
        return self._tokens.encode(words, self.language)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Decode rows of ids without their special tokens."""
        return self._tokens.decode(rows)
