"""benchmarks/controls.py: what is compared with is what it says."""

import itertools
from typing import Any

import pytest
import torch
from controls import LoopQRNN, LSTMTranslator

from hf_qrnn import QRNN


def test_loop_is_the_same_function_with_the_same_gradients() -> None:
    layer = QRNN(5, 4, dtype=torch.float64)
    loop = LoopQRNN(layer)
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    outputs = []
    for module in (layer, loop):
        leaf = x.clone().requires_grad_()
        h, state = module(leaf)
        c = state.c_n[0] if module is layer else state
        ((h * torch.arange(4)).sum() + c.square().sum()).backward()
        weight, bias = (p.grad for p in module.parameters())
        outputs.append([h, c, leaf.grad, weight, bias])
    for grad in outputs[1][3:]:
        grad[4:8].neg_()  # its forget gate is the paper's, turned round
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"num_layers": 2}, {"bidirectional": True}, {"kernel_size": 3}, {"pooling": "f"},
                {"bias": False}],
)  # fmt: skip
def test_loop_refuses_what_it_is_not(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`layer` must have one layer"):
        LoopQRNN(QRNN(3, 3, **options))


def test_translator_of_lstms_attends_as_in_equation_8() -> None:
    model = LSTMTranslator(11, 6, 2).double()
    source, labels = torch.randint(11, (3, 5)), torch.randint(11, (3, 4))
    output = model(source, labels)
    states, final = model.encoder(model.shared(source.flip(1)).transpose(0, 1))
    inputs = torch.cat([torch.zeros(3, 1, dtype=torch.int64), labels[:, :-1]], dim=1)
    d, _ = model.decoder(model.shared(inputs).transpose(0, 1), final)
    for b, t in itertools.product(range(3), range(4)):
        alpha = torch.softmax(torch.stack([d[t, b] @ states[s, b] for s in range(5)]), 0)
        k = sum(alpha[s] * states[s, b] for s in range(5))
        h = model.context.weight @ k + model.cell.weight @ d[t, b]
        wanted = model.lm_head.weight @ h + model.lm_head.bias
        torch.testing.assert_close(output.logits[t, b], wanted, rtol=0, atol=1e-12)
    chosen = output.logits.log_softmax(-1).gather(2, labels.t()[:, :, None])
    torch.testing.assert_close(output.loss, -chosen.mean(), rtol=0, atol=1e-12)


def test_translator_of_lstms_does_not_look_ahead() -> None:
    model = LSTMTranslator(11, 6, 2)
    source, labels = torch.randint(11, (1, 5)), torch.randint(10, (1, 4))
    changed = labels.clone()
    changed[0, 2] += 1
    before, after = (model(source, x).logits[:, 0] for x in (labels, changed))
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])
