"""The controls of the pronunciation benchmark: equal in all but the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pronunciation_models import (
    TASKS,
    ControlTask,
    LSTMLayer,
    LSTMPronouncer,
    TransformerPronouncer,
    count_parameters,
    load_model,
    make_lstm,
    make_transformer,
)
from torch import nn
from transformers import PreTrainedModel

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.model.layers_qrnn import QRNNLayer
from hf_qrnn.training.translation_task import TranslationTask
from hf_qrnn.translation.search import generate_hypotheses

MAKERS = {"transformer": make_transformer, "lstm": make_lstm}
SIZES = {"embedding_size": 24, "hidden_size": 24, "encoder_layers": 2, "decoder_layers": 2}


def qrnn(**fields: Any) -> QRNNForConditionalGeneration:
    torch.manual_seed(0)
    given = {
        "vocab_size": 30, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3,
        "decoder_start_token_id": 3, "encoder_bidirectional": True, "reverse_source": False,
        "residual": True, "rms_norm": True, "attention_layers": "all", "num_attention_heads": 2,
        **SIZES, **fields,
    }  # fmt: skip
    return QRNNForConditionalGeneration(QRNNConfig(**given))


@pytest.fixture(params=MAKERS)
def control(request: pytest.FixtureRequest) -> PreTrainedModel:
    made: PreTrainedModel = MAKERS[request.param](qrnn())
    return made.eval()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(4, 30, (3, 7), generator=generator)
    labels = torch.randint(4, 30, (3, 5), generator=generator)
    mask = torch.ones_like(inputs)
    mask[1, 4:], inputs[1, 4:], labels[2, 3:] = 0, 0, -100
    return {"input_ids": inputs, "attention_mask": mask, "labels": labels}


# ------------------------------------------------------------------ the loop


def test_all_are_trained_by_the_same_code() -> None:
    assert TASKS["qrnn"] is TranslationTask
    own = {name for name in vars(ControlTask) if not name.startswith("_")}
    assert own == {"load", "illustrate"}
    for name in ("transformer", "lstm"):
        assert issubclass(TASKS[name], ControlTask)
        assert {x for x in vars(TASKS[name]) if not x.startswith("_")} == {"make"}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("width", [96, 192])
def test_controls_have_as_many_parameters(name: str, width: int) -> None:
    like = qrnn(
        hidden_size=width, embedding_size=width, encoder_layers=3, encoder_kernel_sizes=[4, 2, 2],
        num_attention_heads=4, vocab_size=100,
    )  # fmt: skip
    assert count_parameters(MAKERS[name](like)) == pytest.approx(count_parameters(like), rel=0.04)


def test_the_transformer_is_that_of_the_literature_but_for_its_width() -> None:
    config = make_transformer(qrnn(dropout=0.3)).config
    sides = ("encoder", "decoder")
    assert [getattr(config, f"{side}_layers") for side in sides] == [4, 4]
    assert [getattr(config, f"{side}_attention_heads") for side in sides] == [4, 4]
    assert [getattr(config, f"{side}_ffn_dim") for side in sides] == [4 * config.d_model] * 2
    assert config.dropout == config.attention_dropout == 0.3


def test_the_lstm_has_no_quasi_recurrent_layer_left_and_all_else() -> None:
    like, made = qrnn(), make_lstm(qrnn())
    kinds = [type(module) for module in made.modules()]
    assert QRNNLayer not in kinds
    assert kinds.count(LSTMLayer) == 2 * 2 + 2
    others = {type(module) for module in like.modules()} - {QRNNLayer, type(like)}
    assert others <= set(kinds)
    with pytest.raises(ValueError, match="`attention_layers` must be 'all' for the LSTM"):
        make_lstm(qrnn(attention_layers="last"))


def test_the_widths_that_were_tried_draw_no_weights() -> None:
    like = qrnn()
    torch.manual_seed(3)
    made = make_lstm(like)
    torch.manual_seed(3)
    direct = LSTMPronouncer(made.config)
    for name, weight in direct.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], weight, rtol=0, atol=0)


# ------------------------------------------------------------------ the models


def test_the_loss_is_that_of_the_training_loop(control: PreTrainedModel) -> None:
    given = batch()
    output = control(**given, num_items_in_batch=1, smoothing=0.1)
    rows, labels = output.logits.flatten(0, 1), given["labels"].flatten()
    expected = [
        nn.functional.cross_entropy(rows, labels, reduction="sum", label_smoothing=share)
        for share in (0.1, 0.0)
    ]
    torch.testing.assert_close(output.loss, expected[0])
    torch.testing.assert_close(output.unsmoothed_loss, expected[1])


def test_a_target_sees_nothing_that_follows(control: PreTrainedModel) -> None:
    given = batch()
    before = control(**given).logits
    given["labels"] = given["labels"].clone()
    given["labels"][:, 3] = 4
    torch.testing.assert_close(control(**given).logits[:, :4], before[:, :4])


def test_pads_change_nothing(control: PreTrainedModel) -> None:
    given = batch()
    alone = {name: x[1:2] for name, x in given.items()}
    alone["input_ids"], alone["attention_mask"] = (
        alone[name][:, :4] for name in ("input_ids", "attention_mask")
    )
    torch.testing.assert_close(control(**alone).logits, control(**given).logits[1:2])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_step_by_step_has_the_score_of_the_whole(
    control: PreTrainedModel, num_beams: int
) -> None:
    rows = [[5, 6, 7, 8, 1], [9, 10, 1]]
    found = generate_hypotheses(control, rows, num_beams=num_beams, max_new_tokens=6)
    for row, (best, *_) in zip(rows, found, strict=True):
        labels = torch.tensor([best.ids + ([] if best.is_cut else [1])])
        with torch.no_grad():
            nats = control(input_ids=torch.tensor([row]), labels=labels, num_items_in_batch=1).loss
        share = 1 if num_beams == 1 else labels.shape[1]
        assert best.score * share == pytest.approx(-float(nats), rel=1e-4)


def test_a_saved_control_is_loaded_again(control: PreTrainedModel, tmp_path: Path) -> None:
    name = "lstm" if isinstance(control, LSTMPronouncer) else "transformer"
    control.save_pretrained(tmp_path)
    loaded = load_model(name, tmp_path)
    assert isinstance(loaded, (LSTMPronouncer, TransformerPronouncer))
    assert not loaded.training
    torch.testing.assert_close(loaded(**batch()).logits, control(**batch()).logits)


def test_the_backward_lstm_reads_real_steps_from_the_last_one() -> None:
    torch.manual_seed(0)
    layer = LSTMLayer(QRNNLayer(4, 3, 2, causal=False, reverse=True))
    x, mask = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    found = layer(x, mask).h
    torch.testing.assert_close(found[0], layer.lstm(x[:1].flip(1))[0].flip(1)[0])
    torch.testing.assert_close(found[1, :3], layer.lstm(x[1:, :3].flip(1))[0].flip(1)[0])
    assert not found[1, 3:].any()
