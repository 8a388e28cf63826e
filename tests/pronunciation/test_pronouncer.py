"""hf_qrnn.pronunciation.pronouncer: lexicon, model, confidence, and what is refused."""

import dataclasses
import math
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pronouncing import OFFSET, RATIO, SOUNDS, save_pronouncer, sounds

from hf_qrnn.data.symbols import encode_sources, encode_targets, with_spellings
from hf_qrnn.pronunciation import Pronouncer, Pronunciation
from hf_qrnn.translation import search
from hf_qrnn.translation.translator import Translator, load_translator

SURE = ["bax", "sikka", "ebi", "k", "ikse", "baba", "ax'a", "isik"]  # without "d"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    return load_translator(save_pronouncer(tmp_path_factory.mktemp("trained")), device="cpu")


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pronouncer(tmp_path_factory.mktemp("random"), steps=0)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tagged")
    return save_pronouncer(folder, languages=["fre", "ice"], steps=0)


# ------------------------------------------------------------------ answers


def test_model_pronounces_by_what_it_learnt(trained: Translator) -> None:
    pronouncer = Pronouncer(trained)
    for word, (found,) in zip(SURE, pronouncer.pronounce(SURE), strict=True):
        assert found.symbols == sounds(word)
        assert found.text == " ".join(sounds(word))
        assert (found.word, found.origin, found.reason) == (word, "model", "")
        assert 0.5 < found.confidence < 1
        assert not found.is_refused
        # Alone and among others, up to the rounding of a wider batch.
        alone = pronouncer(word)
        assert alone == dataclasses.replace(found, confidence=alone.confidence)
        assert alone.confidence == pytest.approx(found.confidence, abs=1e-5)


def test_letter_of_two_sounds_halves_the_confidence(trained: Translator) -> None:
    first, second, *_ = Pronouncer(trained).pronounce(["abda"], n_best=5)[0]
    assert {first.symbols[2], second.symbols[2]} == {"D", "T"}
    assert 0.35 < second.confidence < 0.65
    assert 0.35 < first.confidence < 0.65


@pytest.mark.parametrize("word", ["abd", "dide"])
def test_confidence_is_the_share_of_all_hypotheses(trained: Translator, word: str) -> None:
    found = Pronouncer(trained, threshold=0).pronounce([word], n_best=5)[0]
    assert len(found) == 5
    logs = [log_probability(trained, word, one.symbols) for one in found]
    shares = torch.tensor(logs).softmax(0).tolist()
    assert [one.confidence for one in found] == pytest.approx(shares, abs=1e-4)


def test_confidence_of_greedy_search_is_its_own_probability(trained: Translator) -> None:
    found = Pronouncer(trained, threshold=0, num_beams=1)("dide")
    expected = math.exp(log_probability(trained, "dide", found.symbols))
    assert found.confidence == pytest.approx(expected, abs=1e-4)
    assert found.confidence < 0.5


def log_probability(translator: Translator, word: str, symbols: Sequence[str]) -> float:
    """Compute the log-probability of a target, its end token included, by one forward pass."""
    labels = torch.tensor(encode_targets(translator.tokenizer, [" ".join(symbols)]))
    ids = torch.tensor(encode_sources(translator.tokenizer, [word]))
    with torch.no_grad():
        logits = translator.model(input_ids=ids, labels=labels).logits
    return float(logits.log_softmax(-1).gather(2, labels[..., None]).sum())


def test_answers_below_the_threshold_are_refused(trained: Translator) -> None:
    unsure = Pronouncer(trained, threshold=0)("dad")
    assert 0 < unsure.confidence < 0.4
    assert unsure.symbols
    refused = Pronouncer(trained, threshold=0.4).pronounce(["dad", "bax"], n_best=3)
    # A batch of two words may round otherwise than one word.
    (alone,) = refused[0]
    assert alone.confidence == pytest.approx(unsure.confidence, abs=1e-5)
    expected = {"symbols": (), "reason": alone.reason, "confidence": alone.confidence}
    assert alone == dataclasses.replace(unsure, **expected)
    value = f"{unsure.confidence:.2f}"
    assert refused[0][0].reason.endswith(f"confidence {value} is below the threshold 0.4")
    assert refused[0][0].text == ""
    assert refused[1][0].symbols == sounds("bax")


def test_order_is_kept_and_a_repeated_word_is_asked_once(
    trained: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counting(model: Any, sources: Any, **options: Any) -> Any:
        asked.append(len(sources))
        return generate(model, sources, **options)

    generate = search.generate_hypotheses
    monkeypatch.setattr(search, "generate_hypotheses", counting)
    words = ["sik", "7", "bax", "sik", "lex", "Sik", "ebi", "bax"]
    done: list[int] = []
    pronouncer = Pronouncer(trained, lexicon={"lex": [["L"]]}, batch_size=2)
    results = pronouncer.pronounce(words, on_batch=done.append)
    assert asked == [3]
    assert sum(done) == len(words)
    assert [row[0].word for row in results] == words
    assert results[0] == results[3]
    assert results[5] == [dataclasses.replace(results[0][0], word="Sik")]
    assert results[4] == [Pronunciation("lex", ("L",), 1.0, "lexicon")]
    assert results[1][0].is_refused
    # Nobody can change what a second caller gets.
    assert results[0] is not results[3]


def test_no_words_give_nothing(trained: Translator) -> None:
    assert Pronouncer(trained).pronounce([]) == []


# ------------------------------------------------------------------ lexicon


def test_lexicon_goes_before_the_model(trained: Translator, tmp_path: Path) -> None:
    path = tmp_path / "lexicon.dict"
    path.write_text("ABBA  P OW1\nABBA(2)  P\nbax N\nkids' X\n", encoding="utf-8")
    pronouncer = Pronouncer(trained, lexicon=path)
    assert pronouncer("bax") == Pronunciation("bax", ("N",), 1.0, "lexicon")
    assert pronouncer.pronounce(["Abba"], n_best=2)[0] == [
        Pronunciation("Abba", ("P", "OW1"), 1.0, "lexicon"),
        Pronunciation("Abba", ("P",), 1.0, "lexicon"),
    ]
    assert len(pronouncer.pronounce(["Abba"])[0]) == 1
    assert pronouncer(" BAX ").symbols == ("N",)
    assert pronouncer("Kids\u2019").symbols == ("X",)
    assert pronouncer("ebi").origin == "model"


def test_lexicon_has_words_the_model_must_not_be_asked(trained: Translator) -> None:
    lexicon: dict[str, list[tuple[str, ...]]]
    lexicon = {"3d": [("TH", "R")], "new york": [("N",)], "Я": [("J", "a")], "...": [("P",)]}
    for word, (symbols,) in lexicon.items():
        assert Pronouncer(trained, lexicon=lexicon)(word).symbols == symbols


def test_lexicon_has_a_word_in_whatever_form_it_is_written(trained: Translator) -> None:
    pronouncer = Pronouncer(trained, lexicon={"caf\u00e9": [["C"]], "ma\u0301": [["M"]]})
    for word in ("caf\u00e9", "cafe\u0301", "\ufeffCAF\u00c9\r", "ca\u00adf\u00e9\u200d"):
        assert pronouncer(word).text == "C"
    assert pronouncer("m\u00e1").text == pronouncer("MA\u0301").text == "M"


def test_word_spelled_like_none_of_the_training_is_refused(trained: Translator) -> None:
    words = [("", f"{'bax' * left}{'ik' * right}") for left in range(12) for right in range(12)]
    translator = Translator(trained.model, with_spellings(trained.tokenizer, words))
    strict = Pronouncer(translator)
    assert strict("baxbaxik").symbols == sounds("baxbaxik")
    found = strict("kkbbe")
    assert found == Pronunciation("kkbbe", (), 0.0, "model", found.reason)
    assert found.reason.startswith(
        "is spelled like no word that the model has learnt: none has '-kk'"
    )
    # Whoever wants every answer gets it.
    assert Pronouncer(translator, threshold=0)("kkbbe").symbols == sounds("kkbbe")
    assert Pronouncer(translator, lexicon={"kkbbe": [["K"]]})("kkbbe").text == "K"


def test_lexicon_prefers_the_case_that_was_given(trained: Translator) -> None:
    pronouncer = Pronouncer(trained, lexicon={"polish": [["a"]], "Polish": [["o"]]})
    assert pronouncer("Polish").text == "o"
    assert pronouncer("polish").text == pronouncer("POLISH").text == "a"


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("7up", "has digits, which must be written as words"),
        ("b²", "has digits, which must be written as words"),
        ("٣", "has digits, which must be written as words"),
        ("a b", "has white space: it must be one word"),
        ("a\u00a0b", "has white space: it must be one word"),
        ("'", "has no letter"),
        ("...", "has no letter"),
        ("\U0001f600", "has no letter"),
        ("a\ud800", "is not valid Unicode"),
        ("axz", "has characters that the model does not know: 'z'"),
        ("b\u0430k\u0430", "has characters that the model does not know: '\u0430'"),
        ("语音", "has characters that the model does not know: '语', '音'"),
        ("a\x00", r"has characters that the model does not know: '\x00'"),
        ("ab" * 51, "is longer than 100 characters"),
        ("</s>", "has characters that the model does not know: '<', '/', '>'"),
    ],
)
def test_word_that_no_model_can_know_is_refused(
    trained: Translator, word: str, reason: str
) -> None:
    found = Pronouncer(trained, threshold=0)(word)
    assert found == Pronunciation(word, (), 0.0, "model", reason)
    assert found.is_refused


@pytest.mark.parametrize(
    "word",
    ["a" + " " * 200_000 + "b", "a" + "\u0301\u0323" * 50_000, "a" * 1_000_000],
    ids=["blanks", "marks", "letters"],
)
def test_long_words_take_no_long_time(trained: Translator, word: str) -> None:
    pronouncer = Pronouncer(trained, lexicon={"b": [["B"]]})
    start = time.process_time()
    assert pronouncer(word).reason == "is longer than 100 characters"
    assert time.process_time() - start < 5


def test_answer_that_does_not_end_within_its_limit_is_refused(random_weights: str) -> None:
    translator = load_translator(random_weights, device="cpu")
    translator.model.generation_config.max_length_ratio = 0.0
    translator.model.generation_config.max_length_offset = 2
    end = translator.tokenizer.eos_token_id
    with torch.no_grad():
        translator.model.lm_head.bias[end] = -1e4  # never ends by itself
    for beams in (1, 3):
        found = Pronouncer(translator, threshold=0, num_beams=beams)("bax")
        assert found.symbols == ()
        assert found.reason == "has no pronunciation that ends within the model's limit of length"
    with torch.no_grad():
        translator.model.lm_head.bias[end] = 1e4
    found = Pronouncer(translator, threshold=0)("bax")
    assert found.reason == "has no pronunciation: the model gives no symbol"


def random_words(count: int) -> list[str]:
    """Make words of known letters, and of digits, scripts, signs and controls with them."""
    chance = random.Random(0)
    kinds = [
        [*SOUNDS],
        [*SOUNDS, *"ABDEIKSX"],
        [*"0123456789½٣", "a"],
        [chr(code) for code in (*range(0x400, 0x460), *range(0x3040, 0x30A0), 0x4E00, 0xAC00)],
        [chr(code) for code in (*range(0x250), *range(0x300, 0x370), *range(0x2000, 0x2070))],
        [*SOUNDS, "\u0301", "\u200b", "\u202e", "\U0001f600", "é", " "],
    ]
    return [
        "".join(chance.choices(kinds[index % len(kinds)], k=chance.randint(0, 30)))
        for index in range(count)
    ]


@pytest.mark.parametrize("weights", ["trained", "random_weights"])
def test_no_word_makes_the_model_run_away(weights: str, request: pytest.FixtureRequest) -> None:
    words = random_words(300)
    pronouncer = Pronouncer(request.getfixturevalue(weights), device="cpu", threshold=0.3)
    kinds = set()
    for word, row in zip(words, pronouncer.pronounce(words, n_best=5), strict=True):
        kinds.add(row[0].reason.split(":")[0])
        assert row[0].is_refused == (row[0].symbols == ())
        assert row[0].is_refused or row[0].confidence >= 0.3
        for found in row:
            # With their end tokens.
            assert len(found.symbols) + 1 <= math.ceil(RATIO * (len(word.strip()) + 1)) + OFFSET
        plain = re.sub("[\u200b\u202e]", "", word.strip().lower())  # which nobody sees
        known = set(plain) <= set(SOUNDS) and re.search("[a-z]", plain)
        assert known or row[0].is_refused, word
    assert len(kinds) >= 6


# ------------------------------------------------------------------ language and loading


def test_model_with_tags_must_be_told_its_language(tagged: str) -> None:
    with pytest.raises(ValueError, match="`language` must be one of 'fre', 'ice', but is not"):
        Pronouncer(tagged, device="cpu")
    with pytest.raises(ValueError, match="`language` must be one of 'fre', 'ice', but is 'eng'"):
        Pronouncer(tagged, language="eng", device="cpu")
    french, icelandic = (
        Pronouncer(tagged, language=language, device="cpu", threshold=0)
        for language in ("fre", "ice")
    )
    assert french("bax").confidence != icelandic("bax").confidence  # the tag is read
    assert (french.language, icelandic.language) == ("fre", "ice")
    assert Pronouncer(tagged, language="Icelandic", device="cpu").language == "ice"
    assert french("z").reason == "has characters that the model does not know: 'z'"
    assert french("<ice>bax").is_refused


def test_model_without_tags_must_not_be_told_a_language(trained: Translator) -> None:
    with pytest.raises(ValueError, match="`language` must be left out with a model that has no"):
        Pronouncer(trained, language="fre")


def test_names_in_errors_are_those_of_the_arguments(trained: Translator, tmp_path: Path) -> None:
    for options, message in (
        ({"threshold": 1.5}, r"`threshold` must be in \[0, 1\], but is 1.5"),
        ({"threshold": float("nan")}, r"`threshold` must be in \[0, 1\], but is nan"),
        ({"num_beams": 0}, "`num_beams` must be at least 1, but is 0"),
        ({"batch_size": -1}, "`batch_size` must be at least 1, but is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Pronouncer(trained, **options)
    with pytest.raises(FileNotFoundError, match="`lexicon` must be an existing file, but is"):
        Pronouncer(trained, lexicon=tmp_path / "none")
    with pytest.raises(ValueError, match=r"`model` must be a folder .* is not there"):
        Pronouncer(tmp_path / "none")
    for wrong, sentence in (
        ({"num_beams": 2.5}, "`num_beams` must be an integer, but is 2.5"),
        ({"batch_size": None}, "`batch_size` must be an integer, but is None"),
        ({"num_threads": "2"}, "`num_threads` must be an integer, but is '2'"),
        ({"lexicon": [("a", ["B"])]}, "`lexicon` must be a file or a mapping, but is list"),
        ({"lexicon": {"a": "AH0"}}, r"each a list of symbols, but has 'AH0' for 'a'"),
        ({"lexicon": {"a": ["AH0"]}}, r"each a list of symbols, but has \['AH0'\] for 'a'"),
    ):
        with pytest.raises(TypeError, match=sentence):
            Pronouncer(trained, **wrong)
    with pytest.raises(ValueError, match=r"`threshold` must be in \[0, 1\], but is '0.3'"):
        Pronouncer(trained, threshold="0.3")
    with pytest.raises(TypeError, match="`model` must be a folder, a name or a translator, but is"):
        Pronouncer(None)
    pronouncer = Pronouncer(trained)
    for n_best in (0, 6, 1.5):
        with pytest.raises(ValueError, match=rf"`n_best` must be in .* 5\], but is {n_best}"):
            pronouncer.pronounce(["a"], n_best=n_best)
    with pytest.raises(TypeError, match="`words` must be a list of words, but is one string"):
        pronouncer.pronounce("bax")
    with pytest.raises(TypeError, match="`words` must hold strings, but holds 7"):
        pronouncer.pronounce(["a", 7])
