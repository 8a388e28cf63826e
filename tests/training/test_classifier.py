"""The classifier's script: labels, accuracy, exact resume, what the end of a run leaves."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from hub_fixtures import CLIENT_WARNING, REPO
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard
from training_script import ROOT, kill_at_a_checkpoint, status_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_qrnn import QRNNForSequenceClassification
from hf_qrnn.training.classification_task import ClassificationTask
from hf_qrnn.training.run import run_task

SCRIPT = ROOT / "scripts/train_classifier.py"


def rows(number: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    texts = [
        " ".join(draw.choices(["aa", "bb", "cc"], k=draw.randint(1, 5))) for _ in range(number)
    ]
    return [(text, "yes" if text.startswith("a") else "no") for text in texts]


def flags(folder: Path, *switches: str, **changes: object) -> list[str]:
    for seed, (name, number) in enumerate((("train", 60), ("valid", 16), ("test", 16))):
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows(number, seed)]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    options = {
        **{f"{name}_file": folder / f"{name}.jsonl" for name in ("train", "valid")},
        **{"hidden_size": 8, "embedding_size": 8, "encoder_layers": 1, "dropout": 0.1},
        **{"output_dir": folder / "out", "max_steps": 12, "max_tokens": 100, "num_threads": 1},
        **{"save_every": 2, "eval_every": 4, "log_every": 1, "learning_rate": 0.02, **changes},
    }
    flags = [text for k, v in options.items() for text in (f"--{k}", str(v))]
    return ["--cpu", *flags, *switches]


def test_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    assert run_task(ClassificationTask, flags(tmp_path)) == 0
    argv = flags(tmp_path, output_dir=tmp_path / "cut")
    kill_at_a_checkpoint(argv, tmp_path / "cut", SCRIPT)
    assert run_task(ClassificationTask, [*argv, "--resume", "auto"]) == 0
    whole, again = (
        json.loads((tmp_path / name / "training.json").read_text()) for name in ("out", "cut")
    )
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["best"] == whole["best"]
    assert not list((tmp_path / "out/checkpoints").rglob("carried.safetensors"))


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_run_is_told_as_a_classifiers(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = flags(
        tmp_path, "--push_to_hub", test_file=tmp_path / "test.jsonl", hub_model_id=REPO,
        output_dir="out", max_steps=60, eval_every=20,
    )  # fmt: skip
    assert run_task(ClassificationTask, argv) == 0
    out = tmp_path / "out"
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert not any("bits_per_char" in record for record in records)
    valid = [record for record in records if record["kind"] == "valid"]
    best = max(valid, key=lambda record: (record["accuracy"], -record["loss"]))
    assert best["is_best"]
    assert best["accuracy"] > 0.8
    # What the saved model says of each text, alone.
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert isinstance(model, QRNNForSequenceClassification)
    assert model.config.id2label == {0: "no", 1: "yes"}

    def share_of_right(pairs: list[tuple[str, str]]) -> float:
        with torch.no_grad():
            found = [
                int(model(**tokenizer(x, return_tensors="pt")).logits.argmax()) for x, _ in pairs
            ]
        labels = [model.config.id2label[index] for index in found]
        return sum(a == b for a, (_, b) in zip(labels, pairs, strict=True)) / len(pairs)

    assert share_of_right(rows(16, 1)) == best["accuracy"]
    test = json.loads((out / "test.json").read_text())
    assert (test["texts"], test["accuracy"]) == (16, share_of_right(rows(16, 2)))
    assert json.loads((out / "run.json").read_text())["metric"] == "accuracy"
    card = (out / "README.md").read_text()
    data = ModelCard(card).data
    assert (data.pipeline_tag, data.metrics) == ("text-classification", ["accuracy"])
    for part in (
        "that classifies texts",
        f"| 16 texts | accuracy | {100 * test['accuracy']:.2f} % |",
        "| split | texts |\n|---|---|\n| train | 60 |",
        "| update | minutes | nats per text | accuracy % |",
        "| `classifier_pooling` | last |",
    ):
        assert part in card
    for absent in ("translat", "source and", "BLEU", "beams", "decoder_layers", "attention"):
        assert absent not in card.split("## Reproduce")[0]
    assert "model.safetensors" in hub.files(REPO)
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    exec(code.replace(f'name = "{REPO}"', 'name = "out"'), {})


def test_labels_of_csv_and_whole_numbers(tmp_path: Path) -> None:
    argv = flags(tmp_path, max_steps=1)
    lines = [f"{text},{label}" for text, label in rows(20, 5)]
    (tmp_path / "a.csv").write_text("\n".join(["review,stars", *lines]) + "\n")
    csv = {f"{name}_file": tmp_path / "a.csv" for name in ("train", "valid")}
    columns = {"text_column": "review", "label_column": "stars"}
    argv = flags(tmp_path, max_steps=1, output_dir=tmp_path / "csv", **csv, **columns)
    assert run_task(ClassificationTask, argv) == 0
    numbers = [json.dumps({"text": text, "label": text.count(" ") % 3}) for text, _ in rows(20, 5)]
    (tmp_path / "n.jsonl").write_text("".join(line + "\n" for line in numbers))
    files = {f"{name}_file": tmp_path / "n.jsonl" for name in ("train", "valid")}
    assert run_task(ClassificationTask, flags(tmp_path, max_steps=1, **files)) == 0
    labels = {
        name: json.loads((tmp_path / name / "config.json").read_text())["label2id"]
        for name in ("csv", "out")
    }
    assert labels == {"csv": {"no": 0, "yes": 1}, "out": {"0": 0, "1": 1, "2": 2}}


@pytest.mark.parametrize(
    ("changes", "text", "sentence"),
    [
        ({}, '{"text": "a", "label": "new"}', "`--valid_file` must have labels of the training"),
        ({}, '{"text": "a"}', "must have the key 'label'"),
        ({"metric": "bleu"}, '{"text": "a", "label": "no"}', "`--metric` must be accuracy or loss"),
        ({"label_smoothing": 0.1}, "", "unrecognized arguments: --label_smoothing 0.1"),
    ],
)
def test_mistakes_are_one_sentence_and_change_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    text: str,
    sentence: str,
) -> None:
    argv = flags(tmp_path, **changes)
    (tmp_path / "valid.jsonl").write_text(text + "\n")
    assert status_of(ClassificationTask, argv) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
