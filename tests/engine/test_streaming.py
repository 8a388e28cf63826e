"""Translations as they come: joined they are the whole, and no piece ends in a character."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import LETTERS, saved
from transformers import PreTrainedTokenizerBase

from hf_qrnn import make_byte_tokenizer, train_character_tokenizer
from hf_qrnn.data.symbols import train_symbol_tokenizer
from hf_qrnn.data.translations import one_line, pieces_of_one_line
from hf_qrnn.engine import Translator
from hf_qrnn.engine.generation import GenerationSettings
from hf_qrnn.engine.search import follow
from hf_qrnn.engine.streaming import PieceDecoder
from hf_qrnn.engine.tokens import Tokens

pytestmark = pytest.mark.usefixtures("engine_library")

TEXTS = ["der hund schläft.", "a", "ein längerer satz, der mehr sagt.", "zwei zeilen", "x"]
PHONES = "HH AH0 L OW1 \u00e9 \u2581x \u4e2d"
TOKENIZERS: dict[str, Any] = {
    "char": lambda: train_character_tokenizer([LETTERS]),
    "char nfc": lambda: train_character_tokenizer([LETTERS + "\u0301e"], nfc=True),
    "byte": make_byte_tokenizer,
    "phones": lambda: train_symbol_tokenizer([LETTERS], [PHONES]),
    "both": lambda: train_symbol_tokenizer([PHONES], [LETTERS], target_tokens="char"),
}


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = request.param()
    return made


def test_pieces_of_any_ids_are_the_text(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    tokens = Tokens(tmp_path, 300)
    draw = random.Random(0)
    rows = [draw.choices(range(len(tokenizer)), k=draw.randint(0, 20)) for _ in range(300)]
    rows += tokens.encode(["aü中\U0001f600e\u0301 \n", "a\ufffdb", "HH AH0  L", "\u0301"])
    # The bytes of a character, one behind the other, and cut off.
    rows += [[4 + byte for byte in text.encode()] for text in ("ü中\U0001f600", "中")]
    rows += [row[:-1] for row in rows[-2:]]
    for row in rows:
        if max(row, default=0) >= len(tokenizer):
            continue
        decoder = PieceDecoder(lambda ids: tokens.decode([ids])[0])
        pieces = [decoder.add(token) for token in row]
        assert not any(piece.endswith("\ufffd") for piece in pieces)
        assert "".join(pieces) + decoder.rest() == tokens.decode([row])[0]


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_streamed_translation_is_the_translation(
    backend: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    saved(tmp_path, 7, vocab_size=max(len(tokenizer), 38))
    tokenizer.save_pretrained(tmp_path)
    translator = Translator(tmp_path, backend=backend)
    counts = []
    for text in TEXTS:
        for limit in (None, 7):
            [[expected]] = translator.translate([text], max_new_tokens=limit)
            stream = translator.stream(text, max_new_tokens=limit)
            assert stream.translation is None
            pieces = list(stream)
            assert "".join(pieces) == expected.text
            assert all(pieces)
            counts.append(len(pieces))
            assert list(stream) == []
            found = stream.translation
            assert found is not None
            assert (found.text, found.is_cut) == (expected.text, expected.is_cut)
            assert found.has_unknown == expected.has_unknown
            assert found.score == pytest.approx(expected.score, rel=1e-4, abs=1e-4)
            assert found.log_probability == found.score
    assert max(counts) > 3


def test_scores_are_changed_and_ensembles_and_languages_are_streamed(tmp_path: Path) -> None:
    folders = []
    tags = train_symbol_tokenizer([LETTERS], [], target_tokens="char", languages=["deu", "isl"])
    for seed in (5, 6):
        folder = tmp_path / str(seed)
        model = saved(folder, seed, vocab_size=len(tags))
        model.generation_config.no_repeat_ngram_size = 2
        model.generation_config.repetition_penalty = 1.3
        model.generation_config.save_pretrained(folder)
        tags.save_pretrained(folder)
        folders.append(folder)
    translator = Translator(*folders)
    for language in ("deu", "isl"):
        [[expected]] = translator.translate(["hund"], language=language)
        assert "".join(translator.stream("hund", language=language)) == expected.text


def test_piece_comes_before_the_next_is_computed() -> None:
    steps: list[int] = []

    class Counting:
        def step(self, tokens: Any) -> Any:
            steps.append(int(tokens[0]))
            return np.array([[0.0, -9.0, 2.0, 1.0]], np.float32)

        def select(self, rows: Any, sources: Any = None) -> None:
            pass

    found = follow(Counting(), GenerationSettings(start=0, ends=(1,)), 5)
    assert steps == []
    assert next(found)[0] == 2
    assert steps == [0]
    assert [token for token, _ in found] == [2] * 4
    assert steps == [0, 2, 2, 2, 2]


def test_text_without_characters_and_wrong_arguments(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    translator = Translator(tmp_path)
    stream = translator.stream(" \n")
    assert list(stream) == []
    assert stream.translation == translator.translate([" \n"])[0][0]
    with pytest.raises(ValueError, match=r"`max_new_tokens` must be at least 1, but is 0\."):
        translator.stream("a", max_new_tokens=0)
    with pytest.raises(ValueError, match="`language` must be left out"):
        translator.stream("a", language="deu")
    with pytest.raises(ValueError, match="half a surrogate pair"):
        translator.stream("a\ud800")


def test_pieces_of_one_line_are_one_line() -> None:
    draw = random.Random(0)
    for _ in range(500):
        pieces = draw.choices(["a", "\r", "\n", "\r\n", "b\r", "\n\n", "\u2028", ""], k=6)
        found = list(pieces_of_one_line(iter(pieces)))
        assert "".join(found) == one_line("".join(pieces))
    # What can be written is not held back.
    assert next(pieces_of_one_line(iter(["a\r"]))) == "a"
