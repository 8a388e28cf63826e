"""Hooks on every module, as profilers and debuggers set them: nothing changes, each is called."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from hf_qrnn import (
    QRNN,
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNModel,
)
from hf_qrnn.model.blocks_qrnn import Connection

MODELS = (
    QRNNModel,
    QRNNForConditionalGeneration,
    QRNNForCausalLM,
    QRNNForSequenceClassification,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "modern": {
        "attention_layers": "all",
        "residual": True,
        "rms_norm": True,
        "feed_forward_size": 8,
        "num_attention_heads": 2,
        "pooling": "ifo",
    },
    "dense": {"dense_connections": True, "encoder_bidirectional": True, "pooling": "f"},
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 4], [9, 8, 7, 6, 0, 0]])
MASK = IDS.ne(0).long()


def build(kind: type[nn.Module], variant: str) -> nn.Module:
    torch.manual_seed(0)
    config = QRNNConfig(
        vocab_size=12,
        embedding_size=8,
        hidden_size=8,
        encoder_layers=2,
        decoder_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **VARIANTS[variant],
    )
    return kind(config).double().train()


def run(model: nn.Module, **options: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, or what comes first, and the gradient of every parameter."""
    model.zero_grad()
    if isinstance(model, QRNNModel | QRNNForConditionalGeneration):
        options = {"decoder_input_ids": IDS, "decoder_attention_mask": MASK, **options}
    output = model(input_ids=IDS, attention_mask=MASK, **options)[0]
    output.square().sum().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters()}


class Watch:
    """Forward and full backward hooks on every module, and the names of those called."""

    def __init__(self, model: nn.Module) -> None:
        self.forward: dict[str, Any] = {}
        self.backward: set[str] = set()
        self.modules = dict(model.named_modules())
        for name, module in self.modules.items():
            module.register_forward_hook(self._note_result(name))
            module.register_full_backward_hook(self._note_gradient(name))

    def _note_result(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, result: Any) -> None:
            self.forward[name] = result

        return hook

    def _note_gradient(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, grad_inputs: Any, grad_outputs: Any) -> None:
            assert any(grad is not None for grad in grad_outputs)
            self.backward.add(name)

        return hook


def run_watched(model: nn.Module, **options: Any) -> tuple[Watch, Any]:
    watch = Watch(model)
    with warnings.catch_warnings():
        # Of torch: of results that are no tensors, and of inputs without gradients.
        warnings.filterwarnings("ignore", "For backward hooks to be called")
        warnings.filterwarnings("ignore", "Full backward hook is firing when gradients are")
        return watch, run(model, **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", MODELS)
def test_hooks_change_nothing_and_are_called(kind: type[nn.Module], variant: str) -> None:
    model = build(kind, variant)
    expected = run(model)
    watch, got = run_watched(model)
    torch.testing.assert_close(got, expected)
    # Containers are not called themselves.
    containers = {
        name for name, m in watch.modules.items() if isinstance(m, nn.ModuleList | Connection)
    }
    assert watch.forward.keys() == watch.modules.keys() - containers
    # As in every model of transformers: torch follows tensors and tuples, no ModelOutput.
    unfollowed = {n for n, result in watch.forward.items() if isinstance(result, ModelOutput)}
    assert unfollowed == watch.forward.keys() & {"", "model", *stacks(watch)}
    assert watch.backward == watch.forward.keys() - unfollowed
    assert {"lm_head", "classifier"} & watch.modules.keys() <= watch.backward


def stacks(watch: Watch) -> set[str]:
    names = ("encoder", "decoder", "model.encoder", "model.decoder")
    return {name for name in names if name in watch.modules}


@pytest.mark.parametrize("kind", MODELS)
def test_hook_of_a_model_is_called_with_return_dict_false(kind: type[nn.Module]) -> None:
    model = build(kind, "paper")
    expected = run(model)
    watch, got = run_watched(model, return_dict=False)
    assert "" in watch.backward
    torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")
@pytest.mark.parametrize("kind", [QRNNForConditionalGeneration, QRNNForCausalLM])
def test_generate_is_the_same_with_hooks(kind: type[nn.Module]) -> None:
    model = build(kind, "modern").eval()
    options = {"attention_mask": MASK.flip(1), "max_new_tokens": 6, "num_beams": 2}
    expected = model.generate(IDS.flip(1), **options)
    Watch(model)
    assert torch.equal(model.generate(IDS.flip(1), **options), expected)


@pytest.mark.parametrize("what", ["output", "h_n", "c_n", "both"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layer_calls_the_hooks_that_lstm_calls(bidirectional: bool, what: str) -> None:
    """torch follows no tuple in a tuple: neither LSTM's nor ours is called by h_n or c_n alone."""
    called, grads = {}, {}
    for kind in (nn.LSTM, QRNN):
        torch.manual_seed(0)
        layer, x = kind(3, 4, 2, bidirectional=bidirectional), torch.randn(5, 2, 3)
        for hooked in (False, True):
            leaf = x.clone().requires_grad_()
            if hooked:
                watch = Watch(layer)
            output, (h, c) = layer(leaf)
            {"output": output, "h_n": h, "c_n": c, "both": output.sum() + c.sum()}[
                what
            ].sum().backward()
            grads[hooked] = leaf.grad
        torch.testing.assert_close(grads[True], grads[False])
        called[kind] = "" in watch.backward
        inner = watch.backward - {""}
    assert called[QRNN] == called[nn.LSTM] == (what in ("output", "both"))
    # Of h_n and c_n the layers inside know.
    assert inner == watch.modules.keys() - {""}
