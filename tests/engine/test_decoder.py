"""The engine's NumPy network: the logits of the model, whatever the config and the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_models import network_of, random_sources, saved

from hf_qrnn.engine.decoder import NumpyDecoder
from hf_qrnn.engine.encoder import encode
from hf_qrnn.engine.settings import NUM_GATES
from hf_qrnn.model import pool_kinds_qrnn
from hf_qrnn.model.modeling_qrnn import QRNNForConditionalGeneration

SEEDS = range(16)
STEPS = 5


def logits_of(
    model: QRNNForConditionalGeneration, source: list[int], target: list[int]
) -> torch.Tensor:
    """Logits (T, V) of one row without pads."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]))
    return output.logits[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_give_the_models_logits_over_random_configs(seed: int, tmp_path: Path) -> None:
    model = saved(tmp_path, seed)
    sources = random_sources(seed)
    rows_each = 2
    targets = np.random.default_rng(seed).integers(1, 30, (len(sources) * rows_each, STEPS))
    decoder = NumpyDecoder(network_of(tmp_path), sources, rows_each)
    steps = np.stack([decoder.step(targets[:, step]) for step in range(STEPS)], axis=1)
    for row, target in enumerate(targets.tolist()):
        expected = logits_of(model, sources[row // rows_each], target)
        torch.testing.assert_close(torch.from_numpy(steps[row]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_encoder_gives_the_models_states(seed: int, tmp_path: Path) -> None:
    model = saved(tmp_path, seed)
    sources = random_sources(seed)
    encoded = encode(network_of(tmp_path), sources)
    for index, source in enumerate(sources):
        with torch.no_grad():
            expected = model.get_encoder()(input_ids=torch.tensor([source]))
        states = torch.from_numpy(encoded.states[index])
        torch.testing.assert_close(states, expected.last_hidden_state[0], rtol=1e-4, atol=1e-5)
        finals = torch.from_numpy(encoded.finals[index])
        torch.testing.assert_close(finals, expected.final_states[0], rtol=1e-4, atol=1e-5)


def test_selected_rows_and_sources_go_on_as_they_would_alone(tmp_path: Path) -> None:
    saved(tmp_path, 3, decoder_kernel_sizes=3)
    network, sources = network_of(tmp_path), random_sources(3, num=4)
    tokens = np.arange(8) + 4
    decoder = NumpyDecoder(network, sources, 2)
    decoder.step(tokens)
    # Sources 1 and 3 stay; of 1 the second row twice, of 3 the rows change places.
    rows = np.array([3, 3, 7, 6])
    decoder.select(rows, np.array([1, 3]))
    logits = decoder.step(np.array([9, 8, 7, 6]))
    for row, (source, first, second) in enumerate(
        [(1, tokens[3], 9), (1, tokens[3], 8), (3, tokens[7], 7), (3, tokens[6], 6)]
    ):
        alone = NumpyDecoder(network, [sources[source]], 1)
        alone.step(np.array([first]))
        np.testing.assert_allclose(logits[row], alone.step(np.array([second]))[0], atol=1e-5)


def test_gates_are_those_of_the_models_kinds() -> None:
    assert NUM_GATES == pool_kinds_qrnn.NUM_GATES


def test_rows_have_one_memory_of_their_source(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    network, sources = network_of(tmp_path), random_sources(0)
    few, many = (NumpyDecoder(network, sources, rows_each) for rows_each in (1, 16))
    sizes = [
        sum(part.size for memory in decoder._memory for part in memory if part is not None)
        for decoder in (few, many)
    ]
    assert sizes[0] == sizes[1]
