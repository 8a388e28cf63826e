"""Makes character and byte tokenizers that lose nothing, and loads any other of Hugging Face.

Both kinds are plain `tokenizers` components inside `PreTrainedTokenizerFast`: a saved folder holds
`tokenizer.json` and `tokenizer_config.json` and loads with `AutoTokenizer`, without code of ours.

Ids 0 to 3 are always `<pad>`, `</s>`, `<unk>`, `<s>`; every text ends with one `</s>`. A special
token is never read from text: a literal "</s>" in a sentence stays four characters (or bytes).

A folder that also holds a model whose code travels with it (`auto_map` in config.json) makes
AutoTokenizer read that config first, and transformers then asks whether to run its code, unless
`hf_qrnn` is imported or `trust_remote_code` is given. `load_tokenizer` never asks;
`PreTrainedTokenizerFast.from_pretrained(folder)` does not either.
"""

import copy
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .hub_replies import hub_answer
from .texts import check_texts

PAD_TOKEN = "<pad>"
EOS_TOKEN = "</s>"
UNK_TOKEN = "<unk>"
BOS_TOKEN = "<s>"
SPECIAL_TOKENS = (PAD_TOKEN, EOS_TOKEN, UNK_TOKEN, BOS_TOKEN)
"""The special tokens in the order of their ids, 0 to 3."""

# Texts encoded at once: enough for all cores; more would only hold more of the backend's own
# records (about 100 bytes a character) in memory.
_CHUNK_SIZE = 512
_UNUSED_CHARACTER = "\U0010fffd"  # of private use, and the last: no vocabulary should have it


def train_character_tokenizer(
    texts: Iterable[str],
    *,
    min_count: int = 1,
    nfc: bool = False,
    model_max_length: int | None = None,
) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of characters (code points) from `texts`.

    Characters are ordered by code point, so the same texts in any order give the same ids. Every
    character outside the vocabulary becomes exactly one `<unk>`.

    Args:
        texts: The training texts, both languages when one vocabulary serves both.
        min_count: Occurrences that a character needs to get an id, at least 1.
        nfc: Compose characters (Unicode NFC) before counting and before every encoding. A text
            that is not NFC is then decoded in its composed form.
        model_max_length: Longest text in tokens, `</s>` included, that `truncation=True` keeps;
            None = no limit.

    Returns:
        A tokenizer with `len(tokenizer) == 4 + number of characters`.

    Raises:
        TypeError: If `texts` is one string.
        ValueError: If `min_count` is below 1, `model_max_length` below 2, no character occurs
            `min_count` times, or a text is not valid Unicode.
    """
    # A string is an iterable of texts too, each of one character: a mistake nobody would notice.
    if isinstance(texts, str):
        raise TypeError("`texts` must be an iterable of texts, but is one string.")
    if min_count < 1:
        raise ValueError(f"`min_count` must be at least 1, but is {min_count}.")
    if model_max_length is not None and model_max_length < 2:
        raise ValueError(f"`model_max_length` must be at least 2, but is {model_max_length}.")
    normalizer = normalizers.NFC() if nfc else None
    counts = _count_characters(texts, normalizer)
    characters = sorted(character for character, count in counts.items() if count >= min_count)
    if not characters:
        if not counts:
            raise ValueError("`texts` must hold a character, but are empty.")
        raise ValueError(
            f"`min_count` must be at most {max(counts.values())}, the count of the most frequent "
            f"character, but is {min_count}."
        )
    tokenizer = _bare_tokenizer(characters)
    # Without a decoder, `tokenizers` would put a space between two tokens.
    tokenizer.decoder = decoders.Fuse()
    return wrap_tokenizer(tokenizer, nfc=nfc, model_max_length=model_max_length)


def train_word_tokenizer(
    texts: Iterable[str], *, min_count: int = 1, bare: bool = False
) -> PreTrainedTokenizerFast:
    """Learns a vocabulary of words, which are what stands between blanks.

    Words are ordered by their counts, then by code points; every other word becomes `<unk>`. A
    special token between blanks is that token, as `<unk>` is in the Penn Treebank.

    Args:
        texts: the training texts.
        min_count: how often a word must occur to get an id, at least 1.
        bare: leave out `<pad>` and `<s>`, which a text on its own never has: the Penn Treebank then
            has its 10,000 ids.

    Returns:
        A tokenizer whose texts end with `</s>`; decoding puts one blank between words.

    Raises:
        ValueError: `min_count` is below 1, no word occurs `min_count` times, or a text is not
            valid Unicode.
    """
    if min_count < 1:
        raise ValueError(f"`min_count` must be at least 1, but is {min_count}.")
    counts: Counter[str] = Counter()
    splitter = pre_tokenizers.WhitespaceSplit()
    for text in texts:
        check_texts([text])
        counts.update(word for word, _ in splitter.pre_tokenize_str(text))
    known = [word for word, count in counts.items() if count >= min_count]
    special = (EOS_TOKEN, UNK_TOKEN) if bare else SPECIAL_TOKENS
    words = sorted(set(known) - set(special), key=lambda word: (-counts[word], word))
    if not words:
        raise ValueError(
            f"`min_count` must leave a word, but is {min_count}, and none occurs so often."
        )
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = splitter
    return wrap_tokenizer(tokenizer, special=special)


def make_byte_tokenizer(*, nfc: bool = False) -> PreTrainedTokenizerFast:
    """Make the tokenizer of UTF-8 bytes: 260 ids, id 4 + b for byte b, nothing is unknown.

    Args:
        nfc: Compose characters (Unicode NFC) before every encoding.
    """
    alphabet = _byte_characters()
    tokenizer = _bare_tokenizer(alphabet)
    # Nothing in front of a text, no cutting into words: ids and bytes are one to one.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap_tokenizer(tokenizer, nfc=nfc, model_max_length=None)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load any Hugging Face tokenizer, from a folder or the Hub, ready for training.

    No code from the folder or repository is run and no question is asked. The result passed
    `check_tokenizer`.

    Args:
        name_or_path: A folder with a saved tokenizer, or a Hub name like "google-t5/t5-small".

    Raises:
        ValueError: If there is no such tokenizer, the Hub cannot be reached, the tokenizer needs
            code of its own, or it lacks an end token.
    """
    try:
        # False, not None: None asks the user whether to run the code beside the tokenizer.
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # `tokenizers` raises plain Exception for a broken file
        answered = None if Path(name_or_path).exists() else hub_answer(error, name_or_path, None)
        raise ValueError(
            "`tokenizer` must be 'char', 'byte', a folder with a saved tokenizer or a name on the "
            f"Hub (which needs a network and no custom code), but is {name_or_path!r}"
            f"{': ' + answered if answered else '.'}"
        ) from error
    return check_tokenizer(tokenizer)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return `tokenizer` if a translation model can use it as it is, else a completed copy.

    A tokenizer without a padding token gets a new `<pad>`. One that does not end its texts with
    its end token learns to do so, as far as its backend allows. The copy is what must be saved
    beside the model. It may have one token more.

    Raises:
        ValueError: If the tokenizer has no end token, or cannot encode a character it does not
            know.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "`tokenizer` must have an end token (`eos_token`), but "
            f"{tokenizer.name_or_path or type(tokenizer).__name__!r} has none."
        )
    _check_unknown(tokenizer)
    if tokenizer.pad_token_id is not None and appends_eos(tokenizer):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    if not appends_eos(tokenizer) and isinstance(tokenizer, PreTrainedTokenizerFast):
        _append_eos(tokenizer)
    return tokenizer


def tokenizer_kind(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Tell a tokenizer of ours from any other: "char", "byte", "symbol" (symbols.py) or None."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    if tokenizer.init_kwargs.get("target_tokens") is not None:
        return "symbol"
    # Loaded from a folder, it has lost the name of what made it. Its parts are what it is.
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if parts["model"].get("type") != "BPE" or parts["model"]["merges"]:
        return None
    kinds = {"Fuse": "char", "ByteLevel": "byte"}
    return kinds.get((parts["decoder"] or {}).get("type", ""))


def is_nfc(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer of ours composes characters before it encodes."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    normalizer = tokenizer.backend_tokenizer.normalizer
    # A tokenizer of symbols composes first, and then marks them.
    if isinstance(normalizer, normalizers.Sequence) and tokenizer_kind(tokenizer) == "symbol":
        normalizer = normalizer[0]
    return isinstance(normalizer, normalizers.NFC)


def is_nfd(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer of ours decomposes the characters of sources."""
    if tokenizer_kind(tokenizer) != "symbol":
        return False
    normalizer = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer.normalizer
    # Composing comes first where targets are composed.
    steps: Iterable[object] = [normalizer]
    if isinstance(normalizer, normalizers.Sequence):
        steps = cast(Iterable[object], normalizer)
    return any(isinstance(step, normalizers.NFD) for step in steps)


def add_characters(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, min_count: int = 1
) -> PreTrainedTokenizerBase:
    """Make a character tokenizer that also knows the characters of `texts`; the old ids stay.

    New characters get the ids after the last, in the order of their code points. Every other kind
    of tokenizer is returned as it is.

    Args:
        tokenizer: A tokenizer of any kind.
        texts: New training texts.
        min_count: Occurrences that a new character needs to get an id.

    Returns:
        `tokenizer` itself if there is nothing to add, else a copy.
    """
    if tokenizer_kind(tokenizer) != "char":
        return tokenizer
    backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
    known: dict[str, int] = backend.get_vocab()
    counts = _count_characters(texts, backend.normalizer)
    new = sorted(x for x, count in counts.items() if count >= min_count and x not in known)
    if not new:
        return tokenizer
    first = max(known.values()) + 1
    vocabulary = {**known, **{character: first + i for i, character in enumerate(new)}}
    # In the model, not by `add_tokens`: added tokens are cut out of a text before all others.
    longer = copy.deepcopy(cast(PreTrainedTokenizerFast, tokenizer))
    longer.backend_tokenizer.model = _characters_model(vocabulary)
    return longer


def appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether `tokenizer` itself ends an encoded text with its end token."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids[-1:] == [tokenizer.eos_token_id])


def encode_batch(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts as ids that end with exactly one end token, whatever the tokenizer appends.

    Nothing is truncated or padded, and special tokens are not read from the text.

    Args:
        tokenizer: A tokenizer that passed `check_tokenizer`.
        texts: The texts, possibly none.

    Returns:
        One list of ids for each text.

    Raises:
        TypeError: If `texts` is one string, or holds something else than strings.
        ValueError: If a text is not valid Unicode (half a surrogate pair).
    """
    if isinstance(texts, str):
        raise TypeError("`texts` must be a list of texts, but is one string.")
    rows: list[list[int]] = []
    eos = int(tokenizer.eos_token_id)
    for start in range(0, len(texts), _CHUNK_SIZE):
        chunk = list(texts[start : start + _CHUNK_SIZE])
        check_texts(chunk)
        # Not verbose, or a warning tells of texts longer than a limit that models of ours lack.
        batch = tokenizer(
            chunk, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        rows.extend(batch["input_ids"])
    # Some tokenizers append none, some another token first; the model must see one end.
    for row in rows:
        while row and row[-1] == eos:
            row.pop()
        row.append(eos)
    return rows


def decode_batch(
    tokenizer: PreTrainedTokenizerBase, ids: Tensor | Iterable[Iterable[int]]
) -> list[str]:
    """Decode rows of ids without their special tokens, changing no other character.

    Args:
        tokenizer: The tokenizer that made the ids.
        ids: Rows of ids or a tensor (B, T); negative ids (ignored labels) are skipped.

    Returns:
        One text for each row.
    """
    rows = ids.tolist() if isinstance(ids, Tensor) else ids
    texts: list[str] = []
    for row in rows:
        text = tokenizer.decode(
            [int(index) for index in row if index >= 0],
            skip_special_tokens=True,
            # Else some tokenizers take the space before a full stop out of the text.
            clean_up_tokenization_spaces=False,
        )
        texts.append(cast(str, text))
    return texts


def _check_unknown(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise where a character outside the vocabulary would be an error amid a text."""
    try:
        tokenizer("a" + _UNUSED_CHARACTER)
    except Exception as error:  # `tokenizers` raises plain Exception
        raise ValueError(
            "`tokenizer` must have a token for unknown characters, but "
            f"{tokenizer.name_or_path or type(tokenizer).__name__!r} has none: {error}."
        ) from error


def _append_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    """Make a tokenizer end its texts with its end token, after what it adds in front of them."""
    # What it adds in front is found by an example.
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    front = ids[: len(ids) - len(plain)]
    if ids[len(front) :] != plain:
        # It ends its texts with another token; `encode_batch` adds the end token after that.
        return
    tokenizer.backend_tokenizer.post_processor = _eos_template(
        tokenizer.convert_ids_to_tokens([*front, tokenizer.eos_token_id]),
        [*front, int(tokenizer.eos_token_id)],
    )


def _bare_tokenizer(symbols: Sequence[str]) -> Tokenizer:
    """Make a tokenizer whose tokens are the special tokens, then single `symbols`.

    BPE without merges splits a text into its characters; the special tokens in its vocabulary are
    longer than one character, so no text can produce them.
    """
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *symbols])}
    return Tokenizer(_characters_model(vocabulary))


def _characters_model(vocabulary: dict[str, int]) -> models.BPE:
    # Not fused: every unknown character is one `<unk>`, and lengths stay what they are.
    return models.BPE(vocab=vocabulary, merges=[], unk_token=UNK_TOKEN, fuse_unk=False)


def _count_characters(texts: Iterable[str], normalizer: normalizers.NFC | None) -> Counter[str]:
    """Count each character, after normalisation."""
    counts: Counter[str] = Counter()
    for text in texts:
        check_texts([text])
        counts.update(text if normalizer is None else normalizer.normalize_str(text))
    return counts


def _byte_characters() -> list[str]:
    """List the characters by which `tokenizers` writes each byte, in the order of the bytes."""
    # A byte that is a visible character of Latin-1 is written as that, any other as one from 256.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    replacements = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(replacements)) for byte in range(256)]


def _eos_template(tokens: Sequence[str], ids: Sequence[int]) -> TemplateProcessing:
    """Make the post-processor that sets the last token after a text and the others before it.

    Args:
        tokens: The tokens, the end token last.
        ids: Their ids.
    """
    *front, eos = tokens
    return TemplateProcessing(
        single=[*front, "$A", eos],
        pair=[*front, "$A", eos, "$B:1", f"{eos}:1"],
        # Each once: a token may stand before and after a text.
        special_tokens=list(dict.fromkeys(zip(tokens, ids, strict=True))),
    )


def wrap_tokenizer(
    tokenizer: Tokenizer,
    *,
    special: Sequence[str] = SPECIAL_TOKENS,
    nfc: bool = False,
    model_max_length: int | None = None,
    **more: Any,
) -> PreTrainedTokenizerFast:
    """Complete a bare tokenizer: normaliser, special tokens, end token, and the wrapper.

    Args:
        tokenizer: Its vocabulary begins with `special`.
        special: The special tokens, some or all of `SPECIAL_TOKENS`.
        nfc: Put Unicode NFC in the place of its normaliser.
        model_max_length: Longest text in tokens; None = no limit.
        more: More for tokenizer_config.json.
    """
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    tokenizer.post_processor = _eos_template([EOS_TOKEN], [special.index(EOS_TOKEN)])
    limit = {} if model_max_length is None else {"model_max_length": model_max_length}
    roles = {"pad": PAD_TOKEN, "eos": EOS_TOKEN, "unk": UNK_TOKEN, "bos": BOS_TOKEN}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{role}_token": token for role, token in roles.items() if token in special},
        clean_up_tokenization_spaces=False,
        # A special token is never read from text; stored in tokenizer_config.json.
        split_special_tokens=True,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        truncation_side="right",
        **limit,
        **more,
    )
