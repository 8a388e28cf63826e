"""The box: every model in `models/` is whole, loads anywhere and scores what its card says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_qrnn.metrics.edits import token_error_rate, word_error_rate
from hf_qrnn.pronunciation import Pronouncer

ROOT = Path(__file__).resolve().parent.parent
CODE = {path.name: path.read_bytes() for path in (ROOT / "hf_qrnn/model").glob("*_qrnn.py")}
BOX = sorted(path for path in (ROOT / "models").iterdir() if path.is_dir())
LARGEST = 3_000_000

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


def sample(folder: Path) -> dict[str, list[str]]:
    targets: dict[str, list[str]] = {}
    for line in (folder / "sample.tsv").read_text(encoding="utf-8").splitlines():
        source, target = line.split("\t")
        targets.setdefault(source, []).append(target)
    return targets


def test_box_is_not_empty() -> None:
    assert [folder.name for folder in BOX] == ["pronounce-en"]


@pytest.mark.parametrize("folder", BOX, ids=lambda folder: folder.name)
def test_code_is_the_packages(folder: Path) -> None:
    there = {path.name: path.read_bytes() for path in folder.glob("*.py")}
    cure = "run `python scripts/ship_model.py --refresh`"
    assert sorted(there) == sorted(CODE), cure
    assert [name for name in CODE if there[name] != CODE[name]] == [], cure


@pytest.mark.parametrize("folder", BOX, ids=lambda folder: folder.name)
def test_weights_are_small_and_the_card_is_there(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size <= LARGEST
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license:" in card.split("---")[1]
    assert "CMU" in card


@pytest.mark.parametrize("folder", BOX, ids=lambda folder: folder.name)
def test_sample_scores_what_was_stored(folder: Path) -> None:
    stored = json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    targets = sample(folder)
    pronouncer = Pronouncer(folder, threshold=0, device="cpu")
    texts = [best.text for best, *_ in pronouncer.pronounce(list(targets))]
    right = list(targets.values())
    assert stored["lines"] == len(texts)
    # Other processors add in another order: of the words one may be a tie.
    assert abs(word_error_rate(texts, right) - stored["word_error_rate"]) < 1.5 / len(texts)
    assert abs(token_error_rate(texts, right) - stored["token_error_rate"]) < 0.002


@pytest.mark.parametrize("folder", BOX, ids=lambda folder: folder.name)
def test_a_stranger_loads_it_without_the_package(folder: Path, tmp_path: Path) -> None:
    source = next(iter(sample(folder)))
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), source],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == Pronouncer(folder, threshold=0, device="cpu")(source).text
