"""When the native library makes a step, and what a plan of one sees of changes."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from generating import language_model, seq2seq, source
from stepping import MODERN, Case, by_torch, count_native_steps, draw
from torch import nn

from hf_qrnn import QRNNCache, kernels, use_backend
from hf_qrnn.model import backends_qrnn, step_plan_qrnn
from hf_qrnn.model.step_plan_qrnn import plan_step

REASON = kernels.unavailable(torch.device("cpu"))
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("nan_memory"),
]


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every step that the native library makes."""
    return count_native_steps(monkeypatch)


def generate(model: Any) -> Any:
    return model.generate(**source(), max_new_tokens=5, min_new_tokens=5, num_beams=2)


@pytest.mark.parametrize("changes", [{}, MODERN], ids=["paper", "modern"])
def test_generate_takes_it(changes: dict[str, Any], native: list[int]) -> None:
    torch.manual_seed(0)
    model, inputs = seq2seq(**changes), source()
    found = model.generate(**inputs, max_new_tokens=9, num_beams=2)
    assert native
    assert set(native) == {6}
    native.clear()
    with use_backend("torch"):
        assert torch.equal(model.generate(**inputs, max_new_tokens=9, num_beams=2), found)
    assert not native


def test_a_config_may_forbid_it(native: list[int]) -> None:
    generate(seq2seq(pool_backend="torch"))
    assert not native
    generate(seq2seq())
    assert native == [6] * 4


def test_library_of_an_older_release_is_passed_by(
    native: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = kernels.operation

    def operation(name: str) -> Any:
        if name == "decoder_step":
            raise AttributeError(name)
        return original(name)

    monkeypatch.setattr(kernels, "operation", operation)
    backends_qrnn.step_operation.cache_clear()
    try:
        generate(seq2seq(**MODERN))
    finally:
        backends_qrnn.step_operation.cache_clear()
    assert not native


def test_norms_in_other_digits_are_torchs(native: list[int]) -> None:
    model = seq2seq(**MODERN).to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.float()
    generate(model)
    assert not native
    generate(model.float())
    assert native


# ------------------------------------------------------------------ plans


def cache_of(model: Any) -> QRNNCache:
    cache = QRNNCache(model.config.decoder_layers)
    model(torch.ones(3, 1).long(), past_key_values=cache)
    return cache


CHANGES: dict[str, Callable[[Any], None]] = {
    "weight": lambda m: setattr(
        m.decoder.layers[0].layer.convolution,
        "weight",
        nn.Parameter(m.decoder.layers[0].layer.convolution.weight * 2),
    ),
    "weight in place": lambda m: m.decoder.layers[1].layer.convolution.weight.data.mul_(2),
    "data": lambda m: setattr(m.shared.weight, "data", m.shared.weight.data * 2),
    "eps": lambda m: setattr(m.decoder.layers[0].connection.norm, "eps", 0.5),
    "residual": lambda m: setattr(m.decoder.layers[1].connection, "residual", False),
    "last norm": lambda m: setattr(m.decoder, "norm", nn.Identity()),
    "layers": lambda m: m.decoder.layers.__setitem__(0, m.decoder.layers[1]),
    "no feed-forward": lambda m: setattr(m.decoder.layers[0], "feed_forward", None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_changes_of_a_model_are_seen(change: Callable[[Any], None]) -> None:
    model, ids = language_model(**MODERN), torch.randint(4, 13, (3, 4))
    for part in ids.split(1, 1):
        before = model(part, past_key_values=cache_of(model)).logits
    change(model.model)
    found, wanted = cache_of(model), cache_of(model)
    stepped = [model(part, past_key_values=found).logits for part in ids.split(1, 1)]
    model.model.decoder.register_forward_hook(lambda *_: None)
    called = [model(part, past_key_values=wanted).logits for part in ids.split(1, 1)]
    torch.testing.assert_close(stepped, called)
    assert not torch.allclose(stepped[0], before)


def test_a_plan_lives_no_longer_than_its_model() -> None:
    model = language_model()
    with torch.no_grad():
        cache, ids = cache_of(model), torch.ones(3, 1).long()
        assert plan_step(model.model, type(model.model), ids, cache) is not None
    gone = weakref.ref(model.model)
    assert gone() in step_plan_qrnn._PLANS
    del model
    gc.collect()
    assert gone() is None


@torch.no_grad()
def test_step_by_torch_is_there_to_compare_with() -> None:
    drawn = draw(Case(MODERN))
    before = by_torch(drawn)
    assert all(torch.equal(a, b) for a, b in zip(by_torch(drawn), before, strict=True))
