"""The heads: losses, shapes, options, one base layout (mathematics: test_encoder_decoder.py)."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from hf_qrnn import (
    QRNNCache,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
)
from hf_qrnn.model.configuration_qrnn import CLASSIFIER_POOLING
from hf_qrnn.model.losses_qrnn import shift_tokens_right, token_loss

MODERN = {
    "encoder_bidirectional": True,
    "reverse_source": False,
    "residual": True,
    "rms_norm": True,
    "attention_layers": "all",
    "num_attention_heads": 2,
    "attention_scaling": True,
}
VARIANTS = {
    "paper": {},
    "modern": MODERN,
    "dense ifo": {"dense_connections": True, "pooling": "ifo", "encoder_layers": 3},
    "f with feed-forward": {"pooling": "f", "feed_forward_size": 12},
}


small = functools.partial(small_models.small, embedding_size=8)


def batch() -> dict[str, torch.Tensor]:
    input_ids = torch.randint(4, 20, (3, 7))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5])
    labels = torch.randint(4, 20, (3, 6))
    labels[1, 4:] = -100
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_parameter_gets_a_gradient(changes: dict[str, object]) -> None:
    model = QRNNForConditionalGeneration(small(**changes)).train()
    model(**batch()).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_loss_is_the_mean_over_real_labels() -> None:
    model = QRNNForConditionalGeneration(small()).eval()
    inputs = batch()
    output = model(**inputs)
    log_p = output.logits.log_softmax(-1)
    terms = [
        -log_p[b, t, inputs["labels"][b, t]]
        for b in range(3)
        for t in range(6)
        if inputs["labels"][b, t] != -100
    ]
    torch.testing.assert_close(output.loss, torch.stack(terms).mean())


def test_num_items_in_batch_makes_accumulation_equal_one_batch() -> None:
    model = QRNNForConditionalGeneration(small()).eval()
    inputs = batch()
    whole = model(**inputs).loss
    total = int((inputs["labels"] != -100).sum())
    parts = [
        model(**{k: v[row] for k, v in inputs.items()}, num_items_in_batch=total).loss
        for row in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_label_smoothing_matches_the_definition() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, -100], [0, -100, 4]])
    log_p = logits.log_softmax(-1)
    terms = []
    for b, t in [(0, 0), (0, 1), (1, 0), (1, 2)]:
        own = -log_p[b, t, labels[b, t]]
        terms.append(0.9 * own + 0.1 * -log_p[b, t].mean())
    smoothed = token_loss(logits, labels, smoothing=0.1).loss
    torch.testing.assert_close(smoothed, torch.stack(terms).mean())


def test_smoothed_loss_is_torchs_own_to_the_bit_with_its_gradient() -> None:
    labels = torch.randint(0, 20, (4, 7)).masked_fill(torch.rand(4, 7) < 0.3, -100)
    ours, theirs = (torch.randn(4, 7, 20).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    loss = token_loss(ours, labels, num_items_in_batch=3, smoothing=0.1).loss
    assert loss is not None
    expected = nn.functional.cross_entropy(
        theirs.flatten(0, 1), labels.flatten(), label_smoothing=0.1, reduction="sum"
    )
    (expected / 3).backward()
    loss.backward()
    assert torch.equal(loss, expected / 3)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_smoothed_loss_comes_with_the_one_without() -> None:
    for kind in (QRNNForConditionalGeneration, QRNNForCausalLM):
        ids, model = torch.randint(4, 20, (2, 5)), kind(small()).eval()
        plain = model(ids, labels=ids, num_items_in_batch=4)
        smoothed = model(ids, labels=ids, num_items_in_batch=4, smoothing=0.2)
        assert "unsmoothed_loss" not in plain
        assert smoothed.loss != plain.loss
        assert torch.equal(smoothed.unsmoothed_loss, plain.loss)
        assert not smoothed.unsmoothed_loss.requires_grad


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_share_that_cannot_be_spread_is_refused(share: float) -> None:
    for kind in (QRNNForConditionalGeneration, QRNNForCausalLM):
        ids = torch.randint(4, 20, (2, 3))
        with pytest.raises(ValueError, match=rf"`smoothing` must be in \[0, 1\), but is {share}"):
            kind(small())(ids, labels=ids, smoothing=share)


def test_loss_without_any_label_is_zero_not_nan() -> None:
    loss = token_loss(torch.randn(1, 2, 5), torch.full((1, 2), -100)).loss
    assert loss is not None
    assert loss.item() == 0.0


def test_random_weights_start_near_the_uniform_loss() -> None:
    config = small(vocab_size=90, hidden_size=64, embedding_size=64)
    model = QRNNForConditionalGeneration(config).eval()
    labels = torch.randint(4, 90, (8, 30))
    loss = model(input_ids=torch.randint(4, 90, (8, 30)), labels=labels).loss.item()
    assert loss == pytest.approx(math.log(90), rel=0.15)


def test_initialisation_opens_the_forget_gate() -> None:
    model = QRNNModel(small(forget_bias=2.0))
    bias = model.decoder.layers[0].layer.convolution.bias
    assert bias.tolist() == [0.0] * 8 + [2.0] * 8 + [0.0] * 8
    weight = QRNNModel(small(hidden_size=256, embedding_size=256)).encoder.layers[1]
    std = weight.directions[0].convolution.weight.std().item()
    assert std == pytest.approx((2 * 256) ** -0.5, rel=0.05)


def test_shift_tokens_right() -> None:
    shifted = shift_tokens_right(torch.tensor([[5, 6, 1], [7, 1, -100]]), 0, 3)
    assert shifted.tolist() == [[3, 5, 6], [3, 7, 1]]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_hidden_states_and_attentions_have_their_shapes(changes: dict[str, object]) -> None:
    config = small(**changes)
    model = QRNNForConditionalGeneration(config).eval()
    output = model(**batch(), output_hidden_states=True, output_attentions=True)
    assert len(output.encoder_hidden_states) == config.encoder_layers + 1
    assert len(output.decoder_hidden_states) == config.decoder_layers + 1
    assert output.encoder_hidden_states[-1] is output.encoder_last_hidden_state
    assert output.decoder_hidden_states[-1].shape == (3, 6, 8)
    num_attending = 2 if config.attention_layers == "all" else 1
    assert len(output.cross_attentions) == num_attending
    for weights in output.cross_attentions:
        assert weights.shape == (3, config.num_attention_heads, 6, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
        assert not weights[1, ..., 5:].any()
        assert not weights[2, ..., 2:].any()


def test_weights_asked_for_or_not_give_the_same_logits() -> None:
    for changes in VARIANTS.values():
        model = QRNNForConditionalGeneration(small(**changes)).eval()
        inputs = batch()
        plain, with_weights = model(**inputs), model(**inputs, output_attentions=True)
        torch.testing.assert_close(plain.logits, with_weights.logits, atol=1e-5, rtol=1e-5)
        assert plain.cross_attentions is None


def test_encoder_outputs_are_used_instead_of_the_source() -> None:
    model = QRNNForConditionalGeneration(small()).eval()
    inputs = batch()
    encoded = model.get_encoder()(inputs["input_ids"], inputs["attention_mask"])
    again = model(
        encoder_outputs=encoded, attention_mask=inputs["attention_mask"], labels=inputs["labels"]
    )
    torch.testing.assert_close(again.logits, model(**inputs).logits)


def test_foreign_encoder_outputs_are_refused_in_one_sentence() -> None:
    model = QRNNForConditionalGeneration(small())
    foreign = BaseModelOutput(last_hidden_state=torch.zeros(3, 7, 8))
    with pytest.raises(ValueError, match="`encoder_outputs` must have `final_states`"):
        model(encoder_outputs=foreign, labels=batch()["labels"])


def test_inputs_embeds_equal_input_ids() -> None:
    model = QRNNForConditionalGeneration(small()).eval()
    inputs = batch()
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
    embedded = model(
        inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]),
        attention_mask=inputs["attention_mask"],
        decoder_inputs_embeds=model.get_input_embeddings()(decoder_input_ids),
    )
    torch.testing.assert_close(embedded.logits, model(**inputs).logits)
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model(inputs["input_ids"], inputs_embeds=torch.zeros(3, 7, 8), labels=inputs["labels"])
    with pytest.raises(ValueError, match="neither is"):
        model(labels=inputs["labels"])


def test_resize_token_embeddings() -> None:
    for tied in (False, True):
        model = QRNNForConditionalGeneration(small(tie_word_embeddings=tied)).eval()
        before = model(**batch()).logits.shape[-1]
        model.resize_token_embeddings(23)
        inputs = batch()
        inputs["input_ids"][0, 0] = 22
        assert (before, model(**inputs).logits.shape[-1]) == (20, 23)
        assert model.config.vocab_size == 23


def test_tied_embeddings_are_one_parameter_behind_a_projection() -> None:
    model = QRNNForConditionalGeneration(small(tie_word_embeddings=True, embedding_size=6))
    assert model.lm_head.weight is model.model.shared.weight
    assert model.output_projection.weight.shape == (6, 8)
    assert model.output_projection.bias is None
    model(**batch()).loss.backward()
    assert QRNNForConditionalGeneration(small(tie_word_embeddings=True)).output_projection is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32(dtype: torch.dtype) -> None:
    for changes in VARIANTS.values():
        model = QRNNForConditionalGeneration(small(**changes)).eval()
        inputs = batch()
        full = model(**inputs)
        half = model.to(dtype)(**inputs)
        assert half.logits.dtype == dtype
        torch.testing.assert_close(half.logits.float(), full.logits, atol=0.08, rtol=0.05)
        half.loss.backward()


def test_autocast_trains() -> None:
    model = QRNNForConditionalGeneration(small(**MODERN)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch()).loss
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    inputs = batch()
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = QRNNForConditionalGeneration(small(**MODERN, dropout=0.3, zoneout=0.2)).train()
        if checkpointing:
            # The name before and after transformers 5.20.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        torch.manual_seed(1)
        model(**inputs).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_eval_mode_has_no_noise_and_training_has() -> None:
    model = QRNNForConditionalGeneration(small(dropout=0.3, zoneout=0.3))
    inputs = batch()
    model.eval()
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_causal_lm_loss_shifts_labels() -> None:
    model = QRNNForCausalLM(small()).eval()
    input_ids = torch.randint(4, 20, (2, 6))
    output = model(input_ids, labels=input_ids)
    log_p = output.logits[:, :-1].log_softmax(-1)
    expected = -log_p.gather(-1, input_ids[:, 1:, None]).mean()
    torch.testing.assert_close(output.loss, expected)
    assert output.past_key_values is None
    assert isinstance(model(input_ids).past_key_values, QRNNCache)


def test_causal_lm_takes_labels_that_are_shifted_already() -> None:
    model = QRNNForCausalLM(small()).eval()
    input_ids = torch.randint(4, 20, (2, 6))
    shifted = torch.cat([input_ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    output = model(input_ids, shift_labels=shifted)
    torch.testing.assert_close(output.loss, model(input_ids, labels=input_ids).loss)
    assert output.past_key_values is None
    # Two halves of one sequence, the state handed on, weigh every token alike.
    cache, total = QRNNCache(2), 0.0
    for half in (slice(0, 3), slice(3, 6)):
        part = model(
            input_ids[:, half],
            shift_labels=shifted[:, half],
            past_key_values=cache,
            num_items_in_batch=10,
        )
        total += part.loss.item()
    assert total == pytest.approx(output.loss.item(), rel=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_of_either_kind_gives_equal_gradients(use_reentrant: bool) -> None:
    inputs, grads = batch(), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = QRNNForConditionalGeneration(small(**MODERN)).train()
        if checkpointing:
            options = {"use_reentrant": use_reentrant}
            model.enable_input_require_grads()
            # The name before and after transformers 5.20.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)(options)
        model(**inputs).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_head_and_its_base_share_one_config() -> None:
    for kind in (QRNNForConditionalGeneration, QRNNForCausalLM, QRNNForSequenceClassification):
        model = kind(small())
        assert model.config is model.base_model.config
        model.resize_token_embeddings(23)
        assert model.base_model.config.vocab_size == 23
    model = QRNNForConditionalGeneration(small()).eval()
    model.config.output_hidden_states, model.config.use_cache = True, False
    output = model(torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor([[3, 7]]))
    assert len(output.decoder_hidden_states) == len(output.encoder_hidden_states) == 3
    assert output.past_key_values is None


@pytest.mark.parametrize("kind", [QRNNForCausalLM, QRNNForSequenceClassification])
def test_the_base_of_a_head_computes_and_saves_alone(kind: type, tmp_path: Path) -> None:
    model = kind(small()).eval()
    input_ids = torch.randint(4, 20, (2, 6))
    states = model.base_model(input_ids).last_hidden_state
    outputs = model(input_ids, output_hidden_states=True)
    assert torch.equal(states, outputs.hidden_states[-1])
    model.base_model.save_pretrained(tmp_path)
    assert not (tmp_path / "modeling_qrnn.py").exists()  # no Auto class gives just this
    again = kind.from_pretrained(tmp_path).eval()
    assert torch.equal(again.base_model(input_ids).last_hidden_state, states)


def test_causal_lm_goes_on_from_its_cache() -> None:
    model = QRNNForCausalLM(small()).eval()
    input_ids = torch.randint(4, 20, (2, 9))
    whole = model(input_ids).logits
    cache, parts = None, []
    for chunk in input_ids.split([1, 4, 2, 2], dim=1):
        output = model(chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    assert cache.get_seq_length() == 9
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_logits_to_keep() -> None:
    model = QRNNForCausalLM(small()).eval()
    input_ids = torch.randint(4, 20, (2, 6))
    whole = model(input_ids).logits
    torch.testing.assert_close(model(input_ids, logits_to_keep=2).logits, whole[:, -2:])
    picked = torch.tensor([0, 3])
    torch.testing.assert_close(model(input_ids, logits_to_keep=picked).logits, whole[:, picked])


@pytest.mark.parametrize("pooling", CLASSIFIER_POOLING)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_classifier_ignores_pads(pooling: str, bidirectional: bool) -> None:
    config = small(classifier_pooling=pooling, encoder_bidirectional=bidirectional, num_labels=3)
    model = QRNNForSequenceClassification(config).eval()
    inputs = batch()
    logits = model(inputs["input_ids"], inputs["attention_mask"]).logits
    for row, length in enumerate((7, 5, 2)):
        alone = model(inputs["input_ids"][row : row + 1, :length]).logits
        torch.testing.assert_close(logits[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    loss = model(inputs["input_ids"], inputs["attention_mask"], labels=torch.tensor([0, 1, 2])).loss
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])))


def test_heads_do_not_change_each_others_config() -> None:
    config = small()
    seq2seq, lm = QRNNForConditionalGeneration(config), QRNNForCausalLM(config)
    classifier = QRNNForSequenceClassification(config)
    assert (config.is_encoder_decoder, config.is_decoder) == (True, False)
    assert (seq2seq.config.is_encoder_decoder, seq2seq.config.is_decoder) == (True, False)
    assert (lm.config.is_encoder_decoder, lm.config.is_decoder) == (False, True)
    assert (classifier.config.is_encoder_decoder, classifier.config.is_decoder) == (False, False)


def test_generation_defaults_are_set_in_the_head() -> None:
    assert QRNNForConditionalGeneration(small()).generation_config.max_length == 512
    assert QRNNForCausalLM(small()).generation_config.max_new_tokens == 256


def test_compiled_training_step_is_one_graph() -> None:
    model = QRNNForConditionalGeneration(small(**MODERN)).train()
    inputs = batch()
    eager = model(**inputs).loss
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss
    torch.testing.assert_close(compiled, eager)
    compiled.backward()


# ------------------------------------------------------------------ what others put around a module


class Wrapper(nn.Module):
    """A module as adapters replace it: a call, and of the attributes only those they know."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class DelegatingWrapper(Wrapper):
    """One that gives the module's attributes, and is of another class."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


HEADS = [QRNNForConditionalGeneration, QRNNForCausalLM, QRNNForSequenceClassification]


@pytest.mark.parametrize("kind", HEADS)
def test_leaves_may_be_wrapped(kind: Any) -> None:
    model = kind(small(embedding_size=6)).eval()
    inputs = {"input_ids": torch.tensor([[4, 5, 6]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[3, 4]])
    wanted = model(**inputs).logits
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Embedding, nn.Linear, nn.RMSNorm)):
            model.set_submodule(name, Wrapper(module))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, wanted)
    embeds = model.model.shared(inputs.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=embeds, **inputs).logits, wanted)
    if model.can_generate():
        model.generate(torch.tensor([[4, 5]]), max_new_tokens=2)
    # What is checked is said by the config.
    with pytest.raises(ValueError, match=r"`input_ids` must be in \[0, 20\), but holds 20"):
        model(**inputs, input_ids=torch.tensor([[20]]))
    with pytest.raises(ValueError, match=r"`inputs_embeds` must be \(batch, length, 6\)"):
        model(**inputs, inputs_embeds=torch.zeros(1, 2, 8))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_parts_may_be_wrapped(changes: dict[str, Any]) -> None:
    model = QRNNForConditionalGeneration(small(**changes)).eval()
    inputs = batch()
    wanted = model(**inputs).logits
    for layer in model.model.encoder.layers:
        layer.directions = nn.ModuleList(map(DelegatingWrapper, layer.directions))
    for layer in model.model.decoder.layers:
        layer.layer = DelegatingWrapper(layer.layer)
        if layer.attention is not None:
            layer.attention = DelegatingWrapper(layer.attention)
    assert torch.equal(model(**inputs).logits, wanted)


def test_ids_of_a_resized_vocabulary_are_taken() -> None:
    model = QRNNForConditionalGeneration(small())
    model.resize_token_embeddings(23)
    ids = torch.tensor([[22]])
    assert model(ids, decoder_input_ids=ids).logits.shape == (1, 1, 23)
    with pytest.raises(ValueError, match=r"`input_ids` must be in \[0, 23\), but holds 23"):
        model(ids + 1, decoder_input_ids=ids)
