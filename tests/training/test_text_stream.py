"""A text that is read and written in parts, from a state that is carried."""

import math
import resource
import sys
from typing import Any

import pytest
import torch

from hf_qrnn import QRNNConfig, QRNNForCausalLM
from hf_qrnn.training.text_stream import (
    StreamState,
    begin,
    cache_of,
    read_on,
    tensors_of,
    total_nats,
    write_on,
)


def make(**changes: Any) -> QRNNForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "embedding_size": 6, "hidden_size": 8, "decoder_layers": 2}
    config = QRNNConfig(**sizes, encoder_layers=2, is_encoder_decoder=False, **changes)
    return QRNNForCausalLM(config).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pooling": "f", "decoder_kernel_sizes": 1},
        {"pooling": "ifo", "decoder_kernel_sizes": [4, 3], "dense_connections": True},
        {"residual": True, "rms_norm": True, "feed_forward_size": 6, "zoneout": 0.3},
    ],
)
def test_perplexity_is_that_of_one_pass_of_chunks_and_of_steps(changes: dict[str, Any]) -> None:
    model = make(dropout=0.4, **changes)
    tokens = torch.randint(4, 11, (1, 331))
    with torch.no_grad():
        inputs = torch.cat([torch.tensor([[1]]), tokens[:, :-1]], dim=1)
        logs = model(inputs).logits.double().log_softmax(-1)
    nats = -float(logs.gather(2, tokens[..., None]).sum())
    perplexity = math.exp(nats / 331)
    for size in (331, 105, 1):
        state, total = begin(model), 0.0
        for part in tokens.split(size, dim=1):
            more, state = read_on(model, part, state)
            total += float(more)
        assert math.exp(total / 331) == pytest.approx(perplexity, abs=1e-4)
    assert math.exp(total_nats(model, model, tokens[0]) / 331) == pytest.approx(
        perplexity, abs=1e-4
    )
    # As a decoder of transformers steps, one token and the state of the one before.
    cache, total = begin(model).cache, 0.0
    with torch.no_grad():
        for step in range(331):
            output = model(inputs[:, step : step + 1], past_key_values=cache, use_cache=True)
            total -= float(output.logits[0, -1].double().log_softmax(-1)[tokens[0, step]])
    assert math.exp(total / 331) == pytest.approx(perplexity, abs=1e-4)


def test_a_state_stays_as_it_is() -> None:
    model = make()
    first, other = torch.randint(4, 11, (2, 2, 40))
    _, state = read_on(model, first, begin(model, 2))
    before = {name: x.clone() for name, x in tensors_of(state.cache).items()}
    found = [float(read_on(model, other, state)[0]) for _ in range(2)]
    assert found[0] == found[1]
    write_on(model, 5, state)
    for name, tensor in tensors_of(state.cache).items():
        assert torch.equal(tensor, before[name])
    # Without what was read before it is another text.
    assert found[0] != pytest.approx(float(read_on(model, other, begin(model, 2))[0]), abs=1e-3)
    # Nothing more was read, so nothing changes.
    nats, same = read_on(model, other[:, :0], state)
    assert (float(nats), same) == (0.0, state)


def test_writing_in_parts_is_writing_in_one_go() -> None:
    model = make()
    _, state = read_on(model, torch.randint(4, 11, (1, 20)), begin(model))
    whole, end = write_on(model, 30, state, generator=torch.Generator().manual_seed(3))
    generator, parts, at = torch.Generator().manual_seed(3), [], state
    for size in (1, 12, 17):
        part, at = write_on(model, size, at, generator=generator)
        parts.append(part)
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(end.last, at.last)
    # Without chance it is what generate() finds, from the same prompt.
    greedy, _ = write_on(model, 12, begin(model), temperature=0.0)
    prompt = torch.tensor([[1]])
    found = model.generate(prompt, do_sample=False, max_new_tokens=12, eos_token_id=-1)  # type: ignore[operator]
    assert found[0, 1:].tolist() == greedy[0].tolist()


def test_a_states_tensors_make_it_again() -> None:
    model = make()
    tokens = torch.randint(4, 11, (1, 30))
    _, state = read_on(model, tokens, begin(model))
    again = StreamState(cache_of(tensors_of(state.cache), model), state.last)
    assert float(read_on(model, tokens, again)[0]) == float(read_on(model, tokens, state)[0])
    assert tensors_of(begin(model).cache) == {}


def test_a_million_characters_take_no_more_memory_than_a_few() -> None:
    model = make()
    generator = torch.Generator().manual_seed(0)
    state, sizes, peaks = begin(model), set(), []
    for _ in range(10):
        part = torch.randint(4, 11, (1, 100_000), generator=generator)
        _, state = read_on(model, part, state, steps=4096)
        sizes.add(sum(x.untyped_storage().nbytes() for x in tensors_of(state.cache).values()))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(sizes) == 1
    assert sizes.pop() < 1000
    unit = 1 if sys.platform == "darwin" else 1024
    # All logits would be 44 MB more with every part, all states 6.
    assert (peaks[-1] - peaks[1]) * unit < 8e6
