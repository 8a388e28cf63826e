"""hf_qrnn.pronunciation.languages: the tags and the models that users mean."""

import pytest

from hf_qrnn.pronunciation.languages import choose_model, find_language

ELEVEN = (
    "arm_e", "bul", "dut", "eng_us", "fre", "geo", "hbs_latn", "hun", "jpn_hira", "kor",
    "vie_hanoi",
)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "tag"),
    [
        (given, tag)
        for tag, several in {
            "arm_e": "arm_e hy hye arm Armenian hy-AM",
            "bul": "bul bg BG bulgarian bg_BG",
            "dut": "dut nl nld Dutch nl-BE",
            "eng_us": "eng_us en eng English en-US en_us eng-US",
            "fre": "fre fr fra French fr-FR fr-CA",
            "geo": "geo ka kat Georgian",
            "hbs_latn": "hbs_latn sh hbs sr hr bs Croatian sr-Latn hr-HR",
            "hun": "hun hu Hungarian",
            "jpn_hira": "jpn_hira ja jpn Japanese ja-JP",
            "kor": "kor ko Korean ko-KR",
            "vie_hanoi": "vie_hanoi vi vie Vietnamese vi-VN",
        }.items()
        for given in several.split()
    ],
)
def test_language_is_found_by_its_codes_and_its_name(given: str, tag: str) -> None:
    assert find_language(given, ELEVEN) == tag


@pytest.mark.parametrize("given", ["de", "German", "en-GB", "sr-Cyrl", "", "f", "fren", "xyz", "_"])
def test_what_is_not_there_stays_as_it_was_given(given: str) -> None:
    assert find_language(given, ELEVEN) == given


def test_one_of_two_is_not_chosen_for_the_user() -> None:
    two = ("eng_us", "eng_uk", "por_br")
    assert find_language("en", two) == "en"
    assert find_language("en-us", two) == "eng_us"
    assert find_language("pt", two) == "por_br"
    assert find_language("en", ("eng", *two)) == "eng"
    # A tag of no known language, and a model without tags.
    assert find_language("K-1", ("k-1", "rev")) == "k-1"
    assert find_language("fr", ()) == "fr"
    assert find_language(None, ELEVEN) is None


def test_model_is_chosen_by_the_language() -> None:
    several = {"pronounce-11": ELEVEN}
    for given in (None, "en", "English", "eng"):
        assert choose_model(given, ["en"], several) == ("en", None)
    assert choose_model("eng_us", ["en"], several) == ("pronounce-11", "eng_us")
    assert choose_model("en", [], several) == ("pronounce-11", "eng_us")
    for given in ("fr", "fre", "French"):
        assert choose_model(given, ["en"], several) == ("pronounce-11", "fre")
        assert choose_model(given, ["en", "fr"], several) == (
            ("pronounce-11", "fre") if given == "fre" else ("fr", None)
        )
    # It says which languages there are.
    assert choose_model("de", ["en"], several) == ("pronounce-11", "de")
    assert choose_model("de", ["en"], {}) is None
    assert choose_model(None, ["fr"], several) is None
