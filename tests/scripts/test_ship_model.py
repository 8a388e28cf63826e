"""A run's model is put into the box whole, and its code is written anew."""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import saved
from pronouncing import save_pronouncer, sounds
from safetensors.torch import load_file

from hf_qrnn import engine
from hf_qrnn.data import box
from hf_qrnn.metrics.scoring import score_translations
from hf_qrnn.pronunciation import Pronouncer
from hf_qrnn.translation.translator import load_translator

PATH = Path(__file__).resolve().parents[2] / "scripts/ship_model.py"
WORDS = ["bake", "sax", "ki", "a'b"]


@pytest.fixture(scope="module")
def ship_model() -> Any:
    spec = importlib.util.spec_from_file_location("ship_model", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_pronouncer(tmp_path_factory.mktemp("run")))


def options(**given: Any) -> argparse.Namespace:
    names = (
        "run name sample sources targets other train_source title about license_file data_name "
        "data_license model_license write_errors errors"
    )
    empty: dict[str, Any] = dict.fromkeys(names.split())
    rest = {"refresh": False, "lines": 300, "weights": "bfloat16"}
    return argparse.Namespace(**{**empty, **rest, **given})


def test_model_is_saved_in_half_precision_with_its_sample(
    ship_model: Any, run_folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.tsv"
    rows = [f"{word}\t{' '.join(sounds(word))}" for word in WORDS]
    # Two right answers are one source; the last word is wrong, and the next one too many.
    rows.insert(1, "bake\tB B")
    rows[-1] = "a'b\tK"
    table.write_text("\n".join([*rows, "sss\tS S S"]) + "\n")
    given = options(run=run_folder, name="mine", sample=table, lines=4, box=tmp_path)
    ship_model.run(given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "table.tsv"]
    folder = tmp_path / "mine"
    assert {x.dtype for x in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert (folder / "sample.tsv").read_text().splitlines() == rows
    scores = json.loads((folder / "sample.json").read_text())
    phones = (4 + 2) / 2 + 4 + 2 + 1  # of several references the mean length counts
    assert scores["lines"] == 4
    assert scores["word_error_rate"] == 0.25
    assert scores["token_error_rate"] == pytest.approx(2 / phones, abs=1e-5)
    by_engine, by_torch = (
        Pronouncer(folder, device="cpu", engine=engine)("bake") for engine in ("auto", "torch")
    )
    assert by_engine.symbols == by_torch.symbols == sounds("bake")
    # Both compute in float32: sums in bfloat16 would differ by more than ten times as much.
    assert by_engine.confidence == pytest.approx(by_torch.confidence, abs=1e-6)


def test_code_is_written_anew(ship_model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "box" / "mine"
    folder.mkdir(parents=True)
    (folder / "gone_qrnn.py").write_text("old")
    (folder / "pooling_qrnn.py").write_text("old")
    (folder / "config.json").write_text("{}")
    other = tmp_path / "box" / "notes"  # no model: left alone
    other.mkdir()
    ship_model.run(options(refresh=True, box=tmp_path / "box"))
    assert list(other.iterdir()) == []
    there = {path.name: path.read_bytes() for path in folder.glob("*.py")}
    assert there == {path.name: path.read_bytes() for path in ship_model.CODE.glob("*_qrnn.py")}
    search = ship_model.CODE.parent / "hub/custom_generate.py"
    assert (folder / "custom_generate/generate.py").read_bytes() == search.read_bytes()
    assert (folder / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Either `--run` .* or `--refresh`"),
        ({"refresh": True, "run": Path("x")}, "Either `--run` .* or `--refresh`"),
        ({"run": Path("x"), "name": "mine"}, "`--run` needs `--name`, and `--sample` or"),
        ({"run": Path("x"), "name": "m", "sample": Path("y"), "weights": "int4"}, "`--weights`"),
        ({"run": Path("x"), "name": "m", "sample": Path("y"), "lines": 0}, "at least 1, but is 0"),
    ],
)
def test_mistakes_are_told(
    ship_model: Any, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ship_model.run(options(**given, box=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_model_is_refused(ship_model: Any, tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("a\tB\n")
    given = options(run=tmp_path, name="mine", sample=table, box=tmp_path)
    with pytest.raises(ValueError, match="`--run` must be the folder of a finished run"):
        ship_model.run(given)
    assert [path.name for path in tmp_path.iterdir()] == ["table.tsv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\tB\nb\n", "line 2 of `--sample` must have one tab"), ("", "`--sample` must have lines")],
)
def test_a_damaged_sample_changes_nothing(
    ship_model: Any, run_folder: Path, tmp_path: Path, text: str, message: str
) -> None:
    table = tmp_path / "table.tsv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        ship_model.run(options(run=run_folder, name="mine", sample=table, box=tmp_path))
    assert not (tmp_path / "mine").exists()


# ------------------------------------------------------------------ translators

SOURCES = ["ein hund", "eine katze schläft", "der vogel", "a b", "zwei"] * 8


@pytest.fixture(scope="module")
def translator_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run of the training script leaves it."""
    folder = tmp_path_factory.mktemp("run")
    saved(folder, 7)
    command = "/home/me/scripts/train_translation.py --config /home/me/scripts/configs/some.yaml"
    given = {"train_source": "/data/train.de", "train_target": "/data/train.en", "seed": 3}
    given |= {"output_dir": "/home/me/runs/x", "num_beams": 5}
    hardware = {"device": "cpu", "machine": "x86", "cpu_capability": "AVX", "threads": 1}
    run = {"command": f"{command} --seed 3", "options": given, "data": {"train": 9}}
    run |= {"hardware": hardware, "date": "2026-12-01"}
    (folder / "run.json").write_text(json.dumps(run))
    records = [
        {"kind": "train", "step": 2, "seconds": 70.5, "chars_per_second": 8.0},
        {"kind": "valid", "step": 2, "seconds": 70.5, "loss": 1.5, "bleu": 12.25},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
    (folder / "test.json").write_text(json.dumps({"bleu": 45.678, "chrf": 61.5}))
    return folder


@pytest.fixture
def files(tmp_path: Path, translator_run: Path) -> dict[str, Any]:
    """Flags of a whole command."""
    texts = engine.Translator(translator_run, backend="numpy").translate(SOURCES, num_beams=5)
    right = [best.text.replace("\t", " ") or "x" for best, *_ in texts]
    # Of the first forty thirty-six are wrong, and some of all ngrams are right.
    targets = [x if i % 10 == 0 else f"{x} und mehr" for i, x in enumerate(right)]
    (tmp_path / "de").write_text("\n".join(SOURCES) + "\n")
    (tmp_path / "en").write_text("\n".join(targets) + "\n")
    (tmp_path / "about").write_text("Sentences of many people.\n")
    (tmp_path / "notice").write_text("By many people.\n")
    (tmp_path / "box").mkdir()
    return {
        "run": translator_run, "name": "de-en", "box": tmp_path / "box", "lines": 20,
        "sources": tmp_path / "de", "targets": tmp_path / "en", "train_source": tmp_path / "de",
        "about": tmp_path / "about", "license_file": tmp_path / "notice", "data_name": "Sentences",
        "other": [["Far off", str(tmp_path / "de"), str(tmp_path / "en")]],
        "data_license": "CC BY 2.0, the people", "model_license": "cc-by-2.0", "title": "Mine",
    }  # fmt: skip


def test_translator_is_shipped_with_its_card(
    ship_model: Any, files: dict[str, Any], tmp_path: Path
) -> None:
    judged = tmp_path / "errors.tsv"
    ship_model.run(options(**files, write_errors=judged))
    head, *rows = judged.read_text().splitlines()
    assert head == "kind\tsource\treference\ttranslation"
    assert len(rows) == 30
    kinds = ["wrong word"] * 18 + ["one of several right ones"] * 12
    filled = [head, *(kind + row for kind, row in zip(kinds, rows, strict=True))]
    judged.write_text("\n".join(filled) + "\n")
    ship_model.run(options(**files, errors=judged))
    folder = tmp_path / "box" / "de-en"
    assert [path.name for path in folder.parent.iterdir()] == ["de-en"]
    weights = load_file(folder / "model.safetensors")
    assert {x.dtype for x in weights.values()} == {torch.bfloat16}
    assert (folder / "LICENSE").read_text() == "By many people.\n"
    assert json.loads((folder / "generation_config.json").read_text())["usual_source_chars"] == 18
    scores = json.loads((folder / "sample.json").read_text())
    pairs = [line.split("\t") for line in (folder / "sample.tsv").read_text().splitlines()]
    assert [source for source, _ in pairs] == SOURCES[:20]
    found = load_translator(str(folder), device="cpu").translate(SOURCES[:20], num_beams=5)
    texts = [best.text for best, *_ in found]
    expected = score_translations(texts, [target for _, target in pairs])
    assert scores["bleu"] == pytest.approx(expected.bleu.score, abs=1e-4)
    assert scores["chrf"] == pytest.approx(expected.chrf.score, abs=1e-4)
    card = (folder / "README.md").read_text()
    for text in (
        "# Mine\n", "Sentences of many people.", "license: cc-by-2.0", "CC BY 2.0, the people",
        "from_pretrained(name, trust_remote_code=True, dtype=\"float32\")", 'name = "models/de-en"',
        "## Out of its domain", "| Far off | 40 |", "is out of its domain there",
        "| wrong word | 18 |", "| one of several right ones | 12 |",
        "## Learning curve", "2 updates in 70 seconds",
        f"- {SOURCES[0]}\n  - {texts[0]}\n- {SOURCES[1]}\n", "scored BLEU 45.68 and chrF 61.50",
        "python scripts/train_translation.py --config scripts/configs/some.yaml --seed 3",
    ):  # fmt: skip
        assert text in card, text
    everything = "".join(path.read_text() for path in folder.glob("*.json*"))
    assert "/home/me" not in everything + card
    described = box.describe(folder)
    assert described.scores["bleu"] == pytest.approx(expected_of(folder)["bleu"], abs=0.01)
    assert (described.license, described.task) == ("cc-by-2.0", "translation")


def expected_of(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "test.json").read_text())
    return found


def test_errors_of_other_weights_and_half_filled_lists_are_refused(
    ship_model: Any, files: dict[str, Any], tmp_path: Path
) -> None:
    judged = tmp_path / "errors.tsv"
    judged.write_text("kind\tsource\treference\ttranslation\nwrong\ta\tb\tc\n")
    with pytest.raises(ValueError, match="`--errors` must have the first 30 errors of these"):
        ship_model.run(options(**files, errors=judged))
    judged.write_text("kind\tsource\treference\ttranslation\n\ta\tb\tc\n")
    with pytest.raises(ValueError, match=r"line 2 .* must have four columns, a kind of error"):
        ship_model.run(options(**files, errors=judged))
    judged.write_text("a\tb\n")
    with pytest.raises(ValueError, match=r"the first line of .* must be 'kind"):
        ship_model.run(options(**files, errors=judged))
    assert list((tmp_path / "box").iterdir()) == []


@pytest.mark.parametrize(("count", "every"), [(0, 1), (7, 1), (120, 1), (121, 2), (921, 8)])
def test_training_records_are_thinned_and_all_others_kept(
    count: int, every: int, ship_model: Any, tmp_path: Path
) -> None:
    lines = [json.dumps({"kind": "train", "step": i, "loss": i / 7}) for i in range(1, count + 1)]
    expected = [x for i, x in enumerate(lines, 1) if (count - i) % every == 0]
    valid, average = ('{"kind": "valid",  "step": 3}', '{"kind": "average", "step": 9}')
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:3], valid, *lines[3:], average, ""]))
    for _ in range(2):  # what is thin stays
        ship_model.thin_records(tmp_path)
        found = (tmp_path / "metrics.jsonl").read_text().split("\n")
        assert [x for x in found if "train" in x] == expected
        assert [x for x in found if "train" not in x] == [valid, average, ""]
    assert len(expected) <= 120


@pytest.mark.parametrize("name", box.box_names())
def test_records_and_beams_of_the_box_are_as_shipped(name: str, ship_model: Any) -> None:
    folder = box.find_in_box(name)
    assert folder is not None
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert sum('"kind": "train"' in line for line in lines) <= ship_model.NUM_RECORDS
    assert json.loads((folder / "generation_config.json").read_text())["num_beams"] == 5
