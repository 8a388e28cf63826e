"""A decoding step compiles into one graph, once, and gives the same tokens."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from generating import language_model, prompts, seq2seq, source
from torch._dynamo.utils import counters
from transformers.generation import CompileConfig

HEADS = {"seq2seq": (seq2seq, source), "language model": (language_model, prompts)}
VARIANTS: dict[str, dict[str, Any]] = {
    "ifo k3 dense": {"pooling": "ifo", "decoder_kernel_sizes": 3, "dense_connections": True},
    "f k1 all": {"pooling": "f", "decoder_kernel_sizes": 1, "attention_layers": "all"},
}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(backend: str) -> dict[str, Any]:
    """Return options that make generate() compile the decoding step, on a CPU too."""
    how = CompileConfig(backend=backend, fullgraph=True, mode=None)
    how._compile_all_devices = True  # type: ignore[assignment]
    return {"cache_implementation": "static", "compile_config": how}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("head", HEADS)
def test_compiled_step_gives_the_same_tokens_from_one_graph(
    head: str, changes: dict[str, Any]
) -> None:
    make, batch = HEADS[head]
    model = make(**changes)
    for max_new_tokens in (9, 5):
        inputs = batch()
        expected = model.generate(**inputs, max_new_tokens=max_new_tokens)
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, **compiled("aot_eager"))
        assert torch.equal(tokens, expected)
        assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_compiled_step_does_not_depend_on_the_search() -> None:
    model, inputs = seq2seq(), source()
    for mode in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        options = {"max_new_tokens": 6, "min_new_tokens": 6, **mode}
        torch.manual_seed(2)
        expected = model.generate(**inputs, **options)
        torch.manual_seed(2)
        assert torch.equal(model.generate(**inputs, **options, **compiled("aot_eager")), expected)
    assert counters["stats"]["unique_graphs"] == 1


# Importing inductor warns about a part of torch that torch itself uses.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_inductor_gives_the_same_tokens(head: str) -> None:
    make, batch = HEADS[head]
    model, inputs = make(**VARIANTS["ifo k3 dense"]), batch()
    expected = model.generate(**inputs, max_new_tokens=9)
    assert torch.equal(model.generate(**inputs, max_new_tokens=9, **compiled("inductor")), expected)
