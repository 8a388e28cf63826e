"""The presets of language modelling: their sizes, their counts of the Penn Treebank, 20 updates."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_script import ROOT

from hf_qrnn.data.reading import read_lines
from hf_qrnn.data.tokenization import train_character_tokenizer, train_word_tokenizer
from hf_qrnn.training.language_model_task import LanguageModelTask
from hf_qrnn.training.run import run_task
from hf_qrnn.training.text_stream import make_stream

CONFIGS = ROOT / "scripts/configs"
PTB = Path(os.environ.get("HF_QRNN_PTB", "shared/data/lm_ptb"))
"""The folder of the Penn Treebank, which may not be copied into the project."""
PARAMETERS = {"lm_ptb_paper": 17_729_040, "lm_ptb_modern": 9_855_248, "lm_ptb_char": 5_570_293}


def preset(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return found


def write_words(folder: Path) -> None:
    """Write texts with 9,998 words and <unk>, as the Penn Treebank has them."""
    words = [f"w{i}" for i in range(9998)]
    draw = random.Random(0)
    draw.shuffle(words)
    lines = [" ".join(words[i : i + 20]) for i in range(0, len(words), 20)]
    lines += ["w1 <unk> w2"]
    for name, number in (("train", len(lines)), ("valid", 2), ("test", 2)):
        (folder / name).write_text("".join(f" {line} \n" for line in lines[-number:]))


def write_characters(folder: Path) -> None:
    """Write texts of the 49 characters of the Penn Treebank."""
    known = "".join(map(chr, range(ord("a"), ord("z") + 1))) + "0123456789 #$&'*-./<>N\\"
    draw = random.Random(0)
    assert len(known) == 49
    for name, number in (("train", 60), ("valid", 2), ("test", 2)):
        lines = ["".join(draw.choices(known, k=40)) for _ in range(number)]
        (folder / name).write_text("".join(f" {line} \n" for line in [known, *lines]))


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_runs_with_its_sizes(tmp_path: Path, name: str) -> None:
    (write_characters if name.endswith("char") else write_words)(tmp_path)
    argv = ["--cpu", "--config", str(CONFIGS / f"{name}.yaml"), "--output_dir", f"{tmp_path}/out"]
    argv += [x for split in ("train", "valid", "test")
             for x in (f"--{split}_file", str(tmp_path / split))]  # fmt: skip
    cut = {"batch_size": 2, "sequence_length": 10, "max_steps": 20, "eval_every": 20,
           "save_every": 0, "average": "none", "sample_tokens": 5, "log_every": 1,
           "mixed_precision": "no", "num_threads": 1}  # fmt: skip
    argv += [x for key, value in cut.items() for x in (f"--{key}", str(value))]
    assert run_task(LanguageModelTask, argv) == 0
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["parameters"] == PARAMETERS[name]
    records = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    losses = [x["loss"] for x in map(json.loads, records) if x["kind"] == "train"]
    assert len(losses) == 20
    assert json.loads((tmp_path / "out/test.json").read_text())["perplexity"] < 20_000


def test_paper_preset_is_section_3_2() -> None:
    found = preset("lm_ptb_paper")
    expected = {
        "batch_size": 20, "sequence_length": 105, "optimizer": "sgd", "learning_rate": 0.35,
        "constant_epochs": 6, "epoch_factor": 0.95, "epochs": 72, "weight_decay": 2e-4,
        "max_grad_norm": 10.0, "dropout": 0.5, "zoneout": 0.1, "decoder_layers": 2,
        "hidden_size": 640, "decoder_kernel_sizes": [2, 2], "pooling": "fo", "loss_mean": "rows",
        "tie_word_embeddings": False,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    text = (CONFIGS / "lm_ptb_paper.yaml").read_text()
    assert "summed over the 105 steps of a row" in text.replace("\n# ", " ")


@pytest.mark.skipif(not PTB.is_dir(), reason="the Penn Treebank is not here")
def test_penn_treebank_has_its_counts() -> None:
    texts = {x: read_lines(PTB / f"ptb.{x}.txt.xz") for x in ("train", "valid", "test")}
    texts = {name: [line.strip(" ") for line in lines] for name, lines in texts.items()}
    words = train_word_tokenizer(texts["train"], bare=True)
    assert len(words) == 10_000
    streams = [make_stream(words, lines) for lines in texts.values()]
    assert [len(stream.tokens) for stream in streams] == [929_589, 73_760, 82_430]
    assert [stream.num_chars for stream in streams] == [5_017_482, 393_042, 442_423]
    characters = train_character_tokenizer(texts["train"])
    assert len(characters) == 4 + 49
    streams = [make_stream(characters, lines) for lines in texts.values()]
    assert [len(stream.tokens) for stream in streams] == [5_017_482, 393_042, 442_423]
    assert not any((stream.tokens == characters.unk_token_id).any() for stream in streams)
