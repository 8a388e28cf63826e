"""The training interfaces of transformers: every option does what it does for any other model."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from hf_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
)
from hf_qrnn.data.tokenization import train_character_tokenizer
from hf_qrnn.model.layers_qrnn import QRNNLayer

TEXTS = ["abc", "hgfedcba", "b", "dead", "a bag", "face", "he", "cabbage"]
TOKENIZER = train_character_tokenizer(TEXTS)
HEADS = (QRNNForConditionalGeneration, QRNNForCausalLM, QRNNForSequenceClassification)
each_head = pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.__name__)


def make(kind: type[PreTrainedModel], **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = QRNNConfig(
        vocab_size=len(TOKENIZER), embedding_size=6, hidden_size=8, encoder_layers=2,
        decoder_layers=2, **changes,
    )  # fmt: skip
    return kind(config)


def rows(kind: type[PreTrainedModel]) -> list[dict[str, object]]:
    """One row a text; the model of pairs learns to reverse it."""
    if kind is QRNNForConditionalGeneration:
        return [dict(TOKENIZER(text, text_target=text[::-1])) for text in TEXTS]
    encoded = [dict(TOKENIZER(text)) for text in TEXTS]
    if kind is QRNNForCausalLM:
        return [row | {"labels": list(row["input_ids"])} for row in encoded]
    return [row | {"labels": index % 2} for index, row in enumerate(encoded)]


def collate(batch: list[dict[str, object]]) -> dict[str, torch.Tensor]:
    """Right-padded rows, labels with -100."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] for row in batch])
        if isinstance(batch[0][name], int)
        else nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name]) for row in batch], True, padding_value=fill[name]
        )
        for name in batch[0]
    }


def train(model: PreTrainedModel, folder: Path, **options: object) -> Trainer:
    """Two epochs of plain gradient descent over all rows, in order; 8 rows a step."""
    defaults = {
        "num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 0.5,
        "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "use_cpu": True,
        "dataloader_pin_memory": False, "report_to": "none", "save_strategy": "no",
        "train_sampling_strategy": "sequential", "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **(defaults | options)),
        train_dataset=rows(type(model)),
        data_collator=collate,
    )
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_weights(first: PreTrainedModel, second: PreTrainedModel) -> None:
    other = second.state_dict()
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, other[name], atol=1e-6, rtol=1e-5, msg=name)


@each_head
def test_trainer_takes_the_steps_of_a_plain_loop(
    kind: type[PreTrainedModel], tmp_path: Path
) -> None:
    model = make(kind)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    expected = []
    for _ in range(2):
        loss = plain(**collate(rows(kind))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    trainer = train(model, tmp_path)
    assert losses(trainer) == pytest.approx(expected, abs=1e-4)
    assert_same_weights(model, plain)


@pytest.mark.parametrize("kind", HEADS[:2], ids=lambda kind: kind.__name__)
def test_accumulated_steps_equal_one_big_batch(kind: type[PreTrainedModel], tmp_path: Path) -> None:
    """Rows of different lengths in micro-batches: only `num_items_in_batch` makes them equal."""
    big, small = make(kind), make(kind)
    train(big, tmp_path)
    train(small, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert_same_weights(big, small)


@each_head
def test_gradient_checkpointing_changes_nothing(
    kind: type[PreTrainedModel], tmp_path: Path
) -> None:
    # Dropout too: the recomputed forward must draw the same bits.
    plain, checkpointed = make(kind, dropout=0.2, zoneout=0.1), make(kind, dropout=0.2, zoneout=0.1)
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    # Its name up to transformers 5.17.
    option = {"activation_checkpointing", "gradient_checkpointing"} & names
    calls = []
    for model in (plain, checkpointed):
        (layer, *_) = (part for part in model.modules() if isinstance(part, QRNNLayer))
        layer.register_forward_pre_hook(lambda *_, model=model: calls.append(model is plain))
    train(plain, tmp_path)
    train(checkpointed, tmp_path, **{min(option): True})
    assert (calls.count(True), calls.count(False)) == (2, 4)  # every forward is run again
    assert_same_weights(plain, checkpointed)


@pytest.mark.parametrize("kind", HEADS[:2], ids=lambda kind: kind.__name__)
def test_label_smoothing_is_that_of_the_model(kind: type[PreTrainedModel], tmp_path: Path) -> None:
    """Trainer smooths outside of the model: it must know which heads shift their labels."""
    model = make(kind)
    model.lm_head.weight.data *= 30  # smoothing hardly changes the loss of flat predictions
    batch = collate(rows(kind))
    expected = model(**batch, smoothing=0.3).loss.item()
    without = model(**batch).loss.item()
    arguments = {"label_smoothing_factor": 0.3, "max_steps": 1, "data_seed": 0}
    if kind is QRNNForConditionalGeneration:
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, **arguments))
    loss = trainer.compute_loss(model, dict(batch)).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert abs(without - loss) > 1e-3


def reversing_trainer(folder: Path, **options: object) -> Seq2SeqTrainer:
    model = make(QRNNForConditionalGeneration)
    model.generation_config.max_length = 14
    arguments = Seq2SeqTrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=3, predict_with_generate=True,
        use_cpu=True, dataloader_pin_memory=False, report_to="none", disable_tqdm=True, **options,
    )  # fmt: skip
    return Seq2SeqTrainer(
        model,
        arguments,
        train_dataset=rows(QRNNForConditionalGeneration),
        eval_dataset=rows(QRNNForConditionalGeneration),
        data_collator=DataCollatorForSeq2Seq(TOKENIZER, model),
        processing_class=TOKENIZER,
        compute_metrics=lambda result: {"rows": len(result.predictions)},
    )


@pytest.mark.parametrize("num_beams", [1, 3])
def test_seq2seq_trainer_predicts_what_generate_writes(num_beams: int, tmp_path: Path) -> None:
    trainer = reversing_trainer(tmp_path, generation_num_beams=num_beams, generation_max_length=9)
    trainer.train()
    result = trainer.predict(trainer.eval_dataset)
    # As transformers does: no longer than generation_max_length, padded to the model's own limit.
    assert result.predictions.shape == (len(TEXTS), 14)
    assert result.metrics["test_rows"] == len(TEXTS)
    for text, predicted in zip(TEXTS, result.predictions, strict=True):
        inputs = TOKENIZER(text, return_tensors="pt")
        expected = trainer.model.generate(**inputs, num_beams=num_beams, max_length=9)[0].tolist()
        assert predicted.tolist() == expected + [0] * (14 - len(expected))


def test_seq2seq_trainer_smooths_evaluates_saves_and_goes_on(tmp_path: Path) -> None:
    options = {"label_smoothing_factor": 0.1, "save_steps": 1, "eval_strategy": "steps"}
    trainer = reversing_trainer(tmp_path, eval_steps=1, **options)
    trainer.train()
    saved = tmp_path / "checkpoint-2"
    assert {"model.safetensors", "modeling_qrnn.py", "tokenizer.json"} <= {
        path.name for path in saved.iterdir()
    }
    again = QRNNForConditionalGeneration.from_pretrained(saved)
    assert_same_weights(trainer.model, again)
    interrupted = reversing_trainer(tmp_path, eval_steps=1, **options)
    interrupted.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert_same_weights(trainer.model, interrupted.model)


# ------------------------------------------------------------------ torch.compile

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore")  # compilers warn of what they themselves do
def test_compiled_training_takes_the_same_steps(backend: str, tmp_path: Path) -> None:
    kind = QRNNForConditionalGeneration
    model, compiled = make(kind), make(kind)
    train(model, tmp_path)
    try:
        train(compiled, tmp_path, torch_compile=True, torch_compile_backend=backend)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # it would go on compiling
    assert_same_weights(model, compiled)


@pytest.mark.slow  # test_modeling.py holds the translation model's, with the fast backend
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@each_head
@pytest.mark.filterwarnings("ignore")
def test_compiled_step_is_one_graph_with_equal_gradients(
    kind: type[PreTrainedModel], backend: str
) -> None:
    model = make(kind)
    batch = collate(rows(kind))
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, backend=backend, fullgraph=True)(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


# ------------------------------------------------------------------ PEFT


@pytest.mark.filterwarnings("ignore")
def test_lora_trains_saves_and_generates(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is no dependency")
    base = make(QRNNForConditionalGeneration)
    config = peft.LoraConfig(r=2, target_modules=["convolution", "encoding", "lm_head"])
    model = peft.get_peft_model(copy.deepcopy(base), config)
    model.train()
    batch = collate(rows(QRNNForConditionalGeneration))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    first = model(**batch).loss
    first.backward()
    assert all("lora" in name for name, p in model.named_parameters() if p.grad is not None)
    optimizer.step()
    assert model(**batch).loss < first
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    inputs = TOKENIZER(["abc", "dead"], return_tensors="pt", padding=True)
    options = {"num_beams": 2, "max_new_tokens": 6}
    got = again.generate(**inputs, **options)
    assert torch.equal(got, model.eval().generate(**inputs, **options))
    assert torch.equal(again.merge_and_unload().generate(**inputs, **options), got)
