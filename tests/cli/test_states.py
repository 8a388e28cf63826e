"""hf-qrnn states: the picture of a classifier's states, and its label."""

import io
from pathlib import Path

import pytest

from hf_qrnn import QRNNConfig, QRNNForSequenceClassification
from hf_qrnn.cli.main import main
from hf_qrnn.data.words import train_prose_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> str:
    tokenizer = train_prose_tokenizer(["so very good !"])
    config = QRNNConfig(
        vocab_size=len(tokenizer), embedding_size=4, hidden_size=4, encoder_layers=1,
        is_encoder_decoder=False, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    QRNNForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_picture_is_of_the_tokens_asked_for(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [str(tmp_path / name) for name in ("all.svg", "last.svg", "read.svg")]
    assert main(["states", model, "--text", "so very good !", "-o", outputs[0]]) == 0
    assert main(["states", model, "--text", "so very good !", "-o", outputs[1], "--last", "2"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("so very\ngood !\n"))
    assert main(["states", model, "-o", outputs[2]]) == 0
    pictures = [Path(output).read_text(encoding="utf-8") for output in outputs]
    # matplotlib writes a text beside its glyphs, as a comment.
    words = [[f"<!-- {word} -->" in picture for word in ("so", "!")] for picture in pictures]
    assert words == [[True, True], [False, True], [True, True]]
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == 1  # the whole text is read, whatever is drawn
    label, probability = lines[0].split("\t")
    assert label in ("bad", "good")
    assert 0.5 <= float(probability) <= 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--text", " "], "`--text` must have text, but is ' '."),
        (["--text", "a", "--last", "-1"], "`--last` must be at least 0, but is -1."),
        (["--text", "a", "-o", "x.txt"], "The name of a picture must end in one of .png"),
        (["--text", "a", "-o", "none/x.png"], "The folder of an output file must exist"),
        (["--text", "a"], "`MODEL` must be a folder with a saved QRNN classifier or the name"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["states", "absent", "-o", "x.png", *changes]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
