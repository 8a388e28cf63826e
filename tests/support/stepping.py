"""Random decoders in the middle of a text, for the tests of the operation `decoder_step`."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from generating import LENGTHS, language_model, seq2seq, source

from hf_qrnn import QRNNCache
from hf_qrnn.model import step_qrnn
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

    `mask` says of what rows there is one: "sources", "rows", or "" for none. `lengths` are the
    sources'.
    """

    changes: dict[str, Any]
    dtype: torch.dtype = torch.float64
    each: int = 1
    mask: str = "sources"
    has_source: bool = True
    steps: int = 2
    lengths: tuple[int, ...] = LENGTHS


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
    cache, inputs = QRNNCache(model.config.decoder_layers), source(case.lengths)
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


def on_device(given: Any, device: str) -> Any:
    """Move the tensors among the operation's arguments."""
    if isinstance(given, list):
        return [on_device(x, device) for x in given]
    return given.to(device) if isinstance(given, torch.Tensor) else given


@torch.no_grad()
def check(case: Case, operation: Operation, *, onednn: bool = False, device: str = "cpu") -> None:
    """Compare the operation on `device` with torch on the CPU."""
    drawn = draw(case)
    expected = by_torch(drawn)
    out, *news = on_device(operation(*on_device(arguments(drawn, onednn), device)), "cpu")
    found = [out, *(x[:, 1:] if x.dim() == 3 else x for x in news)]
    tolerance = TOLERANCES[case.dtype]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def check_no_source(operation: Operation) -> None:
    """Check that a row whose source has no real step attends to zeros."""
    for changes in ({}, MODERN):
        drawn = draw(Case(changes))
        assert drawn.mask is not None
        drawn.mask[1] = False
        found = operation(*arguments(drawn))
        drawn.mask[1] = True
        for index in range(len(drawn.cache.layers)):
            values = drawn.cache.layer(index).source_values
            if values is not None:
                values[1] = 0
        torch.testing.assert_close(found, operation(*arguments(drawn)))


def check_bad_number(operation: Operation, dtype: torch.dtype, bad: float) -> None:
    """Check that NaN or infinity in what one row attends to reaches no other."""
    drawn = draw(Case(MODERN, dtype))
    for index in (0, 1):
        values = drawn.cache.layer(index).source_values
        assert values is not None
        values[0, 0, 0, 0] = bad
    out = operation(*arguments(drawn))[0]
    assert out.isnan().flatten(1).any(1).tolist() == [True, False, False]


def count_native_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the rows of every step that the native library makes."""
    taken: list[int] = []
    original = step_qrnn._native_step

    def noted(plan: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.append(x.shape[0])
        return original(plan, x, *rest)

    monkeypatch.setattr(step_qrnn, "_native_step", noted)
    return taken


# ------------------------------------------------------------------ wrong arguments

Change = Callable[[list[Any]], None]


def _shorter(place: int) -> Change:
    def change(given: list[Any]) -> None:
        given[place] = given[place][:-1]

    return change


def _replaced(place: int, value: Callable[[Any], Any]) -> Change:
    def change(given: list[Any]) -> None:
        given[place] = value(given[place])

    return change


def _first(tensors: list[torch.Tensor], new: torch.Tensor) -> list[torch.Tensor]:
    return [new, *tensors[1:]]


def _other_rows(given: list[Any]) -> None:
    given[0], given[4] = given[0][:2], None


WRONG: dict[str, tuple[Change, str]] = {
    "weights end": (_shorter(1), "`weights` must have a "),
    "more weights": (_replaced(1, lambda x: [*x, x[0]]), "`weights` and `memory` must be as"),
    "memory ends": (_shorter(3), "`memory` must be as `layout` says"),
    "more memory": (_replaced(3, lambda x: [*x, x[0]]), "`weights` and `memory` must be as"),
    "states of fewer layers": (_shorter(2), "`layout`, `numbers` and `states` must be"),
    "numbers": (_replaced(6, lambda x: x[:-2]), "`layout`, `numbers` and `states` must be"),
    "no layers": (_replaced(5, lambda _: []), "`layout`, `numbers` and `states` must be"),
    "pooling": (_replaced(5, lambda x: [3, *x[1:]]), "`pooling` must be 0, 1 or 2, but is 3"),
    "two steps": (_replaced(0, lambda x: x.repeat(1, 2, 1)), r"`x` must be \(rows, 1, width\)"),
    "integers": (_replaced(0, lambda x: x.long()), "must be float64, float32"),
    "other rows": (_other_rows, "must have the shape, dtype and device"),
    "other dtype": (_replaced(0, lambda x: x.float()), "must have the dtype and the device"),
    "mask": (_replaced(4, lambda x: x.long()), "`mask` must be boolean"),
    "mask's rows": (_replaced(4, lambda x: x[:2]), "`mask` must be boolean"),
    "mask's columns": (_replaced(4, lambda x: x[:, 1:]), "`mask` must have a column"),
    "inputs": (
        _replaced(2, lambda x: _first(x, x[0][:, :, 1:])),
        "`inputs` must have the shape",
    ),
}
