"""Pronouncers by the engine: the answers of those by torch, in a process without torch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pronouncing import SOUNDS, save_pronouncer

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.cli.main import main
from hf_qrnn.data.symbols import train_symbol_tokenizer, with_alphabets, with_spellings
from hf_qrnn.data.tokenization import (
    load_tokenizer,
    make_byte_tokenizer,
    train_character_tokenizer,
)
from hf_qrnn.engine import Translator, choice
from hf_qrnn.pronunciation import Pronouncer
from hf_qrnn.pronunciation.letters import EngineLetters, TokenizerLetters
from hf_qrnn.pronunciation.spelling import Spelling
from hf_qrnn.translation.translator import load_translator

pytestmark = pytest.mark.usefixtures("engine_library")

WORDS = ["bax", "Sikka", "abda", "dide", "7up", "", "a b", "Don\u2019t", "b\u0430k", "</s>"]
WORDS += ["isik", "k", "ax\u2019a", "b\ud800", "x" * 101, "HH", "cafe\u0301", "<unk>", "ikse" * 9]
WORDS += ["a\x00", "caf\u00e9", "\ud55c"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pronouncer(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("num_beams", [1, 5])
@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_answers_and_confidences_are_those_of_torch(
    backend: str, num_beams: int, trained: str
) -> None:
    engine = Translator(trained, backend=backend)
    found, expected = (
        Pronouncer(model, threshold=0, num_beams=num_beams).pronounce(WORDS, n_best=num_beams)
        for model in (engine, load_translator(trained, device="cpu"))
    )
    for row, other in zip(found, expected, strict=True):
        assert [one.symbols for one in row] == [one.symbols for one in other]
        assert [one.reason for one in row] == [one.reason for one in other]
        wanted = [one.confidence for one in other]
        assert [one.confidence for one in row] == pytest.approx(wanted, abs=1e-4)
    assert sum(not row[0].is_refused for row in found) >= 8


@pytest.mark.parametrize(
    "kind", ["symbols", "phones", "characters", "capitals", "nfc", "nfd", "bytes"]
)
def test_words_are_spelled_as_with_transformers(kind: str, tmp_path: Path) -> None:
    letters = "".join(SOUNDS)
    tokenizer = {
        "symbols": lambda: train_symbol_tokenizer([letters], ["HH AH0"]),
        "phones": lambda: train_symbol_tokenizer(
            ["HH AH0"], [letters], source_tokens="blank", target_tokens="char"
        ),
        "characters": lambda: train_character_tokenizer([letters]),
        "capitals": lambda: train_symbol_tokenizer([letters.upper()], ["HH"]),
        "nfc": lambda: train_symbol_tokenizer([letters + "\u00e9cf"], ["HH"], nfc=True),
        "nfd": lambda: train_symbol_tokenizer([letters + "\u00e9cf"], ["HH"], source_nfd=True),
        "bytes": make_byte_tokenizer,
    }[kind]()
    sizes = {"embedding_size": 8, "hidden_size": 8, "encoder_layers": 1, "decoder_layers": 1}
    config = QRNNConfig(vocab_size=len(tokenizer), **sizes)
    QRNNForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = EngineLetters(Translator(tmp_path).tokens)
    expected = TokenizerLetters(load_translator(str(tmp_path), device="cpu").tokenizer)
    words = [*WORDS, "HH AH0", " HH  q"]
    assert Spelling(found).spell(words) == Spelling(expected).spell(words)
    fields = ("has_symbols", "language", "alphabet", "unknown")
    for name in fields:
        assert getattr(found, name) == getattr(expected, name), name
    assert set(found.vocabulary) == set(expected.vocabulary)
    rows = found.encode(["bax", "HH AH0"])
    assert rows == expected.encode(["bax", "HH AH0"])
    assert found.decode(rows) == expected.decode(rows)


def test_spelling_is_judged_as_with_transformers(trained: str, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    words = [("", f"{'bax' * left}{'ik' * right}") for left in range(12) for right in range(12)]
    with_spellings(load_tokenizer(trained), words).save_pretrained(tmp_path)
    found, expected = (
        Pronouncer(str(tmp_path), engine=engine, device="cpu").pronounce(["baxik", "kkbbe", "Bax"])
        for engine in ("native", "torch")
    )
    assert [row[0].reason for row in found] == [row[0].reason for row in expected]
    assert [bool(row[0].reason) for row in found] == [False, True, False]


PROGRAM = """
import sys
sys.modules.update(torch=None, transformers=None)
from hf_qrnn.pronunciation import Pronouncer
print(Pronouncer(sys.argv[1], device="cpu")("bax").text)
from hf_qrnn.cli.main import main
sys.exit(main(["pronounce", "bax", "7", "--model", sys.argv[1], "--device", "cpu"]))
"""


def test_pronounces_where_torch_cannot_be_imported(trained: str) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, trained]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = ["B AA1 K S", "bax\tB AA1 K S", "7\t\t# has digits, which must be written as words"]
    assert (done.returncode, done.stdout.splitlines()) == (0, lines), done.stderr


def test_engine_is_chosen_as_it_is_asked_for(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`engine` must be one of 'auto', 'native', 'torch', but"):
        Pronouncer(trained, engine="fast")
    with pytest.raises(ValueError, match="`device` must be cpu for the engine, but is 'cuda'"):
        Pronouncer(trained, engine="native", device="cuda")
    for model in (trained, Translator(trained)):
        with pytest.raises(ValueError, match="`language` must be left out with a model that has"):
            Pronouncer(model, engine="native", language="fre")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded by the engine")

    monkeypatch.setattr(choice, "Translator", fail)
    assert Pronouncer(trained, engine="torch", device="cpu")("bax").text == "B AA1 K S"
    with pytest.raises(AssertionError, match="loaded by the engine"):
        Pronouncer(trained, device="cpu")


LANGUAGES = ["fre", "ice"]
TAGGED = """
import sys
sys.modules.update(torch=None, transformers=None)
from hf_qrnn.cli.main import main
sys.exit(main(["pronounce", "--device", "cpu", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that knows two languages, of which one has "x" alone and the other no "x"."""
    folder = tmp_path_factory.mktemp("tagged")
    save_pronouncer(folder, languages=LANGUAGES, steps=0)
    tokenizer = load_tokenizer(str(folder))
    pairs = [("fre", "".join(SOUNDS)), ("ice", "".join(x for x in SOUNDS if x != "x"))]
    with_alphabets(tokenizer, pairs).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_of_a_model_with_tags_are_those_of_torch(language: str, tagged: str) -> None:
    options = {"language": language, "threshold": 0, "device": "cpu"}
    found, expected = (
        Pronouncer(tagged, engine=engine, **options).pronounce(WORDS, n_best=3)
        for engine in ("native", "torch")
    )
    for row, other in zip(found, expected, strict=True):
        assert [one.symbols for one in row] == [one.symbols for one in other]
        assert [one.reason for one in row] == [one.reason for one in other]
        wanted = [one.confidence for one in other]
        assert [one.confidence for one in row] == pytest.approx(wanted, abs=1e-4)
    refused = found[WORDS.index("bax")][0].reason
    assert ("in 'ice', does not know: 'x'" in refused) == (language == "ice")


def test_letters_of_a_model_with_tags_are_those_of_transformers(tagged: str) -> None:
    tokens = Translator(tagged).tokens
    tokenizer = load_translator(tagged, device="cpu").tokenizer
    for language in LANGUAGES:
        found, expected = EngineLetters(tokens, language), TokenizerLetters(tokenizer, language)
        for name in ("has_symbols", "language", "alphabet", "unknown"):
            assert getattr(found, name) == getattr(expected, name), name
        assert Spelling(found).spell(WORDS) == Spelling(expected).spell(WORDS)
    for kind, known in ((EngineLetters, tokens), (TokenizerLetters, tokenizer)):
        for wrong in (None, "deu"):
            with pytest.raises(ValueError, match="`language` must be one of 'fre', 'ice', but is"):
                kind(known, wrong)


def test_language_needs_no_torch(tagged: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--language", "fre", "--threshold", "0", "--scores", "--model", tagged]
    arguments = ["bax", "ab\u0301d", "7", *flags]
    command = [sys.executable, "-W", "error", "-c", TAGGED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert main(["pronounce", "--engine", "torch", *arguments]) == 0
    assert done.stdout == capsys.readouterr().out
