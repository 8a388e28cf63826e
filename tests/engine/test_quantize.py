"""`hf-qrnn quantize`: a whole folder or none, which loads everywhere; lying folders are refused."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from engine_models import floats_of_the_box, save, saved
from safetensors.numpy import load_file, save_file
from sources import ROOT
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_qrnn import QRNNConfig, QRNNForCausalLM, QRNNForConditionalGeneration, QRNNModel
from hf_qrnn.cli.main import main
from hf_qrnn.engine import Translator
from hf_qrnn.engine.quantize import quantize
from hf_qrnn.hub.files import shared_files

pytestmark = pytest.mark.usefixtures("engine_library")
Tensors = dict[str, npt.NDArray[Any]]
BATCH = {
    "input_ids": torch.tensor([[5, 9, 7, 1], [8, 1, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    "decoder_input_ids": torch.tensor([[3, 6, 9], [3, 5, 4]]),
}


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**BATCH).logits
    return logits


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model of all kinds of layers, with a card."""
    model = tmp_path / "model"
    saved(model, 0, attention_layers="all", feed_forward_size=10, num_attention_heads=2)
    (model / "README.md").write_text(
        "---\nlicense: mit\nmodel-index:\n- name: x\n  results:\n  - value: 37\ntags:\n- qrnn\n"
        "---\n\n# A model\n\nBLEU 37\n"
    )
    for name in ("test.json", "metrics.jsonl", "run.json"):
        (model / name).write_text("{}\n")
    return model


# ------------------------------------------------------------------ what is written


def test_matrices_become_rows_of_int8_and_vectors_stay(folder: Path) -> None:
    before = load_file(folder / "model.safetensors")
    output = folder.parent / "int8"
    sizes = quantize(folder, output)
    after = load_file(output / "model.safetensors")
    assert sizes == tuple((x / "model.safetensors").stat().st_size for x in (folder, output))
    matrices = {name for name, weight in before.items() if weight.ndim == 2}
    assert matrices
    assert after.keys() == before.keys() | {f"{name}_scale" for name in matrices}
    for name, weight in before.items():
        if name not in matrices:
            np.testing.assert_array_equal(after[name], weight)
            continue
        assert after[name].dtype == np.int8
        scales = after[f"{name}_scale"]
        assert scales.dtype == np.float32
        assert (abs(after[name] * scales[:, None] - weight) <= 0.501 * scales[:, None]).all()


def test_folder_is_whole_and_claims_no_scores(folder: Path) -> None:
    output = folder.parent / "int8"
    quantize(folder, output)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in output.iterdir()} == names - {
        "test.json", "metrics.jsonl", "run.json",
    }  # fmt: skip
    for name in names - {"README.md", "config.json", "model.safetensors"}:
        if (output / name).exists():
            assert (output / name).read_bytes() == (folder / name).read_bytes()
    card = (output / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\ntags:\n- qrnn\n---\n\n> The weights")
    assert "were made of.\n\n# A model\n\nBLEU 37\n" in card
    assert shared_files(output)  # a push would take it


def test_code_in_the_folder_is_this_releases(folder: Path) -> None:
    (folder / "modeling_qrnn.py").write_text("old = 1\n")
    (folder / "own.py").write_text("own = 1\n")
    output = folder.parent / "int8"
    quantize(folder, output)
    package = Path(sys.modules["hf_qrnn"].__path__[0]) / "model"
    assert (output / "modeling_qrnn.py").read_bytes() == (package / "modeling_qrnn.py").read_bytes()
    assert not (output / "own.py").exists()


def test_bfloat16_is_stored_too_and_loads_as_float32(tmp_path: Path) -> None:
    model = saved(tmp_path / "wide", 2)
    save(model.to(torch.bfloat16), tmp_path / "half")
    quantize(tmp_path / "half", tmp_path / "int8")
    assert json.loads((tmp_path / "int8" / "config.json").read_text())["dtype"] == "float32"
    loaded = QRNNForConditionalGeneration.from_pretrained(tmp_path / "int8", dtype="auto")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(logits_of(loaded), logits_of(model.float()), atol=0.3, rtol=0.1)


def test_nothing_of_torch_is_imported(folder: Path) -> None:
    program = (
        "import sys; sys.modules.update(torch=None, transformers=None);"
        "from hf_qrnn.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "quantize", str(folder), "-o"]
    done = subprocess.run(
        [*command, str(folder.parent / "int8")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"weights of [\d.]+ MB stored as int8, [\d.]+ MB: .*int8\n", done.stderr)


def test_info_says_int8(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder.parent / "int8"
    quantize(folder, output)
    said = []
    for path in (folder, output):
        capsys.readouterr()
        assert main(["info", str(path)]) == 0
        said.append(dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()))
    tensors = load_file(output / "model.safetensors").values()
    int8 = sum(tensor.size for tensor in tensors if tensor.dtype == np.int8)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    assert said[1]["class"] == "QRNNForConditionalGeneration"
    assert f"{int8:,} int8" in said[1]["weights"]
    assert said[1]["size"] == f"{size / 1e6:.1f} MB"
    total = sum(tensor.size for tensor in load_file(folder / "model.safetensors").values())
    assert said[0]["weights"] == f"{total:,} float32"


# ------------------------------------------------------------------ what is refused

CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "full": (
        lambda root: (root / "int8").mkdir() or (root / "int8" / "x").touch(),
        "`--output` must be a new folder or an empty one, but is '{root}/int8'.",
    ),
    "file": (
        lambda root: (root / "int8").touch(),
        "`--output` must be a new folder or an empty one, but is '{root}/int8'.",
    ),
    "no config": (
        lambda root: (root / "model" / "config.json").unlink(),
        "`MODEL` must be a folder with a saved translation model, but is '{root}/model'.",
    ),
    "language model": (
        lambda root: QRNNForCausalLM(
            QRNNConfig(vocab_size=9, hidden_size=4, embedding_size=4)
        ).save_pretrained(root / "model"),
        "`is_encoder_decoder` must be true for the engine, which translates, but is False.",
    ),
    "int8": (
        lambda root: save_file(
            {"x": np.ones((2, 2), np.int8)}, root / "model" / "model.safetensors"
        ),
        "`MODEL` must be a folder with floating-point weights, but is '{root}/model, of int8'.",
    ),
    "no weights": (
        lambda root: (root / "model" / "model.safetensors").unlink(),
        "The model must have weights, but there is no `model.safetensors`.",
    ),
    "NaN": (
        lambda root: change(root / "model", "lm_head.bias", lambda x: x * np.nan),
        "The weight `lm_head.bias` must be of finite numbers, but is not.",
    ),
    "shape": (
        lambda root: change(root / "model", "lm_head.bias", lambda x: x[1:]),
        "The weight `lm_head.bias` must be of shape [37], as its config says, but is of [36].",
    ),
}


def change(folder: Path, name: str, do: Callable[[Any], Any]) -> None:
    """Change a weight of a folder's file; None takes it out."""
    tensors = load_file(folder / "model.safetensors")
    changed = do(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("case", CASES)
def test_refusals_are_one_sentence_and_change_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "model", 0)
    spoil, sentence = CASES[case]
    spoil(tmp_path)
    capsys.readouterr()
    before = contents(tmp_path)
    assert main(["quantize", str(tmp_path / "model"), "-o", str(tmp_path / "int8")]) == 2
    assert capsys.readouterr() == ("", f"error: {sentence.format(root=tmp_path)}\n")
    assert contents(tmp_path) == before


def test_output_is_neither_inside_the_model_nor_nowhere(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder.parent)
    (folder.parent / "link").symlink_to(folder)
    for output, rule in (
        (folder / "int8", "outside of the model's folder, "),
        (folder, "outside of the model's folder, "),
        (folder.parent / "link" / "int8", "outside of the model's folder, "),
        (folder.parent / "absent" / "int8", "in a folder that is there, but is "),
    ):
        assert main(["quantize", str(folder), "-o", str(output)]) == 2
        found = capsys.readouterr().err
        assert found.startswith(f"error: `--output` must be {rule}")
        assert found.count("\n") == 1
    (folder.parent / "link").unlink()
    assert contents(folder.parent) == before


def test_the_folder_that_one_is_in_is_not_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "here").mkdir()
    monkeypatch.chdir(folder.parent / "here")
    for output in (".", str(folder.parent / "here")):
        assert main(["quantize", str(folder), "-o", output]) == 2
        assert capsys.readouterr().err == (
            f"error: `--output` must be another folder than the one you are in, but is '{output}'."
            "\n"
        )
    assert [path.name for path in folder.parent.iterdir()] == ["model", "here"]


def test_any_name_that_the_disk_takes_is_taken(folder: Path) -> None:
    output = folder.parent / ("x" * 255)
    quantize(folder, output)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model", output.name]


def test_quantised_again_a_model_has_the_same_tokens(folder: Path) -> None:
    places = [folder.parent / name for name in ("int8", "floats", "again")]
    quantize(folder, places[0])
    loaded = AutoModelForSeq2SeqLM.from_pretrained(places[0])
    save(loaded, places[1])
    quantize(places[1], places[2])
    texts = ["der hund", "ein haus, das steht.", "a"]
    expected = Translator(places[0]).translate(texts, num_beams=3)
    assert Translator(places[2]).translate(texts, num_beams=3) == expected
    once, twice = (load_file(place / "model.safetensors") for place in (places[0], places[2]))
    for name, weight in once.items():
        np.testing.assert_allclose(twice[name], weight, rtol=1e-6)


def test_a_disk_that_is_full_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr("shutil.copyfile", copy)
    with pytest.raises(OSError, match="No space left"):
        quantize(folder, folder.parent / "int8")
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_an_empty_folder_is_filled(folder: Path) -> None:
    (folder.parent / "int8").mkdir()
    quantize(folder, folder.parent / "int8")
    assert (folder.parent / "int8" / "config.json").is_file()


# ------------------------------------------------------------------ lying folders

MATRIX = "model.decoder.layers.0.layer.convolution.weight"
LIES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "scales missing": (f"{MATRIX}_scale", lambda x: None),
    "too few scales": (f"{MATRIX}_scale", lambda x: x[1:]),
    "a column of scales": (f"{MATRIX}_scale", lambda x: x[:, None]),
    "scales of NaN": (f"{MATRIX}_scale", lambda x: x * np.nan),
    "infinite scales": (f"{MATRIX}_scale", lambda x: x * np.inf),
    "scales of 0": (f"{MATRIX}_scale", lambda x: x * 0),
    "scales below 0": (f"{MATRIX}_scale", lambda x: -x),
    "scales of integers": (f"{MATRIX}_scale", lambda x: x.astype(np.int32)),
    "another shape": (MATRIX, lambda x: x[:, 1:]),
    "a bias of int8": ("lm_head.bias", lambda x: x.astype(np.int8)),
    "matrix missing": (MATRIX, lambda x: None),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_folders_are_refused_by_a_sentence(lie: str, tmp_path: Path) -> None:
    saved(tmp_path / "model", 0)
    quantize(tmp_path / "model", tmp_path / "int8")
    name, do = LIES[lie]
    change(tmp_path / "int8", name, do)
    with pytest.raises(ValueError, match=re.escape(f"`{name.removesuffix('_scale')}")) as found:
        Translator(tmp_path / "int8")
    assert "\n" not in str(found.value)
    if lie in ("another shape", "matrix missing"):  # transformers' own words
        return
    with pytest.raises(ValueError, match=re.escape(f"`{name.removesuffix('_scale')}")) as found:
        QRNNForConditionalGeneration.from_pretrained(tmp_path / "int8")
    assert "\n" not in str(found.value)


# ------------------------------------------------------------------ from_pretrained


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model and its folder of int8."""
    root = tmp_path_factory.mktemp("pair")
    changes = {"hidden_size": 48, "attention_layers": "all", "pooling": "ifo", "residual": True}
    model = saved(root / "model", 1, num_attention_heads=2, dense_connections=False, **changes)
    quantize(root / "model", root / "int8")
    return model, root / "int8"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"dtype": "auto"},
        {"low_cpu_mem_usage": True},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"use_safetensors": True},
        {"trust_remote_code": True},
    ],
    ids=str,
)
def test_folder_loads_as_floats(arguments: dict[str, Any], pair: tuple[Any, Path]) -> None:
    model, folder = pair
    for kind in (QRNNForConditionalGeneration, AutoModelForSeq2SeqLM):
        loaded, report = kind.from_pretrained(folder, output_loading_info=True, **arguments)
        assert not any(report.values())
        stored = load_file(folder / "model.safetensors")
        for name, weight in loaded.state_dict().items():
            expected = stored[name].astype(np.float32)
            if f"{name}_scale" in stored:
                expected = expected * stored[f"{name}_scale"][:, None]
            np.testing.assert_array_equal(weight.numpy(), expected)
        error = (logits_of(loaded) - logits_of(model)).pow(2).mean().sqrt() / logits_of(model).std()
        assert 0 < error < 0.05


def test_other_heads_and_types_load_it(pair: tuple[Any, Path]) -> None:
    _, folder = pair
    whole = QRNNForConditionalGeneration.from_pretrained(folder)
    base = QRNNModel.from_pretrained(folder)
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[f"model.{name}"])
    half = QRNNForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    for name, weight in half.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name].to(torch.bfloat16))


def test_weights_in_memory_load_it(pair: tuple[Any, Path]) -> None:
    from safetensors.torch import load_file as load_tensors

    _, folder = pair
    whole = QRNNForConditionalGeneration.from_pretrained(folder)
    state_dict = load_tensors(folder / "model.safetensors")
    names = set(state_dict)
    given = QRNNForConditionalGeneration.from_pretrained(
        None, config=whole.config, state_dict=state_dict
    )
    assert torch.equal(logits_of(given), logits_of(whole))
    assert set(state_dict) == names  # an argument is left as it was


def test_layers_that_stay_on_disk_are_floats(pair: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = pair
    whole = QRNNForConditionalGeneration.from_pretrained(folder)
    places = {"model.shared": "cpu", "model.encoder": "cpu", "model.decoder": "cpu"}
    offloaded = QRNNForConditionalGeneration.from_pretrained(
        folder, device_map={**places, "lm_head": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    torch.testing.assert_close(logits_of(offloaded), logits_of(whole))


def test_saved_again_it_is_a_model_of_floats(pair: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = pair
    loaded = QRNNForConditionalGeneration.from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "floats")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "floats")
    tensors = load_file(tmp_path / "floats" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert not any(name.endswith("_scale") for name in tensors)
    # And stored once more it is the same integers.
    quantize(tmp_path / "floats", tmp_path / "again")
    first, again = (load_file(x / "model.safetensors") for x in (folder, tmp_path / "again"))
    for name, tensor in first.items():
        np.testing.assert_allclose(again[name], tensor, rtol=1e-6)


def test_the_folders_own_code_is_enough(pair: tuple[Any, Path]) -> None:
    _, folder = pair
    program = (
        "import sys; sys.modules['hf_qrnn'] = None\n"
        "import torch\n"
        "from transformers import AutoModelForSeq2SeqLM\n"
        f"model = AutoModelForSeq2SeqLM.from_pretrained({str(folder)!r}, trust_remote_code=True)\n"
        "ids = torch.tensor([[5, 9, 7, 1]])\n"
        "print(float(model(input_ids=ids, decoder_input_ids=ids).logits.sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([[5, 9, 7, 1]])
    with torch.no_grad():
        model = QRNNForConditionalGeneration.from_pretrained(folder)
        expected = float(model(input_ids=ids, decoder_input_ids=ids).logits.sum())
    assert float(done.stdout) == pytest.approx(expected, abs=1e-3)


def test_commands_take_the_folder_by_either_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = str(tmp_path / "int8"), tmp_path / "words"
    words.write_text("back\ncab\n" * 4)
    quantize(floats_of_the_box("pronounce-en", tmp_path / "floats"), folder)
    outputs = []
    for engine in ("native", "torch"):
        assert main(["translate", folder, "--engine", engine, "-i", str(words)]) == 0
        found = capsys.readouterr()
        assert "generate() computes" not in found.err
        outputs.append(found.out)
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0].splitlines())) == 2


def test_what_int8_changes_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ROOT / "models" / "pronounce-en" / "sample.tsv"
    lines = sample.read_text("utf-8").splitlines()[:20]
    for name, column in (("words", 0), ("phones", 1)):
        text = "".join(f"{line.split(chr(9))[column]}\n" for line in lines)
        (tmp_path / name).write_text(text, "utf-8")
    floats = str(floats_of_the_box("pronounce-en", tmp_path / "floats"))
    int8 = str(tmp_path / "int8")
    files = ["--source", str(tmp_path / "words"), "--references", str(tmp_path / "phones")]
    assert main(["quantize", floats, "-o", int8, *files, "--num_beams", "2"]) == 0
    found = capsys.readouterr()
    assert "stored as int8" in found.err
    count, *scores = found.out.splitlines()
    (same,) = re.findall(r"^(\d+) of 20 translations are the same$", count)
    assert 15 <= int(same) <= 20
    assert bool(scores) == (int(same) < 20)


def test_two_that_differ_are_compared(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = tmp_path / "texts"
    texts.write_text("das ist gut\n" * 4)
    answers = iter(["das ist gut", "es geht", "so ist es", "ja"] * 2)

    class Speaker:
        def __init__(self, folder: str) -> None:
            self.changed = folder.endswith("int8")

        def translate(self, source: list[str], *, num_beams: int) -> list[list[Any]]:
            found = [next(answers) for _ in source]
            texts = ["other", *found[1:]] if self.changed else found
            return [[SimpleNamespace(text=text)] for text in texts]

    monkeypatch.setattr("hf_qrnn.engine.Translator", Speaker)
    given = ["--source", str(texts), "--references", str(texts)]
    assert main(["quantize", str(folder), "-o", str(tmp_path / "int8"), *given]) == 0
    count, *scores = capsys.readouterr().out.splitlines()
    assert count == "3 of 4 translations are the same"
    assert [line.split()[:2] for line in scores[:2]] == [["BLEU", "baseline"], ["BLEU", "system"]]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--source", "one"], "`--source` and `--references` must be given together, or neither."),
        (["--num_beams", "0"], "`--num_beams` must be at least 1, but is 0."),
        (
            ["--source", "one", "--references", "two"],
            "`--source` and `--references` must have the same number of lines, at least one, but "
            "have 1 and 2.",
        ),
        (["--source", "none", "--references", "two"], "`--source` must be"),
    ],
)
def test_texts_that_do_not_fit_leave_no_folder(
    words: list[str],
    sentence: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("one").write_text("a\n")
    Path("two").write_text("a\nb\n")
    assert main(["quantize", str(folder), "-o", "int8", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("int8").exists()
