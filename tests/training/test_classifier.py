"""The classifier's script: labels, accuracy, exact resume, what the end of a run leaves."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import CLIENT_WARNING, REPO
from hub_stand_in import HubStandIn
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn
from training_script import ROOT, kill_at_a_checkpoint, status_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForSequenceClassification,
    make_byte_tokenizer,
    train_character_tokenizer,
)
from hf_qrnn.data.batching import Batch
from hf_qrnn.metrics.intervals import wilson_interval
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
        f"| 16 texts | accuracy | {100 * test['accuracy']:.2f} % (",
        "| split | texts |\n|---|---|\n| train | 60 |",
        "| update | minutes | nats per text | accuracy % |",
        "| `classifier_pooling` | last |",
    ):
        assert part in card
    for absent in ("translat", "source and", "BLEU", "beams", "decoder_layers", "attention"):
        assert absent not in card.split("## Reproduce")[0]
    assert {"model.safetensors", "states.png"} <= set(hub.files(REPO))
    assert "](states.png)" in card
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


def language_model(folder: Path, **changes: object) -> Path:
    """Save a language model of the characters of our rows, as its script does."""
    tokenizer = train_character_tokenizer(["abc "])
    sizes = {"embedding_size": 6, "hidden_size": 8, "decoder_layers": 2, "dense_connections": True}
    config = QRNNConfig(vocab_size=len(tokenizer), is_encoder_decoder=False, **sizes | changes)
    QRNNForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def begun(folder: Path, **changes: object) -> list[str]:
    """Flags of a run that begins with a model: none of the model's."""
    argv = flags(folder, **changes)
    for name in ("hidden_size", "embedding_size", "encoder_layers"):
        if name not in changes:
            place = argv.index(f"--{name}")
            del argv[place : place + 2]
    return argv


def test_language_model_is_the_beginning(tmp_path: Path) -> None:
    lm = language_model(tmp_path / "lm")
    options = {"init_from": lm, "classifier_pooling": "mean_max", "learning_rate": 0, "dropout": 0}
    assert run_task(ClassificationTask, begun(tmp_path, max_steps=1, **options)) == 0
    found = load_file(tmp_path / "out/model.safetensors")
    source = load_file(lm / "model.safetensors")
    assert torch.equal(found["model.shared.weight"], source["model.shared.weight"])
    layer = "layers.1.directions.0.convolution.weight"
    theirs = source["model.decoder.layers.1.layer.convolution.weight"]
    assert torch.equal(found[f"model.encoder.{layer}"], theirs)
    assert found["classifier.weight"].shape == (2, 16)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["encoder_causal"], config["reverse_source"]) == (True, False)
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert f"began with the weights of `{lm.name}`" in (tmp_path / "out/README.md").read_text()
    # A classifier of the same labels is one to go on with, its output layer too.
    again = begun(
        tmp_path, max_steps=1, learning_rate=0, init_from=tmp_path / "out",
        output_dir=tmp_path / "next",
    )  # fmt: skip
    assert run_task(ClassificationTask, again) == 0
    following = load_file(tmp_path / "next/model.safetensors")
    assert all(torch.equal(tensor, following[name]) for name, tensor in found.items())


def test_run_with_all_of_it_resumes_without_its_base(tmp_path: Path) -> None:
    lm = language_model(tmp_path / "lm")
    options = {
        "init_from": lm, "optimizer": "rmsprop", "adam_beta2": 0.9, "weight_decay": 4e-6,
        "word_dropout": 0.2, "classifier_dropout": 0.3, "classifier_pooling": "max",
        "max_text_tokens": 6, "learning_rate": 0.005,
    }  # fmt: skip
    assert run_task(ClassificationTask, begun(tmp_path, **options)) == 0
    argv = begun(tmp_path, output_dir=tmp_path / "cut", **options)
    kill_at_a_checkpoint(argv, tmp_path / "cut", SCRIPT)
    shutil.rmtree(lm)
    assert run_task(ClassificationTask, [*argv, "--resume", "auto"]) == 0
    whole, again = (
        json.loads((tmp_path / name / "training.json").read_text()) for name in ("out", "cut")
    )
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert status_of(ClassificationTask, [*argv, "--resume", "auto", "--word_dropout", "0.1"]) == 2


def test_word_vectors_begin_the_embedding(tmp_path: Path) -> None:
    vectors = {"aa": [1.0, 2.0], "cc": [-1.0, 0.5], "dd": [7.0, 7.0]}
    lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in vectors.items()]
    (tmp_path / "v.txt").write_text("\n".join(lines))
    options = {
        "tokenizer": "word", "word_vectors": tmp_path / "v.txt", "embedding_size": 2,
        "learning_rate": 0, "max_steps": 1,
    }  # fmt: skip
    assert run_task(ClassificationTask, flags(tmp_path, **options)) == 0
    out = tmp_path / "out"
    (tmp_path / "v.txt").unlink()  # the saved model holds all it needs
    words = AutoTokenizer.from_pretrained(out).get_vocab()
    model = AutoModelForSequenceClassification.from_pretrained(out)
    weight = model.get_input_embeddings().weight
    assert weight[words["aa"]].tolist() == vectors["aa"]
    assert weight[words["cc"]].tolist() == vectors["cc"]
    assert weight[words["bb"]].abs().max() < 1  # drawn, spread 0.2
    texts = [text.split() for text, _ in rows(60, 0)]
    covered = sum(word in vectors for text in texts for word in text)
    told = json.loads((out / "run.json").read_text())["data"]["word_vectors"]
    # The end token counts, and has no vector.
    assert told["share_of_tokens"] == covered / sum(len(text) + 1 for text in texts)
    assert (told["found"], told["vocabulary"], told["file"]) == (2, 7, "v.txt")
    assert "those of `v.txt` for 2 of 7 tokens" in (out / "README.md").read_text()


def test_saved_model_is_as_right_in_the_pipeline(tmp_path: Path) -> None:
    argv = flags(
        tmp_path, tokenizer="word", test_file=tmp_path / "test.jsonl", max_steps=40,
        classifier_pooling="mean_max", word_dropout=0.1, average="last",
    )  # fmt: skip
    assert run_task(ClassificationTask, argv) == 0
    out = tmp_path / "out"
    classify = pipeline("text-classification", str(out), device="cpu")
    pairs = rows(16, 2)
    # A batch of several lengths, and the texts one by one.
    for size in (1, 5):
        found = classify([text for text, _ in pairs], batch_size=size)
        right = sum(a["label"] == b for a, (_, b) in zip(found, pairs, strict=True))
        test = json.loads((out / "test.json").read_text())
        assert test["accuracy"] == right / 16
    low, high = wilson_interval(right, 16)
    expected = {"low": low, "high": high, "level": 0.95, "method": "Wilson"}
    assert test["accuracy_confidence"] == expected
    card = (out / "README.md").read_text()
    interval = f"{100 * low:.2f} to {100 * high:.2f}"
    assert f"| 16 texts | accuracy | {100 * right / 16:.2f} % ({interval}) |" in card
    assert "- in brackets: 95 % interval by Wilson over the texts" in card


def test_word_dropout_hides_training_tokens_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    seen: list[tuple[bool, float]] = []

    class Watched(ClassificationTask):
        def forward(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> Any:
            def look(_: nn.Module, args: Any, given: dict[str, torch.Tensor]) -> None:
                ids = given["input_ids"][given["attention_mask"] == 1]
                unknown = self.tokenizer.unk_token_id
                seen.append((model.training, float((ids == unknown).float().mean())))

            hook = model.register_forward_pre_hook(look, with_kwargs=True)
            found = super().forward(model, batch, smoothing)
            hook.remove()
            return found

    argv = flags(tmp_path, word_dropout=0.5, max_tokens=1000, max_steps=4)
    assert run_task(Watched, argv) == 0
    assert all(share == 0 for training, share in seen if not training)
    shares = [share for training, share in seen if training]
    assert 0.4 < sum(shares) / len(shares) < 0.6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"init_from": "lm", "hidden_size": 16},
            "`--hidden_size` must be left out with `--init_fr",
        ),
        (
            {"init_from": "lm", "tokenizer": "word"},
            "`--tokenizer` must be left out with `--init_fr",
        ),
        (
            {"init_from": "lm", "word_vectors": "v"},
            "`--word_vectors` must be left out with `--init",
        ),
        ({"init_from": "none"}, "`--init_from` must be a folder with a saved QRNN language model"),
        (
            {"word_vectors": "v"},
            "must hold vectors of 8 numbers, the `--embedding_size`, but those",
        ),
        ({"word_vectors": "w"}, "`--word_vectors` must hold a word of the texts, but 'w' has none"),
        ({"word_vectors": "x"}, "`--word_vectors` must be an existing file, but is 'x'."),
        ({"word_dropout": 1}, "`--word_dropout` must be in [0, 1), but is 1.0."),
        ({"word_dropout": 0.1, "tokenizer": "t"}, "`--word_dropout` must be 0 with the tokenizer"),
        ({"max_words": 5}, "`--max_words` must be left out with the tokenizer 'char', but is 5."),
        ({"lower_case": True}, "`--lower_case` must be left out with the tokenizer 'char'"),
        ({"max_text_tokens": -1}, "`--max_text_tokens` must be at least 0, but is -1."),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    language_model(tmp_path / "lm")
    nothing_unknown = make_byte_tokenizer()
    nothing_unknown.unk_token = None
    nothing_unknown.save_pretrained(tmp_path / "t")
    (tmp_path / "v").write_text("aa 1 2\n")
    (tmp_path / "w").write_text("zz 1 2 3 4 5 6 7 8\n")
    argv = begun(tmp_path, **changes) if "init_from" in changes else flags(tmp_path, **changes)
    assert status_of(ClassificationTask, argv) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
