"""Whatever the model, every way to generate gives the same tokens with and without a cache."""

import itertools
import random
from typing import Any

import pytest
import torch
from generating import alone, language_model, prompts, seq2seq, source

AXES: dict[str, list[dict[str, Any]]] = {
    "pooling": [{"pooling": kind} for kind in ("f", "fo", "ifo")],
    "kernel": [{"decoder_kernel_sizes": k, "encoder_kernel_sizes": k} for k in (1, 2, 3, [4, 1])],
    "direction": [
        {"reverse_source": True},
        {"reverse_source": False, "encoder_causal": True},
        {"encoder_bidirectional": True},
    ],
    "connection": [{}, {"dense_connections": True}, {"residual": True, "rms_norm": True}],
    "attention": [
        {"attention_layers": "last"},
        {"attention_layers": "all", "num_attention_heads": 2, "attention_scaling": True},
    ],
    "rest": [{}, {"feed_forward_size": 4}, {"tie_word_embeddings": True, "embedding_size": 6}],
}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "num_return_sequences": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam sample": {"num_beams": 2, "do_sample": True},
}
NUM_MODELS = 36


def models() -> list[list[int]]:
    """Choices along every axis; each value of an axis comes up equally often."""
    draw = random.Random(0)
    columns = []
    for axis in AXES.values():
        column = [index % len(axis) for index in range(NUM_MODELS)]
        draw.shuffle(column)
        columns.append(column)
    return [list(row) for row in zip(*columns, strict=True)]


def changes(choice: list[int]) -> dict[str, Any]:
    chosen = (axis[index] for axis, index in zip(AXES.values(), choice, strict=True))
    return {name: value for part in chosen for name, value in part.items()}


def generate(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    torch.manual_seed(5)
    return model.generate(**inputs, **options, max_new_tokens=6)


@pytest.mark.parametrize("choice", models(), ids=lambda choice: "-".join(map(str, choice)))
@pytest.mark.parametrize("head", ["seq2seq", "language model"])
def test_every_search_gives_the_same_tokens_with_and_without_a_cache(
    head: str, choice: list[int]
) -> None:
    make, batch = (seq2seq, source()) if head == "seq2seq" else (language_model, prompts())
    model, assistant = (
        make(**changes(choice)),
        make(pooling="f", encoder_layers=1, decoder_layers=1),
    )
    greedy = generate(model, batch, use_cache=False)
    for name, search in SEARCHES.items():
        without = greedy if name == "greedy" else generate(model, batch, **search, use_cache=False)
        options: dict[str, Any]
        for options in ({}, {"cache_implementation": "static"}):
            tokens = generate(model, batch, **search, **options)
            assert torch.equal(tokens, without), (name, options)
    one = alone(batch, sum(choice) % 3)
    greedy = generate(model, one, use_cache=False)
    for options in (
        {"assistant_model": model},
        {"assistant_model": assistant},
        {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1},
    ):
        assert torch.equal(generate(model, one, **options), greedy), options


def test_models_cover_every_pair_of_pooling_and_width() -> None:
    found = {(choice[0], choice[1]) for choice in models()}
    assert found == set(itertools.product(range(3), range(4)))
