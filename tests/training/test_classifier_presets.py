"""The presets of the sentiment classifier: their sizes, and 20 updates of each."""

import json
import lzma
import os
import random
from pathlib import Path

import pytest
import yaml
from training_script import ROOT

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForSequenceClassification,
    load_tokenizer,
)
from hf_qrnn.training.classification_task import ClassificationTask, ClassifierOptions
from hf_qrnn.training.run import run_task

CONFIGS = ROOT / "scripts/configs"
IMDB = Path(os.environ.get("HF_QRNN_IMDB", "shared/data/sentiment_imdb"))
"""The folder of the reviews, which may not be copied into the project."""
# Batches and lengths are cut, sizes of the model are not.
CUT = {
    "max_tokens": 256, "max_text_tokens": 24, "max_steps": 20, "eval_every": 10, "save_every": 10,
    "log_every": 5, "num_threads": 1, "mixed_precision": "no", "epochs": 1, "max_words": 200,
}  # fmt: skip


def reviews(path: Path, number: int) -> Path:
    draw = random.Random(number)
    with path.open("w") as file:
        for index in range(number):
            words = draw.choices(["film", "plot", "actor", "scene", "the", "a"], k=20)
            words[7] = "awful" if index % 2 else "lovely"
            text = " ".join(words) + f".<br /><br />It's number {index}!"
            file.write(json.dumps({"text": text, "label": index % 2}) + "\n")
    return path


def run(folder: Path, preset: str, *switches: str, train: Path, **changes: object) -> Path:
    options = {"train_file": train, "output_dir": folder / "out", **CUT, **changes}
    config = CONFIGS / f"sentiment_imdb_{preset}.yaml"
    argv = ["--cpu", "--config", str(config), *switches]
    assert run_task(ClassificationTask, argv + [
        text for name, value in options.items() for text in (f"--{name}", str(value))
    ]) == 0  # fmt: skip
    return folder / "out"


@pytest.mark.parametrize(
    ("kernel_sizes", "stack"),
    [([2, 2, 2, 2], 4_205_568), ([4, 2, 2, 2], 4_205_568 + 2 * 300 * 768)],
    ids=["k2", "k4"],
)
def test_the_papers_stack_has_its_parameters(kernel_sizes: list[int], stack: int) -> None:
    given = yaml.safe_load((CONFIGS / "sentiment_imdb_paper.yaml").read_text())
    fields = {name: given[name] for name in given.keys() & QRNNConfig.__annotations__.keys()}
    assert fields["encoder_kernel_sizes"] == [2, 2, 2, 2]
    options = {**fields, "encoder_kernel_sizes": kernel_sizes}
    ClassifierOptions(**options)  # all of them are flags
    config = QRNNConfig(vocab_size=10, is_encoder_decoder=False, num_labels=2, **options)
    model = QRNNForSequenceClassification(config)
    assert sum(p.numel() for p in model.model.encoder.parameters()) == stack
    assert sum(p.numel() for p in model.classifier.parameters()) == 2 * 256 + 2


@pytest.mark.parametrize("preset", ["paper", "modern"])
def test_preset_runs_twenty_updates(tmp_path: Path, preset: str) -> None:
    out = run(tmp_path, preset, train=reviews(tmp_path / "train.jsonl", 200))
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert json.loads((out / "training.json").read_text())["step"] == 20
    config = json.loads((out / "config.json").read_text())
    given = yaml.safe_load((CONFIGS / f"sentiment_imdb_{preset}.yaml").read_text())
    for name in ("hidden_size", "embedding_size", "encoder_layers", "classifier_pooling"):
        assert config[name] == given[name]


def test_warm_preset_begins_with_a_language_model(tmp_path: Path) -> None:
    train = reviews(tmp_path / "train.jsonl", 200)
    first = run(tmp_path, "modern", train=train, max_steps=1, hidden_size=8, embedding_size=8)
    # The words of a classifier, and the layers of a language model that read them.
    tokenizer = load_tokenizer(str(first))
    config = QRNNConfig(
        vocab_size=len(tokenizer), embedding_size=8, hidden_size=8, decoder_layers=2,
        is_encoder_decoder=False,
    )  # fmt: skip
    QRNNForCausalLM(config).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    cut = {name: value for name, value in CUT.items() if name != "max_words"}
    argv = ["--cpu", "--config", str(CONFIGS / "sentiment_imdb_warm.yaml")]
    options = {
        **cut, "train_file": train, "output_dir": tmp_path / "warm", "init_from": tmp_path / "lm",
    }  # fmt: skip
    argv += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert run_task(ClassificationTask, argv) == 0
    config = json.loads((tmp_path / "warm/config.json").read_text())
    assert (config["encoder_layers"], config["encoder_causal"]) == (2, True)


@pytest.mark.skipif(not IMDB.is_dir(), reason="the reviews are not here")
def test_preset_reads_the_reviews(tmp_path: Path) -> None:
    with lzma.open(IMDB / "train.jsonl.xz", "rt", encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(1000), strict=False)]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(lines))
    out = run(tmp_path, "modern", train=train, max_words=5000, max_text_tokens=60)
    told = json.loads((out / "run.json").read_text())["data"]
    assert told["train"] + told["valid"] == 1000
    assert 60 < told["valid"] < 140
    config = json.loads((out / "config.json").read_text())
    assert config["label2id"] == {"0": 0, "1": 1}
    assert config["vocab_size"] == 5004
