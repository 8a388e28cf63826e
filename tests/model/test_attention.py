"""hf_qrnn.model.attention_qrnn: Eq. 8 by a plain loop, pads, both ways to compute it, asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from small_models import small
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from hf_qrnn import (
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
)
from hf_qrnn.model.attention_qrnn import (
    AttentionBlock,
    Memory,
    OutputAttention,
    attend,
    split_heads,
)

pytestmark = pytest.mark.usefixtures("nan_memory")

H = 4
SOURCE_MASK = [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]


def source(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder states (4, 5, H), zero at pads as the encoder leaves them, and their mask."""
    mask = torch.tensor(SOURCE_MASK).bool()
    states = torch.randn(4, 5, width).double().masked_fill(~mask[..., None], 0.0)
    return states, mask


def attend_by_loop(
    queries: numpy.ndarray, keys: numpy.ndarray, values: numpy.ndarray, heads: int, scale: float
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Contexts (B, T, H) and weights (B, N, T, S) of SOURCE_MASK, one number after another."""
    batch, length, width = queries.shape
    contexts = numpy.zeros((batch, length, width))
    weights = numpy.zeros((batch, heads, length, keys.shape[1]))
    for b in range(batch):
        real = [s for s, one in enumerate(SOURCE_MASK[b]) if one]
        for n in range(heads):
            part = slice(n * width // heads, (n + 1) * width // heads)
            for t in range(length):
                scores = [scale * float(queries[b, t, part] @ keys[b, s, part]) for s in real]
                total = sum(numpy.exp(score) for score in scores)
                for s, score in zip(real, scores, strict=True):
                    alpha = numpy.exp(score) / total
                    weights[b, n, t, s] = alpha
                    contexts[b, t, part] += alpha * values[b, s, part]
    return contexts, weights


def arrays(*tensors: torch.Tensor) -> list[numpy.ndarray]:
    return [x.detach().numpy() for x in tensors]


@pytest.mark.parametrize("want_weights", [True, False], ids=["weights", "sdpa"])
@pytest.mark.parametrize(("heads", "scaling"), [(1, False), (1, True), (2, False), (4, True)])
def test_output_attention_is_equation_8(heads: int, scaling: bool, want_weights: bool) -> None:
    attention = OutputAttention(H, heads, scaling=scaling).double()
    states, mask = source(H)
    c, o = torch.randn(4, 3, H).double(), torch.rand(4, 3, H).double()
    memory = Memory(None, *attention.keys_values(states))
    h, weights = attention(c, o, memory, mask, want_weights)
    scale = (H // heads) ** -0.5 if scaling else 1.0
    c_, states_, o_ = arrays(c, states, o)
    k, alpha = attend_by_loop(c_, states_, states_, heads, scale)
    w_k, w_c = arrays(attention.context.weight, attention.cell.weight)
    inner = k @ w_k.T + c_ @ w_c.T
    numpy.testing.assert_allclose(h.detach().numpy(), o_ * inner, rtol=1e-10, atol=1e-12)
    assert (weights is None) != want_weights
    if weights is not None:
        numpy.testing.assert_allclose(weights.detach().numpy(), alpha, rtol=1e-10, atol=1e-12)
    # f-pooling has no o.
    bare, _ = attention(c, None, memory, mask, want_weights)
    numpy.testing.assert_allclose(bare.detach().numpy(), inner, rtol=1e-10, atol=1e-12)
    assert attention.context.bias is None
    assert attention.cell.bias is None


@pytest.mark.parametrize("want_weights", [True, False], ids=["weights", "sdpa"])
@pytest.mark.parametrize(("heads", "scaling"), [(1, False), (2, True)])
def test_attention_block_is_prenorm_and_residual(
    heads: int, scaling: bool, want_weights: bool
) -> None:
    block = AttentionBlock(H, heads, scaling=scaling, dropout=0.0).double()
    nn.init.normal_(block.norm.weight)
    states, mask = source(H)
    x = torch.randn(4, 3, H).double()
    got, _ = block(x, Memory(None, *block.keys_values(states)), mask, want_weights)
    x_, states_, gain, w_q, w_kv, w_out = arrays(
        x, states, block.norm.weight, block.query.weight, block.key_value.weight, block.out.weight
    )
    normed = gain * x_ / numpy.sqrt((x_**2).mean(-1, keepdims=True) + 1e-6)
    scale = (H // heads) ** -0.5 if scaling else 1.0
    context, _ = attend_by_loop(
        normed @ w_q.T, states_ @ w_kv[:H].T, states_ @ w_kv[H:].T, heads, scale
    )
    wanted = x_ + context @ w_out.T
    numpy.testing.assert_allclose(got.detach().numpy(), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_attention_weights_sum_to_one_and_are_zero_at_pads(dtype: torch.dtype) -> None:
    states, mask = source(H)
    heads = split_heads(states.to(dtype), 2)
    query = split_heads(30 * torch.randn(4, 3, H).to(dtype), 2)
    _, weights = attend(query, heads, heads, mask, scale=1.0, want_weights=True)
    assert weights.shape == (4, 2, 3, 5)
    assert (weights.transpose(1, 3)[~mask] == 0).all()
    sums = weights.double().sum(-1)
    one = torch.ones_like(sums[:3])
    torch.testing.assert_close(sums[:3], one, rtol=0, atol=4 * torch.finfo(dtype).eps)
    assert (sums[3] == 0).all()


def test_empty_source_gives_zeros_and_finite_gradients_on_both_paths() -> None:
    states, mask = source(H)
    results = []
    for want_weights in (True, False):
        values = states.clone().requires_grad_()
        query = torch.linspace(-9, 9, 4 * 3 * H).double().view(4, 3, H).requires_grad_()
        keys = split_heads(values, 2)
        context, _ = attend(
            split_heads(query, 2), keys, keys, mask, scale=1.0, want_weights=want_weights
        )
        assert (context[3] == 0).all()
        grads = torch.autograd.grad(context.square().sum(), (query, values))
        assert (grads[0][3] == 0).all()
        assert (grads[1][~mask] == 0).all()
        results.append((context, *grads))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["weights", "explicit", "sdpa"])
def test_empty_source_is_finite_where_scores_and_their_mask_overflow(
    way: str, dtype: torch.dtype
) -> None:
    # -65504 (float16's lowest) and a score of -400 are -inf together.
    mask = torch.tensor([[True, True, False], [False] * 3])
    query, keys = torch.full((2, 1, 2, 4), 10.0), torch.full((2, 1, 3, 4), -10.0)
    values = torch.full((2, 1, 3, 4), 3.0).masked_fill(~mask[:, None, :, None], 0.0)
    tensors = [tensor.to(dtype).requires_grad_() for tensor in (query, keys, values)]
    options = {"want_weights": way == "weights", "explicit": way == "explicit"}
    context, _ = attend(*tensors, mask, scale=1.0, **options)
    assert (context[0] == 3).all()
    assert (context[1] == 0).all()
    for gradient in torch.autograd.grad(context.square().sum(), tensors):
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()


# ------------------------------------------------------------------ asking for one way

MODERN = {
    "encoder_bidirectional": True,
    "reverse_source": False,
    "residual": True,
    "rms_norm": True,
    "attention_layers": "all",
    "num_attention_heads": 2,
    "attention_scaling": True,
}
STACKS = {"paper": {}, "modern": MODERN}
OTHERS = [
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "paged|eager",
    "paged|sdpa",
    "kernels-community/flash-attn",
    "nonsense",
    3,
]


def inputs() -> dict[str, torch.Tensor]:
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    target = torch.randint(4, 20, (2, 4))
    return {
        "input_ids": torch.randint(4, 20, (2, 5)),
        "attention_mask": mask,
        "decoder_input_ids": target,
    }


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calls of torch's fused attention."""
    calls: list[int] = []
    whole = nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return whole(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    return calls


def by_config(folder: Path, name: Any) -> Any:
    return AutoModelForSeq2SeqLM.from_config(small(attn_implementation=name))


def by_from_config(folder: Path, name: Any) -> Any:
    return AutoModelForSeq2SeqLM.from_config(small(), attn_implementation=name)


def by_from_pretrained(folder: Path, name: Any) -> Any:
    QRNNForConditionalGeneration(small()).save_pretrained(folder)
    return AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation=name)


def by_setting(folder: Path, name: Any) -> Any:
    model = QRNNForConditionalGeneration(small())
    model.set_attn_implementation(name)
    return model


def by_setting_a_dictionary(folder: Path, name: Any) -> Any:
    model = QRNNForConditionalGeneration(small())
    model.set_attn_implementation({"": name})
    return model


WAYS = [by_config, by_from_config, by_from_pretrained, by_setting, by_setting_a_dictionary]
Way = Callable[[Path, Any], Any]


@pytest.mark.parametrize("way", WAYS)
def test_eager_uses_no_fused_attention_and_sdpa_does(
    way: Way, tmp_path: Path, fused: list[int]
) -> None:
    model = way(tmp_path, "eager").eval()
    assert model.config._attn_implementation == "eager"
    model(**inputs())
    assert not fused
    model = way(tmp_path, "sdpa").eval()
    assert model.config._attn_implementation == "sdpa"
    model(**inputs())
    assert len(fused) == 1


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("way", WAYS)
def test_other_implementations_are_refused_by_name(way: Way, name: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`attn_implementation=") as error:
        way(tmp_path, name)
    assert str(error.value).endswith(f"but is {name!r}.")


@pytest.mark.parametrize("name", OTHERS)
def test_a_refused_implementation_changes_nothing(name: Any) -> None:
    model = QRNNForConditionalGeneration(small(attn_implementation="eager"))
    with pytest.raises(ValueError, match="`attn_implementation="):
        model.set_attn_implementation(name)
    assert model.config._attn_implementation == "eager"
    assert model.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", [QRNNForCausalLM, QRNNForSequenceClassification])
@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_heads_without_attention_take_both_names(kind: Any, name: str) -> None:
    model = kind(small(attn_implementation=name))
    model.set_attn_implementation("sdpa" if name == "eager" else "eager")
    assert model(torch.tensor([[4, 5]])).logits.isfinite().all()


def test_the_next_call_attends_as_it_was_set(fused: list[int]) -> None:
    model = QRNNForConditionalGeneration(small()).eval()
    steps = [("eager", 0), ("sdpa", 1), ("eager", 0)]
    compiled = torch.compile(model, backend="eager")
    for name, calls in steps:
        model.set_attn_implementation(name)
        for call in (model, compiled):
            fused.clear()
            call(**inputs())
            assert len(fused) == calls, (name, call)


def test_a_base_inside_a_head_follows_the_head(fused: list[int]) -> None:
    head = QRNNForConditionalGeneration(small()).eval()
    head.set_attn_implementation("eager")
    head.model(**inputs())
    assert not fused


def test_choice_is_not_saved(tmp_path: Path) -> None:
    model = by_setting(tmp_path, "eager")
    model.save_pretrained(tmp_path)
    assert "attn" not in " ".join(json.loads((tmp_path / "config.json").read_text()))
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("changes", STACKS.values(), ids=STACKS)
def test_eager_equals_sdpa_in_values_and_gradients(changes: dict[str, Any]) -> None:
    model = QRNNForConditionalGeneration(small(**changes)).double().train()
    batch = inputs()
    results = []
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        logits = model(**batch).logits
        results.append((logits, *torch.autograd.grad(logits.square().sum(), model.parameters())))
    for sdpa, eager in zip(*results, strict=True):
        torch.testing.assert_close(eager, sdpa, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", STACKS.values(), ids=STACKS)
def test_eager_can_be_differentiated_twice(changes: dict[str, Any]) -> None:
    config = small(attn_implementation="eager", embedding_size=2, hidden_size=4, **changes)
    model = QRNNForConditionalGeneration(config).double().eval()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    target = torch.randn(2, 2, 2).double()

    def logits(source: torch.Tensor) -> torch.Tensor:
        output = model(
            inputs_embeds=source,
            attention_mask=mask,
            decoder_inputs_embeds=target,
            use_cache=False,
        )
        return output.logits[..., :3]

    source = torch.randn(2, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(logits, source)
    assert torch.autograd.gradgradcheck(logits, source)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_weights_come_where_they_are_asked_for(name: str, tmp_path: Path) -> None:
    model = QRNNForConditionalGeneration(small(attn_implementation=name)).eval()
    batch = inputs()
    assert model(**batch).cross_attentions is None
    (asked,) = model(**batch, output_attentions=True).cross_attentions
    assert asked.shape == (2, 1, 4, 5)
    torch.testing.assert_close(asked.sum(-1), torch.ones(2, 1, 4))
    # By the config of a model too, where transformers would want "eager".
    model.config.output_attentions = True
    (by_field,) = model(**batch).cross_attentions
    assert torch.equal(by_field, asked)
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation=name).eval()
    assert again.config._attn_implementation == name
    (reloaded,) = again(**batch).cross_attentions
    assert torch.equal(reloaded, asked)
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {"output_attentions": True, "return_dict_in_generate": True, "max_new_tokens": 2}
    assert model.generate(**source, **options).cross_attentions[0][0].shape == (2, 1, 1, 5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_generate_attends_as_it_was_set(options: dict[str, Any], fused: list[int]) -> None:
    model = QRNNForConditionalGeneration(small()).double().eval()
    source = {name: inputs()[name] for name in ("input_ids", "attention_mask")}
    wanted = model.generate(**source, max_new_tokens=5, disable_compile=True, **options)
    assert fused
    model.set_attn_implementation("eager")
    fused.clear()
    got = model.generate(**source, max_new_tokens=5, disable_compile=True, **options)
    assert not fused
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_attend_as_it_was_set(reentrant: bool, fused: list[int]) -> None:
    model = QRNNForConditionalGeneration(small(attn_implementation="eager")).train()
    enable = getattr(model, "activation_checkpointing_enable", None)  # the older name below
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    model(**inputs(), use_cache=False).logits.sum().backward()
    assert not fused


@pytest.mark.parametrize(("name", "calls"), [("eager", 0), ("sdpa", 1)])
def test_exported_graph_attends_as_it_was_set(name: str, calls: int) -> None:
    config = small(attn_implementation=name, use_cache=False)
    model = QRNNForConditionalGeneration(config).eval()
    batch = inputs()
    program = torch.export.export(model, (), batch)
    found = [node for node in program.graph.nodes if "scaled_dot_product" in str(node.target)]
    assert len(found) == calls
    torch.testing.assert_close(program.module()(**batch).logits, model(**batch).logits)
