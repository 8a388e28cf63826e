"""hf_qrnn.pronunciation.fallback: misaki's letters, and the shape in which it asks."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from pronouncing import save_pronouncer

from hf_qrnn.pronunciation import Pronouncer
from hf_qrnn.pronunciation.fallback import MisakiFallback, to_misaki

# By hand, from CMUdict's phones to the letters in which misaki's dictionary has these words.
WORDS = {
    "hello": ("HH AH0 L OW1", "həlˈO"),
    "bird": ("B ER1 D", "bˈɜɹd"),
    "butter": ("B AH1 T ER0", "bˈʌɾəɹ"),
    "forty": ("F AO1 R T IY0", "fˈɔɹɾi"),
    "attack": ("AH0 T AE1 K", "ətˈæk"),  # no tap before a stressed vowel
    "protein": ("P R OW1 T IY2 N", "pɹˈOtˌin"),
    "winter": ("W IH1 N T ER0", "wˈɪntəɹ"),
    "little": ("L IH1 T AH0 L", "lˈɪɾᵊl"),
    "vandals": ("V AE1 N D AH0 L Z", "vˈændᵊlz"),
    "balloon": ("B AH0 L UW1 N", "bəlˈun"),
    "alone": ("AH0 L OW1 N", "əlˈOn"),
    "edited": ("EH1 D AH0 T IH0 D", "ˈɛdəɾᵻd"),
    "judges": ("JH AH1 JH IH0 Z", "ʤˈʌʤᵻz"),
    "candid": ("K AE1 N D AH0 D", "kˈændᵻd"),
    "vivid": ("V IH1 V AH0 D", "vˈɪvəd"),
    "church": ("CH ER1 CH", "ʧˈɜɹʧ"),
    "about": ("AH0 B AW1 T", "əbˈWt"),
    "boy": ("B OY1", "bˈY"),
    "day": ("D EY1", "dˈA"),
    "buy": ("B AY1", "bˈI"),
    "photograph": ("F OW1 T AH0 G R AE2 F", "fˈOɾəɡɹˌæf"),
}


@pytest.mark.parametrize("word", WORDS)
def test_to_misaki_is_what_its_dictionary_has(word: str) -> None:
    phones, expected = WORDS[word]
    assert to_misaki(phones.split()) == expected


def test_to_misaki_without_digits_takes_vowels_as_unstressed() -> None:
    assert to_misaki(["B", "ER", "T", "AH"]) == "bəɹtə"
    assert to_misaki(["B", "AH", "L"]) == "bəl"


def test_to_misaki_joins_symbols_that_are_no_arpabet() -> None:
    assert to_misaki(["b", "ʊ", "ɔ̃"]) == "bʊɔ̃"
    assert to_misaki([]) == ""


@dataclass
class MToken:
    """misaki's token, as far as its fallbacks look at it."""

    text: str
    tag: str = "NN"
    whitespace: str = " "
    phonemes: str | None = None


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> MisakiFallback:
    folder: Path = tmp_path_factory.mktemp("trained")
    lexicon = {"abba": [["AE1", "B", "AH0"]]}
    return MisakiFallback(Pronouncer(save_pronouncer(folder), lexicon=lexicon, device="cpu"))


def test_fallback_answers_as_misakis_own_do(fallback: MisakiFallback) -> None:
    assert fallback(MToken("Bax")) == ("bˈɑks", 2)
    assert fallback(MToken("abba")) == ("ˈæbə", 3)
    # What misaki has joined, since no blank is between.
    assert fallback(MToken("abba-bax")) == ("ˈæbəbˈɑks", 2)
    for text in ("7up", "abba-7", "", "-", "zoo", "я"):
        assert fallback(MToken(text)) == (None, None)
