"""Pronouncers by the engine: the answers of those by torch, in a process without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from pronouncing import SOUNDS, save_pronouncer

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.data.symbols import train_symbol_tokenizer
from hf_qrnn.data.tokenization import make_byte_tokenizer, train_character_tokenizer
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
    with pytest.raises(ValueError, match="`language` must be left out with the engine, but is"):
        Pronouncer(trained, engine="native", language="fre")
    with pytest.raises(ValueError, match="`language` must be left out with a model that has no"):
        Pronouncer(Translator(trained), language="fre")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded by the engine")

    monkeypatch.setattr(choice, "Translator", fail)
    assert Pronouncer(trained, engine="torch", device="cpu")("bax").text == "B AA1 K S"
    with pytest.raises(AssertionError, match="loaded by the engine"):
        Pronouncer(trained, device="cpu")


def test_model_with_tags_goes_to_torch(tmp_path: Path) -> None:
    tagged = save_pronouncer(tmp_path, languages=["fre", "ice"], steps=0)
    assert Pronouncer(tagged, language="fre", device="cpu", threshold=0)("bax").origin == "model"
    with pytest.raises(ValueError, match="'extra_special_tokens' must be absent"):
        Pronouncer(tagged, engine="native")
