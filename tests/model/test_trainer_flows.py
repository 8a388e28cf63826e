"""The flows of transformers' example scripts (run_clm, run_translation, run_glue), in small."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_pt_utils import nested_concat, nested_detach, nested_numpify
from transformers.utils.generic import find_labels

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
)
from hf_qrnn.data.tokenization import train_character_tokenizer
from hf_qrnn.model import modeling_qrnn

TEXTS = ["abc", "hgfedcba", "b", "dead", "a bag", "face", "he", "cabbage"]
TOKENIZER = train_character_tokenizer(TEXTS)
BLOCK = 6
HEADS = (QRNNForConditionalGeneration, QRNNForCausalLM, QRNNForSequenceClassification)


def make(kind: type[PreTrainedModel], **changes: object) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(TOKENIZER), "embedding_size": 6, "hidden_size": 8}
    return kind(QRNNConfig(**sizes, encoder_layers=2, decoder_layers=2, **changes))


def options(folder: Path, **changes: object) -> dict[str, Any]:
    """The arguments of all scripts: two epochs, the best model of them is kept."""
    return {
        "output_dir": str(folder), "num_train_epochs": 2, "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 4, "learning_rate": 0.02, "eval_strategy": "epoch",
        "save_strategy": "epoch", "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss", "use_cpu": True, "dataloader_pin_memory": False,
        "report_to": "none", "disable_tqdm": True, "push_to_hub": False, **changes,
    }  # fmt: skip


def blocks() -> Dataset:
    """As run_clm packs texts: one after the other, cut into blocks."""

    def group(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        rows = {name: list(chain(*examples[name])) for name in examples}
        end = len(rows["input_ids"]) // BLOCK * BLOCK
        cut = {k: [v[i : i + BLOCK] for i in range(0, end, BLOCK)] for k, v in rows.items()}
        return cut | {"labels": [list(ids) for ids in cut["input_ids"]]}

    encoded = Dataset.from_dict(dict(TOKENIZER(TEXTS)))
    return encoded.map(group, batched=True)


def pairs() -> Dataset:
    rows = [dict(TOKENIZER(text, text_target=text[::-1])) for text in TEXTS]
    return Dataset.from_list(rows)


def single_rows() -> Dataset:
    return Dataset.from_list([{**TOKENIZER(t), "label": int("a" in t), "text": t} for t in TEXTS])


def without(dataset: Dataset, name: str) -> Dataset:
    return dataset.remove_columns(name)


@torch.no_grad()
def mean_nats(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """Of the next tokens of a batch."""
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]
    terms = -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return terms[labels != -100].mean().item()


@pytest.mark.parametrize("name", modeling_qrnn.__all__)
def test_labels_are_the_only_labels(name: str) -> None:
    # Trainer evaluates a batch only where it holds all that find_labels names.
    expected = ["labels"] if "For" in name else []
    assert find_labels(getattr(modeling_qrnn, name)) == expected


# ------------------------------------------------------------------ run_clm


def language_trainer(folder: Path, **changes: object) -> Trainer:
    def only_choices(logits: Any, labels: torch.Tensor) -> torch.Tensor:
        assert logits.shape == (*labels.shape, len(TOKENIZER))
        return logits.argmax(-1)

    def accuracy(result: EvalPrediction) -> dict[str, float]:
        return {"accuracy": float((result.predictions[:, :-1] == result.label_ids[:, 1:]).mean())}

    return Trainer(
        make(QRNNForCausalLM),
        TrainingArguments(**options(folder, **changes)),
        train_dataset=blocks(),
        eval_dataset=blocks(),
        processing_class=TOKENIZER,
        data_collator=default_data_collator,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=only_choices,
    )


def test_language_model_flow(tmp_path: Path) -> None:
    trainer = language_trainer(tmp_path)
    trainer.train()
    metrics = trainer.evaluate()
    model = trainer.model.eval()
    batch = default_data_collator(list(blocks()))
    assert metrics["eval_loss"] == pytest.approx(mean_nats(model, batch), rel=1e-5)
    choices = model(batch["input_ids"]).logits.argmax(-1)
    expected = (choices[:, :-1] == batch["labels"][:, 1:]).float().mean().item()
    assert metrics["eval_accuracy"] == pytest.approx(expected)
    seen = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert metrics["eval_loss"] == pytest.approx(min(seen[:2]))
    assert seen[1] < seen[0]
    trainer.save_model()
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(batch["input_ids"]).logits, model(batch["input_ids"]).logits)


def test_language_model_flow_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = language_trainer(tmp_path / "whole", gradient_accumulation_steps=2)
    whole.train()
    first = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))[0]
    resumed = language_trainer(tmp_path / "resumed", gradient_accumulation_steps=2)
    resumed.train(resume_from_checkpoint=str(first))
    for own, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_language_model_flow_with_pads(tmp_path: Path) -> None:
    """The collator for language models: rows of different lengths, labels from the ids."""
    collator = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    data = Dataset.from_dict(dict(TOKENIZER(TEXTS)))
    changes = {
        "per_device_eval_batch_size": len(TEXTS), "train_sampling_strategy": "group_by_length",
    }  # fmt: skip
    trainer = Trainer(
        make(QRNNForCausalLM),
        TrainingArguments(**options(tmp_path, **changes)),
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator,
        compute_metrics=lambda result: {"width": result.predictions.shape[1]},
    )
    trainer.train()
    metrics = trainer.evaluate()
    model, batch = trainer.model.eval(), dict(collator(list(data)))
    assert metrics["eval_loss"] == pytest.approx(mean_nats(model, batch), rel=1e-5)
    assert metrics["eval_width"] == max(map(len, data["input_ids"]))


# ------------------------------------------------------------------ run_translation


def translation_trainer(folder: Path, metrics: Callable[..., Any], **changes: object) -> Any:
    model = make(QRNNForConditionalGeneration)
    model.generation_config.max_length = 14
    return Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(**options(folder, **changes)),
        train_dataset=pairs(),
        eval_dataset=pairs(),
        processing_class=TOKENIZER,
        data_collator=DataCollatorForSeq2Seq(TOKENIZER, model),
        compute_metrics=metrics,
    )


def batches_of(trainer: Any) -> list[dict[str, torch.Tensor]]:
    rows = list(pairs())
    parts = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    return [dict(trainer.data_collator(part)) for part in parts]


def test_translation_flow_that_generates(tmp_path: Path) -> None:
    def written(result: EvalPrediction) -> dict[str, float]:
        ids = np.where(result.predictions != -100, result.predictions, TOKENIZER.pad_token_id)
        return {"chars": sum(map(len, TOKENIZER.batch_decode(ids, skip_special_tokens=True)))}

    trainer = translation_trainer(tmp_path, written, predict_with_generate=True)
    trainer.train()
    metrics = trainer.evaluate(max_length=9, num_beams=2)
    model, losses = trainer.model.eval(), []
    for batch in batches_of(trainer):
        losses += [model(**batch).loss.item()] * len(batch["labels"])
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    results = trainer.predict(pairs(), metric_key_prefix="predict", max_length=9, num_beams=2)
    expected = 0
    for text in TEXTS:
        one = TOKENIZER(text, return_tensors="pt")
        (ids,) = model.generate(**one, max_length=9, num_beams=2)
        expected += len(TOKENIZER.decode(ids, skip_special_tokens=True))
    assert results.metrics["predict_chars"] == metrics["eval_chars"] == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_translation_flow_that_does_not_generate(smoothing: float, tmp_path: Path) -> None:
    """As for every encoder-decoder of transformers, the logits come with the encoder's states."""
    shapes = []

    def look(result: EvalPrediction) -> dict[str, float]:
        logits, states = result.predictions
        shapes.append((logits.shape, states.shape, result.label_ids.shape))
        real = result.label_ids != -100
        return {"right": int((logits.argmax(-1) == result.label_ids)[real].sum())}

    trainer = translation_trainer(tmp_path, look, label_smoothing_factor=smoothing)
    trainer.train()
    metrics = trainer.evaluate()
    length = max(len(TOKENIZER(text).input_ids) for text in TEXTS)
    rows = len(TEXTS)
    expected = ((rows, length, len(TOKENIZER)), (rows, length, 8), (rows, length))
    assert set(shapes) == {expected}
    model, right = trainer.model.eval(), 0
    losses: list[float] = []
    for batch in batches_of(trainer):
        output = model(**batch, smoothing=smoothing)
        right += int((output.logits.argmax(-1) == batch["labels"]).sum())
        losses += [output.loss.item()] * len(batch["labels"])
    assert metrics["eval_right"] == right
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


# ------------------------------------------------------------------ run_glue


def test_classification_flow(tmp_path: Path) -> None:
    looked_at = []

    def accuracy(result: EvalPrediction) -> dict[str, float]:
        looked_at.append(result.inputs.shape[0])
        return {"accuracy": float((result.predictions.argmax(1) == result.label_ids).mean())}

    changes = {
        "metric_for_best_model": "accuracy", "include_for_metrics": ["inputs"],
    }  # fmt: skip
    trainer = Trainer(
        make(QRNNForSequenceClassification),
        TrainingArguments(**options(tmp_path, **changes)),
        train_dataset=single_rows(),
        eval_dataset=single_rows(),
        compute_metrics=accuracy,
        processing_class=TOKENIZER,  # which makes DataCollatorWithPadding the collator
    )
    assert isinstance(trainer.data_collator, DataCollatorWithPadding)
    trainer.train()
    metrics = trainer.evaluate()
    model = trainer.model.eval()
    logits = torch.cat([model(**TOKENIZER(t, return_tensors="pt")).logits for t in TEXTS])
    labels = torch.tensor(["a" in text for text in TEXTS]).long()
    right = (logits.argmax(1) == labels).float().mean().item()
    assert metrics["eval_accuracy"] == pytest.approx(right)
    assert metrics["eval_loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, labels).item(), rel=1e-4
    )
    assert set(looked_at) == {len(TEXTS)}
    predicted = trainer.predict(without(single_rows(), "label")).predictions
    np.testing.assert_allclose(predicted, logits.detach(), atol=1e-5)
    trainer.save_model()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.problem_type == "single_label_classification"


NUMBERS = [0.5, -1.0, 2.0, 0.0, 1.0, 0.25, -0.5, 3.0]
TARGETS: dict[str, tuple[int, list[Any]]] = {
    "one of two": (2, [0, 1, 1, 0, 1, 0, 0, 1]),
    "a number": (1, NUMBERS),
    "two numbers": (2, [[x, -x] for x in NUMBERS]),
    "several labels": (2, [[float(x > 0), 1.0] for x in NUMBERS]),
}


@pytest.mark.parametrize(("num_labels", "labels"), TARGETS.values(), ids=TARGETS)
def test_accumulated_steps_of_a_classifier_equal_one_big_batch(
    num_labels: int, labels: list[Any], tmp_path: Path
) -> None:
    problem = "regression" if num_labels == 2 and labels[0] == [0.5, -0.5] else None
    data = [{**TOKENIZER(t), "labels": y} for t, y in zip(TEXTS, labels, strict=True)]
    models = []
    for rows, steps in ((8, 1), (2, 4)):
        model = make(QRNNForSequenceClassification, num_labels=num_labels, problem_type=problem)
        arguments = options(
            tmp_path, per_device_train_batch_size=rows, gradient_accumulation_steps=steps,
            optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", max_grad_norm=0.0,
            train_sampling_strategy="sequential", eval_strategy="no", save_strategy="no",
            load_best_model_at_end=False,
        )  # fmt: skip
        collator = DataCollatorWithPadding(TOKENIZER)
        trainer = Trainer(
            model, TrainingArguments(**arguments), train_dataset=data, data_collator=collator
        )
        trainer.train()
        models.append(model)
    big, small = models
    before = make(QRNNForSequenceClassification, num_labels=num_labels).classifier.weight
    assert (big.classifier.weight - before).abs().max() > 1e-3
    for name, parameter in big.named_parameters():
        torch.testing.assert_close(small.get_parameter(name), parameter, msg=name)


# ------------------------------------------------------------------ what is gathered


@pytest.mark.parametrize("flag", ["use_cache", "output_hidden_states", "output_attentions"])
def test_predictions_of_batches_of_other_lengths_are_put_together(
    flag: str, tmp_path: Path
) -> None:
    collator = DataCollatorForSeq2Seq(TOKENIZER, label_pad_token_id=0)
    for kind in (QRNNModel, *HEADS):
        data = pairs().rename_column("labels", "decoder_input_ids")
        if kind not in (QRNNModel, QRNNForConditionalGeneration):
            data = without(data, "decoder_input_ids")
        model = make(kind).eval()
        setattr(model.config, flag, True)
        arguments = TrainingArguments(
            str(tmp_path), per_device_eval_batch_size=1, use_cpu=True,
            dataloader_pin_memory=False, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        predictions = Trainer(model, arguments, data_collator=collator).predict(data).predictions
        first = predictions[0] if isinstance(predictions, tuple) else predictions
        for index, row in enumerate(data):
            names = [n for n in row if n in ("input_ids", "attention_mask", "decoder_input_ids")]
            (expected,) = model(**{n: torch.tensor([row[n]]) for n in names})[0].detach()
            got = first[index, : len(expected)] if expected.dim() > 1 else first[index]
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [QRNNModel, *HEADS], ids=lambda kind: kind.__name__)
def test_whole_outputs_are_detached_and_concatenated(kind: type[PreTrainedModel]) -> None:
    model = make(kind, use_cache=False)
    own = {"input_ids": torch.tensor([[5, 6, 7]])}
    if kind in (QRNNModel, QRNNForConditionalGeneration):
        own["decoder_input_ids"] = torch.tensor([[3, 7]])
    outputs = [model(**own, output_hidden_states=True) for _ in range(2)]
    assert outputs[0][0].requires_grad
    detached = [nested_detach(output) for output in outputs]
    assert type(detached[0]) is type(outputs[0])
    assert not detached[0][0].requires_grad
    both = nested_numpify(nested_concat(*detached))
    assert both[0].shape[0] == 2
    assert list(both) == list(outputs[0])
