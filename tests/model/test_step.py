"""The step of few calls: it gives what the modules give, and gives way to anything unusual."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from generating import config, language_model, prompts, seq2seq, source
from stepping import MODERN, VARIANTS
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from hf_qrnn import QRNNCache, QRNNForCausalLM, QRNNForConditionalGeneration, use_backend
from hf_qrnn.model import modeling_qrnn
from hf_qrnn.model.step_plan_qrnn import plan_step

EVERY_VARIANT = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
HEADS = {"seq2seq": (seq2seq, source), "language model": (language_model, prompts)}
CLOSE = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.bfloat16: {"rtol": 0.05, "atol": 0.05},
}
BOTH = pytest.mark.parametrize("head", HEADS)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every step that is taken the short way."""
    taken: list[int] = []

    def counted(plan: Any, token_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.append(len(token_ids))
        return original(plan, token_ids, *rest)

    original = modeling_qrnn.step
    monkeypatch.setattr(modeling_qrnn, "step", counted)
    return taken


def run(head: str, model: Any, inputs: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Logits of `ids` (B, T), all at once or (with a cache) one by one."""
    return torch.cat(list(stepped(head, model, inputs, ids)), 1)


def stepped(
    head: str, model: Any, inputs: dict[str, torch.Tensor], ids: torch.Tensor
) -> Iterator[torch.Tensor]:
    cache = QRNNCache(model.config.decoder_layers)
    given, name = _source_of(head, model, inputs)
    for part in ids.split(1, 1):
        yield model(**given, **{name: part}, past_key_values=cache).logits


def _source_of(
    head: str, model: Any, inputs: dict[str, torch.Tensor]
) -> tuple[dict[str, Any], str]:
    """Return what every step is given besides its ids, and what those are called."""
    if head == "language model":
        return {}, "input_ids"
    with torch.no_grad():
        encoded = model.get_encoder()(**inputs)
    given = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"]}
    return given, "decoder_input_ids"


def whole(head: str, model: Any, inputs: dict[str, torch.Tensor], ids: torch.Tensor) -> Any:
    if head == "language model":
        return model(ids).logits
    return model(**inputs, decoder_input_ids=ids).logits


@BOTH
@EVERY_VARIANT
@pytest.mark.parametrize("backend", ["auto", "torch"])
@torch.no_grad()
def test_steps_equal_the_whole(
    head: str, changes: dict[str, Any], backend: str, steps: list[int]
) -> None:
    model, inputs = HEADS[head][0](**changes), HEADS[head][1]()
    ids = torch.randint(4, 13, (3, 7))
    with use_backend(backend):
        logits = run(head, model, inputs, ids)
        torch.testing.assert_close(logits, whole(head, model, inputs, ids))
    # A language model's first step has no state to go on from, as the other head's.
    assert steps == [3] * 6


@BOTH
def test_generate_takes_the_short_way_in_every_search(head: str, steps: list[int]) -> None:
    model, inputs = HEADS[head][0](**MODERN), HEADS[head][1]()
    for mode, rows in (({}, 3), ({"num_beams": 4}, 12), ({"num_return_sequences": 2}, 6)):
        steps.clear()
        model.generate(**inputs, **mode, do_sample=rows == 6, max_new_tokens=6, min_new_tokens=6)
        assert steps == [rows] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_step_is_exact(dtype: torch.dtype, steps: list[int]) -> None:
    # By torch: the same products, sums and roots in the same order as the modules'.
    for changes in VARIANTS.values():
        model, inputs = seq2seq(**changes).to(dtype), source()
        ids = torch.randint(4, 13, (3, 5))
        with use_backend("torch"):
            short = run("seq2seq", model, inputs, ids)
            assert len(steps) == 4
            handle = model.model.decoder.register_forward_hook(lambda *_: None)
            assert torch.equal(run("seq2seq", model, inputs, ids), short)
        handle.remove()
        assert len(steps) == 4
        steps.clear()


def hooked(path: str) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        return model.get_submodule(path).register_forward_hook(lambda *_: None)

    return change


class Adapter(nn.Linear):
    """What an adapter puts in the place of a linear layer."""


def adapted(model: Any) -> None:
    layer = model.model.decoder.layers[1].layer
    adapter = Adapter(layer.convolution.in_features, layer.convolution.out_features).double()
    adapter.load_state_dict(layer.convolution.state_dict())
    layer.convolution = adapter


def overridden(model: Any) -> None:
    norm = model.model.decoder.layers[0].connection.norm
    norm.forward = lambda x: nn.RMSNorm.forward(norm, x)


UNUSUAL: dict[str, Callable[[Any], Any]] = {
    "hooked stack": hooked("model"),
    "hooked decoder": hooked("model.decoder"),
    "hooked embedding": hooked("model.shared"),
    "hooked layer": hooked("model.decoder.layers.0"),
    "hooked recurrence": hooked("model.decoder.layers.0.layer"),
    "hooked product": hooked("model.decoder.layers.1.layer.convolution"),
    "hooked norm": hooked("model.decoder.layers.1.connection.norm"),
    "hooked dropout": hooked("model.decoder.layers.1.connection.dropout"),
    "hooked attention": hooked("model.decoder.layers.0.attention"),
    "hooked query": hooked("model.decoder.layers.0.attention.query"),
    "hooked feed-forward": hooked("model.decoder.layers.0.feed_forward"),
    "hooked feed-forward's product": hooked("model.decoder.layers.0.feed_forward.out"),
    "hooked last norm": hooked("model.decoder.norm"),
    "hook of all modules": lambda _: register_module_forward_hook(lambda *_: None),
    "adapter": adapted,
    "forward of an object": overridden,
    "pre-hook": lambda m: m.model.decoder.layers[0].register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL)
@torch.no_grad()
def test_unusual_modules_are_called(change: Callable[[Any], Any], steps: list[int]) -> None:
    model, inputs, ids = seq2seq(**MODERN), source(), torch.randint(4, 13, (3, 4))
    expected = run("seq2seq", model, inputs, ids)
    steps.clear()
    handle = change(model)
    torch.testing.assert_close(run("seq2seq", model, inputs, ids), expected)
    assert not steps
    if handle is not None:
        handle.remove()
        run("seq2seq", model, inputs, ids)
        assert steps == [3] * 3


@torch.no_grad()
def test_hook_hears_every_step() -> None:
    model, heard = seq2seq(), []
    model.model.decoder.layers[0].layer.register_forward_hook(lambda *_: heard.append(1))
    model.generate(**source(), max_new_tokens=6, min_new_tokens=6)
    assert len(heard) == 6


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@torch.no_grad()
def test_gradients_and_autocast_go_by_the_modules(
    context: Callable[[], AbstractContextManager[Any]], steps: list[int]
) -> None:
    model = seq2seq().float()
    with context():
        run("seq2seq", model, source(), torch.randint(4, 13, (3, 3)))
    assert not steps


@torch.no_grad()
def test_training_goes_by_the_modules(steps: list[int]) -> None:
    model, inputs, ids = seq2seq(dropout=0.5), source(), torch.randint(4, 13, (3, 3))
    model.train()
    run("seq2seq", model, inputs, ids)
    assert not steps
    # Of a model without dropout and zoneout there is nothing to draw.
    run("seq2seq", seq2seq().train(), inputs, ids)
    assert steps == [3] * 2


@torch.no_grad()
def test_outputs_that_are_wanted_come() -> None:
    model, inputs = seq2seq(**MODERN), source()
    outputs = model.generate(
        **inputs,
        max_new_tokens=5,
        return_dict_in_generate=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert all(weights[1].shape == (3, 4, 1, 8) for weights in outputs.cross_attentions)
    assert all(len(states) == 3 for states in outputs.decoder_hidden_states)
    model.config.output_attentions = True
    cache = QRNNCache(2)
    for _ in range(2):
        output = model(**inputs, decoder_input_ids=torch.ones(3, 1).long(), past_key_values=cache)
    assert len(output.cross_attentions) == 2


@torch.no_grad()
def test_step_returns_what_forward_returns() -> None:
    model, inputs, ids = seq2seq(), source(), torch.randint(4, 13, (3, 3))
    encoded = model.get_encoder()(**inputs, output_hidden_states=True)
    given = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"]}
    cache = QRNNCache(2)
    first = model(**given, decoder_input_ids=ids[:, :1], past_key_values=cache)
    output = model(**given, decoder_input_ids=ids[:, 1:2], past_key_values=cache)
    assert output.keys() == first.keys()
    assert output.past_key_values is cache
    assert output.encoder_last_hidden_state is encoded.last_hidden_state
    assert isinstance(model(**given, decoder_input_ids=ids[:, 2:], return_dict=False), tuple)
    assert cache.get_seq_length() == 2


@torch.no_grad()
def test_masks_are_heeded(steps: list[int]) -> None:
    model, inputs = seq2seq(**MODERN), source()
    encoded = model.get_encoder()(**inputs)
    ids = torch.randint(4, 13, (3, 4))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    cache, given = QRNNCache(2), {"encoder_outputs": encoded, **inputs}
    del given["input_ids"]
    parts = [
        model(
            **given,
            decoder_input_ids=ids[:, t : t + 1],
            decoder_attention_mask=mask[:, : t + 1],
            past_key_values=cache,
        ).logits
        for t in range(4)
    ]
    assert steps == [3]  # pads go by the modules, and so does the first
    expected = model(**given, decoder_input_ids=ids, decoder_attention_mask=mask).logits
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[real])


@torch.no_grad()
def test_a_model_without_numbers_steps_by_its_modules(steps: list[int]) -> None:
    model, ids = language_model().to("meta"), torch.ones(3, 1, dtype=torch.long, device="meta")
    cache = QRNNCache(2)
    shapes = [model(ids, past_key_values=cache).logits.shape for _ in range(3)]
    assert shapes == [(3, 1, 13)] * 3
    assert not steps


@BOTH
@torch.no_grad()
def test_no_rows_are_no_step(head: str, steps: list[int]) -> None:
    inputs = {name: x[:0] for name, x in HEADS[head][1]().items()}
    logits = run(head, HEADS[head][0](), inputs, torch.ones(0, 3, dtype=torch.long))
    assert logits.shape == (0, 3, 13)
    assert not steps


@torch.no_grad()
def test_static_caches_go_by_the_modules(steps: list[int]) -> None:
    seq2seq().generate(**source(), max_new_tokens=5, cache_implementation="static")
    assert not steps


@BOTH
@EVERY_VARIANT
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_recorded_steps_are_taken_back(
    head: str, changes: dict[str, Any], dtype: torch.dtype, steps: list[int]
) -> None:
    model, inputs = HEADS[head][0](**changes).to(dtype), HEADS[head][1]()
    ids, others = torch.randint(4, 13, (3, 6)), torch.randint(4, 13, (3, 2))

    def logits(short: bool) -> torch.Tensor:
        listener = None
        if not short:
            listener = model.model.decoder.register_forward_hook(lambda *_: None)
        cache, found = QRNNCache(model.config.decoder_layers), []
        cache.activate_past_recording()
        given, name = _source_of(head, model, inputs)
        for part in ids.split(1, 1):
            found.append(model(**given, **{name: part}, past_key_values=cache).logits)
        cache.crop(-3)
        assert cache.get_seq_length() == 3
        for part in (others[:, :1], others[:, 1:]):
            found.append(model(**given, **{name: part}, past_key_values=cache).logits)
        if listener is not None:
            listener.remove()
        return torch.cat(found, 1)

    found = logits(short=True)
    assert steps == [3] * 7
    torch.testing.assert_close(found, logits(short=False), **CLOSE[dtype])
    assert len(steps) == 7


@torch.no_grad()
def test_prompt_lookup_and_assistants_take_the_short_way(steps: list[int]) -> None:
    model, inputs = seq2seq(), source()
    row = {name: x[:1] for name, x in inputs.items()}
    expected = model.generate(**row, max_new_tokens=9)
    for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": copy.deepcopy(model)}):
        steps.clear()
        assert torch.equal(model.generate(**row, max_new_tokens=9, **options), expected)
        assert set(steps) == {1}


@pytest.mark.parametrize("make", [seq2seq, language_model])
@torch.no_grad()
def test_wrong_ids_and_rows_are_named(make: Callable[..., Any]) -> None:
    model, inputs = make(), source()
    name = "decoder_input_ids" if make is seq2seq else "input_ids"
    cache, given = QRNNCache(2), {}
    if make is seq2seq:
        encoded = model.get_encoder()(**inputs)
        given = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"]}
    ids = torch.ones(3, 1).long()
    model(**given, **{name: ids}, past_key_values=cache)
    for wrong in (13, -1):
        with pytest.raises(ValueError, match=rf"`{name}` must be in \[0, 13\), but holds {wrong}"):
            model(**given, **{name: ids * wrong}, past_key_values=cache)
    with pytest.raises(ValueError, match="must have 2 rows, as the inputs, but has 3"):
        model(**given, **{name: ids[:2]}, past_key_values=cache)
    assert cache.get_seq_length() == 1


@torch.no_grad()
def test_cache_of_another_depth_is_not_taken() -> None:
    model = language_model()
    cache = QRNNCache(2)
    model(torch.ones(3, 1).long(), past_key_values=cache)
    deeper = language_model(encoder_layers=3, decoder_layers=3)
    ids = torch.ones(3, 1).long()
    assert plan_step(model.model, type(model.model), ids, cache) is not None
    assert plan_step(deeper.model, type(deeper.model), ids, cache) is None


@torch.no_grad()
def test_copy_of_a_stepped_cache_goes_its_own_way() -> None:
    model, ids = language_model(decoder_kernel_sizes=3), torch.randint(4, 13, (3, 6))
    cache = QRNNCache(2)
    for part in ids[:, :4].split(1, 1):
        model(part, past_key_values=cache)
    other = copy.deepcopy(cache)
    model(ids[:, :1], past_key_values=cache)
    logits = [model(part, past_key_values=other).logits for part in ids[:, 4:].split(1, 1)]
    torch.testing.assert_close(torch.cat(logits, 1), model(ids).logits[:, 4:])


@pytest.mark.parametrize("kind", [QRNNForConditionalGeneration, QRNNForCausalLM])
def test_class_of_somebody_else_keeps_its_forward(kind: Any, steps: list[int]) -> None:
    class Other(type(kind(config()).model)):  # type: ignore[misc]
        """A base whose forward may do anything."""

    model = kind(config()).double().eval()
    model.model.__class__ = Other
    inputs = source() if kind is QRNNForConditionalGeneration else prompts()
    model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    assert not steps
