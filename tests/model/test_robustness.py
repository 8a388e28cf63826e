"""Odd and wrong inputs: the right result, or one sentence that says what is wrong."""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_models import small
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from hf_qrnn import (
    QRNNCache,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
    pool,
)
from hf_qrnn.data.tokenization import train_character_tokenizer
from hf_qrnn.model.modeling_qrnn import QRNNEncoderOutput
from hf_qrnn.translation.search import generate_hypotheses
from hf_qrnn.translation.translator import Translator, load_translator

POOLING = ("f", "fo", "ifo")


def seq2seq(**changes: Any) -> QRNNForConditionalGeneration:
    return QRNNForConditionalGeneration(small(**changes)).eval()


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 20, (3, 7))
    decoder_ids = torch.randint(4, 20, (3, 5))
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}


def translator(texts: list[str], **changes: Any) -> Translator:
    """An untrained one that knows the characters of `texts`."""
    tokenizer = train_character_tokenizer(texts)
    return Translator(seq2seq(vocab_size=len(tokenizer), **changes), tokenizer)


# ------------------------------------------------------------------ texts


@pytest.mark.parametrize("text", ["", " ", "\u00a0\t"])
def test_empty_text_has_an_empty_translation(text: str) -> None:
    both = translator(["abc"]).translate([text, "abc"], num_beams=2)
    assert (both[0][0].text, both[0][0].score) == ("", 0.0)
    assert len(both[1]) == 1


@pytest.mark.parametrize("text", ["a", "\u4e2d", "\u4e2d\u6587\u4e2d", "\U0001f600"])
def test_one_character_and_unknown_ones_are_translated(text: str) -> None:
    model = translator(["abc "])
    alone = model.translate([text])[0][0]
    beside = model.translate(["cab cab", text])[1][0]
    assert alone.text == beside.text
    assert math.isfinite(alone.score)
    assert beside.score == pytest.approx(alone.score, abs=1e-4)


def test_a_hundred_thousand_characters_are_translated() -> None:
    model = translator(["abc "], encoder_layers=1, decoder_layers=1)
    end = model.tokenizer.eos_token_id
    with torch.no_grad():
        model.model.lm_head.bias[end] = 100.0  # ends at once: the source is what is long here
    found = model.translate(["abc " * 25_000, "abc"])
    assert [row[0].text for row in found] == ["", ""]
    assert all(math.isfinite(row[0].score) for row in found)


# ------------------------------------------------------------------ rows and lengths


@pytest.mark.parametrize("pooling", POOLING)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_row_of_pads_is_finite_and_changes_no_other(pooling: str, bidirectional: bool) -> None:
    model = seq2seq(pooling=pooling, encoder_bidirectional=bidirectional)
    given = inputs()
    alone = model(**given).logits
    given["attention_mask"][1] = 0
    output = model(**given)
    assert output.logits.isfinite().all()
    assert not output.encoder_last_hidden_state[1].any()
    torch.testing.assert_close(output.logits[[0, 2]], alone[[0, 2]])
    tokens = model.generate(
        given["input_ids"], attention_mask=given["attention_mask"], max_length=6
    )
    assert tokens.shape[0] == 3


@pytest.mark.parametrize("kind", [QRNNForCausalLM, QRNNForSequenceClassification])
def test_row_of_pads_is_finite_in_the_other_heads(kind: type) -> None:
    model = kind(small()).eval()
    mask = torch.tensor([[1] * 7, [0] * 7])
    assert model(torch.randint(4, 20, (2, 7)), attention_mask=mask).logits.isfinite().all()


def test_sequence_without_a_step_is_finite() -> None:
    model = seq2seq()
    output = model(torch.zeros(2, 0, dtype=torch.int64), decoder_input_ids=torch.tensor([[3], [3]]))
    assert output.logits.shape == (2, 1, 20)
    assert output.logits.isfinite().all()


# ------------------------------------------------------------------ wrong tensors

WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("input_ids", torch.full((3, 7), 20), ValueError, "in [0, 20), but holds 20"),
    ("input_ids", torch.full((3, 7), -1), ValueError, "in [0, 20), but holds -1"),
    ("decoder_input_ids", torch.full((3, 5), -100), ValueError, "in [0, 20), but holds -100"),
    ("input_ids", torch.ones(3, 7), TypeError, "int64 or int32, but is torch.float32"),
    ("decoder_input_ids", torch.ones(3, 5), TypeError, "int64 or int32, but is torch.float32"),
    ("input_ids", torch.ones(3, 7).bool(), TypeError, "int64 or int32, but is torch.bool"),
    ("input_ids", torch.ones(7).long(), ValueError, "have shape (batch, length), but has (7,)"),
    ("attention_mask", torch.ones(2, 7), ValueError, "(3, 7), but is (2, 7)"),
    ("attention_mask", torch.ones(1, 7), ValueError, "(3, 7), but is (1, 7)"),
    ("attention_mask", torch.ones(3, 8), ValueError, "(3, 7), but is (3, 8)"),
    ("attention_mask", torch.ones(3, 1, 1, 7), ValueError, "(3, 7), but is (3, 1, 1, 7)"),
    ("attention_mask", torch.full((3, 7), -1e9), ValueError, "0 or 1, but holds -1000000000.0"),
    ("attention_mask", torch.tensor([[1, 0, 1, 1, 1, 1, 1]] * 3), ValueError, "row 0 has a hole"),
    ("decoder_attention_mask", torch.ones(2, 5), ValueError, "(3, at least 5), but is (2, 5)"),
    ("decoder_attention_mask", torch.ones(3, 4), ValueError, "(3, at least 5), but is (3, 4)"),
    ("labels", torch.ones(3, 4).long(), ValueError, "have shape (3, 5), but has (3, 4)"),
    ("labels", torch.ones(2, 5).long(), ValueError, "have shape (3, 5), but has (2, 5)"),
    ("labels", torch.ones(3, 5), TypeError, "int64 or int32, but is torch.float32"),
    ("labels", torch.full((3, 5), 21), ValueError, "-100 or in [0, 20), but holds 21"),
]


@pytest.mark.parametrize(("name", "value", "error", "rule"), WRONG, ids=range(len(WRONG)))
def test_wrong_tensor_is_named(name: str, value: Any, error: type[Exception], rule: str) -> None:
    with pytest.raises(error, match=f"^`{name}` must .*{re.escape(rule)}") as caught:
        seq2seq()(**{**inputs(), name: value})
    assert "\n" not in str(caught.value)


def test_embeddings_of_another_width_are_named() -> None:
    given = inputs()
    del given["input_ids"]
    sentence = "`inputs_embeds` must be (batch, length, 6), but is (3, 7, 5)."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        seq2seq()(inputs_embeds=torch.randn(3, 7, 5), **given)


def test_encoder_outputs_of_another_batch_or_model_are_named() -> None:
    model, given = seq2seq(), inputs()
    encoded = model.get_encoder()(given["input_ids"][:2])
    with pytest.raises(ValueError, match=r"`encoder_outputs\.last_hidden_state` must have 3 rows"):
        model(encoder_outputs=encoded, decoder_input_ids=given["decoder_input_ids"])
    states = torch.randn(3, 7, 8)
    for finals in (torch.randn(3, 4, 8), torch.randn(3, 2, 6)):
        other = QRNNEncoderOutput(last_hidden_state=states, final_states=finals)
        sentence = f"must have shape (3, 2, 8), but has {tuple(finals.shape)}."
        with pytest.raises(ValueError, match=re.escape(sentence)):
            model(encoder_outputs=other, decoder_input_ids=given["decoder_input_ids"])


def test_state_of_another_batch_is_named() -> None:
    model, cache = QRNNForCausalLM(small()).eval(), QRNNCache(2)
    model(torch.tensor([[5, 6]] * 3), past_key_values=cache)
    with pytest.raises(ValueError, match=r"`past_key_values` must have 2 rows, .* but has 3"):
        model(torch.tensor([[7]] * 2), past_key_values=cache)


def test_language_model_and_classifier_name_wrong_labels() -> None:
    ids = torch.randint(4, 20, (3, 7))
    model = QRNNForCausalLM(small()).eval()
    for name in ("labels", "shift_labels"):
        with pytest.raises(ValueError, match=rf"`{name}` must have shape \(3, 7\)"):
            model(ids, **{name: ids[:, 1:]})
    assert model(ids, labels=ids.int()).loss == model(ids, labels=ids).loss
    with pytest.raises(ValueError, match="`labels` must have 3 rows, as the inputs, but has 2"):
        QRNNForSequenceClassification(small()).eval()(ids, labels=torch.tensor([0, 1]))


@pytest.mark.parametrize("seed", [3, torch.tensor([3]), torch.tensor(3, dtype=torch.int32)])
def test_seed_that_is_no_scalar_tensor_is_named(seed: Any) -> None:
    with pytest.raises(ValueError, match="`seed` must be a 0-d int64 tensor, but is "):
        pool(torch.randn(2, 3, 12), pooling="fo", zoneout=0.5, seed=seed)


def test_wrong_inputs_are_found_without_looking_while_a_graph_is_traced() -> None:
    model, given = seq2seq(), inputs()
    given["attention_mask"][1, 4:] = 0
    expected = model(**given).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**given).logits, expected)


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize("num_beams", [1, 3])
def test_weights_that_are_no_numbers_are_named_by_who_translates(num_beams: int) -> None:
    model = seq2seq()
    with torch.no_grad():
        model.lm_head.weight[7, 2] = math.nan
    assert model(**inputs()).logits.isnan().any()  # a model computes what its weights say
    with pytest.raises(ValueError, match="`model` must give numbers, but gives NaN"):
        generate_hypotheses(model, [[5, 6, 1]], num_beams=num_beams)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = translator(["abc"])
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kept", [0, 4, 0.5, 0.99])
def test_truncated_checkpoint_is_refused(folder: Path, kept: float) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(kept if kept > 1 else kept * len(data))])
    with pytest.raises((SafetensorError, OSError)):
        AutoModelForSeq2SeqLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="`name_or_path` must be a folder with a saved") as caught:
        load_translator(str(folder))
    assert "\n" not in str(caught.value)


def test_checkpoint_with_another_shape_or_without_a_weight_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.encoder.layers.0.directions.0.convolution.weight"
    save_file({**weights, name: weights[name][:, :-1].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSeq2SeqLM.from_pretrained(folder)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 of its weights, '{re.escape(name)}'"):
        load_translator(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "qrnn", "pooling": "of"}'])
def test_altered_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="`name_or_path` must be a folder with a saved") as caught:
        load_translator(str(folder))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ configs


def test_config_of_a_newer_release_loads_and_names_what_it_does_not_know(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        AutoConfig.from_pretrained(folder)
    assert not caplog.records
    file = folder / "config.json"
    newer = {"transformers_version": "99.0.0", "rotary_gates": True, "depth_of_field": 3}
    file.write_text(json.dumps({**json.loads(file.read_text()), **newer}))
    with caplog.at_level(logging.WARNING):
        config = AutoConfig.from_pretrained(folder)
    assert [record.getMessage() for record in caplog.records] == [
        "The config has fields that this release of hf_qrnn does not know and that change nothing: "
        "`rotary_gates`, `depth_of_field`."
    ]
    assert config.to_dict()["rotary_gates"] is True  # kept for who saves it again
    assert AutoModelForSeq2SeqLM.from_pretrained(folder).config.hidden_size == 8


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("pooling", "of", "one of 'f', 'fo', 'ifo'"),
        ("hidden_size", 0, "at least 1"),
        ("decoder_layers", 3, "at least `decoder_layers` (3)"),
        ("encoder_kernel_sizes", [2], "a list of 2 of them"),
        ("dropout", 1.5, "in [0, 1)"),
    ],
)
def test_field_assigned_later_is_checked_when_a_model_is_made(
    name: str, value: Any, rule: str
) -> None:
    config = small()
    setattr(config, name, value)
    with pytest.raises(ValueError, match=f"must be .*{re.escape(rule)}"):
        QRNNModel(config)
