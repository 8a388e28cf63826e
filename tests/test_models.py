"""The box: every model in `models/` is whole, loads anywhere and scores what its card says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_qrnn import engine
from hf_qrnn.data.box import describe
from hf_qrnn.data.json_files import read_json_lines
from hf_qrnn.data.translations import one_line
from hf_qrnn.hub.files import CUSTOM_GENERATE
from hf_qrnn.metrics.edits import token_error_rate, word_error_rate
from hf_qrnn.metrics.scoring import score_translations
from hf_qrnn.pronunciation import Pronouncer
from hf_qrnn.translation.translator import load_translator

ROOT = Path(__file__).resolve().parent.parent
SEARCH = ROOT / "hf_qrnn/hub/custom_generate.py"
CODE = {path.name: path.read_bytes() for path in (ROOT / "hf_qrnn/model").glob("*_qrnn.py")}
BOX = sorted(path for path in (ROOT / "models").iterdir() if path.is_dir())
# Bytes of the weights: a clone brings all of them.
LARGEST = {"pronunciation": 3_000_000, "translation": 12_000_000}

# What an importer of nothing of ours does, far from the clone.
LOAD = """
import sys
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
folder, source = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True, dtype="float32")
found = model.generate(**tokenizer(source, return_tensors="pt"), num_beams=5)
print(tokenizer.decode(found[0], skip_special_tokens=True))
assert "hf_qrnn.model.modeling_qrnn" not in sys.modules
"""

every_model = pytest.mark.parametrize("folder", BOX, ids=lambda folder: folder.name)


def sample(folder: Path) -> list[tuple[str, str, str]]:
    """Sources, targets and languages, "" where the model has no tags."""
    lines = (folder / "sample.tsv").read_text(encoding="utf-8").split("\n")[:-1]
    rows = ([*line.split("\t"), ""][:3] for line in lines)
    return [(source, target, language) for source, target, language in rows]


def stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    return found


def test_box_is_not_empty() -> None:
    # Each has a folder of its own name and nothing lies beside.
    assert "pronounce-en" in [folder.name for folder in BOX]
    assert [path.name for path in (ROOT / "models").iterdir() if not path.is_dir()] == []


@every_model
def test_code_is_the_packages(folder: Path) -> None:
    there = {path.name: path.read_bytes() for path in folder.glob("*.py")}
    cure = "run `python scripts/ship_model.py --refresh`"
    assert sorted(there) == sorted(CODE), cure
    assert [name for name in CODE if there[name] != CODE[name]] == [], cure
    assert (folder / CUSTOM_GENERATE).read_bytes() == SEARCH.read_bytes(), cure


@every_model
def test_card_licence_and_record_are_there_and_weights_are_small(folder: Path) -> None:
    model = describe(folder)
    assert (folder / "model.safetensors").stat().st_size <= LARGEST[model.task]
    assert model.license != "not stated"
    assert model.languages != ()
    assert model.scores != {}
    assert (folder / "LICENSE").read_text(encoding="utf-8").strip()
    card = (folder / "README.md").read_text(encoding="utf-8")
    for heading in ("Results", "Learning curve", "Samples", "Limits", "Licences", "Reproduce"):
        assert f"\n## {heading}\n" in card, heading
    assert " seconds of training" in card
    assert "](learning_curve.png)" in card
    assert (folder / "learning_curve.png").is_file()
    validations = [x for x in read_json_lines(folder / "metrics.jsonl") if x["kind"] == "valid"]
    # What the curve draws is there in numbers.
    assert len(validations) >= 2
    assert f"| {validations[-1]['step']:,} |" in card


@every_model
def test_no_path_of_the_machine_that_trained_it_is_told(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix in (".json", ".jsonl", ".md", ".tsv") and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            assert not [word for word in ("/tmp/", "/home/", "/root/", "/work/") if word in text]


@every_model
def test_sample_scores_what_was_stored(folder: Path) -> None:
    scores = stored(folder)
    if describe(folder).task == "pronunciation":
        check_pronouncer(folder, scores)
    else:
        check_translator(folder, scores)


def check_pronouncer(folder: Path, scores: dict[str, Any]) -> None:
    targets: dict[tuple[str, str], list[str]] = {}
    for source, target, language in sample(folder):
        targets.setdefault((language, source), []).append(target)
    texts: list[str] = []
    for language in dict.fromkeys(language for language, _ in targets):
        pronouncer = Pronouncer(folder, language=language or None, threshold=0, device="cpu")
        words = [word for x, word in targets if x == language]
        texts += [best.text for best, *_ in pronouncer.pronounce(words)]
    # By language, as the texts are.
    right = [found for x in dict.fromkeys(x for x, _ in targets)
             for (language, _), found in targets.items() if language == x]  # fmt: skip
    assert scores["lines"] == len(texts)
    # Other processors add in another order: of the words one may be a tie.
    assert abs(word_error_rate(texts, right) - scores["word_error_rate"]) < 1.5 / len(texts)
    assert abs(token_error_rate(texts, right) - scores["token_error_rate"]) < 0.002


def check_translator(folder: Path, scores: dict[str, Any]) -> None:
    pairs = sample(folder)
    assert scores["lines"] == len(pairs) >= 100
    results = engine.Translator(folder).translate(
        [source for source, _, _ in pairs], num_beams=scores["num_beams"]
    )
    texts = [one_line(best.text) for best, *_ in results]
    found = score_translations(texts, [target for _, target, _ in pairs])
    assert found.bleu.score == pytest.approx(scores["bleu"], abs=0.1)
    assert found.chrf.score == pytest.approx(scores["chrf"], abs=0.1)
    assert scores["bleu"] > 20  # it has learnt something


@every_model
def test_a_stranger_loads_it_without_the_package(folder: Path, tmp_path: Path) -> None:
    source, _, language = sample(folder)[0]
    tagged = f"<{language}>{source}" if language else source
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), tagged],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if describe(folder).task == "pronunciation":
        expected = Pronouncer(folder, language=language or None, threshold=0, device="cpu")(
            source
        ).text
    else:
        found = load_translator(str(folder), device="cpu").translate([source], num_beams=5)
        expected = found[0][0].text
    assert done.stdout.strip() == expected
