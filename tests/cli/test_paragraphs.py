"""hf-qrnn translate --paragraphs: documents in, documents out, by both engines."""

import io
import sys
from pathlib import Path

import pytest
from engine_models import saved

from hf_qrnn.cli.main import main
from hf_qrnn.translation.documents import translate_document
from hf_qrnn.translation.translator import load_translator

pytestmark = pytest.mark.usefixtures("engine_library")
Capture = pytest.CaptureFixture[bytes]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    saved(folder, 7)
    return str(folder)


def run(monkeypatch: pytest.MonkeyPatch, data: bytes, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return main(["translate", "--paragraphs", "--device", "cpu", *arguments])


TEXTS = {
    "empty": "",
    "blank lines": "\n\r\n  \n",
    "no final newline": "ein hund. eine katze.\n\n  zwei",
    "windows": "\ufeffein hund. eine katze.\r\n\r\nzwei\r\n",
    "nul": "ein\0hund. \0\n\0\n",
    "one long word": "ein " + "x" * 5000 + " hund.\n",
    "many lines": "ein hund. eine katze.\n" * 70 + "ende",
}


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("name", TEXTS)
def test_documents_keep_their_form(
    name: str, engine: str, model: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    text = TEXTS[name]
    assert run(monkeypatch, text.encode(), model, "--engine", engine, "--batch_size", "8") == 0
    found = capfdbinary.readouterr()
    translator = load_translator(model, device="cpu")
    assert found.out.decode() == translate_document(translator, text)
    assert found.out.count(b"\n") == text.count("\n")
    if not text.strip():
        assert found.out.decode() == text
    flags = [line for line in found.err.decode().splitlines() if line.startswith("line ")]
    if name == "one long word":
        assert any(" no blank in them: they are kept as they are" in line for line in flags)


def test_doubts_name_their_lines_in_order(
    model: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    long = "x" * 500
    data = "".join(f"{long if number in (2, 40) else 'ein'}\n" for number in range(1, 50))
    assert run(monkeypatch, data.encode(), model, "--batch_size", "4") == 0
    told = capfdbinary.readouterr().err.decode().splitlines()
    kept = [line for line in told if "kept as they are" in line]
    assert [line.split(":")[0] for line in kept] == ["line 2", "line 40"]


def test_lines_before_an_invalid_byte_are_written(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    assert run(monkeypatch, b"ein.\nzwei.\ndr\xffei.\n", model) == 2
    found = capfdbinary.readouterr()
    assert found.out.count(b"\n") == 2
    assert b"an invalid byte in line 3." in found.err
    output = tmp_path / "out"
    output.write_text("of yesterday")
    assert run(monkeypatch, b"\xff", model, "-o", str(output)) == 2
    assert output.read_text() == "of yesterday"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--n_best", "2", "--num_beams", "2"], "is 2"),
        (["--scores"], "is given"),
        (["--interactive"], "is given"),
        (["--sample"], "is given"),
        (["--attention", "a.png"], "is 'a.png'"),
    ],
)
def test_what_makes_no_document_is_refused(
    flags: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    assert run(monkeypatch, b"ein\n", "no-model", *flags) == 2
    sentence = f"error: `{flags[0]}` must be left out with --paragraphs, but {expected}.\n"
    assert capfdbinary.readouterr() == (b"", sentence.encode())
