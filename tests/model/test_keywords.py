"""Keywords no parameter takes: what changes nothing passes, everything else is refused."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DataCollatorWithFlattening, pipeline
from transformers.utils.generic import ModelOutput

from hf_qrnn import (
    QRNNCache,
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
)
from hf_qrnn.data.tokenization import train_character_tokenizer

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0], [0, 0, 12, 13]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1]])
DECODER_IDS = torch.tensor([[3, 6, 7], [3, 9, 8], [3, 8, 0]])
DECODER_MASK = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]])
PAIRS = ("pairs", "pairs' base")
GENERATING = ("pairs", "pairs' base", "language model", "language model's base")
KINDS = (*GENERATING, "classifier", "classifier's base", "encoder")
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str) -> torch.nn.Module:
    """A model that names its own keywords of forward."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "embedding_size": 6, "hidden_size": 8}
    config = QRNNConfig(**sizes, encoder_layers=2, decoder_layers=2)
    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "pairs": lambda: QRNNForConditionalGeneration(config),
        "pairs' base": lambda: QRNNModel(config),
        "language model": lambda: QRNNForCausalLM(config),
        "language model's base": lambda: QRNNForCausalLM(config).base_model,
        "classifier": lambda: QRNNForSequenceClassification(config),
        "classifier's base": lambda: QRNNForSequenceClassification(config).base_model,
        "encoder": lambda: QRNNForConditionalGeneration(config).get_encoder(),
    }
    return makers[kind]().eval()


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """Three rows: one whole, one padded on the right, one on the left."""
    own = {"input_ids": IDS, "attention_mask": MASK}
    if kind in PAIRS:
        own |= {"decoder_input_ids": DECODER_IDS, "decoder_attention_mask": DECODER_MASK}
    return own


def first(output: ModelOutput) -> torch.Tensor:
    tensor = output[0]
    assert isinstance(tensor, torch.Tensor)
    return tensor


def flattened(**options: Any) -> dict[str, Any]:
    """Two texts in one row, as transformers' own collator puts them there."""
    texts = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    return dict(DataCollatorWithFlattening(**options)(texts))


# Positions as generate() of other models makes them: pads have any.
POSITIONS = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 1], [1, 1, 0, 1]])
PASSING: dict[str, dict[str, Any]] = {
    "None": {"head_mask": None, "nobody_knows": None, "position_ids": None},
    "Trainer": {"num_items_in_batch": torch.tensor(7), "skip_logits": True},
    "generate": {"output_attentions": False, "output_hidden_states": True, "use_cache": False},
    "logits to keep": {"num_logits_to_keep": 0},
    "positions": {"position_ids": POSITIONS},
    "positions of one row": {"position_ids": torch.arange(4)[None]},
    "positions of a later part": {"position_ids": torch.arange(50, 54)[None]},
    "cache position": {"cache_position": torch.arange(4)},
    "types": {"token_type_ids": torch.zeros_like(IDS)},
    "one text": {"seq_idx": torch.tensor([[0] * 4, [1] * 4, [2] * 4], dtype=torch.int32)},
    "lengths of one text": {
        "cu_seq_lens_q": torch.tensor([0, 4]), "cu_seq_lens_k": torch.tensor([0, 4]),
        "max_length_q": 4, "max_length_k": 4,
    },
    "heads": {"head_mask": torch.ones(2, 1), "decoder_head_mask": torch.ones(2, 1)},
    "attention's heads": {"cross_attn_head_mask": torch.ones(2, 1)},
    "no routers": {"output_router_logits": False},
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "restart": (
        {"position_ids": torch.tensor([[0, 1, 0, 1]])},
        "`position_ids` must count on within a row, which is one text (pad the rows instead), "
        "but row 0 is at 0 in column 2.",
    ),
    "gap": (
        {"position_ids": torch.tensor([[0, 1, 2, 3], [0, 1, 5, 6], [0, 0, 0, 1]])},
        "but row 1 is at 5 in column 2.",
    ),
    "axes": (
        {"position_ids": torch.zeros(3, 3, 4)},
        "`position_ids` must be (batch, length), but is (3, 3, 4).",
    ),
    "several texts": (
        {"seq_idx": torch.tensor([[0, 0, 1, 1]] * 3)},
        "`seq_idx` must have one text a row (pad the rows instead), but has several.",
    ),
    "lengths of several": (
        {"cu_seq_lens_q": torch.tensor([0, 2, 4]), "max_length_q": 2},
        "`cu_seq_lens_q` must have one text a row (pad the rows instead), but has several.",
    ),
    "other lengths": ({"cu_seq_lens_k": torch.tensor([0, 2, 4])}, "`cu_seq_lens_k` must have one"),
    "types": (
        {"token_type_ids": MASK},
        "`token_type_ids` must be 0, for there are no types of tokens, but holds others.",
    ),
    "heads": (
        {"head_mask": torch.tensor([1.0, 0.0])},
        "`head_mask` must be 1, for no head can be left out, but holds others.",
    ),
    "decoder's heads": ({"decoder_head_mask": torch.zeros(2)}, "`decoder_head_mask` must be 1"),
    "attention's heads": (
        {"cross_attn_head_mask": torch.zeros(2)},
        "`cross_attn_head_mask` must be 1",
    ),
    "cache position": (
        {"cache_position": torch.arange(1, 5)},
        "`cache_position` must count on from the 0 steps of `past_key_values`, "
        "but is [1, 2, 3, 4].",
    ),
    "old name": ({"num_logits_to_keep": 1}, "`num_logits_to_keep` must be 0 here, but is 1."),
    "routers": ({"output_router_logits": True}, "`output_router_logits` must be False here"),
    "list": ({"position_ids": [[0, 1]]}, "`position_ids` must be a tensor, but is a list."),
    "misspelt": ({"attention_masks": MASK}, "`attention_masks` is not; did you mean `attention_m"),
    "cross-attention": ({"encoder_hidden_states": torch.zeros(3, 4, 8)}, "`encoder_hidden_states`"),
    "nobody's": ({"xyzzy": 1}, ".forward must be known to it, but `xyzzy` is not."),
}


@each_kind
@pytest.mark.parametrize("keywords", PASSING.values(), ids=PASSING)
def test_keyword_that_changes_nothing_passes(kind: str, keywords: dict[str, Any]) -> None:
    model = make(kind)
    expected = first(model(**inputs(kind)))
    torch.testing.assert_close(first(model(**inputs(kind), **keywords)), expected)


@each_kind
@pytest.mark.parametrize(("keywords", "sentence"), REFUSED.values(), ids=REFUSED)
def test_keyword_that_changes_meaning_is_refused(
    kind: str, keywords: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)) as caught:
        make(kind)(**inputs(kind), **keywords)
    assert "\n" not in str(caught.value)


@each_kind
def test_ids_and_embeddings_together_are_refused(kind: str) -> None:
    embeds = torch.zeros(3, 4, 6)
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds` must be"):
        make(kind)(**inputs(kind), inputs_embeds=embeds)


@pytest.mark.parametrize("kind", PAIRS)
def test_positions_of_the_decoder_are_looked_at(kind: str) -> None:
    model, given = make(kind), inputs(kind)
    expected = first(model(**given))
    positions = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 0]])
    assert torch.equal(first(model(**given, decoder_position_ids=positions)), expected)
    positions[1, 2] = 0
    with pytest.raises(ValueError, match=r"`decoder_position_ids` must .* row 1 is at 0 in column"):
        model(**given, decoder_position_ids=positions)
    with pytest.raises(TypeError, match="`decoder_position_ids` is not"):
        make("language model")(IDS, decoder_position_ids=positions)


# ------------------------------------------------------------------ flattened batches


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_position_ids": False, "return_flash_attn_kwargs": True},
        {"return_position_ids": False, "return_seq_idx": True},
    ],
    ids=["positions", "lengths", "indices"],
)
@pytest.mark.parametrize("kind", ["language model", "language model's base", "classifier's base"])
def test_flattened_batch_is_refused(kind: str, options: dict[str, Any]) -> None:
    given = flattened(**options)
    if kind != "language model":
        del given["labels"]
    model = make(kind)
    with pytest.raises(ValueError, match=r"one text .*pad the rows instead.*, but "):
        model(**given)
    # For the second text would see the first.
    whole, alone = (
        first(model(torch.tensor([[5, 6, 7, 8, 9]]))),
        first(model(torch.tensor([[8, 9]]))),
    )
    assert (whole[:, 3:] - alone).abs().max() > 1e-4


def test_flattened_batch_of_one_text_passes() -> None:
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    model = make("language model")
    given = collator([{"input_ids": [5, 6, 7]}])
    expected = model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]]))
    assert model(**given).loss == expected.loss


# ------------------------------------------------------------------ with a state


def test_text_that_begins_where_a_chunk_does_is_refused() -> None:
    model = make("language model")
    whole = model(IDS[:1]).logits
    cache = QRNNCache(2)
    model(IDS[:1, :2], past_key_values=cache, position_ids=torch.tensor([[0, 1]]))
    chunk = {"input_ids": IDS[:1, 2:], "past_key_values": cache}
    for mask in ({}, {"attention_mask": MASK[:1]}, {"attention_mask": MASK[:1, 2:]}):
        with pytest.raises(ValueError, match=r"`position_ids` must count on .* row 0 is at 0 in"):
            model(**chunk, **mask, position_ids=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="`cache_position` must count on from the 2 steps"):
        model(**chunk, cache_position=torch.arange(2))
    positions = {"position_ids": torch.tensor([[2, 3]]), "cache_position": torch.arange(2, 4)}
    torch.testing.assert_close(model(**chunk, **positions).logits, whole[:, 2:])


def test_text_that_begins_behind_a_chunk_of_pads_passes() -> None:
    model, cache = make("language model"), QRNNCache(2)
    ids, mask = IDS[2:], MASK[2:]
    expected = model(ids, attention_mask=mask).logits[:, 2:]
    model(ids[:, :2], attention_mask=mask[:, :2], past_key_values=cache)
    positions = torch.tensor([[0, 1]])
    got = model(ids[:, 2:], attention_mask=mask, past_key_values=cache, position_ids=positions)
    torch.testing.assert_close(got.logits, expected)


def test_generate_takes_the_positions_it_would_make() -> None:
    model = make("language model")
    prompt = {"input_ids": IDS[2:], "attention_mask": MASK[2:]}
    options = {"max_new_tokens": 5, "do_sample": False}
    expected = model.generate(**prompt, **options)
    assert torch.equal(model.generate(**prompt, position_ids=POSITIONS[2:], **options), expected)


# ------------------------------------------------------------------ labels


def test_shifted_labels_count_where_both_kinds_are_given() -> None:
    # A collator of Trainer gives both; transformers' own loss takes these.
    model, shifted = make("language model"), torch.tensor([[6, 7, 8, -100], [10, 11, 0, 4]])
    alone = model(IDS[:2], shift_labels=shifted).loss
    for labels in (IDS[:2], IDS[1:]):
        assert model(IDS[:2], labels=labels, shift_labels=shifted).loss == alone
    assert model(IDS[:2], labels=IDS[:2]).loss != alone


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "language model"])
def test_shifted_labels_are_the_language_models_alone(kind: str) -> None:
    with pytest.raises(TypeError, match="`shift_labels` is not"):
        make(kind)(**inputs(kind), shift_labels=IDS)


def test_old_name_of_smoothing_is_refused_with_the_new_one() -> None:
    for kind in ("pairs", "language model"):
        with pytest.raises(TypeError, match="`label_smoothing` is not; did you mean `smoothing`"):
            make(kind)(**inputs(kind), label_smoothing=0.1)


# ------------------------------------------------------------------ graphs and pipelines


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fullgraph", [False, True])
def test_value_that_a_graph_cannot_see_is_refused(fullgraph: bool) -> None:
    model = torch.compile(make("language model"), backend="aot_eager", fullgraph=fullgraph)
    with pytest.raises((ValueError, RuntimeError), match=r"in a traced graph|Observed exc"):
        model(IDS, position_ids=torch.tensor([[0, 1, 0, 1]]))
    assert model(IDS, num_items_in_batch=3, output_attentions=False).logits.shape == (3, 4, 20)


def test_value_that_a_vmap_hides_is_refused() -> None:
    model = make("language model")

    def logits(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return model(ids[None], position_ids=positions[None]).logits

    with pytest.raises(ValueError, match="`position_ids` must be None in a traced"):
        torch.vmap(logits)(IDS, torch.arange(4).expand(3, 4))


def test_classifying_pipeline_takes_a_tokenizer_that_gives_types() -> None:
    tokenizer = train_character_tokenizer(["abc", "hgf"])
    config = QRNNConfig(vocab_size=len(tokenizer), embedding_size=6, hidden_size=8)
    model = QRNNForSequenceClassification(config).eval()
    plain = pipeline("text-classification", model=model, tokenizer=tokenizer)("abc")
    tokenizer.model_input_names = ["input_ids", "attention_mask", "token_type_ids"]
    assert "token_type_ids" in tokenizer("abc")
    assert pipeline("text-classification", model=model, tokenizer=tokenizer)("abc") == plain
