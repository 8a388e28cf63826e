"""hf_qrnn.pronunciation.arpabet: words transcribed by hand."""

import pytest

from hf_qrnn.pronunciation.arpabet import CONSONANTS, VOWELS, is_arpabet, to_ipa

# By hand: the mark before the longest run of consonants that can begin an English word.
WORDS = {
    "hello": ("HH AH0 L OW1", "həˈloʊ"),
    "cat": ("K AE1 T", "ˈkæt"),
    "a": ("AH0", "ə"),
    "quasi": ("K W AA1 S IY0", "ˈkwɑsi"),
    "recurrent": ("R IH0 K ER1 AH0 N T", "ɹɪˈkɝənt"),
    "butter": ("B AH1 T ER0", "ˈbʌtɚ"),
    "extra": ("EH1 K S T R AH0", "ˈɛkstɹə"),
    "astronomy": ("AH0 S T R AA1 N AH0 M IY0", "əˈstɹɑnəmi"),
    "atlantic": ("AH0 T L AE1 N T IH0 K", "ətˈlæntɪk"),
    "pronunciation": ("P R OW0 N AH2 N S IY0 EY1 SH AH0 N", "pɹoʊˌnʌnsiˈeɪʃən"),
    "computer": ("K AH0 M P Y UW1 T ER0", "kəmˈpjutɚ"),
    "obscure": ("AH0 B S K Y UH1 R", "əbˈskjʊɹ"),
    "familiarity": ("F AH0 M IH2 L Y EH1 R AH0 T IY0", "fəˌmɪlˈjɛɹəti"),
    "unknown": ("AH0 N N OW1 N", "ənˈnoʊn"),
    "distinguish": ("D IH0 S T IH1 NG G W IH0 SH", "dɪˈstɪŋɡwɪʃ"),
    "shanghai": ("SH AE2 NG HH AY1", "ˌʃæŋˈhaɪ"),
    "overthrow": ("OW1 V ER0 TH R OW2", "ˈoʊvɚˌθɹoʊ"),
    "judge": ("JH AH1 JH", "ˈdʒʌdʒ"),
    "measure": ("M EH1 ZH ER0", "ˈmɛʒɚ"),
    "boyhood": ("B OY1 HH UH2 D", "ˈbɔɪˌhʊd"),
    "outweigh": ("AW2 T W EY1", "ˌaʊˈtweɪ"),  # by the rule, not by its parts
    "northward": ("N AO1 R TH W ER0 D", "ˈnɔɹθwɚd"),
    "these": ("DH IY1 Z", "ˈðiz"),
    "chive": ("CH AY1 V", "ˈtʃaɪv"),
}


@pytest.mark.parametrize("word", WORDS)
def test_to_ipa_is_what_a_hand_writes(word: str) -> None:
    phones, expected = WORDS[word]
    assert to_ipa(phones.split()) == expected


def test_words_above_have_every_phone() -> None:
    phones = {phone.rstrip("012") for given, _ in WORDS.values() for phone in given.split()}
    assert phones == CONSONANTS.keys() | VOWELS.keys()
    assert len(phones) == 39


def test_to_ipa_without_digits_marks_nothing() -> None:
    assert to_ipa(["HH", "AH", "L", "OW"]) == "həloʊ"
    assert to_ipa(["B", "AH", "T", "ER"]) == "bətɚ"


def test_to_ipa_without_a_vowel_is_its_consonants() -> None:
    assert to_ipa(["SH"]) == "ʃ"
    assert to_ipa([]) == ""


@pytest.mark.parametrize("symbol", ["AX0", "ə", "AH3", "hh", "", "B1", "1"])
def test_what_is_no_phone_of_cmudict_is_refused(symbol: str) -> None:
    assert not is_arpabet(["AH0", symbol])
    with pytest.raises(ValueError, match=rf"phones of CMUdict, but '{symbol}' is none"):
        to_ipa(["AH0", symbol])
    assert is_arpabet(["AH0", "AH", "B", "ER2"])
