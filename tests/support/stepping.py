"""Random decoders in the middle of a text, for the tests of the operation `decoder_step`."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from generating import language_model, seq2seq, source

from hf_qrnn import QRNNCache
from hf_qrnn.model.step_plan_qrnn import StepPlan
from hf_qrnn.model.step_qrnn import step

MODERN: dict[str, Any] = {
    "attention_layers": "all",
    "residual": True,
    "rms_norm": True,
    "feed_forward_size": 6,
    "num_attention_heads": 4,
    "attention_scaling": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "modern": MODERN,
    "f k1": {"pooling": "f", "decoder_kernel_sizes": 1, "num_attention_heads": 2},
    "ifo k4 dense": {"pooling": "ifo", "decoder_kernel_sizes": 4, "dense_connections": True},
    "one layer tied": {"encoder_layers": 1, "decoder_layers": 1, "tie_word_embeddings": True},
    "wider": {"hidden_size": 12, "residual": True, "tie_word_embeddings": True},
}
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 4e-2,
}
Operation = Callable[..., list[torch.Tensor]]


class Case(NamedTuple):
    """A decoder, and a batch of three sources with `each` rows to one of them.

    `mask` says of what rows there is one: "sources", "rows", or "" for none.
    """

    changes: dict[str, Any]
    dtype: torch.dtype = torch.float64
    each: int = 1
    mask: str = "sources"
    has_source: bool = True
    steps: int = 2


class Drawn(NamedTuple):
    """The plan of a model, a state to go on from, the next ids (R, 1), and the source's mask."""

    plan: StepPlan
    cache: QRNNCache
    ids: torch.Tensor
    mask: torch.Tensor | None


@torch.no_grad()
def draw(case: Case) -> Drawn:
    """Make a model and take its first steps by its modules."""
    model: Any = (seq2seq if case.has_source else language_model)(**case.changes)
    model.to(case.dtype)
    cache, inputs = QRNNCache(model.config.decoder_layers), source()
    name, given = "input_ids", {}
    if case.has_source:
        name, given = "decoder_input_ids", {"attention_mask": inputs["attention_mask"]}
        given["encoder_outputs"] = model.get_encoder()(**inputs)
    model.model.decoder.register_forward_hook(lambda *_: None)
    for _ in range(case.steps):
        model(**given, **{name: torch.randint(4, 13, (3, 1))}, past_key_values=cache)
    cache.batch_repeat_interleave(case.each)
    mask = inputs["attention_mask"].bool() if case.has_source and case.mask else None
    if mask is not None and case.mask == "rows":
        mask = mask.repeat_interleave(case.each, 0)
    return Drawn(StepPlan(model.model), cache, torch.randint(4, 13, (3 * case.each, 1)), mask)


def arguments(drawn: Drawn, onednn: bool = False) -> list[Any]:
    """Write what the operation is told."""
    plan, layers = drawn.plan, [drawn.cache.layer(i) for i in range(len(drawn.cache.layers))]
    states = [x for kept in layers for x in (kept.inputs, kept.c)]
    memory = [x for kept in layers for x in kept._kept_memory() if x is not None]
    x = plan.embedding.weight[drawn.ids]
    return [x, plan.weights, states, memory, drawn.mask, plan.layout, plan.numbers, onednn]


@torch.no_grad()
def by_torch(drawn: Drawn) -> list[torch.Tensor]:
    """Make the step by torch, and give what the operation gives, the last inputs for windows."""
    cache = copy.deepcopy(drawn.cache)
    assert drawn.plan.operation is None
    out = step(drawn.plan, drawn.ids, cache, drawn.mask)
    layers = [cache.layer(i) for i in range(len(cache.layers))]
    states = [x for kept in layers for x in (kept.inputs, kept.c) if x is not None]
    return [out, *states]


@torch.no_grad()
def check(case: Case, operation: Operation, *, onednn: bool = False) -> None:
    """Compare the operation with torch."""
    drawn = draw(case)
    expected = by_torch(drawn)
    out, *news = operation(*arguments(drawn, onednn))
    found = [out, *(x[:, 1:] if x.dim() == 3 else x for x in news)]
    tolerance = TOLERANCES[case.dtype]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
