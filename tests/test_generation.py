"""generate() and the cache: right tokens whatever the search, the batch or the cache."""

import pytest
import torch
from transformers import DynamicCache

from hf_qrnn import QRNNCache, QRNNConfig, QRNNForCausalLM, QRNNForConditionalGeneration
from hf_qrnn.generation import generate_hypotheses, target_limit

VARIANTS = {
    "f k1": {"pooling": "f", "decoder_kernel_sizes": 1},
    "fo k2": {"pooling": "fo"},
    "ifo k3 dense": {"pooling": "ifo", "decoder_kernel_sizes": 3, "dense_connections": True},
    "modern": {
        "encoder_bidirectional": True,
        "reverse_source": False,
        "residual": True,
        "rms_norm": True,
        "attention_layers": "all",
        "num_attention_heads": 2,
        "feed_forward_size": 8,
    },
}


def config(**changes: object) -> QRNNConfig:
    fields = {"vocab_size": 13, "embedding_size": 8, "hidden_size": 8, "initializer_range": 1.0}
    return QRNNConfig(**{**fields, "encoder_layers": 2, "decoder_layers": 2, **changes})  # type: ignore[arg-type]


def seq2seq(**changes: object) -> QRNNForConditionalGeneration:
    """A random model in float64, whose choices are far from ties."""
    return QRNNForConditionalGeneration(config(**changes)).double().eval()


def source() -> dict[str, torch.Tensor]:
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7])
    return {"input_ids": torch.randint(4, 13, (3, 8)), "attention_mask": mask}


MODES = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "beam, several": {"num_beams": 4, "num_return_sequences": 3},
    "sample": {"do_sample": True},
    "sample, several": {"do_sample": True, "num_return_sequences": 2},
    "beam sample": {"num_beams": 2, "do_sample": True},
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_cache_does_not_change_the_tokens(
    changes: dict[str, object], mode: dict[str, object]
) -> None:
    model, inputs = seq2seq(**changes), source()
    results = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        results.append(model.generate(**inputs, **mode, use_cache=use_cache, max_new_tokens=12))
    assert torch.equal(*results)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_greedy_equals_choosing_from_full_forwards(changes: dict[str, object]) -> None:
    model, inputs = seq2seq(**changes), source()
    generated = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)
    ids = torch.full((3, 1), 3)
    for _ in range(8):
        logits = model(**inputs, decoder_input_ids=ids).logits[:, -1]
        logits[:, 1] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, ids)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_row_does_not_depend_on_its_batch(num_beams: int) -> None:
    model, inputs = seq2seq(**VARIANTS["modern"]), source()
    together = model.generate(**inputs, num_beams=num_beams, max_new_tokens=10)
    for row, length in enumerate((8, 5, 1)):
        alone = model.generate(
            inputs["input_ids"][row : row + 1, :length], num_beams=num_beams, max_new_tokens=10
        )
        width = alone.shape[1]
        assert torch.equal(together[row : row + 1, :width], alone)
        assert set(together[row, width:].tolist()) <= {0, 1}


def test_left_and_right_padded_sources_translate_alike() -> None:
    model, inputs = seq2seq(), source()
    left = {name: torch.zeros_like(x) for name, x in inputs.items()}
    for row, length in enumerate((8, 5, 1)):
        for name, tensor in inputs.items():
            left[name][row, 8 - length :] = tensor[row, :length]
    assert torch.equal(
        model.generate(**inputs, max_new_tokens=9), model.generate(**left, max_new_tokens=9)
    )


def test_left_padded_prompts_of_a_language_model() -> None:
    model = QRNNForCausalLM(config()).double().eval()
    prompt = torch.randint(4, 13, (1, 5))
    alone = model.generate(prompt, max_new_tokens=8, min_new_tokens=8)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), prompt], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    generated = model.generate(padded, attention_mask=mask, max_new_tokens=8, min_new_tokens=8)
    assert torch.equal(generated[:, 3:], alone)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_language_model_cache_does_not_change_the_tokens(mode: dict[str, int]) -> None:
    model = QRNNForCausalLM(config(pooling="ifo", decoder_kernel_sizes=3)).double().eval()
    prompt = torch.randint(4, 13, (2, 4))
    results = [
        model.generate(prompt, use_cache=use_cache, max_new_tokens=10, **mode)
        for use_cache in (True, False)
    ]
    assert torch.equal(*results)


def filled_cache(model: QRNNForConditionalGeneration) -> tuple[QRNNCache, torch.Tensor, dict]:
    inputs = source()
    ids = torch.randint(4, 13, (3, 4))
    output = model(**inputs, decoder_input_ids=ids, use_cache=True)
    return output.past_key_values, ids, inputs


@pytest.mark.parametrize("change", ["reorder", "repeat", "select"])
def test_cache_rows_move_with_everything_they_need(change: str) -> None:
    model = seq2seq(**VARIANTS["modern"])
    cache, ids, inputs = filled_cache(model)
    assert cache.get_seq_length() == 4
    if change == "repeat":
        rows = torch.tensor([0, 0, 1, 1, 2, 2])
        cache.batch_repeat_interleave(2)
    else:
        rows = torch.tensor([2, 0, 0] if change == "reorder" else [1])
        getattr(cache, "reorder_cache" if change == "reorder" else "batch_select_indices")(rows)
    following = torch.randint(4, 13, (len(rows), 1))
    moved = {name: tensor[rows] for name, tensor in inputs.items()}
    step = model(**moved, decoder_input_ids=following, past_key_values=cache)
    whole = model(**moved, decoder_input_ids=torch.cat([ids[rows], following], dim=1))
    torch.testing.assert_close(step.logits[:, -1], whole.logits[:, -1])


def test_cache_state_is_constant_in_the_target_length() -> None:
    model, inputs = seq2seq(), source()
    sizes = []
    for length in (1, 50):
        cache = QRNNCache(2)
        ids = torch.randint(4, 13, (3, length))
        model(**inputs, decoder_input_ids=ids, past_key_values=cache)
        sizes.append([tuple(x.shape) for layer in cache.layers for x in layer.state])
    assert sizes[0] == sizes[1] == [(3, 1, 8), (3, 8)] * 2


def test_cache_reset_forgets() -> None:
    model = seq2seq()
    cache, ids, inputs = filled_cache(model)
    cache.reset()
    assert cache.get_seq_length() == 0
    again = model(**inputs, decoder_input_ids=ids, past_key_values=cache)
    torch.testing.assert_close(again.logits, model(**inputs, decoder_input_ids=ids).logits)


def test_crop_refuses_what_it_cannot_undo() -> None:
    cache, *_ = filled_cache(seq2seq())
    cache.crop(0)
    with pytest.raises(ValueError, match="`tokens_to_remove` must be 0 unless"):
        cache.crop(-1)


def test_other_caches_are_refused_in_one_sentence() -> None:
    model, inputs = seq2seq(), source()
    with pytest.raises(TypeError, match="`past_key_values` must be a QRNNCache"):
        model(**inputs, decoder_input_ids=torch.ones(3, 1).long(), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="`cache_implementation` must be None, 'dynamic' or"):
        model.generate(**inputs, cache_implementation="quantized", max_new_tokens=2)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_hypotheses_do_not_depend_on_the_batch_size(num_beams: int) -> None:
    model = seq2seq(**VARIANTS["modern"])
    sources = [torch.randint(4, 13, (n,)).tolist() + [1] for n in (3, 9, 1, 5, 5)]
    one = generate_hypotheses(model, sources, num_beams=num_beams, batch_size=1)
    many = generate_hypotheses(model, sources, num_beams=num_beams, batch_size=4)
    for (left,), (right,) in zip(one, many, strict=True):
        assert left.ids == right.ids
        assert left.score == pytest.approx(right.score, abs=1e-9)


def test_hypothesis_score_is_the_log_probability() -> None:
    model = seq2seq()
    ids = [5, 7, 9, 1]
    (hypothesis,) = generate_hypotheses(model, [ids])[0]
    ended = len(hypothesis.ids) < target_limit(len(ids))
    labels = torch.tensor([hypothesis.ids + [1] * ended])
    loss = model(input_ids=torch.tensor([ids]), labels=labels).loss.item()
    assert hypothesis.score == pytest.approx(-loss * labels.shape[1], rel=1e-6)


def test_hypotheses_are_cut_at_the_limit_of_their_source() -> None:
    model = seq2seq()
    model.lm_head.bias.data[1] = -100.0
    short, long = generate_hypotheses(model, [[5, 1], [5, 6, 7, 8, 9, 1]], batch_size=2)
    assert (len(short[0].ids), len(long[0].ids)) == (54, 62)


def test_hypotheses_come_best_first_in_the_order_given() -> None:
    model = seq2seq()
    sources = [[4, 5, 6, 7, 8, 1], [9, 1]]
    several = generate_hypotheses(model, sources, num_beams=4, num_return_sequences=4)
    for hypotheses in several:
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
    swapped = generate_hypotheses(model, sources[::-1], num_beams=4, num_return_sequences=4)
    assert [[h.ids for h in x] for x in swapped[::-1]] == [[h.ids for h in x] for x in several]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "`num_beams` must be at least 1, but is 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"num_beams": 2, "num_return_sequences": 3}, "`num_return_sequences` must be in"),
    ],
)
def test_hypotheses_refuse_bad_numbers(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_hypotheses(seq2seq(), [[5, 1]], **options)


def test_training_mode_is_restored() -> None:
    model = seq2seq().train()
    generate_hypotheses(model, [[5, 1]])
    assert model.training
