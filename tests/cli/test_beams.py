"""The beams of a command are the model's own where none are asked for."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_models import saved

from hf_qrnn import engine
from hf_qrnn.cli.main import main

pytestmark = pytest.mark.usefixtures("engine_library")
Capture = pytest.CaptureFixture[str]
LINES = ["ein hund", "katze", "der hund und die katze", "eine"]
ENGINES = pytest.mark.parametrize("kind", ["native", "torch"])


def make(folder: Path, **fields: Any) -> str:
    """Save a model whose generation config has `fields`."""
    saved(folder, 7)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return str(folder)


def translate(monkeypatch: pytest.MonkeyPatch, capture: Capture, *arguments: str) -> list[str]:
    text = "".join(f"{line}\n" for line in LINES)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["translate", *arguments]) == 0
    return capture.readouterr().out.splitlines()


@ENGINES
def test_default_is_the_models_and_the_flag_overrides(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    model = make(tmp_path / "m", num_beams=4)
    translator = engine.Translator(model)
    expected = {
        beams: [row[0].text for row in translator.translate(LINES, num_beams=beams)]
        for beams in (1, 4)
    }
    assert expected[1] != expected[4]
    given = [model, "--engine", kind, "--device", "cpu"]
    assert translate(monkeypatch, capsys, *given) == expected[4]
    assert translate(monkeypatch, capsys, *given, "--num_beams", "1") == expected[1]
    documents = [
        translate(monkeypatch, capsys, *given, "--paragraphs", *flags)
        for flags in ([], ["--num_beams", "4"], ["--num_beams", "1"])
    ]
    assert documents[0] == documents[1] != documents[2]
    # Of several the first one's.
    other = make(tmp_path / "n", num_beams=1)
    assert translate(monkeypatch, capsys, model, other, *given[1:]) == expected[4]
    assert translate(monkeypatch, capsys, other, model, *given[1:]) == expected[1]


@ENGINES
def test_n_best_goes_up_to_the_models_beams(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    out = tmp_path / "out"
    out.write_text("kept")
    given = [make(tmp_path / "m", num_beams=3), "--engine", kind, "--device", "cpu"]
    assert len(translate(monkeypatch, capsys, *given, "--n_best", "3")) == 3 * len(LINES)
    assert main(["translate", *given, "--n_best", "4", "-o", str(out)]) == 2
    assert "in [1, `--num_beams`] = [1, 3], but is 4." in capsys.readouterr().err
    assert out.read_text() == "kept"
    given[0] = make(tmp_path / "none", num_beams=None)
    assert main(["translate", *given, "--n_best", "2", "-o", str(out)]) == 2
    assert "in [1, `--num_beams`] = [1, 1], but is 2." in capsys.readouterr().err


def test_samples_are_drawn_whatever_the_beams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    model = make(tmp_path, num_beams=3)
    drawn = translate(monkeypatch, capsys, model, "--sample", "--n_best", "5")
    assert len(drawn) == 5 * len(LINES)


def test_score_translates_as_translate_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    model = make(tmp_path / "m", num_beams=4)
    right = tmp_path / "right"
    right.write_text("".join(f"{x}\n" for x in translate(monkeypatch, capsys, model)))
    (tmp_path / "source").write_text("".join(f"{line}\n" for line in LINES))
    files = ["--references", str(right), "--source", str(tmp_path / "source")]
    assert main(["score", "--model", model, *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"] == 100


@ENGINES
@pytest.mark.parametrize("value", [0, "5", 2.5, True])
def test_beams_that_are_none_are_refused(
    kind: str, value: object, tmp_path: Path, capsys: Capture
) -> None:
    model = make(tmp_path, num_beams=value)
    output = tmp_path / "out"
    output.write_text("kept")
    assert main(["translate", model, "--engine", kind, "-o", str(output)]) == 2
    error = capsys.readouterr().err
    assert "must be an integer of at least 1, but is" in error
    assert "num_beams" in error
    assert output.read_text() == "kept"
