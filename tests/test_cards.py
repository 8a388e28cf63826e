"""Model cards say what a run measured, and nothing else."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_qrnn.training.cards import translation_card

RUN = {
    "command": "/srv/train_translation.py --seed 3",
    "options": {
        "source_lang": "de",
        "target_lang": None,
        "seed": 3,
        "train_source": "/data/train.de",
    },
    "data": {"train": 29000, "valid": 1014, "test": 1000},
    "parameters": 5415486,
    "date": "2026-11-23",
    "versions": {"torch": "2.13.0"},
    "hardware": {"device": "cpu", "machine": "x86_64", "cpu_capability": "AVX2", "threads": 1},
}
TEST = {
    "sentences": 1000, "num_beams": 5, "bleu": 31.25, "bleu_signature": "nrefs:1|tok:13a",
    "chrf": 55.5, "chrf_signature": "nrefs:1|nc:6", "exact_match": 1.0,
}  # fmt: skip
RECORDS = [
    {"kind": "train", "step": 1, "loss": 2.0},
    {"kind": "valid", "step": 1200, "seconds": 600.0, "loss": 0.5, "bleu": 20.0, "chrf": 40.0},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "test.json").write_text(json.dumps(TEST))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    return tmp_path


def test_translation_card_holds_every_number_with_its_origin(folder: Path) -> None:
    text = translation_card(folder, title="T", about="About.", samples=[("Ein Hund.", "A dog.")])
    for part in (
        "| 1000 sentences | 31.25 | 55.50 | 5 |",
        "`nrefs:1|tok:13a`",
        "seed 3, 2026-11-23; 5,415,486 parameters",
        "cpu (x86_64, AVX2), 1 thread(s); torch 2.13.0",
        "`train_translation.py --seed 3`",
        "| 1,200 | 10 | 0.500 | 20.0 | 40.0 |",
        '"train_source": "train.de"',
        "- Ein Hund.\n  - A dog.",
    ):
        assert part in text
    assert "/srv" not in text
    card = ModelCard(text)
    assert card.data.pipeline_tag == "translation"
    assert card.data.language == ["de", "en"]


def test_translation_card_needs_test_scores(folder: Path) -> None:
    (folder / "test.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"`folder` must hold test\.json"):
        translation_card(folder, title="T", about="", samples=[])
