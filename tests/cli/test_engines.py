"""`--engine`: the engine where it can do what is asked, and the same lines as by torch."""

import io
import json
import lzma
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import saved

from hf_qrnn import train_character_tokenizer
from hf_qrnn.cli import engines
from hf_qrnn.cli.main import main
from hf_qrnn.data.symbols import train_symbol_tokenizer
from hf_qrnn.engine import Sampling, Translator, choice
from hf_qrnn.engine import translator as engine_translator
from hf_qrnn.translation import plots

pytestmark = pytest.mark.usefixtures("engine_library")

TEXT = "der hund schläft.\n\nein a\n  \nzwei µ, drei\r\nein längerer satz, der mehr sagt.\nb\n"
NOT_BUILT = "the engine's library is not built: run `python -m hf_qrnn.kernels.build`"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("model"))


def make(folder: Path, **generation: Any) -> str:
    """Save a model, with fields of its generation config."""
    saved(folder, 7)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **generation}))
    return str(folder)


def run(monkeypatch: pytest.MonkeyPatch, capture: Any, *arguments: str) -> tuple[str, str]:
    """Translate `TEXT`: standard output and standard error."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert main(["translate", *arguments]) == 0
    return capture.readouterr()


def refuse_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail where the model is loaded by torch."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded by torch")

    monkeypatch.setattr(engines, "load", fail)


def spoil_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail where the engine loads a model."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded by the engine")

    monkeypatch.setattr(engine_translator.Translator, "__init__", fail)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--num_beams 4",
        "--num_beams 4 --n_best 3 --batch_size 2",
        "--max_new_tokens 5 --num_beams 2",
        "--batch_size 1 --device cpu",
        "--batch_size 2 --threads 3",
        "--interactive",
    ],
)
def test_lines_are_those_of_torch(
    flags: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, told = run(monkeypatch, capsys, model, "--engine", "native", *flags.split())
    expected, also_told = run(monkeypatch, capsys, model, "--engine", "torch", *flags.split())
    assert found == expected
    assert len(set(found.splitlines())) > 4
    # All but the time.
    assert told.splitlines()[1:] == also_told.splitlines()[1:]


@pytest.mark.parametrize("flags", ["", "--num_beams 3 --n_best 2"])
def test_scores_are_those_of_torch_up_to_rounding(
    flags: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = []
    for engine in ("native", "torch"):
        arguments = [model, "--scores", "--engine", engine, *flags.split()]
        output, _ = run(monkeypatch, capsys, *arguments)
        columns.append([line.split("\t") for line in output.splitlines()])
    found, expected = columns
    assert [text for _, text in found] == [text for _, text in expected]
    wanted = [float(score) for score, _ in expected]
    assert [float(score) for score, _ in found] == pytest.approx(wanted, rel=1e-5, abs=1.01e-4)
    assert min(wanted) < 0


def test_compressed_files_are_read_and_written(model: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.xz", tmp_path / "out"
    source.write_bytes(lzma.compress(TEXT.encode()))
    outputs = []
    for engine in ("native", "torch"):
        files = ["-i", str(source), "-o", str(target)]
        assert main(["translate", model, "--engine", engine, *files]) == 0
        outputs.append(target.read_bytes())
    assert outputs[0] == outputs[1]
    assert outputs[0].count(b"\n") == TEXT.count("\n")


@pytest.fixture
def no_more_threads() -> Iterator[None]:
    """Set back the threads of torch, which `--threads` sets for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("no_more_threads")
def test_threads_are_those_of_torch_too(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, capsys, model, "--engine", "torch", "--max_new_tokens", "2", "--threads", "3")
    assert torch.get_num_threads() == 3
    for command in (["translate", model], ["pronounce", "a"], ["distill", model, "-o", "a.tsv"]):
        flags = ["--source", "a"] if command[0] == "distill" else []
        assert main([*command, *flags, "--threads", "0"]) == 2
        assert capsys.readouterr().err == "error: `--threads` must be at least 1, but is 0.\n"


@pytest.mark.parametrize("num_beams", ["1", "3"])
def test_several_models_are_an_ensemble_as_by_torch(
    num_beams: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved(tmp_path / "other", 8)
    models, lines = [model, str(tmp_path / "other")], []
    for engine in ("native", "torch"):
        options = ["--engine", engine, "--num_beams", num_beams, "--max_new_tokens", "12"]
        lines.append(run(monkeypatch, capsys, *models, *options)[0])
    assert lines[0] == lines[1]
    assert lines[0] != run(monkeypatch, capsys, model, *options)[0]
    # No fault of the engine's: what is no ensemble is none by torch.
    train_character_tokenizer(["abc"]).save_pretrained(tmp_path / "other")
    told = []
    for engine in ("native", "auto", "torch"):
        assert main(["translate", *models, "--engine", engine, "--device", "cpu"]) == 2
        told.append(capsys.readouterr().err)
    assert len(set(told)) == 1
    assert told[0].startswith("error: All models of an ensemble must have the same tokenizer")


@pytest.mark.parametrize("command", ["score", "distill"])
def test_score_and_distill_use_the_engine(
    command: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "source", tmp_path / "out.tsv"
    source.write_text(TEXT.replace("\r", ""))
    arguments = {
        "score": ["score", "--model", model, "--references", str(source), "--num_beams", "2"],
        "distill": ["distill", model, "-o", str(out), "--overwrite", "--n_best", "2"],
    }[command]
    arguments += ["--source", str(source), "--max_new_tokens", "9"]
    found = []
    for engine in ("torch", "native"):
        if engine == "native":
            refuse_torch(monkeypatch)
        assert main([*arguments, "--engine", engine]) == 0
        told = capsys.readouterr()
        lines = [line for line in told.err.splitlines() if "lines/s" not in line]
        table = [line.split("\t") for line in out.read_text().splitlines()] if out.exists() else []
        texts = [row[:2] for row in table]
        found.append((told.out, lines, texts, [float(row[2]) for row in table]))
    assert found[0][:3] == found[1][:3]
    assert found[0][3] == pytest.approx(found[1][3], abs=1e-4)
    assert found[0][0] or found[0][2]
    command_line = [sys.executable, "-W", "error", "-c", PROGRAM, *arguments, "--engine", "native"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, found[1][0]), done.stderr


PROGRAM = """
import sys
sys.modules.update(torch=None, transformers=None)
from hf_qrnn.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_translates_where_torch_cannot_be_imported(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = run(monkeypatch, capsys, model, "--engine", "torch")
    command = [sys.executable, "-W", "error", "-c", PROGRAM, "translate", model, "--device", "cpu"]
    done = subprocess.run(command, input=TEXT.encode(), capture_output=True, check=False)
    assert (done.returncode, done.stdout.decode()) == (0, expected), done.stderr.decode()


# ------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("has_gpu", "visible", "flags", "is_native"),
    [
        (False, None, "", True),
        (False, None, "--engine torch", False),
        (True, None, "", False),
        (True, "0", "", False),
        (True, "", "", True),
        (True, "-1", "", True),
        (True, None, "--device cpu", True),
        (True, None, "--engine native", True),
        (False, None, "--device cpu:0", False),  # torch knows what that is
    ],
)
def test_auto_is_the_engine_where_no_gpu_is_there_or_asked_for(
    has_gpu: bool,
    visible: str | None,
    flags: str,
    is_native: bool,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    driver = tmp_path / "driver"
    if has_gpu:
        driver.touch()
    monkeypatch.setattr(choice, "_GPU_PATHS", (str(driver),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (refuse_torch if is_native else spoil_engine)(monkeypatch)
    _, told = run(monkeypatch, capsys, model, "--max_new_tokens", "2", *flags.split())
    assert "engine" not in told


@pytest.mark.parametrize("flag", ["--attention", "--hidden_states"])
def test_pictures_are_those_of_torch(
    flag: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn: list[list[Any]] = []
    for name in ("attention_figure", "hidden_states_figure"):
        monkeypatch.setattr(plots, name, lambda *parts: drawn.append(list(parts)))
    monkeypatch.setattr(plots, "save_figure", lambda *_: None)
    for engine in ("native", "torch"):
        run(monkeypatch, capsys, model, "--engine", engine, flag, str(tmp_path / "map.svg"))
    found, expected = drawn
    assert found[:-1] == expected[:-1]
    np.testing.assert_allclose(found[-1], expected[-1].numpy(), atol=1e-4)


def test_picture_needs_no_torch(model: str, tmp_path: Path) -> None:
    picture = tmp_path / "map.svg"
    flags = ["--attention", str(picture), "--max_new_tokens", "3"]
    command = [sys.executable, "-W", "error", "-c", PROGRAM, "translate", model, "--device", "cpu"]
    done = subprocess.run([*command, *flags], input=b"ein a", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert picture.read_text().startswith("<?xml")


# ------------------------------------------------------------------ what the engine alone has


class Pieces(io.BytesIO):
    """What is written, cut where it was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[bytes] = []

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


def test_interactive_lines_are_written_as_they_come(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, told = run(monkeypatch, capsys, model, "--engine", "torch", "--interactive")
    pieces = Pieces()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pieces))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert main(["translate", model, "--engine", "native", "--interactive"]) == 0
    assert pieces.getvalue().decode() == expected
    # Not a line at once: about as many pieces as there are characters.
    assert len(set(pieces.flushed)) > len(expected) / 2
    assert capsys.readouterr().err.splitlines() == told.splitlines()


@pytest.mark.parametrize("flags", ["--num_beams 2", "--scores"])
def test_what_is_no_stream_is_written_whole(
    flags: str, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"{flags} --max_new_tokens 9"
    lines = [
        run(monkeypatch, capsys, model, "--engine", "native", *flags.split(), *more)[0]
        for more in ([], ["--interactive"])
    ]
    assert lines[0] == lines[1]


def test_samples_are_drawn_by_a_seed(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines(*flags: str) -> list[str]:
        given = [model, "--device", "cpu", "--sample", "--max_new_tokens", "9", *flags]
        return run(monkeypatch, capsys, *given)[0].splitlines()

    first = lines("--n_best", "3")
    assert len(first) == 3 * len(TEXT.splitlines())
    assert first == lines("--n_best", "3", "--seed", "0", "--batch_size", "1", "--top_k", "50")
    assert first != lines("--n_best", "3", "--seed", "1")
    greedy, _ = run(monkeypatch, capsys, model, "--max_new_tokens", "9", "--engine", "native")
    assert lines("--top_k", "1") == greedy.splitlines()
    assert lines("--top_p", "1e-9") == lines("--temperature", "1e-6") == greedy.splitlines()
    options = {"max_new_tokens": 9, "num_return_sequences": 3, "sampling": Sampling()}
    found = Translator(model).translate(TEXT.replace("\r", "").splitlines(), **options)
    assert first == [one.text for row in found for one in row]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--seed 3", "`--seed` must be left out without --sample, but is 3."),
        ("--top_p 0.5", "`--top_p` must be left out without --sample, but is 0.5."),
        ("--sample --seed -1", "`--seed` must be an integer of at least 0, but is -1."),
        ("--sample --temperature 0", "`--temperature` must be positive, but is 0.0."),
        ("--sample --num_beams 2", "`--num_beams` must be 1 with --sample, but is 2."),
        ("--sample --n_best 0", "`--n_best` must be at least 1, but is 0."),
        (
            "--sample --attention a.png",
            "`--attention` must be left out with --sample, but is 'a.png'.",
        ),
        (
            "--sample --engine torch",
            "`--engine` must be 'auto' or 'native' with --sample, but is 'torch'.",
        ),
        (
            "--sample --device cuda",
            "`--sample` must be left out where the engine does not compute, but is given.",
        ),
    ],
)
def test_sampling_is_refused_in_one_sentence(
    arguments: str,
    sentence: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refuse_torch(monkeypatch)
    output = tmp_path / "output"
    assert main(["translate", model, *arguments.split(), "-o", str(output)]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert not output.exists()


def test_model_that_the_engine_refuses_is_not_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path, min_length=3)
    assert main(["translate", folder, "--sample"]) == 2
    assert capsys.readouterr().err == (
        "error: `--sample` must be left out where the engine does not compute, but is given: "
        "`min_length` must be absent for the engine, which does not have it, but is 3.\n"
    )


def test_language_is_told_to_a_model_with_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "model")
    letters = "abcdefghijklmnopqrstuvwxyz äöüß"
    tags = train_symbol_tokenizer([letters], [], target_tokens="char", languages=["deu", "isl"])
    tags.save_pretrained(folder)
    lines = []
    for engine, language in (("native", "deu"), ("torch", "deu"), ("native", "isl")):
        options = [folder, "--engine", engine, "--max_new_tokens", "6", "--language", language]
        lines.append(run(monkeypatch, capsys, *options)[0])
    assert lines[0] == lines[1] != lines[2]
    # Without the flag it must not translate as if there were no tags, nor empty an output.
    output = tmp_path / "output"
    for engine in ("native", "torch"):
        assert main(["translate", folder, "--engine", engine, "-o", str(output)]) == 2
        assert capsys.readouterr().err == (
            "error: `--language` must be one of 'deu', 'isl', but is not given.\n"
        )
    assert not output.exists()


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ({"min_length": 3}, "`min_length` must be absent for the engine, which does not have it"),
        ({"diversity_penalty": 0.5}, "`diversity_penalty` must be absent for the engine"),
    ],
)
def test_model_that_the_engine_refuses_is_translated_by_torch_with_a_sentence(
    field: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make(tmp_path, **field)
    options = [folder, "--device", "cpu", "--max_new_tokens", "6"]
    found, told = run(monkeypatch, capsys, *options)
    first, *others = told.splitlines()
    assert first.startswith(f"generate() computes, since the engine cannot: {sentence}")
    assert "engine" not in "".join(others)
    expected, told = run(monkeypatch, capsys, *options, "--engine", "torch")
    assert found == expected
    assert "engine" not in told


def test_adapter_is_loaded_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["translate", folder, "--engine", "native"]) == 2
    assert capsys.readouterr().err == (
        f"error: `--engine` must be 'auto' or 'torch' for '{folder}', but is 'native': 'model' "
        f"must be a model without an adapter for the engine, but is '{folder}'.\n"
    )


def test_model_that_nothing_can_load_gets_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    assert main(["translate", folder, "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: `MODEL` must be ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "{model} some/name --num_beams 2",
            "`MODEL` must be a folder for the engine, but is 'some/name'.",
        ),
        ("some/name", "`MODEL` must be a folder for the engine, but is 'some/name'."),
        ("{model} --device cuda", "`--device` must be cpu for the engine, but is 'cuda'."),
        (
            "{model} --language deu",
            "`--language` must be left out with a model that has no language tags, but is 'deu'.",
        ),
        (
            "{model} --engine fast",
            "`--engine` must be one of 'auto', 'native', 'torch', but is 'fast'.",
        ),
        (
            "{longer}",
            "`--engine` must be 'auto' or 'torch' for '{longer}', but is 'native': 'min_length' "
            "must be absent for the engine, which does not have it, but is 3.",
        ),
    ],
)
def test_native_says_why_not_and_opens_no_output(
    arguments: str,
    sentence: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    longer, output = make(tmp_path / "longer", min_length=3), tmp_path / "output"
    refuse_torch(monkeypatch)
    given = arguments.format(model=model, longer=longer).split()
    assert main(["translate", "--engine", "native", *given, "-o", str(output)]) == 2
    assert capsys.readouterr().err == f"error: {sentence.format(longer=longer)}\n"
    assert not output.exists()


def test_numpy_computes_where_there_is_no_library(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = run(monkeypatch, capsys, model, "--engine", "native")

    def fail(*_: object, **__: object) -> None:
        raise OSError(NOT_BUILT)

    monkeypatch.setattr(engine_translator, "NativeNetwork", fail)
    # isinstance asks for a class.
    monkeypatch.setattr(engine_translator.Translator, "_own_decoder", _numpy_decoder)
    refuse_torch(monkeypatch)
    found, told = run(monkeypatch, capsys, model, "--device", "cpu")
    assert found == expected
    assert told.splitlines()[0] == f"the engine computes in NumPy, which is slower: {NOT_BUILT}"
    assert main(["translate", model, "--engine", "native"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: `--engine` must be 'auto' or 'torch' for ")
    assert NOT_BUILT.replace("`", "'") in line


def _numpy_decoder(self: Any, rows: list[list[int]], rows_each: int, stop: Any) -> Any:
    return engine_translator.NumpyDecoder(self._network, rows, rows_each, stop)
