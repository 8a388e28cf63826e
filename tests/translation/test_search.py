"""generate() and the cache: right tokens whatever the search, the batch or the cache."""

import pytest
import torch
from generating import language_model, seq2seq, source
from transformers import DynamicCache

from hf_qrnn.translation.search import generate_hypotheses

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
    model = language_model()
    prompt = torch.randint(4, 13, (1, 5))
    alone = model.generate(prompt, max_new_tokens=8, min_new_tokens=8)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), prompt], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    generated = model.generate(padded, attention_mask=mask, max_new_tokens=8, min_new_tokens=8)
    assert torch.equal(generated[:, 3:], alone)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_language_model_cache_does_not_change_the_tokens(mode: dict[str, int]) -> None:
    model = language_model(pooling="ifo", decoder_kernel_sizes=3)
    prompt = torch.randint(4, 13, (2, 4))
    results = [
        model.generate(prompt, use_cache=use_cache, max_new_tokens=10, **mode)
        for use_cache in (True, False)
    ]
    assert torch.equal(*results)


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
    labels = torch.tensor([hypothesis.ids + [1] * (not hypothesis.is_cut)])
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
