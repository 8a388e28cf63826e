"""The native library's step of a whole decoder is what torch's few calls compute."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import stepping
import torch
from generating import language_model, seq2seq, source
from stepping import (
    MODERN,
    VARIANTS,
    WRONG,
    Case,
    Change,
    arguments,
    by_torch,
    check,
    check_bad_number,
    check_no_source,
    draw,
)
from torch import nn

from hf_qrnn import QRNNCache, kernels, use_backend
from hf_qrnn.model import backends_qrnn, step_plan_qrnn, step_qrnn
from hf_qrnn.model.internals_qrnn import onednn_linear
from hf_qrnn.model.step_plan_qrnn import plan_step

REASON = kernels.unavailable(torch.device("cpu"))
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("nan_memory"),
]
EVERY_VARIANT = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def operation() -> stepping.Operation:
    found: stepping.Operation = torch.ops.hf_qrnn_kernels.decoder_step
    return found


# ------------------------------------------------------------------ against torch


@EVERY_VARIANT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_variant_is_torchs(isa: str, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    simd, before = torch.ops.hf_qrnn_kernels.simd, torch.ops.hf_qrnn_kernels.simd("")
    try:
        if simd(isa) != isa:
            pytest.skip(f"this processor has no {isa}")
        check(Case(changes, dtype), operation())
    finally:
        simd(before)


@EVERY_VARIANT
def test_language_models_step_too(changes: dict[str, Any]) -> None:
    check(Case(changes, has_source=False), operation())


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("mask", ["", "sources", "rows"])
@pytest.mark.parametrize("changes", [{}, MODERN], ids=["inside", "behind"])
def test_rows_may_share_a_source(changes: dict[str, Any], mask: str, each: int) -> None:
    check(Case(changes, each=each, mask=mask), operation())


@pytest.mark.parametrize("hidden", [1, 7, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_any_width(hidden: int, dtype: torch.dtype) -> None:
    sizes = {"hidden_size": hidden, "embedding_size": hidden, "num_attention_heads": 1}
    check(Case({**MODERN, **sizes, "feed_forward_size": 5}, dtype), operation())


@pytest.mark.skipif(onednn_linear() is None, reason="torch has no oneDNN here")
def test_either_library_of_products() -> None:
    sizes = {"hidden_size": 320, "embedding_size": 320, "vocab_size": 13}
    check(Case(sizes, torch.float32, each=4), operation(), onednn=True)
    check(Case({**MODERN, **sizes}, torch.float32, each=4), operation(), onednn=True)


def test_source_without_a_real_step_is_zero() -> None:
    check_no_source(operation())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_is_no_number_stays_in_its_row(dtype: torch.dtype, bad: float) -> None:
    check_bad_number(operation(), dtype, bad)


def test_nothing_that_is_given_changes() -> None:
    drawn = draw(Case(MODERN))
    given = arguments(drawn)
    tensors = [x for part in given[:4] for x in (part if isinstance(part, list) else [part])]
    before = [x.clone() for x in tensors]
    operation()(*given)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(("change", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(change: Change, sentence: str) -> None:
    given = arguments(draw(Case(MODERN)))
    change(given)
    with pytest.raises(RuntimeError, match=sentence):
        operation()(*given)


def test_schema_is_that_of_an_operation_of_torch() -> None:
    drawn = draw(Case(MODERN, torch.float32))
    torch.library.opcheck(
        torch.ops.hf_qrnn_kernels.decoder_step.default,
        tuple(arguments(drawn)),
        test_utils=("test_schema", "test_autograd_registration"),
    )


# ------------------------------------------------------------------ when it is taken


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every step that the native library makes."""
    taken: list[int] = []
    original = step_qrnn._native_step

    def noted(plan: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.append(x.shape[0])
        return original(plan, x, *rest)

    monkeypatch.setattr(step_qrnn, "_native_step", noted)
    return taken


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
    number, gone = len(step_plan_qrnn._PLANS), weakref.ref(model.model)
    del model
    gc.collect()
    assert gone() is None
    assert len(step_plan_qrnn._PLANS) == number - 1


@torch.no_grad()
def test_step_by_torch_is_there_to_compare_with() -> None:
    drawn = draw(Case(MODERN))
    before = by_torch(drawn)
    assert all(torch.equal(a, b) for a, b in zip(by_torch(drawn), before, strict=True))
