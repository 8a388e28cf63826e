"""Makes the tokenizer of words: words, numbers and marks of running text, each a token.

It splits as the word vectors of GloVe are split, without their rules for single words: "don't" is
"do" and "n't", "it's" is "it" and "'s". Marks that repeat are one token, and the line break of a
web page, "<br />", is one too. Blanks are in no token, so a text is not told again exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .texts import check_texts
from .tokenization import SPECIAL_TOKENS, UNK_TOKEN, wrap_tokenizer

_TOKEN = (
    r"<br ?/?>"
    r"|(?i:n't|'(?:s|m|d|re|ve|ll))(?![\p{L}\p{M}])"
    r"|[\p{L}\p{M}]+?(?=(?i:n't)(?![\p{L}\p{M}]))|[\p{L}\p{M}\p{N}]+"
    r"|[!?]+|\.+|-+|\*+|\S"
)


def train_prose_tokenizer(
    texts: Iterable[str],
    *,
    min_count: int = 1,
    max_size: int = 0,
    lower_case: bool = False,
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of the words, numbers and marks of `texts`.

    They are ordered by their counts, then by code points; every other one becomes `<unk>`.

    Args:
        texts: The training texts.
        min_count: Occurrences that a token needs to get an id, at least 1.
        max_size: Most tokens to get an id, the most frequent, special tokens not counted; 0 = all.
        lower_case: Read all letters as small ones.

    Returns:
        A tokenizer whose texts end with `</s>`.

    Raises:
        ValueError: If `min_count` is below 1 or leaves no token, `max_size` is negative, or a text
            is not valid Unicode.
    """
    for name, value, least in (("min_count", min_count, 1), ("max_size", max_size, 0)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, but is {value}.")
    normalizer = normalizers.Lowercase() if lower_case else None
    splitter = pre_tokenizers.Split(Regex(_TOKEN), behavior="removed", invert=True)
    counts: Counter[str] = Counter()
    for text in texts:
        check_texts([text])
        read = text if normalizer is None else normalizer.normalize_str(text)
        counts.update(token for token, _ in splitter.pre_tokenize_str(read))
    known = [token for token, count in counts.items() if count >= min_count]
    if not known:
        raise ValueError(
            f"`min_count` must leave a word, but is {min_count}, and none occurs so often."
        )
    known.sort(key=lambda token: (-counts[token], token))
    tokens = [*SPECIAL_TOKENS, *known[: max_size or None]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNK_TOKEN))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    return wrap_tokenizer(tokenizer)
