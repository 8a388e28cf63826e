"""Documents: what is between sentences stays, and what goes wrong is made anew or told."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_models import saved

from hf_qrnn import engine
from hf_qrnn.data.translations import Translation
from hf_qrnn.translation.documents import (
    DEFAULT_LONGEST,
    longest_of,
    translate_document,
    translate_lines,
)
from hf_qrnn.translation.loops import count_loops
from hf_qrnn.translation.translator import load_translator

Answer = Callable[[str], str]


class Recorder:
    """Stands for a translator: answers by a function, and keeps what it was asked."""

    generation = None

    def __init__(self, answer: Answer, cut: Answer | None = None) -> None:
        self.answer, self.cut = answer, cut
        self.asked: list[list[str]] = []

    def translate(self, texts: list[str], **options: Any) -> list[list[Translation]]:
        self.asked.append(list(texts))
        is_cut = self.cut or (lambda text: "")
        return [[Translation(self.answer(x), -1.0, bool(is_cut(x)))] for x in texts]


def upper(text: str) -> str:
    return text.upper()


def run(
    text: str, answer: Answer = upper, longest: int = 50, cut: Answer | None = None
) -> tuple[str, list[tuple[int, str]], Recorder]:
    recorder, flags = Recorder(answer, cut), list[tuple[int, str]]()
    found = translate_document(
        recorder, text, longest=longest, on_flag=lambda *flag: flags.append(flag)
    )
    return found, flags, recorder


DOCUMENT = (
    "Titel\n\n  Ein Satz.  Noch einer!\tUnd „drei“?\r\n\r\n \n- Punkt. Ende.\n\n***\n\x0c\n"
    "1. Erstens.\u2028Zweitens."
)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"], ids=ascii)
def test_everything_around_sentences_is_kept(end: str) -> None:
    found, flags, recorder = run(DOCUMENT + end)
    assert found == (DOCUMENT + end).upper()
    assert flags == []
    assert sorted(recorder.asked[0]) == sorted([
        "Titel", "Ein Satz.", "Noch einer!", "Und „drei“?", "Punkt.", "Ende.", "Erstens.",
        "Zweitens.",
    ])  # fmt: skip
    assert all(asked == [] for asked in recorder.asked[1:])


@pytest.mark.parametrize("text", ["", "\n", "\r\n \t\n\n", "\0\n", "---\n* * *"], ids=ascii)
def test_without_sentences_nothing_is_asked(text: str) -> None:
    found, _, recorder = run(text)
    assert found == text
    assert recorder.asked == []


def test_equal_sentences_are_asked_once() -> None:
    found, _, recorder = run("Ja. Nein. Ja.\nJa.")
    assert (found, recorder.asked[0]) == ("JA. NEIN. JA.\nJA.", ["Ja.", "Nein."])


def test_line_ends_of_a_translation_are_none_of_the_document() -> None:
    assert run("Ja.\nNein.", lambda text: "a\nb\u2028c")[0] == "a b c\na b c"


# ------------------------------------------------------------------ long sentences

LONG = "Wir warteten lange auf ihn, denn er hatte versprochen, dass er käme; er kam nicht."


def test_long_sentences_are_translated_by_their_clauses() -> None:
    answers = {
        "Wir warteten lange auf ihn,": "We waited long for him.",
        "denn er hatte versprochen,": "Since he had promised.",
        "dass er käme;": "I would come.",
        "er kam nicht.": "He did not come.",
    }
    found, flags, recorder = run(f"Ja. {LONG}", lambda text: answers.get(text, "Yes."), 30)
    assert set(recorder.asked[0]) == {"Ja.", *answers}
    assert found == (
        "Yes. We waited long for him, since he had promised, I would come; he did not come."
    )
    assert flags == []


def test_a_long_sentence_without_clauses_is_told_once() -> None:
    text = "ein Wort nach dem anderen ohne jedes Zeichen darin"
    found, flags, recorder = run(f"Ja.\n{text}", longest=30)
    assert found == f"JA.\n{text.upper()}"
    assert recorder.asked[0] == ["Ja.", text]
    assert flags == [
        (2, "'ein Wort nach dem anderen ohne jedes ...' has more than the 30 characters that are "
         "usual in the model's training data and no clause to be split at"),
    ]  # fmt: skip
    # What is much too long is cut where it can be, and told too.
    found, flags, recorder = run(f"{text} {text}", longest=30)
    assert found == f"{text} {text}".upper()
    assert max(map(len, recorder.asked[0])) <= 30
    assert len(flags) == 1


def test_what_has_no_blank_is_kept() -> None:
    blob = "x" * 200_000
    found, flags, recorder = run(f"Ja. Sieh {blob} an. Nein.")
    assert found == f"JA. SIEH {blob} AN. NEIN."
    assert max(map(len, recorder.asked[0])) <= 50
    ((number, told),) = flags
    assert number == 1
    assert told.endswith("and no blank in them: they are kept as they are")


# ------------------------------------------------------------------ loops

LOOP = "the dog and the dog and the dog and the dog"


def test_a_loop_is_made_anew_of_smaller_parts() -> None:
    found, flags, recorder = run(
        LONG, lambda text: LOOP if len(text) > 40 else text.upper(), longest=100
    )
    assert found.upper() == LONG.upper()
    assert flags == []
    assert recorder.asked[0] == [LONG]
    assert all(len(text) <= 40 for asked in recorder.asked[2:] for text in asked)


def test_a_loop_that_stays_is_cut_and_told() -> None:
    found, flags, recorder = run("Ja.\nEr ging langsam nach Haus.", lambda text: f"{LOOP}.")
    assert [count_loops(line) for line in found.split("\n")] == [0, 0]
    assert found.split("\n")[0] == "the dog and the dog."
    assert len(recorder.asked) == 4
    expected = "repeats itself in translation: the repeats are left out"
    assert flags == [(1, f"'Ja.' {expected}"), (2, f"'Er ging langsam nach Haus.' {expected}")]


def test_what_repeats_in_the_source_may_do_so_in_the_translation() -> None:
    text = "Nein nein nein nein!"
    found, flags, recorder = run(text, lambda _: "No no no no!")
    assert (found, flags, recorder.asked[1:]) == ("No no no no!", [], [[]] * 0)


def test_parts_that_repeat_each_other_are_cut() -> None:
    text = "Sie gingen in das Haus, sie kamen in das Haus."
    found, flags, _ = run(text, lambda _: "They went into the house.", longest=30)
    assert found == "They went into the house."
    assert "repeats itself" in flags[0][1]


def test_a_translation_that_reached_its_limit_is_made_anew_or_told() -> None:
    found, flags, _ = run(LONG, longest=100, cut=lambda text: "cut" if len(text) > 60 else "")
    assert (found.upper(), flags) == (LONG.upper(), [])
    found, flags, _ = run("Wort.", cut=lambda text: "cut")
    assert flags == [(1, "'Wort.' reached the length limit: its translation may be cut")]
    assert found == "WORT."


# ------------------------------------------------------------------ translators


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    saved(path, 7)
    return path


def test_both_engines_write_the_same_document(folder: Path) -> None:
    text = "  der hund. die katze!\n\nein vogel,  ein a; zwei.\r\n"
    native = engine.Translator(folder, backend="numpy")
    found = translate_document(native, text, num_beams=2)
    by_torch = load_translator(str(folder), device="cpu")
    assert found == translate_document(by_torch, text, num_beams=2)
    lines = [re.split(r"(\s+$)", line)[0].strip() for line in found.split("\n")]
    assert [bool(line) for line in lines] == [True, False, True, False]
    assert found.endswith("\r\n")
    # Nothing of it begins with a capital: a line is a sentence.
    (first,) = native.translate(["der hund. die katze!"], num_beams=2)
    assert found.startswith(f"  {first[0].text}\n")


def test_training_says_how_long_is_usual(folder: Path, tmp_path: Path) -> None:
    assert longest_of(load_translator(str(folder), device="cpu")) == DEFAULT_LONGEST
    assert longest_of(engine.Translator(folder, backend="numpy")) == DEFAULT_LONGEST
    loaded = load_translator(str(folder), device="cpu")
    loaded.model.generation_config.usual_source_chars = 77
    loaded.model.generation_config._from_model_config = False
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert longest_of(load_translator(str(tmp_path), device="cpu")) == 77
    assert longest_of(engine.Translator(tmp_path, backend="numpy")) == 77


def test_a_wrong_bound_is_told() -> None:
    with pytest.raises(ValueError, match="`longest` must be at least 1, but is 0"):
        translate_lines(lambda texts: [], ["a"], longest=0)


@pytest.mark.parametrize("text", [["Ja."], b"Ja.", None], ids=["list", "bytes", "none"])
def test_a_document_is_one_string(text: Any) -> None:
    with pytest.raises(TypeError, match="`text` must be one string, but is"):
        translate_document(None, text, longest=10)
