"""Public programs around `nn.LSTM` (docs/recurrent.md lists them), run with both layers."""

import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hf_qrnn import QRNN, QRNNState
from hf_qrnn import layer as recurrent
from hf_qrnn.model.layers_qrnn import QRNNLayer

LENGTHS = torch.tensor([3, 7, 1, 5])


@pytest.fixture(autouse=True)
def _warns_again() -> None:
    """Forget that a warning was given, which is given once in a process."""
    recurrent._warn_of_lost_window.cache_clear()


def batch(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def repackage(state: object) -> object:
    """Cut a state of any nesting loose, the way language models have long done it."""
    if isinstance(state, torch.Tensor):
        return state.detach()
    return tuple(repackage(part) for part in state)


@pytest.mark.parametrize("kind", [nn.LSTM, QRNN])
def test_language_model_with_zeros_and_repackaged_states(kind: type[nn.Module]) -> None:
    rnn = kind(3, 4, 2).double()
    weight = next(rnn.parameters())
    hidden: Any = (weight.new_zeros(2, 5, 4), weight.new_zeros(2, 5, 4))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for chunk in batch(12, 5, 3).split(3):
            hidden = repackage(hidden)
            output, hidden = rnn(chunk, hidden)
            rnn.zero_grad()
            output.square().mean().backward()
            for p in rnn.parameters():
                p.data.add_(p.grad, alpha=-0.1)
    assert len(told) == (kind is QRNN)
    # One line says it for both: whatever can, detaches itself.
    hidden = hidden.detach() if hasattr(hidden, "detach") else repackage(hidden)
    assert not hidden[1].requires_grad
    rnn(batch(3, 5, 3), hidden)


@pytest.mark.parametrize("kind", [nn.LSTM, QRNN])
def test_characters_one_at_a_time(kind: type[nn.Module]) -> None:
    rnn, x = kind(3, 4, 2).double(), batch(6, 5, 3)
    hidden = (torch.zeros(2, 5, 4).double(), torch.zeros(2, 5, 4).double())
    outputs = []
    for step in x:
        output, hidden = rnn(step.view(1, 5, -1), hidden)
        outputs.append(output.view(5, -1))
    torch.testing.assert_close(torch.stack(outputs), rnn(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, QRNN])
def test_tagger_reads_both_ways_over_packed_sentences(kind: type[nn.Module]) -> None:
    rnn = kind(3, 4, num_layers=2, bidirectional=True, dropout=0.25).double()
    for _, parameter in rnn.named_parameters():
        nn.init.normal_(parameter.data, mean=0, std=0.1)
    packed = pack_padded_sequence(batch(7, 4, 3), LENGTHS, enforce_sorted=False)
    packed_output, (hidden, cell) = rnn(packed)
    outputs, lengths = pad_packed_sequence(packed_output)
    assert (outputs.shape, hidden.shape, cell.shape) == ((7, 4, 8), (4, 4, 4), (4, 4, 4))
    # The last layer's two ends: what classifiers read.
    ends = torch.cat((hidden[-2], hidden[-1]), dim=1)
    forward = torch.stack([outputs[n - 1, b, :4] for b, n in enumerate(lengths.tolist())])
    torch.testing.assert_close(ends, torch.cat((forward, outputs[0, :, 4:]), dim=1))
    by_direction = hidden.view(2, 2, 4, 4)
    assert torch.equal(by_direction[-1, 0], hidden[-2])


@pytest.mark.parametrize("kind", [nn.LSTM, QRNN])
def test_decoder_starts_from_the_encoders_state(kind: type[nn.Module]) -> None:
    encoder = kind(3, 4, 2, bidirectional=True).double()
    decoder = kind(5, 4, 2).double()
    _, encoder_hidden = encoder(batch(6, 2, 3))
    hidden = tuple(part[:2] for part in encoder_hidden)
    if kind is QRNN:
        hidden = QRNNState(*hidden, ())  # the one line that says that the window is meant empty
    for word in batch(3, 1, 2, 5):
        output, hidden = decoder(word, hidden)
    output.sum().backward()
    assert next(encoder.parameters()).grad.any()
    h, c = hidden
    both = (h.transpose(0, 1).reshape(2, -1), c.permute(1, 0, 2).contiguous().view(2, -1))
    assert both[0].shape == both[1].shape == (2, 8)


@pytest.mark.parametrize("kind", [nn.LSTM, QRNN])
def test_forecaster_feeds_back_what_it_says(kind: type[nn.Module]) -> None:
    # What loops over cells of one step do, by one call over the past and one per future step.
    torch.manual_seed(0)
    rnn, linear = kind(1, 3, 2).double(), nn.Linear(3, 1).double()
    output, state = rnn(batch(9, 4, 1))
    said = [linear(output)]
    for _ in range(3):
        output, state = rnn(said[-1][-1:], state)
        said.append(linear(output))
    assert torch.cat(said).shape == (12, 4, 1)


@pytest.mark.parametrize("kind", [nn.LSTM, QRNN])
def test_classifier_reads_rows_of_an_image(kind: type[nn.Module]) -> None:
    rnn = kind(input_size=3, hidden_size=4, batch_first=True).double()
    output, hidden = rnn(batch(2, 1, 5, 3).reshape(-1, 5, 3))
    assert torch.equal(output[:, -1, :], hidden[0][-1])


def test_whole_module_is_saved_and_loaded_by_a_list_of_names() -> None:
    layer, x, file = QRNN(3, 4, 2).double(), batch(5, 2, 3), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    with torch.serialization.safe_globals([QRNN, QRNNLayer, nn.Linear]):
        loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded(x)[0], layer(x)[0])
