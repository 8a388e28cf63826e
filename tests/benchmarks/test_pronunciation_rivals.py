"""The programs that are compared in pronunciation, and what is made of their answers."""

import importlib.util
import sys
from pathlib import Path

import pytest
from pronunciation_rivals import (
    MAP,
    MissingRivalError,
    ask,
    ask_espeak,
    ask_g2p_en,
    to_arpabet,
)

ARPABET = {
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH",
    "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH",
    "UW", "V", "W", "Y", "Z", "ZH",
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "phones"),
    [
        ("h_ə_l_ˈoʊ", "HH AH0 L OW1"),  # hello
        ("θ_ˈɔː_t", "TH AO1 T"),  # thought
        ("w_ˈɜː_l_d", "W ER1 L D"),  # world
        ("b_ˈʌ_ɾ_ɚ", "B AH1 T ER0"),  # butter: a flap is a T
        ("l_ˈɪ_ɾ_əl", "L IH1 T AH0 L"),  # little
        ("b_ˈʌ_ʔ_n̩", "B AH1 T AH0 N"),  # button
        ("h_ˈʌ_ɹ_i", "HH AH1 R IY0"),
        ("f_ˈɜː_ɹ_i", "F ER1 IY0"),  # furry: no R behind ER and before a vowel
        ("b_ˈɜː_d", "B ER1 D"),
        ("ɐ_l_ˈʊɹ_ɹ_ɪ_ŋ", "AH0 L UH1 R IH0 NG"),  # alluring: one R
        ("ɹ_ˈeɪ_d_ɪ__ˌoʊ", "R EY1 D IY0 OW2"),  # radio: IY before a vowel
        ("k_ˈɑːɹ", "K AA1 R"),
        ("ɐ_d_m_ˈaɪɚ", "AH0 D M AY1 ER0"),
        ("b_ˈɑː_x", None),  # Bach: there is no such sound in ARPAbet
    ],
)
def test_ipa_of_espeak_becomes_arpabet(said: str, phones: str | None) -> None:
    assert to_arpabet(said.split("_")) == phones


def test_the_map_reaches_all_of_arpabet_and_nothing_else() -> None:
    found = {phone.rstrip("*0") for phones in MAP.values() for phone in phones.split()}
    assert found == ARPABET


def program(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}")
    path.chmod(0o755)
    return str(path)


def test_espeak_is_asked_a_word_a_line(tmp_path: Path) -> None:
    body = (
        "said = {'hello': ' h_ə_l_ˈoʊ', 'bach': 'b_ˈɑː_x'}\n"
        "if '--version' in sys.argv:\n"
        "    print('eSpeak NG text-to-speech: 1.51  Data at: /x')\n"
        "else:\n"
        "    assert sys.argv[1:] == ['-q', '-v', 'en-us', '--ipa', '--sep=_']\n"
        "    for line in sys.stdin:\n"
        "        print(said[line.strip()])\n"
    )
    answer = ask_espeak(["hello", "bach"], program(tmp_path / "espeak", body))
    assert (answer.phones, answer.unmapped) == (["HH AH0 L OW1", ""], ["bach"])
    assert answer.about == "espeak-ng 1.51"
    assert "1 words with other symbols count as wrong" in answer.notes


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("print('one')", "gave 1 lines for 2 words"),
        ("sys.exit('no voice')", "does not run: no voice"),
    ],
)
def test_an_espeak_that_does_not_answer_is_skipped(
    tmp_path: Path, body: str, sentence: str
) -> None:
    with pytest.raises(MissingRivalError, match=sentence):
        ask("espeak", ["a", "b"], espeak=program(tmp_path / "espeak", body))


def test_rivals_that_are_not_there_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingRivalError, match="no program 'no-espeak': apt-get install"):
        ask("espeak", ["a"], espeak="no-espeak")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRivalError, match=r"pip install g2p_en==2\.1\.0"):
        ask("g2p_en", ["a"])


def test_g2p_en_runs_its_network_without_nltk() -> None:
    if importlib.util.find_spec("g2p_en") is None:
        pytest.skip("g2p_en is not installed")
    answer = ask_g2p_en(["hello", "thinking"])
    # Its own answers, of which the first is wrong.
    assert answer.phones == ["HH EH1 L OW0", "TH IH1 NG K IH0 NG"]
    assert "nltk" not in sys.modules
    assert "trained on CMUdict" in answer.notes
