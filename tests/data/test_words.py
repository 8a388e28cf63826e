"""The tokenizer of words and marks."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_qrnn.data.tokenization import encode_batch
from hf_qrnn.data.words import train_prose_tokenizer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I don't, it's", ["I", "do", "n't", ",", "it", "'s"]),
        ("DON'T you'LL o'clock", ["DO", "N'T", "you", "'LL", "o", "'", "clock"]),
        ("bad...!!! <br /><br />10/10", ["bad", "...", "!!!", "<br />", "<br />", "10", "/", "10"]),
        ("caf\u00e9 na\u0308ive_ (x)", ["caf\u00e9", "na\u0308ive", "_", "(", "x", ")"]),
        ("</s> n't", ["<", "/", "s", ">", "n't"]),
        ("n'third isn'tx", ["n", "'", "third", "isn", "'", "tx"]),
        (" \t\n", []),
    ],
)
def test_words_and_marks_are_tokens(text: str, tokens: list[str]) -> None:
    tokenizer = train_prose_tokenizer([text, "a"])
    ids = encode_batch(tokenizer, [text])[0]
    assert tokenizer.convert_ids_to_tokens(ids) == [*tokens, "</s>"]


def test_the_most_frequent_words_have_ids(tmp_path: Path) -> None:
    texts = ["b a a", "B a c"]
    words = train_prose_tokenizer(texts, max_size=2, lower_case=True)
    assert words.get_vocab() == {"<pad>": 0, "</s>": 1, "<unk>": 2, "<s>": 3, "a": 4, "b": 5}
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("A B c")["input_ids"] == [4, 5, 2, 1]
    assert len(train_prose_tokenizer(texts, min_count=2)) == 4 + 1
    assert len(train_prose_tokenizer(texts)) == 4 + 4  # a, b, B, c


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"`min_count` must leave a word, but is 3, and none"):
        train_prose_tokenizer(["a a"], min_count=3)
    with pytest.raises(ValueError, match=r"`max_size` must be at least 0, but is -1\."):
        train_prose_tokenizer(["a"], max_size=-1)
    with pytest.raises(ValueError, match=r"`min_count` must be at least 1, but is 0\."):
        train_prose_tokenizer(["a"], min_count=0)
