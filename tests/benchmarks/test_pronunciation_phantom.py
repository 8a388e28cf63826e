"""What a pronouncer says to strings that are no words: few, and none too long."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pronunciation
import pronunciation_phantom
import pytest
from pronouncing import save_pronouncer
from pronunciation_phantom import KINDS, count_phantoms

from hf_qrnn.data.symbols import with_spellings
from hf_qrnn.data.tokenization import load_tokenizer
from hf_qrnn.pronunciation import Pronouncer, Pronunciation

pytestmark = pytest.mark.usefixtures("engine_library")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_pronouncer(tmp_path_factory.mktemp("trained")))


def test_nothing_is_too_long_and_only_letters_are_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = count_phantoms(trained, None, 400)
    assert [count.strings for count in plain.values()] == [50] * len(KINDS)
    assert not any(count.faults for count in plain.values())
    said = {kind for kind, count in plain.items() if count.said}
    assert said <= {"letters", "many letters", "few letters again and again", "letters and signs"}
    assert plain["letters"].said > 25  # the model was trained on just such strings
    # One that remembers how words are spelled says less.
    words = [("", f"{'bax' * left}{'ik' * right}") for left in range(12) for right in range(12)]
    folder = tmp_path / "spelled"
    shutil.copytree(trained, folder)
    with_spellings(load_tokenizer(str(trained)), words).save_pretrained(folder)
    assert count_phantoms(folder, None, 400)["letters"].said < 10
    assert pronunciation.main(["--phantom", str(trained), "--strings", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {kind}" for kind in KINDS]


def test_answers_longer_than_the_limit_and_of_digits_are_faults(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Chatty(Pronouncer):
        """Says four symbols to whatever it is asked."""

        def pronounce(self, words: Sequence[str], **_: object) -> list[list[Pronunciation]]:
            return [[Pronunciation(word, ("A",) * 4, 1.0, "model")] for word in words]

    monkeypatch.setattr(pronunciation_phantom, "Pronouncer", Chatty)
    counts = count_phantoms(trained, None, 80)
    # The limit is of ceil(2.5 * (letters + 1)) + 3 symbols, the end among them.
    assert counts["letters"].faults == 0
    assert [counts[kind].faults for kind in ("digits", "another script", "signs")] == [10] * 3
    monkeypatch.setattr(pronunciation_phantom, "_limit", lambda _: (0.0, 4))
    assert count_phantoms(trained, None, 80)["letters"].faults == 10
    assert pronunciation.main(["--phantom", str(trained), "--strings", "8"]) == 1


def test_wrong_numbers_and_models_are_one_sentence(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pronunciation.main(["--phantom", str(trained), "--strings", "3"]) == 2
    assert capsys.readouterr().err == "error: `--strings` must be at least 8, but is 3.\n"
    assert pronunciation.main(["--phantom", str(trained), "--language", "fre"]) == 2
    assert "`--language` must be left out with a model that has no" in capsys.readouterr().err
