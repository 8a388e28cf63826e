"""hf_qrnn.pronunciation.spelling: the case and the form of words, found by the vocabulary."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_qrnn.data.symbols import train_symbol_tokenizer, with_alphabets, with_spellings
from hf_qrnn.data.tokenization import make_byte_tokenizer, train_character_tokenizer
from hf_qrnn.pronunciation.letters import TokenizerLetters
from hf_qrnn.pronunciation.spelling import Spelling

SMALL = "abcdefghijklmnopqrstuvwxyz'"


def spelling(
    tokenizer: PreTrainedTokenizerBase, language: str | None = None, **options: bool
) -> Spelling:
    return Spelling(TokenizerLetters(tokenizer, language), **options)


def symbols(words: str, **options: Any) -> PreTrainedTokenizerBase:
    return train_symbol_tokenizer([words], ["HH AH0 L OW1 ə ʒ"], **options)


@pytest.mark.parametrize(
    ("vocabulary", "word", "form"),
    [
        (SMALL, "hello", "hello"),
        (SMALL, "Hello", "hello"),
        (SMALL, "HELLO", "hello"),
        (SMALL + "BM", "Bob", "bob"),  # two capitals do not make a model of capitals
        (SMALL.upper(), "Hello", "HELLO"),
        (SMALL + SMALL.upper(), "HeLLo", "HeLLo"),
        (SMALL + SMALL.upper() + "ä", "ÄB", "äb"),  # as it is, "Ä" is not known
        ("привет", "ПРИВЕТ", "привет"),
        ("γειάσου", "ΓΕΙΆ", "γειά"),
        ("გამარჯობა", "გამ", "გამ"),  # of no case
        (SMALL, " hello\t", "hello"),
        (SMALL, "Don\u2019t", "don't"),
        (SMALL + "\u2019", "don\u2019t", "don\u2019t"),
        (SMALL + "é", "CAFE\u0301", "café"),
        ("cafe\u0301", "caf\u00e9", "cafe\u0301"),
    ],
)
def test_word_gets_the_form_that_the_vocabulary_knows(
    vocabulary: str, word: str, form: str
) -> None:
    assert spelling(symbols(vocabulary)).spell([word]) == [(form, "")]


def test_phones_that_are_symbols_are_no_letters_of_words() -> None:
    # "H" is in the vocabulary of the first, as a letter of "HH".
    tokenizer = train_character_tokenizer([SMALL, "HH AH0 L OW1"])
    assert spelling(tokenizer).spell(["Hello"]) == [("hello", "")]
    ((_, reason),) = spelling(symbols(SMALL)).spell(["helloə"])
    assert reason == "has characters that the model does not know: 'ə'"


def test_symbols_between_blanks_may_be_anything_that_is_known() -> None:
    tokenizer = symbols("HH AH0 L OW1", source_tokens="blank", target_tokens="char")
    words = ["HH AH0", " OW1 ", "hh", "", "L 7 x"]
    assert spelling(tokenizer).spell(words) == [
        ("HH AH0", ""),
        ("OW1", ""),
        ("", "has symbols that the model does not know: 'hh'"),
        ("", "is empty"),
        ("", "has symbols that the model does not know: '7', 'x'"),
    ]


def test_bytes_know_every_letter_and_keep_the_case() -> None:
    found = spelling(make_byte_tokenizer()).spell(["Hello", "語", "a1"])
    assert found == [
        ("Hello", ""), ("語", ""), ("", "has digits, which must be written as words"),
    ]  # fmt: skip


def test_many_words_keep_their_order() -> None:
    words = ["b", "7", "Ä", "a", "", "don\u2019t"]
    forms = [form for form, _ in spelling(symbols(SMALL)).spell(words)]
    assert forms == ["b", "", "", "a", "", "don't"]
    assert spelling(symbols(SMALL)).spell([]) == []


@pytest.mark.parametrize("nfc", [False, True])
def test_words_of_a_model_that_decomposes_may_be_composed(nfc: bool) -> None:
    tokenizer = symbols("caf\u00e9\ud55c\uae00", source_nfd=True, nfc=nfc)
    found = spelling(tokenizer).spell(
        ["CAF\u00c9", "cafe\u0301", "\ud55c", "\u1112\u1161\u11ab", "\u00fc"]
    )
    assert [reason for _, reason in found[:4]] == [""] * 4
    assert found[0][0] == "caf\u00e9"
    assert found[4] == ("", "has characters that the model does not know: '\u00fc'")
    # "c" and an accent, which the training words did not have together.
    assert spelling(tokenizer).spell(["\u0107"]) == [("\u0107", "")]


@pytest.mark.parametrize("nfc", [False, True])
def test_letters_of_a_language_are_decomposed_with_the_words(nfc: bool) -> None:
    sources = [("fre", "caf\u00e9"), ("kor", "\ud55c")]
    tokenizer = with_alphabets(
        train_symbol_tokenizer(
            [text for _, text in sources], ["A"], languages=["fre", "kor"], source_nfd=True, nfc=nfc
        ),
        sources,
    )
    french, korean = (spelling(tokenizer, language) for language, _ in sources)
    known = ["CAF\u00c9", "cafe\u0301", "\u00e9", "e\u0301"]
    assert [reason for _, reason in french.spell(known)] == [""] * 4
    reason = "has characters that the model, in 'fre', does not know: '\ud55c'"
    assert french.spell(["\ud55ca"]) == [("", reason)]
    assert korean.spell(["\ud55c"]) == [("\ud55c", "")]
    assert korean.spell(["\u00e9"])[0][0] == ""


@pytest.mark.parametrize(
    ("word", "form"),
    [
        ("\ufeffhello", "hello"),
        ("\ufeff hello\r\n", "hello"),
        ("hel\u00adlo", "hello"),
        ("\u200dhello\u200d", "hello"),
        ("\u202ahello\u202c", "hello"),
        ("cafe\u0301", "caf\u00e9"),
        ("cafe\u0301\u200b", "caf\u00e9"),
        ("can\u2019t\ufe0f", "can't"),
    ],
)
def test_characters_that_nobody_sees_are_left_out(word: str, form: str) -> None:
    assert spelling(symbols(SMALL + "\u00e9")).spell([word]) == [(form, "")]


def test_characters_that_nobody_sees_stay_where_the_model_knows_them() -> None:
    tokenizer = symbols("\u0645\u06cc\u200c\u0631")
    assert spelling(tokenizer).spell(["\u0645\u06cc\u200c\u0631"]) == [
        ("\u0645\u06cc\u200c\u0631", "")
    ]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("\u0301a", "begins with a mark that belongs on a letter"),
        ("\u200d\u0301a", "begins with a mark that belongs on a letter"),
        ("\u0301", "has no letter"),
        ("\u200d", "has no letter"),
        ("\ufeff", "is empty"),
        ("a\u0301\u0301", "has characters that the model does not know: '\u0301'"),
    ],
)
def test_marks_without_a_letter_are_refused(word: str, reason: str) -> None:
    assert spelling(symbols("a\u00e1")).spell([word]) == [("", reason)]
    if not reason.startswith("has characters"):  # decomposed, the mark has a token of its own
        assert spelling(symbols("a\u00e1", source_nfd=True)).spell([word]) == [("", reason)]


@pytest.mark.parametrize("nfd", [False, True])
def test_words_spelled_like_none_of_the_training_are_refused_if_asked(nfd: bool) -> None:
    words = [("", "an" * left + "n\u00e9" * right) for left in range(12) for right in range(12)]
    plain = train_symbol_tokenizer(["an\u00e9b"], ["A"], source_nfd=nfd)
    tokenizer = with_spellings(plain, words)
    asked = ["Anann\u00e9n\u00e9", "bnnb", "anne\u0301", "7", "aban"]
    strict, free = (spelling(tokenizer, is_strict=x).spell(asked) for x in (True, False))
    assert [reason for _, reason in free] == [
        "",
        "",
        "",
        "has digits, which must be written as words",
        "",
    ]
    beginning = "is spelled like no word that the model has learnt: none has "
    assert strict[1] == ("", beginning + "'-bn', 'bnn', 'nnb', ...")
    assert strict[4] == ("", beginning + "'-ab', 'aba', 'ban'")
    assert strict[0] == ("anann\u00e9n\u00e9", "")
    assert strict[2] == free[2]
    assert strict[3] == free[3]
    # A model that does not remember refuses nothing for it.
    assert spelling(plain, is_strict=True).spell(asked) == free


def test_letters_of_another_language_are_not_known(tmp_path: Path) -> None:
    sources = [("eng", SMALL), ("bul", "привет"), ("ger", SMALL + SMALL.upper())]
    tokenizer = train_symbol_tokenizer(
        [text for _, text in sources], ["HH"], languages=["bul", "eng", "ger"]
    )
    with_alphabets(tokenizer, sources).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    spellings = {name: spelling(loaded, name) for name, _ in sources}
    reason = "has characters that the model, in 'eng', does not know: 'т', 'е'"
    assert spellings["eng"].spell(["те"]) == [("", reason)]
    assert spellings["bul"].spell(["ТЕ", "a"])[0] == ("те", "")
    assert spellings["bul"].spell(["ТЕ", "a"])[1][0] == ""
    # Each has its own case.
    assert spellings["eng"].spell(["Te"]) == [("te", "")]
    assert spellings["ger"].spell(["Te"]) == [("Te", "")]
    # A tokenizer that nobody told has the vocabulary alone.
    assert spelling(tokenizer, "eng").spell(["те"]) == [("те", "")]


def test_blanks_are_letters_where_the_training_had_them() -> None:
    sources = [("vie", "di\u1ec5n vi\u00ean"), ("fre", "chien")]
    tokenizer = with_alphabets(
        train_symbol_tokenizer([text for _, text in sources], ["A"], languages=["vie", "fre"]),
        sources,
    )
    vietnamese, french = (spelling(tokenizer, language) for language, _ in sources)
    assert vietnamese.spell(["vi\u00ean di\u1ec5n"]) == [("vi\u00ean di\u1ec5n", "")]
    reason = "has white space: it must be one word"
    assert vietnamese.spell(["vi\u00ean\tdi\u1ec5n"]) == [("", reason)]
    assert french.spell(["chien chien"]) == [("", reason)]
