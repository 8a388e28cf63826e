"""hf-qrnn pronounce: a word in is a line out, and what it writes is a lexicon."""

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pronouncing import save_pronouncer, sounds

from hf_qrnn.cli.main import main
from hf_qrnn.data import box
from hf_qrnn.pronunciation import Pronouncer
from hf_qrnn.pronunciation.lexicon import read_lexicon
from hf_qrnn.pronunciation.pronouncer import DEFAULT_THRESHOLD

pytestmark = pytest.mark.usefixtures("engine_library")
Capture = pytest.CaptureFixture[bytes]
WORDS = ["bax", "", "7up", "Sikka", "dad", "a b", "a\tb", "ebi", "bax", "ж"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pronouncer(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tagged")
    return save_pronouncer(folder, languages=["fre", "ice"], steps=0)


def run(capture: Capture, *arguments: str) -> list[str]:
    """Run the command: the lines of standard output, each checked to be ended."""
    assert main(["pronounce", "--device", "cpu", *arguments]) == 0
    output = capture.readouterr().out.decode()
    assert output == "" or output.endswith("\n")
    return output.split("\n")[:-1]


def error(capture: Capture, *arguments: str) -> str:
    assert main(["pronounce", *arguments]) == 2
    output = capture.readouterr()
    assert output.out == b""
    (line,) = output.err.decode().splitlines()
    return line.removeprefix("error: ")


def test_words_of_the_command_line_are_pronounced(model: str, capfdbinary: Capture) -> None:
    lines = run(capfdbinary, "bax", "Sikka", "--model", model)
    assert lines == ["bax\tB AA1 K S", f"Sikka\t{' '.join(sounds('sikka'))}"]


def test_line_in_is_line_out_and_the_output_is_a_lexicon(
    model: str, tmp_path: Path, capfdbinary: Capture
) -> None:
    source, target = tmp_path / "words.gz", tmp_path / "out.tsv"
    source.write_bytes(gzip.compress("".join(f"{word}\r\n" for word in WORDS).encode()))
    options = ["--model", model, "--threshold", "0.35", "-i", str(source), "-o", str(target)]
    assert run(capfdbinary, *options, "--batch_size", "2") == []
    lines = target.read_text(encoding="utf-8").split("\n")
    assert lines[:3] == ["bax\tB AA1 K S", "\t\t# is empty",
                         "7up\t\t# has digits, which must be written as words"]  # fmt: skip
    assert lines[4].startswith("dad\t\t# has no sure pronunciation: the confidence 0.")
    assert lines[5] == lines[6] == "a b\t\t# has white space: it must be one word"
    assert lines[8] == lines[0]
    assert lines[9:] == ["ж\t\t# has characters that the model does not know: 'ж'", ""]
    expected = Pronouncer(model, threshold=0.35, device="cpu").pronounce(WORDS)
    wanted = {row[0].word: [row[0].symbols] for row in expected if not row[0].is_refused}
    assert read_lexicon(target) == wanted
    assert set(wanted) == {"bax", "Sikka", "ebi"}


@pytest.mark.parametrize("flags", ["", "--n_best 3 --scores", "--num_beams 1 --ipa --threshold 0"])
def test_lines_are_the_same_by_both_engines(flags: str, model: str, capfdbinary: Capture) -> None:
    options = [*WORDS[2:], "--model", model, *flags.split()]
    found = run(capfdbinary, *options, "--engine", "native")
    expected = run(capfdbinary, *options, "--engine", "torch")
    if "--scores" in flags:
        columns = [[line.split("\t", 1) for line in lines] for lines in (found, expected)]
        scores = [[float(score) for score, _ in some] for some in columns]
        assert scores[0] == pytest.approx(scores[1], abs=1.01e-4)
        found, expected = ([text for _, text in some] for some in columns)
    assert found == expected


def test_model_that_the_engine_refuses_is_told(
    tagged: str, tmp_path: Path, capfdbinary: Capture
) -> None:
    folder = tmp_path / "changed"
    save_pronouncer(folder, steps=0)
    path = folder / "generation_config.json"
    path.write_text(path.read_text().replace("{", '{"min_length": 2,', 1))
    assert main(["pronounce", "bax", "--model", str(folder), "--device", "cpu"]) == 0
    first = capfdbinary.readouterr().err.decode().splitlines()[0]
    assert first.startswith("generate() computes, since the engine cannot: `min_length` must be")
    sentence = error(capfdbinary, "bax", "--model", str(folder), "--engine", "native")
    assert sentence.startswith("`--engine` must be 'auto' or 'torch' for ")
    for engine in ("native", "torch"):
        sentence = error(capfdbinary, "bax", "--model", tagged, "--engine", engine)
        assert sentence.startswith("`--language` must be one of 'fre', ")


def test_summary_goes_to_standard_error(model: str, capfdbinary: Capture) -> None:
    assert main(["pronounce", "bax", "7", "--model", model, "--device", "cpu"]) == 0
    first, second = capfdbinary.readouterr().err.decode().splitlines()
    assert first.startswith("2 words in ")
    assert first.endswith(" words/s)")
    assert second == "1 of 2 words refused: their lines say why"


def test_n_best_and_scores(model: str, capfdbinary: Capture) -> None:
    options = ["--model", model, "--n_best", "3", "--scores", "--threshold", "0"]
    lines = [line.split("\t") for line in run(capfdbinary, "abd", "8", *options)]
    assert [word for _, word, *_ in lines] == ["abd"] * 3 + ["8"]
    assert {lines[0][2], lines[1][2]} == {"AA1 B D", "AA1 B T"}
    assert all(0.35 < float(line[0]) < 0.65 for line in lines[:2])
    assert lines[3][0] == "0.0000"
    expected = Pronouncer(model, threshold=0, device="cpu").pronounce(["abd"], n_best=3)[0]
    assert [line[0] for line in lines[:3]] == [f"{one.confidence:.4f}" for one in expected]


def test_lexicon_is_asked_first(model: str, tmp_path: Path, capfdbinary: Capture) -> None:
    path = tmp_path / "lexicon.tsv"
    path.write_text("bax\tN\nbax\tO\n7up\tS\n", encoding="utf-8")
    options = ["--model", model, "--lexicon", str(path), "--n_best", "2"]
    lines = run(capfdbinary, "bax", "7up", "kik", *options)
    assert lines[:3] == ["bax\tN", "bax\tO", "7up\tS"]
    assert lines[3] == "kik\tK IY2 K"


def test_ipa_of_arpabet_and_of_anything_else(
    model: str, tmp_path: Path, capfdbinary: Capture
) -> None:
    path = tmp_path / "lexicon.tsv"
    path.write_text("hello\tHH AH0 L OW1\nbonjour\tb ɔ̃ ʒ u ʁ\n", encoding="utf-8")
    options = ["--model", model, "--lexicon", str(path), "--ipa"]
    assert run(capfdbinary, "hello", "bax", "7", *options)[:2] == ["hello\thəˈloʊ", "bax\tˈbɑks"]
    assert main(["pronounce", "bonjour", "hello", *options]) == 0
    output = capfdbinary.readouterr()
    assert output.out.decode() == "bonjour\tb ɔ̃ ʒ u ʁ\nhello\thəˈloʊ\n"
    assert output.err.decode().splitlines()[-1] == (
        "symbols that are not ARPAbet are written as they are, not as --ipa"
    )


def test_standard_input_is_read_where_no_word_is_given(model: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "hf_qrnn", "pronounce", "--model", model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, input=b"bax\n\nkik", capture_output=True, env=environment)
    assert found.stdout == b"bax\tB AA1 K S\n\t\t# is empty\nkik\tK IY2 K\n"
    assert found.returncode == 0
    # An argument that is no text in UTF-8 is a word that nobody knows.
    words = [*command, b"b\xff", b"bax"]
    found = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, env=environment)
    assert found.stdout == b"b?\t\t# is not valid Unicode\nbax\tB AA1 K S\n"


def test_line_that_is_no_text_comes_after_those_before_it(
    model: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bax\n\xff\n")))
    assert main(["pronounce", "--model", model]) == 2
    output = capfdbinary.readouterr()
    assert output.out == b"bax\tB AA1 K S\n"
    assert b"invalid byte in line 2" in output.err


# ------------------------------------------------------------------ models and languages


def test_default_model_is_the_repositorys_for_the_language(
    model: str, tagged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    monkeypatch.setattr(box, "_PACKAGE", tmp_path)
    sentence = error(capfdbinary, "bax")
    assert sentence == (
        "`--model` must be given where 'pronounce-en' is not in the box of models (there is: none)."
    )
    assert "'pronounce-fre'" in error(capfdbinary, "bax", "--language", "fre")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "pronounce-en").symlink_to(model)
    assert "(there is: pronounce-en)." in error(capfdbinary, "bax", "--language", "fre")
    (tmp_path / "models" / "pronounce-11").symlink_to(tagged)
    assert run(capfdbinary, "bax") == run(capfdbinary, "bax", "--language", "en")
    assert run(capfdbinary, "bax", "--threshold", "0", "--language", "fre") != []
    scores = [run(capfdbinary, "bax", "--threshold", "0", "--scores", "--language", x) for x in
              ("fre", "fr", "French", "is")]  # fmt: skip
    assert scores[0] == scores[1] == scores[2] != scores[3]
    assert run(capfdbinary, "bax", "--language", "English") == run(capfdbinary, "bax")
    expected = "`--language` must be one of 'fre', 'ice', but is 'de'."
    assert error(capfdbinary, "bax", "--language", "de") == expected


def test_language_is_told_to_a_model_that_was_named(
    model: str, tagged: str, capfdbinary: Capture
) -> None:
    options = ["bax", "--threshold", "0", "--scores", "--model", tagged]
    scores = {run(capfdbinary, *options, "--language", x)[0] for x in ("fre", "ice")}
    assert len(scores) == 2
    assert "`--language` must be one of 'fre', 'ice', but is not" in error(capfdbinary, *options)
    sentence = error(capfdbinary, "bax", "--model", model, "--language", "fre")
    assert "`--language` must be left out with a model that has no language tags" in sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--num_beams", "0"], "`--num_beams` must be at least 1, but is 0."),
        (["--batch_size", "0"], "`--batch_size` must be at least 1, but is 0."),
        (["--n_best", "6"], "`--n_best` must be in [1, `--num_beams`] = [1, 5], but is 6."),
        (["--threshold", "nan"], "`--threshold` must be in [0, 1], but is nan."),
        (["bax", "-i", "x"], "`--input` must be left out with words, but is 'x'."),
        (["-i", "none"], "`--input` must be an existing file, but is 'none'."),
        (["-o", "none/x"], "The folder of an output file must exist, but that of 'none/x'"),
        (["--lexicon", "none"], "`--lexicon` must be an existing file, but is 'none'."),
        (["--model", "./none"], "`--model` must be a folder with a saved translation model or the"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(options: list[str], sentence: str, capfdbinary: Capture) -> None:
    assert error(capfdbinary, "--model", "none", *options).startswith(sentence)


@pytest.mark.parametrize("closed", [False, True])
def test_command_alone_does_not_wait_for_a_terminal(
    closed: bool, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(b"bax\n"))
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", None if closed else terminal)
    expected = "`WORD` must be given, or --input, or a pipe to read words from."
    assert error(capfdbinary, "--model", "none") == expected


def test_help_names_the_default_threshold(capfdbinary: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["pronounce", "--help"])
    assert f"(default: {DEFAULT_THRESHOLD})" in capfdbinary.readouterr().out.decode()


def test_output_is_none_of_the_files_that_are_read(
    model: str, tmp_path: Path, capfdbinary: Capture
) -> None:
    lexicon, words, link = tmp_path / "lexicon.tsv", tmp_path / "words", tmp_path / "link"
    lexicon.write_text("bax\tB\n")
    words.write_text("bax\n")
    os.link(words, link)
    given = ["pronounce", "--model", model, "-i", str(words), "-o"]
    assert main([*given, str(lexicon), "--lexicon", str(lexicon)]) == 2
    assert b"must not be the file of --lexicon, but is" in capfdbinary.readouterr().err
    assert main([*given, str(link)]) == 2
    assert b"must not be the input, but is" in capfdbinary.readouterr().err
    assert (lexicon.read_text(), words.read_text()) == ("bax\tB\n", "bax\n")
    with words.open() as source:
        done = subprocess.run(
            [sys.executable, "-m", "hf_qrnn", "pronounce", "--model", model, "-o", str(words)],
            stdin=source, capture_output=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert words.read_text() == "bax\n"


def test_damaged_input_leaves_the_output(model: str, tmp_path: Path, capfdbinary: Capture) -> None:
    packed, out = tmp_path / "words.gz", tmp_path / "out"
    packed.write_bytes(b"no gzip")
    out.write_text("mine")
    assert main(["pronounce", "--model", model, "-i", str(packed), "-o", str(out)]) == 2
    assert b"`--input` must be a .gz file, but" in capfdbinary.readouterr().err
    assert out.read_text() == "mine"
