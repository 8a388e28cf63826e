"""hf_qrnn.data.trigrams: rows of three letters, the limit of new ones, what a tokenizer keeps."""

from pathlib import Path
from typing import Any

import pytest

from hf_qrnn.data.symbols import (
    add_symbols,
    spelling,
    train_symbol_tokenizer,
    with_alphabets,
    with_spellings,
    without_words,
)
from hf_qrnn.data.tokenization import load_tokenizer, train_character_tokenizer
from hf_qrnn.data.trigrams import FIELD, Trigrams, learn, read_trigrams

# Each row of these is in two words at least.
COMMON = ["anna", "annanna", "nann", "nannan"]


def learnt(words: list[str], before: Trigrams | None = None) -> Trigrams:
    found = learn(words, before)
    assert found is not None
    return found


def test_rows_of_a_word_begin_and_end_with_a_blank() -> None:
    found = learnt(["abc", "abc", "a"])
    assert found.rows == {" ab", "abc", "bc ", " a "}
    assert found.new_rows("abcd") == ["bcd", "cd "]
    assert found.new_rows("abc") == found.new_rows("a") == []
    assert found.new_rows("zzzz") == [" zz", "zzz", "zz "]  # each once


def test_limit_is_what_one_word_in_a_hundred_has_alone() -> None:
    rare = ["annan", "xqz"]  # none of the first alone, and all three of the second
    most = [f"an{'na' * count}" for count in range(1, 30)]
    assert learnt(most * 2 + rare).most_new == 3  # one of 31 is more than one in a hundred
    words = [f"{'an' * left}{'na' * right}" for left in range(1, 15) for right in range(1, 15)]
    assert len(words) > 100
    assert learnt([*words, "xqz"]).most_new == 0
    assert learnt([*words, "xqz", "wjv", "kyf"]).most_new == 3
    assert learnt(["abc"]).most_new == 3  # of one word nothing is known


def test_texts_with_white_space_and_none_at_all_teach_nothing() -> None:
    assert learn([]) is None
    assert learn(["", "a b", "a\u00a0b", "a\tb"]) is None
    before = learnt(["abc"])
    assert learn(["a b"], before) is before
    assert learn([chr(0x4E00 + i) + chr(0x4E00 + i // 200) for i in range(26_000)]) is None


def test_what_was_known_stays_and_is_not_new() -> None:
    before = learnt(["abc"] + COMMON)
    after = learnt(["abcd", "bcd"], before)
    assert after.rows >= before.rows | {"bcd", "cd "}
    assert after.most_new >= before.most_new


@pytest.mark.parametrize("words", [COMMON, ["e\u0301t", "\u1112\u1161\u11ab", "'n", "\U0001f600a"]])
def test_file_keeps_everything(words: list[str]) -> None:
    found = learnt(words)
    assert read_trigrams({FIELD: {"fre": found.to_json()}}, "fre") == found
    assert read_trigrams({FIELD: {"": found.to_json()}}, None) == found
    assert read_trigrams({FIELD: {"": found.to_json()}}, "fre") is None
    assert read_trigrams({}, None) is None


@pytest.mark.parametrize("value", ["x", {"": 3}, {"": {"rows": "abc"}}, {"": {"most_new": 1}}, [1]])
def test_damaged_field_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="`trigrams` of a tokenizer must hold `rows` and"):
        read_trigrams({FIELD: value}, None)


# ------------------------------------------------------------------ in a tokenizer


def test_tokenizer_remembers_decomposed_rows_of_each_language(tmp_path: Path) -> None:
    tokenizer = train_symbol_tokenizer(
        ["\u00e9t\u00e9", "\ud55c"], ["E"], languages=["fre", "kor"], source_nfd=True
    )
    made = with_spellings(tokenizer, [("fre", "\u00e9t\u00e9"), ("kor", "\ud55c")])
    assert spelling(tokenizer, "fre") is None
    made.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    french, korean = spelling(loaded, "fre"), spelling(loaded, "kor")
    assert french is not None
    assert korean is not None
    assert french.rows == {" e\u0301", "e\u0301t", "\u0301te", "te\u0301", "e\u0301 "}
    assert korean.rows == {" \u1112\u1161", "\u1112\u1161\u11ab", "\u1161\u11ab "}
    assert with_spellings(loaded, [("kor", "\ud55c")]) is loaded
    longer = add_symbols(loaded, ["\uae00"], ["E"], languages=["fre", "kor"])
    longer = with_spellings(longer, [("kor", "\uae00")])
    assert spelling(longer, "fre") == french
    more = spelling(longer, "kor")
    assert more is not None
    assert more.rows > korean.rows


def test_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    words = [("fre", "abc"), ("eng", "abd")]
    tokenizer = train_symbol_tokenizer(["abcd"], ["E"], languages=["eng", "fre"])
    made = with_spellings(with_alphabets(tokenizer, words), words)
    less = without_words(made, ["fre"])
    assert spelling(less, "fre") is None
    assert spelling(less, "eng") == spelling(made, "eng") is not None
    assert less.init_kwargs["alphabets"] == {"eng": "abd"}
    assert made.init_kwargs["alphabets"] == {"eng": "abd", "fre": "abc"}
    assert without_words(less, ["fre", "kor"]) is less


def test_only_words_into_symbols_are_remembered() -> None:
    for tokenizer in (
        train_character_tokenizer(["abc"]),
        train_symbol_tokenizer(["abc"], ["abc"], target_tokens="char"),
        train_symbol_tokenizer(["a b"], ["a b"], source_tokens="blank"),
    ):
        assert with_spellings(tokenizer, [("", "abc")]) is tokenizer
        assert spelling(tokenizer, None) is None
