"""hf_qrnn.cli.main: a line in is a line out, and every mistake is one sentence and status 2."""

import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration, kernels
from hf_qrnn.cli.main import main
from hf_qrnn.data.symbols import train_symbol_tokenizer
from hf_qrnn.data.tokenization import train_character_tokenizer
from hf_qrnn.metrics.scoring import score_translations
from hf_qrnn.metrics.table import TABLE
from hf_qrnn.translation.translator import load_translator

pytestmark = pytest.mark.usefixtures("engine_library")
Capture = pytest.CaptureFixture[bytes]
ALPHABET = "abcdefgh ijkl.ü\n\u2028"
LINES = ["abc", "", "hül dki", "a\u2028b", "lkj ihg", "  ", "b", "d\re", "fgh."]
TEXT = "".join(line + "\n" for line in LINES).encode()
PYTHON = [sys.executable, "-W", "error", "-m", "hf_qrnn"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _save(tmp_path_factory.mktemp("model"), newline_bias=0.0)


@pytest.fixture(scope="module")
def newline_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _save(tmp_path_factory.mktemp("newlines"), newline_bias=100.0)


def _save(folder: Path, newline_bias: float) -> str:
    tokenizer = train_character_tokenizer([ALPHABET])
    torch.manual_seed(2)  # some translations end by themselves, some at their limit
    config = QRNNConfig(
        vocab_size=len(tokenizer),
        embedding_size=12,
        hidden_size=12,
        encoder_layers=2,
        decoder_layers=2,
    )
    network = QRNNForConditionalGeneration(config)
    with torch.no_grad():
        network.lm_head.weight *= 4
        network.lm_head.bias[tokenizer.convert_tokens_to_ids("\n")] = newline_bias
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def _translate(
    monkeypatch: pytest.MonkeyPatch, capture: Capture, content: bytes, *arguments: str
) -> list[str]:
    """Run `translate` over `content`: the lines of standard output, each checked to be ended."""
    _feed(monkeypatch, content)
    assert main(["translate", *arguments]) == 0
    output = capture.readouterr().out.decode()
    assert output == "" or output.endswith("\n")
    return output.split("\n")[:-1]


def _without_line_ends(text: str) -> str:
    return text.replace("\n", " ").replace("\u2028", " ")


def _error(capture: Capture) -> str:
    output = capture.readouterr()
    errors = output.err.decode().splitlines()
    assert errors[-1].startswith("error: ")
    assert not any("Traceback" in line for line in errors)
    return errors[-1]


def test_process_writes_a_line_for_each_line(model: str) -> None:
    command = [*PYTHON, "translate", model]
    found = subprocess.run(command, input=b"a\n\nb\n", capture_output=True, env=ENVIRONMENT)
    assert found.returncode == 0
    lines = found.stdout.split(b"\n")
    assert len(lines) == 4
    assert lines[1] == lines[3] == b""
    assert lines[0]
    assert lines[2]
    errors = found.stderr.decode()
    assert errors.startswith("3 lines, 2 characters in ")  # no bar, no report of the loading
    assert errors.splitlines()[0].endswith(" characters/s)")
    assert errors.splitlines()[1].startswith("2 of 3 translations reached the length limit and")


def test_process_is_quiet_when_its_reader_leaves(model: str) -> None:
    script = 'set -o pipefail; printf "abc def\\n%.0s" {1..300} | "$@" --batch_size 2 | head -1'
    command = ["bash", "-c", script, "bash", *PYTHON, "translate", model]
    found = subprocess.run(command, capture_output=True, env=ENVIRONMENT)
    assert found.stdout.count(b"\n") == 1
    assert found.stderr == b""
    assert found.returncode == 141


def test_imports_are_light_and_help_is_fast() -> None:
    script = """
import sys
from hf_qrnn.cli.main import main
import hf_qrnn.translation.plots, hf_qrnn.metrics.scoring
try:
    main(["--help"])
finally:
    assert not {"matplotlib", "sacrebleu"} & set(sys.modules)
    hf_qrnn.translation.plots.attention_figure(["a"], ["b"], [[1.0]])
    assert "matplotlib.pyplot" not in sys.modules
"""
    command = [sys.executable, "-W", "error", "-c", script]
    found = subprocess.run(command, capture_output=True, env=ENVIRONMENT, text=True)
    assert found.returncode == 0
    assert all(name in found.stdout for name in ("translate", "score", "info"))
    assert found.stderr == ""


def test_order_and_results_are_the_translators(
    model: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Capture
) -> None:
    lines = _translate(monkeypatch, capfdbinary, TEXT, model)
    texts = [found.text for [found] in load_translator(model).translate(LINES)]
    assert lines == [_without_line_ends(text) for text in texts]
    assert len(set(lines)) > 4


@pytest.mark.parametrize("batch_size", ["1", "2", "8"])
def test_batch_size_changes_nothing(
    batch_size: str, model: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    expected = _translate(monkeypatch, capsysbinary, TEXT, model)
    found = _translate(monkeypatch, capsysbinary, TEXT, model, "--batch_size", batch_size)
    assert found == expected


def test_a_line_ends_at_a_newline_only(
    model: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    content = "a\u2028b\nc\rd\x85\x0be\n\nlast".encode()
    assert len(_translate(monkeypatch, capsysbinary, content, model)) == 4
    windows = _translate(monkeypatch, capsysbinary, b"\xef\xbb\xbfabc\r\nd\r\n", model)
    assert windows == _translate(monkeypatch, capsysbinary, b"abc\nd", model)
    assert _translate(monkeypatch, capsysbinary, b"", model) == []


def test_generated_line_ends_are_blanks(
    newline_model: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    lines = _translate(monkeypatch, capsysbinary, b"abc\nd\n", newline_model)
    assert lines == [" " * (2 * 4 + 50), " " * (2 * 2 + 50)]


@pytest.mark.parametrize("num_best", [1, 3])
def test_n_best_lines_with_falling_scores(
    num_best: int, model: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    options = ["--num_beams", "4", "--n_best", str(num_best), "--scores"]
    lines = _translate(monkeypatch, capsysbinary, TEXT, model, *options)
    assert len(lines) == num_best * len(LINES)
    results = load_translator(model).translate(LINES, num_beams=4, num_return_sequences=num_best)
    for index, found in enumerate(results):
        mine = [line.split("\t", 1) for line in lines[index * num_best : (index + 1) * num_best]]
        scores = [float(score) for score, _ in mine]
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([translation.score for translation in found], abs=1e-4)
        assert mine[0][1] == _without_line_ends(found[0].text)
    assert lines[num_best : 2 * num_best] == ["0.0000\t"] * num_best  # the empty line


def test_files_are_read_and_written(model: str, tmp_path: Path, capsysbinary: Capture) -> None:
    (tmp_path / "in.txt").write_bytes(TEXT)
    with gzip.open(tmp_path / "in.gz", "wb") as file:
        file.write(TEXT)
    for name in ("in.txt", "in.gz"):
        arguments = ["-i", str(tmp_path / name), "-o", str(tmp_path / f"{name}.out")]
        assert main(["translate", model, *arguments]) == 0
    assert (tmp_path / "in.txt.out").read_bytes().count(b"\n") == len(LINES)
    assert (tmp_path / "in.txt.out").read_bytes() == (tmp_path / "in.gz.out").read_bytes()
    output = capsysbinary.readouterr()
    assert output.out == b""
    assert f"{len(LINES)} lines, {sum(map(len, LINES))} characters in".encode() in output.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("output", ["-o", "", "--attention"])
def test_a_full_disk_is_told_with_its_file(model: str, tmp_path: Path, output: str) -> None:
    command = [*PYTHON, "translate", model, "-i", str(tmp_path / "in.txt")]
    (tmp_path / "in.txt").write_bytes(TEXT)
    name = {"-o": "/dev/full", "": "standard output", "--attention": str(tmp_path / "a.png")}[
        output
    ]
    if output == "--attention":
        (tmp_path / "a.png").symlink_to("/dev/full")
    command += [output, name] if output else []
    with open("/dev/full", "wb") as full:
        stdout = None if output else full
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert done.returncode == 2
    told = [line for line in done.stderr.decode().splitlines() if line.startswith("error")]
    assert told == [f"error: No space left on device: '{name}'."]


@pytest.mark.parametrize("kind", ["gz", "xz"])
@pytest.mark.parametrize("fault", ["cut", "spoilt"])
def test_a_compressed_file_that_breaks_off_is_told(
    fault: str, kind: str, model: str, tmp_path: Path, capsysbinary: Capture
) -> None:
    module = gzip if kind == "gz" else lzma
    lines = [f"{number} abc" for number in range(2000)]
    data = bytearray(module.compress("".join(f"{line}\n" for line in lines).encode()))
    if fault == "cut":
        del data[-20:]
    else:
        data[-6 if kind == "gz" else len(data) // 2] ^= 255
    (tmp_path / f"in.{kind}").write_bytes(data)
    assert main(["translate", model, "-i", str(tmp_path / f"in.{kind}")]) == 2
    said = capsysbinary.readouterr().err.decode().splitlines()
    assert said[-1].startswith("error: `--input` must be whole, but is damaged: ")


# Streams that are closed: services start programs so.
@pytest.mark.parametrize(
    ("closed", "command", "status", "sentence"),
    [
        ("<&-", "translate", 2, "`--input` must be given where standard input is closed, but is l"),
        ("<&-", "translate --interactive", 2, "`--input` must be given where standard input is cl"),
        (">&-", "translate -i {input}", 2, "Bad file descriptor: 'standard output'."),
        (">&-", "info", 2, "Bad file descriptor: 'standard output'."),
        (">&-", "translate -i {input} -o {output}", 0, None),
        ("2>&-", "translate -i {input}", 0, None),
        ("<&- >&- 2>&-", "translate", 2, None),
    ],
)
def test_closed_streams_end_in_a_sentence_at_most(
    closed: str, command: str, status: int, sentence: str | None, model: str, tmp_path: Path
) -> None:
    places = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    (tmp_path / "in").write_bytes(TEXT)
    words = [*PYTHON, *command.format(**places).split()]
    words.insert(6, model)
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *words]
    done = subprocess.run(shell, capture_output=True, env=ENVIRONMENT)
    said = done.stderr.decode()
    assert done.returncode == status, said
    assert "Traceback" not in said
    assert "Exception" not in said
    if sentence is not None:
        assert said.splitlines()[-1].startswith(f"error: {sentence}")
    if "2>" in closed:
        assert said == ""
    lines = (tmp_path / "out").read_bytes() if "-o" in command else done.stdout
    assert lines.count(b"\n") == (len(LINES) if status == 0 else 0)


@pytest.mark.parametrize("data", [b"e\xff\nabc\n", b"\xffabc"], ids=["first line", "only line"])
def test_output_keeps_what_it_had_where_nothing_can_be_translated(
    data: bytes, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.write_bytes(data)
    output.write_bytes(b"of yesterday\n")
    for arguments in (["translate", model], ["pronounce", "--model", model, "--threshold", "0"]):
        assert main([*arguments, "-i", str(source), "-o", str(output)]) == 2
        assert b"an invalid byte in line 1." in capsysbinary.readouterr().err
        assert output.read_bytes() == b"of yesterday\n"
        assert main([*arguments, "-i", str(source), "-o", str(tmp_path / "new")]) == 2
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("data", [b"", b"\n", b"abc\n"], ids=["no line", "a blank one", "one"])
def test_output_loses_what_it_had_when_all_went_well(
    data: bytes, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    expected = "".join(f"{x}\n" for x in _translate(monkeypatch, capsysbinary, data, model))
    output = tmp_path / "out"
    output.write_bytes(
        b"of yesterday, and longer than what is to come, by far and by farther\n" * 9
    )
    _feed(monkeypatch, data)
    assert main(["translate", model, "-o", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == expected
    _feed(monkeypatch, data)
    assert main(["translate", model, "-o", os.devnull]) == 0  # a device, which cannot be emptied


def test_invalid_bytes_are_named_after_the_lines_before_them(
    model: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    expected = _translate(monkeypatch, capsysbinary, b"abc\n\nd\n", model)
    _feed(monkeypatch, b"abc\n\nd\ne\xff\nf\n")
    assert main(["translate", model]) == 2
    output = capsysbinary.readouterr()
    assert output.out.decode().split("\n")[:-1] == expected
    assert b"error: `--input` must be UTF-8 text, but has an invalid byte in line 4." in output.err


def test_interactive_prompts_until_the_end(
    model: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    expected = _translate(monkeypatch, capsysbinary, b"abc\n\nd", model)
    _feed(monkeypatch, b"abc\n\nd")
    assert main(["translate", model, "--interactive"]) == 0
    output = capsysbinary.readouterr()
    assert output.out.decode().split("\n")[:-1] == expected
    prompts, cut = output.err.decode().splitlines()
    assert prompts == "> > > > "
    assert "of 3 translations reached the length limit" in cut


def test_pictures_of_the_first_line_with_text(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    names = [str(tmp_path / "attention.png"), str(tmp_path / "states.svg")]
    options = ["--attention", names[0], "--hidden_states", names[1]]
    assert len(_translate(monkeypatch, capsysbinary, b"\nab\ncd\n", model, *options)) == 3
    assert Path(names[0]).read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in Path(names[1]).read_bytes()
    _feed(monkeypatch, b"\n\n")
    assert main(["translate", model, *options]) == 2
    assert "must have a line with text" in _error(capsysbinary)


def test_loading_changes_no_global_switch(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging

    before = (logging.is_progress_bar_enabled(), logging.get_verbosity())
    _feed(monkeypatch, b"a\n")
    main(["translate", model, "--engine", "torch", "-o", os.devnull])
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before


def test_help_of_score_names_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    text = capsys.readouterr().out
    assert [m.label for m in TABLE if m.needs_translations and m.label not in text] == []


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_score_of_a_file(as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hypotheses, references = ["a b c d e", "Zwei \u2028x"], ["a b c d f", "Zwei \u2028x"]
    with gzip.open(tmp_path / "hyp.gz", "wb") as file:
        file.write("".join(line + "\n" for line in hypotheses).encode())
    (tmp_path / "ref").write_bytes("\n".join(references).encode())
    arguments = ["--hypotheses", str(tmp_path / "hyp.gz"), "--references", str(tmp_path / "ref")]
    assert main(["score", *arguments, *(["--json"] if as_json else [])]) == 0
    expected = score_translations(hypotheses, references)
    output = capsys.readouterr().out
    if as_json:
        assert json.loads(output) == expected.to_dict()
    else:
        assert output == f"{expected}\n"


def test_score_of_a_model(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "src").write_bytes(TEXT)
    assert main(["translate", model, "-i", str(tmp_path / "src"), "-o", str(tmp_path / "out")]) == 0
    files = ["--source", str(tmp_path / "src"), "--references", str(tmp_path / "out")]
    assert main(["score", "--model", model, *files, "--batch_size", "4"]) == 0
    output = capsys.readouterr()
    assert f"exact 100.00  % of {len(LINES)} lines" in output.out
    assert "characters/s" in output.err


def test_several_models_translate_as_one(
    model: str,
    newline_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: Capture,
) -> None:
    models = [model, newline_model]
    lines = _translate(monkeypatch, capsysbinary, TEXT, *models, "--num_beams", "2")
    together = load_translator(*models).translate(LINES, num_beams=2)
    assert lines == [_without_line_ends(found.text) for [found] in together]
    assert lines != _translate(monkeypatch, capsysbinary, TEXT, model, "--num_beams", "2")
    (tmp_path / "src").write_bytes(TEXT)
    (tmp_path / "ref").write_text("".join(line + "\n" for line in lines))
    files = ["--source", str(tmp_path / "src"), "--references", str(tmp_path / "ref")]
    assert main(["score", "--model", *models, *files, "--num_beams", "2"]) == 0
    assert b"exact 100.00  % of " in capsysbinary.readouterr().out


def test_info_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    output = capsys.readouterr().out
    assert f"torch         {torch.__version__}" in output
    lines = [line.split() for line in output.splitlines()]
    assert ["torch", "available"] in lines
    library = kernels.load()
    if library.path is None:
        assert f"compiled  {library.reason}" in output
        return
    assert ["native", "available"] in lines
    assert ["path", str(library.path)] in lines
    assert ["ABI", "target", "torch", "2.10"] in lines
    archs = library.info["cuda_archs"]
    assert ["CUDA", *([f"sm_{arch}" for arch in archs] or ["none"])] in lines
    if archs and not torch.cuda.is_available():
        assert ["native", "built,", "no", "device"] in lines


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["quantize"], "the following arguments are required: MODEL"),
        (["translate", "M", "--num_beams", "x"], "invalid int value: 'x'"),
        (["translate", "M", "--num_beams", "0"], "`--num_beams` must be at least 1, but is 0."),
        (["translate", "M", "--batch_size", "0"], "`--batch_size` must be at least 1, but is 0."),
        (["translate", "M", "--n_best", "0"], "`--n_best` must be at least 1, but is 0."),
        (
            ["translate", "M", "--n_best", "3", "--num_beams", "2"],
            "in [1, `--num_beams`] = [1, 2], but is 3.",
        ),
        (["translate", "M", "--attention", "a.jpg"], "one of .png, .svg, .pdf, but is 'a.jpg'."),
        (["translate", "M", "--attention", "no/a.png"], "that of 'no/a.png' does not."),
        (["translate", "M", "-o", "no/a"], "that of 'no/a' does not."),
        (["translate", "M", "-i", "none"], "`--input` must be an existing file, but is 'none'."),
        (["translate", "M", "-i", "a", "-o", "./a"], "must not be the input, but is './a' too."),
        (["translate", "M", "-i", "a", "--interactive"], "must be left out with --interactive"),
        (
            ["translate", "M", "N", "--hidden_states", "a.png"],
            "`--hidden_states` must be left out with several models, but is 'a.png'.",
        ),
        (
            ["score", "--references", "r", "--model", "M", "N", "--model", "O", "P"],
            "`--model` must be given once, but is given again with 'O P'",
        ),
        (["translate", "no/such/M"], "`MODEL` must be a folder with a saved translation model"),
        (["translate", "no/such/M"], "but 'no/such/M' is not there."),
        (["translate", "r", "--device", "tpu9"], "`--device` must be a device of this machine"),
        (["score", "--references", "r"], "Either `--hypotheses` or `--model` with `--source`"),
        (["score", "--references", "r", "--model", "M"], "Either `--hypotheses` or `--model`"),
        (
            ["score", "--references", "none", "--hypotheses", "r"],
            "`--references` must be an existing file, but is 'none'.",
        ),
        (
            ["score", "--references", "r", "--hypotheses", "none"],
            "`--hypotheses` must be an existing file, but is 'none'.",
        ),
        (
            ["score", "--references", "r", "--hypotheses", "r", "--compare", "latin"],
            "`--compare` must be UTF-8 text, but 'latin' has an invalid byte in line 1.",
        ),
        (
            ["score", "--references", "r", "--hypotheses", "r", "--compare", "two"],
            "`--compare` and `--references` must have the same number of lines",
        ),
        (
            ["score", "--references", "r", "--model", "no/M", "--source", "r"],
            "`--model` must be a folder with a saved translation model or the name of one",
        ),
        (["score", "--references", "one", "--hypotheses", "two"], "but have 2 and 1."),
        (["score", "--references", "one", "--model", "M", "--source", "two"], "have 2 and 1."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("r", "a\n"), ("one", "a\n"), ("two", "a\nb\n")):
        Path(name).write_text(content)
    Path("latin").write_bytes(b"\xfc\n")
    assert main(arguments) == 2
    assert sentence in _error(capsysbinary)
    assert capsysbinary.readouterr().out == b""


@pytest.mark.parametrize(("engine", "home"), [("native", "engine"), ("torch", "translation")])
def test_ctrl_c_ends_quietly(
    engine: str, home: str, model: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"hf_qrnn.{home}.translator.Translator.translate", interrupt)
    _feed(monkeypatch, b"a\n")
    assert main(["translate", model, "--engine", engine]) == 130
    assert capsysbinary.readouterr().err == b""


@pytest.fixture(scope="module")
def tagged_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tagged")
    tokenizer = train_symbol_tokenizer(["abc"], ["X1 Y Z"], languages=["eng", "fre"])
    torch.manual_seed(2)
    sizes = {"embedding_size": 8, "hidden_size": 8, "encoder_layers": 1, "decoder_layers": 1}
    config = QRNNConfig(vocab_size=len(tokenizer), **sizes)  # type: ignore[arg-type]
    QRNNForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_language_is_the_flag_of_the_lines_language(
    tagged_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Capture
) -> None:
    translator = load_translator(tagged_model)
    for language in ("eng", "fre"):
        wanted = [[x.text] for [x] in translator.translate(["ab", "c"], language=language)]
        lines = _translate(
            monkeypatch, capsysbinary, b"ab\nc\n", tagged_model, "--language", language
        )
        assert [[line] for line in lines] == wanted
        source, references = tmp_path / "source", tmp_path / "references"
        source.write_text("ab\nc\n")
        references.write_text("".join(f"{line}\n" for line in lines))
        given = ["--model", tagged_model, "--source", str(source), "--json"]
        given += ["--references", str(references), "--language", language]
        assert main(["score", *given]) == 0
        assert json.loads(capsysbinary.readouterr().out)["word_error_rate"] == 0.0


def test_wrong_language_is_refused_before_the_output_is_opened(
    tagged_model: str, model: str, tmp_path: Path, capsysbinary: Capture
) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    source.write_text("ab\n")
    output.write_text("kept")
    paths = ["-i", str(source), "-o", str(output)]
    assert main(["translate", tagged_model, *paths]) == 2
    assert (
        _error(capsysbinary) == "error: `--language` must be one of 'eng', 'fre', but is not given."
    )
    assert main(["translate", model, *paths, "--language", "fre"]) == 2
    assert "`--language` must be left out with a model that has no language tags" in _error(
        capsysbinary
    )
    assert output.read_text() == "kept"
    given = ["--hypotheses", str(source), "--references", str(source), "--language", "fre"]
    assert main(["score", *given]) == 2
    assert "`--language` must be left out with --hypotheses" in _error(capsysbinary)


def test_pipes_of_the_shell_are_files(model: str, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(TEXT)
    command = "{0} -m hf_qrnn {1} <(cat lines) {2}"
    parts = {
        "translate": ["translate " + model + " -i", ""],
        "score": ["score --references", "--hypotheses <(cat lines)"],
    }
    found = {}
    for name, (front, rest) in parts.items():
        done = subprocess.run(
            ["bash", "-c", command.format(sys.executable, front, rest)],
            capture_output=True, cwd=tmp_path, env=ENVIRONMENT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[name] = done.stdout
    assert found["translate"].count(b"\n") == len(LINES)
    assert b"chrF  100.00" in found["score"]
