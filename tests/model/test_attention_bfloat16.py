"""hf_qrnn.model.attention_qrnn in bfloat16 on a CPU: two products and a softmax."""

import itertools
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import nn

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.model import attention_qrnn
from hf_qrnn.model.attention_qrnn import MOST_WEIGHTS, attend

pytestmark = [
    pytest.mark.usefixtures("nan_memory"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # torch's own
]

B, N, T, S, D = 3, 2, 5, 7, 16
MASK = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [0] * 7]).bool()
EPS = torch.finfo(torch.bfloat16).eps


def tensors(mask: torch.Tensor | None, size: float = 1.0) -> list[torch.Tensor]:
    """Query, keys and values; values are zero at pads, as an encoder leaves them."""
    generator = torch.Generator().manual_seed(0)
    query = size * torch.randn(B, N, T, D, generator=generator)
    keys, values = torch.randn(2, B, N, S, D, generator=generator)
    if mask is not None:
        keys, values = (x * mask[:, None, :, None] for x in (keys, values))
    return [x.bfloat16().requires_grad_() for x in (query, keys, values)]


def by_loop(
    given: list[torch.Tensor], mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Context and gradients of its squares in float64, one query after another."""
    query, keys, values = leaves = [x.detach().double().requires_grad_() for x in given]
    rows = []
    for b, n, t in itertools.product(range(B), range(N), range(T)):
        real = torch.arange(S) if mask is None or not mask[b].any() else mask[b].nonzero()[:, 0]
        weights = (scale * keys[b, n, real] @ query[b, n, t]).exp()
        rows.append((weights / weights.sum()) @ values[b, n, real])
    context = torch.stack(rows).view(B, N, T, D).transpose(1, 2).flatten(2)
    return context, list(torch.autograd.grad(context.square().sum(), leaves))


def errors(got: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    return [
        float((a.detach().double() - b.detach()).norm() / b.detach().norm().clamp(min=1e-3))
        for a, b in zip(got, exact, strict=True)
    ]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of queries of torch's fused attention."""
    shapes: list[torch.Size] = []
    whole = nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shapes.append(query.shape)
        return whole(query, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    return shapes


@pytest.mark.parametrize("scale", [1.0, D**-0.5, 0.3])
@pytest.mark.parametrize("size", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("mask", [None, MASK], ids=["", "mask"])
def test_it_is_attention_to_bfloat16s_digits(
    mask: torch.Tensor | None, size: float, scale: float, fused: list[torch.Size]
) -> None:
    given = tensors(mask, size)
    context, weights = attend(*given, mask, scale=scale, want_weights=False)
    assert weights is None
    assert fused == []
    assert context.dtype == torch.bfloat16
    got = [context, *torch.autograd.grad(context.square().sum(), given)]
    exact_context, exact_grads = by_loop(given, mask, scale)
    exact = [exact_context, *exact_grads]
    # A score has an error of half a unit in its last place, and so has its weight, relatively.
    scores = scale * torch.einsum("bntd,bnsd->bnts", given[0].float(), given[1].float())
    tolerance = EPS * (2 + float(scores.detach().abs().max()))
    assert max(errors(got, exact)) < tolerance
    # And as torch's fused attention of the same numbers in float32, but for bfloat16's digits.
    wide = [x.detach().float().requires_grad_() for x in given]
    theirs, _ = attend(*wide, mask, scale=scale, want_weights=False)
    assert len(fused) == 1
    theirs_grads = torch.autograd.grad(theirs.square().sum(), wide)
    assert max(errors(got, [theirs.double(), *(x.double() for x in theirs_grads)])) < tolerance


def test_a_row_without_a_real_step_is_zero_and_has_finite_gradients() -> None:
    given = tensors(MASK)
    context, _ = attend(*given, MASK, scale=1.0, want_weights=False)
    assert (context[2] == 0).all()
    grads = torch.autograd.grad(context.float().square().sum(), given)
    assert all(x.isfinite().all() for x in grads)
    assert not grads[0][2].any()
    # A pad is not attended to, whatever stands there.
    keys, values = (x.detach().clone() for x in given[1:])
    keys[1, :, 3:], values[1, :, 3:] = 50.0, 9.0
    other, _ = attend(given[0], keys, values, MASK, scale=1.0, want_weights=False)
    assert other[:2].equal(context[:2])


def test_more_weights_than_the_bound_are_fused(
    fused: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tensors(MASK)
    weights = B * N * T * S
    results = []
    for most, calls in ((weights, 0), (weights - 1, 1)):
        monkeypatch.setattr(attention_qrnn, "MOST_WEIGHTS", most)
        fused.clear()
        results.append(attend(*given, MASK, scale=0.25, want_weights=False)[0])
        assert len(fused) == calls
    torch.testing.assert_close(results[0], results[1], rtol=0.03, atol=0.02)
    assert MOST_WEIGHTS * torch.bfloat16.itemsize == 128 * 2**20


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_other_dtypes_are_fused(dtype: torch.dtype, fused: list[torch.Size]) -> None:
    attend(*(x.to(dtype) for x in tensors(None)), None, scale=1.0, want_weights=False)
    assert len(fused) == 1


def test_other_devices_are_fused(fused: list[torch.Size]) -> None:
    given = [x.to("meta") for x in tensors(MASK)]
    attend(*given, MASK.to("meta"), scale=1.0, want_weights=False)
    assert len(fused) == 1


def test_asked_for_explicitly_it_gives_weights_as_before() -> None:
    given = tensors(MASK)
    plain, _ = attend(*given, MASK, scale=0.25, want_weights=False)
    for options in ({"want_weights": True}, {"want_weights": False, "explicit": True}):
        context, weights = attend(*given, MASK, scale=0.25, **options)
        assert (weights is not None) == options["want_weights"]
        torch.testing.assert_close(context, plain, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("has_mask", [False, True], ids=["", "mask"])
def test_programs_give_the_same_numbers(has_mask: bool) -> None:
    class Attention(nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            mask = given[3] if has_mask else None
            return attend(*given[:3], mask, scale=0.25, want_weights=False)[0]

    module = Attention()
    given = [x.detach() for x in tensors(MASK)] + [MASK] * has_mask
    wanted = module(*given)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    assert compiled(*given).equal(wanted)
    # The export of torch 2.11 ties this product to the number of steps that it is shown.
    is_tied = Version(torch.__version__) < Version("2.12")
    steps = None if is_tied else {2: torch.export.Dim("steps", min=2)}
    shapes = (steps, None, None, None)[: len(given)]
    program = torch.export.export(module, tuple(given), dynamic_shapes=(shapes,))
    assert program.module()(*given).equal(wanted)
    traced = torch.jit.trace(module, tuple(given))
    assert traced(*given).equal(wanted)
    # Sizes are no constants.
    longer = [torch.cat([given[0], given[0]], 2), *given[1:]]
    for other in (traced, compiled, *([] if is_tied else [program.module()])):
        torch.testing.assert_close(other(*longer), module(*longer), rtol=0.02, atol=0.01)


def test_transforms_go_through() -> None:
    given = [x.detach() for x in tensors(MASK)]

    def one(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        batch = (x[None] for x in (query, keys, values))
        return attend(*batch, None, scale=0.25, want_weights=False)[0][0]

    wanted, _ = attend(*given, None, scale=0.25, want_weights=False)
    mapped = torch.func.vmap(one)(*given)
    torch.testing.assert_close(mapped, wanted, rtol=0.02, atol=0.01)
    grads = torch.func.grad(lambda *x: one(*x).float().sum(), argnums=(0, 1, 2))(
        *(x[0] for x in given)
    )
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_models_logits_are_near_those_of_float32(heads: int) -> None:
    fields: dict[str, Any] = {"vocab_size": 20, "embedding_size": 16, "hidden_size": 16}
    config = QRNNConfig(
        **fields,
        encoder_layers=2,
        decoder_layers=2,
        attention_layers="all",
        num_attention_heads=heads,
        residual=True,
        rms_norm=True,
        attention_scaling=True,
    )
    model = QRNNForConditionalGeneration(config).eval()
    ids = torch.randint(4, 20, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :4]}
    with torch.no_grad():
        exact = model(**given).logits
        half = model.bfloat16()(**given).logits
        assert half.dtype == torch.bfloat16
        # The weights are rounded too.
        assert (half.float() - exact).norm() < 0.05 * exact.norm()
        ids_only = {name: given[name] for name in ("input_ids", "attention_mask")}
        made = model.generate(**ids_only, max_new_tokens=4, num_beams=2)
    assert made.shape[0] == 2
