"""Encodings shared by the rows of a source: beams and several results read one copy of it."""

from typing import Any

import pytest
import torch
from generating import seq2seq, source
from transformers import GenerationMixin

from hf_qrnn import QRNNCache, QRNNForConditionalGeneration
from hf_qrnn.model.encoder_qrnn import shared_encoding

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "f k1 heads": {"pooling": "f", "decoder_kernel_sizes": 1, "num_attention_heads": 2},
    "modern": {
        "attention_layers": "all",
        "residual": True,
        "rms_norm": True,
        "feed_forward_size": 6,
        "num_attention_heads": 4,
        "attention_scaling": True,
    },
    "dense ifo": {"pooling": "ifo", "dense_connections": True, "tie_word_embeddings": True},
}
EVERY_VARIANT = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
KINDS = pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
MODES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 4},
    "all beams": {"num_beams": 3, "num_return_sequences": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 5},
    "static": {"num_beams": 3, "cache_implementation": "static"},
    "without a cache": {"num_beams": 3, "use_cache": False},
    "outputs": {"num_beams": 3, "return_dict_in_generate": True, "output_attentions": True},
}


class Expanding(QRNNForConditionalGeneration):
    """Repeats the source for every row, as transformers does for any model."""

    def _expand_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return GenerationMixin._expand_inputs_for_generation(self, *args, **kwargs)


def expanding(model: QRNNForConditionalGeneration) -> QRNNForConditionalGeneration:
    other = Expanding(model.config).double().eval()
    other.load_state_dict(model.state_dict())
    return other


def prefilled(model: Any, each: int, static: bool = False) -> tuple[QRNNCache, dict[str, Any]]:
    """A cache of three sources with `each` rows, after four steps, and the inputs of a next one."""
    inputs = source()
    encoded = shared_encoding(model.get_encoder()(**inputs), each)
    given = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"]}
    cache = QRNNCache(2, static=static)
    ids = torch.randint(4, 13, (3 * each, 4))
    model(**given, decoder_input_ids=ids, past_key_values=cache)
    return cache, {**given, "ids": ids, "inputs": inputs}


@EVERY_VARIANT
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_generate_finds_what_it_finds_with_repeated_sources(
    changes: dict[str, Any], mode: dict[str, Any]
) -> None:
    model, inputs = seq2seq(**changes), source()
    found = []
    for one in (model, expanding(model)):
        torch.manual_seed(1)
        found.append(one.generate(**inputs, **mode, max_new_tokens=9, top_k=0))
    if isinstance(found[0], torch.Tensor):
        assert torch.equal(*found)
        return
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert len(found[0].cross_attentions) == len(found[1].cross_attentions) > 0
    for ours, theirs in zip(found[0].cross_attentions, found[1].cross_attentions, strict=True):
        torch.testing.assert_close(ours, theirs)


@KINDS
def test_source_is_kept_once_while_beams_move(static: bool) -> None:
    model, inputs = seq2seq(attention_layers="all"), source()
    kind = {"cache_implementation": "static"} if static else {}
    output = model.generate(
        **inputs, **kind, num_beams=4, max_new_tokens=8, return_dict_in_generate=True
    )
    cache = output.past_key_values
    assert cache.batch_size == 12
    assert cache.rows_each == 4
    for layer in cache.layers:
        assert layer.source_keys.shape[0] == layer.source_values.shape[0] == 3


@torch.no_grad()
def test_given_encoding_serves_and_stays_as_it_was() -> None:
    model, inputs = seq2seq(), source()
    encoded = model.get_encoder()(**inputs)
    before = {name: x.clone() for name, x in encoded.items()}
    mode = {"num_beams": 3, "max_new_tokens": 7}
    for _ in range(2):
        given = model.generate(
            encoder_outputs=encoded, attention_mask=inputs["attention_mask"], **mode
        )
        assert torch.equal(given, model.generate(**inputs, **mode))
    assert before.keys() == encoded.keys()
    for name, tensor in before.items():
        assert torch.equal(encoded[name], tensor)


@KINDS
@EVERY_VARIANT
@pytest.mark.parametrize(
    "rows",
    [[1, 0, 2, 2, 5, 4], [5, 0, 2, 2, 1, 4], [3, 2], [0, 0, 1, 1, 2, 2, 3, 3, 4]],
    ids=["within sources", "across", "fewer", "more"],
)
@torch.no_grad()
def test_rows_move_with_their_source(
    changes: dict[str, Any], rows: list[int], static: bool
) -> None:
    model = seq2seq(**changes)
    cache, given = prefilled(model, 2, static)
    indices = torch.tensor(rows)
    cache.batch_select_indices(indices)
    following = torch.randint(4, 13, (len(rows), 2))
    moved = {name: x[indices // 2] for name, x in given["inputs"].items()}
    ids = torch.cat([given["ids"][indices], following], 1)
    whole = model(**moved, decoder_input_ids=ids).logits[:, -2:]
    for step in range(2):
        part = following[:, step : step + 1]
        logits = model(**moved, decoder_input_ids=part, past_key_values=cache).logits
        torch.testing.assert_close(logits, whole[:, step : step + 1])
    shares = rows == [1, 0, 2, 2, 5, 4]
    assert cache.layer(1).source_keys.shape[0] == (3 if shares else len(rows))


@KINDS
@torch.no_grad()
def test_repeated_rows_share_what_they_have_of_the_source(static: bool) -> None:
    model = seq2seq(attention_layers="all")
    cache, given = prefilled(model, 1, static)
    cache.batch_repeat_interleave(2)
    cache.batch_repeat_interleave(3)
    assert cache.rows_each == 6
    following = torch.randint(4, 13, (18, 1))
    moved = {name: x.repeat_interleave(6, 0) for name, x in given["inputs"].items()}
    ids = torch.cat([given["ids"].repeat_interleave(6, 0), following], 1)
    step = model(**moved, decoder_input_ids=following, past_key_values=cache).logits
    torch.testing.assert_close(step, model(**moved, decoder_input_ids=ids).logits[:, -1:])


@torch.no_grad()
def test_steps_of_shared_sources_are_taken_back() -> None:
    model = seq2seq(attention_layers="all", decoder_kernel_sizes=3)
    cache, given = prefilled(model, 2)
    cache.activate_past_recording()
    source_of = {name: given[name] for name in ("encoder_outputs", "attention_mask")}
    more = torch.randint(4, 13, (6, 5))
    whole = model(**source_of, decoder_input_ids=more, past_key_values=cache).logits
    cache.crop(-3)
    again = model(**source_of, decoder_input_ids=more[:, 2:], past_key_values=cache).logits
    torch.testing.assert_close(again, whole[:, 2:])


@torch.no_grad()
def test_shared_encoding_of_another_batch_is_named() -> None:
    model, inputs = seq2seq(), source()
    encoded = shared_encoding(model.get_encoder()(**inputs), 2)
    for rows in (3, 7, 8):
        with pytest.raises(ValueError, match=r"`encoder_outputs\.last_hidden_state` must have"):
            model(encoder_outputs=encoded, decoder_input_ids=torch.ones(rows, 1).long())


def test_gradients_reach_a_shared_source() -> None:
    model, inputs = seq2seq(attention_layers="all"), source()
    ids = torch.randint(4, 13, (6, 4))
    encoded = shared_encoding(model.get_encoder()(**inputs), 2)
    repeated = {name: x.repeat_interleave(2, 0) for name, x in inputs.items()}
    weight = model.model.encoder.layers[0].directions[0].convolution.weight
    mask = inputs["attention_mask"]
    for explicit in ("sdpa", "eager"):
        model.set_attn_implementation(explicit)
        outputs = [
            model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=ids),
            model(**repeated, decoder_input_ids=ids),
        ]
        grads = [
            torch.autograd.grad(x.logits.square().sum(), weight, retain_graph=True)[0]
            for x in outputs
        ]
        torch.testing.assert_close(*grads)
